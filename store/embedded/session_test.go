package embedded

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"rewindmq/schema"
	"rewindmq/store"
)

// The session's number in the keys is never given twice, and its epochs never
// start again, also when the document was deleted and the clock stepped back
// (S9).
func TestS9_NumbersAreNeverGivenTwice(t *testing.T) {
	t.Parallel()
	clock := newTestClock()
	r := start(t, Options{Now: clock.Now, FS: vfs.NewMem()})
	number := func(client string) (n uint64) {
		r.inside(func(c *committer) error { n = c.owned[client].id; return nil })
		return n
	}
	last, epoch := uint64(0), uint64(0)
	for i := range 6 {
		got := r.claim(store.Claim{ClientID: "c", CleanStart: true})
		if n := number("c"); n <= last {
			t.Fatalf("round %d: number %d after %d", i, n, last)
		} else {
			last = n
		}
		if got.Epoch <= epoch || got.SID != got.Epoch {
			t.Fatalf("round %d: epoch %d after %d, sid %d", i, got.Epoch, epoch, got.SID)
		}
		epoch = got.Epoch
		r.write(store.Release{Owner: got.Owner}) // expiry 0: the document is gone
		if n := r.keys(keyClient); n != 0 {
			t.Fatalf("%d documents left", n)
		}
		clock.add(-time.Minute)
		if i%2 == 1 {
			r = r.again()
		}
	}
}

// The end of a session leaves nothing of it but its records.
func TestEndLeavesNothing(t *testing.T) {
	t.Parallel()
	r := start(t, Options{})
	var subs []schema.Subscription
	for i := range 20 {
		subs = append(subs, schema.Subscription{ID: schema.ID{1}, Filter: fmt.Sprintf("t/%d", i)})
	}
	fill := func() schema.Owner {
		o := r.claim(store.Claim{ClientID: "c", Expiry: 100}).Owner
		r.deliver(o, 1, 1, 1, 2)
		r.write(
			store.PutSubscriptions{Owner: o, Subscriptions: subs},
			store.PutInbound{Owner: o, Inbound: schema.Inbound{PacketID: 7}},
			store.MarkReceived{Owner: o, Flight: schema.Flight{Seq: 1}},
		)
		return o
	}
	left := func(how string) {
		t.Helper()
		for _, prefix := range []byte{keySubscription, keyInbound, keyCursor, keyReceived, keyClient, keyOwned, keyEnd, keyWill} {
			if n := r.keys(prefix); n != 0 {
				t.Errorf("%s: %d keys %q left", how, n, prefix)
			}
		}
		if n, err := r.Counts(context.Background()); err != nil || n != (store.Counts{}) {
			t.Errorf("%s: counts %+v, %v", how, n, err)
		}
	}
	o := fill()
	r.write(store.Release{Owner: o, Expiry: 0, SetExpiry: true})
	left("released with expiry 0")

	r.write(store.Release{Owner: fill()})
	got := r.claim(store.Claim{ClientID: "c", CleanStart: true})
	if len(got.Subscriptions)+len(got.Cursor.Flight)+len(got.Cursor.Inbound) != 0 || got.Present {
		t.Errorf("a clean start finds %+v", got)
	}
	r.write(store.Release{Owner: got.Owner})
	left("clean start, then released")

	// In one commit with what was just written.
	o = r.claim(store.Claim{ClientID: "c", Expiry: 100}).Owner
	r.write(store.PutSubscriptions{Owner: o, Subscriptions: subs}, store.Release{Owner: o, SetExpiry: true})
	left("written and ended in one call")
	if n := r.keys(keyDelivery); n != 2 {
		t.Errorf("%d records, want the history of 2", n)
	}
}

// A claim of a held session waits for the release, and takes over after a
// second; a newer claim supersedes one that waits.
func TestClaimWaits(t *testing.T) {
	t.Parallel()
	r := start(t, Options{})
	ctx := context.Background()
	first := r.claim(store.Claim{ClientID: "c", Expiry: 100})
	claim := func(ctx context.Context) <-chan store.Claimed {
		ch := make(chan store.Claimed, 1)
		go func() { ch <- r.Claim(ctx, []store.Claim{{ClientID: "c", Expiry: 100}})[0] }()
		return ch
	}
	waiting := func() {
		for n := 0; n == 0; {
			r.inside(func(c *committer) error { n = len(c.waiting); return nil })
		}
	}
	second := claim(ctx)
	waiting()
	r.write(store.PutInbound{Owner: first.Owner, Inbound: schema.Inbound{PacketID: 3}}) // still its owner
	r.write(store.Release{Owner: first.Owner})
	got := <-second
	if got.Err != nil || !got.Present || !got.Released || len(got.Cursor.Inbound) != 1 {
		t.Fatalf("after a release: %+v", got)
	}

	third := claim(ctx)
	waiting()
	var fourth <-chan store.Claimed
	begin := time.Now()
	fourth = claim(ctx)
	if got := <-third; !errors.Is(got.Err, store.ErrSuperseded) {
		t.Errorf("the claim that was overtaken: %v", got.Err)
	}
	taken := <-fourth
	if taken.Err != nil || taken.Released || !taken.Present {
		t.Errorf("the take-over: %+v", taken)
	}
	if waited := time.Since(begin); waited < time.Second/2 || waited > 5*time.Second {
		t.Errorf("it waited %v", waited)
	}
	if err := r.writeOne(store.PutInbound{Owner: got.Owner}); !errors.Is(err, store.ErrSessionLost) {
		t.Errorf("a write of the former owner: %v", err)
	}

	ended, cancel := context.WithCancel(ctx)
	fifth := claim(ended)
	waiting()
	cancel()
	if got := <-fifth; !errors.Is(got.Err, context.Canceled) {
		t.Errorf("the claim whose ctx ended: %v", got.Err)
	}
	r.write(store.PutInbound{Owner: taken.Owner}) // nothing was claimed
}

