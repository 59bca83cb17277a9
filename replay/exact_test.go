package replay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"rewindmq/schema"
	"rewindmq/store"
	"rewindmq/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const bufferSize = 4 // messages that a session's buffer holds in these tests

// world is a log of several lanes, a hub that tails it, and one session. All of
// it moves in the goroutine of CatchUp: inside the calls of the target.
type world struct {
	t     *rapid.T
	log   *storetest.Model
	node  storetest.Node
	rng   *rand.Rand
	tail  *storetest.Tailing
	lanes []schema.Lane
	all   []*schema.Message

	filters  []string
	taken    schema.Cursor
	got      []*schema.Message
	attached bool
	buffer   []*schema.Message

	budget int // of what still happens
	opened int // reads
	most   int // messages in a page
}

func newWorld(t *rapid.T) *world {
	seed := rapid.Uint64().Draw(t, "seed")
	w := &world{
		t: t, log: storetest.NewModel(time.Unix(1e9, 0)), rng: rand.New(rand.NewPCG(seed, 1)),
		filters: []string{"a", "b/#"},
	}
	w.node = w.log.StartNode()
	w.lanes = []schema.Lane{w.log.OpenLane(w.node), w.log.OpenLane(w.node)}
	w.tail = w.log.Tail(w.log.Head())
	w.taken = w.log.Head()
	return w
}

// chance draws true once in n.
func (w *world) chance(n int) bool { return w.rng.IntN(n) == 0 }

// publish lets n things happen to the log, as long as the budget lasts: a session
// that is slower than its publishers never becomes live.
func (w *world) publish(n int) {
	for range min(n, w.budget) {
		w.budget--
		switch {
		case w.chance(20):
			w.lanes = append(w.lanes, w.log.OpenLane(w.node))
		case w.chance(20) && len(w.lanes) > 1:
			i := w.rng.IntN(len(w.lanes))
			w.log.RetireLane(w.lanes[i])
			w.lanes = slices.Delete(w.lanes, i, i+1)
		default:
			k := w.lanes[w.rng.IntN(len(w.lanes))]
			gen, _ := w.log.Lane(k)
			m := &schema.Message{
				ID: w.log.NewID(), ClientID: string(rune('p' + w.rng.IntN(3))),
				Topic: []string{"a", "b", "b/c", "other"}[w.rng.IntN(4)], Payload: fmt.Append(nil, len(w.all)),
			}
			if _, ok := w.log.Land(k, gen, m); !ok {
				w.t.Fatal("the lane has ended")
			}
			w.all = append(w.all, m)
		}
	}
}

func (w *world) matches(m *schema.Message) bool {
	return slices.ContainsFunc(w.filters, func(f string) bool { return schema.Match(f, m.Topic) })
}

// hub lets the hub process n events.
func (w *world) hub(n int) {
	for range n {
		e, ok := w.tail.Next()
		if !ok {
			return
		}
		if m := e.Message; m != nil && w.attached && w.matches(m) {
			if len(w.buffer) == bufferSize {
				w.attached, w.buffer = false, nil
				continue
			}
			w.buffer = append(w.buffer, m)
		}
	}
}

// take is the session's: what a replay hands over is after its own vector.
func (w *world) take(m *schema.Message, from string) {
	if !w.taken.After(m.Mark) {
		w.t.Fatalf("%s: %v is not after %v", from, m.Mark, w.taken)
	}
	w.taken.Advance(m.Mark)
	if w.matches(m) {
		w.got = append(w.got, m)
	}
}

// move lets the world go on by itself.
func (w *world) move() {
	w.publish(w.rng.IntN(4))
	w.hub(w.rng.IntN(5))
}

func (w *world) Attach() (from, upTo schema.Cursor, filters []string, ok bool) {
	w.move()
	w.attached, w.buffer = true, nil
	return w.taken, w.tail.H(), w.filters, true
}

var errCut = errors.New("cut")

