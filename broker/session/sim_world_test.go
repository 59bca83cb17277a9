package session

import (
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"time"

	"rewindmq/schema"
	"rewindmq/store"
	"rewindmq/store/storetest"
)

// The simulation: nodes, sessions, a store and clients in one goroutine. A seeded
// scheduler picks every next step. Writes land, land late, land in part, never,
// or lose their answer; nodes crash, pause and lapse; hubs lag; clients cut, move,
// return with other limits, start clean, acknowledge late, in any order or never.
// Each run ends twice: faults stop, and all must come to rest (P2, wills,
// retained runs, QoS 2 publishes are checked); then SIGKILL of all nodes, and
// nothing that was settled may be sent again.
//
// The store is storetest.Model, the sessions are the real ones. What lies between
// them (lanes with their writers, the hub's tail, the reader, the carrying out of
// actions) is played here, as DESIGN.md sections 5 to 7 describe it.
//
// Nothing in a run depends on the order of a map: the same seed gives the same
// trace.

// Small bounds: the faults lie at the bounds.
const (
	simWindow  = 3
	simQueue   = 3
	simBatch   = 3
	simReceive = 4 // the broker's Receive Maximum
	simPause   = 1 // a longer one makes a node look before it appends
	simLease   = int(storetest.Lease / time.Second)
	simWait    = 2 * time.Second
)

var (
	simTopics  = []string{"a", "b", "c"}
	simFilters = []string{"a", "b", "#"}
	simStart   = time.Unix(1_000_000, 0).UTC()
)

// adapterRule is a rule of what is played here: it belongs to the store's side of
// the contract, outside the Model.
type adapterRule uint16

const (
	ruleTxn         adapterRule = 1 << iota // an attempt that was given up and lands late is refused
	ruleLook                                // after a pause or a doubt: look who was claimed elsewhere before a batch
	ruleWillAlike                           // a will's message is made of what identifies it: twice is once
	ruleBehindFails                         // what is behind a message that failed fails too
	ruleRecordStops                         // behind a record of a session that failed, none of its later ones is made
	ruleBeginAtHead                         // QoS 0 to a session that was not released begins at Head
	ruleWriteStops                          // behind a write of a session that failed, none of its later ones is made
)

// broken says which rules are off.
type broken struct {
	core    rule
	adapter adapterRule
	model   []string
	weather func(*weather) // makes the runs rougher where the rule is needed; nil: as they come
}

// fault is what a checker panics with.
type fault string

func must(ok bool, format string, args ...any) {
	if !ok {
		panic(fault(fmt.Sprintf(format, args...)))
	}
}

// pub is a message as its publisher knows it, whatever IDs it gets in the log.
type pub struct {
	schema.Properties // its own: a message of the log leads back to it
	name              string
	from              string // device
	k                 int    // counts the device's messages
	topic             string
	qos               uint8
	retain, clear     bool
	big, poison       bool // too large for some clients; for the store
	expiry            time.Time
	sent              int    // transmissions
	sid               uint64 // of the session in which it was sent first
	one               bool   // always in that one
	turned            bool   // refused once for want of space: it is published again, in another place
	inLog             int    // how often it stands in the log
	refused           bool
}

func (p *pub) message() *schema.Message {
	m := &schema.Message{
		Topic: p.topic, QoS: p.qos, Retain: p.retain, ClientID: p.from, Expiry: p.expiry, Properties: &p.Properties,
	}
	if !p.clear {
		m.Payload = []byte(p.name)
	}
	return m
}

type world struct {
	rng    *rand.Rand
	m      *storetest.Model
	off    broken
	faults bool
	x      weather
	tick   int
	idle   int // ticks in which nothing could be done, at rest
	steps  int
	ts     uint64 // of the newest message

	nodes        []*node
	devices      []*device
	clients      []string
	net          []*attempt
	pubs         map[string]*pub // by name
	ledgers      map[ledgerKey]*ledger
	order        []*ledger // those of ledgers, in the order of their making
	wills        []*conn
	claims       []claimNote
	appended     map[string]uint64          // epoch of the last append of each client
	decided      map[string]uint64          // epoch under which the wills of a client were last decided
	late         int                        // attempts that were refused by their number
	firstTS      map[string]uint64          // of each publish, by name
	lastRetained map[string]*schema.Message // by topic
	strict       bool                       // no rule is off

	tracing bool
	limit   int // of steps with faults; 0: the seed's own
	lines   []string
	acts    []act
	actors  []actor
}

