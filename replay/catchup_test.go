package replay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"rewindmq/schema"
	"rewindmq/store"
)

// line is a log of one lane: message n has the payload n.
type line struct {
	size    int
	trimmed uint64 // each read from 0 finds so many missing

	readErr, nextErr, closeErr error

	open, most atomic.Int32
	mu         sync.Mutex
	reads      []read
}

type read struct {
	after   uint64
	filters []string
}

func (l *line) Read(_ context.Context, after, upTo schema.Cursor, filters []string) (store.Messages, error) {
	n, _ := after.N(1)
	end, _ := upTo.N(1)
	l.mu.Lock()
	l.reads = append(l.reads, read{n, filters})
	l.mu.Unlock()
	if l.readErr != nil {
		return nil, l.readErr
	}
	if now := l.open.Add(1); now > l.most.Load() {
		l.most.Store(now)
	}
	r := &lineRead{l: l, n: n, end: end, after: after, first: n}
	if n < l.trimmed {
		r.trimmed = l.trimmed - n
	}
	return r, nil
}

func (l *line) afters() (out []uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.reads {
		out = append(out, r.after)
	}
	return out
}

type lineRead struct {
	l               *line
	n, end, trimmed uint64
	closed          atomic.Bool

	after schema.Cursor // the caller's promise: it stays at first
	first uint64
}

func (r *lineRead) Next(context.Context) (*schema.Message, error) {
	if r.closed.Load() {
		return nil, errors.New("the read is closed")
	}
	if n, _ := r.after.N(1); n != r.first {
		return nil, fmt.Errorf("the cursor of the read was moved from %d to %d", r.first, n)
	}
	if r.n == r.end {
		return nil, io.EOF
	}
	if r.n == 2 && r.l.nextErr != nil {
		return nil, r.l.nextErr
	}
	r.n++
	return &schema.Message{Mark: schema.Mark{Lane: 1, N: r.n}, Topic: "t", Payload: make([]byte, r.l.size)}, nil
}

func (r *lineRead) Trimmed() uint64 { return r.trimmed }

func (r *lineRead) Close() error {
	if !r.closed.Swap(true) {
		r.l.open.Add(-1)
	}
	return r.l.closeErr
}

// target is a session on a line.
type target struct {
	at      uint64
	upTo    []uint64 // of each Attach; none left: the session has ended
	filters []string
	lives   []bool // of each Done; none left: true
	pages   [][]uint64
	deliver func(msgs []*schema.Message) (int, error) // nil: takes all
	doneErr error
}

func (t *target) Attach() (from, upTo schema.Cursor, filters []string, ok bool) {
	if len(t.upTo) == 0 {
		return from, upTo, nil, false
	}
	upTo = schema.At(1, t.upTo[0])
	t.upTo = t.upTo[1:]
	return schema.At(1, t.at), upTo, t.filters, true
}

func (t *target) Deliver(_ context.Context, msgs []*schema.Message) (int, []string, error) {
	var page []uint64
	for _, m := range msgs {
		page = append(page, m.Mark.N)
	}
	t.pages = append(t.pages, page)
	n, err := len(msgs), error(nil)
	if t.deliver != nil {
		n, err = t.deliver(msgs)
	}
	if n > 0 {
		t.at = msgs[n-1].Mark.N
	}
	return n, t.filters, err
}

func (t *target) Done(upTo schema.Cursor) (bool, error) {
	n, _ := upTo.N(1)
	t.at = max(t.at, n)
	live := true
	if len(t.lives) > 0 {
		live, t.lives = t.lives[0], t.lives[1:]
	}
	return live, t.doneErr
}

func newTarget(upTo ...uint64) *target { return &target{upTo: upTo, filters: []string{"t"}} }

func (t *target) taken() (out []uint64) {
	for _, p := range t.pages {
		out = append(out, p...)
	}
	return out
}

func upTo(n uint64) (out []uint64) {
	for k := range n {
		out = append(out, k+1)
	}
	return out
}

func TestPagesAreBounded(t *testing.T) {
	t.Parallel()
	size := (&schema.Message{Topic: "t", Payload: make([]byte, 100)}).Size()
	for _, tt := range []struct {
		o    Options
		want int // messages in each page but the last
	}{
		{Options{}, 256},
		{Options{PageMessages: 7}, 7},
		{Options{PageBytes: 3 * size}, 3},
		{Options{PageBytes: 3*size + 1}, 4}, // the message that reaches it ends the page
		{Options{PageBytes: 1}, 1},
		{Options{PageMessages: 2, PageBytes: 3 * size}, 2},
	} {
		for _, hold := range []time.Duration{-1, time.Hour} {
			tt.o.Hold = hold
			l, s := &line{size: 100}, newTarget(600)
			r, err := CatchUp(t.Context(), l, s, tt.o)
			if err != nil || !r.Live || r.Messages != 600 || r.Rounds != 1 {
				t.Fatalf("%+v: %+v, %v", tt.o, r, err)
			}
			if !slices.Equal(s.taken(), upTo(600)) {
				t.Errorf("%+v: not all was delivered in order", tt.o)
			}
			for i, p := range s.pages {
				if len(p) != tt.want && i < len(s.pages)-1 || len(p) > tt.want {
					t.Fatalf("%+v: page of %d messages, want %d", tt.o, len(p), tt.want)
				}
			}
			if n := len(l.reads); (hold > 0 && n != 1) || (hold < 0 && n != (600+tt.want-1)/tt.want) {
				t.Errorf("%+v: %d reads", tt.o, n)
			}
		}
	}
}

