package session

import (
	"errors"
	"maps"
	"slices"

	"rewindmq/schema"
	"rewindmq/store"
)

// Offered answers OfferShared.
type Offered uint8

// The answers.
const (
	// Took: its record is on its way; a Claimed action tells, once, what became of
	// that.
	Took Offered = iota
	// Sent: at QoS 0. Nothing follows.
	Sent
	// Full: the session has no room now.
	Full
	// TooLarge: the client does not take a packet of that size.
	TooLarge
	// NotMember: the session is ending, or is no member of the group any more.
	NotMember
)

// setShared notes a shared subscription. It has no part in what the hub offers, in
// what is read from the log for this session, nor in retained runs: its group gives
// it what it is to have.
func (s *Session) setShared(sub *subscription) {
	if s.shared == nil {
		s.shared = make(map[string]*subscription)
	}
	if !s.sharing && s.o.Clean {
		s.win.bind() // its records count from now on: see window
	}
	s.shared[sub.Filter], s.sharing = sub, true
}

// subscribed gives the subscription with a filter, shared or not; nil: none.
func (s *Session) subscribed(filter string) *subscription {
	if sub := s.shared[filter]; sub != nil {
		return sub
	}
	return s.subs[filter]
}

// join makes the session a member of its groups.
func (s *Session) join() {
	for _, name := range slices.Sorted(maps.Keys(s.shared)) {
		s.do(Action{Do: DoJoin, Group: name})
	}
}

// keeps tells whether the cursor is saved: also that of a clean session which
// shares, so that its end hands back what was not acknowledged, and no more.
func (s *Session) keeps() bool { return !s.o.Clean || s.sharing }

// Room gives the number of messages that OfferShared would take now: the window
// minus the flight; 0 while the flight of former connections is sent again, while
// the connection takes no more bytes, and when the session is ending.
func (s *Session) Room() int {
	if s.closing || !s.room() {
		return 0
	}
	return s.win.size - s.win.len()
}

// OfferShared takes a message for this session out of all members of a group, named
// by its whole filter. The record is the claim: it is committed before the PUBLISH
// leaves, also in a clean session.
//
// [MQTT-4.8.2-3] The granted QoS holds, and the options are this session's.
func (s *Session) OfferShared(m *schema.Message, group string, isLive bool) Offered {
	sub := s.shared[group]
	if s.closing || sub == nil {
		return NotMember
	}
	r := s.matchShared(sub, m)
	switch {
	case s.tooLarge(m, r):
		return TooLarge
	case s.Room() == 0:
		return Full
	case r.qos == 0:
		s.do(Action{Do: SendPublish, Message: m, Retain: m.Retain && r.rap, Identifiers: r.ids, Live: isLive})
		return Sent
	default:
		s.record(m, &entry{
			Flight: schema.Flight{QoS: r.qos, PacketID: s.nextID(), Group: group}, ids: r.ids, rap: r.rap, live: isLive,
		}, s.o.Now())
	}
	return Took
}

// matchShared says how a shared subscription delivers a message; sub nil: it has
// gone, and the delivery goes on.
func (s *Session) matchShared(sub *subscription, m *schema.Message) match {
	r := match{ok: true, qos: m.QoS}
	if sub == nil {
		return r
	}
	r.qos, r.rap = min(sub.QoS, m.QoS), sub.RetainAsPublished
	if sub.Identifier != 0 {
		r.ids = []uint32{sub.Identifier}
	}
	return r
}

// onClaimed tells the group what became of a claim. true: the message is another
// member's, and the delivery is withdrawn; nobody has seen its packet id.
func (s *Session) onClaimed(e *entry, err error) (withdrawn bool) {
	a := Action{Do: Claimed, Group: e.Group, ID: e.MessageID, Outcome: store.Stored}
	withdrawn = errors.Is(err, store.ErrClaimed)
	switch {
	case withdrawn:
		a.Outcome = store.Refused
		s.win.settle(e)
	case err != nil:
		a.Outcome = store.InDoubt
	}
	s.do(a)
	return withdrawn
}
