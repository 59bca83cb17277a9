package integration

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"rewindmq/wire"
)

// The raw packet cases of another broker's tests: what must be answered to which
// bytes. The folder is named by REWINDMQ_MQTT_SEQUENCES; its README tells the
// format.

type sequenceGroup struct {
	Group      string         `json:"group"`
	Ver        byte           `json:"ver"`
	Connect    *bool          `json:"connect"`
	Disconnect *bool          `json:"expect_disconnect"`
	Disable    bool           `json:"disable"`
	Tests      []sequenceCase `json:"tests"`
}

type sequenceCase struct {
	Name       string         `json:"name"`
	Ver        byte           `json:"ver"`
	Connect    *bool          `json:"connect"`
	Disconnect *bool          `json:"expect_disconnect"`
	Msgs       []sequenceStep `json:"msgs"`
}

type sequenceStep struct {
	Type    string `json:"type"`
	Payload string `json:"payload"`
	Topic   string `json:"topic"`
	QoS     byte   `json:"qos"`
	Retain  bool   `json:"retain"`
}

// choices are the cases in which this broker does something else on purpose, by
// group and name, with the reason. docs/CONFORMANCE.md tells them to users.
func choices() map[string]string {
	const (
		flags  = "[MQTT-3.14.1-1] names 0x81 for reserved flags of DISCONNECT"
		dollar = "topics that begin with $ are the server's own: 0x90 (3.1.1: close) for all of them"
		dup    = "a QoS 2 PUBLISH that is repeated before PUBREL gets PUBREC as often as it comes [MQTT-4.3.3-10]"
	)
	return map[string]string{
		"v5.0   DISCONNECT/E1 [MQTT-3.14.1-1]":                   flags,
		"v5.0   DISCONNECT/E2 [MQTT-3.14.1-1]":                   flags,
		"v5.0   DISCONNECT/E4 [MQTT-3.14.1-1]":                   flags,
		"v5.0   DISCONNECT/E8 [MQTT-3.14.1-1]":                   flags,
		"v3.1.1 PUBLISH/34 QoS 2 Dup flow*3":                     dup,
		"v5.0   PUBLISH/34 QoS 2 Dup flow*3":                     dup,
		"v3.1.1 PUBLISH/PUBLISH with $ topic":                    dollar,
		"v5.0   PUBLISH/PUBLISH with $ topic - uptime":           dollar,
		"v5.0   PUBLISH/PUBLISH with $ topic - connection":       dollar,
		"v5.0   PUBLISH/PUBLISH with $ topic - connection/state": dollar,
		"v5.0   PUBLISH/PUBLISH with $ topic - share":            dollar,
	}
}

// TestSequences runs every case. One that fails must be among the choices, and a
// choice must fail.
func TestSequences(t *testing.T) {
	dir := os.Getenv("REWINDMQ_MQTT_SEQUENCES")
	if dir == "" {
		t.Skip("REWINDMQ_MQTT_SEQUENCES names no folder: raw packet cases are skipped")
	}
	forEachStore(t, func(t *testing.T, s backend) {
		b := start(t, s)
		files, err := filepath.Glob(filepath.Join(dir, "*.json"))
		if err != nil || len(files) == 0 {
			t.Fatalf("no cases in %s: %v", dir, err)
		}
		known, met := choices(), 0
		if p, ok := b.open(transient(5, "sequences")).connack.prop(0x2a); ok && p.num == 0 {
			// [MQTT-4.8.2-1] need not hold where CONNACK says so.
			known["v3.1.1 SUBSCRIBE/82 $share ok"] = "no shared subscriptions on this store"
			known["v5.0   SUBSCRIBE/82 $share ok"] = "no shared subscriptions on this store"
		}
		for _, file := range files {
			for _, g := range readSequences(t, file) {
				for _, c := range g.Tests {
					name := g.Group + "/" + c.Name
					reason, choice := known[name]
					wait := 10 * time.Second
					if choice {
						wait = 300 * time.Millisecond
					}
					err := runSequence(t, b, g, c, wait)
					switch {
					case choice:
						met++
						if err == nil {
							t.Errorf("%s: passes, but is listed as a choice (%s)", name, reason)
						}
					case err != nil:
						t.Errorf("%s: %v", name, err)
					}
				}
			}
		}
		if met != len(known) {
			t.Errorf("%d of %d listed choices were met", met, len(known))
		}
	})
}

