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
	var before *document
	for _, e := range l.in[d.lane] {
		must(e == d || e.n != d.n || e.at >= l.majority, "%v and %v stand at one place", e, d)
		if e.n == d.n-1 && e.at < l.majority {
			before = e
		}
	}
	must(d.n == 1 || before != nil, "%v is not dense in its lane", d)
	if before != nil {
		must(before.ts <= d.ts, "ts falls from %v to %v", before, d)
		must(before.c.stop != End, "%v stands behind the end of its lane", d)
	}
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
		must(l.docs[id] != nil, "%v was acknowledged, and is not there", id)
	}
	for _, n := range w.live() {
		for _, t := range n.tails {
			must(t.begun, "the tail of %s has not begun", n.name)
		}
		for _, r := range l.seen(l.majority) {
			for _, d := range l.in[r.id] {
				m := schema.Mark{Lane: r.id.Number(), N: d.n}
				for _, t := range n.tails {
					must(!t.first.After(m) || t.yielded[d.c.msg.ID], "tail of %s at %v has passed %v by", n.name, t.m.H(), d)
				}
			}
		}
	}
}