func TestNothingToRead(t *testing.T) {
	t.Parallel()
	l := &line{}
	for name, s := range map[string]*target{
		"no filter":      {upTo: []uint64{9}},
		"nothing new":    {upTo: []uint64{9}, at: 9, filters: []string{"t"}},
		"ahead of H":     {upTo: []uint64{9}, at: 12, filters: []string{"t"}},
		"ended":          {filters: []string{"t"}},
		"ended later on": {upTo: []uint64{0}, lives: []bool{false}, filters: []string{"t"}},
	} {
		r, err := CatchUp(t.Context(), l, s, Options{})
		if live := name[:2] != "en"; err != nil || r.Live != live || r.Messages != 0 {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
		if r.Live && s.at < 9 {
			t.Errorf("%s: done up to %d, want 9", name, s.at)
		}
	}
	if len(l.reads) != 0 {
		t.Errorf("%d reads", len(l.reads))
	}
}

func TestOverflowGoesRound(t *testing.T) {
	t.Parallel()
	l, s := &line{}, newTarget(10, 25, 40)
	s.lives = []bool{false, false, true}
	r, err := CatchUp(t.Context(), l, s, Options{})
	if err != nil || !r.Live || r.Rounds != 3 || r.Messages != 40 || !slices.Equal(s.taken(), upTo(40)) {
		t.Errorf("%+v, %v, %v", r, err, s.taken())
	}
	if got := l.afters(); !slices.Equal(got, []uint64{0, 10, 25}) {
		t.Errorf("reads after %v", got)
	}
}

// TestReplayCutInTheMiddleResumedCutAgain goes on from the session's own place,
// each time.
func TestReplayCutInTheMiddleResumedCutAgain(t *testing.T) {
	t.Parallel()
	l, s := &line{}, newTarget(100, 100, 100)
	var taken []uint64
	cutAt := uint64(13)
	s.deliver = func(msgs []*schema.Message) (int, error) {
		for i, m := range msgs {
			if m.Mark.N > cutAt {
				return i, errCut
			}
			taken = append(taken, m.Mark.N)
		}
		return len(msgs), nil
	}
	for _, cut := range []uint64{13, 57, 100} {
		cutAt = cut
		before := uint64(len(taken))
		r, err := CatchUp(t.Context(), l, s, Options{PageMessages: 10})
		if errors.Is(err, errCut) != (cut < 100) || r.Live != (cut == 100) || r.Messages != cut-before {
			t.Fatalf("cut at %d: %+v, %v", cut, r, err)
		}
	}
	if !slices.Equal(taken, upTo(100)) {
		t.Errorf("taken %v", taken)
	}
}

func TestFiltersChangeWhileReplaying(t *testing.T) {
	t.Parallel()
	l, s := &line{}, newTarget(100)
	s.deliver = func(msgs []*schema.Message) (int, error) {
		switch s.at += uint64(len(msgs)); s.at {
		case 30:
			s.filters = []string{"t", "u"}
		case 50:
			s.filters = []string{"t", "u"} // another slice, the same filters
		case 60:
			s.filters = nil
		}
		return len(msgs), nil
	}
	r, err := CatchUp(t.Context(), l, s, Options{PageMessages: 10, Hold: time.Hour})
	if err != nil || !r.Live || r.Messages != 60 {
		t.Fatalf("%+v, %v", r, err)
	}
	if len(l.reads) != 2 || l.reads[1].after != 30 || !slices.Equal(l.reads[1].filters, []string{"t", "u"}) {
		t.Errorf("reads %v", l.reads)
	}
	if l.open.Load() != 0 {
		t.Errorf("%d reads are open", l.open.Load())
	}
}

// TestTrimmedIsCountedOnce: the second read of a stretch finds the same missing.
func TestTrimmedIsCountedOnce(t *testing.T) {
	t.Parallel()
	l, s := &line{trimmed: 15}, newTarget(20)
	r, err := CatchUp(t.Context(), l, s, Options{PageMessages: 5, Hold: -1})
	if err != nil || r.Trimmed != 15 || len(l.reads) != 4 {
		t.Errorf("%+v, %v, %d reads", r, err, len(l.reads))
	}
}

func TestErrorsEndTheReplay(t *testing.T) {
	t.Parallel()
	boom := errors.New("boom")
	for name, tt := range map[string]struct {
		l *line
		s *target
	}{
		"read":    {&line{readErr: boom}, newTarget(9)},
		"next":    {&line{nextErr: boom}, newTarget(9)},
		"close":   {&line{closeErr: boom}, newTarget(9)},
		"deliver": {&line{}, &target{upTo: []uint64{9}, filters: []string{"t"}, deliver: func([]*schema.Message) (int, error) { return 3, boom }}},
		"done":    {&line{}, &target{upTo: []uint64{9}, filters: []string{"t"}, doneErr: boom}},
	} {
		reg := prometheus.NewPedanticRegistry()
		m, err := NewMetrics(reg)
		if err != nil {
			t.Fatal(err)
		}
		g := NewGate(2)
		r, err := CatchUp(t.Context(), tt.l, tt.s, Options{PageMessages: 4, Gate: g, Metrics: m, Trigger: Slow})
		if !errors.Is(err, boom) || r.Live {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
		if g.free != 2 || tt.l.open.Load() != 0 {
			t.Errorf("%s: %d places free, %d reads open", name, g.free, tt.l.open.Load())
		}
		if n := testutil.ToFloat64(m.replays.WithLabelValues(Slow, "failed")); n != 1 {
			t.Errorf("%s: counted %v times", name, n)
		}
	}
}

// TestSlowClientHoldsNoRead: while the session has no room, the read is closed and
// its place in the gate is free; then the replay goes on where it was.
func TestSlowClientHoldsNoRead(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l, s, g := &line{}, newTarget(30), NewGate(1)
		wait := 10 * time.Millisecond
		s.deliver = func(msgs []*schema.Message) (int, error) {
			<-time.After(wait) // of the bubble's time
			open, free := l.open.Load(), g.places()
			if slow := wait > time.Second; slow == (open == 1) || slow == (free == 0) {
				t.Errorf("after %v: %d reads open, %d places free", wait, open, free)
			}
			if msgs[0].Mark.N == 11 {
				wait = time.Hour
			}
			return len(msgs), nil
		}
		r, err := CatchUp(t.Context(), l, s, Options{PageMessages: 5, Gate: g})
		if err != nil || !r.Live || !slices.Equal(s.taken(), upTo(30)) {
			t.Fatalf("%+v, %v, %v", r, err, s.taken())
		}
		// One read while the client was quick; one for each page of the slow one.
		if got := l.afters(); !slices.Equal(got, []uint64{0, 20, 25}) {
			t.Errorf("reads after %v", got)
		}
		if r.Duration < 3*time.Hour {
			t.Errorf("duration %v", r.Duration)
		}
	})
}

