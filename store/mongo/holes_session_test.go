package mongo

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"

	"rewindmq/schema"
	"rewindmq/store"
)

// writing starts a write and gives the channel of its error.
func writing(s *Store, w store.Write) <-chan error {
	out := make(chan error, 1)
	go func() { out <- s.Write(context.Background(), []store.Write{w})[0] }()
	return out
}

func mustWrite(t *testing.T, s *Store, list ...store.Write) {
	t.Helper()
	for i, err := range s.Write(context.Background(), list) {
		if err != nil {
			t.Fatalf("%T: %v", list[i], err)
		}
	}
}

// recording starts a record and gives the channel of its error.
func recording(s *Store, d schema.Delivery) <-chan error {
	out := make(chan error, 1)
	go func() { out <- s.Record(context.Background(), []schema.Delivery{d})[0] }()
	return out
}

func delivery(s *Store, o schema.Owner, seq uint64, at schema.Mark) schema.Delivery {
	now := time.Now()
	return schema.Delivery{
		ID: s.ids.Next(now), Owner: o, Seq: seq, Topic: "t", MessageID: s.ids.Next(now), Mark: at,
		PacketID: uint16(seq), QoS: 1, Host: "h", Created: now.Truncate(time.Millisecond).UTC(),
	}
}

func subscription(s *Store, filter string, qos uint8) schema.Subscription {
	return schema.Subscription{ID: s.ids.Next(time.Now()), Filter: filter, QoS: qos, Created: time.Now().Truncate(time.Millisecond).UTC()}
}

func sessionOf(t *testing.T, s *Store, id string) sessionDoc {
	t.Helper()
	d, err := s.readSession(context.Background(), id)
	if err != nil || d == nil {
		t.Fatalf("session %q: %v, %v", id, d, err)
	}
	return *d
}

// S10, S20, Q2: the old owner is paused in the middle of a write, another node
// claims the session and goes on; then the write comes to the server.
func TestHole_S10_S20_Q2_LateWriteOfTheOldOwner(t *testing.T) {
	t.Parallel()
	_, g, a, b := pair(t, nil)
	id := func() schema.ID { return a.ids.Next(time.Now()) }
	kept := id()
	for name, tt := range map[string]struct {
		write func(schema.Owner) store.Write
		texts []string
	}{
		"S10 cursor": {func(o schema.Owner) store.Write {
			return store.SaveCursor{Owner: o, Cursor: schema.SessionCursor{After: schema.At(1, 7), Seq: 7}}
		}, []string{command("update", "cursor"), "flight"}},
		"S20 unsubscribe": {func(o schema.Owner) store.Write {
			return store.DeleteSubscriptions{Owner: o, Filters: []string{"f"}}
		}, []string{command("delete", "subscription")}},
		"S20 subscribe": {func(o schema.Owner) store.Write {
			return store.PutSubscriptions{Owner: o, Subscriptions: []schema.Subscription{subscription(a, "f", 0), subscription(a, "late", 0)}}
		}, []string{command("update", "subscription")}},
		"Q2 entry": {func(o schema.Owner) store.Write {
			return store.PutInbound{Owner: o, Inbound: schema.Inbound{PacketID: 9, MessageID: id()}}
		}, []string{command("update", "cursor"), "inbound"}},
		"Q2 deletion": {func(o schema.Owner) store.Write {
			return store.DeleteInbound{Owner: o, PacketID: 5}
		}, []string{command("update", "cursor"), "$pull"}},
	} {
		t.Run(name, func(t *testing.T) {
			first := claim(t, a, name)
			mustWrite(t, a,
				store.PutSubscriptions{Owner: first.Owner, Subscriptions: []schema.Subscription{subscription(a, "f", 1)}},
				store.PutInbound{Owner: first.Owner, Inbound: schema.Inbound{PacketID: 5, MessageID: kept}})
			held := g.hold(append(tt.texts, name)...)
			old := writing(a, tt.write(first.Owner))
			held.come()
			second := claim(t, b, name)
			mustWrite(t, b,
				store.PutSubscriptions{Owner: second.Owner, Subscriptions: []schema.Subscription{subscription(b, "f", 2)}},
				store.SaveCursor{Owner: second.Owner, Cursor: schema.SessionCursor{After: schema.At(1, 3), Seq: 3}})
			held.release()
			_ = answer(t, old) // it lost, or says that it did something to what counted before the claim
			third := claim(t, b, name)
			if c := third.Cursor; c.Seq < 3 || !c.After.Equal(schema.At(1, 3)) {
				t.Errorf("cursor %+v", c)
			}
			if in := third.Cursor.Inbound; len(in) != 1 || in[0].PacketID != 5 || in[0].MessageID != kept {
				t.Errorf("inbound %+v", in)
			}
			if subs := third.Subscriptions; len(subs) != 1 || subs[0].Filter != "f" || subs[0].QoS != 2 {
				t.Errorf("subscriptions %+v", subs)
			}
		})
	}
}

