package lane

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"time"

	"rewindmq/schema"
	"rewindmq/store"
)

// The simulation: nodes with their lane writers, a keeper or two, tails, publishers
// that move between nodes and lanes, other clients that insert, and a model of the
// replica set, in one goroutine. A seeded scheduler picks every next step. Writes
// land, land late, land in part, never, or lose their answer; the primary steps down
// and takes back what no majority has; nodes crash, pause, wake, are declared dead
// and end in order; streams lag, tell things again, lose them, hang and are cut.
// Then faults stop, all must come to rest, and what was acknowledged must have been
// yielded by every tail.
//
// The machines are the real ones. Claims, the keeper's walk and the broker's side of
// a connection are played here, as DESIGN.md sections 6 and 7 describe them.
//
// Nothing in a run depends on the order of a map: the same seed gives the same
// trace.

const (
	simSteps = 300
	simTick  = 50 * time.Millisecond
	simLease = 60 // steps
)

// without says which rules are off: of the machines, and of what is played here.
type without struct {
	rules rule
	names []string
	kind  func(*world) // makes the runs rougher where the rule is needed
}

type fault string

func must(ok bool, format string, args ...any) {
	if !ok {
		panic(fault(fmt.Sprintf(format, args...)))
	}
}

type world struct {
	rng    *rand.Rand
	off    without
	strict bool // no rule is off
	calm   bool // faults have stopped
	step   int
	idle   int
	now    time.Time
	hold   time.Duration
	late   float64
	stale  float64
	wild   float64
	kind   int // 1: lapses and keepers; 2: slow tails; 3: restless clients
	slow   bool
	cut    float64 // how often a client leaves
	lossy  float64 // how often a stream is lost
	lanes  float64 // how often a stream is not there yet
	wait   float64 // how often a claim waits no longer
	// retention is after how many steps documents are taken; 0: never.
	retention int
	rounds    bool // somebody makes a round before a document is taken

	log      *replicas
	nodes    []*node
	keeper   *node
	lives    map[schema.ID]*life
	births   []schema.ID
	pubs     []*publisher
	hosts    []*host
	copies   map[*schema.Message]*copyOf
	cameWith map[schema.ID]ID // `lane` of a guest as it was inserted
	acked    map[schema.ID]bool
	ids      uint64

	tracing bool
	lines   []string
}

func newWorld(seed uint64, off without) *world {
	w := &world{
		rng: rand.New(rand.NewPCG(seed, 0x1a9e)), off: off, now: time.Unix(1_000_000, 0),
		lives: map[schema.ID]*life{}, copies: map[*schema.Message]*copyOf{}, cameWith: map[schema.ID]ID{}, acked: map[schema.ID]bool{},
		strict: off.rules == 0 && len(off.names) == 0,
	}
	w.log = newReplicas(w)
	w.late = pick(w, 0.05, 0.15, 0.3, 0.5)
	w.stale = pick(w, 0, 0, 0.05, 0.3)
	w.wild = pick(w, 0.005, 0.01, 0.02)
	w.hold = pick(w, 500*time.Millisecond, 2*time.Second, 6*time.Second)
	w.kind = w.rng.IntN(4)
	w.cut = pick(w, 0.01, 0.03)
	w.lossy = pick(w, 0.03, 0.3)
	w.lanes = pick(w, 0.3, 0.3, 1)
	w.wait = 0.4
	w.retention = pick(w, 0, 0, 60, 100)
	w.rounds = w.chance(0.7)
	if off.kind != nil {
		off.kind(w)
	}
	w.slow = w.kind == 2
	for range pick(w, 2, 2, 3) {
		w.startNode()
	}
	w.keeper = w.nodes[0]
	w.keeper.keeps = true
	for _, name := range []string{"p", "q"}[:pick(w, 1, 2)] {
		w.pubs = append(w.pubs, &publisher{w: w, name: name, at: len(w.pubs), session: session{past: map[uint64]schema.ID{}}})
	}
	if w.chance(0.7) {
		w.hosts = []*host{{w: w, name: "F"}, {w: w, name: "G", marks: true}}
	}
	return w
}

// on tells whether a rule of what is played here holds.
func (w *world) on(name string) bool { return !slices.Contains(w.off.names, name) }

func (w *world) chance(p float64) bool { return w.rng.Float64() < p }

