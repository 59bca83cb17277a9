package embedded

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"rewindmq/schema"
	"rewindmq/store"
)

// gate is a file system whose syncs of the engine's log can be held up, or made
// to fail.
type gate struct {
	mu      sync.Mutex
	cond    *sync.Cond
	shut    bool
	waiting int
	fail    error
	only    string // part of the path; "": the log files
}

func newGate() *gate {
	g := &gate{}
	g.cond = sync.NewCond(&g.mu)
	return g
}

func (g *gate) fs(fs vfs.FS) vfs.FS {
	return errorfs.Wrap(fs, errorfs.InjectorFunc(func(op errorfs.Op) error {
		part := g.part()
		if op.Kind != errorfs.OpFileSync && op.Kind != errorfs.OpFileSyncData || !strings.Contains(op.Path, part) {
			return nil
		}
		g.mu.Lock()
		defer g.mu.Unlock()
		g.waiting++
		g.cond.Broadcast()
		for g.shut {
			g.cond.Wait()
		}
		g.waiting--
		return g.fail
	}))
}

func (g *gate) part() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.only == "" {
		return ".log"
	}
	return g.only
}

func (g *gate) set(shut bool, fail error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut, g.fail = shut, fail
	g.cond.Broadcast()
}

// held waits until a sync stands before the gate.
func (g *gate) held() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for g.waiting == 0 {
		g.cond.Wait()
	}
}

// What waits while a commit is under way is one commit, appends, records and
// writes alike.
func TestGroupCommit(t *testing.T) {
	t.Parallel()
	g := newGate()
	r := start(t, Options{FS: g.fs(vfs.NewMem())})
	o := r.claim(store.Claim{ClientID: "c", Expiry: 100}).Owner
	g.set(true, nil)
	p := &store.Publisher{Owner: schema.Owner{ClientID: "p", SID: 1}}
	first := r.submit(context.Background(), p, r.message("t", "first", 1))
	g.held()
	before := r.Commits()
	var waits []<-chan []store.Appended
	for i := range 500 {
		waits = append(waits, r.submit(context.Background(), p, r.message("t", fmt.Sprint(i), 1)))
	}
	calls := make(chan error, 2)
	go func() {
		calls <- r.Record(context.Background(), []schema.Delivery{{ID: r.ids.Next(time.Now()), Owner: o, Seq: 1, MessageID: schema.ID{1}}})[0]
	}()
	go func() { calls <- r.writeOne(store.PutInbound{Owner: o, Inbound: schema.Inbound{PacketID: 1}}) }()
	r.queued(502)
	g.set(false, nil)
	<-first
	for i, w := range waits {
		if a := <-w; a[0].Outcome != store.Stored || a[0].Mark.N != uint64(i+2) {
			t.Fatalf("message %d: %+v", i, a)
		}
	}
	for range 2 {
		if err := <-calls; err != nil {
			t.Error(err)
		}
	}
	if n := r.Commits() - before; n != 2 {
		t.Errorf("%d commits, want 2: the first message, and all that waited", n)
	}
}

// queued waits until n things stand in the queue.
func (r *rig) queued(n int) {
	for {
		r.mu.Lock()
		got := len(r.Log.queue.items)
		r.mu.Unlock()
		if got >= n {
			return
		}
	}
}

// A batch is bounded in items and bytes.
func TestBatchIsBounded(t *testing.T) {
	t.Parallel()
	g := newGate()
	r := start(t, Options{FS: g.fs(vfs.NewMem())})
	g.set(true, nil)
	p := &store.Publisher{Owner: schema.Owner{ClientID: "p", SID: 1}}
	first := r.submit(context.Background(), p, r.message("t", "first", 1))
	g.held()
	before := r.Commits()
	var many []*schema.Message
	for i := range 3 * maxBatchItems {
		many = append(many, r.message("t", fmt.Sprint(i), 1))
	}
	var big []*schema.Message
	for range 10 {
		big = append(big, r.message("t", strings.Repeat("x", 1<<20), 1))
	}
	a, b := r.submit(context.Background(), p, many...), r.submit(context.Background(), p, big...)
	g.set(false, nil)
	<-first
	for i, x := range append(<-a, <-b...) {
		if x.Outcome != store.Stored || x.Mark.N != uint64(i+2) {
			t.Fatalf("message %d: %+v", i, x)
		}
	}
	// A message is two items; 4 MiB are four of a MiB.
	if n := r.Commits() - before; n < 6+2 || n > 6+5 {
		t.Errorf("%d commits for %d items and 10 MiB", n, len(many)*2)
	}
}

