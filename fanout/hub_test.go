package fanout

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"

	"rewindmq/schema"
	"rewindmq/store"
	"rewindmq/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// collector is a subscriber that notes what it is offered.
type collector struct {
	mu   sync.Mutex
	room int // how many more it takes; negative: any number
	got  []string
	more sync.Cond
}

func newCollector(room int) *collector {
	c := &collector{room: room}
	c.more.L = &c.mu
	return c
}

func (c *collector) Offer(m *schema.Message) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.room == 0 {
		return false
	}
	c.room--
	c.got = append(c.got, string(m.Payload))
	c.more.Broadcast()
	return true
}

func (c *collector) taken() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.got)
}

// event makes the event of the message "n" at n of lane 1.
func event(n int, topic string) store.Event {
	mark := schema.Mark{Lane: 1, N: uint64(n)}
	return store.Event{
		Message: &schema.Message{Mark: mark, Topic: topic, Payload: fmt.Append(nil, n)},
		H:       schema.At(1, uint64(n)),
	}
}

// stepped is a hub that a test moves by hand; it stands at 1/0.
func stepped(o Options) *Hub {
	h := New(nil, o)
	h.begin(schema.At(1, 0))
	return h
}

func want(t *testing.T, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Fatalf("got %v, want %v", got, want)
	}
}

// nowhere is what an Attach of no interest calls.
func nowhere(schema.Cursor) {}

func TestHubOffersOnce(t *testing.T) {
	t.Parallel()
	h := stepped(Options{})
	a, b := newCollector(-1), newCollector(-1)
	ma, mb := h.Join(a), h.Join(b)
	ma.Subscribe("a/+", "a/#", "a/1", "#", "a/#")
	mb.Subscribe("b")
	ma.Attach(nowhere)
	mb.Attach(nowhere)
	h.step([]store.Event{event(1, "a/1"), event(2, "b"), {H: schema.At(1, 2)}, event(3, "$a")})
	want(t, a.taken(), "1", "2")
	want(t, b.taken(), "2")

	ma.Unsubscribe("#", "a/1", "never")
	h.step([]store.Event{event(4, "b"), event(5, "a/1")})
	want(t, a.taken(), "1", "2", "5")
	if got := h.H(); !got.Equal(schema.At(1, 5)) {
		t.Errorf("H() = %v", got)
	}
}

func TestHubRefusalDetaches(t *testing.T) {
	t.Parallel()
	h := stepped(Options{})
	c := newCollector(2)
	m := h.Join(c)
	m.Subscribe("t")
	h.step([]store.Event{event(1, "t")}) // not attached yet
	var at schema.Cursor
	m.Attach(func(H schema.Cursor) { at = H })
	if !at.Equal(schema.At(1, 1)) || !m.Attached() {
		t.Fatalf("attached at %v, %v", at, m.Attached())
	}
	h.step([]store.Event{event(2, "t"), event(3, "t"), event(4, "t"), event(5, "t")})
	if m.Attached() {
		t.Error("attached after a refusal")
	}
	c.mu.Lock()
	c.room = -1 // there is room again, but nothing comes: 4 would be missing
	c.mu.Unlock()
	h.step([]store.Event{event(6, "t")})
	want(t, c.taken(), "2", "3")
	if n := testutil.ToFloat64(h.o.Metrics.Refused); n != 1 {
		t.Errorf("refused %v times, want 1", n)
	}
	m.Attach(func(H schema.Cursor) { at = H })
	h.step([]store.Event{event(7, "t")})
	m.Detach()
	h.step([]store.Event{event(8, "t")})
	want(t, c.taken(), "2", "3", "7")
	if !at.Equal(schema.At(1, 6)) {
		t.Errorf("attached again at %v", at)
	}
}

// TestHubT10: messages of one time stamp, the batch ends between them, a session
// attaches there, or is let go there.
func TestHubT10(t *testing.T) {
	t.Parallel()
	events := make([]store.Event, 6)
	for i := range events {
		events[i] = event(i+1, "t")
		events[i].Message.TS = 42
	}
	for cut := range len(events) + 1 {
		for room := range len(events) + 1 {
			h := stepped(Options{})
			c := newCollector(room)
			m := h.Join(c)
			m.Subscribe("t")
			h.step(events[:cut])
			var at schema.Cursor
			m.Attach(func(H schema.Cursor) { at = H })
			h.step(events[cut:])
			var all []string // as a session puts it together: read, offers, and after a refusal read
			read := func(after, upTo schema.Cursor) {
				for _, e := range events {
					if after.After(e.Message.Mark) && !upTo.After(e.Message.Mark) {
						all = append(all, string(e.Message.Payload))
					}
				}
			}
			read(schema.Cursor{}, at)
			all = append(all, c.taken()...)
			if !m.Attached() {
				last := schema.At(1, uint64(len(all)))
				m.Attach(func(H schema.Cursor) { at = H })
				read(last, at)
			}
			want(t, all, "1", "2", "3", "4", "5", "6")
		}
	}
}

