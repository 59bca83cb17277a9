package fanout

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"rewindmq/schema"
	"rewindmq/store"
	"rewindmq/store/storetest"
)

const bufferSize = 3 // messages that a session in these tests holds

// model is a log of several lanes with two nodes that tail it, in one goroutine.
type model struct {
	log   *storetest.Model
	node  storetest.Node
	rng   *rand.Rand
	hubs  []*Hub
	tails []*storetest.Tailing
	all   []*schema.Message
	lanes []schema.Lane // open ones
	of    map[string]schema.Lane
}

func newModel(seed uint64) *model {
	w := &model{log: storetest.NewModel(time.Unix(1e9, 0)), rng: rand.New(rand.NewPCG(seed, 1)), of: map[string]schema.Lane{}}
	w.node = w.log.StartNode()
	w.openLane()
	w.openLane()
	for range 2 {
		// A memory of some three messages: reads begin in it, behind it, and
		// fall out of it.
		h := New(nil, Options{CacheBytes: 1000})
		h.begin(w.log.Head())
		w.hubs = append(w.hubs, h)
		w.tails = append(w.tails, w.log.Tail(w.log.Head()))
	}
	return w
}

func (w *model) openLane() { w.lanes = append(w.lanes, w.log.OpenLane(w.node)) }

func (w *model) retireLane(i int) {
	w.log.RetireLane(w.lanes[i])
	w.lanes = slices.Delete(w.lanes, i, i+1)
	if len(w.lanes) == 0 {
		w.openLane()
	}
}

// publish appends a message to a lane of the caller's choice: a publisher that
// moves from node to node.
func (w *model) publish(publisher, topic string, lane int) {
	k := w.lanes[lane%len(w.lanes)]
	gen, _ := w.log.Lane(k)
	m := &schema.Message{ID: w.log.NewID(), Topic: topic, ClientID: publisher, Payload: fmt.Append(nil, len(w.all))}
	if _, ok := w.log.Land(k, gen, m); !ok {
		panic("the lane has ended")
	}
	w.all = append(w.all, m)
}

// step lets a hub process at most n events.
func (w *model) step(hub, n int) bool {
	var events []store.Event
	for len(events) < n {
		e, ok := w.tails[hub].Next()
		if !ok {
			break
		}
		events = append(events, e)
	}
	if len(events) > 0 {
		w.hubs[hub].step(events)
	}
	return len(events) > 0
}

// Read and Lookup make the model a store.Reader.
func (w *model) Read(_ context.Context, after, upTo schema.Cursor, filters []string) (store.Messages, error) {
	return &modelRead{w.log.Read(after, upTo, filters, w.rng)}, nil
}

func (w *model) Lookup(context.Context, []store.Ref) ([]*schema.Message, error) { panic("not used") }

type modelRead struct{ r *storetest.Reading }

func (r *modelRead) Next(context.Context) (*schema.Message, error) {
	if m := r.r.Next(); m != nil {
		return m, nil
	}
	return nil, io.EOF
}
func (r *modelRead) Trimmed() uint64 { return r.r.Trimmed() }
func (r *modelRead) Close() error    { return nil }

// session is a subscriber as section 6 of the design has it, with a reader of the
// log of its own.
type session struct {
	w      *model
	hub    *Hub
	m      *Membership
	since  map[string]schema.Cursor
	taken  schema.Cursor
	live   bool
	queue  []*schema.Message // or, while it reads, the buffer
	holds  bool              // the buffer has not overflowed
	read   store.Messages
	upTo   schema.Cursor
	got    []*schema.Message
	failed string
}

func newSession(w *model, hub int) *session {
	s := &session{w: w, hub: w.hubs[hub], since: map[string]schema.Cursor{}}
	s.taken = s.hub.H().Clone()
	s.m = s.hub.Join(s)
	return s
}

func (s *session) subscribe(filter string) {
	if _, ok := s.since[filter]; ok {
		return
	}
	since := s.w.log.Head()
	since.Merge(s.m.Subscribe(filter))
	s.since[filter] = since
}

// moveTo takes the session to another node, whose hub may be ahead or behind.
func (s *session) moveTo(hub int) {
	s.m.Leave()
	s.live, s.queue, s.holds, s.read = false, nil, false, nil
	s.hub = s.w.hubs[hub]
	s.m = s.hub.Join(s)
	for f := range s.since {
		s.m.Subscribe(f)
	}
}

func (s *session) Offer(m *schema.Message) bool {
	if !s.holds || len(s.queue) == bufferSize {
		s.live, s.holds, s.queue = false, false, nil
		return false
	}
	s.queue = append(s.queue, m)
	return true
}

func (s *session) filters() []string {
	var fs []string
	for f := range s.since {
		fs = append(fs, f)
	}
	slices.Sort(fs)
	return fs
}

func (s *session) wants(m *schema.Message) bool {
	for f, since := range s.since {
		if schema.Match(f, m.Topic) && since.After(m.Mark) {
			return true
		}
	}
	return false
}

