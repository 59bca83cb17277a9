package embedded

import (
	"encoding/binary"
	"time"

	"rewindmq/schema"
)

// document is what is stored of a session beside its subscriptions and cursor.
type document struct {
	// session numbers the session in the keys; it is never given twice. Zero:
	// the session has ended, and only wills are left that are still to be
	// appended.
	session uint64
	sid     uint64
	epoch   uint64
	// owned: a connection holds it. clean: it was let go in order, not by the
	// recovery of a later start.
	owned, clean bool
	// shared: it has, or had, a shared subscription, and its flight is looked
	// through for what goes back to a group.
	shared    bool
	owner     string
	expiry    uint32
	protocol  uint8
	connected time.Time
	released  time.Time
	wills     []schema.Will
}

// exists tells whether there is a session, and not only wills of a former one.
func (d *document) exists() bool { return d != nil && d.session != 0 }

// endsAt gives when the session ends if nobody comes back; false: never, or a
// connection holds it.
func (d *document) endsAt() (time.Time, bool) {
	if !d.exists() || d.owned || d.expiry == schema.NoExpiry {
		return time.Time{}, false
	}
	return d.released.Add(time.Duration(d.expiry) * time.Second), true
}

// willAt gives when a will has to be looked at next: at once when one is due.
// While a connection holds the session, what is due is the claimer's to append.
func (d *document) willAt() (time.Time, bool) {
	var at time.Time
	found := false
	if d == nil || d.owned {
		return at, false
	}
	for i := range d.wills {
		w := &d.wills[i]
		switch {
		case w.Due:
			return time.Time{}, true
		case !found || w.At.Before(at):
			at, found = w.At, true
		}
	}
	return at, found
}

// clone gives a document whose wills can be changed.
func (d *document) clone() *document {
	c := *d
	c.wills = append([]schema.Will(nil), d.wills...)
	return &c
}

func putDocument(b []byte, d *document) []byte {
	b = append(b, encoding)
	b = binary.AppendUvarint(b, d.session)
	b = binary.AppendUvarint(b, d.sid)
	b = binary.AppendUvarint(b, d.epoch)
	b = putBool(putBool(putBool(b, d.owned), d.clean), d.shared)
	b = putString(b, d.owner)
	b = binary.AppendUvarint(b, uint64(d.expiry))
	b = append(b, d.protocol)
	b = putTime(putTime(b, d.connected), d.released)
	b = binary.AppendUvarint(b, uint64(len(d.wills)))
	for i := range d.wills {
		b = putWill(b, &d.wills[i])
	}
	return b
}

func readDocument(value []byte) (*document, error) {
	r := decode(value)
	d := &document{session: r.uvarint(), sid: r.uvarint(), epoch: r.uvarint(), owned: r.bool(), clean: r.bool(), shared: r.bool()}
	d.owner = r.string()
	d.expiry = uint32(r.below(1<<32 - 1))
	d.protocol = r.byte()
	d.connected, d.released = r.time(), r.time()
	for range r.below(uint64(len(r.b))) {
		if r.err != nil {
			break
		}
		d.wills = append(d.wills, readWill(r))
	}
	return d, r.end()
}

func putWill(b []byte, w *schema.Will) []byte {
	b = append(b, w.Key[:]...)
	b = binary.AppendUvarint(b, w.Epoch)
	b = putString(b, w.Topic)
	b = putBytes(b, w.Payload)
	b = putBool(append(b, w.QoS), w.Retain)
	b = binary.AppendUvarint(b, uint64(w.Delay))
	b = binary.AppendUvarint(b, uint64(w.Expiry))
	b = putBool(putBool(b, w.HasExpiry), w.Properties != nil)
	if w.Properties != nil {
		b = putProperties(b, w.Properties)
	}
	return putBool(putTime(b, w.At), w.Due)
}

func readWill(r *decoder) schema.Will {
	w := schema.Will{Key: r.id(), Epoch: r.uvarint(), Topic: r.string()}
	if p := r.bytes(); len(p) > 0 {
		w.Payload = append([]byte(nil), p...)
	}
	w.QoS = r.byte()
	if w.QoS > 2 {
		r.fail(errValue)
	}
	w.Retain = r.bool()
	w.Delay, w.Expiry = uint32(r.below(1<<32-1)), uint32(r.below(1<<32-1))
	w.HasExpiry = r.bool()
	if r.bool() {
		w.Properties = r.properties()
	}
	w.At, w.Due = r.time(), r.bool()
	return w
}

// place is what is stored under keyCursor: the saved cursor, and the epoch of
// the log in which the first record above its seq was, or will be, written: so
// recovery looks only at days that can hold one.
type place struct {
	schema.SessionCursor
	from uint32
}

