package wire

import (
	"github.com/mochi-mqtt/server/v2/packets"

	"rewindmq/schema"
)

// Connack is a CONNACK. Everything below Code exists in MQTT 5 only, and its zero value is left out.
type Connack struct {
	// SessionPresent is sent as 0 with any Code but Success [MQTT-3.2.2-6].
	SessionPresent bool
	Code           ReasonCode

	// SessionExpiry is in seconds. It is there when the server uses another one than the client asked for.
	SessionExpiry *uint32
	// ReceiveMaximum is 65,535 when it is absent.
	ReceiveMaximum uint16
	// MaximumQoS is 0 or 1, and nil when the server takes QoS 2.
	MaximumQoS *byte
	// MaximumPacketSize is in bytes, for the whole packet.
	MaximumPacketSize uint32
	AssignedClientID  string
	TopicAliasMaximum uint16
	// The four Unavailable fields: what is absent on the wire is available.
	RetainUnavailable         bool
	WildcardUnavailable       bool
	SubscriptionIDUnavailable bool
	SharedUnavailable         bool
	// ServerKeepAlive is in seconds, and overrides the client's [MQTT-3.2.2-21].
	ServerKeepAlive *uint16
	ResponseInfo    string
	ServerReference string
	AuthMethod      string
	// AuthData is nil when it is absent or empty.
	AuthData []byte
	// ReasonString is for people. At most 256 bytes of it are sent. A packet larger than the client's Maximum Packet
	// Size must not be made by it [MQTT-3.2.2-19]; the caller knows that size.
	ReasonString string
	User         []schema.UserProperty
}

// The return codes of MQTT 3.1.1 (table 3.1).
const (
	returnAccepted          = 0
	returnProtocolVersion   = 1
	returnIdentifier        = 2
	returnServerUnavailable = 3
	returnBadCredentials    = 4
	returnNotAuthorized     = 5
)

// returnCode maps a reason code to the return code of MQTT 3.1.1. It is false where none fits.
func returnCode(c ReasonCode) (byte, bool) {
	switch c {
	case Success:
		return returnAccepted, true
	case UnsupportedProtocolVersion:
		return returnProtocolVersion, true
	case ClientIdentifierNotValid:
		return returnIdentifier, true
	case UnspecifiedError, ImplementationSpecificError, ServerUnavailable, ServerBusy, ServerShuttingDown, QuotaExceeded,
		UseAnotherServer, ServerMoved, ConnectionRateExceeded:
		return returnServerUnavailable, true
	case BadUserNameOrPassword:
		return returnBadCredentials, true
	case NotAuthorized, Banned, BadAuthenticationMethod:
		return returnNotAuthorized, true
	}
	return 0, false
}

// reasonOf is the way back from a return code.
func reasonOf(code byte) (ReasonCode, bool) {
	switch code {
	case returnAccepted:
		return Success, true
	case returnProtocolVersion:
		return UnsupportedProtocolVersion, true
	case returnIdentifier:
		return ClientIdentifierNotValid, true
	case returnServerUnavailable:
		return ServerUnavailable, true
	case returnBadCredentials:
		return BadUserNameOrPassword, true
	case returnNotAuthorized:
		return NotAuthorized, true
	}
	return 0, false
}

