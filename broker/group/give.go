package group

import (
	"slices"
	"time"

	"rewindmq/broker/session"
	"rewindmq/schema"
	"rewindmq/store"
)

// entry is a message on its way to a member, or one that came back.
type entry struct {
	store.Ref
	by Member
	st *step           // its place in the line; nil: it came from Again
	m  *schema.Message // of what came back, when it was looked up
	// doubt: its claim may be there; the store is asked before it is given again. A
	// second claim would be refused, but at QoS 0 there is none.
	doubt doubt
	key   key       // if it was parked
	at    time.Time // since when it is parked
}

type doubt uint8

const (
	certain doubt = iota
	inDoubt
	askedFor // by the OpenGroup that is under way
)

// verdict says what became of a message that is to be given.
type verdict uint8

const (
	wait   verdict = iota // nobody has room
	taken                 // its record is under way
	passed                // nothing is to follow
)

// Pump goes on as far as the members have room.
func (g *Group) Pump() {
	for g.step() {
	}
}

// step gives one message; false: there is nothing to do now. What came back goes
// first: it is older than what the log still has.
func (g *Group) step() bool {
	switch {
	case !g.opened || len(g.members) == 0:
		return false
	case len(g.again) > 0 && (g.on(ruleAgainFirst) || len(g.queue) == 0):
		return g.stepAgain()
	case g.mode == live && len(g.queue) > 0 && g.take(g.queue[0], true):
		g.queue[0] = nil
		if g.queue = g.queue[1:]; len(g.queue) == 0 {
			g.queue = nil
		}
		return true
	}
	return false
}

// take moves the group past m; false: there is no room, m is to come again.
func (g *Group) take(m *schema.Message, isLive bool) bool {
	if !g.taken.After(m.Mark) && g.on(ruleTakenOnce) {
		return true
	}
	if len(g.line) >= g.o.Line {
		return false
	}
	if _, ok := g.claimed[m.ID]; ok {
		delete(g.claimed, m.ID) // before a crash, or by another node
		g.pass(m)
		return true
	}
	if m.QoS == 0 && !g.begin.After(m.Mark) {
		g.do(Action{Do: Count, Dropped: session.DropQoS0Offline})
		g.pass(m)
		return true
	}
	if len(g.nodes) > 0 {
		switch k := keyOf(m); {
		case m.QoS > 0 && (!g.turn(k) || g.behind(k)):
			g.park(m, k)
			return true
		case m.QoS == 0 && !g.turn(k):
			g.pass(m)
			return true
		}
	}
	by, v := g.give(m, isLive)
	switch v {
	case wait:
		return false
	case passed:
		g.pass(m)
	case taken:
		st := &step{mark: m.Mark}
		g.taken.Advance(m.Mark)
		g.under[m.ID] = &entry{Ref: store.Ref{ID: m.ID, Mark: m.Mark}, by: by, st: st}
		g.follow(st)
	}
	return true
}

// pass moves the group past a message for which no record is waited.
func (g *Group) pass(m *schema.Message) {
	g.taken.Advance(m.Mark)
	g.moved = true
	g.follow(&step{mark: m.Mark, done: true})
}

// give finds a member for m: the one with most room; the next is asked if it does
// not take it.
func (g *Group) give(m *schema.Message, isLive bool) (Member, verdict) {
	if m.Expired(g.o.Now()) { // [MQTT-3.3.2-5]
		g.do(Action{Do: Count, Dropped: session.DropExpired, QoS: m.QoS})
		return nil, passed
	}
	g.round++
	large := 0
	for {
		to := g.choose()
		if to == nil {
			break
		}
		to.tried = g.round
		switch to.OfferShared(m, isLive) {
		case session.Took:
			return to.Member, taken
		case session.Sent:
			return to.Member, passed
		case session.TooLarge:
			large++
		case session.NotMember:
			to.state = joined // it is leaving
		}
	}
	n := 0
	for _, o := range g.members {
		if o.state == active {
			n++
		}
	}
	if n > 0 && large == n {
		// [MQTT-3.1.2-25] for each of them.
		g.do(Action{Do: Count, Dropped: session.DropTooLarge, QoS: m.QoS})
		return nil, passed
	}
	return nil, wait
}

// choose gives the active member with most room that was not asked in this round;
// among equals the one that was not chosen for longest; nil: none has room.
func (g *Group) choose() *member {
	var best *member
	room, at := 0, 0
	for i := range g.members {
		k := (g.next + i) % len(g.members)
		o := g.members[k]
		if o.state != active || o.tried == g.round {
			continue
		}
		if n := o.Room(); n > room {
			best, room, at = o, n, k
		}
	}
	if best != nil {
		g.next = (at + 1) % len(g.members)
	}
	return best
}

// OnClaimed tells what became of the record by which a member claims a message.
func (g *Group) OnClaimed(by Member, id schema.ID, outcome store.Outcome) {
	e := g.under[id]
	if e == nil || e.by != by {
		return
	}
	delete(g.under, id)
	if outcome == store.InDoubt && g.on(ruleDoubtAgain) {
		e.doubt = inDoubt
		g.putAgain(e)
		g.Refresh()
	} else {
		// Stored, or refused, as another member has it, or had it.
		g.settle(e)
		if g.opening {
			g.overtaken = append(g.overtaken, id)
		}
	}
	g.settleDown()
	g.Pump()
}

// settle lets after go on over an entry.
func (g *Group) settle(e *entry) {
	if e.st != nil {
		e.st.done, g.moved = true, true
		g.drainLine()
	}
}

// putAgain puts an entry back, in order.
func (g *Group) putAgain(e *entry) {
	e.by, e.m = nil, nil
	i, _ := slices.BinarySearchFunc(g.again, e, compare)
	g.again = slices.Insert(g.again, i, e)
}

func compare(a, b *entry) int {
	if a.Mark.Lane != b.Mark.Lane {
		return int(int64(a.Mark.Lane) - int64(b.Mark.Lane))
	}
	return int(int64(a.Mark.N) - int64(b.Mark.N))
}
