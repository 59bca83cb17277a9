package mongo

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
	"go.uber.org/zap"

	"rewindmq/store"
	"rewindmq/store/mongo/lane"
)

const (
	// streamAwait bounds an empty wait for events on the server; it also bounds
	// how late the stream is looked after.
	streamAwait = 250 * time.Millisecond
	// streamHung is for how long one getMore may say nothing at all.
	streamHung = streamAwait + 5*time.Second
	// streamClose bounds the farewell to a server that says nothing.
	streamClose = time.Second
	// streamSilent is after how long without an event the lanes are looked at.
	streamSilent = 5 * time.Second
	// pokeQuiet is after how long without an event a poke makes a tail look.
	pokeQuiet = 500 * time.Millisecond
	// streamBatch is large: under load it costs the primary less.
	streamBatch = 10_000
	// streamReply is where a reply of the server ends, in bytes.
	streamReply = 16 << 20
	// busyEvents within a second are more than the stream is worth.
	busyEvents = 4000
	// busyEntries of the oplog within a second, of whatever collection, cost the server
	// more in the stream, which looks at each of them, than passes do.
	busyEntries = 16_000
	// fullBatches in a row mean that the stream does not keep up.
	fullBatches = 3
	// adoptionRest is for how long the lanes are read after an adoption.
	adoptionRest = 100 * time.Millisecond
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
	opened time.Time
	empty  bool           // the last answer had nothing
	place  bson.Timestamp // up to where it has told everything, or a little before
}

// streamStages lets through what a tail has to see: inserts, the updates that
// adopt, and what ends the stream (an insert-only match would hide it: T12).
func streamStages() mongo.Pipeline {
	return mongo.Pipeline{{{Key: "$match", Value: bson.D{{Key: "$or", Value: bson.A{
		bson.D{{Key: "operationType", Value: bson.D{{Key: "$in", Value: bson.A{"insert", "drop", "rename", "dropDatabase", "invalidate"}}}}},
		bson.D{{Key: "operationType", Value: "update"}, {Key: "updateDescription.updatedFields.lane", Value: bson.D{{Key: "$exists", Value: true}}}},
	}}}}}}
}

func (s *Store) messages() *mongo.Collection {
	return s.tails.Database(s.o.Database).Collection(s.o.Collections.Message)
}

// openStream opens a change stream at a time, in a context of its own.
func (s *Store) openStream(own context.Context, cancel context.CancelFunc, at bson.Timestamp) (*stream, error) {
	cs, err := s.messages().Watch(own, streamStages(),
		options.ChangeStream().SetStartAtOperationTime(&at).SetBatchSize(streamBatch).SetMaxAwaitTime(streamAwait))
	if err != nil {
		return nil, fmt.Errorf("mongo: change stream: %w", err)
	}
	now := time.Now()
	return &stream{cs: cs, ctx: own, cancel: cancel, opened: now, place: at}, nil
}

// close ends the stream. Nobody is in Next: a tail has one goroutine. On a
// connection that says nothing it takes streamClose.
func (st *stream) close() {
	st.cancel()
	ctx, cancel := context.WithTimeout(context.Background(), streamClose)
	defer cancel()
	_ = st.cs.Close(ctx)
}

var (
	errStreamEnded = errors.New("mongo: change stream ended without an error: the collection was dropped or renamed")
	errStreamHung  = errors.New("mongo: the change stream says nothing")
	errPoked       = errors.New("mongo: the change stream says nothing, and a client asks")
)

// next waits for the next event, at most streamAwait; false: there is none yet. A
// server that says nothing at all is given up after streamHung; before that if
// poked tells that a client asks (S-43). The goroutine that reads has ended when
// next returns: cancel ends it.
func (st *stream) next(ctx context.Context, poked func() bool) (bool, error) {
	if st.cs.RemainingBatchLength() > 0 && st.cs.TryNext(st.ctx) { // from memory
		return true, nil
	}
	end := context.AfterFunc(ctx, st.cancel)
	defer end()
	read := make(chan bool, 1)
	go func() { read <- st.cs.TryNext(st.ctx) }()
	asked := time.Now()
	look := time.NewTimer(streamAwait + pokeQuiet)
	defer look.Stop()
	for {
		var err error
		select {
		case got := <-read:
			if got {
				return true, nil
			}
			return false, st.failure()
		case <-look.C:
			switch {
			case time.Since(asked) > streamHung:
				err = errStreamHung
			case poked():
				err = errPoked
			default:
				look.Reset(pokeQuiet / 5)
				continue
			}
		}
		st.cancel()
		<-read
		return false, err
	}
}

// failure tells why the stream gives nothing; nil: it may go on.
func (st *stream) failure() error {
	if err := st.cs.Err(); err != nil {
		return fmt.Errorf("mongo: change stream: %w", err)
	}
	if st.cs.ID() == 0 {
		return errStreamEnded // the next passes tell why
	}
	return nil
}

// errGap, errBehind and errAdopted lead back to passing; they are no fault.
var (
	errGap     = errors.New("mongo: the stream has a gap")
	errBehind  = errors.New("mongo: the stream is behind the lanes")
	errAdopted = errors.New("mongo: a foreign insert was adopted")
)

