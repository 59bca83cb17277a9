package mongo

import (
	"context"
	"errors"
	"fmt"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"rewindmq/schema"
	"rewindmq/store"
)

// Write carries out writes, see store.Sessions. Those of different sessions go on
// at once.
func (s *Store) Write(ctx context.Context, writes []store.Write) []error {
	errs := make([]error, len(writes))
	if err := s.enter(ctx); err != nil {
		for i := range errs {
			errs[i] = err
		}
		return errs
	}
	ctx, cancel := s.call(ctx)
	defer cancel()
	jobs := make([]*job, len(writes))
	for i, w := range writes {
		o := store.OwnerOf(w)
		if _, out := w.(store.TakeOutWill); !out && !s.owned.has(o) {
			errs[i] = store.ErrSessionLost
			continue
		}
		jobs[i] = s.jobOf(ctx, w)
		s.writerOf(o.ClientID).put(jobs[i])
	}
	for i, j := range jobs {
		if j == nil {
			continue
		}
		err := j.wait()
		if save, ok := writes[i].(store.SaveCursor); ok && err == nil && s.o.SweepRecords {
			s.sweeper.note(save)
		}
		if _, ok := writes[i].(store.Release); ok && (err == nil || errors.Is(err, store.ErrSessionLost)) {
			o := store.OwnerOf(writes[i])
			s.owned.drop(o.ClientID, o.Epoch+1) // afterwards the Owner no longer counts
		}
		errs[i] = s.failed(ctx, "write", err)
	}
	return errs
}

// placeWrite is a guarded write of a session's `cursor` document.
type placeWrite struct {
	filter bson.D
	update any
}

func guard(o schema.Owner) bson.D {
	return bson.D{{Key: "_id", Value: o.ClientID}, {Key: "sid", Value: int64(o.SID)}, {Key: "epoch", Value: int64(o.Epoch)}}
}

func (s *Store) jobOf(ctx context.Context, w store.Write) *job {
	switch w := w.(type) {
	case store.SaveCursor:
		return &job{ctx: ctx, save: savePlace(w)}
	case store.PutInbound:
		in := inboundDoc{PacketID: int32(w.Inbound.PacketID), MessageID: bson.ObjectID(w.Inbound.MessageID)}
		return &job{ctx: ctx, save: &placeWrite{guard(w.Owner), mongo.Pipeline{set("inbound", ex("$concatArrays",
			ex("$filter", fields("input", "$inbound", "as", "i", "cond", ex("$ne", "$$i.packetId", in.PacketID))),
			bson.A{ex("$literal", in)}))}}}
	case store.DeleteInbound:
		return &job{ctx: ctx, save: &placeWrite{guard(w.Owner), bson.D{{Key: "$pull", Value: fields("inbound", fields("packetId", int32(w.PacketID)))}}}}
	case store.MarkReceived:
		return &job{ctx: ctx, mark: &w}
	case store.PutSubscriptions:
		return &job{ctx: ctx, do: func(ctx context.Context) error { return s.putSubscriptions(ctx, w) }}
	case store.DeleteSubscriptions:
		return &job{ctx: ctx, do: func(ctx context.Context) error { return s.deleteSubscriptions(ctx, w) }}
	case store.Release:
		return &job{ctx: ctx, do: func(ctx context.Context) error { return s.release(ctx, w) }}
	case store.TakeOutWill:
		return &job{ctx: ctx, do: func(ctx context.Context) error { return s.takeOutWill(ctx, w) }}
	}
	panic(fmt.Sprintf("mongo: write %T", w))
}

// savePlace never goes back: a cursor whose seq is lower is stale, and lost.
func savePlace(w store.SaveCursor) *placeWrite {
	flight := make([]flightDoc, len(w.Cursor.Flight))
	for i, f := range w.Cursor.Flight {
		flight[i] = newFlightDoc(f)
	}
	seq := int64(w.Cursor.Seq)
	return &placeWrite{
		filter: append(guard(w.Owner), bson.E{Key: "seq", Value: fields("$lte", seq)}),
		update: bson.D{{Key: "$set", Value: fields("after", newCursorDoc(w.Cursor.After), "seq", seq, "flight", flight)}},
	}
}

