package storetest

import (
	"rewindmq/schema"
	"rewindmq/store"
)

// G2: what a lost member left is Again, though it lies before the group's place and
// its record holds the claim; it leaves Again with the record of the next.
func leftAgain(c *check, how lossOf) {
	a, b := c.member("a", sharedT), c.member("b", sharedT)
	m := c.published(5)
	var ds []schema.Delivery
	for i := range 4 {
		ds = append(ds, c.claims(a.Owner, uint64(i+1), 1, m[i], sharedT))
	}
	c.record(ds[:3]...)
	c.saveFlight(a.Owner, a.Cursor.After, 3, ds[0], ds[2]) // m[1] is acknowledged
	if how.name == "Reopen" {
		c.record(ds[3]) // above the cursor
	} else {
		ds = ds[:3]
	}
	c.saveGroup(sharedT, passing(a.Cursor.After, m[:2]...))
	how.lose(c, a)
	left := []*schema.Message{m[0], m[2]}
	if len(ds) == 4 {
		left = append(left, m[3])
	}
	c.wantRefs("Again", c.openGroup(sharedT).Again, left...)
	next := c.claim("a")
	c.wantFlight(next.Cursor) // nobody has it twice
	b = c.claim("b")
	d := c.claims(b.Owner, b.Cursor.Seq+1, 1, m[0], sharedT)
	c.record(d)
	c.wantRefs("Again", c.openGroup(sharedT).Again, left[1:]...)
	c.record(d) // a retry
	c.isClaimed(c.claims(next.Owner, next.Cursor.Seq+1, 1, m[0], sharedT), "that another took over")
	// Also by the one that had left it.
	e := c.claims(next.Owner, next.Cursor.Seq+1, 1, m[2], sharedT)
	c.record(e)
	c.wantRefs("Again", c.openGroup(sharedT).Again, left[2:]...)
	// A session that another connection takes over keeps it; until that is lost too.
	next = c.claim("a")
	c.wantFlight(next.Cursor, e)
	c.wantRefs("Again", c.openGroup(sharedT).Again, left[2:]...)
	if how.name == "Reopen" {
		left = append(left, m[0]) // b is lost as well
	} else {
		c.saveFlight(next.Owner, next.Cursor.After, next.Cursor.Seq, e)
	}
	how.lose(c, next)
	c.wantRefs("Again", c.openGroup(sharedT).Again, append(left[2:], m[2])...)
}

// G4: the record of a group's message does not move the member's own vector, not
// when it was handed back either.
func vectorStays(c *check, how lossOf) {
	a := c.member("a", sharedT)
	c.member("b", sharedT)
	m := c.published(6)
	plain := c.delivery(a.Owner, 2, 2, 1, 0)
	plain.MessageID, plain.Mark = m[1].ID, m[1].Mark
	shared := c.claims(a.Owner, 1, 1, m[5], sharedT)
	kept := c.claims(a.Owner, 3, 2, m[4], sharedT)
	c.record(shared, plain, kept)
	if how.name == "Release" {
		c.saveFlight(a.Owner, passing(a.Cursor.After, m[1]), 3, shared, plain, kept)
	}
	how.lose(c, a)
	next := c.claim("a")
	if want := passing(a.Cursor.After, m[1]); !next.Cursor.After.Equal(want) {
		c.Errorf("the vector is at %v, want %v", next.Cursor.After, want)
	}
	c.wantFlight(next.Cursor, plain, kept)
	c.wantRefs("Again", c.openGroup(sharedT).Again, m[5])
	// Taken over without a release: all of it stays with the session.
	mine := c.claims(next.Owner, next.Cursor.Seq+1, 1, m[3], sharedT)
	mine.PacketID = 9
	c.record(mine)
	last := c.claim("a")
	if want := passing(a.Cursor.After, m[1]); !last.Cursor.After.Equal(want) {
		c.Errorf("the vector is at %v after a takeover, want %v", last.Cursor.After, want)
	}
	c.wantFlight(last.Cursor, plain, kept, mine)
}

// [MQTT-4.8.2-4, MQTT-4.8.2-5]: at QoS 2 it stays with the member, and goes to
// nobody if the session ends.
func qos2Stays(c *check, how lossOf) {
	a := c.member("a", sharedT)
	b := c.member("b", sharedT)
	m := c.published(3)
	one, two, three := c.claims(a.Owner, 1, 2, m[0], sharedT), c.claims(a.Owner, 2, 2, m[1], sharedT), c.claims(a.Owner, 3, 1, m[2], sharedT)
	c.record(one, two, three)
	c.write(store.MarkReceived{Owner: a.Owner, Flight: inFlight(two)})
	two.Received = true
	if how.name == "Release" {
		c.saveFlight(a.Owner, a.Cursor.After, 3, one, two, three)
	}
	how.lose(c, a)
	c.wantRefs("Again", c.openGroup(sharedT).Again, m[2])
	a = c.claim("a")
	c.wantFlight(a.Cursor, one, two)
	b = c.claim("b")
	c.isClaimed(c.claims(b.Owner, b.Cursor.Seq+1, 2, m[0], sharedT), "at QoS 2 of a lost member")
	a = c.ask(store.Claim{ClientID: "a", CleanStart: true, Expiry: forever, At: c.head()})
	c.wantFlight(a.Cursor)
	c.wantRefs("Again", c.openGroup(sharedT).Again, m[2])
	c.isClaimed(c.claims(b.Owner, b.Cursor.Seq+1, 2, m[0], sharedT), "at QoS 2 of a session that has ended")
}

