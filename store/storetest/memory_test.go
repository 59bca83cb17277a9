package storetest

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"

	"rewindmq/schema"
	"rewindmq/store"
)

// clock is one that a test moves.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Unix(1_700_000_000, 0)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) Move(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// running runs s until the test ends.
func running(t *testing.T, s store.Store) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

// harness runs a Memory; disturbed: lanes open, retire and stall meanwhile.
func harness(t *testing.T, o Options, disturbed bool) Harness {
	t.Helper()
	cl := newClock()
	o.Now, o.MaxPayload = cl.Now, 10_000
	m := NewMemory(o)
	running(t, m)
	h := Harness{
		Store: m, Clock: cl.Move, MaxPayload: o.MaxPayload,
		Trim: func(upTo schema.Cursor) { m.Trim(upTo) },
	}
	h.Reopen = func() store.Store {
		m = m.Reopen()
		running(t, m)
		return m
	}
	if disturbed {
		var mu sync.Mutex
		n := 0
		h.Disturb = func() {
			mu.Lock()
			defer mu.Unlock()
			n++
			switch lanes := m.Lanes(); n % 4 {
			case 0:
				m.RetireLane(m.OpenLane())
			case 1:
				m.RetireLane(lanes[n/4%len(lanes)])
			case 2:
				m.Stall(lanes[n/4%len(lanes)], true)
				runtime.Gosched()
				m.Stall(lanes[n/4%len(lanes)], false)
			case 3:
				m.Stall(0, true)
				runtime.Gosched()
				m.Stall(0, false)
			}
		}
	}
	return h
}

func TestMemoryKeepsTheContract(t *testing.T) {
	t.Parallel()
	for _, lanes := range []int{1, 3} {
		for _, disturbed := range []bool{false, true} {
			t.Run(fmt.Sprintf("lanes=%d,disturbed=%v", lanes, disturbed), func(t *testing.T) {
				t.Parallel()
				Run(t, func(t *testing.T) Harness { return harness(t, Options{Lanes: lanes, Seed: 5}, disturbed) })
			})
		}
	}
}
