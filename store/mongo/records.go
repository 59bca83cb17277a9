package mongo

import (
	"context"
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

// recordLane inserts delivery records, what is waiting in one ordered batch, one
// batch in flight. A session belongs to one lane of its node.
type recordLane struct {
	s    *Store
	poke chan struct{}
	gone chan struct{}
	// holes are the numbers of records that were refused and may have to be filled.
	// For the lane's goroutine.
	holes map[schema.Owner][]uint64
	in    *inserter

	mu      sync.Mutex
	queue   []*recordCall
	closing bool
}

// recordCall is a part of a Record call.
type recordCall struct {
	batch []*schema.Delivery
	errs  []error
	done  chan struct{}
}

func newRecordLane(s *Store) *recordLane {
	return &recordLane{s: s, poke: make(chan struct{}, 1), gone: make(chan struct{}), holes: map[schema.Owner][]uint64{}}
}

// Record stores a batch, see store.Deliveries.
func (s *Store) Record(ctx context.Context, batch []schema.Delivery) []error {
	errs := make([]error, len(batch))
	fill := func(err error) []error {
		for i := range errs {
			errs[i] = err
		}
		return errs
	}
	if err := s.enter(ctx); err != nil {
		return fill(err)
	}
	began := time.Now()
	parts := make([]recordCall, len(s.records))
	where := make([][]int, len(s.records))
	for i := range batch {
		k := hash(batch[i].ClientID) % uint32(len(s.records))
		parts[k].batch = append(parts[k].batch, &batch[i])
		where[k] = append(where[k], i)
	}
	for k := range parts {
		if len(parts[k].batch) > 0 {
			parts[k].errs = make([]error, len(parts[k].batch))
			s.records[k].put(&parts[k])
		}
	}
	for k := range parts {
		if len(parts[k].batch) == 0 {
			continue
		}
		select {
		case <-parts[k].done:
		case <-ctx.Done():
			return fill(ctx.Err()) // the lane goes on with it; the outcome is not known
		}
		for i, err := range parts[k].errs {
			errs[where[k][i]] = err
		}
	}
	if s.o.Metrics != nil {
		s.o.Metrics.Operation("record", time.Since(began))
	}
	return errs
}

func (r *recordLane) put(c *recordCall) {
	c.done = make(chan struct{})
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closing {
		c.fail(store.ErrClosed)
		return
	}
	// The lane outlives the call, whose slice is the caller's again after it.
	for i, d := range c.batch {
		k := *d
		c.batch[i] = &k
	}
	r.queue = append(r.queue, c)
	select {
	case r.poke <- struct{}{}:
	default:
	}
}

func (c *recordCall) fail(err error) {
	for i := range c.errs {
		c.errs[i] = err
	}
	close(c.done)
}

func (r *recordLane) close() {
	r.mu.Lock()
	r.closing = true
	r.mu.Unlock()
	select {
	case r.poke <- struct{}{}:
	default:
	}
}

// maxRecords is up to how many records go into one batch. They are small.
const maxRecords = 1000

// take gives the calls that go into the next batch; false: the end.
func (r *recordLane) take() ([]*recordCall, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n, size := 0, 0
	for n < len(r.queue) && (n == 0 || size+len(r.queue[n].batch) <= maxRecords) {
		size += len(r.queue[n].batch)
		n++
	}
	calls := r.queue[:n:n]
	r.queue = r.queue[n:]
	return calls, n > 0 || !r.closing
}

// run is the lane's goroutine. Store.Run waits for it.
func (r *recordLane) run() {
	defer close(r.gone)
	defer r.end()
	sess, err := r.s.client.StartSession()
	if err != nil {
		r.s.log.Error("record lane", zap.Error(err))
		return
	}
	defer sess.EndSession(context.Background())
	if r.in, err = newInserter(r.s.client, r.s.c.published); err != nil {
		r.s.log.Error("record lane", zap.Error(err))
		return
	}
	defer r.in.end(r.s.o.Attempt)
	for r.s.life.Err() == nil {
		calls, more := r.take()
		switch {
		case len(calls) > 0:
			r.store(sess, calls)
		case !more:
			return
		default:
			select {
			case <-r.poke:
			case <-r.s.life.Done():
			}
		}
	}
}

func (r *recordLane) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closing = true
	for _, c := range r.queue {
		c.fail(store.ErrClosed)
	}
	r.queue = nil
}

// claimRest is the pause before a claim is looked at that met another, which may not
// be committed yet.
const claimRest = time.Millisecond

