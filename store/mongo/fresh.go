package mongo

import (
	"context"
	"sync"

	"go.mongodb.org/mongo-driver/v2/bson"
)

// fresher gives operation times that are fresh: of a majority write that began
// after the call. One write serves all that wait.
type fresher struct {
	s *Store

	mu      sync.Mutex
	running bool
	next    *round // who asked after the running write began
}

type round struct {
	done chan struct{}
	at   bson.Timestamp
	err  error
}

// time waits for a write that begins after the call.
func (f *fresher) time(ctx context.Context) (bson.Timestamp, error) {
	f.mu.Lock()
	if f.next == nil {
		f.next = &round{done: make(chan struct{})}
	}
	r := f.next
	if !f.running {
		f.running = true
		f.s.work.Go(f.run)
	}
	f.mu.Unlock()
	select {
	case <-r.done:
		return r.at, r.err
	case <-ctx.Done():
		return bson.Timestamp{}, ctx.Err()
	}
}

// run writes as long as somebody waits. It owns the driver session of the
// heartbeats: one write in flight.
func (f *fresher) run() {
	for {
		f.mu.Lock()
		r := f.next
		f.next = nil
		if r == nil {
			f.running = false
			f.mu.Unlock()
			return
		}
		f.mu.Unlock()
		ctx, cancel := context.WithTimeout(f.s.life, f.s.o.Attempt)
		r.at, r.err = f.s.renew(ctx)
		cancel()
		close(r.done)
	}
}
