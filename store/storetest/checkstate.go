package storetest

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"time"

	"rewindmq/schema"
	"rewindmq/store"
)

func stateChecks() []item {
	return []item{
		{"Session/Cursor", 0, savedCursor},
		{"Session/CursorNeverBack", 0, cursorNeverBack},
		{"Session/Q1_Inbound", 0, inbound},
		{"Session/Subscriptions", 0, subscriptions},
		{"Session/EndExpired", needsClock, endExpired},
		{"Session/Counts", 0, counts},
		{"Session/WatchNeverYieldsOwn", 0, watchNeverYieldsOwn},
		{"Session/DurableAcrossReopen", needsReopen, sessionDurable},
	}
}

// All of a cursor is kept, with a vector of many lanes.
func savedCursor(c *check) {
	got := c.claim("c")
	run := c.newID()
	cur := schema.SessionCursor{
		After: schema.NewCursor(9, []schema.Mark{{Lane: 2, N: 0}, {Lane: 5, N: 1 << 40}, {Lane: 8, N: 7}, {Lane: 9, N: 0}}),
		Seq:   1 << 33,
		Flight: []schema.Flight{
			{Seq: 3, MessageID: c.newID(), Mark: schema.Mark{Lane: 5, N: 4}, PacketID: 65535, QoS: 1, Created: created()},
			{Seq: 70000, MessageID: c.newID(), Mark: schema.Mark{Lane: 8, N: 1}, PacketID: 2, QoS: 2, Received: true, Created: created()},
			{Seq: 70001, MessageID: c.newID(), Mark: schema.Mark{Lane: 1, N: 9}, PacketID: 3, QoS: 2, Retained: run, Created: created()},
		},
	}
	c.write(store.SaveCursor{Owner: got.Owner, Cursor: cur}, store.Release{Owner: got.Owner})
	again := c.claim("c")
	c.wantCursor("saved", again.Cursor, cur)
	for i, f := range again.Cursor.Flight {
		if !f.Created.Equal(created()) {
			c.Errorf("flight %d was created at %v, want %v", i, f.Created, created())
		}
	}
	// What the caller does with its own cursor afterwards does not matter.
	cur.Flight[0].PacketID = 77
	again.Cursor.Flight[1].Received = false
	c.release(again.Owner)
	third := c.claim("c")
	if f := third.Cursor.Flight; len(f) != 3 || f[0].PacketID != 65535 || !f[1].Received {
		c.Errorf("a saved flight changed with its caller's: %+v", f)
	}
}

// A save with a lower seq is stale: it changes nothing.
func cursorNeverBack(c *check) {
	got := c.claim("c")
	want := schema.SessionCursor{After: schema.At(1, 50), Seq: 20}
	c.write(store.SaveCursor{Owner: got.Owner, Cursor: want})
	stale := schema.SessionCursor{After: schema.At(1, 30), Seq: 10, Flight: []schema.Flight{{Seq: 9, PacketID: 1, QoS: 1, MessageID: c.newID()}}}
	if err := c.tryWrite(store.SaveCursor{Owner: got.Owner, Cursor: stale})[0]; err != nil && !errors.Is(err, store.ErrSessionLost) {
		c.Errorf("a stale save: %v", err)
	}
	got = c.next(got.Owner)
	c.wantCursor("after a stale save", got.Cursor, want)
	for n := range uint64(2) { // the second has the same seq: acks alone changed it
		want.After, want.Seq = schema.At(1, 60+n), 30
		c.write(store.SaveCursor{Owner: got.Owner, Cursor: want})
	}
	c.wantCursor("saved with the same seq", c.next(got.Owner).Cursor, want)
}

// Q1, Q3: the inbound list is the cursor's own part: saves leave it, entries are
// put and taken one by one.
func inbound(c *check) {
	got := c.claim("c")
	a := schema.Inbound{PacketID: 1, MessageID: c.newID()}
	b := schema.Inbound{PacketID: 65535, MessageID: c.newID()}
	d := schema.Inbound{PacketID: 7, MessageID: c.newID()}
	c.write(
		store.PutInbound{Owner: got.Owner, Inbound: a},
		store.PutInbound{Owner: got.Owner, Inbound: b},
		store.PutInbound{Owner: got.Owner, Inbound: d},
		store.SaveCursor{Owner: got.Owner, Cursor: schema.SessionCursor{After: schema.At(1, 1), Seq: 1, Inbound: []schema.Inbound{{PacketID: 3}}}},
		store.DeleteInbound{Owner: got.Owner, PacketID: 65535},
		store.DeleteInbound{Owner: got.Owner, PacketID: 1234}, // not there
		store.PutInbound{Owner: got.Owner, Inbound: d},        // the same again
	)
	next := c.next(got.Owner)
	c.wantInbound("claimed", next.Cursor.Inbound, []schema.Inbound{a, d})
	e := schema.Inbound{PacketID: 1, MessageID: c.newID()} // the id begins anew
	c.write(store.DeleteInbound{Owner: next.Owner, PacketID: 1}, store.PutInbound{Owner: next.Owner, Inbound: e}, store.Release{Owner: next.Owner})
	last := c.claim("c")
	c.wantInbound("released and claimed", last.Cursor.Inbound, []schema.Inbound{d, e})
	if c.h.Reopen != nil {
		c.reopen()
		c.wantInbound("claimed after Reopen", c.claim("c").Cursor.Inbound, []schema.Inbound{d, e})
	}
}

