package wire

import (
	"bytes"
	"encoding/hex"
	"errors"
	"strings"
	"testing"

	"github.com/mochi-mqtt/server/v2/packets"
)

// raw translates hexadecimal digits, with blanks anywhere.
func raw(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatalf("%q: %v", s, err)
	}
	return b
}

// readOne reads one packet. Version 0 is a connection before CONNECT.
func readOne(v Version, in []byte, o ReaderOptions) (Packet, error) {
	r := NewReader(bytes.NewReader(in), o)
	r.SetVersion(v)
	return r.ReadPacket()
}

// wantFault checks that in is refused with the code.
func wantFault(t *testing.T, v Version, in []byte, o ReaderOptions, code ReasonCode) {
	t.Helper()
	p, err := readOne(v, in, o)
	var fault *Error
	if !errors.As(err, &fault) {
		t.Fatalf("got %#v, %v; want an Error with %s", p, err, code)
	}
	if fault.Code != code {
		t.Fatalf("got %s (%v), want %s", fault.Code, fault, code)
	}
	if fault.Packet != PacketType(in[0]>>4) {
		t.Fatalf("got packet type %s, want that of %#x", fault.Packet, in[0])
	}
	if len(in) > 0 && fault.Err == nil {
		t.Fatal("no details")
	}
}

// TestCodecFaults holds the known faults of mochi's decoder, each with an input that shows it.
func TestCodecFaults(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		v    Version
		in   string
		code ReasonCode
	}{
		{"truncated v5 SUBSCRIBE panics", V5, "82 06 0001 00 0001 61", MalformedPacket},
		{"U+0000 in a topic", V311, "30 05 0003 610062", MalformedPacket},                                 // [MQTT-1.5.4-2]
		{"invalid UTF-8 in a topic", V311, "30 04 0002 c328", MalformedPacket},                            // [MQTT-1.5.4-1] [MQTT-3.3.2-1]
		{"surrogate in a topic", V311, "30 05 0003 eda080", MalformedPacket},                              // [MQTT-1.5.4-1]
		{"overlong UTF-8 in a topic", V311, "30 04 0002 c080", MalformedPacket},                           // [MQTT-1.5.4-1]
		{"U+0000 in a user name", 0, "10 11 0004 4d515454 04 82 0000 0001 61 0002 6100", MalformedPacket}, // [MQTT-3.1.3-12]
		{"duplicated property", V5, "30 0e 0001 61 0a 02 00000001 02 00000001", ProtocolError},
		{"truncated property", V5, "30 07 0001 61 03 02 0000", MalformedPacket},
		{"property without value", V5, "30 05 0001 61 01 02", MalformedPacket},
		{"property longer than its section", V5, "30 08 0001 61 02 0300 0161", MalformedPacket},
		{"reserved subscription option bits", V5, "82 07 0001 00 0001 61 40", MalformedPacket}, // [MQTT-3.8.3-5]
		{"reserved bits of 3.1.1's QoS byte", V311, "82 06 0001 0001 61 04", MalformedPacket},  // [MQTT-3.8.3-4] of 3.1.1
		{"retain handling 3", V5, "82 07 0001 00 0001 61 30", MalformedPacket},
		{"payload format 2", V5, "30 06 0001 61 02 01 02", ProtocolError},
		{"empty filter in SUBSCRIBE", V5, "82 06 0001 00 0000 00", MalformedPacket}, // [MQTT-4.7.3-1]
		{"empty filter in UNSUBSCRIBE", V311, "a2 04 0001 0000", MalformedPacket},   // [MQTT-4.7.3-1]
		{"bytes behind a CONNECT", 0, "10 0e 0004 4d515454 04 02 0000 0001 61 00", MalformedPacket},
		{"bytes behind a DISCONNECT", V5, "e0 03 00 00 00", MalformedPacket},
		{"bytes behind a PUBACK", V311, "40 03 0001 00", MalformedPacket},
		{"five-byte subscription identifier", V5, "82 0d 0001 06 0b 8080808001 0001 61 00", MalformedPacket},
		{"subscription identifier with padding", V5, "82 0a 0001 03 0b 8000 0001 61 00", MalformedPacket}, // [MQTT-1.5.5-1]
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			wantFault(t, c.v, raw(t, c.in), ReaderOptions{}, c.code)
		})
	}

	t.Run("the panic is mochi's", func(t *testing.T) {
		t.Parallel()
		defer func() {
			if recover() == nil {
				t.Error("mochi's decoder does not panic any more: its place in the package comment can go")
			}
		}()
		pk := packets.Packet{ProtocolVersion: 5}
		_ = pk.SubscribeDecode(raw(t, "0001 00 0001 61"))
	})
	t.Run("DISCONNECT of length 1 keeps its code", func(t *testing.T) {
		t.Parallel()
		p, err := readOne(V5, raw(t, "e0 01 04"), ReaderOptions{})
		if d, ok := p.(*Disconnect); err != nil || !ok || d.Code != DisconnectWithWill {
			t.Fatalf("got %#v, %v", p, err)
		}
	})
	t.Run("will without payload", func(t *testing.T) {
		t.Parallel()
		p, err := readOne(0, raw(t, "10 12 0004 4d515454 04 26 0000 0001 61 0001 77 0000"), ReaderOptions{})
		c, ok := p.(*Connect)
		if err != nil || !ok || c.Will == nil || c.Will.Topic != "w" || len(c.Will.Payload) != 0 || !c.Will.Retain {
			t.Fatalf("got %#v, %v", p, err)
		}
	})
}

