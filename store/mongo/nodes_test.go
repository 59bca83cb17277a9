package mongo

import (
	"context"
	"errors"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"

	"rewindmq/schema"
	"rewindmq/store"
)

func claim(t *testing.T, s *Store, id string) store.Claimed {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	at, err := s.Head(ctx)
	if err != nil {
		t.Fatal(err)
	}
	got := s.Claim(ctx, []store.Claim{{ClientID: id, Protocol: 5, Expiry: schema.NoExpiry, At: at}})[0]
	if got.Err != nil {
		t.Fatal(got.Err)
	}
	return got
}

func appendOne(t *testing.T, s *Store, p *store.Publisher, topic string) store.Appended {
	t.Helper()
	out := make(chan store.Appended, 1)
	m := &schema.Message{ID: s.ids.Next(time.Now()), Topic: topic, ClientID: p.ClientID, QoS: 1, Created: time.Now()}
	s.Append(context.Background(), p, []*schema.Message{m}, func(a []store.Appended) { out <- a[0] })
	select {
	case a := <-out:
		return a
	case <-time.After(30 * time.Second):
		t.Fatal("an append was not answered")
	}
	return store.Appended{}
}

// A session that is claimed on another node: the former owner is told at once,
// lets go, and the claimer sees what it left.
func TestTakeOverByAnotherNode(t *testing.T) {
	t.Parallel()
	for _, streams := range []bool{true, false} {
		r := newRig(t, 1)
		r.o.ClaimWait, r.o.NoStreams = 20*time.Second, !streams
		a, b := r.start(), r.start()
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		watch, err := a.Watch(ctx)
		if err != nil {
			t.Fatal(err)
		}
		first := claim(t, a, "c")
		told := make(chan error, 1)
		go func() {
			lost, err := watch.Next(ctx)
			if err == nil && (len(lost) != 1 || lost[0].ClientID != "c" || lost[0].Epoch <= first.Epoch) {
				err = errors.New("told something else")
			}
			if err == nil {
				cur := schema.SessionCursor{After: schema.At(1, 5), Seq: 7}
				errs := a.Write(ctx, []store.Write{store.SaveCursor{Owner: first.Owner, Cursor: cur}, store.Release{Owner: first.Owner}})
				err = errors.Join(errs...)
			}
			told <- err
		}()
		second := claim(t, b, "c")
		if err := <-told; err != nil {
			t.Errorf("streams %v: the former owner: %v", streams, err)
		}
		if !second.Released || !second.Present || second.Cursor.Seq != 7 {
			t.Errorf("streams %v: claimed %+v", streams, second)
		}
		if err := a.Write(ctx, []store.Write{store.SaveCursor{Owner: first.Owner}})[0]; !errors.Is(err, store.ErrSessionLost) {
			t.Errorf("a write of the former owner: %v", err)
		}
	}
}

// L8: what a node still holds for a session that was claimed elsewhere is not
// appended: the claimer has put a stopper, and whoever meets it looks.
func TestL8_StopperMakesTheWriterLook(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	a, b := r.start(), r.start()
	first := claim(t, a, "c")
	pub := &store.Publisher{Owner: first.Owner}
	if got := appendOne(t, a, pub, "t"); got.Outcome != store.Stored {
		t.Fatalf("%+v", got)
	}
	other := &store.Publisher{Owner: claim(t, a, "d").Owner}
	if got := appendOne(t, a, other, "t"); got.Outcome != store.Stored {
		t.Fatalf("%+v", got)
	}
	second := claim(t, b, "c") // a does not let go
	if second.Released {
		t.Fatal("released?")
	}
	if got := appendOne(t, b, &store.Publisher{Owner: second.Owner}, "t"); got.Outcome != store.Stored {
		t.Fatalf("%+v", got)
	}
	if got := appendOne(t, a, pub, "t"); got.Outcome != store.Refused || !errors.Is(got.Err, store.ErrSessionLost) {
		t.Errorf("an append of the former owner: %+v", got)
	}
	if got := appendOne(t, a, other, "t"); got.Outcome != store.Stored {
		t.Errorf("an append of another session: %+v", got)
	}
}

