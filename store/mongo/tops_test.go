package mongo

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"

	"rewindmq/schema"
	"rewindmq/store"
)

// kept has the keeper make a round, long before retention takes anything.
func kept(ctx context.Context, t *testing.T, r *rig, s *Store) {
	t.Helper()
	r.eventually("the keeper", func(context.Context) bool { return s.keeper.holds() })
	tops := &tops{s: s, kept: make([]laneTop, len(s.writers))}
	if err := tops.round(ctx); err != nil {
		t.Fatal(err)
	}
}

// L7: a node's lease is over while its append hangs in a socket, in a lane of which
// retention has taken everything. The keeper's `end` is at the place that the append
// goes to, which fails there: the message is yielded from another lane.
func TestL7_EndInAnEmptiedLane(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	r.o.Attempt, r.o.RetainMessages = time.Minute, time.Hour
	b := r.start()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	r.eventually("the keeper", func(context.Context) bool { return b.keeper.holds() })
	g := newGate(t, sets[1].get(t))
	a := r.through(g)
	tl, err := b.Tail(ctx, headOf(t, b))
	if err != nil {
		t.Fatal(err)
	}
	defer tl.Close()
	pub := &store.Publisher{}
	pub.ClientID = "p"
	first := appendOne(t, a, pub, "t")
	tailTo(ctx, t, tl, first.Mark)
	kept(ctx, t, r, b)
	r.trim(headOf(t, b))

	node := a.self.id()
	held := g.hold("\x02insert\x00\x08\x00\x00\x00message\x00", "late")
	beats := g.holdAll("\x02update\x00\x05\x00\x00\x00node\x00")
	late := later(a, pub, "t", "late")
	held.come()
	r.finished(node)
	var lane laneDoc
	if err := b.c.lane.FindOne(ctx, fields("_id", int64(first.Mark.Lane))).Decode(&lane); err != nil {
		t.Fatal(err)
	}
	if !lane.Retired || uint64(lane.Last) != first.Mark.N+1 {
		t.Errorf("retired: %v, last %d, want the place behind %v", lane.Retired, lane.Last, first.Mark)
	}
	for in := true; in; { // until the tail has done with the lane
		events, err := tl.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		_, in = events[len(events)-1].H.N(first.Mark.Lane)
	}
	held.release()
	g.mu.Lock()
	beats.free()
	g.mu.Unlock()
	got := answer(t, late)
	if got.Outcome != store.Stored {
		t.Fatalf("%+v", got)
	}
	if seen := tailTo(ctx, t, tl, appendOne(t, b, &store.Publisher{}, "t").Mark); !slices.Contains(seen, "late") {
		t.Errorf("acknowledged at %v, and not yielded: %v", got.Mark, seen)
	}
}

// tailTo reads a tail until it has passed m, and gives the payloads.
func tailTo(ctx context.Context, t *testing.T, tl store.Tail, m schema.Mark) (seen []string) {
	t.Helper()
	for {
		events, err := tl.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range events {
			if e.Message != nil {
				seen = append(seen, string(e.Message.Payload))
			}
		}
		if !events[len(events)-1].H.After(m) {
			return seen
		}
	}
}

// The numbering of a lane outlives its messages: a node that starts stands where the
// others do, a tail that was lower comes there, and a read counts as trimmed what
// somebody has missed, and nothing else.
func TestEmptiedLaneIsKnown(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	r.o.RetainMessages = time.Hour
	b := r.start()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	pub := &store.Publisher{}
	pub.ClientID = "p"
	low := headOf(t, b)
	for range 3 {
		appendOne(t, b, pub, "t")
	}
	since := headOf(t, b)
	kept(ctx, t, r, b)
	r.trim(since)
	c := r.start()
	from := headOf(t, c)
	if !from.Covers(since) {
		t.Errorf("a node that starts stands at %v, and never covers %v", from, since)
	}
	tl, err := c.Tail(ctx, low)
	if err != nil {
		t.Fatal(err)
	}
	defer tl.Close()
	for h := low; !h.Covers(since); {
		events, err := tl.Next(ctx)
		if err != nil {
			t.Fatalf("H %v does not come to %v: %v", h, since, err)
		}
		h = events[len(events)-1].H
	}
	appendOne(t, b, pub, "t")
	for _, x := range []struct {
		after   schema.Cursor
		trimmed uint64
	}{{from, 0}, {since, 0}, {low, 3}} {
		ms, err := c.Read(ctx, x.after, headOf(t, c), []string{"t"})
		if err != nil {
			t.Fatal(err)
		}
		if n := ms.Trimmed(); n != x.trimmed {
			t.Errorf("after %v: %d are trimmed, want %d", x.after, n, x.trimmed)
		}
		_ = ms.Close()
	}
}

