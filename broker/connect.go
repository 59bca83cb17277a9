package broker

import (
	"context"
	"errors"
	"strings"
	"time"
	"unicode/utf8"

	"go.uber.org/zap"

	"rewindmq/broker/session"
	"rewindmq/schema"
	"rewindmq/store"
	"rewindmq/wire"
)

// openTime bounds what comes between CONNECT and CONNACK: the wait for a former
// connection, for the claim, for the wills that come before. The store may have no room,
// and nobody reads meanwhile whether the peer is there still. It covers an election.
const openTime = 20 * time.Second

// errRefused ends a connection whose CONNECT was answered with a failure.
var errRefused = errors.New("broker: CONNECT refused")

// connect reads CONNECT, claims the session and answers CONNACK. Nothing of what
// the client has sent behind its CONNECT is looked at before [MQTT-3.1.4-6; 3.1.1:
// 3.1.4-5].
func (c *conn) connect() error {
	p, err := c.firstPacket()
	if err != nil {
		var bad *wire.Error
		if errors.As(err, &bad) && c.reader.Version() != 0 {
			return c.refuse(c.reader.Version(), bad.Code)
		}
		return err // not even a CONNECT (F-29): nothing to refuse, nor to answer
	}
	con, ok := p.(*wire.Connect)
	if !ok { // [MQTT-3.1.0-1]
		c.setReason("protocol_error")
		return errRefused
	}
	c.version, c.problem, c.maximumPacketSize = con.Version, con.RequestProblemInfo, int(con.MaximumPacketSize)
	if code := c.judgeConnect(con); code != wire.Success {
		return c.refuse(con.Version, code)
	}
	connack := &wire.Connack{
		ReceiveMaximum: uint16(c.b.o.ReceiveMaximum), MaximumPacketSize: uint32(c.b.o.MaximumPacketSize),
		TopicAliasMaximum: uint16(c.b.o.TopicAliases), SharedUnavailable: c.b.noGroups,
	}
	id := con.ClientID
	if id == "" { // [MQTT-3.1.3-6, MQTT-3.1.3-7, MQTT-3.2.2-16]
		id = "auto-" + c.b.ids.Next(c.b.now()).String()
		connack.AssignedClientID = id
	}
	ctx, cancel := context.WithTimeout(c.ctx, openTime)
	defer cancel()
	claimed, err := c.claim(ctx, id, con)
	switch {
	case errors.Is(err, errTakenOver):
		return c.refuse(con.Version, wire.ServerBusy)
	case c.ctx.Err() != nil:
		return c.ctx.Err()
	case err != nil:
		c.b.storeTrouble("claim", id, err)
		return c.refuse(con.Version, wire.ServerUnavailable)
	}
	c.agree(con, connack)
	// [MQTT-3.2.2-2, MQTT-3.2.2-3] MQTT 3.1 has no such flag.
	connack.SessionPresent = claimed.Present && con.Version != wire.V31
	return c.open(ctx, con, connack, claimed)
}

// firstPacket reads until the end of the broker at most: there is no session yet that
// would end the connection.
func (c *conn) firstPacket() (wire.Packet, error) {
	stop := context.AfterFunc(c.ctx, func() { _ = c.nc.Close() })
	defer stop()
	return c.reader.ReadPacket()
}

// refuse answers CONNECT with a failure and ends the connection [MQTT-3.2.2-7,
// MQTT-3.1.4-1, MQTT-3.1.4-2, MQTT-4.13.2-1; 3.1.1: 3.1.4-1]. What 3.1.1 has no
// code for is closed without an answer.
func (c *conn) refuse(v wire.Version, code wire.ReasonCode) error {
	c.setReason(code.String())
	c.b.m.connects(c.listener, code)
	if v != 0 {
		ack := &wire.Connack{Code: code}
		if code == wire.UseAnotherServer {
			ack.ServerReference = c.b.o.ServerReference
		}
		packet, ok := c.fits(v, ack, &wire.Connack{Code: code})
		if ok { // else nothing can be sent to this client at all
			c.out.put(func(b []byte) []byte { return append(b, packet...) })
		}
	}
	return errRefused
}

