package storetest

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"rewindmq/schema"
	"rewindmq/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// opened gives a running Memory with the suite's helpers.
func opened(t *testing.T, o Options) (*Memory, *check) {
	t.Helper()
	m := NewMemory(o)
	running(t, m)
	return m, newCheck(t, Harness{Store: m})
}

func (c *check) until(m *Memory, n int) {
	c.Helper()
	ctx, cancel := c.wait()
	defer cancel()
	c.must(m.UntilQueued(ctx, n), "UntilQueued(%d)", n)
}

// What is in doubt is not answered, what lies behind it waits; then the truth and
// the answer may differ only by InDoubt.
func TestDoubt(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		landed bool
		answer store.Outcome
		behind store.Outcome
	}{
		{true, store.Stored, store.Stored},
		{false, store.Refused, store.Refused},
		{true, store.InDoubt, store.Refused},
		{false, store.InDoubt, store.Refused},
	} {
		m, c := opened(t, Options{})
		from, p := c.head(), publisher("p")
		m.Doubt()
		first, second := c.message("p", "t/1"), c.message("p", "t/1")
		a := c.submit(context.Background(), p, first)
		c.must(m.UntilDoubt(t.Context(), 1), "UntilDoubt")
		b := c.submit(context.Background(), p, second)
		c.until(m, 2)
		if h := c.head(); !h.Equal(from) {
			t.Errorf("%+v: Head is %v while all is in doubt", tt, h)
		}
		m.Resolve(tt.landed, tt.answer)
		if got := c.answers(a); got[0].Outcome != tt.answer || (got[0].Err == nil) != (tt.answer == store.Stored) {
			t.Errorf("%+v: the answer is %+v", tt, got)
		}
		if got := c.answers(b); got[0].Outcome != tt.behind || tt.behind == store.Refused && !errors.Is(got[0].Err, store.ErrPublisherFailed) {
			t.Errorf("%+v: behind it the answer is %+v", tt, got)
		}
		in := map[schema.ID]bool{}
		for _, msg := range messages(c.events(from, c.head())) {
			in[msg.ID] = true
		}
		if in[first.ID] != tt.landed || in[second.ID] != (tt.behind == store.Stored) {
			t.Errorf("%+v: the log has the first %v, the second %v", tt, in[first.ID], in[second.ID])
		}
		c.stored(publisher("p"), c.message("p", "t/1"))
	}
}

// A batch in doubt may be stored, or not, when the node is killed.
func TestDoubtThenReopen(t *testing.T) {
	t.Parallel()
	m, c := opened(t, Options{})
	from := c.head()
	m.Doubt()
	a := c.submit(context.Background(), publisher("p"), c.message("p", "t/1"))
	c.must(m.UntilDoubt(t.Context(), 1), "UntilDoubt")
	m = m.Reopen()
	running(t, m)
	c.s = m
	c.stored(publisher("p"), c.message("p", "t/1"))
	if got := messages(c.events(from, c.head())); len(got) != 1 {
		t.Errorf("%d messages", len(got))
	}
	select {
	case got := <-a:
		t.Errorf("answered after SIGKILL: %+v", got)
	default:
	}
}

func TestStall(t *testing.T) {
	t.Parallel()
	m, c := opened(t, Options{Lanes: 1})
	lane := m.Lanes()[0]
	m.Stall(lane, true)
	ctx, cancel := context.WithCancel(context.Background())
	a := c.submit(ctx, publisher("p"), c.message("p", "t/1"))
	b := c.submit(context.Background(), publisher("q"), c.message("q", "t/1"))
	c.until(m, 2)
	cancel() // what is not being written is refused at once
	if got := c.answers(a); got[0].Outcome != store.Refused || !errors.Is(got[0].Err, context.Canceled) {
		t.Errorf("ctx ended while it waited: %+v", got)
	}
	m.Stall(lane, false)
	if got := c.answers(b); got[0].Outcome != store.Stored {
		t.Errorf("after the stall: %+v", got)
	}
}

// While there is no room, a strict publisher's messages wait; others are refused.
func TestRefuseNoSpace(t *testing.T) {
	t.Parallel()
	m, c := opened(t, Options{Lanes: 1})
	m.Refuse(store.ErrNoSpace)
	c.head() // it runs
	if err := m.Ready(t.Context()); !errors.Is(err, store.ErrNoSpace) {
		t.Errorf("Ready: %v", err)
	}
	strict, loose := publisher("s"), publisher("l")
	strict.Strict = true
	a := c.submit(context.Background(), strict, c.message("s", "t/1"))
	got := c.append(loose, c.message("l", "t/1"))
	if got[0].Outcome != store.Refused || !errors.Is(got[0].Err, store.ErrNoSpace) {
		t.Errorf("not strict: %+v", got)
	}
	select {
	case got := <-a:
		t.Errorf("strict: %+v", got)
	default:
	}
	m.Refuse(nil)
	if got := c.answers(a); got[0].Outcome != store.Stored {
		t.Errorf("strict, with room again: %+v", got)
	}
	c.stored(loose, c.message("l", "t/1")) // a refusal that was told does not fail it
}

