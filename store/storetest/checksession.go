package storetest

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"rewindmq/schema"
	"rewindmq/store"
)

func sessionChecks() []item {
	return []item{
		{"Session/New", 0, sessionNew},
		{"Session/Resumed", 0, sessionResumed},
		{"Session/CleanStart", 0, sessionCleanStart},
		{"Session/Q3_CleanStartForgetsInbound", 0, cleanStartForgets},
		{"Session/S14_ExpiryZeroEnds", 0, expiryZeroEnds},
		{"Session/ExpiryByClock", needsClock, expiryByClock},
		{"Session/ExpiryAtRelease", needsClock, expiryAtRelease},
		{"Session/ConnectedNeverExpires", needsClock, connectedNeverExpires},
		{"Session/S9_EpochsRise", 0, epochsRise},
		{"Session/S9_LeftoversDoNotCount", 0, leftovers},
		{"Session/EpochsRiseReopen", needsReopen, epochsRiseReopen},
		{"Session/Batch", 0, claimBatch},
		{"Session/AtOnce", 0, claimsAtOnce},
	}
}

const forever = schema.NoExpiry

func (c *check) ask(ask store.Claim) store.Claimed {
	c.Helper()
	ctx, cancel := c.wait()
	defer cancel()
	if ask.Protocol == 0 {
		ask.Protocol = 5
	}
	got := c.s.Claim(ctx, []store.Claim{ask})
	if len(got) != 1 {
		c.Fatalf("%d answers for one claim", len(got))
	}
	c.must(got[0].Err, "Claim of %q", ask.ClientID)
	if got[0].ClientID != ask.ClientID || got[0].SID == 0 || got[0].Epoch < got[0].SID {
		c.Fatalf("Claim of %q gives owner %+v", ask.ClientID, got[0].Owner)
	}
	return got[0]
}

// next lets go of a session and claims it again.
func (c *check) next(o schema.Owner) store.Claimed {
	c.Helper()
	c.release(o)
	return c.claim(o.ClientID)
}

// claim claims a session without end, to go on with.
func (c *check) claim(id string) store.Claimed {
	c.Helper()
	return c.ask(store.Claim{ClientID: id, Expiry: forever, At: c.head()})
}

func (c *check) write(w ...store.Write) {
	c.Helper()
	for i, err := range c.tryWrite(w...) {
		c.must(err, "write %d, %T of %+v", i, w[i], store.OwnerOf(w[i]))
	}
}

func (c *check) tryWrite(w ...store.Write) []error {
	c.Helper()
	ctx, cancel := c.wait()
	defer cancel()
	errs := c.s.Write(ctx, w)
	if len(errs) != len(w) {
		c.Fatalf("%d answers for %d writes", len(errs), len(w))
	}
	return errs
}

// lost wants a write refused: the session is another's.
func (c *check) lost(w store.Write) {
	c.Helper()
	if err := c.tryWrite(w)[0]; !errors.Is(err, store.ErrSessionLost) {
		c.Errorf("%T of an owner that does not count (%+v): %v", w, store.OwnerOf(w), err)
	}
}

func (c *check) release(o schema.Owner) {
	c.Helper()
	c.write(store.Release{Owner: o})
}

func (c *check) tryRecord(d ...schema.Delivery) []error {
	c.Helper()
	ctx, cancel := c.wait()
	defer cancel()
	errs := c.s.Record(ctx, d)
	if len(errs) != len(d) {
		c.Fatalf("%d answers for %d records", len(errs), len(d))
	}
	return errs
}

func (c *check) record(d ...schema.Delivery) {
	c.Helper()
	for i, err := range c.tryRecord(d...) {
		c.must(err, "record %d of %+v, seq %d", i, d[i].Owner, d[i].Seq)
	}
}

// delivery makes a record of a message that stands at (1, n).
func (c *check) delivery(o schema.Owner, seq uint64, pid uint16, qos uint8, n uint64) schema.Delivery {
	return schema.Delivery{
		ID: c.newID(), Owner: o, Seq: seq, Topic: "t/1", MessageID: c.newID(), Mark: schema.Mark{Lane: 1, N: n},
		PacketID: pid, QoS: qos, Host: "h", Created: created(),
	}
}

