package broker

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"rewindmq/broker/session"
	"rewindmq/fanout"
	"rewindmq/replay"
	"rewindmq/schema"
	"rewindmq/store"
)

// lanes is the number of record lanes and of writer lanes: each has one batch
// under way.
const lanes = 4

// Broker serves MQTT on top of a store.
type Broker struct {
	o      Options
	m      *Metrics
	store  store.Store
	hub    *fanout.Hub
	source replay.Source
	replay replay.Options
	// poke makes a store whose tail may have missed something look now: a
	// client's PINGREQ or PUBLISH is a safety net (S-43).
	poke       func()
	ids        *schema.IDSource
	roster     *roster
	projection *projection
	ingest     *ingest
	keeper     *keeper
	records    recordLanes
	writes     writeLanes
	claims     claimLane
	shares     shares
	orphans    orphans
	noGroups   bool // the store keeps none; set before ready is closed
	scratch    scratchPool
	buffers    bufferPool

	// life ends when everything has let go of the store; drainCh is closed when
	// the broker begins to end.
	life  context.Context
	kill  context.CancelFunc
	drain atomic.Bool
	// tasks are the short-lived goroutines; Run waits for them.
	tasks       tasks
	connections atomic.Int64
	stored      atomic.Int64 // sessions in the store, as last counted
	subscribed  atomic.Int64 // subscriptions in the store, as last counted
	ready       chan struct{}
	failed      atomic.Pointer[error] // why the broker cannot go on
	troubleMu   sync.Mutex
	troubleAt   map[string]time.Time
}

// New makes a broker on s. Run starts it.
func New(s store.Store, o Options) (*Broker, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	if o.Metrics == nil {
		m, err := NewMetrics(prometheus.NewRegistry())
		if err != nil {
			return nil, err
		}
		o.Metrics = m
	}
	b := &Broker{
		o: o, m: o.Metrics, store: s, ids: schema.NewIDSource(), roster: newRoster(), ingest: newIngest(o.IngestBytes),
		projection: newProjection(&o, s), claims: claimLane{newLane[claimCall]()}, ready: make(chan struct{}),
		troubleAt: make(map[string]time.Time),
		replay:    replay.Options{Gate: replay.NewGate(64), Metrics: o.Replay},
	}
	b.poke = func() {}
	if p, ok := s.(interface{ Poke() }); ok {
		b.poke = p.Poke
	}
	b.tasks.init()
	b.shares = shares{b: b, by: make(map[string]*share)}
	b.orphans = orphans{b: b, by: make(map[string]orphan)}
	b.life, b.kill = context.WithCancel(context.Background())
	b.hub = fanout.New(s, fanout.Options{CacheBytes: o.HubCacheBytes, Observe: b.projection.observe, Metrics: o.Hub})
	b.source = b.hub.Source(s)
	b.keeper = &keeper{b: b, wake: make(chan struct{}, 1)}
	seed := maphash.MakeSeed()
	b.records, b.writes = newRecordLanes(seed), newWriteLanes(seed)
	return b, nil
}

// Run serves until ctx ends: then connections are told to go, sessions let go of
// what they own, and Run returns when all that it started has ended. The store
// must run for longer. It returns an error when the broker cannot go on: when the tail
// of the log or the watch over the sessions has ended. Then the sessions let go as well
// as they can, too.
//
// The end: sessions have DrainTimeout to let go, with all workers running. What is
// under way in the store after that is given up. Nothing acknowledged is lost by it: an
// acknowledgement leaves only when the store has answered, and what it has not answered
// is sent again by the client, or found in the store by whoever claims the session next.
func (b *Broker) Run(ctx context.Context) error {
	defer b.kill()
	ctx, end := context.WithCancel(ctx)
	defer end()
	workers, stop := context.WithCancel(b.life)
	defer stop()
	var work errgroup.Group
	vital := func(run func() error) { // its failure is the broker's
		work.Go(func() error {
			err := run()
			if err != nil {
				b.failed.CompareAndSwap(nil, &err)
				end()
			}
			return err
		})
	}
	vital(func() error { return b.runHub(workers) })
	lost, err := b.start(ctx)
	if err != nil {
		stop()
		if failed := work.Wait(); failed != nil {
			return failed // and err tells no more than that it could not go on
		}
		return err
	}
	b.runLanes(workers, &work)
	work.Go(func() error { b.keeper.run(workers); return nil })
	work.Go(func() error { b.orphans.run(workers); return nil })
	work.Go(func() error { b.tick(workers); return nil })
	b.publishSys(1, 0)
	work.Go(func() error { b.runSys(workers); return nil })
	vital(func() error { return b.watch(workers, lost) })
	work.Go(func() error {
		b.projection.run(workers, b.life, b.hub.H, func(err error) { b.storeTrouble("retained", "", err) })
		return nil
	})
	close(b.ready)
	<-ctx.Done()
	drained, cancel := context.WithTimeout(b.life, b.o.DrainTimeout)
	defer cancel()
	b.letGo(drained)
	stop()
	context.AfterFunc(drained, b.kill) // a store that has no room answers nothing before
	err = work.Wait()
	b.kill()
	b.tasks.wait()
	return err
}