// placeWrites carries out several in one command. The server tells only how many
// matched; if some did not, each is done again by itself, and tells.
func (s *Store) placeWrites(ctx context.Context, jobs []*job, errs []error) error {
	if len(jobs) > 1 {
		models := make([]mongo.WriteModel, len(jobs))
		for i, j := range jobs {
			models[i] = mongo.NewUpdateOneModel().SetFilter(j.save.filter).SetUpdate(j.save.update)
		}
		res, err := s.c.cursor.BulkWrite(ctx, models)
		if err != nil && !isAnswer(err) {
			return err
		}
		if err == nil && res.MatchedCount == int64(len(jobs)) {
			return nil
		}
	}
	for i, j := range jobs {
		res, err := s.c.cursor.UpdateOne(ctx, j.save.filter, j.save.update)
		switch {
		case err != nil && !isAnswer(err):
			return err
		case err != nil:
			errs[i] = err
		case res.MatchedCount == 0:
			errs[i] = store.ErrSessionLost
		default:
			errs[i] = nil
		}
	}
	return nil
}

// own fails with ErrSessionLost if o is not the present owner. It is a write that
// changes nothing: it waits for the majority, so no deposed primary answers.
func (s *Store) own(ctx context.Context, o schema.Owner, also ...bson.E) error {
	res, err := s.c.cursor.UpdateOne(ctx, guard(o), bson.D{{Key: "$set", Value: append(fields("epoch", int64(o.Epoch)), also...)}})
	if err != nil {
		return err
	}
	if res.MatchedCount == 0 {
		return store.ErrSessionLost
	}
	return nil
}

// putSubscriptions stores each in place of the one with the same filter, whose _id
// and created it keeps. What a former session left under the filter goes. Every
// write filters the epoch: a late one of an older owner meets a newer document and
// is lost (S20).
func (s *Store) putSubscriptions(ctx context.Context, w store.PutSubscriptions) error {
	if len(w.Subscriptions) == 0 {
		return nil
	}
	joins, err := s.joining(ctx, &w)
	if err != nil {
		return err
	}
	var also []bson.E
	if len(joins) > 0 {
		also = append(also, bson.E{Key: "shared", Value: true}) // before it is one
	}
	if err := s.own(ctx, w.Owner, also...); err != nil {
		return err
	}
	for _, sub := range joins {
		if err := s.joinGroup(ctx, sub.Filter, newCursorDoc(sub.Since)); err != nil {
			return err
		}
	}
	mine := fields("$lte", int64(w.Epoch))
	// Kind by kind: in a mixed batch each change of the kind is a command of its own.
	var gone, models []mongo.WriteModel
	for i := range w.Subscriptions {
		d := newSubscriptionDoc(&w.Subscriptions[i], w.Owner)
		gone = append(gone, mongo.NewDeleteOneModel().SetFilter(fields(
			"clientId", d.ClientID, "topic", d.Topic, "sid", fields("$ne", d.SID),
			"epoch", fields("$not", fields("$gt", int64(w.Epoch))))))
		models = append(models, mongo.NewUpdateOneModel().SetUpsert(true).
			SetFilter(fields("clientId", d.ClientID, "topic", d.Topic, "sid", d.SID, "epoch", mine)).
			SetUpdate(subscriptionUpdate(&d)))
	}
	_, err = s.c.subscription.BulkWrite(ctx, gone)
	if err == nil {
		_, err = s.c.subscription.BulkWrite(ctx, models)
	}
	if mongo.IsDuplicateKeyError(err) && !hasWriteConcernError(err) {
		return store.ErrSessionLost
	}
	for i := 0; err == nil && i < len(joins); i++ {
		err = s.sealGroup(ctx, joins[i].Filter, newCursorDoc(joins[i].Since))
	}
	return err
}

