package wire

import (
	"encoding/binary"
	"errors"
	"math"
	"strings"
	"unicode/utf8"

	"github.com/mochi-mqtt/server/v2/packets"

	"rewindmq/schema"
)

var errAliasZero = errors.New("topic alias is 0")

// Publish is a PUBLISH.
type Publish struct {
	// Topic is empty only when TopicAlias is not 0. It has no wildcard and no U+0000 in it.
	Topic   string
	Payload []byte
	QoS     byte // 0 to 2
	Retain  bool
	Dup     bool
	// PacketID is 1 to 65,535 with QoS 1 and 2, else 0.
	PacketID uint16
	// TopicAlias is 0 when there is none. Whether it is within the Topic Alias Maximum is not judged here.
	TopicAlias uint16
	// MessageExpiry is in seconds, when HasExpiry.
	MessageExpiry uint32
	HasExpiry     bool
	// SubscriptionIDs are those of the subscriptions that match, 1 to 268,435,455 each. From a client they are a
	// protocol error [MQTT-3.3.4-6].
	SubscriptionIDs []uint32
	// Properties is nil when there are none, and always below MQTT 5.
	Properties *schema.Properties
}

// CheckPayload judges the payload by the payload format indicator: an *Error with PayloadFormatInvalid when it
// is 1 and the payload is not UTF-8.
//
// ReadPacket does not call it, because a PUBACK or PUBREC with that code is the better answer [MQTT-3.4.2-1]: a
// message that ends its connection comes again at each reconnect, for ever.
func (p *Publish) CheckPayload() error {
	if p.Properties == nil || p.Properties.PayloadFormat != 1 || utf8.Valid(p.Payload) {
		return nil
	}
	return &Error{Code: PayloadFormatInvalid, Packet: PUBLISH, Err: errPayloadFormat}
}

var errPayloadFormat = errors.New("payload is not UTF-8, as its format indicator says")

// checkPublishFlags judges the lower four bits of the first byte of a PUBLISH.
func checkPublishFlags(flags byte) *Error {
	switch {
	case flags>>1&3 == 3: // [MQTT-3.3.1-4]
		return malformed("QoS is 3")
	case flags>>1&3 == 0 && flags&8 != 0: // [MQTT-3.3.1-2]
		return malformed("DUP is set with QoS 0")
	}
	return nil
}

func (r *Reader) decodePublish(flags byte, b *body) (Packet, *Error) {
	p := &r.publish // ReadPacket has cleared it
	p.QoS, p.Dup, p.Retain = flags>>1&3, flags&8 != 0, flags&1 != 0
	p.Topic = b.string("topic name") // [MQTT-3.3.2-1]
	if p.QoS > 0 {
		if p.PacketID = b.uint16("packet identifier"); p.PacketID == 0 { // [MQTT-2.2.1-3]
			b.protocolError("packet identifier is 0")
		}
	}
	if r.version == V5 {
		if len(b.buf) > 0 && b.buf[0] == 0 {
			b.buf = b.buf[1:] // no properties: most messages
		} else {
			r.decodePublishProperties(b, p)
		}
	}
	if b.err == nil {
		switch {
		case p.Topic == "" && p.TopicAlias == 0:
			// [MQTT-4.7.3-1]. Section 3.3.2.3.4 calls it a protocol error; malformed is what the field expects.
			b.malformed("topic name is empty")
		case strings.IndexByte(p.Topic, '+') >= 0 || strings.IndexByte(p.Topic, '#') >= 0:
			// [MQTT-3.3.2-2] [MQTT-4.7.0-1]. Not 0x90, which is for names that are "correctly formed" (table 2-6).
			b.malformed("topic name has a wildcard in it")
		}
	}
	p.Payload = b.buf
	return p, b.err
}

// decodePublishProperties is apart so that the large struct on its stack costs only those who send properties.
func (r *Reader) decodePublishProperties(b *body, p *Publish) {
	var props properties
	b.properties(PUBLISH, r.fromServer, &props)
	if b.err != nil {
		return
	}
	if len(props.subscriptionIDs) > 0 && !r.fromServer { // [MQTT-3.3.4-6]
		b.protocolError("subscription identifier from a client")
		return
	}
	p.TopicAlias = props.topicAlias
	p.MessageExpiry, p.HasExpiry = props.messageExpiry, props.has(packets.PropMessageExpiryInterval)
	p.SubscriptionIDs = props.subscriptionIDs
	p.Properties = props.message()
}

// PublishSize returns how many bytes AppendPublish appends. It is [math.MaxInt], and so more than any Maximum Packet
// Size, when p cannot be encoded at all: a string of more than 65,535 bytes (an application that writes into the
// log by itself can have made it), or more than 268,435,455 bytes in sum.
func PublishSize(v Version, p *Publish) int {
	n := publishBody(v, p)
	if n > maxVarint {
		return math.MaxInt
	}
	return 1 + varintSize(n) + n
}