// S11: the old owner's record commits just after the claimer has read the records:
// the fence keeps it out, and the old owner hears of it.
func TestHole_S11_RecordMeetsTheFence(t *testing.T) {
	t.Parallel()
	_, g, a, b := pair(t, nil)
	first := claim(t, a, "c")
	if err := answer(t, recording(a, delivery(a, first.Owner, 1, schema.Mark{Lane: 1, N: 1}))); err != nil {
		t.Fatal(err)
	}
	held := g.hold(command("insert", "publishedMessage"))
	old := recording(a, delivery(a, first.Owner, 2, schema.Mark{Lane: 1, N: 2}))
	held.come()
	second := claim(t, b, "c")
	if second.Released || len(second.Cursor.Flight) != 1 || second.Cursor.Seq != 2 {
		t.Fatalf("claimed %+v", second)
	}
	held.release()
	if err := answer(t, old); !errors.Is(err, store.ErrSessionLost) {
		t.Errorf("the old owner's record: %v", err)
	}
	if err := answer(t, recording(b, delivery(b, second.Owner, 3, schema.Mark{Lane: 1, N: 2}))); err != nil {
		t.Fatal(err)
	}
	third := claim(t, b, "c")
	if f := third.Cursor.Flight; len(f) != 2 || f[1].Seq != 3 {
		t.Errorf("flight %+v", f)
	}
}

// S12: what the claimer has read of the records is old: a record commits between
// its read and its fence. The fence collides with it, and the claimer reads again.
func TestHole_S12_FenceProvesTheReading(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	r.o.Lease = 20 * time.Second
	a := r.start()
	var first store.Claimed
	h := newHook("insert", func(cmd bson.Raw) bool {
		c, _ := cmd.Lookup("insert").StringValueOK()
		return c == "publishedMessage"
	}, func() {
		if err := answer(t, recording(a, delivery(a, first.Owner, 1, schema.Mark{Lane: 1, N: 1}))); err != nil {
			t.Error(err)
		}
	})
	r.o.commands = h.monitor()
	b := r.start()
	first = claim(t, a, "c")
	close(h.armed)
	second := claim(t, b, "c")
	if f := second.Cursor.Flight; second.Released || len(f) != 1 || f[0].Seq != 1 || second.Cursor.Seq < 1 {
		t.Errorf("claimed %+v", second)
	}
}