// T14: head, tail and read follow what is synced, not what is applied.
func TestT14_NothingUnsyncedIsYielded(t *testing.T) {
	t.Parallel()
	g := newGate()
	r := start(t, Options{FS: g.fs(vfs.NewMem())})
	r.put("t", "synced")
	tail, err := r.Tail(context.Background(), schema.Cursor{})
	if err != nil {
		t.Fatal(err)
	}
	if e, err := tail.Next(context.Background()); err != nil || len(e) != 1 {
		t.Fatalf("%d events, %v", len(e), err)
	}
	g.set(true, nil)
	answer := r.submit(context.Background(), &store.Publisher{}, r.message("t", "not synced", 1))
	g.held() // it is applied, or about to be
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if e, err := tail.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the tail yields %v, %v", e, err)
	}
	if h, _ := r.Head(context.Background()); !h.Equal(schema.At(1, 1)) {
		t.Errorf("head is %v", h)
	}
	if got, _ := r.read(0, 99, "#"); len(got) != 1 {
		t.Errorf("read %q", got)
	}
	select {
	case a := <-answer:
		t.Errorf("answered before the sync: %+v", a)
	default:
	}
	g.set(false, nil)
	<-answer
	if e, err := tail.Next(context.Background()); err != nil || len(e) != 1 {
		t.Errorf("%d events, %v", len(e), err)
	}
	_ = tail.Close()
}

// A failed sync of the engine's log ends the log: Run returns the error, nothing
// is answered as stored, and the process lives on to say so.
func TestFailedSyncIsFatal(t *testing.T) {
	t.Parallel()
	g := newGate()
	mem := vfs.NewMem()
	r := start(t, Options{FS: g.fs(mem)})
	o := r.claim(store.Claim{ClientID: "c", Expiry: 100}).Owner
	r.put("t", "before")
	g.set(true, nil)
	p := &store.Publisher{Owner: schema.Owner{ClientID: "p", SID: 1}}
	lost := r.submit(context.Background(), p, r.message("t", "lost", 1))
	g.held()
	behind := r.submit(context.Background(), p, r.message("t", "behind", 1))
	write := make(chan error, 1)
	go func() { write <- r.writeOne(store.PutInbound{Owner: o}) }()
	r.queued(2)
	g.set(false, syscall.EIO)
	if err := <-r.ended; !errors.Is(err, syscall.EIO) && !strings.Contains(fmt.Sprint(err), syscall.EIO.Error()) {
		t.Errorf("Run: %v", err)
	}
	r.over = true
	t.Cleanup(r.discard)
	g.set(false, nil)
	if a := (<-lost)[0]; a.Outcome != store.InDoubt || a.Err == nil {
		t.Errorf("the message under way: %+v", a)
	}
	if a := (<-behind)[0]; a.Outcome == store.Stored || a.Err == nil {
		t.Errorf("the message behind: %+v", a)
	}
	if err := <-write; err == nil {
		t.Error("the write behind was answered as done")
	}
	if h := r.headN(); h != 1 {
		t.Errorf("head is %d", h)
	}
	if err := r.Ready(context.Background()); err == nil {
		t.Error("ready after a failure")
	}
	if a := r.append(p, r.message("t", "later", 1)); a[0].Outcome != store.Refused || !errors.Is(a[0].Err, store.ErrClosed) {
		t.Errorf("later: %+v", a)
	}
	if _, err := r.Head(context.Background()); !errors.Is(err, store.ErrClosed) {
		t.Errorf("Head: %v", err)
	}
}

