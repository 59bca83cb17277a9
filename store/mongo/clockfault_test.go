package mongo

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"rewindmq/schema"
	"rewindmq/store"
)

// F-27 b: a broker whose clock is 400 days behind stores a message for an offline
// session, while the server's TTL monitor goes round each second. The session comes
// back after five rounds, to a node with the right clock, and gets it.
func TestF27b_OfflineSession(t *testing.T) {
	t.Parallel()
	r := rigOn(t, ownSet(t, 1, "ttlMonitorSleepSecs=1"))
	r.o.RetainMessages, r.o.RetainRecords, r.o.clock = 0, 0, nil
	right := r.o
	r.o.Now = func() time.Time { return time.Now().Add(-400 * 24 * time.Hour) }
	wrong := r.start()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	from, err := wrong.Head(ctx)
	if err != nil {
		t.Fatal(err)
	}
	got := wrong.Claim(ctx, []store.Claim{{ClientID: "c", Protocol: 5, Expiry: schema.NoExpiry, At: from}})[0]
	if got.Err != nil {
		t.Fatal(got.Err)
	}
	if err := wrong.Write(ctx, []store.Write{store.Release{Owner: got.Owner}})[0]; err != nil {
		t.Fatal(err)
	}
	m := &schema.Message{ID: wrong.ids.Next(wrong.Now()), Topic: "t", QoS: 1, Created: wrong.Now()}
	if off := time.Since(m.Created).Abs(); off > time.Minute {
		t.Errorf("created is off by %v", off)
	}
	stored := make(chan store.Appended, 1)
	wrong.Append(ctx, &store.Publisher{}, []*schema.Message{m}, func(a []store.Appended) { stored <- a[0] })
	if a := <-stored; a.Outcome != store.Stored {
		t.Fatalf("%+v", a)
	}
	if err := wrong.Ready(ctx); err == nil {
		t.Error("Ready does not name the clock")
	}
	at := passes(ctx, t, r)
	r.until("five rounds of the TTL monitor", func(ctx context.Context) bool { return passes(ctx, t, r) >= at+5 })
	r.o = right
	s := r.start()
	head, err := s.Head(ctx)
	if err != nil {
		t.Fatal(err)
	}
	back := s.Claim(ctx, []store.Claim{{ClientID: "c", Protocol: 5, Expiry: schema.NoExpiry, At: head}})[0]
	if back.Err != nil || !back.Present {
		t.Fatalf("the session: present %t, %v", back.Present, back.Err)
	}
	if n := readAll(ctx, t, s, back.Cursor.After, head, "t"); n != 1 {
		t.Errorf("%d of 1 messages", n)
	}
}

// F-27 d: the clock steps back an hour while clients are connected, and with their
// sessions waiting to expire and their wills to fall due: nobody loses his session,
// and nothing comes early or late by an hour.
func TestF27d_StepBack(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	r.o.clock = nil // the server's own
	var ahead atomic.Int64
	r.o.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	s := r.start()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	w, err := s.Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	told := make(chan []store.Lost, 1)
	watching, stop := context.WithCancel(ctx)
	go func() {
		lost, _ := w.Next(watching)
		told <- lost
	}()
	const expiry, delay = 3, 2
	stays := claim(t, s, "stays")
	gone := s.Claim(ctx, []store.Claim{{ClientID: "gone", Protocol: 5, Expiry: expiry, Will: &schema.Will{Topic: "w", QoS: 1, Delay: delay}}})[0]
	if gone.Err != nil {
		t.Fatal(gone.Err)
	}
	began := time.Now()
	if err := s.Write(ctx, []store.Write{store.Release{Owner: gone.Owner}})[0]; err != nil {
		t.Fatal(err)
	}
	before := s.Now()
	ahead.Store(int64(-time.Hour))
	if by := s.Now().Sub(before); by < 0 || by > 30*time.Second {
		t.Errorf("the time for stamps went by %v", by)
	}
	var due []store.DueWill
	r.until("the will", func(ctx context.Context) bool {
		var err error
		due, err = s.DueWills(ctx, 10)
		return err == nil && len(due) > 0
	})
	if took := time.Since(began); took < delay*time.Second-100*time.Millisecond || due[0].ClientID != "gone" {
		t.Errorf("%+v fell due after %v, want %d s", due, took, delay)
	}
	if off := due[0].Will.At.Sub(began.Add(delay * time.Second)).Abs(); off > 30*time.Second {
		t.Errorf("the will's time is off by %v", off)
	}
	if err := s.Write(ctx, []store.Write{store.TakeOutWill{Owner: gone.Owner, Key: due[0].Will.Key}})[0]; err != nil {
		t.Fatal(err)
	}
	var ended []schema.Owner
	r.until("the end of the session", func(ctx context.Context) bool {
		var err error
		ended, err = s.EndExpired(ctx, 10)
		return err == nil && len(ended) > 0
	})
	if took := time.Since(began); took < expiry*time.Second-100*time.Millisecond || ended[0].ClientID != "gone" {
		t.Errorf("%v ended after %v, want %d s", ended, took, expiry)
	}
	// The one that stays is its owner's still.
	if a := appendOne(t, s, &store.Publisher{Owner: stays.Owner}, "t"); a.Outcome != store.Stored {
		t.Errorf("%+v", a)
	}
	stop()
	if lost := <-told; len(lost) > 0 {
		t.Errorf("lost %+v", lost)
	}
	ahead.Store(0)
	if err := s.Ready(ctx); err != nil {
		t.Errorf("the clock is right again: %v", err)
	}
}
