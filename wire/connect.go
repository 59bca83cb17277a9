package wire

import (
	"encoding/binary"
	"errors"
	"strings"
	"unicode/utf8"

	"github.com/mochi-mqtt/server/v2/packets"

	"rewindmq/schema"
)

// Connect is a CONNECT.
type Connect struct {
	Version Version
	// ClientID is empty when the server has to make one up: in MQTT 5, and in 3.1.1 with CleanStart.
	ClientID string
	// CleanStart is Clean Session before MQTT 5.
	CleanStart bool
	// KeepAlive is in seconds; 0 turns the mechanism off.
	KeepAlive   uint16
	HasUsername bool
	Username    string
	HasPassword bool
	Password    []byte
	// Will is nil when there is none.
	Will *Will

	// What follows is set in MQTT 5 only.

	// SessionExpiry is in seconds, when HasSessionExpiry; 0xFFFFFFFF is no end.
	SessionExpiry    uint32
	HasSessionExpiry bool
	// ReceiveMaximum, MaximumPacketSize (bytes) and TopicAliasMaximum are 0 when they are absent.
	ReceiveMaximum    uint16
	MaximumPacketSize uint32
	TopicAliasMaximum uint16
	// RequestProblemInfo is true when it is absent, and before MQTT 5.
	RequestProblemInfo  bool
	RequestResponseInfo bool
	// AuthMethod is empty when there is no enhanced authentication.
	AuthMethod string
	// AuthData is nil when it is absent or empty.
	AuthData []byte
	User     []schema.UserProperty
}

// Will is the will of a CONNECT.
type Will struct {
	// Topic is not empty, and has no wildcard and no U+0000 in it.
	Topic string
	// Payload may be empty.
	Payload []byte
	QoS     byte // 0 to 2
	Retain  bool
	// Delay is in seconds.
	Delay uint32
	// MessageExpiry is in seconds, when HasExpiry.
	MessageExpiry uint32
	HasExpiry     bool
	// Properties is nil when there are none, and always below MQTT 5.
	Properties *schema.Properties
}

// The bits of the connect flags.
const (
	flagReserved   = 1 << 0
	flagCleanStart = 1 << 1
	flagWill       = 1 << 2
	flagWillQoS    = 3 << 3
	flagWillRetain = 1 << 5
	flagPassword   = 1 << 6
	flagUsername   = 1 << 7
)

// decodeConnect sets the version of the reader as soon as it is known, so that a fault further behind can be answered
// in it.
func (r *Reader) decodeConnect(headerFlags byte, b *body) (Packet, *Error) {
	c := &Connect{RequestProblemInfo: true}
	name, level := b.field("protocol name"), b.byte("protocol level")
	if b.err != nil {
		return nil, b.err
	}
	var refused *Error
	if c.Version, refused = protocol(string(name), level); refused != nil {
		r.version = c.Version
		return nil, refused
	}
	r.version = c.Version
	if headerFlags != 0 && c.Version != V31 { // [MQTT-2.1.3-1]; in 3.1 they have no meaning
		return nil, malformed("reserved bits of the fixed header are set")
	}
	flags := b.byte("connect flags")
	c.KeepAlive = b.uint16("keep alive")
	if fault := checkConnectFlags(c.Version, flags); b.err == nil && fault != nil {
		return nil, fault
	}
	c.CleanStart = flags&flagCleanStart != 0
	if c.Version == V5 {
		decodeConnectProperties(b, c)
	}
	decodeClientID(b, c)
	if flags&flagWill != 0 {
		c.Will = decodeWill(c.Version, flags, b)
	}
	decodeCredentials(flags, b, c)
	b.end() // [MQTT-3.1.2-16] [MQTT-3.1.2-18]: what has no flag is not there
	return c, b.err
}

// protocol judges the protocol name and level. When they are refused, the version is the one to answer in: the CONNACK
// with 0x84 of MQTT 5 to levels that nobody knows, return code 1 to those that were in use before [MQTT-3.1.2-2]
// (3.1.1). It is 0, and there is nothing to answer, when the peer does not speak MQTT [MQTT-3.1.2-1, MQTT-3.1.2-2].
func protocol(name string, level byte) (Version, *Error) {
	switch {
	case name == "MQTT" && (level == byte(V311) || level == byte(V5)), name == "MQIsdp" && level == byte(V31):
		return Version(level), nil
	case name != "MQTT" && name != "MQIsdp":
		return 0, &Error{Code: UnsupportedProtocolVersion, Err: errors.New("protocol name is not MQTT")}
	}
	refused := &Error{Code: UnsupportedProtocolVersion, Err: errors.New("protocol level is not 3.1, 3.1.1 or 5")}
	switch Version(level &^ 0x80) { // the upper bit: how Mosquitto's bridges introduce themselves at first
	case V31, V311:
		return V311, refused
	}
	return V5, refused
}

