package mongo

import (
	"context"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"rewindmq/schema"
	"rewindmq/store"
)

// markWrites notes several PUBRECs in two commands: one shows that their sessions
// are owned, one marks the records. The server tells only how many matched; if
// some did not, each is done again by itself, and tells.
func (s *Store) markWrites(ctx context.Context, jobs []*job, errs []error) error {
	if len(jobs) > 1 {
		owned, err := s.ownAll(ctx, jobs)
		if err != nil && !isAnswer(err) {
			return err
		}
		if err == nil && owned {
			models := make([]mongo.WriteModel, len(jobs))
			for i, j := range jobs {
				filter, update := receivedUpdate(j.mark)
				models[i] = mongo.NewUpdateOneModel().SetFilter(filter).SetUpdate(update)
			}
			res, err := s.c.published.BulkWrite(ctx, models)
			if err != nil && !isAnswer(err) {
				return err
			}
			if err == nil && res.MatchedCount == int64(len(jobs)) {
				return nil
			}
		}
	}
	for i, j := range jobs {
		err := s.markReceived(ctx, *j.mark)
		if err != nil && !isAnswer(err) {
			return err
		}
		errs[i] = err
	}
	return nil
}

// ownAll is own for the sessions of all jobs: false, if one is not owned any more.
func (s *Store) ownAll(ctx context.Context, jobs []*job) (bool, error) {
	seen := make(map[schema.Owner]bool, len(jobs))
	var models []mongo.WriteModel
	for _, j := range jobs {
		if o := j.mark.Owner; !seen[o] {
			seen[o] = true
			models = append(models, mongo.NewUpdateOneModel().SetFilter(guard(o)).
				SetUpdate(bson.D{{Key: "$set", Value: fields("epoch", int64(o.Epoch))}}))
		}
	}
	res, err := s.c.cursor.BulkWrite(ctx, models)
	return err == nil && res.MatchedCount == int64(len(models)), err
}

// receivedUpdate marks a record that is not marked yet: the state never goes back.
func receivedUpdate(w *store.MarkReceived) (filter, update bson.D) {
	return fields("clientId", w.ClientID, "sid", int64(w.SID), "seq", int64(w.Flight.Seq),
			"messageId", bson.ObjectID(w.Flight.MessageID), "state", nil),
		bson.D{{Key: "$set", Value: fields("state", true)}}
}

// markReceived notes PUBREC in the record; where that is gone, in the cursor.
func (s *Store) markReceived(ctx context.Context, w store.MarkReceived) error {
	if err := s.own(ctx, w.Owner); err != nil {
		return err
	}
	filter, update := receivedUpdate(&w)
	res, err := s.c.published.UpdateOne(ctx, filter, update)
	if err != nil || res.MatchedCount > 0 {
		return err
	}
	n, err := s.c.published.CountDocuments(ctx, filter[:3], options.Count().SetLimit(1))
	if err != nil || n > 0 {
		return err
	}
	f := newFlightDoc(w.Flight)
	f.State = true
	res, err = s.c.cursor.UpdateOne(ctx, guard(w.Owner), mongo.Pipeline{set("flight", ex("$sortArray", fields(
		"input", ex("$concatArrays",
			ex("$filter", fields("input", "$flight", "as", "f", "cond", ex("$ne", "$$f.seq", f.Seq))),
			bson.A{ex("$literal", f)}),
		"sortBy", fields("seq", 1))))})
	if err == nil && res.MatchedCount == 0 {
		err = store.ErrSessionLost
	}
	return err
}
