package session

import (
	"fmt"
	"slices"
	"time"

	"rewindmq/schema"
)

// outgoing is a publish of the device's that is not completed.
type outgoing struct {
	id       uint16
	p        *pub
	released bool // PUBREC came: PUBREL is what is sent again
}

// incomingQoS2 is a QoS 2 message at the device, until PUBREL.
type incomingQoS2 struct {
	m        *schema.Message
	received bool // PUBREC was sent
	seq      uint64
	run      bool
}

type request2 struct {
	filter string
	qos    uint8
	rh     uint8
	no     int
	fresh  bool // the device never subscribed to it in this session
	now    [3]schema.ID
}

type todo struct {
	kind AckKind
	id   uint16
}

// device is a client with its own state, and its memory of what it saw.
type device struct {
	w            *world
	client, name string
	solo         bool // nobody else uses its client id
	v5           bool
	atOnce       bool // QoS 2: to its application at PUBLISH, else at PUBREL
	cleanUser    bool
	retired      bool

	c        *conn
	up       bool
	sid      uint64
	l        *ledger
	mayEnd   bool
	recv     map[uint16]*incomingQoS2
	held     map[uint16]uint64 // seq that holds a packet id here
	todo     []todo
	out      []outgoing
	order    []todo // acknowledgements that this connection owes, in order
	k        int
	subs     int
	requests map[uint16][]request2
	lastReq  map[string]int
}

func newDevice(w *world, client, name string) *device {
	return &device{
		w: w, client: client, name: name, solo: true, mayEnd: true, v5: w.chance(0.6), atOnce: w.chance(0.5),
		cleanUser: w.chance(2 * w.x.clean), recv: map[uint16]*incomingQoS2{}, held: map[uint16]uint64{}, lastReq: map[string]int{},
	}
}

func (d *device) actions(w *world) {
	switch c := d.c; {
	case d.retired:
		return
	case c == nil:
		if !w.faults || w.chance(w.x.back) {
			w.can("connect", d.connect)
		}
		return
	case len(c.toClient) > 0:
		w.can("receive", d.receive)
	}
	if !d.up {
		if w.faults && w.chance(0.02) {
			w.can("cut", d.cut)
		}
		return
	}
	if len(d.todo) > 0 && (!w.faults || w.chance(w.x.ack)) {
		w.can("ack", d.ack)
	}
	if !w.faults {
		return
	}
	x, y := w.rng.Float64(), &w.x
	switch p := y.publish; {
	case x < p:
		if len(d.out) < simReceive {
			w.can("publish", d.publish)
		}
	case x < p+y.subscribe:
		w.can("subscribe", d.subscribe)
	case x < p+y.subscribe+y.unsubscribe:
		w.can("unsubscribe", d.unsubscribe)
	case x < p+y.subscribe+y.unsubscribe+y.cut:
		w.can("cut", d.cut)
	case x < p+y.subscribe+y.unsubscribe+y.cut+y.disconnect:
		w.can("disconnect", d.disconnect)
	}
}

func (d *device) connect() bool {
	w := d.w
	var to []*node
	for _, n := range w.nodes {
		if n.alive && !n.draining && (w.faults || !n.paused) {
			to = append(to, n)
		}
	}
	if len(to) == 0 {
		return false
	}
	n := to[w.rng.IntN(len(to))]
	cfg := connect{receiveMaximum: pick(w, w.x.receiveMaximum...), small: w.chance(w.x.small), expiry: schema.NoExpiry, v5: d.v5}
	if w.faults {
		cfg.clean = w.chance(w.x.clean)
		if d.cleanUser {
			cfg.clean = w.chance(0.5)
		}
		cfg.expiry = pick(w, w.x.expiries...)
		if d.cleanUser && w.chance(0.5) {
			cfg.expiry = 0
		}
		if !d.v5 && cfg.expiry == 0 {
			cfg.clean = true
		}
	}
	c := &conn{t: len(w.wills) + 1000*w.steps, dev: d, n: n, cutAt: -1}
	if w.faults && w.chance(w.x.will) {
		name := fmt.Sprintf("will%d", w.steps)
		cfg.will = w.newPub(&pub{name: name, from: name, k: 1, topic: pick(w, w.x.topics...), qos: 1})
		cfg.delay = pick[uint32](w, 0, 0, 6)
		w.wills = append(w.wills, c)
	}
	c.cfg = cfg
	d.c = c
	d.mayEnd = d.mayEnd || cfg.clean || cfg.expiry != schema.NoExpiry
	n.conns = append(n.conns, c)
	w.trace("%s: CONNECT to %s receive maximum %d small %v clean %v expiry %d v5 %v will %v delay %d", d.name, n.name, cfg.receiveMaximum, cfg.small, cfg.clean, cfg.expiry, cfg.v5, cfg.will != nil, cfg.delay)
	return true
}

