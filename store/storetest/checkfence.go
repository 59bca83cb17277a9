package storetest

import (
	"errors"
	"slices"

	"rewindmq/schema"
	"rewindmq/store"
)

func fenceChecks() []item {
	return []item{
		{"Fence/RecordOfTheBatchGoesOn", 0, recordGoesOn},
		{"Fence/RecordIdempotent", 0, recordIdempotent},
		{"Fence/Strangers", 0, strangers},
		{"Fence/OlderEpoch", 0, olderEpoch},
		{"Fence/AfterRelease", 0, afterRelease},
		{"Fence/Reopen", needsReopen, fencedAcrossReopen},
	}
}

// kind is one way to write, with what a stale owner would spoil by it.
type kind struct {
	name string
	try  func(c *check, o schema.Owner, base *baseline) error
}

// baseline is a session with something of everything, to be spoilt.
type baseline struct {
	cur schema.SessionCursor
	sub schema.Subscription
}

func kinds() []kind {
	write := func(name string, of func(c *check, o schema.Owner, b *baseline) store.Write) kind {
		return kind{name, func(c *check, o schema.Owner, b *baseline) error { return c.tryWrite(of(c, o, b))[0] }}
	}
	return []kind{
		write("SaveCursor", func(_ *check, o schema.Owner, b *baseline) store.Write {
			return store.SaveCursor{Owner: o, Cursor: schema.SessionCursor{After: schema.At(1, 999), Seq: b.cur.Seq + 50}}
		}),
		write("PutInbound", func(c *check, o schema.Owner, _ *baseline) store.Write {
			return store.PutInbound{Owner: o, Inbound: schema.Inbound{PacketID: 2, MessageID: c.newID()}}
		}),
		write("DeleteInbound", func(_ *check, o schema.Owner, _ *baseline) store.Write {
			return store.DeleteInbound{Owner: o, PacketID: 1}
		}),
		write("MarkReceived", func(_ *check, o schema.Owner, b *baseline) store.Write {
			return store.MarkReceived{Owner: o, Flight: b.cur.Flight[0]}
		}),
		write("PutSubscriptions", func(c *check, o schema.Owner, b *baseline) store.Write {
			changed := b.sub
			changed.QoS = 0
			return store.PutSubscriptions{Owner: o, Subscriptions: []schema.Subscription{c.subscription("evil", 1), changed}}
		}),
		write("DeleteSubscriptions", func(_ *check, o schema.Owner, _ *baseline) store.Write {
			return store.DeleteSubscriptions{Owner: o, Filters: []string{"a"}}
		}),
		write("Release", func(_ *check, o schema.Owner, _ *baseline) store.Write {
			return store.Release{Owner: o, Normal: true, Expiry: 0, SetExpiry: true}
		}),
		{"Record", func(c *check, o schema.Owner, b *baseline) error {
			return c.tryRecord(c.delivery(o, b.cur.Seq+1, 9, 1, 500))[0]
		}},
	}
}

func (c *check) baseline(o schema.Owner, seq uint64) *baseline {
	c.Helper()
	d := c.delivery(o, seq+1, 1, 2, 5)
	c.record(d)
	b := &baseline{
		cur: schema.SessionCursor{
			After: schema.At(1, 5), Seq: seq + 1, Flight: []schema.Flight{inFlight(d)},
			Inbound: []schema.Inbound{{PacketID: 1, MessageID: c.newID()}},
		},
		sub: c.subscription("a", 2),
	}
	c.write(
		store.PutSubscriptions{Owner: o, Subscriptions: []schema.Subscription{b.sub}},
		store.PutInbound{Owner: o, Inbound: b.cur.Inbound[0]},
		store.SaveCursor{Owner: o, Cursor: b.cur},
	)
	return b
}

// wantBaseline wants a claimed session to be as baseline left it.
func (c *check) wantBaseline(what string, got store.Claimed, b *baseline) {
	c.Helper()
	if !got.Present {
		c.Errorf("%s: the session is gone", what)
	}
	c.wantCursor(what, got.Cursor, b.cur)
	c.wantFilters(what, got.Subscriptions, "a")
	if len(got.Subscriptions) == 1 {
		c.wantSubscription(got.Subscriptions[0], b.sub)
	}
}

