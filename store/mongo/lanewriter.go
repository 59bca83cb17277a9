package mongo

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.uber.org/zap"

	"rewindmq/store"
)

// maxBatch and maxBatchBytes bound a batch: what waits beyond goes into the next.
const (
	maxBatch      = 500
	maxBatchBytes = 1 << 20
)

var (
	errHold    = errors.New("mongo: append.hold is over")
	errStopped = fmt.Errorf("%w: not written before the end", store.ErrClosed)
)

// laneWriter appends what is waiting to one lane after another. A publisher
// belongs to one writer, and a writer has one batch in flight: so what a publisher
// appends commits in the order of its calls.
//
// All fields but queue, waiting and closing belong to the goroutine of run.
//
// Invariant: no document is sent at an n below next, and what stands below next
// in the lane is settled.
type laneWriter struct {
	s     *Store
	index int
	sess  *mongo.Session

	lane laneID // 0: none is open
	node bson.ObjectID
	next uint64
	// batch is in flight, or carried into the next lane.
	batch []item
	// began is when the batch in doubt was first sent.
	began  time.Time
	giving *bson.ObjectID // giving up: the id of the stopper

	// doubts counts what makes a publisher's place here doubtful; verified holds
	// those that were looked up since.
	doubts   uint64
	seen     uint64
	verified map[*store.Publisher]struct{}

	poke chan struct{}
	gone chan struct{}

	mu      sync.Mutex
	queue   []*pending // not wholly taken
	waiting []*pending // not answered, in the order of their Appends
	closing bool
	doubt   time.Time // since when the writer cannot go on; zero: it can
}

func newLaneWriter(s *Store, i int) *laneWriter {
	return &laneWriter{s: s, index: i, poke: make(chan struct{}, 1), gone: make(chan struct{})}
}

// put queues p; false: nothing is taken any more.
func (w *laneWriter) put(p *pending) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closing {
		return false
	}
	w.queue = append(w.queue, p)
	w.waiting = append(w.waiting, p)
	w.wake()
	return true
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

func (w *laneWriter) setDoubt(on bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !on {
		w.doubt = time.Time{}
	} else if w.doubt.IsZero() {
		w.doubt = time.Now()
	}
}

// begin opens the first lane. It is called before run.
func (w *laneWriter) begin(ctx context.Context) error {
	sess, err := w.s.client.StartSession()
	if err != nil {
		return fmt.Errorf("mongo: session of a lane writer: %w", err)
	}
	w.sess = sess
	return w.open(ctx)
}

func (w *laneWriter) open(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, w.s.o.Attempt)
	defer cancel()
	node := w.s.self.id()
	lane, err := w.s.openLane(mongo.NewSessionContext(ctx, w.sess), false)
	if err != nil {
		return err
	}
	w.lane, w.node, w.next = lane, node, 1
	return nil
}

// run is the writer's goroutine. Store.Run waits for it.
func (w *laneWriter) run() {
	defer close(w.gone)
	for w.s.life.Err() == nil {
		w.expire()
		w.tell()
		if w.idle() {
			if w.closed() {
				w.retire()
				break
			}
			select {
			case <-w.poke:
			case <-w.s.life.Done():
			}
			continue
		}
		w.turn()
	}
	w.sess.EndSession(context.Background())
	w.answerRest()
}

// answerRest answers what is left at an end that could not wait any longer.
func (w *laneWriter) answerRest() {
	w.mu.Lock()
	w.closing = true
	for i := range w.batch {
		if it := &w.batch[i]; !it.told {
			it.answer(it.i, store.Appended{Outcome: store.InDoubt, Err: errStopped})
		}
	}
	for _, p := range w.queue {
		for ; p.taken < len(p.msgs); p.taken++ {
			p.answer(p.taken, store.Appended{Outcome: store.Refused, Err: errStopped})
		}
	}
	w.batch, w.queue = nil, nil
	w.mu.Unlock()
	w.tell()
}

func (w *laneWriter) idle() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.queue) == 0 && len(w.batch) == 0
}

func (w *laneWriter) closed() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.closing
}

// turn writes one batch, if nothing is in its way.
func (w *laneWriter) turn() {
	if w.s.self.paused() {
		w.doubts++
	}
	if w.s.self.silent() > w.s.o.Lease && !w.retry(func(ctx context.Context) error {
		_, err := w.s.fresh.time(ctx)
		return err
	}) {
		return
	}
	if w.lane != 0 && w.node != w.s.self.id() {
		// This node was declared dead: the keeper has ended the lane, or will.
		w.lane = 0
		w.doubts++
	}
	if w.lane == 0 && !w.reopen() {
		return
	}
	w.take()
	if !w.verify() {
		return
	}
	w.settle()
	w.setDoubt(false)
}

// reopen opens a lane in the place of one that was ended. What the writer holds
// is looked up again after the opening was acknowledged: so either a claimer sees
// the lane, or the writer sees the claim (L12).
func (w *laneWriter) reopen() bool {
	w.doubts++
	return w.retry(w.open)
}

// retry does something until it succeeds; false: the store is at its end, or
// append.hold was over and what the writer holds was given up meanwhile. The
// caller begins its turn again.
func (w *laneWriter) retry(do func(context.Context) error) bool {
	pause, began := retryRest, time.Now()
	for {
		ctx, cancel := context.WithTimeout(w.s.life, w.s.o.Attempt)
		err := do(ctx)
		cancel()
		if err == nil {
			return true
		}
		w.setDoubt(true)
		w.s.log.Warn("lane writer cannot go on", zap.Int("writer", w.index), zap.Error(err))
		w.expire()
		w.tell()
		if rest(w.s.life, pause) != nil || w.idle() {
			return false
		}
		pause = backoff(pause)
		if since(began) > w.s.o.Hold {
			w.refuseRest() // it was not sent, or has certainly failed
			return false
		}
	}
}

