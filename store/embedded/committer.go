package embedded

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"rewindmq/schema"
	"rewindmq/store"
)

const (
	maxBatchBytes = 4 << 20
	maxBatchItems = 4096
	// maxPayload and maxAround bound a message: its payload, and the rest.
	maxPayload = 16 << 20
	maxAround  = 1 << 20
)

// committer is the one writer of the log. It takes what waits, stages it into
// one engine batch, commits that with a sync, and only then answers. Its fields
// belong to the goroutine of Run (and to Open before).
//
// Why this is correct: everything that changes the log goes through stage and
// commit in one goroutine, so n, ts, epochs and the state of sessions have one
// order, the order in which they become durable. State in memory runs ahead of
// the disk by at most the batch that is being staged; nobody outside sees it
// before commit returned, because answers, ring and head follow the sync; and
// when a commit fails, the log stops for good, so no state that ran ahead is
// ever acted on.
type committer struct {
	l     *Log
	batch *pebble.Batch
	key   []byte // scratch
	value []byte // scratch
	items int
	// overlay holds what the batch has staged of the keys that are read while
	// staging (documents, subscriptions, retained messages); a nil value was
	// deleted. The engine does not tell it before the commit.
	overlay map[string][]byte
	// touched are the sessions with subscriptions staged in the batch: an
	// iteration would not see them.
	touched map[uint64]struct{}

	staged  []*schema.Message // in the batch, by n
	index   []indexEntry      // of the staged messages
	calls   []*call           // staged, to be answered after the commit
	answers []store.Appended  // for round.msgs, by index
	round   *queue
	settled int // items of the round that are answered

	n, ts     uint64
	now       time.Time // of the batch
	epoch     epoch
	seen      seen
	state     state
	saved     state // as it is stored
	nextTopic uint32
	fresh     map[string]*topic

	owned   map[string]*session
	waiting map[string]*claimCall
	groups  map[string]*group // by name; nil: there is none
	shared  uint64            // members of all groups

	space space
	clock clock

	heldAppends []heldAppend
	heldCalls   []*call
	swept       time.Time
	lastWrite   time.Time // latest time of what the present epoch holds
}

// item is one thing that waits for the committer: an Append, or a call.
type item struct {
	ctx      context.Context
	p        *store.Publisher
	done     func([]store.Appended)
	first, n int // its messages in queue.msgs
	call     *call
}

// queue is what waits. Two of them take turns.
type queue struct {
	items []item
	msgs  []*schema.Message
}

func (q *queue) reset() {
	clear(q.items)
	clear(q.msgs)
	q.items, q.msgs = q.items[:0], q.msgs[:0]
	// A burst must not hold its memory for good.
	if cap(q.msgs) > 1<<16 {
		*q = queue{}
	}
}

// States of a call.
const (
	callWaiting = iota
	callTaken
	callGivenUp
)

// call is work of a caller that waits for the commit.
type call struct {
	// stage does the work into the batch. An error is the answer, and means that
	// nothing was staged. errLater: somebody answers it later.
	stage func(c *committer) error
	state atomic.Int32
	err   error
	done  chan struct{}
	// always: also done when the space is below half of the reserve.
	always bool
}

// errLater is returned by a stage that has put its call aside.
var errLater = errors.New("embedded: answered later")

// take claims the call for the committer; false: its caller has given up, and it
// never lands.
func (k *call) take() bool { return k.state.CompareAndSwap(callWaiting, callTaken) }

// do hands a call to the committer and waits until it is durable. A call whose
// caller gave up in time never lands; one that the committer has taken is
// waited for.
func (l *Log) do(ctx context.Context, op string, k *call) error {
	if err := l.wait(ctx); err != nil {
		return err
	}
	start := time.Now()
	k.done = make(chan struct{})
	if err := l.enqueue(item{call: k}); err != nil {
		return err
	}
	select {
	case <-k.done:
	case <-ctx.Done():
		if k.state.CompareAndSwap(callWaiting, callGivenUp) {
			return ctx.Err()
		}
		<-k.done
	}
	l.observe(op, start, k.err)
	return k.err
}

func (l *Log) enqueue(i item) error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return store.ErrClosed
	}
	l.queue.items = append(l.queue.items, i)
	l.mu.Unlock()
	l.poke()
	return nil
}

// poke wakes the committer.
func (l *Log) poke() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// loop commits what waits until ctx ends, then what is left.
func (c *committer) loop(ctx context.Context) error {
	l := c.l
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var probe <-chan time.Time
	for {
		if err := c.drain(); err != nil {
			return err
		}
		if probe == nil && (c.space.low() || len(c.heldAppends)+len(c.heldCalls) > 0) {
			probe = time.After(probeInterval)
		}
		select {
		case <-l.wake:
		case <-tick.C:
			if err := c.housekeep(); err != nil {
				return err
			}
		case <-probe:
			probe = nil
			if err := c.retryHeld(); err != nil {
				return err
			}
		case <-l.engine.failed:
			return l.engine.err()
		case <-ctx.Done():
			return c.finish()
		}
	}
}

// finish settles what was given, and refuses what cannot be.
func (c *committer) finish() error {
	l := c.l
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	if err := c.drain(); err != nil {
		return err
	}
	if err := c.saveState(); err != nil {
		return err
	}
	c.refuseAll(store.ErrClosed)
	return nil
}

// drain takes what waits, round by round, until nothing does.
func (c *committer) drain() error {
	l := c.l
	for {
		l.mu.Lock()
		if len(l.queue.items) == 0 {
			l.mu.Unlock()
			c.measureQueue(0)
			return nil
		}
		l.queue, l.spare = l.spare, l.queue
		l.mu.Unlock()
		if err := c.work(l.spare); err != nil {
			return err
		}
		c.round = nil
		l.spare.reset()
	}
}