func (d *device) drop() {
	c := d.c
	d.c, d.up, d.todo, d.order = nil, false, nil, nil
	c.cutAt, c.eof = d.w.tick, true
}

func (d *device) cut() bool {
	d.w.trace("%s: cuts", d.name)
	if !d.w.chance(d.w.x.keepUnread) {
		d.c.toServer = d.c.toServer[:d.w.rng.IntN(1+len(d.c.toServer))]
	}
	d.drop()
	return true
}

func (d *device) disconnect() bool {
	expiry := int64(-1)
	if d.v5 && d.c.cfg.expiry != 0 && d.w.chance(0.3) {
		expiry = pick(d.w, 8, 15, int64(schema.NoExpiry))
		d.mayEnd = d.mayEnd || expiry < int64(schema.NoExpiry)
	}
	d.w.trace("%s: DISCONNECT expiry %d", d.name, expiry)
	d.c.toServer = append(d.c.toServer, packet{kind: pktDisconnect, expiry: expiry})
	d.c.cleanEnd = true
	d.drop()
	return true
}

func (d *device) publish() bool {
	w := d.w
	d.k++
	p := w.newPub(&pub{
		name: fmt.Sprintf("%s.%d", d.name, d.k), from: d.name, k: d.k, topic: pick(w, w.x.topics...), qos: pick(w, w.x.qos...),
		retain: w.chance(w.x.retain), big: w.chance(w.x.big), poison: w.chance(w.x.poison),
	})
	p.clear = p.retain && w.chance(w.x.clear)
	if w.chance(w.x.expire) {
		p.expiry = w.m.Now().Add(8 * time.Second)
	}
	var id uint16
	if p.qos > 0 {
		id = 1
		for slices.ContainsFunc(d.out, func(o outgoing) bool { return o.id == id }) {
			id++
		}
		d.out = append(d.out, outgoing{id: id, p: p})
	}
	w.trace("%s: PUBLISH %s %s qos %d id %d retain %v big %v poison %v", d.name, p.name, p.topic, p.qos, id, p.retain, p.big, p.poison)
	d.send(p, id, false)
	return true
}

func (d *device) send(p *pub, id uint16, dup bool) {
	if p.sent++; p.sent == 1 {
		p.sid, p.one = d.sid, d.solo
	}
	p.one = p.one && p.sid == d.sid
	d.c.toServer = append(d.c.toServer, packet{kind: pktPublish, m: &schema.Message{Properties: &p.Properties}, id: id, dup: dup})
	switch p.qos {
	case 1:
		d.order = append(d.order, todo{Puback, id})
	case 2:
		d.order = append(d.order, todo{Pubrec, id})
	}
}

// subscribe asks for one filter or two.
func (d *device) subscribe() bool {
	w := d.w
	d.subs++
	p := packet{kind: pktSubscribe, id: uint16(d.subs)}
	for range pick(w, 1, 1, 1, 2) {
		r := d.want()
		if slices.ContainsFunc(p.subs, func(s schema.Subscription) bool { return s.Filter == r.filter }) {
			continue
		}
		d.requests[p.id] = append(d.requests[p.id], r)
		p.subs = append(p.subs, schema.Subscription{Filter: r.filter, QoS: r.qos, RetainHandling: r.rh})
		w.trace("%s: SUBSCRIBE %s qos %d handling %d", d.name, r.filter, r.qos, r.rh)
	}
	d.c.toServer = append(d.c.toServer, p)
	return true
}

