package group

import (
	"errors"
	"time"

	"rewindmq/broker/session"
	"rewindmq/schema"
	"rewindmq/store/storetest"
)

var errDoubt = errors.New("in doubt")

// simShare carries out the actions of a group.
type simShare struct {
	w        *world
	g        *Group
	attached bool
	notes    []func(*Group) // what sessions tell it: taken in before anything else
	todo     []Action       // what goes to the store, in order
	answers  []func(*Group) // from there

	reading bool
	upTo    schema.Cursor
	r       *storetest.Reading // nil: no round is under way
	page    []*schema.Message
}

// shareFor gives the group's object, a new one if there is none.
func (w *world) shareFor() *simShare {
	if w.share == nil {
		g := New(Options{Filter: simFilter, Queue: 3, Line: 6, Now: w.now, H: func() schema.Cursor { return w.h }})
		g.off = w.off
		w.share = &simShare{w: w, g: g}
	}
	return w.share
}

func (sh *simShare) input(fn func(*Group)) {
	for len(sh.notes) > 0 {
		note := sh.notes[0]
		sh.notes = sh.notes[1:]
		note(sh.g)
	}
	fn(sh.g)
	for _, a := range sh.g.Actions() {
		switch a.Do {
		case Count:
			sh.w.dropped(a.Dropped)
		case DoReplay:
			sh.reading = true
		default:
			sh.todo = append(sh.todo, a)
		}
	}
	sh.check()
}

// check looks at the invariants.
func (sh *simShare) check() {
	g := sh.g
	must(len(g.queue) <= 3 && len(g.buffer) <= 3 && len(g.line) <= 6+1, "%d in the queue, %d in the buffer, %d in the line", len(g.queue), len(g.buffer), len(g.line))
	must(g.taken.Covers(g.after), "after %v is beyond taken %v", g.after, g.taken)
	for _, e := range g.again {
		must(g.under[e.ID] == nil, "an entry is under way and in again")
	}
}

func (sh *simShare) offer(m *schema.Message) {
	if sh.attached {
		ok := false
		sh.input(func(g *Group) { ok = g.Offer(m) })
		sh.attached = ok
	}
}

func (sh *simShare) actions() {
	w := sh.w
	if len(sh.notes) > 0 {
		w.may("note", func() { sh.input(func(*Group) {}) })
	}
	if len(sh.todo) > 0 && !(w.faults && w.chance(w.x.slow)) {
		w.may("group to the store", sh.carry)
	}
	if len(sh.answers) > 0 && !(w.faults && w.chance(w.x.slow)) {
		w.may("store to the group", func() {
			fn := sh.answers[0]
			sh.answers = sh.answers[1:]
			sh.input(fn)
		})
	}
	if sh.reading && (sh.r == nil || len(sh.page) == 0 || sh.g.Hungry() || !sh.g.Reads()) {
		w.may("group reads", sh.read)
	}
	if w.faults && w.chance(w.x.save) {
		w.may("group tick", func() { sh.input(func(g *Group) { g.Tick(w.h) }) })
	}
	if sh.g.Waits() && sh.g.HasRoom() && w.chance(.5) {
		w.may("room", func() { sh.input((*Group).Pump) })
	}
}

// carry does the first thing at the store. Its answer is a step of its own.
func (sh *simShare) carry() {
	w, a := sh.w, sh.todo[0]
	sh.todo = sh.todo[1:]
	fails := w.faults && w.chance(w.x.doubt)
	switch a.Do {
	case DoOpen:
		d, err := w.m.OpenGroup(simName)
		if fails {
			err = errDoubt
		}
		sh.answers = append(sh.answers, func(g *Group) { g.OnOpened(d, err) })
	case DoLookup:
		msgs := make([]*schema.Message, len(a.Refs))
		for i, r := range a.Refs {
			msgs[i] = w.m.Message(r.ID)
		}
		var err error
		if fails {
			err = errDoubt
		}
		sh.answers = append(sh.answers, func(g *Group) { g.OnLookup(a.Refs, msgs, err) })
	case DoSave:
		var err error
		if fails {
			err = errDoubt
		}
		if !fails || w.chance(.5) {
			w.m.SaveGroup(simName, a.After, a.Passed)
		}
		sh.answers = append(sh.answers, func(g *Group) { g.OnSaved(err) })
	case DoEnd:
		if sh.g.Idle() && len(sh.notes) == 0 {
			w.trace("the group has no member online")
			w.share = nil
		}
	}
}

// read does one step of the replay: attach, read a page, feed, be done.
func (sh *simShare) read() {
	w := sh.w
	switch {
	case sh.r == nil:
		var from schema.Cursor
		ok := false
		sh.input(func(g *Group) { from, ok = g.OnAttach() })
		if sh.reading = ok; ok {
			sh.attached, sh.upTo, sh.page = true, w.h, nil
			sh.r = w.m.Read(from, sh.upTo, []string{simFilter}, w.rng)
		}
	case !sh.g.Reads():
		sh.reading, sh.r = false, nil
	case len(sh.page) == 0:
		for range pick(w, 1, 2, 3) {
			if m := sh.r.Next(); m != nil {
				sh.page = append(sh.page, m)
			}
		}
		if len(sh.page) > 0 {
			return
		}
		isLive := false
		sh.r = nil
		sh.input(func(g *Group) { isLive = g.OnCaughtUp(sh.upTo) })
		sh.reading = !isLive
	default:
		n := 0
		sh.input(func(g *Group) { n = g.Feed(sh.page) })
		sh.page = sh.page[n:]
	}
}

// dropped notes what the group does not give to anybody.
func (w *world) dropped(why session.Drop) {
	w.trace("dropped: %s", why)
	w.drops = append(w.drops, why)
}

func (w *world) publish() {
	w.left--
	n := w.x.publish - w.left
	p := &pub{n: n, from: pick(w, "p", "q"), qos: pick(w, w.x.qos...), big: w.x.small > 0 && w.chance(.2), expires: w.chance(w.x.expire)}
	m := &schema.Message{ID: w.m.NewID(), Topic: pick(w, "t/1", "t/2", "t", "u"), ClientID: p.from, QoS: p.qos, Created: w.now()}
	if p.from == "p" {
		m.Topic = "t/1" // one of them keeps to one topic
	}
	if p.big {
		m.Payload = make([]byte, 100)
	}
	if p.expires {
		m.Expiry = w.now().Add(2 * time.Second)
	}
	p.matches = schema.Match(simFilter, m.Topic)
	k := w.lanes[0]
	if p.from == "q" {
		k = w.lanes[1]
	}
	gen, _ := w.m.Lane(k)
	p.mark, _ = w.m.Land(k, gen, m)
	if w.since != nil {
		p.incarnation = w.incarnation
	}
	w.pubs[m.ID] = p
	w.order = append(w.order, p)
	w.trace("%s publishes %d at QoS %d on %s, %v", p.from, n, p.qos, m.Topic, p.mark)
}