// fits gives the first of these CONNACKs that the client takes [MQTT-3.1.2-24].
func (c *conn) fits(v wire.Version, acks ...*wire.Connack) (packet []byte, ok bool) {
	for _, ack := range acks {
		packet = wire.AppendConnack(nil, v, ack)
		if c.maximumPacketSize == 0 || len(packet) <= c.maximumPacketSize {
			return packet, true
		}
	}
	return nil, false
}

// least is what the client has to be told, and no more: without it, it would act on what
// is not so [MQTT-3.2.2-16, MQTT-3.2.2-22].
func least(ack *wire.Connack) *wire.Connack {
	return &wire.Connack{
		SessionPresent: ack.SessionPresent, AssignedClientID: ack.AssignedClientID, ServerKeepAlive: ack.ServerKeepAlive,
		SessionExpiry: ack.SessionExpiry, ReceiveMaximum: ack.ReceiveMaximum,
	}
}

// judgeConnect tells whether a CONNECT can be served. Any client id that is
// well-formed is taken [MQTT-3.1.3-5]; another is refused [MQTT-3.1.3-8; 3.1.1:
// 3.1.3-9].
func (c *conn) judgeConnect(p *wire.Connect) wire.ReasonCode {
	b := c.b
	switch {
	case p.AuthMethod != "": // [MQTT-4.12.0-1]
		return wire.BadAuthenticationMethod
	case p.ClientID == "" && p.Version != wire.V5 && !p.CleanStart: // [MQTT-3.1.3-8] of 3.1.1
		return wire.ClientIdentifierNotValid
	case p.ClientID == "" && p.Version == wire.V31, !utf8.ValidString(p.ClientID):
		return wire.ClientIdentifierNotValid
	case p.Will != nil && (p.Will.Topic[0] == '$' || b.tooLong(p.Will.Topic)):
		return wire.TopicNameInvalid
	case p.Will != nil && p.Will.Retain && !b.projection.admits(p.Will.Topic, len(p.Will.Payload)):
		return wire.QuotaExceeded
	case c.surplus:
		return wire.QuotaExceeded
	case b.draining() && b.o.ServerReference != "":
		return wire.UseAnotherServer
	case b.draining():
		return wire.ServerUnavailable
	}
	return wire.Success
}

// tooLong tells whether a topic or a filter is beyond the limits.
func (b *Broker) tooLong(topic string) bool {
	return len(topic) > b.o.TopicBytes || strings.Count(topic, "/") >= b.o.TopicLevels
}

// claim makes this node, and this connection, the session's owner. The client id
// alone says which session it is [MQTT-3.1.3-2]; the store discards the old one, or
// goes on with it, as CONNECT asks [MQTT-3.1.4-4, MQTT-3.1.2-4 to -6; 3.1.1:
// 3.1.2-4, 3.1.2-6], and keeps the will with it [MQTT-3.1.2-7]. No will, none
// kept: [MQTT-3.1.2-12] of 3.1.1. A will of the connection before whose delay is
// not over is dropped there [MQTT-3.1.3-9].
//
// A claim that has not been answered when ctx ends is finished as an orphan: what it has
// found is in the store, with the wills that are due.
func (c *conn) claim(ctx context.Context, id string, p *wire.Connect) (*store.Claimed, error) {
	cl := c.b.newClient(id, c)
	taken, err := c.b.roster.enter(ctx, cl)
	if err != nil {
		return nil, err
	}
	if taken {
		c.b.m.sessionEvent("taken_over")
	}
	claim := store.Claim{
		ClientID: id, CleanStart: p.CleanStart, Protocol: uint8(p.Version), Expiry: c.expiry(p), Will: will(p.Will),
		At: c.b.hub.H().Clone(),
	}
	if claim.Will != nil && claim.Will.Delay > 0 {
		c.delayed = claim.Will
	}
	what := cl.orphan(store.Release{})
	claimed, late := c.b.claim(ctx, cl, claim, func(a store.Claimed) {
		if a.Err == nil { // the will of a CONNECT that was refused is nobody's
			what.how, what.will = store.Release{Owner: a.Owner, Normal: true}, nil
		}
		c.b.orphans.add(id, what)
	})
	if claimed.Err != nil {
		if !late {
			c.b.orphans.add(id, what) // it may have been claimed all the same
			cl.leave()
		}
		return nil, claimed.Err
	}
	c.cl = cl
	return &claimed, nil
}

