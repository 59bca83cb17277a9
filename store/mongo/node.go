package mongo

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
	"go.uber.org/zap"

	"rewindmq/store"
)

// self is this node: one run of a broker process, under the name of an ObjectId.
// A node that was declared dead while it was away goes on as another one.
type self struct {
	node      atomic.Pointer[bson.ObjectID]
	confirmed atomic.Pointer[time.Time] // when the last acknowledged heartbeat was sent
	ticked    atomic.Pointer[time.Time] // last turn of watchPauses
	steady    atomic.Pointer[time.Time] // since when heartbeats are acknowledged without a gap
	// suspect counts the reasons to look again before the next batch: pauses, and
	// times when this node was declared dead.
	suspect atomic.Uint64
	beats   *mongo.Session
}

func (n *self) init() {
	id := bson.NewObjectID()
	n.node.Store(&id)
	now := time.Now()
	n.confirmed.Store(&now)
	n.ticked.Store(&now)
	n.steady.Store(&now)
}

func (n *self) id() bson.ObjectID { return *n.node.Load() }

// since gives the larger of monotonic and wall time since t: a machine that slept
// shows it in the second only.
func since(t time.Time) time.Duration {
	now := time.Now()
	return max(now.Sub(t), now.Round(0).Sub(t.Round(0)))
}

// silent tells for how long no heartbeat was acknowledged.
func (n *self) silent() time.Duration { return since(*n.confirmed.Load()) }

// pauseBound is the pause after which a node looks before it appends.
const pauseBound = time.Second

// paused tells whether this process has just woken from a pause that
// watchPauses may not have seen yet.
func (n *self) paused() bool { return since(*n.ticked.Load()) > pauseBound }

// watchPauses notices when this process was stopped, or starved.
func (s *Store) watchPauses() {
	t := time.NewTicker(pauseBound / 10)
	defer t.Stop()
	for {
		if s.self.paused() {
			s.self.suspect.Add(1)
		}
		now := time.Now()
		s.self.ticked.Store(&now)
		select {
		case <-s.life.Done():
			return
		case <-t.C:
		}
	}
}

// register makes the document of this node under a name, by the server's clock.
//
// Invariant: a node goes by no name that it has not registered. What is owned under such a
// name would be nobody's.
func (s *Store) register(ctx context.Context, id bson.ObjectID) error {
	if s.self.beats == nil {
		sess, err := s.client.StartSession()
		if err != nil {
			return fmt.Errorf("mongo: session for heartbeats: %w", err)
		}
		s.self.beats = sess
	}
	sent := time.Now()
	_, err := s.c.node.UpdateOne(mongo.NewSessionContext(ctx, s.self.beats), bson.D{{Key: "_id", Value: id}},
		mongo.Pipeline{{{Key: "$set", Value: bson.D{
			{Key: "name", Value: s.o.Node},
			{Key: "started", Value: "$$NOW"},
			{Key: "beat", Value: "$$NOW"},
			{Key: "lease", Value: s.o.Lease.Milliseconds()},
			{Key: "beats", Value: int64(0)},
		}}}}, options.UpdateOne().SetUpsert(true))
	if err != nil {
		return fmt.Errorf("mongo: register node %v: %w", id, err)
	}
	s.self.confirmed.Store(&sent)
	s.self.steady.Store(&sent)
	return nil
}

// beat renews the lease until the store dies.
func (s *Store) beat() {
	t := time.NewTicker(s.o.Lease / 5)
	defer t.Stop()
	for {
		select {
		case <-s.life.Done():
			return
		case <-t.C:
		}
		ctx, cancel := context.WithTimeout(s.life, s.o.Attempt)
		_, err := s.fresh.time(ctx)
		if err == nil {
			_ = s.measureClock(ctx) // a server that went away is the next heartbeat's affair
		}
		cancel()
		s.tellClock()
		s.tellLag()
		if s.o.Metrics != nil {
			if err == nil {
				s.o.Metrics.Up.Set(1)
			} else {
				s.o.Metrics.Up.Set(0)
			}
		}
		if err != nil && s.life.Err() == nil {
			s.log.Warn("heartbeat failed", zap.Error(err), zap.Duration("silent", s.self.silent()))
		}
	}
}

// renew writes the heartbeat; it is the majority write by which reads know that
// no deposed primary answers. A node that was declared dead becomes another one.
//
// A lease that ran out does no harm by itself (the store may have been away for
// everybody): what others do about a node begins by marking its document, and
// this write shows whether somebody has.
func (s *Store) renew(ctx context.Context) (bson.Timestamp, error) {
	sent := time.Now()
	before := *s.self.confirmed.Load()
	res, err := s.c.node.UpdateOne(mongo.NewSessionContext(ctx, s.self.beats),
		bson.D{{Key: "_id", Value: s.self.id()}, {Key: "dead", Value: nil}},
		mongo.Pipeline{{{Key: "$set", Value: bson.D{
			{Key: "beat", Value: "$$NOW"}, {Key: "beats", Value: bson.D{{Key: "$add", Value: bson.A{"$beats", 1}}}},
		}}}})
	if err != nil {
		return bson.Timestamp{}, err
	}
	if res.MatchedCount == 0 {
		if err := s.reborn(ctx); err != nil {
			return bson.Timestamp{}, err
		}
	} else {
		if since(before) > s.o.Lease {
			s.self.suspect.Add(1)
		}
		if since(before) > time.Duration(heardFor*float64(s.o.Lease)) {
			s.self.steady.Store(&sent)
		}
		s.self.confirmed.Store(&sent)
	}
	at := *s.self.beats.OperationTime()
	s.latest.reach(at)
	return at, nil
}

// reborn goes on under a new name after this node was declared dead: its sessions
// are others', its lanes are ended.
func (s *Store) reborn(ctx context.Context) error {
	old := s.self.id()
	id := bson.NewObjectID()
	if err := s.register(ctx, id); err != nil {
		return err // the next heartbeat comes here again
	}
	s.self.node.Store(&id)
	s.self.suspect.Add(1)
	s.owned.loseAll()
	s.watch.tell(store.Lost{})
	s.log.Warn("this node was declared dead while it was away; it goes on as another", zap.String("was", old.Hex()), zap.String("is", id.Hex()))
	return nil
}

// unregister ends the lease in order. Another node would find it over anyway.
func (s *Store) unregister() {
	ctx, cancel := context.WithTimeout(s.life, time.Second)
	defer cancel()
	_, err := s.c.node.UpdateOne(ctx, bson.D{{Key: "_id", Value: s.self.id()}},
		bson.D{{Key: "$set", Value: bson.D{{Key: "left", Value: true}, {Key: "lease", Value: int64(0)}}}})
	if err != nil {
		s.log.Warn("node not unregistered; its lease runs out", zap.Error(err))
	}
}
