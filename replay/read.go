package replay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"rewindmq/schema"
	"rewindmq/store"
)

// reading is an open read of the log together with its place in the gate. Between
// two pages it is kept for a short while, as opening it again has a price: but a
// timer closes it when the session lets it wait.
type reading struct {
	gate  *Gate
	timer *time.Timer
	fired chan struct{} // closed when the timer's function has ended

	mu   sync.Mutex // against the timer
	msgs store.Messages
	err  error // of a Close by the timer
}

// open opens the read, unless it was kept. It takes a place in the gate.
func (r *reading) open(ctx context.Context, src Source, after, upTo schema.Cursor, filters []string) error {
	if r.msgs != nil {
		return nil
	}
	if err := r.gate.acquire(ctx); err != nil {
		return err
	}
	msgs, err := src.Read(ctx, after.Clone(), upTo, filters) // the caller moves its own
	if err != nil {
		r.gate.release()
		return fmt.Errorf("replay: read after %v up to %v: %w", after, upTo, err)
	}
	r.msgs = msgs
	return nil
}

// page reads until one of the bounds is reached, or the end. It uses dst's memory.
func (r *reading) page(ctx context.Context, dst []*schema.Message, messages, bytes int) (page []*schema.Message, end bool, err error) {
	page = dst[:0]
	for size := 0; len(page) < messages && size < bytes; {
		m, err := r.msgs.Next(ctx)
		if errors.Is(err, io.EOF) {
			return page, true, nil
		}
		if err != nil {
			return page, false, fmt.Errorf("replay: read: %w", err)
		}
		page = append(page, m)
		size += m.Size()
	}
	return page, false, nil
}

// close lets go of the read and of the place in the gate. It may be called twice.
func (r *reading) close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.msgs != nil {
		if err := r.msgs.Close(); err != nil {
			r.err = errors.Join(r.err, fmt.Errorf("replay: close the read: %w", err))
		}
		r.msgs = nil
		r.gate.release()
	}
	return r.err
}

// keep leaves the read open for no longer than hold, unless others wait for its
// place. From now until resume the timer may close it.
func (r *reading) keep(hold time.Duration) error {
	if hold < 0 || r.gate.Waiting() > 0 {
		return r.close()
	}
	fired := make(chan struct{})
	r.fired = fired
	r.timer = time.AfterFunc(hold, func() {
		defer close(fired)
		_ = r.close() // noted in err, and returned by resume
	})
	return nil
}

// resume takes the read back from the timer, and waits for the timer's end.
func (r *reading) resume() error {
	if r.timer != nil {
		if !r.timer.Stop() {
			<-r.fired
		}
		r.timer = nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}
