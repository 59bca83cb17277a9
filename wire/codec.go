package wire

import (
	"bytes"
	"strings"
	"unicode/utf8"

	"github.com/mochi-mqtt/server/v2/packets"

	"rewindmq/schema"
)

// encode lets mochi's codec append a packet to dst. The encoders fail only for packet identifier 0, and then nothing
// is appended.
func encode(dst []byte, packet func(*bytes.Buffer) error) []byte {
	buf := bytes.NewBuffer(dst)
	if err := packet(buf); err != nil {
		return dst
	}
	return buf.Bytes()
}

func mochiUser(user []schema.UserProperty) []packets.UserProperty {
	if len(user) == 0 {
		return nil
	}
	out := make([]packets.UserProperty, len(user))
	for i, u := range user {
		out[i] = packets.UserProperty{Key: u.Key, Val: u.Value}
	}
	return out
}

func mochiCodes(codes []ReasonCode) []byte {
	out := make([]byte, len(codes))
	for i, c := range codes {
		out[i] = byte(c)
	}
	return out
}

const maxReason = 256 // bytes of a reason string that are sent

// reasonString makes any text fit to be sent: whatever is in an error must not become our own malformed packet.
func reasonString(s string) string {
	s = strings.ReplaceAll(strings.ToValidUTF8(s, "?"), "\x00", "?")
	if len(s) <= maxReason {
		return s
	}
	cut := maxReason
	for !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut]
}
