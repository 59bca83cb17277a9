package storetest

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"rewindmq/schema"
	"rewindmq/store"
)

func groupChecks() []item {
	out := []item{
		{"Group/BeginsAtSince", 0, groupBegins},
		{"Group/G3_GoesWithLastMember", 0, groupEnds},
		{"Group/G3_GoesWithSession", 0, groupEndsWithSession},
		{"Group/G3_GoesWithExpiry", needsClock, groupEndsWithExpiry},
		{"Group/G1_OneClaim", 0, oneClaim},
		{"Group/G1_ClaimsAtOnce", 0, claimsOfMessagesAtOnce},
		{"Group/ClaimedGoesOn", 0, claimedGoesOn},
		{"Group/ClaimRetried", 0, claimRetried},
		{"Group/OnlyWhatIsToGive", 0, onlyWhatIsToGive},
		{"Group/SaveForwardOnly", 0, saveForwardOnly},
		{"Group/Claimed", 0, claimedAfter},
		{"Group/ClaimedReopen", needsReopen, claimedReopen},
		{"Group/Passed", 0, passedOfAgain},
		{"Group/CleanStartHandsBack", 0, cleanStartHandsBack},
		{"Group/CleanSessionHandsBack", 0, cleanSessionHandsBack},
		{"Group/NothingFromBefore", 0, nothingFromBefore},
		{"Group/Counts", 0, countsShared},
	}
	for _, how := range []lossOf{
		{"Release", 0, released},
		{"Reopen", needsReopen, func(c *check, _ store.Claimed) { c.reopen() }},
	} {
		out = append(
			out,
			item{"Group/G2_Again/" + how.name, how.needs, func(c *check) { leftAgain(c, how) }},
			item{"Group/G4_VectorStays/" + how.name, how.needs, func(c *check) { vectorStays(c, how) }},
			item{"Group/QoS2Stays/" + how.name, how.needs, func(c *check) { qos2Stays(c, how) }},
		)
	}
	return out
}

// lossOf is one way to lose a member.
type lossOf struct {
	name  string
	needs needs
	lose  func(c *check, member store.Claimed)
}

// released: the cursor was saved with what is in flight, as a connection does at its
// end.
func released(c *check, member store.Claimed) { c.release(member.Owner) }

const sharedT = "$share/g/t/1"

// member claims a session that is a member of the group.
func (c *check) member(id, group string) store.Claimed {
	c.Helper()
	got := c.claim(id)
	c.share(got.Owner, group)
	return got
}

func (c *check) share(o schema.Owner, group string) {
	c.Helper()
	c.write(store.PutSubscriptions{Owner: o, Subscriptions: []schema.Subscription{c.subscription(group, 2)}})
}

func (c *check) openGroup(name string) store.Group {
	c.Helper()
	ctx, cancel := c.wait()
	defer cancel()
	g, err := c.s.OpenGroup(ctx, name)
	c.must(err, "OpenGroup(%q)", name)
	return g
}

func (c *check) noGroup(name, why string) {
	c.Helper()
	ctx, cancel := c.wait()
	defer cancel()
	if g, err := c.s.OpenGroup(ctx, name); !errors.Is(err, store.ErrNoGroup) {
		c.Errorf("OpenGroup(%q) %s: %+v, %v", name, why, g, err)
	}
}

func (c *check) saveGroup(name string, after schema.Cursor, passed ...schema.ID) {
	c.Helper()
	ctx, cancel := c.wait()
	defer cancel()
	c.must(c.s.SaveGroup(ctx, name, after, passed), "SaveGroup(%q, %v)", name, after)
}

// published stores n messages and gives them with their marks.
func (c *check) published(n int) []*schema.Message {
	c.Helper()
	msgs, kept := make([]*schema.Message, n), make([]*schema.Message, n)
	for i := range msgs {
		msgs[i] = c.message("p", "t/1")
		kept[i] = again(msgs[i])
	}
	for i, mark := range c.stored(publisher("p"), msgs...) {
		kept[i].Mark = mark
	}
	return kept
}

// claims makes the record with which a session claims m for itself.
func (c *check) claims(o schema.Owner, seq uint64, qos uint8, m *schema.Message, group string) schema.Delivery {
	d := c.delivery(o, seq, uint16(seq), qos, 0)
	d.MessageID, d.Mark, d.Topic, d.Group = m.ID, m.Mark, m.Topic, group
	return d
}

func (c *check) isClaimed(d schema.Delivery, why string) {
	c.Helper()
	if err := c.tryRecord(d)[0]; !errors.Is(err, store.ErrClaimed) {
		c.Errorf("record of a message %s: %v", why, err)
	}
}

