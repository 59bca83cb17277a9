package mongo

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.mongodb.org/mongo-driver/v2/bson"
	driver "go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
	"go.mongodb.org/mongo-driver/v2/mongo/readconcern"

	"rewindmq/integration/mongod"
	"rewindmq/schema"
	"rewindmq/store"
)

// gauges are the metrics of one store.
type gauges struct {
	t   testing.TB
	reg *prometheus.Registry
}

// measured gives the rig's next store metrics of its own.
func (r *rig) measured() gauges {
	r.t.Helper()
	g := gauges{r.t, prometheus.NewRegistry()}
	m, err := store.NewMetrics(g.reg, "mongodb")
	if err != nil {
		r.t.Fatal(err)
	}
	r.o.Metrics = m
	return g
}

// sum adds up the samples of rewindmq_<name> whose labels have these values, each
// given as name, value.
func (g gauges) sum(name string, labels ...string) float64 {
	g.t.Helper()
	families, err := g.reg.Gather()
	if err != nil {
		g.t.Fatal(err)
	}
	total := 0.0
	for _, f := range families {
		if f.GetName() != "rewindmq_"+name {
			continue
		}
	next:
		for _, m := range f.GetMetric() {
			for i := 0; i < len(labels); i += 2 {
				has := false
				for _, l := range m.GetLabel() {
					has = has || l.GetName() == labels[i] && l.GetValue() == labels[i+1]
				}
				if !has {
					continue next
				}
			}
			total += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return total
}

func (g gauges) left(reason string) float64 {
	g.t.Helper()
	return g.sum("change_stream_resumes_total", "reason", reason)
}

// streaming appends until the stream shows it, and gives the publisher.
func streaming(t *testing.T, r *rig, g gauges, s *Store) {
	t.Helper()
	pub := &store.Publisher{}
	r.until("a stream", func(ctx context.Context) bool {
		before := g.sum("change_stream_events_total", "op", "insert")
		appendOne(t, s, pub, "t")
		_ = rest(ctx, 50*time.Millisecond)
		return g.sum("change_stream_events_total", "op", "insert") > before
	})
}

// Item 8: the tail leaves its stream for each of the reasons of METRICS.md, and each
// is counted by its own (load: TestSwitch; history_lost, error: below).
func TestResumesByReason(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		reason string
		cause  func(ctx context.Context, r *rig, s *Store) error
	}{
		{"silence", func(context.Context, *rig, *Store) error { return nil }},
		{"poke", func(ctx context.Context, _ *rig, s *Store) error {
			_ = rest(ctx, pokeQuiet+2*streamAwait)
			s.Poke()
			return nil
		}},
		{"lane", func(ctx context.Context, _ *rig, s *Store) error {
			_, err := s.openLane(ctx, false)
			return err
		}},
		{"adoption", func(ctx context.Context, r *rig, _ *Store) error {
			_, err := r.db.Collection("message").InsertOne(ctx, fields("topic", "t", "data", "foreign"))
			return err
		}},
		// The second message of a lane, and no first: what lies between is not there.
		{"gap", func(ctx context.Context, r *rig, s *Store) error {
			newest := s.lanes.knownUpTo()
			lane := newLaneID(newest+1, 7)
			if _, err := s.c.lane.InsertOne(ctx, laneDoc{Number: int64(lane.number()), Key: 7, Node: bson.NewObjectID()}); err != nil {
				return err
			}
			m := &schema.Message{ID: s.ids.Next(time.Now()), Topic: "t", Created: time.Now()}
			_, err := r.db.Collection("message").InsertOne(ctx, form{}.encode(m, lane, 2))
			return err
		}},
	} {
		t.Run(c.reason, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, 1)
			r.o.Lease = 10 * time.Second // it does not get by without its lease's lanes
			g := r.measured()
			s := r.start()
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			from, err := s.Head(ctx)
			if err != nil {
				t.Fatal(err)
			}
			runTail(ctx, t, s, from)
			streaming(t, r, g, s)
			before := g.left(c.reason)
			if err := c.cause(ctx, r, s); err != nil {
				t.Fatal(err)
			}
			r.until(c.reason, func(context.Context) bool { return g.left(c.reason) > before })
			streaming(t, r, g, s) // again
		})
	}
}

