package storetest

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	"rewindmq/schema"
	"rewindmq/store"
)

// Options of a Memory.
type Options struct {
	// Lanes that a node opens at its start; default 2.
	Lanes int
	// Now is the store's clock; default time.Now.
	Now func() time.Time
	// Seed draws the order of reads between lanes; 0: commit order.
	Seed uint64
	// MaxPayload in bytes: a larger one is refused with store.ErrTooLarge; 0: none.
	MaxPayload int
	// Wait bounds the wait of a claim for the former owner to release, on this
	// node or another, in real time; 0: it does not wait. DESIGN.md: 1 s.
	Wait time.Duration
}

// Memory is a store in memory: store.Store over a Model, with one mutex, and with
// faults that a test switches on. Everything that it has answered survives
// Reopen. Safe for concurrent use.
type Memory struct {
	*world
	opt  Options
	node Node

	// Guarded by world.mu.
	state    state
	slots    []*slot
	watchers []*watching
	refuse   error                // of appends
	stalled  map[schema.Lane]bool // lane 0: all
	doubt    bool
	fail     error // of all but appends
	hold     bool  // writes and records wait
}

var _ store.Store = (*Memory)(nil)

// world is what the nodes of one Model share.
type world struct {
	mu      sync.Mutex
	changed sync.Cond // anything in the model or in a Memory
	m       *Model
	rng     *rand.Rand // nil: commit order
	nodes   map[Node]*Memory
}

type state uint8

const (
	stateNew state = iota
	stateRunning
	stateClosed
	stateKilled // it answers nothing any more
)

// NewMemory gives an empty store, with one node that has its lanes open.
func NewMemory(o Options) *Memory {
	if o.Lanes == 0 {
		o.Lanes = 2
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	w := &world{m: NewModel(o.Now()), nodes: map[Node]*Memory{}}
	w.changed.L = &w.mu
	if o.Seed != 0 {
		w.rng = rand.New(rand.NewPCG(o.Seed, o.Seed))
	}
	return w.start(o)
}

func (w *world) start(o Options) *Memory {
	s := &Memory{world: w, opt: o, stalled: map[schema.Lane]bool{}}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.m.SetNow(o.Now())
	s.node = w.m.StartNode()
	w.nodes[s.node] = s
	for range o.Lanes {
		s.slots = append(s.slots, &slot{s: s, lane: w.m.OpenLane(s.node)})
	}
	w.changed.Broadcast()
	return s
}

// Join gives a Memory of another node over the same Model: its lanes, its
// sessions; what one claims the other sees in its Watch. Its faults are its own.
func (s *Memory) Join() *Memory { return s.start(s.opt) }

// Reopen gives a new Memory over the same Model, as after a SIGKILL of this one:
// this one answers nothing any more, what it had not stored is gone, its waiting
// calls fail with store.ErrClosed. The sessions of the last run are finished, as
// an embedded log does at its start. Faults are not inherited.
func (s *Memory) Reopen() *Memory {
	s.Kill()
	n := s.start(s.opt)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.finishOrphans()
	return n
}

// Kill is a SIGKILL of this node: it answers nothing any more, its lease is over.
// Its lanes stay until somebody retires them.
func (s *Memory) Kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state = stateKilled
	s.m.Kill(s.node)
	s.changed.Broadcast()
}

// finishOrphans does what a keeper does for dead nodes: it retires the lanes of
// those that were killed, and finishes sessions from their records; delays of
// wills and expiry begin now.
func (s *Memory) finishOrphans() {
	for n, o := range s.nodes {
		if o.state == stateKilled {
			for _, k := range s.m.LanesOf(n) {
				s.m.RetireLane(k)
			}
		}
	}
	for _, id := range s.m.Orphans() {
		c := NewFinish(s.node, id, s.m.Head(), s.m.NewID())
		got := s.drive(c)
		if got.Err != nil {
			continue
		}
		_ = s.m.Write(store.SaveCursor{Owner: got.Owner, Cursor: got.Cursor})
		_ = s.m.Write(store.Release{Owner: got.Owner})
	}
	s.changed.Broadcast()
}

// drive goes straight through a claim, without waiting. mu is held.
func (s *Memory) drive(c *Claim) store.Claimed {
	c.Hurry()
	w := &walk{Claim: c}
	for !s.advance(w) { // no wait: it is in a hurry
	}
	return c.Claimed()
}

