package storetest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"rewindmq/schema"
	"rewindmq/store"
)

// A small simulation of claims of one session over a Model: owners record, save,
// append and let go; nodes die; claims overtake each other; what is on its way
// lands late, twice, or without an answer. The whole of the session core is
// simulated in package broker/session.
type claimWorld struct {
	m       *Model
	rng     *rand.Rand
	nodes   []Node
	lanes   map[Node]schema.Lane
	owners  []*simOwner
	walks   []*simWalk
	net     []*simOp
	epochs  map[uint64]bool
	sid     uint64
	last    uint64 // the epoch of the last message in the log
	claimed uint64 // the greatest epoch whose claim has come through
	fault   string
}

// simOp is an operation on its way. One writer has one at a time.
type simOp struct {
	do   func()
	back func()
	slow int // landings that it lets pass
}

// simOwner is a session in its owner's memory.
type simOwner struct {
	node             Node
	o                schema.Owner
	cur              schema.SessionCursor
	gen              uint32
	record, app, ses bool // under way
	saved            bool
	closing, gone    bool
}

type simWalk struct {
	*Claim
	node   Node
	step   Step
	a      Answer
	await  bool // its step is on its way
	again  bool // its answer was lost
	over   bool
	raises int
	read   uint64 // the epoch from which it raises
}

func newClaimWorld(seed uint64, off ...string) *claimWorld {
	w := &claimWorld{
		m: NewModel(time.Unix(1000, 0)), rng: rand.New(rand.NewPCG(seed, 1)),
		lanes: map[Node]schema.Lane{}, epochs: map[uint64]bool{},
	}
	w.m.Break(off...)
	for range 3 {
		w.startNode()
	}
	return w
}

func (w *claimWorld) startNode() {
	n := w.m.StartNode()
	w.nodes = append(w.nodes, n)
	w.lanes[n] = w.m.OpenLane(n)
}

func (w *claimWorld) check(ok bool, format string, args ...any) {
	if !ok && w.fault == "" {
		w.fault = fmt.Sprintf(format, args...)
	}
}

func (w *claimWorld) alive(n Node) bool { return slices.Contains(w.nodes, n) }

// run plays `steps` steps of chaos, then lets everything come to rest and claims
// once more.
func (w *claimWorld) run(steps int) string {
	for i := 0; i < steps && w.fault == ""; i++ {
		w.m.SetNow(w.m.Now().Add(time.Duration(w.rng.IntN(3)) * time.Millisecond))
		switch x := w.rng.IntN(100); {
		case x < 8:
			w.startWalk()
		case x < 48:
			if len(w.walks) > 0 {
				w.stepWalk(w.walks[w.rng.IntN(len(w.walks))], true)
			}
		case x < 70:
			if len(w.owners) > 0 {
				w.act(w.owners[w.rng.IntN(len(w.owners))])
			}
		case x < 98:
			w.land(w.rng.IntN(len(w.net) + 1))
		default:
			w.kill(w.nodes[w.rng.IntN(len(w.nodes))])
		}
	}
	for len(w.net) > 0 && w.fault == "" {
		w.land(0)
	}
	w.finish()
	return w.fault
}

func (w *claimWorld) startWalk() {
	n := w.nodes[w.rng.IntN(len(w.nodes))]
	for _, k := range w.walks {
		if k.node == n {
			return // a node claims once at a time
		}
	}
	for _, o := range w.owners {
		if o.node == n {
			o.closing = true
		}
	}
	ask := store.Claim{ClientID: "c", Expiry: schema.NoExpiry, At: w.m.Head()}
	w.walks = append(w.walks, &simWalk{Claim: NewClaim(n, ask, w.m.NewID(), time.Second), node: n})
}

// stepWalk goes one step on. In chaos a step may be under way for a while, be done
// twice, or lose its answer and be done again.
func (w *claimWorld) stepWalk(k *simWalk, chaos bool) {
	if k.await {
		return
	}
	if !k.again {
		var more bool
		if k.step, more = k.Next(k.a); !more {
			k.over = true
			w.walks = slices.DeleteFunc(w.walks, func(x *simWalk) bool { return x == k })
			w.onClaimed(k)
			return
		}
	}
	if k.step.Name == "raise" && !k.again {
		k.read = k.a.epoch
	}
	k.again = false
	step := k.step
	switch x := w.rng.IntN(10); {
	case step.Waits() && x < 3:
		k.Hurry()
		fallthrough
	case !chaos || x < 4:
		k.a = w.do(k, step)
	case x == 4:
		_ = w.do(k, step) // its answer is lost: it is done again
		k.again = true
	case x == 5:
		_ = w.do(k, step)
		k.a = w.do(k, step)
		if step.Name == "raise" { // a copy hangs in a socket, and lands when nobody waits for it
			w.net = append(w.net, &simOp{slow: 30, do: func() { w.late(step) }, back: func() {}})
		}
	default:
		k.await = true
		w.net = append(w.net, &simOp{slow: w.slow() / 4, do: func() { k.a = w.do(k, step) }, back: func() { k.await = false }})
	}
}

