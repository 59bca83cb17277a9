package publish

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"rewindmq/cmd/internal/exit"
	"rewindmq/cmd/internal/link"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func options(b *broker, qos byte) Options {
	return Options{Link: link.Options{Addr: b.addr(), ClientID: "pub"}, Topic: "dev/1", QoS: qos, Timeout: 20 * time.Second}
}

// A connection that is cut at any point of the QoS 2 handshake leaves nothing out and nothing twice, and the order is
// kept [MQTT-4.3.3-1], [MQTT-4.4.0-1], [MQTT-4.6.0-6].
func TestQoS2CutAnywhere(t *testing.T) {
	t.Parallel()
	const rows = 10
	for _, point := range points {
		for nth := 1; nth <= rows; nth++ {
			if nth > 1 && (point == "connect" || point == "connack") {
				continue
			}
			t.Run(fmt.Sprintf("%s-%d", point, nth), func(t *testing.T) {
				t.Parallel()
				b := newBroker(t)
				seen := 0
				b.cut = func(at string) bool {
					if at == point {
						seen++
					}
					return at == point && seen == nth
				}
				o := options(b, 2)
				o.ConnectWait = 10 * time.Second
				source, want := numbered(rows)
				res, err := Run(t.Context(), source, o)
				if err != nil {
					t.Fatal(err)
				}
				if got := b.messages(); !slices.Equal(got, want) {
					t.Errorf("stored %v, want %v", got, want)
				}
				if res.Rows != rows || res.Acked != rows || seen < nth {
					t.Errorf("got %+v, reached the point %d times", res, seen)
				}
			})
		}
	}
}

// Many cuts in one run, at random points.
func TestQoS2CutOften(t *testing.T) {
	t.Parallel()
	for seed := range uint64(20) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			b := newBroker(t)
			dice := rand.New(rand.NewPCG(seed, 1))
			b.receiveMax = uint16(1 + dice.IntN(20))
			cuts := 0
			b.cut = func(string) bool {
				if cuts < 8 && dice.IntN(30) == 0 {
					cuts++
					return true
				}
				return false
			}
			o := options(b, 2)
			o.ConnectWait = 10 * time.Second
			source, want := numbered(100)
			if res, err := Run(t.Context(), source, o); err != nil || res.Acked != 100 {
				t.Fatalf("%+v %v", res, err)
			}
			if got := b.messages(); !slices.Equal(got, want) {
				t.Errorf("seed %d after %d cuts: stored %v, want %v", seed, cuts, got, want)
			}
		})
	}
}

// At QoS 1 nothing is left out; what was in flight may come twice, and the user is told.
func TestQoS1CutAnywhere(t *testing.T) {
	t.Parallel()
	const rows = 10
	for _, point := range []string{"publish", "stored", "answered"} {
		for nth := 1; nth <= rows; nth++ {
			t.Run(fmt.Sprintf("%s-%d", point, nth), func(t *testing.T) {
				t.Parallel()
				b := newBroker(t)
				seen := 0
				b.cut = func(at string) bool {
					if at == point {
						seen++
					}
					return at == point && seen == nth
				}
				var said []string
				o := options(b, 1)
				o.Notice = func(line string) { said = append(said, line) }
				source, want := numbered(rows)
				if _, err := Run(t.Context(), source, o); err != nil {
					t.Fatal(err)
				}
				got := b.messages()
				if over := len(got) - rows; over < 0 || over > int(b.receiveMax) {
					t.Errorf("stored %d, want %d and at most %d more", len(got), rows, b.receiveMax)
				}
				var firsts []string
				for _, m := range got {
					if !slices.Contains(firsts, m) {
						firsts = append(firsts, m)
					}
				}
				if !slices.Equal(firsts, want) {
					t.Errorf("first copies %v, want %v", firsts, want)
				}
				if point == "stored" && !strings.Contains(strings.Join(said, "\n"), "may arrive twice") {
					t.Errorf("the user was told %q", said)
				}
			})
		}
	}
}

func TestQoS0(t *testing.T) {
	t.Parallel()
	b := newBroker(t)
	source, want := numbered(1000)
	res, err := Run(t.Context(), source, options(b, 0))
	if err != nil || res.Acked != 1000 {
		t.Fatalf("%+v %v", res, err)
	}
	if got := b.messages(); !slices.Equal(got, want) {
		t.Errorf("stored %d messages", len(got))
	}
}

// A server that forgot the session: nothing is lost, and the user is told that something may be twice.
func TestSessionLost(t *testing.T) {
	t.Parallel()
	b := newBroker(t)
	cut := false
	b.cut = func(point string) bool {
		if point == "answered" && !cut && len(b.stored) == 3 {
			cut = true
			b.session, b.held = false, map[uint16]bool{}
			return true
		}
		return false
	}
	var said []string
	o := options(b, 2)
	o.Notice = func(line string) { said = append(said, line) }
	source, want := numbered(10)
	res, err := Run(t.Context(), source, o)
	if err != nil || res.Acked != 10 {
		t.Fatalf("%+v %v", res, err)
	}
	got := b.messages()
	for _, m := range want {
		if !slices.Contains(got, m) {
			t.Errorf("%s is missing in %v", m, got)
		}
	}
	if !strings.Contains(strings.Join(said, "\n"), "lost the session") {
		t.Errorf("the user was told %q", said)
	}
}

