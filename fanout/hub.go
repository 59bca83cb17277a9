package fanout

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"rewindmq/schema"
	"rewindmq/store"
)

// ErrStopped answers those who wait for a hub that has ended.
var ErrStopped = errors.New("fanout: hub stopped")

// lockedEvents is how many events are offered under one hold of the hub's lock.
const lockedEvents = 64

// Subscriber is what the hub feeds: one session.
type Subscriber interface {
	// Offer hands over an event's message that matches one of the subscriber's
	// filters. It must not block nor call the hub's waiting methods; the message
	// is shared and must not be changed. It is called by one goroutine at a
	// time, under the hub's lock. false: the subscriber is full, and has not
	// taken this message: the hub lets go of it and offers nothing more until
	// the next Attach.
	Offer(m *schema.Message) bool
}

// Options tune a Hub. The zero value is usable.
type Options struct {
	// CacheBytes bounds the memory of the last messages, in bytes as
	// schema.Message.Size counts them, and 48 for each. 0: 64 MiB; negative:
	// none.
	CacheBytes int64
	// Observe is called with every message of the log, in the order of the tail,
	// before it is offered and before H covers it. It is called without a lock,
	// by Run's goroutine, and must not block. nil: nobody looks.
	Observe func(m *schema.Message)
	// Metrics are fed by the hub; nil: nobody counts.
	Metrics *Metrics
}

// Hub is the one tail of the log in each node. Safe for concurrent use.
//
// # Steps
//
// Run takes a batch of events from the tail. For a few of them at a time it
//
//  1. shows each message to Observe and puts it into the memory of the last ones;
//  2. takes the lock; for each event it matches the topic, offers the message
//     once to each attached subscriber, and moves `at` to the event's H;
//  3. publishes `at` as H, wakes who waits for it, and gives up the lock.
//
// Attach takes the same lock: it tells the subscriber `at`, and attaches it.
//
// # Why a message is in neither the read nor the offers of no subscriber
//
// A session that catches up attaches, which gives it a cursor X, and reads what
// is after its own vector and not after X. Take any message e that matches.
//
// The tail yields e once, with the cursor that it leads to. Step 2 of e and the
// Attach exclude each other, so one is first. If e is first, `at` has moved over
// it: e is not after X. X is a cursor that the tail has reached, so the read has e
// (promise 4 of store), and it was not offered, as the subscriber was not
// attached. If the Attach is first, e is after X, as the tail yields nothing
// twice: the read has it not, and it is offered. When e was committed, or when
// the read met it in the store, does not matter (T9). `at` moves by events, not
// by time stamps or batches, so a cut between two messages of one time stamp is
// a cut like any other (T10).
//
// A subscriber whose own vector is ahead of the hub, as it came from another
// node, is offered what it has had: it drops what is not after its own vector
// (T6). So the hub need not know where its subscribers stand.
//
// A refused offer detaches under the lock, in the same step: between the refused
// message and the next Attach nothing is offered, so what the subscriber has is
// never a sequence with a hole in it.
//
// Invariant: H is published after the offers. So who is attached, reads H first
// and then finds that it has nothing left of what was offered, has passed H and
// may merge with it. (The other way round would be wrong: an offer may come
// between the look and the H.)
//
// # Filters
//
// Subscribe puts the filters into the trie and then passes through the lock, and
// matching happens under the lock. So each event is either in `at` when Subscribe
// returns, or is matched with the new filters.
type Hub struct {
	tailer store.Tailer
	o      Options
	trie   *Trie[*Membership]
	recent *recent

	ready   chan struct{} // closed when the first H stands
	stopped chan struct{} // closed when Run has ended
	start   schema.Cursor // written before ready is closed
	// published is `at` as it stood after some event. Invariant: everything not
	// after it has been offered.
	published atomic.Pointer[schema.Cursor]

	// mu comes before a subscriber's own lock. It is never held while waiting.
	mu sync.Mutex
	// at is H in the middle of a step. Invariant: under mu, everything not after
	// at has been offered, and nothing that is after it.
	at      schema.Cursor
	event   uint64        // counts events, to offer each once per subscriber
	matched []*Membership // Run's, used again for each event

	waiting waiters
}

// New makes a hub that tails the log; Run starts it.
func New(tailer store.Tailer, o Options) *Hub {
	if o.CacheBytes == 0 {
		o.CacheBytes = 64 << 20
	}
	if o.Metrics == nil {
		o.Metrics, _ = NewMetrics(nil) // without a registry it cannot fail
	}
	h := &Hub{
		tailer: tailer, o: o, trie: NewTrie[*Membership](), recent: newRecent(max(o.CacheBytes, 0)),
		ready: make(chan struct{}), stopped: make(chan struct{}),
	}
	h.published.Store(new(schema.Cursor))
	return h
}

