package broker

import (
	"time"

	"rewindmq/broker/session"
	"rewindmq/schema"
	"rewindmq/wire"
)

// frame makes the PUBLISH of a delivery, but for what changes from attempt to
// attempt. Properties pass through unchanged [MQTT-3.3.2-4, MQTT-3.3.2-15 to -18,
// MQTT-3.3.2-20].
func frame(m *schema.Message, qos uint8, ids []uint32) wire.Publish {
	return wire.Publish{
		Topic: m.Topic, Payload: m.Payload, QoS: qos, PacketID: uint16(min(qos, 1)), HasExpiry: !m.Expiry.IsZero(),
		SubscriptionIDs: ids, Properties: m.Properties,
	}
}

// remaining gives the seconds of its life that a message has left, at least 0
// [MQTT-3.3.2-6].
func remaining(m *schema.Message, now time.Time) uint32 {
	left := m.Expiry.Sub(now)
	if left <= 0 {
		return 0
	}
	return uint32((left + time.Second - 1) / time.Second)
}

// send puts one packet into the outbox. REQUIRES: mu.
func (cl *client) send(a *session.Action) {
	c := cl.c
	switch a.Do {
	case session.SendPublish:
		cl.sendPublish(a)
		return
	case session.SendAck:
		cl.sendAck(a)
	case session.SendSuback:
		codes := reasonCodes(a.Codes)
		c.out.put(func(b []byte) []byte { return wire.AppendSuback(b, c.version, a.PacketID, codes) })
	case session.SendUnsuback:
		codes := reasonCodes(a.Codes)
		c.out.put(func(b []byte) []byte { return wire.AppendUnsuback(b, c.version, a.PacketID, codes) })
	}
}

func reasonCodes(codes []session.Code) []wire.ReasonCode {
	out := make([]wire.ReasonCode, len(codes))
	for i, c := range codes {
		out[i] = wire.ReasonCode(c)
	}
	return out
}

// sendPublish writes a delivery. At QoS 0, which has no DUP [MQTT-4.3.1-1], what the hub
// offers is dropped, and counted, when the connection does not keep up. What is read from
// the log or from the retained messages comes no faster than the connection takes it: at
// most one burst is beyond the limit of the outbox.
func (cl *client) sendPublish(a *session.Action) {
	c, m, now := cl.c, a.Message, cl.b.now()
	if a.QoS == 0 && a.Live && c.out.isFull() {
		cl.b.m.dropped(0, "qos0_slow")
		return
	}
	p := frame(m, a.QoS, a.Identifiers)
	p.PacketID, p.Dup, p.Retain = a.PacketID, a.Dup, a.Retain
	if p.HasExpiry {
		p.MessageExpiry = remaining(m, now)
	}
	c.alias.shorten(&p, c.maximumPacketSize) // [MQTT-3.1.2-26]
	full := c.out.put(func(b []byte) []byte { return wire.AppendPublish(b, c.version, &p) })
	if full {
		cl.s.Block(true)
	}
	cl.b.m.sent(a, now)
}

// drained lets the session go on after its outbox was full.
func (cl *client) drained() {
	cl.input(func(s *session.Session) { s.Block(false) })
}

// sendAck writes an acknowledgement, and counts what became of the client's
// message. A PUBACK or PUBREC with success comes from session.OnAppended alone.
func (cl *client) sendAck(a *session.Action) {
	c, b := cl.c, cl.b
	if a.Ack != session.Pubrel && a.Ack != session.Pubcomp {
		cl.received[a.QoS]--
		b.m.answered(a, b.now())
	}
	if a.Ack == 0 {
		return
	}
	code := wire.ReasonCode(a.Code)
	c.out.put(func(buf []byte) []byte {
		return wire.AppendAck(buf, c.version, wire.PacketType(a.Ack), a.PacketID, code)
	})
}
