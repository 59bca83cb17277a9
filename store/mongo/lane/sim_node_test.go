package lane

import (
	"errors"
	"maps"
	"slices"
	"time"

	"rewindmq/schema"
	"rewindmq/store"
)

// sender has at most one write in flight, in a driver session of its own.
type sender struct {
	node    *node
	name    string
	txns    uint64
	opAt    int // what its reads see at least
	pending *command
	reply   func(done int, err string)
	later   func() // an answer to a read, on its way
	until   time.Time
}

func (s *sender) send(kind string, parts []part, reply func(done int, err string)) {
	s.txns++
	s.reply = reply
	s.pending = &command{kind: kind, parts: parts, who: s, sess: s.name, txn: s.txns, state: "queued"}
	s.node.w.log.send(s.pending)
	s.node.w.trace("%v sends %v", s.pending, parts)
}

func (p part) String() string {
	if p.c != nil {
		return p.c.String() + "@" + schema.Mark{Lane: p.lane.Number(), N: p.n}.String()
	}
	return schema.Mark{Lane: p.lane.Number(), N: p.n}.String()
}

// giveUp: the attempt's time is over; it may still land.
func (s *sender) giveUp() {
	s.node.w.trace("%v is given up", s.pending)
	s.pending = nil
	s.reply(0, "doubt")
}

// step carries out what does not need the machine; busy: the machine is not asked.
func (s *sender) step() (did, busy bool) {
	if f := s.later; f != nil {
		s.later = nil
		f()
		return true, true
	}
	if s.pending != nil {
		return false, true
	}
	if w := s.node.w; w.now.Before(s.until) {
		if w.calm {
			s.until = time.Time{}
			return true, true
		}
		return false, true
	}
	return false, false
}

// reads has the answer to a read come: at once, or later.
func (s *sender) reads(f func()) {
	if s.node.w.calm || s.node.w.chance(0.7) {
		f()
		return
	}
	s.later = f
}

func (s *sender) rest(d time.Duration) { s.until = s.node.w.now.Add(d) }

// fails tells whether a read does not succeed this time.
func (s *sender) fails() bool { return !s.node.w.calm && s.node.w.chance(0.05) }

func verdictOf(done int, err string) Verdict {
	switch err {
	case "":
		return Verdict{Stored: done}
	case "bad":
		return Verdict{Stored: done, Refused: true, Err: errBad}
	case "dup":
		return Verdict{Stored: done, Doubt: true}
	}
	return Verdict{Doubt: true}
}

func outcome(err string) Outcome {
	switch err {
	case "":
		return Acknowledged
	case "dup":
		return Duplicate
	}
	return InDoubt
}

var errBad = errors.New("the validator")

// simStop carries out a Stop.
type simStop struct {
	*sender
	m *Stop
}

func (n *node) newStop(s *sender, id ID, kind string) *simStop {
	w := n.w
	x := &simStop{sender: s, m: NewStop(w.newID(), id, kind)}
	x.m.off = w.off.rules
	return x
}

// act goes on; done: the stopper stands.
func (x *simStop) act() (did, done bool) {
	if did, busy := x.step(); busy {
		return did, false
	}
	w := x.node.w
	a := x.m.Next()
	switch a.Do {
	case Rest:
		x.rest(a.Rest)
	case Look:
		at := w.log.read(x.sender)
		last, own := w.docAt(w.log.last(a.Lane, at)), (*Doc)(nil)
		if d := w.log.docs[a.ID]; d != nil && d.at < at {
			own = w.docAt(d)
		}
		r := w.log.rowOf(a.Lane.Number())
		retired := r != nil && r.retiredAt(at)
		x.reads(func() { x.m.Looked(last, own, retired) })
	case PutBehind:
		x.put(a)
	case Retire:
		x.send("retire", []part{{lane: a.Lane}}, func(_ int, err string) {
			if err == "" {
				x.m.Retired()
			}
		})
	case Done:
		return true, true
	}
	return true, false
}

