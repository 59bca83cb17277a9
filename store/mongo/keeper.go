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
	"go.uber.org/zap"

	"rewindmq/schema"
	"rewindmq/store"
)

// keeperID is the document of the keeper's lease in `node`.
const keeperID = "keeper"

// keeper is the housekeeping of one node; it does something only while the node
// holds the keeper's lease. All of it is idempotent and guarded: two keepers only
// waste.
type keeper struct {
	s *Store

	// cut are sessions whose finishing failed: this node's keeper may own them now. Bound:
	// the sessions of the nodes that died. The goroutine of run has it.
	cut map[string]struct{}

	renewing sync.Mutex // one renewal in flight
	sess     *mongo.Session

	mu   sync.Mutex
	held time.Time // since when without a gap; zero: not
	last time.Time // when the last acknowledged renewal was sent
}

// holds tells whether this node is the keeper now.
func (k *keeper) holds() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return !k.held.IsZero() && since(k.last) < k.s.o.Lease
}

// judges tells whether it may judge others' leases: it has renewed its own for a
// whole lease without a gap, so a store that was away kills nobody (W2).
func (k *keeper) judges() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return !k.held.IsZero() && since(k.last) < k.s.o.Lease && since(k.held) > k.s.o.Lease
}

// renew takes or renews the lease, by the server's clock.
func (k *keeper) renew(ctx context.Context) (bool, error) {
	k.renewing.Lock()
	defer k.renewing.Unlock()
	s, me := k.s, k.s.self.id()
	if k.sess == nil {
		sess, err := s.client.StartSession()
		if err != nil {
			return false, fmt.Errorf("mongo: session of the keeper: %w", err)
		}
		k.sess = sess
	}
	sent := time.Now()
	renewal := mongo.Pipeline{set("owner", me, "until", ex("$add", "$$NOW", s.o.Lease.Milliseconds()))}
	ctx = mongo.NewSessionContext(ctx, k.sess)
	res, err := s.c.node.UpdateOne(ctx, fields("_id", keeperID, "$or", bson.A{
		fields("owner", me), fields("$expr", ex("$lt", "$until", "$$NOW")),
	}), renewal)
	if err == nil && res.MatchedCount == 0 {
		_, err = s.c.node.UpdateOne(ctx, fields("_id", keeperID, "owner", fields("$exists", false)), renewal, options.UpdateOne().SetUpsert(true))
		if mongo.IsDuplicateKeyError(err) {
			k.lose()
			return false, nil
		}
	}
	if err != nil {
		return false, fmt.Errorf("mongo: keeper's lease: %w", err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.held.IsZero() || sent.Sub(k.last) > s.o.Lease {
		k.held = sent
	}
	k.last = sent
	return true, nil
}

func (k *keeper) lose() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.held = time.Time{}
}

// lease keeps the lease, or tries to get it, until the store dies.
func (k *keeper) lease() {
	t := time.NewTicker(min(k.s.o.Lease/5, time.Second))
	defer t.Stop()
	for {
		ctx, cancel := context.WithTimeout(k.s.life, k.s.o.Attempt)
		if _, err := k.renew(ctx); err != nil && k.s.life.Err() == nil {
			k.s.log.Warn("the keeper's lease could not be renewed", zap.Error(err))
		}
		cancel()
		select {
		case <-k.s.life.Done():
			return
		case <-t.C:
		}
	}
}

// run does the keeper's work while this node holds the lease. Store.Run waits for
// it.
func (k *keeper) run() {
	t := time.NewTicker(min(k.s.o.Lease/5, time.Second))
	defer t.Stop()
	for {
		if k.holds() {
			if err := k.turn(); err != nil && k.s.life.Err() == nil {
				k.s.log.Warn("the keeper could not finish what dead nodes left; it tries again", zap.Error(err))
			}
		}
		select {
		case <-k.s.life.Done():
			return
		case <-t.C:
		}
	}
}

// ask tells whether this node is the keeper; where that is open, it tries to be.
func (k *keeper) ask(ctx context.Context) (bool, error) {
	if k.holds() {
		return true, nil
	}
	return k.renew(ctx)
}

func (k *keeper) turn() error {
	ctx, cancel := context.WithTimeout(k.s.life, time.Minute)
	defer cancel()
	return errors.Join(k.finishNodes(ctx), k.finishStray(ctx))
}

// finishNodes declares nodes dead whose lease is over, and finishes what they had:
// their sessions by claiming them, their lanes by an `end`. A node that left in
// order is finished at once.
func (k *keeper) finishNodes(ctx context.Context) error {
	s := k.s
	if k.judges() {
		over := fields("beat", fields("$exists", true), "dead", nil, "left", nil,
			"$expr", ex("$lt", ex("$add", "$beat", "$lease"), "$$NOW"))
		// Not this one: it lives. If its heartbeats do not go through, another finds that.
		others := append(fields("_id", fields("$ne", s.self.id())), over...)
		cur, err := s.c.node.Find(ctx, others, options.Find().SetProjection(fields("_id", 1)))
		if err != nil {
			return fmt.Errorf("mongo: read of nodes: %w", err)
		}
		var dead []struct {
			ID bson.ObjectID `bson:"_id"`
		}
		if err := cur.All(ctx, &dead); err != nil {
			return fmt.Errorf("mongo: read of nodes: %w", err)
		}
		for _, d := range dead {
			// Judged again in the write: a node that wakes renews, or sees this.
			_, err := s.c.node.UpdateOne(ctx, append(fields("_id", d.ID), over...), mongo.Pipeline{set("dead", "$$NOW")})
			if err != nil {
				return fmt.Errorf("mongo: declaring node %v dead: %w", d.ID, err)
			}
			s.log.Info("a node's lease is over", zap.String("node", d.ID.Hex()))
		}
	}
	cur, err := s.c.node.Find(ctx, fields("finished", nil, "_id", fields("$ne", keeperID), "$or", bson.A{
		fields("dead", fields("$ne", nil)), fields("left", true),
	}), options.Find().SetProjection(fields("_id", 1)))
	if err != nil {
		return fmt.Errorf("mongo: read of nodes: %w", err)
	}
	var gone []struct {
		ID bson.ObjectID `bson:"_id"`
	}
	if err := cur.All(ctx, &gone); err != nil {
		return fmt.Errorf("mongo: read of nodes: %w", err)
	}
	var errs []error
	for _, g := range gone {
		errs = append(errs, k.finish(ctx, g.ID)) // one that fails holds up no other
	}
	return errors.Join(errs...)
}

// finish claims the sessions of a node that is gone, and retires its lanes.
func (k *keeper) finish(ctx context.Context, node bson.ObjectID) error {
	s := k.s
	sessions := k.finishSessions(ctx, node)
	at := bson.Timestamp{}
	err := s.inSession(ctx, at, func(ctx context.Context) error {
		lanes, err := s.readLanes(ctx, fields("node", node, "retired", nil))
		if err != nil {
			return err
		}
		for i := range lanes {
			if err := s.endLane(ctx, lanes[i].id()); err != nil {
				return err
			}
		}
		return s.sweepGroups(ctx) // it may have died between a subscription and its group
	})
	if err := errors.Join(sessions, err); err != nil {
		return err // it is not finished
	}
	_, err = s.c.node.UpdateOne(ctx, fields("_id", node), mongo.Pipeline{set("finished", "$$NOW")})
	if err != nil {
		return fmt.Errorf("mongo: node %v: %w", node, err)
	}
	return nil
}

// finishSessions finishes the sessions of an owner. One that fails holds up no other.
func (k *keeper) finishSessions(ctx context.Context, owner bson.ObjectID) error {
	var errs []error
	last := ""
	for {
		cur, err := k.s.c.session.Find(ctx, fields("owner", owner, "_id", fields("$gt", last)),
			options.Find().SetSort(fields("_id", 1)).SetProjection(fields("_id", 1)).SetLimit(1000))
		if err != nil {
			return errors.Join(append(errs, fmt.Errorf("mongo: sessions of node %v: %w", owner, err))...)
		}
		var ids []struct {
			ID string `bson:"_id"`
		}
		if err := cur.All(ctx, &ids); err != nil {
			return errors.Join(append(errs, fmt.Errorf("mongo: sessions of node %v: %w", owner, err))...)
		}
		if len(ids) == 0 {
			return errors.Join(errs...)
		}
		for _, id := range ids {
			errs = append(errs, k.finishSession(ctx, id.ID, owner))
			if ctx.Err() != nil {
				return errors.Join(errs...)
			}
		}
		last = ids[len(ids)-1].ID
	}
}

// finishSession finishes one. What fails may have been claimed by then: it is noted.
func (k *keeper) finishSession(ctx context.Context, clientID string, owner bson.ObjectID) error {
	err := k.s.finishSession(ctx, clientID, owner)
	if err == nil {
		delete(k.cut, clientID)
		return nil
	}
	if k.cut == nil {
		k.cut = map[string]struct{}{}
	}
	k.cut[clientID] = struct{}{}
	return err
}

// finishSession claims a session of a node that is gone, saves the recovered
// cursor and lets go: its wills' delays and its expiry begin.
func (s *Store) finishSession(ctx context.Context, clientID string, node bson.ObjectID) error {
	w := &claimWalk{s: s, ask: store.Claim{ClientID: clientID}, token: bson.NewObjectID(), node: s.self.id(), dead: &node}
	got := w.walk(ctx)
	if errors.Is(got.Err, store.ErrSuperseded) {
		return nil
	}
	if got.Err != nil {
		return got.Err
	}
	save := &job{ctx: ctx, save: savePlace(store.SaveCursor{Owner: got.Owner, Cursor: got.Cursor})}
	s.writerOf(clientID).put(save)
	err := save.wait()
	if err == nil {
		err = s.write(ctx, clientID, func(ctx context.Context) error { return s.release(ctx, store.Release{Owner: got.Owner}) })
	}
	if errors.Is(err, store.ErrSessionLost) {
		return nil // its client is back
	}
	if err != nil {
		return fmt.Errorf("mongo: finishing session %q: %w", clientID, err)
	}
	return nil
}

// serverNow gives the server's clock.
func (s *Store) serverNow(ctx context.Context) (time.Time, error) {
	now, err := s.helloTime(ctx)
	if err == nil && s.o.clock != nil {
		now = s.o.clock.at(now)
	}
	return now, err
}

// awake finds sessions without a connection that the keeper has to look at.
func (s *Store) awake(ctx context.Context, limit int, more bson.D) ([]sessionDoc, error) {
	now, err := s.serverNow(ctx)
	if err != nil {
		return nil, err
	}
	cur, err := s.c.session.Find(ctx, append(fields("wake", fields("$lte", now)), more...),
		options.Find().SetSort(fields("wake", 1)).SetLimit(int64(limit)))
	if err != nil {
		return nil, fmt.Errorf("mongo: look for sessions: %w", err)
	}
	var docs []sessionDoc
	if err := cur.All(ctx, &docs); err != nil {
		return nil, fmt.Errorf("mongo: look for sessions: %w", err)
	}
	return docs, nil
}

// DueWills decides wills, see store.Keeper. A node that is not the keeper finds
// none.
func (s *Store) DueWills(ctx context.Context, limit int) ([]store.DueWill, error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	ctx, cancel := s.call(ctx)
	defer cancel()
	if ok, err := s.keeper.ask(ctx); err != nil || !ok {
		return nil, s.failed(ctx, "due_wills", err)
	}
	docs, err := s.awake(ctx, limit, fields("wills.0", fields("$exists", true)))
	if err != nil {
		return nil, s.failed(ctx, "due_wills", err)
	}
	var out []store.DueWill
	for i := range docs {
		d := &docs[i]
		var now sessionDoc
		err := s.write(ctx, d.ID, func(ctx context.Context) error {
			err := s.c.session.FindOneAndUpdate(ctx, fields("_id", d.ID, "epoch", d.Epoch, "owner", nil), mongo.Pipeline{
				set("tmp", fields("now", s.now(), "end", sessionEnd())),
				set("wills", decideWithout()),
				unset("tmp"),
			}, options.FindOneAndUpdate().SetReturnDocument(options.After)).Decode(&now)
			if errors.Is(err, mongo.ErrNoDocuments) {
				return nil // its client is back
			}
			return err
		})
		if err != nil {
			return nil, s.failed(ctx, "due_wills", err)
		}
		for j := range now.Wills {
			if now.Wills[j].Due && len(out) < limit {
				out = append(out, store.DueWill{ClientID: d.ID, Will: now.Wills[j].will()})
			}
		}
	}
	return out, nil
}

// EndExpired ends sessions, see store.Keeper.
func (s *Store) EndExpired(ctx context.Context, limit int) ([]schema.Owner, error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	ctx, cancel := s.call(ctx)
	defer cancel()
	if ok, err := s.keeper.ask(ctx); err != nil || !ok {
		return nil, s.failed(ctx, "end_expired", err)
	}
	// It may have been woken for a will: its own time has to be over as well.
	docs, err := s.awake(ctx, limit, fields("wills", bson.A{}, "owner", nil,
		"$expr", ex("$and", ex("$ne", sessionEnd(), nil), ex("$lte", sessionEnd(), s.now()))))
	if err != nil {
		return nil, s.failed(ctx, "end_expired", err)
	}
	var out []schema.Owner
	for i := range docs {
		d := &docs[i]
		ended := false
		err := s.write(ctx, d.ID, func(ctx context.Context) (err error) {
			// Guarded by the epoch: who has come back in time has raised it.
			ended, err = s.endSession(ctx, d.owns())
			return err
		})
		if err != nil {
			return out, s.failed(ctx, "end_expired", err)
		}
		if ended {
			out = append(out, d.owns())
		}
	}
	return out, nil
}

// Counts counts, see store.Keeper.
func (s *Store) Counts(ctx context.Context) (store.Counts, error) {
	if err := s.enter(ctx); err != nil {
		return store.Counts{}, err
	}
	ctx, cancel := s.call(ctx)
	defer cancel()
	sessions, err := s.c.session.CountDocuments(ctx, bson.D{})
	if err != nil {
		return store.Counts{}, s.failed(ctx, "counts", err)
	}
	subs, err := s.c.subscription.CountDocuments(ctx, bson.D{})
	if err != nil {
		return store.Counts{}, s.failed(ctx, "counts", err)
	}
	shared, err := s.c.subscription.CountDocuments(ctx, fields("group", fields("$exists", true)))
	return store.Counts{Sessions: int(sessions), Subscriptions: int(subs), Shared: int(shared)}, s.failed(ctx, "counts", err)
}