// want notes what one filter of a SUBSCRIBE demands.
func (d *device) want() request2 {
	w, l := d.w, d.l
	f, qos := pick(w, w.x.filters...), pick[uint8](w, 0, 1, 1, 2, 2)
	if c := l.cover[f]; len(c) > 0 && c[len(c)-1].to < 0 {
		c[len(c)-1].to = int64(w.ts) // until the answer: no demand
	}
	if s := l.spans[f]; len(s) == 0 || s[len(s)-1].to >= 0 {
		l.spans[f] = append(s, span{from: w.ts, to: -1})
	}
	r := request2{filter: f, qos: qos, no: d.subs, fresh: !slices.Contains(l.subscribed, f)}
	if d.v5 {
		r.rh = pick[uint8](w, 0, 0, 1, 2)
	}
	for i, t := range simTopics {
		if m := w.retainedNow(t); m != nil && schema.Match(f, t) {
			r.now[i] = m.ID
		}
	}
	l.subscribed = append(l.subscribed, f)
	delete(l.expect, f)
	d.lastReq[f] = r.no
	return r
}

func (d *device) unsubscribe() bool {
	f := pick(d.w, d.w.x.filters...)
	d.subs++
	delete(d.l.cover, f)
	delete(d.l.expect, f)
	d.requests[uint16(d.subs)], d.lastReq[f] = []request2{{filter: f, no: d.subs}}, d.subs
	d.w.trace("%s: UNSUBSCRIBE %s", d.name, f)
	d.c.toServer = append(d.c.toServer, packet{kind: pktUnsubscribe, filters: []string{f}, id: uint16(d.subs)})
	return true
}

// ack sends an acknowledgement that is due: in any order, one may be held back
// for long.
func (d *device) ack() bool {
	i := 0
	if !d.w.chance(0.7) {
		i = d.w.rng.IntN(len(d.todo))
	}
	t := d.todo[i]
	d.todo = slices.Delete(d.todo, i, i+1)
	switch t.kind {
	case Puback, Pubcomp:
		delete(d.held, t.id)
	case Pubrec:
		if in := d.recv[t.id]; in != nil {
			in.received = true
		}
		if !slices.Contains(d.order, todo{Pubrel, t.id}) {
			d.order = append(d.order, todo{Pubrel, t.id})
		}
	}
	d.w.trace("%s: acknowledges %s %d", d.name, ackName(t.kind), t.id)
	d.c.toServer = append(d.c.toServer, packet{kind: pktAck, ack: t.kind, id: t.id})
	return true
}

func ackName(k AckKind) string {
	return map[AckKind]string{Puback: "PUBACK", Pubrec: "PUBREC", Pubrel: "PUBREL", Pubcomp: "PUBCOMP"}[k]
}

func (d *device) receive() bool {
	p := d.c.toClient[0]
	d.c.toClient = d.c.toClient[1:]
	switch p.kind {
	case pktClosed:
		d.w.trace("%s: is closed", d.name)
		d.drop()
	case pktConnack:
		d.onConnack(&p)
	case pktPublish:
		d.onPublish(&p)
	case pktAck:
		d.onAck(&p)
	case pktSuback:
		d.onSuback(&p)
	case pktUnsuback:
		d.onUnsuback(&p)
	}
	return true
}

