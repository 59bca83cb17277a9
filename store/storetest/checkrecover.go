package storetest

import (
	"slices"

	"rewindmq/schema"
	"rewindmq/store"
)

func recoverChecks() []item {
	var out []item
	add := func(name string, run func(*check, taking)) {
		out = append(out,
			item{"Recover/" + name, 0, func(c *check) { run(c, takeOver) }},
			item{"Recover/" + name + "/Reopen", needsReopen, func(c *check) { run(c, killed) }},
		)
	}
	add("S1_S6_RecordsWithoutSave", recordsWithoutSave)
	add("S2_RetainedDoesNotAdvance", retainedDoesNotAdvance)
	add("S3_IDGoesRound", idGoesRound)
	add("S5_SettledStaysSettled", settledStaysSettled)
	add("S7_DroppedStaysDropped", droppedStaysDropped)
	add("S16_ReceivedAfterSave", receivedAfterSave)
	add("S16_ReceivedInRecord", receivedInRecord)
	add("S17_VectorOfRecordsOnly", vectorOfRecordsOnly)
	add("S24_RunMovesWithRecords", runMovesWithRecords)
	add("MarkReceivedRecordGone", receivedRecordGone)
	add("StateNeverBack", stateNeverBack)
	add("ClaimedAgain", claimedAgain)
	return out
}

// taking is how a session comes to its next owner without having been released.
type taking func(c *check, id string) store.Claimed

func takeOver(c *check, id string) store.Claimed { return c.claim(id) }

func killed(c *check, id string) store.Claimed {
	c.reopen()
	return c.claim(id)
}

// wantFlight wants the deliveries in the flight, by seq, with their state.
func (c *check) wantFlight(got schema.SessionCursor, want ...schema.Delivery) {
	c.Helper()
	w := make([]schema.Flight, len(want))
	for i := range want {
		w[i] = inFlight(want[i])
	}
	c.wantCursor("recovered", got, schema.SessionCursor{After: got.After, Seq: got.Seq, Flight: w, Inbound: got.Inbound})
}

// wantAt wants the vector to have passed mark n of lane 1 and nothing else but
// what it had passed before.
func (c *check) wantAt(got store.Claimed, before schema.Cursor, n uint64) {
	c.Helper()
	want := before.Clone()
	want.Advance(schema.Mark{Lane: 1, N: n})
	if !got.Cursor.After.Equal(want) {
		c.Errorf("recovered to %v, want %v", got.Cursor.After, want)
	}
}

// Records that exist, and no save: all of them are in the flight, the vector has
// moved with them, and seq goes on behind them.
func recordsWithoutSave(c *check, take taking) {
	got := c.claim("c")
	var all []schema.Delivery
	for i := range uint64(7) {
		all = append(all, c.delivery(got.Owner, i+1, uint16(i+1), uint8(1+i%2), 10+i))
	}
	c.record(all[:3]...)
	c.record(all[3:]...)
	next := take(c, "c")
	if !next.Present || next.SID != got.SID {
		c.Errorf("claimed: %+v", next)
	}
	c.wantFlight(next.Cursor, all...)
	c.wantAt(next, got.Cursor.After, 16)
	if next.Cursor.Seq < 7 {
		c.Fatalf("seq %d after 7 records", next.Cursor.Seq)
	}
	c.record(c.delivery(next.Owner, next.Cursor.Seq+1, 20, 1, 30))
}

// S2: the mark of a retained delivery may be far ahead.
func retainedDoesNotAdvance(c *check, take taking) {
	got := c.claim("c")
	a, b := c.delivery(got.Owner, 1, 1, 1, 4), c.delivery(got.Owner, 2, 2, 1, 4000)
	b.Retained = c.newID()
	c.record(a, b)
	next := take(c, "c")
	c.wantFlight(next.Cursor, a, b)
	c.wantAt(next, got.Cursor.After, 4)
}

// S3: a record settles whatever held its packet id, in the saved flight and among
// the records.
func idGoesRound(c *check, take taking) {
	got := c.claim("c")
	var all []schema.Delivery
	for i, pid := range []uint16{5, 6, 5, 7, 7, 8} {
		all = append(all, c.delivery(got.Owner, uint64(i+1), pid, 2, uint64(i+1)))
	}
	c.record(all[:2]...)
	c.write(
		store.MarkReceived{Owner: got.Owner, Flight: inFlight(all[0])},
		store.SaveCursor{Owner: got.Owner, Cursor: schema.SessionCursor{
			After: schema.At(1, 2), Seq: 2, Flight: []schema.Flight{inFlight(all[0]), inFlight(all[1])},
		}},
	)
	c.record(all[2:]...)
	next := take(c, "c")
	c.wantFlight(next.Cursor, all[1], all[2], all[4], all[5])
	c.wantAt(next, schema.At(1, 2), 6)
}

