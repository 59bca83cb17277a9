package wire

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"
)

// ListenOptions are the options of a [Listener]. The zero value is good.
type ListenOptions struct {
	// KeepAlive is the time between TCP keep-alive probes on a quiet connection. 0 is 15 s.
	KeepAlive time.Duration
	// HandshakeTimeout bounds the WebSocket handshake. 0 is 10 s. It bounds nothing on tcp://: the time until
	// CONNECT is the caller's matter.
	HandshakeTimeout time.Duration
	// Origins are the values of the Origin header, such as "https://example.com", from which browsers may connect by
	// WebSocket. When it is empty all may. Clients that send no Origin always may.
	Origins []string
	// AcceptFailed is called for each error of Accept that was waited out, from the goroutine of Run. It may be nil.
	AcceptFailed func(error)
}

func (o *ListenOptions) setDefaults() error {
	if o.KeepAlive < 0 || o.HandshakeTimeout < 0 {
		return errors.New("keep alive and handshake timeout must not be negative")
	}
	if o.KeepAlive == 0 {
		o.KeepAlive = 15 * time.Second
	}
	if o.HandshakeTimeout == 0 {
		o.HandshakeTimeout = 10 * time.Second
	}
	return nil
}

const (
	// After an Accept error the loop rests for minBackoff, then twice as long after each further one, up to maxBackoff.
	minBackoff = 5 * time.Millisecond
	maxBackoff = time.Second
)

// Listener is a bound socket that accepts MQTT connections, bare (tcp) or in WebSocket frames (ws) [MQTT-4.2.0-1].
type Listener struct {
	scheme string
	ln     net.Listener
	o      ListenOptions
	ws     *upgrader // nil for tcp
}

// Listen binds to addr: "tcp://host:port", "host:port", which is the same, or "ws://host:port". Port 0 takes any free
// one. It starts nothing: connections wait in the kernel's queue until Run.
func Listen(addr string, o ListenOptions) (*Listener, error) {
	scheme, host, ok := strings.Cut(addr, "://")
	if !ok {
		scheme, host = "tcp", addr
	}
	if err := o.setDefaults(); err != nil {
		return nil, fmt.Errorf("wire: listen on %s: %w", addr, err)
	}
	l := &Listener{scheme: scheme, o: o}
	switch scheme {
	case "tcp":
	case "ws":
		l.ws = newUpgrader(o)
	default:
		return nil, fmt.Errorf("wire: listen on %s: unknown scheme %q, want tcp or ws", addr, scheme)
	}
	config := net.ListenConfig{KeepAlive: o.KeepAlive}
	ln, err := config.Listen(context.Background(), "tcp", host)
	if err != nil {
		return nil, fmt.Errorf("wire: listen on %s: %w", addr, err)
	}
	l.ln = ln
	return l, nil
}

// Addr returns the address that the listener is bound to, with the real port.
func (l *Listener) Addr() net.Addr { return l.ln.Addr() }

// String returns the address with its scheme, such as "tcp://127.0.0.1:1883".
func (l *Listener) String() string { return l.scheme + "://" + l.ln.Addr().String() }

// Close unbinds a listener that was never run, or makes Run return an error.
func (l *Listener) Close() error { return l.ln.Close() }

// Run accepts connections until ctx is done, and calls accept for each one in a goroutine of its own. accept owns the
// connection and has to close it. On ws:// it is called after the handshake; Read and Write of its connection then carry
// the bytes inside binary frames.
//
// When ctx is done Run stops accepting, unbinds, and returns nil when all calls of accept have returned. It does not close
// their connections: whoever holds them does. Errors of Accept (no file descriptors left, a connection aborted before it
// was accepted) are waited out with a back-off and never end it; only Close does, with an error. Run may be called once.
func (l *Listener) Run(ctx context.Context, accept func(net.Conn)) error {
	ctx, cancel := context.WithCancel(ctx)
	var connections, closer sync.WaitGroup
	closer.Go(func() {
		<-ctx.Done()
		l.ln.Close() //nolint:errcheck // Accept tells
	})
	var err error
	for err == nil {
		var conn net.Conn
		if conn, err = l.accept(ctx); err == nil {
			connections.Go(func() { l.serve(ctx, conn, accept) })
		}
	}
	stopped := ctx.Err() != nil
	cancel()
	closer.Wait()
	connections.Wait()
	if stopped {
		return nil
	}
	return fmt.Errorf("wire: accept on %s: %w", l, err)
}

// accept waits for a connection. It returns an error only when the socket is closed.
func (l *Listener) accept(ctx context.Context) (net.Conn, error) {
	wait := minBackoff
	for {
		conn, err := l.ln.Accept()
		if err == nil {
			return conn, nil
		}
		if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
			return nil, err
		}
		if l.o.AcceptFailed != nil {
			l.o.AcceptFailed(err)
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil, ctx.Err()
		case <-timer.C:
		}
		wait = min(2*wait, maxBackoff)
	}
}

// serve hands over a connection, after the handshake that it needs. Until then the connection is ours, and is closed when
// ctx is done.
func (l *Listener) serve(ctx context.Context, conn net.Conn, accept func(net.Conn)) {
	if l.ws == nil {
		accept(conn)
		return
	}
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		conn.SetDeadline(time.Unix(1, 0)) //nolint:errcheck // it fails on closed connections only
		close(interrupted)
	})
	ws, err := l.ws.upgrade(conn)
	if !stop() {
		<-interrupted
		err = ctx.Err()
	}
	if err != nil {
		conn.Close() //nolint:errcheck // nobody is there to tell
		return
	}
	accept(ws)
}

// HangUp closes a connection so that what was written last can still be read. A plain Close makes TCP send a reset when
// input is unread, and the peer's system then throws away what it has not read: a DISCONNECT with its reason code, for
// one. So it closes the writing side, drops input until the peer closes or linger is over, and closes.
//
// It blocks for linger at most, and is to be called by the goroutine that reads, when nobody writes any more.
func HangUp(conn net.Conn, linger time.Duration) error {
	half, ok := conn.(interface{ CloseWrite() error })
	if ok && conn.SetDeadline(time.Now().Add(linger)) == nil && half.CloseWrite() == nil {
		var sink [256]byte
		for {
			if _, err := conn.Read(sink[:]); err != nil {
				break
			}
		}
	}
	return conn.Close()
}