// TestMalformed walks through the rules that the reader judges, packet by packet.
func TestMalformed(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		v    Version
		in   string
		code ReasonCode
	}{
		// Fixed header.
		{"type 0", V5, "00 00", ProtocolError},
		{"AUTH before MQTT 5", V311, "f0 00", ProtocolError},
		{"first packet is no CONNECT", 0, "c0 00", ProtocolError},                          // [MQTT-3.1.0-1]
		{"second CONNECT", V5, "10 0e 0004 4d515454 05 02 0000 00 0001 61", ProtocolError}, // [MQTT-3.1.0-2]
		{"CONNACK from a client", V5, "20 03 000000", ProtocolError},
		{"SUBACK from a client", V311, "90 03 000100", ProtocolError},
		{"UNSUBACK from a client", V311, "b0 02 0001", ProtocolError},
		{"PINGRESP from a client", V311, "d0 00", ProtocolError},
		{"remaining length of five bytes", V311, "c0 80808080 01", MalformedPacket},
		{"padded remaining length", V5, "c0 8000", MalformedPacket},                        // [MQTT-1.5.5-1]
		{"flags of CONNECT", 0, "11 0d 0004 4d515454 04 02 0000 0001 61", MalformedPacket}, // [MQTT-2.1.3-1]
		{"flags of PUBACK", V311, "42 02 0001", MalformedPacket},                           // [MQTT-2.1.3-1]
		{"flags of PUBREL", V311, "60 02 0001", MalformedPacket},                           // [MQTT-3.6.1-1]
		{"flags of SUBSCRIBE", V311, "80 06 0001 0001 61 00", MalformedPacket},             // [MQTT-3.8.1-1]
		{"flags of UNSUBSCRIBE", V311, "a0 05 0001 0001 61", MalformedPacket},              // [MQTT-3.10.1-1]
		{"flags of PINGREQ", V5, "c1 00", MalformedPacket},
		{"flags of DISCONNECT", V5, "e1 00", MalformedPacket}, // [MQTT-3.14.1-1]
		{"flags of AUTH", V5, "f2 00", MalformedPacket},       // [MQTT-3.15.1-1]
		{"PINGREQ with content", V5, "c0 01 00", MalformedPacket},

		// CONNECT.
		{"protocol name", 0, "10 0d 0004 4d515455 04 02 0000 0001 61", UnsupportedProtocolVersion},   // [MQTT-3.1.2-1]
		{"protocol level", 0, "10 0d 0004 4d515454 06 02 0000 0001 61", UnsupportedProtocolVersion},  // [MQTT-3.1.2-2]
		{"reserved connect flag", 0, "10 0d 0004 4d515454 04 03 0000 0001 61", MalformedPacket},      // [MQTT-3.1.2-3]
		{"will QoS without will", 0, "10 0d 0004 4d515454 04 0a 0000 0001 61", MalformedPacket},      // [MQTT-3.1.2-11]
		{"will QoS 3", 0, "10 13 0004 4d515454 04 1e 0000 0001 61 0001 77 0001 70", MalformedPacket}, // [MQTT-3.1.2-12]
		{"will retain without will", 0, "10 0d 0004 4d515454 04 22 0000 0001 61", MalformedPacket},   // [MQTT-3.1.2-13]
		{"will flag without will", 0, "10 0d 0004 4d515454 04 06 0000 0001 61", MalformedPacket},     // [MQTT-3.1.2-9]
		{"wildcard in will topic", 0, "10 13 0004 4d515454 04 06 0000 0001 61 0001 23 0001 70", MalformedPacket},
		{"no user name", 0, "10 0d 0004 4d515454 04 82 0000 0001 61", MalformedPacket},                            // [MQTT-3.1.2-17]
		{"no password", 0, "10 10 0004 4d515454 04 c2 0000 0001 61 0001 75", MalformedPacket},                     // [MQTT-3.1.2-19]
		{"surplus user name", 0, "10 10 0004 4d515454 04 02 0000 0001 61 0001 75", MalformedPacket},               // [MQTT-3.1.2-16]
		{"password alone in 3.1.1", 0, "10 10 0004 4d515454 04 42 0000 0001 61 0001 70", MalformedPacket},         // [MQTT-3.1.2-22] of 3.1.1
		{"no client id, 3.1.1, session kept", 0, "10 0c 0004 4d515454 04 00 0000 0000", ClientIdentifierNotValid}, // [MQTT-3.1.3-8] of 3.1.1
		{"no client id, 3.1", 0, "10 0e 0006 4d5149736470 03 02 0000 0000", ClientIdentifierNotValid},
		{"NUL in client id, 3.1.1", 0, "10 0e 0004 4d515454 04 02 0000 0002 6100", MalformedPacket},         // [MQTT-3.1.3-4]
		{"NUL in client id, 5", 0, "10 0f 0004 4d515454 05 02 0000 00 0002 6100", ClientIdentifierNotValid}, // [MQTT-3.1.3-4]
		{"receive maximum 0", 0, "10 11 0004 4d515454 05 02 0000 03 21 0000 0001 61", ProtocolError},
		{"maximum packet size 0", 0, "10 13 0004 4d515454 05 02 0000 05 27 00000000 0001 61", ProtocolError},
		{"request problem information 2", 0, "10 10 0004 4d515454 05 02 0000 02 17 02 0001 61", ProtocolError},
		{"authentication data alone", 0, "10 12 0004 4d515454 05 02 0000 04 16 0001 64 0001 61", ProtocolError},
		{"will payload is not UTF-8", 0, "10 17 0004 4d515454 05 06 0000 00 0001 61 02 01 01 0001 77 0001 ff", PayloadFormatInvalid},
		{"will delay in CONNECT's own properties", 0, "10 13 0004 4d515454 05 02 0000 05 18 00000001 0001 61", ProtocolError},

		// PUBLISH.
		{"QoS 3", V311, "36 05 0001 61 0001", MalformedPacket},              // [MQTT-3.3.1-4]
		{"DUP with QoS 0", V311, "38 03 0001 61", MalformedPacket},          // [MQTT-3.3.1-2]
		{"packet identifier 0", V311, "32 05 0001 61 0000", ProtocolError},  // [MQTT-2.2.1-3]
		{"no packet identifier", V311, "32 04 0001 61 00", MalformedPacket}, // [MQTT-2.2.1-3]
		{"topic longer than the packet", V311, "30 03 0002 61", MalformedPacket},
		{"no topic", V311, "30 02 0000", MalformedPacket}, // [MQTT-4.7.3-1]
		{"no topic and no alias", V5, "30 03 0000 00", MalformedPacket},
		{"wildcard #", V311, "30 05 0003 612f23", MalformedPacket},                         // [MQTT-3.3.2-2]
		{"wildcard +", V5, "30 04 0001 2b 00", MalformedPacket},                            // [MQTT-3.3.2-2] [MQTT-4.7.0-1]
		{"topic alias 0", V5, "30 07 0001 61 03 23 0000", TopicAliasInvalid},               // [MQTT-3.3.2-8]
		{"subscription identifier", V5, "30 06 0001 61 02 0b 01", ProtocolError},           // [MQTT-3.3.4-6]
		{"response topic with wildcard", V5, "30 08 0001 61 04 08 0001 2b", ProtocolError}, // [MQTT-3.3.2-14]
		{"response topic empty", V5, "30 07 0001 61 03 08 0000", ProtocolError},
		{"no property length", V5, "30 03 0001 61", MalformedPacket},
		{"properties longer than the packet", V5, "30 04 0001 61 05", MalformedPacket},
		{"unknown property", V5, "30 06 0001 61 02 04 01", MalformedPacket},
		{"property of CONNECT", V5, "30 09 0001 61 05 11 00000001", ProtocolError},
		{"invalid UTF-8 in a user property", V5, "30 0b 0001 61 07 26 0001 61 0001 ff", MalformedPacket},

		// Acks.
		{"ack without identifier", V5, "40 01 00", MalformedPacket},
		{"ack with identifier 0", V5, "50 02 0000", ProtocolError},          // [MQTT-2.2.1-3]
		{"PUBACK with unknown code", V5, "40 03 0001 ff", ProtocolError},    // [MQTT-3.4.2-1]
		{"PUBREC with code of PUBREL", V5, "50 03 0001 92", ProtocolError},  // [MQTT-3.5.2-1]
		{"PUBREL with code of PUBACK", V5, "62 03 0001 80", ProtocolError},  // [MQTT-3.6.2-1]
		{"PUBCOMP with code of PUBACK", V5, "70 03 0001 10", ProtocolError}, // [MQTT-3.7.2-1]
		{"ack with reason string twice", V5, "40 0c 0001 00 08 1f 0001 61 1f 0001 61", ProtocolError},

		// SUBSCRIBE and UNSUBSCRIBE.
		{"no filter", V311, "82 02 0001", MalformedPacket}, // [MQTT-3.8.3-2]
		{"no options", V311, "82 05 0001 0001 61", MalformedPacket},
		{"QoS 3 for a filter", V311, "82 06 0001 0001 61 03", MalformedPacket},                    // [MQTT-3.8.3-4]
		{"identifier 0", V311, "82 06 0000 0001 61 00", MalformedPacket},                          // [MQTT-2.2.1-3]
		{"filter is not UTF-8", V311, "82 06 0001 0001 ff 00", MalformedPacket},                   // [MQTT-3.8.3-1]
		{"no local and shared", V5, "82 10 0001 00 000a 247368617265 2f672f61 04", ProtocolError}, // [MQTT-3.8.3-4]
		{"subscription identifier 0", V5, "82 09 0001 02 0b 00 0001 61 00", ProtocolError},
		{"two subscription identifiers", V5, "82 0b 0001 04 0b 01 0b 02 0001 61 00", ProtocolError},
		{"property of PUBLISH", V5, "82 09 0001 02 01 00 0001 61 00", MalformedPacket},
		{"nothing to unsubscribe", V5, "a2 03 0001 00", MalformedPacket},        // [MQTT-3.10.3-2]
		{"unsubscribe, not UTF-8", V311, "a2 05 0001 0001 ff", MalformedPacket}, // [MQTT-3.10.3-1]

		// DISCONNECT and AUTH.
		{"DISCONNECT with unknown code", V5, "e0 01 01", ProtocolError},    // [MQTT-3.14.2-1]
		{"DISCONNECT with a server's code", V5, "e0 01 8e", ProtocolError}, // [MQTT-3.14.2-1]
		{"DISCONNECT with content in 3.1.1", V311, "e0 01 00", MalformedPacket},
		{"DISCONNECT with session expiry twice", V5, "e0 0c 00 0a 11 00000000 11 00000000", ProtocolError},
		{"AUTH with unknown code", V5, "f0 01 01", ProtocolError}, // [MQTT-3.15.2-1]
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			wantFault(t, c.v, raw(t, c.in), ReaderOptions{}, c.code)
		})
	}
}

