package embedded

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/goleak"

	"rewindmq/schema"
	"rewindmq/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var errKilled = errors.New("killed")

// rig is a log that runs.
type rig struct {
	*Log
	t      testing.TB
	o      Options
	cancel context.CancelFunc
	ended  chan error
	ids    *schema.IDSource
	over   bool
}

// start opens a log, runs it, and stops it with the test. Without FS it is in
// memory.
func start(t testing.TB, o Options) *rig {
	t.Helper()
	if o.FS == nil {
		o.FS = vfs.NewMem()
	}
	if o.Dir == "" {
		o.Dir = "data"
	}
	l, err := Open(o)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	return run(t, o, l)
}

func run(t testing.TB, o Options, l *Log) *rig {
	ctx, cancel := context.WithCancel(context.Background())
	r := &rig{Log: l, t: t, o: o, cancel: cancel, ended: make(chan error, 1), ids: schema.NewIDSource()}
	go func() { r.ended <- l.Run(ctx) }()
	<-l.running
	t.Cleanup(func() { r.stop() })
	return r
}

// stop ends the log in order.
func (r *rig) stop() {
	r.t.Helper()
	if r.over {
		return
	}
	r.over = true
	r.cancel()
	if err := <-r.ended; err != nil {
		r.t.Errorf("Run: %v", err)
	}
}

// kill ends the log as SIGKILL does: from here on nothing is answered as stored.
// What the engine still does does no harm: the caller goes on with a clone of the
// file system.
func (r *rig) kill() {
	r.t.Helper()
	_ = r.engine.fail(errKilled)
	r.buried()
}

// buried waits for the end of a log that was killed.
func (r *rig) buried() {
	r.t.Helper()
	r.over = true
	if err := <-r.ended; !errors.Is(err, errKilled) {
		r.t.Errorf("Run after a kill: %v", err)
	}
	r.cancel()
	r.t.Cleanup(func() { r.discard() })
}

// discard closes the engine of a log that has failed.
func (r *rig) discard() {
	_ = r.com.batch.Close()
	_ = r.db.Close()
	r.cache.Unref()
	_ = r.lock.Close()
}

// crash kills the log and opens it again on what a power loss leaves: all that
// was synced and `percent` of the rest.
func (r *rig) crash(percent int, seed uint64) *rig {
	r.t.Helper()
	_ = r.engine.fail(errKilled)
	o := r.o
	// The clone is of the middle of a commit, mostly.
	o.FS = r.o.FS.(*vfs.MemFS).CrashClone(vfs.CrashCloneCfg{
		UnsyncedDataPercent: percent, RNG: rand.New(rand.NewPCG(seed, seed)),
	})
	r.buried()
	return start(r.t, o)
}

// again stops the log in order and opens it again.
func (r *rig) again() *rig {
	r.t.Helper()
	r.stop()
	return start(r.t, r.o)
}

func (r *rig) message(topic, payload string, qos uint8) *schema.Message {
	return &schema.Message{
		ID: r.ids.Next(time.Unix(1_700_000_000, 0)), Topic: topic, Payload: []byte(payload), ClientID: "p",
		QoS: qos, Created: time.Unix(1_700_000_000, 0).UTC(), Host: "h",
	}
}

// append appends and waits.
func (r *rig) append(p *store.Publisher, msgs ...*schema.Message) []store.Appended {
	r.t.Helper()
	return <-r.submit(context.Background(), p, msgs...)
}

func (r *rig) submit(ctx context.Context, p *store.Publisher, msgs ...*schema.Message) <-chan []store.Appended {
	ch := make(chan []store.Appended, 1)
	r.Append(ctx, p, msgs, func(a []store.Appended) { ch <- append([]store.Appended(nil), a...) })
	return ch
}

