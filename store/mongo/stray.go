package mongo

import (
	"context"
	"errors"
	"fmt"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
)

// finishStray finishes sessions whose owner looks after them no more, and will never be
// found dead:
//
//   - of this node, by a claim of its keeper that was cut before the release (a keeper that
//     dies leaves them to the next one). A claim of a client takes `disconnected` away, one
//     of a keeper sets it: that tells them apart, see raise;
//   - of a node that is finished already: it has claimed under a name of which it did not
//     yet know that it was declared dead;
//   - of a node without a document: that of a finished one is kept for a day.
//
// A node registers a name before it claims by it, and the nodes are read after the owners:
// so an owner without a document is none that has just begun.
func (k *keeper) finishStray(ctx context.Context) error {
	s, me := k.s, k.s.self.id()
	owners, err := distinct(ctx, s.c.session, "owner", fields("owner", fields("$gt", bson.NilObjectID)), options.Distinct())
	if err != nil {
		return fmt.Errorf("mongo: owners of sessions: %w", err)
	}
	var ids bson.A
	for _, v := range owners {
		if id, ok := v.ObjectIDOK(); ok {
			ids = append(ids, id)
		}
	}
	if len(ids) == 0 {
		clear(k.cut)
		return nil
	}
	cur, err := s.c.node.Find(ctx, fields("_id", fields("$in", ids), "finished", nil), options.Find().SetProjection(fields("_id", 1)))
	if err != nil {
		return fmt.Errorf("mongo: read of nodes: %w", err)
	}
	var nodes []struct {
		ID bson.ObjectID `bson:"_id"`
	}
	if err := cur.All(ctx, &nodes); err != nil {
		return fmt.Errorf("mongo: read of nodes: %w", err)
	}
	lives := make(map[bson.ObjectID]bool, len(nodes))
	for _, n := range nodes {
		lives[n.ID] = true
	}
	var errs []error
	for id := range k.cut {
		errs = append(errs, k.finishSession(ctx, id, me))
	}
	for _, v := range ids {
		if id := v.(bson.ObjectID); id != me && !lives[id] {
			errs = append(errs, k.finishSessions(ctx, id))
		}
	}
	return errors.Join(errs...)
}
