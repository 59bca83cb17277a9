package group

import (
	"maps"

	"rewindmq/schema"
)

type mode uint8

const (
	replaying mode = iota
	attached       // replaying, and the hub fills the buffer
	live
)

// step is what after has to follow, in the order in which taken moved.
type step struct {
	mark schema.Mark
	h    schema.Cursor // a merge, if mark is zero
	done bool
}

// follow lets after follow by one step, as soon as every claim before it is
// answered.
func (g *Group) follow(st *step) {
	g.line = append(g.line, st)
	g.drainLine()
}

// drainLine moves after up to the first message whose claim is not answered.
func (g *Group) drainLine() {
	n := 0
	for ; n < len(g.line) && (g.line[n].done || !g.on(ruleAfterWaits)); n++ {
		if st := g.line[n]; st.mark.IsZero() {
			g.after.Merge(st.h)
		} else {
			g.after.Advance(st.mark)
		}
		g.line[n] = nil
	}
	if g.line = g.line[n:]; len(g.line) == 0 {
		g.line = nil
	}
}

// merge moves the group to H as it stood when everything up to it had been offered.
func (g *Group) merge(h schema.Cursor) {
	if g.taken.Covers(h) {
		return
	}
	g.taken.Merge(h)
	g.merged = true
	maps.DeleteFunc(g.claimed, func(_ schema.ID, m schema.Mark) bool { return !g.taken.After(m) })
	if n := len(g.line); n > 0 && g.line[n-1].mark.IsZero() {
		g.line[n-1].h.Merge(h) // else the line would grow while one claim has no answer
		return
	}
	g.follow(&step{h: h.Clone(), done: true})
}

// Offer takes a message from the hub. false: the group is full, the hub lets go of
// it, and it becomes a reader of the log.
func (g *Group) Offer(m *schema.Message) bool {
	switch {
	case len(g.members) == 0:
		return false
	case g.mode == live:
		if len(g.queue) >= g.o.Queue {
			g.mode, g.queue = replaying, nil
			g.do(Action{Do: DoReplay})
			return false
		}
		g.queue = append(g.queue, m)
		if len(g.queue) == 1 {
			g.Pump()
		}
		return true
	case g.mode == attached:
		if len(g.buffer) >= g.o.Queue {
			g.mode, g.buffer = replaying, nil // stay a reader, take a new H
			return false
		}
		g.buffer = append(g.buffer, m)
		return true
	}
	return false
}

// OnAttach tells that the hub offers from now on; what lies between the group's place
// and its cursor is read from the log. from is where to read. ok=false: there is
// nobody to read for, or no need.
func (g *Group) OnAttach() (from schema.Cursor, ok bool) {
	if !g.Reads() {
		return schema.Cursor{}, false
	}
	g.mode, g.buffer = attached, nil
	return g.taken.Clone(), true
}

// Reads tells whether the group is to read the log: it is open, has members, and is
// not live.
func (g *Group) Reads() bool { return g.opened && len(g.members) > 0 && g.mode != live }

// Feed takes messages read from the log, in order, and tells how many; the rest is
// to be offered again when the group is Hungry.
func (g *Group) Feed(msgs []*schema.Message) int {
	for i, m := range msgs {
		if !g.Reads() || len(g.again) > 0 && g.on(ruleAgainFirst) || !g.take(m, false) {
			return i
		}
	}
	return len(msgs)
}

// Hungry tells whether Feed would take a message now.
func (g *Group) Hungry() bool {
	return g.Reads() && (len(g.again) == 0 || !g.on(ruleAgainFirst)) && len(g.line) < g.o.Line && g.HasRoom()
}

// OnCaughtUp tells that everything up to upTo has been fed. true: the group is live.
// false: the buffer overflowed, or nobody is left: attach again.
func (g *Group) OnCaughtUp(upTo schema.Cursor) bool {
	if g.mode != attached || len(g.members) == 0 {
		return false
	}
	g.merge(upTo)
	g.mode, g.queue, g.buffer = live, g.buffer, nil
	g.Pump()
	return true
}

// Live tells whether the hub feeds the group.
func (g *Group) Live() bool { return g.mode == live }
