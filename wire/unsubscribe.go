package wire

import (
	"github.com/mochi-mqtt/server/v2/packets"

	"rewindmq/schema"
)

// Unsubscribe is an UNSUBSCRIBE.
type Unsubscribe struct {
	// PacketID is 1 to 65,535.
	PacketID uint16
	// Filters has at least one, none empty; whether they are valid is not judged here.
	Filters []string
	User    []schema.UserProperty
}

// Unsuback is an UNSUBACK. Only clients receive it.
type Unsuback struct {
	PacketID uint16
	// Codes has one for each filter in MQTT 5, in their order [MQTT-3.11.3-1], and none below.
	Codes []ReasonCode
	// Reason and User are empty but in MQTT 5.
	Reason string
	User   []schema.UserProperty
}

func (r *Reader) decodeUnsubscribe(b *body) (Packet, *Error) {
	u := &Unsubscribe{PacketID: decodePacketID(b)}
	if r.version == V5 {
		var p properties
		b.properties(UNSUBSCRIBE, false, &p)
		u.User = p.user
	}
	if b.err == nil && len(b.buf) == 0 { // [MQTT-3.10.3-2]
		b.malformed("there is no topic filter")
	}
	for len(b.buf) > 0 {
		u.Filters = append(u.Filters, decodeFilterTopic(b))
	}
	return u, b.err
}

// AppendUnsubscribe appends u, as a client would send it, and returns the longer slice. That each string has at most
// 65,535 bytes is the caller's duty. Packet identifier 0 appends nothing.
func AppendUnsubscribe(dst []byte, v Version, u *Unsubscribe) []byte {
	pk := packets.Packet{
		FixedHeader:     packets.FixedHeader{Type: packets.Unsubscribe, Qos: 1}, // [MQTT-3.10.1-1]
		ProtocolVersion: byte(v),
		PacketID:        u.PacketID,
	}
	pk.Properties.User = mochiUser(u.User)
	for _, f := range u.Filters {
		pk.Filters = append(pk.Filters, packets.Subscription{Filter: f})
	}
	return encode(dst, pk.UnsubscribeEncode)
}

// AppendUnsuback appends an UNSUBACK with one code for each filter; below MQTT 5 it has none [MQTT-3.10.4-4].
func AppendUnsuback(dst []byte, v Version, id uint16, codes []ReasonCode) []byte {
	pk := packets.Packet{
		FixedHeader:     packets.FixedHeader{Type: packets.Unsuback},
		ProtocolVersion: byte(v),
		PacketID:        id,
		ReasonCodes:     mochiCodes(codes),
	}
	return encode(dst, pk.UnsubackEncode)
}

func (r *Reader) decodeUnsuback(b *body) (Packet, *Error) {
	u := &Unsuback{PacketID: decodePacketID(b)}
	if r.version != V5 {
		b.end()
		return u, b.err
	}
	var p properties
	b.properties(UNSUBACK, true, &p)
	u.Reason, u.User = p.reasonString, p.user
	u.Codes = decodeCodes(b, unsubackCode)
	return u, b.err
}

// unsubackCode reports whether table 3-9 lists the code [MQTT-3.11.3-2].
func unsubackCode(c ReasonCode) bool {
	switch c {
	case Success, NoSubscriptionExisted, UnspecifiedError, ImplementationSpecificError, NotAuthorized, TopicFilterInvalid,
		PacketIdentifierInUse:
		return true
	}
	return false
}