func readSequences(t *testing.T, file string) []sequenceGroup {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var groups []sequenceGroup
	if err := json.Unmarshal(raw, &groups); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	return slices.DeleteFunc(groups, func(g sequenceGroup) bool { return g.Disable })
}

// sequence is one case while it runs.
type sequence struct {
	nc  net.Conn
	r   *wire.Reader
	ver byte
	// wait bounds the wait for a packet. A case that is known to wait for what
	// never comes need not wait for long.
	wait time.Duration
	// early is a packet that came before the one that was waited for: an
	// acknowledgement and the client's own message may change places.
	early []wire.Packet
}

func pick[T any](fallback T, from ...*T) T {
	for _, f := range from {
		if f != nil {
			return *f
		}
	}
	return fallback
}

func runSequence(t *testing.T, b *broker, g sequenceGroup, c sequenceCase, wait time.Duration) error {
	ver := max(c.Ver, 0)
	if ver == 0 {
		if ver = g.Ver; ver == 0 {
			ver = 4
		}
	}
	nc, err := net.Dial("tcp", b.addr)
	if err != nil {
		return err
	}
	defer nc.Close()
	q := &sequence{nc: nc, ver: ver, wait: wait, r: sequenceReader(nc, ver)}
	if pick(true, c.Connect, g.Connect) {
		if err := q.send(plainConnect(ver, c.Name)); err != nil {
			return err
		}
		p, err := q.next()
		if ack, ok := p.(*wire.Connack); err != nil || !ok || ack.Code != wire.Success {
			return fmt.Errorf("CONNECT answered by %#v, %w", p, err)
		}
	}
	for i, m := range c.Msgs {
		if err := q.step(t, b, m); err != nil {
			return fmt.Errorf("step %d: %w", i+1, err)
		}
	}
	if pick(true, c.Disconnect, g.Disconnect) {
		return q.closed()
	}
	if err := q.send([]byte{kindPingreq << 4, 0}); err != nil {
		return err
	}
	p, err := q.next()
	if _, ok := p.(*wire.Pingresp); !ok {
		return fmt.Errorf("PINGREQ at the end answered by %#v, %w", p, err)
	}
	return nil
}

func sequenceReader(r io.Reader, ver byte) *wire.Reader {
	in := wire.NewReader(r, wire.ReaderOptions{FromServer: true})
	in.SetVersion(wire.Version(ver))
	return in
}

func plainConnect(ver byte, id string) []byte {
	return wire.AppendConnect(nil, &wire.Connect{
		Version: wire.Version(ver), ClientID: id, CleanStart: true, KeepAlive: 60, RequestProblemInfo: true,
	})
}

func (q *sequence) send(b []byte) error {
	_, err := q.nc.Write(b)
	return err
}

func (q *sequence) next() (wire.Packet, error) {
	if len(q.early) > 0 {
		p := q.early[0]
		q.early = q.early[1:]
		return p, nil
	}
	if err := q.nc.SetReadDeadline(time.Now().Add(q.wait)); err != nil {
		return nil, err
	}
	p, err := q.r.ReadPacket()
	switch p := p.(type) { // used again by the reader
	case *wire.Publish:
		own := *p
		return &own, err
	case *wire.Ack:
		own := *p
		return &own, err
	}
	return p, err
}

func (q *sequence) step(t *testing.T, b *broker, m sequenceStep) error {
	switch m.Type {
	case "send":
		return q.send(sequenceBytes(m.Payload))
	case "recv":
		return q.expect(sequenceBytes(m.Payload))
	case "publish", "external_publish":
		other := b.open(transient(4, "sequences-other"))
		other.publish(message{topic: m.Topic, payload: []byte(m.Payload), qos: m.QoS, retain: m.Retain})
		other.disconnect()
		return nil
	case "subscribe", "unsubscribe":
		v := wire.Version(q.ver)
		p := wire.AppendSubscribe(nil, v, &wire.Subscribe{PacketID: 1, Filters: []wire.Filter{{Topic: m.Topic, QoS: m.QoS}}})
		if m.Type == "unsubscribe" {
			p = wire.AppendUnsubscribe(nil, v, &wire.Unsubscribe{PacketID: 1, Filters: []string{m.Topic}})
		}
		if err := q.send(p); err != nil {
			return err
		}
		_, err := q.next()
		return err
	}
	t.Fatalf("unknown step %q", m.Type)
	return nil
}