// expiry gives the session expiry in seconds that holds.
func (c *conn) expiry(p *wire.Connect) uint32 {
	switch {
	case p.Version == wire.V5:
		c.clientExpiry = p.SessionExpiry
	case !p.CleanStart:
		c.clientExpiry = schema.NoExpiry
	}
	return min(c.clientExpiry, c.b.o.SessionExpiryMax)
}

func will(w *wire.Will) *schema.Will {
	if w == nil {
		return nil
	}
	return &schema.Will{
		Topic: w.Topic, Payload: w.Payload, QoS: w.QoS, Retain: w.Retain, Delay: w.Delay, Expiry: w.MessageExpiry,
		HasExpiry: w.HasExpiry, Properties: w.Properties,
	}
}

// agree settles what CONNACK tells of limits. Without a limit of ours the keep
// alive is the client's [MQTT-3.2.2-22].
func (c *conn) agree(p *wire.Connect, ack *wire.Connack) {
	if e := c.expiry(p); e != c.clientExpiry {
		ack.SessionExpiry = &e
	}
	keepAlive := time.Duration(p.KeepAlive) * time.Second
	if limit := c.b.o.KeepAliveMax; limit > 0 && (keepAlive == 0 || keepAlive > limit) && p.Version == wire.V5 {
		keepAlive = limit
		s := uint16(limit / time.Second)
		ack.ServerKeepAlive = &s // [MQTT-3.2.2-21]
	}
	c.alias.top = c.b.o.TopicAliases
	c.alias.max = min(int(p.TopicAliasMaximum), aliasesOut) // [MQTT-3.1.2-26, MQTT-3.1.2-27, MQTT-3.3.2-11]
	c.setIdle(keepAlive * 3 / 2)                            // [MQTT-3.1.2-22]
}

// open starts the session on the connection. The wills that the claim has
// decided are appended before CONNACK leaves: what the client publishes next
// comes after them. When that fails, or ctx ends before, they stay in the store and the
// session is let go of: the keeper appends them, or the next claim does.
func (c *conn) open(ctx context.Context, p *wire.Connect, ack *wire.Connack, claimed *store.Claimed) error {
	b, cl := c.b, c.cl
	o := b.sessionOptions(p, claimed.Owner, c.clientExpiry == 0)
	begin, headErr := b.begin(ctx, claimed)
	o.Begin = begin
	s, err := session.New(o, claimed)
	if err != nil {
		return err
	}
	cl.mu.Lock()
	cl.s = s
	cl.publisher = &store.Publisher{Owner: claimed.Owner, Strict: p.Version != wire.V5}
	cl.membership = b.hub.Join(cl)
	cl.mu.Unlock()
	c.out.drained = cl.drained
	if err := errors.Join(headErr, b.keeper.publish(ctx, cl.id, claimed.Wills)); err != nil {
		b.storeTrouble("open", cl.id, err)
		return c.unopened(wire.ServerUnavailable, false)
	}
	if !claimed.Present && b.full() { // one that is stored may always go on
		return c.unopened(wire.QuotaExceeded, true)
	}
	packet, ok := c.fits(c.version, ack, least(ack))
	if !ok {
		return c.unopened(wire.PacketTooLarge, !claimed.Present)
	}
	// The one CONNACK of the connection comes before all else [MQTT-3.1.4-5,
	// MQTT-3.2.0-1, MQTT-3.2.0-2]; it names no authentication method [MQTT-4.12.0-6]
	// and no response information [MQTT-3.1.2-28]. Who was asked to end before it
	// gets another one.
	opened := false
	cl.input(func(s *session.Session) {
		// Invariant: who is opened was in the roster before the broker began to
		// drain, and is asked to end with the others.
		if cl.kicked != "" || s.Closing() || b.draining() {
			return
		}
		opened, cl.opened, cl.welcomed = true, true, time.Now()
		close(cl.welcome)
		c.out.put(func(b []byte) []byte { return append(b, packet...) })
		s.Start()
	})
	if !opened {
		return c.unopened(wire.ServerUnavailable, false)
	}
	b.m.connects(c.listener, wire.Success)
	if claimed.Present {
		b.m.sessionEvent("resumed")
	} else {
		b.m.sessionEvent("created")
	}
	b.o.Log.Info("connection opened", zap.String("client", cl.id), zap.String("remote", remote(c.nc)),
		zap.Stringer("protocol", c.version), zap.Bool("present", claimed.Present), zap.Uint64("epoch", claimed.Epoch))
	return nil
}

