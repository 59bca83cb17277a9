package mongo

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	driver "go.mongodb.org/mongo-driver/v2/mongo"

	"rewindmq/schema"
)

func foreigners(t *testing.T, r *rig, from, n int) []bson.ObjectID {
	t.Helper()
	var docs []any
	var ids []bson.ObjectID
	for i := range n {
		ids = append(ids, bson.NewObjectID())
		docs = append(docs, fields("_id", ids[i], "topic", "t", "data", fmt.Sprint("f", from+i)))
	}
	if _, err := r.db.Collection("message").InsertMany(context.Background(), docs); err != nil {
		t.Fatal(err)
	}
	return ids
}

// names gives f0 to f(n-1).
func names(n int) []string {
	var out []string
	for i := range n {
		out = append(out, fmt.Sprint("f", i))
	}
	return out
}

// adoptedAll waits until nothing without a place is left.
func adoptedAll(t *testing.T, r *rig) {
	t.Helper()
	r.eventually("the adoption", func(ctx context.Context) bool {
		n, err := r.db.Collection("message").CountDocuments(ctx, fields("lane", nil))
		return err == nil && n == 0
	})
}

// P1, P6: foreign documents carry marks: a copy of one of ours, a lane that there is
// not, a living lane under another key with an n far ahead. The first is refused, the
// others are adopted, and no vector moves by them, also not that of a node that
// starts now.
func TestHole_P1_P6_ForeignMarks(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	r.o.Lease = 20 * time.Second
	s := r.start()
	ctx := context.Background()
	mark := answer(t, later(s, nobody(), "t", "ours")).Mark
	from := headOf(t, s)
	var ours bson.M
	if err := r.db.Collection("message").FindOne(ctx, fields("data", "ours")).Decode(&ours); err != nil {
		t.Fatal(err)
	}
	ours["_id"] = bson.NewObjectID()
	if _, err := r.db.Collection("message").InsertOne(ctx, ours); !driver.IsDuplicateKeyError(err) {
		t.Errorf("a copy within the log: %v", err)
	}
	key := ours["lane"].(int64)
	const ahead = int64(1) << 40
	for name, at := range map[string][2]int64{
		"unknown lane":           {int64(newLaneID(from.Newest()+50, 3)), 4},
		"living lane, other key": {key ^ 1, int64(mark.N) + 1},
		"far ahead":              {key ^ 2, ahead},
	} {
		if _, err := r.db.Collection("message").InsertOne(ctx, fields("topic", "t", "data", name, "lane", at[0], "n", at[1])); err != nil {
			t.Fatal(err)
		}
	}
	if h := headOf(t, s); !h.Equal(from) && h.Newest() == from.Newest() {
		t.Errorf("Head moved from %v to %v", from, h)
	}
	b := r.start() // it starts now
	h := headOf(t, b)
	for _, m := range h.Marks() {
		if m.N >= uint64(ahead) || m.Lane >= from.Newest()+50 {
			t.Errorf("a node that starts stands at %v", h)
		}
	}
	if n, _ := h.N(mark.Lane); n != mark.N {
		t.Errorf("it stands at %d in lane %d, where %d is the last", n, mark.Lane, mark.N)
	}
	var got []string
	for _, m := range adopted(t, b, from, 3) {
		got = append(got, string(m.Payload))
		if m.Mark.N > 3 || m.Mark.Lane == mark.Lane {
			t.Errorf("%s at %v", m.Payload, m.Mark)
		}
	}
	slices.Sort(got)
	wantLog(t, "adopted", got, "far ahead", "living lane, other key", "unknown lane")
	if x := answer(t, later(s, nobody(), "t", "next")); x.Mark.N != mark.N+1 && x.Mark.Lane == mark.Lane {
		t.Errorf("the lane goes on at %v", x.Mark)
	}
}

// P2: an adoption hangs in a socket; the keeper gives the attempt up and does it
// again, at the same marks; then the first comes to the server.
func TestHole_P2_LateAdoption(t *testing.T) {
	t.Parallel()
	r, g, _, b := pairKept(t, 20*time.Second)
	from := headOf(t, b)
	held := g.hold(command("update", "message"), "$$CLUSTER_TIME")
	foreigners(t, r, 0, 20)
	held.come()
	wantAdopted(t, b, from, 20)
	before := places(t, r)
	held.release()
	foreigners(t, r, 20, 5)
	wantAdopted(t, b, from, 25)
	for id, p := range before {
		if now := places(t, r)[id]; now != p {
			t.Errorf("%v stood at %v, and now at %v", id.Hex(), p, now)
		}
	}
}

