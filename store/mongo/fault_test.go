package mongo

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"rewindmq/integration/mongod"
	"rewindmq/schema"
	"rewindmq/store"
)

// ownSet starts a replica set that the test may hurt.
func ownSet(t *testing.T, members int, params ...string) *mongod.Set {
	t.Helper()
	mongod.Need(t)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	set, err := mongod.Start(ctx, mongod.Options{Dir: t.TempDir(), Members: members, Parameters: params})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(set.Stop)
	return set
}

// live is a tail that runs beside a load.
type live struct {
	mu     sync.Mutex
	events []store.Event
	gone   chan struct{}
	err    error
	tail   *tail
}

func runTail(ctx context.Context, t *testing.T, s *Store, after schema.Cursor) *live {
	t.Helper()
	tl, err := s.Tail(ctx, after)
	if err != nil {
		t.Fatal(err)
	}
	v := &live{gone: make(chan struct{}), tail: tl.(*tail)}
	go func() {
		defer close(v.gone)
		defer tl.Close()
		for {
			got, err := tl.Next(ctx)
			if err != nil {
				v.err = err
				return
			}
			v.mu.Lock()
			v.events = append(v.events, got...)
			v.mu.Unlock()
		}
	}()
	return v
}

// passed waits until the tail has passed upTo, and gives its events.
func (v *live) passed(ctx context.Context, t *testing.T, after, upTo schema.Cursor) []store.Event {
	t.Helper()
	for {
		v.mu.Lock()
		n := len(v.events)
		h := after
		if n > 0 {
			h = v.events[n-1].H
		}
		out := append([]store.Event(nil), v.events...)
		v.mu.Unlock()
		if h.Covers(upTo) {
			return out
		}
		select {
		case <-v.gone:
			t.Fatalf("the tail ended at %v: %v", h, v.err)
		default:
		}
		if rest(ctx, 20*time.Millisecond) != nil {
			t.Fatalf("the tail stands at %v and does not reach %v", h, upTo)
		}
	}
}

// underFault lets two nodes append while hurt hurts the set, and holds what their
// tails yield, live and afterwards, against what the publishers were told.
func underFault(t *testing.T, set *mongod.Set, tune func(*Options), hurt func(ctx context.Context)) *ledger {
	t.Helper()
	r := rigOn(t, set)
	r.o.Attempt, r.o.Lease = 2*time.Second, 10*time.Second
	if tune != nil {
		tune(&r.o)
	}
	a, b := r.start(), r.start()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	from, err := a.Head(ctx)
	if err != nil {
		t.Fatal(err)
	}
	l := newLedger(t)
	va, vb := runTail(ctx, t, a, from), runTail(ctx, t, b, from)
	load, stop := context.WithCancel(ctx)
	var pubs sync.WaitGroup
	for i := range 6 {
		s := a
		if i%2 == 1 {
			s = b
		}
		pubs.Go(func() {
			for load.Err() == nil {
				l.publish(ctx, s, fmt.Sprintf("p%d", i), 100, 10)
			}
		})
	}
	enough := func(n int) {
		for {
			if s, _, _, _ := l.counts(); s >= n {
				return
			}
			if rest(ctx, 10*time.Millisecond) != nil {
				t.Fatal("appends do not go on")
			}
		}
	}
	enough(1000)
	hurt(ctx)
	s, _, _, _ := l.counts()
	enough(s + 1000)
	stop()
	pubs.Wait()
	upTo, err := b.Head(ctx)
	if err != nil {
		t.Fatal(err)
	}
	l.check("live on a", va.passed(ctx, t, from, upTo))
	l.check("live on b", vb.passed(ctx, t, from, upTo))
	l.check("afterwards", follow(ctx, t, a, from, upTo))
	stored, refused, doubt, open := l.counts()
	t.Logf("%d stored, %d refused, %d in doubt, %d open", stored, refused, doubt, open)
	if open > 0 {
		t.Errorf("%d appends were not answered", open)
	}
	return l
}

// A paused server for longer than an attempt, but not than append.hold: everything
// is settled, nothing refused.
func TestPausedServer(t *testing.T) {
	t.Parallel()
	set := ownSet(t, 1)
	l := underFault(t, set, func(o *Options) { o.Attempt = 500 * time.Millisecond }, func(ctx context.Context) {
		set.Members()[0].Pause()
		_ = rest(ctx, 2*time.Second)
		set.Members()[0].Resume()
	})
	if _, refused, doubt, _ := l.counts(); refused+doubt > 0 {
		t.Errorf("%d refused, %d in doubt", refused, doubt)
	}
}

// L1: a batch that was given up must not commit later, behind what follows it.
func TestL1_GivenUpBatchNeverCommits(t *testing.T) {
	t.Parallel()
	set := ownSet(t, 1)
	l := underFault(t, set, func(o *Options) { o.Attempt, o.Hold = 300*time.Millisecond, time.Second }, func(ctx context.Context) {
		for range 3 {
			set.Members()[0].Pause()
			_ = rest(ctx, 2500*time.Millisecond)
			set.Members()[0].Resume()
			_ = rest(ctx, 300*time.Millisecond)
		}
	})
	if _, refused, doubt, _ := l.counts(); refused+doubt == 0 {
		t.Error("nothing was given up: the test shows nothing")
	}
}

// L2: a step-down in the middle of batches.
func TestL2_StepDown(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("three members in a short run")
	}
	set := ownSet(t, 3)
	l := underFault(t, set, nil, func(ctx context.Context) {
		for range 2 {
			if err := set.StepDown(ctx); err != nil {
				t.Error(err)
			}
			if _, err := set.Primary(ctx); err != nil {
				t.Error(err)
			}
			_ = rest(ctx, time.Second)
		}
	})
	if _, refused, doubt, _ := l.counts(); refused+doubt > 0 {
		t.Errorf("%d refused, %d in doubt", refused, doubt)
	}
}

// The primary is killed.
func TestPrimaryKilled(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("three members in a short run")
	}
	set := ownSet(t, 3)
	l := underFault(t, set, nil, func(ctx context.Context) {
		p, err := set.Primary(ctx)
		if err != nil {
			t.Fatal(err)
		}
		p.Kill()
		if _, err := set.Primary(ctx); err != nil {
			t.Error(err)
		}
		if err := p.Start(); err != nil {
			t.Error(err)
		}
	})
	if _, refused, doubt, _ := l.counts(); refused+doubt > 0 {
		t.Errorf("%d refused, %d in doubt", refused, doubt)
	}
}

// The only member is killed and started again.
func TestServerKilled(t *testing.T) {
	t.Parallel()
	set := ownSet(t, 1)
	underFault(t, set, nil, func(ctx context.Context) {
		m := set.Members()[0]
		m.Kill()
		if err := m.Start(); err != nil {
			t.Error(err)
		}
		if _, err := set.Primary(ctx); err != nil {
			t.Error(err)
		}
	})
}
