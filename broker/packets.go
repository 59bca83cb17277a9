package broker

import (
	"errors"
	"slices"
	"strings"
	"time"

	"rewindmq/broker/session"
	"rewindmq/schema"
	"rewindmq/wire"
)

// onPublish takes a message from the client [MQTT-3.3.4-1]. Its DUP is not passed
// on [MQTT-3.3.1-3].
func (c *conn) onPublish(p *wire.Publish) error {
	b := c.b
	b.poke()
	if err := c.alias.resolve(p); err != nil {
		return err
	}
	code := c.judge(p)
	if code != wire.Success && p.QoS == 2 && c.cl.awaits(p.PacketID) {
		// A resend of what was taken, which is never refused [MQTT-4.3.3-10]: the client
		// would think the identifier free, and its next message would be taken for another
		// resend. No resend changes the topic.
		if code == wire.TopicNameInvalid {
			return &wire.Error{Code: wire.ProtocolError, Err: errors.New("another message under a packet identifier in use")}
		}
		code = wire.Success
	}
	if code == wire.TopicNameInvalid && (p.QoS == 0 || c.version != wire.V5) {
		return &wire.Error{Code: code, Err: errors.New("topic not allowed")}
	}
	b.m.received(p.QoS, len(p.Payload))
	if code != wire.Success {
		return c.reject(p, code)
	}
	now := b.now()
	m := &schema.Message{
		Topic: p.Topic, Payload: p.Payload, ClientID: c.cl.id, QoS: p.QoS, Retain: p.Retain,
		Created: now, Host: b.o.Node, Properties: p.Properties,
	}
	if p.HasExpiry {
		m.Expiry = now.Add(time.Duration(p.MessageExpiry) * time.Second)
	}
	c.waitForRoom(int64(m.Size()))
	c.hold()
	id := p.PacketID
	c.cl.input(func(s *session.Session) {
		if s.Closing() {
			b.m.unanswered(m.QoS, 1)
			return
		}
		c.cl.received[m.QoS]++
		s.OnPublish(m, id)
	})
	return nil
}

// awaits tells whether a QoS 2 message of the client's waits for PUBREL under an
// identifier.
func (cl *client) awaits(id uint16) bool {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	return cl.s.Awaits(id)
}

// judge tells whether a message may be published.
func (c *conn) judge(p *wire.Publish) wire.ReasonCode {
	switch {
	case p.Topic[0] == '$', c.b.tooLong(p.Topic):
		return wire.TopicNameInvalid
	case p.CheckPayload() != nil:
		return wire.PayloadFormatInvalid
	case p.Retain && !c.b.projection.admits(p.Topic, len(p.Payload)):
		return wire.QuotaExceeded
	}
	return wire.Success
}

// reject answers a message that is not taken. MQTT 3.1.1 has no answer for it: the
// connection ends [MQTT-3.3.5-2] of 3.1.1.
func (c *conn) reject(p *wire.Publish, code wire.ReasonCode) error {
	c.b.m.rejected(p.QoS, code)
	if c.version != wire.V5 {
		return &wire.Error{Code: code, Err: errors.New("message refused")}
	}
	switch p.QoS {
	case 1:
		c.out.put(func(b []byte) []byte { return wire.AppendAck(b, c.version, wire.PUBACK, p.PacketID, code) })
	case 2:
		c.out.put(func(b []byte) []byte { return wire.AppendAck(b, c.version, wire.PUBREC, p.PacketID, code) })
	}
	return nil
}

// waitForRoom holds the connection back while its own bound, or the node's, is
// reached: QoS 0 too, which is so never thrown away for a slow store. Nothing behind the
// message is read meanwhile, no PINGREQ either: that may be any number of bytes, and
// the bound is there since no more may be taken in.
func (c *conn) waitForRoom(size int64) {
	strict := c.cl.publisher.Strict
	if c.cl.mayAppend() && c.b.ingest.hasRoom(size, strict) {
		return
	}
	c.release()
	c.cl.wait((*session.Session).Admit)
	c.b.ingest.wait(c.ctx, size, strict)
}

func (cl *client) mayAppend() bool {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	return cl.s.Admit()
}

// wait blocks until ready holds, which it does when the session closes.
func (cl *client) wait(ready func(*session.Session) bool) {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	for !ready(cl.s) {
		cl.waiting = ready
		cl.changed.Wait()
	}
	cl.waiting = nil
}

func (c *conn) onAck(a *wire.Ack) error {
	kind, id, code := session.AckKind(a.Type), a.ID, session.Code(a.Code)
	c.cl.input(func(s *session.Session) {
		if kind == session.Pubrel {
			s.OnPubrel(id)
			return
		}
		s.OnAck(kind, id, code)
	})
	return nil
}