// listen takes what the stream has. An event is next if its n is the one behind h
// in its lane; one that is not after h is a repeat; anything else leads back to
// passing.
func (t *tail) listen(ctx context.Context) error {
	st := t.stream
	// A stream is quiet if it was asked and had nothing, not if nobody asked.
	if reason := t.m.Turn(t.news()); reason == "lane" || reason != "" && st.empty {
		return t.turn(reason)
	}
	asked, written, fetched := time.Now(), t.s.latest.time(), st.cs.RemainingBatchLength() == 0
	got, err := st.next(ctx, func() bool { return t.m.Poked(t.s.pokes.Load()) })
	if err != nil {
		return err
	}
	if !got || t.s.o.mute != nil && t.s.o.mute.Load() {
		t.m.Fetched(false)
		st.empty = true
		if !got {
			st.reached(written)
			t.s.tailed(asked)
			t.pace.note(written, time.Now())
		}
		return t.endure()
	}
	st.empty = false
	t.m.Heard(t.news())
	if fetched {
		t.m.Fetched(st.isFull())
	}
	for {
		again, err := t.event(ctx, st.cs.Current)
		switch {
		case errors.Is(err, errAdopted):
			// More is coming, one by one: the lanes are read until it is quiet.
			t.again = time.Now().Add(adoptionRest)
			return t.turn("adoption")
		case errors.Is(err, errGap):
			return t.turn("gap")
		case errors.Is(err, errBehind):
			return t.overload("it is behind")
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
		t.s.tailed(t.s.clock.local(at))
	}
	return t.endure()
}

// endure leads back to passing where the stream is no good under the load.
func (t *tail) endure() error {
	switch {
	case t.m.Loaded():
		return t.overload("full batches in a row")
	case t.busy():
		return t.overload("it costs the server more than passes do")
	case t.crowded():
		return t.overload("others' writes cost the server more in it than passes do")
	}
	return nil
}

// busy tells whether more events come than the stream is worth: it saves little of the
// latency of a loaded server, and costs it twice as much for each message as a pass
// that takes in many.
func (t *tail) busy() bool {
	if len(t.events) == 0 {
		return false
	}
	if since(t.counted) > time.Second {
		t.counted, t.count = time.Now(), 0
	}
	t.count += len(t.events)
	return t.count >= t.s.o.busy
}

// crowded tells whether the oplog takes in more than the stream is worth.
func (t *tail) crowded() bool { return t.pace.entries(time.Now()) >= t.s.o.crowded }

// turn leads back to passing: the stream works, but the lanes know better.
func (t *tail) turn(reason string) error {
	t.s.left(reason)
	t.leave()
	t.backoff = 0
	return nil
}

// isFull tells whether a reply was full, after its first event was read: by its
// events, or by its bytes: it ends at 16 MB.
func (st *stream) isFull() bool {
	n := st.cs.RemainingBatchLength()
	return n >= streamBatch/2 || n*len(st.cs.Current) >= streamReply/2
}

// overload leads back to passing because the stream does not keep up.
func (t *tail) overload(why string) error {
	if since(t.overloaded) > 5*time.Second {
		t.s.log.Info("the change stream does not keep up; reading the lanes", zap.String("why", why))
	}
	t.overloaded = time.Now()
	return t.turn("load")
}

// reached notes up to where the stream has told everything.
func (st *stream) reached(at bson.Timestamp) {
	if at.After(st.place) {
		st.place = at
	}
}

// event takes one event; false: look at the lanes before the next.
func (t *tail) event(ctx context.Context, raw bson.Raw) (bool, error) {
	op, _ := raw.Lookup("operationType").StringValueOK()
	if t.s.o.Metrics != nil {
		t.s.o.Metrics.StreamEvent(op)
	}
	if sec, i, ok := raw.Lookup("clusterTime").TimestampOK(); ok && op == "insert" {
		if t.s.latest.time().T > sec+streamLag {
			return false, errBehind
		}
		at := bson.Timestamp{T: sec, I: i}
		t.stream.reached(at)
		t.pace.note(at, time.Now())
		defer t.s.passed.reach(at)
	}
	switch op {
	case "insert":
	case "update":
		if t.adopted(raw) {
			return true, nil
		}
		return false, errAdopted // the lanes have the document
	default:
		t.s.fallen(op + " of collection " + t.s.o.Collections.Message)
		return false, fmt.Errorf("mongo: %s of collection %s: %w", op, t.s.o.Collections.Message, store.ErrCorrupt)
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
	switch t.m.Event(lane.ID(at.lane), uint64(at.n), mine, unknown) {
	case lane.Unknown:
		return false, t.unknownLane(ctx, at.lane)
	case lane.Foreign:
		t.s.adopter.wakeMarked()
		return true, nil
	case lane.Repeat:
		return true, nil
	case lane.Gap:
		return false, errGap
	}
	m, at, err := decodeMessage(full)
	if err != nil {
		return false, err
	}
	t.give(m, at)
	return true, nil
}

// adopted tells whether a pass has met the message that an update has adopted.
func (t *tail) adopted(event bson.Raw) bool {
	set := event.Lookup("updateDescription", "updatedFields")
	doc, ok := set.DocumentOK()
	if !ok {
		return false
	}
	at := placeOf(doc)
	mine, _ := t.s.lanes.known(at.lane)
	return at.has && t.m.Met(lane.ID(at.lane), uint64(at.n), mine)
}

// unknownLane looks whether a lane that an event names exists. A foreign insert
// may name any.
func (t *tail) unknownLane(ctx context.Context, id laneID) error {
	docs, err := t.s.readLanes(ctx, bson.D{{Key: "_id", Value: int64(id.number())}})
	if err != nil {
		return err
	}
	if len(docs) == 0 || docs[0].id() != id {
		t.s.adopter.wakeMarked()
		return nil
	}
	return errGap
}