// Many claims in one call are one commit, and one that waits does not hold up
// the others.
func TestClaimsAreOneCommit(t *testing.T) {
	t.Parallel()
	r := start(t, Options{})
	held := r.claim(store.Claim{ClientID: "c7", Expiry: 100})
	before := r.Commits()
	var claims []store.Claim
	for i := range 50 {
		claims = append(claims, store.Claim{ClientID: fmt.Sprintf("c%d", i), Expiry: 100})
	}
	for i, got := range r.Claim(context.Background(), claims) {
		if got.Err != nil || got.ClientID != claims[i].ClientID || got.Present != (i == 7) {
			t.Errorf("claim %d: %+v", i, got)
		}
		if i == 7 && got.Epoch <= held.Epoch {
			t.Errorf("epoch %d after %d", got.Epoch, held.Epoch)
		}
	}
	if n := r.Commits() - before; n != 2 {
		t.Errorf("%d commits, want 2: all, and the one that waited", n)
	}
}

// At Open every session of the last run is finished: cursor, will, expiry from
// now; and it is done before anything is served.
func TestSessionsAreFinishedAtOpen(t *testing.T) {
	t.Parallel()
	clock := newTestClock()
	r := start(t, Options{Now: clock.Now, FS: vfs.NewCrashableMem()})
	keep := r.claim(store.Claim{ClientID: "keep", Expiry: 1000, At: schema.At(1, 0), Will: &schema.Will{Topic: "w/keep", Delay: 60}})
	gone := r.claim(store.Claim{ClientID: "gone", Expiry: 0, Will: &schema.Will{Topic: "w/gone", Delay: 60}})
	r.claim(store.Claim{ClientID: "plain", Expiry: 0})
	calm := r.claim(store.Claim{ClientID: "calm", Expiry: 5, Will: &schema.Will{Topic: "w/calm"}})
	r.write(store.Release{Owner: calm.Owner, Normal: true})
	run := &schema.Run{ID: schema.ID{9}, Next: "a"}
	r.write(store.PutSubscriptions{Owner: keep.Owner, Subscriptions: []schema.Subscription{{ID: schema.ID{1}, Filter: "t", Run: run}}})
	d := r.deliver(keep.Owner, 1, 5, 1, 2)
	r.write(store.MarkReceived{Owner: keep.Owner, Flight: d.Flight()})
	clock.add(time.Hour)
	r = r.crash(0, 1)
	if n := r.Recovery().Sessions; n != 3 {
		t.Errorf("%d sessions finished, want 3", n)
	}
	ctx := context.Background()
	if n, _ := r.Counts(ctx); n.Sessions != 2 || n.Subscriptions != 1 {
		t.Errorf("counts %+v", n)
	}
	due, err := r.DueWills(ctx, 10)
	if err != nil || len(due) != 1 || due[0].ClientID != "gone" || !due[0].Will.At.Equal(clock.Now()) {
		t.Fatalf("due at once: %+v, %v", due, err)
	}
	r.write(store.TakeOutWill{Owner: gone.Owner, Key: due[0].Will.Key})
	clock.add(59 * time.Second)
	if due, _ := r.DueWills(ctx, 10); len(due) != 0 {
		t.Errorf("early: %+v", due)
	}
	clock.add(2 * time.Second)
	if due, _ := r.DueWills(ctx, 10); len(due) != 1 || due[0].ClientID != "keep" || due[0].Will.Topic != "w/keep" {
		t.Errorf("after its delay: %+v", due)
	} else {
		r.write(store.TakeOutWill{Owner: keep.Owner, Key: due[0].Will.Key})
	}
	if n := r.keys(keyReceived); n != 0 {
		t.Errorf("%d PUBRECs beside the cursor", n)
	}
	got := r.claim(store.Claim{ClientID: "keep", Expiry: 1000})
	if f := got.Cursor.Flight; !got.Present || got.Released || len(f) != 1 || !f[0].Received || !got.Cursor.After.Equal(schema.At(1, 5)) {
		t.Errorf("recovered %+v", got)
	}
	clock.add(10 * time.Second)
	if ended, _ := r.EndExpired(ctx, 10); len(ended) != 1 || ended[0].ClientID != "calm" {
		t.Errorf("ended %v", ended)
	}
	r.write(store.Release{Owner: got.Owner})
	r = r.again()
	if n := r.Recovery().Sessions; n != 0 {
		t.Errorf("%d sessions finished again", n)
	}
	if got := r.claim(store.Claim{ClientID: "keep", Expiry: 1000}); !got.Released {
		t.Error("not released")
	}
}

