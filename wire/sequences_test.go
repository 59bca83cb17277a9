package wire

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// sequenceGroup is a group of raw packet cases, as Eclipse Mosquitto's broker tests have them.
type sequenceGroup struct {
	Group            string
	Ver              Version
	Connect          *bool
	ExpectDisconnect *bool `json:"expect_disconnect"`
	Tests            []sequenceCase
}

type sequenceCase struct {
	Name             string
	Ver              Version
	Connect          *bool
	ExpectDisconnect *bool `json:"expect_disconnect"`
	Msgs             []struct {
		Type    string
		Payload json.RawMessage
	}
}

// sequenceOther are the cases that the reader answers otherwise than they expect, and why. Not listed here is a fault.
var sequenceOther = []struct {
	file, prefix string
	// accepted: the bytes alone are well-formed; else: another code.
	accepted bool
	why      string
}{
	{"CONNECT", "tiny max packet", true, "the broker refuses: no packet of its own would fit"},
	{"CONNECT", "unsupported authentication method", true, "the broker knows its methods"},
	{"PUBLISH", "34 QoS 2 Dup flow*3", true, "needs the state of the handshake"},
	{"PUBLISH", "topic alias > max topic alias", true, "needs the announced maximum"},
	{"PUBLISH", "topic-alias (two byte integer) no topic", true, "needs the alias table"},
	{"SUBSCRIBE", "82 invalid topic", true, "SUBACK answers 0x80 for the filter"},
	{"DISCONNECT", "E1 ", false, "[MQTT-3.14.1-1] demands 0x81, the case 0x82"},
	{"DISCONNECT", "E2 ", false, "[MQTT-3.14.1-1] demands 0x81, the case 0x82"},
	{"DISCONNECT", "E4 ", false, "[MQTT-3.14.1-1] demands 0x81, the case 0x82"},
	{"DISCONNECT", "E8 ", false, "[MQTT-3.14.1-1] demands 0x81, the case 0x82"},
}

// isControlCase tells the cases that the standard leaves open (section 1.5.4: a receiver may refuse control characters).
func isControlCase(name string) bool {
	for _, c := range []string{"U+0001", "U+001F", "U+007F", "U+009F", "0x0001", "0x001F", "0x007F", "0x009F"} {
		if strings.HasSuffix(name, " with "+c) {
			return true
		}
	}
	return false
}

// TestSequences feeds the client's bytes of each case to a Reader: where the broker has to close because of them the reader
// says so, with the code that is expected where one is, and everything else decodes.
func TestSequences(t *testing.T) {
	t.Parallel()
	dir := os.Getenv("REWINDMQ_MQTT_SEQUENCES")
	if dir == "" {
		t.Skip("REWINDMQ_MQTT_SEQUENCES is not set to the folder of raw packet cases")
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases in %s (%v)", dir, err)
	}
	used, total := make(map[string]int), 0
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var groups []sequenceGroup
		if err := json.Unmarshal(raw, &groups); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		name := strings.TrimSuffix(filepath.Base(file), ".json")
		for _, g := range groups {
			for _, c := range g.Tests {
				total++
				runSequence(t, name, g, c, used)
			}
		}
	}
	for _, o := range sequenceOther {
		if used[o.file+o.prefix] == 0 {
			t.Errorf("%s %q is listed as answered otherwise (%s), and is not", o.file, o.prefix, o.why)
		}
	}
	t.Logf("%d cases", total)
}

func runSequence(t *testing.T, file string, g sequenceGroup, c sequenceCase, used map[string]int) {
	t.Helper()
	in, code := sequenceInput(t, c)
	closes := firstOf(c.ExpectDisconnect, g.ExpectDisconnect)
	for _, refuse := range []bool{true, false} {
		r := NewReader(bytes.NewReader(in), ReaderOptions{RefuseControlCharacters: refuse})
		if firstOf(c.Connect, g.Connect) {
			r.SetVersion(cmp.Or(c.Ver, g.Ver, V311))
		}
		fault, left := drain(r)
		accepted := fault == nil && !left
		wrong := accepted == closes || fault != nil && code >= 0 && int(fault.Code) != code
		if !refuse && isControlCase(c.Name) {
			continue // TestStrings says what happens then
		}
		listed := false
		for _, o := range sequenceOther {
			if wrong && o.file == file && strings.HasPrefix(c.Name, o.prefix) && o.accepted == accepted {
				used[o.file+o.prefix]++
				listed = true
			}
		}
		if wrong && !listed {
			t.Errorf("%s %s %q: closes %v with code %#x, got %v (left %v)", file, g.Group, c.Name, closes, code, fault, left)
		}
	}
}

// drain reads to the end. It returns the fault that was found, and whether there was a DISCONNECT.
func drain(r *Reader) (fault *Error, left bool) {
	for {
		p, err := r.ReadPacket()
		if _, ok := p.(*Disconnect); ok {
			left = true
		}
		switch {
		case err == nil:
		case errors.As(err, &fault):
			return fault, left
		case errors.Is(err, io.EOF):
			return nil, left
		default:
			return malformed(err.Error()), left
		}
	}
}

// sequenceInput returns what the client sends, and the reason code that is expected, or -1.
func sequenceInput(t *testing.T, c sequenceCase) (in []byte, code int) {
	t.Helper()
	code = -1
	for _, m := range c.Msgs {
		if m.Type != "send" && m.Type != "recv" {
			continue
		}
		var payload string
		if err := json.Unmarshal(m.Payload, &payload); err != nil {
			t.Fatalf("%s: %v", c.Name, err)
		}
		b := sequenceBytes(t, payload)
		switch {
		case m.Type == "send":
			in = append(in, b...)
		case b[0] == 0xe0 && len(b) > 2:
			code = int(b[2])
		case b[0] == 0x20 && b[3] != 0 && len(b) == 4:
			reason, _ := reasonOf(b[3])
			code = int(reason)
		case b[0] == 0x20 && b[3] != 0:
			code = int(b[3])
		}
	}
	return in, code
}

// sequenceBytes translates the notation of a payload.
func sequenceBytes(t *testing.T, s string) []byte {
	t.Helper()
	var out []byte
	for s = strings.TrimSpace(s); s != ""; s = strings.TrimSpace(s) {
		if s[0] == '\'' {
			text, rest, ok := strings.Cut(s[1:], "'")
			if !ok {
				t.Fatalf("payload %q: open quote", s)
			}
			out, s = append(out, text...), rest
			continue
		}
		word, rest, _ := strings.Cut(s, " ")
		if i := strings.IndexByte(word, '\''); i > 0 {
			word, rest = s[:i], s[i:]
		}
		s = rest
		if b, err := hex.DecodeString(word); err == nil {
			out = append(out, b...)
			continue
		}
		n, err := strconv.ParseUint(word[1:], 10, 32)
		if err != nil {
			t.Fatalf("payload word %q: %v", word, err)
		}
		switch word[0] {
		case 'i':
			out = append(out, byte(n))
		case 'k', 'm', 's', 'H':
			out = binary.BigEndian.AppendUint16(out, uint16(n))
		case 'L':
			out = binary.BigEndian.AppendUint32(out, uint32(n))
		case 'v', 'r':
			out = appendVarint(out, int(n))
		default:
			t.Fatalf("payload word %q", word)
		}
	}
	return out
}

// firstOf returns the innermost setting; the default is true.
func firstOf(settings ...*bool) bool {
	for _, s := range settings {
		if s != nil {
			return *s
		}
	}
	return true
}
