package session

import (
	"rewindmq/schema"
)

type willState uint8

const (
	willWaits willState = iota
	willRemoved
	willUnknown
)

// bounds are the invariants of the core, after each step. With a rule off they
// are not looked at: what shows that a rule is needed has to be seen from outside.
func (w *world) bounds() {
	for _, n := range w.nodes {
		if n.alive {
			for _, o := range n.owned {
				o.bounds()
			}
		}
	}
}

func (o *owned) bounds() {
	s, w := o.s, o.n.w
	must(s.InFlight() <= simWindow, "flight %d above the window", s.InFlight())
	must(len(s.queue) <= simQueue && len(s.buffer) <= simQueue, "a queue above its bound")
	must(s.Waiting() <= simReceive, "%d appends above the Receive Maximum", s.Waiting())
	if !w.strict {
		return
	}
	must(len(s.win.byID) == len(s.win.flight), "the ids of the flight")
	sent, last := 0, uint64(0)
	for _, e := range s.win.flight {
		must(e.PacketID >= 1 && (e.PacketID <= simWindow || s.o.Clean) && s.win.byID[e.PacketID] == e, "packet id %d of the flight", e.PacketID)
		must(e.Seq > last, "the flight is not in order")
		last = e.Seq
		if e.sent {
			sent++
		}
	}
	must(sent == s.unacked, "unacked %d, sent %d", s.unacked, sent)
	must(s.taken.Covers(s.after), "after %v is not covered by taken %v", s.after, s.taken)
	must(len(s.line) <= simWindow+2*simQueue+16, "the line has %d steps", len(s.line))
	must(len(s.win.freed) <= simWindow, "freed ids %v", s.win.freed)
	for _, e := range s.recording.items[s.recording.head:] {
		must(s.o.Clean || s.lost || !e.Retained.IsZero() || s.after.After(e.Mark), "after %v covers %v, whose record is under way", s.after, e.Mark)
	}
}

// saves: everything that is not after a saved cursor is settled or in its flight,
// so what is not yet recorded, or waits in a queue, is after it.
func (o *owned) saves(c *schema.SessionCursor) {
	if !o.n.w.strict {
		return
	}
	s := o.s
	in := map[uint64]bool{}
	for _, f := range c.Flight {
		must(f.Seq <= c.Seq, "the flight of a saved cursor goes beyond its seq")
		in[f.Seq] = true
	}
	for _, e := range s.win.flight {
		must(!e.committed || in[e.Seq], "seq %d is missing in the saved flight", e.Seq)
	}
	for _, e := range s.recording.items[s.recording.head:] {
		must(!e.Retained.IsZero() || c.After.After(e.Mark), "the saved cursor %v covers %v, whose record is under way", c.After, e.Mark)
		must(e.Seq > c.Seq, "seq %d is under way, and the cursor is saved at %d", e.Seq, c.Seq)
	}
	for _, m := range s.queue {
		must(c.After.After(m.Mark) || !s.taken.After(m.Mark), "the saved cursor %v covers %v, which waits", c.After, m.Mark)
	}
}

// atRest judges what must hold when nothing is under way any more.
func (w *world) atRest() {
	solo := map[string]bool{}
	for _, d := range w.devices {
		if d.name == d.client {
			solo[d.client] = d.solo
			must(d.up && len(d.todo) == 0, "%s is not at rest", d.name)
			must(len(d.out) == 0 || !d.solo, "%s has %d publishes that were never answered", d.name, len(d.out))
		}
	}
	for _, id := range w.m.Clients() {
		owner, _, _ := w.m.Owner(id)
		l := w.ledgers[ledgerKey{id, owner.SID}]
		if l == nil {
			continue
		}
		w.m.Messages(func(m *schema.Message) bool { w.demand(l, m); return true })
		for _, f := range simFilters {
			w.demandRun(l, f)
		}
	}
	w.m.Messages(func(m *schema.Message) bool {
		p := w.pubOf(m)
		if m.QoS == 2 && solo[p.from] {
			must(p.inLog == 1, "P3: QoS 2 publish %s is %d times in the log", p.name, p.inLog)
		}
		return true
	})
	for _, c := range w.wills {
		w.judgeWill(c)
	}
}

// demand is P2: every matching message committed after SUBACK.
func (w *world) demand(l *ledger, m *schema.Message) {
	p := w.pubOf(m)
	if !p.expiry.IsZero() || p.big && l.small {
		return
	}
	for _, f := range simFilters {
		if !schema.Match(f, m.Topic) {
			continue
		}
		for _, s := range l.cover[f] {
			if min(s.qos, m.QoS) > 0 && s.has(m.TS) {
				_, came := l.app[m.ID]
				seq, recorded := l.recorded[m.ID]
				must(came, "P2: %s (%v) never reached %s (recorded %v, seq %d)", p.name, m.Mark, l.client, recorded, seq)
			}
		}
	}
}

// demandRun: what was retained at SUBSCRIBE, and still is, came.
func (w *world) demandRun(l *ledger, f string) {
	r, ok := l.expect[f]
	if !ok {
		return
	}
	for i, t := range simTopics {
		m := w.retainedNow(t)
		if m == nil || m.ID != r.now[i] || min(r.qos, m.QoS) == 0 {
			continue
		}
		p := w.pubOf(m)
		if p.expiry.IsZero() && !p.big {
			must(l.runs[m.ID] > 0, "R2: retained %s never reached %s for %s", p.name, l.client, f)
		}
	}
}

func (w *world) judgeWill(c *conn) {
	p := c.cfg.will
	must(p.inLog <= 1, "W1: %s published %d times", p.name, p.inLog)
	switch {
	case c.will == willRemoved:
		must(p.inLog == 0, "%s published after DISCONNECT", p.name)
		return
	case c.will == willUnknown || !c.accepted || c.cleanEnd || c.cutAt < 0 || !c.dev.solo:
		return
	}
	at := -1
	for i, x := range w.claims {
		if x.c == c {
			at = i
		}
	}
	back, fresh, accepted := int(^uint(0)>>1), true, false
	lapsed := false
later:
	for _, x := range w.claims[at+1:] {
		switch {
		case x.client == c.dev.client && x.c == nil:
			lapsed = true // for the store its connection had ended earlier
		case x.client == c.dev.client:
			back, fresh, accepted = x.tick, x.fresh, x.c.accepted
			break later
		}
	}
	switch {
	case c.cfg.delay == 0 || fresh:
		must(p.inLog == 1, "W1: %s was never published", p.name)
	case accepted && !lapsed && back < c.cutAt+min(int(c.cfg.delay), int(c.cfg.expiry)):
		must(p.inLog == 0, "%s published though its client came back in time", p.name)
	}
}
