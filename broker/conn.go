package broker

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"go.uber.org/zap"

	"rewindmq/broker/session"
	"rewindmq/schema"
	"rewindmq/wire"
)

// readBatch bounds how many packets are taken in before what they ask of the
// store is handed over.
const readBatch = 64

// slowest is how many bytes of a packet must come in a second, once it has taken
// longer than the keep alive.
const slowest = 128

// conn is one network connection. Its fields are the reading goroutine's, but
// for the outbox and the waker.
type conn struct {
	b        *Broker
	nc       net.Conn
	reader   *wire.Reader
	listener string
	ctx      context.Context // ends with the connection
	cancel   context.CancelFunc
	out      outbox
	cl       *client

	version      wire.Version
	problem      bool // reason strings may be sent
	alias        aliases
	noAnswer     bool // DISCONNECT was read: nothing is sent any more
	surplus      bool // there are too many connections: CONNECT is refused
	clientExpiry uint32
	delayed      *schema.Will // the will, if it has a delay: see orphan
	// maximumPacketSize is what the client takes, in bytes; 0: anything.
	maximumPacketSize int
	// idle is how long the peer may be silent: CONNECT's time-out first, then
	// 1.5 times its keep alive; 0: for ever.
	idle  time.Duration
	armed time.Time
	// begun is when the wait for the present packet began, and arrived how many
	// bytes have come since; whole: that packet is complete, the next Read begins.
	begun   time.Time
	arrived int
	whole   bool
	held    int // packets since appends were handed over

	reasonMu sync.Mutex
	reason   string // why the connection ended, for the log and the metric
}

// Serve runs one connection until it has ended, and closes it. The listener
// calls it in a goroutine of the connection's own.
func (b *Broker) Serve(listener string, nc net.Conn) {
	n := b.connections.Add(1)
	defer b.connections.Add(-1)
	limit := int64(b.o.Connections)
	if n > limit+max(limit/16, 16) {
		_ = nc.Close() // too many even to tell them
		return
	}
	c := &conn{b: b, nc: nc, listener: listener, problem: true, idle: b.o.ConnectTimeout, surplus: n > limit}
	c.ctx, c.cancel = context.WithCancel(b.life)
	defer c.cancel()
	c.out.init(nc, &b.tasks, &b.buffers, b.o.OutboxBytes)
	c.reader = wire.NewReader(c, wire.ReaderOptions{
		MaxPacketSize: uint32(b.o.MaximumPacketSize), RefuseControlCharacters: true,
	})
	c.run()
}

// aside runs fn on the stack of another goroutine, and waits for it. CONNECT needs
// a deep stack; the goroutine that then waits for packets, thousands of which may
// be idle, keeps a small one.
func (c *conn) aside(fn func() error) error {
	done := make(chan error, 1)
	go func() { done <- fn() }()
	return <-done
}

// Read reads from the network for the packet reader, and judges keep alive: only
// here, so that it is not judged while the broker itself does not read
// [MQTT-3.1.2-22]. Any byte that arrives counts, since a large packet may take
// longer than the keep alive on a slow link (F-23); but a packet that comes in
// slower than slowest is not waited for, and CONNECT has its time-out and no more.
//
// Nothing more has arrived when this is called: what the packets before asked of
// the store is handed over together.
func (c *conn) Read(p []byte) (int, error) {
	if c.held > 0 {
		c.release()
	}
	if c.idle > 0 {
		if now := time.Now(); now.Sub(c.armed) > c.idle/16 {
			c.armed = now
			if err := c.out.readBy(c.deadline(now)); err != nil {
				return 0, err
			}
		}
	}
	n, err := c.nc.Read(p)
	c.arrived += n
	return n, err
}

// deadline tells until when the next byte must have come.
func (c *conn) deadline(now time.Time) time.Time {
	if c.whole || c.begun.IsZero() {
		c.whole, c.begun, c.arrived = false, now, 0
	}
	if c.cl == nil { // before CONNECT
		return c.begun.Add(c.idle)
	}
	silence, rate := now.Add(c.idle), c.begun.Add(c.idle+time.Duration(c.arrived)*time.Second/slowest)
	if rate.Before(silence) {
		return rate
	}
	return silence
}

