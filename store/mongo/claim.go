package mongo

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"rewindmq/schema"
	"rewindmq/store"
)

// claimsAtOnce bounds the claims of a batch that are on their way together.
const claimsAtOnce = 64

// Claim claims sessions, see store.Sessions. Each walks by itself; what costs most
// (fresh times, stoppers) is done once for those that come together.
func (s *Store) Claim(ctx context.Context, claims []store.Claim) []store.Claimed {
	out := make([]store.Claimed, len(claims))
	if err := s.enter(ctx); err != nil {
		for i := range out {
			out[i].Err = err
		}
		return out
	}
	ctx, cancel := s.call(ctx)
	defer cancel()
	room := make(chan struct{}, claimsAtOnce)
	last := make(map[string]int, len(claims))
	for i := range claims {
		last[claims[i].ClientID] = i
	}
	var all sync.WaitGroup
	for i := range claims {
		if last[claims[i].ClientID] != i {
			out[i].Err = store.ErrSuperseded // by the one behind it
			continue
		}
		room <- struct{}{}
		all.Go(func() {
			defer func() { <-room }()
			began := time.Now()
			w := &claimWalk{s: s, ask: claims[i], token: bson.NewObjectID(), node: s.self.id()}
			out[i] = w.walk(ctx)
			if out[i].Err != nil && !errors.Is(out[i].Err, store.ErrSuperseded) {
				out[i] = store.Claimed{Err: s.failed(ctx, "claim", out[i].Err)}
			}
			if s.o.Metrics != nil {
				s.o.Metrics.Operation("claim", time.Since(began))
			}
		})
	}
	all.Wait()
	return out
}

// claimWalk is one claim on its way (DESIGN.md section 6, "A reconnect", steps 1
// to 5). It can be cut between any two steps: whoever claims next finds in the
// documents what is still to be done.
type claimWalk struct {
	s     *Store
	ask   store.Claim
	token bson.ObjectID // names this claim
	node  bson.ObjectID
	// dead is the node whose session the keeper finishes; nil: a client connects.
	dead *bson.ObjectID

	mine    sessionDoc // as step 1 left it
	waiting []pastDoc  // former owners that were not released
	place   placeDoc   // as step 3 left it
	cur     schema.SessionCursor
	marked  int64 // subscriptions of an older epoch do not count
	records []schema.Delivery
	subs    []schema.Subscription
	wills   []schema.Will
}

// gaveUp ends a walk that met a newer claim. released: nothing before it can still
// be on its way, so its own epoch is let go.
func (w *claimWalk) gaveUp(ctx context.Context, released bool) store.Claimed {
	if released && w.mine.Epoch != 0 {
		o := w.mine.owns()
		_ = w.s.write(ctx, o.ClientID, func(ctx context.Context) error {
			return w.s.release(ctx, store.Release{Owner: o})
		}) // if it fails, the next claim puts a fence
	}
	return store.Claimed{Err: store.ErrSuperseded}
}

func (w *claimWalk) walk(ctx context.Context) store.Claimed {
	out, err := w.steps(ctx)
	if err != nil {
		return store.Claimed{Err: err}
	}
	return out
}

func (w *claimWalk) steps(ctx context.Context) (store.Claimed, error) {
	s := w.s
	if ok, err := w.raise(ctx); err != nil || !ok {
		return store.Claimed{Err: store.ErrSuperseded}, err
	}
	present, err := w.wait(ctx)
	if err != nil {
		return store.Claimed{}, err
	}
	if !present {
		return w.gaveUp(ctx, len(w.waiting) == 0), nil
	}
	s.owned.drop(w.ask.ClientID, uint64(w.mine.Epoch))
	ok, err := w.mark(ctx)
	if err != nil {
		return store.Claimed{}, err
	}
	if !ok {
		return w.gaveUp(ctx, len(w.waiting) == 0), nil
	}
	if ok, err := w.endFormer(ctx); err != nil || !ok {
		return store.Claimed{Err: store.ErrSuperseded}, err
	}
	if len(w.waiting) > 0 {
		if w.records, ok, err = w.fence(ctx, w.mine.owns(), w.cur.Seq); err != nil || !ok {
			return store.Claimed{Err: store.ErrSuperseded}, err
		}
		nodes := make([]bson.ObjectID, len(w.waiting))
		for i, p := range w.waiting {
			nodes[i] = p.Owner
		}
		if err := s.stops.stop(ctx, nodes); err != nil {
			return store.Claimed{}, err
		}
	}
	if err := w.rest(ctx); err != nil {
		return store.Claimed{}, err
	}
	if w.dead == nil {
		// Before the last look: a claim that it does not see is told of afterwards.
		s.owned.take(w.mine.owns())
		if s.self.id() != w.node {
			return store.Claimed{}, w.reborn(ctx)
		}
	}
	if ok, err := w.open(ctx); err != nil || !ok {
		s.owned.drop(w.ask.ClientID, uint64(w.mine.Epoch)+1)
		// A released epoch says that nothing lies above the cursor's seq: after a
		// fence that would not be true (S19).
		return w.gaveUp(ctx, err == nil && len(w.waiting) == 0), err
	}
	return store.Claimed{
		Owner: w.mine.owns(), Present: w.mine.SID != w.mine.Epoch, Released: len(w.waiting) == 0,
		Subscriptions: w.subs, Cursor: w.cur, Wills: w.wills,
	}, nil
}