func (d *device) onConnack(p *packet) {
	w := d.w
	w.trace("%s: CONNACK present %v sid %d", d.name, p.present, p.sid)
	known := d.sid
	d.up, d.sid, d.l, d.requests = true, p.sid, w.ledger(d.client, p.sid), map[uint16][]request2{}
	if !p.present && d.solo {
		must(d.mayEnd, "the session of %s is gone, and nothing had ended it", d.name)
	}
	d.mayEnd = d.c.cfg.expiry != schema.NoExpiry
	if !p.present || p.sid != known { // (a CONNACK of a new session may have been lost)
		d.recv, d.held, d.out = map[uint16]*incomingQoS2{}, map[uint16]uint64{}, nil
	}
	if !d.v5 { // it learned from the close that this one is not taken
		d.out = slices.DeleteFunc(d.out, func(o outgoing) bool { return o.p.poison })
	}
	for _, o := range d.out { // in the original order
		if o.released {
			d.c.toServer = append(d.c.toServer, packet{kind: pktAck, ack: Pubrel, id: o.id})
		} else {
			d.send(o.p, o.id, true)
		}
	}
}

func (d *device) onAck(p *packet) {
	w := d.w
	if p.ack == Pubrel {
		d.onPubrel(p)
		return
	}
	w.trace("%s: got %s %d code %#x", d.name, ackName(p.ack), p.id, p.code)
	if p.ack != Pubcomp {
		d.inOrder(p.ack, p.id)
	}
	i := slices.IndexFunc(d.out, func(o outgoing) bool { return o.id == p.id })
	switch {
	case p.ack == Pubcomp || p.ack == Puback:
		if i < 0 {
			return
		}
		o := d.out[i]
		d.out = slices.Delete(d.out, i, i+1)
		if p.ack == Puback && p.code < failure {
			must(o.p.inLog > 0, "P1: PUBACK of %s, which is not in the log", o.p.name)
		} else if p.ack == Puback {
			d.refused(o.p)
		}
	case i < 0:
		d.c.toServer = append(d.c.toServer, packet{kind: pktAck, ack: Pubrel, id: p.id})
	case p.code >= failure:
		d.refused(d.out[i].p)
		d.out = slices.Delete(d.out, i, i+1)
	default:
		must(!d.solo || d.out[i].p.inLog > 0, "P1: PUBREC of %s, which is not in the log", d.out[i].p.name)
		d.out[i].released = true
		d.c.toServer = append(d.c.toServer, packet{kind: pktAck, ack: Pubrel, id: p.id})
	}
}

// inOrder: PUBACKs come in the order of the PUBLISHes, PUBRECs too, and PUBRELs
// in the order of the PUBRECs [MQTT-4.6.0-2, MQTT-4.6.0-3, MQTT-4.6.0-4].
func (d *device) inOrder(kind AckKind, id uint16) {
	i := slices.IndexFunc(d.order, func(t todo) bool { return t.kind == kind })
	if i < 0 || !d.solo {
		return
	}
	if kind == Pubrel && !slices.Contains(d.order, todo{kind, id}) {
		return // of a former connection
	}
	must(d.order[i].id == id, "%s %d before that of %d", ackName(kind), id, d.order[i].id)
	d.order = slices.Delete(d.order, i, i+1)
}

// refused: a reason code >= 0x80 says that it certainly is not stored. A QoS 1
// message that was sent twice was two messages: the first may be stored.
func (d *device) refused(p *pub) {
	if p.sent == 1 || p.poison || p.qos == 2 && p.one {
		must(p.inLog == 0, "P1: %s was refused, and is stored", p.name)
		p.refused = true
	}
}

