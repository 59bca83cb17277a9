package link

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/eclipse/paho.golang/packets"
	"go.uber.org/goleak"

	"rewindmq/cmd/internal/exit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func encode(t *testing.T, p packets.Packet) []byte {
	t.Helper()
	var b bytes.Buffer
	if _, err := p.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func connack(t *testing.T, a packets.Connack) []byte {
	t.Helper()
	if a.Properties == nil {
		a.Properties = &packets.Properties{}
	}
	return encode(t, &a)
}

// listen runs serve for the one connection that comes, and returns the address.
func listen(t *testing.T, serve func(net.Conn)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer func() { _ = c.Close() }()
		serve(c)
	}()
	t.Cleanup(func() { _ = ln.Close(); <-done })
	return ln.Addr().String()
}

// answering is a server that answers CONNECT with b and then reads to the end.
func answering(t *testing.T, b []byte) string {
	t.Helper()
	return listen(t, func(c net.Conn) {
		if _, err := packets.ReadPacket(c); err != nil {
			t.Errorf("no CONNECT: %v", err)
			return
		}
		_, _ = c.Write(b)
		_, _ = io.Copy(io.Discard, c)
	})
}

func TestDial(t *testing.T) {
	t.Parallel()
	window, size, qos, none := uint16(7), uint32(1000), byte(1), byte(0)
	addr := answering(t, connack(t, packets.Connack{SessionPresent: true, Properties: &packets.Properties{
		ReceiveMaximum: &window, MaximumPacketSize: &size, MaximumQOS: &qos, RetainAvailable: &none,
	}}))
	c, err := Dial(t.Context(), Options{Addr: addr, ClientID: "x"}, Session{Expiry: 60})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if want := (Allowed{ReceiveMaximum: 7, PacketSize: 1000, QoS: 1}); c.Server != want || !c.Present {
		t.Errorf("got %+v, present %v", c.Server, c.Present)
	}
}

func TestDialFails(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		answer []byte
		clean  bool
		code   exit.Code
		final  bool
		say    string
	}{
		{"not authorized", connack(t, packets.Connack{ReasonCode: 0x87}), false, exit.Auth, true, "0x87"},
		{"bad password, in the server's words", connack(t, packets.Connack{ReasonCode: 0x86, Properties: &packets.Properties{ReasonString: "no such user"}}), false, exit.Auth, true, "no such user"},
		{"busy", connack(t, packets.Connack{ReasonCode: 0x89}), false, exit.Connect, false, "0x89"},
		{"client id refused", connack(t, packets.Connack{ReasonCode: 0x85}), false, exit.Failed, true, "0x85"},
		{"a session after a clean start [MQTT-3.2.2-2]", connack(t, packets.Connack{SessionPresent: true}), true, exit.Failed, true, "session present"},
		{"another packet", []byte{packets.PINGRESP << 4, 0}, false, exit.Failed, true, "PINGRESP"},
		{"the end", nil, false, exit.Connect, false, "CONNACK"},
		{"half a packet", []byte{packets.CONNACK << 4, 3, 0}, false, exit.Connect, false, "CONNACK"},
		{"garbage", []byte("HTTP/1.1 400 Bad Request\r\n\r\n"), false, exit.Failed, true, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			addr := listen(t, func(c net.Conn) {
				_, _ = packets.ReadPacket(c)
				_, _ = c.Write(tt.answer)
			})
			c, err := Dial(t.Context(), Options{Addr: addr, Timeout: 5 * time.Second}, Session{CleanStart: tt.clean})
			if err == nil {
				c.Close()
				t.Fatal("connected")
			}
			code, final := Verdict(err)
			if tt.name != "garbage" && (code != tt.code || final != tt.final) || !strings.Contains(err.Error(), tt.say) {
				t.Errorf("got %v: exit %d, final %v; want exit %d, final %v", err, code, final, tt.code, tt.final)
			}
		})
	}
}

