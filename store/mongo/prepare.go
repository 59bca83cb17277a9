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
)

type collections struct {
	message, lane, subscription, published, session, cursor, group, retained, node, meta *mongo.Collection
}

func (s *Store) collections() collections {
	n, c := s.o.Collections, s.db.Collection
	return collections{
		message: c(n.Message), lane: c(n.Lane), subscription: c(n.Subscription), published: c(n.PublishedMessage),
		session: c(n.Session), cursor: c(n.Cursor), group: c(n.Group), retained: c(n.Retained), node: c(n.Node), meta: c(n.Meta),
	}
}

// format is the version of what is stored.
const format = 1

const (
	codeIndexOptionsConflict = 85
	codeIndexKeyConflict     = 86
	codeNamespaceExists      = 48
)

// prepare makes collections, indexes, validator and TTLs, in place where they
// differ, and sees to the format. All of it can be done by several nodes at once.
func (s *Store) prepare(ctx context.Context) error {
	doc, err := s.readFormat(ctx)
	if err != nil {
		return err
	}
	known := doc.Version
	if known > format {
		return fmt.Errorf("mongo: database %s was written by a newer program: it has format %d, this one knows %d: %w", s.o.Database, known, format, store.ErrFormat)
	}
	if err := doc.Lost.refuse(s); err != nil {
		return err
	}
	if known > 0 {
		if err := s.expectLog(ctx); err != nil {
			return err
		}
	}
	if err := s.prepareMessage(ctx); err != nil {
		return err
	}
	for _, x := range s.indexes() {
		if err := s.ensureIndex(ctx, x); err != nil {
			return err
		}
	}
	if known == 0 {
		return s.firstStart(ctx)
	}
	return nil
}

// sizeSlack is what a message document may take beside its payload. Appends are held to
// it by the lane writers, the inserts of others by the validator.
const sizeSlack = 512 << 10

// validator guards `message`: a foreign insert that breaks it is refused by the
// database, not dropped by a broker.
func (s *Store) validator() bson.D {
	typ := func(t any) bson.D { return bson.D{{Key: "bsonType", Value: t}} }
	return bson.D{
		{Key: "$jsonSchema", Value: bson.D{
			{Key: "required", Value: bson.A{"_id", "topic", "data"}},
			{Key: "properties", Value: bson.D{
				{Key: "_id", Value: typ("objectId")},
				{Key: "topic", Value: bson.D{{Key: "bsonType", Value: "string"}, {Key: "minLength", Value: 1}, {Key: "pattern", Value: "^[^+#]*$"}}},
				{Key: "data", Value: typ(bson.A{"string", "binData"})},
				{Key: "clientId", Value: typ("string")},
				{Key: "qos", Value: bson.D{{Key: "bsonType", Value: bson.A{"int", "long", "double"}}, {Key: "minimum", Value: 0}, {Key: "maximum", Value: 2}}},
				{Key: "retain", Value: typ("bool")},
				{Key: "created", Value: typ("date")},
				{Key: "host", Value: typ("string")},
				{Key: "lane", Value: bson.D{{Key: "bsonType", Value: bson.A{"long", "null"}}, {Key: "minimum", Value: int64(1) << 32}}},
				{Key: "n", Value: bson.D{{Key: "bsonType", Value: bson.A{"long", "int", "null"}}, {Key: "minimum", Value: 1}}},
				{Key: "stop", Value: typ("string")},
				{Key: "expiry", Value: typ("date")},
				{Key: "properties", Value: typ("object")},
			}},
		}},
		{Key: "$expr", Value: bson.D{{Key: "$and", Value: bson.A{
			bson.D{{Key: "$lte", Value: bson.A{bson.D{{Key: "$bsonSize", Value: "$$ROOT"}}, s.o.MaxPayload + sizeSlack}}},
			bson.D{{Key: "$eq", Value: bson.A{bson.D{{Key: "$indexOfBytes", Value: bson.A{"$topic", "\x00"}}}, -1}}},
		}}}},
	}
}

func (s *Store) prepareMessage(ctx context.Context) error {
	n := s.o.Collections
	for _, name := range []string{n.Message, n.Lane, n.Subscription, n.PublishedMessage, n.Session, n.Cursor, n.Group, n.Retained, n.Node, n.Meta} {
		var err error
		if name == n.Message {
			err = s.db.CreateCollection(ctx, name, options.CreateCollection().SetValidator(s.validator()))
		} else {
			err = s.db.CreateCollection(ctx, name)
		}
		if err != nil && !hasCode(err, codeNamespaceExists) {
			return fmt.Errorf("mongo: create collection %s: %w", name, err)
		}
	}
	// In place, for one that was there before, or with another size limit.
	err := s.db.RunCommand(ctx, bson.D{
		{Key: "collMod", Value: n.Message},
		{Key: "validator", Value: s.validator()},
		{Key: "validationLevel", Value: "strict"},
		{Key: "validationAction", Value: "error"},
	}).Err()
	if err != nil {
		return fmt.Errorf("mongo: validator of %s: %w", n.Message, err)
	}
	return nil
}

