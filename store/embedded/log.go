package embedded

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/zap"

	"rewindmq/store"
)

var _ store.Store = (*Log)(nil)

// Options tell where the log is and how long it keeps what it has. The zero
// value of every field but Dir is the default.
type Options struct {
	// Dir is the data directory; it is made when it does not exist.
	Dir string
	// FS is the file system; nil: that of the machine. Tests use vfs.NewMem.
	FS vfs.FS
	// Node names this broker in the documents of sessions.
	Node string
	// RetainMessages and RetainRecords are how long messages and delivery
	// records are kept, to the day; 0: 365 and 30 days; negative: for ever.
	RetainMessages, RetainRecords time.Duration
	// Reserve is how many bytes of the file system stay free: below, appends are
	// refused. 0: 5 % of the file system, at least 16 MiB, at most 512 MiB.
	Reserve int64
	// FreeSpace tells the bytes that are free for this process, and all; nil:
	// asks FS.
	FreeSpace func(dir string) (free, total uint64, err error)
	// Now is the machine's clock; nil: time.Now.
	Now func() time.Time
	// Log takes what people should read; nil: nothing.
	Log *zap.Logger
	// Metrics are fed if not nil.
	Metrics *store.Metrics

	// noSync loses what it acknowledges: the negative control of the crash
	// tests.
	noSync bool
	// claimWait is how long a claim waits for the former connection of this node
	// to let go, before it takes the session over; 0: a second.
	claimWait time.Duration
	// topicLimit bounds the catalog of topics; 0: 1,000,000.
	topicLimit int
	// historyScan bounds the records that one ListDeliveries looks at, and the messages
	// of one ListMessages; 0: 200,000.
	historyScan int
}

