package integration

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
)

// Packet types, as in the upper half of the first byte.
const (
	kindConnect     = 1
	kindConnack     = 2
	kindPublish     = 3
	kindPuback      = 4
	kindPubrec      = 5
	kindPubrel      = 6
	kindPubcomp     = 7
	kindSubscribe   = 8
	kindSuback      = 9
	kindUnsubscribe = 10
	kindUnsuback    = 11
	kindPingreq     = 12
	kindPingresp    = 13
	kindDisconnect  = 14
)

// Protocol levels.
const (
	v311 = 4
	v5   = 5
)

// Properties of MQTT 5 that the suite sends or looks at.
const (
	propPayloadFormat  = 0x01
	propMessageExpiry  = 0x02
	propContentType    = 0x03
	propResponseTopic  = 0x08
	propCorrelation    = 0x09
	propSubscriptionID = 0x0b
	propSessionExpiry  = 0x11
	propAssignedID     = 0x12
	propWillDelay      = 0x18
	propReceiveMaximum = 0x21
	propTopicAlias     = 0x23
	propMaximumQoS     = 0x24
	propUser           = 0x26
	propMaximumPacket  = 0x27
	// In CONNACK; 0: none.
	propSharedAvailable = 0x2a
)

// property is one MQTT 5 property; which field counts depends on its id.
type property struct {
	id       byte
	num      uint32
	str, val string
}

// packet is what was read off the wire.
type packet struct {
	kind    byte
	id      uint16
	present bool   // CONNACK
	code    byte   // reason or return code
	codes   []byte // SUBACK, UNSUBACK
	topic   string
	payload []byte
	qos     byte
	dup     bool
	retain  bool
	props   []property
}

func (p packet) String() string {
	names := [...]string{
		"?", "CONNECT", "CONNACK", "PUBLISH", "PUBACK", "PUBREC", "PUBREL", "PUBCOMP",
		"SUBSCRIBE", "SUBACK", "UNSUBSCRIBE", "UNSUBACK", "PINGREQ", "PINGRESP", "DISCONNECT", "AUTH",
	}
	s := names[p.kind]
	switch p.kind {
	case kindPublish:
		payload := string(p.payload)
		if len(payload) > 40 {
			payload = fmt.Sprintf("%s… (%d)", payload[:40], len(payload))
		}
		return fmt.Sprintf("%s %q id=%d qos=%d dup=%t retain=%t %q", s, p.topic, p.id, p.qos, p.dup, p.retain, payload)
	case kindConnack:
		return fmt.Sprintf("%s present=%t code=%#02x", s, p.present, p.code)
	case kindSuback, kindUnsuback:
		return fmt.Sprintf("%s id=%d codes=%x", s, p.id, p.codes)
	}
	return fmt.Sprintf("%s id=%d code=%#02x", s, p.id, p.code)
}

// prop gives the first property with that id.
func (p packet) prop(id byte) (property, bool) {
	for _, q := range p.props {
		if q.id == id {
			return q, true
		}
	}
	return property{}, false
}

func appendString(b []byte, s string) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(len(s)))
	return append(b, s...)
}

func appendProps(b []byte, props []property) []byte {
	var body []byte
	for _, p := range props {
		body = append(body, p.id)
		switch p.id {
		case propPayloadFormat, propMaximumQoS:
			body = append(body, byte(p.num))
		case propReceiveMaximum, propTopicAlias:
			body = binary.BigEndian.AppendUint16(body, uint16(p.num))
		case propMessageExpiry, propSessionExpiry, propWillDelay, propMaximumPacket:
			body = binary.BigEndian.AppendUint32(body, p.num)
		case propSubscriptionID:
			body = binary.AppendUvarint(body, uint64(p.num))
		case propUser:
			body = appendString(appendString(body, p.str), p.val)
		default:
			body = appendString(body, p.str)
		}
	}
	// The standard's variable byte integer is the same as Go's uvarint.
	return append(binary.AppendUvarint(b, uint64(len(body))), body...)
}

// frame puts the fixed header before a body.
func frame(first byte, body []byte) []byte {
	return append(binary.AppendUvarint([]byte{first}, uint64(len(body))), body...)
}

// will is a last message.
type will struct {
	topic, payload string
	qos            byte
	retain         bool
	delay          uint32 // seconds, v5
}

// session is what a CONNECT asks for.
type session struct {
	version    byte // v311 or v5
	clientID   string
	clean      bool
	expiry     uint32 // seconds, v5 only
	receiveMax uint16 // v5 only; 0: not sent
	maxPacket  uint32 // v5 only; 0: not sent
	keepAlive  uint16 // seconds; 0: none
	will       *will
}

// persistent gives a session that stays: v3.1.1 with cleanSession 0, or v5 with
// expiry 300 s.
func persistent(version byte, clientID string) session {
	return session{version: version, clientID: clientID, expiry: 300}
}