// work stages and commits one round.
func (c *committer) work(q *queue) error {
	c.measureQueue(len(q.msgs))
	c.round, c.settled = q, 0
	if cap(c.answers) < len(q.msgs) || cap(c.answers) > 1<<16 {
		c.answers = make([]store.Appended, len(q.msgs), max(len(q.msgs), 256))
	}
	c.answers = c.answers[:len(q.msgs)]
	clear(c.answers)
	c.begin()
	for i := range q.items {
		it := &q.items[i]
		var err error
		if it.call != nil {
			err = c.stageCall(it.call)
		} else {
			err = c.stageAppend(it)
		}
		if err != nil {
			return err
		}
		c.settled = i + 1
		if c.full() {
			if err := c.commit(); err != nil {
				return err
			}
		}
	}
	return c.commit()
}

func (c *committer) full() bool {
	return c.items >= maxBatchItems || c.batch.Len() >= maxBatchBytes
}

// begin starts a batch: one reading of the clock serves all of it.
func (c *committer) begin() {
	c.now = c.clock.observe(c.l.o.Now())
}

// set stages a key. key and value may be scratch.
func (c *committer) set(key, value []byte) {
	// Invariant: a batch refuses a key only when it was committed or closed.
	if err := c.batch.Set(key, value, nil); err != nil {
		panic("embedded: " + err.Error())
	}
	c.items++
}

func (c *committer) delete(key []byte) {
	if err := c.batch.Delete(key, nil); err != nil {
		panic("embedded: " + err.Error())
	}
	c.items++
}

// setRead and deleteRead are for keys that get reads while staging.
func (c *committer) setRead(key, value []byte) {
	c.set(key, value)
	c.overlay[string(key)] = append([]byte{}, value...)
}

func (c *committer) deleteRead(key []byte) {
	c.delete(key)
	c.overlay[string(key)] = nil
}

// get reads a key as the batch will leave it; nil: not there.
func (c *committer) get(key []byte) ([]byte, error) {
	if v, ok := c.overlay[string(key)]; ok {
		return v, nil
	}
	return c.l.get(key)
}

// stageCall does one call's work.
func (c *committer) stageCall(k *call) error {
	if c.space.critical() && !k.always {
		c.heldCalls = append(c.heldCalls, k)
		return nil
	}
	if !k.take() {
		return nil
	}
	return c.runCall(k)
}

func (c *committer) runCall(k *call) error {
	k.err = k.stage(c)
	if errors.Is(k.err, errLater) {
		k.err = nil
		return c.l.engine.err()
	}
	c.calls = append(c.calls, k)
	return c.l.engine.err()
}

// commit makes the batch durable and answers what it holds.
func (c *committer) commit() error {
	l := c.l
	c.stageIndex()
	c.stageState()
	if !c.batch.Empty() {
		start := time.Now()
		if err := l.apply(c.batch); err != nil {
			return err
		}
		l.commits.Add(1)
		c.space.wrote(c.batch.Len())
		c.batch.Reset()
		c.measure(start)
	}
	c.items = 0
	clear(c.overlay)
	clear(c.touched)
	if len(c.fresh) > 1<<16 {
		clear(c.fresh)
	}
	if len(c.groups) > maxGroups {
		clear(c.groups)
	}
	if len(c.staged) > 0 {
		// Invariant: the head moves behind the sync and before the answers, so
		// that an append that returned is not after it (promise 5).
		l.ring.publish(c.staged)
		clear(c.staged)
		c.staged = c.staged[:0]
	}
	c.answer()
	if err := c.probeSpace(); err != nil {
		return err
	}
	c.begin()
	return nil
}

func (c *committer) measureQueue(waiting int) {
	if m := c.l.o.Metrics; m != nil {
		m.QueueMessages.Set(float64(waiting + len(c.heldAppends)))
	}
}

// measure feeds the metrics of a commit.
func (c *committer) measure(start time.Time) {
	m := c.l.o.Metrics
	if m == nil {
		return
	}
	m.Up.Set(1)
	if len(c.staged) > 0 {
		m.BatchMessages.Observe(float64(len(c.staged)))
		m.AppendSeconds.Observe(time.Since(start).Seconds())
		m.HeadSequence.Set(float64(c.n))
	}
}

// answer tells the callers of what is durable now.
func (c *committer) answer() {
	for i, k := range c.calls {
		close(k.done)
		c.calls[i] = nil
	}
	c.calls = c.calls[:0]
	c.answerAppends()
}

// abort answers everybody when the log cannot go on: what was in the batch is in
// doubt, what was not is refused.
func (c *committer) abort(err error) {
	for _, k := range c.calls {
		k.err = err
		close(k.done)
	}
	c.calls = nil
	if c.round != nil {
		c.abortRound(c.round, err)
	}
	c.refuseAll(err)
	l := c.l
	l.mu.Lock()
	l.closed = true
	left := l.queue
	l.queue = &queue{}
	l.mu.Unlock()
	c.settled = 0
	c.answers = make([]store.Appended, len(left.msgs))
	c.abortRound(left, err)
}

// abortRound answers what is left of a round. A message that was staged has no
// answer but Stored, which nobody has seen: it is in doubt now.
func (c *committer) abortRound(q *queue, err error) {
	for i := range q.items {
		it := &q.items[i]
		switch {
		case it.call != nil:
			if it.call.take() {
				it.call.err = err
				close(it.call.done)
			}
		case it.done != nil:
			answers := c.answers[it.first : it.first+it.n]
			for k := range answers {
				if answers[k].Outcome != store.Refused {
					answers[k] = store.Appended{Outcome: store.InDoubt, Err: err}
				}
			}
			it.done(answers)
			it.done = nil
		}
	}
}
