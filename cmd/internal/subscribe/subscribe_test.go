package subscribe

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"
	"go.uber.org/goleak"

	"rewindmq/cmd/internal/exit"
	"rewindmq/cmd/internal/link"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// output is a standard output that can be read meanwhile, and that can fail.
type output struct {
	mu    sync.Mutex
	b     bytes.Buffer
	fails bool
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.fails {
		return 0, errors.New("the pipe is closed")
	}
	return o.b.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

func options(t *testing.T, s *server, count int64) Options {
	t.Helper()
	format, err := NewFormat("text", false)
	if err != nil {
		t.Fatal(err)
	}
	return Options{
		Link: link.Options{Addr: s.ln.Addr().String(), ClientID: "sub"}, Filters: []string{"dev/#"}, QoS: 2,
		Persistent: true, Expiry: 0xFFFFFFFF, Count: count, Wait: 20 * time.Second, ConnectWait: 10 * time.Second, Format: format,
	}
}

func rows(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "row-%d\n", i+1)
	}
	return b.String()
}

// A connection that is cut at any point of the QoS 2 handshake: each message is written once, in order, and before it
// is acknowledged [MQTT-4.3.3-10], [MQTT-4.3.3-11].
func TestQoS2CutAnywhere(t *testing.T) {
	t.Parallel()
	const n = 10
	for _, point := range points {
		for nth := 1; nth <= n; nth++ {
			if nth > 1 && (point == "connect" || point == "subscribe" || point == "suback" || point == "disconnect") {
				continue
			}
			t.Run(fmt.Sprintf("%s-%d", point, nth), func(t *testing.T) {
				t.Parallel()
				s := newServer(t, 2, n)
				seen := 0
				s.cut = func(at string) bool {
					if at == point {
						seen++
					}
					return at == point && seen == nth
				}
				var out output
				s.written = out.String
				if err := Run(t.Context(), &out, options(t, s, n)); err != nil {
					t.Fatal(err)
				}
				if got := out.String(); got != rows(n) {
					t.Errorf("got %q", got)
				}
			})
		}
	}
}

func TestQoS2CutOften(t *testing.T) {
	t.Parallel()
	for seed := range uint64(20) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			s := newServer(t, 2, 200)
			dice := rand.New(rand.NewPCG(seed, 2))
			s.window = 1 + dice.IntN(4)
			cuts := 0
			s.cut = func(string) bool {
				if cuts < 8 && dice.IntN(40) == 0 {
					cuts++
					return true
				}
				return false
			}
			var out output
			s.written = out.String
			if err := Run(t.Context(), &out, options(t, s, 200)); err != nil {
				t.Fatal(err)
			}
			if got := out.String(); got != rows(200) {
				t.Errorf("seed %d after %d cuts: got %q", seed, cuts, got)
			}
		})
	}
}

// At QoS 1 nothing is left out, and every acknowledged message had been written.
func TestQoS1CutAnywhere(t *testing.T) {
	t.Parallel()
	for _, point := range []string{"publish", "ack", "acked"} {
		for nth := 1; nth <= 5; nth++ {
			t.Run(fmt.Sprintf("%s-%d", point, nth), func(t *testing.T) {
				t.Parallel()
				s := newServer(t, 1, 10)
				seen := 0
				s.cut = func(at string) bool {
					if at == point {
						seen++
					}
					return at == point && seen == nth
				}
				var out output
				s.written = out.String
				ctx, cancel := context.WithCancel(t.Context())
				go func() { // ends when everything was written, however often
					for !strings.Contains(out.String(), "row-10\n") && ctx.Err() == nil {
						<-time.After(time.Millisecond)
					}
					cancel()
				}()
				err := Run(ctx, &out, options(t, s, 0))
				cancel()
				if err != nil {
					t.Fatal(err)
				}
				for row := range strings.Lines(rows(10)) {
					if !strings.Contains(out.String(), row) {
						t.Errorf("%q is missing in %q", row, out.String())
					}
				}
			})
		}
	}
}

// Runs of a client that stops after a few messages each, by -C or by a signal: together they have each message once.
func TestRestarts(t *testing.T) {
	t.Parallel()
	s := newServer(t, 2, 30)
	var out output
	s.written = out.String
	for range 10 {
		if err := Run(t.Context(), &out, options(t, s, 3)); err != nil {
			t.Fatal(err)
		}
	}
	if got := out.String(); got != rows(30) {
		t.Errorf("got %q", got)
	}
	if s.expiry != 0xFFFFFFFF || s.handling != 1 {
		t.Errorf("session expiry %d, retain handling %d", s.expiry, s.handling)
	}
}

