package session

import (
	"slices"
	"time"

	"rewindmq/schema"
)

// match says how a message is to be delivered.
type match struct {
	qos uint8
	ok  bool
	rap bool
	ids []uint32
}

// match looks the message up in the present subscriptions, at each delivery: so
// UNSUBSCRIBE works in the middle of a replay. Overlapping subscriptions give one
// copy, with the highest QoS and the identifiers of all that would deliver it
// [MQTT-3.3.4-2, MQTT-3.3.4-3, MQTT-3.3.4-4]. Nothing else is delivered
// [MQTT-3.3.2-3].
func (s *Session) match(m *schema.Message) match {
	var r match
	if sub := s.subs[m.Topic]; sub != nil && schema.Wildcard(sub.Filter) == "" {
		r.add(s, sub, m)
	}
	if s.wild.many != nil {
		s.wild.many.match(s, m, &r)
		r.unique()
		return r
	}
	for _, sub := range s.wild.few {
		if schema.Match(sub.Filter, m.Topic) {
			r.add(s, sub, m)
		}
	}
	return r
}

func (r *match) add(s *Session, sub *subscription, m *schema.Message) {
	// [MQTT-3.8.3-3] No Local: not to the connection that published it.
	if sub.NoLocal && m.ClientID == s.o.Owner.ClientID {
		return
	}
	before := sub.Before
	if !s.on(ruleBefore) {
		sub.Before = nil
	}
	q, ok := sub.Effective(m) // [MQTT-3.8.4-8]
	sub.Before = before
	if !ok {
		return
	}
	r.qos, r.ok, r.rap = max(r.qos, q), true, r.rap || sub.RetainAsPublished
	// Of many, unique takes out what is there twice.
	if sub.Identifier != 0 && (len(r.ids) > fewWildcards || !slices.Contains(r.ids, sub.Identifier)) {
		r.ids = append(r.ids, sub.Identifier)
	}
}

// unique leaves each identifier once, if there are so many that add has not.
func (r *match) unique() {
	if len(r.ids) > fewWildcards {
		slices.Sort(r.ids)
		r.ids = slices.Compact(r.ids)
	}
}

// Tell delivers a message that is not in the log, at QoS 0, to a session that is
// subscribed to it now.
func (s *Session) Tell(m *schema.Message) {
	if s.closing || len(s.subs) == 0 {
		return
	}
	r := match{}
	for _, f := range s.Filters() {
		if f[0] == m.Topic[0] && schema.Match(f, m.Topic) {
			r.ok, r.rap = true, r.rap || s.subs[f].RetainAsPublished
			if id := s.subs[f].Identifier; id != 0 {
				r.ids = append(r.ids, id)
			}
		}
	}
	if r.ok && !s.tooLarge(m, r) {
		s.do(Action{Do: SendPublish, Message: m, Retain: m.Retain && r.rap, Identifiers: r.ids, Live: true})
	}
}

// room tells whether a delivery that needs a packet id can go on its way.
func (s *Session) room() bool {
	return len(s.again) == 0 && !s.held() && s.win.room() && (!s.o.Clean || s.recording.len() < s.o.Queue)
}

// held tells whether the connection holds the session back: it takes nothing now,
// or what it was given since the caller last looked, with what waits for its
// record, is enough for once. The window alone would let large messages pile up.
func (s *Session) held() bool {
	if s.blocked || s.dropping != dropNone {
		return true
	}
	if s.o.Burst == 0 || s.spent+s.unsent < s.o.Burst {
		return false
	}
	s.paused = s.paused || s.spent > 0
	return true
}

// Paused tells, once, whether the session stopped only because it had given enough
// actions for once: when they are carried out, Pump goes on.
func (s *Session) Paused() bool {
	p := s.paused
	s.paused = false
	return p
}