// A manifest that cannot be written ends the log too.
func TestFailedManifestIsFatal(t *testing.T) {
	t.Parallel()
	g := newGate()
	g.only = "MANIFEST"
	r := start(t, Options{FS: g.fs(vfs.NewMem())})
	r.put("t", "before")
	g.set(false, syscall.ENOSPC)
	if _, err := r.db.AsyncFlush(); err != nil {
		t.Fatal(err)
	}
	if err := <-r.ended; err == nil || !strings.Contains(err.Error(), "MANIFEST") {
		t.Errorf("Run: %v", err)
	}
	r.over = true
	g.set(false, nil)
	t.Cleanup(r.discard)
}

// Calls before Run wait, and are done when it begins; after its end they are
// refused.
func TestBeforeAndAfterRun(t *testing.T) {
	t.Parallel()
	o := Options{FS: vfs.NewMem(), Dir: "data"}
	l, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	early := &rig{Log: l, t: t, ids: schema.NewIDSource()}
	answer := early.submit(context.Background(), &store.Publisher{}, early.message("t", "early", 1))
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := l.Head(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Head before Run: %v", err)
	}
	if err := l.Ready(context.Background()); err == nil {
		t.Error("ready before Run")
	}
	r := run(t, o, l)
	if a := <-answer; a[0].Outcome != store.Stored {
		t.Fatalf("appended before Run: %+v", a)
	}
	if err := l.Ready(context.Background()); err != nil {
		t.Error(err)
	}
	if err := l.Run(context.Background()); err == nil {
		t.Error("a second Run began")
	}
	tail, err := r.Tail(context.Background(), schema.At(1, 1))
	if err != nil {
		t.Fatal(err)
	}
	next := make(chan error, 1)
	go func() { _, err := tail.Next(context.Background()); next <- err }()
	watch, err := r.Watch(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	r.stop()
	if err := <-next; !errors.Is(err, store.ErrClosed) {
		t.Errorf("the tail after Run: %v", err)
	}
	if _, err := watch.Next(context.Background()); !errors.Is(err, store.ErrClosed) {
		t.Errorf("the watch after Run: %v", err)
	}
	if a := r.append(&store.Publisher{}, early.message("t", "late", 1)); a[0].Outcome != store.Refused || !errors.Is(a[0].Err, store.ErrClosed) {
		t.Errorf("appended after Run: %+v", a)
	}
	if got := r.Claim(context.Background(), []store.Claim{{ClientID: "c"}}); !errors.Is(got[0].Err, store.ErrClosed) {
		t.Errorf("claimed after Run: %v", got[0].Err)
	}
	if err := l.Close(); err != nil {
		t.Errorf("Close after Run: %v", err)
	}
}

// A log that is never run can be closed; what was appended is refused.
func TestCloseWithoutRun(t *testing.T) {
	t.Parallel()
	o := Options{FS: vfs.NewMem(), Dir: "data"}
	l, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{Log: l, t: t, ids: schema.NewIDSource()}
	answer := r.submit(context.Background(), &store.Publisher{}, r.message("t", "x", 1))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if a := <-answer; a[0].Outcome == store.Stored {
		t.Errorf("%+v", a)
	}
	start(t, o).put("t", "y") // the directory is free again
}

// Promise 2 beyond the window in memory, for what can come again long after.
func TestRepeatedBeyondWindow(t *testing.T) {
	t.Parallel()
	r := start(t, Options{})
	qos2, will := r.message("t", "2", 2), r.message("t", "will", 1)
	session := &store.Publisher{Owner: schema.Owner{ClientID: "p", SID: 1}}
	nobody := &store.Publisher{}
	want := []schema.Mark{r.append(session, qos2)[0].Mark, r.append(nobody, will)[0].Mark}
	r.put("t", "between")
	r.inside(func(c *committer) error { c.seen = newSeen(); return nil })
	copies := func() (a, b *schema.Message) { x, y := *qos2, *will; return &x, &y }
	a, b := copies()
	if got := []schema.Mark{r.append(session, a)[0].Mark, r.append(nobody, b)[0].Mark}; got[0] != want[0] || got[1] != want[1] {
		t.Errorf("again: %v, want %v", got, want)
	}
	r = r.again()
	r.inside(func(c *committer) error { c.seen = newSeen(); return nil })
	a, b = copies()
	if got := []schema.Mark{r.append(session, a)[0].Mark, r.append(nobody, b)[0].Mark}; got[0] != want[0] || got[1] != want[1] {
		t.Errorf("again after a start: %v, want %v", got, want)
	}
}

// disk is a file system of a size that tests set.
type diskSize struct{ free atomic.Uint64 }

func (d *diskSize) probe(string) (uint64, uint64, error) { return d.free.Load(), 1 << 40, nil }

// Below the reserve: a refusal for those that can be told, waiting for the
// others, in order; writes of sessions go on until half of it; all goes on when
// there is room.
func TestReserve(t *testing.T) {
	t.Parallel()
	size := &diskSize{}
	size.free.Store(1 << 30)
	m, err := store.NewMetrics(prometheus.NewRegistry(), "embedded")
	if err != nil {
		t.Fatal(err)
	}
	r := start(t, Options{FreeSpace: size.probe, Reserve: 100 << 20, Metrics: m})
	o := r.claim(store.Claim{ClientID: "c", Expiry: 100}).Owner
	strict := &store.Publisher{Owner: schema.Owner{ClientID: "v3", SID: 1}, Strict: true}
	told := &store.Publisher{Owner: schema.Owner{ClientID: "v5", SID: 1}}

	size.free.Store(80 << 20)
	r.inside(func(c *committer) error { c.space.written = c.space.every; return c.probeSpace() })
	if a := r.append(told, r.message("t", "told", 1)); a[0].Outcome != store.Refused || !errors.Is(a[0].Err, store.ErrNoSpace) {
		t.Errorf("below the reserve: %+v", a)
	}
	if told.Failed() {
		t.Error("a publisher that could be told has failed")
	}
	if err := r.Ready(context.Background()); !errors.Is(err, store.ErrNoSpace) {
		t.Errorf("Ready: %v", err)
	}
	var waits []<-chan []store.Appended
	for i := range 5 {
		waits = append(waits, r.submit(context.Background(), strict, r.message("t", fmt.Sprint(i), 1)))
	}
	ctx, cancel := context.WithCancel(context.Background())
	gone := &store.Publisher{Owner: schema.Owner{ClientID: "gone", SID: 1}, Strict: true}
	given := r.submit(ctx, gone, r.message("t", "given up", 1))
	r.write(store.PutInbound{Owner: o}) // goes on
	cancel()
	if a := <-given; a[0].Outcome != store.Refused || !errors.Is(a[0].Err, context.Canceled) {
		t.Errorf("given up: %+v", a)
	}
	select {
	case a := <-waits[0]:
		t.Fatalf("a strict publisher was answered below the reserve: %+v", a)
	default:
	}

	size.free.Store(40 << 20)
	held := make(chan error, 1)
	r.inside(func(c *committer) error { c.space.probed = time.Time{}; return c.probeSpace() })
	go func() { held <- r.writeOne(store.PutInbound{Owner: o, Inbound: schema.Inbound{PacketID: 2}}) }()
	ended, stop := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer stop()
	if err := r.Record(ended, []schema.Delivery{{Owner: o, Seq: 1}})[0]; !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a record below half of the reserve: %v", err)
	}
	select {
	case err := <-held:
		t.Errorf("a write below half of the reserve was answered: %v", err)
	default:
	}

	size.free.Store(1 << 30)
	if err := <-held; err != nil {
		t.Error(err)
	}
	last := uint64(0)
	for i, w := range waits {
		a := (<-w)[0]
		if a.Outcome != store.Stored || a.Mark.N <= last {
			t.Errorf("strict message %d: %+v, behind %d", i, a, last)
		}
		last = a.Mark.N
	}
	if a := r.append(told, r.message("t", "again", 1)); a[0].Outcome != store.Stored {
		t.Errorf("room again: %+v", a)
	}
	if got, _ := r.read(0, 99, "t"); strings.Join(got, " ") != "0 1 2 3 4 again" {
		t.Errorf("in the log: %q", got)
	}
	if err := r.Ready(context.Background()); err != nil {
		t.Error(err)
	}
}