// recordItem is one record of a batch.
type recordItem struct {
	*schema.Delivery
	err *error
}

// store inserts until each record is there, or is known to collide with another's.
func (r *recordLane) store(sess *mongo.Session, calls []*recordCall) {
	var items []recordItem
	for _, c := range calls {
		for i, d := range c.batch {
			if !r.s.owned.has(d.Owner) {
				c.errs[i] = store.ErrSessionLost
				continue
			}
			items = append(r.fill(items, d.Owner, d.Seq), recordItem{d, &c.errs[i]})
		}
	}
	pause := retryRest
	for len(items) > 0 && r.s.life.Err() == nil {
		var err error
		if items, err = r.judgeClaims(sess, items); err != nil {
			r.s.log.Warn("claims of a group's messages", zap.Int("records", len(items)), zap.Error(err))
			if rest(r.s.life, pause) != nil {
				break
			}
			pause = backoff(pause)
			continue
		}
		if len(items) == 0 {
			break
		}
		v := judge(r.insert(items), len(items))
		items = items[v.stored:]
		if v.refused {
			*items[0].err = fmt.Errorf("mongo: record %v: %w", items[0].ID, v.err)
			items = loseRest(items, items[0].Owner)
			continue
		}
		if !v.doubt {
			break
		}
		left, err := r.lookUp(sess, items)
		if err != nil {
			r.s.log.Warn("records in doubt", zap.Int("records", len(items)), zap.Error(v.err), zap.NamedError("look", err))
		}
		if len(left) == len(items) {
			if items[0].Group != "" && mongo.IsDuplicateKeyError(v.err) {
				pause = claimRest
			}
			if rest(r.s.life, pause) != nil {
				break
			}
			pause = backoff(pause)
		} else {
			pause = retryRest
		}
		items = left
	}
	for _, it := range items {
		*it.err = store.ErrClosed
	}
	for _, c := range calls {
		close(c.done)
	}
}

func (r *recordLane) insert(items []recordItem) error {
	ctx, cancel := context.WithTimeout(r.s.life, r.s.o.Attempt)
	defer cancel()
	return r.in.insert(ctx, len(items), func(b []byte, i int) []byte { return appendRecord(b, items[i].Delivery) })
}

// loseRest answers what a session has behind a record that failed, from the first
// item on, and gives the others.
func loseRest(items []recordItem, o schema.Owner) []recordItem {
	kept := items[:0]
	for _, it := range items {
		if it.Owner == o {
			if *it.err == nil {
				*it.err = store.ErrSessionLost
			}
			continue
		}
		kept = append(kept, it)
	}
	return kept
}

// lookUp follows a doubt, or a duplicate: what is there by its _id is stored; a
// record whose seq is taken by another's has lost its session.
func (r *recordLane) lookUp(sess *mongo.Session, items []recordItem) ([]recordItem, error) {
	ids := make(bson.A, len(items))
	for i, it := range items {
		ids[i] = bson.ObjectID(it.ID)
	}
	first := items[0]
	ctx, cancel := context.WithTimeout(r.s.life, r.s.o.Attempt)
	defer cancel()
	cur, err := r.s.c.published.Find(mongo.NewSessionContext(ctx, sess), fields("$or", bson.A{
		fields("_id", fields("$in", ids)),
		fields("clientId", first.ClientID, "sid", int64(first.SID), "seq", int64(first.Seq)),
	}), options.Find().SetProjection(fields("clientId", 1, "sid", 1, "seq", 1)))
	if err != nil {
		return items, err
	}
	defer func() { _ = cur.Close(context.WithoutCancel(ctx)) }()
	there, lost := map[bson.ObjectID]bool{}, false
	for cur.Next(ctx) {
		id, _ := cur.Current.Lookup("_id").ObjectIDOK()
		there[id] = true
		client, _ := cur.Current.Lookup("clientId").StringValueOK()
		sid, _ := cur.Current.Lookup("sid").AsInt64OK()
		seq, _ := cur.Current.Lookup("seq").AsInt64OK()
		if client == first.ClientID && uint64(sid) == first.SID && uint64(seq) == first.Seq && schema.ID(id) != first.ID {
			lost = true
		}
	}
	if err := cur.Err(); err != nil {
		return items, err
	}
	kept := items[:0]
	for _, it := range items {
		if !there[bson.ObjectID(it.ID)] {
			kept = append(kept, it)
		}
	}
	if lost {
		return loseRest(kept, first.Owner), nil
	}
	return kept, nil
}
