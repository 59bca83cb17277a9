package group

import (
	"errors"
	"time"

	"rewindmq/broker/session"
	"rewindmq/schema"
	"rewindmq/store"
	"rewindmq/store/storetest"
)

// device is a client: it comes and goes, reads, and acknowledges in its own time.
type device struct {
	w      *world
	id     string
	window int
	qos    uint8
	small  bool // its Maximum Packet Size
	wants  bool // to be subscribed
	got    map[uint16]schema.ID
	last   map[string]int
	c      *conn
}

type packet struct {
	m   *schema.Message
	id  uint16
	qos uint8
	ack session.AckKind
}

// conn is a session while a connection owns it. It is a Member.
type conn struct {
	d        *device
	s        *session.Session
	owner    schema.Owner
	share    *simShare // the last it has joined
	records  []schema.Delivery
	recorded []error
	failed   bool // a record was in doubt: none goes in behind it
	writes   []store.Write
	written  []error
	later    []session.Action
	toClient []packet
	toServer []packet
	cut      bool
	blocked  bool
}

// Next implements session.Retained: there are none.
func (c *conn) Next(string, string) (*schema.Message, string, bool) { return nil, "", true }

func (c *conn) Room() int { return c.s.Room() }

func (c *conn) OfferShared(m *schema.Message, isLive bool) (a session.Offered) {
	c.input(func(s *session.Session) { a = s.OfferShared(m, simName, isLive) })
	if a == session.Sent {
		c.d.w.sent(c, m)
	}
	return a
}

func (d *device) drop() {
	if d.c != nil {
		d.c = nil
	}
}

// connect claims the session and subscribes.
func (d *device) connect() {
	w := d.w
	ask := store.Claim{ClientID: d.id, Protocol: 5, Expiry: schema.NoExpiry, At: w.h, CleanStart: w.faults && w.chance(.1*w.x.clean)}
	if w.chance(w.x.clean * .5) {
		ask.Expiry = 0
	}
	got := w.drive(storetest.NewClaim(w.node, ask, w.m.NewID(), 0))
	must(got.Err == nil, "claim of %s: %v", d.id, got.Err)
	w.trace("%s connects: present %v, expiry %d, flight %d", d.id, got.Present, ask.Expiry, len(got.Cursor.Flight))
	if !got.Present {
		clear(d.got)
	}
	c := &conn{d: d, owner: got.Owner}
	limit := 0
	if d.small {
		limit = 50
	}
	s, err := session.New(session.Options{
		Owner: got.Owner, Clean: ask.Expiry == 0, CanRefuse: true, Window: d.window, Quota: d.window, ReceiveMaximum: 10,
		MaximumPacketSize: limit, Queue: 4, Host: "n", Now: w.now, NewID: func(time.Time) schema.ID { return w.m.NewID() },
		Size:     func(m *schema.Message, _ uint8, _ []uint32) int { return len(m.Payload) },
		H:        func() schema.Cursor { return w.h },
		Retained: c,
	}, &got)
	if err != nil {
		panic(err)
	}
	c.s, d.c = s, c
	c.input((*session.Session).Start)
	if d.wants && !s.Subscribed(simName) {
		c.subscribe()
	}
}

func (c *conn) subscribe() {
	sub := schema.Subscription{Filter: simName, QoS: c.d.qos}
	c.input(func(s *session.Session) {
		s.OnSubscribe(1, []schema.Subscription{sub}, []session.Code{session.Code(sub.QoS)})
	})
}

func (c *conn) input(fn func(*session.Session)) {
	fn(c.s)
	for _, a := range c.s.Actions() {
		c.carry(a)
	}
}

func (c *conn) carry(a session.Action) {
	w := c.d.w
	switch a.Do {
	case session.SendPublish:
		if a.QoS > 0 {
			w.sends(c, &a)
		}
		if !c.cut {
			c.toClient = append(c.toClient, packet{m: a.Message, id: a.PacketID, qos: a.QoS})
		}
	case session.SendAck:
		if !c.cut {
			c.toClient = append(c.toClient, packet{id: a.PacketID, ack: a.Ack})
		}
	case session.DoRecord:
		c.records = append(c.records, *a.Delivery)
	case session.DoWrite:
		c.writes = append(c.writes, a.Write)
	case session.Claimed:
		sh := c.share
		sh.notes = append(sh.notes, func(g *Group) { g.OnClaimed(c, a.ID, a.Outcome) })
	case session.DoClose:
		w.trace("%s closes: %s", c.d.id, a.Reason)
		c.cut, c.toClient, c.toServer = true, nil, nil
	case session.DoHead, session.DoLookup, session.DoJoin, session.DoPart, session.DoReplay, session.DoEnd:
		c.later = append(c.later, a)
	case session.Count:
		w.dropped(a.Dropped)
	}
}

func (d *device) actions() {
	w, c := d.w, d.c
	if c == nil {
		if !w.faults || w.chance(.2) {
			w.may(d.id+" connect", d.connect)
		}
		return
	}
	c.store()
	if c.cut {
		return
	}
	if len(c.toClient) > 0 {
		w.may(d.id+" reads", c.reads)
	}
	if len(c.toServer) > 0 && (!w.faults || w.chance(.4)) {
		w.may(d.id+" acknowledges", c.acknowledges)
	}
	if c.blocked && (!w.faults || w.chance(.2)) {
		w.may(d.id+" takes bytes", func() { c.blocked = false; c.input(func(s *session.Session) { s.Block(false) }) })
	}
	if !w.faults {
		return
	}
	switch {
	case w.chance(w.x.cut):
		w.may(d.id+" is cut", func() { c.close(session.ReasonDetached) })
	case w.chance(w.x.cut / 3):
		w.may(d.id+" disconnects", func() {
			c.s.SetRelease(true, 0, false)
			c.close(session.ReasonNormal)
		})
	case w.chance(w.x.block) && !c.blocked:
		w.may(d.id+" blocks", func() { c.blocked = true; c.input(func(s *session.Session) { s.Block(true) }) })
	case w.chance(w.x.save):
		w.may(d.id+" tick", d.tick)
	case w.chance(w.x.unsubscribe):
		w.may(d.id+" changes its mind", func() {
			if d.wants = !d.wants; d.wants {
				c.subscribe()
			} else {
				c.input(func(s *session.Session) { s.OnUnsubscribe(2, []string{simName}) })
			}
		})
	}
}

