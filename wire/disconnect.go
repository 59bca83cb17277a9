package wire

import (
	"encoding/binary"

	"github.com/mochi-mqtt/server/v2/packets"

	"rewindmq/schema"
)

// Disconnect is a DISCONNECT.
type Disconnect struct {
	// Code is Success (normal disconnection: no will) below MQTT 5, and where it is left out.
	Code ReasonCode

	// What follows is set in MQTT 5 only.

	// SessionExpiry is in seconds, when HasSessionExpiry. That it must not be other than 0 after it was 0 in CONNECT is not
	// judged here.
	SessionExpiry    uint32
	HasSessionExpiry bool
	Reason           string
	// ServerReference is what a server sends with UseAnotherServer and ServerMoved.
	ServerReference string
	User            []schema.UserProperty
}

func (r *Reader) decodeDisconnect(b *body) (Packet, *Error) {
	d := &Disconnect{}
	if r.version == V5 && len(b.buf) > 0 {
		d.Code = ReasonCode(b.byte("reason code"))
		if len(b.buf) > 0 {
			var p properties
			b.properties(DISCONNECT, r.fromServer, &p)
			d.SessionExpiry, d.HasSessionExpiry = p.sessionExpiry, p.has(packets.PropSessionExpiryInterval)
			d.Reason, d.ServerReference, d.User = p.reasonString, p.serverReference, p.user
		}
	}
	b.end()
	switch {
	case b.err != nil:
	case !disconnectCode(d.Code, r.fromServer): // [MQTT-3.14.2-1]
		b.protocolError("reason code has no place in this packet")
	case r.fromServer && d.HasSessionExpiry: // [MQTT-3.14.2-2]
		b.protocolError("session expiry interval from a server")
	}
	return d, b.err
}

// disconnectCode reports whether table 3-10 lists the code for the sender.
func disconnectCode(c ReasonCode, server bool) bool {
	switch c {
	case Success, UnspecifiedError, MalformedPacket, ProtocolError, ImplementationSpecificError, TopicNameInvalid,
		ReceiveMaximumExceeded, TopicAliasInvalid, PacketTooLarge, MessageRateTooHigh, QuotaExceeded,
		AdministrativeAction, PayloadFormatInvalid:
		return true
	case DisconnectWithWill:
		return !server
	case NotAuthorized, ServerBusy, ServerShuttingDown, KeepAliveTimeout, SessionTakenOver, TopicFilterInvalid,
		RetainNotSupported, QoSNotSupported, UseAnotherServer, ServerMoved, SharedSubscriptionsNotSupported,
		ConnectionRateExceeded, MaximumConnectTime, SubscriptionIdentifiersNotSupported,
		WildcardSubscriptionsNotSupported:
		return server
	}
	return false
}

// AppendDisconnect appends the DISCONNECT of a server. Below MQTT 5 there is none, and it appends nothing. The reason is
// for people; at most 256 bytes of it are sent, and none when it is empty. A code that the standard does not list for
// a server becomes UnspecifiedError.
func AppendDisconnect(dst []byte, v Version, code ReasonCode, reason string) []byte {
	if v != V5 {
		return dst
	}
	if !disconnectCode(code, true) { // [MQTT-3.14.2-1]
		code = UnspecifiedError
	}
	if reason == "" { // in its shortest form (sections 3.14.2.1 and 3.14.2.2.1)
		if code == Success {
			return append(dst, byte(DISCONNECT)<<4, 0)
		}
		return append(dst, byte(DISCONNECT)<<4, 1, byte(code))
	}
	pk := packets.Packet{
		FixedHeader:     packets.FixedHeader{Type: packets.Disconnect},
		ProtocolVersion: byte(v),
		ReasonCode:      byte(code),
	}
	pk.Properties.ReasonString = reasonString(reason)
	return encode(dst, pk.DisconnectEncode)
}

// AppendRedirect appends a DISCONNECT with the Server Reference of another server, for UseAnotherServer and ServerMoved. Below
// MQTT 5 it appends nothing. That the reference has at most 65,535 bytes is the caller's duty.
func AppendRedirect(dst []byte, v Version, code ReasonCode, reference string) []byte {
	if v != V5 {
		return dst
	}
	section := appendString([]byte{packets.PropServerReference}, reference)
	size := 1 + varintSize(len(section)) + len(section)
	dst = append(appendVarint(append(dst, byte(DISCONNECT)<<4), size), byte(code))
	return appendSection(dst, section)
}

// AppendClientDisconnect appends d, as a client would send it, and returns the longer slice. Below MQTT 5 it has no
// content. That each string has at most 65,535 bytes is the caller's duty.
func AppendClientDisconnect(dst []byte, v Version, d *Disconnect) []byte {
	var b []byte
	if v == V5 {
		var section []byte
		if d.HasSessionExpiry {
			section = binary.BigEndian.AppendUint32(append(section, packets.PropSessionExpiryInterval), d.SessionExpiry)
		}
		if d.Reason != "" {
			section = appendString(append(section, packets.PropReasonString), d.Reason)
		}
		if d.ServerReference != "" {
			section = appendString(append(section, packets.PropServerReference), d.ServerReference)
		}
		for _, u := range d.User {
			section = appendString(appendString(append(section, packets.PropUser), u.Key), u.Value)
		}
		if d.Code != Success || len(section) > 0 {
			b = append(b, byte(d.Code))
		}
		if len(section) > 0 {
			b = appendSection(b, section)
		}
	}
	return append(appendVarint(append(dst, byte(DISCONNECT)<<4), len(b)), b...)
}
