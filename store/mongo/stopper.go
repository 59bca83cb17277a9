package mongo

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
)

// stopLane puts a stopper of a kind behind the last document of a lane, and gives
// its n. What is on its way to that place or above fails from then on. ctx carries
// a driver session with one write in flight. A lane that was ended needs no other.
func (s *Store) stopLane(ctx context.Context, lane laneID, kind string) (uint64, error) {
	id := bson.NewObjectID()
	pause := retryRest
	for {
		last, there, err := s.lastOf(ctx, lane)
		if err != nil {
			return 0, err
		}
		n := uint64(0)
		if there {
			n = uint64(last.n)
			if last.stop == stopEnd || last.id == id {
				return n, nil
			}
		}
		_, err = s.c.message.InsertOne(ctx, s.stopper(id, lane, n+1, kind))
		if err == nil {
			return n + 1, nil
		}
		if !mongo.IsDuplicateKeyError(err) && ctx.Err() != nil {
			return 0, fmt.Errorf("mongo: stopper in lane %d: %w", lane.number(), err)
		}
		// A duplicate: something is there that the majority may not show yet. A
		// doubt: the look tells.
		if rest(ctx, pause) != nil {
			return 0, fmt.Errorf("mongo: stopper in lane %d: %w", lane.number(), err)
		}
		pause = backoff(pause)
	}
}

// lastOf reads the greatest n of a lane.
func (s *Store) lastOf(ctx context.Context, lane laneID) (found, bool, error) {
	raw, err := s.c.message.FindOne(ctx, bson.D{{Key: "lane", Value: int64(lane)}}, options.FindOne().
		SetSort(bson.D{{Key: "n", Value: -1}}).
		SetProjection(bson.D{{Key: "lane", Value: 1}, {Key: "n", Value: 1}, {Key: "stop", Value: 1}})).Raw()
	if errors.Is(err, mongo.ErrNoDocuments) {
		return found{}, false, nil
	}
	if err != nil {
		return found{}, false, fmt.Errorf("mongo: last of lane %d: %w", lane.number(), err)
	}
	id, _ := raw.Lookup("_id").ObjectIDOK()
	return found{id: id, place: placeOf(raw)}, true, nil
}

// endLane retires a lane: an `end` behind its last document, and when a majority
// has that, `retired`.
func (s *Store) endLane(ctx context.Context, lane laneID) error {
	n, err := s.stopLane(ctx, lane, stopEnd)
	if err != nil {
		return err
	}
	_, err = s.c.lane.UpdateOne(ctx, bson.D{{Key: "_id", Value: int64(lane.number())}},
		bson.D{{Key: "$set", Value: bson.D{{Key: "retired", Value: true}, {Key: "last", Value: int64(n)}}}})
	if err != nil {
		return fmt.Errorf("mongo: retire lane %d: %w", lane.number(), err)
	}
	return nil
}

// stopping puts stoppers into the lanes of former owners, for many claims at
// once: one stopper for each lane and round.
type stopping struct {
	s *Store

	mu      sync.Mutex
	running bool
	next    *stopRound
}

type stopRound struct {
	nodes map[bson.ObjectID]bool
	done  chan struct{}
	err   error
}

// stop waits until each lane of the nodes has a stopper that was put after the
// call. The claims that ask have raised their epochs before.
func (t *stopping) stop(ctx context.Context, nodes []bson.ObjectID) error {
	if len(nodes) == 0 {
		return nil
	}
	t.mu.Lock()
	if t.next == nil {
		t.next = &stopRound{nodes: map[bson.ObjectID]bool{}, done: make(chan struct{})}
	}
	r := t.next
	for _, n := range nodes {
		r.nodes[n] = true
	}
	if !t.running {
		t.running = true
		t.s.work.Go(t.run)
	}
	t.mu.Unlock()
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (t *stopping) run() {
	for {
		t.mu.Lock()
		r := t.next
		t.next = nil
		if r == nil {
			t.running = false
			t.mu.Unlock()
			return
		}
		t.mu.Unlock()
		ctx, cancel := context.WithTimeout(t.s.life, t.s.o.Attempt)
		r.err = t.put(ctx, r.nodes)
		cancel()
		close(r.done)
	}
}

func (t *stopping) put(ctx context.Context, nodes map[bson.ObjectID]bool) error {
	// A lane that became visible after the claims did is its writer's affair: it
	// looks before it uses the lane. So a fresh time bounds the reading from below.
	at, err := t.s.fresh.time(ctx)
	if err != nil {
		return err
	}
	return t.s.inSession(ctx, at, func(ctx context.Context) error {
		of := bson.A{}
		for n := range nodes {
			of = append(of, n)
		}
		lanes, err := t.s.readLanes(ctx, bson.D{{Key: "node", Value: bson.D{{Key: "$in", Value: of}}}, {Key: "retired", Value: nil}})
		if err != nil {
			return err
		}
		for i := range lanes {
			if _, err := t.s.stopLane(ctx, lanes[i].id(), stopPlain); err != nil {
				return err
			}
		}
		return nil
	})
}

// inSession calls fn with a driver session of its own, whose reads see what was
// committed at `at`.
func (s *Store) inSession(ctx context.Context, at bson.Timestamp, fn func(context.Context) error) error {
	sess, err := s.client.StartSession()
	if err != nil {
		return fmt.Errorf("mongo: session: %w", err)
	}
	defer sess.EndSession(context.WithoutCancel(ctx))
	if !at.IsZero() {
		if err := sess.AdvanceOperationTime(&at); err != nil {
			return fmt.Errorf("mongo: session: %w", err)
		}
	}
	return fn(mongo.NewSessionContext(ctx, sess))
}
