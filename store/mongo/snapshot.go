package mongo

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"rewindmq/schema"
)

// passed is the largest cluster time that a tail or a Head of this node has
// reached: what is read for a cursor of theirs must not be older (T16).
type passed struct{ at atomic.Uint64 }

func (p *passed) reach(t bson.Timestamp) {
	v := uint64(t.T)<<32 | uint64(t.I)
	for {
		old := p.at.Load()
		if old >= v || p.at.CompareAndSwap(old, v) {
			return
		}
	}
}

func (p *passed) time() bson.Timestamp {
	v := p.at.Load()
	return bson.Timestamp{T: uint32(v >> 32), I: uint32(v)}
}

// snapshot is a driver session in which every read sees the same cluster time. For
// one goroutine.
type snapshot struct {
	s    *Store
	sess *mongo.Session
	ctx  context.Context
}

// snapshotAt opens one; at zero: the server takes the newest time that a majority
// has.
func (s *Store) snapshotAt(ctx context.Context, client *mongo.Client, at bson.Timestamp) (*snapshot, error) {
	o := options.Session().SetSnapshot(true)
	if !at.IsZero() {
		o.SetSnapshotTime(at)
	}
	sess, err := client.StartSession(o)
	if err != nil {
		return nil, fmt.Errorf("mongo: snapshot: %w", err)
	}
	return &snapshot{s: s, sess: sess, ctx: mongo.NewSessionContext(ctx, sess)}, nil
}

// time gives its cluster time, after the first read.
func (n *snapshot) time() bson.Timestamp { return n.sess.SnapshotTime() }

func (n *snapshot) end() { n.sess.EndSession(context.WithoutCancel(n.ctx)) }

// tops reads the greatest n that is there of each lane (retention may have taken what
// was behind it: the lane's `top`), in as few commands as the server takes.
func (s *Store) tops(ctx context.Context, coll *mongo.Collection, lanes []laneDoc) (map[schema.Lane]uint64, error) {
	out := map[schema.Lane]uint64{}
	err := s.oneOfEach(ctx, coll, lanes, func(d *laneDoc) (bson.D, int) {
		return bson.D{{Key: "lane", Value: int64(d.id())}}, -1
	}, func(p place, _ bson.Timestamp) { out[p.lane.number()] = uint64(p.n) })
	return out, err
}

// perCommand bounds the lanes that are looked at in one command.
const perCommand = 40

// oneOfEach reads for each lane the first or last document that matches a filter.
func (s *Store) oneOfEach(ctx context.Context, coll *mongo.Collection, lanes []laneDoc,
	query func(*laneDoc) (filter bson.D, order int), each func(place, bson.Timestamp),
) error {
	for len(lanes) > 0 {
		k := min(len(lanes), perCommand)
		var pipeline mongo.Pipeline
		for i := range lanes[:k] {
			filter, order := query(&lanes[i])
			one := mongo.Pipeline{
				{{Key: "$match", Value: filter}},
				{{Key: "$sort", Value: bson.D{{Key: "lane", Value: 1}, {Key: "n", Value: order}}}},
				{{Key: "$limit", Value: 1}},
				{{Key: "$project", Value: bson.D{{Key: "lane", Value: 1}, {Key: "n", Value: 1}, {Key: "ts", Value: 1}}}},
			}
			if order < 0 {
				one[1] = bson.D{{Key: "$sort", Value: bson.D{{Key: "n", Value: -1}}}}
			}
			if i == 0 {
				pipeline = one
			} else {
				pipeline = append(pipeline, bson.D{{Key: "$unionWith", Value: bson.D{{Key: "coll", Value: coll.Name()}, {Key: "pipeline", Value: one}}}})
			}
		}
		lanes = lanes[k:]
		cur, err := coll.Aggregate(ctx, pipeline)
		if err != nil {
			return fmt.Errorf("mongo: look at lanes: %w", err)
		}
		for cur.Next(ctx) {
			t, i, _ := cur.Current.Lookup("ts").TimestampOK()
			each(placeOf(cur.Current), bson.Timestamp{T: t, I: i})
		}
		err = cur.Err()
		_ = cur.Close(context.WithoutCancel(ctx))
		if err != nil {
			return fmt.Errorf("mongo: look at lanes: %w", err)
		}
	}
	return nil
}

// live filters the lanes that count for somebody who knows all up to newest: the
// ones that he has an entry for, and newer ones.
func liveLanes(h schema.Cursor) bson.D {
	with := bson.A{}
	for _, m := range h.Marks() {
		with = append(with, int64(m.Lane))
	}
	return bson.D{{Key: "$or", Value: bson.A{
		bson.D{{Key: "_id", Value: bson.D{{Key: "$gt", Value: int64(h.Newest())}}}},
		bson.D{{Key: "_id", Value: bson.D{{Key: "$in", Value: with}}}},
	}}}
}

// Head gives the cursor of all that is committed: a majority write of this node
// that began after the call, so that no deposed primary answers, then a snapshot
// at its operation time.
func (s *Store) Head(ctx context.Context) (schema.Cursor, error) {
	if err := s.enter(ctx); err != nil {
		return schema.Cursor{}, err
	}
	ctx, cancel := s.call(ctx)
	defer cancel()
	h, err := s.head(ctx)
	return h, s.failed(ctx, "head", err)
}

func (s *Store) head(ctx context.Context) (schema.Cursor, error) {
	at, err := s.fresh.time(ctx)
	if err != nil {
		return schema.Cursor{}, err
	}
	snap, err := s.snapshotAt(ctx, s.client, at)
	if err != nil {
		return schema.Cursor{}, err
	}
	defer snap.end()
	h, err := s.headIn(snap)
	if err == nil {
		s.passed.reach(at)
	}
	return h, err
}

// headIn gives the cursor of all that a snapshot has. The newest lane is the
// snapshot's: one that somebody else has read meanwhile has no entry here, and
// would count as retired.
func (s *Store) headIn(snap *snapshot) (schema.Cursor, error) {
	open, err := s.readLanes(snap.ctx, fields("retired", nil))
	if err != nil {
		return schema.Cursor{}, err
	}
	var top laneDoc
	err = s.c.lane.FindOne(snap.ctx, bson.D{}, options.FindOne().SetSort(fields("_id", -1))).Decode(&top)
	if err != nil && !errors.Is(err, mongo.ErrNoDocuments) {
		return schema.Cursor{}, fmt.Errorf("mongo: look for the newest lane: %w", err)
	}
	n, err := s.tops(snap.ctx, s.c.message, open)
	if err != nil {
		return schema.Cursor{}, err
	}
	marks := make([]schema.Mark, len(open))
	for i, d := range open {
		marks[i] = schema.Mark{Lane: schema.Lane(d.Number), N: max(n[schema.Lane(d.Number)], uint64(d.Top))}
	}
	return schema.NewCursor(schema.Lane(top.Number), marks), nil
}
