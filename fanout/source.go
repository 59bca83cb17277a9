package fanout

import (
	"context"
	"io"

	"rewindmq/schema"
	"rewindmq/store"
)

const (
	sourcePage = 256 // messages of the memory looked at under one lock
	linearMax  = 8   // more filters than this are matched by a trie
)

// Source reads the log back: from the memory of the last messages where that
// holds all that is asked for, else from the store. Safe for concurrent use.
type Source struct {
	hub    *Hub
	reader store.Reader
}

// Source makes a reader of the hub's memory with reader behind it.
func (h *Hub) Source(reader store.Reader) *Source { return &Source{h, reader} }

// Read is store.Reader's: it keeps promise 4. The cursors and filters must not be
// changed while the read is open.
func (s *Source) Read(ctx context.Context, after, upTo schema.Cursor, filters []string) (store.Messages, error) {
	if k, ok := s.hub.recent.find(after, upTo); ok {
		return &memoryRead{
			source: s, next: k, at: after.Clone(), upTo: upTo, filters: filters, match: matcher(filters),
		}, nil
	}
	return s.reader.Read(ctx, after, upTo, filters)
}

// memoryRead is an open read of the memory. When the memory lets go of what it
// has not read yet, it goes on in the store, from its own place.
//
// Invariant: everything between `after` and `at` has been looked at, and nothing
// else: `at` is advanced by each message in turn, and n ascends in each lane.
type memoryRead struct {
	source  *Source
	next    uint64
	at      schema.Cursor
	upTo    schema.Cursor
	filters []string
	match   func(topic string) bool

	page []*schema.Message // looked up and not yet given
	buf  []*schema.Message // page's memory
	end  bool
	rest store.Messages // the store's, once the memory was too short
}

// Next gives the next message, or io.EOF.
func (r *memoryRead) Next(ctx context.Context) (*schema.Message, error) {
	for r.rest == nil {
		for len(r.page) > 0 {
			m := r.page[0]
			r.page = r.page[1:]
			r.at.Advance(m.Mark)
			if r.match(m.Topic) {
				return m, nil
			}
		}
		if r.end {
			return nil, io.EOF
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		var ok bool
		r.buf, r.next, r.end, ok = r.source.hub.recent.page(r.next, r.at, r.upTo, sourcePage, r.buf[:0])
		if r.page = r.buf; ok {
			continue
		}
		rest, err := r.source.reader.Read(ctx, r.at, r.upTo, r.filters)
		if err != nil {
			return nil, err
		}
		r.rest = rest
	}
	return r.rest.Next(ctx)
}

// Trimmed counts what retention had removed: nothing, as long as the memory holds
// it.
func (r *memoryRead) Trimmed() uint64 {
	if r.rest != nil {
		return r.rest.Trimmed()
	}
	return 0
}

// Close ends the read.
func (r *memoryRead) Close() error {
	r.end, r.page, r.buf = true, nil, nil
	if r.rest != nil {
		return r.rest.Close()
	}
	return nil
}

// matcher tells whether a topic matches one of the filters.
func matcher(filters []string) func(topic string) bool {
	if len(filters) > linearMax {
		t := NewTrie[struct{}]()
		for _, f := range filters {
			t.Add(f, struct{}{})
		}
		var dst []struct{}
		return func(topic string) bool {
			dst = t.Match(topic, dst[:0])
			return len(dst) > 0
		}
	}
	return func(topic string) bool {
		for _, f := range filters {
			if schema.Match(f, topic) {
				return true
			}
		}
		return false
	}
}
