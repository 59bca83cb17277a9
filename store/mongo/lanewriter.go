package mongo

import (
	"context"
	"fmt"
	"sync"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.uber.org/zap"

	"rewindmq/schema"
	"rewindmq/store"
	"rewindmq/store/mongo/lane"
)

// maxBatch and maxBatchBytes bound a batch: what waits beyond goes into the next.
const (
	maxBatch      = 500
	maxBatchBytes = 1 << 20
)

// laneWriter carries out what a lane.Writer decides, in a driver session of its
// own with one write in flight.
//
// m, sess, took, why, shown, told, wrote and wroteIn belong to the goroutine of run; the fields
// below mu are guarded by it.
type laneWriter struct {
	s       *Store
	index   int
	in      *inserter
	sess    *mongo.Session // of everything else
	m       *lane.Writer
	took    []*lane.Pending // the inbox before last, for its space
	why     error           // of the last doubt
	wrote   int             // documents of the last batch, until the next one
	wroteIn time.Duration
	shown   time.Time // the doubt that others see
	told    laneTop   // the last n that they see

	poke chan struct{}
	gone chan struct{}

	mu      sync.Mutex
	inbox   []*lane.Pending // not offered yet
	size    int             // messages of inbox
	want    int             // how many wake the writer
	closing bool
	doubt   time.Time // since when the writer cannot go on; zero: it can
	last    laneTop
}

func newLaneWriter(s *Store, i int) *laneWriter {
	return &laneWriter{s: s, index: i, poke: make(chan struct{}, 1), gone: make(chan struct{}), m: lane.NewWriter(lane.Options{
		Hold: s.o.Hold, Batch: maxBatch, BatchBytes: maxBatchBytes, MaxPayload: s.o.MaxPayload, MaxSize: s.o.MaxPayload + sizeSlack,
		NewID: func() schema.ID { return schema.ID(bson.NewObjectID()) }, Fresh: max(s.o.RetainMessages, 0) / 4,
	})}
}

// put queues p; false: nothing is taken any more.
func (w *laneWriter) put(p *lane.Pending) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closing {
		return false
	}
	w.inbox = append(w.inbox, p)
	if w.size += len(p.Msgs); w.size >= w.want {
		w.wake()
	}
	return true
}

// Publishers with a full window send when they are answered: the first of them would
// get a batch of its own, and the others would wait for that. So behind a large batch
// the writer waits until half as much has come, at most a quarter of the time that
// the batch took, and never for longer than maxGather. With little load there is no
// large batch, and no wait.
const (
	largeBatch = 64
	maxGather  = 3 * time.Millisecond
)

// gather waits for what the last batch's publishers send now.
func (w *laneWriter) gather() {
	n, limit := w.wrote, min(w.wroteIn/4, maxGather)
	w.wrote = 0
	// Waiting counts Appends, each of one message or more: so many are enough.
	if n < largeBatch || w.m.Len() > 0 || w.m.Waiting() >= n/2 {
		return
	}
	w.mu.Lock()
	w.want = n / 2
	enough := w.size >= w.want || w.closing
	select {
	case <-w.poke: // of what is in the inbox, which size counts
	default:
	}
	w.mu.Unlock()
	if !enough {
		timer := time.NewTimer(limit)
		select {
		case <-w.poke:
		case <-timer.C:
		case <-w.s.life.Done():
		}
		timer.Stop()
	}
	w.mu.Lock()
	w.want = 0
	w.mu.Unlock()
}

func (w *laneWriter) wake() {
	select {
	case w.poke <- struct{}{}:
	default:
	}
}

func (w *laneWriter) close() {
	w.mu.Lock()
	w.closing = true
	w.mu.Unlock()
	w.wake()
}

// stuck tells why appends do not go on, if so.
func (w *laneWriter) stuck() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.doubt.IsZero() && since(w.doubt) > 2*time.Second {
		return fmt.Errorf("mongo: lane writer %d has been in doubt for %v", w.index, since(w.doubt).Round(time.Second))
	}
	return nil
}

// begin opens the first lane. It is called before run.
func (w *laneWriter) begin(ctx context.Context) error {
	sess, err := w.s.client.StartSession()
	if err != nil {
		return fmt.Errorf("mongo: session of a lane writer: %w", err)
	}
	w.sess = sess
	if w.in, err = newInserter(w.s.client, w.s.c.message); err != nil {
		return err
	}
	w.in.bypass = w.s.bypass
	return w.open(ctx)
}