func pick[T any](w *world, from ...T) T { return from[w.rng.IntN(len(from))] }

func (w *world) trace(format string, args ...any) {
	if w.tracing {
		w.lines = append(w.lines, fmt.Sprintf("%5d ", w.step)+fmt.Sprintf(format, args...))
	}
}

func (w *world) newID() schema.ID {
	w.ids++
	var id schema.ID
	binary.BigEndian.PutUint64(id[4:], w.ids)
	return id
}

// settleFresh: at rest nothing is taken any more, for time goes faster than the machines.
// What was stale stays so.
func settleFresh(now time.Time, of *time.Duration, at *time.Time) {
	if *of == 0 {
		return
	}
	stale := since(now, *at) > *of
	*of, *at = time.Hour, now
	if stale {
		*at = time.Time{}
	}
}

// fresh is what the machines are told of it.
func (w *world) fresh() time.Duration {
	if w.calm {
		return 0
	}
	return time.Duration(w.retention/4) * simTick
}

// made is when a document says that it was made: not before half of the retention.
func (w *world) made() int {
	if w.retention == 0 {
		return w.step
	}
	return w.step - w.rng.IntN(w.retention/2)
}

func (w *world) newKey() uint32 { return w.rng.Uint32() }

func (w *world) stopper(id schema.ID, kind string) *copyOf {
	return &copyOf{msg: &schema.Message{ID: id}, stop: kind}
}

func (w *world) pubBy(name string) *publisher {
	for _, p := range w.pubs {
		if p.name == name {
			return p
		}
	}
	panic("simulation: publisher " + name)
}

func (w *world) live() []*node {
	var out []*node
	for _, n := range w.nodes {
		if n.alive && !n.paused {
			out = append(out, n)
		}
	}
	return out
}

// serving gives the nodes that take connections.
func (w *world) serving() []*node {
	return slices.DeleteFunc(w.live(), func(n *node) bool {
		return n.closing || slices.ContainsFunc(n.writers, func(x *simWriter) bool { return !x.ever })
	})
}

func (w *world) run() {
	if w.chance(0.8) { // most runs begin with open lanes
		w.calm = true
		for range 40 {
			w.onLog()
			w.log.replicate(9)
			for _, n := range w.nodes {
				for _, x := range n.writers {
					x.act()
				}
				for _, t := range n.tails {
					t.act()
				}
			}
		}
		w.calm = false
	}
	for w.step < simSteps {
		w.tick()
		for did, tries := 0, 0; did < 3 && tries < 12; tries++ { // the next actors that have something to do
			if w.pickStep(w.rng.Float64()) {
				did++
			}
		}
	}
	w.settle()
	w.check()
}

func (w *world) tick() {
	w.step++
	w.now = w.now.Add(simTick)
	if w.calm {
		w.now = w.now.Add(9 * simTick)
	}
}

// settle lets all come to rest.
func (w *world) settle() {
	w.calm = true
	w.trace("faults stop")
	for _, n := range w.nodes {
		settleFresh(w.now, &n.adopter.m.Fresh, &n.adopter.m.fresh)
		for _, x := range n.writers {
			settleFresh(w.now, &x.m.o.Fresh, &x.m.fresh)
		}
	}
	for _, n := range w.nodes {
		if n.paused {
			w.wake(n)
		}
	}
	if len(w.serving()) == 0 {
		w.startNode()
	}
	quiet := 0
	for range 1000 {
		w.tick()
		if !w.keeper.alive || w.keeper.closing || !w.keeper.keeps {
			w.changeKeeper()
		}
		did := w.onLog()
		if w.log.majority < len(w.log.oplog) {
			w.log.replicate(len(w.log.oplog))
			did = true
		}
		for _, n := range w.live() {
			n.keeps = n.keeps && n == w.keeper
			did = n.act() || did
			for _, s := range n.senders() {
				if s.pending != nil && !slices.Contains(w.log.commands, s.pending) {
					s.giveUp()
					did = true
				}
			}
		}
		for _, p := range w.pubs {
			did = p.act() || did
		}
		quiet++
		if did {
			quiet = 0
		}
		w.idle = quiet
		if quiet > int(7*time.Second/simTick/10)+6 { // longer than a tail bears silence
			return
		}
	}
	must(false, "it does not come to rest")
}

