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

	"rewindmq/schema"
	"rewindmq/store/mongo/lane"
)

// adopter gives a place in the log to what others have inserted into `message`
// (P7): the keeper's node does it, in a lane of its own. It carries out what a
// lane.Adopter decides, in a driver session of its own with one write in flight.
//
// All fields but marked belong to the goroutine of run.
type adopter struct {
	s    *Store
	sess *mongo.Session
	m    lane.Adopter
	lane laneID // of m
	why  error  // of the last doubt
	// scanned is when it last looked for lanes that are not this log's.
	scanned time.Time
	// marked: a stream has shown one. A copy may carry an old `created` as well, and
	// the TTL takes what has a lane: it is adopted at once.
	marked atomic.Bool

	poke chan struct{}
	quit chan struct{}
	gone chan struct{}
}

const (
	// adoptEach is how often the keeper looks for foreign inserts.
	adoptEach = time.Second
	// scanEach is how often it looks for those that carry a lane which this log
	// does not have.
	scanEach = 10 * time.Second
)

func newAdopter(s *Store) *adopter {
	return &adopter{s: s, m: lane.Adopter{Fresh: max(s.o.RetainMessages, 0) / 4}, poke: make(chan struct{}, 1), quit: make(chan struct{}), gone: make(chan struct{})}
}

// wake tells that there may be an insert of somebody else's.
func (a *adopter) wake() {
	select {
	case a.poke <- struct{}{}:
	default:
	}
}

// wakeMarked tells that there is one that carries marks of another log.
func (a *adopter) wakeMarked() {
	a.marked.Store(true)
	a.wake()
}

// close ends the adoption lane in order.
func (a *adopter) close() {
	close(a.quit)
	<-a.gone
}

// run is the adopter's goroutine. Store.Run waits for it.
func (a *adopter) run() {
	defer close(a.gone)
	sess, err := a.s.client.StartSession()
	if err != nil {
		a.s.log.Error("adopter", zap.Error(err))
		return
	}
	defer sess.EndSession(context.Background())
	a.sess = sess
	t := time.NewTicker(adoptEach)
	defer t.Stop()
	for {
		if err := a.turn(); err != nil && a.s.life.Err() == nil {
			a.s.log.Warn("inserts of other programs could not be adopted; it tries again", zap.Error(err))
		}
		select {
		case <-a.s.life.Done():
			return
		case <-a.quit:
			a.end()
			return
		case <-t.C:
		case <-a.poke:
		}
	}
}

func (a *adopter) end() {
	if a.lane == 0 {
		return
	}
	ctx, cancel := a.attempt()
	defer cancel()
	if err := a.s.endLane(ctx, a.lane); err != nil {
		a.s.log.Warn("adoption lane not retired; the keeper will", zap.Error(err))
	}
}

func (a *adopter) attempt() (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(a.s.life, a.s.o.Attempt)
	return mongo.NewSessionContext(ctx, a.sess), cancel
}

// turn adopts all that is there. An error ends it; what is in doubt is followed up
// until there is an answer.
func (a *adopter) turn() error {
	for a.s.life.Err() == nil {
		act := a.m.Next(schema.ID(a.s.self.id()), a.s.keeper.holds(), time.Now())
		done, err := a.carryOut(act)
		if id := laneID(a.m.Lane()); id != a.lane {
			a.lane = id
		}
		if done || err != nil {
			return err
		}
	}
	return nil
}

// carryOut does what the machine wants, and tells it what came of it; true: there
// is no more to do.
func (a *adopter) carryOut(act lane.Action) (bool, error) {
	var err error
	switch act.Do {
	case lane.Find:
		var list []lane.Guest
		list, err = a.find()
		a.m.Found(list)
		return len(list) == 0, err
	case lane.Open:
		err = a.open()
	case lane.EndOthers:
		err = a.endOthers(act)
	case lane.Update:
		v := judge(a.update(act), len(a.m.Guests()))
		a.m.Wrote(v.lane())
		a.why = v.err
		return false, nil
	case lane.Look:
		docs, err := a.look(act)
		if err != nil {
			a.s.log.Warn("adoption in doubt", zap.Error(a.why), zap.NamedError("look", err))
			a.m.LookFailed()
			return false, nil
		}
		a.m.Looked(docs)
		return false, nil
	case lane.Rest:
		return false, rest(a.s.life, act.Rest)
	default:
		return true, nil
	}
	if err != nil {
		a.m.Failed()
	}
	return err != nil, err
}

func (a *adopter) open() error {
	ctx, cancel := a.attempt()
	defer cancel()
	node, began := a.s.self.id(), time.Now()
	id, err := a.s.openLaneAs(ctx, node, true)
	if err == nil {
		a.m.Opened(lane.ID(id), schema.ID(node), began)
	}
	return err
}

// endOthers ends the adoption lanes of former keepers.
func (a *adopter) endOthers(act lane.Action) error {
	ctx, cancel := a.attempt()
	defer cancel()
	lanes, err := a.s.readLanes(ctx, fields("adopts", true, "retired", nil, "_id", fields("$lt", int64(act.Lane.Number()))))
	if err != nil {
		return err
	}
	for i := range lanes {
		if err := a.s.endLane(ctx, lanes[i].id()); err != nil {
			return err
		}
	}
	a.m.Alone()
	return nil
}

