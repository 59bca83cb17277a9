package broker

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"rewindmq/broker/session"
	"rewindmq/wire"
)

// Each limit, at it and above it. Those of topic levels and of subscriptions are in
// TestRefusedPublish and TestSubackCodes.

// refusal opens a connection that is refused, and gives the code.
func (h *house) refusal(v wire.Version, id string) wire.ReasonCode {
	h.t.Helper()
	p := h.dial(v)
	p.write(wire.AppendConnect(nil, &wire.Connect{Version: v, ClientID: id, CleanStart: true, RequestProblemInfo: true}))
	code := expect[*wire.Connack](p).Code
	if code != wire.Success {
		p.closed()
	}
	return code
}

// refused is what a version says of a code in CONNACK.
func refused(v wire.Version, code wire.ReasonCode) wire.ReasonCode {
	if v == wire.V5 {
		return code
	}
	return wire.ServerUnavailable
}

// TestPacketSizeLimit: [MQTT-3.2.2-15].
func TestPacketSizeLimit(t *testing.T) {
	t.Parallel()
	h := memoryHouse(t, Options{MaximumPacketSize: 300})
	for _, v := range versions() {
		p, ack := h.connect(v, wire.Connect{ClientID: "p", CleanStart: true})
		if v == wire.V5 && ack.MaximumPacketSize != 300 {
			t.Errorf("CONNACK tells %d", ack.MaximumPacketSize)
		}
		m := wire.Publish{Topic: "t", QoS: 1, PacketID: 1}
		for wire.PublishSize(v, &m) < 300 {
			m.Payload = append(m.Payload, 'x')
		}
		p.write(wire.AppendPublish(nil, v, &m))
		p.ack(wire.PUBACK, 1)
		m.Payload = append(m.Payload, 'x')
		p.write(wire.AppendPublish(nil, v, &m))
		if v == wire.V5 {
			if d := expect[*wire.Disconnect](p); d.Code != wire.PacketTooLarge {
				t.Errorf("DISCONNECT %v", d.Code)
			}
		}
		p.closed()
		p = h.dial(v)
		p.write(wire.AppendConnect(nil, &wire.Connect{Version: v, ClientID: strings.Repeat("x", 300)}))
		p.closed()
	}
}

func TestFiltersLimit(t *testing.T) {
	t.Parallel()
	h := memoryHouse(t, Options{FiltersPerSubscribe: 3})
	for _, v := range versions() {
		for _, n := range []int{3, 4} {
			for _, request := range []string{"SUBSCRIBE", "UNSUBSCRIBE"} {
				p := h.clean(v, "p")
				var filters []wire.Filter
				var names []string
				for i := range n {
					names = append(names, fmt.Sprint(i))
					filters = append(filters, wire.Filter{Topic: names[i]})
				}
				if request == "SUBSCRIBE" {
					p.write(wire.AppendSubscribe(nil, v, &wire.Subscribe{PacketID: 1, Filters: filters}))
				} else {
					p.write(wire.AppendUnsubscribe(nil, v, &wire.Unsubscribe{PacketID: 1, Filters: names}))
				}
				switch {
				case n == 3:
					p.read()
					p.disconnect()
					continue
				case v == wire.V5:
					if d := expect[*wire.Disconnect](p); d.Code != wire.QuotaExceeded {
						t.Errorf("%s: DISCONNECT %v", request, d.Code)
					}
				}
				p.closed()
			}
		}
	}
}

// TestSubscriptionsLimit: many SUBSCRIBEs in one write count as they come.
func TestSubscriptionsLimit(t *testing.T) {
	t.Parallel()
	h := memoryHouse(t, Options{SubscriptionsPerClient: 50})
	p := h.clean(wire.V5, "p")
	var all []byte
	for i := range 100 {
		all = wire.AppendSubscribe(all, wire.V5, &wire.Subscribe{PacketID: uint16(i + 1), Filters: []wire.Filter{{Topic: fmt.Sprint(i)}}})
	}
	p.write(all)
	for range 100 {
		a := expect[*wire.Suback](p)
		want := wire.Success
		if a.PacketID > 50 {
			want = wire.QuotaExceeded
		}
		if a.Codes[0] != want {
			t.Errorf("SUBACK %d %v, want %v", a.PacketID, a.Codes, want)
		}
	}
}

