package wire

import (
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// deadline bounds what a test waits for; it is never waited out when the test passes.
const deadline = 10 * time.Second

// listen binds to a free port and runs accept on each connection until the test ends. It returns the address, and stop,
// which ends the listener and returns what Run returned.
func listen(t *testing.T, scheme string, o ListenOptions, accept func(net.Conn)) (l *Listener, stop func() error) {
	t.Helper()
	l, err := Listen(scheme+"://127.0.0.1:0", o)
	if err != nil {
		t.Fatal(err)
	}
	return l, run(t, l, accept)
}

func run(t *testing.T, l *Listener, accept func(net.Conn)) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx, accept) }()
	stop = sync.OnceValue(func() error {
		cancel()
		select {
		case err := <-done:
			return err
		case <-time.After(deadline):
			t.Error("Run does not return")
			return nil
		}
	})
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return stop
}

// echo answers each packet: CONNECT by CONNACK, PINGREQ by PINGRESP, PUBLISH by itself.
func echo(conn net.Conn) {
	defer conn.Close() //nolint:errcheck // the peer sees it
	r := NewReader(conn, ReaderOptions{})
	for {
		p, err := r.ReadPacket()
		if err != nil {
			return
		}
		var out []byte
		switch p := p.(type) {
		case *Connect:
			out = AppendConnack(nil, p.Version, &Connack{})
		case *Pingreq:
			out = AppendPingresp(nil)
		case *Publish:
			out = AppendPublish(nil, r.Version(), p)
		}
		if _, err := conn.Write(out); err != nil {
			return
		}
	}
}

func dial(t *testing.T, l *Listener) net.Conn {
	t.Helper()
	conn, err := net.DialTimeout("tcp", l.Addr().String(), deadline)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() }) //nolint:errcheck // it may be closed
	if err := conn.SetDeadline(time.Now().Add(deadline)); err != nil {
		t.Fatal(err)
	}
	return conn
}

func write(t *testing.T, w io.Writer, b []byte) {
	t.Helper()
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
}

func TestListenTCP(t *testing.T) {
	t.Parallel()
	l, stop := listen(t, "tcp", ListenOptions{}, echo)
	if !strings.HasPrefix(l.String(), "tcp://127.0.0.1:") || strings.HasSuffix(l.String(), ":0") {
		t.Errorf("String is %s", l)
	}
	conn := dial(t, l)
	write(t, conn, AppendPingreq(AppendConnect(nil, &Connect{Version: V311, ClientID: "c", CleanStart: true})))
	r := NewReader(conn, ReaderOptions{FromServer: true})
	if p, err := r.ReadPacket(); err != nil || p.(*Connack).Code != Success {
		t.Fatalf("got %#v, %v", p, err)
	}
	if p, err := r.ReadPacket(); err != nil {
		t.Fatalf("got %#v, %v", p, err)
	}
	conn.Close() //nolint:errcheck // the broker's side sees it
	if err := stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
	if conn, err := net.Dial("tcp", l.Addr().String()); err == nil {
		conn.Close() //nolint:errcheck // a failed test
		t.Error("the port still answers")
	}
}

func TestListenRefuses(t *testing.T) {
	t.Parallel()
	for addr, want := range map[string]string{
		"mqtt://127.0.0.1:0":    "unknown scheme",
		"tcp://127.0.0.1":       "missing port",
		"ws://127.0.0.1:0/path": "", // whatever net says
		"tcp://127.0.0.1:99999": "",
	} {
		l, err := Listen(addr, ListenOptions{})
		if err == nil {
			l.Close() //nolint:errcheck // a failed test
			t.Errorf("%s: listens on %s", addr, l)
			continue
		}
		if !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), addr) {
			t.Errorf("%s: %v", addr, err)
		}
	}
	if _, err := Listen("127.0.0.1:0", ListenOptions{KeepAlive: -1}); err == nil {
		t.Error("a negative keep alive is taken")
	}
}

// pipes is a listener without a network, for tests with a clock of their own.
type pipes struct {
	accept chan func() (net.Conn, error)
	closed chan struct{}
	once   sync.Once
}