func (s *session) take(m *schema.Message) {
	if !s.taken.After(m.Mark) {
		return // T6
	}
	s.taken.Advance(m.Mark)
	if s.wants(m) {
		s.got = append(s.got, m)
	}
}

// step moves the session by one step and tells whether there was one.
func (s *session) step() bool {
	switch {
	case s.live && len(s.queue) > 0:
		s.take(s.queue[0])
		s.queue = s.queue[1:]
	case s.live:
		h := s.hub.H()
		before := s.taken.Clone()
		s.taken.Merge(h)
		return !before.Equal(s.taken)
	case s.read == nil:
		s.m.Attach(func(H schema.Cursor) { s.upTo, s.holds, s.queue = H, true, nil })
		read, err := s.hub.Source(s.w).Read(context.Background(), s.taken.Clone(), s.upTo, s.filters())
		if err != nil {
			s.failed = err.Error()
		}
		s.read = read
	default:
		m, err := s.read.Next(context.Background())
		if err == nil {
			s.take(m)
			return true
		}
		s.taken.Merge(s.upTo)
		s.read, s.live = nil, s.holds
	}
	return true
}

// check compares what the session got with all that was published.
func (s *session) check(t *rapid.T, name string) {
	seen := map[schema.Mark]bool{}
	last, order := map[schema.Lane]uint64{}, map[string]int{}
	for _, m := range s.got {
		if seen[m.Mark] {
			t.Fatalf("%s: %v twice", name, m.Mark)
		}
		seen[m.Mark] = true
		if m.Mark.N < last[m.Mark.Lane] {
			t.Fatalf("%s: %v after n %d", name, m.Mark, last[m.Mark.Lane])
		}
		last[m.Mark.Lane] = m.Mark.N
		i := slices.Index(s.w.all, m)
		if i < order[m.ClientID] {
			t.Fatalf("%s: %v of publisher %s out of order", name, m.Mark, m.ClientID)
		}
		order[m.ClientID] = i
	}
	for _, m := range s.w.all {
		if s.wants(m) && !seen[m.Mark] {
			t.Fatalf("%s: %v %q is missing; taken %v", name, m.Mark, m.Topic, s.taken)
		}
	}
	if s.failed != "" {
		t.Fatal(s.failed)
	}
}

// TestHubExactlyOnce: sessions that attach, are let go of, subscribe and move
// between two nodes at any moment get each message exactly once, in order (T6,
// T9).
func TestHubExactlyOnce(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		w := newModel(rapid.Uint64().Draw(t, "seed"))
		sessions := []*session{newSession(w, 0), newSession(w, 1), newSession(w, 0)}
		sessions[0].subscribe("#")
		sessions[1].subscribe("a")
		sessions[1].subscribe("+")
		pick := func(t *rapid.T) *session { return rapid.SampledFrom(sessions).Draw(t, "session") }
		topic := rapid.SampledFrom([]string{"a", "b", "a/b"})
		filter := rapid.SampledFrom([]string{"a", "a/#", "#", "+/b", "+"})
		publish := func(t *rapid.T) {
			w.publish(rapid.SampledFrom([]string{"p", "q", "r"}).Draw(t, "publisher"), topic.Draw(t, "topic"), rapid.IntRange(0, 3).Draw(t, "lane"))
		}
		step := func(t *rapid.T) { pick(t).step() }
		hub := func(t *rapid.T) { w.step(rapid.IntRange(0, 1).Draw(t, "hub"), rapid.IntRange(1, 4).Draw(t, "events")) }
		t.Repeat(map[string]func(*rapid.T){
			"publish": publish, "publish2": publish, "publish3": publish,
			"step": step, "step2": step, "step3": step, "step4": step, "step5": step,
			"hub": hub, "hub2": hub,
			"open":      func(*rapid.T) { w.openLane() },
			"retire":    func(t *rapid.T) { w.retireLane(rapid.IntRange(0, len(w.lanes)-1).Draw(t, "lane")) },
			"move":      func(t *rapid.T) { pick(t).moveTo(rapid.IntRange(0, 1).Draw(t, "to")) },
			"subscribe": func(t *rapid.T) { pick(t).subscribe(filter.Draw(t, "filter")) },
			"recent": func(t *rapid.T) {
				s := pick(t)
				checkRecent(t, w, s.hub, s.taken, s.hub.H())
			},
		})
		for moving := true; moving; {
			moving = w.step(0, 64)
			moving = w.step(1, 64) || moving
			for _, s := range sessions {
				moving = s.step() || moving
			}
		}
		for i, s := range sessions {
			s.check(t, fmt.Sprint("session ", i))
		}
	})
}

// checkRecent: what Recent gives is complete, or it says that it is not.
func checkRecent(t *rapid.T, w *model, h *Hub, after, upTo schema.Cursor) {
	got, ok := h.Recent(after, upTo)
	if !ok {
		return
	}
	var want []*schema.Message
	for _, m := range w.all {
		if after.After(m.Mark) && !upTo.After(m.Mark) {
			want = append(want, m)
		}
	}
	if !slices.Equal(got, want) {
		t.Fatalf("Recent(%v, %v) = %d messages, want %d", after, upTo, len(got), len(want))
	}
}
