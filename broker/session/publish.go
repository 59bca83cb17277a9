package session

import (
	"errors"
	"slices"
	"time"

	"rewindmq/schema"
	"rewindmq/store"
)

// incoming is a message from the client, on its way into the log.
type incoming struct {
	n   uint64 // its number, as Session.read counts
	m   *schema.Message
	qos uint8
	id  uint16
	in  *inbound // QoS 2
	// ready: nothing stands in the way of the append.
	ready bool
	again bool // a resend
	at    time.Time
}

// inbound is a QoS 2 message of the client's, from its PUBLISH to its PUBREL.
type inbound struct {
	id     schema.ID
	stored bool // the entry is committed
	used   bool // counts against the quota of this connection
	// releasing: DeleteInbound is under way for a PUBREL.
	releasing bool
}

func (s *Session) putInbound(id uint16, in *inbound) {
	if s.inbound == nil {
		s.inbound = make(map[uint16]*inbound)
	}
	s.inbound[id] = in
}

// Admit tells whether one more PUBLISH may be read: a client that cannot be told
// the limit (3.1.1) is held back at it instead of being closed.
func (s *Session) Admit() bool { return s.closing || s.Waiting() < s.o.ReceiveMaximum }

// Awaits tells whether a QoS 2 message of the client's, from whatever connection, waits
// for its PUBREL under an identifier: a PUBLISH with it is a resend.
func (s *Session) Awaits(id uint16) bool { return s.inbound[id] != nil }

// OnPublish takes a PUBLISH from the client. m has everything but its ID; id is
// the packet id (QoS 1 and 2). What comes before it is stored before it.
func (s *Session) OnPublish(m *schema.Message, id uint16) {
	if s.closing {
		return
	}
	p := incoming{m: m, qos: m.QoS, id: id, ready: true, at: m.Created}
	m.ID = s.o.NewID(m.Created)
	if m.QoS == 2 && !s.onPublish2(&p) {
		return
	}
	if m.QoS == 1 && !s.spend() {
		return
	}
	s.read++
	p.n = s.read
	if p.ready && (len(s.ingest) == 0 && !s.asking || !s.on(ruleInOrder)) {
		s.append(p)
		return
	}
	s.ingest = append(s.ingest, p)
	s.drainIngest()
}

// onPublish2 finds out whether it is a resend, and notes a new one in the
// session before it is appended: after any crash the resend goes under the same
// ID, and the log takes it once [MQTT-4.3.3-10]. Whether it has expired does not
// matter here [MQTT-4.3.3-13].
func (s *Session) onPublish2(p *incoming) bool {
	if in := s.inbound[p.id]; in != nil {
		p.m.ID, p.in, p.again = in.id, in, true
		if !in.used && !s.spend() {
			return false
		}
		in.used = true
		if !s.on(ruleInboundAgain) {
			s.do(Action{Do: SendAck, Ack: Pubrec, PacketID: p.id})
			return false
		}
		// Appended again before PUBREC: the entry may have been stored, and the
		// message not (Q1).
		p.ready = in.stored || !s.on(ruleInboundFirst)
		return true
	}
	if !s.spend() {
		return false
	}
	p.in = &inbound{id: p.m.ID, used: true, stored: s.o.Clean}
	s.putInbound(p.id, p.in)
	if s.o.Clean {
		return true
	}
	p.ready = !s.on(ruleInboundFirst)
	s.write(written{kind: wroteInbound, in: p.in}, store.PutInbound{
		Owner: s.o.Owner, Inbound: schema.Inbound{PacketID: p.id, MessageID: p.m.ID},
	})
	return true
}

// spend takes one of the client's quota: more than the server's Receive Maximum
// ends the connection [MQTT-3.3.4-7].
func (s *Session) spend() bool {
	if s.o.CanRefuse && s.used >= s.o.ReceiveMaximum {
		s.Close(ReasonReceiveMax)
		return false
	}
	s.used++
	return true
}

// onInboundStored lets go what waits for the entry.
func (s *Session) onInboundStored(in *inbound) {
	in.stored = true
	for i := range s.ingest {
		if s.ingest[i].in == in {
			s.ingest[i].ready = true
		}
	}
	s.drainIngest()
}

// drainIngest appends what is ready, up to the first message that is not:
// nothing overtakes (A: L10). Nor does anything overtake the SUBSCRIBE before it: a
// message appended before Head is read would lie before the subscription (F-22).
// What came before the SUBSCRIBE goes on (see ask).
func (s *Session) drainIngest() {
	if !s.on(ruleInOrder) {
		s.ingest = slices.DeleteFunc(s.ingest, func(p incoming) bool {
			if p.ready {
				s.append(p)
			}
			return p.ready
		})
		return
	}
	for len(s.ingest) > 0 && s.ingest[0].ready && (!s.asking || s.ingest[0].n <= s.requests[0].behind) {
		p := s.ingest[0]
		s.ingest[0] = incoming{}
		s.ingest = s.ingest[1:]
		s.append(p)
	}
	if len(s.ingest) == 0 {
		s.ingest = nil
	}
}

