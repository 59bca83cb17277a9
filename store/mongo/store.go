package mongo

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.uber.org/zap"

	"rewindmq/schema"
	"rewindmq/store"
)

var _ store.Store = (*Store)(nil)

// Store is store.Store on a MongoDB replica set. Safe for concurrent use.
type Store struct {
	o   Options
	log *zap.Logger
	ids *schema.IDSource

	client *mongo.Client
	// tails has no time-outs: an expired context ends a change stream for good.
	tails *mongo.Client
	db    *mongo.Database
	c     collections
	// bypass: appends pass by the validator of `message`. Set by connect.
	bypass bool

	serving chan struct{} // closed when calls are taken
	ended   chan struct{} // closed when they are not taken any more

	mu      sync.Mutex
	running bool
	closing bool

	// life ends when nothing may be written any more.
	life   context.Context
	killed atomic.Bool
	fatal  atomic.Pointer[error] // why the store cannot go on
	die    context.CancelFunc
	work   sync.WaitGroup // of everything that Run started

	clock  serverClock
	self   self
	fresh  fresher
	lanes  laneBook
	pokes  atomic.Uint64
	passed passed
	topics topicBook
	latest passed // of this node's heartbeats
	// progress is the tail's; tailing counts those that are open.
	progress progress
	tailing  atomic.Int32
	owned    ownedBook
	writers  []*laneWriter
	session  []*sessionWriter
	records  []*recordLane
	stops    stopping
	watch    watchers
	keeper   keeper
	adopter  *adopter
	sweeper  sweeper
}

// sessionWriters and recordLanes are how many there are of each.
const (
	sessionWriters = 4
	recordLanes    = 4
)

// form is how this node stores payloads.
func (s *Store) form() form { return form{binary: s.o.BinaryPayloads} }

// New checks the options and starts nothing.
func New(o Options) (*Store, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	s := &Store{
		o: o, log: o.Log, ids: schema.NewIDSource(),
		serving: make(chan struct{}), ended: make(chan struct{}),
	}
	s.life, s.die = context.WithCancel(context.Background())
	s.fresh.s, s.stops.s, s.keeper.s = s, s, s
	s.adopter = newAdopter(s)
	s.sweeper = sweeper{s: s, upTo: map[schema.Owner]uint64{}}
	s.lanes.init()
	s.owned.init()
	s.self.init()
	for i := range o.Lanes {
		s.writers = append(s.writers, newLaneWriter(s, i))
	}
	for range sessionWriters {
		s.session = append(s.session, newSessionWriter(s))
	}
	for range recordLanes {
		s.records = append(s.records, newRecordLane(s))
	}
	return s, nil
}

// Open is New and the part of Run that can be refused: it connects, checks the
// replica set, and makes collections and indexes. An error is for people.
func Open(ctx context.Context, o Options) (*Store, error) {
	s, err := New(o)
	if err != nil {
		return nil, err
	}
	if err := s.connect(ctx); err != nil {
		s.disconnect()
		return nil, err
	}
	return s, nil
}