func checkConnectFlags(v Version, flags byte) *Error {
	switch {
	case flags&flagReserved != 0 && v != V31: // [MQTT-3.1.2-3]
		return malformed("reserved connect flag is set")
	case flags&flagWill == 0 && flags&flagWillQoS != 0: // [MQTT-3.1.2-11]
		return malformed("will QoS without a will")
	case flags&flagWill == 0 && flags&flagWillRetain != 0: // [MQTT-3.1.2-13]
		return malformed("will retain without a will")
	case flags&flagWillQoS == flagWillQoS: // [MQTT-3.1.2-12]
		return malformed("will QoS is 3")
	case flags&flagPassword != 0 && flags&flagUsername == 0 && v != V5: // [MQTT-3.1.2-22] of 3.1.1
		return malformed("password without a user name")
	}
	return nil
}

func decodeConnectProperties(b *body, c *Connect) {
	var p properties
	b.properties(CONNECT, false, &p)
	if b.err == nil && p.has(packets.PropAuthenticationData) && !p.has(packets.PropAuthenticationMethod) {
		b.protocolError("authentication data without a method") // section 3.1.2.11.10
	}
	c.SessionExpiry, c.HasSessionExpiry = p.sessionExpiry, p.has(packets.PropSessionExpiryInterval)
	c.ReceiveMaximum, c.MaximumPacketSize, c.TopicAliasMaximum = p.receiveMaximum, p.maximumPacketSize, p.topicAliasMaximum
	c.RequestProblemInfo = p.problemInfo || !p.has(packets.PropRequestProblemInfo)
	c.RequestResponseInfo = p.responseInfoWanted
	c.AuthMethod, c.AuthData, c.User = p.authMethod, orNil(p.authData), p.user
}

func decodeClientID(b *body, c *Connect) {
	v := b.field("client identifier") // [MQTT-3.1.3-3]
	if b.err != nil {
		return
	}
	switch {
	case validString(v) && b.refuseControl && hasControl(v): // allowed by section 1.5.4; all versions have a code for it
		b.fail(&Error{Code: ClientIdentifierNotValid, Err: errors.New("client identifier has a control character in it")})
	case !validString(v): // [MQTT-3.1.3-4]
		fault := malformed("client identifier is not well-formed")
		if c.Version == V5 {
			// 3.1.1 has to be closed without an answer [MQTT-1.5.3-1]; in MQTT 5 there is a code for it.
			fault.Code = ClientIdentifierNotValid
		}
		b.fail(fault)
	case len(v) == 0 && (c.Version == V31 || c.Version == V311 && !c.CleanStart): // [MQTT-3.1.3-8] of 3.1.1
		b.fail(&Error{Code: ClientIdentifierNotValid, Err: errors.New("client identifier is empty")})
	}
	c.ClientID = string(v)
}

// decodeWill takes the will's fields. The payload may be empty, also with RETAIN (section 3.1.3.4).
func decodeWill(v Version, flags byte, b *body) *Will {
	w := &Will{QoS: flags & flagWillQoS >> 3, Retain: flags&flagWillRetain != 0}
	if v == V5 {
		var p properties
		b.properties(willProperties, false, &p)
		w.Delay = p.willDelay
		w.MessageExpiry, w.HasExpiry = p.messageExpiry, p.has(packets.PropMessageExpiryInterval)
		w.Properties = p.message() // user properties in order [MQTT-3.1.3-10]
	}
	w.Topic = b.string("will topic") // [MQTT-3.1.3-11]
	if b.err == nil && (w.Topic == "" || strings.ContainsAny(w.Topic, "+#")) {
		b.malformed("will topic is empty or has a wildcard in it") // [MQTT-4.7.3-1] [MQTT-4.7.1-1]
	}
	w.Payload = b.binary("will payload") // [MQTT-3.1.2-9]
	if w.Properties != nil && w.Properties.PayloadFormat == 1 && !utf8.Valid(w.Payload) {
		b.fail(&Error{Code: PayloadFormatInvalid, Err: errPayloadFormat})
	}
	return w
}

