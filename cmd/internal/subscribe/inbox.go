package subscribe

import "github.com/eclipse/paho.golang/packets"

// inbox is the receiving half of the QoS 2 protocol: which packet ids were written and wait for their PUBREL. It is
// part of the session, so it lives across connections. It is for one goroutine.
//
// Invariant: an id is held exactly from the moment its message was written until its PUBREL was read; while it is
// held, no PUBLISH with that id is written, whatever its DUP says [MQTT-4.3.3-10].
// Bound: 65535 ids, by their type.
type inbox struct{ held map[uint16]struct{} }

func newInbox() *inbox { return &inbox{held: map[uint16]struct{}{}} }

// clear forgets all ids, as the server's new session has none.
func (b *inbox) clear() { clear(b.held) }

// fresh says whether a PUBLISH has to be written.
func (b *inbox) fresh(p *packets.Publish) bool {
	if p.QoS != 2 {
		return true // at QoS 1 a repetition cannot be told from a new message
	}
	_, held := b.held[p.PacketID]
	return !held
}

// written notes that a message was written and returns its acknowledgement, nil at QoS 0. The acknowledgement may be
// sent only after what was written has left this process.
func (b *inbox) written(p *packets.Publish) packets.Packet {
	switch p.QoS {
	case 1:
		return &packets.Puback{PacketID: p.PacketID}
	case 2:
		b.held[p.PacketID] = struct{}{}
		return &packets.Pubrec{PacketID: p.PacketID}
	default:
		return nil
	}
}

// onPubrel frees an id. An unknown one is answered as well: it may belong to the time before a restart of this client
// [MQTT-4.3.3-11].
func (b *inbox) onPubrel(id uint16) packets.Packet {
	answer := &packets.Pubcomp{PacketID: id}
	if _, held := b.held[id]; !held {
		answer.ReasonCode = 0x92 // packet identifier not found: no error after a restart
	}
	delete(b.held, id)
	return answer
}
