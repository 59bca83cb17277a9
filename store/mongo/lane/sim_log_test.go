package lane

import (
	"fmt"
	"slices"

	"rewindmq/schema"
)

// The log as a replica set keeps it: an oplog of which a majority has a prefix;
// commands that wait in a socket, run, wait for the majority, and lose their
// answers; a primary that steps down and takes back what no majority has.

// copyOf is one transmission of a message, a stopper, or a guest.
type copyOf struct {
	msg   *schema.Message
	pub   *publisher // nil: nobody's
	from  string     // of a guest
	seq   int
	epoch uint64
	stop  string
	bad   bool

	refused, stored bool
}

func (c *copyOf) String() string {
	switch {
	case c.stop != "":
		return c.stop + c.msg.ID.String()[20:]
	case c.pub != nil:
		return fmt.Sprintf("%s%d/e%d", c.pub.name, c.seq, c.epoch)
	}
	return fmt.Sprintf("%s%d", c.from, c.seq)
}

// document is one of `message`.
type document struct {
	c    *copyOf
	made int // step: its created
	lane ID  // 0: none
	n    uint64
	ts   int
	at   int // in the oplog
	born int
}

func (d *document) String() string { return fmt.Sprintf("%v@%d/%d", d.c, d.lane.Number(), d.n) }

// row is one of `lane`.
type row struct {
	id      ID
	node    schema.ID
	adopts  bool
	at      int
	retired int // -1: not
	tops    []kept
	// newest is what a majority has had of it, whether it is still there or not.
	newest *document
	ended  bool // a majority has had an end of it
}

// kept is one write of a lane's top.
type kept struct {
	at int
	n  uint64
}

// top gives the lane's top at W.
func (r *row) top(w int) uint64 {
	n := uint64(0)
	for _, k := range r.tops {
		if k.at < w {
			n = max(n, k.n)
		}
	}
	return n
}

// told is what the stream says of an entry.
type told struct {
	d     *document
	lane  ID // as it stood there
	n     uint64
	adopt bool
}

type oplogEntry struct {
	undo func()
	docs []*document // that got a mark
	told []told
	sess string
	txn  uint64
}

// part is one statement of a command.
type part struct {
	c     *copyOf
	lane  ID
	n     uint64
	guest schema.ID
	mark  ID // that was found
	row   *row
	made  int
}

type command struct {
	kind  string
	parts []part
	who   *sender
	sess  string
	txn   uint64
	state string // queued, running, waiting, answered
	i     int
	err   string
	need  int
	ts    []int
	until int
	sent  int // step
}

func (c *command) String() string { return fmt.Sprintf("%s#%d %s", c.sess, c.txn, c.kind) }

type replicas struct {
	w        *world
	oplog    []oplogEntry
	majority int
	clock    int
	docs     map[schema.ID]*document
	in       map[ID][]*document // by `lane`, as they were committed
	rows     []*row
	guests   []*document
	commands []*command
	taken    map[schema.ID]*document // by retention
	txn      map[string]uint64
	grouped  bool // several documents under one cluster time, as 8.0 does it
}

func newReplicas(w *world) *replicas {
	return &replicas{w: w, docs: map[schema.ID]*document{}, in: map[ID][]*document{}, taken: map[schema.ID]*document{}, txn: map[string]uint64{}, grouped: w.chance(0.3)}
}

func (l *replicas) rowOf(k schema.Lane) *row {
	for _, r := range l.rows {
		if r.id.Number() == k {
			return r
		}
	}
	return nil
}

// counts tells whether a lane value is one of the log's at W.
func (l *replicas) counts(id ID, w int) bool {
	r := l.rowOf(id.Number())
	return id > 0 && r != nil && r.id == id && r.at < w
}

func (l *replicas) foreign(d *document) bool { return !l.counts(d.lane, len(l.oplog)) }

// seen gives the lanes that are there at W, by number.
func (l *replicas) seen(w int) []*row {
	var out []*row
	for _, r := range l.rows {
		if r.at < w {
			out = append(out, r)
		}
	}
	slices.SortFunc(out, func(a, b *row) int { return int(a.id.Number()) - int(b.id.Number()) })
	return out
}

func (r *row) retiredAt(w int) bool { return r.retired >= 0 && r.retired < w }

