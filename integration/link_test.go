package integration

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"
)

// patience bounds every wait for something that should happen at once. It is
// long because the machine may be busy; nothing waits for it to pass.
const patience = 30 * time.Second

// link is one connection to a broker, before any test is told of its errors.
// One goroutine may read while another writes.
type link struct {
	conn    net.Conn
	r       *bufio.Reader
	version byte
}

func dial(ctx context.Context, addr string, version byte) (*link, error) {
	conn, err := (&net.Dialer{Timeout: patience}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return &link{conn: conn, r: bufio.NewReader(conn), version: version}, nil
}

// connect dials, sends CONNECT and reads CONNACK.
func connect(ctx context.Context, addr string, s session) (*link, packet, error) {
	l, err := dial(ctx, addr, s.version)
	if err != nil {
		return nil, packet{}, err
	}
	if err := l.write(s.packet()); err != nil {
		l.cut()
		return nil, packet{}, err
	}
	p, err := l.read(patience)
	if err == nil && p.kind != kindConnack {
		err = fmt.Errorf("%v in place of CONNACK", p)
	}
	if err != nil {
		l.cut()
		return nil, packet{}, err
	}
	return l, p, nil
}

func (l *link) write(b []byte) error {
	_ = l.conn.SetWriteDeadline(time.Now().Add(patience))
	_, err := l.conn.Write(b)
	return err
}

func (l *link) read(wait time.Duration) (packet, error) {
	_ = l.conn.SetReadDeadline(time.Now().Add(wait))
	return readPacket(l.r, l.version)
}

// cut resets the connection: no DISCONNECT, no FIN, unread bytes are dropped.
func (l *link) cut() {
	if tcp, ok := l.conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = l.conn.Close()
}

// client is a link whose errors fail its test. It is used by the test's own
// goroutine. Packets that come while another is awaited are kept in order.
type client struct {
	*link
	t       *testing.T
	name    string
	present bool     // session present, from CONNACK
	connack packet   // what CONNECT was answered
	inbox   []packet // read, not yet looked at
	lastID  uint16
}

// dial opens a connection without sending anything.
func (b *broker) dial(version byte, name string) *client {
	b.t.Helper()
	l, err := dial(b.t.Context(), b.addr, version)
	if err != nil {
		b.t.Fatalf("%s: dial: %v", name, err)
	}
	b.t.Cleanup(l.cut)
	b.mu.Lock()
	b.links = append(b.links, l)
	b.mu.Unlock()
	return &client{link: l, t: b.t, name: name}
}

// open connects s and fails unless the broker accepts it.
func (b *broker) open(s session) *client {
	b.t.Helper()
	c := b.dial(s.version, s.clientID)
	c.send(s.packet())
	return c.accepted()
}

// openHex connects with a CONNECT given as bytes.
func (b *broker) openHex(version byte, name, packet string) *client {
	b.t.Helper()
	c := b.dial(version, name)
	c.send(fromHex(packet))
	return c.accepted()
}

// accepted reads a CONNACK that lets the client in.
func (c *client) accepted() *client {
	c.t.Helper()
	c.connack = c.next(kindConnack)
	if c.connack.code != 0 {
		c.t.Fatalf("%s: refused: %v", c.name, c.connack)
	}
	c.present = c.connack.present
	return c
}

// expectPresent checks the session present flag of the CONNACK.
func (c *client) expectPresent(present bool) *client {
	c.t.Helper()
	if c.present != present {
		c.t.Errorf("%s: session present %t, want %t", c.name, c.present, present)
	}
	return c
}

func (c *client) send(b []byte) {
	c.t.Helper()
	if err := c.write(b); err != nil {
		c.t.Fatalf("%s: write: %v", c.name, err)
	}
}

func (c *client) sendHex(s string) { c.t.Helper(); c.send(fromHex(s)) }

// wire reads the next packet off the connection, past what is in the inbox.
func (c *client) wire() packet {
	c.t.Helper()
	p, err := c.read(patience)
	if err != nil {
		c.t.Fatalf("%s: read: %v (before it: %v)", c.name, err, c.inbox)
	}
	return p
}

// next gives the next packet, which has to be of that kind.
func (c *client) next(kind byte) packet {
	c.t.Helper()
	var p packet
	if len(c.inbox) > 0 {
		p, c.inbox = c.inbox[0], c.inbox[1:]
	} else {
		p = c.wire()
	}
	if p.kind != kind {
		c.t.Fatalf("%s: got %v, want packet type %d", c.name, p, kind)
	}
	return p
}

// await gives the next packet of that kind; others stay in the inbox.
func (c *client) await(kind byte) packet {
	c.t.Helper()
	return c.awaitThat(func(p packet) bool { return p.kind == kind })
}

func (c *client) awaitThat(is func(p packet) bool) packet {
	c.t.Helper()
	if i := slices.IndexFunc(c.inbox, is); i >= 0 {
		p := c.inbox[i]
		c.inbox = slices.Delete(c.inbox, i, i+1)
		return p
	}
	for {
		p := c.wire()
		if is(p) {
			return p
		}
		c.inbox = append(c.inbox, p)
	}
}

// awaitID awaits a packet of that kind and id, which tells of success.
func (c *client) awaitID(kind byte, id uint16) packet {
	c.t.Helper()
	p := c.awaitThat(func(p packet) bool { return p.kind == kind && p.id == id })
	if p.code >= 0x80 {
		c.t.Fatalf("%s: got %v, want success", c.name, p)
	}
	return p
}

// take gives the next PUBLISH.
func (c *client) take() packet { c.t.Helper(); return c.await(kindPublish) }

// takePayload takes a PUBLISH with that payload.
func (c *client) takePayload(payload string) packet {
	c.t.Helper()
	p := c.take()
	if string(p.payload) != payload {
		c.t.Fatalf("%s: got %v, want payload %q", c.name, p, payload)
	}
	return p
}

// ack sends PUBACK, PUBREC, PUBREL or PUBCOMP.
func (c *client) ack(kind byte, id uint16) { c.t.Helper(); c.send(ackPacket(kind, id)) }

// settle acknowledges a PUBLISH to the end.
func (c *client) settle(p packet) packet {
	c.t.Helper()
	switch p.qos {
	case 1:
		c.ack(kindPuback, p.id)
	case 2:
		c.ack(kindPubrec, p.id)
		c.awaitID(kindPubrel, p.id)
		c.ack(kindPubcomp, p.id)
	}
	return p
}

// subscribe sends one SUBSCRIBE and reads its SUBACK, all of it granted.
func (c *client) subscribe(wants ...want) packet {
	c.t.Helper()
	return c.subscribeWith(nil, wants...)
}

func (c *client) subscribeWith(props []property, wants ...want) packet {
	c.t.Helper()
	c.lastID++
	c.send(subscribePacket(c.version, c.lastID, props, wants...))
	p := c.awaitID(kindSuback, c.lastID)
	if len(p.codes) != len(wants) {
		c.t.Fatalf("%s: %v for %d filters", c.name, p, len(wants))
	}
	for i, code := range p.codes {
		if code != wants[i].options&3 {
			c.t.Fatalf("%s: %v for %v", c.name, p, wants)
		}
	}
	return p
}

// publish sends m and waits until the handshake is complete (QoS 0: until the
// broker has read it).
func (c *client) publish(m message) {
	c.t.Helper()
	c.lastID++
	id := c.lastID
	c.send(m.packet(c.version, id, false))
	switch m.qos {
	case 0:
		c.ping()
	case 1:
		c.awaitID(kindPuback, id)
	case 2:
		c.awaitID(kindPubrec, id)
		c.ack(kindPubrel, id)
		c.awaitID(kindPubcomp, id)
	}
}

// publishAll sends n messages with up to window of them on the way, and waits
// for all acknowledgements. The client has no subscriptions.
func (c *client) publishAll(n, window int, make func(i int) message) {
	c.t.Helper()
	var batch []byte
	for sent, settled := 0, 0; settled < n; {
		batch = batch[:0]
		for ; sent < n && sent-settled < window; sent++ {
			batch = append(batch, make(sent).packet(c.version, uint16(sent%60000)+1, false)...)
		}
		c.send(batch)
		// Half a window of answers, then more is sent.
		low := window / 2
		if sent == n {
			low = 0
		}
		for sent-settled > low {
			p := c.wire()
			if p.code >= 0x80 {
				c.t.Fatalf("%s: %v", c.name, p)
			}
			switch p.kind {
			case kindPuback, kindPubcomp:
				settled++
			case kindPubrec:
				c.ack(kindPubrel, p.id)
			default:
				c.t.Fatalf("%s: %v while publishing", c.name, p)
			}
		}
	}
}

// ping proves that the broker has read everything that was sent. What comes
// before the answer goes to the inbox.
func (c *client) ping() {
	c.t.Helper()
	c.send([]byte{kindPingreq << 4, 0})
	c.await(kindPingresp)
}

// disconnect ends the connection in order and waits for the broker's end.
func (c *client) disconnect() {
	c.t.Helper()
	c.send([]byte{kindDisconnect << 4, 0})
	c.closed()
}

// closed reads to the end of the connection and gives what came before it.
func (c *client) closed() []packet {
	c.t.Helper()
	rest := c.inbox
	for {
		p, err := c.read(patience)
		switch {
		case err == nil:
			rest = append(rest, p)
		case errors.Is(err, os.ErrDeadlineExceeded):
			c.t.Fatalf("%s: still open; it sent %v", c.name, rest)
		default: // EOF or reset
			_ = c.conn.Close()
			return rest
		}
	}
}

// refused checks that the broker closes the connection and processes nothing:
// at most one CONNACK or DISCONNECT with an error comes before the end.
func (c *client) refused() []packet {
	c.t.Helper()
	rest := c.closed()
	for _, p := range rest {
		if p.kind != kindConnack && p.kind != kindDisconnect || p.code == 0 {
			c.t.Errorf("%s: %v before the end", c.name, p)
		}
	}
	return rest
}

var names atomic.Int64

// freeName gives a name that nobody else has.
func freeName() string { return strconv.FormatInt(names.Add(1), 10) }

// quickly is how long a test looks for something that may or may not come.
const quickly = 200 * time.Millisecond

// firstByteWithin waits until something can be read, and leaves it there.
func (c *client) firstByteWithin(wait time.Duration) error {
	_ = c.conn.SetReadDeadline(time.Now().Add(wait))
	_, err := c.r.Peek(1)
	return err
}
