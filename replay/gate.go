package replay

import (
	"container/list"
	"context"
	"sync"
)

// Gate bounds how many replays of a node read the store at once. Who waits is let
// in in turn. Safe for concurrent use; all replays of a node share one.
type Gate struct {
	mu      sync.Mutex
	free    int
	waiting list.List // of chan struct{}, closed when let in; bounded by the sessions
}

// NewGate makes a gate that lets concurrent readers in; 0: 64.
func NewGate(concurrent int) *Gate {
	if concurrent <= 0 {
		concurrent = 64
	}
	return &Gate{free: concurrent}
}

// acquire waits for a place.
func (g *Gate) acquire(ctx context.Context) error {
	g.mu.Lock()
	if g.free > 0 { // then nobody waits: release hands a place on
		g.free--
		g.mu.Unlock()
		return nil
	}
	in := make(chan struct{})
	e := g.waiting.PushBack(in)
	g.mu.Unlock()
	select {
	case <-in:
		return nil
	case <-ctx.Done():
	}
	g.mu.Lock()
	select {
	case <-in: // let in meanwhile: the place is handed on
		g.mu.Unlock()
		g.release()
	default:
		g.waiting.Remove(e)
		g.mu.Unlock()
	}
	return ctx.Err()
}

// release gives a place back: to who waits longest, or to the gate.
func (g *Gate) release() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if e := g.waiting.Front(); e != nil {
		close(g.waiting.Remove(e).(chan struct{}))
		return
	}
	g.free++
}

// Waiting tells how many replays wait for a place.
func (g *Gate) Waiting() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.waiting.Len()
}