// Item 8: a server that dies is an error, a place that has gone out of the oplog is
// history_lost, once.
func TestResumesAfterLoss(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	mongod.Need(t)
	set, err := mongod.Start(ctx, mongod.Options{Dir: t.TempDir(), OplogMB: 1, Checkpoint: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(set.Stop)
	r := rigOn(t, set)
	r.o.Lease = 10 * time.Second
	g := r.measured()
	s := r.start()
	from, err := s.Head(ctx)
	if err != nil {
		t.Fatal(err)
	}
	v := runTail(ctx, t, s, from)
	streaming(t, r, g, s)
	set.Members()[0].Kill()
	_ = rest(ctx, streamHung+time.Second) // the driver alone comes back sooner
	if err := set.Members()[0].Start(); err != nil {
		t.Fatal(err)
	}
	r.until("an error", func(context.Context) bool { return g.left("error") == 1 })
	streaming(t, r, g, s)
	if n := g.sum("store_errors_total", "kind", "network"); n == 0 {
		t.Error("a server that was killed is no network error")
	}

	// The tail does not ask while the oplog rolls over: its goroutine hangs in the
	// lock that it stores events under.
	v.mu.Lock()
	appendOne(t, s, &store.Publisher{}, "t")
	_ = rest(ctx, 2*streamAwait) // it has the event, and waits for the lock
	roll(ctx, t, r.db.Client())
	v.mu.Unlock()
	r.until("history_lost", func(context.Context) bool { return g.left(historyLost) > 0 })
	streaming(t, r, g, s)
	if n := g.left(historyLost); n != 1 {
		t.Errorf("history_lost %v times", n)
	}
	head, err := s.Head(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if live, again := v.passed(ctx, t, from, head), follow(ctx, t, s, from, head); len(messagesOf(live)) != len(messagesOf(again)) {
		t.Errorf("%d messages live, %d in the log", len(messagesOf(live)), len(messagesOf(again)))
	}
}

func messagesOf(events []store.Event) []*schema.Message {
	var out []*schema.Message
	for _, e := range events {
		if e.Message != nil {
			out = append(out, e.Message)
		}
	}
	return out
}

// roll writes until nothing is left of what the oplog had.
func roll(ctx context.Context, t *testing.T, server *driver.Client) {
	t.Helper()
	oplog := server.Database("local", options.Database().SetReadConcern(readconcern.Local())).Collection("oplog.rs")
	end := func(order int) uint64 {
		doc, err := oplog.FindOne(ctx, bson.D{}, options.FindOne().SetSort(fields("$natural", order))).Raw()
		if err != nil {
			return 0 // the server is just cutting there
		}
		sec, i := doc.Lookup("ts").Timestamp()
		return uint64(sec)<<32 | uint64(i)
	}
	newest := end(-1)
	for end(1) <= newest {
		if _, err := server.Database("filler").Collection("other").InsertOne(ctx, fields("x", make([]byte, 64<<10))); err != nil {
			t.Fatal(err)
		}
	}
}

// Item 8: errors are counted by kind: a server that says nothing is a timeout, one
// that steps down is not_primary (or takes its connections with it).
func TestErrorsByKind(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("three members in a short run")
	}
	set := ownSet(t, 3)
	r := rigOn(t, set)
	r.o.Attempt, r.o.Lease = time.Second, 10*time.Second
	g := r.measured()
	s := r.start()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	l := newLedger(t)
	flows := func(more int) {
		t.Helper()
		before, _, _, _ := l.counts()
		r.until("appends", func(context.Context) bool { n, _, _, _ := l.counts(); return n >= before+more })
	}
	load, stop := context.WithCancel(ctx)
	var pubs sync.WaitGroup
	for i := range 4 {
		pubs.Go(func() {
			for load.Err() == nil {
				l.publish(ctx, s, fmt.Sprint("p", i), 20, 4)
			}
		})
	}
	defer pubs.Wait()
	defer stop()
	flows(10)
	p, err := set.Primary(ctx)
	if err != nil {
		t.Fatal(err)
	}
	p.Pause()
	r.until("a timeout", func(context.Context) bool { return g.sum("store_errors_total", "op", "append", "kind", "timeout") > 0 })
	p.Resume()
	flows(10)
	down := func() float64 {
		return g.sum("store_errors_total", "kind", "not_primary") + g.sum("store_errors_total", "kind", "network")
	}
	for before, i := down(), 0; down() == before; i++ {
		if i == 5 {
			t.Fatal("five times a primary stepped down under load, and no error was counted")
		}
		if err := set.StepDown(ctx); err != nil {
			t.Fatal(err)
		}
		flows(10)
	}
	for _, op := range []string{"command_insert", "command_update", "command_find", "command_aggregate"} {
		if g.sum("store_operation_duration_seconds", "op", op) == 0 {
			t.Errorf("no command of %s was measured", op)
		}
	}
	if g.sum("store_append_duration_seconds") == 0 || g.sum("store_append_batch_messages") == 0 {
		t.Error("no append was measured")
	}
}

// Item 8: the oldest message is the one that retention has left.
func TestOldestTimestamp(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	g := r.measured()
	s := r.start()
	ctx := context.Background()
	oldest := func() float64 {
		s.gaugeOldest()
		return g.sum("store_oldest_message_timestamp_seconds")
	}
	if at := oldest(); at != 0 {
		t.Errorf("oldest %v in an empty log", at)
	}
	now := time.Now().Truncate(time.Second)
	var heads []schema.Cursor
	for i := range 3 {
		at := now.Add(time.Duration(i-10) * time.Hour)
		m := &schema.Message{ID: s.ids.Next(at), Topic: fmt.Sprint(i), QoS: 1, Created: at}
		done := make(chan struct{})
		s.Append(ctx, &store.Publisher{}, []*schema.Message{m}, func([]store.Appended) { close(done) })
		<-done
		h, err := s.Head(ctx)
		if err != nil {
			t.Fatal(err)
		}
		heads = append(heads, h)
	}
	for i := range 3 {
		want := float64(now.Add(time.Duration(i-10) * time.Hour).Unix())
		if at := oldest(); at != want {
			t.Errorf("with %d trimmed: oldest %v, want %v", i, at, want)
		}
		r.trim(heads[i])
	}
	if at := oldest(); at != 0 {
		t.Errorf("oldest %v in a log that was trimmed to its end", at)
	}
}