// take moves what waits into the batch, and settles what will not be written.
func (w *laneWriter) take() {
	w.mu.Lock()
	defer w.mu.Unlock()
	size := 0
	for len(w.queue) > 0 {
		p := w.queue[0]
		for p.taken < len(p.msgs) {
			if len(w.batch) >= maxBatch || size >= maxBatchBytes {
				return
			}
			it := item{pending: p, i: p.taken}
			p.taken++
			if err := w.unwanted(&it); err != nil {
				w.refuse(&it, err, p.pub.Strict)
				continue
			}
			size += 192 + len(it.msg().Payload) + len(it.msg().Topic)
			w.batch = append(w.batch, it)
		}
		w.queue[0] = nil
		w.queue = w.queue[1:]
	}
}

// unwanted tells why a message is not to be written at all.
func (w *laneWriter) unwanted(it *item) error {
	switch {
	case it.pub.Failed():
		return store.ErrPublisherFailed
	case it.ctx.Err() != nil:
		return it.ctx.Err()
	case len(it.msg().Payload) > w.s.o.MaxPayload:
		return fmt.Errorf("mongo: payload of %d bytes, at most %d are stored: %w", len(it.msg().Payload), w.s.o.MaxPayload, store.ErrTooLarge)
	}
	return nil
}

// refuse settles a message that is certainly not stored and never will be.
func (w *laneWriter) refuse(it *item, err error, fail bool) {
	if fail {
		it.pub.Fail()
	}
	if !it.told {
		it.answer(it.i, store.Appended{Outcome: store.Refused, Err: err})
	}
}

// expire refuses what waits behind a writer that cannot go on for longer than
// append.hold, what is not wanted any more, and at the end of the store all.
// None of it was sent.
func (w *laneWriter) expire() {
	w.mu.Lock()
	defer w.mu.Unlock()
	kept := w.queue[:0]
	for _, p := range w.queue {
		var err error
		switch {
		case p.pub.Failed():
			err = store.ErrPublisherFailed
		case p.ctx.Err() != nil:
			err = p.ctx.Err()
		case since(p.queued) > w.s.o.Hold && !w.doubt.IsZero():
			err = errHold
		default:
			kept = append(kept, p)
			continue
		}
		for ; p.taken < len(p.msgs); p.taken++ {
			w.refuse(&item{pending: p, i: p.taken}, err, p.pub.Strict || errors.Is(err, errHold))
		}
	}
	clear(w.queue[len(kept):])
	w.queue = kept
}

// tell answers the Appends that are settled, each publisher's in their order.
func (w *laneWriter) tell() {
	var out []*pending
	var held map[*store.Publisher]bool
	w.mu.Lock()
	kept := w.waiting[:0]
	for _, p := range w.waiting {
		if p.settled == len(p.msgs) && !held[p.pub] && p.taken == len(p.msgs) {
			out = append(out, p)
			continue
		}
		if held == nil {
			held = map[*store.Publisher]bool{}
		}
		held[p.pub] = true
		kept = append(kept, p)
	}
	clear(w.waiting[len(kept):])
	w.waiting = kept
	n := len(kept)
	w.mu.Unlock()
	if w.s.o.Metrics != nil && w.index == 0 {
		w.s.o.Metrics.QueueMessages.Set(float64(n))
	}
	for _, p := range out {
		if w.s.killed.Load() {
			return // it answers nothing any more
		}
		p.stop()
		p.done(p.answers)
	}
}

// verify looks up, once after each doubt, whether the sessions of the publishers
// in the batch are still this node's, and takes out what is not: the client has
// sent it again elsewhere (L8). Nothing of the batch has been sent at this n or
// above, or all of that has certainly failed.
func (w *laneWriter) verify() bool {
	if gen := w.doubts + w.s.self.suspect.Load(); gen != w.seen {
		w.seen, w.verified = gen, map[*store.Publisher]struct{}{}
	}
	if w.seen == 0 {
		return true
	}
	ask := map[*store.Publisher]struct{}{}
	for i := range w.batch {
		p := w.batch[i].pub
		if _, ok := w.verified[p]; !ok && p.SID != 0 {
			ask[p] = struct{}{}
		}
	}
	if len(ask) == 0 {
		return true
	}
	var lost map[*store.Publisher]bool
	if !w.retry(func(ctx context.Context) (err error) {
		lost, err = w.s.claimedElsewhere(ctx, ask)
		return err
	}) {
		return false
	}
	if len(w.verified) > 1<<16 {
		w.verified = map[*store.Publisher]struct{}{}
	}
	for p := range ask {
		w.verified[p] = struct{}{}
	}
	kept := w.batch[:0]
	for i := range w.batch {
		it := w.batch[i]
		if lost[it.pub] {
			w.lock(func() { w.refuse(&it, store.ErrSessionLost, true) })
			continue
		}
		kept = append(kept, it)
	}
	w.batch = kept
	return true
}

func (w *laneWriter) lock(fn func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	fn()
}

// retire ends the lane in order: an `end`, then `retired`.
func (w *laneWriter) retire() {
	if w.lane == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(w.s.life, w.s.o.Attempt)
	defer cancel()
	if err := w.s.endLane(mongo.NewSessionContext(ctx, w.sess), w.lane); err != nil {
		w.s.log.Warn("lane not retired; the keeper will", zap.Uint32("lane", uint32(w.lane.number())), zap.Error(err))
	}
}
