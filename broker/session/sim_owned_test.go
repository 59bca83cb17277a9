package session

import (
	"errors"
	"slices"
	"time"

	"rewindmq/schema"
	"rewindmq/store"
	"rewindmq/store/storetest"
)

type packetKind uint8

const (
	pktClosed packetKind = iota
	pktConnack
	pktPublish
	pktAck
	pktSubscribe
	pktSuback
	pktUnsubscribe
	pktUnsuback
	pktDisconnect
)

// packet is one MQTT packet, either way.
type packet struct {
	kind     packetKind
	m        *schema.Message
	id       uint16
	qos      uint8
	dup      bool
	retain   bool
	seq      uint64 // of the delivery: the client does not see it, its ledger does
	restored bool   // the delivery is of a former connection
	ack      AckKind
	code     Code
	about    schema.ID // PUBREL: of which message
	subs     []schema.Subscription
	filters  []string
	codes    []Code
	present  bool
	sid      uint64
	expiry   int64 // DISCONNECT: -1 leaves it
}

// connect says how a client comes.
type connect struct {
	receiveMaximum int
	small          bool // a Maximum Packet Size that big messages exceed
	clean          bool
	expiry         uint32
	v5             bool
	will           *pub
	delay          uint32
}

// conn is one network connection: two byte streams that may be cut.
type conn struct {
	t        int // names it
	dev      *device
	n        *node
	cfg      connect
	o        *owned
	toServer []packet
	toClient []packet
	claiming bool
	accepted bool
	closed   bool // by the broker
	eof      bool // by the client
	cleanEnd bool
	normal   bool // DISCONNECT was read, and the session released with it
	cutAt    int  // tick; -1: not cut
	will     willState
}

func (c *conn) send(p packet) { c.toClient = append(c.toClient, p) }

func (c *conn) close() {
	if !c.closed {
		c.closed = true
		c.send(packet{kind: pktClosed})
	}
}

// serve reads from the connection.
func (c *conn) serve(w *world) {
	switch {
	case !c.closed && !c.claiming && c.o == nil && !c.eof && c.n.draining:
		w.can("refuse", func() bool { c.close(); return true })
	case !c.closed && !c.claiming && c.o == nil && !c.eof:
		w.can("connect", func() bool {
			c.claiming = true
			ask := store.Claim{
				ClientID: c.dev.client, CleanStart: c.cfg.clean, Expiry: c.cfg.expiry,
				Protocol: map[bool]uint8{false: 4, true: 5}[c.cfg.v5], At: c.n.h,
			}
			if p := c.cfg.will; p != nil {
				ask.Will = &schema.Will{
					Topic: p.topic, Payload: []byte(p.name), QoS: p.qos, Delay: c.cfg.delay, Properties: &p.Properties,
				}
			}
			g := &claiming{n: c.n, client: c.dev.client, c: c, k: storetest.NewClaim(c.n.id, ask, w.m.NewID(), simWait)}
			c.n.claims = append(c.n.claims, g)
			return true
		})
	case c.o != nil && len(c.toServer) > 0 && !c.closed && !c.o.s.Closing() && c.o.s.Admit():
		w.can("read", func() bool { c.read(); return true })
	case c.closed || c.eof && (len(c.toServer) == 0 || c.o == nil && !c.claiming):
		w.can("gone", func() bool {
			c.n.conns = slices.DeleteFunc(c.n.conns, func(x *conn) bool { return x == c })
			if c.o != nil && !c.o.s.Closing() {
				if w.chance(0.5) {
					c.o.pub.Fail()
				}
				c.o.input(func(s *Session) { s.Close(ReasonDetached) })
			}
			return true
		})
	}
}