// TestSessionsLimit: a new session is refused, one that is stored goes on.
func TestSessionsLimit(t *testing.T) {
	t.Parallel()
	for _, v := range versions() {
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			h := memoryHouse(t, Options{Sessions: 2})
			one, _ := h.persistent(v, "one")
			h.persistent(v, "two")
			h.until("count them", h.b.full)
			one.disconnect()
			if got := h.refusal(v, "three"); got != refused(v, wire.QuotaExceeded) {
				t.Errorf("CONNACK %v", got)
			}
			if _, present := h.persistent(v, "one"); !present {
				t.Error("no session")
			}
		})
	}
}

func TestConnectionsLimit(t *testing.T) {
	t.Parallel()
	for _, v := range versions() {
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			h := memoryHouse(t, Options{Connections: 2})
			one := h.clean(v, "one")
			two := h.clean(v, "two")
			if got := h.refusal(v, "three"); got != refused(v, wire.QuotaExceeded) {
				t.Errorf("CONNACK %v", got)
			}
			// Far above it there is no answer.
			var more []net.Conn
			for range 40 {
				nc, err := net.Dial("tcp", h.addr)
				if err != nil {
					t.Fatal(err)
				}
				more = append(more, nc)
			}
			_ = more[39].SetReadDeadline(time.Now().Add(patience))
			if n, err := more[39].Read(make([]byte, 1)); err == nil {
				t.Errorf("read %d bytes", n)
			}
			for _, nc := range more {
				_ = nc.Close()
			}
			two.disconnect()
			h.until("let go of them", func() bool { return h.b.connections.Load() == 1 })
			h.clean(v, "three").ping()
			one.ping()
		})
	}
}

func TestRetainedLimit(t *testing.T) {
	t.Parallel()
	h := memoryHouse(t, Options{RetainedBytes: 4000})
	p := h.clean(wire.V5, "p")
	retain := func(topic string, size int) wire.ReasonCode {
		p.write(wire.AppendPublish(nil, wire.V5, &wire.Publish{Topic: topic, Payload: make([]byte, size), QoS: 1, PacketID: 1, Retain: true}))
		return expect[*wire.Ack](p).Code
	}
	passed := func() {
		t.Helper()
		at, err := h.mem.Head(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := h.b.hub.WaitFor(t.Context(), at); err != nil {
			t.Fatal(err)
		}
	}
	if code := retain("a", 3500); code != wire.Success {
		t.Fatalf("PUBACK %v", code)
	}
	passed()
	if code := retain("b", 1000); code != wire.QuotaExceeded {
		t.Errorf("PUBACK %v above the limit", code)
	}
	if code := retain("a", 3400); code != wire.Success {
		t.Errorf("PUBACK %v for a smaller one", code)
	}
	p.publish("b", strings.Repeat("x", 1000), 1, 1)
	old := h.dial(wire.V311)
	old.write(wire.AppendConnect(nil, &wire.Connect{Version: wire.V311, ClientID: "old", CleanStart: true}))
	expect[*wire.Connack](old)
	old.write(wire.AppendPublish(nil, wire.V311, &wire.Publish{Topic: "b", Payload: make([]byte, 1000), QoS: 1, PacketID: 1, Retain: true}))
	old.closed()
	will := h.dial(wire.V5)
	will.write(wire.AppendConnect(nil, &wire.Connect{Version: wire.V5, ClientID: "will", Will: &wire.Will{Topic: "b", Payload: make([]byte, 1000), Retain: true}}))
	if a := expect[*wire.Connack](will); a.Code != wire.QuotaExceeded {
		t.Errorf("CONNACK %v", a.Code)
	}
	if code := retain("a", 0); code != wire.Success {
		t.Errorf("PUBACK %v for clearing", code)
	}
	passed()
	if code := retain("b", 1000); code != wire.Success {
		t.Errorf("PUBACK %v when there is room", code)
	}
}

func TestWindowLimit(t *testing.T) {
	t.Parallel()
	for _, v := range versions() {
		h := memoryHouse(t, Options{Window: 3})
		sub, _ := h.persistent(v, "sub")
		sub.subscribe("t", 1)
		pub := h.clean(v, "pub")
		for i := range 5 {
			pub.publish("t", fmt.Sprint(i), 1, 1)
		}
		var held []wire.Publish
		for range 3 {
			held = append(held, sub.delivery())
		}
		sub.ping()
		for _, m := range held {
			sub.write(wire.AppendAck(nil, v, wire.PUBACK, m.PacketID, wire.Success))
		}
		sub.receive("3")
		sub.receive("4")
	}
}

// drip writes bytes one after another, each after a pause, until the peer is gone.
func (p *peer) drip(b []byte, pause time.Duration) {
	tick := time.NewTicker(pause)
	defer tick.Stop()
	for i := range b {
		if _, err := p.nc.Write(b[i : i+1]); err != nil {
			return
		}
		<-tick.C
	}
}

// TestSlowConnect: bytes that trickle in do not prolong the time for CONNECT.
func TestSlowConnect(t *testing.T) {
	t.Parallel()
	h := memoryHouse(t, Options{ConnectTimeout: 300 * time.Millisecond})
	p := h.dial(wire.V5)
	begin := time.Now()
	p.drip(wire.AppendConnect(nil, &wire.Connect{Version: wire.V5, ClientID: strings.Repeat("x", 2000)}), 20*time.Millisecond)
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("still open after %v", took)
	}
	silent := h.dial(wire.V5)
	silent.closed()
}