func inFlight(d schema.Delivery) schema.Flight { return d.Flight() }

// wantCursor compares all but the times in the flight. A claim that met no release
// may have put a fence: that takes one seq.
func (c *check) wantCursor(what string, got, want schema.SessionCursor) {
	c.Helper()
	if !got.After.Equal(want.After) || got.Seq < want.Seq || got.Seq > want.Seq+1 {
		c.Errorf("%s: cursor at %v, seq %d; want %v, seq %d", what, got.After, got.Seq, want.After, want.Seq)
	}
	plain := func(list []schema.Flight) []schema.Flight {
		out := slices.Clone(list)
		for i := range out {
			out[i].Created = time.Time{}
		}
		return out
	}
	if g, w := plain(got.Flight), plain(want.Flight); !slices.Equal(g, w) {
		c.Errorf("%s: flight %+v, want %+v", what, g, w)
	}
	c.wantInbound(what, got.Inbound, want.Inbound)
}

func (c *check) wantInbound(what string, got, want []schema.Inbound) {
	c.Helper()
	by := func(a, b schema.Inbound) int { return int(a.PacketID) - int(b.PacketID) }
	got, want = slices.Clone(got), slices.Clone(want)
	slices.SortFunc(got, by)
	slices.SortFunc(want, by)
	if !slices.Equal(got, want) {
		c.Errorf("%s: inbound %v, want %v", what, got, want)
	}
}

func (c *check) subscription(filter string, qos uint8) schema.Subscription {
	return schema.Subscription{ID: c.newID(), Filter: filter, QoS: qos, Created: created(), Since: c.head()}
}

func filtersOf(subs []schema.Subscription) []string {
	out := []string{}
	for _, s := range subs {
		out = append(out, s.Filter)
	}
	return out
}

func (c *check) wantFilters(what string, subs []schema.Subscription, want ...string) {
	c.Helper()
	if got := filtersOf(subs); !slices.Equal(got, want) && len(got)+len(want) > 0 {
		c.Fatalf("%s: subscriptions %q, want %q", what, got, want)
	}
}

func sessionNew(c *check) {
	c.stored(publisher("p"), c.message("p", "t/1"))
	at := c.head()
	got := c.ask(store.Claim{ClientID: "c", Expiry: 60, At: at})
	if got.Present || len(got.Subscriptions) != 0 || len(got.Wills) != 0 {
		c.Errorf("a new session: %+v", got)
	}
	c.wantCursor("a new session", got.Cursor, schema.SessionCursor{After: at})
	other := c.ask(store.Claim{ClientID: "C", Expiry: 60, At: at}) // names are case sensitive
	if other.Present {
		c.Errorf("client C has the session of c")
	}
}

// A session that was released goes on as it was left.
func sessionResumed(c *check) {
	first := c.claim("c")
	d := c.delivery(first.Owner, 1, 1, 1, 7)
	c.record(d)
	cur := schema.SessionCursor{After: schema.At(1, 7), Seq: 1, Flight: []schema.Flight{inFlight(d)}}
	in := schema.Inbound{PacketID: 9, MessageID: c.newID()}
	c.write(
		store.PutSubscriptions{Owner: first.Owner, Subscriptions: []schema.Subscription{c.subscription("b/#", 1), c.subscription("a", 2)}},
		store.PutInbound{Owner: first.Owner, Inbound: in},
		store.SaveCursor{Owner: first.Owner, Cursor: cur},
		store.Release{Owner: first.Owner},
	)
	second := c.claim("c")
	if !second.Present || !second.Released || second.SID != first.SID || second.Epoch <= first.Epoch {
		c.Errorf("resumed: %+v after %+v", second, first.Owner)
	}
	c.wantFilters("resumed", second.Subscriptions, "a", "b/#")
	cur.Inbound = []schema.Inbound{in}
	c.wantCursor("resumed", second.Cursor, cur)
}

