package mongo

import (
	"context"
	"errors"
	"fmt"

	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"rewindmq/schema"
	"rewindmq/store"
)

// ListSessions lists sessions, see store.Directory. Client ids are compared byte by
// byte: the collection has no collation.
func (s *Store) ListSessions(ctx context.Context, after string, limit int) ([]store.SessionInfo, error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	ctx, cancel := s.call(ctx)
	defer cancel()
	if limit <= 0 || limit > store.MaxSessionPage {
		limit = store.MaxSessionPage
	}
	filter := fields()
	if after != "" {
		filter = fields("_id", fields("$gt", after))
	}
	cur, err := s.c.session.Find(ctx, filter, options.Find().SetSort(fields("_id", 1)).SetLimit(int64(limit)).
		SetProjection(fields("sid", 1, "epoch", 1, "owner", 1, "expiry", 1, "disconnected", 1)))
	if err != nil {
		return nil, s.failed(ctx, "list_sessions", err)
	}
	var docs []sessionDoc
	if err := cur.All(ctx, &docs); err != nil {
		return nil, s.failed(ctx, "list_sessions", err)
	}
	out := make([]store.SessionInfo, len(docs))
	for i := range docs {
		out[i] = s.infoOf(&docs[i])
	}
	return out, nil
}

// LookSession gives one, see store.Directory.
func (s *Store) LookSession(ctx context.Context, clientID string) (store.SessionInfo, error) {
	if err := s.enter(ctx); err != nil {
		return store.SessionInfo{}, err
	}
	ctx, cancel := s.call(ctx)
	defer cancel()
	d, err := s.readSession(ctx, clientID)
	switch {
	case err != nil:
		return store.SessionInfo{}, s.failed(ctx, "look_session", err)
	case d == nil:
		return store.SessionInfo{}, fmt.Errorf("%w: client %q", store.ErrNoSession, clientID)
	}
	info := s.infoOf(d)
	var p placeDoc
	err = s.c.cursor.FindOne(ctx, fields("_id", clientID, "sid", d.SID)).Decode(&p)
	if err != nil && !errors.Is(err, mongo.ErrNoDocuments) {
		return store.SessionInfo{}, s.failed(ctx, "look_session", err)
	}
	info.InFlight = len(p.Flight)
	if info.Subscriptions, err = s.readSubscriptions(ctx, d.owns(), p.Marked); err != nil {
		return store.SessionInfo{}, s.failed(ctx, "look_session", err)
	}
	return info, nil
}

func (s *Store) infoOf(d *sessionDoc) store.SessionInfo {
	i := store.SessionInfo{
		Owner:     schema.Owner{ClientID: d.ID, SID: uint64(d.SID), Epoch: uint64(d.Epoch)},
		Connected: d.Owner != nil, Here: d.Owner != nil && *d.Owner == s.self.id(), Expiry: uint32(d.Expiry),
	}
	if d.Owner == nil && d.Disconnected != nil {
		i.Gone = d.Disconnected.UTC()
	}
	return i
}
