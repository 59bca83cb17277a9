package mongo

import (
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/x/bsonx/bsoncore"

	"rewindmq/schema"
)

// sessionDoc is a document of `session`.
type sessionDoc struct {
	ID           string         `bson:"_id"`
	SID          int64          `bson:"sid"`
	Epoch        int64          `bson:"epoch"`
	Owner        *bson.ObjectID `bson:"owner,omitempty"` // nil: no connection
	Token        bson.ObjectID  `bson:"token"`
	Released     int64          `bson:"released"`
	Past         []pastDoc      `bson:"past"`
	Expiry       int64          `bson:"expiry"` // seconds; schema.NoExpiry: none
	Connected    time.Time      `bson:"connected"`
	Disconnected *time.Time     `bson:"disconnected,omitempty"`
	Wills        []willDoc      `bson:"wills"`
	// Opened: the last claim has come to its end. Only where it had others to wait
	// for, see underWay.
	Opened bool `bson:"opened,omitempty"`
	// Wake is when the keeper has to look at the session: a will is due, or its
	// time is over. Only without a connection.
	Wake *time.Time `bson:"wake,omitempty"`
}

// underWay tells whether the last claim, by a client, has not come to its end. One
// that found nobody to wait for is quick, and does not tell.
func (d *sessionDoc) underWay() bool {
	return d.Owner != nil && d.Epoch > d.Released && len(d.Past) > 0 && !d.Opened && d.Disconnected == nil
}

func (d *sessionDoc) owns() schema.Owner {
	return schema.Owner{ClientID: d.ID, SID: uint64(d.SID), Epoch: uint64(d.Epoch)}
}

type pastDoc struct {
	Epoch int64         `bson:"epoch"`
	Owner bson.ObjectID `bson:"owner"`
}

type willDoc struct {
	Key        bson.ObjectID `bson:"key"`
	Epoch      int64         `bson:"epoch"`
	Topic      string        `bson:"topic"`
	Payload    []byte        `bson:"data"`
	QoS        int32         `bson:"qos"`
	Retain     bool          `bson:"retain"`
	Delay      int64         `bson:"delay"`
	Expiry     *int64        `bson:"expiry,omitempty"`
	Properties bson.Raw      `bson:"properties,omitempty"`
	At         *time.Time    `bson:"at,omitempty"`
	Due        bool          `bson:"due"`
	End        *time.Time    `bson:"end,omitempty"` // when its session ended
}

func newWillDoc(w *schema.Will, key bson.ObjectID) willDoc {
	d := willDoc{Key: key, Topic: w.Topic, Payload: w.Payload, QoS: int32(w.QoS), Retain: w.Retain, Delay: int64(w.Delay)}
	if d.Payload == nil {
		d.Payload = []byte{}
	}
	if w.HasExpiry {
		e := int64(w.Expiry)
		d.Expiry = &e
	}
	if w.Properties != nil {
		d.Properties = encodeProperties(w.Properties)
	}
	return d
}

func (d *willDoc) will() schema.Will {
	w := schema.Will{
		Key: schema.ID(d.Key), Epoch: uint64(d.Epoch), Topic: d.Topic, Payload: d.Payload, QoS: uint8(d.QoS),
		Retain: d.Retain, Delay: uint32(d.Delay), Due: d.Due,
	}
	if d.Expiry != nil {
		w.Expiry, w.HasExpiry = uint32(*d.Expiry), true
	}
	if d.At != nil {
		w.At = d.At.UTC()
	}
	if len(d.Properties) > 0 {
		w.Properties = decodeProperties(d.Properties)
	}
	return w
}

// cursorDoc is a vector as it is stored.
type cursorDoc struct {
	Newest int64     `bson:"newest"`
	At     []markDoc `bson:"at"`
}

type markDoc struct {
	Lane int64 `bson:"lane"`
	N    int64 `bson:"n"`
}

func newCursorDoc(c schema.Cursor) cursorDoc {
	d := cursorDoc{Newest: int64(c.Newest()), At: make([]markDoc, 0, len(c.Marks()))}
	for _, m := range c.Marks() {
		d.At = append(d.At, markDoc{int64(m.Lane), int64(m.N)})
	}
	return d
}

func (d *cursorDoc) cursor() schema.Cursor {
	marks := make([]schema.Mark, 0, len(d.At))
	for _, m := range d.At {
		marks = append(marks, schema.Mark{Lane: schema.Lane(m.Lane), N: uint64(m.N)})
	}
	if len(marks) == 0 {
		marks = nil
	}
	return schema.NewCursor(schema.Lane(d.Newest), marks)
}

// placeDoc is a document of `cursor`: what a session needs to go on.
type placeDoc struct {
	ID      string       `bson:"_id"`
	SID     int64        `bson:"sid"`
	Epoch   int64        `bson:"epoch"`
	After   cursorDoc    `bson:"after"`
	Seq     int64        `bson:"seq"`
	Flight  []flightDoc  `bson:"flight"`
	Inbound []inboundDoc `bson:"inbound"`
	// Marked is the epoch of the last claim that raised the epoch of every
	// subscription it had read: what has an older one landed late, and does not
	// count.
	Marked int64 `bson:"marked,omitempty"`
	// Shared: the session is, or was, a member of a group.
	Shared bool `bson:"shared,omitempty"`
	// Leaving is what is on its way from the flight back to its groups.
	Leaving []leavingDoc `bson:"leaving,omitempty"`
}

