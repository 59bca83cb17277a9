package mongo

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"rewindmq/schema"
	"rewindmq/store"
)

// rest is step 5 of a claim and what follows: wills, leftovers, subscriptions and
// states, and the recovered cursor.
func (w *claimWalk) rest(ctx context.Context) error {
	s, o := w.s, w.mine.owns()
	if w.dead == nil {
		if err := w.decideWills(ctx); err != nil {
			return err
		}
	}
	if w.mine.SID == w.mine.Epoch {
		// A new session: what a former one left is garbage.
		err := s.write(ctx, o.ClientID, func(ctx context.Context) error { return s.sweepOthers(ctx, o) })
		if err != nil {
			return err
		}
	}
	var err error
	if w.subs, err = s.readSubscriptions(ctx, o, w.marked); err != nil {
		return err
	}
	if len(w.waiting) > 0 {
		if err := s.write(ctx, o.ClientID, func(ctx context.Context) error { return w.raiseSubscriptions(ctx) }); err != nil {
			return err
		}
	}
	states, err := s.readStates(ctx, o, w.cur.Flight)
	if err != nil {
		return err
	}
	runs := map[schema.ID]string{}
	w.cur.Recover(w.records, func(f schema.Flight) bool { return states[f.Seq] }, runs)
	var moved []schema.Subscription
	for i := range w.subs {
		if r := w.subs[i].Run; r != nil && runs[r.ID] > r.Next {
			r.Next = runs[r.ID]
			moved = append(moved, w.subs[i])
		}
	}
	if len(moved) == 0 {
		return nil
	}
	// Stored before a cursor beyond those records can be.
	err = s.write(ctx, o.ClientID, func(ctx context.Context) error {
		return s.putSubscriptions(ctx, store.PutSubscriptions{Owner: o, Subscriptions: moved})
	})
	if errors.Is(err, store.ErrSessionLost) {
		return nil // overtaken: the last look sees it
	}
	return err
}

// decideWills decides the wills of former connections, by the time of step 1, and
// takes those that are due.
func (w *claimWalk) decideWills(ctx context.Context) error {
	if len(w.mine.Wills) == 0 {
		return nil
	}
	over, err := w.departed(ctx)
	if err != nil {
		return err
	}
	var d sessionDoc
	err = w.s.write(ctx, w.ask.ClientID, func(ctx context.Context) error {
		err := w.s.c.session.FindOneAndUpdate(ctx, fields("_id", w.ask.ClientID, "epoch", w.mine.Epoch),
			mongo.Pipeline{set("wills", w.s.beginDelays(over)), set("wills", decideAtClaim(w.mine.Epoch))},
			options.FindOneAndUpdate().SetReturnDocument(options.After)).Decode(&d)
		if errors.Is(err, mongo.ErrNoDocuments) {
			return nil // overtaken
		}
		return err
	})
	if err != nil {
		return err
	}
	for i := range d.Wills {
		if d.Wills[i].Due {
			w.wills = append(w.wills, d.Wills[i].will())
		}
	}
	return nil
}

func (s *Store) sweepOthers(ctx context.Context, o schema.Owner) error {
	return s.sweepSubscriptions(ctx, fields("clientId", o.ClientID, "sid", fields("$ne", int64(o.SID)), "epoch", fields("$lt", int64(o.Epoch))))
}

// raiseSubscriptions gives what was read this claim's epoch: whatever the former
// owner has on its way meets a newer document, or makes one that does not count.
func (w *claimWalk) raiseSubscriptions(ctx context.Context) error {
	o := w.mine.owns()
	epoch := int64(o.Epoch)
	for part := range slices.Chunk(w.subs, maxBatch) {
		models := make([]mongo.WriteModel, len(part))
		for i := range part {
			models[i] = mongo.NewUpdateOneModel().
				SetFilter(fields("_id", bson.ObjectID(part[i].ID), "epoch", fields("$lt", epoch))).
				SetUpdate(fields("$set", fields("epoch", epoch)))
		}
		if _, err := w.s.c.subscription.BulkWrite(ctx, models); err != nil {
			return err
		}
	}
	_, err := w.s.c.cursor.UpdateOne(ctx, guard(o), fields("$set", fields("marked", epoch)))
	return err
}

func (s *Store) readSubscriptions(ctx context.Context, o schema.Owner, marked int64) ([]schema.Subscription, error) {
	cur, err := s.c.subscription.Find(ctx, fields("clientId", o.ClientID, "sid", int64(o.SID), "epoch", fields("$gte", marked)),
		options.Find().SetSort(fields("topic", 1)))
	if err != nil {
		return nil, fmt.Errorf("mongo: read of subscriptions of %q: %w", o.ClientID, err)
	}
	var docs []subscriptionDoc
	if err := cur.All(ctx, &docs); err != nil {
		return nil, fmt.Errorf("mongo: read of subscriptions of %q: %w", o.ClientID, err)
	}
	var out []schema.Subscription
	for i := range docs {
		out = append(out, docs[i].subscription())
	}
	return out, nil
}

// readStates reads which QoS 2 deliveries of a saved flight have been received
// since: their records are newer (S16).
func (s *Store) readStates(ctx context.Context, o schema.Owner, flight []schema.Flight) (map[uint64]bool, error) {
	ask := bson.A{}
	for _, f := range flight {
		if f.QoS == 2 && !f.Received {
			ask = append(ask, int64(f.Seq))
		}
	}
	if len(ask) == 0 {
		return nil, nil
	}
	cur, err := s.c.published.Find(ctx, fields("clientId", o.ClientID, "sid", int64(o.SID), "seq", fields("$in", ask), "state", true),
		options.Find().SetProjection(fields("seq", 1)))
	if err != nil {
		return nil, fmt.Errorf("mongo: read of states of %q: %w", o.ClientID, err)
	}
	defer func() { _ = cur.Close(context.WithoutCancel(ctx)) }()
	out := map[uint64]bool{}
	for cur.Next(ctx) {
		n, _ := cur.Current.Lookup("seq").AsInt64OK()
		out[uint64(n)] = true
	}
	return out, cur.Err()
}

// claimedElsewhere tells which publishers' sessions have been claimed since, or
// are gone, or belong to another node's name than node: read by majority, not
// before a fresh time. A claimer puts its stoppers into the lanes of the name that
// owns the session, so what is in a lane of another name it could not stop.
func (s *Store) claimedElsewhere(ctx context.Context, node schema.ID, ask map[*store.Publisher]struct{}) (map[*store.Publisher]bool, error) {
	at, err := s.fresh.time(ctx)
	if err != nil {
		return nil, err
	}
	in := bson.A{}
	for p := range ask {
		in = append(in, p.ClientID)
	}
	epoch := map[string]uint64{} // of those that node owns
	err = s.inSession(ctx, at, func(ctx context.Context) error {
		cur, err := s.c.session.Find(ctx, fields("_id", fields("$in", in), "owner", bson.ObjectID(node)), options.Find().SetProjection(fields("epoch", 1)))
		if err != nil {
			return err
		}
		defer func() { _ = cur.Close(context.WithoutCancel(ctx)) }()
		for cur.Next(ctx) {
			id, _ := cur.Current.Lookup("_id").StringValueOK()
			n, _ := cur.Current.Lookup("epoch").AsInt64OK()
			epoch[id] = uint64(n)
		}
		return cur.Err()
	})
	if err != nil {
		return nil, err
	}
	lost := map[*store.Publisher]bool{}
	for p := range ask {
		if e, ok := epoch[p.ClientID]; !ok || e > p.Epoch {
			lost[p] = true
		}
	}
	return lost, nil
}
