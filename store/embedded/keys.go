package embedded

import (
	"encoding/binary"

	"rewindmq/schema"
)

// The first byte of every key; doc.go draws the whole of it.
const (
	keyOwned        = 'a' // a | clientId: a connection holds the session
	keyClient       = 'c' // c | clientId -> document
	keyDelivery     = 'd' // d | epoch4 | session8 | seq8 -> record
	keyEpoch        = 'e' // e | epoch4 -> epoch
	keyFormat       = 'f' // f -> version
	keyState        = 'h' // h -> high-water marks and counts
	keyInbound      = 'i' // i | session8 | packetId2 -> messageId
	keyGroup        = 'g' // g | group -> number, since, after, members
	keyClaimed      = 'q' // q | group8 | lane4 | n8 -> messageId: a record has claimed it
	keyAgain        = 'u' // u | group8 | lane4 | n8 -> messageId: a lost member left it
	keyCursor       = 'k' // k | session8 -> cursor
	keyMessage      = 'm' // m | pos8 | topicId4 -> message
	keyTopicID      = 'n' // n | topic -> topicId4
	keyTopicName    = 'N' // N | topicId4 -> last epoch, topic
	keyEnd          = 'o' // o | time8 | clientId: when an unconnected session ends
	keyReceived     = 'p' // p | session8 | seq8: PUBREC came
	keyRetained     = 'r' // r | topic -> mark, message
	keyCheckpoint   = 'R' // R -> cursor
	keySubscription = 's' // s | session8 | filter -> subscription
	keyTopic        = 't' // t | epoch4 | topicId4 | pos8
	keyWill         = 'v' // v | time8 | clientId: when its next will is due
	keySeen         = 'x' // x | messageId -> pos8
	keyTombstone    = 'z' // z | time8 | topic: when the cleared topic is forgotten
)

func appendU32(b []byte, v uint32) []byte { return binary.BigEndian.AppendUint32(b, v) }
func appendU64(b []byte, v uint64) []byte { return binary.BigEndian.AppendUint64(b, v) }

func messageKey(b []byte, n uint64, topic uint32) []byte {
	return appendU32(appendU64(append(b, keyMessage), n), topic)
}

// messageFrom is the least key of position n, whatever its topic.
func messageFrom(b []byte, n uint64) []byte { return appendU64(append(b, keyMessage), n) }

// splitMessageKey is the inverse of messageKey.
func splitMessageKey(k []byte) (n uint64, topic uint32, ok bool) {
	if len(k) != 13 || k[0] != keyMessage {
		return 0, 0, false
	}
	return binary.BigEndian.Uint64(k[1:]), binary.BigEndian.Uint32(k[9:]), true
}

// positionOf gives the position in a message's key; 0: it is none.
func positionOf(k []byte) uint64 {
	n, _, _ := splitMessageKey(k)
	return n
}

func topicKey(b []byte, epoch, topic uint32, n uint64) []byte {
	return appendU64(appendU32(appendU32(append(b, keyTopic), epoch), topic), n)
}

func deliveryKey(b []byte, epoch uint32, session, seq uint64) []byte {
	return appendU64(appendU64(appendU32(append(b, keyDelivery), epoch), session), seq)
}

func epochKey(b []byte, prefix byte, epoch uint32) []byte { return appendU32(append(b, prefix), epoch) }

func stringKey(b []byte, prefix byte, s string) []byte { return append(append(b, prefix), s...) }

func sessionKey(b []byte, prefix byte, session uint64) []byte {
	return appendU64(append(b, prefix), session)
}

func inboundKey(b []byte, session uint64, packet uint16) []byte {
	return binary.BigEndian.AppendUint16(sessionKey(b, keyInbound, session), packet)
}

func receivedKey(b []byte, session, seq uint64) []byte {
	return appendU64(sessionKey(b, keyReceived, session), seq)
}

func subscriptionKey(b []byte, session uint64, filter string) []byte {
	return append(sessionKey(b, keySubscription, session), filter...)
}

// agendaKey orders what has to be done by its time. when is Unix nanoseconds,
// not negative.
func agendaKey(b []byte, prefix byte, when int64, name string) []byte {
	return append(appendU64(append(b, prefix), uint64(max(when, 0))), name...)
}

func seenKey(b []byte, id schema.ID) []byte { return append(append(b, keySeen), id[:]...) }

// after gives the least key above all that begin with prefix.
// REQUIRES: prefix does not consist of 0xff alone.
func after(prefix []byte) []byte {
	end := append([]byte(nil), prefix...)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i]++; end[i] != 0 {
			return end[:i+1]
		}
	}
	panic("embedded: no key above the prefix")
}