// index is one that has to be there. Its name is part of the contract: hints use
// it.
type index struct {
	coll    *mongo.Collection
	name    string
	keys    bson.D
	unique  bool
	partial bson.D
	ttl     time.Duration // 0: none; negative: it is dropped
}

func (s *Store) indexes() []index {
	asc := func(keys ...string) bson.D {
		d := bson.D{}
		for _, k := range keys {
			d = append(d, bson.E{Key: k, Value: 1})
		}
		return d
	}
	exists := func(k string) bson.D { return bson.D{{Key: k, Value: bson.D{{Key: "$exists", Value: true}}}} }
	return []index{
		{coll: s.c.message, name: "topic_ts", keys: asc("topic", "ts")},
		{coll: s.c.message, name: "lane_n", keys: asc("lane", "n"), unique: true, partial: bson.D{{Key: "lane", Value: bson.D{{Key: "$gt", Value: 0}}}}},
		{coll: s.c.message, name: "foreign", keys: asc("created"), partial: bson.D{{Key: "lane", Value: nil}}},
		{coll: s.c.message, name: "ttl", keys: asc("created"), partial: exists("lane"), ttl: s.o.RetainMessages},
		{coll: s.c.subscription, name: "clientId_topic", keys: asc("clientId", "topic"), unique: true},
		{coll: s.c.subscription, name: "topic", keys: asc("topic")},
		{coll: s.c.subscription, name: "group", keys: asc("group"), partial: exists("group")},
		{coll: s.c.published, name: "clientId_sid_seq", keys: asc("clientId", "sid", "seq"), unique: true, partial: exists("sid")},
		{coll: s.c.published, name: "messageId_clientId", keys: asc("messageId", "clientId")},
		{coll: s.c.published, name: "group_messageId", keys: asc("group", "messageId"), unique: true, partial: exists("group")},
		{coll: s.c.published, name: "group_lane_n", keys: asc("group", "lane", "n"), partial: exists("group")},
		{coll: s.c.published, name: "ttl", keys: asc("created"), ttl: s.o.RetainRecords},
		{coll: s.c.retained, name: "ttl", keys: asc("cleared"), ttl: 24 * time.Hour},
		{coll: s.c.node, name: "ttl", keys: asc("finished"), ttl: 24 * time.Hour},
		{coll: s.c.session, name: "owner", keys: asc("owner")},
		{coll: s.c.session, name: "epoch", keys: asc("epoch")},
		{coll: s.c.session, name: "wake", keys: asc("wake"), partial: exists("wake")},
	}
}

// ensureIndex makes an index; a TTL that differs is changed in place, anything
// else that differs is refused.
func (s *Store) ensureIndex(ctx context.Context, x index) error {
	if x.ttl < 0 {
		err := x.coll.Indexes().DropOne(ctx, x.name)
		if err != nil && !hasCode(err, 27) { // IndexNotFound
			return fmt.Errorf("mongo: drop index %s of %s: %w", x.name, x.coll.Name(), err)
		}
		return nil
	}
	o := options.Index().SetName(x.name)
	if x.unique {
		o.SetUnique(true)
	}
	if x.partial != nil {
		o.SetPartialFilterExpression(x.partial)
	}
	if x.ttl > 0 {
		o.SetExpireAfterSeconds(int32(x.ttl / time.Second))
	}
	_, err := x.coll.Indexes().CreateOne(ctx, mongo.IndexModel{Keys: x.keys, Options: o})
	if x.ttl > 0 && (hasCode(err, codeIndexOptionsConflict) || hasCode(err, codeIndexKeyConflict)) {
		s.log.Info("changing a TTL in place", zap.String("collection", x.coll.Name()), zap.Duration("to", x.ttl))
		err = s.db.RunCommand(ctx, bson.D{
			{Key: "collMod", Value: x.coll.Name()},
			{Key: "index", Value: bson.D{{Key: "name", Value: x.name}, {Key: "expireAfterSeconds", Value: int64(x.ttl / time.Second)}}},
		}).Err()
	}
	if err != nil {
		return fmt.Errorf("mongo: index %s of %s.%s is not as it has to be (drop it, or let it be made): %w", x.name, s.o.Database, x.coll.Name(), err)
	}
	return nil
}

func hasCode(err error, code int) bool {
	var se mongo.ServerError
	return errors.As(err, &se) && se.HasErrorCode(code)
}
