package fanout

import (
	"runtime"
	"sync"
	"testing"

	"rewindmq/schema"
	"rewindmq/store"
)

// runner is a session in a goroutine of its own, on a log of one lane in which
// message n carries n. It merges with H whenever it has nothing left.
type runner struct {
	m    *Membership
	room int

	mu    sync.Mutex
	live  bool
	holds bool
	queue []uint64
}

func (r *runner) Offer(m *schema.Message) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.holds || len(r.queue) == r.room {
		r.live, r.holds, r.queue = false, false, nil
		return false
	}
	r.queue = append(r.queue, m.Mark.N)
	return true
}

// catchUp reads up to H and goes live if the buffer held.
func (r *runner) catchUp(take func(n uint64), place func() uint64) {
	var upTo uint64
	r.m.Attach(func(H schema.Cursor) {
		upTo, _ = H.N(1)
		r.mu.Lock()
		r.holds, r.queue = true, nil
		r.mu.Unlock()
	})
	for n := place() + 1; n <= upTo; n++ {
		take(n)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.live = r.holds
}

// run takes messages until it has passed last, and gives what it took.
func (r *runner) run(h *Hub, last uint64) (got []uint64) {
	taken := schema.At(1, 0)
	place := func() uint64 { n, _ := taken.N(1); return n }
	take := func(n uint64) {
		if m := (schema.Mark{Lane: 1, N: n}); taken.After(m) {
			taken.Advance(m)
			got = append(got, n)
		}
	}
	for i := 0; place() < last; i++ {
		at := h.H() // before the look into the queue
		r.mu.Lock()
		live, queue := r.live, r.queue
		r.queue = nil
		if live && len(queue) == 0 {
			taken.Merge(at)
		}
		r.mu.Unlock()
		for _, n := range queue {
			if live {
				take(n)
			}
		}
		switch {
		case !live:
			r.catchUp(take, place)
		case i%97 == 0: // a cut
			r.m.Detach()
			r.mu.Lock()
			r.live, r.holds, r.queue = false, false, nil
			r.mu.Unlock()
		default:
			runtime.Gosched()
		}
	}
	return got
}

// TestHubConcurrent: the same as TestHubExactlyOnce, with goroutines. H must not
// be visible before what it covers has been offered.
func TestHubConcurrent(t *testing.T) {
	t.Parallel()
	const last = 30_000
	h := stepped(Options{})
	var sessions, comers sync.WaitGroup
	for i := range 6 {
		r := &runner{room: 1 + 8*i}
		r.m = h.Join(r)
		r.m.Subscribe("t", "+")
		sessions.Go(func() {
			got := r.run(h, last)
			for k, n := range got {
				if n != uint64(k+1) {
					t.Errorf("room %d: message %d came as number %d", r.room, n, k+1)
					return
				}
			}
			if len(got) != last {
				t.Errorf("room %d: %d messages, want %d", r.room, len(got), last)
			}
		})
	}
	stop := make(chan struct{})
	comers.Go(func() { // others come and go
		for {
			select {
			case <-stop:
				return
			default:
			}
			m := h.Join(newCollector(10))
			m.Subscribe("t")
			m.Attach(nowhere)
			m.Leave()
		}
	})
	for n := 1; n <= last; n += 5 {
		var events []store.Event
		for k := n; k < min(n+5, last+1); k++ {
			events = append(events, event(k, "t"))
		}
		h.step(events)
	}
	sessions.Wait()
	close(stop)
	comers.Wait()
}