// A node that is declared dead while it is away goes on as another: its sessions
// and lanes are others' affair.
func TestDeadNodeIsReborn(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	a := r.start()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	first := claim(t, a, "c")
	pub := &store.Publisher{Owner: first.Owner}
	got := appendOne(t, a, pub, "t")
	watch, err := a.Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	node := a.self.id()
	if _, err := a.c.node.UpdateOne(ctx, fields("_id", node), fields("$set", fields("dead", time.Now()))); err != nil {
		t.Fatal(err)
	}
	lost, err := watch.Next(ctx)
	if err != nil || len(lost) != 1 || lost[0].ClientID != "" {
		t.Fatalf("told %+v, %v", lost, err)
	}
	r.finished(node)
	if err := a.Write(ctx, []store.Write{store.SaveCursor{Owner: first.Owner}})[0]; !errors.Is(err, store.ErrSessionLost) {
		t.Errorf("a write of a dead node: %v", err)
	}
	if a := appendOne(t, a, pub, "t"); a.Outcome != store.Refused || !errors.Is(a.Err, store.ErrSessionLost) {
		t.Errorf("an append of a dead node: %+v", a)
	}
	next := claim(t, a, "c")
	again := appendOne(t, a, &store.Publisher{Owner: next.Owner}, "t")
	if again.Outcome != store.Stored || again.Mark.Lane == got.Mark.Lane {
		t.Errorf("after it was reborn: %+v, before %+v", again, got)
	}
}

// A claim that ends under a name that its node has no more is let go of, without the
// will of a connection that was never accepted: nobody would look after it.
func TestClaimOfAFormerName(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	s := r.start()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	w := &claimWalk{s: s, token: bson.NewObjectID(), node: bson.NewObjectID(), ask: store.Claim{
		ClientID: "c", Protocol: 5, Expiry: schema.NoExpiry, Will: &schema.Will{Topic: "w", QoS: 1},
	}}
	if got := w.walk(ctx); !errors.Is(got.Err, errReborn) {
		t.Errorf("%+v, want that the node is another", got)
	}
	info, err := s.LookSession(ctx, "c")
	if err != nil || info.Connected {
		t.Errorf("%+v, %v: want that nobody has it", info, err)
	}
	if d, err := s.readSession(ctx, "c"); err != nil || d.Owner != nil || d.Released != d.Epoch || len(d.Wills) > 0 {
		t.Errorf("%+v, %v: want it released, without a will", d, err)
	}
	if s.owned.has(w.mine.owns()) {
		t.Error("it is this node's")
	}
	if next := claim(t, s, "c"); !next.Present || !next.Released {
		t.Errorf("the next claim: %+v", next)
	}
}

// Lanes that were ended go from the vector of a tail, and of Head; a node that
// stops ends its own.
func TestLanesRetireAtTheEnd(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	a := r.start()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	from, err := a.Head(ctx)
	if err != nil {
		t.Fatal(err)
	}
	run, stop := context.WithCancel(ctx)
	b, err := Open(ctx, r.o)
	if err != nil {
		t.Fatal(err)
	}
	gone := make(chan error, 1)
	go func() { gone <- b.Run(run) }()
	got := appendOne(t, b, &store.Publisher{}, "t")
	stop()
	if err := <-gone; err != nil {
		t.Fatal(err)
	}
	head, err := a.Head(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := head.N(got.Mark.Lane); ok || head.Newest() < got.Mark.Lane || head.After(got.Mark) {
		t.Errorf("Head is %v after lane %d was ended", head, got.Mark.Lane)
	}
	events := follow(ctx, t, a, from, head)
	if h := events[len(events)-1].H; !h.Equal(head) {
		t.Errorf("the tail stands at %v, Head is %v", h, head)
	}
}