// claimNote is one claim that raised an epoch.
type claimNote struct {
	client string
	tick   int
	fresh  bool
	c      *conn
}

type act struct {
	name string
	do   func() bool // false: there was nothing to do
}

type actor interface{ actions(w *world) }

func newWorld(seed uint64, off broken) *world {
	w := &world{
		rng: rand.New(rand.NewPCG(seed, 0x5eed)), m: storetest.NewModel(simStart), off: off, faults: true,
		pubs: map[string]*pub{}, ledgers: map[ledgerKey]*ledger{}, appended: map[string]uint64{}, decided: map[string]uint64{}, firstTS: map[string]uint64{}, lastRetained: map[string]*schema.Message{},
		strict: off.core == 0 && off.adapter == 0 && len(off.model) == 0,
	}
	w.m.Break(off.model...)
	w.advance()
	w.x = newWeather(w)
	if rough := roughs[w.rng.IntN(len(roughs))]; off.weather == nil && w.chance(0.3) {
		rough(&w.x)
	} else if off.weather != nil {
		off.weather(&w.x)
	}
	w.clients = []string{"p", "q", "r"}[:pick(w, 2, 2, 3)]
	for _, c := range w.clients {
		w.devices = append(w.devices, newDevice(w, c, c))
	}
	if w.chance(0.15) { // two devices with one client id
		d := newDevice(w, "q", "q2")
		w.devices[1].solo, d.solo = false, false
		w.devices = append(w.devices, d)
	}
	for range pick(w, 1, 2, 2, 3) {
		w.startNode()
	}
	return w
}

func (w *world) on(r adapterRule) bool { return w.off.adapter&r == 0 }

func (w *world) chance(p float64) bool { return w.rng.Float64() < p }

func pick[T any](w *world, from ...T) T { return from[w.rng.IntN(len(from))] }

func (w *world) index(client string) int {
	for i, c := range w.clients {
		if c == client {
			return i
		}
	}
	panic("simulation: client " + client)
}

func (w *world) trace(format string, args ...any) {
	if w.tracing {
		w.lines = append(w.lines, fmt.Sprintf("%5d t%-4d ", w.steps, w.tick)+fmt.Sprintf(format, args...))
	}
}

func (w *world) pubOf(m *schema.Message) *pub {
	p := w.pubs[m.Properties.ContentType]
	if p == nil {
		panic("simulation: no publish " + m.Properties.ContentType)
	}
	return p
}

func (w *world) newPub(p *pub) *pub {
	p.ContentType = p.name
	w.pubs[p.name] = p
	return p
}

// advance moves all clocks by a second; living nodes renew their lease.
func (w *world) advance() {
	w.tick++
	w.m.SetNow(simStart.Add(time.Duration(w.tick) * time.Second))
	for _, n := range w.nodes {
		n.keep = true
		if n.alive && !n.paused {
			w.m.Beat(n.id)
		}
	}
}

// land is Model.Land, and notes what came into the log.
func (w *world) land(lane schema.Lane, gen uint32, m *schema.Message, o *schema.Owner) (store.Appended, bool) {
	copied := *m
	mark, ok := w.m.Land(lane, gen, &copied)
	if !ok {
		return store.Appended{}, false
	}
	if !copied.Mark.IsZero() { // else its ID was known
		w.ts = copied.TS
		p := w.pubOf(m)
		p.inLog++
		if p.inLog == 1 {
			w.firstTS[p.name] = copied.TS
		}
		if m.Retain {
			w.lastRetained[m.Topic] = &copied
		}
		must(!p.refused, "P1: %s was refused, and is stored", p.name)
		if o != nil {
			must(o.Epoch >= w.appended[o.ClientID], "P4: %s of epoch %d lands after epoch %d of %s", p.name, o.Epoch, w.appended[o.ClientID], o.ClientID)
			w.appended[o.ClientID] = o.Epoch
		}
		w.trace("    stored %s at %v", p.name, mark)
	}
	return store.Appended{Outcome: store.Stored, Mark: mark}, true
}

