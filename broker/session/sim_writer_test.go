package session

import (
	"errors"
	"fmt"

	"rewindmq/schema"
	"rewindmq/store"
)

// op is one write.
type op struct {
	name     string
	do       func(part bool) any // meets the store; part: it is cut short
	done     func(answer any)
	answered bool
	// giveUp answers a write whose outcome is not known; nil: it is sent again
	// until it is.
	giveUp func()
}

// writer has one write in flight, in a driver session of its own: after a doubt
// the same write is sent again before the next, and an attempt that lands late
// has an older number, and is refused.
type writer struct {
	n        *node
	kind     writerKind
	name     string
	next     func() *op // what waits
	ready    func() bool
	cur      *op
	no       int // attempts
	executed int // the newest that the store has met
	out      int // attempts under way
	doubts   int
}

func (wr *writer) actions(w *world) {
	switch {
	case wr.cur == nil:
		if wr.ready() {
			w.can("send", wr.send)
		}
	case wr.out == 0 || w.faults && wr.out < 3 && w.chance(w.x.again):
		w.can("again", wr.again)
	}
}

func (wr *writer) send() bool {
	wr.cur, wr.doubts = wr.next(), 0
	if wr.cur != nil {
		wr.attempt()
	}
	return true
}

func (wr *writer) again() bool {
	w := wr.n.w
	wr.doubts++
	if o := wr.cur; w.faults && o.giveUp != nil && (wr.out == 0 || wr.kind != kindWrite) && w.chance(w.x.giveUp) {
		w.trace("%s: gives up %s", wr.name, o.name)
		o.answered, wr.cur = true, nil
		o.giveUp()
		return true
	}
	wr.attempt()
	return true
}

func (wr *writer) attempt() {
	w := wr.n.w
	wr.no++
	wr.out++
	w.net = append(w.net, &attempt{wr: wr, op: wr.cur, no: wr.no, slow: w.chance(w.x.slow[wr.kind])})
}

// land lets an attempt meet the store; the answer may be lost.
func (wr *writer) land(a *attempt, reached, part, answered bool) {
	w := wr.n.w
	if !reached {
		wr.out--
		return
	}
	if a.no <= wr.executed {
		w.late++
		if w.on(ruleTxn) {
			wr.out--
			return
		}
	}
	wr.executed = max(wr.executed, a.no)
	w.trace("  %s%s", a.op.name, map[bool]string{true: "", false: " (unanswered)"}[answered])
	r := a.op.do(part)
	if !answered || !wr.n.alive {
		wr.out--
		return
	}
	wr.n.inbox = append(wr.n.inbox, func() {
		wr.out--
		if !a.op.answered && a.op == wr.cur {
			a.op.answered, wr.cur = true, nil
			a.op.done(r)
		}
	})
}

// errDoubt answers a write whose outcome is not known.
var errDoubt = errors.New("simulation: in doubt")

// ---- session writes

// queueWriter hands on the writes of sessions and claims, one at a time.
type queueWriter struct {
	writer
	queue []*op
}

func newQueueWriter(n *node, name string) *queueWriter {
	q := &queueWriter{}
	q.writer = writer{n: n, name: name, ready: func() bool { return len(q.queue) > 0 }, next: func() *op {
		o := q.queue[0]
		q.queue = q.queue[1:]
		return o
	}}
	return q
}

// write carries out a session's write. One that is answered with an error never
// lands later, and behind it none of the session's later ones is made: else a
// cursor would land beyond the records of a run whose place was not stored.
func (q *queueWriter) write(o *owned, doc store.Write) {
	w := q.n.w
	done := func(err error) {
		o.writeFailed = o.writeFailed || err != nil
		o.input(func(s *Session) { s.OnWritten(err, errors.Is(err, store.ErrSessionLost)) })
	}
	q.queue = append(q.queue, &op{
		name: q.describe(doc),
		do: func(bool) any {
			if o.writeFailed && w.on(ruleWriteStops) {
				return errDoubt
			}
			return w.writeOf(o, doc)
		},
		done:   func(r any) { err, _ := r.(error); done(err) },
		giveUp: func() { done(errDoubt) },
	})
}