// A clean start ends the session that was there [MQTT-3.1.2-4].
func sessionCleanStart(c *check) {
	first := c.claim("c")
	c.write(
		store.PutSubscriptions{Owner: first.Owner, Subscriptions: []schema.Subscription{c.subscription("a", 1)}},
		store.SaveCursor{Owner: first.Owner, Cursor: schema.SessionCursor{After: schema.At(1, 3), Seq: 5}},
		store.Release{Owner: first.Owner},
	)
	c.stored(publisher("p"), c.message("p", "t/1"))
	at := c.head()
	got := c.ask(store.Claim{ClientID: "c", CleanStart: true, Expiry: forever, At: at})
	if got.Present || got.SID == first.SID || got.Epoch <= first.Epoch {
		c.Errorf("clean start: %+v after %+v", got, first.Owner)
	}
	c.wantFilters("clean start", got.Subscriptions)
	c.wantCursor("clean start", got.Cursor, schema.SessionCursor{After: at})
	c.release(got.Owner)
	if again := c.claim("c"); !again.Present || again.SID != got.SID {
		c.Errorf("after the clean start: %+v", again)
	}
}

// Q3: a clean start that finds old inbound entries forgets them: else the next
// message under the id would be taken for a resend.
func cleanStartForgets(c *check) {
	for _, released := range []bool{true, false} {
		id := fmt.Sprintf("c-%v", released)
		first := c.claim(id)
		c.record(c.delivery(first.Owner, 1, 1, 1, 1))
		c.write(store.PutInbound{Owner: first.Owner, Inbound: schema.Inbound{PacketID: 1, MessageID: c.newID()}})
		if released {
			c.release(first.Owner)
		}
		got := c.ask(store.Claim{ClientID: id, CleanStart: true, Expiry: forever, At: c.head()})
		c.wantInbound("clean start", got.Cursor.Inbound, nil)
		if len(got.Cursor.Flight) != 0 {
			c.Errorf("clean start: flight %+v", got.Cursor.Flight)
		}
	}
}

// S14: what has expiry 0 ends with its connection, also when the next one would
// resume it.
func expiryZeroEnds(c *check) {
	first := c.ask(store.Claim{ClientID: "c", At: c.head()})
	c.write(store.PutSubscriptions{Owner: first.Owner, Subscriptions: []schema.Subscription{c.subscription("a", 1)}})
	c.release(first.Owner)
	second := c.claim("c")
	if second.Present || second.SID == first.SID || second.Epoch <= first.Epoch {
		c.Errorf("a session with expiry 0 was resumed: %+v after %+v", second, first.Owner)
	}
	c.wantFilters("after a session with expiry 0", second.Subscriptions)
	third := c.ask(store.Claim{ClientID: "d", At: c.head()}) // taken over while connected
	if fourth := c.claim("d"); fourth.Present || fourth.SID == third.SID {
		c.Errorf("a session with expiry 0 was taken over and resumed: %+v", fourth)
	}
}

func expiryByClock(c *check) {
	before := c.ask(store.Claim{ClientID: "before", Expiry: 100, At: c.head()})
	past := c.ask(store.Claim{ClientID: "past", Expiry: 100, At: c.head()})
	never := c.ask(store.Claim{ClientID: "never", Expiry: forever, At: c.head()})
	c.write(store.PutSubscriptions{Owner: past.Owner, Subscriptions: []schema.Subscription{c.subscription("a", 1)}})
	for _, o := range []schema.Owner{before.Owner, past.Owner, never.Owner} {
		c.release(o)
	}
	c.h.Clock(90 * time.Second)
	if got := c.claim("before"); !got.Present || got.SID != before.SID {
		c.Errorf("ended before its expiry: %+v", got)
	}
	c.h.Clock(11 * time.Second)
	got := c.claim("past")
	if got.Present || got.SID == past.SID || got.Epoch <= past.Epoch {
		c.Errorf("resumed after its expiry: %+v", got)
	}
	c.wantFilters("after its expiry", got.Subscriptions)
	c.h.Clock(150 * 365 * 24 * time.Hour) // longer than 2^32 - 1 s
	if got := c.claim("never"); !got.Present || got.SID != never.SID {
		c.Errorf("a session that does not end has ended: %+v", got)
	}
}

