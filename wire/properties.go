package wire

import (
	"strings"

	"github.com/mochi-mqtt/server/v2/packets"

	"rewindmq/schema"
)

// kind is the data type of a property (section 2.2.2.2).
type kind byte

const (
	kindUnknown kind = iota
	kindBool         // a byte that is 0 or 1
	kindUint16
	kindUint32
	kindVarint
	kindString // from here on not numbers
	kindBinary
	kindPair
)

// willProperties stands for the properties of a will beside the packet types. 0 is reserved as a type.
const willProperties PacketType = 0

// propertyRule returns the data type of a property and the packets in which it may stand, a bit for each type.
func propertyRule(id uint32) (kind, uint16) {
	const (
		will    = 1 << willProperties
		connect = 1 << CONNECT
		connack = 1 << CONNACK
		publish = 1 << PUBLISH
		leave   = 1 << DISCONNECT
		auth    = 1 << AUTH
		acks    = 1<<PUBACK | 1<<PUBREC | 1<<PUBREL | 1<<PUBCOMP | 1<<SUBACK | 1<<UNSUBACK
	)
	switch id {
	case uint32(packets.PropPayloadFormat):
		return kindBool, publish | will
	case uint32(packets.PropMessageExpiryInterval):
		return kindUint32, publish | will
	case uint32(packets.PropContentType), uint32(packets.PropResponseTopic):
		return kindString, publish | will
	case uint32(packets.PropCorrelationData):
		return kindBinary, publish | will
	case uint32(packets.PropSubscriptionIdentifier):
		return kindVarint, publish | 1<<SUBSCRIBE
	case uint32(packets.PropSessionExpiryInterval):
		return kindUint32, connect | connack | leave
	case uint32(packets.PropAssignedClientID), uint32(packets.PropResponseInfo):
		return kindString, connack
	case uint32(packets.PropServerKeepAlive):
		return kindUint16, connack
	case uint32(packets.PropAuthenticationMethod):
		return kindString, connect | connack | auth
	case uint32(packets.PropAuthenticationData):
		return kindBinary, connect | connack | auth
	case uint32(packets.PropRequestProblemInfo), uint32(packets.PropRequestResponseInfo):
		return kindBool, connect
	case uint32(packets.PropWillDelayInterval):
		return kindUint32, will
	case uint32(packets.PropServerReference):
		return kindString, connack | leave
	case uint32(packets.PropReasonString):
		return kindString, connack | acks | leave | auth
	case uint32(packets.PropReceiveMaximum), uint32(packets.PropTopicAliasMaximum):
		return kindUint16, connect | connack
	case uint32(packets.PropTopicAlias):
		return kindUint16, publish
	case uint32(packets.PropMaximumQos), uint32(packets.PropRetainAvailable), uint32(packets.PropWildcardSubAvailable),
		uint32(packets.PropSubIDAvailable), uint32(packets.PropSharedSubAvailable):
		return kindBool, connack
	case uint32(packets.PropUser):
		return kindPair, will | connect | connack | publish | acks | 1<<SUBSCRIBE | 1<<UNSUBSCRIBE | leave | auth
	case uint32(packets.PropMaximumPacketSize):
		return kindUint32, connect | connack
	}
	return kindUnknown, 0
}

// properties holds what a property section said, by type of data: each field is in the section where it says so.
type properties struct {
	seen uint64 // a bit for each identifier

	payloadFormat, problemInfo, responseInfoWanted bool
	maximumQoS                                     bool
	retain, wildcard, subscriptionID, shared       bool // Available, of CONNACK
	serverKeepAlive, receiveMaximum                uint16
	topicAliasMaximum, topicAlias                  uint16
	messageExpiry, sessionExpiry, willDelay        uint32
	maximumPacketSize                              uint32
	subscriptionIDs                                []uint32
	contentType, responseTopic, assignedClientID   string
	authMethod, responseInfo, serverReference      string
	reasonString                                   string
	correlationData, authData                      []byte
	user                                           []schema.UserProperty
}

func (p *properties) has(id byte) bool { return p.seen&(1<<id) != 0 }

// message returns the part that belongs to an application message, nil when there is none.
func (p *properties) message() *schema.Properties {
	const ids = 1<<packets.PropPayloadFormat | 1<<packets.PropContentType | 1<<packets.PropResponseTopic |
		1<<packets.PropCorrelationData | 1<<packets.PropUser
	if p.seen&ids == 0 {
		return nil
	}
	m := &schema.Properties{
		HasPayloadFormat: p.has(packets.PropPayloadFormat),
		ContentType:      p.contentType,
		EmptyContentType: p.has(packets.PropContentType) && p.contentType == "",
		ResponseTopic:    p.responseTopic,
		CorrelationData:  p.correlationData,
		User:             p.user,
	}
	if p.payloadFormat {
		m.PayloadFormat = 1
	}
	return m
}

// properties takes the property section of a packet of type t. server says that a server sent it.
func (b *body) properties(t PacketType, server bool, p *properties) {
	n := b.varint("property length")
	if int64(n) > int64(len(b.buf)) {
		b.malformed("properties are longer than the packet")
		return
	}
	section := body{buf: b.buf[:n], shared: b.shared, refuseControl: b.refuseControl}
	b.buf = b.buf[n:]
	for len(section.buf) > 0 {
		section.property(t, server, p)
	}
	if section.err != nil {
		b.fail(section.err)
	}
}