func (q *queueWriter) describe(doc store.Write) string {
	if !q.n.w.tracing {
		return ""
	}
	switch d := doc.(type) {
	case store.SaveCursor:
		return fmt.Sprintf("%s: save %s/%d seq %d after %v flight %v", q.n.name, d.ClientID, d.Epoch, d.Cursor.Seq, d.Cursor.After, flightOf(d.Cursor.Flight))
	case store.MarkReceived:
		return fmt.Sprintf("%s: received %s/%d seq %d", q.n.name, d.ClientID, d.Epoch, d.Flight.Seq)
	case store.PutSubscriptions:
		s := fmt.Sprintf("%s: subscriptions %s/%d", q.n.name, d.ClientID, d.Epoch)
		for _, x := range d.Subscriptions {
			s += fmt.Sprintf(" %s qos %d since %v", x.Filter, x.QoS, x.Since)
			if x.Run != nil {
				s += fmt.Sprintf(" run next %q", x.Run.Next)
			}
		}
		return s
	}
	o := store.OwnerOf(doc)
	return fmt.Sprintf("%s: %T %s/%d", q.n.name, doc, o.ClientID, o.Epoch)
}

func flightOf(f []schema.Flight) []string {
	var out []string
	for _, e := range f {
		out = append(out, fmt.Sprintf("%d:id %d%s", e.Seq, e.PacketID, map[bool]string{true: " received"}[e.Received]))
	}
	return out
}

// ---- record lanes

type recordItem struct {
	o *owned
	d schema.Delivery
}

// recordLane commits what is waiting in one ordered batch. After one record of a
// session has failed, all later ones of that session fail too, in the batch and
// behind it; those of others go on.
type recordLane struct {
	writer
	queue []recordItem
}

func newRecordLane(n *node, name string) *recordLane {
	l := &recordLane{}
	l.writer = writer{n: n, kind: kindRecord, name: name, ready: func() bool { return len(l.queue) > 0 }, next: func() *op {
		var batch []recordItem
		for len(l.queue) > 0 && len(batch) < simBatch {
			r := l.queue[0]
			if failed := r.o.recordFailed && n.w.on(ruleRecordStops); failed && len(batch) > 0 {
				break // answers come in order
			} else if l.queue = l.queue[1:]; failed {
				r.o.recorded(errDoubt)
			} else {
				batch = append(batch, r)
			}
		}
		if len(batch) == 0 {
			return nil
		}
		return l.batch(batch)
	}}
	return l
}

// batch answers the number of records that are in, and the one that collided.
func (l *recordLane) batch(batch []recordItem) *op {
	w := l.n.w
	o := &op{}
	if w.tracing {
		o.name = l.n.name + ": records"
		for _, r := range batch {
			o.name += fmt.Sprintf(" %s/%d seq %d id %d %v", r.d.ClientID, r.d.Epoch, r.d.Seq, r.d.PacketID, r.d.Mark)
		}
	}
	o.do = func(part bool) any {
		cut := len(batch) + 1
		if part {
			cut = w.rng.IntN(len(batch))
		}
		for i := range batch {
			if i == cut {
				break
			}
			if old := w.record(&batch[i].d); old != nil && old.ID != batch[i].d.ID {
				return i
			}
		}
		return len(batch)
	}
	o.done = func(r any) { l.done(batch, r.(int)) }
	o.giveUp = func() {
		for _, r := range batch {
			r.o.recorded(errDoubt)
		}
	}
	return o
}

func (l *recordLane) done(batch []recordItem, k int) {
	for _, r := range batch[:k] {
		r.o.recorded(nil)
	}
	if k == len(batch) {
		return
	}
	lost := batch[k].o
	l.n.w.trace("%s: record %s seq %d collides (own epoch %d)", l.n.name, batch[k].d.ClientID, batch[k].d.Seq, batch[k].d.Epoch)
	lost.recorded(store.ErrSessionLost)
	var rest []recordItem
	for _, r := range batch[k+1:] {
		if r.o == lost {
			r.o.recorded(store.ErrSessionLost)
		} else {
			rest = append(rest, r)
		}
	}
	if len(rest) > 0 {
		l.cur = l.batch(rest)
		l.attempt()
	}
}

// ---- append lanes

// appendItem is a message on its way into its lane.
type appendItem struct {
	o    *owned // nil: nobody's (a will)
	m    *schema.Message
	done func(store.Appended)
}

// appendLane is a lane's one writer. A batch that meets a stopper not its own is
// in doubt: it looks who was claimed elsewhere, takes out what waits for those,
// and goes on behind the stopper; behind an end it opens another lane.
type appendLane struct {
	writer
	lane  schema.Lane
	gen   uint32
	queue []appendItem
	items []appendItem // in the batch
}

