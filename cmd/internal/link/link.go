// Package link is the MQTT 5 connection of the command line's clients: dial, CONNECT, packets, keep alive, an end that
// the server can read, and the judgement which end may be tried again.
//
// Nouns: a Conn is one network connection with its CONNECT answered; a Refusal is a CONNACK that says no; a Farewell
// is a DISCONNECT that the server sent.
//
// The package uses the packets of eclipse/paho.golang and not its client. The reasons, found in v0.23.0: Publish
// blocks until the message is acknowledged and AsyncSend tells nobody when it is, so a pipeline of ordered messages
// with counted acknowledgements is not possible: concurrent calls race between the packet id and the socket. When the
// server has lost the session, what was in flight is dropped without a word. A manual acknowledgement leaves on a
// timer, and a QoS 2 message that was handed on but not yet acknowledged when the connection broke is handed on again.
//
// Conn.Close waits for the one goroutine that Dial starts, which sends PINGREQ.
package link

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/eclipse/paho.golang/packets"
)

// ErrProtocol says that the server broke the protocol.
var ErrProtocol = errors.New("link: the server broke the MQTT protocol")

// Options say whom to connect to and as whom.
type Options struct {
	// Addr is host:port of the server.
	Addr     string
	ClientID string
	// Username and Password are left out of CONNECT when nil.
	Username *string
	Password []byte
	// KeepAlive in seconds; 0: 30 s. The server may choose another one.
	KeepAlive uint16
	// ReceiveMaximum is what the server may have in flight to this client; 0: not sent, which means 65535.
	ReceiveMaximum uint16
	// Timeout bounds dial and CONNECT together; 0: 10 s.
	Timeout time.Duration
}

// Session says which session a connection wants.
type Session struct {
	// CleanStart ends the session that the server may have [MQTT-3.1.2-4].
	CleanStart bool
	// Expiry is how long, in seconds, the server keeps the session after the connection; 0: not at all.
	Expiry uint32
}

// Conn is a connection whose CONNECT was answered with success. Read and Buffered belong to one goroutine; Write and
// Close may be called from another.
type Conn struct {
	// Present says that the server has kept the session.
	Present bool
	// Server is what the server allows.
	Server Allowed

	conn net.Conn
	r    *bufio.Reader
	idle time.Duration // without a byte for so long, the connection counts as lost

	interrupted atomic.Bool

	write   sync.Mutex // held across one Write, so that packets do not mix
	stop    chan struct{}
	stopped sync.WaitGroup
	close   sync.Once
}

// Allowed are the limits that the server set in its CONNACK.
type Allowed struct {
	ReceiveMaximum uint16
	// PacketSize is the largest packet that the server takes; 0: no limit.
	PacketSize uint32
	QoS        byte
	Retain     bool
}

// Refusal is a CONNACK with a reason code of 0x80 or more.
type Refusal struct {
	Code   byte
	Reason string
}

// Error returns the server's reason.
func (r *Refusal) Error() string {
	return fmt.Sprintf("link: the server refused the connection: %s (0x%02X)", r.Reason, r.Code)
}

// Farewell is a DISCONNECT from the server.
type Farewell struct {
	Code   byte
	Reason string
}

// Error returns the server's reason.
func (f *Farewell) Error() string {
	return fmt.Sprintf("link: the server disconnected: %s (0x%02X)", f.Reason, f.Code)
}

// Dial connects, sends CONNECT and waits for a CONNACK that says yes. Errors: *Refusal, ErrProtocol, or the network's.
func Dial(ctx context.Context, o Options, s Session) (*Conn, error) {
	timeout := o.Timeout
	if timeout == 0 {
		timeout = 10 * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	nc, err := (&net.Dialer{}).DialContext(ctx, "tcp", o.Addr)
	if err != nil {
		return nil, fmt.Errorf("link: connect to %s: %w", o.Addr, err)
	}
	// The end of ctx, also by its deadline, ends the handshake.
	unhook := context.AfterFunc(ctx, func() { _ = nc.SetDeadline(time.Unix(1, 0)) })
	c, err := handshake(nc, o, s)
	if !unhook() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		_ = nc.Close()
		if ctx.Err() != nil {
			err = fmt.Errorf("no CONNACK in time: %w", ctx.Err())
		}
		return nil, fmt.Errorf("link: connect to %s: %w", o.Addr, err)
	}
	c.stopped.Go(c.ping)
	return c, nil
}