// S5: what the saved cursor no longer has in flight is settled; its record does
// not bring it back.
func settledStaysSettled(c *check, take taking) {
	got := c.claim("c")
	a, b, d := c.delivery(got.Owner, 1, 1, 1, 1), c.delivery(got.Owner, 2, 2, 2, 2), c.delivery(got.Owner, 3, 3, 1, 3)
	c.record(a, b, d)
	c.write(store.SaveCursor{Owner: got.Owner, Cursor: schema.SessionCursor{
		After: schema.At(1, 3), Seq: 3, Flight: []schema.Flight{inFlight(b)},
	}})
	next := take(c, "c")
	c.wantFlight(next.Cursor, b)
	c.wantAt(next, schema.At(1, 3), 3)
}

// S7: what was discarded for good does not come later.
func droppedStaysDropped(c *check, take taking) {
	got := c.claim("c")
	a, b := c.delivery(got.Owner, 1, 1, 1, 4), c.delivery(got.Owner, 2, 0, 0, 5)
	b.Dropped = true
	c.record(a, b)
	next := take(c, "c")
	c.wantFlight(next.Cursor, a)
	c.wantAt(next, got.Cursor.After, 5)
}

// S16: the cursor is saved with m1 in flight, `received` goes into its record.
func receivedAfterSave(c *check, take taking) {
	got := c.claim("c")
	a, b := c.delivery(got.Owner, 1, 1, 2, 1), c.delivery(got.Owner, 2, 2, 2, 2)
	c.record(a, b)
	c.write(store.SaveCursor{Owner: got.Owner, Cursor: schema.SessionCursor{
		After: schema.At(1, 2), Seq: 2, Flight: []schema.Flight{inFlight(a), inFlight(b)},
	}})
	c.write(store.MarkReceived{Owner: got.Owner, Flight: inFlight(a)})
	a.Received = true
	next := take(c, "c")
	c.wantFlight(next.Cursor, a, b)
	c.write(store.MarkReceived{Owner: next.Owner, Flight: inFlight(b)}) // recorded by an owner before
	b.Received = true
	c.wantFlight(take(c, "c").Cursor, a, b)
}

func receivedInRecord(c *check, take taking) {
	got := c.claim("c")
	a, b := c.delivery(got.Owner, 1, 1, 2, 1), c.delivery(got.Owner, 2, 2, 2, 2)
	c.record(a, b)
	c.write(store.MarkReceived{Owner: got.Owner, Flight: inFlight(b)})
	b.Received = true
	c.wantFlight(take(c, "c").Cursor, a, b)
}

// S17: recovery moves the vector by records only: not by the place where a new
// session would begin, nor by what is in the log.
func vectorOfRecordsOnly(c *check, take taking) {
	got := c.claim("c")
	saved := schema.NewCursor(3, []schema.Mark{{Lane: 1, N: 2}, {Lane: 3, N: 8}})
	c.write(store.SaveCursor{Owner: got.Owner, Cursor: schema.SessionCursor{After: saved, Seq: 0}})
	a := c.delivery(got.Owner, 1, 1, 1, 1) // behind the vector already
	b := c.delivery(got.Owner, 2, 2, 1, 4)
	d := c.delivery(got.Owner, 3, 3, 1, 9)
	d.Mark.Lane = 2 // retired in the vector
	e := c.delivery(got.Owner, 4, 4, 1, 1)
	e.Mark.Lane = 5
	c.record(a, b, d, e)
	next := take(c, "c")
	c.wantFlight(next.Cursor, a, b, d, e)
	want := schema.NewCursor(5, []schema.Mark{{Lane: 1, N: 4}, {Lane: 3, N: 8}, {Lane: 4, N: 0}, {Lane: 5, N: 1}})
	if !next.Cursor.After.Equal(want) {
		c.Errorf("recovered to %v, want %v", next.Cursor.After, want)
	}
	// What is in the log and was not recorded is still to come.
	other := c.claim("d")
	marks := c.stored(publisher("p"), c.message("p", "t/1"), c.message("p", "t/1"), c.message("p", "t/1"))
	f := c.delivery(other.Owner, 1, 1, 1, 1)
	f.Mark = marks[0]
	c.record(f)
	want = other.Cursor.After.Clone()
	want.Advance(marks[0])
	if got := take(c, "d").Cursor.After; !got.Equal(want) || !got.After(marks[1]) {
		c.Errorf("recovered to %v, want %v", got, want)
	}
}