var errReborn = errors.New("mongo: this node was declared dead during the claim, and goes on as another")

// reborn lets go of what was claimed under a name that this node has no more: nobody
// looks after the sessions of a node that is finished. The node had its new name before
// it lost all that it owned, so a claim that is not lost there sees it.
func (w *claimWalk) reborn(ctx context.Context) error {
	s, o := w.s, w.mine.owns()
	s.owned.drop(o.ClientID, o.Epoch+1)
	if len(w.waiting) > 0 {
		return errReborn // the next claim puts a fence
	}
	err := s.write(ctx, o.ClientID, func(ctx context.Context) error {
		return s.release(ctx, store.Release{Owner: o, Normal: true}) // no connection was accepted: no will
	})
	return errors.Join(errReborn, err)
}

// readSession reads a session; nil: there is none.
func (s *Store) readSession(ctx context.Context, clientID string) (*sessionDoc, error) {
	var d sessionDoc
	err := s.c.session.FindOne(ctx, fields("_id", clientID)).Decode(&d)
	if errors.Is(err, mongo.ErrNoDocuments) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("mongo: read of session %q: %w", clientID, err)
	}
	return &d, nil
}

// raise is step 1: it raises the epoch, only from the one just read. false: the
// keeper found nothing to finish.
//
// A claim of another node that is under way is let come to its end, for at most
// ClaimWait: of two devices with one client id, at two nodes, each would else overtake
// the other before either is served (F-24).
func (w *claimWalk) raise(ctx context.Context) (bool, error) {
	began := time.Now()
	for {
		found := true
		patient := w.dead == nil && since(began) < w.s.o.ClaimWait
		err := w.s.write(ctx, w.ask.ClientID, func(ctx context.Context) error {
			d, err := w.s.readSession(ctx, w.ask.ClientID)
			if err != nil {
				return err
			}
			if d != nil && d.Token == w.token {
				w.mine = *d // the answer had been lost
				return nil
			}
			if patient && d != nil && d.underWay() && *d.Owner != w.node {
				return answered{errUnderWay}
			}
			filter := fields("_id", w.ask.ClientID, "epoch", fields("$exists", false))
			if d != nil {
				filter = fields("_id", w.ask.ClientID, "epoch", d.Epoch)
			}
			if w.dead != nil {
				if d == nil || d.Owner == nil || *d.Owner != *w.dead || *d.Owner == w.node && d.Disconnected == nil {
					found = false // it is nobody's, another's, or a client's that is here
					return nil
				}
				filter = append(filter, bson.E{Key: "owner", Value: *w.dead})
			}
			o := options.FindOneAndUpdate().SetReturnDocument(options.After).SetUpsert(d == nil)
			err = w.s.c.session.FindOneAndUpdate(ctx, filter, w.raising(), o).Decode(&w.mine)
			if errors.Is(err, mongo.ErrNoDocuments) || mongo.IsDuplicateKeyError(err) && !hasWriteConcernError(err) {
				return answered{errRaced}
			}
			return err
		})
		switch {
		case errors.Is(err, errUnderWay):
			if err := rest(ctx, waitRest); err != nil {
				return false, err
			}
		case errors.Is(err, errRaced):
		default:
			return err == nil && found, err
		}
	}
}

var (
	errRaced    = errors.New("mongo: another claim was first")
	errUnderWay = errors.New("mongo: another claim is under way")
)

// open is the last look at the epoch: false: a newer claim. A claim that had somebody
// to wait for says with it that it has come to its end.
func (w *claimWalk) open(ctx context.Context) (ok bool, err error) {
	if len(w.mine.Past) == 0 || w.dead != nil {
		last, err := w.s.readSession(ctx, w.ask.ClientID)
		return err == nil && last != nil && last.Epoch == w.mine.Epoch, err
	}
	err = w.s.write(ctx, w.ask.ClientID, func(ctx context.Context) error {
		res, err := w.s.c.session.UpdateOne(ctx, fields("_id", w.ask.ClientID, "epoch", w.mine.Epoch), set("opened", true))
		ok = err == nil && res.MatchedCount == 1
		return err
	})
	if err != nil {
		return false, err
	}
	return ok, nil
}

