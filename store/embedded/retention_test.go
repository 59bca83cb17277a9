package embedded

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"rewindmq/schema"
	"rewindmq/store"
)

const day = 24 * time.Hour

// keys counts the keys with a prefix.
func (r *rig) keys(prefix byte) int {
	r.t.Helper()
	n := 0
	if err := r.scan([]byte{prefix}, nil, func([]byte, []byte) error { n++; return nil }); err != nil {
		r.t.Fatal(err)
	}
	return n
}

// Retention drops whole days, by range; what is read behind it is counted; the
// log goes on above.
func TestRetention(t *testing.T) {
	t.Parallel()
	clock := newTestClock()
	m, err := store.NewMetrics(prometheus.NewRegistry(), "embedded")
	if err != nil {
		t.Fatal(err)
	}
	r := start(t, Options{Now: clock.Now, RetainMessages: 10 * day, RetainRecords: 5 * day, Metrics: m})
	o := r.claim(store.Claim{ClientID: "c", Expiry: schema.NoExpiry}).Owner
	for d := range 8 {
		r.put("common", fmt.Sprintf("%d", d))
		r.put(fmt.Sprintf("only/%d", d), fmt.Sprintf("%d'", d))
		r.deliver(o, uint64(d+1), uint64(2*d+1), uint16(d+1), 1)
		r.write(store.SaveCursor{Owner: o, Cursor: schema.SessionCursor{After: schema.At(1, 0), Seq: uint64(d + 1)}})
		clock.add(day)
	}
	r.housekeep()
	if n := r.keys(keyDelivery); n != 5 {
		t.Errorf("%d records left on day 8, want those of 5 days", n)
	}
	if got, trimmed := r.read(0, 99, "common"); len(got) != 8 || trimmed != 0 {
		t.Errorf("day 8: read %q, trimmed %d", got, trimmed)
	}
	for range 5 {
		clock.add(day)
		r.inside(func(c *committer) error { return nil }) // the clock is read as it goes on
	}
	r.housekeep()
	for range 2 { // after a start too
		got, trimmed := r.read(0, 99, "common")
		if strings.Join(got, " ") != "3 4 5 6 7" || trimmed != 6 {
			t.Errorf("day 13: read %q, trimmed %d; want 3 to 7, and 6 of the first three days", got, trimmed)
		}
		if got, trimmed := r.read(5, 99, "#"); len(got) != 10 || trimmed != 1 {
			t.Errorf("day 13, behind 5: %d messages, trimmed %d; want 10, 1", len(got), trimmed)
		}
		if got, trimmed := r.read(0, 4, "#"); len(got) != 0 || trimmed != 4 {
			t.Errorf("day 13, up to 4: %q, trimmed %d", got, trimmed)
		}
		if n := r.keys(keyTopicID); n != 6 {
			t.Errorf("%d topics, want common and those of 5 days", n)
		}
		if n := r.keys(keyTopic); n != 10 {
			t.Errorf("%d index entries, want 10", n)
		}
		if n, _ := r.topics.size(); n != 6 {
			t.Errorf("%d topics in memory", n)
		}
		r = r.again()
	}
	if got := testutil.ToFloat64(m.OldestTimestamp); got == 0 {
		t.Error("no oldest message")
	}
}

// S8: records that no saved cursor speaks for are kept beyond their time, until
// one does: while the session is held, and at the next start.
func TestS8_RecordsWaitForTheCursor(t *testing.T) {
	t.Parallel()
	for _, save := range []bool{true, false} {
		clock := newTestClock()
		r := start(t, Options{Now: clock.Now, RetainRecords: 2 * day, FS: vfs.NewCrashableMem()})
		o := r.claim(store.Claim{ClientID: "c", Expiry: schema.NoExpiry}).Owner
		for d := range 6 {
			r.deliver(o, uint64(d+1), uint64(d+1), uint16(d+1), 2)
			clock.add(day)
		}
		flight := schema.Flight{Seq: 1, MessageID: schema.ID{1}, PacketID: 1, QoS: 2}
		if save {
			r.write(
				store.SaveCursor{Owner: o, Cursor: schema.SessionCursor{After: schema.At(1, 6), Seq: 6, Flight: []schema.Flight{flight}}},
				store.MarkReceived{Owner: o, Flight: flight},
			)
		}
		r.housekeep()
		want := 6
		if save {
			want = 2
		}
		if n := r.keys(keyDelivery); n != want {
			t.Errorf("saved %v: %d records, want %d", save, n, want)
		}
		r = r.crash(0, 1)
		r.housekeep()
		if n := r.keys(keyDelivery); n != 2 {
			t.Errorf("saved %v: %d records after a start, want 2", save, n)
		}
		got := r.claim(store.Claim{ClientID: "c", Expiry: schema.NoExpiry})
		switch f := got.Cursor.Flight; {
		case got.Cursor.Seq != 6:
			t.Errorf("saved %v: seq %d", save, got.Cursor.Seq)
		case save && (len(f) != 1 || !f[0].Received):
			t.Errorf("the record is gone, PUBREC is not forgotten: flight %+v", f)
		case !save && len(f) != 6:
			t.Errorf("%d in flight, want 6", len(f))
		}
	}
}