// TestMalformedFromServer holds the rules for what only a server sends.
func TestMalformedFromServer(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		v    Version
		in   string
		code ReasonCode
	}{
		{"CONNECT", V5, "10 00", ProtocolError},
		{"SUBSCRIBE", V5, "82 00", ProtocolError},
		{"DISCONNECT before MQTT 5", V311, "e0 00", ProtocolError},
		{"DISCONNECT with session expiry", V5, "e0 07 00 05 11 00000001", ProtocolError}, // [MQTT-3.14.2-2]
		{"DISCONNECT with a client's code", V5, "e0 01 04", ProtocolError},
		{"CONNACK with reserved flags", V311, "20 02 02 00", MalformedPacket},     // [MQTT-3.2.2-1]
		{"CONNACK with session in a refusal", V311, "20 02 01 05", ProtocolError}, // [MQTT-3.2.2-6]
		{"CONNACK with unknown return code", V311, "20 02 00 06", ProtocolError},
		{"CONNACK with unknown code", V5, "20 03 00 01 00", ProtocolError}, // [MQTT-3.2.2-8]
		{"CONNACK with maximum QoS 2", V5, "20 05 00 00 02 24 02", ProtocolError},
		{"CONNACK with bytes behind", V5, "20 04 00 00 00 00", MalformedPacket},
		{"SUBACK with unknown code", V311, "90 03 0001 03", ProtocolError}, // [MQTT-3.9.3-2]
		{"SUBACK with a code of MQTT 5", V311, "90 03 0001 87", ProtocolError},
		{"UNSUBACK with unknown code", V5, "b0 04 0001 00 01", ProtocolError}, // [MQTT-3.11.3-2]
		{"UNSUBACK with content in 3.1.1", V311, "b0 03 0001 00", MalformedPacket},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			wantFault(t, c.v, raw(t, c.in), ReaderOptions{FromServer: true}, c.code)
		})
	}
}