func (w *laneWriter) open(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, w.s.o.Attempt)
	defer cancel()
	node, began := w.s.self.id(), time.Now()
	id, err := w.s.openLaneAs(mongo.NewSessionContext(ctx, w.sess), node, false)
	if err == nil {
		w.m.Opened(lane.ID(id), schema.ID(node), began)
	}
	return err
}

// run is the writer's goroutine. Store.Run waits for it.
func (w *laneWriter) run() {
	defer close(w.gone)
	for done := false; !done && w.s.life.Err() == nil; {
		w.gather()
		closing := w.offer(false)
		a := w.m.Next(lane.Env{
			Now: time.Now(), Node: schema.ID(w.s.self.id()), Paused: w.s.self.paused(),
			Silent: w.s.self.silent() > w.s.o.Lease, Suspect: w.s.self.suspect.Load(), Closing: closing,
		})
		w.show()
		w.tell()
		done = w.carryOut(a)
		w.tell()
	}
	w.sess.EndSession(context.Background())
	w.in.end(w.s.o.Attempt)
	w.offer(true)
	w.m.Abandon()
	w.tell()
}

// offer gives what has come to the machine, and tells whether nothing more will.
func (w *laneWriter) offer(end bool) bool {
	w.mu.Lock()
	w.closing = w.closing || end
	closing := w.closing
	list := w.inbox
	w.inbox, w.size = w.took[:0], 0
	w.mu.Unlock()
	for _, p := range list {
		w.m.Offer(p)
	}
	clear(list)
	w.took = list
	return closing
}

// show tells others of a doubt, and of the lane's last n.
func (w *laneWriter) show() {
	if id, n := w.m.Last(); laneID(id) != w.told.id || n != w.told.n {
		w.told = laneTop{laneID(id), n}
		w.mu.Lock()
		w.last = w.told
		w.mu.Unlock()
	}
	if d := w.m.Doubt(); d != w.shown {
		w.shown = d
		w.mu.Lock()
		w.doubt = d
		w.mu.Unlock()
	}
}

// tell answers the Appends that are settled.
func (w *laneWriter) tell() {
	out := w.m.Answered()
	if w.s.o.Metrics != nil && w.index == 0 {
		w.s.o.Metrics.QueueMessages.Set(float64(w.m.Waiting()))
	}
	for _, p := range out {
		if w.s.killed.Load() {
			return // it answers nothing any more
		}
		if p.Stop != nil {
			p.Stop()
		}
		p.Done(p.Answers)
	}
}

// carryOut does what the machine wants, and tells it what came of it; true: the
// writer has reached its end.
func (w *laneWriter) carryOut(a lane.Action) bool {
	switch a.Do {
	case lane.Wait:
		select {
		case <-w.poke:
		case <-w.s.life.Done():
		}
	case lane.Rest:
		_ = rest(w.s.life, a.Rest)
	case lane.Refresh:
		if w.try(func(ctx context.Context) error {
			_, err := w.s.fresh.time(ctx)
			return err
		}) {
			w.m.Refreshed()
		}
	case lane.Open:
		w.try(w.open)
	case lane.Verify:
		var lost map[*store.Publisher]bool
		if w.try(func(ctx context.Context) (err error) {
			lost, err = w.s.claimedElsewhere(ctx, w.m.Node(), w.m.Asked())
			return err
		}) {
			w.m.Verified(lost)
		}
	case lane.Insert:
		w.write(a)
	case lane.Put:
		v := w.judged(w.insert(1, func(b []byte, _ int) []byte {
			return w.s.appendStopper(b, bson.ObjectID(a.ID), laneID(a.Lane), a.N, a.Kind)
		}), 1)
		w.m.Stopped(v)
	case lane.Look:
		w.look(a)
	case lane.Retire:
		w.retire(laneID(a.Lane))
	case lane.Done:
		return true
	}
	return false
}

// try makes one attempt at something that is tried until it succeeds.
func (w *laneWriter) try(do func(context.Context) error) bool {
	ctx, cancel := context.WithTimeout(w.s.life, w.s.o.Attempt)
	defer cancel()
	err := do(ctx)
	if err == nil {
		return true
	}
	w.m.Failed()
	w.s.log.Warn("lane writer cannot go on", zap.Int("writer", w.index), zap.Error(err))
	return false
}

// retire ends the lane in order: an `end`, then `retired`.
func (w *laneWriter) retire(id laneID) {
	ctx, cancel := context.WithTimeout(w.s.life, w.s.o.Attempt)
	defer cancel()
	if err := w.s.endLane(mongo.NewSessionContext(ctx, w.sess), id); err != nil {
		w.s.log.Warn("lane not retired; the keeper will", zap.Uint32("lane", uint32(id.number())), zap.Error(err))
	}
}