// victim is a session whose older owner tries one kind of write.
type victim struct {
	kind
	how  string
	id   string
	old  schema.Owner
	base *baseline
	next store.Claimed
}

// claimAll claims the sessions of all victims in one batch: a store that waits for
// former owners waits for all at once.
func (c *check) claimAll(all []*victim) {
	c.Helper()
	asks := make([]store.Claim, len(all))
	for i, v := range all {
		asks[i] = store.Claim{ClientID: v.id, Protocol: 5, CleanStart: v.how == "clean start" && v.next.Epoch == 0, Expiry: forever, At: c.head()}
	}
	ctx, cancel := c.wait()
	defer cancel()
	got := c.s.Claim(ctx, asks)
	if len(got) != len(all) {
		c.Fatalf("%d answers for %d claims", len(got), len(all))
	}
	for i, v := range all {
		c.must(got[i].Err, "Claim of %q", v.id)
		v.next = got[i]
	}
}

// Promise 6: once Claim has returned, a write of an older epoch changes nothing,
// and says so; whether the older owner was released, is alive, or was replaced by
// a clean start.
func olderEpoch(c *check) {
	var all []*victim
	for _, how := range []string{"taken over", "released", "clean start"} {
		for _, k := range kinds() {
			v := &victim{kind: k, how: how, id: k.name + " " + how}
			v.old = c.ask(store.Claim{ClientID: v.id, Expiry: forever, At: c.head(), Will: &schema.Will{Topic: "w"}}).Owner
			v.base = c.baseline(v.old, 0)
			if how == "released" {
				c.release(v.old)
			}
			all = append(all, v)
		}
	}
	c.claimAll(all)
	for _, v := range all {
		b := v.base
		if v.how == "clean start" {
			b = c.baseline(v.next.Owner, v.next.Cursor.Seq)
		} else {
			c.wantBaseline(v.how, v.next, b)
			b.cur.Seq = v.next.Cursor.Seq
		}
		if err := v.try(c, v.old, b); !errors.Is(err, store.ErrSessionLost) {
			c.Errorf("%s: %s of the older epoch: %v", v.how, v.name, err)
		}
		// The owner goes on as if nothing had been.
		in := schema.Inbound{PacketID: 44, MessageID: c.newID()}
		c.write(store.PutInbound{Owner: v.next.Owner, Inbound: in})
		b.cur.Inbound = append(b.cur.Inbound, in)
		d := c.delivery(v.next.Owner, b.cur.Seq+1, 3, 1, 6)
		c.record(d)
		b.cur.Seq, b.cur.After = d.Seq, schema.At(1, 6)
		b.cur.Flight = append(slices.Clone(b.cur.Flight), inFlight(d))
		v.base = b
	}
	c.claimAll(all)
	for _, v := range all {
		c.wantBaseline(v.name+", "+v.how+" and claimed again", v.next, v.base)
	}
}

// After a Release its Owner no longer counts, though nobody has claimed.
func afterRelease(c *check) {
	var all []*victim
	for _, k := range kinds() {
		v := &victim{kind: k, how: "let go", id: k.name}
		v.old = c.claim(v.id).Owner
		v.base = c.baseline(v.old, 0)
		c.release(v.old)
		err := v.try(c, v.old, v.base)
		if k.name == "Release" && err == nil {
			continue // done again; whether it sets the expiry again is left open
		}
		if !errors.Is(err, store.ErrSessionLost) {
			c.Errorf("%s after Release: %v", k.name, err)
		}
		all = append(all, v)
	}
	c.claimAll(all)
	for _, v := range all {
		c.wantBaseline(v.name+" after Release, and claimed", v.next, v.base)
	}
}