func (c *conn) read() {
	p := c.toServer[0]
	c.toServer = c.toServer[1:]
	o, w := c.o, c.n.w
	o.input(func(s *Session) {
		switch p.kind {
		case pktPublish:
			m := w.pubs[p.m.Properties.ContentType].message()
			m.Created, m.Host = c.n.now(), c.n.name
			s.OnPublish(m, p.id)
		case pktAck:
			if p.ack == Pubrel {
				s.OnPubrel(p.id)
			} else {
				s.OnAck(p.ack, p.id, p.code)
			}
		case pktSubscribe:
			codes := make([]Code, len(p.subs))
			for i := range p.subs {
				codes[i] = Code(p.subs[i].QoS)
			}
			s.OnSubscribe(p.id, slices.Clone(p.subs), codes)
		case pktUnsubscribe:
			s.OnUnsubscribe(p.id, p.filters)
		case pktDisconnect:
			c.toServer, c.normal = nil, true
			s.SetRelease(true, uint32(max(p.expiry, 0)), p.expiry >= 0)
			s.Close(ReasonNormal)
		}
	})
}

// owned is a session while a node owns it: it carries out the actions.
type owned struct {
	n        *node
	c        *conn
	s        *Session
	l        *ledger
	client   string
	epoch    uint64
	pub      *store.Publisher
	filters  []string // what the hub matches
	attached bool
	ended    bool
	later    []Action // what may wait, in order
	head     schema.Cursor
	headRead bool
	places   []schema.Cursor // DoWaitFor
	old      map[uint64]bool // seqs of former connections

	writeFailed, recordFailed bool

	// The reader of the log.
	reading bool
	upTo    schema.Cursor
	open    bool // a round is under way
	at      schema.Cursor
	want    []string
	r       *storetest.Reading
	page    []*schema.Message
}

func newOwned(n *node, c *conn, a *store.Claimed) *owned {
	w := n.w
	o := &owned{
		n: n, c: c, l: w.ledger(a.ClientID, a.SID), client: a.ClientID, epoch: a.Epoch,
		pub: &store.Publisher{Owner: a.Owner, Strict: !c.cfg.v5}, old: map[uint64]bool{},
	}
	limit := 0
	if c.cfg.small {
		limit = 10
		o.l.small = true
	}
	var begin schema.Cursor
	if a.Present && !a.Released && w.off.adapter&ruleBeginAtHead == 0 {
		begin = w.m.Head()
	}
	s, err := New(Options{
		Begin: begin,
		Owner: a.Owner, Clean: c.cfg.expiry == 0, CanRefuse: c.cfg.v5,
		Window: min(simWindow, c.cfg.receiveMaximum), Quota: c.cfg.receiveMaximum, ReceiveMaximum: simReceive,
		MaximumPacketSize: limit, Queue: simQueue, Host: n.name, Now: n.now, Retained: n,
		NewID: func(time.Time) schema.ID { return w.m.NewID() },
		H:     func() schema.Cursor { return n.h },
		Size: func(m *schema.Message, _ uint8, _ []uint32) int {
			if w.pubOf(m).big {
				return 100
			}
			return 1
		},
	}, a)
	if err != nil {
		panic(err)
	}
	s.off = w.off.core
	for _, f := range a.Cursor.Flight {
		o.old[f.Seq] = true
	}
	o.s = s
	n.owned = append(n.owned, o)
	return o
}

// input tells the session something, and carries out what follows.
func (o *owned) input(do func(*Session)) {
	if o.ended {
		return
	}
	do(o.s)
	for _, a := range o.s.Actions() {
		o.carry(a)
	}
}

func (o *owned) recorded(err error) {
	o.recordFailed = o.recordFailed || err != nil
	o.input(func(s *Session) { s.OnRecorded(err, errors.Is(err, store.ErrSessionLost)) })
}