// What the engine has yet to write as tables counts as used, twice.
func TestReserveCountsUnflushed(t *testing.T) {
	t.Parallel()
	tests := []struct {
		free, unflushed uint64
		want            spaceLevel
	}{
		{100, 0, spaceEnough},
		{99, 0, spaceLow},
		{50, 0, spaceLow},
		{49, 0, spaceCritical},
		{200, 50, spaceEnough},
		{199, 50, spaceLow},
		{140, 50, spaceCritical},
		{80, 50, spaceCritical},
	}
	for _, tt := range tests {
		s := &space{}
		s.judge(tt.free, 1000, tt.unflushed, 100)
		if s.level != tt.want {
			t.Errorf("free %d, unflushed %d: level %d, want %d", tt.free, tt.unflushed, s.level, tt.want)
		}
	}
	for total, want := range map[uint64]uint64{64 << 20: 16 << 20, 1 << 30: 1 << 30 / 20, 1 << 40: 512 << 20} {
		if got := reserveFor(0, total); got != want {
			t.Errorf("reserve of %d bytes: %d, want %d", total, got, want)
		}
	}
}

func TestMetricsMove(t *testing.T) {
	t.Parallel()
	m, err := store.NewMetrics(prometheus.NewRegistry(), "embedded")
	if err != nil {
		t.Fatal(err)
	}
	clock := newTestClock()
	r := start(t, Options{Metrics: m, Now: clock.Now})
	r.put("t", "a", "b")
	if got := testutil.ToFloat64(m.HeadSequence); got != 2 {
		t.Errorf("head sequence %v", got)
	}
	if got := testutil.ToFloat64(m.Up); got != 1 {
		t.Errorf("up %v", got)
	}
	r.housekeep()
	if got := testutil.ToFloat64(m.OldestTimestamp); got != 1_700_000_000 {
		t.Errorf("oldest message %v", got)
	}
}