// put sends the stopper: the primary finds the place and inserts, in one command. Where
// that rule is off, the place is what the primary shows (mostly; what the one before it
// had, it does not show any more), and the stopper goes to whoever is primary then.
func (x *simStop) put(a Action) {
	l := x.node.w.log
	p := part{c: x.node.w.stopper(a.ID, a.Kind), lane: a.Lane}
	reply := func(_ int, err string) { x.m.Wrote(outcome(err)) }
	if x.node.w.on("put-behind") {
		x.send("behind", []part{p}, reply)
		return
	}
	p.n, p.made = 1, x.node.w.step
	if d := l.last(a.Lane, len(l.oplog)); d != nil {
		if d.c.stop == End {
			x.later = func() { x.m.Wrote(Acknowledged) }
			return
		}
		p.n = d.n + 1
	}
	x.reads(func() { x.send("insert", []part{p}, reply) })
}

// docAt is what a look shows of a document.
func (w *world) docAt(d *document) *Doc {
	if d == nil {
		return nil
	}
	return &Doc{ID: d.c.msg.ID, Lane: d.lane, N: d.n, Stop: d.c.stop, TS: uint64(d.ts), Counts: w.log.counts(d.lane, len(w.log.oplog))}
}

// simOpening carries out an Opening.
type simOpening struct {
	*sender
	m      *Opening
	node   schema.ID
	adopts bool
	began  time.Time
}

func (n *node) newOpening(s *sender, adopts bool) *simOpening {
	o := &simOpening{sender: s, m: NewOpening(n.id, n.w.newKey), node: n.id, adopts: adopts, began: n.w.now}
	o.m.off = n.w.off.rules
	return o
}

func (x *simOpening) act() (did bool, done Action) {
	if did, busy := x.step(); busy {
		return did, Action{}
	}
	w := x.sender.node.w
	a := x.m.Next()
	switch a.Do {
	case Rest:
		x.rest(a.Rest)
	case Look:
		at := w.log.read(x.sender)
		if !w.on("lane-majority-look") {
			at = len(w.log.oplog)
		}
		top := schema.Lane(0)
		for _, r := range w.log.seen(at) {
			top = max(top, r.id.Number())
		}
		x.reads(func() { x.m.Top(top) })
	case Insert:
		x.send("lane", []part{{lane: a.Lane, row: &row{id: a.Lane, node: x.node, adopts: x.adopts}}}, func(_ int, err string) { x.m.Inserted(outcome(err)) })
	case Check:
		r := w.log.rowOf(a.Lane.Number())
		if r != nil && r.at >= w.log.read(x.sender) {
			r = nil
		}
		x.reads(func() {
			if r == nil {
				x.m.Checked(false, 0, schema.ID{})
			} else {
				x.m.Checked(true, r.id, r.node)
			}
		})
	case Done, Failed:
		return true, a
	}
	return true, Action{}
}

// simWriter carries out a Writer.
type simWriter struct {
	*sender
	m    *Writer
	open *simOpening
	stop *simStop
	done bool
	ever bool // it had a lane

	keptIn ID // what the node's rounds have stored
	kept   uint64
}

func (n *node) newWriter(name string) *simWriter {
	w := n.w
	x := &simWriter{sender: &sender{node: n, name: name}, m: NewWriter(Options{
		Hold: w.hold, Batch: 3, BatchBytes: 1 << 20, MaxPayload: 100, MaxSize: 1 << 20, NewID: w.newID,
		Fresh: w.fresh(),
	})}
	x.m.off = w.off.rules
	x.open = n.newOpening(x.sender, false)
	return x
}