func newPipes() *pipes {
	return &pipes{accept: make(chan func() (net.Conn, error)), closed: make(chan struct{})}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case f := <-p.accept:
		return f()
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

// TestRunWaits: Run returns only when the last accept has, and does not close its connection.
func TestRunWaits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ln := newPipes()
		l := &Listener{scheme: "tcp", ln: ln}
		ctx, cancel := context.WithCancel(t.Context())
		release, done := make(chan struct{}), make(chan error, 1)
		go func() {
			done <- l.Run(ctx, func(conn net.Conn) {
				<-release
				conn.Close() //nolint:errcheck // the other end sees it
			})
		}()
		client, server := net.Pipe()
		ln.accept <- func() (net.Conn, error) { return server, nil }
		cancel()
		synctest.Wait()
		select {
		case err := <-done:
			t.Errorf("Run has returned %v while accept runs", err)
		default:
		}
		go client.Write([]byte("x")) //nolint:errcheck // the other end sees it
		if n, err := server.Read(make([]byte, 1)); n != 1 || err != nil {
			t.Errorf("the connection is gone: %v", err)
		}
		close(release)
		synctest.Wait()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		default:
			t.Error("Run does not return")
		}
	})
}

// TestRunEndsByClose: without ctx, only a closed socket ends it, and with an error.
func TestRunEndsByClose(t *testing.T) {
	t.Parallel()
	l, err := Listen("127.0.0.1:0", ListenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- l.Run(context.Background(), echo) }()
	dial(t, l).Close() //nolint:errcheck // only to see it run
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Run: %v", err)
	}
}

// flaky fails some calls of Accept.
type flaky struct {
	net.Listener
	mu     sync.Mutex
	errors []error
}

func (f *flaky) Accept() (net.Conn, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.errors) > 0 {
		err := f.errors[0]
		f.errors = f.errors[1:]
		return nil, err
	}
	return f.Listener.Accept()
}

// TestAcceptErrorsAreSurvived: no error of Accept ends a listener, of either kind.
func TestAcceptErrorsAreSurvived(t *testing.T) {
	t.Parallel()
	failures := []error{
		&net.OpError{Op: "accept", Err: syscall.EMFILE},
		&net.OpError{Op: "accept", Err: syscall.ECONNABORTED},
		errors.New("something that nobody has thought of"),
	}
	for _, scheme := range []string{"tcp", "ws"} {
		var seen []error
		l, err := Listen(scheme+"://127.0.0.1:0", ListenOptions{AcceptFailed: func(err error) { seen = append(seen, err) }})
		if err != nil {
			t.Fatal(err)
		}
		l.ln = &flaky{Listener: l.ln, errors: append([]error(nil), failures...)}
		stop := run(t, l, echo)
		var client io.ReadWriteCloser = dial(t, l)
		if scheme == "ws" {
			client.Close() //nolint:errcheck // another one takes its place
			client = dialWS(t, l, subprotocol)
		}
		write(t, client, AppendConnect(nil, &Connect{Version: V5, ClientID: "c"}))
		r := NewReader(client, ReaderOptions{FromServer: true})
		r.SetVersion(V5)
		if p, err := r.ReadPacket(); err != nil {
			t.Errorf("%s: got %#v, %v", scheme, p, err)
		}
		client.Close() //nolint:errcheck // the server sees it
		if err := stop(); err != nil {
			t.Errorf("%s: Run: %v", scheme, err)
		}
		if len(seen) != len(failures) {
			t.Errorf("%s: AcceptFailed saw %v", scheme, seen)
		}
	}
}

// TestBackoff: the rest after an error doubles up to a second, begins anew after a success, and a stop does not wait for
// its end.
func TestBackoff(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ln := newPipes()
		l := &Listener{scheme: "tcp", ln: ln}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- l.Run(ctx, func(conn net.Conn) { conn.Close() }) }() //nolint:errcheck // not needed
		fail := func() time.Duration {
			start := time.Now()
			ln.accept <- func() (net.Conn, error) { return nil, syscall.EMFILE }
			return time.Since(start) // the rest after the failure before this one
		}
		want := []time.Duration{0, 5, 10, 20, 40, 80, 160, 320, 640, 1000, 1000}
		for i, w := range want {
			if got := fail(); got != w*time.Millisecond {
				t.Errorf("rest %d is %s, want %s", i, got, w*time.Millisecond)
			}
		}
		client, server := net.Pipe()
		ln.accept <- func() (net.Conn, error) { return server, nil }
		client.Close() //nolint:errcheck // not needed
		for i, w := range []time.Duration{0, 5, 10} {
			if got := fail(); got != w*time.Millisecond {
				t.Errorf("after a success rest %d is %s, want %s", i, got, w*time.Millisecond)
			}
		}
		start := time.Now()
		cancel()
		if err := <-done; err != nil || time.Since(start) != 0 {
			t.Errorf("Run: %v after %s", err, time.Since(start))
		}
	})
}