// pairKept is pair, where the node behind the gate is the keeper, with short
// attempts.
func pairKept(t *testing.T, lease time.Duration) (*rig, *gate, *Store, *Store) {
	t.Helper()
	r := newRig(t, 1)
	r.o.Lease, r.o.Attempt = lease, 500*time.Millisecond
	g := newGate(t, sets[1].get(t))
	a := r.through(g)
	r.eventually("the keeper", func(context.Context) bool { return a.keeper.holds() })
	return r, g, a, r.start()
}

// wantAdopted wants f0 to f(n-1) in the log, once each, each insert's in its order.
func wantAdopted(t *testing.T, s *Store, from schema.Cursor, n int) {
	t.Helper()
	var got []string
	for _, m := range adopted(t, s, from, n) {
		got = append(got, string(m.Payload))
	}
	want := names(n)
	slices.Sort(got)
	slices.Sort(want)
	wantLog(t, "adopted", got, want...)
	if again := logged(t, s, from); len(again) != n {
		t.Errorf("%d messages in the log, want %d", len(again), n)
	}
}

// places gives where each document stands.
func places(t *testing.T, r *rig) map[bson.ObjectID]place {
	t.Helper()
	ctx := context.Background()
	cur, err := r.db.Collection("message").Find(ctx, fields("topic", "t"))
	if err != nil {
		t.Fatal(err)
	}
	defer cur.Close(ctx)
	out := map[bson.ObjectID]place{}
	for cur.Next(ctx) {
		out[cur.Current.Lookup("_id").ObjectID()] = placeOf(cur.Current)
	}
	return out
}

// P5: the keeper is paused in the middle of an adoption; another becomes the keeper,
// ends its lane and adopts; the first wakes.
func TestHole_P5_WokenKeeper(t *testing.T) {
	t.Parallel()
	r, g, a, b := pairKept(t, 2*time.Second)
	from := headOf(t, b)
	foreigners(t, r, 0, 3)
	wantAdopted(t, b, from, 3)
	var former place
	for _, p := range places(t, r) {
		former = p
	}
	// All that it sends now stays in the sockets: it is away.
	held := g.holdAll("\x02update\x00")
	other := g.holdAll("\x02insert\x00")
	foreigners(t, r, 3, 10)
	held.come()
	r.eventually("the other keeper", func(context.Context) bool { return b.keeper.holds() })
	wantAdopted(t, b, from, 13)
	before := places(t, r)
	var opener laneDoc
	if err := r.db.Collection("lane").FindOne(context.Background(), fields("_id", int64(former.lane.number()))).Decode(&opener); err != nil {
		t.Fatal(err)
	}
	for id, p := range before {
		// A busy machine may have made b the keeper before.
		if p.n > 3 && p.lane == former.lane && opener.Node == a.self.id() {
			t.Errorf("%v stands in the lane of the former keeper", id.Hex())
		}
	}
	held.release()
	r.g(other)
	foreigners(t, r, 13, 5)
	wantAdopted(t, b, from, 18)
	after := places(t, r)
	for id, p := range before {
		if after[id] != p {
			t.Errorf("%v stood at %v, and now at %v", id.Hex(), p, after[id])
		}
	}
}

// g lets go of a rule under which perhaps nothing came.
func (r *rig) g(x *rule) {
	x.g.mu.Lock()
	defer x.g.mu.Unlock()
	x.free()
}