// raising is the update of step 1: one operation by the server's clock.
func (w *claimWalk) raising() mongo.Pipeline {
	begin := mongo.Pipeline{
		set("tmp", fields(
			"now", w.s.now(), "end", sessionEnd(),
			"was", ex("$ifNull", "$epoch", 0), "released", ex("$ifNull", "$released", 0))),
		set("tmp.ended", ex("$and", ex("$ne", "$tmp.end", nil), ex("$lte", "$tmp.end", "$tmp.now")),
			"tmp.epoch", ex("$max", ex("$add", "$tmp.was", 1), ex("$toLong", "$$NOW"))),
		set("tmp.fresh", ex("$or", ex("$eq", "$tmp.was", 0), w.ask.CleanStart, ex("$eq", "$expiry", 0), "$tmp.ended")),
	}
	past := ex("$cond", ex("$gt", "$tmp.was", "$tmp.released"), ex("$concatArrays",
		ex("$filter", fields("input", ex("$ifNull", "$past", bson.A{}), "as", "p", "cond", ex("$gt", "$$p.epoch", "$tmp.released"))),
		bson.A{fields("epoch", "$epoch", "owner", "$owner")}), bson.A{})
	if w.dead != nil {
		return append(begin,
			set("epoch", "$tmp.epoch", "owner", w.node, "token", w.token, "past", past,
				"disconnected", ex("$ifNull", "$disconnected", "$tmp.now")),
			unset("tmp"))
	}
	// A claim that was still under way is never accepted now, and so its will is none
	// [MQTT-3.1.2-7].
	under := ex("$and", ex("$gt", "$tmp.was", "$tmp.released"), ex("$ne", ex("$ifNull", "$past", bson.A{}), bson.A{}),
		absent("$opened"), absent("$disconnected"))
	wills := mapWills("$wills", choose("$$w",
		branch(ex("$and", under, ex("$eq", "$$w.epoch", "$tmp.was")), nil),
		branch(ex("$and", "$tmp.fresh", absent("$$w.end")),
			ex("$mergeObjects", "$$w", fields("end", ex("$cond", "$tmp.ended", "$tmp.end", "$tmp.now"))))))
	if w.ask.Will != nil {
		wills = ex("$concatArrays", wills, bson.A{ex("$mergeObjects",
			ex("$literal", newWillDoc(w.ask.Will, w.token)), fields("epoch", "$tmp.epoch"))})
	}
	return append(begin,
		set("sid", ex("$cond", "$tmp.fresh", "$tmp.epoch", "$sid"), "epoch", "$tmp.epoch", "owner", w.node, "token", w.token,
			"released", "$tmp.released", "past", past, "expiry", int64(w.ask.Expiry), "protocol", int32(w.ask.Protocol),
			"connected", "$tmp.now", "disconnected", "$$REMOVE", "wills", wills),
		unset("tmp", "wake", "opened"))
}

// waitRest is how often a waiting claim looks.
const waitRest = 20 * time.Millisecond

// wait is step 2: until the epochs before are released, as long as somebody who
// is waited for lives, and not longer than ClaimWait. false: a newer claim, or
// the session was ended.
func (w *claimWalk) wait(ctx context.Context) (bool, error) {
	began := time.Now()
	d := &w.mine
	for i := 0; ; i++ {
		w.waiting = w.waiting[:0]
		for _, p := range w.mine.Past {
			if d != nil && p.Epoch > d.Released {
				w.waiting = append(w.waiting, p)
			}
		}
		if d == nil || d.Epoch != w.mine.Epoch {
			return false, nil
		}
		if len(w.waiting) == 0 || w.dead != nil || since(began) >= w.s.o.ClaimWait {
			return true, nil
		}
		if i%5 == 0 {
			lives, err := w.s.anyLives(ctx, w.waiting)
			if err != nil || !lives {
				return err == nil, err
			}
		}
		if err := rest(ctx, waitRest); err != nil {
			return false, err
		}
		var err error
		if d, err = w.s.readSession(ctx, w.ask.ClientID); err != nil {
			return false, err
		}
	}
}

// anyLives tells whether the lease of one of the nodes goes on, by the server's
// clock.
func (s *Store) anyLives(ctx context.Context, past []pastDoc) (bool, error) {
	in := bson.A{}
	for _, p := range past {
		in = append(in, p.Owner)
	}
	n, err := s.c.node.CountDocuments(ctx, fields("_id", fields("$in", in), "dead", nil, "left", nil,
		"$expr", ex("$gt", ex("$add", "$beat", "$lease"), "$$NOW")), options.Count().SetLimit(1))
	if err != nil {
		return false, fmt.Errorf("mongo: read of nodes: %w", err)
	}
	return n > 0, nil
}