// put stores messages and gives their positions.
func (r *rig) put(topic string, payloads ...string) []uint64 {
	r.t.Helper()
	var msgs []*schema.Message
	for _, p := range payloads {
		msgs = append(msgs, r.message(topic, p, 1))
	}
	var out []uint64
	for _, a := range r.append(&store.Publisher{Owner: schema.Owner{ClientID: "p", SID: 1}}, msgs...) {
		if a.Outcome != store.Stored {
			r.t.Fatalf("append to %s: outcome %d, %v", topic, a.Outcome, a.Err)
		}
		out = append(out, a.Mark.N)
	}
	return out
}

// fill stores n messages on topic.
func (r *rig) fill(topic string, n, size int) {
	r.t.Helper()
	for i := 0; i < n; i += 100 {
		var list []string
		for k := i; k < min(i+100, n); k++ {
			list = append(list, fmt.Sprintf("%0*d", size, k))
		}
		r.put(topic, list...)
	}
}

func (r *rig) headN() uint64 { return r.ring.head.Load() }

// read gives the payloads between two positions.
func (r *rig) read(after, upTo uint64, filters ...string) (out []string, trimmed uint64) {
	r.t.Helper()
	out, trimmed, err := r.tryRead(after, upTo, filters...)
	if err != nil {
		r.t.Fatalf("read of %q: %v", filters, err)
	}
	return out, trimmed
}

func (r *rig) tryRead(after, upTo uint64, filters ...string) (out []string, trimmed uint64, err error) {
	ctx := context.Background()
	m, err := r.Read(ctx, schema.At(1, after), schema.At(1, upTo), filters)
	if err != nil {
		return nil, 0, err
	}
	defer m.Close()
	for {
		msg, err := m.Next(ctx)
		if errors.Is(err, io.EOF) {
			return out, m.Trimmed(), nil
		}
		if err != nil {
			return out, m.Trimmed(), err
		}
		out = append(out, string(msg.Payload))
	}
}

// claim claims one session.
func (r *rig) claim(c store.Claim) store.Claimed {
	r.t.Helper()
	got := r.Claim(context.Background(), []store.Claim{c})[0]
	if got.Err != nil {
		r.t.Fatalf("claim of %q: %v", c.ClientID, got.Err)
	}
	return got
}

// write carries out writes that have to succeed.
func (r *rig) write(writes ...store.Write) {
	r.t.Helper()
	for i, err := range r.Write(context.Background(), writes) {
		if err != nil {
			r.t.Fatalf("write %d, %T: %v", i, writes[i], err)
		}
	}
}

func (r *rig) writeOne(w store.Write) error {
	return r.Write(context.Background(), []store.Write{w})[0]
}

// deliver records a delivery.
func (r *rig) deliver(o schema.Owner, seq, n uint64, packet uint16, qos uint8) schema.Delivery {
	r.t.Helper()
	d := schema.Delivery{
		ID: r.ids.Next(time.Unix(1_700_000_000, 0)), Owner: o, Seq: seq, Topic: "t", MessageID: r.ids.Next(time.Unix(1, 0)),
		Mark: schema.Mark{Lane: 1, N: n}, PacketID: packet, QoS: qos, Host: "h", Created: time.Unix(1_700_000_000, 0).UTC(),
	}
	if err := r.Record(context.Background(), []schema.Delivery{d})[0]; err != nil {
		r.t.Fatalf("record of seq %d: %v", seq, err)
	}
	return d
}

// testClock is a clock that is set by hand.
type testClock struct {
	mu sync.Mutex
	at time.Time
}

func newTestClock() *testClock { return &testClock{at: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)} }

func (c *testClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *testClock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

// inside runs fn in the committer's goroutine.
func (r *rig) inside(fn func(c *committer) error) {
	r.t.Helper()
	if err := r.do(context.Background(), "test", &call{always: true, stage: fn}); err != nil {
		r.t.Fatal(err)
	}
}

// housekeep does now what the committer does each second, until it has nothing
// more to do.
func (r *rig) housekeep() {
	r.t.Helper()
	r.inside(func(c *committer) error {
		for range 100 {
			c.swept = time.Time{}
			if err := c.housekeep(); err != nil {
				return err
			}
			if !c.swept.IsZero() {
				return nil
			}
		}
		return errors.New("housekeeping does not end")
	})
}