func TestMembershipLeave(t *testing.T) {
	t.Parallel()
	h := stepped(Options{})
	c := newCollector(-1)
	m := h.Join(c)
	m.Subscribe("t", "t/#", "+")
	m.Attach(nowhere)
	m.Leave()
	m.Leave()
	m.Subscribe("t")
	h.step([]store.Event{event(1, "t")})
	want(t, c.taken())
	if h.trie.Len() != 0 || m.Attached() {
		t.Errorf("%d filters left, attached %v", h.trie.Len(), m.Attached())
	}
}

func TestAttachBeforeReadyPanics(t *testing.T) {
	t.Parallel()
	h := New(nil, Options{})
	for name, call := range map[string]func(){
		"Attach": func() { h.Join(newCollector(-1)).Attach(nowhere) },
		"Start":  func() { h.Start() },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s on a hub that is not ready did not panic", name)
				}
			}()
			call()
		}()
	}
}

// inTheMiddle is a subscriber that does something while a step is under way.
type inTheMiddle func()

func (f inTheMiddle) Offer(*schema.Message) bool {
	f()
	return true
}

// TestSubscribeInTheMiddleOfAStep: the cursor that Subscribe returns has what was
// matched without the new filters.
func TestSubscribeInTheMiddleOfAStep(t *testing.T) {
	t.Parallel()
	h := stepped(Options{})
	c := newCollector(-1)
	m := h.Join(c)
	m.Attach(nowhere)
	at := make(chan schema.Cursor, 1)
	g := h.Join(inTheMiddle(func() {
		go func() { at <- m.Subscribe("t") }()
		for h.trie.Len() < 2 {
			runtime.Gosched()
		}
	}))
	g.Subscribe("g")
	g.Attach(nowhere)
	h.step([]store.Event{event(1, "t"), event(2, "g"), event(3, "t")})
	n, _ := (<-at).N(1)
	h.step([]store.Event{event(4, "t")})
	want(t, c.taken(), "3", "4")
	if n == 0 {
		t.Error("Subscribe returned a cursor before a message that was not offered")
	}
}

// TestSubscribeWhileEventsFlow: what is after the cursor that Subscribe returns is
// offered, to the last event.
func TestSubscribeWhileEventsFlow(t *testing.T) {
	t.Parallel()
	const events, sessions = 20_000, 40
	h := stepped(Options{})
	flow := make(chan struct{})
	go func() {
		defer close(flow)
		for n := 1; n <= events; n += 3 {
			h.step([]store.Event{event(n, "t"), event(n+1, "t"), event(n+2, "t")})
		}
	}()
	at := make([]schema.Cursor, sessions)
	cs := make([]*collector, sessions)
	for i := range cs {
		cs[i] = newCollector(-1)
		m := h.Join(cs[i])
		m.Attach(nowhere)
		at[i] = m.Subscribe("other", "t")
	}
	<-flow
	last, _ := h.H().N(1)
	for i, c := range cs {
		n, _ := at[i].N(1)
		got := c.taken()
		if uint64(len(got)) < last-n {
			t.Errorf("session %d: %d offers, want those after %d up to %d", i, len(got), n, last)
		}
		for k, s := range got {
			if want := fmt.Sprint(int(last) - len(got) + 1 + k); s != want {
				t.Fatalf("session %d: offer %d is %s, want %s", i, k, s, want)
			}
		}
	}
}

// publish appends messages from to to and gives the head behind them.
func publish(t *testing.T, mem *storetest.Memory, from, to int) schema.Cursor {
	t.Helper()
	for i := from; i <= to; i++ {
		done := make(chan store.Appended, 1)
		p := &store.Publisher{Owner: schema.Owner{ClientID: "p"}}
		m := &schema.Message{ID: schema.ID{byte(i)}, Topic: "t", Payload: fmt.Append(nil, i), ClientID: "p"}
		mem.Append(t.Context(), p, []*schema.Message{m}, func(a []store.Appended) { done <- a[0] })
		if a := <-done; a.Outcome != store.Stored {
			t.Fatalf("append: %v", a.Err)
		}
	}
	head, err := mem.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return head
}

