package wire

import (
	"encoding/binary"

	"rewindmq/schema"
)

// Ack is a PUBACK, PUBREC, PUBREL or PUBCOMP.
type Ack struct {
	Type PacketType
	// ID is the packet identifier, 1 to 65,535.
	ID uint16
	// Code is Success below MQTT 5, and where it is left out.
	Code ReasonCode
	// Reason and User are empty but in MQTT 5.
	Reason string
	User   []schema.UserProperty
}

func (r *Reader) decodeAck(t PacketType, b *body) (Packet, *Error) {
	a := &r.ack // ReadPacket has cleared it
	a.Type, a.ID = t, b.uint16("packet identifier")
	if b.err == nil && a.ID == 0 { // [MQTT-2.2.1-3]
		b.protocolError("packet identifier is 0")
	}
	if r.version == V5 && len(b.buf) > 0 {
		a.Code = ReasonCode(b.byte("reason code"))
		if len(b.buf) > 0 {
			r.decodeAckProperties(b, a)
		}
	}
	b.end()
	if b.err == nil && !ackCode(t, a.Code) { // [MQTT-3.4.2-1] [MQTT-3.5.2-1] [MQTT-3.6.2-1] [MQTT-3.7.2-1]
		b.protocolError("reason code has no place in this packet")
	}
	return a, b.err
}

func (r *Reader) decodeAckProperties(b *body, a *Ack) {
	var props properties
	b.properties(a.Type, r.fromServer, &props)
	a.Reason, a.User = props.reasonString, props.user
}

// ackCode reports whether the standard lists the code for the packet.
func ackCode(t PacketType, c ReasonCode) bool {
	if t == PUBREL || t == PUBCOMP {
		return c == Success || c == PacketIdentifierNotFound
	}
	switch c {
	case Success, NoMatchingSubscribers, UnspecifiedError, ImplementationSpecificError, NotAuthorized, TopicNameInvalid,
		PacketIdentifierInUse, QuotaExceeded, PayloadFormatInvalid:
		return true
	}
	return false
}

// AppendAck appends a PUBACK, PUBREC, PUBREL or PUBCOMP. Below MQTT 5 the code is left out. It allocates only to make
// dst larger.
func AppendAck(dst []byte, v Version, t PacketType, id uint16, code ReasonCode) []byte {
	first := byte(t) << 4
	if t == PUBREL { // [MQTT-3.6.1-1]
		first |= 2
	}
	if v != V5 || code == Success {
		return binary.BigEndian.AppendUint16(append(dst, first, 2), id)
	}
	return append(binary.BigEndian.AppendUint16(append(dst, first, 3), id), byte(code))
}