func (o *owned) carry(a Action) {
	w, n := o.n.w, o.n
	must(!o.ended, "an action after DoEnd: %d", a.Do)
	switch a.Do {
	case SendPublish:
		p := packet{kind: pktPublish, m: a.Message, id: a.PacketID, qos: a.QoS, dup: a.Dup, retain: a.Retain}
		if a.PacketID != 0 {
			e := o.s.win.byID[a.PacketID]
			must(e != nil && e.MessageID == a.Message.ID, "packet id %d is sent for what is not in the flight", a.PacketID)
			p.seq, p.restored = e.Seq, o.old[e.Seq]
			o.sends(a, e)
		}
		o.toClient(p)
	case SendAck:
		if a.Ack == 0 {
			return
		}
		p := packet{kind: pktAck, ack: a.Ack, id: a.PacketID, code: a.Code}
		if e := o.s.win.byID[a.PacketID]; a.Ack == Pubrel && e != nil {
			p.about = e.MessageID
		}
		o.toClient(p)
	case SendSuback:
		o.toClient(packet{kind: pktSuback, id: a.PacketID, codes: a.Codes})
	case SendUnsuback:
		o.toClient(packet{kind: pktUnsuback, id: a.PacketID, codes: a.Codes})
	case DoRecord:
		l := n.records[w.index(o.client)%2]
		l.queue = append(l.queue, recordItem{o, *a.Delivery})
	case DoWrite:
		n.writer(o.client).write(o, a.Write)
		switch doc := a.Write.(type) {
		case store.SaveCursor:
			o.saves(&doc.Cursor)
		case store.PutSubscriptions:
			for i := range doc.Subscriptions {
				if run := doc.Subscriptions[i].Run; run != nil {
					o.l.runPlace[run.ID] = run.Place
				}
			}
		}
	case DoAppend:
		l := n.lanes[w.index(o.client)%2]
		l.queue = append(l.queue, appendItem{o: o, m: a.Message, done: func(x store.Appended) {
			o.input(func(s *Session) { s.OnAppended(x) })
		}})
	case DoFilters, DoUnfilter, DoHead, DoLookup, DoReplay, DoWaitFor, DoWalk, DoEnd:
		o.later = append(o.later, a)
	case DoClose:
		w.trace("%s: %s/%d ends its connection: %s", n.name, o.client, o.epoch, a.Reason)
		switch a.Reason {
		case ReasonDetached, ReasonNormal:
		default:
			o.pub.Fail()
		}
		must(a.Reason != ReasonProtocol, "%s was closed for a protocol error", o.client)
		must(a.Reason != ReasonReceiveMax || !o.c.dev.solo, "%s was closed for more than its Receive Maximum", o.client)
		o.c.close()
	case Count:
		if a.Dropped == DropTrimmed {
			must(false, "a message of the flight is gone from the log")
		}
	}
}

func (o *owned) toClient(p packet) {
	if !o.c.closed {
		o.c.send(p)
	}
}

func (o *owned) matches(topic string) bool {
	return slices.ContainsFunc(o.filters, func(f string) bool { return schema.Match(f, topic) })
}

// actions is the scheduler's view of the session.
func (o *owned) actions(w *world) {
	if len(o.later) > 0 {
		w.can("later", func() bool { o.carryLater(); return true })
	}
	if o.s.Closing() {
		return
	}
	if o.n.elsewhere(o) {
		w.can("notice", func() bool { o.n.takeOver(o, "claimed elsewhere"); return true })
		if !w.faults {
			return
		}
	}
	if o.reading {
		w.can("reader", o.read)
	}
	if len(o.places) > 0 {
		w.can("wait for", o.passed)
	}
	s, h := o.s, o.n.h
	if s.blocked {
		if !w.faults || w.chance(0.3) {
			w.can("unblock", func() bool { o.input(func(s *Session) { s.Block(false) }); return true })
		}
	} else if w.faults && w.chance(w.x.block) {
		w.can("block", func() bool { o.input(func(s *Session) { s.Block(true) }); return true })
	}
	// The ticker: it saves what is due, and merges a quiet session with H.
	due := !s.o.Clean && !s.saving && s.Dirty() && s.o.Now().Sub(s.lastSaved) >= saveEvery
	if due && (!w.faults || w.chance(w.x.save)) || s.mode == live && !s.taken.Covers(h) && (!w.faults || w.chance(w.x.merge)) {
		w.can("tick", func() bool { o.input(func(s *Session) { s.Tick(h) }); return true })
	}
}