func (l *replicas) atMark(id ID, n uint64, w int) *document {
	for _, d := range l.in[id] {
		if d.n == n && d.at < w {
			return d
		}
	}
	return nil
}

func (l *replicas) last(id ID, w int) *document {
	var out *document
	for _, d := range l.in[id] {
		if d.at < w && (out == nil || d.n > out.n) {
			out = d
		}
	}
	return out
}

func (l *replicas) commit(e oplogEntry, c *command) {
	if c != nil {
		e.sess, e.txn = c.sess, c.txn
	}
	l.oplog = append(l.oplog, e)
}

func (l *replicas) place(d *document) { l.in[d.lane] = append(l.in[d.lane], d) }

func (l *replicas) displace(d *document) {
	l.in[d.lane] = slices.DeleteFunc(l.in[d.lane], func(x *document) bool { return x == d })
}

// insert carries out some parts of a command as one entry.
func (l *replicas) insert(parts []part, ts []int, c *command) (int, string) {
	var docs []*document
	var err string
	for i, p := range parts {
		switch {
		case p.c.bad:
			err = "bad"
		case l.docs[p.c.msg.ID] != nil:
			err = "dup"
		case l.atMark(p.lane, p.n, len(l.oplog)+1) != nil && l.w.on("unique"):
			err = "dup"
		}
		if err != "" {
			break
		}
		d := &document{c: p.c, lane: p.lane, n: p.n, ts: ts[i], at: len(l.oplog), born: len(l.oplog), made: p.made}
		l.docs[p.c.msg.ID] = d
		l.place(d)
		docs = append(docs, d)
	}
	if len(docs) > 0 {
		e := oplogEntry{docs: docs, undo: func() {
			for _, d := range docs {
				delete(l.docs, d.c.msg.ID)
				l.displace(d)
			}
		}}
		for _, d := range docs {
			e.told = append(e.told, told{d: d, lane: d.lane, n: d.n})
		}
		l.commit(e, c)
	}
	return len(docs), err
}

func (l *replicas) adopt(p part, ts int, c *command) string {
	d := l.docs[p.guest]
	unmatched := "dup"
	if !l.w.on("upsert") {
		unmatched = ""
	}
	switch {
	case d == nil && unmatched != "":
		return "bad" // the upsert meets the validator
	case d == nil:
		return ""
	case d.lane != p.mark && l.w.on("found-mark"):
		return unmatched
	}
	if o := l.atMark(p.lane, p.n, len(l.oplog)+1); o != nil && o != d {
		return "dup"
	}
	old := *d
	l.displace(d)
	d.lane, d.n, d.ts, d.at, d.made = p.lane, p.n, ts, len(l.oplog), l.w.made()
	l.clock++
	l.place(d)
	l.commit(oplogEntry{docs: []*document{d}, told: []told{{d, p.lane, p.n, true}}, undo: func() {
		l.displace(d)
		*d = old
		l.place(d)
	}}, c)
	return ""
}

// insertGuests is an insert or a transaction of any client: one entry.
func (l *replicas) insertGuests(list []*copyOf, id ID, n uint64) {
	var docs []*document
	e := oplogEntry{}
	for _, c := range list {
		d := &document{c: c, lane: id, n: n, ts: l.w.rng.IntN(l.clock + 1), at: len(l.oplog), born: len(l.oplog)}
		l.docs[c.msg.ID] = d
		l.place(d)
		l.guests = append(l.guests, d)
		docs = append(docs, d)
		e.told = append(e.told, told{d: d, lane: id, n: n})
	}
	e.undo = func() {
		for _, d := range docs {
			l.remove(d)
		}
	}
	l.commit(e, nil)
}

func (l *replicas) remove(d *document) {
	delete(l.docs, d.c.msg.ID)
	l.displace(d)
	l.guests = slices.DeleteFunc(l.guests, func(x *document) bool { return x == d })
}

// deleteGuest takes a guest away before it was adopted; simplified: a majority has
// it at once.
func (l *replicas) deleteGuest(d *document) {
	l.remove(d)
	l.commit(oplogEntry{undo: func() {}}, nil)
	l.replicate(len(l.oplog))
}