// A node stores the tops of its own lanes by what it knows, also when there is nothing
// left to see and it is not the keeper; and `top` only rises.
func TestTopOfAnOwnLane(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	r.o.RetainMessages, r.o.Lanes = time.Hour, 1
	keeper := r.start()
	r.eventually("the keeper", func(context.Context) bool { return keeper.keeper.holds() })
	s := r.start()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	pub := &store.Publisher{}
	pub.ClientID = "p"
	last := appendOne(t, s, pub, "t")
	r.trim(headOf(t, keeper))
	tops := &tops{s: s, kept: make([]laneTop, 1)}
	if s.keeper.holds() {
		t.Fatal("it is the keeper")
	}
	// The writer tells it when it goes on.
	r.eventually("the top", func(ctx context.Context) bool {
		var d laneDoc
		return tops.round(ctx) == nil &&
			s.c.lane.FindOne(ctx, fields("_id", int64(last.Mark.Lane))).Decode(&d) == nil && uint64(d.Top) == last.Mark.N
	})
	var d laneDoc
	if err := s.keepTop(ctx, tops.kept[0].id, 0); err != nil {
		t.Fatal(err)
	}
	if err := s.c.lane.FindOne(ctx, fields("_id", int64(last.Mark.Lane))).Decode(&d); err != nil || uint64(d.Top) != last.Mark.N {
		t.Errorf("top is %d: %v", d.Top, err)
	}
	// What others have to know of it.
	list, err := Verify(ctx, r.o, 0)
	if err != nil || len(list) > 0 {
		t.Errorf("%v, %v", list, err)
	}
	if _, err := s.c.lane.UpdateOne(ctx, fields("_id", d.Number), fields("$set", fields("top", "1"))); err != nil {
		t.Fatal(err)
	}
	list, err = Verify(ctx, r.o, 0)
	if err != nil || len(list) != 1 || !strings.Contains(list[0], "top is a string") {
		t.Errorf("%v, %v", list, err)
	}
	if _, err := s.c.lane.UpdateOne(ctx, fields("_id", d.Number), fields("$unset", fields("top", ""))); err != nil {
		t.Fatal(err)
	}
}

// A document lives for half of the retention at least, however old it says to be: else
// the newest of a lane could be gone while the next one is under way.
func TestDocumentLivesForHalfTheRetention(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	r.o.RetainMessages = 4 * time.Hour
	s := r.start()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c := r.db.Collection("message")
	created := func(ago time.Duration) time.Time { return time.Now().Add(-ago).Truncate(time.Millisecond) }
	pub := &store.Publisher{}
	pub.ClientID = "p"
	began := time.Now()
	want := map[string]time.Time{} // what is kept as it was; zero: it was too old
	for i, ago := range []time.Duration{time.Hour, 3 * time.Hour} {
		m := message(s, pub, "t", fmt.Sprint("own", i))
		m.Created = created(ago)
		want["own"+fmt.Sprint(i)] = m.Created
		done := make(chan store.Appended, 1)
		s.Append(ctx, pub, []*schema.Message{m}, func(a []store.Appended) { done <- a[0] })
		if a := answer(t, done); a.Outcome != store.Stored {
			t.Fatalf("%+v", a)
		}
		at := created(ago)
		want["f"+fmt.Sprint(i)] = at
		if _, err := c.InsertOne(ctx, fields("topic", "t", "data", fmt.Sprint("f", i), "created", at)); err != nil {
			t.Fatal(err)
		}
	}
	want["own1"], want["f1"] = time.Time{}, time.Time{}
	r.eventually("adoption", func(ctx context.Context) bool {
		return count(ctx, t, r, "message", fields("topic", "t", "lane", fields("$exists", true))) == 4
	})
	cur, err := c.Find(ctx, fields("topic", "t"))
	if err != nil {
		t.Fatal(err)
	}
	var docs []bson.Raw
	if err := cur.All(ctx, &docs); err != nil || len(docs) != 4 {
		t.Fatalf("%d documents: %v", len(docs), err)
	}
	for _, d := range docs {
		name, at := d.Lookup("data").StringValue(), d.Lookup("created").Time()
		switch w := want[name]; {
		case w.IsZero() && at.Before(began.Add(-r.o.RetainMessages/2-clockTick)):
			t.Errorf("%s is from %v: retention takes it within half of it", name, at)
		case !w.IsZero() && !at.Equal(w):
			t.Errorf("%s is from %v, want %v", name, at, w)
		}
	}
}
