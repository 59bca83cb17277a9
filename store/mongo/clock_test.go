package mongo

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"pgregory.net/rapid"

	"rewindmq/schema"
	"rewindmq/store"
)

// What is believed of the server's clock is never further off than the best answer
// allows, stays while it can be true, and does not follow the machine's wall clock.
func TestServerClock(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var c serverClock
		local := time.Now()
		server := local.Round(0).Add(time.Duration(rapid.Int64Range(-int64(500*24*time.Hour), int64(500*24*time.Hour)).Draw(t, "offset")))
		for range rapid.IntRange(1, 20).Draw(t, "answers") {
			pass := time.Duration(rapid.Int64Range(0, int64(10*time.Second)).Draw(t, "pass"))
			there := time.Duration(rapid.Int64Range(0, int64(300*time.Millisecond)).Draw(t, "there"))
			back := time.Duration(rapid.Int64Range(0, int64(300*time.Millisecond)).Draw(t, "back"))
			drift := time.Duration(rapid.Int64Range(-int64(time.Second), int64(time.Second)).Draw(t, "drift"))
			sent := local.Add(pass)
			at := server.Add(pass + there + drift) // as it stands when it answers
			before := c.at.Load()
			c.note(sent, sent.Add(there+back), at.Truncate(clockTick))
			truth := at.Add(-there) // at sent
			off := c.at.Load().when(sent).Sub(truth).Abs()
			if off > there+back+clockTick {
				t.Fatalf("off by %v after an answer that took %v", off, there+back)
			}
			if before != nil && before.when(sent).Equal(truth) && c.at.Load() != before {
				t.Fatal("moved, though it was right")
			}
			local, server = sent, truth
		}
	})
}

func TestClockOptions(t *testing.T) {
	t.Parallel()
	o, err := Options{URI: "mongodb://127.0.0.1"}.withDefaults()
	if err != nil || o.ClockBound != time.Minute || o.Now == nil {
		t.Errorf("%v, %v", o.ClockBound, err)
	}
	if _, err := (Options{URI: "mongodb://127.0.0.1", ClockBound: -1}).withDefaults(); err == nil || !strings.Contains(err.Error(), "ClockBound") {
		t.Errorf("a negative bound: %v", err)
	}
}

// F-27 d: a clock that is wrong, or steps while the store runs, moves no stamp, and
// Ready says which clock is off and by how much, until it is right again.
func TestF27d_ReadyNamesTheClock(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	var ahead atomic.Int64
	r.o.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	r.o.Node, r.o.Lease = "n7", time.Minute
	s := r.start()
	ctx := context.Background()
	for _, tt := range []struct {
		ahead time.Duration
		want  []string
	}{
		{0, nil},
		{50 * time.Second, nil},
		{-time.Hour, []string{"node n7", "1h0m0s behind the clock of the MongoDB server", "allowed: 1m0s"}},
		{61 * time.Second, []string{"node n7", "1m1s ahead of the clock of the MongoDB server"}},
		{-400 * 24 * time.Hour, []string{"400 days behind"}},
		{0, nil},
	} {
		ahead.Store(int64(tt.ahead))
		if off := time.Since(s.Now()).Abs(); off > 30*time.Second {
			t.Errorf("%v ahead: Now is off by %v", tt.ahead, off)
		}
		err := s.Ready(ctx)
		if (err != nil) != (tt.want != nil) {
			t.Errorf("%v ahead: Ready: %v", tt.ahead, err)
		}
		for _, w := range tt.want {
			if err != nil && !strings.Contains(err.Error(), w) {
				t.Errorf("%v ahead: Ready says %q, without %q", tt.ahead, err, w)
			}
		}
		// The promises hold.
		if a := appendOne(t, s, &store.Publisher{}, "t"); a.Outcome != store.Stored {
			t.Errorf("%v ahead: %+v", tt.ahead, a)
		}
	}
}