// S13, S19, S22: A's record and its append hang; B claims and waits for A; C claims
// over B, without waiting. C may not go by what B knows: it puts its own fence, and
// stoppers into A's lanes as well. And B, which gives up, must not say that A is
// done.
func TestHole_S13_S19_S22_ClaimOverAWaitingClaim(t *testing.T) {
	t.Parallel()
	r, g, a, c := pair(t, nil)
	r.o.ClaimWait = 20 * time.Second
	b := r.start()
	from := headOf(t, c)
	first := claim(t, a, "c")
	record := g.hold(command("insert", "publishedMessage"))
	app := g.hold(command("insert", "message"), "m1")
	oldRecord := recording(a, delivery(a, first.Owner, 1, schema.Mark{Lane: 1, N: 1}))
	oldAppend := later(a, &store.Publisher{Owner: first.Owner}, "t", "m1")
	record.come()
	app.come()
	waiting := make(chan store.Claimed, 1)
	ask := []store.Claim{{ClientID: "c", Protocol: 5, Expiry: schema.NoExpiry, At: from}}
	go func() { waiting <- b.Claim(context.Background(), ask)[0] }()
	r.eventually("the claim of B", func(ctx context.Context) bool { return sessionOf(t, c, "c").Epoch > int64(first.Epoch) })
	third := claim(t, c, "c")
	if gaveUp := answer(t, waiting); !errors.Is(gaveUp.Err, store.ErrSuperseded) {
		t.Errorf("B: %+v", gaveUp)
	}
	d := sessionOf(t, c, "c")
	if third.Released || d.Released >= int64(first.Epoch) {
		t.Errorf("A counts as released: %+v, epoch %d was let go, A has %d", third, d.Released, first.Epoch)
	}
	if x := answer(t, later(c, &store.Publisher{Owner: third.Owner}, "t", "m2")); x.Outcome != store.Stored {
		t.Fatalf("%+v", x)
	}
	record.release()
	app.release()
	if err := answer(t, oldRecord); !errors.Is(err, store.ErrSessionLost) {
		t.Errorf("A's record: %v", err)
	}
	if x := answer(t, oldAppend); x.Outcome != store.Refused || !errors.Is(x.Err, store.ErrSessionLost) {
		t.Errorf("A's append: %+v", x)
	}
	wantLog(t, "the log", logged(t, c, from), "m2")
	if f := claim(t, c, "c").Cursor.Flight; len(f) != 0 {
		t.Errorf("flight %+v", f)
	}
}

// S18: a node's own write is given up, sent again and followed by the next; then the
// first attempt comes to the server. It has an older transaction number there.
func TestHole_S18_LateAttempt(t *testing.T) {
	t.Parallel()
	_, g, a, _ := pair(t, func(o *Options) { o.Attempt = 300 * time.Millisecond })
	o := claim(t, a, "c").Owner
	mustWrite(t, a, store.SaveCursor{Owner: o, Cursor: schema.SessionCursor{Seq: 1}})
	for what, tt := range map[string]struct {
		late, next store.Write
		texts      []string
	}{
		"an inbound entry": {
			store.PutInbound{Owner: o, Inbound: schema.Inbound{PacketID: 7, MessageID: a.ids.Next(time.Now())}},
			store.DeleteInbound{Owner: o, PacketID: 7},
			[]string{command("update", "cursor"), "inbound"},
		},
		"a subscription": {
			store.PutSubscriptions{Owner: o, Subscriptions: []schema.Subscription{subscription(a, "f", 1)}},
			store.DeleteSubscriptions{Owner: o, Filters: []string{"f"}},
			[]string{command("update", "subscription")},
		},
	} {
		held := g.hold(tt.texts...)
		late := writing(a, tt.late)
		held.come()
		if err := answer(t, late); err != nil { // another attempt, on another connection
			t.Fatalf("%s: %v", what, err)
		}
		mustWrite(t, a, tt.next)
		held.release()
		mustWrite(t, a, store.SaveCursor{Owner: o, Cursor: schema.SessionCursor{Seq: 2}})
	}
	again := claim(t, a, "c")
	if len(again.Cursor.Inbound) > 0 || len(again.Subscriptions) > 0 {
		t.Errorf("came back: %+v, %+v", again.Cursor.Inbound, again.Subscriptions)
	}
}

// S21: a claim hangs in a socket for a long time, its client has gone elsewhere.
// When it comes to the server it takes the session from nobody, and adds no will.
// When only its answer is lost, it is found by its token.
func TestHole_S21_LateClaim(t *testing.T) {
	t.Parallel()
	_, g, a, b := pair(t, nil)
	from := headOf(t, b)
	mustWrite(t, b, store.Release{Owner: claim(t, b, "c").Owner}) // the session is there
	will := &schema.Will{Topic: "w", QoS: 1}
	ask := []store.Claim{{ClientID: "c", Protocol: 5, Expiry: schema.NoExpiry, Will: will, At: from}}
	held := g.hold(command("findAndModify", "session"))
	ctx, cancel := context.WithCancel(context.Background())
	late := make(chan store.Claimed, 1)
	go func() { late <- a.Claim(ctx, ask)[0] }()
	held.come()
	cancel() // the connection is gone
	if got := answer(t, late); got.Err == nil {
		t.Fatalf("%+v", got)
	}
	mine := b.Claim(context.Background(), ask)[0]
	if mine.Err != nil {
		t.Fatal(mine.Err)
	}
	held.release()
	mustWrite(t, b, store.SaveCursor{Owner: mine.Owner, Cursor: schema.SessionCursor{Seq: 1}})
	d := sessionOf(t, b, "c")
	if d.Owner == nil || *d.Owner != b.self.id() || d.Epoch != int64(mine.Epoch) || len(d.Wills) != 1 {
		t.Errorf("session %+v", d)
	}

	lost := g.lose(command("findAndModify", "session"))
	ask[0].ClientID = "d"
	got := a.Claim(context.Background(), ask)[0]
	lost.await(lost.answered, "the answer")
	if d := sessionOf(t, b, "d"); got.Err != nil || d.Epoch != int64(got.Epoch) || len(d.Wills) != 1 {
		t.Errorf("after a lost answer %+v, session %+v", got, d)
	}
}