type flightDoc struct {
	MessageID bson.ObjectID  `bson:"messageId"`
	Lane      int64          `bson:"lane"`
	N         int64          `bson:"n"`
	Seq       int64          `bson:"seq"`
	PacketID  int32          `bson:"packetId"`
	QoS       int32          `bson:"qos"`
	State     bool           `bson:"state,omitempty"`
	Retained  *bson.ObjectID `bson:"retained,omitempty"`
	Group     string         `bson:"group,omitempty"`
	Created   time.Time      `bson:"created"`
}

type inboundDoc struct {
	PacketID  int32         `bson:"packetId"`
	MessageID bson.ObjectID `bson:"messageId"`
}

func newFlightDoc(f schema.Flight) flightDoc {
	return flightDoc{
		MessageID: bson.ObjectID(f.MessageID), Lane: int64(f.Mark.Lane), N: int64(f.Mark.N), Seq: int64(f.Seq),
		PacketID: int32(f.PacketID), QoS: int32(f.QoS), State: f.Received, Retained: optional(f.Retained), Group: f.Group, Created: f.Created,
	}
}

func (d *flightDoc) flight() schema.Flight {
	return schema.Flight{
		Seq: uint64(d.Seq), MessageID: schema.ID(d.MessageID), Mark: schema.Mark{Lane: schema.Lane(d.Lane), N: uint64(d.N)},
		PacketID: uint16(d.PacketID), QoS: uint8(d.QoS), Received: d.State, Retained: required(d.Retained),
		Group: d.Group, Created: d.Created.UTC(),
	}
}

func optional(id schema.ID) *bson.ObjectID {
	if id.IsZero() {
		return nil
	}
	o := bson.ObjectID(id)
	return &o
}

func required(id *bson.ObjectID) schema.ID {
	if id == nil {
		return schema.ID{}
	}
	return schema.ID(*id)
}

func (d *placeDoc) sessionCursor() schema.SessionCursor {
	c := schema.SessionCursor{After: d.After.cursor(), Seq: uint64(d.Seq)}
	for i := range d.Flight {
		c.Flight = append(c.Flight, d.Flight[i].flight())
	}
	for _, in := range d.Inbound {
		c.Inbound = append(c.Inbound, schema.Inbound{PacketID: uint16(in.PacketID), MessageID: schema.ID(in.MessageID)})
	}
	return c
}

// subscriptionDoc is a document of `subscription`. Other writers' have only the
// first six fields.
type subscriptionDoc struct {
	ID       bson.ObjectID `bson:"_id"`
	Topic    string        `bson:"topic"`
	ClientID string        `bson:"clientId"`
	Wildcard string        `bson:"wildcard,omitempty"`
	QoS      int32         `bson:"qos"`
	Created  time.Time     `bson:"created"`

	SID        int64      `bson:"sid"`
	Epoch      int64      `bson:"epoch"`
	NoLocal    bool       `bson:"nl,omitempty"`
	Published  bool       `bson:"rap,omitempty"`
	Handling   int32      `bson:"rh,omitempty"`
	Identifier int64      `bson:"subscriptionId,omitempty"`
	Since      cursorDoc  `bson:"since"`
	Before     *beforeDoc `bson:"before,omitempty"`
	Run        *runDoc    `bson:"run,omitempty"`
	// Group is the whole filter of a shared subscription: it makes its session a
	// member. Missing where the subscription is not shared.
	Group string `bson:"group,omitempty"`
}

type beforeDoc struct {
	QoS  int32     `bson:"qos"`
	UpTo cursorDoc `bson:"upTo"`
}

type runDoc struct {
	ID    bson.ObjectID `bson:"id"`
	Place cursorDoc     `bson:"place"`
	Next  string        `bson:"next"`
}

func newSubscriptionDoc(s *schema.Subscription, o schema.Owner) subscriptionDoc {
	d := subscriptionDoc{
		ID: bson.ObjectID(s.ID), Topic: s.Filter, ClientID: o.ClientID, Wildcard: schema.Wildcard(s.Filter), QoS: int32(s.QoS),
		Created: s.Created, SID: int64(o.SID), Epoch: int64(o.Epoch), NoLocal: s.NoLocal, Published: s.RetainAsPublished,
		Handling: int32(s.RetainHandling), Identifier: int64(s.Identifier), Since: newCursorDoc(s.Since),
	}
	if isShared(s.Filter) {
		d.Group = s.Filter
	}
	if b := s.Before; b != nil {
		d.Before = &beforeDoc{QoS: int32(b.QoS), UpTo: newCursorDoc(b.UpTo)}
	}
	if r := s.Run; r != nil {
		d.Run = &runDoc{ID: bson.ObjectID(r.ID), Place: newCursorDoc(r.Place), Next: r.Next}
	}
	return d
}