func (g *Gate) places() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.free
}

// TestGateIsFair: a replay gives its place away after a page when others wait, and
// they come in their turn.
func TestGateIsFair(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l, g := &line{}, NewGate(1)
		var turns []string
		var mu sync.Mutex
		var other sync.WaitGroup
		replay := func(name string, pages uint64, at func(page uint64)) {
			s := newTarget(pages*4 - 1)
			s.deliver = func(msgs []*schema.Message) (int, error) {
				mu.Lock()
				turns = append(turns, name)
				mu.Unlock()
				at(msgs[0].Mark.N / 4)
				return len(msgs), nil
			}
			r, err := CatchUp(t.Context(), l, s, Options{PageMessages: 4, Gate: g, Hold: time.Hour})
			if err != nil || !r.Live || r.Messages != pages*4-1 {
				t.Errorf("%s: %+v, %v", name, r, err)
			}
		}
		replay("a", 6, func(page uint64) {
			if page == 1 {
				other.Go(func() { replay("b", 3, func(uint64) {}) })
			}
			synctest.Wait()
			// With the last page the read has ended.
			if free := g.places(); page == 5 && free != 1 {
				t.Errorf("page %d: %d places free", page, free)
			}
		})
		other.Wait()
		// a's read was kept when b came: so a has one page more before b's turn.
		if got := strings.Join(turns, ""); got != "aaabbbaaa" {
			t.Errorf("turns %s", got)
		}
	})
}

// TestGateBoundsReads: no more read at once than the gate lets in.
func TestGateBoundsReads(t *testing.T) {
	t.Parallel()
	const sessions, pages = 30, 20
	l, g := &line{}, NewGate(3)
	var all sync.WaitGroup
	for range sessions {
		all.Go(func() {
			s := newTarget(pages * 4)
			r, err := CatchUp(t.Context(), l, s, Options{PageMessages: 4, Gate: g, Hold: time.Hour})
			if err != nil || !r.Live || !slices.Equal(s.taken(), upTo(pages*4)) {
				t.Errorf("%+v, %v", r, err)
			}
		})
	}
	all.Wait()
	if l.most.Load() > 3 || l.open.Load() != 0 || g.free != 3 || g.Waiting() != 0 {
		t.Errorf("%d reads at most, %d open, %d free", l.most.Load(), l.open.Load(), g.free)
	}
}