// A call that was given up never lands; one that the committer has taken is
// answered.
func TestGivenUpCallsNeverLand(t *testing.T) {
	t.Parallel()
	g := newGate()
	r := start(t, Options{FS: g.fs(vfs.NewMem())})
	o := r.claim(store.Claim{ClientID: "c", Expiry: 100}).Owner
	g.set(true, nil)
	first := r.submit(context.Background(), &store.Publisher{}, r.message("t", "x", 1))
	g.held()
	ctx, cancel := context.WithCancel(context.Background())
	back := make(chan error, 1)
	go func() {
		back <- r.Write(ctx, []store.Write{store.PutInbound{Owner: o, Inbound: schema.Inbound{PacketID: 1}}})[0]
	}()
	r.queued(1)
	cancel()
	if err := <-back; !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}
	g.set(false, nil)
	<-first
	r.write(store.Release{Owner: o})
	if got := r.claim(store.Claim{ClientID: "c", Expiry: 100}); len(got.Cursor.Inbound) != 0 {
		t.Errorf("it landed: %+v", got.Cursor.Inbound)
	}
}

// S16: a cursor that was made before PUBREC came is saved behind it: the state
// does not go back.
func TestS16_StateNeverGoesBack(t *testing.T) {
	t.Parallel()
	r := start(t, Options{FS: vfs.NewCrashableMem()})
	o := r.claim(store.Claim{ClientID: "c", Expiry: 100}).Owner
	a, b := r.deliver(o, 1, 1, 1, 2), r.deliver(o, 2, 2, 2, 2)
	stale := schema.SessionCursor{After: schema.At(1, 1), Seq: 1, Flight: []schema.Flight{a.Flight()}}
	r.write(
		store.MarkReceived{Owner: o, Flight: a.Flight()}, store.MarkReceived{Owner: o, Flight: b.Flight()},
		store.SaveCursor{Owner: o, Cursor: stale},
	)
	for range 2 {
		r = r.crash(0, 1)
		got := r.claim(store.Claim{ClientID: "c", Expiry: 100})
		f := got.Cursor.Flight
		if len(f) != 2 || !f[0].Received || !f[1].Received {
			t.Fatalf("flight %+v", f)
		}
		stale.Seq, stale.Flight = 2, []schema.Flight{a.Flight(), b.Flight()}
		r.write(store.MarkReceived{Owner: got.Owner, Flight: a.Flight()}, store.MarkReceived{Owner: got.Owner, Flight: b.Flight()})
		r.write(store.SaveCursor{Owner: got.Owner, Cursor: stale})
	}
}

// Many sessions at once, under the race detector.
func TestSessionsAtOnce(t *testing.T) {
	t.Parallel()
	r := start(t, Options{claimWait: 10 * time.Millisecond})
	ctx := context.Background()
	var all sync.WaitGroup
	for i := range 16 {
		all.Go(func() {
			client := fmt.Sprintf("c%d", i%8) // two fight for each
			for n := range 10 {
				got := r.Claim(ctx, []store.Claim{{ClientID: client, Expiry: 100, CleanStart: n == 5}})[0]
				if errors.Is(got.Err, store.ErrSuperseded) {
					continue
				}
				if got.Err != nil {
					t.Error(got.Err)
					return
				}
				seq := got.Cursor.Seq + 1
				err := r.Record(ctx, []schema.Delivery{{ID: r.ids.Next(time.Now()), Owner: got.Owner, Seq: seq, MessageID: schema.ID{1}, PacketID: uint16(seq), QoS: 1}})[0]
				if err != nil && !errors.Is(err, store.ErrSessionLost) {
					t.Error(err)
				}
				for _, err := range r.Write(ctx, []store.Write{
					store.SaveCursor{Owner: got.Owner, Cursor: schema.SessionCursor{Seq: seq}}, store.Release{Owner: got.Owner},
				}) {
					if err != nil && !errors.Is(err, store.ErrSessionLost) {
						t.Error(err)
					}
				}
			}
		})
	}
	all.Wait()
}
