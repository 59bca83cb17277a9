package mongo

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"

	"rewindmq/schema"
	"rewindmq/store"
)

// [MQTT-3.1.3-9] A node dies, nobody judges it, and its clients are back: who was away
// for longer than the delay has its will published, at its time, and who was not has
// not.
func TestWillOfANodeThatNobodyJudged(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	r.o.Lease = time.Minute // nobody is judged here
	a := r.start()
	at := headOf(t, a)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	ask := func(id string, delay uint32) []store.Claim {
		return []store.Claim{{ClientID: id, Protocol: 5, Expiry: schema.NoExpiry, At: at, Will: &schema.Will{Topic: "w", QoS: 1, Delay: delay}}}
	}
	delays := map[string]uint32{"none": 0, "short": 50, "long": 3600}
	for id, delay := range delays {
		if got := a.Claim(ctx, ask(id, delay))[0]; got.Err != nil {
			t.Fatal(got.Err)
		}
	}
	node := a.self.id()
	a.kill()
	const over = 100 * time.Second
	lapse(t, r, node, over)
	b := r.start()
	long := time.Now().Add(-r.o.Lease)
	b.self.steady.Store(&long)
	for id, delay := range delays {
		got := b.Claim(ctx, ask(id, 0))[0]
		if got.Err != nil || got.Released || (len(got.Wills) == 1) != (id != "long") {
			t.Errorf("%s: %+v", id, got)
		}
		for _, w := range got.Wills {
			want := b.o.clock.at(time.Now())
			if id == "short" {
				want = want.Add(time.Duration(delay)*time.Second - over)
			}
			if diff := want.Sub(w.At); w.Delay != delay || diff < -10*time.Second || diff > 10*time.Second {
				t.Errorf("%s: a will with delay %d of %v, want %d, %v", id, w.Delay, w.At, delay, want)
			}
		}
	}
}

// lapse makes a node's lease one that is over for that long.
func lapse(t *testing.T, r *rig, node bson.ObjectID, over time.Duration) {
	t.Helper()
	_, err := r.db.Collection("node").UpdateOne(context.Background(), fields("_id", node), []bson.D{
		set("beat", ex("$subtract", "$$NOW", ex("$add", "$lease", over.Milliseconds()))),
	})
	if err != nil {
		t.Fatal(err)
	}
}

// W2: the store was away for everybody, for longer than a will's delay. A client that
// moves from a node that lives to another at that moment has left no will: the claim
// waits until that node can have been heard.
func TestHole_W2_WillAfterAGap(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	r.o.Lease = time.Minute
	a := r.start()
	var looks atomic.Int32
	looked := make(chan struct{})
	h := newHook("find", func(cmd bson.Raw) bool {
		_, err := cmd.LookupErr("projection", "over")
		return err == nil
	}, nil)
	h.each = func() {
		if looks.Add(1) == 1 {
			close(looked)
		}
	}
	r.o.commands = h.monitor()
	b := r.start()
	close(h.armed)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	ask := []store.Claim{{ClientID: "c", Protocol: 5, Expiry: schema.NoExpiry, At: headOf(t, a), Will: &schema.Will{Topic: "w", QoS: 1, Delay: 1}}}
	if first := a.Claim(ctx, ask)[0]; first.Err != nil {
		t.Fatal(first.Err)
	}
	lapse(t, r, a.self.id(), 100*time.Second)
	now := time.Now()
	b.self.steady.Store(&now) // it was away, too
	second := make(chan store.Claimed, 1)
	go func() { second <- b.Claim(ctx, ask)[0] }()
	answer(t, looked)
	// What it would ask next it asks behind one of these.
	for range 50 {
		if _, err := b.fresh.time(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if n := looks.Load(); n != 1 {
		t.Fatal("it decides before the other node can have been heard")
	}
	if _, err := a.fresh.time(ctx); err != nil { // its heartbeat
		t.Fatal(err)
	}
	long := now.Add(-r.o.Lease)
	b.self.steady.Store(&long)
	if got := answer(t, second); got.Err != nil || len(got.Wills) != 0 || looks.Load() != 2 {
		t.Errorf("%+v", got)
	}
}
