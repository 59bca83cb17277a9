package broker

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"rewindmq/schema"
	"rewindmq/store"
	"rewindmq/store/storetest"
	"rewindmq/wire"
)

// patience bounds every wait of a test; it is never waited for in a good run.
const patience = time.Minute

// house is a broker on a store, on a loopback listener.
type house struct {
	t    *testing.T
	b    *Broker
	mem  *storetest.Memory
	addr string
	stop func()
	// abandon ends the broker of a store that was killed under it.
	abandon func()
}

// openHouse starts a broker on the store; it ends with the test, or with stop.
func openHouse(t *testing.T, s store.Store, o Options) *house {
	t.Helper()
	o.Node = "node-1"
	b, err := New(s, o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	storeCtx, stopStore := context.WithCancel(context.Background())
	done := make(chan error, 3)
	go func() { done <- s.Run(storeCtx) }()
	go func() {
		err := b.Run(ctx)
		stopStore()
		done <- err
	}()
	select {
	case <-b.Started():
	case err := <-done:
		t.Fatalf("broker ended at the start: %v", err)
	case <-time.After(patience):
		t.Fatal("broker does not start")
	}
	l, err := wire.Listen("127.0.0.1:0", wire.ListenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	go func() { done <- l.Run(ctx, func(nc net.Conn) { b.Serve("tcp", nc) }) }()
	h := &house{t: t, b: b, addr: l.Addr().String()}
	h.mem, _ = s.(*storetest.Memory)
	stopped := false
	h.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		for range 3 {
			select {
			case err := <-done:
				if err != nil && !errors.Is(err, context.Canceled) {
					t.Errorf("end: %v", err)
				}
			case <-time.After(patience):
				t.Error("the broker does not end")
				return
			}
		}
	}
	h.abandon = func() {
		stopped = true
		cancel()
		stopStore()
		for range 3 {
			if err := <-done; err != nil {
				t.Log(err) // a killed store ends as it likes
			}
		}
	}
	t.Cleanup(h.stop)
	return h
}

func memoryHouse(t *testing.T, o Options) *house {
	t.Helper()
	return openHouse(t, storetest.NewMemory(storetest.Options{Lanes: 2}), o)
}

// peer is an MQTT client that does exactly what it is told.
type peer struct {
	t  *testing.T
	nc net.Conn
	r  *wire.Reader
	v  wire.Version
	// early are deliveries that came while something else was waited for.
	early []wire.Publish
}

func (h *house) dial(v wire.Version) *peer {
	h.t.Helper()
	nc, err := net.Dial("tcp", h.addr)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = nc.Close() })
	p := &peer{t: h.t, nc: nc, v: v, r: wire.NewReader(nc, wire.ReaderOptions{FromServer: true, MaxPacketSize: 8 << 20})}
	p.r.SetVersion(v)
	return p
}

func (p *peer) write(b []byte) {
	p.t.Helper()
	if _, err := p.nc.Write(b); err != nil {
		p.t.Fatalf("write: %v", err)
	}
}

func (p *peer) read() wire.Packet {
	p.t.Helper()
	_ = p.nc.SetReadDeadline(time.Now().Add(patience))
	pk, err := p.r.ReadPacket()
	if err != nil {
		p.t.Fatalf("read: %v", err)
	}
	return pk
}

// closed demands that the broker ends the connection with no further packet.
func (p *peer) closed() {
	p.t.Helper()
	_ = p.nc.SetReadDeadline(time.Now().Add(patience))
	if pk, err := p.r.ReadPacket(); !errors.Is(err, io.EOF) {
		p.t.Fatalf("got %#v, %v, want the end of the connection", pk, err)
	}
	_ = p.nc.Close()
}

func expect[T wire.Packet](p *peer) T {
	p.t.Helper()
	pk := p.read()
	got, ok := pk.(T)
	if !ok {
		p.t.Fatalf("got %#v, want a %T", pk, got)
	}
	return got
}

// connect dials and opens a session.
func (h *house) connect(v wire.Version, c wire.Connect) (*peer, *wire.Connack) {
	h.t.Helper()
	p := h.dial(v)
	c.Version, c.RequestProblemInfo = v, true
	p.write(wire.AppendConnect(nil, &c))
	ack := expect[*wire.Connack](p)
	if ack.Code != wire.Success {
		h.t.Fatalf("CONNACK %v", ack.Code)
	}
	return p, ack
}