// setIdle changes how long the peer may be silent.
func (c *conn) setIdle(d time.Duration) {
	c.idle, c.armed, c.begun = d, time.Time{}, time.Time{}
	if d == 0 {
		_ = c.out.readBy(time.Time{})
	}
}

func (c *conn) run() {
	err := c.aside(c.connect)
	if err == nil {
		c.b.m.connected(c.listener, c.version, 1)
		err = c.readLoop()
		c.b.m.connected(c.listener, c.version, -1)
	}
	gone := c.conclude(err)
	if c.cl != nil {
		c.cl.detach() // at once: what is to be done of the session waits for no dead peer
	}
	if !gone {
		c.linger()
	}
	_ = c.nc.Close()
}

// readLoop takes packets until the connection ends, or the session has ended it: what
// comes then is nobody's, and a peer that goes on sending is not served by it.
func (c *conn) readLoop() error {
	defer c.release()
	for {
		c.reader.Wait()
		p, err := c.reader.ReadPacket()
		if err != nil {
			return err
		}
		c.whole = true
		if err := c.on(p); err != nil {
			return err
		}
		full, closing := c.out.state()
		if closing {
			return nil
		}
		if full || c.held >= readBatch {
			c.release() // before the wait: what was read waits for nobody's reading
		}
		if full {
			c.out.wait()
		}
	}
}

// hold keeps back what the next packets ask of the store, until release.
func (c *conn) hold() {
	if c.held++; c.held == 1 {
		c.cl.mu.Lock()
		c.cl.hold = true
		c.cl.mu.Unlock()
	}
}

func (c *conn) release() {
	if c.held == 0 {
		return
	}
	c.held = 0
	c.cl.mu.Lock()
	c.cl.hold = false
	c.cl.flushAppends()
	c.cl.mu.Unlock()
}

// on takes one packet.
func (c *conn) on(p wire.Packet) error {
	switch p := p.(type) {
	case *wire.Publish:
		return c.onPublish(p)
	case *wire.Ack:
		return c.onAck(p)
	case *wire.Subscribe:
		return c.onSubscribe(p)
	case *wire.Unsubscribe:
		return c.onUnsubscribe(p)
	case *wire.Pingreq:
		c.b.poke()
		c.out.put(wire.AppendPingresp) // [MQTT-3.12.4-1]
		return nil
	case *wire.Disconnect:
		return c.onDisconnect(p)
	case *wire.Auth:
		// No enhanced authentication was agreed on [MQTT-4.12.0-7].
		return &wire.Error{Code: wire.ProtocolError, Err: errors.New("AUTH without an authentication method")}
	default: // a second CONNECT [MQTT-3.1.0-2]
		return &wire.Error{Code: wire.ProtocolError, Err: errors.New("second CONNECT")}
	}
}

// errDisconnect ends the read loop after a DISCONNECT.
var errDisconnect = errors.New("broker: DISCONNECT")

// conclude finds the reason of the end, tells the peer if it may be told, and
// closes the outbox behind what waits in it. gone: the peer has closed before.
func (c *conn) conclude(err error) (gone bool) {
	var bad *wire.Error
	var timeout net.Error
	switch {
	case err == nil, errors.Is(err, errDisconnect):
	case errors.As(err, &bad):
		c.fail(bad.Code)
		c.b.m.protocolError(bad.Code)
	case c.closing():
	case errors.As(err, &timeout) && timeout.Timeout():
		if c.cl != nil {
			c.fail(wire.KeepAliveTimeout)
		}
		c.setReason("keepalive")
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		c.setReason("closed")
		gone = true
	case !errors.Is(err, errRefused):
		c.setReason("network")
		gone = true
	}
	c.out.close()
	return gone
}

// fail sends DISCONNECT with the reason, if the protocol has it [MQTT-4.13.1-1,
// MQTT-4.13.2-1]. Before CONNACK nothing but a CONNACK is sent [MQTT-3.14.0-1].
// Nothing follows it, and the connection is closed [MQTT-3.14.4-1, MQTT-3.14.4-2].
// No reason string is sent, whatever the client allows [MQTT-3.1.2-29].
func (c *conn) fail(code wire.ReasonCode) {
	c.setReason(code.String())
	if c.version == wire.V5 && c.cl != nil && !c.noAnswer {
		c.out.last(func(b []byte) []byte { return wire.AppendDisconnect(b, c.version, code, "") })
	}
}