func (o Options) withDefaults() (Options, error) {
	if o.Dir == "" {
		return o, errors.New("embedded: Options.Dir is empty")
	}
	if o.Reserve < 0 {
		return o, fmt.Errorf("embedded: Options.Reserve is %d", o.Reserve)
	}
	if o.FS == nil {
		o.FS = vfs.Default
		// Pebble has its paths resolved once, so a later change of the working
		// directory does no harm.
		if abs, err := filepath.Abs(o.Dir); err == nil {
			o.Dir = abs
		}
	}
	if o.RetainMessages == 0 {
		o.RetainMessages = 365 * 24 * time.Hour
	}
	if o.RetainRecords == 0 {
		o.RetainRecords = 30 * 24 * time.Hour
	}
	if o.FreeSpace == nil {
		o.FreeSpace = diskUsage(o.FS)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	if o.claimWait == 0 {
		o.claimWait = time.Second
	}
	if o.topicLimit == 0 {
		o.topicLimit = 1_000_000
	}
	if o.historyScan == 0 {
		o.historyScan = 200_000
	}
	return o, nil
}

// Log is the embedded log. It is safe for concurrent use.
type Log struct {
	o      Options
	log    *zap.Logger
	engine *engine
	cache  *pebble.Cache
	db     *pebble.DB
	lock   *pebble.Lock
	// com belongs to Open, then to the goroutine of Run.
	com *committer

	ring   ring
	topics *catalog
	epochs epochs
	// floor is the first position that is kept.
	floor      atomic.Uint64
	spaceLevel atomic.Uint32
	clockAhead atomic.Int64
	recovery   Recovery
	commits    atomic.Uint64

	// mu guards the queue. Invariant: when closed, nothing is put into it.
	mu           sync.Mutex
	queue, spare *queue
	closed       bool
	wake         chan struct{}

	started atomic.Bool
	running chan struct{} // closed when Run serves
	stopped chan struct{} // closed when nothing is served any more
	stop    sync.Once

	// reads counts the calls that are inside the engine, which is closed when
	// none is. (Not an RWMutex: a call may come from inside another.)
	reads struct {
		sync.Mutex
		inside int
		closed bool
		idle   chan struct{} // closed when closed and none is inside
	}
}

// Run implements store.Life. It may be called once. Its goroutine is the
// committer; it starts no other, and Pebble's end before it returns. After a
// failure of the engine the process should end: Pebble may then leave goroutines
// and its lock behind.
func (l *Log) Run(ctx context.Context) error {
	if !l.started.CompareAndSwap(false, true) {
		return errors.New("embedded: Run was called before, or the log is closed")
	}
	close(l.running)
	err := l.com.loop(ctx)
	if err != nil {
		err = fmt.Errorf("embedded: %s: %w", l.o.Dir, l.engine.fail(err))
		l.com.abort(err)
	}
	l.shut()
	if cerr := l.closeEngine(err != nil); err == nil {
		err = cerr
	}
	return err
}

// Close lets go of a log that was never run; else it does nothing, as the end of
// Run has done it.
func (l *Log) Close() error {
	if !l.started.CompareAndSwap(false, true) {
		return nil
	}
	l.com.abort(store.ErrClosed)
	l.shut()
	return l.closeEngine(false)
}

// shut ends what is served, and waits for the calls that are inside the engine.
func (l *Log) shut() {
	l.stop.Do(func() { close(l.stopped) })
	r := &l.reads
	r.Lock()
	r.closed, r.idle = true, make(chan struct{})
	if r.inside == 0 {
		close(r.idle)
	}
	r.Unlock()
	<-r.idle
}

// closeEngine closes Pebble. After a failure it may hang or panic in doing so:
// then what is on the disk is what counts, and it is left alone.
func (l *Log) closeEngine(failed bool) error {
	if failed {
		return nil
	}
	_ = l.com.batch.Close()
	if err := l.db.Close(); err != nil {
		return engineError("close", err)
	}
	l.cache.Unref()
	if err := l.lock.Close(); err != nil {
		return engineError("unlock", err)
	}
	return nil
}

// wait holds a call until Run has begun.
func (l *Log) wait(ctx context.Context) error {
	select {
	case <-l.running:
		select {
		case <-l.stopped:
			return l.stopError()
		default:
			return ctx.Err()
		}
	default:
	}
	select {
	case <-l.running:
		return nil
	case <-l.stopped:
		return store.ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
}

// stopError tells why nothing is served any more.
func (l *Log) stopError() error {
	if err := l.engine.err(); err != nil {
		return fmt.Errorf("%w: %w", store.ErrClosed, err)
	}
	return store.ErrClosed
}

// enter keeps the engine open until leave.
func (l *Log) enter() error {
	l.reads.Lock()
	defer l.reads.Unlock()
	if l.reads.closed {
		return l.stopError()
	}
	l.reads.inside++
	return nil
}

func (l *Log) leave() {
	l.reads.Lock()
	defer l.reads.Unlock()
	l.reads.inside--
	if l.reads.closed && l.reads.inside == 0 {
		close(l.reads.idle)
	}
}

// Commits counts the synced commits of this run.
func (l *Log) Commits() uint64 { return l.commits.Load() }

// Ready implements store.Life.
func (l *Log) Ready(context.Context) error {
	if err := l.engine.err(); err != nil {
		return err
	}
	select {
	case <-l.stopped:
		return store.ErrClosed
	default:
	}
	select {
	case <-l.running:
	default:
		return errors.New("embedded: not running yet")
	}
	if spaceLevel(l.spaceLevel.Load()) >= spaceLow {
		return fmt.Errorf("%w: %s", store.ErrNoSpace, l.o.Dir)
	}
	if err := l.engine.damaged(); err != nil {
		return err
	}
	if ahead := time.Duration(l.clockAhead.Load()); ahead > 0 {
		return fmt.Errorf("embedded: the clock is %s ahead of the time that the log has seen last: "+
			"retention and the end of sessions wait until it is right, or has run so for %s", ahead.Round(time.Second), believeAfter)
	}
	return nil
}

// observe feeds the metrics of an operation.
func (l *Log) observe(op string, start time.Time, err error) {
	if l.o.Metrics == nil {
		return
	}
	l.o.Metrics.Operation(op, time.Since(start))
	if err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, store.ErrSuperseded) {
		l.count(op, err)
	}
}

// count counts an error by its kind.
func (l *Log) count(op string, err error) {
	if l.o.Metrics == nil || err == nil {
		return
	}
	kind := "other"
	switch {
	case errors.Is(err, store.ErrNoSpace):
		kind = "no_space"
	case errors.Is(err, store.ErrCorrupt):
		kind = "corrupt"
	case errors.Is(err, context.DeadlineExceeded):
		kind = "timeout"
	}
	l.o.Metrics.Error(op, kind)
}