// DISCONNECT may change the expiry; so does a resuming CONNECT.
func expiryAtRelease(c *check) {
	longer := c.ask(store.Claim{ClientID: "longer", Expiry: 10, At: c.head()})
	shorter := c.ask(store.Claim{ClientID: "shorter", Expiry: 1000, At: c.head()})
	ended := c.ask(store.Claim{ClientID: "ended", Expiry: 1000, At: c.head()})
	again := c.ask(store.Claim{ClientID: "again", Expiry: 10, At: c.head()})
	c.write(
		store.Release{Owner: longer.Owner, Normal: true, Expiry: 1000, SetExpiry: true},
		store.Release{Owner: shorter.Owner, Normal: true, Expiry: 10, SetExpiry: true},
		store.Release{Owner: ended.Owner, Normal: true, Expiry: 0, SetExpiry: true},
		store.Release{Owner: again.Owner},
	)
	if got := c.claim("ended"); got.Present {
		c.Errorf("ended by DISCONNECT, and resumed: %+v", got)
	}
	c.release(c.ask(store.Claim{ClientID: "again", Expiry: 1000, At: c.head()}).Owner)
	c.h.Clock(50 * time.Second)
	if got := c.claim("longer"); !got.Present {
		c.Errorf("expiry raised at DISCONNECT: %+v", got)
	}
	if got := c.claim("shorter"); got.Present {
		c.Errorf("expiry lowered at DISCONNECT: %+v", got)
	}
	if got := c.claim("again"); !got.Present {
		c.Errorf("expiry raised at CONNECT: %+v", got)
	}
}

// The expiry counts from the end of the connection.
func connectedNeverExpires(c *check) {
	first := c.ask(store.Claim{ClientID: "c", Expiry: 10, At: c.head()})
	c.h.Clock(time.Hour)
	c.endAll("while connected")
	c.write(store.SaveCursor{Owner: first.Owner, Cursor: schema.SessionCursor{After: schema.At(1, 1), Seq: 1}})
	c.release(first.Owner)
	if got := c.claim("c"); !got.Present || got.SID != first.SID {
		c.Errorf("a connected session ended: %+v", got)
	}
}

// S9: epochs never start again, also when the session was ended and made anew.
func epochsRise(c *check) {
	last := uint64(0)
	for i := range 12 {
		got := c.ask(store.Claim{ClientID: "c", CleanStart: i%3 == 0, Expiry: uint32(i % 2 * 100), At: c.head()})
		if got.Epoch <= last {
			c.Fatalf("claim %d has epoch %d after %d", i, got.Epoch, last)
		}
		last = got.Epoch
		if i != 4 { // that one is taken over
			c.release(got.Owner)
			c.endAll()
		}
	}
}

// endAll ends what has expired, and wants none of the given kind.
func (c *check) endAll(none ...string) []schema.Owner {
	c.Helper()
	ctx, cancel := c.wait()
	defer cancel()
	got, err := c.s.EndExpired(ctx, 1000)
	c.must(err, "EndExpired")
	if len(none) > 0 && len(got) > 0 {
		c.Errorf("EndExpired %v: %+v", none, got)
	}
	return got
}