// Run tails the log from its present head. It returns nil when ctx has ended, or
// the error of the store. It may be called once.
func (h *Hub) Run(ctx context.Context) (err error) {
	defer close(h.stopped)
	defer func() {
		if ctx.Err() != nil {
			err = nil
		}
	}()
	head, err := h.tailer.Head(ctx)
	if err != nil {
		return fmt.Errorf("fanout: head of the log: %w", err)
	}
	tail, err := h.tailer.Tail(ctx, head)
	if err != nil {
		return fmt.Errorf("fanout: open the tail at %v: %w", head, err)
	}
	defer func() { err = errors.Join(err, tail.Close()) }()
	h.begin(head)
	for {
		events, err := tail.Next(ctx)
		if err != nil {
			return fmt.Errorf("fanout: tail at %v: %w", h.H(), err)
		}
		for len(events) > 0 {
			n := min(len(events), lockedEvents)
			h.step(events[:n])
			events = events[n:]
		}
	}
}

// begin sets the first H.
func (h *Hub) begin(head schema.Cursor) {
	h.recent.begin(head)
	h.mu.Lock()
	h.at, h.start = head, head
	h.publish()
	h.mu.Unlock()
	close(h.ready)
}

// step carries out the three steps of the type comment for a few events.
func (h *Hub) step(events []store.Event) {
	if h.o.Observe != nil {
		for i := range events {
			if m := events[i].Message; m != nil {
				h.o.Observe(m)
			}
		}
	}
	// Before H is published: who reads up to H finds it there.
	h.o.Metrics.RecentBytes.Set(float64(h.recent.add(events)))
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range events {
		if m := events[i].Message; m != nil {
			h.offer(m)
		}
		h.at = events[i].H
	}
	h.publish()
}

// offer gives m to each attached subscriber with a filter that matches, once.
// REQUIRES: mu.
func (h *Hub) offer(m *schema.Message) {
	h.event++
	h.matched = h.trie.Match(m.Topic, h.matched[:0])
	for _, s := range h.matched {
		if s.last == h.event || !s.attached.Load() {
			continue
		}
		s.last = h.event
		if !s.subscriber.Offer(m) {
			s.attached.Store(false)
			h.o.Metrics.Refused.Inc()
		}
	}
	clear(h.matched) // a subscriber that has left is not kept in memory
}

// publish makes `at` the H that everybody sees. REQUIRES: mu.
func (h *Hub) publish() {
	at := h.at
	h.published.Store(&at)
	h.waiting.wake(at)
	var sum uint64
	for _, m := range at.Marks() {
		sum += m.N
	}
	h.o.Metrics.TailSequence.Set(float64(sum))
}

// Ready is closed when the first H stands.
func (h *Hub) Ready() <-chan struct{} { return h.ready }

// Start gives the first H. REQUIRES: Ready is closed.
func (h *Hub) Start() schema.Cursor {
	select {
	case <-h.ready:
		return h.start
	default:
		panic("fanout: Start of a hub that is not ready")
	}
}

// H gives a cursor: everything not after it has been offered. It takes no lock,
// and is the zero cursor until Ready. The caller only reads it.
//
// A subscriber that merges with H has to be attached, read H first, and then see
// that nothing of what was offered is left with it.
func (h *Hub) H() schema.Cursor { return *h.published.Load() }

// WaitFor waits until H covers c: everything not after c has been offered. It
// returns ctx's error, or ErrStopped when the hub ends first. The caller does not
// change c meanwhile.
func (h *Hub) WaitFor(ctx context.Context, c schema.Cursor) error {
	w := h.waiting.join(h, c)
	if w == nil {
		return nil
	}
	defer h.waiting.leave(w)
	select {
	case <-w.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-h.stopped:
		return ErrStopped
	}
}

// waiters are those who wait for H: at most one for each caller of WaitFor.
type waiters struct {
	mu  sync.Mutex
	set map[*waiter]struct{}
}

type waiter struct {
	until schema.Cursor
	done  chan struct{}
}

// join gives nil when H covers c. H is published before wake takes the lock, so
// either join sees that H, or wake sees the waiter.
func (ws *waiters) join(h *Hub, c schema.Cursor) *waiter {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if h.H().Covers(c) {
		return nil
	}
	w := &waiter{until: c, done: make(chan struct{})}
	if ws.set == nil {
		ws.set = make(map[*waiter]struct{})
	}
	ws.set[w] = struct{}{}
	return w
}

func (ws *waiters) leave(w *waiter) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	delete(ws.set, w)
}

func (ws *waiters) wake(at schema.Cursor) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	for w := range ws.set {
		if at.Covers(w.until) {
			close(w.done)
			delete(ws.set, w)
		}
	}
}