// mark is step 3: it sets {sid, epoch} in the cursor, only where the epoch is
// lower, and reads it: an older save now matches nothing (S10). false: superseded.
// The document of a session that has ended, and was a member of a group, keeps its
// sid until what it has of the group is handed back (endFormer).
func (w *claimWalk) mark(ctx context.Context) (bool, error) {
	epoch, ok := w.mine.Epoch, true
	err := w.s.write(ctx, w.ask.ClientID, func(ctx context.Context) error {
		w.place = placeDoc{}
		err := w.s.c.cursor.FindOneAndUpdate(ctx, fields("_id", w.ask.ClientID, "epoch", fields("$lt", epoch)),
			mongo.Pipeline{fields("$set", append(w.fresh(func(field string, fresh any) any {
				return ex("$cond", ex("$or", ex("$eq", "$sid", w.mine.SID), ex("$eq", "$shared", true)), "$"+field, fresh)
			}), bson.E{Key: "epoch", Value: epoch}))},
			options.FindOneAndUpdate().SetUpsert(true).SetReturnDocument(options.After)).Decode(&w.place)
		if !mongo.IsDuplicateKeyError(err) || hasWriteConcernError(err) {
			return err
		}
		// Marked by a newer claim; or by this one, and the answer was lost.
		if err = w.s.c.cursor.FindOne(ctx, fields("_id", w.ask.ClientID)).Decode(&w.place); err != nil {
			return err
		}
		ok = w.place.Epoch == epoch
		return nil
	})
	if err != nil {
		return false, err
	}
	w.cur, w.marked = w.place.sessionCursor(), w.place.Marked
	return ok, nil
}

// fresh gives the fields of a new session's cursor; keep chooses between them and
// what is there.
func (w *claimWalk) fresh(keep func(field string, fresh any) any) bson.D {
	return fields(
		"sid", keep("sid", w.mine.SID),
		"after", keep("after", ex("$literal", newCursorDoc(w.ask.At))), "seq", keep("seq", int64(0)),
		"flight", keep("flight", bson.A{}), "inbound", keep("inbound", bson.A{}), "marked", keep("marked", int64(0)))
}

// fence is the first half of step 4: the records above the cursor, and a record
// with neither message nor packet id at the next seq. If it goes in, the reading
// was complete, and what the old owner has on its way collides with it (S11).
func (w *claimWalk) fence(ctx context.Context, o schema.Owner, above uint64) (records []schema.Delivery, ok bool, err error) {
	s := w.s
	err = s.inSession(ctx, bson.Timestamp{}, func(ctx context.Context) error {
		f := recordDoc{ID: bson.NewObjectID(), ClientID: o.ClientID, Host: s.o.Node, SID: int64(o.SID), Epoch: int64(o.Epoch)}
		pause := retryRest
		for {
			if records, err = s.readRecords(ctx, o, above); err != nil {
				return err
			}
			f.Seq = int64(above) + 1
			if n := len(records); n > 0 {
				last := &records[n-1]
				switch {
				case last.ID == schema.ID(f.ID):
					ok = true
					return nil
				case last.Epoch > o.Epoch:
					return nil
				}
				f.Seq = int64(last.Seq) + 1
			}
			f.Created = s.Now()
			_, err := s.c.published.InsertOne(ctx, f)
			if err == nil {
				records = append(records, f.delivery())
				ok = true
				return nil
			}
			if !mongo.IsDuplicateKeyError(err) && ctx.Err() != nil {
				return err
			}
			if err := rest(ctx, pause); err != nil {
				return err
			}
			pause = backoff(pause)
		}
	})
	return records, ok, err
}

// readRecords reads the records of a session above a seq, in order.
func (s *Store) readRecords(ctx context.Context, o schema.Owner, above uint64) ([]schema.Delivery, error) {
	cur, err := s.c.published.Find(ctx, fields("clientId", o.ClientID, "sid", int64(o.SID), "seq", fields("$gt", int64(above))),
		options.Find().SetSort(fields("seq", 1)))
	if err != nil {
		return nil, fmt.Errorf("mongo: read of records of %q: %w", o.ClientID, err)
	}
	var docs []recordDoc
	if err := cur.All(ctx, &docs); err != nil {
		return nil, fmt.Errorf("mongo: read of records of %q: %w", o.ClientID, err)
	}
	out := make([]schema.Delivery, len(docs))
	for i := range docs {
		out[i] = docs[i].delivery()
	}
	return out, nil
}