// noticing tells when it has accepted.
type noticing struct {
	net.Listener
	accepted chan struct{}
}

func (n *noticing) Accept() (net.Conn, error) {
	conn, err := n.Listener.Accept()
	if err == nil {
		n.accepted <- struct{}{}
	}
	return conn, err
}

// TestStopDuringHandshake: a connection that never sends its upgrade request does not hold up the end.
func TestStopDuringHandshake(t *testing.T) {
	t.Parallel()
	l, err := Listen("ws://127.0.0.1:0", ListenOptions{HandshakeTimeout: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	accepted := make(chan struct{}, 1)
	l.ln = &noticing{Listener: l.ln, accepted: accepted}
	stop := run(t, l, echo)
	conn := dial(t, l)
	<-accepted
	if err := stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
	if n, err := conn.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("got %d bytes, %v", n, err)
	}
}

// TestIdleConnectionsAreSmall: what a thousand connections cost that wait in ReadPacket, both ends, kernel not counted.
func TestIdleConnectionsAreSmall(t *testing.T) { // not parallel: it measures the process
	const connections = 1000
	for scheme, limit := range map[string]uint64{"tcp": 7 << 10, "ws": 8 << 10} {
		waiting := make(chan struct{}, connections)
		l, _ := listen(t, scheme, ListenOptions{}, func(conn net.Conn) {
			defer conn.Close() //nolint:errcheck // the client tells
			r := NewReader(conn, ReaderOptions{})
			for {
				p, err := r.ReadPacket()
				if err != nil {
					return
				}
				if _, ok := p.(*Pingreq); ok {
					waiting <- struct{}{}
				}
			}
		})
		before := inUse()
		in := AppendConnect(nil, &Connect{Version: V311, ClientID: "client-0001", KeepAlive: 60})
		in = AppendPublish(in, V311, &Publish{Topic: "a", Payload: make([]byte, 30)})
		in = AppendPingreq(in)
		for range connections {
			conn := dial(t, l)
			if scheme == "ws" {
				upgradeRaw(t, conn)
				// One masked frame, its key 0.
				write(t, conn, append([]byte{0x82, 0xfe, byte(len(in) >> 8), byte(len(in)), 0, 0, 0, 0}, in...))
			} else {
				write(t, conn, in)
			}
			<-waiting
		}
		got := (inUse() - before) / connections
		t.Logf("%s: %d bytes for each idle connection", scheme, got)
		if got > limit && !raceEnabled {
			t.Errorf("%s: %d bytes for each idle connection, at most %d", scheme, got, limit)
		}
	}
}

// inUse is the heap and the stacks after a collection.
func inUse() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}

// TestHangUp: what was written last is read by a peer that has sent more than was taken, on each kind of connection.
func TestHangUp(t *testing.T) {
	t.Parallel()
	for _, scheme := range []string{"tcp", "ws"} {
		read := make(chan struct{})
		l, _ := listen(t, scheme, ListenOptions{}, func(conn net.Conn) {
			<-read                                                      // input is waiting, and is never parsed
			conn.Write(AppendDisconnect(nil, V5, SessionTakenOver, "")) //nolint:errcheck // the client tells
			HangUp(conn, deadline)                                      //nolint:errcheck // the client tells
		})
		var client io.ReadWriteCloser
		if scheme == "ws" {
			client = dialWS(t, l, subprotocol)
		} else {
			client = dial(t, l)
		}
		write(t, client, make([]byte, 10_000))
		close(read)
		write(t, client, make([]byte, 10_000))
		r := NewReader(client, ReaderOptions{FromServer: true})
		r.SetVersion(V5)
		p, err := r.ReadPacket()
		if d, ok := p.(*Disconnect); err != nil || !ok || d.Code != SessionTakenOver {
			t.Errorf("%s: got %#v, %v", scheme, p, err)
		}
		if _, err := r.ReadPacket(); !errors.Is(err, io.EOF) {
			t.Errorf("%s: then %v", scheme, err)
		}
		client.Close() //nolint:errcheck // the server waits for it
	}
	a, b := net.Pipe() // has no half to close
	if err := HangUp(a, deadline); err != nil {
		t.Error(err)
	}
	if _, err := b.Write([]byte("x")); err == nil {
		t.Error("the pipe is still open")
	}
}
