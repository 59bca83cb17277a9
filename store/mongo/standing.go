package mongo

import (
	"context"
	"fmt"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
	"go.uber.org/zap"

	"rewindmq/store"
)

// standRest is how often it is looked whether the log still stands. A stream tells
// at once when it was dropped; without one the passes find an empty log, and no
// error (T12).
const standRest = 2 * time.Second

// stands tells whether the collection of messages is there. It asks for the names
// that this user may see: that takes no right of its own.
func (s *Store) stands(ctx context.Context) (bool, error) {
	names, err := s.db.ListCollectionNames(ctx, fields("name", s.o.Collections.Message), options.ListCollections().SetAuthorizedCollections(true))
	if err != nil {
		return false, fmt.Errorf("mongo: look for collection %s: %w", s.o.Collections.Message, err)
	}
	return len(names) > 0, nil
}

// stand looks until the store dies. Where it cannot look, others tell why.
func (s *Store) stand() {
	for rest(s.life, standRest) == nil {
		ctx, cancel := context.WithTimeout(s.life, s.o.Attempt)
		there, err := s.stands(ctx)
		cancel()
		if err == nil && !there {
			s.fallen("collection " + s.o.Collections.Message + " is gone")
			return
		}
	}
}

// fallen ends the store because the log is not what it was, and writes that down:
// whoever starts next would make the collection anew and go on in an empty log.
func (s *Store) fallen(why string) {
	ctx, cancel := context.WithTimeout(s.life, standRest)
	defer cancel()
	_, err := s.c.meta.UpdateOne(ctx, fields("_id", "format", "lost", nil),
		mongo.Pipeline{set("lost", fields("why", why, "at", "$$NOW", "node", s.o.Node))})
	if err != nil && s.life.Err() == nil {
		s.log.Error("that the log was lost could not be written down: the next start will not know", zap.Error(err))
	}
	if s.o.Metrics != nil {
		s.o.Metrics.Error("tail", "corrupt")
		s.o.Metrics.Up.Set(0)
	}
	s.breakDown(fmt.Errorf("mongo: %s of database %s: %w", why, s.o.Database, store.ErrCorrupt))
}

// loss is what fallen has written.
type loss struct {
	Why  string    `bson:"why"`
	At   time.Time `bson:"at"`
	Node string    `bson:"node"`
}

// refuse tells why there is no start on a database whose log has been lost; nil: it
// has not.
func (l *loss) refuse(s *Store) error {
	if l == nil {
		return nil
	}
	return fmt.Errorf("mongo: %s of database %s, as node %s found on %s: messages that were acknowledged are not there any more. "+
		"Restore the collection from a backup, or go on without them; then take the mark away: "+
		"db.%s.updateOne({_id: \"format\"}, {$unset: {lost: 1}}): %w",
		l.Why, s.o.Database, l.Node, l.At.UTC().Format(time.RFC3339), s.o.Collections.Meta, store.ErrCorrupt)
}

// expectLog refuses a start where the log should be and is not.
func (s *Store) expectLog(ctx context.Context) error {
	there, err := s.stands(ctx)
	if err != nil || there {
		return err
	}
	n := s.o.Collections.Message
	return fmt.Errorf("mongo: collection %s of database %s is gone, though brokers have been here: messages that were acknowledged are not there any more. "+
		"Restore it from a backup, or go on without them: db.createCollection(%q): %w", n, s.o.Database, n, store.ErrCorrupt)
}

// badHint tells whether the server says that an index of ours is not there.
func badHint(err error) bool { return hasCode(err, codeBadValue) }

// formatDoc is the document of the format in `meta`.
type formatDoc struct {
	ID      string `bson:"_id"`
	Version int    `bson:"version"`
	Lost    *loss  `bson:"lost"`
}

// readFormat reads it; version 0: there is none yet.
func (s *Store) readFormat(ctx context.Context) (formatDoc, error) {
	var docs []formatDoc
	cur, err := s.c.meta.Find(ctx, bson.D{{Key: "_id", Value: "format"}})
	if err == nil {
		err = cur.All(ctx, &docs)
	}
	if err != nil {
		return formatDoc{}, fmt.Errorf("mongo: read of the format: %w", err)
	}
	if len(docs) == 0 {
		return formatDoc{}, nil
	}
	return docs[0], nil
}