// After one record of a session has failed, the later ones of it in the batch fail
// too; those of others go on.
func recordGoesOn(c *check) {
	old, other := c.claim("c"), c.claim("d")
	c.claim("c")
	batch := []schema.Delivery{
		c.delivery(other.Owner, 1, 1, 1, 1),
		c.delivery(old.Owner, 2, 1, 1, 1),
		c.delivery(other.Owner, 2, 2, 1, 2),
		c.delivery(old.Owner, 3, 2, 1, 2),
		c.delivery(other.Owner, 3, 3, 1, 3),
	}
	for i, err := range c.tryRecord(batch...) {
		if i%2 == 1 && !errors.Is(err, store.ErrSessionLost) || i%2 == 0 && err != nil {
			c.Errorf("record %d: %v", i, err)
		}
	}
	all := []*victim{{id: "c"}, {id: "d"}}
	c.claimAll(all)
	if got := all[0].next; len(got.Cursor.Flight) != 0 {
		c.Errorf("a fenced record is in the flight: %+v", got.Cursor.Flight)
	}
	want := other.Cursor.After.Clone()
	want.Advance(schema.Mark{Lane: 1, N: 3})
	if got := all[1].next.Cursor; len(got.Flight) != 3 || !got.After.Equal(want) {
		c.Errorf("those of the other session: %+v", got)
	}
}

// A record that is there by its ID counts as stored, once.
func recordIdempotent(c *check) {
	got := c.claim("c")
	a, b := c.delivery(got.Owner, 1, 1, 1, 1), c.delivery(got.Owner, 2, 2, 2, 2)
	c.record(a)
	c.record(a, b)
	c.record(b)
	c.record(a, b)
	next := c.claim("c")
	if f := next.Cursor.Flight; len(f) != 2 || f[0] != f0(a, f[0]) || f[1] != f0(b, f[1]) {
		c.Errorf("flight %+v", f)
	}
	if next.Cursor.Seq < 2 || next.Cursor.Seq > 3 {
		c.Errorf("seq %d after two records", next.Cursor.Seq)
	}
}

// f0 is the flight of d with the time of f.
func f0(d schema.Delivery, f schema.Flight) schema.Flight {
	w := inFlight(d)
	w.Created = f.Created
	return w
}

// Owners that never were: another sid, an epoch nobody was given, no session.
func strangers(c *check) {
	got := c.claim("c")
	b := c.baseline(got.Owner, 0)
	for name, o := range map[string]schema.Owner{
		"another sid":      {ClientID: "c", SID: got.SID + 1, Epoch: got.Epoch},
		"a greater epoch":  {ClientID: "c", SID: got.SID, Epoch: got.Epoch + 1},
		"a smaller epoch":  {ClientID: "c", SID: got.SID, Epoch: got.Epoch - 1},
		"another client":   {ClientID: "d", SID: got.SID, Epoch: got.Epoch},
		"nobody's session": {ClientID: "c"},
	} {
		for _, k := range kinds() {
			if err := k.try(c, o, b); !errors.Is(err, store.ErrSessionLost) {
				c.Errorf("%s by %s: %v", k.name, name, err)
			}
		}
	}
	c.wantBaseline("after strangers", c.claim("c"), b)
	if n := c.counts(); n.Sessions != 1 || n.Subscriptions != 1 {
		c.Errorf("counts %+v, want 1 and 1", n)
	}
}

// An owner of the run before SIGKILL does not count after it.
func fencedAcrossReopen(c *check) {
	var all []*victim
	for _, k := range kinds() {
		v := &victim{kind: k, how: "killed", id: k.name}
		v.old = c.claim(v.id).Owner
		v.base = c.baseline(v.old, 0)
		all = append(all, v)
	}
	c.reopen()
	c.claimAll(all)
	for _, v := range all {
		c.wantBaseline("after Reopen", v.next, v.base)
		v.base.cur.Seq = v.next.Cursor.Seq
		if err := v.try(c, v.old, v.base); !errors.Is(err, store.ErrSessionLost) {
			c.Errorf("%s of the owner before Reopen: %v", v.name, err)
		}
	}
	c.claimAll(all)
	for _, v := range all {
		c.wantBaseline(v.name+", claimed again after Reopen", v.next, v.base)
	}
}
