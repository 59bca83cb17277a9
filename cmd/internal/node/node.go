// Package node assembles one broker process: the store, the broker on it, and the
// MQTT listeners. It is the only place where the configuration meets the packages
// below cmd.
//
// Nouns: a Node is one run of a broker. Run owns three kinds of goroutines (the
// store, the broker, one for each listener) and ends them in this order: the
// listeners stop accepting, the broker lets its sessions go, the store settles
// what it was given and closes.
package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"rewindmq/broker"
	"rewindmq/cmd/internal/api"
	"rewindmq/cmd/internal/config"
	"rewindmq/cmd/internal/exit"
	"rewindmq/fanout"
	"rewindmq/replay"
	"rewindmq/store"
	"rewindmq/store/embedded"
	"rewindmq/store/mongo"
	"rewindmq/wire"
)

// gcPercent is what the heap may grow by between two collections. Most of a
// broker's heap is idle sessions, which stay: at Go's 100 each would cost its
// size twice. GOGC overrides it.
const gcPercent = 50

// Node is one broker, opened and not yet running.
type Node struct {
	name      string
	where     string
	store     store.Store
	now       func() time.Time // the store's clock; nil: the machine's
	log       *embedded.Log    // nil when the store is not embedded
	broker    *broker.Broker
	metrics   *broker.Metrics
	listeners []*wire.Listener
}

// Open opens the store and binds the listeners. It starts nothing.
func Open(c *config.Config, reg prometheus.Registerer, log *zap.Logger) (*Node, error) {
	n := &Node{name: c.Node.Name}
	if n.name == "" {
		host, err := os.Hostname()
		if err != nil {
			return nil, fmt.Errorf("node.name is not set, and the host has no name: %w", err)
		}
		n.name = host
	}
	if err := n.openStore(c, reg, log); err != nil {
		return nil, err
	}
	if err := n.openBroker(c, reg, log); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	for _, addr := range c.Listen {
		l, err := wire.Listen(addr, wire.ListenOptions{AcceptFailed: func(err error) {
			log.Warn("accept", zap.String("listener", addr), zap.Error(err))
		}})
		if err != nil {
			return nil, &exit.Error{Code: exit.Failed, Err: errors.Join(err, n.Close()), Try: "--listen with another port"}
		}
		n.listeners = append(n.listeners, l)
		n.metrics.Listener(l.String())
	}
	return n, nil
}

func (n *Node) openStore(c *config.Config, reg prometheus.Registerer, log *zap.Logger) error {
	if c.Store.URL != config.Embedded {
		return n.openMongo(c, reg, log)
	}
	metrics, err := store.NewMetrics(reg, "embedded")
	if err != nil {
		return fmt.Errorf("register the store's metrics: %w", err)
	}
	var reserve int64
	if c.Store.DiskReserve != config.ReserveAuto {
		reserve = int64(c.Store.DiskReserve)
	}
	n.log, err = embedded.Open(embedded.Options{
		Dir: c.Store.Data, Node: n.name, RetainMessages: time.Duration(c.Store.Retention.Messages),
		RetainRecords: time.Duration(c.Store.Retention.Records), Reserve: reserve, Log: log.Named("store"), Metrics: metrics,
	})
	if err != nil {
		return err
	}
	n.store = n.log
	n.where = "embedded log in " + c.Store.Data
	return nil
}

// openTimeout bounds the connection to MongoDB at the start: an election is
// shorter.
const openTimeout = 30 * time.Second