func newAppendLane(n *node, name string) *appendLane {
	l := &appendLane{}
	l.lane = n.w.m.OpenLane(n.id)
	l.gen, _ = n.w.m.Lane(l.lane)
	l.writer = writer{n: n, kind: kindAppend, name: name, ready: func() bool { return len(l.queue) > 0 }, next: l.batch}
	return l
}

func (l *appendLane) actions(w *world) {
	if l.cur == nil && len(l.queue) > 0 && l.n.mustLook && w.on(ruleLook) {
		w.can("look", func() bool { l.n.look(); return true })
		return
	}
	l.writer.actions(w)
}

// batch takes what waits. What the store cannot hold is refused here, and what
// its publisher has failed for.
func (l *appendLane) batch() *op {
	w := l.n.w
	l.items = nil
	for len(l.queue) > 0 && len(l.items) < simBatch {
		it := l.queue[0]
		if it.o == nil {
			l.queue, l.items = l.queue[1:], append(l.items, it)
			continue
		}
		p := w.pubOf(it.m)
		failed := it.o.pub.Failed() && w.on(ruleBehindFails)
		// (A resend that is stored already is not refused: its answer is the
		// mark of the first.)
		refuse := !failed && !p.poison && !it.o.pub.Strict && w.m.Message(it.m.ID) == nil && w.faults && w.chance(w.x.noSpace)
		if (failed || p.poison || refuse) && len(l.items) > 0 {
			break // answers come in the order of the appends
		}
		l.queue = l.queue[1:]
		switch {
		case failed:
			it.done(store.Appended{Outcome: store.Refused, Err: store.ErrPublisherFailed})
		case refuse:
			p.turned = true
			it.done(store.Appended{Outcome: store.Refused, Err: store.ErrNoSpace})
		case p.poison:
			if it.o.pub.Strict {
				it.o.pub.Fail()
			}
			it.done(store.Appended{Outcome: store.Refused, Err: store.ErrTooLarge})
		default:
			l.items = append(l.items, it)
		}
	}
	if len(l.items) == 0 {
		return nil
	}
	items, lane, gen := l.items, l.lane, l.gen
	o := &op{}
	if w.tracing {
		o.name = fmt.Sprintf("%s: append to %d:", l.n.name, lane)
		for _, it := range items {
			o.name += " " + w.pubOf(it.m).name
		}
	}
	o.do = func(part bool) any {
		cut := len(items) + 1
		if part {
			cut = w.rng.IntN(len(items))
		}
		answers := make([]store.Appended, 0, len(items))
		for i, it := range items {
			if i == cut {
				break
			}
			var owner *schema.Owner
			if it.o != nil {
				owner = &it.o.pub.Owner
			}
			a, ok := w.land(lane, gen, it.m, owner)
			if !ok {
				return false
			}
			answers = append(answers, a)
		}
		return answers
	}
	o.done = l.appended
	o.giveUp = l.giveUp
	return o
}

func (l *appendLane) appended(r any) {
	items := l.items
	l.items = nil
	if answers, ok := r.([]store.Appended); ok {
		for i, it := range items {
			it.done(answers[i])
		}
		return
	}
	l.n.w.trace("%s: met a stopper", l.name)
	l.queue = append(append([]appendItem(nil), items...), l.queue...)
	l.behind()
}

// behind goes on behind a stopper.
func (l *appendLane) behind() {
	w := l.n.w
	l.n.mustLook = w.on(ruleLook)
	gen, open := w.m.Lane(l.lane)
	if !open { // no writer goes on behind an end
		l.lane = w.m.OpenLane(l.n.id)
		gen, _ = w.m.Lane(l.lane)
	}
	l.gen = gen
}

// giveUp ends the doubt: mostly by a stopper of its own, after which what is not
// stored never will be; else the answer is that it is in doubt.
func (l *appendLane) giveUp() {
	w := l.n.w
	items := l.items
	l.items = nil
	settled := w.chance(0.7)
	if settled {
		w.m.Stop(l.n.id)
		l.behind()
	}
	for _, it := range items {
		a := store.Appended{Outcome: store.InDoubt}
		if m := w.m.Message(it.m.ID); settled {
			a.Outcome = store.Refused
			a.Err = store.ErrClosed
			if m != nil {
				a = store.Appended{Outcome: store.Stored, Mark: m.Mark}
			}
		}
		if it.o == nil {
			if a.Outcome != store.Stored {
				l.queue = append(l.queue, it) // a will waits on
				continue
			}
		} else if a.Outcome != store.Stored {
			it.o.pub.Fail() // nothing overtakes
		}
		it.done(a)
	}
}