// A refused message ends the run with its row, and the messages before it count [MQTT-4.3.3-4].
func TestRefused(t *testing.T) {
	t.Parallel()
	for code, want := range map[byte]exit.Code{0x87: exit.Auth, 0x97: exit.Failed} {
		b := newBroker(t)
		b.refuse = func(payload string) byte {
			if payload == "row-5" {
				return code
			}
			return 0
		}
		source, _ := numbered(10)
		_, err := Run(t.Context(), source, options(b, 2))
		if exit.Of(err) != want || !strings.Contains(fmt.Sprint(err), "row 5") {
			t.Errorf("0x%02X: got %v (exit %d), want row 5 and exit %d", code, err, exit.Of(err), want)
		}
		if got := b.messages(); !slices.Contains(got, "row-4") || slices.Contains(got, "row-5") {
			t.Errorf("stored %v", got)
		}
	}
}

func TestTooLarge(t *testing.T) {
	t.Parallel()
	b := newBroker(t)
	b.packetSize = 64
	source := Lines(strings.NewReader("small\n" + strings.Repeat("x", 100) + "\nnever\n"))
	res, err := Run(t.Context(), source, options(b, 2))
	if exit.Of(err) != exit.Failed || !strings.Contains(fmt.Sprint(err), "row 2 makes a packet of") {
		t.Errorf("got %v", err)
	}
	if got := b.messages(); !slices.Equal(got, []string{"small"}) || res.Acked != 1 {
		t.Errorf("stored %v, %+v", got, res)
	}
}

func TestCannotConnect(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	source, _ := numbered(1)
	_, err = Run(t.Context(), source, Options{Link: link.Options{Addr: addr}, Topic: "t", QoS: 2})
	if exit.Of(err) != exit.Connect {
		t.Errorf("got %v (exit %d), want exit %d", err, exit.Of(err), exit.Connect)
	}
}

// A server that goes silent: the run gives up after its timeout, whether connections still succeed or not.
func TestNoProgress(t *testing.T) {
	t.Parallel()
	b := newBroker(t)
	b.cut = func(point string) bool {
		b.mute = b.mute || point == "stored"
		return false
	}
	o := options(b, 2)
	o.Timeout = 500 * time.Millisecond
	source, _ := numbered(3)
	_, err := Run(t.Context(), source, o)
	if exit.Of(err) != exit.Timeout {
		t.Errorf("got %v (exit %d), want exit %d", err, exit.Of(err), exit.Timeout)
	}
}

func TestServerGone(t *testing.T) {
	t.Parallel()
	b := newBroker(t)
	b.cut = func(point string) bool {
		if point == "stored" {
			_ = b.ln.Close()
			return true
		}
		return false
	}
	o := options(b, 2)
	o.Timeout = 500 * time.Millisecond
	source, _ := numbered(3)
	_, err := Run(t.Context(), source, o)
	if exit.Of(err) != exit.Timeout {
		t.Errorf("got %v (exit %d), want exit %d", err, exit.Of(err), exit.Timeout)
	}
}

// blocking is a source that gives some messages and then waits, as a terminal does.
type blocking struct {
	Source
	more chan struct{}
}

func (s blocking) Next() (Message, error) {
	m, err := s.Source.Next()
	if errors.Is(err, io.EOF) {
		<-s.more
	}
	return m, err
}

// An interrupt finishes what is in flight and ends.
func TestInterrupt(t *testing.T) {
	t.Parallel()
	b := newBroker(t)
	ctx, cancel := context.WithCancel(t.Context())
	var acked atomic.Int64
	o := options(b, 2)
	o.Progress = func(r Result) {
		if acked.Store(r.Acked); r.Acked == 10 {
			cancel()
		}
	}
	source, want := numbered(10)
	more := make(chan struct{})
	defer close(more)
	_, err := Run(ctx, blocking{source, more}, o)
	if exit.Of(err) != exit.Interrupted || !strings.Contains(fmt.Sprint(err), "10 messages acknowledged, 0 in flight") {
		t.Errorf("got %v (exit %d)", err, exit.Of(err))
	}
	if got := b.messages(); !slices.Equal(got, want) {
		t.Errorf("stored %v", got)
	}
}

func TestSourceFails(t *testing.T) {
	t.Parallel()
	b := newBroker(t)
	source := CSV(strings.NewReader("a,1\nb,2\nc,\"open\n"), ',')
	_, err := Run(t.Context(), source, options(b, 2))
	if exit.Of(err) != exit.Failed || !strings.Contains(fmt.Sprint(err), "line 3") {
		t.Errorf("got %v", err)
	}
	if got := b.messages(); !slices.Equal(got, []string{"a,1", "b,2"}) {
		t.Errorf("stored %v", got)
	}
}

func TestRate(t *testing.T) {
	t.Parallel()
	b := newBroker(t)
	o := options(b, 2)
	o.Rate = 100
	source, _ := numbered(30)
	res, err := Run(t.Context(), source, o)
	if err != nil || res.Elapsed < 280*time.Millisecond {
		t.Errorf("30 messages at 100 a second took %v, %v", res.Elapsed, err)
	}
}

// Big pipelines neither stall nor mix packets: a server that answers only when it has read much.
func TestWidePipeline(t *testing.T) {
	t.Parallel()
	b := newBroker(t)
	b.receiveMax = 65535
	var text strings.Builder
	want := make([]string, 3000)
	for i := range want {
		want[i] = fmt.Sprintf("%d-%s", i, strings.Repeat("x", 1000))
		text.WriteString(want[i] + "\n")
	}
	res, err := Run(t.Context(), Lines(strings.NewReader(text.String())), options(b, 2))
	if err != nil || res.Acked != 3000 {
		t.Fatalf("%+v %v", res, err)
	}
	if got := b.messages(); !slices.Equal(got, want) {
		t.Errorf("stored %d messages", len(got))
	}
}