// transient gives a clean session that ends with its connection.
func transient(version byte, clientID string) session {
	return session{version: version, clientID: clientID, clean: true}
}

func (s session) packet() []byte {
	b := appendString(nil, "MQTT")
	flags := byte(0)
	if s.clean {
		flags |= 0x02
	}
	if w := s.will; w != nil {
		flags |= 0x04 | w.qos<<3
		if w.retain {
			flags |= 0x20
		}
	}
	b = append(b, s.version, flags)
	b = binary.BigEndian.AppendUint16(b, s.keepAlive)
	if s.version == v5 {
		var props []property
		if s.expiry > 0 {
			props = append(props, property{id: propSessionExpiry, num: s.expiry})
		}
		if s.receiveMax > 0 {
			props = append(props, property{id: propReceiveMaximum, num: uint32(s.receiveMax)})
		}
		if s.maxPacket > 0 {
			props = append(props, property{id: propMaximumPacket, num: s.maxPacket})
		}
		b = appendProps(b, props)
	}
	b = appendString(b, s.clientID)
	if w := s.will; w != nil {
		if s.version == v5 {
			var props []property
			if w.delay > 0 {
				props = append(props, property{id: propWillDelay, num: w.delay})
			}
			b = appendProps(b, props)
		}
		b = appendString(appendString(b, w.topic), w.payload)
	}
	return frame(0x10, b)
}

// message is a PUBLISH to be sent.
type message struct {
	topic   string
	payload []byte
	qos     byte
	retain  bool
	props   []property // v5
}

func (m message) packet(version byte, id uint16, dup bool) []byte {
	first := byte(kindPublish<<4) | m.qos<<1
	if m.retain {
		first |= 1
	}
	if dup {
		first |= 8
	}
	b := appendString(nil, m.topic)
	if m.qos > 0 {
		b = binary.BigEndian.AppendUint16(b, id)
	}
	if version == v5 {
		b = appendProps(b, m.props)
	}
	return frame(first, append(b, m.payload...))
}

// ackPacket makes PUBACK, PUBREC, PUBREL or PUBCOMP in the short form, which
// means success in both versions.
func ackPacket(kind byte, id uint16) []byte {
	first := kind << 4
	if kind == kindPubrel {
		first |= 2
	}
	return []byte{first, 2, byte(id >> 8), byte(id)}
}

// want is a filter with its options byte: QoS, and in v5 no-local (4),
// retain-as-published (8), retain handling (16, 32).
type want struct {
	filter  string
	options byte
}

func subscribePacket(version byte, id uint16, props []property, wants ...want) []byte {
	b := binary.BigEndian.AppendUint16(nil, id)
	if version == v5 {
		b = appendProps(b, props)
	}
	for _, w := range wants {
		b = append(appendString(b, w.filter), w.options)
	}
	return frame(0x82, b)
}

func unsubscribePacket(version byte, id uint16, filters ...string) []byte {
	b := binary.BigEndian.AppendUint16(nil, id)
	if version == v5 {
		b = appendProps(b, nil)
	}
	for _, f := range filters {
		b = appendString(b, f)
	}
	return frame(0xa2, b)
}

// readPacket reads one packet that a broker may send.
func readPacket(r *bufio.Reader, version byte) (packet, error) {
	first, err := r.ReadByte()
	if err != nil {
		return packet{}, err
	}
	n, err := binary.ReadUvarint(r)
	if err != nil {
		return packet{}, unexpected(err)
	}
	if n > 1<<28 {
		return packet{}, fmt.Errorf("remaining length %d", n)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return packet{}, unexpected(err)
	}
	return parsePacket(first, body, version)
}

// unexpected makes an end inside a packet different from one between packets.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// body is a packet's bytes with a place; bad is set by reading past the end.
type body struct {
	b   []byte
	bad bool
}

func (b *body) take(n int) []byte {
	if n > len(b.b) {
		b.bad, b.b = true, nil
		return make([]byte, n)
	}
	out := b.b[:n]
	b.b = b.b[n:]
	return out
}

func (b *body) byte() byte     { return b.take(1)[0] }
func (b *body) uint16() uint16 { return binary.BigEndian.Uint16(b.take(2)) }
func (b *body) uint32() uint32 { return binary.BigEndian.Uint32(b.take(4)) }
func (b *body) string() string { return string(b.take(int(b.uint16()))) }

func (b *body) uvarint() uint32 {
	n, k := binary.Uvarint(b.b)
	if k <= 0 {
		b.bad, b.b = true, nil
		return 0
	}
	b.b = b.b[k:]
	return uint32(n)
}