// do carries a step out. A claim raises the epoch once, however often its first
// step is done.
func (w *claimWorld) do(k *simWalk, step Step) Answer {
	before, _, _ := w.m.Owner("c")
	a := step.Do(w.m)
	if after, _, _ := w.m.Owner("c"); after != before {
		k.raises++
		w.check(before.Epoch == k.read, "a claim raises epoch %d, and had read %d", before.Epoch, k.read)
		w.check(k.raises == 1, "a claim raises the epoch from %d to %d, its second time", before.Epoch, after.Epoch)
	}
	return a
}

// late lands a claim's first step again, long after it was answered: it takes the
// session from nobody (S21).
func (w *claimWorld) late(step Step) {
	before, _, _ := w.m.Owner("c")
	_ = step.Do(w.m)
	after, _, _ := w.m.Owner("c")
	w.check(before == after, "a late claim takes the session: %+v, then %+v", before, after)
}

// onClaimed holds what a claim returns against all that is stored.
func (w *claimWorld) onClaimed(k *simWalk) {
	got := k.Claimed()
	if got.Err != nil {
		w.check(errors.Is(got.Err, store.ErrSuperseded), "claim: %v", got.Err)
		return
	}
	w.check(!w.epochs[got.Epoch], "two claims have epoch %d", got.Epoch)
	w.epochs[got.Epoch] = true
	if w.sid == 0 {
		w.sid = got.SID
	}
	w.check(got.SID == w.sid, "the session was lost: sid %d, then %d", w.sid, got.SID)
	var want []uint64
	for _, r := range w.m.Records("c", got.SID, 0) {
		if r.PacketID == 0 {
			continue // a fence: one of a claimer that was overtaken may come late
		}
		if r.Epoch < got.Epoch {
			want = append(want, r.Seq)
		}
		w.check(r.Epoch > got.Epoch || r.Seq <= got.Cursor.Seq, "claim of epoch %d at seq %d, and a record %d of epoch %d is there", got.Epoch, got.Cursor.Seq, r.Seq, r.Epoch)
	}
	flight := []uint64{}
	for _, f := range got.Cursor.Flight {
		flight = append(flight, f.Seq)
	}
	w.check(slices.Equal(flight, want) || len(flight)+len(want) == 0, "claim of epoch %d (released %v) has the flight %v, and the records are %v", got.Epoch, got.Released, flight, want)
	d := w.m.sessions["c"]
	if d == nil || d.epoch != got.Epoch || !w.alive(k.node) {
		return // overtaken at once: its node will hear of it
	}
	w.claimed = max(w.claimed, got.Epoch)
	gen, _ := w.m.Lane(w.lanes[k.node])
	w.owners = append(w.owners, &simOwner{node: k.node, o: got.Owner, cur: got.Cursor, gen: gen})
}

// act lets an owner do something: only what the rules of DESIGN.md section 6 let
// it do.
func (w *claimWorld) act(o *simOwner) {
	d := w.m.sessions["c"]
	if d.epoch != o.o.Epoch && w.rng.IntN(4) == 0 {
		o.closing = true // it hears of the claim
	}
	if o.closing {
		w.letGo(o)
		return
	}
	switch x := w.rng.IntN(10); {
	case x < 4 && !o.record:
		w.recordOne(o)
	case x < 7 && !o.ses:
		w.save(o)
	case !o.app:
		w.appendOne(o)
	}
}

func (w *claimWorld) send(of *simOwner, flag *bool, do, back func()) {
	*flag = true
	w.net = append(w.net, &simOp{slow: w.slow(), do: do, back: func() {
		*flag = false
		if back != nil && !of.gone {
			back()
		}
	}})
}

func (w *claimWorld) slow() int {
	if w.rng.IntN(5) > 0 {
		return 0
	}
	return w.rng.IntN(20)
}

func (w *claimWorld) recordOne(o *simOwner) {
	d := schema.Delivery{
		ID: w.m.NewID(), Owner: o.o, Seq: o.cur.Seq + 1, PacketID: uint16(o.cur.Seq + 1), QoS: 1, MessageID: w.m.NewID(),
		Mark: schema.Mark{Lane: 1, N: o.cur.Seq + 1},
	}
	var old *schema.Delivery
	w.send(o, &o.record, func() {
		old = w.m.Record(&d)
		w.check(old != nil || o.o.Epoch >= w.claimed || !w.isNext(d.Seq), "a record of epoch %d lands after epoch %d was claimed", o.o.Epoch, w.claimed)
	}, func() {
		if old != nil && old.ID != d.ID {
			w.drop(o) // fenced: no byte leaves, nothing is released
			return
		}
		o.cur.Seq, o.saved = d.Seq, false
		o.cur.Flight = append(o.cur.Flight, d.Flight())
		o.cur.After = o.cur.After.Clone()
		o.cur.After.Advance(d.Mark)
	})
}