func handshake(nc net.Conn, o Options, s Session) (*Conn, error) {
	keepAlive := o.KeepAlive
	if keepAlive == 0 {
		keepAlive = 30
	}
	connect := packets.Connect{
		ProtocolName: "MQTT", ProtocolVersion: 5, ClientID: o.ClientID, CleanStart: s.CleanStart, KeepAlive: keepAlive,
		Properties: &packets.Properties{},
	}
	if s.Expiry > 0 {
		connect.Properties.SessionExpiryInterval = &s.Expiry
	}
	if o.ReceiveMaximum > 0 {
		connect.Properties.ReceiveMaximum = &o.ReceiveMaximum
	}
	if o.Username != nil {
		connect.UsernameFlag, connect.Username = true, *o.Username
	}
	if o.Password != nil {
		connect.PasswordFlag, connect.Password = true, o.Password
	}
	var b bytes.Buffer
	if _, err := connect.WriteTo(&b); err != nil {
		return nil, fmt.Errorf("encode CONNECT: %w", err)
	}
	if _, err := nc.Write(b.Bytes()); err != nil {
		return nil, fmt.Errorf("send CONNECT: %w", err)
	}
	c := &Conn{conn: nc, r: bufio.NewReaderSize(nc, 64<<10), stop: make(chan struct{})}
	p, err := decode(c.r)
	if err != nil {
		return nil, fmt.Errorf("read CONNACK: %w", err)
	}
	ack, ok := p.Content.(*packets.Connack)
	if !ok {
		return nil, fmt.Errorf("%w: it answered CONNECT with %s", ErrProtocol, p.PacketType())
	}
	if ack.ReasonCode >= 0x80 {
		return nil, &Refusal{Code: ack.ReasonCode, Reason: reason(ack.Properties, ack.Reason())}
	}
	// [MQTT-3.2.2-2], [MQTT-3.2.2-4]: a session that nobody asked for.
	if ack.SessionPresent && s.CleanStart {
		return nil, fmt.Errorf("%w: session present after a clean start", ErrProtocol)
	}
	c.accept(ack, keepAlive)
	return c, nil
}

// accept takes over what the server says in its CONNACK.
func (c *Conn) accept(ack *packets.Connack, keepAlive uint16) {
	c.Present = ack.SessionPresent
	c.Server = Allowed{ReceiveMaximum: 65535, QoS: 2, Retain: true}
	if p := ack.Properties; p != nil {
		if p.ServerKeepAlive != nil && *p.ServerKeepAlive > 0 {
			keepAlive = *p.ServerKeepAlive // [MQTT-3.2.2-21]
		}
		if p.ReceiveMaximum != nil && *p.ReceiveMaximum > 0 {
			c.Server.ReceiveMaximum = *p.ReceiveMaximum
		}
		if p.MaximumPacketSize != nil {
			c.Server.PacketSize = *p.MaximumPacketSize
		}
		if p.MaximumQOS != nil {
			c.Server.QoS = *p.MaximumQOS
		}
		c.Server.Retain = p.RetainAvailable == nil || *p.RetainAvailable != 0
	}
	c.idle = time.Duration(keepAlive) * time.Second * 3 / 2
}

// ping sends PINGREQ three times in each idle time, so that a live server always has something to answer.
func (c *Conn) ping() {
	t := time.NewTicker(max(c.idle/3, time.Millisecond))
	defer t.Stop()
	for {
		select {
		case <-c.stop:
			return
		case <-t.C:
			if err := c.Write([]byte{packets.PINGREQ << 4, 0}); err != nil {
				_ = c.conn.Close() // wakes the reader, which reports
				return
			}
		}
	}
}