// TestRefusedVersion checks in which version a refused CONNECT is answered, and with which bytes.
func TestRefusedVersion(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, in, connack string
		v                 Version
	}{
		{"MQTT 2", "10 0d 0004 4d515454 02 02 0000 0001 61", "20 03 00 84 00", V5},
		{"MQTT 6", "10 0d 0004 4d515454 06 02 0000 0001 61", "20 03 00 84 00", V5},
		{"MQTT 3", "10 0d 0004 4d515454 03 02 0000 0001 61", "20 02 00 01", V311},
		{"MQIsdp 4", "10 0f 0006 4d5149736470 04 02 0000 0001 61", "20 02 00 01", V311},
		{"a bridge of Mosquitto", "10 0d 0004 4d515454 84 02 0000 0001 61", "20 02 00 01", V311},
		{"not MQTT", "10 0d 0004 48545450 04 02 0000 0001 61", "", 0},
		{"no client id", "10 0c 0004 4d515454 04 00 0000 0000", "20 02 00 02", V311},
		{"malformed in 3.1.1", "10 0d 0004 4d515454 04 82 0000 0001 61", "", V311}, // closed without an answer
		{"malformed in 5", "10 0e 0004 4d515454 05 82 0000 00 0001 61", "20 03 00 81 00", V5},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := NewReader(bytes.NewReader(raw(t, c.in)), ReaderOptions{})
			_, err := r.ReadPacket()
			var fault *Error
			if !errors.As(err, &fault) {
				t.Fatalf("got %v", err)
			}
			if r.Version() != c.v {
				t.Errorf("version %s, want %s", r.Version(), c.v)
			}
			if got := AppendConnack(nil, r.Version(), &Connack{Code: fault.Code}); !bytes.Equal(got, raw(t, c.connack)) {
				t.Errorf("CONNACK % x, want %s", got, c.connack)
			}
		})
	}
}

