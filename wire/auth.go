package wire

import (
	"github.com/mochi-mqtt/server/v2/packets"

	"rewindmq/schema"
)

// Auth is an AUTH. It exists in MQTT 5 only.
type Auth struct {
	// Code is Success, ContinueAuthentication or ReAuthenticate.
	Code   ReasonCode
	Method string
	// Data is nil when it is absent or empty.
	Data   []byte
	Reason string
	User   []schema.UserProperty
}

func (r *Reader) decodeAuth(b *body) (Packet, *Error) {
	a := &Auth{}
	if len(b.buf) > 0 {
		a.Code = ReasonCode(b.byte("reason code"))
	}
	if len(b.buf) > 0 {
		var p properties
		b.properties(AUTH, r.fromServer, &p)
		a.Method, a.Data, a.Reason, a.User = p.authMethod, orNil(p.authData), p.reasonString, p.user
	}
	b.end()
	if b.err == nil && a.Code != Success && a.Code != ContinueAuthentication && a.Code != ReAuthenticate {
		b.protocolError("reason code has no place in this packet") // [MQTT-3.15.2-1]
	}
	return a, b.err
}

// AppendAuth appends a and returns the longer slice. That each string has at most 65,535 bytes is the caller's duty, but
// for Reason, of which at most 256 are sent.
func AppendAuth(dst []byte, a *Auth) []byte {
	pk := packets.Packet{
		FixedHeader:     packets.FixedHeader{Type: packets.Auth},
		ProtocolVersion: byte(V5),
		ReasonCode:      byte(a.Code),
	}
	pk.Properties.AuthenticationMethod, pk.Properties.AuthenticationData = a.Method, a.Data
	pk.Properties.ReasonString, pk.Properties.User = reasonString(a.Reason), mochiUser(a.User)
	return encode(dst, pk.AuthEncode)
}