func TestInterrupt(t *testing.T) {
	t.Parallel()
	s := newServer(t, 2, 5)
	ctx, cancel := context.WithCancel(t.Context())
	said := false
	s.cut = func(point string) bool {
		if said = said || point == "disconnect"; point == "acked" && len(s.queue)+len(s.flight) == 0 {
			cancel()
		}
		return false
	}
	var out output
	if err := Run(ctx, &out, options(t, s, 0)); err != nil || out.String() != rows(5) {
		t.Errorf("got %v, %q", err, out.String())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !said {
		t.Error("the client left without DISCONNECT")
	}
}

// What cannot be written is not acknowledged, and the run fails.
func TestOutputFails(t *testing.T) {
	t.Parallel()
	s := newServer(t, 2, 5)
	out := output{fails: true}
	s.written = out.String
	err := Run(t.Context(), &out, options(t, s, 0))
	if exit.Of(err) != exit.Failed || !strings.Contains(fmt.Sprint(err), "the pipe is closed") {
		t.Errorf("got %v", err)
	}
}

func TestWait(t *testing.T) {
	t.Parallel()
	for count, want := range map[int64]exit.Code{0: exit.OK, 2: exit.OK, 3: exit.Timeout} {
		s := newServer(t, 2, 2)
		o := options(t, s, count)
		o.Wait = 300 * time.Millisecond
		var out output
		if err := Run(t.Context(), &out, o); exit.Of(err) != want || out.String() != rows(2) {
			t.Errorf("-C %d: got %v (exit %d) and %q, want exit %d", count, err, exit.Of(err), out.String(), want)
		}
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	for granted, want := range map[byte]exit.Code{0x87: exit.Auth, 0x8F: exit.Failed} {
		s := newServer(t, 2, 0)
		s.granted = granted
		var out output
		err := Run(t.Context(), &out, options(t, s, 0))
		if exit.Of(err) != want || !strings.Contains(fmt.Sprint(err), `"dev/#"`) {
			t.Errorf("0x%02X: got %v (exit %d), want exit %d", granted, err, exit.Of(err), want)
		}
	}
}

// A server that forgot the session: the client subscribes again and says so; ids of the old session mean nothing.
func TestSessionLost(t *testing.T) {
	t.Parallel()
	s := newServer(t, 2, 6)
	lost := false
	s.cut = func(point string) bool {
		if point == "received" && !lost && s.find(3) != nil {
			lost = true
			s.session, s.subs, s.flight, s.nextID = false, 0, nil, 0
			s.queue = []delivery{{payload: "new-1", qos: 2}, {payload: "new-2", qos: 2}}
			return true
		}
		return false
	}
	var said []string
	o := options(t, s, 0)
	o.Wait = time.Second
	o.Notice = func(line string) { said = append(said, line) }
	var out output
	if err := Run(t.Context(), &out, o); err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(out.String(), "new-1\nnew-2\n") || !strings.Contains(strings.Join(said, "\n"), "lost the session") {
		t.Errorf("got %q, the user was told %q", out.String(), said)
	}
}

func TestFormats(t *testing.T) {
	t.Parallel()
	at := time.Date(2010, 1, 1, 0, 0, 0, 0, time.UTC)
	text := &packets.Publish{Topic: "dev/1", Payload: []byte("a<b"), QoS: 1, Duplicate: true, Properties: &packets.Properties{
		User: []packets.User{{Key: "k", Value: "1"}, {Key: "k", Value: "2"}},
	}}
	binary := &packets.Publish{Topic: "dev/1", Payload: []byte{0xFF, 0}, Retain: true}
	tests := []struct {
		format string
		topic  bool
		p      *packets.Publish
		want   string
	}{
		{"text", false, text, "a<b\n"},
		{"text", true, text, "dev/1 a<b\n"},
		{"csv", false, text, "a<b\n"},
		{"csv", false, binary, "\xff\x00\n"},
		{"json", false, text, `{"time":"2010-01-01T00:00:00Z","topic":"dev/1","qos":1,"retain":false,"dup":true,"payload":"a<b","userProperties":[["k","1"],["k","2"]]}` + "\n"},
		{"json", true, binary, `{"time":"2010-01-01T00:00:00Z","topic":"dev/1","qos":0,"retain":true,"payload":"/wA=","base64":true}` + "\n"},
	}
	for _, tt := range tests {
		format, err := NewFormat(tt.format, tt.topic)
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		if err := format(&b, tt.p, at); err != nil || b.String() != tt.want {
			t.Errorf("%s: got %q and %v, want %q", tt.format, b.String(), err, tt.want)
		}
		if tt.format == "json" && !json.Valid(b.Bytes()) {
			t.Errorf("%q is not JSON", b.String())
		}
	}
	if _, err := NewFormat("xml", false); err == nil {
		t.Error("xml is taken")
	}
}