// find looks for foreign inserts, by majority: those without a lane by their own
// index, now and then those with one that this log does not have.
func (a *adopter) find() ([]lane.Guest, error) {
	ctx, cancel := a.attempt()
	defer cancel()
	list, err := a.read(ctx, fields("lane", nil), "foreign", fields("created", 1))
	if err != nil || len(list) > 0 || !a.marked.Swap(false) && since(a.scanned) < scanEach {
		return list, err
	}
	lanes, err := distinct(ctx, a.s.c.message, "lane", fields("lane", fields("$gt", int64(0))), options.Distinct())
	if err != nil {
		return nil, fmt.Errorf("mongo: look for foreign lanes: %w", err)
	}
	for _, v := range lanes {
		l, _ := v.AsInt64OK()
		ok, err := a.s.counts(ctx, place{lane: laneID(l), n: 1, has: true})
		if err != nil {
			return nil, err
		}
		if !ok {
			a.marked.Store(true) // there may be more
			return a.read(ctx, fields("lane", l), "lane_n", fields("lane", 1, "n", 1))
		}
	}
	a.scanned = time.Now()
	return nil, nil
}

// distinct gives the values of a field.
func distinct(ctx context.Context, c *mongo.Collection, field string, filter bson.D, o *options.DistinctOptionsBuilder) ([]bson.RawValue, error) {
	raw, err := c.Distinct(ctx, field, filter, o).Raw()
	if err != nil {
		return nil, err
	}
	return raw.Values()
}

func (a *adopter) read(ctx context.Context, filter bson.D, hint string, sort bson.D) ([]lane.Guest, error) {
	cur, err := a.s.c.message.Find(ctx, filter, options.Find().SetHint(hint).SetSort(sort).SetLimit(maxBatch).
		SetProjection(fields("lane", 1)))
	if err != nil {
		return nil, fmt.Errorf("mongo: look for foreign inserts: %w", err)
	}
	defer func() { _ = cur.Close(context.WithoutCancel(ctx)) }()
	var list []lane.Guest
	for cur.Next(ctx) {
		id, _ := cur.Current.Lookup("_id").ObjectIDOK()
		list = append(list, lane.Guest{ID: schema.ID(id), Mark: markOf(cur.Current)})
	}
	return list, cur.Err()
}

// markOf gives what stands in a document's `lane`, with its type; empty: nothing.
func markOf(raw bson.Raw) string {
	v := raw.Lookup("lane")
	if v.IsZero() {
		return ""
	}
	return string(append([]byte{byte(v.Type)}, v.Value...))
}

// markValue is the reverse of markOf.
func markValue(mark string) any {
	if mark == "" {
		return nil
	}
	return bson.RawValue{Type: bson.Type(mark[0]), Value: []byte(mark[1:])}
}

// update makes one attempt. What does not match is made an error by the upsert,
// and the batch stops there: there are no holes in n.
func (a *adopter) update(act lane.Action) error {
	off := a.s.oldest(24 * time.Hour).Milliseconds()
	list := a.m.Guests()
	models := make([]mongo.WriteModel, len(list))
	for i, g := range list {
		models[i] = mongo.NewUpdateOneModel().SetUpsert(true).
			SetFilter(fields("_id", bson.ObjectID(g.ID), "lane", markValue(g.Mark))).
			SetUpdate(mongo.Pipeline{set(
				"lane", int64(act.Lane), "n", int64(act.N)+int64(i), "ts", "$$CLUSTER_TIME",
				"qos", ex("$ifNull", "$qos", 1), "retain", ex("$ifNull", "$retain", false),
				"created", ex("$cond", ex("$lte", ex("$abs", ex("$subtract", ex("$ifNull", "$created", time.UnixMilli(0)), "$$NOW")), off), "$created", "$$NOW"),
			), unset("stop")})
	}
	ctx, cancel := a.attempt()
	defer cancel()
	_, err := a.s.c.message.BulkWrite(ctx, models)
	return err
}

// look follows a doubt: one majority read of the batch's ids and of what stands in
// the lane at next and above.
func (a *adopter) look(act lane.Action) ([]lane.Guest, error) {
	ids := make(bson.A, len(a.m.Guests()))
	for i, g := range a.m.Guests() {
		ids[i] = bson.ObjectID(g.ID)
	}
	ctx, cancel := a.attempt()
	defer cancel()
	cur, err := a.s.c.message.Find(ctx, fields("$or", bson.A{
		fields("_id", fields("$in", ids)),
		fields("lane", int64(act.Lane), "n", fields("$gte", int64(act.N))),
	}), options.Find().SetProjection(fields("lane", 1, "n", 1, "stop", 1)))
	if err != nil {
		return nil, err
	}
	defer func() { _ = cur.Close(context.WithoutCancel(ctx)) }()
	var docs []lane.Guest
	for cur.Next(ctx) {
		id, _ := cur.Current.Lookup("_id").ObjectIDOK()
		g := lane.Guest{ID: schema.ID(id), Mark: markOf(cur.Current)}
		if p := placeOf(cur.Current); p.has && lane.ID(p.lane) == act.Lane {
			g.N, g.Stop = uint64(p.n), p.stop
		}
		docs = append(docs, g)
	}
	return docs, cur.Err()
}
