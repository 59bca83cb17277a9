package mongo

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
	"go.uber.org/zap"
)

// adopter gives a place in the log to what others have inserted into `message`
// (P7): the keeper's node does it, in a lane of its own. An adoption is an append,
// with the same numbering, doubt and stoppers; only that the documents are there
// already, and get their place by a guarded update.
//
// All fields belong to the goroutine of run.
//
// Invariant: of an adoption lane only its opener sets marks, and it stops at an
// `end`; a new keeper puts one into the adoption lanes of those before, and adopts
// when all of them are retired (P2, P5).
type adopter struct {
	s    *Store
	sess *mongo.Session
	lane laneID
	node bson.ObjectID
	next uint64
	// scanned is when it last looked for lanes that are not this log's.
	scanned time.Time

	poke chan struct{}
	quit chan struct{}
	gone chan struct{}
}

// foreign is a document to be adopted.
type foreign struct {
	id bson.ObjectID
	// lane is the mark that was found: what is at another by now is not touched.
	lane bson.RawValue
}

const (
	// adoptEach is how often the keeper looks for foreign inserts.
	adoptEach = time.Second
	// scanEach is how often it looks for those that carry a lane which this log
	// does not have.
	scanEach = 10 * time.Second
)

func newAdopter(s *Store) *adopter {
	return &adopter{s: s, poke: make(chan struct{}, 1), quit: make(chan struct{}), gone: make(chan struct{})}
}

// wake tells that there may be an insert of somebody else's.
func (a *adopter) wake() {
	select {
	case a.poke <- struct{}{}:
	default:
	}
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
		if a.s.keeper.holds() {
			if err := a.turn(); err != nil && a.s.life.Err() == nil {
				a.s.log.Warn("adoption", zap.Error(err))
			}
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

// turn adopts all that is there.
func (a *adopter) turn() error {
	for a.s.keeper.holds() {
		list, err := a.find()
		if err != nil || len(list) == 0 {
			return err
		}
		if err := a.open(); err != nil {
			return err
		}
		if err := a.adopt(list); err != nil {
			return err
		}
	}
	return nil
}

// open sees to a lane: first it ends those of former keepers.
func (a *adopter) open() error {
	if a.lane != 0 && a.node == a.s.self.id() {
		return nil
	}
	a.lane = 0
	ctx, cancel := a.attempt()
	defer cancel()
	lanes, err := a.s.readLanes(ctx, fields("adopts", true, "retired", nil))
	if err != nil {
		return err
	}
	for i := range lanes {
		if err := a.s.endLane(ctx, lanes[i].id()); err != nil {
			return err
		}
	}
	node := a.s.self.id()
	lane, err := a.s.openLane(ctx, true)
	if err != nil {
		return err
	}
	a.lane, a.node, a.next = lane, node, 1
	return nil
}

// find looks for foreign inserts, by majority: those without a lane by their own
// index, now and then those with one that this log does not have.
func (a *adopter) find() ([]foreign, error) {
	ctx, cancel := a.attempt()
	defer cancel()
	list, err := a.read(ctx, fields("lane", nil), "foreign", fields("created", 1))
	if err != nil || len(list) > 0 || since(a.scanned) < scanEach {
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

func (a *adopter) read(ctx context.Context, filter bson.D, hint string, sort bson.D) ([]foreign, error) {
	cur, err := a.s.c.message.Find(ctx, filter, options.Find().SetHint(hint).SetSort(sort).SetLimit(maxBatch).
		SetProjection(fields("lane", 1)))
	if err != nil {
		return nil, fmt.Errorf("mongo: look for foreign inserts: %w", err)
	}
	defer func() { _ = cur.Close(context.WithoutCancel(ctx)) }()
	var list []foreign
	for cur.Next(ctx) {
		id, _ := cur.Current.Lookup("_id").ObjectIDOK()
		raw := append(bson.Raw{}, cur.Current...)
		list = append(list, foreign{id: id, lane: raw.Lookup("lane")})
	}
	return list, cur.Err()
}

// adopt gives places to the list, in order.
func (a *adopter) adopt(list []foreign) error {
	pause := retryRest
	for len(list) > 0 && a.lane != 0 && a.s.life.Err() == nil {
		v := judge(a.update(list), len(list))
		a.next += uint64(v.stored)
		list = list[v.stored:]
		if v.refused {
			list = list[1:] // gone since it was found: the upsert met the validator
			continue
		}
		if !v.doubt {
			continue
		}
		left, err := a.lookUp(list)
		if err != nil {
			a.s.log.Warn("adoption in doubt", zap.Error(v.err), zap.NamedError("look", err))
		}
		if len(left) == len(list) {
			if err := rest(a.s.life, pause); err != nil {
				return err
			}
			pause = backoff(pause)
		}
		list = left
	}
	return nil
}

// update makes one attempt. What does not match is made an error by the upsert,
// and the batch stops there: there are no holes in n.
func (a *adopter) update(list []foreign) error {
	day := (24 * time.Hour).Milliseconds()
	models := make([]mongo.WriteModel, len(list))
	for i, f := range list {
		var was any
		if !f.lane.IsZero() {
			was = f.lane
		}
		models[i] = mongo.NewUpdateOneModel().SetUpsert(true).
			SetFilter(fields("_id", f.id, "lane", was)).
			SetUpdate(mongo.Pipeline{set(
				"lane", int64(a.lane), "n", int64(a.next)+int64(i), "ts", "$$CLUSTER_TIME",
				"qos", ex("$ifNull", "$qos", 1), "retain", ex("$ifNull", "$retain", false),
				"created", ex("$cond", ex("$lte", ex("$abs", ex("$subtract", ex("$ifNull", "$created", time.UnixMilli(0)), "$$NOW")), day), "$created", "$$NOW"),
			), unset("stop")})
	}
	ctx, cancel := a.attempt()
	defer cancel()
	_, err := a.s.c.message.BulkWrite(ctx, models)
	return err
}

// lookUp follows a doubt: what the majority shows in this lane is adopted; what
// still stands where it was found is left.
func (a *adopter) lookUp(list []foreign) ([]foreign, error) {
	ids := make(bson.A, len(list))
	for i := range list {
		ids[i] = list[i].id
	}
	ctx, cancel := a.attempt()
	defer cancel()
	cur, err := a.s.c.message.Find(ctx, fields("$or", bson.A{
		fields("_id", fields("$in", ids)),
		fields("lane", int64(a.lane), "n", fields("$gte", int64(a.next))),
	}), options.Find().SetProjection(fields("lane", 1, "n", 1, "stop", 1)))
	if err != nil {
		return list, err
	}
	defer func() { _ = cur.Close(context.WithoutCancel(ctx)) }()
	at := map[bson.ObjectID]bson.RawValue{}
	standing := map[int64]string{}
	for cur.Next(ctx) {
		id, _ := cur.Current.Lookup("_id").ObjectIDOK()
		p := placeOf(cur.Current)
		if p.has && p.lane == a.lane {
			standing[p.n] = p.stop
		}
		at[id] = append(bson.Raw{}, cur.Current...).Lookup("lane")
	}
	if err := cur.Err(); err != nil {
		return list, err
	}
	for {
		stop, ok := standing[int64(a.next)]
		if !ok {
			break
		}
		a.next++
		if stop == stopEnd {
			a.lane = 0
			return nil, errors.New("mongo: another node is the keeper now")
		}
	}
	var left []foreign
	for _, f := range list {
		if now, there := at[f.id]; there && now.Equal(f.lane) {
			left = append(left, f)
		}
	}
	return left, nil
}
