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

	"rewindmq/schema"
)

// checkpointID is the document of `retained` that holds the checkpoint: no topic
// is empty.
const checkpointID = ""

type checkpointDoc struct {
	Upto cursorDoc `bson:"checkpoint"`
	Rev  int64     `bson:"rev"`
}

// retainedDoc is a document of `retained`: the message as it is in the log, under
// its topic.
type retainedDoc struct {
	Topic   string        `bson:"_id"`
	Message bson.ObjectID `bson:"messageId"`
	// Doc is the document of `message`.
	Doc  bson.Raw       `bson:"message"`
	TS   bson.Timestamp `bson:"ts"`
	Lane int64          `bson:"lane"`
	N    int64          `bson:"n"`
	// Cleared: the topic was cleared; the tombstone goes after a day.
	Cleared *time.Time `bson:"cleared,omitempty"`
}

// LoadRetained loads the projection, see store.Retained. The checkpoint is read
// first: what is stored later does no harm.
func (s *Store) LoadRetained(ctx context.Context, fn func(*schema.Message) error) (schema.Cursor, error) {
	if err := s.enter(ctx); err != nil {
		return schema.Cursor{}, err
	}
	ctx, cancel := s.call(ctx)
	defer cancel()
	at, _, err := s.checkpoint(ctx)
	if err != nil {
		return schema.Cursor{}, s.failed(ctx, "load_retained", err)
	}
	cur, err := s.c.retained.Find(ctx, fields("_id", fields("$gt", checkpointID)), options.Find().SetSort(fields("_id", 1)))
	if err != nil {
		return schema.Cursor{}, s.failed(ctx, "load_retained", err)
	}
	defer func() { _ = cur.Close(context.WithoutCancel(ctx)) }()
	for cur.Next(ctx) {
		var d retainedDoc
		if err := cur.Decode(&d); err != nil {
			return schema.Cursor{}, fmt.Errorf("mongo: retained document: %w", err)
		}
		m, _, err := decodeMessage(d.Doc)
		if err != nil {
			return schema.Cursor{}, fmt.Errorf("mongo: retained %q: %w", d.Topic, err)
		}
		m.TS = uint64(d.TS.T)<<32 | uint64(d.TS.I)
		m.Mark = schema.Mark{Lane: schema.Lane(d.Lane), N: uint64(d.N)}
		if err := fn(m); err != nil {
			return schema.Cursor{}, err
		}
	}
	return at, s.failed(ctx, "load_retained", cur.Err())
}

func (s *Store) checkpoint(ctx context.Context) (schema.Cursor, int64, error) {
	var d checkpointDoc
	err := s.c.retained.FindOne(ctx, fields("_id", checkpointID)).Decode(&d)
	if errors.Is(err, mongo.ErrNoDocuments) {
		return schema.Cursor{}, 0, nil
	}
	if err != nil {
		return schema.Cursor{}, 0, fmt.Errorf("mongo: read of the retained checkpoint: %w", err)
	}
	return d.Upto.cursor(), d.Rev, nil
}

// StoreRetained stores messages and then the checkpoint, see store.Retained. For
// each topic the larger (ts, lane, n, _id) wins, whatever the order of writes: so
// an attempt that lands late does no harm (R4).
func (s *Store) StoreRetained(ctx context.Context, msgs []*schema.Message, checkpoint schema.Cursor) error {
	if err := s.enter(ctx); err != nil {
		return err
	}
	ctx, cancel := s.call(ctx)
	defer cancel()
	if err := s.putRetained(ctx, msgs); err != nil {
		return s.failed(ctx, "store_retained", err)
	}
	return s.failed(ctx, "store_retained", s.moveCheckpoint(ctx, checkpoint))
}

func (s *Store) putRetained(ctx context.Context, msgs []*schema.Message) error {
	for part := range slices.Chunk(msgs, maxBatch) {
		models := make([]mongo.WriteModel, len(part))
		for i, m := range part {
			d := retainedDoc{
				Topic: m.Topic, Message: bson.ObjectID(m.ID), Doc: s.form().encode(m, 0, 0),
				TS: bson.Timestamp{T: uint32(m.TS >> 32), I: uint32(m.TS)}, Lane: int64(m.Mark.Lane), N: int64(m.Mark.N),
			}
			if len(m.Payload) == 0 {
				now := s.Now()
				d.Cleared = &now
			}
			models[i] = mongo.NewUpdateOneModel().SetUpsert(true).SetFilter(fields("_id", m.Topic)).SetUpdate(mongo.Pipeline{
				{{Key: "$replaceWith", Value: ex("$cond", supersedes(&d), ex("$literal", d), "$$ROOT")}},
			})
		}
		_, err := s.c.retained.BulkWrite(ctx, models)
		if mongo.IsDuplicateKeyError(err) { // two upserts at once: the second finds it now
			_, err = s.c.retained.BulkWrite(ctx, models)
		}
		if err != nil {
			return fmt.Errorf("mongo: retained messages: %w", err)
		}
	}
	return nil
}

// supersedes compares what a message is ordered by.
func supersedes(d *retainedDoc) any {
	type pair struct{ field, value any }
	order := []pair{{"$ts", d.TS}, {"$lane", d.Lane}, {"$n", d.N}, {"$messageId", d.Message}}
	cond := any(false)
	for _, p := range slices.Backward(order) {
		cond = ex("$or", ex("$gt", p.value, p.field), ex("$and", ex("$eq", p.value, p.field), cond))
	}
	return ex("$or", absent("$messageId"), cond)
}

// moveCheckpoint merges: the projection is complete up to both.
func (s *Store) moveCheckpoint(ctx context.Context, to schema.Cursor) error {
	for {
		at, rev, err := s.checkpoint(ctx)
		if err != nil {
			return err
		}
		next := at.Clone()
		next.Merge(to)
		if rev > 0 && next.Equal(at) {
			return nil
		}
		filter := fields("_id", checkpointID, "rev", rev)
		if rev == 0 {
			filter = fields("_id", checkpointID, "rev", fields("$exists", false))
		}
		res, err := s.c.retained.UpdateOne(ctx, filter,
			bson.D{{Key: "$set", Value: fields("checkpoint", newCursorDoc(next), "rev", rev+1)}}, options.UpdateOne().SetUpsert(rev == 0))
		if err != nil && !mongo.IsDuplicateKeyError(err) {
			return fmt.Errorf("mongo: retained checkpoint: %w", err)
		}
		if err == nil && res.MatchedCount+res.UpsertedCount > 0 {
			return nil
		}
	}
}
