package lane

import (
	"cmp"
	"slices"
	"time"

	"rewindmq/schema"
)

// simTail carries out a Tail: passes in a snapshot, and a stream that lags, tells
// things again, loses them, hangs and is cut.
type simTail struct {
	n     *node
	m     *Tail
	at    *sender
	first schema.Cursor
	begun bool
	need  int
	acked map[schema.ID]bool // before its start

	pass    []*document
	rows    []*row
	found   int
	open    bool          // a pass is
	next    []schema.Lane // lane after lane, where that rule is off
	pos     int           // of the stream, in the oplog
	sub     int
	opening int // -1: none
	hung    bool
	lost    bool // it has lost something: no change stream does, see order
	changes uint64

	yielded map[schema.ID]bool
	order   map[string][2]uint64 // epoch and seq of the last, by publisher
}

func newSimTail(n *node) *simTail {
	return &simTail{n: n, at: &sender{node: n, name: n.name + "t"}, need: -1, opening: -1, yielded: map[schema.ID]bool{}, order: map[string][2]uint64{}}
}

// note takes lanes in from a majority read.
func (n *node) note(rows []*row, w int) {
	for _, r := range rows {
		if r.at < w && n.book.Note(r.id, r.retiredAt(w)) {
			for _, t := range n.tails {
				t.changes++
			}
		}
	}
}

func (t *simTail) act() bool {
	w := t.n.w
	if w.slow && !w.calm && w.chance(0.85) {
		return false
	}
	before := len(t.yielded)
	var did bool
	switch {
	case !t.begun:
		did = t.begin()
	case t.m.Streaming():
		did = t.stream()
	default:
		did = t.passing()
	}
	if w.calm { // a tail is never at rest
		return len(t.yielded) > before
	}
	return did
}

// begin stands at Head: a majority write first, so that no deposed primary answers.
func (t *simTail) begin() bool {
	w := t.n.w
	if t.need < 0 {
		t.need, t.acked = len(w.log.oplog), map[schema.ID]bool{}
		for id := range w.acked {
			t.acked[id] = true
		}
		return true
	}
	at := w.log.read(t.at)
	if w.on("head-write") {
		if w.log.majority < t.need {
			return false
		}
		at = w.log.majority
	}
	rows := w.log.seen(at)
	newest := schema.Lane(0)
	var marks []schema.Mark
	for _, r := range rows {
		newest = max(newest, r.id.Number())
		if r.retiredAt(at) {
			continue
		}
		m := schema.Mark{Lane: r.id.Number()}
		if w.on("top-head") {
			m.N = r.top(at)
		}
		if d := w.log.last(r.id, at); d != nil {
			m.N = max(m.N, d.n)
		}
		if !w.on("foreign-mark") {
			for _, d := range w.log.guests {
				if d.lane.Number() == m.Lane && d.at < at {
					m.N = max(m.N, d.n)
				}
			}
		}
		marks = append(marks, m)
	}
	t.first = schema.NewCursor(newest, marks)
	t.m = NewTail(TailOptions{Silent: 5 * time.Second, Quiet: 500 * time.Millisecond, Full: 3}, t.first)
	t.m.off = w.off.rules
	t.begun = true
	w.trace("tail of %s starts at %v", t.n.name, t.first)
	return true
}

func (t *simTail) behind(r *row, at int) []*document {
	var out []*document
	for _, d := range t.n.w.log.in[r.id] {
		if d.at < at && t.m.H().After(schema.Mark{Lane: r.id.Number(), N: d.n}) {
			out = append(out, d)
		}
	}
	return out
}

// passing makes passes.
func (t *simTail) passing() bool {
	w := t.n.w
	switch {
	case !t.open && w.on("snapshot-pass"):
		at := w.log.read(t.at)
		t.pos0(at)
		for _, r := range t.rows {
			t.pass = append(t.pass, t.behind(r, at)...)
		}
		t.sort()
	case !t.open: // lane after lane, each at its own time
		t.pos0(w.log.majority)
		for _, r := range t.rows {
			t.next = append(t.next, r.id.Number())
		}
	case len(t.next) > 0:
		for _, r := range t.rows {
			if r.id.Number() == t.next[0] {
				t.pass = append(t.pass, t.behind(r, w.log.majority)...)
			}
		}
		t.next = t.next[1:]
		t.sort()
	case !w.calm && w.chance(0.02): // snapshot too old, network: again from H
		t.open, t.pass, t.next = false, nil, nil
	case len(t.pass) > 0:
		d := t.pass[0]
		t.pass = t.pass[1:]
		t.give(d)
	default:
		t.endPass()
	}
	return true
}