func subscriptionUpdate(d *subscriptionDoc) bson.D {
	put := fields("qos", d.QoS, "epoch", d.Epoch, "since", d.Since)
	gone := bson.D{}
	opt := func(name string, v any, there bool) {
		if there {
			put = append(put, bson.E{Key: name, Value: v})
		} else {
			gone = append(gone, bson.E{Key: name, Value: ""})
		}
	}
	opt("wildcard", d.Wildcard, d.Wildcard != "")
	opt("nl", true, d.NoLocal)
	opt("rap", true, d.Published)
	opt("rh", d.Handling, d.Handling != 0)
	opt("subscriptionId", d.Identifier, d.Identifier != 0)
	opt("before", d.Before, d.Before != nil)
	opt("run", d.Run, d.Run != nil)
	opt("group", d.Group, d.Group != "")
	u := bson.D{{Key: "$set", Value: put}, {Key: "$setOnInsert", Value: fields("_id", d.ID, "created", d.Created)}}
	if len(gone) > 0 {
		u = append(u, bson.E{Key: "$unset", Value: gone})
	}
	return u
}

func (s *Store) deleteSubscriptions(ctx context.Context, w store.DeleteSubscriptions) error {
	if len(w.Filters) == 0 {
		return nil
	}
	if err := s.own(ctx, w.Owner); err != nil {
		return err
	}
	var models []mongo.WriteModel
	for _, f := range w.Filters {
		models = append(models, mongo.NewDeleteOneModel().SetFilter(fields(
			"clientId", w.ClientID, "topic", f, "sid", int64(w.SID), "epoch", fields("$lte", int64(w.Epoch)))))
	}
	if _, err := s.c.subscription.BulkWrite(ctx, models); err != nil {
		return err
	}
	for _, f := range w.Filters {
		if isShared(f) {
			if err := s.leaveGroup(ctx, f); err != nil {
				return err
			}
		}
	}
	return nil
}

// release lets go of a session. It counts also after a claim has raised the
// epoch, which waits for it; once that claim has marked the cursor, the answer is
// that the session is lost.
func (s *Store) release(ctx context.Context, w store.Release) error {
	lost := s.ownToRelease(ctx, w.Owner)
	if lost != nil && !errors.Is(lost, store.ErrSessionLost) {
		return lost
	}
	e := int64(w.Epoch)
	gone := any("$expiry")
	if w.SetExpiry {
		gone = ex("$cond", ex("$and", "$tmp.mine", ex("$lt", "$released", e)), int64(w.Expiry), "$expiry")
	}
	var d sessionDoc
	err := s.c.session.FindOneAndUpdate(ctx, fields("_id", w.ClientID, "epoch", fields("$gte", e)), mongo.Pipeline{
		set("tmp", fields("now", s.now(), "mine", ex("$eq", "$epoch", e))),
		set(
			"expiry", gone,
			"owner", ex("$cond", "$tmp.mine", "$$REMOVE", "$owner"),
			"disconnected", ex("$cond", "$tmp.mine", ex("$ifNull", "$disconnected", "$tmp.now"), "$disconnected"),
			"released", ex("$max", "$released", e),
			"wills", mapWills("$wills", choose("$$w",
				branch(ex("$and", w.Normal, ex("$eq", "$$w.epoch", e), ex("$not", "$$w.due")), nil), // [MQTT-3.14.4-3]
				branch(ex("$and", ex("$lte", "$$w.epoch", e), absent("$$w.at")),
					ex("$mergeObjects", "$$w", fields("at", ex("$add", "$tmp.now", seconds("$$w.delay"))))))),
		),
		set("wake", wake()),
		unset("tmp"),
	}, options.FindOneAndUpdate().SetReturnDocument(options.After)).Decode(&d)
	if errors.Is(err, mongo.ErrNoDocuments) {
		return store.ErrSessionLost
	}
	if err != nil {
		return err
	}
	if d.Epoch == e && d.Expiry == 0 && len(d.Wills) == 0 {
		if _, err := s.endSession(ctx, d.owns()); err != nil {
			return err
		}
	}
	return lost
}

