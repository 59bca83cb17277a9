package mongo

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	driver "go.mongodb.org/mongo-driver/v2/mongo"

	"rewindmq/schema"
	"rewindmq/store"
)

// S-43: with the stream cut, a poke makes what is missing arrive; without one the
// tail looks by itself, later.
func TestS43_Poke(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	r.o.mute = new(atomic.Bool)
	s := r.start()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	from, err := s.Head(ctx)
	if err != nil {
		t.Fatal(err)
	}
	v := runTail(ctx, t, s, from)
	wait := func(n int) time.Duration {
		t.Helper()
		began := time.Now()
		for {
			v.mu.Lock()
			got := 0
			for _, e := range v.events {
				if e.Message != nil {
					got++
				}
			}
			v.mu.Unlock()
			if got >= n {
				return time.Since(began)
			}
			if rest(ctx, 5*time.Millisecond) != nil {
				t.Fatalf("%d of %d came", got, n)
			}
		}
	}
	pub := &store.Publisher{}
	appendOne(t, s, pub, "t")
	wait(1)
	_ = rest(ctx, pokeQuiet+2*streamAwait)
	r.o.mute.Store(true)
	appendOne(t, s, pub, "t")
	s.Poke()
	if took := wait(2); took > streamSilent/2 {
		t.Errorf("poked: it took %v", took)
	}
	appendOne(t, s, pub, "t")
	wait(3)
}

// T10: several messages under one cluster time, as 8.0 has it for a batch and a
// transaction has it on any server: each once, also for a tail that begins between
// them.
func TestT10_OneClusterTime(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	s := r.start()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	from, err := s.Head(ctx)
	if err != nil {
		t.Fatal(err)
	}
	v := runTail(ctx, t, s, from)
	// A lane of a node that does nothing else: what is in it, this test puts there.
	lane := newLaneID(from.Newest()+1, 7)
	if _, err := s.c.lane.InsertOne(ctx, laneDoc{Number: int64(lane.number()), Key: 7, Node: bson.NewObjectID()}); err != nil {
		t.Fatal(err)
	}
	const n = 30
	err = r.db.Client().UseSession(ctx, func(ctx context.Context) error {
		_, err := driver.SessionFromContext(ctx).WithTransaction(ctx, func(ctx context.Context) (any, error) {
			var docs []any
			for i := range n {
				docs = append(docs, form{}.encode(&schema.Message{ID: s.ids.Next(time.Now()), Topic: "t", Created: time.Now()}, lane, uint64(i+1)))
			}
			return r.db.Collection("message").InsertMany(ctx, docs)
		})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	head, err := s.Head(ctx)
	if err != nil {
		t.Fatal(err)
	}
	events := v.passed(ctx, t, from, head)
	seen := 0
	for i, e := range events {
		if e.Message == nil {
			continue
		}
		seen++
		if e.Message.Mark.N != uint64(seen) {
			t.Fatalf("message %d is %v", seen, e.Message.Mark)
		}
		rest := 0
		for _, x := range follow(ctx, t, s, e.H, head) {
			if x.Message != nil {
				rest++
			}
		}
		if rest != n-seen {
			t.Errorf("behind event %d: %d messages, want %d", i, rest, n-seen)
		}
	}
	if seen != n {
		t.Errorf("%d of %d", seen, n)
	}
}

// T12: a dropped collection is an alarm, and the tail does not stand there healthy
// for ever.
func TestT12_DroppedCollection(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	s, err := Open(ctx, r.o)
	if err != nil {
		t.Fatal(err)
	}
	gone := make(chan error, 1)
	go func() { gone <- s.Run(ctx) }()
	from, err := s.Head(ctx)
	if err != nil {
		t.Fatal(err)
	}
	v := runTail(ctx, t, s, from)
	appendOne(t, s, &store.Publisher{}, "t")
	head, err := s.Head(ctx)
	if err != nil {
		t.Fatal(err)
	}
	v.passed(ctx, t, from, head)
	_ = rest(ctx, 2*streamAwait) // it streams
	if err := r.db.Collection("message").Drop(ctx); err != nil {
		t.Fatal(err)
	}
	if err := <-gone; !errors.Is(err, store.ErrCorrupt) {
		t.Errorf("Run: %v", err)
	}
	<-v.gone
}
