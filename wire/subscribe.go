package wire

import (
	"strings"

	"github.com/mochi-mqtt/server/v2/packets"

	"rewindmq/schema"
)

// Subscribe is a SUBSCRIBE.
type Subscribe struct {
	// PacketID is 1 to 65,535.
	PacketID uint16
	// Filters has at least one. Their number is bounded by the packet size alone.
	Filters []Filter
	// SubscriptionID is 1 to 268,435,455, or 0 when there is none.
	SubscriptionID uint32
	User           []schema.UserProperty
}

// Filter is a topic filter with its subscription options.
type Filter struct {
	// Topic is not empty and well-formed UTF-8 without U+0000. Whether it is a valid filter is not judged here: SUBACK
	// answers that for each filter by itself.
	Topic string
	QoS   byte // 0 to 2

	// What follows is set in MQTT 5 only.

	NoLocal           bool
	RetainAsPublished bool
	RetainHandling    byte // 0 to 2
}

// Suback is a SUBACK. Only clients receive it.
type Suback struct {
	PacketID uint16
	// Codes has one for each filter, in their order [MQTT-3.9.3-1, MQTT-3.8.4-6].
	Codes []ReasonCode
	// Reason and User are empty but in MQTT 5.
	Reason string
	User   []schema.UserProperty
}

// The bits of the subscription options.
const (
	optionQoS               = 3
	optionNoLocal           = 1 << 2
	optionRetainAsPublished = 1 << 3
	optionRetainHandling    = 3 << 4
	optionReserved          = 3 << 6
)

// decodePacketID takes the packet identifier of SUBSCRIBE, UNSUBSCRIBE and their acks. 0 is malformed there, as the
// field expects it, though a protocol error in PUBLISH and its acks.
func decodePacketID(b *body) uint16 {
	id := b.uint16("packet identifier")
	if b.err == nil && id == 0 { // [MQTT-2.2.1-3]
		b.malformed("packet identifier is 0")
	}
	return id
}

func (r *Reader) decodeSubscribe(b *body) (Packet, *Error) {
	s := &Subscribe{PacketID: decodePacketID(b)}
	if r.version == V5 {
		var p properties
		b.properties(SUBSCRIBE, false, &p)
		s.User = p.user
		if len(p.subscriptionIDs) > 0 {
			s.SubscriptionID = p.subscriptionIDs[0]
		}
	}
	if b.err == nil && len(b.buf) == 0 { // [MQTT-3.8.3-2]
		b.malformed("there is no topic filter")
	}
	for len(b.buf) > 0 {
		s.Filters = append(s.Filters, decodeFilter(r.version, b))
	}
	return s, b.err
}

func decodeFilter(v Version, b *body) Filter {
	f := Filter{Topic: decodeFilterTopic(b)}
	options := b.byte("subscription options")
	f.QoS = options & optionQoS
	reserved := byte(optionReserved)
	if v != V5 {
		reserved = ^byte(optionQoS)
	}
	switch {
	case b.err != nil:
	case f.QoS == 3: // [MQTT-3.8.3-4] of 3.1.1
		b.malformed("QoS is 3")
	case options&reserved != 0: // [MQTT-3.8.3-5]
		b.malformed("reserved subscription options are set")
	case options&optionRetainHandling == optionRetainHandling:
		b.malformed("retain handling is 3") // section 3.8.3.1: a protocol error; malformed is what the field expects
	case options&optionNoLocal != 0 && strings.HasPrefix(f.Topic, "$share/"): // [MQTT-3.8.3-4]
		b.protocolError("no local on a shared subscription")
	}
	f.NoLocal = options&optionNoLocal != 0
	f.RetainAsPublished = options&optionRetainAsPublished != 0
	f.RetainHandling = options & optionRetainHandling >> 4
	return f
}

func decodeFilterTopic(b *body) string {
	topic := b.string("topic filter") // [MQTT-3.8.3-1] [MQTT-3.10.3-1]
	if b.err == nil && topic == "" {  // [MQTT-4.7.3-1]
		b.malformed("topic filter is empty")
	}
	return topic
}

// AppendSubscribe appends s, as a client would send it, and returns the longer slice. That each string has at most 65,535
// bytes is the caller's duty. Packet identifier 0 appends nothing.
func AppendSubscribe(dst []byte, v Version, s *Subscribe) []byte {
	pk := packets.Packet{
		FixedHeader:     packets.FixedHeader{Type: packets.Subscribe, Qos: 1}, // [MQTT-3.8.1-1]
		ProtocolVersion: byte(v),
		PacketID:        s.PacketID,
	}
	if s.SubscriptionID != 0 {
		pk.Properties.SubscriptionIdentifier = []int{int(s.SubscriptionID)}
	}
	pk.Properties.User = mochiUser(s.User)
	for _, f := range s.Filters {
		pk.Filters = append(pk.Filters, packets.Subscription{
			Filter: f.Topic, Qos: f.QoS, NoLocal: f.NoLocal, RetainAsPublished: f.RetainAsPublished, RetainHandling: f.RetainHandling,
		})
	}
	return encode(dst, pk.SubscribeEncode)
}

// AppendSuback appends a SUBACK with one code for each filter [MQTT-3.8.4-6]. Below MQTT 5 every failure becomes 0x80
// [MQTT-3.9.3-2] (3.1.1).
func AppendSuback(dst []byte, v Version, id uint16, codes []ReasonCode) []byte {
	pk := packets.Packet{
		FixedHeader:     packets.FixedHeader{Type: packets.Suback},
		ProtocolVersion: byte(v),
		PacketID:        id,
		ReasonCodes:     mochiCodes(codes),
	}
	if v != V5 {
		for i, c := range codes {
			if c.Failed() {
				pk.ReasonCodes[i] = byte(UnspecifiedError)
			}
		}
	}
	return encode(dst, pk.SubackEncode)
}

func (r *Reader) decodeSuback(b *body) (Packet, *Error) {
	s := &Suback{PacketID: decodePacketID(b)}
	if r.version == V5 {
		var p properties
		b.properties(SUBACK, true, &p)
		s.Reason, s.User = p.reasonString, p.user
	}
	s.Codes = decodeCodes(b, func(c ReasonCode) bool { return subackCode(r.version, c) })
	return s, b.err
}

// decodeCodes takes the rest of the packet as reason codes.
func decodeCodes(b *body, known func(ReasonCode) bool) []ReasonCode {
	if b.err != nil {
		return nil
	}
	codes := make([]ReasonCode, len(b.buf))
	for i, c := range b.buf {
		codes[i] = ReasonCode(c)
		if !known(codes[i]) {
			b.protocolError("reason code has no place in this packet")
			return nil
		}
	}
	return codes
}

// subackCode reports whether table 3-8 (3.1.1: section 3.9.3) lists the code [MQTT-3.9.3-2].
func subackCode(v Version, c ReasonCode) bool {
	switch c {
	case Success, GrantedQoS1, GrantedQoS2, UnspecifiedError:
		return true
	case ImplementationSpecificError, NotAuthorized, TopicFilterInvalid, PacketIdentifierInUse, QuotaExceeded,
		SharedSubscriptionsNotSupported, SubscriptionIdentifiersNotSupported, WildcardSubscriptionsNotSupported:
		return v == V5
	}
	return false
}
