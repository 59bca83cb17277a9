package broker

import "sync"

// deferred is what the owner of a lock has decided and may not do while it holds it: it
// may wait, or needs a lock that comes before. One goroutine at a time does it, in
// order, without the lock. Bounded by what the owner decides before it is done.
type deferred[A any] struct {
	tasks *tasks
	mu    *sync.Mutex // the owner's
	carry func(a *A)  // without mu

	waiting []A
	running bool
}

// put queues one. REQUIRES: mu.
func (d *deferred[A]) put(a A) {
	d.waiting = append(d.waiting, a)
	if !d.running {
		d.running = true
		d.tasks.Go(d.run)
	}
}

func (d *deferred[A]) run() {
	for {
		d.mu.Lock()
		if len(d.waiting) == 0 {
			d.running, d.waiting = false, nil
			d.mu.Unlock()
			return
		}
		a := d.waiting[0]
		d.waiting = d.waiting[1:]
		d.mu.Unlock()
		d.carry(&a)
	}
}