func (d *device) onPublish(p *packet) {
	w, l := d.w, d.l
	x := w.pubOf(p.m)
	w.trace("%s: got %s (%v) qos %d id %d seq %d dup %v run %v", d.name, x.name, p.m.Mark, p.qos, p.id, p.seq, p.dup, p.retain)
	must(!(x.big && d.c.cfg.small), "too large for this client: %s", x.name)
	must(p.retain || !l.dropped[p.m.ID], "S7: %s came after it was dropped", x.name)
	first := true
	if p.qos == 0 {
		must(!p.dup, "DUP=1 at QoS 0 [MQTT-3.3.1-2]")
	} else {
		first = d.delivery(p, x)
	}
	if p.retain {
		if first {
			l.onRun(d, p, x)
		}
	} else if first {
		l.onLog(d, p, x)
	}
	if p.qos < 2 {
		if p.qos == 1 {
			d.deliver(p.m, 1, p.retain)
			d.todo = append(d.todo, todo{Puback, p.id})
		}
		return
	}
	if in := d.recv[p.id]; in == nil {
		d.recv[p.id] = &incomingQoS2{m: p.m, seq: p.seq, run: p.retain}
		if d.atOnce {
			d.deliver(p.m, 2, p.retain)
		}
	} else if d.solo {
		must(in.seq == p.seq, "P3: QoS 2 packet id %d: %s while %s is incomplete", p.id, x.name, w.pubOf(in.m).name)
	}
	if !slices.Contains(d.todo, todo{Pubrec, p.id}) {
		d.todo = append(d.todo, todo{Pubrec, p.id})
	}
}

// delivery judges the packet id and DUP; it tells whether the delivery is new to
// the session's client.
func (d *device) delivery(p *packet, x *pub) bool {
	l := d.l
	was, seen := l.seen[p.seq]
	if d.solo {
		if now, held := d.held[p.id]; held && now != p.seq && !l.big[now] {
			must(false, "packet id %d used for two messages in flight", p.id)
		}
		d.held[p.id] = p.seq
		must(p.id >= 1 && (p.id <= simWindow || d.c.cfg.expiry == 0), "packet id %d outside of the window", p.id)
		must(!seen || p.dup, "P3: %s repeated with DUP=0", x.name)
		must(!seen || was == p.id, "P3: %s repeated under another packet id", x.name)
	}
	l.seen[p.seq] = p.id
	l.big[p.seq] = x.big
	return !seen
}

// deliver gives a message to the application.
func (d *device) deliver(m *schema.Message, qos uint8, run bool) {
	if run {
		return
	}
	d.l.app[m.ID]++
	must(qos < 2 || !d.solo || d.l.app[m.ID] == 1, "P3: QoS 2 %s delivered twice to the application", d.w.pubOf(m).name)
}

func (d *device) onPubrel(p *packet) {
	d.w.trace("%s: got PUBREL %d", d.name, p.id)
	d.inOrder(Pubrel, p.id)
	if in := d.recv[p.id]; in != nil {
		delete(d.recv, p.id)
		if d.solo {
			big := d.w.pubOf(in.m).big
			must(in.received || big, "PUBREL %d for what was not PUBREC'd", p.id)
			must(p.about.IsZero() || p.about == in.m.ID, "S3: PUBREL %d of another message", p.id)
		}
		if !d.atOnce {
			d.deliver(in.m, 2, in.run)
		}
	}
	d.todo = append(d.todo, todo{Pubcomp, p.id})
}

func (d *device) onSuback(p *packet) {
	requests := d.requests[p.id]
	must(len(requests) > 0 && len(p.codes) == len(requests), "SUBACK %d %v", p.id, p.codes)
	for i, r := range requests {
		must(p.codes[i] == Code(r.qos), "SUBACK %d %v", p.id, p.codes)
		d.w.trace("%s: SUBACK %s qos %d", d.name, r.filter, r.qos)
		if d.lastReq[r.filter] != r.no {
			continue // another SUBSCRIBE or UNSUBSCRIBE is under way
		}
		l := d.l
		l.cover[r.filter] = append(l.cover[r.filter], span{qos: r.qos, from: d.w.ts, to: -1})
		if r.rh == 0 || r.rh == 1 && r.fresh {
			l.expect[r.filter] = r
		}
	}
}

func (d *device) onUnsuback(p *packet) {
	must(len(d.requests[p.id]) == 1, "UNSUBACK %d", p.id)
	r := d.requests[p.id][0]
	d.w.trace("%s: UNSUBACK %s", d.name, r.filter)
	if s := d.l.spans[r.filter]; d.lastReq[r.filter] == r.no && len(s) > 0 && s[len(s)-1].to < 0 {
		s[len(s)-1].to = int64(d.w.ts)
	}
}
