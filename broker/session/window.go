package session

import (
	"slices"

	"rewindmq/schema"
)

// entry is a delivery: in the flight from its record to its settlement.
type entry struct {
	schema.Flight
	topic     string
	m         *schema.Message // until it is sent: it is never sent twice on one connection
	dropped   bool            // a record only
	live      bool
	size      int // counted in Session.unsent while its record is under way
	ids       []uint32
	rap       bool
	committed bool // the record is durable (clean session: not needed)
	sent      bool // on this connection
	receiving bool // MarkReceived is under way
}

// window is the flight and its packet ids: each new delivery gets one that nothing
// in flight has [MQTT-2.2.1-4, MQTT-4.3.2-1, MQTT-4.3.3-1], and there are no more
// of them than the client's Receive Maximum [MQTT-3.3.4-9, MQTT-4.9.0-2]. All else
// goes on when it is full [MQTT-3.3.4-10, MQTT-4.9.0-3].
//
// Ids come from 1..size, so that after a crash at most size records are in doubt: a
// record settles whatever held its id before. A clean session leaves nothing to a
// crash, unless it shares: its ids go round through all there are, and an
// acknowledgement that is late or repeated meets nothing.
//
// Invariant: byID holds exactly the entries of flight; flight ascends by Seq.
type window struct {
	size   int
	round  bool   // ids go round
	last   uint16 // if so: the last one given
	byID   map[uint16]*entry
	flight []*entry
	fresh  int      // ids above it were never used: they have been free for longest
	freed  []uint16 // then these, in this order
}

func (w *window) init(size int, round bool) { w.size, w.round = size, round }

// bind ends the going round: from now on ids come from 1..size. An id above that
// is held until its delivery is settled.
func (w *window) bind() { w.round, w.fresh, w.freed = false, 0, nil }

func (w *window) len() int { return len(w.flight) }

// room tells whether another delivery fits.
func (w *window) room() bool { return len(w.flight) < w.size && w.peek() != 0 }

// peek gives the free id that has been free for longest, 0 if there is none. An
// entry of a former connection may hold an id above this one's window, so the
// flight's length alone does not tell.
func (w *window) peek() uint16 {
	if w.round {
		return w.next()
	}
	for w.fresh < w.size {
		if id := uint16(w.fresh + 1); w.byID[id] == nil {
			return id
		}
		w.fresh++
	}
	for len(w.freed) > 0 {
		if w.byID[w.freed[0]] == nil {
			return w.freed[0]
		}
		w.freed = w.freed[1:]
	}
	return 0
}

// next gives the first free id behind the last one given.
func (w *window) next() uint16 {
	if len(w.flight) == maximumPacketIDs {
		return 0
	}
	for id := w.last + 1; ; id++ {
		if id != 0 && w.byID[id] == nil {
			return id
		}
	}
}

// lowest is peek without the rule of the longest free.
func (w *window) lowest() uint16 {
	for id := 1; id <= w.size; id++ {
		if w.byID[uint16(id)] == nil {
			return uint16(id)
		}
	}
	return 0
}

// add puts a new delivery under its id into the flight.
func (w *window) add(e *entry) {
	w.last = e.PacketID
	if w.round {
		w.put(e)
		return
	}
	if int(e.PacketID) == w.fresh+1 {
		w.fresh++
	} else if len(w.freed) > 0 && w.freed[0] == e.PacketID {
		w.freed = w.freed[1:]
	}
	w.put(e)
}

// restore puts an entry of a former connection into the flight. The ids below its
// own were used, too: they are free for less long than those that never were.
func (w *window) restore(e *entry) {
	if w.round {
		w.put(e)
		return
	}
	for w.fresh < min(int(e.PacketID), w.size) {
		if w.fresh++; uint16(w.fresh) != e.PacketID {
			w.freed = append(w.freed, uint16(w.fresh))
		}
	}
	if i := slices.Index(w.freed, e.PacketID); i >= 0 {
		w.freed = slices.Delete(w.freed, i, i+1)
	}
	w.put(e)
}

func (w *window) put(e *entry) {
	if w.byID == nil {
		w.byID = make(map[uint16]*entry)
	}
	w.byID[e.PacketID] = e
	w.flight = append(w.flight, e)
}

// settle takes an entry out; its id is free, last in line.
func (w *window) settle(e *entry) {
	delete(w.byID, e.PacketID)
	if w.flight[0] == e {
		w.flight[0] = nil
		w.flight = w.flight[1:]
	} else if i := slices.Index(w.flight, e); i >= 0 {
		w.flight = slices.Delete(w.flight, i, i+1)
	}
	if !w.round && int(e.PacketID) <= w.size && int(e.PacketID) <= w.fresh {
		w.freed = append(w.freed, e.PacketID)
	}
	if len(w.flight) == 0 {
		w.flight = nil
	}
}