// begin gives where QoS 0 begins for a session that its former connection has not
// released, see session.Options.Begin.
func (b *Broker) begin(ctx context.Context, claimed *store.Claimed) (schema.Cursor, error) {
	if !claimed.Present || claimed.Released {
		return schema.Cursor{}, nil
	}
	return b.store.Head(ctx)
}

// unopened refuses a CONNECT whose session has been claimed, and lets go of the
// session: its will was never accepted. end: the session ends, too.
func (c *conn) unopened(code wire.ReasonCode, end bool) error {
	err := c.refuse(c.version, code)
	c.cl.input(func(s *session.Session) {
		s.SetRelease(true, 0, end)
		s.Close(session.ReasonNormal)
	})
	return err
}

func (b *Broker) sessionOptions(p *wire.Connect, owner schema.Owner, clean bool) session.Options {
	quota := 65535
	if p.ReceiveMaximum > 0 {
		quota = int(p.ReceiveMaximum)
	}
	v := p.Version
	return session.Options{
		Owner: owner, Clean: clean, Unrecorded: b.o.Unrecorded, CanRefuse: v == wire.V5, Window: min(b.o.Window, quota), Quota: quota,
		ReceiveMaximum: b.o.ReceiveMaximum, MaximumPacketSize: int(p.MaximumPacketSize),
		Size: func(m *schema.Message, qos uint8, ids []uint32) int {
			f := frame(m, qos, ids)
			return wire.PublishSize(v, &f)
		},
		Queue: b.o.SessionQueue, Burst: b.o.OutboxBytes, Host: b.o.Node, Now: b.now, NewID: b.ids.Next, H: b.hub.H, Retained: b.projection,
	}
}

// errTakenOver: another connection of the same client id came while this one
// waited for its turn.
var errTakenOver = errors.New("broker: taken over while connecting")

// claimLane batches claims.
type claimLane struct{ *lane[claimCall] }

type claimCall struct {
	claim  store.Claim
	answer chan store.Claimed
}

// ask puts a claim into the lane. There is one answer, whoever waits for it.
func (l claimLane) ask(c store.Claim) <-chan store.Claimed {
	call := claimCall{claim: c, answer: make(chan store.Claimed, 1)}
	if !l.put(call) {
		call.answer <- store.Claimed{Err: store.ErrClosed}
	}
	return call.answer
}

// claim asks, and waits for the answer until ctx ends.
func (l claimLane) claim(ctx context.Context, c store.Claim) store.Claimed {
	select {
	case a := <-l.ask(c):
		return a
	case <-ctx.Done():
		return store.Claimed{Err: ctx.Err()}
	}
}
