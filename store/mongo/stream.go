package mongo

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"rewindmq/store"
)

const (
	// streamAwait bounds an empty wait for events on the server; it also bounds
	// how late the stream is looked after.
	streamAwait = 250 * time.Millisecond
	// streamHung is for how long one getMore may say nothing at all.
	streamHung = streamAwait + 5*time.Second
	// streamSilent is after how long without an event the lanes are looked at.
	streamSilent = 5 * time.Second
	// pokeQuiet is after how long without an event a poke makes a tail look.
	pokeQuiet = 500 * time.Millisecond
	// streamBatch is large: under load it costs the primary less.
	streamBatch = 10_000
	// fullBatches in a row mean that the stream does not keep up.
	fullBatches = 3
	// streamLag, in seconds of cluster time behind what this node has written, is
	// where the lanes are read instead.
	streamLag = 2
)

// Poke makes tails whose stream has been quiet look at the lanes now: a client has
// sent something, so it may be waiting (S-43). It is cheap, and safe to call for
// every PINGREQ and PUBLISH.
func (s *Store) Poke() { s.pokes.Add(1) }

// stream is an open change stream on `message`.
//
// Its context has no deadline and is its own: an expired one would end it for
// good, and so does the watchdog, on purpose.
type stream struct {
	cs     *mongo.ChangeStream
	ctx    context.Context
	cancel context.CancelFunc
	last   time.Time // of the last event, or of the opening
	lanes  uint64    // changes of the lane book that the tail has seen
	pokes  uint64    // pokes that it has seen
	full   int
}

// streamStages lets through what a tail has to see: inserts, the updates that
// adopt, and what ends the stream (an insert-only match would hide it: T12).
func streamStages() mongo.Pipeline {
	return mongo.Pipeline{{{Key: "$match", Value: bson.D{{Key: "$or", Value: bson.A{
		bson.D{{Key: "operationType", Value: bson.D{{Key: "$in", Value: bson.A{"insert", "drop", "rename", "dropDatabase", "invalidate"}}}}},
		bson.D{{Key: "operationType", Value: "update"}, {Key: "updateDescription.updatedFields.lane", Value: bson.D{{Key: "$exists", Value: true}}}},
	}}}}}}
}

func (s *Store) openStream(ctx context.Context, at bson.Timestamp) (*stream, error) {
	own, cancel := context.WithCancel(context.WithoutCancel(ctx))
	end := context.AfterFunc(ctx, cancel)
	defer end()
	guard := time.AfterFunc(streamHung, cancel)
	defer guard.Stop()
	cs, err := s.tails.Database(s.o.Database).Collection(s.o.Collections.Message).Watch(own, streamStages(),
		options.ChangeStream().SetStartAtOperationTime(&at).SetBatchSize(streamBatch).SetMaxAwaitTime(streamAwait))
	if err != nil {
		cancel()
		return nil, fmt.Errorf("mongo: change stream: %w", err)
	}
	return &stream{cs: cs, ctx: own, cancel: cancel, last: time.Now()}, nil
}

// close ends the stream. Nobody is in Next: a tail has one goroutine.
func (st *stream) close() {
	st.cancel()
	_ = st.cs.Close(context.Background())
}

var errStreamEnded = errors.New("mongo: change stream ended without an error: the collection was dropped or renamed")

// next waits for the next event, at most streamAwait; false: there is none yet.
func (st *stream) next(ctx context.Context) (bool, error) {
	end := context.AfterFunc(ctx, st.cancel)
	defer end()
	guard := time.AfterFunc(streamHung, st.cancel)
	defer guard.Stop()
	if st.cs.TryNext(st.ctx) {
		return true, nil
	}
	if err := st.cs.Err(); err != nil {
		return false, fmt.Errorf("mongo: change stream: %w", err)
	}
	if st.cs.ID() == 0 {
		return false, errStreamEnded // the next passes tell why
	}
	return false, nil
}