// Promise 5: when an append is answered, the head has passed it.
func TestHeadMovesBeforeTheAnswer(t *testing.T) {
	t.Parallel()
	r := start(t, Options{})
	var wait sync.WaitGroup
	for i := range 500 {
		wait.Add(1)
		r.Append(context.Background(), &store.Publisher{}, []*schema.Message{r.message("t", fmt.Sprint(i), 1)}, func(a []store.Appended) {
			defer wait.Done()
			if h := r.headN(); h < a[0].Mark.N {
				t.Errorf("answered at %d, the head is %d", a[0].Mark.N, h)
			}
		})
	}
	wait.Wait()
}

// S1: a record that was answered survives the process, and a power loss.
func TestS1_RecordsAreSynced(t *testing.T) {
	t.Parallel()
	r := start(t, Options{FS: vfs.NewCrashableMem()})
	o := r.claim(store.Claim{ClientID: "c", Expiry: 100}).Owner
	for i := range uint64(100) {
		r.deliver(o, i+1, i+1, uint16(i+1), 1)
	}
	r = r.crash(0, 1)
	if got := r.claim(store.Claim{ClientID: "c", Expiry: 100}); len(got.Cursor.Flight) != 100 || got.Cursor.Seq != 100 {
		t.Errorf("%d of 100 records, seq %d", len(got.Cursor.Flight), got.Cursor.Seq)
	}
}