func decodeCredentials(flags byte, b *body, c *Connect) {
	// 3.1 lets the flags stand although the fields are missing, for compatibility with what was before it.
	missing := func() bool { return c.Version == V31 && b.err == nil && len(b.buf) == 0 }
	if flags&flagUsername != 0 && !missing() { // [MQTT-3.1.2-17]
		c.Username, c.HasUsername = b.string("user name"), true // [MQTT-3.1.3-12]
	}
	if flags&flagPassword != 0 && !missing() { // [MQTT-3.1.2-19]
		c.Password, c.HasPassword = b.binary("password"), true
	}
}

func orNil(b []byte) []byte {
	if len(b) == 0 {
		return nil
	}
	return b
}

// AppendConnect appends c, as a client would send it, and returns the longer slice. That each string has at most 65,535
// bytes is the caller's duty.
func AppendConnect(dst []byte, c *Connect) []byte {
	name := "MQTT"
	if c.Version == V31 {
		name = "MQIsdp"
	}
	b := append(appendString(nil, name), byte(c.Version), connectFlags(c))
	b = binary.BigEndian.AppendUint16(b, c.KeepAlive)
	if c.Version == V5 {
		b = appendSection(b, appendConnectProperties(nil, c))
	}
	b = appendString(b, c.ClientID)
	if w := c.Will; w != nil {
		if c.Version == V5 {
			b = appendSection(b, appendWillProperties(nil, w))
		}
		b = appendBinary(appendString(b, w.Topic), w.Payload)
	}
	if c.HasUsername {
		b = appendString(b, c.Username)
	}
	if c.HasPassword {
		b = appendBinary(b, c.Password)
	}
	return append(appendVarint(append(dst, byte(CONNECT)<<4), len(b)), b...)
}

func connectFlags(c *Connect) byte {
	var flags byte
	if c.CleanStart {
		flags |= flagCleanStart
	}
	if c.Will != nil {
		flags |= flagWill | c.Will.QoS<<3
		if c.Will.Retain {
			flags |= flagWillRetain
		}
	}
	if c.HasUsername {
		flags |= flagUsername
	}
	if c.HasPassword {
		flags |= flagPassword
	}
	return flags
}

// appendSection appends a property length and the properties.
func appendSection(dst, section []byte) []byte {
	return append(appendVarint(dst, len(section)), section...)
}

func appendConnectProperties(dst []byte, c *Connect) []byte {
	if c.HasSessionExpiry {
		dst = binary.BigEndian.AppendUint32(append(dst, packets.PropSessionExpiryInterval), c.SessionExpiry)
	}
	if c.ReceiveMaximum != 0 {
		dst = binary.BigEndian.AppendUint16(append(dst, packets.PropReceiveMaximum), c.ReceiveMaximum)
	}
	if c.MaximumPacketSize != 0 {
		dst = binary.BigEndian.AppendUint32(append(dst, packets.PropMaximumPacketSize), c.MaximumPacketSize)
	}
	if c.TopicAliasMaximum != 0 {
		dst = binary.BigEndian.AppendUint16(append(dst, packets.PropTopicAliasMaximum), c.TopicAliasMaximum)
	}
	if !c.RequestProblemInfo {
		dst = append(dst, packets.PropRequestProblemInfo, 0)
	}
	if c.RequestResponseInfo {
		dst = append(dst, packets.PropRequestResponseInfo, 1)
	}
	if c.AuthMethod != "" {
		dst = appendString(append(dst, packets.PropAuthenticationMethod), c.AuthMethod)
	}
	if c.AuthData != nil {
		dst = appendBinary(append(dst, packets.PropAuthenticationData), c.AuthData)
	}
	for _, u := range c.User {
		dst = appendString(appendString(append(dst, packets.PropUser), u.Key), u.Value)
	}
	return dst
}

func appendWillProperties(dst []byte, w *Will) []byte {
	if w.Delay != 0 {
		dst = binary.BigEndian.AppendUint32(append(dst, packets.PropWillDelayInterval), w.Delay)
	}
	if w.HasExpiry {
		dst = binary.BigEndian.AppendUint32(append(dst, packets.PropMessageExpiryInterval), w.MessageExpiry)
	}
	if w.Properties != nil {
		dst = appendMessageProperties(dst, w.Properties)
	}
	return dst
}