// isNext tells whether seq is the last record: one that a claimer would have had
// to see.
func (w *claimWorld) isNext(seq uint64) bool { return len(w.m.Records("c", w.sid, seq)) == 0 }

func (w *claimWorld) save(o *simOwner) {
	cur := o.cur
	cur.Flight = slices.Clone(cur.Flight)
	var err error
	w.send(o, &o.ses, func() {
		before, _ := w.m.Cursor("c", w.sid)
		err = w.m.Write(store.SaveCursor{Owner: o.o, Cursor: cur})
		if err == nil {
			w.check(o.o.Epoch >= w.claimed, "a save of epoch %d lands after epoch %d was claimed, at seq %d over %d", o.o.Epoch, w.claimed, cur.Seq, before.Seq)
		}
	}, func() {
		if err != nil {
			w.drop(o)
			return
		}
		o.saved = cur.Seq == o.cur.Seq
	})
}

func (w *claimWorld) appendOne(o *simOwner) {
	msg := &schema.Message{ID: w.m.NewID(), ClientID: "c", Topic: "t", Host: fmt.Sprint(o.o.Epoch)}
	gen, lane := o.gen, w.lanes[o.node]
	ok := false
	w.send(o, &o.app, func() {
		if _, ok = w.m.Land(lane, gen, msg); ok {
			w.check(o.o.Epoch >= w.last, "a message of epoch %d lands after one of epoch %d", o.o.Epoch, w.last)
			w.last = max(w.last, o.o.Epoch)
		}
	}, func() {
		if !ok { // a stopper: it looks who was claimed elsewhere
			if w.m.sessions["c"].epoch != o.o.Epoch {
				o.closing = true
			}
			o.gen, _ = w.m.Lane(lane)
		}
	})
}

// letGo flushes, saves and releases.
func (w *claimWorld) letGo(o *simOwner) {
	switch {
	case o.record || o.app || o.ses:
	case !o.saved:
		w.save(o)
	default:
		w.send(o, &o.ses, func() { _ = w.m.Write(store.Release{Owner: o.o}) }, nil)
		w.drop(o)
	}
}

func (w *claimWorld) drop(o *simOwner) {
	o.gone = true
	w.owners = slices.DeleteFunc(w.owners, func(x *simOwner) bool { return x == o })
}

// land lets the i-th operation arrive. Its answer may be lost with its sender.
func (w *claimWorld) land(i int) {
	if i >= len(w.net) {
		return
	}
	op := w.net[i]
	if op.slow > 0 { // it hangs in a socket
		op.slow--
		return
	}
	w.net = slices.Delete(w.net, i, i+1)
	op.do()
	op.back()
}

// kill ends a node: its walks and owners are gone, what they sent may still land.
func (w *claimWorld) kill(n Node) {
	w.m.Kill(n)
	w.walks = slices.DeleteFunc(w.walks, func(k *simWalk) bool { return k.node == n })
	for _, o := range slices.Clone(w.owners) {
		if o.node == n {
			w.drop(o)
		}
	}
	w.nodes = slices.DeleteFunc(w.nodes, func(x Node) bool { return x == n })
	w.startNode()
}

// finish claims once more, straight through.
func (w *claimWorld) finish() {
	if w.fault != "" {
		return
	}
	w.walks = nil
	w.startWalk()
	k := w.walks[0]
	k.Hurry()
	for !k.over && w.fault == "" {
		w.stepWalk(k, false)
	}
	w.check(k.Claimed().Err == nil, "a claim at rest: %v", k.Claimed().Err)
}

func TestClaimWalk(t *testing.T) {
	t.Parallel()
	for seed := range uint64(4000) {
		if got := newClaimWorld(seed).run(300); got != "" {
			t.Fatalf("seed %d: %s", seed, got)
		}
	}
}

// Each rule of a claim is missed when it is off.
func TestClaimRules(t *testing.T) {
	t.Parallel()
	for _, rule := range []string{"mark", "fence", "stopper", "past", "claim-cas", "claim-token", "guard", "giveup"} {
		t.Run(rule, func(t *testing.T) {
			t.Parallel()
			for seed := range uint64(40000) {
				if got := newClaimWorld(seed, rule).run(300); got != "" {
					t.Logf("seed %d: %s", seed, got)
					return
				}
			}
			t.Errorf("no seed misses it")
		})
	}
}