func (c *check) wantSubscription(got, want schema.Subscription) {
	c.Helper()
	if !got.Since.Equal(want.Since) || !got.Created.Equal(want.Created) {
		c.Errorf("subscription %q: since %v, created %v; want %v, %v", want.Filter, got.Since, got.Created, want.Since, want.Created)
	}
	if (got.Before == nil) != (want.Before == nil) || got.Before != nil && (got.Before.QoS != want.Before.QoS || !got.Before.UpTo.Equal(want.Before.UpTo)) {
		c.Errorf("subscription %q: before %+v, want %+v", want.Filter, got.Before, want.Before)
	}
	if (got.Run == nil) != (want.Run == nil) || got.Run != nil && (got.Run.ID != want.Run.ID || got.Run.Next != want.Run.Next || !got.Run.Place.Equal(want.Run.Place)) {
		c.Errorf("subscription %q: run %+v, want %+v", want.Filter, got.Run, want.Run)
	}
	for _, s := range []*schema.Subscription{&got, &want} {
		s.Since, s.Created, s.Before, s.Run, s.Owner = schema.Cursor{}, time.Time{}, nil, nil, schema.Owner{}
	}
	if !reflect.DeepEqual(got, want) {
		c.Errorf("subscription %+v, want %+v", got, want)
	}
}

// Every field is kept; one with the same filter keeps its ID and Created.
func subscriptions(c *check) {
	got := c.claim("c")
	many := schema.NewCursor(7, []schema.Mark{{Lane: 3, N: 0}, {Lane: 4, N: 12}, {Lane: 7, N: 1 << 35}})
	full := schema.Subscription{
		ID: c.newID(), Filter: "a/+/#", QoS: 2, Created: created(), NoLocal: true, RetainAsPublished: true, RetainHandling: 2,
		Identifier: 268435455, Since: many, Before: &schema.Before{QoS: 1, UpTo: many},
		Run: &schema.Run{ID: c.newID(), Place: many, Next: "a/b/c"},
	}
	plain := c.subscription("b", 0)
	gone := c.subscription("c", 1)
	c.write(
		store.PutSubscriptions{Owner: got.Owner, Subscriptions: []schema.Subscription{plain, full, gone}},
		store.DeleteSubscriptions{Owner: got.Owner, Filters: []string{"c", "never/there"}},
	)
	next := c.next(got.Owner)
	c.wantFilters("claimed", next.Subscriptions, "a/+/#", "b")
	c.wantSubscription(next.Subscriptions[0], full)
	c.wantSubscription(next.Subscriptions[1], plain)

	changed := full
	changed.ID, changed.Created = c.newID(), created().Add(time.Hour)
	changed.QoS, changed.NoLocal, changed.Before, changed.Run, changed.Identifier = 0, false, nil, nil, 0
	back := c.subscription("c", 2)
	c.write(store.PutSubscriptions{Owner: next.Owner, Subscriptions: []schema.Subscription{changed, back}})
	changed.ID, changed.Created = full.ID, full.Created
	third := c.next(next.Owner)
	c.wantFilters("replaced", third.Subscriptions, "a/+/#", "b", "c")
	c.wantSubscription(third.Subscriptions[0], changed)
	c.wantSubscription(third.Subscriptions[2], back)
	if n := c.counts(); n.Subscriptions != 3 || n.Sessions != 1 {
		c.Errorf("counts %+v, want 1 session with 3 subscriptions", n)
	}
	c.write(store.DeleteSubscriptions{Owner: third.Owner, Filters: []string{"a/+/#", "b", "c"}})
	c.wantFilters("all removed", c.next(third.Owner).Subscriptions)
}

func (c *check) counts() store.Counts {
	c.Helper()
	ctx, cancel := c.wait()
	defer cancel()
	n, err := c.s.Counts(ctx)
	c.must(err, "Counts")
	return n
}