func refsTo(msgs ...*schema.Message) []store.Ref {
	refs := make([]store.Ref, len(msgs))
	for i, m := range msgs {
		refs[i] = store.Ref{ID: m.ID, Mark: m.Mark}
	}
	sortRefs(refs)
	return refs
}

func (c *check) wantRefs(what string, got []store.Ref, want ...*schema.Message) {
	c.Helper()
	got = slices.Clone(got)
	if what == "Claimed" {
		sortRefs(got) // in any order
	}
	if w := refsTo(want...); !slices.Equal(got, w) {
		c.Errorf("%s is %v, want %v", what, got, w)
	}
}

// passing moves a cursor over messages.
func passing(at schema.Cursor, msgs ...*schema.Message) schema.Cursor {
	at = at.Clone()
	for _, m := range msgs {
		at.Advance(m.Mark)
	}
	return at
}

// saveFlight saves a session's cursor with deliveries in flight.
func (c *check) saveFlight(o schema.Owner, after schema.Cursor, seq uint64, flight ...schema.Delivery) {
	c.Helper()
	cur := schema.SessionCursor{After: after, Seq: seq}
	for _, d := range flight {
		cur.Flight = append(cur.Flight, inFlight(d))
	}
	c.write(store.SaveCursor{Owner: o, Cursor: cur})
}

// G3: a group begins with its first member, at its Since; a second one, and one that
// subscribes again, change nothing.
func groupBegins(c *check) {
	c.published(3)
	a, b := c.claim("a"), c.claim("b")
	c.noGroup(sharedT, "without a member")
	sub := c.subscription(sharedT, 1)
	c.write(store.PutSubscriptions{Owner: a.Owner, Subscriptions: []schema.Subscription{sub, c.subscription("t/1", 1)}})
	c.published(3)
	c.share(b.Owner, sharedT)
	c.share(a.Owner, sharedT)
	g := c.openGroup(sharedT)
	if !g.After.Equal(sub.Since) || len(g.Again)+len(g.Claimed) > 0 {
		c.Errorf("a new group: %+v, want it at %v", g, sub.Since)
	}
	c.noGroup("t/1", "of a plain subscription")
	c.noGroup("$share/G/t/1", "of another name")
	got := c.claim("a")
	c.wantFilters("of a member", got.Subscriptions, sharedT, "t/1")
}

// G3: a group goes with its last member's UNSUBSCRIBE, and the next begins anew.
func groupEnds(c *check) {
	a, b := c.member("a", sharedT), c.member("b", sharedT)
	m := c.published(2)
	d := c.claims(a.Owner, 1, 1, m[0], sharedT)
	c.record(d)
	c.saveFlight(a.Owner, a.Cursor.After, 1, d)
	c.write(store.DeleteSubscriptions{Owner: a.Owner, Filters: []string{sharedT, "none"}})
	c.release(a.Owner) // leaves m[0], though it is no member any more
	c.write(store.DeleteSubscriptions{Owner: b.Owner, Filters: []string{"none"}})
	c.wantRefs("Again", c.openGroup(sharedT).Again, m[0])
	c.write(store.DeleteSubscriptions{Owner: b.Owner, Filters: []string{sharedT}})
	c.noGroup(sharedT, "after the last UNSUBSCRIBE")
	c.write(store.DeleteSubscriptions{Owner: b.Owner, Filters: []string{sharedT}})
	c.isClaimed(c.claims(b.Owner, 1, 1, m[1], sharedT), "of a group that has ended")
	c.saveGroup(sharedT, c.head()) // no error, no group
	c.noGroup(sharedT, "after SaveGroup")
	c.published(1)
	c.share(b.Owner, sharedT)
	g := c.openGroup(sharedT)
	if len(g.Again)+len(g.Claimed) > 0 || g.After.After(m[1].Mark) {
		c.Errorf("a group that began anew has what was before: %+v", g)
	}
	c.isClaimed(c.claims(b.Owner, 1, 1, m[1], sharedT), "before the group's beginning")
}

// G3: the same with the ends of sessions: by clean start, and by expiry 0.
func groupEndsWithSession(c *check) {
	c.member("a", sharedT)
	b := c.ask(store.Claim{ClientID: "b", Expiry: 0, At: c.head()})
	c.share(b.Owner, sharedT)
	c.share(b.Owner, "$share/h/#")
	c.openGroup("$share/h/#")
	c.release(b.Owner)
	c.noGroup("$share/h/#", "after its last member's session, without expiry, was released")
	c.openGroup(sharedT)
	a := c.ask(store.Claim{ClientID: "a", CleanStart: true, Expiry: forever, At: c.head()})
	c.noGroup(sharedT, "after its last member's clean start")
	c.share(a.Owner, sharedT)
	c.openGroup(sharedT)
	c.release(a.Owner)
	c.openGroup(sharedT) // a member that is offline is a member
}