// take moves the session past m, delivering it if it matches [MQTT-4.5.0-1]; false:
// the window has no room [MQTT-4.9.0-2], m is to come again, and nothing overtakes
// it [MQTT-4.6.0-5, MQTT-4.6.0-6].
func (s *Session) take(m *schema.Message, isLive bool) bool {
	if !s.taken.After(m.Mark) && s.on(ruleOfferAfter) {
		return true // known already: a hub that lags behind does no harm
	}
	r := s.match(m)
	now := s.o.Now()
	expired := r.ok && m.Expired(now) // [MQTT-3.3.2-5]
	large := r.ok && s.tooLarge(m, r)
	if r.ok && r.qos > 0 && !expired && !s.room() {
		return false
	}
	s.taken.Advance(m.Mark)
	switch {
	case !r.ok:
		s.follow(step{kind: stepMark, mark: m.Mark})
	case expired:
		s.do(Action{Do: Count, Dropped: DropExpired, QoS: r.qos})
		s.follow(step{kind: stepMark, mark: m.Mark})
	case r.qos == 0:
		switch {
		case large:
			s.do(Action{Do: Count, Dropped: DropTooLarge})
		case s.begin.After(m.Mark):
			s.do(Action{Do: SendPublish, Message: m, Retain: m.Retain && r.rap, Identifiers: r.ids, Live: isLive})
		default:
			s.do(Action{Do: Count, Dropped: DropQoS0Offline})
		}
		s.follow(step{kind: stepMark, mark: m.Mark})
	case large:
		// [MQTT-3.1.2-25] discarded as if it had been completed; the record
		// says so, that it does not come to a larger client out of turn (S7).
		s.do(Action{Do: Count, Dropped: DropTooLarge, QoS: r.qos})
		if s.o.Clean || !s.on(ruleDropRecord) {
			s.follow(step{kind: stepMark, mark: m.Mark})
		} else {
			s.record(m, &entry{dropped: true}, now)
		}
	default:
		s.record(m, &entry{Flight: schema.Flight{QoS: r.qos, PacketID: s.nextID()}, ids: r.ids, rap: r.rap, live: isLive}, now)
	}
	return true
}

func (s *Session) nextID() uint16 {
	if !s.on(ruleLongestFree) {
		return s.win.lowest()
	}
	return s.win.peek()
}

// tooLarge tells whether the client does not take a packet of that size.
func (s *Session) tooLarge(m *schema.Message, r match) bool {
	return s.o.MaximumPacketSize > 0 && s.o.Size(m, r.qos, r.ids) > s.o.MaximumPacketSize
}

// record gives the delivery its number and its record. A persistent session's
// PUBLISH follows when the record is committed, and not before.
func (s *Session) record(m *schema.Message, e *entry, now time.Time) {
	s.seq++
	e.Seq, e.MessageID, e.Mark, e.Created, e.m, e.topic = s.seq, m.ID, m.Mark, now, m, m.Topic
	if e.PacketID != 0 {
		s.win.add(e)
	}
	e.committed = s.o.Clean && e.Group == ""
	if e.committed {
		s.sendEntry(e, false)
	} else {
		e.size = m.Size()
		s.unsent += e.size
	}
	if !e.committed || !s.o.Unrecorded {
		s.recording.push(e)
		s.do(Action{Do: DoRecord, Delivery: &schema.Delivery{
			ID: s.o.NewID(now), Owner: s.o.Owner, Seq: e.Seq, Topic: m.Topic, MessageID: m.ID, Mark: m.Mark,
			PacketID: e.PacketID, QoS: e.QoS, Retained: e.Retained, Group: e.Group, Dropped: e.dropped, Host: s.o.Host, Created: now,
		}})
	}
	if e.Group == "" { // a group's message does not stand in this session's line
		s.follow(step{kind: stepRecord, e: e})
	}
	if !s.on(ruleRecordFirst) && e.PacketID != 0 && !s.o.Clean {
		s.sendEntry(e, false)
	}
}

// OnRecorded tells what became of the record that has been under way for
// longest. lost: the session is another's; the outcome is not known for any other
// error.
func (s *Session) OnRecorded(err error, lost bool) {
	e := s.recording.pop()
	s.unsent -= e.size
	if e.Group != "" && s.onClaimed(e, err) {
		s.finish()
		s.Pump()
		return
	}
	switch {
	case err != nil && lost && !s.on(ruleFencedSilent):
	case err != nil:
		s.lost = true // nothing of it, or of what lies behind it, leaves
		if lost {
			s.Close(ReasonTakenOver)
		} else {
			s.Close(ReasonStore)
		}
		s.finish()
		return
	}
	if s.lost {
		s.finish()
		return
	}
	e.committed = true
	s.rseq, s.dirty = max(s.rseq, e.Seq), true
	s.unsaved++
	s.drainLine()
	if e.PacketID != 0 && !e.sent && !s.closing {
		s.sendEntry(e, false)
	}
	if s.unsaved >= defaultSaveDeliveries {
		s.save()
	}
	s.finish()
	s.Pump()
}

// sendEntry sends a delivery. [MQTT-3.3.1-1, MQTT-3.3.1-3, MQTT-4.3.2-2,
// MQTT-4.3.3-2] DUP is 0 on a first attempt; a record that a former connection left
// counts as an attempt. RETAIN as the subscription asks [MQTT-3.3.1-12,
// MQTT-3.3.1-13].
func (s *Session) sendEntry(e *entry, dup bool) {
	if s.closing {
		return
	}
	retain := !e.Retained.IsZero() || e.m.Retain && e.rap
	s.do(Action{
		Do: SendPublish, Message: e.m, QoS: e.QoS, PacketID: e.PacketID, Dup: dup, Retain: retain,
		Identifiers: e.ids, Live: e.live,
	})
	if !e.sent {
		s.unacked++
	}
	e.sent, e.m = true, nil
}