// Run serves until ctx ends or the node is killed.
func (s *Memory) Run(ctx context.Context) error {
	s.mu.Lock()
	if s.state != stateNew {
		s.mu.Unlock()
		return store.ErrClosed
	}
	s.state = stateRunning
	s.changed.Broadcast()
	s.mu.Unlock()
	var writers sync.WaitGroup
	for _, sl := range s.slots {
		writers.Go(sl.run)
	}
	wake := s.wakeAt(ctx)
	s.mu.Lock()
	for s.state == stateRunning && ctx.Err() == nil {
		s.changed.Wait()
	}
	if s.state == stateRunning {
		s.state = stateClosed
		s.changed.Broadcast()
	}
	s.mu.Unlock()
	wake()
	writers.Wait()
	return nil
}

// Ready tells whether appends are taken.
func (s *Memory) Ready(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.state != stateRunning:
		return store.ErrClosed
	case s.refuse != nil:
		return s.refuse
	}
	return nil
}

// wakeAt wakes all that wait when ctx ends; the result ends that.
func (s *Memory) wakeAt(ctx context.Context) (stop func()) {
	end := context.AfterFunc(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.changed.Broadcast()
	})
	return func() { end() }
}

// enter locks mu once the store runs. On error mu is not held.
func (s *Memory) enter(ctx context.Context) error {
	return s.enterWhen(ctx, func() bool { return true })
}

// enterWhen locks mu once the store runs and ready holds.
func (s *Memory) enterWhen(ctx context.Context, ready func() bool) error {
	s.mu.Lock()
	if s.state == stateRunning && ctx.Err() == nil && ready() {
		s.beat()
		return nil
	}
	s.mu.Unlock()
	defer s.wakeAt(ctx)()
	s.mu.Lock()
	for {
		err := ctx.Err()
		if s.state > stateRunning {
			err = store.ErrClosed
		}
		if err != nil {
			s.mu.Unlock()
			return err
		}
		if s.state == stateRunning && ready() {
			s.beat()
			return nil
		}
		s.changed.Wait()
	}
}

// beat brings the model's clock up to now. A node that runs renews its lease.
func (s *Memory) beat() {
	s.m.SetNow(s.opt.Now())
	for n, o := range s.nodes {
		if o.state == stateRunning {
			s.m.Beat(n)
		}
	}
}

// Head gives the cursor of all that is committed.
func (s *Memory) Head(ctx context.Context) (schema.Cursor, error) {
	if err := s.enter(ctx); err != nil {
		return schema.Cursor{}, err
	}
	defer s.mu.Unlock()
	return s.m.Head(), s.fail
}

var errRead = errors.New("storetest: read is closed")

// Read opens a read, see store.Reader.
func (s *Memory) Read(ctx context.Context, after, upTo schema.Cursor, filters []string) (store.Messages, error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	if s.fail != nil {
		return nil, s.fail
	}
	return &reading{s: s, r: s.m.Read(after, upTo, append([]string(nil), filters...), s.rng)}, nil
}

// Lookup gets messages, see store.Reader.
func (s *Memory) Lookup(ctx context.Context, refs []store.Ref) ([]*schema.Message, error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	out := make([]*schema.Message, len(refs))
	for i, r := range refs {
		out[i] = s.m.Message(r.ID)
	}
	return out, s.fail
}

// Tail opens a tail, see store.Tailer.
func (s *Memory) Tail(ctx context.Context, after schema.Cursor) (store.Tail, error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	return &tail{s: s, t: s.m.Tail(after)}, s.fail
}

// tailBatch bounds what one Next of a tail returns.
const tailBatch = 256

type tail struct {
	s   *Memory
	t   *Tailing
	buf []store.Event
}

func (t *tail) Next(ctx context.Context) ([]store.Event, error) {
	t.buf = t.buf[:0]
	err := t.s.enterWhen(ctx, func() bool {
		for len(t.buf) < tailBatch {
			e, ok := t.t.Next()
			if !ok {
				break
			}
			t.buf = append(t.buf, e)
		}
		return len(t.buf) > 0
	})
	if err != nil {
		return nil, err
	}
	defer t.s.mu.Unlock()
	return t.buf, nil
}

func (t *tail) Close() error { return nil }

type reading struct {
	s      *Memory
	r      *Reading
	closed bool
}

func (r *reading) Next(ctx context.Context) (*schema.Message, error) {
	if r.closed {
		return nil, errRead
	}
	if err := r.s.enter(ctx); err != nil {
		return nil, err
	}
	defer r.s.mu.Unlock()
	if msg := r.r.Next(); msg != nil {
		return msg, nil
	}
	return nil, io.EOF
}

func (r *reading) Trimmed() uint64 { return r.r.Trimmed() }

func (r *reading) Close() error {
	r.closed = true
	return nil
}
