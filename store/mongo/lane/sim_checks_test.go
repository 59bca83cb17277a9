package lane

import (
	"rewindmq/schema"
)

// committed judges what a majority has just got.
func (w *world) committed(d *document) {
	l := w.log
	if l.foreign(d) {
		return
	}
	for _, e := range l.in[d.lane] {
		must(e == d || e.n != d.n || e.at >= l.majority, "%v and %v stand at one place", e, d)
	}
	r := l.rowOf(d.lane.Number())
	before := r.newest // which retention may have taken
	if before != nil && d.n <= before.n && d.c.stop != "" {
		// Nobody has made a round before: it is at a place that was used, and has nothing
		// to stop.
		r.ended = r.ended || d.c.stop == End
		return
	}
	must(d.n == 1 || before != nil && before.n >= d.n-1, "%v is not dense in its lane", d)
	must(before == nil || before.n < d.n, "%v stands where something was before, up to %v", d, before)
	r.newest, r.ended = d, r.ended || d.c.stop == End
	if before != nil {
		must(before.ts <= d.ts, "ts falls from %v to %v", before, d)
	}
	must(!r.ended || d.c.stop != "", "%v stands behind the end of its lane", d)
	must(!d.c.refused, "%v was refused, and is stored", d)
	if p := d.c.pub; p != nil { // first copies in publishing order
		if p.came == nil {
			p.came = map[int]bool{}
		}
		must(p.came[d.c.seq] || d.c.seq > p.top, "%v is a first copy behind %d", d, p.top)
		p.came[d.c.seq], p.top = true, max(p.top, d.c.seq)
	}
	m := schema.Mark{Lane: d.lane.Number(), N: d.n}
	for _, n := range w.nodes {
		for _, t := range n.tails {
			must(!n.alive || !t.begun || t.m.H().After(m), "%v commits below H of %s", d, n.name)
		}
	}
}

// checkLanes: lanes become visible in order.
func (w *world) checkLanes() {
	for i, r := range w.log.seen(w.log.majority) {
		must(int(r.id.Number()) == i+1, "lane %d is visible before lane %d", r.id.Number(), i+1)
	}
}

// check judges what must hold at rest.
func (w *world) check() {
	l := w.log
	for _, d := range l.guests {
		must(!l.foreign(d), "%v is never adopted", d)
	}
	for _, p := range w.pubs {
		must(len(p.out) == 0, "%s still waits for %v", p.name, p.out)
	}
	for id := range w.acked {
		must(l.docs[id] != nil || l.taken[id] != nil, "%v was acknowledged, and is not there", id)
	}
	for _, n := range w.live() {
		for _, t := range n.tails {
			must(t.begun, "the tail of %s has not begun", n.name)
			for _, o := range w.live() {
				must(w.retention == 0 || !w.rounds || t.m.H().Covers(o.tails[0].m.H()), "the tail of %s at %v never covers %v of %s", n.name, t.m.H(), o.tails[0].m.H(), o.name)
			}
		}
		for _, r := range l.seen(l.majority) {
			for _, d := range l.in[r.id] {
				m := schema.Mark{Lane: r.id.Number(), N: d.n}
				for _, t := range n.tails {
					must(!t.first.After(m) || t.yielded[d.c.msg.ID] || d.c.stop != "" && w.retention > 0, "tail of %s at %v has passed %v by", n.name, t.m.H(), d)
				}
			}
		}
	}
}
