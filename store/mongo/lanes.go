package mongo

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"rewindmq/schema"
	"rewindmq/store/mongo/lane"
)

// laneID is what a message carries in `lane`: the number in the upper half, the
// lane's key in the lower. A copy from another database has another key.
type laneID int64

func newLaneID(number schema.Lane, key uint32) laneID {
	return laneID(int64(number)<<32 | int64(key))
}

func (l laneID) number() schema.Lane { return schema.Lane(uint64(l) >> 32) }

// laneDoc is a document of `lane`.
type laneDoc struct {
	Number  int64          `bson:"_id"`
	Key     int64          `bson:"key"`
	Node    bson.ObjectID  `bson:"node"`
	Adopts  bool           `bson:"adopts,omitempty"`
	Opened  bson.Timestamp `bson:"opened"`
	Retired bool           `bson:"retired,omitempty"`
	Last    int64          `bson:"last,omitempty"` // its last n, once retired
	Top     int64          `bson:"top,omitempty"`  // up to where all in it was settled, see tops
}

func (d *laneDoc) id() laneID { return newLaneID(schema.Lane(d.Number), uint32(d.Key)) }

// laneBook remembers the lanes that a majority read has shown. They never go, and
// of each only `retired` changes, once.
type laneBook struct {
	mu      sync.Mutex
	by      map[schema.Lane]laneDoc
	book    lane.Book
	changes atomic.Uint64
}

func (b *laneBook) init() { b.by = map[schema.Lane]laneDoc{} }

// note takes lanes in from a majority read.
func (b *laneBook) note(docs []laneDoc) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, d := range docs {
		if b.book.Note(lane.ID(d.id()), d.Retired) {
			b.by[schema.Lane(d.Number)] = d
			b.changes.Add(1)
		}
	}
}

// known gives the lane of a message's `lane` value, if it is one of this log's.
// unknown: nobody has read a lane of that number yet.
func (b *laneBook) known(l laneID) (mine, unknown bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.book.Known(lane.ID(l))
}

// upTo gives the lanes 1..newest; false: not all of them are known.
func (b *laneBook) upTo(newest schema.Lane) ([]laneDoc, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if newest > b.book.Newest() {
		return nil, false
	}
	out := slices.Collect(maps.Values(b.by))
	out = slices.DeleteFunc(out, func(d laneDoc) bool { return schema.Lane(d.Number) > newest })
	slices.SortFunc(out, func(a, b laneDoc) int { return int(a.Number - b.Number) })
	return out, true
}

// knownUpTo tells up to where all lanes are known.
func (b *laneBook) knownUpTo() schema.Lane {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.book.Newest()
}

// readLanes reads the lanes that filter asks for, by ctx's session, and notes
// them.
func (s *Store) readLanes(ctx context.Context, filter bson.D) ([]laneDoc, error) {
	cur, err := s.c.lane.Find(ctx, filter, options.Find().SetSort(bson.D{{Key: "_id", Value: 1}}))
	if err != nil {
		return nil, fmt.Errorf("mongo: read of lanes: %w", err)
	}
	var docs []laneDoc
	if err := cur.All(ctx, &docs); err != nil {
		return nil, fmt.Errorf("mongo: read of lanes: %w", err)
	}
	s.lanes.note(docs)
	return docs, nil
}

// openLane opens a lane under this node's name. ctx carries the writer's driver
// session.
func (s *Store) openLane(ctx context.Context, adopts bool) (laneID, error) {
	return s.openLaneAs(ctx, s.self.id(), adopts)
}

// openLaneAs carries out a lane.Opening.
func (s *Store) openLaneAs(ctx context.Context, node bson.ObjectID, adopts bool) (laneID, error) {
	o := lane.NewOpening(schema.ID(node), newKey)
	var failed error
	for {
		a := o.Next()
		switch a.Do {
		case lane.Look:
			var top laneDoc
			err := s.c.lane.FindOne(ctx, bson.D{}, options.FindOne().SetSort(bson.D{{Key: "_id", Value: -1}})).Decode(&top)
			if err != nil && !errors.Is(err, mongo.ErrNoDocuments) {
				return 0, fmt.Errorf("mongo: look for the newest lane: %w", err)
			}
			o.Top(schema.Lane(top.Number))
		case lane.Insert:
			_, failed = s.c.lane.InsertOne(ctx, laneDoc{
				Number: int64(a.Lane.Number()), Key: int64(a.Lane.Key()), Node: node, Adopts: adopts,
			})
			o.Inserted(outcomeOf(failed))
		case lane.Check:
			var there laneDoc
			err := s.c.lane.FindOne(ctx, bson.D{{Key: "_id", Value: int64(a.Lane.Number())}}).Decode(&there)
			if err != nil && !errors.Is(err, mongo.ErrNoDocuments) {
				return 0, fmt.Errorf("mongo: look for lane %d: %w", a.Lane.Number(), err)
			}
			o.Checked(err == nil, lane.ID(there.id()), schema.ID(there.Node))
		case lane.Rest:
			if err := rest(ctx, a.Rest); err != nil {
				return 0, err
			}
		case lane.Failed:
			return 0, fmt.Errorf("mongo: open lane %d: %w", a.Lane.Number(), failed)
		default:
			return laneID(a.Lane), nil
		}
	}
}

// newKey makes a lane's key.
func newKey() uint32 {
	var key [4]byte
	_, _ = rand.Read(key[:]) // never fails: it ends the process instead
	return binary.BigEndian.Uint32(key[:])
}

// outcomeOf reads the reply to a single write.
func outcomeOf(err error) lane.Outcome {
	switch {
	case err == nil:
		return lane.Acknowledged
	case mongo.IsDuplicateKeyError(err) && !hasWriteConcernError(err):
		return lane.Duplicate
	}
	return lane.InDoubt
}

// open gives the numbers of the lanes that are not known to be retired.
func (b *laneBook) open() bson.A {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := bson.A{}
	for k, d := range b.by {
		if !d.Retired {
			out = append(out, int64(k))
		}
	}
	return out
}
