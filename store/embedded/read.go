package embedded

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/cockroachdb/pebble/v2"

	"rewindmq/schema"
	"rewindmq/store"
)

const (
	readChunk = 256
	// scanBudget is how many positions one chunk of a scan looks at.
	scanBudget = 8192
	// seekCost is what a seek in the topic index costs, in positions of a scan.
	seekCost = 4
)

var errMissing = errors.New("missing")

// Read implements store.Reader.
//
// It is read in chunks. Each opens its iterators and closes them, so a slow
// reader holds nothing of the engine between two calls; each is checked against
// the floor behind its reading, so what retention takes away meanwhile is
// counted and not passed over.
func (l *Log) Read(ctx context.Context, after, upTo schema.Cursor, filters []string) (store.Messages, error) {
	if err := l.wait(ctx); err != nil {
		return nil, err
	}
	if err := l.enter(); err != nil {
		return nil, err
	}
	defer l.leave()
	r := &reader{l: l}
	r.at, _ = position(after)
	if last, ok := position(upTo); ok {
		r.upTo = min(last, l.ring.head.Load())
	} else {
		r.upTo = l.ring.head.Load()
	}
	if err := r.resolve(filters); err != nil {
		return nil, err
	}
	r.nextSpan()
	return r, nil
}

// reader is an open read. It goes through the log epoch by epoch, each by topic
// index or by scan, whichever is cheaper.
type reader struct {
	l        *Log
	at, upTo uint64 // all up to at is done
	trimmed  uint64
	// topics are the ids that match. When the catalog is not complete and there
	// are wildcards, it is nil, and filters are judged by name.
	topics  map[uint32]string
	filters []string
	judged  map[uint32]string // by filters; "" is no match
	all     bool              // every topic is wanted; topics is nil

	span  span // being read; zero: none
	merge *merge
	ready []*schema.Message
	names interner
}

// resolve finds the topics that the filters match.
func (r *reader) resolve(filters []string) error {
	if r.all {
		return nil
	}
	_, complete := r.l.topics.size()
	r.topics = make(map[uint32]string)
	for _, f := range filters {
		switch {
		case complete:
			r.l.topics.match(f, r.topics)
		case schema.Wildcard(f) != "":
			r.topics, r.filters, r.judged = nil, filters, make(map[uint32]string)
			return nil
		default:
			id, found, err := r.l.idOf(f)
			if err != nil {
				return err
			}
			if found {
				r.topics[id] = f
			}
		}
	}
	return nil
}

// matches gives the name of a topic that is wanted.
func (r *reader) matches(id uint32) (string, bool, error) {
	if r.all {
		name, err := r.l.nameOf(id)
		return name, true, err
	}
	if r.topics != nil {
		name, ok := r.topics[id]
		return name, ok, nil
	}
	if name, ok := r.judged[id]; ok {
		return name, name != "", nil
	}
	name, err := r.l.nameOf(id)
	if err != nil {
		return "", false, err
	}
	if len(r.judged) >= 1<<16 {
		clear(r.judged)
	}
	for _, f := range r.filters {
		if schema.Match(f, name) {
			r.judged[id] = name
			return name, true, nil
		}
	}
	r.judged[id] = ""
	return "", false, nil
}

// nextSpan goes on to the next epoch that has something, and counts what
// retention has removed before it.
func (r *reader) nextSpan() {
	r.span, r.merge = span{}, nil
	if r.at >= r.upTo {
		return
	}
	spans := r.l.epochs.spans(r.at, r.upTo)
	if len(spans) == 0 {
		r.trimmed += r.upTo - r.at
		r.at = r.upTo
		return
	}
	r.trimmed += spans[0].first - r.at - 1
	r.at = spans[0].first - 1
	r.span = spans[0]
	if r.topics != nil && uint64(len(r.topics))*seekCost <= r.span.last-r.at {
		r.merge = newMerge(r.topics)
	}
}