// runHub makes the end of the hub the end of the broker.
func (b *Broker) runHub(ctx context.Context) error {
	err := b.hub.Run(ctx)
	if err == nil && ctx.Err() == nil {
		err = errors.New("the tail of the log has ended")
	}
	if err != nil {
		return fmt.Errorf("broker: %w", err)
	}
	return nil
}

// start waits for the first H, brings the projection up to it, and finds out whether
// there can be shared subscriptions. It opens the watch over the sessions that this node
// will own, before there are any.
func (b *Broker) start(ctx context.Context) (store.Watch, error) {
	select {
	case <-b.hub.Ready():
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	lost, err := b.store.Watch(ctx)
	if err != nil {
		return nil, fmt.Errorf("broker: watch sessions: %w", err)
	}
	_, err = b.store.OpenGroup(ctx, "")
	b.noGroups = errors.Is(err, errors.ErrUnsupported)
	return lost, b.projection.load(ctx, b.hub.Start())
}

// letGo ends all sessions in order, until the deadline.
func (b *Broker) letGo(deadline context.Context) {
	b.drain.Store(true)
	for {
		all := b.roster.all(nil)
		if len(all) == 0 {
			b.shares.wait(deadline)
			return
		}
		for _, cl := range all {
			cl.oust(session.ReasonShutdown)
		}
		for _, cl := range all {
			select {
			case <-cl.ended:
			case <-deadline.Done():
				b.o.Log.Warn("sessions did not let go in time; they are finished at the next start", zap.Int("sessions", b.roster.len()))
				return
			}
		}
	}
}

// Ready tells whether the broker serves.
func (b *Broker) Ready(ctx context.Context) error {
	select {
	case <-b.ready:
	default:
		return errors.New("broker: starting")
	}
	if failed := b.failed.Load(); failed != nil {
		return *failed
	}
	if b.draining() {
		return errors.New("broker: draining")
	}
	return b.store.Ready(ctx)
}

// Started is closed when connections may come.
func (b *Broker) Started() <-chan struct{} { return b.ready }

func (b *Broker) draining() bool { return b.drain.Load() }

func (b *Broker) now() time.Time { return b.o.Now() }

// full tells whether no new session may be stored.
func (b *Broker) full() bool { return b.stored.Load() >= int64(b.o.Sessions) }

// tick lets every session save what is due, once a second.
func (b *Broker) tick(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var all []*client
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		all = b.roster.all(all)
		in, out := 0, 0
		for _, cl := range all {
			cl.input(func(s *session.Session) {
				// H is loaded under the session's lock: everything up to it
				// has been offered before.
				s.Tick(b.hub.H())
				in, out = in+s.Waiting(), out+s.InFlight()
			})
		}
		clear(all)
		b.m.underWay(in, out)
	}
}

// watch ends sessions that were claimed elsewhere.
func (b *Broker) watch(ctx context.Context, w store.Watch) error {
	for {
		lost, err := w.Next(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("broker: watch sessions: %w", err)
		}
		for _, l := range lost {
			if l.ClientID == "" {
				for _, cl := range b.roster.all(nil) {
					cl.oust(session.ReasonStore)
				}
				continue
			}
			if cl := b.roster.get(l.ClientID); cl != nil {
				b.tasks.Go(func() { cl.lose(l.Epoch) })
			}
		}
	}
}

// storeTrouble logs a failure of the store, each kind once in a while.
func (b *Broker) storeTrouble(what, client string, err error) {
	b.troubleMu.Lock()
	last, seen := b.troubleAt[what]
	now := time.Now()
	quiet := seen && now.Sub(last) < 5*time.Second
	if !quiet {
		b.troubleAt[what] = now
	}
	b.troubleMu.Unlock()
	if !quiet {
		b.o.Log.Error("store", zap.String("what", what), zap.String("client", client), zap.Error(err))
	}
}