// A server that takes the connection and says nothing is given up.
func TestDialSilence(t *testing.T) {
	t.Parallel()
	addr := answering(t, nil)
	_, err := Dial(t.Context(), Options{Addr: addr, Timeout: 100 * time.Millisecond}, Session{})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

func TestVerdictOnFarewell(t *testing.T) {
	t.Parallel()
	for reason, want := range map[byte]struct {
		code  exit.Code
		final bool
	}{
		0x8B: {exit.Connect, false}, 0x89: {exit.Connect, false}, 0x8E: {exit.Failed, true},
		0x87: {exit.Auth, true}, 0x93: {exit.Failed, true}, 0x95: {exit.Failed, true},
	} {
		if code, final := Verdict(fmt.Errorf("lost: %w", &Farewell{Code: reason})); code != want.code || final != want.final {
			t.Errorf("0x%02X: exit %d, final %v", reason, code, final)
		}
	}
	if code, final := Verdict(io.ErrUnexpectedEOF); code != exit.Connect || final {
		t.Errorf("a lost connection: exit %d, final %v", code, final)
	}
}

// pipe returns a connection whose server side is the other end, after the handshake.
func pipe(t *testing.T, keepAlive uint16) (*Conn, net.Conn) {
	t.Helper()
	ours, theirs := net.Pipe()
	c := &Conn{conn: ours, r: bufio.NewReader(ours), stop: make(chan struct{})}
	c.accept(&packets.Connack{}, keepAlive)
	c.stopped.Go(c.ping)
	t.Cleanup(func() { _ = theirs.Close(); c.Close() })
	return c, theirs
}

// PINGREQ goes out in time, also when the reader is busy elsewhere, and silence ends the connection.
func TestKeepAlive(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, server := pipe(t, 20) // counts as lost after 30 s
		start := time.Now()
		for i := range 5 {
			p, err := packets.ReadPacket(server)
			if err != nil || p.Type != packets.PINGREQ {
				t.Fatalf("got %v %v", p, err)
			}
			if got, want := time.Since(start), time.Duration(i+1)*10*time.Second; got != want {
				t.Errorf("PINGREQ %d after %v, want %v", i+1, got, want)
			}
		}
		go func() { _, _ = io.Copy(io.Discard, server) }()
		start = time.Now()
		if _, err := c.Read(); err == nil || time.Since(start) != 30*time.Second {
			t.Errorf("silence: got %v after %v", err, time.Since(start))
		}
	})
}

func TestReadAndBuffered(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, server := pipe(t, 60)
		first := encode(t, &packets.Puback{PacketID: 1})
		second := encode(t, &packets.Publish{Topic: "t", Payload: bytes.Repeat([]byte("x"), 300), Properties: &packets.Properties{}})
		third := encode(t, &packets.Disconnect{ReasonCode: 0x8B, Properties: &packets.Properties{}})
		go func() {
			_, _ = server.Write(append(append([]byte{packets.PINGRESP << 4, 0}, first...), second[:200]...))
			_, _ = server.Write(append(second[200:], third...))
		}()
		if p, err := c.Read(); err != nil || p.PacketID() != 1 {
			t.Fatalf("got %v %v, want PUBACK: PINGRESP is none of the caller's business", p, err)
		}
		if c.Buffered() {
			t.Error("half a packet counts as buffered")
		}
		if p, err := c.Read(); err != nil || len(p.Content.(*packets.Publish).Payload) != 300 {
			t.Fatalf("got %v %v", p, err)
		}
		if !c.Buffered() {
			t.Error("a whole packet does not count as buffered")
		}
		var farewell *Farewell
		if _, err := c.Read(); !errors.As(err, &farewell) || farewell.Code != 0x8B {
			t.Errorf("got %v, want Farewell 0x8B", err)
		}
	})
}

// An Interrupt is never lost, whether it comes before, during or between two reads.
func TestInterrupt(t *testing.T) {
	t.Parallel()
	for range 200 {
		c, server := pipe(t, 60)
		go func() {
			for {
				if _, err := server.Write([]byte{packets.PUBACK << 4, 2, 0, 1}); err != nil {
					return
				}
			}
		}()
		go c.Interrupt()
		for {
			if _, err := c.Read(); err != nil {
				break
			}
		}
		_ = server.Close()
		c.Close()
	}
}

// Whatever a server sends, decoding returns.
func FuzzDecode(f *testing.F) {
	f.Add([]byte{packets.PUBLISH << 4, 5, 0, 1, 'a', 0, 'x'})
	f.Add([]byte{packets.SUBACK << 4, 1, 0})
	f.Add([]byte{packets.DISCONNECT << 4, 0})
	f.Add([]byte{packets.CONNACK << 4, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF})
	f.Fuzz(func(_ *testing.T, b []byte) {
		r := bufio.NewReader(bytes.NewReader(b))
		for {
			if _, err := decode(r); err != nil {
				return
			}
		}
	})
}