// passed leaves Again without a record.
func passedOfAgain(c *check) {
	a := c.member("a", sharedT)
	c.member("b", sharedT)
	m := c.published(3)
	var ds []schema.Delivery
	for i := range m {
		ds = append(ds, c.claims(a.Owner, uint64(i+1), 1, m[i], sharedT))
	}
	c.record(ds...)
	c.saveFlight(a.Owner, a.Cursor.After, 3, ds...)
	c.release(a.Owner)
	c.saveGroup(sharedT, a.Cursor.After, m[1].ID, c.newID())
	c.wantRefs("Again", c.openGroup(sharedT).Again, m[0], m[2])
	c.saveGroup(sharedT, passing(a.Cursor.After, m...), m[0].ID)
	c.wantRefs("Again", c.openGroup(sharedT).Again, m[2])
	b := c.claim("b")
	c.isClaimed(c.claims(b.Owner, b.Cursor.Seq+1, 1, m[1], sharedT), "of Again that was passed")
}

// A clean start over a session that was not released ends it: what it had in flight,
// saved and not saved, goes back.
func cleanStartHandsBack(c *check) {
	a := c.member("a", sharedT)
	c.member("b", sharedT)
	m := c.published(3)
	one, two, three := c.claims(a.Owner, 1, 1, m[0], sharedT), c.claims(a.Owner, 2, 2, m[1], sharedT), c.claims(a.Owner, 3, 1, m[2], sharedT)
	c.record(one, two)
	c.saveFlight(a.Owner, a.Cursor.After, 2, one, two)
	c.record(three)
	got := c.ask(store.Claim{ClientID: "a", CleanStart: true, Expiry: forever, At: c.head()})
	c.wantFlight(got.Cursor)
	c.wantRefs("Again", c.openGroup(sharedT).Again, m[0], m[2])
	c.lost(store.Release{Owner: a.Owner})
	c.wantRefs("Again", c.openGroup(sharedT).Again, m[0], m[2])
}

// A session without expiry hands back when its connection ends, by its saved cursor.
func cleanSessionHandsBack(c *check) {
	c.member("b", sharedT)
	a := c.ask(store.Claim{ClientID: "a", Expiry: 0, At: c.head()})
	c.share(a.Owner, sharedT)
	m := c.published(3)
	one, two, three := c.claims(a.Owner, 1, 1, m[0], sharedT), c.claims(a.Owner, 2, 1, m[1], sharedT), c.claims(a.Owner, 3, 2, m[2], sharedT)
	c.record(one, two, three)
	c.write(
		store.SaveCursor{Owner: a.Owner, Cursor: schema.SessionCursor{
			After: a.Cursor.After, Seq: 3, Flight: []schema.Flight{inFlight(two), inFlight(three)},
		}},
		store.Release{Owner: a.Owner},
	)
	c.wantRefs("Again", c.openGroup(sharedT).Again, m[1])
}

// G3: what lies before the group's beginning does not go back to it: it was another
// group's of the same name. It stays with the session that has it.
func nothingFromBefore(c *check) {
	a := c.member("a", sharedT)
	m := c.published(2)
	one := c.claims(a.Owner, 1, 1, m[0], sharedT)
	c.record(one)
	c.saveFlight(a.Owner, a.Cursor.After, 1, one)
	c.write(store.DeleteSubscriptions{Owner: a.Owner, Filters: []string{sharedT}})
	b := c.member("b", sharedT) // a new group
	c.release(a.Owner)
	c.wantRefs("Again", c.openGroup(sharedT).Again)
	a = c.claim("a")
	c.wantFlight(a.Cursor, one)
	n := c.published(1)
	two := c.claims(b.Owner, 1, 1, n[0], sharedT)
	c.record(two)
	c.saveFlight(b.Owner, b.Cursor.After, 1, two)
	c.write(store.DeleteSubscriptions{Owner: b.Owner, Filters: []string{sharedT}})
	c.release(b.Owner) // no group at all
	b = c.claim("b")
	c.wantFlight(b.Cursor, two)
}