// When retention has taken everything, n and ts still go on above.
func TestNumberingAfterAllIsGone(t *testing.T) {
	t.Parallel()
	clock := newTestClock()
	r := start(t, Options{Now: clock.Now, RetainMessages: day})
	r.put("t", "a", "b", "c")
	before := r.newestTS()
	for range 5 {
		clock.add(23 * time.Hour)
		r.inside(func(*committer) error { return nil })
	}
	r.housekeep()
	if n := r.keys(keyMessage); n != 0 {
		t.Fatalf("%d messages left", n)
	}
	for range 2 {
		if h := r.headN(); h != 3 {
			t.Errorf("head %d, want 3", h)
		}
		clock.add(-3 * day) // ts does not go by the clock alone
		r = r.again()
	}
	if n := r.put("t", "d")[0]; n != 4 {
		t.Errorf("the next message is %d, want 4", n)
	}
	if ts := r.newestTS(); ts <= before {
		t.Errorf("ts %d after %d", ts, before)
	}
	if got, trimmed := r.read(0, 99, "t"); strings.Join(got, "") != "d" || trimmed != 3 {
		t.Errorf("read %q, trimmed %d", got, trimmed)
	}
}

func (r *rig) newestTS() (ts uint64) {
	r.inside(func(c *committer) error { ts = c.ts; return nil })
	return ts
}

func TestKeptForEver(t *testing.T) {
	t.Parallel()
	clock := newTestClock()
	r := start(t, Options{Now: clock.Now, RetainMessages: -1, RetainRecords: -1})
	r.put("t", "a")
	for range 800 {
		clock.add(20 * time.Hour)
		r.inside(func(*committer) error { return nil })
	}
	r.put("t", "b")
	r.housekeep()
	if got, _ := r.read(0, 99, "t"); len(got) != 2 {
		t.Errorf("read %q", got)
	}
}

// T15: the clock steps back over a day: the messages of that time are neither
// missed nor dropped early.
func TestT15_EpochsOnlyRise(t *testing.T) {
	t.Parallel()
	clock := newTestClock()
	o := Options{Now: clock.Now, FS: vfs.NewMem(), Dir: "data", RetainMessages: 10 * day}
	r := start(t, o)
	r.put("t", "a")
	clock.add(day)
	r.put("t", "b")
	r.stop()
	clock.add(-9 * day)
	r = start(t, o)
	r.put("t", "c")
	clock.add(2 * day)
	r.inside(func(*committer) error { return nil })
	r.housekeep()
	if got, trimmed := r.read(0, 99, "t"); strings.Join(got, "") != "abc" || trimmed != 0 {
		t.Errorf("read %q, trimmed %d", got, trimmed)
	}
	last := uint32(0)
	for _, e := range r.epochs.list() {
		if e.id <= last {
			t.Errorf("epoch %d behind %d", e.id, last)
		}
		last = e.id
	}
	if last != 3 {
		t.Errorf("%d epochs, want 3", last)
	}
}

// F-27 (a): the log runs with a clock that is 400 days ahead, retention passes,
// then with the right clock: nothing unread is lost, no session has ended, and
// the step is noticed.
func TestF27a_ClockAheadAtStart(t *testing.T) {
	t.Parallel()
	clock := newTestClock()
	o := Options{Now: clock.Now, FS: vfs.NewMem(), Dir: "data"}
	r := start(t, o)
	owner := r.claim(store.Claim{ClientID: "c", Expiry: uint32((60 * day).Seconds())}).Owner
	r.fill("t", 100, 10)
	r.write(store.Release{Owner: owner})
	r.stop()

	clock.add(400 * day)
	r = start(t, o)
	if err := r.Ready(context.Background()); err == nil || !strings.Contains(err.Error(), "clock") {
		t.Errorf("Ready with the clock ahead: %v", err)
	}
	r.housekeep()
	if ended, err := r.EndExpired(context.Background(), 10); err != nil || len(ended) != 0 {
		t.Errorf("ended %v, %v", ended, err)
	}
	r.put("t", "meanwhile")
	r.stop()

	clock.add(-400 * day)
	r = start(t, o)
	if err := r.Ready(context.Background()); err != nil {
		t.Errorf("Ready with the right clock: %v", err)
	}
	r.housekeep()
	got := r.claim(store.Claim{ClientID: "c", Expiry: 100})
	if !got.Present {
		t.Error("the session has ended")
	}
	if read, trimmed := r.read(0, 999, "t"); len(read) != 101 || trimmed != 0 {
		t.Errorf("%d messages, trimmed %d; want 101, 0", len(read), trimmed)
	}
}