// running runs a store and a hub in a bubble of synctest until stop.
func running(t *testing.T, o Options) (mem *storetest.Memory, h *Hub, stop func() error) {
	t.Helper()
	mem = storetest.NewMemory(storetest.Options{})
	ctx, cancel := context.WithCancel(t.Context())
	hubCtx, cancelHub := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = mem.Run(ctx) })
	publish(t, mem, 1, 3)
	h = New(mem, o)
	ended := make(chan error, 1)
	wg.Go(func() { ended <- h.Run(hubCtx) })
	<-h.Ready()
	return mem, h, func() error {
		cancelHub()
		err := <-ended
		cancel()
		wg.Wait()
		return err
	}
}

func TestHubRun(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var seen []string
		reg := prometheus.NewPedanticRegistry()
		metrics, err := NewMetrics(reg)
		if err != nil {
			t.Fatal(err)
		}
		mem, h, stop := running(t, Options{Metrics: metrics, Observe: func(m *schema.Message) {
			seen = append(seen, string(m.Payload))
		}})
		head, err := mem.Head(t.Context())
		if err != nil || !h.Start().Equal(head) || !h.H().Covers(head) {
			t.Errorf("Start() = %v, H() = %v, head %v, %v", h.Start(), h.H(), head, err)
		}
		c := newCollector(-1)
		m := h.Join(c)
		m.Subscribe("t")
		m.Attach(nowhere)
		if err := h.WaitFor(t.Context(), publish(t, mem, 4, 7)); err != nil {
			t.Fatal(err)
		}
		want(t, c.taken(), "4", "5", "6", "7")
		if err := stop(); err != nil {
			t.Errorf("Run: %v", err)
		}
		want(t, seen, "4", "5", "6", "7")
		if n := testutil.ToFloat64(metrics.TailSequence); n != 7 {
			t.Errorf("tail sequence %v, want 7", n)
		}
		if n := testutil.ToFloat64(metrics.RecentBytes); n < 4*256 {
			t.Errorf("recent bytes %v", n)
		}
		if problems, err := testutil.GatherAndLint(reg); err != nil || len(problems) > 0 {
			t.Errorf("lint: %v, %v", problems, err)
		}
	})
}

func TestHubWaitFor(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		_, h, stop := running(t, Options{})
		far := schema.At(1, 1000)
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := h.WaitFor(short, far); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("WaitFor: %v", err)
		}
		late := make(chan error, 1)
		go func() { late <- h.WaitFor(t.Context(), far) }()
		synctest.Wait()
		if err := stop(); err != nil {
			t.Errorf("Run: %v", err)
		}
		if err := <-late; !errors.Is(err, ErrStopped) {
			t.Errorf("WaitFor after the end: %v", err)
		}
		if n := len(h.waiting.set); n != 0 {
			t.Errorf("%d waiters left", n)
		}
	})
}

// broken is a tailer that fails in one step.
type broken struct {
	at     string
	closed bool
}

var errBroken = errors.New("broken")

func (b *broken) fail(at string) error {
	if b.at == at {
		return errBroken
	}
	return nil
}

func (b *broken) Head(context.Context) (schema.Cursor, error) { return schema.At(1, 0), b.fail("head") }

func (b *broken) Tail(context.Context, schema.Cursor) (store.Tail, error) { return b, b.fail("tail") }

func (b *broken) Next(context.Context) ([]store.Event, error) {
	return []store.Event{event(1, "t")}, b.fail("next")
}

func (b *broken) Close() error {
	b.closed = true
	return b.fail("close")
}

func TestHubRunReturnsErrors(t *testing.T) {
	t.Parallel()
	for _, at := range []string{"head", "tail", "next"} {
		b := &broken{at: at}
		h := New(b, Options{})
		if err := h.Run(t.Context()); !errors.Is(err, errBroken) {
			t.Errorf("%s: Run: %v", at, err)
		}
		if b.closed != (at == "next") {
			t.Errorf("%s: closed %v", at, b.closed)
		}
		select {
		case <-h.Ready():
			if at != "next" {
				t.Errorf("%s: ready", at)
			}
		default:
			if at == "next" {
				t.Errorf("%s: not ready", at)
			}
		}
		if err := h.WaitFor(t.Context(), schema.At(1, 9)); !errors.Is(err, ErrStopped) {
			t.Errorf("%s: WaitFor: %v", at, err)
		}
	}
}
