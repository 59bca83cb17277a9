package fanout

import (
	"sort"
	"sync"

	"rewindmq/schema"
	"rewindmq/store"
)

// cachedOverhead is what the ring needs for a message, in bytes.
const cachedOverhead = 48

// recent is the memory of the last messages, in the order of the tail.
//
// Invariant: it holds every message after floor and not after top.
type recent struct {
	bound int64

	mu    sync.RWMutex
	bytes int64
	ring  []cached // a power of two, or empty
	first uint64   // number of the oldest message held; message k stands at k mod len(ring)
	next  uint64   // number of the next message
	floor schema.Cursor
	top   schema.Cursor
}

type cached struct {
	m *schema.Message
	h schema.Cursor // the cursor that its event led to
}

func newRecent(bound int64) *recent { return &recent{bound: bound} }

func (r *recent) begin(head schema.Cursor) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.floor, r.top = head, head
}

func (r *recent) at(k uint64) *cached { return &r.ring[k&uint64(len(r.ring)-1)] }

// add takes in events, lets go of the oldest above the bound, and gives the bytes
// held.
func (r *recent) add(events []store.Event) int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range events {
		r.top = events[i].H
		if m := events[i].Message; m != nil {
			r.push(m)
		}
		for r.bytes > r.bound {
			c := r.at(r.first)
			r.bytes -= int64(c.m.Size() + cachedOverhead)
			r.floor = c.h
			*c = cached{}
			r.first++
		}
		if r.first == r.next {
			r.floor = r.top
		}
	}
	return r.bytes
}

// push adds m, whose event led to top.
func (r *recent) push(m *schema.Message) {
	if n := r.next - r.first; n == uint64(len(r.ring)) {
		ring := make([]cached, max(2*n, 16))
		for k := r.first; k < r.next; k++ {
			ring[k&uint64(len(ring)-1)] = *r.at(k)
		}
		r.ring = ring
	}
	*r.at(r.next) = cached{m, r.top}
	r.next++
	r.bytes += int64(m.Size() + cachedOverhead)
}

// find gives the number from which on to look for messages after `after`, or
// false if not all of those not after upTo are held.
func (r *recent) find(after, upTo schema.Cursor) (uint64, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if !after.Covers(r.floor) || !r.top.Covers(upTo) {
		return 0, false
	}
	// Where `after` covers the cursor of an event, it has passed all up to it.
	// The answer is right even where Covers says no too often: the message
	// before it is one of those that were passed.
	i := sort.Search(int(r.next-r.first), func(i int) bool {
		return !after.Covers(r.at(r.first + uint64(i)).h)
	})
	return r.first + uint64(i), true
}

// page copies the messages from number k on that are after `after` and not after
// upTo into dst, looking at no more than limit, and gives the number to go on at. end:
// nothing that is not after upTo follows. ok is false when message k is no longer
// held.
func (r *recent) page(k uint64, after, upTo schema.Cursor, limit int, dst []*schema.Message) (msgs []*schema.Message, next uint64, end, ok bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if k < r.first {
		return dst, k, false, false
	}
	for ; k < r.next && limit > 0; limit-- {
		c := r.at(k)
		k++
		if after.After(c.m.Mark) && !upTo.After(c.m.Mark) {
			dst = append(dst, c.m)
		}
		if c.h.Covers(upTo) {
			return dst, k, true, true
		}
	}
	return dst, k, k == r.next, true
}

// Recent gives the messages after `after` and not after upTo, whatever their
// topic, in the order of the tail, if the memory of the last messages holds all
// of them; else ok is false. The slice is the caller's. It may be long: who reads
// page by page uses a Source.
func (h *Hub) Recent(after, upTo schema.Cursor) (msgs []*schema.Message, ok bool) {
	k, ok := h.recent.find(after, upTo)
	for end := false; ok && !end; {
		msgs, k, end, ok = h.recent.page(k, after, upTo, 1024, msgs)
	}
	if !ok {
		return nil, false
	}
	return msgs, true
}