// TestV31 holds what 3.1 allows and later versions do not.
func TestV31(t *testing.T) {
	t.Parallel()
	for name, in := range map[string]string{
		"header flags":         "14 0f 0006 4d5149736470 03 02 0000 0001 61",
		"reserved flag":        "10 0f 0006 4d5149736470 03 01 0000 0001 61",
		"user name is missing": "10 0f 0006 4d5149736470 03 c2 0000 0001 61",
	} {
		p, err := readOne(0, raw(t, in), ReaderOptions{})
		if c, ok := p.(*Connect); err != nil || !ok || c.Version != V31 || c.ClientID != "a" || c.HasUsername || c.HasPassword {
			t.Errorf("%s: got %#v, %v", name, p, err)
		}
	}
	if p, err := readOne(V31, raw(t, "6a 02 0001"), ReaderOptions{}); err != nil { // PUBREL with DUP
		t.Errorf("got %#v, %v", p, err)
	}
}

// TestStrings checks that strings come out as they went in [MQTT-1.5.4-3], and what RefuseControlCharacters does.
func TestStrings(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		s       string
		control bool
	}{
		{"a/b", false},
		{"\ufeffa", false}, // U+FEFF stays [MQTT-1.5.4-3]
		{"/", false},
		{"a//b ", false},
		{"é", false},
		{"e\u0301", false}, // not normalised
		{"A\U0002a6d4", false},
		{"\x01", true},
		{"a\x1fb", true},
		{"\x7f", true},
		{"\u009f", true},
		{"\uffff", true},
		{"\ufdd0", true},
		{"\U0010fffe", true},
	} {
		in := AppendPublish(nil, V311, &Publish{Topic: c.s})
		p, err := readOne(V311, in, ReaderOptions{})
		if pub, ok := p.(*Publish); err != nil || !ok || pub.Topic != c.s {
			t.Errorf("%+q: got %#v, %v", c.s, p, err)
		}
		if _, err = readOne(V311, in, ReaderOptions{RefuseControlCharacters: true}); (err != nil) != c.control {
			t.Errorf("%+q: with control characters refused: %v", c.s, err)
		}
	}
}