// A session claimed elsewhere: Watch tells, its writes are lost, and what waits of
// it is not stored any more (L8, L11).
func TestClaimedElsewhere(t *testing.T) {
	t.Parallel()
	m, c := opened(t, Options{})
	mine := c.claim("c")
	b := c.baseline(mine.Owner, 0)
	ctx, cancel := c.wait()
	defer cancel()
	w, err := m.Watch(ctx)
	c.must(err, "Watch")
	from := c.head()
	m.Stall(0, true)
	p := &store.Publisher{Owner: mine.Owner}
	a := c.submit(context.Background(), p, c.message("c", "t/1"))
	c.until(m, 1)
	other := m.ClaimElsewhere("c")
	m.Stall(0, false)
	if got := c.answers(a); got[0].Outcome != store.Refused || !errors.Is(got[0].Err, store.ErrSessionLost) {
		t.Errorf("what waited: %+v", got)
	}
	lost, err := w.Next(ctx)
	c.must(err, "Next of a Watch")
	if len(lost) != 1 || lost[0] != (store.Lost{ClientID: "c", Epoch: other.Epoch}) || other.SID != mine.SID {
		t.Errorf("lost %+v, claimed elsewhere by %+v", lost, other)
	}
	for _, k := range kinds() {
		if err := k.try(c, mine.Owner, b); !errors.Is(err, store.ErrSessionLost) {
			t.Errorf("%s: %v", k.name, err)
		}
	}
	if got := messages(c.events(from, c.head())); len(got) != 0 {
		t.Errorf("%d messages of an owner that was lost", len(got))
	}
	back := c.claim("c")
	b.cur.Seq = back.Cursor.Seq
	c.wantBaseline("claimed back", back, b)
	m.Lapse()
	if lost, err := w.Next(ctx); err != nil || len(lost) != 1 || lost[0].ClientID != "" {
		t.Errorf("lapsed: %+v, %v", lost, err)
	}
}

// Two nodes on one Model: a claim of one waits for the other to let go, and a
// second at most.
func TestJoin(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := NewMemory(Options{Wait: time.Second})
		b := a.Join()
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 2)
		for _, m := range []*Memory{a, b} {
			go func() { ended <- m.Run(ctx) }()
		}
		ca, cb := newCheck(t, Harness{Store: a}), newCheck(t, Harness{Store: b})
		first := ca.claim("c")
		w, err := a.Watch(ctx)
		ca.must(err, "Watch")
		released := make(chan struct{})
		go func() { // the old owner: sees the claim, lets go
			defer close(released)
			lost, err := w.Next(ctx)
			if err != nil || lost[0].ClientID != "c" || lost[0].Epoch <= first.Epoch {
				t.Errorf("Watch: %+v, %v", lost, err)
			}
			ca.write(store.SaveCursor{Owner: first.Owner, Cursor: schema.SessionCursor{After: schema.At(1, 8), Seq: 4}})
			ca.write(store.Release{Owner: first.Owner})
		}()
		start := time.Now()
		second := cb.claim("c")
		<-released
		if !second.Released || second.Cursor.Seq != 4 || time.Since(start) != 0 {
			t.Errorf("after %v: %+v", time.Since(start), second)
		}
		start = time.Now()
		if third := ca.claim("c"); third.Released || time.Since(start) != time.Second {
			t.Errorf("nobody lets go: after %v, %+v", time.Since(start), third)
		}
		b.Kill()
		if d, _, _ := a.m.Owner("c"); d.Epoch == 0 {
			t.Error("the session is gone")
		}
		cancel()
		for range 2 {
			if err := <-ended; err != nil {
				t.Errorf("Run: %v", err)
			}
		}
	})
}

// The keeper's part for a node that was killed: its lanes retire, its sessions are
// finished, its wills are due.
func TestKilledNodeIsFinished(t *testing.T) {
	t.Parallel()
	a, ca := opened(t, Options{})
	b := a.Join()
	running(t, b)
	cb := newCheck(t, Harness{Store: b})
	ca.ask(store.Claim{ClientID: "c", Expiry: forever, At: ca.head(), Will: aWill("w", 0)})
	ca.stored(publisher("p"), ca.message("p", "t/1"))
	lanes := a.Lanes()
	cb.wantDue("the other node lives")
	a.Kill()
	cb.wantDue("the other node was killed", "c")
	for _, k := range lanes {
		if _, open := cb.head().N(k); open {
			t.Errorf("lane %d of the node that was killed is open", k)
		}
	}
	if got := cb.claim("c"); !got.Present || len(got.Wills) != 1 {
		t.Errorf("claimed: %+v", got)
	}
}