func (x *simWriter) act() bool {
	n := x.node
	if x.open != nil {
		did, a := x.open.act()
		switch {
		case a.Do == Done:
			x.m.Opened(a.Lane, x.open.node, x.open.began)
			n.w.trace("%s has lane %d", x.name, a.Lane.Number())
			x.open, x.ever = nil, true
		case a.Do == Failed && !x.ever:
			x.open = n.newOpening(x.sender, false)
		case a.Do == Failed:
			x.open = nil
			x.m.Failed()
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
	if did, busy := x.step(); busy {
		n.settle(x)
		return did
	}
	if x.done {
		return false
	}
	w := n.w
	a := x.m.Next(Env{
		Now: w.now, Node: n.id, Paused: n.woke, Silent: w.step-n.beatAt > simLease, Suspect: n.suspect, Closing: n.closing && len(n.conns) == 0,
	})
	n.settle(x)
	did := x.carry(a)
	n.settle(x)
	return did
}

func (x *simWriter) carry(a Action) bool {
	n, w := x.node, x.node.w
	switch a.Do {
	case Wait:
		return false
	case Rest:
		x.rest(a.Rest)
	case Refresh:
		if x.fails() {
			x.later = x.m.Failed
		} else {
			n.beat()
			x.later = x.m.Refreshed
		}
	case Open:
		x.open = n.newOpening(x.sender, false)
	case Verify:
		if x.fails() {
			x.later = x.m.Failed
			return true
		}
		n.beat() // a fresh time
		lost := map[*store.Publisher]bool{}
		for p := range x.m.Asked() {
			s := &w.pubBy(p.ClientID).session
			lost[p] = s.epoch > p.Epoch || s.owner != x.m.Node() && w.on("owner")
		}
		x.reads(func() { x.m.Verified(lost) })
	case Insert:
		parts := make([]part, x.m.Len())
		for i := range parts {
			parts[i] = part{c: w.copies[x.m.Message(i)], lane: a.Lane, n: a.N + uint64(i), made: w.made()}
		}
		x.send("insert", parts, func(done int, err string) {
			v := verdictOf(done, err)
			ts := 0
			if v.Stored > 0 {
				ts = 1
			}
			x.m.Wrote(v, uint64(ts))
		})
	case Put:
		x.send("insert", []part{{c: w.stopper(a.ID, a.Kind), lane: a.Lane, n: a.N, made: w.step}}, func(done int, err string) { x.m.Stopped(verdictOf(done, err)) })
	case Look:
		if x.fails() {
			x.later = x.m.LookFailed
			return true
		}
		docs := x.look(a)
		x.reads(func() { x.m.Looked(docs) })
	case Retire:
		x.stop = n.newStop(x.sender, a.Lane, End)
	case Done:
		x.done = true
		return false
	}
	return true
}

// look reads the batch's ids, and what stands at N and above.
func (x *simWriter) look(a Action) []Doc {
	w := x.node.w
	at := w.log.read(x.sender)
	if !w.on("look-majority") {
		at = len(w.log.oplog)
	}
	var docs []Doc
	seen := map[schema.ID]bool{}
	for i := range x.m.Len() {
		if d := w.log.docs[x.m.Message(i).ID]; d != nil && d.at < at && !seen[d.c.msg.ID] {
			seen[d.c.msg.ID] = true
			docs = append(docs, *w.docAt(d))
		}
	}
	for _, d := range w.log.in[a.Lane] {
		if d.at < at && d.n >= a.N && !seen[d.c.msg.ID] {
			docs = append(docs, *w.docAt(d))
		}
	}
	return docs
}

// conn is a connection of a publisher to a node: a session that it owns.
type conn struct {
	p       *publisher
	epoch   uint64
	pub     *store.Publisher
	ctx     *simContext
	inbox   []*copyOf
	waiting int // Appends without an answer
	order   int // of the next Append
	heard   int // of the last answer
	doubt   bool
	closed  bool
	lost    bool // its node was declared dead
}

type simContext struct{ err error }

func (c *simContext) Err() error { return c.err }

// node is one run of a broker, under one name after another.
type node struct {
	w       *world
	name    string
	id      schema.ID
	alive   bool
	paused  bool
	slept   int  // since when
	woke    bool // the first to look notices a pause
	suspect uint64
	beatAt  int
	closing bool
	keeps   bool

	writers []*simWriter
	tops    *sender // of the rounds
	turn    int     // of the last one
	todo    []func()
	adopter *simAdopter
	keeper  *simStop
	ends    []*row
	finish  schema.ID
	book    Book
	tails   []*simTail
	claims  []*claim
	conns   []*conn
	leaving []*conn // closed, not released
}

func (w *world) startNode() {
	n := &node{w: w, name: string(rune('A' + len(w.nodes))), alive: true, beatAt: w.step}
	n.id = w.register()
	for i := range pick(w, 1, 2) {
		n.writers = append(n.writers, n.newWriter(n.name+string(rune('0'+i))))
	}
	n.adopter = &simAdopter{sender: &sender{node: n, name: n.name + "a"}}
	n.adopter.m.off = w.off.rules
	n.adopter.m.Fresh = w.fresh()
	n.tails = []*simTail{newSimTail(n)}
	n.tops = &sender{node: n, name: n.name + "k"}
	w.nodes = append(w.nodes, n)
	w.trace("node %s starts", n.name)
}

func (n *node) act() bool {
	if n.paused || !n.alive {
		return false
	}
	if n.woke && n.w.chance(0.5) {
		n.woke = false // the pause watch
		n.suspect++
		return true
	}
	did := false
	k := 3 + len(n.writers) + len(n.tails) + len(n.claims)
	from := n.w.rng.IntN(k)
	for i := range k {
		if !n.alive {
			return true
		}
		did = n.part((from+i)%k) || did
		if did && !n.w.calm {
			break
		}
	}
	return did
}

// part lets one part of a node go on.
func (n *node) part(i int) bool {
	switch i {
	case 0:
		return n.control()
	case 1:
		return n.adopter.act()
	case 2:
		return n.work()
	}
	if i -= 3; i < len(n.writers) {
		return n.writers[i].act()
	}
	if i -= len(n.writers); i < len(n.tails) {
		return n.tails[i].act()
	}
	if i -= len(n.tails); i < len(n.claims) {
		return n.claims[i].act()
	}
	return false
}

// control is what the broker does by itself: reads sockets, hears of claims,
// releases, beats, closes.
func (n *node) control() bool {
	i := n.w.rng.IntN(6)
	did := false
	for k := range 6 {
		if n.w.calm || k == i {
			did = n.chore(k) || did
		}
	}
	return did
}

func (n *node) chore(i int) bool {
	switch i {
	case 0:
		return n.read()
	case 1:
		return n.hear()
	case 2:
		return n.release()
	case 3:
		return n.pulse()
	case 4:
		return n.keepTops()
	}
	return n.end()
}

// keepTops makes rounds (the type tops of package mongo).
func (n *node) keepTops() bool {
	w := n.w
	if w.retention == 0 || !w.on("rounds") {
		return false
	}
	if did, busy := n.tops.step(); busy {
		return did
	}
	if len(n.todo) > 0 {
		n.todo[0]()
		n.todo = n.todo[1:]
		return true
	}
	if w.step-n.turn < w.retention/16 {
		return false
	}
	n.turn = w.step
	for _, x := range n.writers {
		if id, k := x.m.Last(); id != 0 && k > 0 && (id != x.keptIn || k != x.kept) {
			n.todo = append(n.todo, func() {
				n.tops.send("top", []part{{lane: id, n: k}}, func(_ int, err string) {
					if err == "" {
						x.keptIn, x.kept = id, k
					}
				})
			})
		}
	}
	if n.keeps {
		at := w.log.read(n.tops)
		for _, r := range w.log.seen(at) {
			if d := w.log.last(r.id, at); d != nil && !r.retiredAt(at) && d.n > r.top(at) {
				k := d.n
				n.todo = append(n.todo, func() { n.tops.send("top", []part{{lane: r.id, n: k}}, func(int, string) {}) })
			}
		}
	}
	return false
}

// read takes what a connection has sent and appends it.
func (n *node) read() bool {
	for _, c := range n.conns {
		if len(c.inbox) == 0 || !n.w.calm && n.w.chance(0.3) {
			continue
		}
		k := min(len(c.inbox), pick(n.w, 1, 1, 2))
		x := n.writers[c.p.at%len(n.writers)]
		if !n.w.on("pinned") {
			x = n.writers[n.w.rng.IntN(len(n.writers))]
		}
		n.appendTo(x, c, c.inbox[:k])
		c.inbox = c.inbox[k:]
		return true
	}
	return false
}

func (n *node) appendTo(x *simWriter, c *conn, list []*copyOf) {
	p := &Pending{Pub: c.pub, Queued: n.w.now, Context: c.ctx, Answers: make([]store.Appended, len(list))}
	for _, m := range list {
		p.Msgs = append(p.Msgs, m.msg)
	}
	c.waiting++
	c.order++
	order := c.order
	p.Done = func(answers []store.Appended) {
		c.waiting--
		must(order == c.heard+1 || !n.w.on("pinned"), "the answers to %s come out of order", c.p.name)
		c.heard = order
		for i, a := range answers {
			n.answered(c, list[i], a)
		}
	}
	x.m.Offer(p)
}

// settle gives the answers of a writer.
func (n *node) settle(x *simWriter) {
	for _, p := range x.m.Answered() {
		p.Done(p.Answers)
	}
}

func (n *node) answered(c *conn, m *copyOf, a store.Appended) {
	w := n.w
	w.trace("%s: %v is %v %v", n.name, m, a.Outcome, a.Err)
	switch a.Outcome {
	case store.Stored:
		d := w.log.docs[m.msg.ID]
		if d == nil {
			d = w.log.taken[m.msg.ID]
		}
		must(d != nil && d.at < w.log.majority, "%v is acknowledged, and no majority has it", m)
		must(schema.Mark{Lane: d.lane.Number(), N: d.n} == a.Mark && m.msg.Mark == a.Mark, "%v is acknowledged at %v", d, a.Mark)
		m.stored = true
		w.acked[m.msg.ID] = true
		if w.calm || w.chance(0.93) {
			c.p.settled(c, m)
		} else {
			n.close(c, false) // the acknowledgement is lost with its connection
		}
	case store.Refused:
		m.refused = true
		d := w.log.docs[m.msg.ID]
		must(d == nil || d.c != m, "%v is refused and stands there", d)
		ours := c.p.session.epoch == c.epoch && c.p.session.owner == n.id
		must(!errors.Is(a.Err, store.ErrSessionLost) || !ours, "%v is refused, and its session is this node's", m)
		if errors.Is(a.Err, errBad) && !c.pub.Strict || errors.Is(a.Err, store.ErrTooLarge) {
			c.p.settled(c, m)
			return
		}
		n.close(c, true)
	default:
		c.doubt = true
		n.close(c, true)
	}
}

// close ends a connection. fail: what it has waiting must not be stored any more.
func (n *node) close(c *conn, fail bool) {
	if c.closed {
		return
	}
	n.w.trace("%s closes %s/e%d", n.name, c.p.name, c.epoch)
	c.closed, c.inbox = true, nil
	n.conns = slices.DeleteFunc(n.conns, func(x *conn) bool { return x == c })
	n.leaving = append(n.leaving, c)
	if c.p.conn == c {
		c.p.conn = nil
	}
	if fail || n.w.chance(0.3) {
		c.pub.Fail()
	} else if n.w.chance(0.3) {
		c.ctx.err = errors.New("closed")
	}
}

// hear looks at the control events: late, or never.
func (n *node) hear() bool {
	did := false
	for _, c := range slices.Clone(n.conns) {
		if c.lost || c.p.session.epoch > c.epoch {
			n.close(c, c.lost || n.w.chance(0.5))
			did = true
		}
	}
	return did
}

// release: nothing of the session is waiting or in doubt.
func (n *node) release() bool {
	did := false
	n.leaving = slices.DeleteFunc(n.leaving, func(c *conn) bool {
		if c.lost {
			return true // the store takes no write of it any more
		}
		if n.w.on("release-appends") && (c.waiting > 0 || c.doubt) {
			return false
		}
		n.w.trace("%s releases %s/e%d", n.name, c.p.name, c.epoch)
		c.p.session.release(c.epoch)
		did = true
		return true
	})
	return did
}

// pulse is the heartbeat.
func (n *node) pulse() bool {
	if n.w.step-n.beatAt < 10 && !n.w.lives[n.id].dead {
		return false
	}
	n.beat()
	return false
}

// beat renews the lease; a node that was declared dead goes on as another one.
func (n *node) beat() {
	n.beatAt = n.w.step
	if !n.w.lives[n.id].dead {
		return
	}
	n.id = n.w.register()
	n.suspect++
	n.w.trace("%s is reborn", n.name)
	for _, c := range n.conns {
		c.lost = true // the broker hears of it
	}
	for _, c := range n.leaving {
		c.lost = true
	}
}

// end stops a node in order.
func (n *node) end() bool {
	if !n.closing {
		return false
	}
	for _, c := range slices.Clone(n.conns) {
		n.close(c, false)
		return true
	}
	for _, x := range n.writers {
		if !x.done {
			return false
		}
	}
	if len(n.claims) > 0 || len(n.leaving) > 0 && n.w.chance(0.5) {
		return false
	}
	n.w.trace("node %s has ended", n.name)
	n.alive = false
	n.w.lives[n.id].dead = true
	return true
}

// work is the keeper's: it finishes dead nodes.
func (n *node) work() bool {
	w := n.w
	if !n.keeps {
		return false
	}
	if w.keeper != n && w.chance(0.5) {
		n.keeps = false // it has heard of it
		return true
	}
	if n.keeper != nil {
		did, done := n.keeper.act()
		if done {
			n.keeper = nil
		}
		return did
	}
	if len(n.ends) > 0 {
		r := n.ends[0]
		n.ends = n.ends[1:]
		n.keeper = n.newStop(&sender{node: n, name: "keep" + n.w.newID().String()}, r.id, End)
		return true
	}
	if !n.finish.IsZero() {
		w.lives[n.finish].finished = true
		n.finish = schema.ID{}
	}
	for _, id := range w.births {
		if l := w.lives[id]; !l.dead || l.finished || id == n.id {
			continue
		}
		for _, p := range w.pubs {
			if s := &p.session; s.owner == id {
				c := newClaim(n, p)
				c.finishes = true
				n.claims = append(n.claims, c)
				return true
			}
		}
		if slices.ContainsFunc(n.claims, func(c *claim) bool { return c.finishes }) {
			return false
		}
		n.finish = id
		for _, r := range w.log.seen(w.log.majority) {
			if r.node == id && !r.retiredAt(w.log.majority) {
				n.ends = append(n.ends, r)
			}
		}
		return true
	}
	return false
}

// declare marks a node as dead: its lease is over by the server's clock.
func (w *world) declare(n *node) {
	w.trace("%s is declared dead", n.name)
	w.lives[n.id].dead = true
}

type life struct{ dead, finished bool }

func (w *world) register() schema.ID {
	id := w.newID()
	w.lives[id] = &life{}
	w.births = append(w.births, id)
	return id
}

// session is what the store keeps of a publisher.
type session struct {
	epoch uint64
	owner schema.ID
	past  map[uint64]schema.ID // not released
}

func (s *session) release(epoch uint64) {
	delete(s.past, epoch)
	if s.epoch == epoch {
		s.owner = schema.ID{}
	}
}

// claim is a claim on its way (DESIGN.md section 6), as far as lanes are concerned.
type claim struct {
	n        *node
	p        *publisher
	epoch    uint64
	before   map[uint64]schema.ID
	state    string
	finishes bool // by the keeper, for a node that is gone
	at       *sender
	lanes    []*row
	stop     *simStop
	need     int
}

func newClaim(n *node, p *publisher) *claim {
	s := &p.session
	c := &claim{n: n, p: p, before: maps.Clone(s.past), state: "wait"}
	if !n.w.on("past") {
		maps.DeleteFunc(c.before, func(e uint64, _ schema.ID) bool { return e != s.epoch })
	}
	s.epoch++
	c.epoch, s.owner = s.epoch, n.id
	s.past[c.epoch] = n.id
	c.at = &sender{node: n, name: "claim" + n.w.newID().String()}
	n.w.trace("%s claims %s/e%d, before it %d", n.name, p.name, c.epoch, len(c.before))
	return c
}

func (c *claim) act() bool {
	w, s := c.n.w, &c.p.session
	switch c.state {
	case "wait":
		maps.DeleteFunc(c.before, func(e uint64, _ schema.ID) bool { _, ok := s.past[e]; return !ok })
		lives := false
		for _, id := range c.before {
			lives = lives || !w.lives[id].dead
		}
		if lives && !c.finishes && (w.calm && w.idle < 3 || !w.calm && !w.chance(w.wait)) {
			return false
		}
		c.state, c.need = "fresh", len(w.log.oplog)
	case "fresh": // a majority write that begins now
		if w.log.majority < c.need {
			return false
		}
		if len(c.before) > 0 && w.on("stopper-claim") {
			for _, r := range w.log.seen(w.log.majority) {
				if slices.Contains(slices.Collect(maps.Values(c.before)), r.node) && !r.retiredAt(w.log.majority) {
					c.lanes = append(c.lanes, r)
				}
			}
		}
		c.state = "stop"
	case "stop":
		if c.stop != nil {
			did, done := c.stop.act()
			if done {
				c.stop = nil
			}
			return did
		}
		if len(c.lanes) > 0 {
			c.stop = c.n.newStop(c.at, c.lanes[0].id, Stopper)
			c.lanes = c.lanes[1:]
			return true
		}
		c.end()
	}
	return true
}

func (c *claim) end() {
	n, s := c.n, &c.p.session
	n.claims = slices.DeleteFunc(n.claims, func(x *claim) bool { return x == c })
	if s.epoch != c.epoch { // gives up: it never took a PUBLISH
		s.release(c.epoch)
		return
	}
	maps.DeleteFunc(s.past, func(e uint64, _ schema.ID) bool { return e < c.epoch })
	switch {
	case c.finishes:
		s.release(c.epoch)
	case c.p.claim == c && !n.closing: // perhaps under a name that is dead by now
		c.p.connack(n, c)
	case c.p.claim == c:
		c.p.claim = nil
		s.release(c.epoch)
	}
}