// publishBody returns the remaining length, or [math.MaxInt] when a field is too long.
func publishBody(v Version, p *Publish) int {
	if len(p.Topic) > math.MaxUint16 {
		return math.MaxInt
	}
	n := 2 + len(p.Topic) + len(p.Payload)
	if p.QoS > 0 { // [MQTT-2.2.1-2]
		n += 2
	}
	if v == V5 {
		props := publishProperties(p)
		if props > maxVarint {
			return math.MaxInt
		}
		n += varintSize(props) + props // [MQTT-2.2.2-1]: 0 when there are none
	}
	return n
}

// publishProperties returns the property length, or [math.MaxInt] when a field is too long.
func publishProperties(p *Publish) int {
	n := 0
	if p.HasExpiry {
		n += 5
	}
	if p.TopicAlias != 0 {
		n += 3
	}
	for _, id := range p.SubscriptionIDs {
		n += 1 + varintSize(int(id))
	}
	if p.Properties != nil {
		m := messageProperties(p.Properties)
		if m > maxVarint {
			return math.MaxInt
		}
		n += m
	}
	return n
}

// messageProperties returns how many bytes appendMessageProperties appends, or [math.MaxInt] when a field is too long.
func messageProperties(m *schema.Properties) int {
	if len(m.ContentType) > math.MaxUint16 || len(m.ResponseTopic) > math.MaxUint16 ||
		len(m.CorrelationData) > math.MaxUint16 {
		return math.MaxInt
	}
	n := 0
	if m.HasPayloadFormat {
		n += 2
	}
	if m.ContentType != "" || m.EmptyContentType {
		n += 3 + len(m.ContentType)
	}
	if m.ResponseTopic != "" {
		n += 3 + len(m.ResponseTopic)
	}
	if m.CorrelationData != nil {
		n += 3 + len(m.CorrelationData)
	}
	for _, u := range m.User {
		if len(u.Key) > math.MaxUint16 || len(u.Value) > math.MaxUint16 {
			return math.MaxInt
		}
		n += 5 + len(u.Key) + len(u.Value)
	}
	return n
}

// AppendPublish appends p, as one packet for a connection of version v, and returns the longer slice. Below MQTT 5
// everything that is a property is left out. It allocates only to make dst larger.
//
// A p that cannot be encoded (see [PublishSize]) appends nothing. That the fields hold valid values (QoS up to 2, a packet
// identifier where one is needed, well-formed strings) is the caller's duty.
func AppendPublish(dst []byte, v Version, p *Publish) []byte {
	n := publishBody(v, p)
	if n > maxVarint {
		return dst
	}
	first := byte(PUBLISH)<<4 | p.QoS<<1
	if p.Retain {
		first |= 1
	}
	if p.Dup && p.QoS > 0 { // [MQTT-3.3.1-2]
		first |= 8
	}
	dst = appendVarint(append(dst, first), n)
	dst = appendString(dst, p.Topic)
	if p.QoS > 0 {
		dst = binary.BigEndian.AppendUint16(dst, p.PacketID)
	}
	if v == V5 {
		dst = appendVarint(dst, publishProperties(p))
		if p.HasExpiry {
			dst = binary.BigEndian.AppendUint32(append(dst, packets.PropMessageExpiryInterval), p.MessageExpiry)
		}
		if p.TopicAlias != 0 {
			dst = binary.BigEndian.AppendUint16(append(dst, packets.PropTopicAlias), p.TopicAlias)
		}
		for _, id := range p.SubscriptionIDs {
			dst = appendVarint(append(dst, packets.PropSubscriptionIdentifier), int(id))
		}
		if p.Properties != nil {
			dst = appendMessageProperties(dst, p.Properties)
		}
	}
	return append(dst, p.Payload...)
}

func appendMessageProperties(dst []byte, m *schema.Properties) []byte {
	if m.HasPayloadFormat {
		dst = append(dst, packets.PropPayloadFormat, m.PayloadFormat)
	}
	if m.ContentType != "" || m.EmptyContentType { // [MQTT-3.3.2-20]
		dst = appendString(append(dst, packets.PropContentType), m.ContentType)
	}
	if m.ResponseTopic != "" {
		dst = appendString(append(dst, packets.PropResponseTopic), m.ResponseTopic)
	}
	if m.CorrelationData != nil {
		dst = appendBinary(append(dst, packets.PropCorrelationData), m.CorrelationData)
	}
	for _, u := range m.User { // in order [MQTT-3.3.2-18]
		dst = appendString(appendString(append(dst, packets.PropUser), u.Key), u.Value)
	}
	return dst
}