// S25: DISCONNECT 0x00 is still in the old socket when another node claims: the will
// is decided only when the old owner has let go.
func TestHole_S25_WillDecidedAfterTheRelease(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	r.o.Lease, r.o.ClaimWait = time.Minute, time.Minute
	a, b := r.start(), r.start()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	at := headOf(t, a)
	watch, err := a.Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, normal := range []bool{true, false} {
		ask := []store.Claim{{ClientID: "c", Protocol: 5, Expiry: schema.NoExpiry, At: at, Will: &schema.Will{Topic: "w", QoS: 1}}}
		first := a.Claim(ctx, ask)[0]
		if first.Err != nil {
			t.Fatal(first.Err)
		}
		ask[0].Will = nil
		second := make(chan store.Claimed, 1)
		go func() { second <- b.Claim(ctx, ask)[0] }()
		if _, err := watch.Next(ctx); err != nil {
			t.Fatal(err)
		}
		// The claim has raised the epoch; the old socket is read to its end now.
		if err := answer(t, writing(a, store.Release{Owner: first.Owner, Normal: normal})); err != nil {
			t.Errorf("Release: %v", err)
		}
		got := answer(t, second)
		if got.Err != nil || !got.Released || (len(got.Wills) == 0) != normal {
			t.Errorf("normal %t: %+v", normal, got)
		}
		for _, w := range got.Wills {
			mustWrite(t, b, store.TakeOutWill{Owner: got.Owner, Key: w.Key})
		}
		mustWrite(t, b, store.Release{Owner: got.Owner})
	}
}

// W1: the owner that lost its client and the claimer both publish the will, and the
// keeper besides: it is one message, at one time.
func TestHole_W1_OneWill(t *testing.T) {
	t.Parallel()
	_, _, a, b := pair(t, nil)
	from := headOf(t, b)
	ctx := context.Background()
	ask := []store.Claim{{ClientID: "c", Protocol: 5, Expiry: schema.NoExpiry, At: from, Will: &schema.Will{Topic: "w", Payload: []byte("gone"), QoS: 1}}}
	first := a.Claim(ctx, ask)[0]
	if first.Err != nil {
		t.Fatal(first.Err)
	}
	mustWrite(t, a, store.Release{Owner: first.Owner})
	var found []schema.Will
	for _, s := range []*Store{a, b, a} {
		due, err := s.DueWills(ctx, 10)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range due {
			found = append(found, d.Will)
		}
	}
	// The claimer brings a will of its own, which overwrites nothing.
	second := b.Claim(ctx, ask)[0]
	if second.Err != nil || len(second.Wills) != 1 || len(found) == 0 {
		t.Fatalf("%+v, found before: %d", second, len(found))
	}
	found = append(found, second.Wills...)
	for i := range found {
		out := make(chan store.Appended, 1)
		s := []*Store{a, b}[i%2]
		m := store.WillMessage("c", "h", &found[i])
		s.Append(ctx, nobody(), []*schema.Message{m}, func(x []store.Appended) { out <- x[0] })
		if x := answer(t, out); x.Outcome != store.Stored {
			t.Errorf("%+v", x)
		}
	}
	wantLog(t, "the log", logged(t, b, from), "gone")
	if d := sessionOf(t, b, "c"); len(d.Wills) != 2 {
		t.Errorf("wills %+v", d.Wills)
	}
}

