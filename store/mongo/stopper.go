package mongo

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
	"go.mongodb.org/mongo-driver/v2/mongo/readconcern"

	"rewindmq/schema"
	"rewindmq/store/mongo/lane"
)

// stopLane puts a stopper behind the last document of a lane: a plain one, or an
// `end`, by which the lane is retired. ctx carries a driver session with one write
// in flight.
func (s *Store) stopLane(ctx context.Context, id laneID, kind string) error {
	return s.putStopper(ctx, bson.NewObjectID(), id, kind)
}

// putStopper carries out a lane.Stop.
func (s *Store) putStopper(ctx context.Context, doc bson.ObjectID, id laneID, kind string) error {
	m := lane.NewStop(schema.ID(doc), lane.ID(id), kind)
	var failed error
	for {
		a := m.Next()
		switch a.Do {
		case lane.PutBehind:
			failed = s.putBehind(ctx, bson.ObjectID(a.ID), id, a.Kind)
			m.Wrote(outcomeOf(failed))
		case lane.Look:
			if err := s.lookAtStopper(ctx, m, bson.ObjectID(a.ID), id); err != nil {
				return fmt.Errorf("mongo: last of lane %d: %w", id.number(), err)
			}
		case lane.Rest:
			if rest(ctx, a.Rest) != nil {
				return fmt.Errorf("mongo: stopper in lane %d: %w", id.number(), errors.Join(failed, ctx.Err()))
			}
		case lane.Retire:
			_, err := s.c.lane.UpdateOne(ctx, fields("_id", int64(id.number()), "retired", nil), fields("$set", fields("retired", true, "last", int64(a.N))))
			if err != nil {
				return fmt.Errorf("mongo: retire lane %d: %w", id.number(), err)
			}
			m.Retired()
		default:
			return nil
		}
	}
}

// putBehind makes one attempt to insert a stopper behind the last document of a lane:
// one command, which the primary carries out by what it has itself. Why that is right,
// and two commands are not, is told at lane.Stop. It is an aggregation, and those have
// no transaction number: an attempt that was given up may still land. It does no harm:
// of all attempts one goes in, by the id of the stopper, and not behind an `end`. It is
// created when it goes in: retention does not take it at once, however late that is.
func (s *Store) putBehind(ctx context.Context, doc bson.ObjectID, id laneID, kind string) error {
	lanes := s.db.Collection(s.o.Collections.Lane, options.Collection().SetReadConcern(readconcern.Local()))
	cur, err := lanes.Aggregate(ctx, mongo.Pipeline{
		fields("$match", fields("_id", int64(id.number()), "retired", nil)),
		fields("$lookup", fields("from", s.o.Collections.Message, "as", "newest", "pipeline", mongo.Pipeline{
			fields("$match", fields("lane", int64(id))),
			fields("$sort", fields("n", -1)),
			fields("$limit", 1),
			fields("$project", fields("n", 1, "stop", 1)),
		})),
		fields("$match", fields("newest.stop", fields("$ne", stopEnd))),
		fields("$replaceWith", ex("$mergeObjects", ex("$literal", s.stopper(doc, id, 0, kind)),
			fields("created", "$$NOW", "n", ex("$toLong", ex("$add", ex("$max", 0, "$top", ex("$first", "$newest.n")), 1))))),
		fields("$merge", fields("into", s.o.Collections.Message, "on", "_id", "whenMatched", "fail", "whenNotMatched", "insert")),
	})
	if err != nil {
		return err
	}
	return cur.Close(ctx)
}

// lookAtStopper tells m what a majority has.
func (s *Store) lookAtStopper(ctx context.Context, m *lane.Stop, doc bson.ObjectID, id laneID) error {
	own, err := s.docOf(ctx, fields("_id", doc), options.FindOne())
	if err != nil || own != nil {
		if err == nil {
			m.Looked(nil, own, false)
		}
		return err
	}
	last, err := s.lastOf(ctx, id)
	if err != nil {
		return err
	}
	retired, err := s.c.lane.CountDocuments(ctx, fields("_id", int64(id.number()), "retired", true), options.Count().SetLimit(1))
	if err == nil {
		m.Looked(last, nil, retired > 0)
	}
	return err
}

// lastOf reads the document with the greatest n of a lane; nil: there is none.
func (s *Store) lastOf(ctx context.Context, id laneID) (*lane.Doc, error) {
	return s.docOf(ctx, bson.D{{Key: "lane", Value: int64(id)}}, options.FindOne().SetSort(bson.D{{Key: "n", Value: -1}}))
}

func (s *Store) docOf(ctx context.Context, filter bson.D, o *options.FindOneOptionsBuilder) (*lane.Doc, error) {
	raw, err := s.c.message.FindOne(ctx, filter, o.
		SetProjection(bson.D{{Key: "lane", Value: 1}, {Key: "n", Value: 1}, {Key: "stop", Value: 1}})).Raw()
	if errors.Is(err, mongo.ErrNoDocuments) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	id, _ := raw.Lookup("_id").ObjectIDOK()
	f := found{id: id, place: placeOf(raw)}
	d := f.doc(true)
	return &d, nil
}

// endLane retires a lane: an `end` behind its last document, and when a majority
// has that, `retired`.
func (s *Store) endLane(ctx context.Context, id laneID) error {
	return s.stopLane(ctx, id, lane.End)
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
			if err := t.s.stopLane(ctx, lanes[i].id(), lane.Stopper); err != nil {
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
