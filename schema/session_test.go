package schema

import (
	"reflect"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func id(n byte) ID { return ID{11: n} }

// rec is a record of the log; run 0.
func rec(seq uint64, pid uint16, qos uint8, m Mark) Delivery {
	return Delivery{ID: id(byte(100 + seq)), Seq: seq, PacketID: pid, QoS: qos, MessageID: id(byte(seq)), Mark: m, Topic: "t"}
}

func flight(c SessionCursor) []uint64 {
	out := []uint64{}
	for _, f := range c.Flight {
		out = append(out, f.Seq)
	}
	return out
}

func wantFlight(t *testing.T, c SessionCursor, want ...uint64) {
	t.Helper()
	if got := flight(c); !slices.Equal(got, want) {
		t.Errorf("flight has seqs %v, want %v", got, want)
	}
}

// S2: a retained delivery, whose mark is far ahead, does not move the vector;
// everything between would be lost.
func TestS2_RetainedRecordsDoNotAdvance(t *testing.T) {
	t.Parallel()
	c := SessionCursor{After: At(1, 10), Seq: 4}
	ret := rec(5, 1, 1, Mark{1, 900})
	ret.Retained, ret.Topic = id(77), "k"
	ret2 := rec(7, 3, 1, Mark{1, 950})
	ret2.Retained, ret2.Topic = id(77), "c"
	runs := map[ID]string{}
	c.Recover([]Delivery{ret, rec(6, 2, 1, Mark{1, 11}), ret2}, nil, runs)
	if !c.After.Equal(At(1, 11)) || c.Seq != 7 {
		t.Errorf("recovered to %v, seq %d", c.After, c.Seq)
	}
	wantFlight(t, c, 5, 6, 7)
	shared := rec(8, 4, 1, Mark{1, 990}) // nor does a group's
	shared.Group = "$share/g/t"
	c.Recover([]Delivery{shared}, nil, runs)
	if !c.After.Equal(At(1, 11)) || c.Seq != 8 || c.Flight[3].Group != shared.Group {
		t.Errorf("a group's record recovered to %v, seq %d, flight %+v", c.After, c.Seq, c.Flight)
	}
	if c.Flight[0].Retained != id(77) || !c.Flight[1].Retained.IsZero() {
		t.Error("the flight does not tell which is retained")
	}
	if len(runs) != 1 || runs[id(77)] != "k" {
		t.Errorf("runs are %v", runs)
	}
}

// S3: ids go round. m1 (id 5) was acknowledged, not noted, id 5 was given to m2.
// The later record settles the earlier, wherever that stood.
func TestS3_RecordSettlesItsPacketID(t *testing.T) {
	t.Parallel()
	c := SessionCursor{After: At(1, 2), Seq: 2, Flight: []Flight{
		{Seq: 1, PacketID: 5, QoS: 2, MessageID: id(1), Mark: Mark{1, 1}, Received: true},
		{Seq: 2, PacketID: 6, QoS: 1, MessageID: id(2), Mark: Mark{1, 2}},
	}}
	c.Recover([]Delivery{rec(3, 5, 2, Mark{1, 3}), rec(4, 7, 1, Mark{1, 4}), rec(5, 7, 1, Mark{1, 5})}, nil, nil)
	wantFlight(t, c, 2, 3, 5)
	for _, f := range c.Flight {
		if f.Seq == 3 && f.Received {
			t.Error("the PUBREC of m1 counts for m2")
		}
	}
	if !c.After.Equal(At(1, 5)) {
		t.Errorf("recovered to %v", c.After)
	}
}

// S7: what was dropped advances the vector and takes no id: it never comes later.
func TestS7_DroppedRecordAdvances(t *testing.T) {
	t.Parallel()
	drop := rec(6, 0, 0, Mark{1, 5})
	drop.Dropped = true
	c := SessionCursor{After: At(1, 4), Seq: 5}
	c.Recover([]Delivery{drop}, nil, nil)
	if !c.After.Equal(At(1, 5)) || c.Seq != 6 {
		t.Errorf("recovered to %v, seq %d", c.After, c.Seq)
	}
	wantFlight(t, c)
}

// S16: the cursor was saved with m1 in flight, `received` went into its record.
func TestS16_StateOfSavedFlight(t *testing.T) {
	t.Parallel()
	c := SessionCursor{After: At(1, 3), Seq: 3, Flight: []Flight{
		{Seq: 1, PacketID: 1, QoS: 2, MessageID: id(1)},
		{Seq: 2, PacketID: 2, QoS: 1, MessageID: id(2)},
		{Seq: 3, PacketID: 3, QoS: 2, MessageID: id(3)},
	}}
	asked := []uint64{}
	c.Recover(nil, func(f Flight) bool {
		asked = append(asked, f.Seq)
		return f.Seq != 3
	}, nil)
	if !c.Flight[0].Received || c.Flight[1].Received || c.Flight[2].Received {
		t.Errorf("states are %+v", c.Flight)
	}
	if !slices.Equal(asked, []uint64{1, 3}) {
		t.Errorf("asked for %v", asked)
	}
	c.Recover(nil, func(Flight) bool { return false }, nil)
	if !c.Flight[0].Received {
		t.Error("a state went back")
	}
	r := rec(4, 9, 2, Mark{1, 4})
	r.Received = true
	c.Recover([]Delivery{r}, nil, nil)
	if f := c.Flight[3]; !f.Received || f.PacketID != 9 || f.MessageID != r.MessageID || f.Mark != r.Mark || f.QoS != 2 {
		t.Errorf("the record left %+v", f)
	}
}

// A fence, with neither message nor packet id, moves seq only.
func TestRecoverFence(t *testing.T) {
	t.Parallel()
	c := SessionCursor{After: At(1, 3), Seq: 3, Flight: []Flight{{Seq: 3, PacketID: 1, QoS: 1}}}
	runs := map[ID]string{}
	c.Recover([]Delivery{{ID: id(9), Seq: 4}}, nil, runs)
	if !c.After.Equal(At(1, 3)) || c.Seq != 4 || len(runs) != 0 {
		t.Errorf("recovered to %v, seq %d, runs %v", c.After, c.Seq, runs)
	}
	wantFlight(t, c, 3)
}

// Recovery against its words: what stands in the flight are the last holders of
// each packet id; the vector has passed every record of the log; nothing that it
// was given is changed.
func TestRecover(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		saved := SessionCursor{After: drawCursor(t, "after"), Inbound: []Inbound{{3, id(3)}}}
		pids := rapid.Permutation([]uint16{1, 2, 3, 4}).Draw(t, "ids")
		last := map[uint16]uint64{} // the last holder of each id
		for range rapid.IntRange(0, 4).Draw(t, "in flight") {
			saved.Seq++
			f := Flight{Seq: saved.Seq, PacketID: pids[saved.Seq-1], QoS: uint8(rapid.IntRange(1, 2).Draw(t, "qos"))}
			saved.Flight = append(saved.Flight, f)
			last[f.PacketID] = f.Seq
		}
		var records []Delivery
		want := saved.After.Clone()
		seq := saved.Seq
		for range rapid.IntRange(0, 8).Draw(t, "records") {
			seq++
			r := rec(seq, uint16(rapid.IntRange(0, 5).Draw(t, "id")), 1, drawMark(t))
			if r.PacketID != 0 {
				last[r.PacketID] = seq
			}
			if rapid.IntRange(0, 3).Draw(t, "kind") == 0 {
				r.Retained = id(50)
			} else {
				want.Advance(r.Mark)
			}
			records = append(records, r)
		}
		before := SessionCursor{After: saved.After.Clone(), Seq: saved.Seq, Flight: slices.Clone(saved.Flight), Inbound: slices.Clone(saved.Inbound)}
		c := saved
		c.Recover(records, nil, nil)
		if !reflect.DeepEqual(flight(saved), flight(before)) || !saved.After.Equal(before.After) {
			t.Fatalf("what was saved changed from %+v to %+v", before, saved)
		}
		if !c.After.Equal(want) || c.Seq != seq || !slices.Equal(c.Inbound, before.Inbound) {
			t.Fatalf("recovered to %v seq %d inbound %v, want %v seq %d", c.After, c.Seq, c.Inbound, want, seq)
		}
		if len(c.Flight) != len(last) || !slices.IsSorted(flight(c)) {
			t.Fatalf("flight %v, want the holders %v", flight(c), last)
		}
		for _, f := range c.Flight {
			if last[f.PacketID] != f.Seq {
				t.Fatalf("packet id %d is held by seq %d, want %d", f.PacketID, f.Seq, last[f.PacketID])
			}
		}
		again := c
		again.Recover(nil, nil, nil)
		if !reflect.DeepEqual(flight(again), flight(c)) || again.Seq != c.Seq || !again.After.Equal(c.After) {
			t.Fatal("recovering twice is not recovering once")
		}
	})
}

// Bringing a full flight up to as many records again takes steps for each, not for each
// pair: 65,535 ids are allowed.
func BenchmarkRecoverFull(b *testing.B) {
	var saved SessionCursor
	var records []Delivery
	for i := range 65_535 {
		seq := uint64(i + 1)
		saved.Flight = append(saved.Flight, Flight{Seq: seq, PacketID: uint16(seq), QoS: 1, MessageID: ID{1}})
		records = append(records, Delivery{Seq: 65_535 + seq, PacketID: uint16(65_536 - seq), QoS: 1, MessageID: ID{2}, Mark: Mark{1, seq}})
	}
	for b.Loop() {
		c := SessionCursor{Seq: 65_535, Flight: saved.Flight}
		c.Recover(records, nil, nil)
		if len(c.Flight) != 65_535 || c.Flight[0].Seq != 65_536 {
			b.Fatal(len(c.Flight))
		}
	}
}