// EndExpired ends what is over, tells which, at most limit at a time; what it has
// ended is gone.
func endExpired(c *check) {
	owners := map[string]schema.Owner{}
	for i := range 5 {
		id := fmt.Sprintf("c-%d", i)
		got := c.ask(store.Claim{ClientID: id, Expiry: 100, At: c.head()})
		c.write(store.PutSubscriptions{Owner: got.Owner, Subscriptions: []schema.Subscription{c.subscription("a", 1)}})
		c.release(got.Owner)
		owners[id] = got.Owner
	}
	never := c.claim("never")
	c.release(never.Owner)
	c.ask(store.Claim{ClientID: "connected", Expiry: 1, At: c.head()})
	c.h.Clock(99 * time.Second)
	c.endAll("a second too early")
	if n := c.counts(); n.Sessions != 7 || n.Subscriptions != 5 {
		c.Errorf("counts %+v, want 7 and 5", n)
	}
	c.h.Clock(2 * time.Second)
	ctx, cancel := c.wait()
	defer cancel()
	for left := 5; left > 0; {
		got, err := c.s.EndExpired(ctx, 2)
		c.must(err, "EndExpired")
		if len(got) == 0 || len(got) > 2 {
			c.Fatalf("EndExpired with limit 2 ends %d, with %d to go", len(got), left)
		}
		for _, o := range got {
			if w, ok := owners[o.ClientID]; !ok || w.SID != o.SID {
				c.Fatalf("EndExpired ended %+v", o)
			}
			delete(owners, o.ClientID)
		}
		left -= len(got)
	}
	c.endAll("when all is done")
	if n := c.counts(); n.Sessions != 2 || n.Subscriptions != 0 {
		c.Errorf("counts %+v, want 2 and 0", n)
	}
	if got := c.claim("c-1"); got.Present || len(got.Subscriptions) > 0 {
		c.Errorf("an ended session was resumed: %+v", got)
	}
}

func counts(c *check) {
	if n := c.counts(); n != (store.Counts{}) {
		c.Errorf("counts of an empty store: %+v", n)
	}
	for i := range 4 {
		got := c.claim(fmt.Sprintf("c-%d", i))
		for j := range i {
			c.write(store.PutSubscriptions{Owner: got.Owner, Subscriptions: []schema.Subscription{c.subscription(fmt.Sprintf("f/%d", j), 1)}})
		}
		if i%2 == 0 {
			c.release(got.Owner)
		}
	}
	if n := c.counts(); n.Sessions != 4 || n.Subscriptions != 6 {
		c.Errorf("counts %+v, want 4 and 6", n)
	}
	c.ask(store.Claim{ClientID: "c-3", CleanStart: true, Expiry: forever, At: c.head()})
	if n := c.counts(); n.Sessions != 4 || n.Subscriptions != 3 {
		c.Errorf("counts after a clean start %+v, want 4 and 3", n)
	}
}

// Watch tells of sessions that this node no longer owns; a claim of its own is
// none.
func watchNeverYieldsOwn(c *check) {
	ctx, cancel := c.wait()
	defer cancel()
	w, err := c.s.Watch(ctx)
	c.must(err, "Watch")
	c.claim("c")
	c.claim("c")
	short, stop := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer stop()
	if lost, err := w.Next(short); err == nil {
		c.Errorf("Watch yields %+v", lost)
	} else if !errIsCtx(err) {
		c.Errorf("Next of a Watch: %v", err)
	}
}

// All that was answered survives SIGKILL.
func sessionDurable(c *check) {
	got := c.claim("c")
	sub := c.subscription("a/#", 1)
	d := c.delivery(got.Owner, 1, 4, 2, 1)
	c.record(d)
	cur := schema.SessionCursor{After: schema.At(1, 1), Seq: 1, Flight: []schema.Flight{inFlight(d)}}
	in := schema.Inbound{PacketID: 4, MessageID: c.newID()}
	c.write(
		store.PutSubscriptions{Owner: got.Owner, Subscriptions: []schema.Subscription{sub, c.subscription("b", 1)}},
		store.DeleteSubscriptions{Owner: got.Owner, Filters: []string{"b"}},
		store.PutInbound{Owner: got.Owner, Inbound: in},
		store.SaveCursor{Owner: got.Owner, Cursor: cur},
	)
	released := c.claim("r")
	c.write(store.SaveCursor{Owner: released.Owner, Cursor: cur}, store.Release{Owner: released.Owner, Expiry: 500, SetExpiry: true})
	want := c.counts()
	c.reopen()
	if n := c.counts(); n != want {
		c.Errorf("counts after Reopen %+v, want %+v", n, want)
	}
	next := c.claim("c")
	if !next.Present || next.SID != got.SID || next.Epoch <= got.Epoch {
		c.Errorf("claimed after Reopen: %+v after %+v", next, got.Owner)
	}
	c.wantFilters("after Reopen", next.Subscriptions, "a/#")
	c.wantSubscription(next.Subscriptions[0], sub)
	cur.Inbound = []schema.Inbound{in}
	c.wantCursor("after Reopen", next.Cursor, cur)
	c.lost(store.SaveCursor{Owner: got.Owner, Cursor: schema.SessionCursor{After: schema.At(1, 99), Seq: 99}})
	cur.Inbound = nil
	r := c.claim("r")
	if !r.Present || r.SID != released.SID {
		c.Errorf("released, then claimed after Reopen: %+v", r)
	}
	c.wantCursor("released, after Reopen", r.Cursor, cur)
}