// ownToRelease is own, and hands back what the session has of groups.
func (s *Store) ownToRelease(ctx context.Context, o schema.Owner) error {
	var d placeDoc
	err := s.c.cursor.FindOneAndUpdate(ctx, guard(o), fields("$set", fields("epoch", int64(o.Epoch))),
		options.FindOneAndUpdate().SetProjection(fields("shared", 1))).Decode(&d)
	switch {
	case errors.Is(err, mongo.ErrNoDocuments):
		return store.ErrSessionLost
	case err != nil || !d.Shared:
		return err
	}
	return s.handBack(ctx, o)
}

// takeOutWill is one write: with the will gone and its time still in wake, the
// session would look as if its own time were over.
func (s *Store) takeOutWill(ctx context.Context, w store.TakeOutWill) error {
	_, err := s.c.session.UpdateOne(ctx, fields("_id", w.ClientID), mongo.Pipeline{
		set("tmp", fields("now", s.now()), "wills", ex("$filter", fields(
			"input", ex("$ifNull", "$wills", bson.A{}), "as", "w", "cond", ex("$ne", "$$w.key", bson.ObjectID(w.Key))))),
		set("wake", wake()), // what is left decides when the keeper looks again
		unset("tmp"),
	})
	return err
}

// endSession deletes the session of o, if it has no connection and no will. What
// else is stored of it is garbage from then on, and swept at once.
func (s *Store) endSession(ctx context.Context, o schema.Owner) (bool, error) {
	res, err := s.c.session.DeleteOne(ctx, fields("_id", o.ClientID, "sid", int64(o.SID), "epoch", int64(o.Epoch), "owner", nil, "wills", bson.A{}))
	if err != nil || res.DeletedCount == 0 {
		return false, err
	}
	return true, s.sweep(ctx, o.ClientID, int64(o.SID), o.Epoch)
}

// sweep removes what a session that has ended left, but for its records: those are
// the history of its deliveries.
func (s *Store) sweep(ctx context.Context, clientID string, sid int64, epoch uint64) error {
	err := s.sweepSubscriptions(ctx, fields("clientId", clientID, "sid", sid, "epoch", fields("$lte", int64(epoch))))
	if err != nil {
		return err
	}
	_, err = s.c.cursor.DeleteOne(ctx, fields("_id", clientID, "sid", sid, "epoch", fields("$lte", int64(epoch))))
	return err
}

// sweepSubscriptions deletes what matches, each document by itself, many in one
// command: a deletion of all that match has no transaction number, and could land
// late on what was subscribed anew. Groups go with their last member.
func (s *Store) sweepSubscriptions(ctx context.Context, filter bson.D) error {
	groups := map[string]bool{}
	for {
		cur, err := s.c.subscription.Find(ctx, filter, options.Find().SetLimit(maxBatch).SetProjection(fields("group", 1)))
		if err != nil {
			return err
		}
		var models []mongo.WriteModel
		for cur.Next(ctx) {
			one := append(bson.D{{Key: "_id", Value: cur.Current.Lookup("_id")}}, filter...)
			models = append(models, mongo.NewDeleteOneModel().SetFilter(one))
			if name, ok := cur.Current.Lookup("group").StringValueOK(); ok {
				groups[name] = true
			}
		}
		if err := cur.Err(); err != nil {
			return err
		}
		if len(models) == 0 {
			break
		}
		if _, err := s.c.subscription.BulkWrite(ctx, models); err != nil {
			return err
		}
	}
	for name := range groups {
		if err := s.leaveGroup(ctx, name); err != nil {
			return err
		}
	}
	return nil
}
