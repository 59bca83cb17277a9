package group

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"rewindmq/broker/session"
	"rewindmq/internal/seeds"
	"rewindmq/schema"
	"rewindmq/store"
	"rewindmq/store/storetest"
)

const (
	simName   = "$share/g/t/#"
	simFilter = "t/#"
)

// world is a broker of one node, its clients and its store, in one goroutine: a
// seeded scheduler does one step of somebody at a time. Between any two the broker
// can be killed. Commits and their answers are steps of their own.
type world struct {
	rng    *rand.Rand
	m      *storetest.Model
	node   storetest.Node
	lanes  []schema.Lane
	faults bool
	off    rule
	steps  int
	can    []choice
	lines  []string // nil: no trace
	traced bool
	x      weather

	tail    *storetest.Tailing
	h       schema.Cursor
	share   *simShare // nil: no member was online
	clients []*device
	left    int // messages to be published
	pubs    map[schema.ID]*pub
	order   []*pub

	incarnation int
	since       *schema.Cursor // of the group that exists
	drops       []session.Drop
}

// weather is what a run is like.
type weather struct {
	clients, publish                      int
	crash, cut, unsubscribe, clean, doubt float64
	block, slow, save, small, expire      float64
	qos                                   []uint8
	subQoS                                []uint8
	windows                               []int
}

type choice struct {
	name string
	do   func()
}

type failure string

// must stops the run.
func must(ok bool, format string, args ...any) {
	if !ok {
		panic(failure(fmt.Sprintf(format, args...)))
	}
}

func pick[T any](w *world, of ...T) T     { return of[w.rng.IntN(len(of))] }
func (w *world) chance(p float64) bool    { return w.rng.Float64() < p }
func (w *world) may(n string, do func())  { w.can = append(w.can, choice{n, do}) }
func (w *world) now() time.Time           { return w.m.Now() }
func (w *world) trace(f string, a ...any) { w.note(func() string { return fmt.Sprintf(f, a...) }) }

func (w *world) note(text func() string) {
	if w.traced {
		w.lines = append(w.lines, fmt.Sprintf("%4d %s", w.steps, text()))
	}
}

func newWorld(seed uint64, off rule, traced bool) *world {
	w := &world{
		rng: rand.New(rand.NewPCG(seed, 11)), m: storetest.NewModel(time.Unix(1_700_000_000, 0)), faults: true, off: off,
		traced: traced, pubs: map[schema.ID]*pub{},
	}
	w.x = weather{
		clients: pick(w, 1, 2, 2, 3, 4), publish: pick(w, 10, 25, 40), crash: pick(w, 0, .003, .01), cut: pick(w, 0, .02, .06),
		unsubscribe: pick(w, 0, 0, .03), clean: pick(w, 0, .3, 1), doubt: pick(w, 0, 0, .05), block: pick(w, 0, .05),
		slow: pick(w, 0, .5, .9), save: pick(w, .02, .3), small: pick(w, 0, 0, .5), expire: pick(w, 0, 0, .2),
		qos: pick(w, []uint8{1}, []uint8{2}, []uint8{1, 2}, []uint8{0, 1, 2}), subQoS: pick(w, []uint8{2}, []uint8{2}, []uint8{1, 2}, []uint8{0, 2}),
		windows: pick(w, []int{1}, []int{1, 3}, []int{4}),
	}
	w.left = w.x.publish
	for i := range w.x.clients {
		w.clients = append(w.clients, &device{
			w: w, id: fmt.Sprintf("c%d", i), window: pick(w, w.x.windows...), qos: pick(w, w.x.subQoS...),
			small: w.chance(w.x.small), wants: true, got: map[uint16]schema.ID{}, last: map[string]int{},
		})
	}
	w.boot()
	return w
}

// boot starts a broker, and finishes the sessions of the one before it.
func (w *world) boot() {
	w.node = w.m.StartNode()
	w.lanes = []schema.Lane{w.m.OpenLane(w.node), w.m.OpenLane(w.node)}
	for _, id := range w.m.Orphans() {
		c := storetest.NewFinish(w.node, id, w.m.Head(), w.m.NewID())
		got := w.drive(c)
		if got.Err == nil {
			_ = w.m.Write(store.SaveCursor{Owner: got.Owner, Cursor: got.Cursor})
			_ = w.m.Write(store.Release{Owner: got.Owner})
			w.look()
		}
	}
	w.h = w.m.Head()
	w.tail = w.m.Tail(w.h)
}

func (w *world) drive(c *storetest.Claim) store.Claimed {
	c.Hurry()
	var a storetest.Answer
	for step, more := c.Next(a); more; step, more = c.Next(a) {
		a = step.Do(w.m)
	}
	w.look()
	return c.Claimed()
}

// crash is SIGKILL: of the broker nothing is left but what the store has.
func (w *world) crash() {
	w.trace("SIGKILL")
	w.m.Kill(w.node)
	for _, k := range w.m.LanesOf(w.node) {
		w.m.RetireLane(k)
	}
	w.share = nil
	for _, d := range w.clients {
		d.drop()
	}
	w.boot()
}

