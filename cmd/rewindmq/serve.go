package main

import (
	"context"
	"errors"
	"io"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"rewindmq/cmd/internal/admin"
	"rewindmq/cmd/internal/config"
	"rewindmq/cmd/internal/control"
	"rewindmq/cmd/internal/exit"
	"rewindmq/cmd/internal/node"
)

// ---------------------------------------------------------------------------------------------------------------------
// The assembly: from here to the next line stands all that knows the broker and the store.

// broker is what serve needs of the assembled broker.
type broker struct {
	// addresses are the bound MQTT listeners, as URLs.
	addresses []string
	// store says in one line where the messages are.
	store string
	// run serves until ctx ends, then drains: no new connections, DISCONNECT to clients, writes under way finished,
	// cursors saved, the store closed. It returns when all it started has ended.
	run func(ctx context.Context) error
	// ready answers nil when a client that connects now is served, else why not.
	ready func(ctx context.Context) error
	// backup copies the log to a directory that does not exist. It ends when ctx ends.
	backup func(ctx context.Context, dir string) error
	// api is served beside /readyz; nil: none.
	api http.Handler
	// discard gives back what was opened, when run is never called.
	discard func()
}

// assembler opens the store and binds the listeners, and starts nothing.
type assembler func(c *config.Config, log *zap.Logger, reg *prometheus.Registry) (*broker, error)

func assemble(c *config.Config, log *zap.Logger, reg *prometheus.Registry) (*broker, error) {
	n, err := node.Open(c, reg, log)
	if err != nil {
		return nil, node.OpenError(c, err)
	}
	return &broker{
		addresses: n.Listeners(),
		store:     n.StoreText(),
		run:       func(ctx context.Context) error { return exit.With(exit.Store, n.Run(ctx)) },
		ready:     n.Ready,
		backup:    n.Checkpoint,
		api:       n.API(),
		discard:   func() { _ = n.Close() },
	}, nil
}

// ---------------------------------------------------------------------------------------------------------------------

func newServe(assemble assembler) *cobra.Command {
	var s settings
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the broker",
		Long: "Runs the broker until Ctrl-C, SIGTERM or SIGHUP, then lets clients and writes under way finish. A second signal\n" +
			"ends it at once; nothing that was acknowledged is lost by that.",
		Example: "  rewindmq serve --dev\n  rewindmq serve --listen :1883 --listen ws://:8083/mqtt --data /var/lib/rewindmq",
		Args:    cobra.NoArgs,
		RunE: running(func(cmd *cobra.Command, _ []string) error {
			loaded, err := s.load(cmd)
			if err != nil {
				return err
			}
			return serve(cmd.Context(), &loaded.Config, assemble, cmd.ErrOrStderr())
		}),
	}
	s.add(cmd)
	return cmd
}

// serve runs the broker, and tells how it began and ended.
func serve(ctx context.Context, c *config.Config, assemble assembler, stderr io.Writer) error {
	log := newLogger(c.Log.Level, c.Log.Format, stderr)
	defer func() { _ = log.Sync() }() // standard error often cannot be synced
	h := newHerald(c, log, stderr)
	return h.ended(exit.With(exit.Failed, serveAll(ctx, c, assemble, log, h)))
}

// serveAll builds everything, runs it and shuts it down in order: the broker first, then the servers beside it, which
// answer while it drains.
func serveAll(ctx context.Context, c *config.Config, assemble assembler, log *zap.Logger, h *herald) error {
	this := thisBuild()
	reg := admin.NewRegistry(admin.Build{Version: this.Version, Revision: this.Revision}, c.Metrics.Go, c.Metrics.Process)
	if c.Store.URL == config.Embedded {
		if err := control.Sweep(ctx, c.Store.Data); err != nil {
			return err
		}
	}
	b, err := assemble(c, log, reg)
	if err != nil {
		return err
	}
	work, stopWork := context.WithCancel(ctx)
	defer stopWork()
	beside, err := besides(work, c, b, reg)
	if err != nil {
		b.discard()
		return err
	}
	h.serving(c, b, beside)
	told := make(chan struct{})
	unhook := context.AfterFunc(ctx, func() {
		defer close(told)
		h.stopping(context.Cause(ctx))
	})
	defer func() {
		if !unhook() {
			<-told // before it is told that all has ended
		}
	}()

	side, stopSide := context.WithCancel(context.WithoutCancel(ctx))
	defer stopSide()
	var group errgroup.Group
	group.Go(func() error {
		defer stopSide()
		return b.run(work)
	})
	for _, s := range beside.servers {
		group.Go(func() error {
			defer stopWork() // a server that fails stops the broker too
			return s.Run(side)
		})
	}
	return group.Wait()
}

// server is one that runs beside the broker.
type server interface {
	// Run serves until ctx ends and returns when all it started has ended.
	Run(ctx context.Context) error
	// Close gives back what was bound, when Run is never called.
	Close()
}

// neighbours are the servers beside the broker.
type neighbours struct {
	servers []server
	http    string // URL of the HTTP server; empty: off
}

// besides binds the servers beside the broker. work ends when the broker begins to drain.
func besides(work context.Context, c *config.Config, b *broker, reg *prometheus.Registry) (neighbours, error) {
	var n neighbours
	if c.HTTP.Addr != config.HTTPOff {
		web, err := admin.Listen(c.HTTP.Addr, admin.Options{Registry: reg, API: b.api, Ready: func(ctx context.Context) error {
			if work.Err() != nil {
				return errors.New("the broker is stopping")
			}
			return b.ready(ctx)
		}})
		if err != nil {
			return n, &exit.Error{Code: exit.Failed, Err: err, Try: "--http with another address, or --http off"}
		}
		n.servers, n.http = append(n.servers, web), "http://"+reachable(web.Addr())
	}
	if c.Store.URL == config.Embedded {
		door, err := control.Listen(c.Store.Data, b.backup)
		if err != nil {
			for _, s := range n.servers {
				s.Close()
			}
			return n, err
		}
		n.servers = append(n.servers, door)
	}
	return n, nil
}