// pos0 opens a pass at a point of the log.
func (t *simTail) pos0(at int) {
	t.open, t.pass, t.pos, t.rows = true, nil, at, nil
	h := t.m.H()
	for _, r := range t.n.w.log.seen(at) {
		k := r.id.Number()
		if _, ok := h.N(k); !ok && k <= h.Newest() {
			continue
		}
		if !t.n.w.on("end-of-pass") && r.retiredAt(at) {
			t.m.EndPass([]PassLane{{Number: k, Retired: true}})
			continue
		}
		t.rows = append(t.rows, r)
	}
	t.n.note(t.rows, at)
}

func (t *simTail) sort() {
	slices.SortFunc(t.pass, func(a, b *document) int {
		if a.lane == b.lane {
			return cmp.Compare(a.n, b.n)
		}
		return cmp.Or(cmp.Compare(a.ts, b.ts), cmp.Compare(a.lane, b.lane))
	})
	t.found = len(t.pass)
}

func (t *simTail) endPass() {
	w := t.n.w
	var lanes []PassLane
	for _, r := range t.rows {
		lanes = append(lanes, PassLane{r.id.Number(), r.retiredAt(t.pos), r.top(t.pos)})
	}
	t.m.EndPass(lanes)
	t.open = false
	if t.found > 0 {
		return
	}
	if t.opening < 0 {
		t.opening = max(0, t.pos-1)
	}
	if !w.calm && w.chance(w.lanes) {
		return // it is not there yet; passes go on
	}
	t.pos, t.sub, t.hung, t.opening = t.opening, 0, false, -1
	if !w.on("stream-at") {
		t.pos = w.log.majority
	}
	t.m.Opened(News{Now: w.now, Lanes: t.changes})
}

// stream listens.
func (t *simTail) stream() bool {
	w := t.n.w
	if by := t.m.Turn(News{Now: w.now, Lanes: t.changes}); by != "" {
		w.trace("tail of %s looks at the lanes: %s", t.n.name, by)
		t.m.Left()
		return true
	}
	if t.hung {
		return false
	}
	if t.m.Loaded() {
		t.m.Left()
		return true
	}
	if !w.calm {
		switch x := w.rng.Float64(); {
		case x < w.lossy: // an error
			t.m.Left()
			return true
		case x < w.lossy+0.01:
			t.hung = true
			return true
		case x < w.lossy+0.03: // the control stream
			t.n.note(w.log.seen(w.log.majority), w.log.majority)
			return true
		case x < w.lossy+0.04 && t.pos > 0: // it tells again
			t.pos, t.sub = t.pos-1, 0
			return true
		}
	}
	for t.pos < w.log.majority {
		list := w.log.oplog[t.pos].told
		if t.sub >= len(list) {
			t.pos, t.sub = t.pos+1, 0
			continue
		}
		e := list[t.sub]
		t.sub++
		if !w.calm && w.chance(0.01) {
			w.trace("the stream of %s loses %v", t.n.name, e.d)
			t.lost = true
			continue
		}
		t.m.Heard(News{Now: w.now})
		t.m.Fetched(!w.calm && w.chance(0.05))
		if before := len(t.yielded); w.calm {
			if t.event(e); t.m.Streaming() && len(t.yielded) == before {
				continue
			}
			return true
		}
		t.event(e)
		return true
	}
	t.m.Fetched(false)
	return false
}

func (t *simTail) event(e told) {
	w := t.n.w
	mine, unknown := t.n.book.Known(e.lane)
	if e.adopt {
		if !t.m.Met(e.lane, e.n, mine) {
			t.m.Left()
		}
		return
	}
	switch t.m.Event(e.lane, e.n, mine, unknown) {
	case Next:
		t.give(e.d)
	case Foreign:
		t.n.adopter.poke = true
	case Unknown:
		if w.log.counts(e.lane, w.log.majority) {
			t.n.note(w.log.seen(w.log.majority), w.log.majority)
			t.m.Left()
		}
	case Gap:
		w.trace("a gap before %v", e.d)
		t.m.Left()
	}
}

func (t *simTail) give(d *document) {
	w := t.n.w
	w.trace("tail of %s yields %v", t.n.name, d)
	m := schema.Mark{Lane: d.lane.Number(), N: d.n}
	at, _ := t.m.H().N(m.Lane)
	must(!w.strict || at+1 == m.N || w.retention > 0 && at < m.N, "tail of %s at %v yields %v", t.n.name, t.m.H(), d)
	t.m.Give(m)
	// A stopper whose answer was lost for so long that retention has taken it comes again.
	must(!t.yielded[d.c.msg.ID] || d.c.stop != "" && w.log.taken[d.c.msg.ID] != nil, "tail of %s yields %v twice", t.n.name, d)
	// Where nobody has made a round before retention took it, Head may lie below it.
	must(!t.acked[d.c.msg.ID] || !w.rounds && w.log.taken[d.c.msg.ID] != nil, "tail of %s yields %v, acknowledged before Head", t.n.name, d)
	t.yielded[d.c.msg.ID] = true
	if d.c.stop != "" {
		return
	}
	key := d.c.from
	if d.c.pub != nil {
		key = d.c.pub.name
	}
	now := [2]uint64{d.c.epoch, uint64(d.c.seq)}
	last := t.order[key]
	// A stream that loses an event silently is noticed when its lane goes on, and
	// nothing is lost; but a publisher that has moved to another lane meanwhile is
	// inverted. Guests with marks of their own are adopted mark by mark.
	must(t.lost || key == "G" || now[0] > last[0] || now[0] == last[0] && now[1] >= last[1], "tail of %s yields %v behind %d of epoch %d", t.n.name, d, last[1], last[0])
	t.order[key] = now
}