// S9: what a former session left does not count in the one that was made anew.
func leftovers(c *check) {
	first := c.ask(store.Claim{ClientID: "c", Expiry: 0, At: c.head()})
	c.record(c.delivery(first.Owner, 1, 1, 2, 3), c.delivery(first.Owner, 2, 2, 1, 4))
	c.write(
		store.PutSubscriptions{Owner: first.Owner, Subscriptions: []schema.Subscription{c.subscription("a", 1), c.subscription("b", 1)}},
		store.PutInbound{Owner: first.Owner, Inbound: schema.Inbound{PacketID: 1, MessageID: c.newID()}},
	)
	c.release(first.Owner)
	c.endAll()
	at := c.head()
	got := c.ask(store.Claim{ClientID: "c", Expiry: forever, At: at})
	c.wantFilters("made anew", got.Subscriptions)
	c.wantCursor("made anew", got.Cursor, schema.SessionCursor{After: at})
	sub := c.subscription("a", 2)
	c.write(store.PutSubscriptions{Owner: got.Owner, Subscriptions: []schema.Subscription{sub}})
	c.record(c.delivery(got.Owner, got.Cursor.Seq+1, 1, 1, 9))
	again := c.claim("c")
	c.wantFilters("made anew and claimed", again.Subscriptions, "a")
	if again.Subscriptions[0].ID != sub.ID {
		c.Errorf("the subscription has the ID of the former session's")
	}
	if len(again.Cursor.Flight) != 1 || again.Cursor.Flight[0].Mark.N != 9 {
		c.Errorf("made anew and claimed: flight %+v", again.Cursor.Flight)
	}
}

func epochsRiseReopen(c *check) {
	kept := c.claim("kept")
	gone := c.ask(store.Claim{ClientID: "gone", At: c.head()})
	c.release(gone.Owner)
	c.endAll()
	c.reopen()
	if got := c.claim("kept"); got.Epoch <= kept.Epoch || !got.Present {
		c.Errorf("epoch %d after %d", got.Epoch, kept.Epoch)
	}
	if got := c.claim("gone"); got.Epoch <= gone.Epoch || got.Present {
		c.Errorf("epoch %d after %d of a session that has ended", got.Epoch, gone.Epoch)
	}
}

// A batch is answered in its order, also with one client twice: the later wins.
func claimBatch(c *check) {
	c.release(c.claim("c-3").Owner)
	var asks []store.Claim
	for i := range 50 {
		asks = append(asks, store.Claim{ClientID: fmt.Sprintf("c-%d", i), Expiry: forever, Protocol: 4, At: c.head()})
	}
	asks = append(asks, asks[7])
	ctx, cancel := c.wait()
	defer cancel()
	got := c.s.Claim(ctx, asks)
	if len(got) != len(asks) {
		c.Fatalf("%d answers for %d claims", len(got), len(asks))
	}
	for i, g := range got {
		if errors.Is(g.Err, store.ErrSuperseded) && i == 7 {
			continue
		}
		if g.Err != nil || g.ClientID != asks[i].ClientID || i < 50 && g.Present != (i == 3) {
			c.Errorf("claim %d: %+v", i, g)
		}
	}
	last := got[len(got)-1]
	c.write(store.SaveCursor{Owner: last.Owner, Cursor: schema.SessionCursor{After: schema.At(1, 1), Seq: 1}})
	if got[7].Err == nil {
		c.lost(store.SaveCursor{Owner: got[7].Owner, Cursor: schema.SessionCursor{After: schema.At(1, 2), Seq: 2}})
	}
}

// Of claims at once each has an epoch of its own, and only the newest counts.
func claimsAtOnce(c *check) {
	const n = 8
	at := c.head()
	back := make(chan store.Claimed, n)
	for range n {
		go func() {
			ctx, cancel := c.wait()
			defer cancel()
			back <- c.s.Claim(ctx, []store.Claim{{ClientID: "c", Expiry: forever, Protocol: 5, At: at}})[0]
		}()
	}
	var newest schema.Owner
	var owners []schema.Owner
	for range n {
		got := <-back
		if errors.Is(got.Err, store.ErrSuperseded) {
			continue
		}
		c.must(got.Err, "a claim among others")
		if slices.ContainsFunc(owners, func(o schema.Owner) bool { return o.Epoch == got.Epoch }) {
			c.Fatalf("two claims have epoch %d", got.Epoch)
		}
		owners = append(owners, got.Owner)
		if got.Epoch > newest.Epoch {
			newest = got.Owner
		}
	}
	if len(owners) == 0 {
		c.Fatalf("of %d claims none came through", n)
	}
	for _, o := range owners {
		w := store.PutInbound{Owner: o, Inbound: schema.Inbound{PacketID: 1, MessageID: c.newID()}}
		if o == newest {
			c.write(w)
		} else {
			c.lost(w)
		}
	}
}