// errGap and errAdopted lead back to passing; they are no fault.
var (
	errGap     = errors.New("mongo: the stream is behind the lanes")
	errAdopted = errors.New("mongo: a foreign insert was adopted")
)

// listen takes what the stream has. An event is next if its n is the one behind h
// in its lane; one that is not after h is a repeat; anything else leads back to
// passing.
func (t *tail) listen(ctx context.Context) error {
	st := t.stream
	quiet := since(st.last)
	switch {
	case st.lanes != t.s.lanes.changes.Load():
		return t.turn("lane")
	case quiet > streamSilent:
		return t.turn("silence")
	case quiet > pokeQuiet && st.pokes != t.s.pokes.Load():
		return t.turn("poke")
	}
	asked := time.Now()
	got, err := st.next(ctx)
	if err != nil {
		return err
	}
	if !got || t.s.o.mute != nil && t.s.o.mute.Load() {
		st.full = 0
		if !got {
			t.s.tailed(asked)
		}
		return nil
	}
	st.last = time.Now()
	if st.cs.RemainingBatchLength() >= streamBatch/2 {
		st.full++
	} else {
		st.full = 0
	}
	for {
		again, err := t.event(ctx, st.cs.Current)
		switch {
		case errors.Is(err, errAdopted):
			return t.turn("adoption")
		case errors.Is(err, errGap):
			return t.turn("gap")
		case err != nil:
			return err
		}
		if !again || len(t.events) >= tailBatch || st.cs.RemainingBatchLength() == 0 {
			break
		}
		if !st.cs.TryNext(st.ctx) { // from memory
			break
		}
	}
	if at := wallTime(st.cs.Current); !at.IsZero() {
		t.s.tailed(at)
	}
	if st.full >= fullBatches {
		return t.turn("load")
	}
	return nil
}

// turn leads back to passing.
func (t *tail) turn(reason string) error {
	t.s.left(reason)
	t.leave()
	return nil
}

// event takes one event; false: look at the lanes before the next.
func (t *tail) event(ctx context.Context, raw bson.Raw) (bool, error) {
	op, _ := raw.Lookup("operationType").StringValueOK()
	if t.s.o.Metrics != nil {
		t.s.o.Metrics.StreamEvent(op)
	}
	if sec, i, ok := raw.Lookup("clusterTime").TimestampOK(); ok && op == "insert" {
		if t.s.latest.time().T > sec+streamLag {
			return false, errGap
		}
		defer t.s.passed.reach(bson.Timestamp{T: sec, I: i})
	}
	switch op {
	case "insert":
	case "update":
		return false, errAdopted // the lanes have the document
	default:
		err := fmt.Errorf("mongo: %s of collection %s: %w", op, t.s.o.Collections.Message, store.ErrCorrupt)
		t.s.breakDown(err)
		return false, err
	}
	full, ok := raw.Lookup("fullDocument").DocumentOK()
	if !ok {
		return false, fmt.Errorf("%w: an insert event without its document", errDocument)
	}
	at := placeOf(full)
	if !at.has || at.lane <= 0 {
		t.s.adopter.wake()
		return true, nil
	}
	mine, unknown := t.s.lanes.known(at.lane)
	if unknown {
		return false, t.unknownLane(ctx, at.lane)
	}
	if !mine {
		t.s.adopter.wake()
		return true, nil
	}
	mark := at.mark()
	if !t.h.After(mark) {
		return true, nil
	}
	if n, ok := t.h.N(mark.Lane); !ok || n+1 != mark.N {
		return false, errGap
	}
	m, at, err := decodeMessage(full)
	if err != nil {
		return false, err
	}
	t.give(m, at)
	return true, nil
}

// unknownLane looks whether a lane that an event names exists. A foreign insert
// may name any.
func (t *tail) unknownLane(ctx context.Context, lane laneID) error {
	docs, err := t.s.readLanes(ctx, bson.D{{Key: "_id", Value: int64(lane.number())}})
	if err != nil {
		return err
	}
	if len(docs) == 0 || docs[0].id() != lane {
		t.s.adopter.wake()
		return nil
	}
	return errGap
}