// The same within one run; and the clock is believed when it has held long.
func TestF27a_ClockJumpsWhileRunning(t *testing.T) {
	t.Parallel()
	clock := newTestClock()
	o := Options{Now: clock.Now, FS: vfs.NewMem(), Dir: "data"}
	r := start(t, o)
	early := r.claim(store.Claim{ClientID: "early", Expiry: uint32((60 * day).Seconds())}).Owner
	late := r.claim(store.Claim{ClientID: "late", Expiry: uint32((60 * day).Seconds()), Will: &schema.Will{Topic: "w", Delay: 7200}}).Owner
	r.put("t", "a")
	r.write(store.Release{Owner: early})
	clock.add(time.Minute)
	r.housekeep()
	clock.add(400 * day)
	r.housekeep()
	if err := r.Ready(context.Background()); err == nil {
		t.Error("ready with the clock ahead")
	}
	clock.add(23 * time.Hour)
	r.housekeep()
	r.write(store.Release{Owner: late})
	if ended, _ := r.EndExpired(context.Background(), 10); len(ended) != 0 {
		t.Errorf("ended %v", ended)
	}
	r = r.again() // it counts on over a start
	clock.add(30 * time.Minute)
	r.housekeep()
	if err := r.Ready(context.Background()); err == nil {
		t.Error("ready after 23 1/2 hours")
	}
	clock.add(31 * time.Minute)
	r.housekeep()
	if err := r.Ready(context.Background()); err != nil {
		t.Errorf("after 24 hours: %v", err)
	}
	r.housekeep()
	if got, trimmed := r.read(0, 99, "t"); len(got) != 0 || trimmed != 1 {
		t.Errorf("believed: read %q, trimmed %d: retention goes on", got, trimmed)
	}
	if due, _ := r.DueWills(context.Background(), 10); len(due) != 0 {
		t.Errorf("a will an hour early: %v", due)
	}
	ended, _ := r.EndExpired(context.Background(), 10)
	if len(ended) != 1 || ended[0].ClientID != "early" {
		t.Errorf("ended %v, want early alone: the other was let go an hour ago", ended)
	}
	clock.add(time.Hour)
	if due, _ := r.DueWills(context.Background(), 10); len(due) != 1 {
		t.Errorf("its will: %v", due)
	}
}

// A jump that is implausible within a run and plausible over a start: what was
// timed meanwhile does not end early.
func TestClockBelievedByAStart(t *testing.T) {
	t.Parallel()
	clock := newTestClock()
	r := start(t, Options{Now: clock.Now, FS: vfs.NewMem()})
	o := r.claim(store.Claim{ClientID: "c", Expiry: uint32((2 * day).Seconds())}).Owner
	clock.add(5 * day)
	r.housekeep()
	r.write(store.Release{Owner: o})
	r = r.again()
	if err := r.Ready(context.Background()); err != nil {
		t.Error(err)
	}
	if ended, _ := r.EndExpired(context.Background(), 9); len(ended) != 0 {
		t.Errorf("ended %v", ended)
	}
	clock.add(20 * time.Hour)
	r.housekeep()
	clock.add(20 * time.Hour)
	r.housekeep()
	clock.add(20 * time.Hour)
	if ended, _ := r.EndExpired(context.Background(), 9); len(ended) != 1 {
		t.Errorf("ended %v", ended)
	}
}

// F-27 (d): the clock steps back one hour while clients are connected: no
// session, will or message ends early or late by an hour.
func TestF27d_ClockStepsBack(t *testing.T) {
	t.Parallel()
	clock := newTestClock()
	r := start(t, Options{Now: clock.Now})
	ctx := context.Background()
	o := r.claim(store.Claim{ClientID: "c", Expiry: 600, Will: &schema.Will{Topic: "w", Delay: 300}}).Owner
	other := r.claim(store.Claim{ClientID: "d", Expiry: 600}).Owner
	r.write(store.Release{Owner: o})
	ts := r.newestTS()
	clock.add(-time.Hour)
	r.put("t", "a")
	if now := r.newestTS(); now <= ts {
		t.Errorf("ts went back from %d to %d", ts, now)
	}
	r.write(store.Release{Owner: other})
	clock.add(299 * time.Second)
	if due, _ := r.DueWills(ctx, 10); len(due) != 0 {
		t.Errorf("a will early: %v", due)
	}
	clock.add(2 * time.Second)
	due, _ := r.DueWills(ctx, 10)
	if len(due) != 1 {
		t.Fatalf("a will late: %v", due)
	}
	r.write(store.TakeOutWill{Owner: o, Key: due[0].Will.Key})
	if ended, _ := r.EndExpired(ctx, 10); len(ended) != 0 {
		t.Errorf("ended early: %v", ended)
	}
	clock.add(301 * time.Second)
	if ended, _ := r.EndExpired(ctx, 10); len(ended) != 2 {
		t.Errorf("ended late: %v", ended)
	}
}