// Run serves until ctx ends, then settles what was given to it, ends its lanes,
// lets go and returns.
func (s *Store) Run(ctx context.Context) error {
	s.mu.Lock()
	if s.running {
		s.mu.Unlock()
		return store.ErrClosed
	}
	s.running = true
	s.mu.Unlock()
	defer s.disconnect()
	defer s.work.Wait()
	defer s.die()
	defer s.endCalls()
	if s.client == nil {
		if err := s.connect(ctx); err != nil {
			return err
		}
	}
	if err := s.begin(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	select {
	case <-ctx.Done():
	case <-s.life.Done():
	}
	if err := s.fatal.Load(); err != nil {
		return *err
	}
	s.finish()
	return nil
}

// breakDown ends the store: what is stored cannot be trusted any more. Going on
// would append into a collection without indexes, for nobody.
func (s *Store) breakDown(err error) {
	if s.fatal.CompareAndSwap(nil, &err) {
		s.log.Error("the store cannot go on", zap.Error(err))
		s.die()
		s.endCalls()
	}
}

// begin registers the node, opens its lanes and starts the rest.
func (s *Store) begin(ctx context.Context) error {
	if err := s.register(ctx, s.self.id()); err != nil {
		return err
	}
	s.work.Go(s.beat)
	s.work.Go(s.watchPauses)
	for _, w := range s.writers {
		if err := w.begin(ctx); err != nil {
			return err
		}
	}
	for _, w := range s.writers {
		s.work.Go(w.run)
	}
	for _, w := range s.session {
		s.work.Go(w.run)
	}
	for _, r := range s.records {
		s.work.Go(r.run)
	}
	s.work.Go(s.control)
	s.work.Go(s.stand)
	s.work.Go(s.keeper.lease)
	s.work.Go(s.keeper.run)
	s.work.Go(s.adopter.run)
	if s.o.SweepRecords {
		s.work.Go(s.sweeper.run)
	}
	if s.o.RetainMessages > 0 {
		s.work.Go((&tops{s: s}).run)
	}
	if s.o.Metrics != nil && !s.o.noGauge {
		s.work.Go(s.gauge)
	}
	close(s.serving)
	if s.o.Metrics != nil {
		s.o.Metrics.Up.Set(1)
	}
	s.log.Info("serving on MongoDB", zap.String("database", s.o.Database), zap.String("node", s.self.id().Hex()))
	return nil
}

// closeTime bounds how long an orderly end may take.
const closeTime = 10 * time.Second

// finish is the orderly end: nothing new is taken; what waits is written.
func (s *Store) finish() {
	s.mu.Lock()
	s.closing = true
	s.mu.Unlock()
	s.endCalls()
	timer := time.AfterFunc(closeTime, s.die)
	defer timer.Stop()
	for _, w := range s.session {
		w.close()
	}
	for _, r := range s.records {
		r.close()
	}
	for _, w := range s.writers {
		w.close()
	}
	for _, w := range s.writers {
		<-w.gone
	}
	for _, w := range s.session {
		<-w.gone
	}
	for _, r := range s.records {
		<-r.gone
	}
	s.adopter.close()
	s.unregister()
}

func (s *Store) endCalls() {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.ended:
	default:
		close(s.ended)
	}
}

// enter waits until calls are taken.
func (s *Store) enter(ctx context.Context) error {
	select {
	case <-s.ended:
		return store.ErrClosed
	default:
	}
	select {
	case <-s.serving:
		return nil
	default:
	}
	select {
	case <-s.serving:
		return nil
	case <-s.ended:
		return store.ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
}

// call gives a context for one call: it ends with the caller's, and when the
// store may write no more.
func (s *Store) call(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(s.life, cancel)
	return ctx, func() {
		stop()
		cancel()
	}
}

// failed gives the error of a call: that of the caller's ctx, ErrClosed, or err
// with what was done.
func (s *Store) failed(ctx context.Context, op string, err error) error {
	switch {
	case err == nil:
		return nil
	case s.life.Err() != nil:
		return store.ErrClosed
	case ctx.Err() != nil && !errors.Is(err, ctx.Err()):
		return fmt.Errorf("mongo: %s: %w (%w)", op, ctx.Err(), err)
	}
	if s.o.Metrics != nil {
		s.o.Metrics.Error(op, kindOf(err))
	}
	return fmt.Errorf("mongo: %s: %w", op, err)
}

// Ready tells whether appends are taken and what is in the log reaches this node, and whether this machine's clock is off
// by more than Options.ClockBound.
func (s *Store) Ready(ctx context.Context) error {
	select {
	case <-s.serving:
	default:
		return errors.New("mongo: not started yet")
	}
	if err := s.enter(ctx); err != nil {
		return err
	}
	if since := s.self.silent(); since > s.o.Lease {
		return fmt.Errorf("mongo: no write was acknowledged by a majority for %v", since.Round(time.Second))
	}
	if late := s.behind(); late > s.o.Lease {
		return fmt.Errorf("mongo: what is in the log has not reached this node for %v: neither its change stream nor the lanes can be read, or it does not keep up", late.Round(time.Second))
	}
	for _, w := range s.writers {
		if err := w.stuck(); err != nil {
			return err
		}
	}
	return s.wrongClock()
}

// kill ends the store as a SIGKILL would: nothing is finished. For tests.
func (s *Store) kill() {
	s.killed.Store(true)
	s.die()
	s.endCalls()
}

func (s *Store) disconnect() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	for _, c := range []*mongo.Client{s.client, s.tails} {
		if c != nil {
			_ = c.Disconnect(ctx)
		}
	}
}