func TestHoldAndFail(t *testing.T) {
	t.Parallel()
	m, c := opened(t, Options{})
	got := c.claim("c")
	m.Hold(true)
	ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	if errs := m.Record(ctx, []schema.Delivery{c.delivery(got.Owner, 1, 1, 1, 1)}); !errIsCtx(errs[0]) {
		t.Errorf("a record while held: %v", errs)
	}
	m.Hold(false)
	broken := errors.New("broken")
	m.Fail(broken)
	if _, err := m.Head(t.Context()); !errors.Is(err, broken) {
		t.Errorf("Head: %v", err)
	}
	if err := c.tryRecord(c.delivery(got.Owner, 1, 1, 1, 1))[0]; !errors.Is(err, broken) {
		t.Errorf("Record: %v", err)
	}
	if err := m.Claim(t.Context(), []store.Claim{{ClientID: "c"}})[0].Err; !errors.Is(err, broken) {
		t.Errorf("Claim: %v", err)
	}
	m.Fail(nil)
	if next := c.next(got.Owner); len(next.Cursor.Flight) != 0 || next.Epoch != got.Epoch+1 && next.Epoch <= got.Epoch {
		t.Errorf("what failed was stored: %+v", next)
	}
}

// Run settles what it can and returns; calls afterwards say that it is closed.
func TestRunEnds(t *testing.T) {
	t.Parallel()
	m := NewMemory(Options{})
	c := newCheck(t, Harness{Store: m})
	early := c.submit(context.Background(), publisher("p"), c.message("p", "t/1")) // waits for Run
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	if got := c.answers(early); got[0].Outcome != store.Stored {
		t.Errorf("appended before Run: %+v", got)
	}
	m.Stall(0, true)
	late := c.submit(context.Background(), publisher("p"), c.message("p", "t/1"))
	c.until(m, 1)
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
	if got := c.answers(late); got[0].Outcome != store.Refused || !errors.Is(got[0].Err, store.ErrClosed) {
		t.Errorf("stalled when Run ended: %+v", got)
	}
	if got := c.append(publisher("p"), c.message("p", "t/1")); got[0].Outcome != store.Refused || !errors.Is(got[0].Err, store.ErrClosed) {
		t.Errorf("appended afterwards: %+v", got)
	}
	if _, err := m.Head(context.Background()); !errors.Is(err, store.ErrClosed) {
		t.Errorf("Head afterwards: %v", err)
	}
	if err := m.Run(context.Background()); !errors.Is(err, store.ErrClosed) {
		t.Errorf("Run again: %v", err)
	}
}

// The free order between lanes: two seeds differ, and both keep what a read
// promises.
func TestReadOrderIsDrawn(t *testing.T) {
	t.Parallel()
	orders := map[string]bool{}
	for seed := range uint64(4) {
		_, c := opened(t, Options{Lanes: 3, Seed: seed + 1})
		from := c.head()
		for i := range 30 {
			name := string(rune('a' + i%6))
			c.stored(publisher(name), c.message(name, "t/1"))
		}
		events := c.events(from, c.head())
		got := c.read(from, c.head(), "t/1")
		c.wantRead(events, from, c.head(), []string{"t/1"}, got)
		order := ""
		for _, m := range got {
			order += m.Mark.String() + " "
		}
		orders[order] = true
	}
	if len(orders) < 2 {
		t.Error("every seed gives one order")
	}
}

func TestBreakUnknownRule(t *testing.T) {
	t.Parallel()
	for name, text := range Rules() {
		NewModel(time.Time{}).Break(name)
		if text == "" {
			t.Errorf("rule %q has no text", name)
		}
	}
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	NewModel(time.Time{}).Break("no such")
}

// BenchmarkModel is a run of a simulation's size: a few hundred operations.
func BenchmarkModel(b *testing.B) {
	b.ReportAllocs()
	seed := uint64(0)
	for b.Loop() {
		seed++
		if got := newClaimWorld(seed).run(300); got != "" {
			b.Fatal(got)
		}
	}
}

func BenchmarkLand(b *testing.B) {
	b.ReportAllocs()
	m := NewModel(time.Unix(1, 0))
	k := m.OpenLane(m.StartNode())
	for b.Loop() {
		m.Land(k, 0, &schema.Message{ID: m.NewID(), Topic: "t"})
	}
}