// TestFiltersAreNotJudged: an invalid filter is answered in SUBACK, for itself.
func TestFiltersAreNotJudged(t *testing.T) {
	t.Parallel()
	want := []Filter{{Topic: "ab/+e", QoS: 1}, {Topic: "#/a"}, {Topic: "$share/g"}, {Topic: "ok", QoS: 2}}
	p, err := readOne(V311, AppendSubscribe(nil, V311, &Subscribe{PacketID: 1, Filters: want}), ReaderOptions{})
	s, ok := p.(*Subscribe)
	if err != nil || !ok || len(s.Filters) != len(want) {
		t.Fatalf("got %#v, %v", p, err)
	}
	for i := range want {
		if s.Filters[i] != want[i] {
			t.Errorf("filter %d: got %+v, want %+v", i, s.Filters[i], want[i])
		}
	}
}

func TestCheckPayload(t *testing.T) {
	t.Parallel()
	p, err := readOne(V5, raw(t, "30 07 0001 61 02 01 01 ff"), ReaderOptions{})
	pub, ok := p.(*Publish)
	if err != nil || !ok {
		t.Fatalf("got %#v, %v", p, err)
	}
	var fault *Error
	if !errors.As(pub.CheckPayload(), &fault) || fault.Code != PayloadFormatInvalid {
		t.Errorf("got %v", pub.CheckPayload())
	}
	for _, in := range []string{"30 08 0001 61 02 01 01 c3a9", "30 07 0001 61 02 01 00 ff", "30 05 0001 61 00 ff"} {
		p, err := readOne(V5, raw(t, in), ReaderOptions{})
		if pub, ok := p.(*Publish); err != nil || !ok || pub.CheckPayload() != nil {
			t.Errorf("%s: got %#v, %v", in, p, err)
		}
	}
}