// take is retention: it takes what is old enough, of what a majority has (simplified: a
// majority has that at once). What is said at the type tops of package mongo is supposed:
// nothing is under way, or in doubt, for longer than a quarter of it.
func (l *replicas) take() bool {
	w := l.w
	for _, c := range l.commands {
		if w.step-c.sent > w.retention/4 {
			return false
		}
	}
	for _, n := range w.nodes {
		if a := &n.adopter.m; n.alive && a.doubt && since(w.now, a.fresh) > w.fresh() {
			return false
		}
		for _, x := range n.writers {
			if n.alive && len(x.m.batch) > 0 && !x.m.began.IsZero() && since(w.now, x.m.began) > w.fresh() {
				return false
			}
		}
	}
	did := false
	for _, r := range l.rows {
		for _, d := range slices.Clone(l.in[r.id]) {
			if w.rounds && d == l.last(r.id, len(l.oplog)) && d.n > r.top(l.majority) {
				continue
			}
			if d.at < l.majority && w.step-d.made > w.retention {
				w.trace("retention takes %v", d)
				l.remove(d)
				l.taken[d.c.msg.ID] = d
				did = true
			}
		}
	}
	if did {
		l.commit(oplogEntry{undo: func() {}}, nil)
		l.replicate(len(l.oplog))
	}
	return did
}

func (l *replicas) send(c *command) {
	c.sent = l.w.step
	l.commands = append(l.commands, c)
	l.delay(c)
}

func (l *replicas) delay(c *command) {
	if l.w.chance(l.w.late) && !l.w.calm {
		c.until = l.w.step + 20 + l.w.rng.IntN(140)
	}
}

func (l *replicas) gone(c *command) {
	l.commands = slices.DeleteFunc(l.commands, func(x *command) bool { return x == c })
}

// run lets a command go one step on the server.
func (l *replicas) run(c *command) bool {
	if c.until > l.w.step && !l.w.calm {
		return false
	}
	switch c.state {
	case "queued":
		for _, x := range l.commands {
			if x.sess == c.sess && x.state == "running" && c.kind != "behind" {
				return false // one command of a driver session at a time
			}
		}
		if c.kind != "behind" { // an aggregation has no transaction number
			if l.txn[c.sess] > c.txn && l.w.on("txn") {
				l.w.trace("%v is refused: 225", c)
				l.gone(c)
				return true
			}
			l.txn[c.sess] = max(l.txn[c.sess], c.txn)
		}
		for len(c.ts) < len(c.parts) { // stamped when the execution starts
			if c.kind != "adopt" { // $$CLUSTER_TIME does not tick
				l.clock++
			}
			c.ts = append(c.ts, l.clock)
		}
		c.state = "running"
		l.delay(c)
	case "running":
		l.execute(c)
	case "waiting":
		if l.majority < c.need {
			return false
		}
		l.answer(c, c.err)
	default:
		if c.who.node.paused {
			return false
		}
		l.answer(c, c.err)
	}
	return true
}

func (l *replicas) execute(c *command) {
	err := ""
	switch p := c.parts[c.i]; c.kind {
	case "insert":
		k := 1
		if l.grouped {
			k += l.w.rng.IntN(len(c.parts) - c.i)
		}
		var done int
		done, err = l.insert(c.parts[c.i:c.i+k], c.ts[c.i:], c)
		c.i += done
	case "behind":
		p.n = 1
		last, r := l.last(p.lane, len(l.oplog)), l.rowOf(p.lane.Number())
		if last != nil {
			p.n = last.n + 1
		}
		if r != nil && l.w.on("top-behind") {
			p.n = max(p.n, r.top(len(l.oplog))+1)
		}
		p.made = l.w.step
		if r != nil && r.retired < 0 && (last == nil || last.c.stop != End) {
			l.clock++ // stamped where it is inserted
			_, err = l.insert([]part{p}, []int{l.clock}, nil)
		}
		c.i++
	case "adopt":
		if err = l.adopt(p, c.ts[c.i], c); err == "" {
			c.i++
		}
	case "lane":
		if l.rowOf(p.row.id.Number()) != nil {
			err = "dup"
			break
		}
		r := &row{id: p.row.id, node: p.row.node, adopts: p.row.adopts, at: len(l.oplog), retired: -1}
		l.rows = append(l.rows, r)
		l.commit(oplogEntry{undo: func() {
			l.rows = slices.DeleteFunc(l.rows, func(x *row) bool { return x == r })
		}}, c)
		c.i++
	case "top":
		if r := l.rowOf(p.lane.Number()); r != nil && r.top(len(l.oplog)) < p.n {
			r.tops = append(r.tops, kept{len(l.oplog), p.n})
			l.commit(oplogEntry{undo: func() { r.tops = r.tops[:len(r.tops)-1] }}, c)
		}
		c.i++
	case "retire":
		if r := l.rowOf(p.lane.Number()); r != nil && r.retired < 0 {
			r.retired = len(l.oplog)
			l.commit(oplogEntry{undo: func() { r.retired = -1 }}, c)
		}
		c.i++
	}
	if err != "" || c.i >= len(c.parts) {
		c.err, c.state, c.need = err, "waiting", len(l.oplog)
	}
}