// W2: the store was away for everybody, so nobody is declared dead before each has
// had a whole lease to show itself. A node that restarts under its name within its
// lease is another one: what the first run had is finished.
func TestHole_W2_NobodyIsJudgedAfterAGap(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	r.o.Lease = time.Minute
	s := r.start()
	k := &keeper{s: s}
	ctx := context.Background()
	r.eventually("the lease", func(ctx context.Context) bool {
		ok, err := k.renew(ctx)
		return ok && err == nil
	})
	if !k.holds() || k.judges() {
		t.Errorf("fresh: holds %t, judges %t", k.holds(), k.judges())
	}
	k.held = time.Now().Add(-10 * r.o.Lease) // for long, with no gap
	if !k.judges() {
		t.Error("without a gap: does not judge")
	}
	k.last = time.Now().Add(-2 * r.o.Lease) // and then the store was away
	if k.holds() || k.judges() {
		t.Errorf("away: holds %t, judges %t", k.holds(), k.judges())
	}
	if ok, err := k.renew(ctx); err != nil || !ok {
		t.Fatalf("renew: %t, %v", ok, err)
	}
	if !k.holds() || k.judges() {
		t.Errorf("after the gap: holds %t, judges %t", k.holds(), k.judges())
	}
	k.sess.EndSession(ctx)

	r = newRig(t, 1)
	s = r.start()
	first := claim(t, s, "c")
	node := s.self.id()
	s.kill()
	s = r.start() // under the same name, at once
	r.ended(node)
	d := sessionOf(t, s, "c")
	if d.Disconnected == nil || d.Owner != nil || d.Epoch <= int64(first.Epoch) {
		t.Errorf("session %+v", d)
	}
}

// Several sessions of two nodes are recovered from their records alone, after both
// nodes were killed at once.
func TestAllNodesKilledAtOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	a, b := r.start(), r.start()
	type one struct {
		s    *Store
		got  store.Claimed
		want []schema.Flight
	}
	var all []*one
	mark := map[*Store]schema.Mark{}
	for _, s := range []*Store{a, b} {
		mark[s] = answer(t, later(s, nobody(), "t", "m")).Mark
	}
	at := headOf(t, a)
	for i := range 10 {
		x := &one{s: []*Store{a, b}[i%2]}
		x.got = claimAt(t, x.s, string(rune('a'+i)), at)
		all = append(all, x)
		var batch []schema.Delivery
		for n := range uint64(5 + i) {
			d := delivery(x.s, x.got.Owner, n+1, schema.Mark{Lane: mark[x.s].Lane, N: mark[x.s].N + n + 1})
			d.PacketID = uint16(n%4 + 1) // the last four are in doubt
			batch = append(batch, d)
		}
		for _, err := range x.s.Record(context.Background(), batch) {
			if err != nil {
				t.Fatal(err)
			}
		}
		for _, d := range batch[len(batch)-4:] {
			x.want = append(x.want, schema.Flight{Seq: d.Seq, MessageID: d.MessageID, Mark: d.Mark, PacketID: d.PacketID, QoS: 1, Created: d.Created})
		}
	}
	nodes := []bson.ObjectID{a.self.id(), b.self.id()}
	a.kill()
	b.kill()
	c := r.start()
	for _, n := range nodes {
		r.ended(n)
	}
	for _, x := range all {
		again := claimAt(t, c, x.got.ClientID, at)
		after := at.Clone()
		after.Advance(x.want[3].Mark)
		if !again.Present || !again.Cursor.After.Equal(after) || again.Cursor.Seq < x.want[3].Seq || !slices.Equal(again.Cursor.Flight, x.want) {
			t.Errorf("%s: %+v, want %v and %+v", x.got.ClientID, again.Cursor, after, x.want)
		}
	}
}

func claimAt(t *testing.T, s *Store, id string, at schema.Cursor) store.Claimed {
	t.Helper()
	got := s.Claim(context.Background(), []store.Claim{{ClientID: id, Protocol: 5, Expiry: schema.NoExpiry, At: at}})[0]
	if got.Err != nil {
		t.Fatal(got.Err)
	}
	return got
}
