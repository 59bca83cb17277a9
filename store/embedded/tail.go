package embedded

import (
	"context"
	"sync"
	"sync/atomic"

	"rewindmq/schema"
	"rewindmq/store"
)

const (
	ringMessages = 1 << 13
	ringBytes    = 32 << 20
	tailEvents   = 256
	chunkBytes   = 1 << 20
)

// ring holds the last messages that are durable, for the tails. It holds at most
// ringMessages and about ringBytes.
//
// Invariant: it yields nothing above head, and head is synced (T14).
type ring struct {
	head  atomic.Uint64
	mu    sync.Mutex
	slots [ringMessages]*schema.Message // by n modulo size
	first uint64                        // least n held; above head: none
	bytes int
	tails map[*tail]struct{}
}

func (r *ring) open(head uint64) {
	r.head.Store(head)
	r.first = head + 1
	r.tails = make(map[*tail]struct{})
}

// publish takes in what was committed, in order, and wakes the tails.
func (r *ring) publish(msgs []*schema.Message) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, m := range msgs {
		if m.Mark.N-r.first >= ringMessages {
			r.dropFirst()
		}
		r.slots[m.Mark.N%ringMessages] = m
		r.bytes += m.Size()
		for r.bytes > ringBytes && r.first < m.Mark.N {
			r.dropFirst()
		}
	}
	r.head.Store(msgs[len(msgs)-1].Mark.N)
	for t := range r.tails {
		t.poke()
	}
}

func (r *ring) dropFirst() {
	slot := &r.slots[r.first%ringMessages]
	r.bytes -= (*slot).Size()
	*slot = nil
	r.first++
}

// take copies the messages above n into buf; false: they are not all held any
// more.
func (r *ring) take(n uint64, buf []*schema.Message) ([]*schema.Message, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n+1 < r.first {
		return buf, false
	}
	for head := r.head.Load(); n < head && len(buf) < cap(buf); n++ {
		buf = append(buf, r.slots[(n+1)%ringMessages])
	}
	return buf, true
}

func (r *ring) join(t *tail) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tails[t] = struct{}{}
}

func (r *ring) leave(t *tail) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.tails, t)
}

// Head implements store.Tailer.
func (l *Log) Head(ctx context.Context) (schema.Cursor, error) {
	if err := l.wait(ctx); err != nil {
		return schema.Cursor{}, err
	}
	return schema.At(1, l.ring.head.Load()), nil
}

// Tail implements store.Tailer.
func (l *Log) Tail(ctx context.Context, after schema.Cursor) (store.Tail, error) {
	if err := l.wait(ctx); err != nil {
		return nil, err
	}
	n, _ := position(after)
	t := &tail{l: l, n: n, wake: make(chan struct{}, 1), buf: make([]*schema.Message, 0, tailEvents)}
	l.ring.join(t)
	return t, nil
}

// position gives the position up to which a cursor has passed the one lane;
// false: it holds the lane for retired, so that nothing lies after it.
func position(c schema.Cursor) (uint64, bool) {
	if c.Newest() == 0 {
		return 0, true
	}
	n, ok := c.N(1)
	if !ok {
		return ^uint64(0) - 1, false
	}
	return n, true
}

// tail follows the log. What is in the ring it gets from there; when it is
// behind, it reads the engine until it has caught up.
type tail struct {
	l      *Log
	n      uint64 // yielded
	wake   chan struct{}
	buf    []*schema.Message
	events []store.Event
	names  interner
}

func (t *tail) poke() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// Next implements store.Tail.
func (t *tail) Next(ctx context.Context) ([]store.Event, error) {
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		msgs, held := t.l.ring.take(t.n, t.buf[:0])
		if !held {
			var err error
			if msgs, err = t.l.loadTail(t.n, &t.names); err != nil {
				return nil, err
			}
		}
		if len(msgs) > 0 {
			return t.yield(msgs), nil
		}
		select {
		case <-t.wake:
		case <-ctx.Done():
		case <-t.l.stopped:
			return nil, t.l.stopError()
		}
	}
}

// yield makes events of messages. Their cursors stay valid, so their entries are
// allocated for the batch.
func (t *tail) yield(msgs []*schema.Message) []store.Event {
	slots := make([]schema.Mark, len(msgs))
	t.events = t.events[:0]
	for i, m := range msgs {
		t.events = append(t.events, store.Event{Message: m, H: schema.AtIn(slots[i:i+1], 1, m.Mark.N)})
	}
	t.n = msgs[len(msgs)-1].Mark.N
	clear(t.buf[:cap(t.buf)])
	return t.events
}

// Close implements store.Tail.
func (t *tail) Close() error {
	t.l.ring.leave(t)
	return nil
}

// loadTail reads the messages above n from the engine.
func (l *Log) loadTail(n uint64, names *interner) ([]*schema.Message, error) {
	if err := l.enter(); err != nil {
		return nil, err
	}
	defer l.leave()
	return l.load(n+1, l.ring.head.Load(), tailEvents, names)
}

// load reads at most limit messages, and about chunkBytes, from position from
// to upTo. There are no holes, but for what retention has removed below the
// floor.
func (l *Log) load(from, upTo uint64, limit int, names *interner) ([]*schema.Message, error) {
	for {
		from = max(from, l.floor.Load())
		s := scanChunk{l: l, names: names, limit: limit, budget: limit}
		if from > upTo {
			return nil, nil
		}
		err := s.run(from, upTo)
		if l.floor.Load() > from {
			continue // retention went through what was being read
		}
		return s.out, err
	}
}
