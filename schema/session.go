package schema

import "time"

// Owner is the right to act for a session: who was given it, by which claim.
// Every write of a session carries it, and a store takes none of an older epoch.
type Owner struct {
	ClientID string `bson:"clientId"`
	// SID names the session: the epoch of its first claim. A document of
	// another sid is of another session, and counts as absent.
	SID uint64 `bson:"sid"`
	// Epoch names the claim. It never starts again.
	Epoch uint64 `bson:"epoch"`
}

// NoExpiry as a session's expiry means that it does not end.
const NoExpiry = ^uint32(0)

// SessionCursor is what a session needs to go on after any crash.
//
// Invariant: everything that is not after After is settled or in Flight.
type SessionCursor struct {
	After Cursor
	// Seq is the delivery number up to which After and Flight speak.
	Seq     uint64
	Flight  []Flight  // by Seq, ascending
	Inbound []Inbound // QoS 2 messages from the client, not yet released
}

// Flight is a delivery that was recorded for sending and is not settled.
type Flight struct {
	Seq       uint64
	MessageID ID
	Mark      Mark
	PacketID  uint16
	QoS       uint8 // 1 or 2
	Received  bool  // QoS 2: PUBREC came, PUBREL is due
	Retained  ID    // the retained run that it belongs to; zero: from the log
	// Group is the whole filter of the shared subscription by which the session
	// got the message; empty: none.
	Group   string
	Created time.Time
}

// Inbound is a QoS 2 message whose PUBLISH was seen and whose PUBREL was not.
type Inbound struct {
	PacketID  uint16
	MessageID ID
}

// Delivery is a publishedMessage document: written before the bytes leave.
type Delivery struct {
	ID        ID `bson:"_id"`
	Owner     `bson:",inline"`
	Seq       uint64 `bson:"seq"` // the session's delivery number, from 1 without holes
	Topic     string `bson:"topic"`
	MessageID ID     `bson:"messageId"`
	Mark      Mark   `bson:",inline"`
	PacketID  uint16 `bson:"packetId"` // 0: dropped
	QoS       uint8  `bson:"qos"`
	Retained  ID     `bson:"retained,omitempty"` // the retained run; zero: from the log
	// Group: the record claims the message for the session, out of all members of
	// the group; empty: the subscription is not shared.
	Group string `bson:"group,omitempty"`
	// Dropped: discarded for good (too large for the client), in its turn. It
	// never comes later.
	Dropped bool `bson:"dropped,omitempty"`
	// Received is the QoS 2 state, written by MarkReceived.
	Received bool      `bson:"state,omitempty"`
	Host     string    `bson:"host"`
	Created  time.Time `bson:"created"`
}

// Flight gives what the delivery leaves in the flight.
func (d *Delivery) Flight() Flight {
	return Flight{
		Seq: d.Seq, MessageID: d.MessageID, Mark: d.Mark, PacketID: d.PacketID, QoS: d.QoS,
		Received: d.Received, Retained: d.Retained, Group: d.Group, Created: d.Created,
	}
}

// Recover brings a saved cursor up to the records above its Seq, which are given
// in order of seq, as the claimer does after a crash (S2, S3, S7): each stands in
// the flight until a later record has its packet id; those of the log also
// advance After, but for a group's, whose mark may be far ahead (S2, G4). received tells the newer state of a QoS 2 entry that was in the
// saved flight (S16); nil: none. runs gets, for each retained run met, the last
// topic recorded; nil is allowed.
func (c *SessionCursor) Recover(records []Delivery, received func(Flight) bool, runs map[ID]string) {
	c.After = c.After.Clone()
	flight := make([]Flight, 0, len(c.Flight)+len(records))
	settled := make([]bool, cap(flight))
	holder := make(map[uint16]int, len(c.Flight)) // of a packet id, in flight
	for _, f := range c.Flight {
		if f.QoS == 2 && !f.Received && received != nil {
			f.Received = received(f)
		}
		holder[f.PacketID] = len(flight)
		flight = append(flight, f)
	}
	for i := range records {
		d := &records[i]
		c.Seq = max(c.Seq, d.Seq)
		if d.PacketID != 0 {
			// A record settles whatever held its id before: an id is given
			// again only when it was free.
			if k, held := holder[d.PacketID]; held {
				settled[k] = true
			}
			holder[d.PacketID] = len(flight)
			flight = append(flight, d.Flight())
		}
		if d.MessageID.IsZero() {
			continue // a fence
		}
		switch {
		case d.Group != "":
		case d.Retained.IsZero():
			c.After.Advance(d.Mark)
		case runs != nil:
			runs[d.Retained] = max(runs[d.Retained], d.Topic)
		}
	}
	left := flight[:0]
	for i := range flight {
		if !settled[i] {
			left = append(left, flight[i])
		}
	}
	c.Flight = left
}
