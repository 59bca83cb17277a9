package mongo

import (
	"context"
	"fmt"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"rewindmq/schema"
)

// firstStart makes history of what is there already: it lies before every cursor.
// What is inserted from then on is a publish. A run that is killed half-way is
// gone on with by the next: until the format is stored nobody serves, and nobody
// adopts (P4).
func (s *Store) firstStart(ctx context.Context) error {
	_, err := s.c.message.UpdateMany(ctx, fields("lane", nil), mongo.Pipeline{set(
		"lane", int64(0),
		"n", ex("$toLong", ex("$ifNull", "$created", ex("$toDate", "$_id"))),
		"ts", bson.Timestamp{I: 1},
	)}, options.UpdateMany().SetHint("foreign").SetBypassDocumentValidation(true))
	if err != nil {
		return fmt.Errorf("mongo: marking what is there as history: %w", err)
	}
	if err := s.retainHistory(ctx); err != nil {
		return err
	}
	if err := s.adoptSessions(ctx); err != nil {
		return err
	}
	_, err = s.c.meta.UpdateOne(ctx, fields("_id", "format"), mongo.Pipeline{set("version", format, "created", "$$NOW")},
		options.UpdateOne().SetUpsert(true))
	if err != nil && !mongo.IsDuplicateKeyError(err) {
		return fmt.Errorf("mongo: storing the format: %w", err)
	}
	return nil
}

// retainHistory takes the retained messages of history into the projection.
func (s *Store) retainHistory(ctx context.Context) error {
	cur, err := s.c.message.Find(ctx, fields("lane", int64(0), "retain", true))
	if err != nil {
		return fmt.Errorf("mongo: retained history: %w", err)
	}
	defer func() { _ = cur.Close(context.WithoutCancel(ctx)) }()
	var part []*schema.Message
	for cur.Next(ctx) {
		m, _, err := decodeMessage(cur.Current)
		if err != nil {
			return fmt.Errorf("mongo: retained history: %w", err)
		}
		if part = append(part, m); len(part) == maxBatch {
			if err := s.putRetained(ctx, part); err != nil {
				return err
			}
			part = part[:0]
		}
	}
	if err := cur.Err(); err != nil {
		return fmt.Errorf("mongo: retained history: %w", err)
	}
	return s.putRetained(ctx, part)
}

// historySID is the session of clients whose subscriptions others had stored.
const historySID = 1

// adoptSessions gives a session without end to each client that has subscriptions
// without one, as other writers store them. They begin before the first lane: with
// the first message that is appended.
func (s *Store) adoptSessions(ctx context.Context) error {
	clients, err := distinct(ctx, s.c.subscription, "clientId", fields("sid", nil), options.Distinct())
	if err != nil {
		return fmt.Errorf("mongo: subscriptions of others: %w", err)
	}
	for _, v := range clients {
		id, ok := v.StringValueOK()
		if !ok {
			continue
		}
		session := fields("$setOnInsert", fields(
			"sid", int64(historySID), "epoch", int64(historySID), "released", int64(historySID), "token", bson.NewObjectID(),
			"past", bson.A{}, "expiry", int64(schema.NoExpiry), "connected", s.Now(), "disconnected", s.Now(), "wills", bson.A{}))
		_, err := s.c.session.UpdateOne(ctx, fields("_id", id), session, options.UpdateOne().SetUpsert(true))
		if err == nil {
			_, err = s.c.cursor.UpdateOne(ctx, fields("_id", id), fields("$setOnInsert", fields(
				"sid", int64(historySID), "epoch", int64(historySID), "after", newCursorDoc(schema.Cursor{}), "seq", int64(0),
				"flight", bson.A{}, "inbound", bson.A{})), options.UpdateOne().SetUpsert(true))
		}
		if err == nil {
			_, err = s.c.subscription.UpdateMany(ctx, fields("clientId", id, "sid", nil), bson.D{{Key: "$set", Value: fields(
				"sid", int64(historySID), "epoch", int64(historySID), "since", newCursorDoc(schema.Cursor{}))}})
		}
		if err == nil {
			err = s.adoptMember(ctx, id)
		}
		if err != nil && !mongo.IsDuplicateKeyError(err) {
			return fmt.Errorf("mongo: session of %q: %w", id, err)
		}
	}
	return nil
}

// adoptMember makes a session a member of the groups of the shared subscriptions that
// it was given. The first OpenGroup begins them.
func (s *Store) adoptMember(ctx context.Context, clientID string) error {
	res, err := s.c.subscription.UpdateMany(ctx, fields("clientId", clientID, "sid", int64(historySID),
		"topic", bson.Regex{Pattern: `^\$share/`}), mongo.Pipeline{set("group", "$topic")})
	if err == nil && res.MatchedCount > 0 {
		_, err = s.c.cursor.UpdateOne(ctx, fields("_id", clientID), fields("$set", fields("shared", true)))
	}
	return err
}
