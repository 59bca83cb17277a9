package wire

import "fmt"

// Version is the protocol level of a connection, as CONNECT names it.
type Version byte

// The versions of MQTT.
const (
	V31  Version = 3 // MQTT 3.1, protocol name MQIsdp
	V311 Version = 4 // MQTT 3.1.1
	V5   Version = 5 // MQTT 5.0
)

// String returns "3.1", "3.1.1", "5", or "unknown".
func (v Version) String() string {
	switch v {
	case V31:
		return "3.1"
	case V311:
		return "3.1.1"
	case V5:
		return "5"
	}
	return "unknown"
}

// PacketType is the type of a control packet: the upper four bits of its first byte.
type PacketType byte

// The packet types, named as in the standard.
const (
	CONNECT     PacketType = 1
	CONNACK     PacketType = 2
	PUBLISH     PacketType = 3
	PUBACK      PacketType = 4
	PUBREC      PacketType = 5
	PUBREL      PacketType = 6
	PUBCOMP     PacketType = 7
	SUBSCRIBE   PacketType = 8
	SUBACK      PacketType = 9
	UNSUBSCRIBE PacketType = 10
	UNSUBACK    PacketType = 11
	PINGREQ     PacketType = 12
	PINGRESP    PacketType = 13
	DISCONNECT  PacketType = 14
	AUTH        PacketType = 15
)

// String returns the name in the standard, in capitals.
func (t PacketType) String() string {
	switch t {
	case CONNECT:
		return "CONNECT"
	case CONNACK:
		return "CONNACK"
	case PUBLISH:
		return "PUBLISH"
	case PUBACK:
		return "PUBACK"
	case PUBREC:
		return "PUBREC"
	case PUBREL:
		return "PUBREL"
	case PUBCOMP:
		return "PUBCOMP"
	case SUBSCRIBE:
		return "SUBSCRIBE"
	case SUBACK:
		return "SUBACK"
	case UNSUBSCRIBE:
		return "UNSUBSCRIBE"
	case UNSUBACK:
		return "UNSUBACK"
	case PINGREQ:
		return "PINGREQ"
	case PINGRESP:
		return "PINGRESP"
	case DISCONNECT:
		return "DISCONNECT"
	case AUTH:
		return "AUTH"
	}
	return fmt.Sprintf("packet type %d", byte(t))
}

// A Packet is one of the pointer types of this package.
//
// A packet that a [Reader] returned, and every slice and pointer in its struct, belongs to the caller, with one
// exception: the structs *Publish, *Ack and *Pingreq themselves are used again by the next ReadPacket. Copy the struct to
// keep it; its strings, slices and Properties stay valid and unchanged for ever, provided nobody writes to them:
// the topic, the payload and the properties of a PUBLISH share one allocation, so whoever keeps a topic alone for long
// should clone it.
type Packet interface{ packet() }

func (*Connect) packet()     {}
func (*Connack) packet()     {}
func (*Publish) packet()     {}
func (*Ack) packet()         {}
func (*Subscribe) packet()   {}
func (*Suback) packet()      {}
func (*Unsubscribe) packet() {}
func (*Unsuback) packet()    {}
func (*Pingreq) packet()     {}
func (*Pingresp) packet()    {}
func (*Disconnect) packet()  {}
func (*Auth) packet()        {}