// expect reads the packet given by its bytes; one other may come before it.
func (q *sequence) expect(raw []byte) error {
	ver := q.ver
	if raw[0] == kindConnack<<4 && raw[1] == 3 {
		ver = 5 // a level that nobody knows is refused in the form of MQTT 5
		q.r.SetVersion(wire.V5)
	}
	want, err := sequenceReader(bytes.NewReader(raw), ver).ReadPacket()
	if err != nil {
		return fmt.Errorf("the case's own packet % x: %w", raw, err)
	}
	got, err := q.next()
	if err != nil {
		return fmt.Errorf("%w, want % x", err, raw)
	}
	if meaning(got) == meaning(want) {
		return nil
	}
	second, err := q.next()
	if err != nil || meaning(second) != meaning(want) {
		return fmt.Errorf("got %s, then %s (%w), want %s", meaning(got), meaning(second), err, meaning(want))
	}
	q.early = append(q.early, got)
	return nil
}

// closed demands the end of the connection; a packet that tells why may come
// before it.
func (q *sequence) closed() error {
	p, err := q.next()
	switch why := p.(type) {
	case *wire.Disconnect:
		p, err = q.next()
	case *wire.Connack:
		if why.Code != wire.Success {
			p, err = q.next()
		}
	}
	var timeout net.Error
	if err == nil || errors.As(err, &timeout) && timeout.Timeout() {
		return fmt.Errorf("still open: %#v, %w", p, err)
	}
	return nil
}

// meaning compares packets where MQTT leaves freedom.
func meaning(p wire.Packet) string {
	switch p := p.(type) {
	case *wire.Connack:
		own := *p
		own.ReceiveMaximum, own.MaximumPacketSize, own.TopicAliasMaximum, own.ReasonString = 0, 0, 0, ""
		own.SharedUnavailable, own.WildcardUnavailable, own.SubscriptionIDUnavailable, own.RetainUnavailable = false, false, false, false
		own.AssignedClientID, own.ServerKeepAlive, own.SessionExpiry, own.MaximumQoS = "", nil, nil, nil
		return fmt.Sprintf("CONNACK %+v", own)
	case *wire.Ack:
		code := p.Code
		if code == wire.NoMatchingSubscribers {
			code = wire.Success
		}
		return fmt.Sprintf("%v %d %v", p.Type, p.ID, code)
	case *wire.Disconnect:
		return fmt.Sprintf("DISCONNECT %v", p.Code)
	case *wire.Publish:
		props := ""
		if p.Properties != nil {
			props = fmt.Sprintf("%+v", *p.Properties)
		}
		own := *p
		own.Properties = nil
		return fmt.Sprintf("PUBLISH %+v %s", own, props)
	case *wire.Suback:
		return fmt.Sprintf("SUBACK %d %v", p.PacketID, p.Codes)
	case *wire.Unsuback:
		return fmt.Sprintf("UNSUBACK %d %v", p.PacketID, p.Codes)
	}
	return fmt.Sprintf("%T", p)
}

// sequenceBytes reads the words of a payload.
func sequenceBytes(s string) []byte {
	var out []byte
	for _, w := range regexp.MustCompile(`'[^']*'|\S+`).FindAllString(s, -1) {
		n, err := strconv.ParseUint(w[1:], 10, 64)
		switch {
		case w[0] == '\'':
			out = append(out, strings.Trim(w, "'")...)
		case w[0] == 'i' && err == nil:
			out = append(out, byte(n))
		case strings.IndexByte("kmsH", w[0]) >= 0 && err == nil:
			out = binary.BigEndian.AppendUint16(out, uint16(n))
		case w[0] == 'L' && err == nil:
			out = binary.BigEndian.AppendUint32(out, uint32(n))
		case (w[0] == 'v' || w[0] == 'r') && err == nil:
			out = binary.AppendUvarint(out, n)
		default:
			b, err := hex.DecodeString(w)
			if err != nil {
				panic(fmt.Sprintf("word %q in %q", w, s))
			}
			out = append(out, b...)
		}
	}
	return out
}
