package mongo

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"rewindmq/schema"
	"rewindmq/store"
)

// slow is a tail that is told when it may ask.
type slow struct {
	*live
	gate  sync.Mutex
	waits atomic.Bool
}

// Item 4: the tail changes over from the stream to passes by itself, and back when a
// pass finds nothing; what it yields is exact all along. Of the reasons each test
// leaves only one: full batches in a row (no heartbeat tells how far behind it is),
// more than streamLag behind (a few messages fill no batch), and many events.
func TestSwitch(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		lease   time.Duration
		many    int           // appended while nobody asks
		held    time.Duration // at least
		publish int           // publishers
		busy    int
		why     string
	}{
		{"full batches", 5 * time.Minute, 45_000, 0, 8, 1 << 30, "full batches in a row"},
		{"behind", 2 * time.Second, 40, (streamLag + 2) * time.Second, 2, 1 << 30, "it is behind"},
		{"many events", 5 * time.Minute, 8000, 0, 8, 0, "it costs the server more than passes do"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, 1)
			r.o.Lease, r.o.noGauge, r.o.busy, r.o.crowded = c.lease, true, c.busy, 1<<30
			core, logged := observer.New(zap.InfoLevel)
			r.o.Log = zap.New(core)
			g := r.measured()
			s := r.start()
			ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
			defer cancel()
			from, err := s.Head(ctx)
			if err != nil {
				t.Fatal(err)
			}
			v := runSlow(ctx, t, s, from)
			streaming(t, r, g, s)
			l := newLedger(t)
			began := time.Now()
			v.gate.Lock() // it streams, and does not ask
			load := func(n int) {
				var pubs sync.WaitGroup
				for i := range c.publish {
					pubs.Go(func() { l.publish(ctx, s, fmt.Sprint("p", i), n/c.publish, 500) })
				}
				pubs.Wait()
			}
			appendOne(t, s, &store.Publisher{}, "t")
			r.until("the tail to wait", func(context.Context) bool { return v.waits.Load() })
			load(c.many)
			_ = rest(ctx, c.held-time.Since(began))
			if n := g.left("load"); n != 0 {
				t.Errorf("left for the load %v times, before it asked", n)
			}
			v.gate.Unlock()
			load(c.many / 10) // it goes on while the tail catches up
			r.until("the passes", func(context.Context) bool { return g.left("load") > 0 })
			if found := logged.FilterField(zap.String("why", c.why)).Len(); found == 0 {
				t.Errorf("it was left for another reason: %v", logged.FilterMessageSnippet("keep up").All())
			}
			streaming(t, r, g, s)
			t.Logf("left for the load %v times, for a gap %v times; %v events", g.left("load"), g.left("gap"), g.sum("change_stream_events_total"))
			upTo, err := s.Head(ctx)
			if err != nil {
				t.Fatal(err)
			}
			l.checkOf(v.passed(ctx, t, from, upTo))
			if n := g.left("error") + g.left(historyLost); n != 0 {
				t.Errorf("the stream failed %v times", n)
			}
		})
	}
}

// Item 4: what others write, into whatever collection, costs the server as much as
// messages in a stream that looks at all of it: while they write much the tail passes,
// and opens no stream.
func TestSwitch_OthersWrites(t *testing.T) {
	t.Parallel()
	r := rigOn(t, ownSet(t, 1)) // nobody else writes there
	r.o.Lease, r.o.noGauge, r.o.crowded = 5*time.Minute, true, 2000
	core, logged := observer.New(zap.InfoLevel)
	r.o.Log = zap.New(core)
	g := r.measured()
	s := r.start()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	from, err := s.Head(ctx)
	if err != nil {
		t.Fatal(err)
	}
	v := runSlow(ctx, t, s, from)
	streaming(t, r, g, s)
	other := r.db.Collection("other")
	sent := 0
	write := func(n int) {
		for range n {
			docs := make([]any, 1000)
			for i := range docs {
				docs[i] = fields("x", i)
			}
			if _, err := other.InsertMany(ctx, docs); err != nil {
				t.Fatal(err)
			}
			appendOne(t, s, &store.Publisher{Owner: schema.Owner{ClientID: "p"}}, "t")
			sent++
		}
	}
	r.until("the passes", func(context.Context) bool {
		write(4)
		return g.left("load") > 0
	})
	if found := logged.FilterFieldKey("why").All(); found[0].ContextMap()["why"] != "others' writes cost the server more in it than passes do" {
		t.Errorf("it was left for another reason: %v", found)
	}
	write(40)
	streaming(t, r, g, s)
	t.Logf("%d messages beside %d writes of others; left for the load %v times", sent, sent*1000, g.left("load"))
	// It is not opened, and left again, all the time: a second has 2,000 writes or more.
	if n := g.left("load"); n > 3 {
		t.Errorf("left for the load %v times", n)
	}
	upTo, err := s.Head(ctx)
	if err != nil {
		t.Fatal(err)
	}
	got := 0
	for _, e := range v.passed(ctx, t, from, upTo) {
		if e.Message != nil && e.Message.ClientID == "p" {
			got++
		}
	}
	if got != sent {
		t.Errorf("%d of %d messages", got, sent)
	}
}

// checkOf checks what a tail yielded, but for messages that streaming appended.
func (l *ledger) checkOf(events []store.Event) {
	l.t.Helper()
	var mine []store.Event
	for _, e := range events {
		if e.Message == nil || e.Message.ClientID != "" {
			mine = append(mine, e)
		}
	}
	l.check("over the switch", mine)
}

func runSlow(ctx context.Context, t *testing.T, s *Store, after schema.Cursor) *slow {
	t.Helper()
	tl, err := s.Tail(ctx, after)
	if err != nil {
		t.Fatal(err)
	}
	v := &slow{live: &live{gone: make(chan struct{}), tail: tl.(*tail)}}
	go func() { // ends with the store; passed waits for it
		defer close(v.gone)
		defer tl.Close()
		for {
			v.waits.Store(true)
			v.gate.Lock()
			v.waits.Store(false)
			v.gate.Unlock() //nolint:staticcheck // it only waits
			got, err := tl.Next(ctx)
			if err != nil {
				v.err = err
				return
			}
			v.mu.Lock()
			v.events = append(v.events, got...)
			v.mu.Unlock()
		}
	}()
	return v
}