// record is Model.Record, and the ledger of records: each message once.
func (w *world) record(d *schema.Delivery) *schema.Delivery {
	old := w.m.Record(d)
	if old != nil {
		return old
	}
	l := w.ledger(d.ClientID, d.SID)
	if !d.MessageID.IsZero() && d.Retained.IsZero() {
		seq, twice := l.recorded[d.MessageID]
		must(!twice, "P3: message %v recorded twice for %s: seq %d and %d", d.Mark, d.ClientID, seq, d.Seq)
		l.recorded[d.MessageID] = d.Seq
	}
	l.records[d.Seq] = *d
	if d.Dropped {
		l.dropped[d.MessageID] = true
	}
	return nil
}

// ---- the network to the store

// attempt is one sending of a write.
type attempt struct {
	wr   *writer
	op   *op
	no   int
	slow bool
}

// actions lets attempts meet the store.
func (w *world) actions(*world) {
	for i, a := range w.net {
		if !a.slow || !w.faults || w.chance(w.x.crawl) {
			w.can("", func() bool { w.landAttempt(i); return true })
		}
	}
}

func (w *world) landAttempt(i int) {
	a := w.net[i]
	w.net = append(w.net[:i], w.net[i+1:]...)
	answered, part, reached := true, false, true
	if w.faults {
		switch x := w.rng.Float64(); {
		case x < w.x.answerLost:
			answered = false
		case x < w.x.answerLost+w.x.cutShort: // done in part, then given up
			answered, part = false, true
		case x < w.x.answerLost+w.x.cutShort+w.x.neverLands:
			answered, reached = false, false
		}
	}
	a.wr.land(a, reached, part, answered)
}

// ---- the scheduler

func (w *world) can(name string, do func() bool) { w.acts = append(w.acts, act{name, do}) }

// step does the next step that is possible; false: there is none.
func (w *world) step() bool {
	w.steps++
	w.actors = w.actors[:0]
	for _, n := range w.nodes {
		if n.alive {
			w.actors = append(w.actors, n)
		}
	}
	for _, d := range w.devices {
		w.actors = append(w.actors, d)
	}
	w.actors = append(w.actors, w, w, w)
	w.rng.Shuffle(len(w.actors), func(i, j int) { w.actors[i], w.actors[j] = w.actors[j], w.actors[i] })
	for _, a := range w.actors {
		w.acts = w.acts[:0]
		a.actions(w)
		acts := w.acts
		for len(acts) > 0 {
			i := w.rng.IntN(len(acts))
			if acts[i].do() {
				w.bounds()
				return true
			}
			acts[i] = acts[len(acts)-1]
			acts = acts[:len(acts)-1]
		}
	}
	return false
}

func (w *world) run(steps int) {
	for range steps {
		switch x := w.rng.Float64(); {
		case x < w.x.time:
			w.advance()
		case x < w.x.time+w.x.chaos:
			w.chaos()
		}
		w.step()
	}
}

func (w *world) chaos() {
	var up []*node
	for _, n := range w.nodes {
		if n.alive {
			up = append(up, n)
		}
	}
	n := up[w.rng.IntN(len(up))]
	x := w.rng.Float64() * (w.x.crash + w.x.pause + w.x.wake + w.x.jump + w.x.skew)
	switch c := w.x.crash; {
	case x < c:
		w.crash(n)
	case x < c+w.x.pause:
		if !n.paused {
			w.trace("%s: PAUSE", n.name)
			n.paused, n.asleep = true, w.tick
		}
	case x < c+w.x.pause+w.x.wake:
		if n.paused {
			n.wake()
		}
	case x < c+w.x.pause+w.x.wake+w.x.skew:
		switch w.rng.IntN(3) {
		case 0:
			n.skew = time.Duration(w.rng.IntN(21)-10) * time.Second
		case 1:
			w.forget()
		case 2:
			if !n.paused && !n.draining {
				n.drain()
			}
		}
	default:
		for range pick(w, 1, 3, simLease+1) {
			w.advance()
		}
	}
}