func putPlace(b []byte, p *place) []byte {
	b = appendU32(append(b, encoding), p.from)
	b = putCursor(b, p.After)
	b = binary.AppendUvarint(b, p.Seq)
	b = binary.AppendUvarint(b, uint64(len(p.Flight)))
	for i := range p.Flight {
		f := &p.Flight[i]
		b = binary.AppendUvarint(b, f.Seq)
		b = append(b, f.MessageID[:]...)
		b = putMark(b, f.Mark)
		b = binary.BigEndian.AppendUint16(b, f.PacketID)
		b = putBool(append(b, f.QoS), f.Received)
		b = append(b, f.Retained[:]...)
		b = putTime(putString(b, f.Group), f.Created)
	}
	return b
}

func readPlace(value []byte) (*place, error) {
	r := decode(value)
	p := &place{from: r.u32()}
	p.After, p.Seq = r.cursor(), r.uvarint()
	n := r.below(uint64(len(r.b)))
	p.Flight = make([]schema.Flight, 0, min(n, 4096))
	for range n {
		if r.err != nil {
			break
		}
		p.Flight = append(p.Flight, schema.Flight{
			Seq: r.uvarint(), MessageID: r.id(), Mark: r.mark(), PacketID: r.u16(), QoS: r.byte(),
			Received: r.bool(), Retained: r.id(), Group: r.string(), Created: r.time(),
		})
	}
	return p, r.end()
}

func putSubscription(b []byte, s *schema.Subscription) []byte {
	var flags byte
	for i, set := range []bool{s.NoLocal, s.RetainAsPublished, s.Before != nil, s.Run != nil} {
		if set {
			flags |= 1 << i
		}
	}
	b = append(b, encoding, flags, s.QoS, s.RetainHandling)
	b = append(b, s.ID[:]...)
	b = binary.AppendUvarint(binary.AppendUvarint(b, s.SID), s.Epoch)
	b = putTime(b, s.Created)
	b = binary.AppendUvarint(b, uint64(s.Identifier))
	b = putCursor(b, s.Since)
	if s.Before != nil {
		b = putCursor(append(b, s.Before.QoS), s.Before.UpTo)
	}
	if s.Run != nil {
		b = append(b, s.Run.ID[:]...)
		b = putString(putCursor(b, s.Run.Place), s.Run.Next)
	}
	return b
}

// readSubscription decodes all but the client and the filter, which are known
// from the key.
func readSubscription(s *schema.Subscription, value []byte) error {
	r := decode(value)
	flags := r.byte()
	if flags > 15 {
		r.fail(errValue)
	}
	s.NoLocal, s.RetainAsPublished = flags&1 != 0, flags&2 != 0
	s.QoS, s.RetainHandling = r.byte(), r.byte()
	s.ID = r.id()
	s.SID, s.Epoch = r.uvarint(), r.uvarint()
	s.Created = r.time()
	s.Identifier = uint32(r.below(1<<32 - 1))
	s.Since = r.cursor()
	if flags&4 != 0 {
		s.Before = &schema.Before{QoS: r.byte(), UpTo: r.cursor()}
	}
	if flags&8 != 0 {
		s.Run = &schema.Run{ID: r.id(), Place: r.cursor(), Next: r.string()}
	}
	return r.end()
}

// putDelivery encodes all but the seq, which is in the key. It repeats client
// and topic, so that the history can be read when the session and the message
// have gone.
func putDelivery(b []byte, d *schema.Delivery) []byte {
	b = append(b, encoding)
	b = append(b, d.ID[:]...)
	b = putString(b, d.ClientID)
	b = binary.AppendUvarint(binary.AppendUvarint(b, d.SID), d.Epoch)
	b = putString(b, d.Topic)
	b = append(b, d.MessageID[:]...)
	b = putMark(b, d.Mark)
	b = binary.BigEndian.AppendUint16(b, d.PacketID)
	b = append(b, d.QoS)
	b = append(b, d.Retained[:]...)
	b = putBool(putBool(putString(b, d.Group), d.Dropped), d.Received)
	return putTime(putString(b, d.Host), d.Created)
}

func readDelivery(d *schema.Delivery, value []byte) error {
	r := decode(value)
	d.ID = r.id()
	d.ClientID = r.string()
	d.SID, d.Epoch = r.uvarint(), r.uvarint()
	d.Topic, d.MessageID, d.Mark = r.string(), r.id(), r.mark()
	d.PacketID, d.QoS = r.u16(), r.byte()
	d.Retained, d.Group = r.id(), r.string()
	d.Dropped, d.Received = r.bool(), r.bool()
	d.Host, d.Created = r.string(), r.time()
	return r.end()
}
