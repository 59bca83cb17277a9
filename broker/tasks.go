package broker

import "sync"

// tasks counts the short-lived goroutines of a broker. A sync.WaitGroup would
// not do: connections may still ask for one while Run waits for the last.
type tasks struct {
	mu     sync.Mutex
	n      int
	closed bool
	zero   sync.Cond
}

func (t *tasks) init() { t.zero.L = &t.mu }

// Go runs fn in a goroutine of its own; after wait has returned it does nothing.
func (t *tasks) Go(fn func()) {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return
	}
	t.n++
	t.mu.Unlock()
	go func() {
		defer t.done()
		fn()
	}()
}

func (t *tasks) done() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.n--; t.n == 0 {
		t.zero.Broadcast()
	}
}

// wait waits until none is left, and lets none begin any more.
func (t *tasks) wait() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for t.n > 0 {
		t.zero.Wait()
	}
	t.closed = true
}
