package mongo

import (
	"context"
	"fmt"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.uber.org/zap"

	"rewindmq/schema"
	"rewindmq/store"
)

const (
	// tailBatch bounds what one Next returns.
	tailBatch = 500
	// passRest is the pause after a pass, at first.
	passRest = 2 * time.Millisecond
	// maxPassRest bounds it.
	maxPassRest = 100 * time.Millisecond
)

// tail yields the log, see store.Tail. It is in one of two states, with one exact
// result. Passing: it reads what is behind h in every lane, in one snapshot.
// Streaming: a change stream says at once what comes next; it is a hint, and any
// doubt about it (an error, a gap in n, silence, a lane that is not known) leads
// back to passing.
//
// For one goroutine, which is the owner of all it holds.
//
// Invariant: every message that is not after h has been yielded, or is in events.
type tail struct {
	s *Store
	h schema.Cursor

	events []store.Event
	topics []string // of events, for the catalog
	pass   *pass
	stream *stream
	rest   time.Duration
	warned time.Time
}

// Tail opens a tail behind `after`, see store.Tailer.
func (s *Store) Tail(ctx context.Context, after schema.Cursor) (store.Tail, error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	return &tail{s: s, h: after.Clone(), rest: passRest}, nil
}

// Next gives the next events, see store.Tail.
func (t *tail) Next(ctx context.Context) ([]store.Event, error) {
	if err := t.s.enter(ctx); err != nil {
		return nil, err
	}
	ctx, cancel := t.s.call(ctx)
	defer cancel()
	t.events = t.events[:0]
	from := t.h
	for {
		err := t.step(ctx)
		if len(t.events) > 0 {
			t.book(from)
			return t.events, nil
		}
		if ctx.Err() != nil {
			t.leave()
			return nil, t.s.failed(ctx, "tail", ctx.Err())
		}
		if err == nil {
			continue
		}
		// Losing its source is the tail's own affair: it begins again behind h.
		if t.stream != nil {
			t.s.left(lossOf(err))
		}
		t.leave()
		if since(t.warned) > 5*time.Second {
			t.warned = time.Now()
			t.s.log.Warn("tail lost its source", zap.Error(err))
		}
		if t.s.o.Metrics != nil {
			t.s.o.Metrics.Error("tail", kindOf(err))
		}
		if rest(ctx, t.pause()) != nil {
			return nil, t.s.failed(ctx, "tail", ctx.Err())
		}
	}
}

// book keeps the catalog of topics.
func (t *tail) book(from schema.Cursor) {
	t.topics = t.topics[:0]
	for i := range t.events {
		if m := t.events[i].Message; m != nil && (len(t.topics) == 0 || t.topics[len(t.topics)-1] != m.Topic) {
			t.topics = append(t.topics, m.Topic)
		}
	}
	t.s.topics.passed(t, from, t.h, t.topics)
}

// pause gives the rest before the next pass.
func (t *tail) pause() time.Duration {
	d := t.rest
	t.rest = min(2*t.rest, maxPassRest)
	return d
}

// step goes on by one read; it may find nothing.
func (t *tail) step(ctx context.Context) error {
	if t.stream != nil {
		return t.listen(ctx)
	}
	if t.pass == nil {
		p, err := t.s.openPass(ctx, t.h)
		if err != nil {
			return err
		}
		t.pass = p
	}
	if err := t.read(ctx); err != nil {
		return fmt.Errorf("mongo: pass: %w", err)
	}
	return nil
}

// read yields what the pass has, and at its end stands exactly at its time.
func (t *tail) read(ctx context.Context) error {
	p := t.pass
	for len(t.events) < tailBatch {
		m, at, err := p.next(ctx)
		if err != nil {
			return err
		}
		if m == nil {
			t.endPass(ctx)
			return nil
		}
		t.give(m, at)
	}
	return nil
}

// give yields one document of the log. A stopper only moves the cursor.
func (t *tail) give(m *schema.Message, at place) {
	t.h = t.h.Clone() // the one before was handed out
	t.h.Advance(at.mark())
	if at.stop != "" {
		m = nil
	}
	t.events = append(t.events, store.Event{Message: m, H: t.h})
}

func (t *tail) endPass(ctx context.Context) {
	p := t.pass
	t.pass = nil
	h := t.h.Clone()
	for i := range p.lanes {
		h.Advance(schema.Mark{Lane: schema.Lane(p.lanes[i].Number)})
	}
	for i := range p.lanes {
		// `retired` is set after a majority had the `end`: this snapshot had
		// all of the lane (T4).
		if d := &p.lanes[i]; d.Retired {
			h.Retire(schema.Lane(d.Number))
		}
	}
	if !h.Equal(t.h) {
		t.h = h
		t.events = append(t.events, store.Event{H: h})
	}
	w := p.snap.time()
	t.s.passed.reach(w)
	t.s.tailed(p.began) // the snapshot is not older
	p.close()
	if p.found > 0 {
		t.rest = passRest
	} else if !t.s.o.NoStreams {
		t.open(ctx, w)
	}
	if t.stream == nil && len(t.events) == 0 {
		_ = rest(ctx, t.pause())
	}
}

// open opens the change stream at the time of the pass, so that nothing lies
// between (T3). Without one the passes go on.
func (t *tail) open(ctx context.Context, at bson.Timestamp) {
	st, err := t.s.openStream(ctx, at)
	if err != nil {
		if ctx.Err() == nil && since(t.warned) > 5*time.Second {
			t.warned = time.Now()
			t.s.log.Warn("no change stream; reading the lanes", zap.Error(err))
		}
		return
	}
	st.lanes, st.pokes = t.s.lanes.changes.Load(), t.s.pokes.Load()
	t.stream = st
	t.rest = passRest
}

// leave lets go of pass and stream: the next step is a pass behind h.
func (t *tail) leave() {
	if t.pass != nil {
		t.pass.close()
		t.pass = nil
	}
	if t.stream != nil {
		t.stream.close()
		t.stream = nil
	}
}

// Close lets go of what the tail holds.
func (t *tail) Close() error {
	t.leave()
	return nil
}