// carryLater carries out the first of what may wait.
func (o *owned) carryLater() {
	a := o.later[0]
	if a.Do == DoHead && !o.headRead {
		// Head is read at one moment, and its answer comes at another.
		o.head, o.headRead = o.n.w.m.Head(), true
		return
	}
	o.later = o.later[1:]
	switch a.Do {
	case DoFilters:
		for _, f := range a.Filters {
			if !slices.Contains(o.filters, f) {
				o.filters = append(o.filters, f)
			}
		}
	case DoUnfilter:
		o.filters = slices.DeleteFunc(o.filters, func(f string) bool { return slices.Contains(a.Filters, f) })
	case DoHead:
		o.headRead = false
		if o.n.w.storeFails() {
			o.input(func(s *Session) { s.OnHead(schema.Cursor{}, errDoubt) })
			return
		}
		o.input(func(s *Session) { s.OnHead(o.head, nil) })
	case DoLookup:
		if o.n.w.storeFails() {
			o.input(func(s *Session) { s.Close(ReasonStore) })
			return
		}
		msgs := make([]*schema.Message, len(a.Refs))
		for i, r := range a.Refs {
			msgs[i] = o.n.w.m.Message(r.ID)
		}
		o.input(func(s *Session) { s.OnLookup(a.Refs, msgs) })
	case DoReplay:
		o.reading = true
	case DoWalk:
		o.input((*Session).Walk)
	case DoWaitFor:
		o.places = append(o.places, a.Place)
	case DoEnd:
		o.n.w.trace("%s: %s/%d has let go", o.n.name, o.client, o.epoch)
		o.ended = true
		o.n.owned = slices.DeleteFunc(o.n.owned, func(x *owned) bool { return x == o })
		o.c.close()
	}
}

// passed pumps the session when the hub has passed a place that it waits for.
func (o *owned) passed() bool {
	for i, p := range o.places {
		if o.n.h.Covers(p) {
			o.places = slices.Delete(o.places, i, i+1)
			o.input((*Session).Pump)
			return true
		}
	}
	return false
}

// read does one step of the replay: attach, read a page, deliver, be done.
func (o *owned) read() bool {
	w := o.n.w
	if !o.open {
		if o.s.Closing() {
			o.reading = false
			return true
		}
		var ok bool
		o.upTo = o.n.h
		o.input(func(s *Session) { o.at, o.want, ok = s.OnAttach() })
		if !ok { // live already, or closing
			o.reading = false
			return true
		}
		o.attached, o.open, o.page = true, true, nil
		o.r = w.m.Read(o.at, o.upTo, o.want, w.rng)
		return true
	}
	if len(o.page) == 0 {
		if w.chance(0.1) { // the read is closed, and opened again where it was (T7)
			_, o.want = o.s.Position()
			o.r = w.m.Read(o.at, o.upTo, o.want, w.rng)
		}
		for range pick(w, 1, 2, 3) {
			if m := o.r.Next(); m != nil {
				o.page = append(o.page, m)
			}
		}
	}
	if len(o.page) == 0 {
		var isLive bool
		o.open, o.r = false, nil
		o.input(func(s *Session) { isLive = s.OnCaughtUp(o.upTo) })
		if isLive {
			o.reading = false
		}
		return true
	}
	if !o.s.Hungry() {
		return false
	}
	var n int
	o.input(func(s *Session) { n = s.Feed(o.page) })
	must(n > 0, "%s is hungry, and takes nothing", o.client)
	for _, m := range o.page[:n] {
		o.at.Advance(m.Mark)
	}
	o.page = o.page[n:]
	return true
}