// AppendConnack appends c and returns the longer slice.
//
// Below MQTT 5 the code is mapped to the return codes 0 to 5. Where none fits (malformed packets, protocol errors), it
// appends nothing: the connection is closed without an answer then [MQTT-3.2.2-6] (3.1.1). It appends nothing either for
// version 0, which is that of a peer that does not speak MQTT.
func AppendConnack(dst []byte, v Version, c *Connack) []byte {
	pk := packets.Packet{
		FixedHeader:     packets.FixedHeader{Type: packets.Connack},
		ProtocolVersion: byte(v),
		SessionPresent:  c.SessionPresent && c.Code == Success, // [MQTT-3.2.2-6]; [MQTT-3.2.2-4] of 3.1.1
		ReasonCode:      byte(c.Code),
	}
	if v != V5 {
		code, ok := returnCode(c.Code)
		if !ok || v == 0 {
			return dst
		}
		pk.ReasonCode = code
		return encode(dst, pk.ConnackEncode)
	}
	pk.Mods.AllowResponseInfo = true // the caller decides [MQTT-3.1.2-28]
	p := &pk.Properties
	if c.SessionExpiry != nil {
		p.SessionExpiryInterval, p.SessionExpiryIntervalFlag = *c.SessionExpiry, true
	}
	if c.MaximumQoS != nil {
		p.MaximumQos, p.MaximumQosFlag = *c.MaximumQoS, true
	}
	if c.ServerKeepAlive != nil {
		p.ServerKeepAlive, p.ServerKeepAliveFlag = *c.ServerKeepAlive, true
	}
	p.RetainAvailableFlag = c.RetainUnavailable
	p.WildcardSubAvailableFlag = c.WildcardUnavailable
	p.SubIDAvailableFlag = c.SubscriptionIDUnavailable
	p.SharedSubAvailableFlag = c.SharedUnavailable
	p.ReceiveMaximum, p.MaximumPacketSize, p.TopicAliasMaximum = c.ReceiveMaximum, c.MaximumPacketSize, c.TopicAliasMaximum
	p.AssignedClientID, p.ResponseInfo, p.ServerReference = c.AssignedClientID, c.ResponseInfo, c.ServerReference
	p.AuthenticationMethod, p.AuthenticationData = c.AuthMethod, c.AuthData
	p.ReasonString, p.User = reasonString(c.ReasonString), mochiUser(c.User)
	return encode(dst, pk.ConnackEncode)
}

func (r *Reader) decodeConnack(b *body) (Packet, *Error) {
	flags, code := b.byte("acknowledge flags"), b.byte("reason code")
	c := &Connack{SessionPresent: flags == 1, Code: ReasonCode(code)}
	if r.version == V5 {
		decodeConnackProperties(b, c)
	}
	b.end()
	switch {
	case b.err != nil:
	case flags > 1: // [MQTT-3.2.2-1]
		b.malformed("reserved acknowledge flags are set")
	case r.version != V5:
		var ok bool
		if c.Code, ok = reasonOf(code); !ok {
			b.protocolError("unknown return code")
		}
	case !connackCode(c.Code): // [MQTT-3.2.2-8]
		b.protocolError("reason code has no place in this packet")
	}
	if b.err == nil && c.SessionPresent && c.Code != Success { // [MQTT-3.2.2-6]
		b.protocolError("session present in a refusal")
	}
	return c, b.err
}

func decodeConnackProperties(b *body, c *Connack) {
	var p properties
	b.properties(CONNACK, true, &p)
	if p.has(packets.PropSessionExpiryInterval) {
		c.SessionExpiry = &p.sessionExpiry
	}
	if p.has(packets.PropMaximumQos) {
		qos := byte(0)
		if p.maximumQoS {
			qos = 1
		}
		c.MaximumQoS = &qos
	}
	if p.has(packets.PropServerKeepAlive) {
		c.ServerKeepAlive = &p.serverKeepAlive
	}
	c.RetainUnavailable = p.has(packets.PropRetainAvailable) && !p.retain
	c.WildcardUnavailable = p.has(packets.PropWildcardSubAvailable) && !p.wildcard
	c.SubscriptionIDUnavailable = p.has(packets.PropSubIDAvailable) && !p.subscriptionID
	c.SharedUnavailable = p.has(packets.PropSharedSubAvailable) && !p.shared
	c.ReceiveMaximum, c.MaximumPacketSize, c.TopicAliasMaximum = p.receiveMaximum, p.maximumPacketSize, p.topicAliasMaximum
	c.AssignedClientID, c.ResponseInfo, c.ServerReference = p.assignedClientID, p.responseInfo, p.serverReference
	c.AuthMethod, c.AuthData = p.authMethod, orNil(p.authData)
	c.ReasonString, c.User = p.reasonString, p.user
}

// connackCode reports whether table 3-1 lists the code.
func connackCode(c ReasonCode) bool {
	switch c {
	case Success, UnspecifiedError, MalformedPacket, ProtocolError, ImplementationSpecificError, UnsupportedProtocolVersion,
		ClientIdentifierNotValid, BadUserNameOrPassword, NotAuthorized, ServerUnavailable, ServerBusy, Banned,
		BadAuthenticationMethod, TopicNameInvalid, PacketTooLarge, QuotaExceeded, PayloadFormatInvalid,
		RetainNotSupported, QoSNotSupported, UseAnotherServer, ServerMoved, ConnectionRateExceeded:
		return true
	}
	return false
}