// crash is SIGKILL: what the node held in memory is gone; what it had sent to the
// store may still land.
func (w *world) crash(n *node) {
	w.trace("%s: CRASH", n.name)
	n.die()
	w.ensureNode()
}

func (w *world) ensureNode() {
	up := 0
	for _, n := range w.nodes {
		if n.alive && !n.draining {
			up++
		}
	}
	if up == 0 || w.faults && up < 3 && w.chance(0.7) {
		w.startNode()
	}
}

// forget is the retention of records: what is in flight is in the cursor (S8).
func (w *world) forget() {
	id := pick(w, w.clients...)
	o, _, _ := w.m.Owner(id)
	for _, a := range w.net {
		if a.wr.kind == kindRecord {
			return // nothing that old is still on its way
		}
	}
	_, owner, _ := w.m.Owner(id)
	saved := owner == 0
	for _, n := range w.nodes {
		for _, x := range n.owned {
			if n.alive && x.client == id && x.epoch != o.Epoch {
				return
			}
			saved = saved || n.alive && x.client == id && x.s.Saved() && x.s.writes.len() == 0 && x.s.stage == open
		}
	}
	if !saved {
		return // within that time somebody has saved it: its owner, or the keeper
	}
	if c, ok := w.m.Cursor(id, o.SID); ok {
		w.trace("records of %s up to seq %d are forgotten", id, c.Seq)
		w.m.ForgetRecords(id, o.SID, c.Seq)
	}
}

// storeFails tells whether a read of the store fails.
func (w *world) storeFails() bool { return w.faults && w.chance(w.x.neverLands/4) }

func (w *world) startNode() {
	n := newNode(w)
	w.nodes = append(w.nodes, n)
	w.trace("%s: starts at %v", n.name, n.h)
}

// settle lets everything come to rest, without faults.
func (w *world) settle() {
	w.faults = false
	w.trace("---- faults stop")
	for _, n := range w.nodes {
		if n.alive && n.paused {
			n.wake()
		}
		n.skew = 0
	}
	w.idle = 0
	for range 20_000 {
		if w.step() {
			w.idle = 0
			continue
		}
		if w.idle++; w.idle > 3*simLease {
			return
		}
		w.advance()
	}
	must(false, "does not come to rest")
}

// whole is one run.
func (w *world) whole() {
	steps := w.x.steps
	if w.limit > 0 {
		steps = min(steps, w.limit)
	}
	w.run(steps)
	for _, d := range w.devices {
		if d.name != d.client {
			d.retired = true
			if d.c != nil {
				d.drop()
			}
		}
	}
	w.settle()
	w.atRest()
	before := make([]map[uint64]int, len(w.order))
	for i, l := range w.order {
		before[i] = make(map[uint64]int, len(l.sends))
		for seq, n := range l.sends { // copied: no order
			before[i][seq] = n
		}
	}
	length := w.ts
	w.trace("---- SIGKILL of all")
	for _, n := range w.nodes {
		if n.alive {
			n.die()
		}
	}
	w.startNode()
	w.settle()
	w.atRest()
	for i, l := range w.order {
		for seq := uint64(1); seq <= l.maxSeq; seq++ {
			n := l.sends[seq]
			if n == 0 || l.isRun[seq] || l.place[seq] > length {
				continue
			}
			was := 0
			if i < len(before) {
				was = before[i][seq]
			}
			must(n == was, "P3: seq %d was sent to %s again after a SIGKILL at rest", seq, l.client)
		}
	}
}

// simulate runs one seed and tells what failed, "" for nothing. limit bounds the
// steps with faults; 0: as the seed says.
func simulate(seed uint64, off broken, tracing bool, limit int) (failed string, w *world) {
	defer func() {
		switch r := recover().(type) {
		case nil:
		case fault:
			failed = string(r)
		default:
			failed = fmt.Sprintf("panic: %v\n%s", r, debug.Stack())
		}
		if failed != "" && w != nil {
			w.trace("FAILED: %s", failed)
		}
	}()
	w = newWorld(seed, off)
	w.tracing, w.limit = tracing, limit
	w.whole()
	return "", w
}
