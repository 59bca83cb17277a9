package session

import (
	"slices"

	"rewindmq/schema"
	"rewindmq/store"
)

// stepRun moves one retained run by one topic; false: none can move now.
//
// A run goes through the present projection in topic order. It starts when the
// hub has passed its place: so what was retained before SUBSCRIBE is in the
// projection. It leaves out a topic whose message is after its place: the log
// brings that (R3). One that another connection left waits, besides, until the hub
// has passed what that connection had taken: it may have been far ahead of this
// hub, whose projection would bring what is older.
func (s *Session) stepRun() bool {
	if len(s.again) > 0 {
		return false
	}
	for _, sub := range s.runs {
		run := sub.Run
		if !sub.stored || s.on(ruleRunWaits) && !(s.o.H().Covers(run.Place) && s.o.H().Covers(s.came)) {
			continue
		}
		m, at, end := s.o.Retained.Next(sub.Filter, run.Next)
		if m == nil && end {
			if s.finishRun(sub) {
				return true
			}
			continue
		}
		if m != nil && !s.deliverRetained(sub, m) {
			continue // no room: the same topic again
		}
		run.Next = at // as taken moves; safe moves as after does
		s.follow(step{kind: stepRunAt, sub: sub, run: run, next: at})
		return true
	}
	return false
}

// finishRun ends a run whose last records are committed.
func (s *Session) finishRun(sub *subscription) bool {
	if len(s.line) > 0 && s.on(ruleRunSafe) {
		return false
	}
	sub.Run, sub.safe = nil, ""
	s.dropRun(sub)
	s.storeSubscription(sub)
	return true
}

func (s *Session) dropRun(sub *subscription) {
	s.runs = slices.DeleteFunc(s.runs, func(o *subscription) bool { return o == sub })
	if len(s.runs) == 0 {
		s.runs = nil
	}
}

func (s *Session) storeSubscription(sub *subscription) {
	s.write(written{kind: wroteNothing}, store.PutSubscriptions{Owner: s.o.Owner, Subscriptions: []schema.Subscription{sub.document(s)}})
}

// deliverRetained delivers m with RETAIN=1 ([MQTT-3.3.1-8] of 3.1.1), or passes
// it; false: there is no room.
func (s *Session) deliverRetained(sub *subscription, m *schema.Message) bool {
	now := s.o.Now()
	if m.Expired(now) || s.on(ruleRunSince) && sub.Run.Place.After(m.Mark) ||
		sub.NoLocal && m.ClientID == s.o.Owner.ClientID {
		return true
	}
	r := match{qos: min(sub.QoS, m.QoS)}
	if sub.Identifier != 0 {
		r.ids = []uint32{sub.Identifier}
	}
	switch {
	case s.tooLarge(m, r):
		s.do(Action{Do: Count, Dropped: DropTooLarge, QoS: r.qos})
	case r.qos == 0 && s.held():
		return false // paced by the connection: a run is not a flood
	case r.qos == 0:
		s.do(Action{Do: SendPublish, Message: m, Retain: true, Identifiers: r.ids})
	case !s.room():
		return false
	default:
		s.record(m, &entry{
			Flight: schema.Flight{QoS: r.qos, PacketID: s.nextID(), Retained: sub.Run.ID}, ids: r.ids,
		}, now)
	}
	return true
}
