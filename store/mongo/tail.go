package mongo

import (
	"context"
	"fmt"
	"sync"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.uber.org/zap"

	"rewindmq/schema"
	"rewindmq/store"
	"rewindmq/store/mongo/lane"
)

const (
	// tailBatch bounds what one Next returns.
	tailBatch = 500
	// passRest is the pause after a pass, at first; behind one that found much, busyRest:
	// half as many passes leave the server time for what they wait for, and nothing
	// comes later.
	passRest = 2 * time.Millisecond
	busyRest = 5 * time.Millisecond
	// muchFound is how many documents that is.
	muchFound = 16
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
// Invariant: every message that is not after h (m.H) has been yielded, or is in
// events.
type tail struct {
	s *Store
	m *lane.Tail // decides, and has h

	events     []store.Event
	topics     []string // of events, for the catalog
	pass       *pass
	stream     *stream
	rest       time.Duration
	warned     time.Time
	counted    time.Time // since when count counts events of the stream
	count      int
	pace       pace      // of the oplog
	overloaded time.Time // when the stream was last left because of it

	opening *opening
	again   time.Time      // no stream is opened before
	backoff time.Duration  // from the failure before to again
	lost    bson.Timestamp // the place of a stream that failed; zero: none
	work    sync.WaitGroup // of openings and farewells; Close waits for them
	closed  bool
}

// Tail opens a tail behind `after`, see store.Tailer.
func (s *Store) Tail(ctx context.Context, after schema.Cursor) (store.Tail, error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	s.tailing.Add(1)
	m := lane.NewTail(lane.TailOptions{Silent: streamSilent, Quiet: pokeQuiet, Full: fullBatches}, after)
	return &tail{s: s, m: m, rest: passRest}, nil
}

// Next gives the next events, see store.Tail.
func (t *tail) Next(ctx context.Context) ([]store.Event, error) {
	if err := t.s.enter(ctx); err != nil {
		return nil, err
	}
	ctx, cancel := t.s.call(ctx)
	defer cancel()
	t.events = t.events[:0]
	from := t.m.H()
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
			t.lose(err)
		} else if badHint(err) {
			t.s.fallen("index lane_n of collection " + t.s.o.Collections.Message + " is gone, with the collection or alone")
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
	t.s.topics.passed(t, from, t.m.H(), t.topics)
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
		p, err := t.s.openPass(ctx, t.m.H())
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
	h := t.m.Give(at.mark())
	if at.stop != "" {
		m = nil
	}
	t.events = append(t.events, store.Event{Message: m, H: h})
}

func (t *tail) endPass(ctx context.Context) {
	p := t.pass
	t.pass = nil
	lanes := make([]lane.PassLane, len(p.lanes))
	for i := range p.lanes {
		lanes[i] = lane.PassLane{Number: schema.Lane(p.lanes[i].Number), Retired: p.lanes[i].Retired, Top: uint64(p.lanes[i].Top)}
	}
	if t.m.EndPass(lanes) {
		t.events = append(t.events, store.Event{H: t.m.H()})
	}
	w := p.snap.time()
	t.s.passed.reach(w)
	t.s.tailed(p.began) // the snapshot is not older
	t.pace.note(w, time.Now())
	p.close()
	waited := false
	if p.found > muchFound {
		t.rest = busyRest
	} else if p.found > 0 {
		t.rest = passRest
	} else if !t.s.o.NoStreams && !t.crowded() {
		waited = t.open(ctx, w)
	}
	if !waited && len(t.events) == 0 {
		_ = rest(ctx, t.pause())
	}
}

// news is what may lead the tail back to the lanes, now.
func (t *tail) news() lane.News {
	return lane.News{Now: time.Now(), Lanes: t.s.lanes.changes.Load(), Pokes: t.s.pokes.Load()}
}

// leave lets go of pass and stream: the next step is a pass behind h.
func (t *tail) leave() {
	if t.pass != nil {
		t.pass.close()
		t.pass = nil
	}
	if t.stream != nil {
		t.work.Go(t.stream.close)
		t.stream = nil
		t.m.Left()
	}
	if t.opening != nil {
		t.forget(t.opening)
		t.opening = nil
	}
}

// Close lets go of what the tail holds.
func (t *tail) Close() error {
	t.leave()
	t.work.Wait()
	if !t.closed {
		t.closed = true
		t.s.tailing.Add(-1)
	}
	return nil
}