func (w *world) Deliver(_ context.Context, msgs []*schema.Message) (int, []string, error) {
	w.most = max(w.most, len(msgs))
	w.move()
	n := w.rng.IntN(len(msgs) + 1)
	for _, m := range msgs[:n] {
		w.take(m, "replay")
	}
	if w.chance(8) {
		return n, w.filters, errCut
	}
	return n, w.filters, nil
}

func (w *world) Done(upTo schema.Cursor) (bool, error) {
	w.move()
	w.taken.Merge(upTo)
	return w.attached, nil
}

// Read makes the world a Source: each read takes the lanes in other turns.
func (w *world) Read(_ context.Context, after, upTo schema.Cursor, filters []string) (store.Messages, error) {
	w.opened++
	return &modelRead{w: w, r: w.log.Read(after, upTo, filters, w.rng)}, nil
}

type modelRead struct {
	w      *world
	r      *storetest.Reading
	closed bool
}

func (r *modelRead) Next(context.Context) (*schema.Message, error) {
	if r.closed {
		return nil, errors.New("the read is closed")
	}
	if m := r.r.Next(); m != nil {
		return m, nil
	}
	return nil, io.EOF
}
func (r *modelRead) Trimmed() uint64 { return r.r.Trimmed() }
func (r *modelRead) Close() error {
	if r.closed {
		r.w.t.Fatal("closed twice")
	}
	r.closed = true
	r.w.opened--
	return nil
}

// check compares what the session got with the log.
func (w *world) check() {
	seen, order := map[schema.Mark]bool{}, map[string]int{}
	for _, m := range w.got {
		if seen[m.Mark] {
			w.t.Fatalf("%v twice", m.Mark)
		}
		seen[m.Mark] = true
		i := slices.Index(w.all, m)
		if i < order[m.ClientID] {
			w.t.Fatalf("%v of publisher %s out of order", m.Mark, m.ClientID)
		}
		order[m.ClientID] = i
	}
	for _, m := range w.all {
		if w.matches(m) && !seen[m.Mark] {
			w.t.Fatalf("%v is missing; taken %v", m.Mark, w.taken)
		}
	}
}

// TestT7ReplayIsCutAndResumed: whatever is published meanwhile, wherever a replay
// is cut and however often, whenever the buffer overflows, and in whatever turns
// the lanes are read, the session gets each message once, each publisher's in
// order, and the replay hands over nothing twice.
func TestT7ReplayIsCutAndResumed(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t)
		w.budget = 250
		w.publish(rapid.IntRange(0, 60).Draw(t, "backlog"))
		o := Options{
			PageMessages: rapid.IntRange(1, 9).Draw(t, "page"),
			Hold:         rapid.SampledFrom([]time.Duration{-1, time.Hour}).Draw(t, "hold"),
			Gate:         NewGate(1),
		}
		var messages uint64
		cuts := 0
		for live := false; !live; {
			r, err := CatchUp(t.Context(), w, w, o)
			if err != nil && !errors.Is(err, errCut) {
				t.Fatal(err)
			}
			if err != nil == r.Live {
				t.Fatalf("live %v, error %v", r.Live, err)
			}
			if live = r.Live; !live {
				cuts++
				w.attached, w.buffer = false, nil
			}
			if messages += r.Messages; w.opened != 0 || o.Gate.free != 1 {
				t.Fatalf("%d reads open, %d places free", w.opened, o.Gate.free)
			}
		}
		if w.most > o.PageMessages {
			t.Fatalf("a page of %d messages, the bound is %d", w.most, o.PageMessages)
		}
		read := len(w.got)
		for _, m := range w.buffer {
			w.take(m, "buffer")
		}
		if uint64(read) != messages {
			t.Fatalf("Result counts %d messages, the session took %d", messages, read)
		}
		w.buffer = nil
		for e, ok := w.tail.Next(); ok; e, ok = w.tail.Next() { // live
			if m := e.Message; m != nil && w.matches(m) {
				w.take(m, "live")
			}
		}
		w.check()
	})
}