// TestSlowPacket: a packet that trickles in does not keep a connection alive; one
// that comes at a fair rate may take longer than the keep alive [MQTT-3.1.2-22].
func TestSlowPacket(t *testing.T) {
	t.Parallel()
	h := memoryHouse(t, Options{})
	open := func(id string) *peer {
		p, _ := h.connect(wire.V5, wire.Connect{ClientID: id, CleanStart: true, KeepAlive: 1})
		return p
	}
	packet := wire.AppendPublish(nil, wire.V5, &wire.Publish{Topic: "t", Payload: make([]byte, 1000), QoS: 1, PacketID: 1})
	t.Run("trickle", func(t *testing.T) {
		t.Parallel()
		p := open("trickle")
		begin := time.Now()
		p.drip(packet[:40], 200*time.Millisecond)
		if took := time.Since(begin); took > 6*time.Second {
			t.Errorf("still open after %v", took)
		}
		if d := expect[*wire.Disconnect](p); d.Code != wire.KeepAliveTimeout {
			t.Errorf("DISCONNECT %v", d.Code)
		}
	})
	t.Run("slow link", func(t *testing.T) {
		t.Parallel()
		p := open("slow")
		p.drip(packet, 3*time.Millisecond) // 3 s
		p.ack(wire.PUBACK, 1)
	})
}

// TestNeverReads: a client that sends and never reads is held back, with a bounded
// outbox, and costs nobody else anything.
func TestNeverReads(t *testing.T) {
	t.Parallel()
	h := memoryHouse(t, Options{OutboxBytes: 16 << 10})
	deaf := h.clean(wire.V5, "deaf")
	deaf.subscribe("t/#", 0)
	deaf.write(wire.AppendSubscribe(nil, wire.V5, &wire.Subscribe{PacketID: 2, Filters: []wire.Filter{{Topic: "u/#", QoS: 1}}}))
	_ = deaf.nc.(*net.TCPConn).SetReadBuffer(4096)
	sub := h.clean(wire.V5, "sub")
	sub.subscribe("+/#", 1)
	pub := h.clean(wire.V5, "pub")
	payload := strings.Repeat("x", 4096)
	cl := h.b.roster.get("deaf")
	for i := range 1500 {
		topic := "t/x"
		if i%2 == 1 {
			topic = "u/x"
		}
		pub.publish(topic, payload, 1, 1)
		sub.receive(payload)
		cl.c.out.mu.Lock()
		waiting := len(cl.c.out.buf)
		cl.c.out.mu.Unlock()
		if waiting > 32<<10 {
			t.Fatalf("%d bytes wait for a client that does not read", waiting)
		}
	}
	// It asks on and on.
	pings := make([]byte, 0, 64<<10)
	for len(pings) < 64<<10 {
		pings = wire.AppendPingreq(pings)
	}
	_ = deaf.nc.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
	for range 200 {
		if _, err := deaf.nc.Write(pings); err != nil {
			break // held back
		}
	}
	cl.c.out.mu.Lock()
	waiting := len(cl.c.out.buf)
	cl.c.out.mu.Unlock()
	if waiting > 64<<10 {
		t.Errorf("%d bytes wait for a client that does not read", waiting)
	}
	pub.publish("t/x", "end", 1, 1)
	sub.receive("end")
	cl.input(func(s *session.Session) {
		if n := s.Queued(); n > 512 {
			t.Errorf("%d messages wait in its session", n)
		}
	})
}