// The lag of the tail compares what the server tells of an event's time with this
// machine's clock: not while they differ.
func TestF27_LagWithAWrongClock(t *testing.T) {
	t.Parallel()
	for _, ahead := range []time.Duration{-400 * 24 * time.Hour, 0, 400 * 24 * time.Hour} {
		var c serverClock
		local := time.Now()
		c.note(local, local.Add(2*time.Millisecond), local.Round(0).Add(ahead+time.Millisecond))
		event := local.Round(0).Add(ahead + time.Hour) // an hour later, by the server's clock
		if got := c.local(event).Sub(local); (got - time.Hour).Abs() > 2*time.Millisecond {
			t.Errorf("server %v ahead: an hour later is %v later here", ahead, got)
		}
	}
}

// passes tells how often the server's TTL monitor has gone round.
func passes(ctx context.Context, t *testing.T, r *rig) int64 {
	t.Helper()
	var status struct {
		Metrics struct {
			TTL struct {
				Passes int64 `bson:"passes"`
			} `bson:"ttl"`
		} `bson:"metrics"`
	}
	if err := r.db.RunCommand(ctx, fields("serverStatus", 1)).Decode(&status); err != nil {
		t.Fatal(err)
	}
	return status.Metrics.TTL.Passes
}

// F-27 b: the clock of a broker is 400 days behind, or ahead. Retention takes none
// of what it stores: messages, stoppers, records and fences.
func TestF27b_RetentionAgainstAWrongClock(t *testing.T) {
	t.Parallel()
	set := ownSet(t, 1, "ttlMonitorSleepSecs=1")
	for _, off := range []time.Duration{-400 * 24 * time.Hour, 400 * 24 * time.Hour} {
		r := rigOn(t, set)
		r.o.RetainMessages, r.o.RetainRecords = 0, 0
		r.o.Now = func() time.Time { return time.Now().Add(off) }
		a, b := r.start(), r.start()
		ctx := context.Background()
		from, err := a.Head(ctx)
		if err != nil {
			t.Fatal(err)
		}
		first := claim(t, a, "c")
		m := &schema.Message{ID: a.ids.Next(a.Now()), Topic: "t", QoS: 1, Created: a.Now()}
		stored := make(chan store.Appended, 1)
		a.Append(ctx, &store.Publisher{Owner: first.Owner}, []*schema.Message{m}, func(got []store.Appended) { stored <- got[0] })
		if got := <-stored; got.Outcome != store.Stored {
			t.Fatalf("%+v", got)
		}
		if second := claim(t, b, "c"); second.Released {
			t.Fatal("released: there is neither fence nor stopper")
		}
		// What the monitor does take, so that this test shows something.
		if _, err := r.db.Collection("publishedMessage").InsertOne(ctx, fields("topic", "old", "created", time.Now().Add(-400*24*time.Hour))); err != nil {
			t.Fatal(err)
		}
		at := passes(ctx, t, r)
		r.eventually("the TTL monitor", func(ctx context.Context) bool {
			return count(ctx, t, r, "publishedMessage", fields("topic", "old")) == 0 && passes(ctx, t, r) >= at+2
		})
		for what, n := range map[string]int64{
			"messages": count(ctx, t, r, "message", fields("topic", "t")),
			"stoppers": count(ctx, t, r, "message", fields("topic", stopTopic)),
			"fences":   count(ctx, t, r, "publishedMessage", fields("clientId", "c", "messageId", nil)),
		} {
			if n == 0 {
				t.Errorf("%v: the %s are gone", off, what)
			}
		}
		head, err := b.Head(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if n := readAll(ctx, t, b, from, head, "t"); n != 1 {
			t.Errorf("%v: %d of 1 messages", off, n)
		}
	}
}

func count(ctx context.Context, t *testing.T, r *rig, c string, filter bson.D) int64 {
	t.Helper()
	n, err := r.db.Collection(c).CountDocuments(ctx, filter)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