func groupEndsWithExpiry(c *check) {
	a := c.ask(store.Claim{ClientID: "a", Expiry: 60, At: c.head()})
	c.share(a.Owner, sharedT)
	c.release(a.Owner)
	c.h.Clock(61 * time.Second)
	c.endExpired()
	c.noGroup(sharedT, "after its last member's session has expired")
}

// endExpired ends what is over.
func (c *check) endExpired() {
	c.Helper()
	ctx, cancel := c.wait()
	defer cancel()
	_, err := c.s.EndExpired(ctx, 100)
	c.must(err, "EndExpired")
}

// G1: of two that claim a message one gets it.
func oneClaim(c *check) {
	a, b := c.member("a", sharedT), c.member("b", sharedT)
	m := c.published(2)
	c.record(c.claims(a.Owner, 1, 1, m[0], sharedT))
	c.isClaimed(c.claims(b.Owner, 1, 1, m[0], sharedT), "that another has")
	c.isClaimed(c.claims(a.Owner, 2, 1, m[0], sharedT), "that it has itself")
	// Another group has its own.
	c.share(b.Owner, "$share/h/t/1")
	n := c.published(1)
	c.record(c.claims(b.Owner, 2, 1, n[0], "$share/h/t/1"), c.claims(a.Owner, 3, 1, n[0], sharedT))
	c.wantRefs("Claimed", c.openGroup(sharedT).Claimed, m[0], n[0])
}

