package session

import (
	"slices"

	"rewindmq/schema"
	"rewindmq/store"
)

const (
	// looksAtOnce bounds the calls of Retained.Next until the caller has let others have
	// their turn: the hub may wait for this session meanwhile.
	looksAtOnce = 8
	// placesAtOnce bounds the subscriptions in one write.
	placesAtOnce = 1000
)

// retainedRuns are the retained runs of the session. They are walked one after the other, in the
// order of their SUBSCRIBE: a client may have thousands of them.
//
// Invariant: each run that is not finished stands in one of waiting, or has its end in
// Session.line, or stands in over; and what stands in a list has a run.
type retainedRuns struct {
	n       int                  // not finished
	waiting [runClasses]runQueue // which still have topics to look at
	over    []*subscription      // whose end is safe: they are finished
	moved   []*subscription      // whose place was not stored since it moved
}

// runClass tells what the messages of a run may need. A run of one class does not wait
// for one of the other: what is sent at QoS 0 needs no packet id.
type runClass uint8

const (
	withoutIDs runClass = iota // of a subscription of QoS 0
	withIDs
	runClasses
)

type runQueue struct {
	subs []*subscription
	// stuck: there was no room for the next message of the first one. Until there is,
	// it is not looked for again.
	stuck bool
}

func (sub *subscription) class() runClass {
	if sub.QoS == 0 {
		return withoutIDs
	}
	return withIDs
}

// beginRun puts the run of a subscription behind the others.
func (s *Session) beginRun(sub *subscription) {
	if s.runs == nil {
		s.runs = new(retainedRuns)
	}
	q := &s.runs.waiting[sub.class()]
	q.subs = append(q.subs, sub)
	s.runs.n++
}

// dropRun ends a run that nobody waits for any more. sweepRuns is to follow.
func (s *Session) dropRun(sub *subscription) {
	if sub.Run != nil {
		sub.Run, sub.safe = nil, ""
		s.runs.n--
	}
}

// sweepRuns takes out of the lists what has no run any more: once for all that a
// request has dropped.
func (s *Session) sweepRuns() {
	switch r := s.runs; {
	case r == nil:
	case r.n == 0:
		s.runs = nil
	default:
		for i := range r.waiting {
			r.waiting[i] = runQueue{subs: slices.DeleteFunc(r.waiting[i].subs, withoutRun)}
		}
		r.over, r.moved = slices.DeleteFunc(r.over, withoutRun), slices.DeleteFunc(r.moved, withoutRun)
	}
}

func withoutRun(sub *subscription) bool { return sub.Run == nil }

// runsPlace gives a place that the hub has to pass before all runs may begin.
func (s *Session) runsPlace() schema.Cursor {
	place := s.came.Clone()
	for i := range s.runs.waiting {
		for _, sub := range s.runs.waiting[i].subs {
			place.Merge(sub.Run.Place)
		}
	}
	return place
}

// stepRun moves one retained run by one topic; false: none can move now.
func (s *Session) stepRun() bool {
	return s.runs != nil && len(s.again) == 0 && (s.stepFirst(withIDs) || s.stepFirst(withoutIDs))
}

// stepFirst moves the first run of a class. Those behind it wait for it: each waits for
// the same room, and for a place that the hub passes later, if not for the same.
//
// A run goes through the present projection in topic order. It starts when the
// hub has passed its place: so what was retained before SUBSCRIBE is in the
// projection. It leaves out a topic whose message is after its place: the log
// brings that (R3). One that another connection left waits, besides, until the hub
// has passed what that connection had taken: it may have been far ahead of this
// hub, whose projection would bring what is older.
func (s *Session) stepFirst(class runClass) bool {
	q := &s.runs.waiting[class]
	if len(q.subs) == 0 {
		return false
	}
	sub := q.subs[0]
	run := sub.Run
	switch {
	case q.stuck && (s.held() || class == withIDs && !s.room()):
		return false
	case !sub.stored || s.on(ruleRunWaits) && !(s.o.H().Covers(run.Place) && s.o.H().Covers(s.came)):
		return false
	case s.looks >= looksAtOnce:
		s.askWalk()
		return false
	}
	s.looks++
	m, at, end := s.o.Retained.Next(sub.Filter, run.Next)
	if q.stuck = m != nil && !s.deliverRetained(sub, m); q.stuck {
		return false // the same topic again
	}
	if m == nil && end {
		q.subs[0] = nil
		q.subs = q.subs[1:]
		if end := (step{kind: stepRunEnd, sub: sub, run: run}); s.on(ruleRunSafe) {
			s.follow(end)
		} else {
			s.passRun(&end)
		}
		return true
	}
	run.Next = at // as taken moves; safe moves as after does
	s.follow(step{kind: stepRunAt, sub: sub, run: run, next: at})
	return true
}

// askWalk has the caller come back with Walk.
func (s *Session) askWalk() {
	if !s.walking {
		s.walking = true
		s.do(Action{Do: DoWalk})
	}
}

// Walk goes on with the retained runs, which have looked at as many topics as they may
// at once. It answers DoWalk.
func (s *Session) Walk() {
	s.walking, s.looks = false, 0
	s.Pump()
}

// passRun notes that the records of a run up to a topic, or up to its end, are
// committed. REQUIRES: the run is not finished, nor dropped.
func (s *Session) passRun(st *step) {
	if st.kind == stepRunEnd {
		s.runs.over = append(s.runs.over, st.sub)
		return
	}
	st.sub.safe = st.next
	if !st.sub.moved && s.keeps() {
		st.sub.moved = true
		s.runs.moved = append(s.runs.moved, st.sub)
	}
}

// finishRuns ends the runs whose last records are committed.
func (s *Session) finishRuns() {
	if s.closing || s.runs == nil || len(s.runs.over) == 0 {
		return
	}
	over := s.runs.over
	s.runs.over = nil
	for _, sub := range over {
		s.dropRun(sub)
	}
	s.storeSubscriptions(over)
	if s.runs.moved = slices.DeleteFunc(s.runs.moved, withoutRun); s.runs.n == 0 {
		s.runs = nil
	}
}

// runsMoved tells whether the stored place of a run is behind its safe one.
func (s *Session) runsMoved() bool { return s.runs != nil && len(s.runs.moved) > 0 }

// storeRuns stores the places of the runs that have moved, and no others: what a save
// costs follows what was delivered, and not how many runs there are.
//
// Invariant: the stored place of a run that is not in moved is its safe one.
func (s *Session) storeRuns() {
	if !s.runsMoved() {
		return
	}
	moved := s.runs.moved
	s.runs.moved = nil
	for _, sub := range moved {
		sub.moved = false
	}
	// The place of a run goes first: a cursor whose seq lies beyond its
	// records would hide them from the claimer (S24).
	if s.on(ruleRunBeforeSave) {
		s.storeSubscriptions(moved)
	}
}

func (s *Session) storeSubscriptions(subs []*subscription) {
	for part := range slices.Chunk(subs, placesAtOnce) {
		docs := make([]schema.Subscription, len(part))
		for i, sub := range part {
			docs[i] = sub.document(s)
		}
		s.write(written{kind: wroteNothing}, store.PutSubscriptions{Owner: s.o.Owner, Subscriptions: docs})
	}
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