// disconnect ends the connection for a reason of the session's. Called with the
// client's lock held.
func (c *conn) disconnect(why session.Reason) {
	switch why {
	case session.ReasonDetached, session.ReasonNormal, session.ReasonWithWill:
		c.out.close()
		return
	}
	c.setReason(string(why))
	if why == session.ReasonProtocol || why == session.ReasonReceiveMax { // what the session noticed
		c.b.m.protocolError(codeOf(why))
	}
	switch {
	case !c.cl.opened: // [MQTT-3.14.0-1]
		c.out.last(func(b []byte) []byte {
			return wire.AppendConnack(b, c.version, &wire.Connack{Code: wire.ServerUnavailable})
		})
	case c.version == wire.V5:
		c.out.last(func(b []byte) []byte { return c.farewell(b, why) })
	}
	c.out.close()
	c.cancel()
}

// farewell appends the DISCONNECT for a reason of the session's. It names another
// server at the end of this one, if that is known and the client takes so long a
// packet [MQTT-3.1.2-24].
func (c *conn) farewell(b []byte, why session.Reason) []byte {
	if reference := c.b.o.ServerReference; why == session.ReasonShutdown && reference != "" {
		p := wire.AppendRedirect(nil, c.version, wire.UseAnotherServer, reference)
		if c.maximumPacketSize == 0 || len(p) <= c.maximumPacketSize {
			return append(b, p...)
		}
		return wire.AppendDisconnect(b, c.version, wire.UseAnotherServer, "")
	}
	return wire.AppendDisconnect(b, c.version, codeOf(why), "")
}

// codeOf gives the reason code of a DISCONNECT.
func codeOf(why session.Reason) wire.ReasonCode {
	switch why {
	case session.ReasonTakenOver:
		return wire.SessionTakenOver
	case session.ReasonReceiveMax:
		return wire.ReceiveMaximumExceeded
	case session.ReasonInDoubt:
		return wire.ServerBusy
	case session.ReasonShutdown:
		return wire.ServerShuttingDown
	case session.ReasonExpired:
		return wire.KeepAliveTimeout
	case session.ReasonProtocol:
		return wire.ProtocolError
	case session.ReasonAdmin:
		return wire.AdministrativeAction
	}
	return wire.UnspecifiedError
}

func (c *conn) closing() bool {
	_, closing := c.out.state()
	return closing
}

// setReason keeps the first reason.
func (c *conn) setReason(why string) {
	c.reasonMu.Lock()
	defer c.reasonMu.Unlock()
	if c.reason == "" {
		c.reason = why
	}
}

func (c *conn) endReason() string {
	c.reasonMu.Lock()
	defer c.reasonMu.Unlock()
	if c.reason == "" {
		return "normal"
	}
	return c.reason
}

// linger reads on, and throws away, until the peer has closed or a short time is
// over: closing a socket with bytes unread would reset it, and the peer might
// lose the DISCONNECT that explains the close.
func (c *conn) linger() {
	_ = c.nc.SetReadDeadline(time.Now().Add(flushTimeout))
	_, _ = io.CopyN(io.Discard, c.nc, 1<<20)
}

// detach tells the session that its connection is gone, and waits for nothing:
// the session lets go by itself.
func (cl *client) detach() {
	cl.mu.Lock()
	owned, opened := cl.s != nil, cl.opened
	cl.mu.Unlock()
	if !owned {
		return
	}
	cl.input(func(s *session.Session) { s.Close(session.ReasonDetached) })
	if !opened {
		return // never told that it was connected, nor counted
	}
	why := cl.c.endReason()
	cl.b.m.disconnected(why)
	cl.b.o.Log.Info("connection closed", zap.String("client", cl.id), zap.String("remote", remote(cl.c.nc)), zap.String("reason", why))
}

func remote(nc net.Conn) string {
	if a := nc.RemoteAddr(); a != nil {
		return a.String()
	}
	return ""
}