// property takes one property. Its value is read before anything is judged: what is cut short is malformed, whatever
// it is.
func (b *body) property(t PacketType, server bool, p *properties) {
	id := b.varint("property identifier")
	if b.err != nil {
		return
	}
	kind, packetsOf := propertyRule(id)
	var v value
	switch kind {
	case kindUnknown:
		b.malformed("unknown property")
	case kindBool:
		v.n = uint32(b.byte("property"))
	case kindUint16:
		v.n = uint32(b.uint16("property"))
	case kindUint32:
		v.n = b.uint32("property")
	case kindVarint:
		v.n = b.varint("property")
	case kindString:
		v.s = b.string("property") // [MQTT-3.3.2-13] [MQTT-3.3.2-19]
	case kindBinary:
		v.b = b.binary("property")
	case kindPair:
		v.s, v.s2 = b.string("user property"), b.string("user property") // [MQTT-1.5.7-1]
	}
	if b.err != nil {
		return
	}
	bit := uint64(1) << id // known identifiers are below 64
	switch {
	case packetsOf&(1<<t) == 0 && (t == SUBSCRIBE || t == UNSUBSCRIBE):
		b.malformed("a property that has no place in this packet")
		return
	case packetsOf&(1<<t) == 0:
		// Section 2.2.2.2 calls this malformed too; what is in the field answers 0x82 everywhere but above.
		b.protocolError("a property that has no place in this packet")
		return
	case kind == kindBool && v.n > 1:
		b.protocolError("a property is neither 0 nor 1")
		return
	case p.seen&bit != 0 && kind != kindPair && (kind != kindVarint || t != PUBLISH || !server):
		// Only user properties, and the subscription identifiers that a server sends, may stand there again.
		b.protocolError("a property is there twice")
		return
	}
	p.seen |= bit
	if kind < kindString {
		b.assignNumber(byte(id), v.n, p)
	} else {
		b.assignText(byte(id), v, p)
	}
}

// value is the value of one property, in the field that its kind names.
type value struct {
	n     uint32
	s, s2 string
	b     []byte
}

// assignNumber stores the value of a property that is a number, and judges it where the standard limits it.
func (b *body) assignNumber(id byte, n uint32, p *properties) {
	switch id {
	case packets.PropPayloadFormat:
		p.payloadFormat = n == 1
	case packets.PropMessageExpiryInterval:
		p.messageExpiry = n
	case packets.PropSubscriptionIdentifier:
		if n == 0 {
			b.protocolError("subscription identifier is 0")
		}
		p.subscriptionIDs = append(p.subscriptionIDs, n)
	case packets.PropSessionExpiryInterval:
		p.sessionExpiry = n
	case packets.PropServerKeepAlive:
		p.serverKeepAlive = uint16(n)
	case packets.PropRequestProblemInfo:
		p.problemInfo = n == 1
	case packets.PropWillDelayInterval:
		p.willDelay = n
	case packets.PropRequestResponseInfo:
		p.responseInfoWanted = n == 1
	case packets.PropReceiveMaximum:
		if n == 0 {
			b.protocolError("receive maximum is 0")
		}
		p.receiveMaximum = uint16(n)
	case packets.PropTopicAliasMaximum:
		p.topicAliasMaximum = uint16(n)
	case packets.PropTopicAlias:
		if n == 0 { // [MQTT-3.3.2-8]
			b.fail(&Error{Code: TopicAliasInvalid, Err: errAliasZero})
		}
		p.topicAlias = uint16(n)
	case packets.PropMaximumQos:
		p.maximumQoS = n == 1
	case packets.PropRetainAvailable:
		p.retain = n == 1
	case packets.PropMaximumPacketSize:
		if n == 0 {
			b.protocolError("maximum packet size is 0")
		}
		p.maximumPacketSize = n
	case packets.PropWildcardSubAvailable:
		p.wildcard = n == 1
	case packets.PropSubIDAvailable:
		p.subscriptionID = n == 1
	case packets.PropSharedSubAvailable:
		p.shared = n == 1
	}
}

// assignText stores the value of any other property, and judges it where the standard limits it.
func (b *body) assignText(id byte, v value, p *properties) {
	switch id {
	case packets.PropContentType:
		p.contentType = v.s
	case packets.PropResponseTopic:
		if v.s == "" || strings.ContainsAny(v.s, "+#") { // [MQTT-3.3.2-14] [MQTT-4.7.3-1]
			b.protocolError("response topic is empty or has a wildcard in it")
		}
		p.responseTopic = v.s
	case packets.PropCorrelationData:
		p.correlationData = v.b
	case packets.PropAssignedClientID:
		p.assignedClientID = v.s
	case packets.PropAuthenticationMethod:
		p.authMethod = v.s
	case packets.PropAuthenticationData:
		p.authData = v.b
	case packets.PropResponseInfo:
		p.responseInfo = v.s
	case packets.PropServerReference:
		p.serverReference = v.s
	case packets.PropReasonString:
		p.reasonString = v.s
	case packets.PropUser:
		p.user = append(p.user, schema.UserProperty{Key: v.s, Value: v.s2}) // in order [MQTT-3.3.2-18]
	}
}