// persistent opens a session that outlives its connection.
func (h *house) persistent(v wire.Version, id string) (*peer, bool) {
	h.t.Helper()
	p, ack := h.connect(v, wire.Connect{ClientID: id, SessionExpiry: schema.NoExpiry, HasSessionExpiry: v == wire.V5})
	return p, ack.SessionPresent
}

func (h *house) clean(v wire.Version, id string) *peer {
	h.t.Helper()
	p, _ := h.connect(v, wire.Connect{ClientID: id, CleanStart: true})
	return p
}

func (p *peer) subscribe(filter string, qos byte) {
	p.t.Helper()
	p.write(wire.AppendSubscribe(nil, p.v, &wire.Subscribe{PacketID: 1, Filters: []wire.Filter{{Topic: filter, QoS: qos}}}))
	if ack := expect[*wire.Suback](p); len(ack.Codes) != 1 || ack.Codes[0] != wire.ReasonCode(qos) {
		p.t.Fatalf("SUBACK %v, want %d", ack.Codes, qos)
	}
}

func (p *peer) send(topic, payload string, qos byte, id uint16) {
	p.t.Helper()
	p.write(wire.AppendPublish(nil, p.v, &wire.Publish{Topic: topic, Payload: []byte(payload), QoS: qos, PacketID: id}))
}

// publish sends a message and takes the whole handshake.
func (p *peer) publish(topic, payload string, qos byte, id uint16) {
	p.t.Helper()
	if qos == 0 {
		id = 0
	}
	p.send(topic, payload, qos, id)
	switch qos {
	case 1:
		p.ack(wire.PUBACK, id)
	case 2:
		p.ack(wire.PUBREC, id)
		p.write(wire.AppendAck(nil, p.v, wire.PUBREL, id, wire.Success))
		p.ack(wire.PUBCOMP, id)
	}
}

// ack expects an acknowledgement with success; deliveries may come before it.
func (p *peer) ack(t wire.PacketType, id uint16) {
	p.t.Helper()
	pk := p.read()
	for {
		m, ok := pk.(*wire.Publish)
		if !ok {
			break
		}
		p.early = append(p.early, *m)
		pk = p.read()
	}
	a, ok := pk.(*wire.Ack)
	if !ok {
		p.t.Fatalf("got %#v, want %v %d", pk, t, id)
	}
	if a.Type != t || a.ID != id || a.Code != wire.Success {
		p.t.Fatalf("got %v %d code %v, want %v %d", a.Type, a.ID, a.Code, t, id)
	}
}

// delivery expects a delivery, and does not acknowledge it.
func (p *peer) delivery() wire.Publish {
	p.t.Helper()
	if len(p.early) > 0 {
		m := p.early[0]
		p.early = p.early[1:]
		return m
	}
	return *expect[*wire.Publish](p)
}

// receive expects a delivery, and acknowledges it to the end.
func (p *peer) receive(payload string) wire.Publish {
	p.t.Helper()
	m := p.delivery()
	if string(m.Payload) != payload {
		p.t.Fatalf("got %q, want %q", m.Payload, payload)
	}
	switch m.QoS {
	case 1:
		p.write(wire.AppendAck(nil, p.v, wire.PUBACK, m.PacketID, wire.Success))
	case 2:
		p.write(wire.AppendAck(nil, p.v, wire.PUBREC, m.PacketID, wire.Success))
		p.ack(wire.PUBREL, m.PacketID)
		p.write(wire.AppendAck(nil, p.v, wire.PUBCOMP, m.PacketID, wire.Success))
	}
	return m
}

// ping shows that nothing else is waiting before the answer.
func (p *peer) ping() {
	p.t.Helper()
	p.write(wire.AppendPingreq(nil))
	expect[*wire.Pingresp](p)
}

func (p *peer) disconnect() {
	p.t.Helper()
	p.write(wire.AppendClientDisconnect(nil, p.v, &wire.Disconnect{}))
	p.closed()
}

// cut resets the connection.
func (p *peer) cut() {
	_ = p.nc.(*net.TCPConn).SetLinger(0)
	_ = p.nc.Close()
}