func (n *node) senders() []*sender {
	list := []*sender{n.adopter.sender, n.tops}
	for _, x := range n.writers {
		list = append(list, x.sender)
	}
	if n.adopter.stop != nil {
		list = append(list, n.adopter.stop.sender)
	}
	if n.keeper != nil {
		list = append(list, n.keeper.sender)
	}
	for _, c := range n.claims {
		list = append(list, c.at)
	}
	return list
}

func (w *world) pickStep(x float64) bool {
	switch {
	case x < 0.28:
		return w.onLog()
	case x < 0.37:
		w.log.replicate(1 + w.rng.IntN(6))
	case x < 0.82:
		live := w.live()
		return len(live) > 0 && live[w.rng.IntN(len(live))].act()
	case x < 0.95:
		return w.pubs[w.rng.IntN(len(w.pubs))].act()
	case x < 0.96:
		return len(w.hosts) > 0 && w.hosts[w.rng.IntN(len(w.hosts))].act()
	case x < 0.96+w.wild:
		w.hurt()
	case x > 0.99:
		return w.retention > 0 && w.log.take()
	default:
		return false
	}
	return true
}

// onLog lets a command go on; at rest each of them.
func (w *world) onLog() bool {
	list := slices.Clone(w.log.commands)
	if !w.calm {
		w.rng.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	}
	did := false
	for _, c := range list {
		if w.log.run(c) {
			did = true
			if !w.calm {
				return true
			}
		}
	}
	return did
}

func (w *world) changeKeeper() {
	if list := w.serving(); len(list) > 0 {
		w.keeper = list[w.rng.IntN(len(list))]
		w.keeper.keeps = true
		w.trace("keeper is %s", w.keeper.name)
	}
}

func (w *world) wake(n *node) {
	n.paused = false
	n.woke = n.woke || w.step-n.slept > int(time.Second/simTick)
	w.trace("%s wakes", n.name)
}

func (w *world) hurt() {
	var alive []*node
	for _, n := range w.nodes {
		if n.alive {
			alive = append(alive, n)
		}
	}
	if len(alive) == 0 {
		w.startNode()
		return
	}
	n := alive[w.rng.IntN(len(alive))]
	x := w.rng.Float64()
	if w.kind == 1 && w.chance(0.5) {
		x = pick(w, 0.55, 0.7, 0.85, 0.85, 0.88)
	}
	if w.kind != 1 && x > 0.8 && x < 0.86 && w.chance(0.7) {
		x = 0.45
	}
	switch {
	case x < 0.40:
		for _, n := range w.live() {
			for _, s := range n.senders() {
				if s.pending != nil && w.chance(0.5) {
					s.giveUp()
					return
				}
			}
		}
	case x < 0.50:
		w.log.stepDown()
	case x < 0.60:
		n.paused, n.slept = true, w.step
		w.trace("%s is paused", n.name)
	case x < 0.80:
		for _, n := range alive {
			if n.paused {
				w.wake(n)
				return
			}
		}
	case x < 0.86:
		w.declare(n)
	case x < 0.90:
		w.changeKeeper()
	case x < 0.94:
		n.alive = false
		w.lives[n.id].dead = true // its lease runs out
		w.trace("%s crashes", n.name)
	case x < 0.96:
		n.closing = n.closing || len(alive) > 1
	case len(alive) < 3 && len(w.nodes) < 6:
		w.startNode()
	}
}

// publisher is a client that sends again, on whatever node, until it has an answer.
type publisher struct {
	w       *world
	name    string
	at      int
	seq     int
	out     []outMessage
	session session
	conn    *conn
	claim   *claim
	came    map[int]bool // what a majority had, by seq
	top     int
}

type outMessage struct {
	seq int
	id  schema.ID
	qos int
	bad bool
}

func (p *publisher) act() bool {
	w := p.w
	if c := p.conn; c != nil && (!p.host().alive || !w.calm && w.chance(w.cut)) {
		w.trace("%s is cut", p.name)
		p.conn = nil
		if h := p.host(); h != nil && h.alive && !h.paused {
			h.close(c, w.chance(0.3))
		}
		return true
	}
	if p.conn == nil {
		return p.connect()
	}
	if len(p.out) < 3 && !w.calm {
		p.seq++
		p.out = append(p.out, outMessage{seq: p.seq, qos: pick(w, 1, 2), bad: w.chance(0.03)})
		if w.retention > 0 { // an id that was taken is not known any more
			p.out[len(p.out)-1].qos = 1
		}
		p.send(&p.out[len(p.out)-1])
		return true
	}
	return false
}