// P5: a document is deleted between the keeper's look and its adoption. There is no
// hole in the lane, for which every hub would wait.
func TestHole_P5_DeletedBeforeItsAdoption(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	r.o.Lease = 20 * time.Second
	var ids []bson.ObjectID
	h := newHook("update", func(cmd bson.Raw) bool {
		c, _ := cmd.Lookup("update").StringValueOK()
		return c == "message"
	}, func() {
		for _, i := range []int{0, 4, 5, 9} {
			if _, err := r.db.Collection("message").DeleteOne(context.Background(), fields("_id", ids[i])); err != nil {
				t.Error(err)
			}
		}
	})
	r.o.commands = h.monitor()
	s := r.start()
	from := headOf(t, s)
	err := r.db.Client().UseSession(context.Background(), func(ctx context.Context) error {
		_, err := driver.SessionFromContext(ctx).WithTransaction(ctx, func(ctx context.Context) (any, error) {
			ids = nil
			var docs []any
			for i := range 10 {
				ids = append(ids, bson.NewObjectID())
				docs = append(docs, fields("_id", ids[i], "topic", "t", "data", fmt.Sprint("f", i)))
			}
			select {
			case <-h.armed:
			default:
				close(h.armed)
			}
			return r.db.Collection("message").InsertMany(ctx, docs)
		})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	adoptedAll(t, r)
	got := logged(t, s, from) // it comes to Head: nothing is missing in the lane
	slices.Sort(got)
	wantLog(t, "adopted", got, "f1", "f2", "f3", "f6", "f7", "f8")
	var n []int64
	for _, p := range places(t, r) {
		n = append(n, p.n)
	}
	slices.Sort(n)
	if !slices.Equal(n, []int64{1, 2, 3, 4, 5, 6}) {
		t.Errorf("they stand at %v", n)
	}
	foreigners(t, r, 20, 1)
	if got := adopted(t, s, from, 7); len(got) != 7 {
		t.Errorf("%d messages", len(got))
	}
}

// P3: `created` in 2001, and no broker runs: the TTL does not take it before it was
// adopted, and then it has another.
func TestHole_P3_OldInsertWhileNobodyRuns(t *testing.T) {
	t.Parallel()
	r := rigOn(t, ownSet(t, 1, "ttlMonitorSleepSecs=1"))
	r.o.RetainMessages, r.o.RetainRecords = 0, 0
	ctx := context.Background()
	from := stopped(t, r)
	old := time.Date(2001, 1, 1, 0, 0, 0, 0, time.UTC)
	c := r.db.Collection("message")
	if _, err := c.InsertOne(ctx, fields("topic", "t", "data", "f0", "created", old)); err != nil {
		t.Fatal(err)
	}
	// The monitor does take what has a place.
	if _, err := c.InsertOne(ctx, fields("topic", "x", "data", "", "created", old, "lane", int64(newLaneID(1000, 1)), "n", int64(1))); err != nil {
		t.Fatal(err)
	}
	round := func() {
		at := passes(ctx, t, r)
		r.eventually("the TTL monitor", func(ctx context.Context) bool {
			return count(ctx, t, r, "message", fields("topic", "x")) == 0 && passes(ctx, t, r) >= at+2
		})
	}
	round()
	if n := count(ctx, t, r, "message", fields("data", "f0")); n != 1 {
		t.Fatalf("%d documents are left", n)
	}
	s := r.start()
	wantAdopted(t, s, from, 1)
	round()
	wantAdopted(t, s, from, 1)
}

// stopped runs a store once, and gives its Head.
func stopped(t *testing.T, r *rig) schema.Cursor {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	s, err := Open(ctx, r.o)
	if err != nil {
		t.Fatal(err)
	}
	gone := make(chan error, 1)
	go func() { gone <- s.Run(ctx) }()
	h := headOf(t, s)
	stop()
	if err := <-gone; err != nil {
		t.Fatal(err)
	}
	return h
}

// P4: at the very first start there are many documents; while they are made history
// new ones come, and the process is killed before it is through. The next start goes
// on: what is there before `meta` is history, or is adopted; nothing is lost, nothing
// comes twice.
func TestHole_P4_KilledInTheFirstStart(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	const old = 20_000
	for range old / 5000 {
		var docs []any
		for i := range 5000 {
			docs = append(docs, fields("topic", fmt.Sprint("h/", i%7), "data", "old", "created", time.Now().Add(-time.Hour)))
		}
		if _, err := r.db.Collection("message").InsertMany(context.Background(), docs); err != nil {
			t.Fatal(err)
		}
	}
	put := func(data string) {
		if _, err := r.db.Collection("message").InsertOne(context.Background(), fields("topic", "n", "data", data)); err != nil {
			t.Error(err)
		}
	}
	begun, stop := context.WithCancel(context.Background())
	first := newHook("update", func(cmd bson.Raw) bool {
		c, _ := cmd.Lookup("update").StringValueOK()
		return c == "meta"
	}, func() {
		put("f0") // behind the marking, before the end of it
		stop()    // and there it dies
	})
	close(first.armed)
	r.o.commands = first.monitor()
	if s, err := Open(begun, r.o); err == nil {
		s.disconnect()
		t.Fatal("the first start was not cut")
	}
	if n := count(context.Background(), t, r, "meta", fields("_id", "format")); n != 0 {
		t.Fatal("the format is stored: this shows nothing")
	}
	second := newHook("update", first.wanted, func() { put("f1") })
	close(second.armed)
	r.o.commands = second.monitor()
	s := r.start()
	r.o.commands = nil
	put("f2")
	adoptedAll(t, r)
	ctx := context.Background()
	history := count(ctx, t, r, "message", fields("lane", int64(0)))
	if n := count(ctx, t, r, "message", fields("lane", int64(0), "data", "old")); n != old {
		t.Errorf("%d of %d are history", n, old)
	}
	got := logged(t, s, schema.Cursor{})
	slices.Sort(got)
	wantLog(t, "delivered", got, names(3)[int(history)-old:]...)
	if int(history)-old+len(got) != 3 || !slices.Contains(got, "f2") {
		t.Errorf("%d became history, %v is delivered", history-old, got)
	}
	if n := count(ctx, t, r, "message", fields("topic", fields("$ne", stopTopic))); n != old+3 {
		t.Errorf("%d documents, want %d", n, old+3)
	}
}
