package broker

import (
	"context"
	"sync"
)

// laneBatch bounds what a lane hands to the store at once. A store spreads it again,
// over its own lanes: it has to be several of their batches, or they stay small.
const laneBatch = 2000

// lane hands what is waiting to the store in one batch, one batch at a time: so
// batches grow with the load, and no write overtakes another. What waits is
// bounded by those who put it: each waits for the answer before it goes beyond
// its own bound.
type lane[T any] struct {
	mu    sync.Mutex
	items []T
	wake  chan struct{}
	done  bool
}

func newLane[T any]() *lane[T] { return &lane[T]{wake: make(chan struct{}, 1)} }

// put adds an item; it never blocks. false: the lane has ended.
func (l *lane[T]) put(item T) bool {
	l.mu.Lock()
	if l.done {
		l.mu.Unlock()
		return false
	}
	l.items = append(l.items, item)
	first := len(l.items) == 1
	l.mu.Unlock()
	if first {
		select {
		case l.wake <- struct{}{}:
		default:
		}
	}
	return true
}

// run calls do with each batch until ctx ends and nothing waits.
func (l *lane[T]) run(ctx context.Context, do func(batch []T)) {
	var batch []T
	for {
		l.mu.Lock()
		n := min(len(l.items), laneBatch)
		batch = append(batch[:0], l.items[:n]...)
		rest := copy(l.items, l.items[n:])
		clear(l.items[rest:])
		l.items = l.items[:rest]
		if n == 0 && ctx.Err() != nil {
			l.done = true
			l.mu.Unlock()
			return
		}
		l.mu.Unlock()
		if n > 0 {
			do(batch)
			clear(batch)
			continue
		}
		select {
		case <-l.wake:
		case <-ctx.Done():
		}
	}
}