// S24: a claimer moves the place of a retained run by the records that name it.
func runMovesWithRecords(c *check, take taking) {
	got := c.claim("c")
	moved, other, done := c.subscription("r/#", 1), c.subscription("o/#", 1), c.subscription("d", 1)
	moved.Run = &schema.Run{ID: c.newID(), Place: c.head(), Next: "r/b"}
	other.Run = &schema.Run{ID: c.newID(), Place: c.head(), Next: "o/x"}
	c.write(store.PutSubscriptions{Owner: got.Owner, Subscriptions: []schema.Subscription{moved, other, done}})
	var all []schema.Delivery
	for i, topic := range []string{"r/c", "r/e", "r/d"} {
		d := c.delivery(got.Owner, uint64(i+1), uint16(i+1), 1, 900)
		d.Retained, d.Topic = moved.Run.ID, topic
		all = append(all, d)
	}
	all[2].Retained = c.newID() // of a run that is over
	c.record(all...)
	next := take(c, "c")
	c.wantFlight(next.Cursor, all...)
	c.wantFilters("claimed", next.Subscriptions, "d", "o/#", "r/#")
	if r := next.Subscriptions[2].Run; r == nil || r.Next != "r/e" || r.ID != moved.Run.ID {
		c.Errorf("the run was not moved to r/e: %+v", r)
	}
	if r := next.Subscriptions[1].Run; r == nil || r.Next != "o/x" {
		c.Errorf("another run was moved: %+v", r)
	}
}

// MarkReceived where the record is gone (retention took it) goes into the cursor.
func receivedRecordGone(c *check, take taking) {
	got := c.claim("c")
	gone := inFlight(c.delivery(got.Owner, 3, 1, 2, 1)) // never recorded: as one that is gone
	c.write(store.SaveCursor{Owner: got.Owner, Cursor: schema.SessionCursor{After: schema.At(1, 9), Seq: 9, Flight: []schema.Flight{gone}}})
	c.write(store.MarkReceived{Owner: got.Owner, Flight: gone})
	next := take(c, "c")
	if f := next.Cursor.Flight; len(f) != 1 || !f[0].Received || f[0].Seq != 3 {
		c.Errorf("flight %+v", f)
	}
}

// The state of a QoS 2 delivery never goes back, by a save that was taken before
// it, nor by the mark done twice.
func stateNeverBack(c *check, take taking) {
	got := c.claim("c")
	a := c.delivery(got.Owner, 1, 1, 2, 1)
	c.record(a)
	c.write(
		store.MarkReceived{Owner: got.Owner, Flight: inFlight(a)},
		store.SaveCursor{Owner: got.Owner, Cursor: schema.SessionCursor{After: schema.At(1, 1), Seq: 1, Flight: []schema.Flight{inFlight(a)}}},
		store.MarkReceived{Owner: got.Owner, Flight: inFlight(a)},
	)
	c.record(a) // a retry of the record
	a.Received = true
	c.wantFlight(take(c, "c").Cursor, a)
}

// Claims one after another, none released, none saved: each finds all of it.
func claimedAgain(c *check, take taking) {
	got := c.claim("c")
	var all []schema.Delivery
	o, seq := got.Owner, uint64(0)
	for i := range uint64(3) {
		d := c.delivery(o, seq+1, uint16(i+1), 1, i+1)
		c.record(d)
		all = append(all, d)
		next := take(c, "c")
		c.wantFlight(next.Cursor, all...)
		c.wantAt(next, got.Cursor.After, i+1)
		o, seq = next.Owner, next.Cursor.Seq
		if seq < d.Seq {
			c.Fatalf("seq %d after a record %d", seq, d.Seq)
		}
	}
	if !slices.IsSortedFunc(all, func(a, b schema.Delivery) int { return int(a.Seq) - int(b.Seq) }) {
		c.Fatalf("seqs do not rise")
	}
}