func TestGate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := NewGate(1)
		if err := g.acquire(t.Context()); err != nil {
			t.Fatal(err)
		}
		var order []int
		var mu sync.Mutex
		var all sync.WaitGroup
		ctx, cancel := context.WithCancel(t.Context())
		for i := range 4 {
			all.Go(func() {
				c := t.Context()
				if i == 1 {
					c = ctx
				}
				if err := g.acquire(c); err != nil {
					if i != 1 || !errors.Is(err, context.Canceled) {
						t.Errorf("%d: %v", i, err)
					}
					return
				}
				mu.Lock()
				order = append(order, i)
				mu.Unlock()
				g.release()
			})
			synctest.Wait()
		}
		if g.Waiting() != 4 {
			t.Errorf("%d wait", g.Waiting())
		}
		cancel()
		synctest.Wait()
		g.release()
		all.Wait()
		if !slices.Equal(order, []int{0, 2, 3}) || g.free != 1 {
			t.Errorf("let in %v, %d free", order, g.free)
		}
		if NewGate(0).free != 64 {
			t.Error("the default is not 64")
		}
	})
}

// TestGateCancelledAndLetIn: cancelled first, and let in before it could leave: the
// place is not lost.
func TestGateCancelledAndLetIn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := NewGate(1)
		var all sync.WaitGroup
		if err := g.acquire(t.Context()); err != nil {
			t.Fatal(err)
		}
		late, cancelLate := context.WithCancel(t.Context())
		all.Go(func() {
			if err := g.acquire(late); !errors.Is(err, context.Canceled) {
				t.Errorf("cancelled and let in: %v", err)
			}
		})
		synctest.Wait()
		g.mu.Lock()
		cancelLate()
		close(g.waiting.Remove(g.waiting.Front()).(chan struct{}))
		g.mu.Unlock()
		all.Wait()
		if g.free != 1 || g.Waiting() != 0 {
			t.Errorf("%d places free, %d wait", g.free, g.Waiting())
		}
	})
}

// TestCancelledReplay: the end of ctx is the end of a session, not a failure.
func TestCancelledReplay(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	m, err := NewMetrics(nil)
	if err != nil {
		t.Fatal(err)
	}
	l, s, g := &line{}, newTarget(100), NewGate(1)
	s.deliver = func([]*schema.Message) (int, error) {
		cancel()
		return 2, ctx.Err()
	}
	r, err := CatchUp(ctx, l, s, Options{Gate: g, Metrics: m})
	if !errors.Is(err, context.Canceled) || r.Live || r.Messages != 2 || g.free != 1 || l.open.Load() != 0 {
		t.Errorf("%+v, %v", r, err)
	}
	if n := testutil.ToFloat64(m.replays.WithLabelValues(Resume, "ended")); n != 1 {
		t.Errorf("counted %v times", n)
	}
	// A gate that is full does not hold up who is cancelled.
	if err := g.acquire(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := CatchUp(ctx, l, newTarget(100), Options{Gate: g}); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewPedanticRegistry()
	m, err := NewMetrics(reg)
	if err != nil {
		t.Fatal(err)
	}
	s := newTarget(5)
	s.deliver = func(msgs []*schema.Message) (int, error) {
		if n := testutil.ToFloat64(m.active); n != 1 {
			t.Errorf("%v replays are active", n)
		}
		return len(msgs), nil
	}
	if _, err := CatchUp(t.Context(), &line{}, s, Options{Metrics: m}); err != nil {
		t.Fatal(err)
	}
	for name, got := range map[string]float64{
		"live":     testutil.ToFloat64(m.replays.WithLabelValues(Resume, "live")) - 1,
		"messages": testutil.ToFloat64(m.messages.WithLabelValues(Resume)) - 5,
		"active":   testutil.ToFloat64(m.active),
		"slow":     testutil.ToFloat64(m.replays.WithLabelValues(Slow, "live")),
	} {
		if got != 0 {
			t.Errorf("%s is off by %v", name, got)
		}
	}
	problems, err := testutil.GatherAndLint(reg)
	if err != nil || len(problems) > 0 {
		t.Errorf("lint: %v, %v", problems, err)
	}
	if n, err := testutil.GatherAndCount(reg, "rewindmq_replays_total", "rewindmq_replay_duration_seconds"); err != nil || n != 8 {
		t.Errorf("%d series, %v", n, err)
	}
	if _, err := NewMetrics(reg); err == nil {
		t.Error("registered twice")
	}
}