// host gives the node of the connection, as of the one before it was cut.
func (p *publisher) host() *node {
	for _, n := range p.w.nodes {
		if p.conn != nil && slices.Contains(n.conns, p.conn) {
			return n
		}
	}
	return &node{}
}

func (p *publisher) connect() bool {
	w := p.w
	if c := p.claim; c != nil && slices.Contains(c.n.claims, c) && c.n.alive && !c.n.paused {
		if w.calm || !w.chance(0.005) && (w.kind != 3 || !w.chance(0.1)) {
			return false
		}
	}
	list := w.serving()
	if len(list) == 0 || w.calm && len(p.out) == 0 {
		return false
	}
	n := list[w.rng.IntN(len(list))]
	p.claim = newClaim(n, p)
	n.claims = append(n.claims, p.claim)
	return true
}

func (p *publisher) connack(n *node, c *claim) {
	w := p.w
	for _, old := range slices.Clone(n.conns) {
		if old.p == p {
			n.close(old, w.chance(0.5))
		}
	}
	p.claim = nil
	p.conn = &conn{
		p: p, epoch: c.epoch, ctx: &simContext{},
		pub: &store.Publisher{Owner: schema.Owner{ClientID: p.name, SID: 1, Epoch: c.epoch}, Strict: w.chance(0.5)},
	}
	n.conns = append(n.conns, p.conn)
	if w.chance(0.3) {
		p.out = nil // a client that begins anew
	}
	w.trace("%s is connected to %s/e%d, sends %d again", p.name, n.name, c.epoch, len(p.out))
	for i := range p.out {
		p.send(&p.out[i])
	}
}

func (p *publisher) send(m *outMessage) {
	if m.id.IsZero() || m.qos == 1 {
		m.id = p.w.newID()
	}
	msg := &schema.Message{ID: m.id, Topic: "t", ClientID: p.name, QoS: uint8(m.qos)}
	c := &copyOf{msg: msg, pub: p, seq: m.seq, epoch: p.conn.epoch, bad: m.bad}
	p.w.copies[msg] = c
	p.conn.inbox = append(p.conn.inbox, c)
}

// settled: the publisher has an answer.
func (p *publisher) settled(c *conn, m *copyOf) {
	if p.conn == c {
		p.out = slices.DeleteFunc(p.out, func(o outMessage) bool { return o.id == m.msg.ID })
	}
}

// host inserts with a client of its own (P7).
type host struct {
	w     *world
	name  string
	marks bool // its documents carry marks that they should not
	seq   int
}

func (h *host) act() bool {
	w := h.w
	if w.calm || w.chance(0.6) {
		return false
	}
	if w.chance(0.15) {
		for _, d := range w.log.guests {
			if d.c.from == h.name && d.lane == w.cameWith[d.c.msg.ID] {
				w.trace("%v is deleted", d)
				w.log.deleteGuest(d)
				return true
			}
		}
		return false
	}
	var list []*copyOf
	id, n := ID(0), uint64(0)
	if h.marks { // a lane that is not, or the number of one with another key
		id, n = NewID(schema.Lane(1+w.rng.IntN(6)), w.newKey()), uint64(1+w.rng.IntN(30))
	}
	k := 1
	if !h.marks {
		k = pick(w, 1, 1, 3)
	}
	for range k {
		h.seq++
		c := &copyOf{msg: &schema.Message{ID: w.newID()}, from: h.name, seq: h.seq}
		w.cameWith[c.msg.ID] = id
		list = append(list, c)
	}
	w.trace("%s inserts %v, lane %d/%d", h.name, list, id.Number(), n)
	w.log.insertGuests(list, id, n)
	return true
}

// simulate runs a seed; text: what failed.
func simulate(seed uint64, off without, tracing bool) (text string, w *world) {
	w = newWorld(seed, off)
	w.tracing = tracing
	defer func() {
		switch e := recover().(type) {
		case nil:
		case fault:
			text = string(e)
		default:
			text = fmt.Sprintf("panic: %v\n%s", e, debug.Stack())
		}
	}()
	w.run()
	return "", w
}