// Next implements store.Messages.
func (r *reader) Next(ctx context.Context) (*schema.Message, error) {
	for len(r.ready) == 0 {
		if r.at >= r.upTo || r.topics != nil && len(r.topics) == 0 {
			return nil, io.EOF
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := r.fill(); err != nil {
			return nil, err
		}
	}
	m := r.ready[0]
	r.ready[0] = nil
	r.ready = r.ready[1:]
	return m, nil
}

// fill reads the next chunk.
func (r *reader) fill() error {
	if r.span.id == 0 {
		r.nextSpan()
		return nil
	}
	if err := r.l.enter(); err != nil {
		return err
	}
	defer r.l.leave()
	out, at, err := r.chunk()
	if r.l.floor.Load() > r.at+1 {
		// Retention went through what was being read.
		r.nextSpan()
		return nil
	}
	if err != nil {
		return err
	}
	r.ready, r.at = out, at
	if r.at >= r.span.last {
		r.nextSpan()
	}
	return nil
}

func (r *reader) chunk() ([]*schema.Message, uint64, error) {
	if r.merge == nil {
		s := scanChunk{l: r.l, names: &r.names, matches: r.matches, limit: readChunk, budget: scanBudget}
		err := s.run(r.at+1, r.span.last)
		return s.out, s.at, err
	}
	positions, err := r.merge.next(r.l, r.span, readChunk)
	if err != nil {
		return nil, 0, err
	}
	if len(positions) == 0 {
		return nil, r.span.last, nil
	}
	return r.fetch(positions)
}

// fetch reads the messages at ascending positions. What lies near is stepped
// to, what lies far is sought.
func (r *reader) fetch(positions []uint64) (out []*schema.Message, at uint64, err error) {
	iter, err := r.l.iterate(messageFrom(nil, positions[0]), messageFrom(nil, r.span.last+1))
	if err != nil {
		return nil, 0, err
	}
	defer closeIterator(iter, &err)
	bytes := 0
	ok := iter.First()
	for i, n := range positions {
		for steps := 0; ok && positionOf(iter.Key()) < n; steps++ {
			if steps == 8 {
				ok = iter.SeekGE(messageFrom(nil, n))
				break
			}
			ok = iter.Next()
		}
		if !ok || positionOf(iter.Key()) != n {
			if err := iter.Error(); err != nil {
				return nil, 0, engineError("read", err)
			}
			return nil, 0, corrupt(messageFrom(nil, n), fmt.Errorf("in the topic index: %w", errMissing))
		}
		m, err := r.l.decodeAt(iter, r.topics, &r.names)
		if err != nil {
			return nil, 0, err
		}
		out, at = append(out, m), n
		if bytes += m.Size(); bytes >= chunkBytes && i < len(positions)-1 {
			r.merge.pending = append(r.merge.pending, positions[i+1:]...)
			break
		}
	}
	if len(out) == len(positions) && r.merge.done() {
		at = r.span.last
	}
	return out, at, nil
}

// Trimmed implements store.Messages. It may grow while retention runs.
func (r *reader) Trimmed() uint64 { return r.trimmed }

// Close implements store.Messages.
func (r *reader) Close() error {
	r.merge, r.ready, r.at = nil, nil, r.upTo
	return nil
}

// scanChunk reads messages in order of position.
type scanChunk struct {
	l       *Log
	names   *interner
	matches func(topic uint32) (string, bool, error) // nil: all
	limit   int                                      // messages
	budget  int                                      // positions looked at
	out     []*schema.Message
	at      uint64 // the last position looked at
}

func (s *scanChunk) run(from, upTo uint64) (err error) {
	iter, err := s.l.iterate(messageFrom(nil, from), messageFrom(nil, upTo+1))
	if err != nil {
		return err
	}
	defer closeIterator(iter, &err)
	bytes := 0
	want := from
	for ok := iter.First(); ok; ok = iter.Next() {
		n, id, valid := splitMessageKey(iter.Key())
		if !valid {
			return corrupt(append([]byte(nil), iter.Key()...), errShort)
		}
		// Positions have no holes: one that is missing was there once.
		if n != want {
			return corrupt(messageFrom(nil, want), errMissing)
		}
		want, s.at = n+1, n
		s.budget--
		name, wanted := "", true
		if s.matches != nil {
			name, wanted, err = s.matches(id)
		} else {
			name, err = s.l.nameOf(id)
		}
		if err != nil {
			return err
		}
		if wanted {
			m, err := s.l.decodeMessage(iter, n, name, s.names)
			if err != nil {
				return err
			}
			s.out = append(s.out, m)
			bytes += m.Size()
		}
		if len(s.out) >= s.limit || bytes >= chunkBytes || s.budget <= 0 {
			return nil
		}
	}
	if err := iter.Error(); err != nil {
		return engineError("read", err)
	}
	if want != upTo+1 {
		return corrupt(messageFrom(nil, want), errMissing)
	}
	return nil
}

// decodeAt decodes the message under the iterator.
func (l *Log) decodeAt(iter *pebble.Iterator, topics map[uint32]string, names *interner) (*schema.Message, error) {
	n, id, valid := splitMessageKey(iter.Key())
	if !valid {
		return nil, corrupt(append([]byte(nil), iter.Key()...), errShort)
	}
	name, ok := topics[id]
	if !ok {
		var err error
		if name, err = l.nameOf(id); err != nil {
			return nil, err
		}
	}
	return l.decodeMessage(iter, n, name, names)
}

func (l *Log) decodeMessage(iter *pebble.Iterator, n uint64, topic string, names *interner) (*schema.Message, error) {
	value, err := iter.ValueAndErr()
	if err != nil {
		return nil, engineError("read", err)
	}
	m := &schema.Message{Topic: topic, Mark: schema.Mark{Lane: 1, N: n}}
	// The message keeps parts of its value: it gets one of its own.
	if err := readMessage(m, append(make([]byte, 0, len(value)), value...), names); err != nil {
		return nil, corrupt(append([]byte(nil), iter.Key()...), err)
	}
	return m, nil
}

// Lookup implements store.Reader.
func (l *Log) Lookup(ctx context.Context, refs []store.Ref) (out []*schema.Message, err error) {
	if err := l.wait(ctx); err != nil {
		return nil, err
	}
	if err := l.enter(); err != nil {
		return nil, err
	}
	defer l.leave()
	out = make([]*schema.Message, len(refs))
	if len(refs) == 0 {
		return out, nil
	}
	iter, err := l.iterate([]byte{keyMessage}, []byte{keyMessage + 1})
	if err != nil {
		return nil, err
	}
	defer closeIterator(iter, &err)
	head, names := l.ring.head.Load(), interner{}
	for i, ref := range refs {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if ref.Mark.Lane != 1 || ref.Mark.N == 0 || ref.Mark.N > head {
			continue
		}
		if !iter.SeekGE(messageFrom(nil, ref.Mark.N)) {
			if err := iter.Error(); err != nil {
				return nil, engineError("lookup", err)
			}
			continue
		}
		if positionOf(iter.Key()) != ref.Mark.N {
			continue
		}
		m, err := l.decodeAt(iter, nil, &names)
		if err != nil {
			return nil, err
		}
		if m.ID == ref.ID {
			out[i] = m
		}
	}
	return out, nil
}