func (s *Session) append(p incoming) {
	s.do(Action{Do: DoAppend, Message: p.m})
	p.m = nil // the store's now
	s.appends.push(p)
}

// OnAppended tells what became of the append that has been under way for longest.
// It is the only source of a PUBACK or PUBREC with success: only what the store
// says is stored is acknowledged [MQTT-4.3.2-4, MQTT-4.3.3-8].
func (s *Session) OnAppended(a store.Appended) {
	p := s.appends.pop()
	s.answered++
	if a.Outcome == store.InDoubt && s.on(ruleReleaseAppends) {
		s.lost = true // it may still land: the session is not released, the claimer puts a stopper
	}
	switch {
	case s.closing:
		s.finish()
	case a.Outcome == store.Stored:
		s.acknowledge(&p, Success)
	case a.Outcome == store.InDoubt:
		// No answer in doubt (L9): the client sends it again elsewhere
		// ([MQTT-4.8.0-2] of 3.1.1).
		s.Close(ReasonInDoubt)
	case !s.o.CanRefuse || !errors.Is(a.Err, store.ErrTooLarge) && !errors.Is(a.Err, store.ErrNoSpace):
		// Not because of the message: nothing more of this publisher is taken.
		s.Close(ReasonRefused)
	default:
		s.acknowledge(&p, codeOf(a.Err))
	}
	s.ask()
}

func (s *Session) acknowledge(p *incoming, code Code) {
	switch p.qos {
	case 1:
		s.used-- // the identifier is free: the next one with it is a new message [MQTT-4.3.2-5]
		s.do(Action{Do: SendAck, Ack: Puback, PacketID: p.id, Code: code, QoS: 1, At: p.at})
	case 2:
		if code >= failure {
			// [MQTT-4.3.3-9] the handshake ends here; the id is free again.
			s.dropInbound(p.id, p.in)
		}
		s.do(Action{Do: SendAck, Ack: Pubrec, PacketID: p.id, Code: code, QoS: 2, At: p.at, Again: p.again})
	default:
		s.do(Action{Do: SendAck, Code: code, At: p.at}) // counted, not sent
	}
}

// dropInbound forgets the entry of a refused message.
func (s *Session) dropInbound(id uint16, in *inbound) {
	if s.inbound[id] != in {
		return
	}
	s.release2(id, in)
	if !s.o.Clean {
		s.write(written{kind: wroteNothing}, store.DeleteInbound{Owner: s.o.Owner, PacketID: id})
	}
}

func (s *Session) release2(id uint16, in *inbound) {
	delete(s.inbound, id)
	if in.used {
		s.used--
	}
}

// OnPubrel takes PUBREL from the client: the entry is removed, and that is
// committed, before PUBCOMP leaves [MQTT-4.3.3-11]. From then on the identifier
// stands for a new message [MQTT-4.3.3-12]. Acknowledgements bear the identifier
// of what they answer [MQTT-2.2.1-5].
//
// One write is under way for an identifier, however often PUBREL comes meanwhile, and
// one PUBCOMP answers all of them: it comes behind each, and says the same of each. A
// second one would meet a client that gives the identifier to its next message, whose
// own PUBREL is not sent yet.
//
// An identifier that is not known has been released before: PUBREL follows a PUBREC,
// and that a commit. The client lacks the PUBCOMP, and 0x92 would have it tell its
// application of a failure.
func (s *Session) OnPubrel(id uint16) {
	if s.closing {
		return
	}
	in := s.inbound[id]
	if in == nil {
		s.do(Action{Do: SendAck, Ack: Pubcomp, PacketID: id})
		return
	}
	if s.o.Clean || !s.on(ruleInboundOut) {
		s.do(Action{Do: SendAck, Ack: Pubcomp, PacketID: id})
	}
	if s.o.Clean {
		s.release2(id, in)
		return
	}
	if in.releasing {
		return // a repeated PUBREL: PUBCOMP is on its way
	}
	in.releasing = true
	s.write(written{kind: wroteRelease, in: in, id: id}, store.DeleteInbound{Owner: s.o.Owner, PacketID: id})
}

func (s *Session) onInboundOut(id uint16, in *inbound) {
	if s.inbound[id] == in {
		s.release2(id, in)
	}
	if !s.closing && s.on(ruleInboundOut) {
		s.do(Action{Do: SendAck, Ack: Pubcomp, PacketID: id})
	}
}

// codeOf says to a client why its message was certainly not stored.
func codeOf(err error) Code {
	switch {
	case errors.Is(err, store.ErrNoSpace):
		return QuotaExceeded
	case errors.Is(err, store.ErrTooLarge):
		return ImplementationError
	}
	return UnspecifiedError
}