// answer: the answer reaches its sender, or is lost, or waits in the socket of a
// paused node.
func (l *replicas) answer(c *command, err string) {
	s := c.who
	switch {
	case s.pending != c || !s.node.alive:
		l.gone(c)
		return
	case s.node.paused:
		c.state, c.err = "answered", err
		return
	}
	l.gone(c)
	if l.w.calm || !l.w.chance(0.15) {
		l.w.trace("%v answers %d %s", c, c.i, err)
		s.pending = nil
		s.opAt = max(s.opAt, c.need)
		s.reply(c.i, err)
	}
}

func (l *replicas) replicate(k int) {
	for i := l.majority; i < min(l.majority+k, len(l.oplog)); i++ {
		l.majority = i + 1
		l.w.checkLanes()
		for _, d := range l.oplog[i].docs {
			l.w.committed(d)
		}
	}
}

func (l *replicas) stepDown() {
	keep := l.majority + l.w.rng.IntN(len(l.oplog)-l.majority+1)
	l.w.trace("step-down: %d of %d are kept, a majority had %d", keep, len(l.oplog), l.majority)
	for len(l.oplog) > keep {
		l.oplog[len(l.oplog)-1].undo()
		l.oplog = l.oplog[:len(l.oplog)-1]
	}
	l.txn = map[string]uint64{} // those in memory go, what was written with them stays
	for _, e := range l.oplog {
		if e.sess != "" {
			l.txn[e.sess] = max(l.txn[e.sess], e.txn)
		}
	}
	for _, c := range slices.Clone(l.commands) {
		switch {
		case c.state == "queued":
			if l.w.chance(0.5) {
				l.gone(c)
			}
		case c.state == "answered":
		case c.kind != "behind" && l.w.chance(0.3) && c.who.pending == c: // the driver tries once more, under the same number
			c.state, c.err, c.need = "queued", "", 0
			c.i = l.landed(c)
			if c.i == len(c.parts) {
				c.state, c.need = "waiting", len(l.oplog)
			}
		case !l.w.on("doubt-189") && c.kind == "insert" && c.i < len(c.parts):
			l.answer(c, "bad")
		default:
			l.answer(c, "doubt")
		}
	}
}

// landed counts what of a command is still there.
func (l *replicas) landed(c *command) int {
	for i, p := range c.parts {
		there := false
		switch c.kind {
		case "insert":
			d := l.docs[p.c.msg.ID]
			there = d != nil && d.c == p.c && d.lane == p.lane && d.n == p.n
		case "adopt":
			d := l.docs[p.guest]
			there = d != nil && d.lane == p.lane && d.n == p.n
		case "top":
			r := l.rowOf(p.lane.Number())
			there = r != nil && r.top(len(l.oplog)) >= p.n
		case "lane":
			r := l.rowOf(p.row.id.Number())
			there = r != nil && r.id == p.row.id
		}
		if !there {
			return i
		}
	}
	return len(c.parts)
}

// read gives the point at which a majority read sees the log: mostly now, but what
// a deposed primary answers may be older, as far as the session allows.
func (l *replicas) read(s *sender) int {
	if !l.w.calm && l.w.chance(l.w.stale) {
		from := max(0, min(s.opAt, l.majority), l.majority-5)
		return from + l.w.rng.IntN(l.majority-from+1)
	}
	return l.majority
}