func claimsOfMessagesAtOnce(c *check) {
	const members = 4
	var owners [members]schema.Owner
	for i := range owners {
		owners[i] = c.member(fmt.Sprint("m", i), sharedT).Owner
	}
	msgs := c.published(20 * c.h.Rounds)
	var wg sync.WaitGroup
	var mu sync.Mutex
	won := map[schema.ID]int{}
	for _, o := range owners {
		wg.Go(func() {
			for i, m := range msgs {
				err := c.tryRecord(c.claims(o, uint64(i+1), 1, m, sharedT))[0]
				mu.Lock()
				if err == nil {
					won[m.ID]++
				} else if !errors.Is(err, store.ErrClaimed) {
					c.Errorf("record of a claim: %v", err)
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	for i, m := range msgs {
		if won[m.ID] != 1 {
			c.Errorf("message %d was claimed by %d members", i, won[m.ID])
		}
	}
}

// A claim that is refused ends nothing: what the session has behind it is stored.
func claimedGoesOn(c *check) {
	a, b := c.member("a", sharedT), c.member("b", sharedT)
	m := c.published(3)
	c.record(c.claims(a.Owner, 1, 1, m[0], sharedT))
	batch := []schema.Delivery{
		c.claims(b.Owner, 1, 1, m[1], sharedT), c.claims(b.Owner, 2, 1, m[0], sharedT), c.claims(b.Owner, 3, 1, m[2], sharedT),
		c.delivery(b.Owner, 4, 4, 1, 4), c.delivery(a.Owner, 2, 2, 1, 4),
	}
	for i, err := range c.tryRecord(batch...) {
		if errors.Is(err, store.ErrClaimed) != (i == 1) || err != nil && i != 1 {
			c.Errorf("record %d of the batch: %v", i, err)
		}
	}
	next := c.claim("b")
	c.wantFlight(next.Cursor, batch[0], batch[2], batch[3])
	c.wantAt(next, b.Cursor.After, 4)
}

// A record that is sent again is the same claim, also after the group has moved on.
func claimRetried(c *check) {
	a := c.member("a", sharedT)
	m := c.published(1)
	d := c.claims(a.Owner, 1, 1, m[0], sharedT)
	c.record(d, d)
	c.record(d)
	c.saveGroup(sharedT, passing(a.Cursor.After, m[0]))
	c.record(d)
	if g := c.openGroup(sharedT); len(g.Again)+len(g.Claimed) > 0 {
		c.Errorf("after the retries: %+v", g)
	}
}

// A group gives what lies after its place, and nothing else.
func onlyWhatIsToGive(c *check) {
	before := c.published(1)
	a, b := c.member("a", sharedT), c.member("b", sharedT)
	m := c.published(2)
	c.isClaimed(c.claims(a.Owner, 1, 1, before[0], sharedT), "before the beginning")
	c.saveGroup(sharedT, passing(a.Cursor.After, m[0]))
	c.isClaimed(c.claims(b.Owner, 1, 1, m[0], sharedT), "that was passed")
	c.isClaimed(c.claims(b.Owner, 2, 1, m[1], "$share/none/t/1"), "of no group")
	c.record(c.claims(b.Owner, 3, 1, m[1], sharedT))
	// Plain records are judged by none of this.
	d := c.claims(a.Owner, 2, 1, before[0], "")
	c.record(d)
}

func saveForwardOnly(c *check) {
	c.member("a", sharedT)
	m := c.published(4)
	at := c.openGroup(sharedT).After
	for _, tt := range []struct{ upTo, want int }{{2, 2}, {1, 2}, {3, 3}, {0, 3}, {3, 3}} {
		c.saveGroup(sharedT, passing(at, m[:tt.upTo]...))
		if got, want := c.openGroup(sharedT).After, passing(at, m[:tt.want]...); !got.Equal(want) {
			c.Errorf("saved at message %d: the group is at %v, want %v", tt.upTo, got, want)
		}
	}
	// A vector of more lanes merges.
	wide := passing(at, m[0])
	wide.Advance(schema.Mark{Lane: wide.Newest() + 2, N: 7})
	c.saveGroup(sharedT, wide)
	want := passing(at, m[:3]...)
	want.Merge(wide)
	if got := c.openGroup(sharedT).After; !got.Equal(want) {
		c.Errorf("merged to %v, want %v", got, want)
	}
}

// Claimed names the claims after the place.
func claimedAfter(c *check) {
	a, b := c.member("a", sharedT), c.member("b", sharedT)
	m := c.published(5)
	c.record(c.claims(a.Owner, 1, 1, m[0], sharedT), c.claims(b.Owner, 1, 2, m[1], sharedT), c.claims(a.Owner, 2, 2, m[3], sharedT))
	c.wantRefs("Claimed", c.openGroup(sharedT).Claimed, m[0], m[1], m[3])
	c.saveGroup(sharedT, passing(a.Cursor.After, m[:2]...))
	c.wantRefs("Claimed", c.openGroup(sharedT).Claimed, m[3])
	// One that was acknowledged and saved is still claimed.
	c.saveFlight(a.Owner, a.Cursor.After, 2)
	c.release(a.Owner)
	c.wantRefs("Claimed", c.openGroup(sharedT).Claimed, m[3])
	c.wantRefs("Again", c.openGroup(sharedT).Again)
	c.saveGroup(sharedT, passing(a.Cursor.After, m...))
	c.wantRefs("Claimed", c.openGroup(sharedT).Claimed)
}

// What was claimed before a SIGKILL is not given to another after it.
func claimedReopen(c *check) {
	a, b := c.member("a", sharedT), c.member("b", sharedT)
	m := c.published(4)
	c.record(c.claims(a.Owner, 1, 2, m[0], sharedT), c.claims(b.Owner, 1, 2, m[2], sharedT))
	c.saveGroup(sharedT, passing(a.Cursor.After, m[0]))
	c.reopen()
	g := c.openGroup(sharedT)
	c.wantRefs("Claimed", g.Claimed, m[2])
	if want := passing(a.Cursor.After, m[0]); !g.After.Equal(want) {
		c.Errorf("the group is at %v, want %v", g.After, want)
	}
	next := c.claim("a")
	c.isClaimed(c.claims(next.Owner, next.Cursor.Seq+1, 1, m[2], sharedT), "claimed before the end")
	c.isClaimed(c.claims(next.Owner, next.Cursor.Seq+1, 1, m[0], sharedT), "passed before the end")
	c.record(c.claims(next.Owner, next.Cursor.Seq+1, 1, m[1], sharedT))
}

func countsShared(c *check) {
	a, b := c.member("a", sharedT), c.member("b", sharedT)
	c.share(a.Owner, "$share/h/#")
	c.share(a.Owner, "$share/h/#")
	c.write(store.PutSubscriptions{Owner: b.Owner, Subscriptions: []schema.Subscription{c.subscription("t/1", 1)}})
	want := func(subs, shared int) {
		c.Helper()
		ctx, cancel := c.wait()
		defer cancel()
		n, err := c.s.Counts(ctx)
		c.must(err, "Counts")
		if n.Subscriptions != subs || n.Shared != shared {
			c.Errorf("counted %+v, want %d subscriptions, %d of them shared", n, subs, shared)
		}
	}
	want(4, 3)
	c.write(store.DeleteSubscriptions{Owner: a.Owner, Filters: []string{"$share/h/#", "x"}})
	want(3, 2)
	if c.h.Reopen != nil {
		c.reopen()
		want(3, 2)
	}
	c.ask(store.Claim{ClientID: "b", CleanStart: true, Expiry: forever, At: c.head()})
	want(1, 1)
}