// onSubscribe takes a SUBSCRIBE [MQTT-3.8.4-1]. Whether a filter is taken is answered
// for that filter alone: its QoS, or a failure [MQTT-3.8.4-5 to -7], each QoS being
// taken [MQTT-3.2.2-10].
func (c *conn) onSubscribe(p *wire.Subscribe) error {
	if len(p.Filters) > c.b.o.FiltersPerSubscribe {
		return &wire.Error{Code: wire.QuotaExceeded, Err: errors.New("too many filters in one SUBSCRIBE")}
	}
	for _, f := range p.Filters {
		if err := checkFilter(f.Topic); err != nil {
			return err
		}
	}
	if err := c.mayAnswer(len(p.Filters)); err != nil {
		return err
	}
	c.release()
	c.cl.wait((*session.Session).MayRequest)
	codes := make([]session.Code, len(p.Filters))
	subs := make([]schema.Subscription, 0, len(p.Filters))
	c.cl.input(func(s *session.Session) {
		room := c.b.o.SubscriptionsPerClient - s.Subscriptions()
		for i, f := range p.Filters {
			if codes[i] = c.judgeFilter(f); codes[i] >= 0x80 {
				continue
			}
			same := func(sub schema.Subscription) bool { return sub.Filter == f.Topic }
			if !s.Subscribed(f.Topic) && !slices.ContainsFunc(subs, same) {
				if room--; room < 0 {
					codes[i] = c.failed(wire.QuotaExceeded)
					continue
				}
			}
			subs = append(subs, schema.Subscription{
				Filter: strings.Clone(f.Topic), QoS: f.QoS, NoLocal: f.NoLocal, RetainAsPublished: f.RetainAsPublished,
				RetainHandling: f.RetainHandling, Identifier: p.SubscriptionID,
			})
		}
		s.OnSubscribe(p.PacketID, subs, codes)
	})
	return nil
}

// mayAnswer tells whether a SUBACK or UNSUBACK with so many codes is small enough
// for the client [MQTT-3.1.2-24]. What cannot be answered is not begun.
func (c *conn) mayAnswer(filters int) error {
	if c.maximumPacketSize == 0 {
		return nil
	}
	if answer := wire.AppendSuback(nil, c.version, 1, make([]wire.ReasonCode, filters)); len(answer) > c.maximumPacketSize {
		return &wire.Error{Code: wire.PacketTooLarge, Err: errors.New("the answer is larger than the client's maximum packet size")}
	}
	return nil
}

// judgeFilter gives the QoS granted or the failure for one filter.
func (c *conn) judgeFilter(f wire.Filter) session.Code {
	if c.b.tooLong(f.Topic) {
		return c.failed(wire.TopicFilterInvalid)
	}
	plain, shared := schema.CutShare(f.Topic)
	switch {
	case shared && c.b.noGroups:
		return c.failed(wire.SharedSubscriptionsNotSupported)
	case shared && plain[0] == '$': // $SYS is not in the log: a group would get nothing
		return c.failed(wire.TopicFilterInvalid)
	case !shared && f.Topic[0] == '$' && !strings.HasPrefix(f.Topic, "$SYS/"):
		return c.failed(wire.TopicFilterInvalid)
	}
	return session.Code(f.QoS)
}

// checkFilter judges the form of a filter [MQTT-4.7.1-1, MQTT-4.7.1-2; 3.1.1: 4.7.1-2,
// 4.7.1-3], and of the two parts of a shared one [MQTT-4.8.2-1, MQTT-4.8.2-2]. One
// that is not correctly formed makes its packet malformed: 0x8F is for those that are,
// and are not accepted (table 2-6).
func checkFilter(filter string) error {
	if plain, shared := schema.CutShare(filter); schema.ValidFilter(filter) != nil || shared && plain == "" {
		return &wire.Error{Code: wire.MalformedPacket, Err: errors.New("topic filter is not correctly formed")}
	}
	return nil
}

// failed gives a failure code of SUBACK: 3.1.1 knows 0x80 only ([MQTT-3.9.3-2] of 3.1.1).
func (c *conn) failed(code wire.ReasonCode) session.Code {
	if c.version != wire.V5 {
		return session.UnspecifiedError
	}
	return session.Code(code)
}

// onUnsubscribe takes an UNSUBSCRIBE: each filter by itself [MQTT-3.10.4-6].
func (c *conn) onUnsubscribe(p *wire.Unsubscribe) error {
	if len(p.Filters) > c.b.o.FiltersPerSubscribe {
		return &wire.Error{Code: wire.QuotaExceeded, Err: errors.New("too many filters in one UNSUBSCRIBE")}
	}
	for _, f := range p.Filters {
		if err := checkFilter(f); err != nil {
			return err
		}
	}
	if err := c.mayAnswer(len(p.Filters)); err != nil {
		return err
	}
	c.release()
	c.cl.wait((*session.Session).MayRequest)
	c.cl.input(func(s *session.Session) { s.OnUnsubscribe(p.PacketID, p.Filters) })
	return nil
}

// onDisconnect takes the client's DISCONNECT: with reason 0x00 its will is
// removed, else it is published [MQTT-3.14.4-3, MQTT-3.1.2-10].
func (c *conn) onDisconnect(p *wire.Disconnect) error {
	if p.HasSessionExpiry && p.SessionExpiry != 0 && c.clientExpiry == 0 {
		// [MQTT-3.14.2-2]
		return &wire.Error{Code: wire.ProtocolError, Err: errors.New("session expiry in DISCONNECT, after 0 in CONNECT")}
	}
	c.noAnswer = true
	c.release()
	expiry := min(p.SessionExpiry, c.b.o.SessionExpiryMax)
	why := session.ReasonNormal
	if p.Code != wire.Success {
		why = session.ReasonWithWill
	}
	c.setReason(string(why))
	c.cl.input(func(s *session.Session) {
		s.SetRelease(p.Code == wire.Success, expiry, p.HasSessionExpiry)
		s.Close(why)
	})
	return errDisconnect
}