func (b *body) props() []property {
	in := body{b: b.take(int(b.uvarint()))}
	var out []property
	for len(in.b) > 0 {
		p := property{id: in.byte()}
		switch p.id {
		case 0x01, 0x17, 0x19, 0x24, 0x25, 0x28, 0x29, 0x2a:
			p.num = uint32(in.byte())
		case 0x13, 0x21, 0x22, 0x23:
			p.num = uint32(in.uint16())
		case 0x02, 0x11, 0x18, 0x27:
			p.num = in.uint32()
		case 0x0b:
			p.num = in.uvarint()
		case 0x26:
			p.str, p.val = in.string(), in.string()
		case 0x03, 0x08, 0x09, 0x12, 0x15, 0x16, 0x1a, 0x1c, 0x1f:
			p.str = in.string()
		default:
			in.bad = true
		}
		if in.bad {
			b.bad = true
			return nil
		}
		out = append(out, p)
	}
	return out
}

func parsePacket(first byte, raw []byte, version byte) (packet, error) {
	p, b := packet{kind: first >> 4}, body{b: raw}
	flags := first & 15
	switch p.kind {
	case kindConnack:
		p.present, p.code = b.byte()&1 == 1, b.byte()
		if version == v5 {
			p.props = b.props()
		}
	case kindPublish:
		p.dup, p.qos, p.retain = flags&8 != 0, flags>>1&3, flags&1 != 0
		p.topic = b.string()
		if p.qos > 0 {
			p.id = b.uint16()
			b.bad = b.bad || p.id == 0 // [MQTT-2.2.1-3]
		}
		if version == v5 {
			p.props = b.props()
		}
		p.payload, b.b = b.b, nil
		if p.qos == 3 || p.qos == 0 && p.dup { // [MQTT-3.3.1-4, 3.3.1-2]
			return p, fmt.Errorf("PUBLISH with first byte %#02x", first)
		}
		flags = 0
	case kindPuback, kindPubrec, kindPubrel, kindPubcomp:
		p.id = b.uint16()
		if version == v5 && len(b.b) > 0 {
			p.code = b.byte()
			if len(b.b) > 0 {
				p.props = b.props()
			}
		}
		if p.kind == kindPubrel {
			flags ^= 2
		}
	case kindSuback, kindUnsuback:
		p.id = b.uint16()
		if version == v5 {
			p.props = b.props()
		}
		p.codes, b.b = b.b, nil
	case kindPingresp:
	case kindDisconnect:
		if version == v5 && len(b.b) > 0 {
			p.code = b.byte()
			if len(b.b) > 0 {
				p.props = b.props()
			}
		}
	default:
		return p, fmt.Errorf("a broker does not send packet type %d", p.kind)
	}
	if b.bad || len(b.b) > 0 || flags != 0 {
		return p, fmt.Errorf("malformed packet %#02x %x", first, raw)
	}
	return p, nil
}

// fromHex decodes hex; blanks are for the reader.
func fromHex(s string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		panic(err)
	}
	return b
}

// The codec is checked against bytes written down elsewhere (the field reports).
func TestPacketBytes(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		got  []byte
		want string
	}{
		"connect v5": {
			session{version: v5, clientID: "dev-7", expiry: 300, receiveMax: 1, keepAlive: 60}.packet(),
			"101a00044d5154540500003c08110000012c21000100056465762d37",
		},
		"connect v3.1.1": {
			session{version: v311, clientID: "dev-8", keepAlive: 60}.packet(),
			"101100044d5154540400003c00056465762d38",
		},
		"publish":     {message{topic: "f08/r", payload: []byte("21.5"), qos: 2}.packet(v311, 7, false), "340d00056630382f72000732312e35"},
		"publish dup": {message{topic: "f08/r", payload: []byte("21.5"), qos: 2}.packet(v311, 7, true), "3c0d00056630382f72000732312e35"},
		"publish v5": {
			message{topic: "f10/q", payload: []byte("x"), qos: 2, props: []property{{id: propMessageExpiry, num: 2}}}.packet(v5, 1, false),
			"341000056631302f71000105020000000278",
		},
		"subscribe": {subscribePacket(v311, 1, nil, want{"f22/#", 1}), "820a000100056632322f2301"},
		"pubrel":    {ackPacket(kindPubrel, 7), "62020007"},
	} {
		if hex.EncodeToString(c.got) != c.want {
			t.Errorf("%s: got %x, want %s", name, c.got, c.want)
		}
	}
	for in, ok := range map[string]bool{
		"20020000": true, "20030000": false, "40020007": true, "60020007": false,
		"320700016100077878": true, "3604000161": false, "8202": false, "d000": true,
	} {
		_, err := readPacket(bufio.NewReader(strings.NewReader(string(fromHex(in)))), v311)
		if (err == nil) != ok {
			t.Errorf("%s: %v, want ok=%t", in, err, ok)
		}
	}
}