func (d *device) tick() {
	if d.c != nil && !d.c.s.Closing() {
		d.c.input(func(s *session.Session) { s.Tick(d.w.h) })
	}
}

// comeBack begins the quiet end: who wants to be subscribed is.
func (d *device) comeBack() {
	if d.c != nil && !d.c.cut && d.wants && !d.c.s.Subscribed(simName) {
		d.c.subscribe()
	}
}

func (c *conn) close(why session.Reason) {
	c.cut, c.toClient, c.toServer = true, nil, nil
	c.input(func(s *session.Session) { s.Close(why) })
}

// store is what goes to the store and comes from there.
func (c *conn) store() {
	w, id := c.d.w, c.d.id
	slow := func() bool { return w.faults && w.chance(w.x.slow) }
	if len(c.records) > 0 && !slow() {
		w.may(id+" record", c.record)
	}
	if len(c.recorded) > 0 && !slow() {
		w.may(id+" recorded", func() {
			err := c.recorded[0]
			c.recorded = c.recorded[1:]
			c.input(func(s *session.Session) { s.OnRecorded(err, errors.Is(err, store.ErrSessionLost)) })
		})
	}
	if len(c.writes) > 0 && !slow() {
		w.may(id+" write", c.write)
	}
	if len(c.written) > 0 && !slow() {
		w.may(id+" written", func() {
			err := c.written[0]
			c.written = c.written[1:]
			c.input(func(s *session.Session) { s.OnWritten(err, errors.Is(err, store.ErrSessionLost)) })
		})
	}
	if len(c.later) > 0 {
		w.may(id+" later", c.carryLater)
	}
}

func (c *conn) record() {
	w, d := c.d.w, c.records[0]
	c.records = c.records[1:]
	doubt := w.faults && w.chance(w.x.doubt)
	err := store.ErrSessionLost
	switch {
	case c.failed || doubt && w.chance(.5):
		err = errDoubt // it did not land
	case w.m.Owns(d.Owner):
		if err = w.m.RecordBatch([]schema.Delivery{d})[0]; err == nil {
			w.claims(&d)
		}
		if err == nil && doubt {
			err = errDoubt
		}
	}
	c.failed = c.failed || errors.Is(err, errDoubt)
	w.trace("%s record %d of %d: %v", c.d.id, d.Seq, w.pubs[d.MessageID].n, err)
	c.recorded = append(c.recorded, err)
}

func (c *conn) write() {
	w, doc := c.d.w, c.writes[0]
	c.writes = c.writes[1:]
	err := store.ErrSessionLost
	if _, ok := doc.(store.Release); ok || w.m.Owns(c.owner) {
		err = w.m.Write(doc)
	}
	w.trace("%s %T: %v", c.d.id, doc, err)
	c.written = append(c.written, err)
}

func (c *conn) carryLater() {
	w, a := c.d.w, c.later[0]
	c.later = c.later[1:]
	switch a.Do {
	case session.DoHead:
		c.input(func(s *session.Session) { s.OnHead(w.m.Head(), nil) })
	case session.DoLookup:
		msgs := make([]*schema.Message, len(a.Refs))
		for i, r := range a.Refs {
			msgs[i] = w.m.Message(r.ID)
		}
		c.input(func(s *session.Session) { s.OnLookup(a.Refs, msgs) })
	case session.DoReplay: // it has plain subscriptions to nothing
		ok := false
		c.input(func(s *session.Session) { _, _, ok = s.OnAttach() })
		if ok {
			c.input(func(s *session.Session) { s.OnCaughtUp(w.h) })
		}
	case session.DoJoin:
		c.share = w.shareFor()
		c.share.input(func(g *Group) { g.Join(c) })
	case session.DoPart:
		if c.share != nil {
			c.share.input(func(g *Group) { g.Part(c) })
		}
	case session.DoEnd:
		c.d.c = nil
		if c.share != nil {
			c.share.input(func(g *Group) { g.Gone(c) })
		}
	}
}

// reads is the client taking in a packet.
func (c *conn) reads() {
	d, w, p := c.d, c.d.w, c.toClient[0]
	c.toClient = c.toClient[1:]
	switch {
	case p.ack == session.Pubrel:
		delete(d.got, p.id)
		c.toServer = append(c.toServer, packet{ack: session.Pubcomp, id: p.id})
	case p.m == nil:
	case p.qos == 2:
		w.received(c, p)
		d.got[p.id] = p.m.ID
		c.toServer = append(c.toServer, packet{ack: session.Pubrec, id: p.id})
	case p.qos == 1:
		w.received(c, p)
		c.toServer = append(c.toServer, packet{ack: session.Puback, id: p.id})
	default:
		w.received(c, p)
	}
}

func (c *conn) acknowledges() {
	p := c.toServer[0]
	c.toServer = c.toServer[1:]
	c.input(func(s *session.Session) { s.OnAck(p.ack, p.id, session.Success) })
}