// simAdopter carries out an Adopter.
type simAdopter struct {
	*sender
	m    Adopter
	open *simOpening
	stop *simStop
	rows []*row
	ends bool
	poke bool
}

func (x *simAdopter) act() bool {
	n := x.node
	if x.open != nil {
		did, a := x.open.act()
		switch a.Do {
		case Done:
			x.m.Opened(a.Lane, x.open.node, x.open.began)
			x.open = nil
		case Failed:
			x.m.Failed()
			x.open = nil
		}
		return did
	}
	if x.stop != nil {
		did, done := x.stop.act()
		if done {
			x.stop = nil
		}
		return did
	}
	if x.ends {
		if len(x.rows) > 0 {
			x.stop = n.newStop(x.sender, x.rows[0].id, End)
			x.rows = x.rows[1:]
			return true
		}
		x.ends = false
		x.m.Alone()
		return true
	}
	if did, busy := x.step(); busy {
		return did
	}
	return x.carry(x.m.Next(n.id, n.keeps && !n.closing, n.w.now))
}

func (x *simAdopter) carry(a Action) bool {
	n, w := x.node, x.node.w
	switch a.Do {
	case Rest:
		x.rest(a.Rest)
	case Find:
		list := x.find()
		if len(list) == 0 {
			x.m.Failed()
			return false
		}
		x.reads(func() { x.m.Found(list) })
	case Open:
		x.open = n.newOpening(x.sender, true)
	case EndOthers:
		at := w.log.read(x.sender)
		for _, r := range w.log.seen(at) {
			if r.adopts && !r.retiredAt(at) && r.id.Number() < a.Lane.Number() {
				x.rows = append(x.rows, r)
			}
		}
		x.ends = true
	case Update:
		var parts []part
		for i, g := range x.m.Guests() {
			parts = append(parts, part{guest: g.ID, mark: markOf(g.Mark), lane: a.Lane, n: a.N + uint64(i)})
		}
		x.send("adopt", parts, func(done int, err string) { x.m.Wrote(verdictOf(done, err)) })
	case Look:
		at := w.log.read(x.sender)
		var docs []Guest
		for _, g := range x.m.Guests() {
			if d := w.log.docs[g.ID]; d != nil {
				docs = append(docs, w.guestAt(d, a, at))
			}
		}
		for _, d := range w.log.in[a.Lane] {
			if d.at < at && d.n >= a.N {
				docs = append(docs, Guest{ID: d.c.msg.ID, Mark: markText(d.lane), N: d.n, Stop: d.c.stop})
			}
		}
		x.reads(func() { x.m.Looked(docs) })
	default:
		return false
	}
	return true
}

// guestAt is how a majority read sees a guest: where it was adopted and no majority
// has that, it still stands where it was.
func (w *world) guestAt(d *document, a Action, at int) Guest {
	if d.at < at {
		g := Guest{ID: d.c.msg.ID, Mark: markText(d.lane)}
		if d.lane == a.Lane && d.n >= a.N {
			g.N, g.Stop = d.n, d.c.stop
		}
		return g
	}
	return Guest{ID: d.c.msg.ID, Mark: markText(w.cameWith[d.c.msg.ID])}
}

func (x *simAdopter) find() []Guest {
	w := x.node.w
	at := w.log.read(x.sender)
	var list []Guest
	for _, marked := range []bool{false, true} {
		for _, d := range w.log.guests {
			was := w.cameWith[d.c.msg.ID]
			adopted := d.lane != was && d.at < at
			if d.born < at && !adopted && (was != 0) == marked && len(list) < 3 {
				list = append(list, Guest{ID: d.c.msg.ID, Mark: markText(was)})
			}
		}
		if len(list) > 0 {
			break
		}
	}
	return list
}

func markText(id ID) string {
	if id == 0 {
		return ""
	}
	return string([]byte{byte(id >> 40), byte(id >> 32), byte(id >> 24), byte(id >> 16), byte(id >> 8), byte(id)})
}

func markOf(s string) ID {
	id := ID(0)
	for i := range len(s) {
		id = id<<8 | ID(s[i])
	}
	return id
}
