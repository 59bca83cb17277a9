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
}

func (d *laneDoc) id() laneID { return newLaneID(schema.Lane(d.Number), uint32(d.Key)) }

// laneBook remembers the lanes that a majority read has shown. They never go, and
// of each only `retired` changes, once.
type laneBook struct {
	mu      sync.Mutex
	by      map[schema.Lane]laneDoc
	newest  schema.Lane // all up to here are known
	changes atomic.Uint64
}

func (b *laneBook) init() { b.by = map[schema.Lane]laneDoc{} }

// note takes lanes in from a majority read.
func (b *laneBook) note(docs []laneDoc) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, d := range docs {
		k := schema.Lane(d.Number)
		if old, ok := b.by[k]; ok && old.Retired {
			continue // an older snapshot
		} else if !ok || old.Retired != d.Retired {
			b.changes.Add(1)
		}
		b.by[k] = d
	}
	for {
		if _, ok := b.by[b.newest+1]; !ok {
			return
		}
		b.newest++
	}
}

// known gives the lane of a message's `lane` value, if it is one of this log's.
// unknown: nobody has read a lane of that number yet.
func (b *laneBook) known(l laneID) (mine, unknown bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	d, ok := b.by[l.number()]
	return ok && d.id() == l, !ok
}

// upTo gives the lanes 1..newest; false: not all of them are known.
func (b *laneBook) upTo(newest schema.Lane) ([]laneDoc, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if newest > b.newest {
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
	return b.newest
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

// openLane opens a lane: the greatest number plus one, with a fresh key. It is
// used only after a majority has acknowledged it, so lanes become visible in
// order (L6). ctx carries the writer's driver session.
func (s *Store) openLane(ctx context.Context, adopts bool) (laneID, error) {
	for {
		var top laneDoc
		err := s.c.lane.FindOne(ctx, bson.D{}, options.FindOne().SetSort(bson.D{{Key: "_id", Value: -1}})).Decode(&top)
		if err != nil && !errors.Is(err, mongo.ErrNoDocuments) {
			return 0, fmt.Errorf("mongo: look for the newest lane: %w", err)
		}
		var key [4]byte
		_, _ = rand.Read(key[:]) // never fails: it ends the process instead
		d := laneDoc{Number: top.Number + 1, Key: int64(binary.BigEndian.Uint32(key[:])), Node: s.self.id(), Adopts: adopts}
		_, err = s.c.lane.InsertOne(ctx, d)
		switch {
		case err == nil:
			return d.id(), nil
		case mongo.IsDuplicateKeyError(err) && !hasWriteConcernError(err):
			// Mine, from an attempt whose answer was lost, or another's: the
			// next look tells, by the key.
		default:
			return 0, fmt.Errorf("mongo: open lane %d: %w", d.Number, err)
		}
		var there laneDoc
		err = s.c.lane.FindOne(ctx, bson.D{{Key: "_id", Value: d.Number}}).Decode(&there)
		if err == nil && there.Key == d.Key && there.Node == d.Node {
			return d.id(), nil // a majority read shows it
		}
		if err != nil && !errors.Is(err, mongo.ErrNoDocuments) {
			return 0, fmt.Errorf("mongo: look for lane %d: %w", d.Number, err)
		}
		if err := rest(ctx, retryRest); err != nil {
			return 0, err
		}
	}
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