// Retention that comes while a read is open is counted, not passed over.
func TestRetentionUnderAnOpenRead(t *testing.T) {
	t.Parallel()
	for _, filter := range []string{"#", "t/0"} {
		clock := newTestClock()
		// Nothing is old enough before the read is open, however long that takes:
		// the log keeps house by itself, too.
		r := start(t, Options{Now: clock.Now, RetainMessages: 4 * day})
		for d := range 4 {
			for i := range 400 {
				r.put(fmt.Sprintf("t/%d", i%2), fmt.Sprint(d))
			}
			if d < 3 {
				clock.add(day)
			}
		}
		ctx := context.Background()
		m, err := r.Read(ctx, schema.Cursor{}, schema.At(1, 1600), []string{filter})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := m.Next(ctx); err != nil || m.Trimmed() != 0 {
			t.Fatalf("%v, trimmed %d", err, m.Trimmed())
		}
		for range 3 { // a longer step would not be believed
			clock.add(20 * time.Hour)
			r.inside(func(*committer) error { return nil })
		}
		r.housekeep() // two days go
		n := 1
		for {
			if _, err := m.Next(ctx); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("%s: after %d: %v", filter, n, err)
			}
			n++
		}
		whole := 1600
		if filter != "#" {
			whole = 800
		}
		if m.Trimmed() == 0 || n >= whole {
			t.Errorf("%s: %d of %d messages, trimmed %d", filter, n, whole, m.Trimmed())
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		if got, _ := r.read(0, 1600, filter); len(got) != whole/2 {
			t.Errorf("%s: %d left, want two days", filter, len(got))
		}
	}
}

// What is forgotten of repeated ids goes by the time in them.
func TestSeenIsForgotten(t *testing.T) {
	t.Parallel()
	clock := newTestClock()
	r := start(t, Options{Now: clock.Now, RetainMessages: 5 * day})
	for range 9 {
		m := r.message("t", "x", 2)
		m.ID = r.ids.Next(clock.Now())
		r.append(&store.Publisher{}, m)
		clock.add(day)
		r.inside(func(*committer) error { return nil })
	}
	r.housekeep()
	if n := r.keys(keySeen); n < 5 || n > 7 {
		t.Errorf("%d ids kept, want 5 to 7", n)
	}
}

// A cleared topic is remembered for a day.
func TestTombstones(t *testing.T) {
	t.Parallel()
	clock := newTestClock()
	r := start(t, Options{Now: clock.Now})
	ctx := context.Background()
	keep := r.message("keep", "v", 1)
	clear := r.message("clear", "", 1)
	again := r.message("again", "", 1)
	for i, m := range []*schema.Message{keep, clear, again} {
		m.TS, m.Mark = uint64(i+1), schema.Mark{Lane: 1, N: uint64(i + 1)}
	}
	if err := r.StoreRetained(ctx, []*schema.Message{keep, clear, again}, schema.At(1, 3)); err != nil {
		t.Fatal(err)
	}
	back := r.message("again", "w", 1)
	back.TS, back.Mark = 9, schema.Mark{Lane: 1, N: 9}
	if err := r.StoreRetained(ctx, []*schema.Message{back}, schema.At(1, 9)); err != nil {
		t.Fatal(err)
	}
	topics := func() (out []string) {
		at, err := r.LoadRetained(ctx, func(m *schema.Message) error { out = append(out, m.Topic); return nil })
		if err != nil || !at.Equal(schema.At(1, 9)) {
			t.Errorf("checkpoint %v, %v", at, err)
		}
		return out
	}
	clock.add(23 * time.Hour)
	r.housekeep()
	if got := topics(); !slices.Equal(got, []string{"again", "clear", "keep"}) {
		t.Errorf("after 23 hours: %q", got)
	}
	clock.add(2 * time.Hour)
	r.housekeep()
	if got := topics(); !slices.Equal(got, []string{"again", "keep"}) {
		t.Errorf("after 25 hours: %q", got)
	}
	if n := r.keys(keyTombstone); n != 0 {
		t.Errorf("%d on the agenda", n)
	}
}
