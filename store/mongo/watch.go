package mongo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
	"go.uber.org/zap"

	"rewindmq/schema"
	"rewindmq/store"
)

// watching is an open Watch.
type watching struct {
	s     *Store
	poke  chan struct{}
	queue map[string]store.Lost // guarded by watchers.mu
}

// Watch opens the stream of sessions claimed elsewhere, see store.Sessions. It
// stays open as long as the store.
func (s *Store) Watch(ctx context.Context) (store.Watch, error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	w := &watching{s: s, poke: make(chan struct{}, 1), queue: map[string]store.Lost{}}
	s.watch.mu.Lock()
	defer s.watch.mu.Unlock()
	s.watch.list = append(s.watch.list, w)
	return w, nil
}

// Next waits for sessions that are no longer this node's.
func (w *watching) Next(ctx context.Context) ([]store.Lost, error) {
	for {
		if err := w.s.enter(ctx); err != nil {
			return nil, err
		}
		w.s.watch.mu.Lock()
		var out []store.Lost
		for _, l := range w.queue {
			out = append(out, l)
		}
		clear(w.queue)
		w.s.watch.mu.Unlock()
		if len(out) > 0 {
			return out, nil
		}
		select {
		case <-w.poke:
		case <-w.s.ended:
			return nil, store.ErrClosed
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// controlRest is how often what the control stream would tell is polled without
// it.
const controlRest = time.Second

// control follows claims: hints that a session is another's now. What a stream
// missed is found by reading the sessions that this node owns, at its opening,
// and each second while there is none. It also reads the lanes: a tail looks when
// one was opened or retired.
func (s *Store) control() {
	var warned time.Time
	for s.life.Err() == nil {
		var err error
		if !s.o.NoStreams {
			err = s.followClaims()
		}
		err = errors.Join(err, s.pollClaims(s.life))
		if err != nil && s.life.Err() == nil && since(warned) > 5*time.Second {
			warned = time.Now()
			s.log.Warn("control events", zap.Error(err))
		}
		if rest(s.life, controlRest) != nil {
			return
		}
	}
}

func (s *Store) followClaims() error {
	ctx, cancel := context.WithCancel(s.life)
	defer cancel()
	guard := time.AfterFunc(2*controlRest, cancel) // the claims are polled meanwhile
	defer guard.Stop()
	cs, err := s.tails.Database(s.o.Database).Watch(ctx, mongo.Pipeline{{{Key: "$match", Value: fields("$or", bson.A{
		fields("ns.coll", s.o.Collections.Session, "operationType", fields("$in", bson.A{"insert", "replace"})),
		fields("ns.coll", s.o.Collections.Session, "operationType", "update", "updateDescription.updatedFields.epoch", fields("$exists", true)),
		fields("ns.coll", s.o.Collections.Lane, "operationType", fields("$in", bson.A{"insert", "update"})),
		fields("operationType", "invalidate"),
	})}}, {{Key: "$project", Value: fields("ns", 1, "documentKey", 1, "updateDescription.updatedFields.epoch", 1, "updateDescription.updatedFields.owner", 1,
		"fullDocument.epoch", 1, "fullDocument.owner", 1, "operationType", 1)}}},
		options.ChangeStream().SetMaxAwaitTime(streamAwait))
	if err != nil {
		return fmt.Errorf("mongo: control stream: %w", err)
	}
	defer func() {
		bye, done := context.WithTimeout(context.Background(), streamClose)
		defer done()
		_ = cs.Close(bye)
	}()
	if err := s.pollClaims(ctx); err != nil {
		return err
	}
	looked := time.Now()
	for {
		guard.Reset(streamHung)
		lanes := false
		for cs.TryNext(ctx) {
			if c, _ := cs.Current.Lookup("ns", "coll").StringValueOK(); c == s.o.Collections.Lane {
				lanes = true
			} else {
				s.claimed(cs.Current)
			}
			if cs.RemainingBatchLength() == 0 {
				break
			}
		}
		if err := cs.Err(); err != nil {
			return fmt.Errorf("mongo: control stream: %w", err)
		}
		if cs.ID() == 0 {
			return fmt.Errorf("mongo: control stream: %w", errStreamEnded)
		}
		if lanes || since(looked) > 5*time.Second {
			looked = time.Now()
			if err := s.pollLanes(ctx); err != nil {
				return err
			}
		}
	}
}

// claimed takes one event of `session`.
func (s *Store) claimed(ev bson.Raw) {
	id, ok := ev.Lookup("documentKey", "_id").StringValueOK()
	if !ok {
		return
	}
	from := ev.Lookup("updateDescription", "updatedFields")
	if op, _ := ev.Lookup("operationType").StringValueOK(); op != "update" {
		from = ev.Lookup("fullDocument")
	}
	doc, ok := from.DocumentOK()
	if !ok {
		return
	}
	epoch, _ := doc.Lookup("epoch").AsInt64OK()
	if owner, ok := doc.Lookup("owner").ObjectIDOK(); ok && owner == s.self.id() {
		return // claimed here
	}
	// No owner in the update: it is unchanged. Then it is this node's, if the
	// session is in the book.
	if _, ok := doc.Lookup("owner").ObjectIDOK(); !ok {
		return
	}
	s.lose(id, uint64(epoch))
}

// lose tells that a session was claimed elsewhere, if this node has it by an older
// claim. The owner may still write until the claimer has marked the cursor: it
// flushes, and releases.
func (s *Store) lose(clientID string, epoch uint64) {
	if s.owned.older(clientID, epoch) {
		s.watch.tell(store.Lost{ClientID: clientID, Epoch: epoch})
	}
}

// pollClaims reads the sessions that this node owns, and the lanes.
func (s *Store) pollClaims(ctx context.Context) error {
	if err := s.pollLanes(ctx); err != nil {
		return err
	}
	for part := range slices.Chunk(s.owned.all(), 1000) {
		mine := make(map[string]schema.Owner, len(part))
		in := make(bson.A, 0, len(part))
		for _, o := range part {
			mine[o.ClientID] = o
			in = append(in, o.ClientID)
		}
		cur, err := s.c.session.Find(ctx, fields("_id", fields("$in", in), "owner", fields("$ne", s.self.id())),
			options.Find().SetProjection(fields("epoch", 1)))
		if err != nil {
			return fmt.Errorf("mongo: read of own sessions: %w", err)
		}
		for cur.Next(ctx) {
			id, _ := cur.Current.Lookup("_id").StringValueOK()
			n, _ := cur.Current.Lookup("epoch").AsInt64OK()
			s.lose(id, uint64(n))
		}
		if err := cur.Err(); err != nil {
			return fmt.Errorf("mongo: read of own sessions: %w", err)
		}
	}
	return nil
}

// pollLanes reads the lanes that may have changed.
func (s *Store) pollLanes(ctx context.Context) error {
	_, err := s.readLanes(ctx, fields("$or", bson.A{
		fields("_id", fields("$gt", int64(s.lanes.knownUpTo()))),
		fields("_id", fields("$in", s.lanes.open())),
	}))
	return err
}