// Read returns the next packet other than PINGRESP. A DISCONNECT comes as the error *Farewell. The packet is the
// caller's.
func (c *Conn) Read() (*packets.ControlPacket, error) {
	for {
		if err := c.conn.SetReadDeadline(time.Now().Add(c.idle)); err != nil {
			return nil, fmt.Errorf("link: read: %w", err)
		}
		// Looked at after the deadline was set: an Interrupt before this line is seen here, one after it sets its
		// own deadline, which then is the later one.
		if c.interrupted.Load() {
			return nil, fmt.Errorf("link: read: %w", os.ErrDeadlineExceeded)
		}
		p, err := decode(c.r)
		if err != nil {
			return nil, fmt.Errorf("link: read: %w", err)
		}
		switch body := p.Content.(type) {
		case *packets.Pingresp:
		case *packets.Disconnect:
			return nil, &Farewell{Code: body.ReasonCode, Reason: reason(body.Properties, body.Reason())}
		case *packets.Connack, *packets.Connect, *packets.Subscribe, *packets.Unsubscribe, *packets.Pingreq, *packets.Auth:
			return nil, fmt.Errorf("%w: unexpected %s", ErrProtocol, p.PacketType())
		default:
			return p, nil
		}
	}
}

// Buffered says whether Read returns a packet without waiting for the network.
func (c *Conn) Buffered() bool {
	head, _ := c.r.Peek(min(c.r.Buffered(), 5))
	length, shift := 0, 0
	for i := 1; i < len(head); i++ {
		length |= int(head[i]&0x7F) << shift
		if head[i] < 0x80 {
			return c.r.Buffered() >= 1+i+length
		}
		shift += 7
	}
	return false
}

// Write sends whole packets. It may block as long as the server does not read, at most for the idle time.
func (c *Conn) Write(b []byte) error {
	c.write.Lock()
	defer c.write.Unlock()
	if err := c.conn.SetWriteDeadline(time.Now().Add(c.idle)); err != nil {
		return fmt.Errorf("link: write: %w", err)
	}
	if _, err := c.conn.Write(b); err != nil {
		return fmt.Errorf("link: write: %w", err)
	}
	return nil
}

// Interrupt makes a Read that waits, and all later ones, fail at once. It may be called from any goroutine.
func (c *Conn) Interrupt() {
	c.interrupted.Store(true)
	_ = c.conn.SetReadDeadline(time.Unix(1, 0))
}

// Disconnect says goodbye so that the server certainly can read it: DISCONNECT, then the end of our direction, then
// what the server still sends is read and thrown away until it closes, for at most two seconds. Closing a socket with
// unread bytes would reset the connection, and a reset may destroy acknowledgements that are on their way.
// endSession asks the server to forget the session.
func (c *Conn) Disconnect(endSession bool) {
	d := packets.Disconnect{Properties: &packets.Properties{}}
	if endSession {
		d.Properties.SessionExpiryInterval = new(uint32)
	}
	var b bytes.Buffer
	_, err := d.WriteTo(&b)
	if err == nil && c.Write(b.Bytes()) == nil {
		if half, ok := c.conn.(*net.TCPConn); ok {
			_ = half.CloseWrite()
		}
		_ = c.conn.SetReadDeadline(time.Now().Add(2 * time.Second))
		_, _ = c.r.WriteTo(discard{})
	}
	c.Close()
}

// discard is a writer that is no io.ReaderFrom, so that reading into it stays in the reader's buffer.
type discard struct{}

func (discard) Write(b []byte) (int, error) { return len(b), nil }

// Close ends the connection without a word and waits for its goroutine. It may be called more than once.
func (c *Conn) Close() {
	c.close.Do(func() {
		close(c.stop)
		_ = c.conn.Close()
	})
	c.stopped.Wait()
}

// decode reads one packet. The decoder must not bring the process down, whatever the other side sends.
func decode(r *bufio.Reader) (p *packets.ControlPacket, err error) {
	defer func() {
		if recovered := recover(); recovered != nil {
			p, err = nil, fmt.Errorf("%w: malformed packet: %v", ErrProtocol, recovered)
		}
	}()
	return packets.ReadPacket(r)
}

// reason prefers the server's own words to the standard's.
func reason(p *packets.Properties, standard string) string {
	if p != nil && p.ReasonString != "" {
		return p.ReasonString
	}
	if standard == "" {
		return "no reason given"
	}
	return standard
}