func (d *subscriptionDoc) subscription() schema.Subscription {
	s := schema.Subscription{
		ID: schema.ID(d.ID), Owner: schema.Owner{ClientID: d.ClientID, SID: uint64(d.SID), Epoch: uint64(d.Epoch)},
		Filter: d.Topic, QoS: uint8(d.QoS), Created: d.Created.UTC(), NoLocal: d.NoLocal, RetainAsPublished: d.Published,
		RetainHandling: uint8(d.Handling), Identifier: uint32(d.Identifier), Since: d.Since.cursor(),
	}
	if b := d.Before; b != nil {
		s.Before = &schema.Before{QoS: uint8(b.QoS), UpTo: b.UpTo.cursor()}
	}
	if r := d.Run; r != nil {
		s.Run = &schema.Run{ID: schema.ID(r.ID), Place: r.Place.cursor(), Next: r.Next}
	}
	return s
}

// recordDoc is a document of `publishedMessage`. A fence has neither message nor
// packet id, nor has one that fills a hole (recordLane.fill). With Group it is a
// claim. One that was handed back has `left` in its place, and lies at or below the
// seq of its session's cursor: it is never read again.
type recordDoc struct {
	ID        bson.ObjectID  `bson:"_id"`
	ClientID  string         `bson:"clientId"`
	Topic     string         `bson:"topic,omitempty"`
	MessageID *bson.ObjectID `bson:"messageId,omitempty"`
	Host      string         `bson:"host"`
	Created   time.Time      `bson:"created"`

	SID      int64          `bson:"sid"`
	Seq      int64          `bson:"seq"`
	PacketID int32          `bson:"packetId,omitempty"`
	QoS      int32          `bson:"qos"`
	Lane     int64          `bson:"lane,omitempty"`
	N        int64          `bson:"n,omitempty"`
	Epoch    int64          `bson:"epoch"`
	Retained *bson.ObjectID `bson:"retained,omitempty"`
	Group    string         `bson:"group,omitempty"`
	Dropped  bool           `bson:"dropped,omitempty"`
	State    bool           `bson:"state,omitempty"`
}

// appendRecord appends the document of a record.
func appendRecord(b []byte, d *schema.Delivery) []byte {
	at, b := bsoncore.AppendDocumentStart(b)
	b = bsoncore.AppendObjectIDElement(b, "_id", bson.ObjectID(d.ID))
	b = bsoncore.AppendStringElement(b, "clientId", d.ClientID)
	if d.Topic != "" {
		b = bsoncore.AppendStringElement(b, "topic", d.Topic)
	}
	if !d.MessageID.IsZero() {
		b = bsoncore.AppendObjectIDElement(b, "messageId", bson.ObjectID(d.MessageID))
	}
	b = bsoncore.AppendStringElement(b, "host", d.Host)
	b = bsoncore.AppendDateTimeElement(b, "created", d.Created.UnixMilli())
	b = bsoncore.AppendInt64Element(b, "sid", int64(d.SID))
	b = bsoncore.AppendInt64Element(b, "seq", int64(d.Seq))
	if d.PacketID != 0 {
		b = bsoncore.AppendInt32Element(b, "packetId", int32(d.PacketID))
	}
	b = bsoncore.AppendInt32Element(b, "qos", int32(d.QoS))
	if d.Mark.Lane != 0 {
		b = bsoncore.AppendInt64Element(b, "lane", int64(d.Mark.Lane))
	}
	if d.Mark.N != 0 {
		b = bsoncore.AppendInt64Element(b, "n", int64(d.Mark.N))
	}
	b = bsoncore.AppendInt64Element(b, "epoch", int64(d.Epoch))
	if !d.Retained.IsZero() {
		b = bsoncore.AppendObjectIDElement(b, "retained", bson.ObjectID(d.Retained))
	}
	if d.Group != "" {
		b = bsoncore.AppendStringElement(b, "group", d.Group)
	}
	if d.Dropped {
		b = bsoncore.AppendBooleanElement(b, "dropped", true)
	}
	if d.Received {
		b = bsoncore.AppendBooleanElement(b, "state", true)
	}
	b, _ = bsoncore.AppendDocumentEnd(b, at) // fails only where the start is missing
	return b
}

func (d *recordDoc) delivery() schema.Delivery {
	return schema.Delivery{
		ID: schema.ID(d.ID), Owner: schema.Owner{ClientID: d.ClientID, SID: uint64(d.SID), Epoch: uint64(d.Epoch)},
		Seq: uint64(d.Seq), Topic: d.Topic, MessageID: required(d.MessageID),
		Mark: schema.Mark{Lane: schema.Lane(d.Lane), N: uint64(d.N)}, PacketID: uint16(d.PacketID), QoS: uint8(d.QoS),
		Retained: required(d.Retained), Group: d.Group, Dropped: d.Dropped, Received: d.State, Host: d.Host, Created: d.Created.UTC(),
	}
}