func (n *Node) openMongo(c *config.Config, reg prometheus.Registerer, log *zap.Logger) error {
	if err := checkURL(c); err != nil {
		return err
	}
	metrics, err := store.NewMetrics(reg, "mongodb")
	if err != nil {
		return fmt.Errorf("register the store's metrics: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), openTimeout)
	defer cancel()
	o := mongoOptions(c, log)
	o.Node, o.Metrics = n.name, metrics
	s, err := mongo.Open(ctx, o)
	if err != nil {
		return err
	}
	n.store, n.now = s, s.Now
	n.where = "MongoDB at " + config.Redact(c.Store.URL) + ", database " + o.Database
	return nil
}

func (n *Node) openBroker(c *config.Config, reg prometheus.Registerer, log *zap.Logger) error {
	metrics, err := broker.NewMetrics(reg)
	if err != nil {
		return fmt.Errorf("register the broker's metrics: %w", err)
	}
	n.metrics = metrics
	replays, err := replay.NewMetrics(reg)
	if err != nil {
		return fmt.Errorf("register the metrics of replays: %w", err)
	}
	hub, err := fanout.NewMetrics(reg)
	if err != nil {
		return fmt.Errorf("register the hub's metrics: %w", err)
	}
	l := &c.Limits
	n.broker, err = broker.New(n.store, broker.Options{
		Node: n.name, MaximumPacketSize: int(l.PacketSize), Window: l.Window, ReceiveMaximum: l.ReceiveMaximum,
		Unrecorded: c.Store.Window(), SessionQueue: l.SessionQueue, HubCacheBytes: int64(l.HubCache),
		RetainedBytes:          int64(l.RetainedBytes),
		SubscriptionsPerClient: l.SubscriptionsPerClient, FiltersPerSubscribe: l.FiltersPerSubscribe,
		Connections: l.Connections, Sessions: l.Sessions, TopicLevels: l.TopicLevels, TopicBytes: l.TopicBytes, TopicAliases: l.TopicAliases,
		ServerReference:  c.ServerReference,
		SessionExpiryMax: uint32(l.SessionExpiryMax), KeepAliveMax: keepAlive(time.Duration(l.KeepAliveMax)),
		ConnectTimeout: time.Duration(c.ConnectTimeout), DrainTimeout: time.Duration(c.DrainTimeout),
		Now: n.now, Log: log.Named("broker"), Metrics: metrics, Replay: replays, Hub: hub,
	})
	return err
}

// keepAlive takes the largest value that MQTT knows as no limit.
func keepAlive(d time.Duration) time.Duration {
	if d >= 65535*time.Second {
		return 0
	}
	return d
}

// StoreText says in one line where the messages are.
func (n *Node) StoreText() string { return n.where }

// Close lets go of what Open has taken, when Run is never called.
func (n *Node) Close() error {
	var err error
	for _, l := range n.listeners {
		err = errors.Join(err, l.Close())
	}
	if n.log != nil {
		err = errors.Join(err, n.log.Close())
	}
	return err
}

// Name is the node's name in logs and records.
func (n *Node) Name() string { return n.name }

// Listeners gives the addresses that are bound, with their real ports.
func (n *Node) Listeners() []string {
	out := make([]string, len(n.listeners))
	for i, l := range n.listeners {
		out[i] = l.String()
	}
	return out
}

// Started is closed when clients are served.
func (n *Node) Started() <-chan struct{} { return n.broker.Started() }

func (n *Node) started() bool {
	select {
	case <-n.Started():
		return true
	default:
		return false
	}
}

// Ready tells whether the node serves; the error is for people.
func (n *Node) Ready(ctx context.Context) error { return n.broker.Ready(ctx) }

// API answers the operator's questions about sessions, messages and deliveries.
func (n *Node) API() http.Handler {
	return api.New(struct {
		store.Directory
		*broker.Broker
	}{n.store, n.broker}, n.broker, n.store)
}

// Checkpoint copies the running log into a new directory.
func (n *Node) Checkpoint(ctx context.Context, dir string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return n.log.Checkpoint(dir)
}

// Run serves until ctx ends, drains, and returns when all has ended. An error
// means that the node cannot go on.
func (n *Node) Run(ctx context.Context) error {
	// The store runs for longer than the broker, the broker for longer than its
	// listeners accept.
	storeCtx, stopStore := context.WithCancel(context.WithoutCancel(ctx))
	defer stopStore()
	asked := ctx
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}

	stored := make(chan error, 1)
	go func() {
		err := n.store.Run(storeCtx)
		stop() // a store that cannot go on ends the node
		stored <- err
	}()
	var g errgroup.Group
	g.Go(func() error {
		defer stop()
		return n.broker.Run(ctx)
	})
	for _, l := range n.listeners {
		g.Go(func() error {
			select {
			case <-n.broker.Started():
			case <-ctx.Done():
				return l.Close()
			}
			defer stop()
			return l.Run(ctx, func(nc net.Conn) { n.broker.Serve(l.String(), nc) })
		})
	}
	err := g.Wait()
	if asked.Err() != nil && errors.Is(err, context.Canceled) && !n.started() {
		err = nil // the start was cut short, as was asked for
	}
	stopStore()
	return errors.Join(<-stored, err)
}