// run does steps until nobody has anything to do, or limit is reached.
func (w *world) run(limit int) {
	for range limit {
		w.can = w.can[:0]
		w.actions()
		if len(w.can) == 0 {
			return
		}
		c := w.can[w.rng.IntN(len(w.can))]
		w.steps++
		w.trace("%s", c.name)
		c.do()
		w.look()
		w.m.SetNow(w.m.Now().Add(time.Duration(w.rng.IntN(60)) * time.Millisecond))
		w.m.Beat(w.node)
	}
}

func (w *world) actions() {
	if w.left > 0 && (!w.faults || w.chance(.5)) {
		w.may("publish", w.publish)
	}
	if !w.h.Equal(w.m.Head()) {
		w.may("hub", w.hub)
	}
	for _, d := range w.clients {
		d.actions()
	}
	if w.share != nil {
		w.share.actions()
	}
	if w.faults && w.chance(w.x.crash) {
		w.may("crash", w.crash)
	}
}

// hub offers the next event of the log.
func (w *world) hub() {
	e, ok := w.tail.Next()
	if !ok {
		return
	}
	if e.Message != nil && schema.Match(simFilter, e.Message.Topic) && w.share != nil {
		w.share.offer(e.Message)
	}
	w.h = e.H
}

// simulate runs a seed: first with faults, then quietly until everything that is due
// is delivered. The text says what went wrong.
func simulate(seed uint64, off rule, traced bool) (failed string, w *world) {
	w = newWorld(seed, off, traced)
	defer func() {
		switch p := recover().(type) {
		case nil:
		case failure:
			failed = string(p)
		default:
			panic(p)
		}
	}()
	w.run(1500)
	w.faults = false
	for _, d := range w.clients {
		d.comeBack()
	}
	for range 8 { // with the time going on
		w.run(4000)
		must(len(w.can) == 0, "it does not come to rest: %s", w.can0())
		w.m.SetNow(w.m.Now().Add(refreshEvery))
		if w.share != nil {
			w.share.input(func(g *Group) { g.Tick(w.h) })
		}
		for _, d := range w.clients {
			d.tick()
		}
	}
	w.run(4000)
	w.checkEnd()
	return "", w
}

func (w *world) can0() string {
	var names []string
	for _, c := range w.can {
		names = append(names, c.name)
	}
	return strings.Join(names, ", ")
}

func runs() uint64 {
	n := 4000
	if testing.Short() || raceEnabled {
		n = 400
	}
	return uint64(seeds.Env("REWINDMQ_SIM_SEEDS", n))
}

// search gives the smallest failing seed.
func search(to uint64, off rule) (seed uint64, failed string) {
	seed, failed, _ = seeds.Search(0, to, 2, func(s uint64) string {
		text, _ := simulate(s, off, false)
		return text
	})
	return seed, failed
}

// TestSimulation: REWINDMQ_SIM_SEED=N prints the trace of one seed.
func TestSimulation(t *testing.T) {
	t.Parallel()
	seed, failed := uint64(0), ""
	if one := os.Getenv("REWINDMQ_SIM_SEED"); one != "" {
		n, err := strconv.ParseUint(one, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		seed = n
	} else {
		start := time.Now()
		if seed, failed = search(runs(), 0); failed == "" {
			t.Logf("%d seeds, %v", runs(), time.Since(start).Round(time.Millisecond))
			return
		}
	}
	text, w := simulate(seed, 0, true)
	lines := w.lines
	if len(lines) > 600 {
		lines = lines[len(lines)-600:]
	}
	if failed+text != "" {
		t.Errorf("seed %d: %s\n%s", seed, text, strings.Join(lines, "\n"))
	} else {
		t.Logf("seed %d is clean, %d steps\n%s", seed, w.steps, strings.Join(lines, "\n"))
	}
}

// TestRules: without any one of the rules the checkers notice. seed is one that does;
// when the code has changed it may be another.
func TestRules(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		off  rule
		seed uint64
	}{
		{"after-waits", ruleAfterWaits, 37},
		{"doubt-again", ruleDoubtAgain, 16},
		{"doubt-asks", ruleDoubtAsks, 11576},
		{"join-asks", ruleJoinAsks, 11},
		{"claimed-known", ruleClaimedKnown, 337},
		{"taken-once", ruleTakenOnce, 6},
		{"merge-empty", ruleMergeEmpty, 23},
		{"again-first", ruleAgainFirst, 1885},
		{"passed-saved", rulePassedSaved, 143},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if text, _ := simulate(tt.seed, tt.off, false); text != "" {
				t.Logf("seed %d: %s", tt.seed, text)
			} else if seed, text := search(30_000, tt.off); text != "" {
				t.Logf("seed %d, no longer %d: %s", seed, tt.seed, text)
			} else {
				t.Error("no seed misses it")
			}
		})
	}
}
