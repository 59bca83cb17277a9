package session

import (
	"slices"

	"rewindmq/schema"
	"rewindmq/store"
)

// resend sends the flight of former connections again, in order, under its
// packet ids, as the connection's quota allows (F-07) [MQTT-4.4.0-1,
// MQTT-4.6.0-1, MQTT-4.9.0-1]. false: nothing can be sent now.
func (s *Session) resend() bool {
	e := s.again[0]
	if s.win.byID[e.PacketID] != e { // settled meanwhile
		s.again = s.again[1:]
		return true
	}
	if s.held() {
		return false
	}
	if e.Received {
		s.resendPubrel(0)
		return true
	}
	if s.unacked >= s.o.Quota {
		// What else there is goes on [MQTT-3.3.4-10, MQTT-4.9.0-3].
		i := slices.IndexFunc(s.again, func(e *entry) bool { return e.Received && s.win.byID[e.PacketID] == e })
		if i < 0 {
			return false
		}
		s.resendPubrel(i)
		return true
	}
	if e.m == nil {
		s.lookUp()
		return false
	}
	// The subscription may be gone [MQTT-3.10.4-3], and the message may have
	// expired [MQTT-4.3.3-7]; the delivery goes on.
	r := s.match(e.m)
	if e.Group != "" {
		r = s.matchShared(s.shared[e.Group], e.m)
	}
	if s.tooLarge(e.m, match{qos: e.QoS, ids: r.ids}) && s.on(ruleLargeResend) {
		s.popAgain(e)
		s.do(Action{Do: Count, Dropped: DropTooLarge, QoS: e.QoS})
		s.skip(e)
		s.saveDrop()
		return true
	}
	e.ids, e.rap = r.ids, r.rap
	s.popAgain(e)
	s.sendEntry(e, true)
	return true
}

// resendPubrel sends the PUBREL of again[i], which was received. It takes none of the
// quota, but none is given back for it either before it is settled.
func (s *Session) resendPubrel(i int) {
	e := s.again[i]
	s.again = slices.Delete(s.again, i, i+1)
	e.sent = true
	s.unacked++
	s.do(Action{Do: SendAck, Ack: Pubrel, PacketID: e.PacketID})
}

func (s *Session) popAgain(e *entry) {
	s.again[0] = nil
	s.again = s.again[1:]
	e.sent = true
	s.unacked++
}

// skip settles a delivery that cannot be sent: QoS 1 at once; QoS 2 goes on as if
// PUBREC had come, so that the id is free on both sides (S23).
func (s *Session) skip(e *entry) {
	e.dropped = true // it counts as dropped, not as acknowledged
	if e.QoS == 1 {
		s.settle(e)
		return
	}
	s.onPubrec(e)
}

// lookUp asks for the messages of the next entries to be sent again, a few at a
// time: a window of large messages is not held in memory.
func (s *Session) lookUp() {
	if s.looking > 0 {
		return
	}
	var refs []store.Ref
	for _, e := range s.again {
		if len(refs) == defaultLookup {
			break
		}
		if e.m == nil && !e.Received && s.win.byID[e.PacketID] == e {
			refs = append(refs, store.Ref{ID: e.MessageID, Mark: e.Mark})
		}
	}
	s.looking = len(refs)
	s.do(Action{Do: DoLookup, Refs: refs})
}

// OnLookup brings the messages asked for by DoLookup, nil where there is none any
// more.
func (s *Session) OnLookup(refs []store.Ref, msgs []*schema.Message) {
	s.looking = 0
	for i, ref := range refs {
		for _, e := range s.again {
			if e.MessageID != ref.ID || e.m != nil || e.Received || e.sent {
				continue
			}
			if e.m = msgs[i]; e.m == nil {
				s.gone(e)
			}
			break
		}
	}
	s.Pump()
}

// gone: retention has removed a message that was in flight.
func (s *Session) gone(e *entry) {
	if s.closing || s.win.byID[e.PacketID] != e {
		return
	}
	s.do(Action{Do: Count, Dropped: DropTrimmed, QoS: e.QoS})
	e.sent = true
	s.unacked++
	for i := range s.again {
		if s.again[i] == e {
			s.again = append(s.again[:i:i], s.again[i+1:]...)
			break
		}
	}
	s.skip(e)
}

// settle ends a delivery.
func (s *Session) settle(e *entry) {
	s.win.settle(e)
	if !e.dropped {
		s.do(Action{Do: Settled, QoS: e.QoS, At: e.Created})
	}
	if e.sent {
		s.unacked--
	}
	if s.on(ruleSaveAcks) {
		s.dirty = true
	}
}

// OnAck takes an acknowledgement of a delivery from the client. code is that of
// MQTT 5, Success for 3.1.1. One that is not of the delivery's handshake is a
// protocol error: to pass it over would leave the delivery in flight for ever.
func (s *Session) OnAck(kind AckKind, id uint16, code Code) {
	if s.closing {
		return
	}
	e := s.win.byID[id]
	if e != nil && !e.sent {
		return // repeated, for what held the id before: it settles nothing else
	}
	switch {
	case kind == Pubrec && e == nil:
		// (section 4.3.3) the client is told, so that it can let go of its state.
		s.do(Action{Do: SendAck, Ack: Pubrel, PacketID: id, Code: PacketIDNotFound})
	case e == nil: // repeated, or of a delivery that the server has forgotten
	case kind == Puback && e.QoS == 1, kind == Pubcomp && e.QoS == 2 && e.Received:
		// Until then it is unacknowledged [MQTT-4.3.2-3, MQTT-4.3.3-5], whatever
		// the code [MQTT-4.4.0-2]; what a member refuses goes to nobody else
		// [MQTT-4.8.2-6].
		s.settle(e)
	case kind == Pubrec && e.QoS == 2 && code >= failure:
		s.settle(e) // [MQTT-4.3.3-4, MQTT-4.4.0-2] refused by the client: no PUBREL
	case kind == Pubrec && e.QoS == 2:
		s.onPubrec(e)
	default: // no PUBREL was sent, or the delivery is of the other QoS
		s.Close(ReasonProtocol)
		return
	}
	s.Pump()
}

// onPubrec notes that the client has the message; that is committed before
// PUBREL leaves (S16). Until then it is unacknowledged [MQTT-4.3.3-3], from then on
// its PUBLISH is never sent again [MQTT-4.3.3-6].
func (s *Session) onPubrec(e *entry) {
	switch {
	case e.Received:
		s.do(Action{Do: SendAck, Ack: Pubrel, PacketID: e.PacketID})
	case s.o.Clean:
		e.Received = true
		s.do(Action{Do: SendAck, Ack: Pubrel, PacketID: e.PacketID})
	case e.receiving: // a repeated PUBREC: PUBREL is on its way
	default:
		e.receiving = true
		s.write(written{kind: wroteReceived, e: e}, store.MarkReceived{Owner: s.o.Owner, Flight: e.Flight})
		if !s.on(ruleRecBeforeRel) {
			e.Received = true
			s.do(Action{Do: SendAck, Ack: Pubrel, PacketID: e.PacketID})
		}
	}
}

func (s *Session) onReceived(e *entry) {
	e.Received, e.receiving, s.dirty = true, false, true
	if s.win.byID[e.PacketID] != e {
		return // a PUBREC with an error has settled it: its id may be another's
	}
	if !s.closing && s.on(ruleRecBeforeRel) {
		s.do(Action{Do: SendAck, Ack: Pubrel, PacketID: e.PacketID})
	}
}
