package wire

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// dialWS connects by WebSocket and returns the byte stream inside.
func dialWS(t *testing.T, l *Listener, protocols ...string) net.Conn {
	t.Helper()
	ws := dialFrames(t, l, "/mqtt", nil, protocols...)
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	t.Cleanup(cancel)
	return websocket.NetConn(ctx, ws, websocket.MessageBinary)
}

func dialFrames(t *testing.T, l *Listener, path string, header http.Header, protocols ...string) *websocket.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	ws, _, err := websocket.Dial(ctx, l.String()+path, &websocket.DialOptions{
		Subprotocols: protocols, HTTPHeader: header, HTTPClient: client(t),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ws.CloseNow() }) //nolint:errcheck // it may be closed
	return ws
}

// client keeps no idle connections: they would be leaked goroutines.
func client(t *testing.T) *http.Client {
	t.Helper()
	transport := &http.Transport{DisableKeepAlives: true}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

func frame(t *testing.T, ws *websocket.Conn, kind websocket.MessageType, b []byte) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	if err := ws.Write(ctx, kind, b); err != nil {
		t.Fatal(err)
	}
}

// packetsOf returns a Reader of what comes back.
func packetsOf(t *testing.T, ws *websocket.Conn, v Version) *Reader {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	t.Cleanup(cancel)
	r := NewReader(websocket.NetConn(ctx, ws, websocket.MessageBinary), ReaderOptions{FromServer: true})
	r.SetVersion(v)
	return r
}

// TestWebSocketFrames: a packet may be split anywhere, and a frame may hold several [MQTT-6.0.0-2].
func TestWebSocketFrames(t *testing.T) {
	t.Parallel()
	l, _ := listen(t, "ws", ListenOptions{}, echo)
	connect := AppendConnect(nil, &Connect{Version: V5, ClientID: "c"})
	for _, path := range []string{"/", "/mqtt", ""} {
		ws := dialFrames(t, l, path, nil, "mqtt")
		if ws.Subprotocol() != "mqtt" { // [MQTT-6.0.0-4]
			t.Fatalf("subprotocol %q", ws.Subprotocol())
		}
		r := packetsOf(t, ws, V5)
		frame(t, ws, websocket.MessageBinary, connect[:1]) // the first byte alone
		frame(t, ws, websocket.MessageBinary, nil)
		frame(t, ws, websocket.MessageBinary, connect[1:])
		if p, err := r.ReadPacket(); err != nil || p.(*Connack).Code != Success {
			t.Fatalf("got %#v, %v", p, err)
		}
		var three []byte
		for i := range 3 {
			three = AppendPublish(three, V5, &Publish{Topic: "f22/w" + fmt.Sprint(i), Payload: []byte("v")})
		}
		frame(t, ws, websocket.MessageBinary, three) // three in one
		for i := range 3 {
			p, err := r.ReadPacket()
			if pub, ok := p.(*Publish); err != nil || !ok || pub.Topic != "f22/w"+fmt.Sprint(i) {
				t.Fatalf("got %#v, %v", p, err)
			}
		}
		large := AppendPublish(nil, V5, &Publish{Topic: "large", Payload: bytes.Repeat([]byte("x"), 100_000)})
		rest := AppendPingreq(append([]byte(nil), large[50_000:]...))
		frame(t, ws, websocket.MessageBinary, large[:50_000])
		frame(t, ws, websocket.MessageBinary, rest) // the end of one and another
		if p, err := r.ReadPacket(); err != nil || len(p.(*Publish).Payload) != 100_000 {
			t.Fatalf("got %T, %v", p, err)
		}
		if p, err := r.ReadPacket(); err != nil {
			t.Fatalf("got %#v, %v", p, err)
		}
		ws.Close(websocket.StatusNormalClosure, "") //nolint:errcheck // the server sees it
	}
}

// TestWebSocketFragments: a message in several fragments, with a ping between them, is one stream.
func TestWebSocketFragments(t *testing.T) {
	t.Parallel()
	l, _ := listen(t, "ws", ListenOptions{}, echo)
	ws := dialFrames(t, l, "/mqtt", nil, "mqtt")
	r := packetsOf(t, ws, V5)
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	w, err := ws.Writer(ctx, websocket.MessageBinary)
	if err != nil {
		t.Fatal(err)
	}
	in := AppendPingreq(AppendConnect(nil, &Connect{Version: V5, ClientID: strings.Repeat("c", 5000)}))
	for len(in) > 0 {
		n := min(len(in), 700)
		write(t, w, in[:n])
		in = in[n:]
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 { // CONNACK and PINGRESP
		if p, err := r.ReadPacket(); err != nil {
			t.Fatalf("got %#v, %v", p, err)
		}
	}
	got := make(chan error, 1)
	go func() { // a pong is taken by whoever reads
		_, err := r.ReadPacket()
		got <- err
	}()
	if err := ws.Ping(ctx); err != nil {
		t.Errorf("ping: %v", err)
	}
	ws.CloseNow() //nolint:errcheck // ends the read
	if err := <-got; err != nil {
		t.Log(err)
	}
}

// TestWebSocketTextFrame: it closes the connection, and the reader says why [MQTT-6.0.0-1].
func TestWebSocketTextFrame(t *testing.T) {
	t.Parallel()
	got := make(chan error, 1)
	l, _ := listen(t, "ws", ListenOptions{}, func(conn net.Conn) {
		r := NewReader(conn, ReaderOptions{})
		_, err := r.ReadPacket()
		got <- err
		conn.Close() //nolint:errcheck // once more does no harm
	})
	ws := dialFrames(t, l, "/mqtt", nil, "mqtt")
	frame(t, ws, websocket.MessageText, AppendConnect(nil, &Connect{Version: V5, ClientID: "c"}))
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	if _, _, err := ws.Read(ctx); websocket.CloseStatus(err) != websocket.StatusUnsupportedData {
		t.Errorf("the client sees %v", err)
	}
	var fault *Error
	if err := <-got; !errors.As(err, &fault) || fault.Code != ProtocolError {
		t.Errorf("the reader says %v", err)
	}
}

// TestWebSocketEnds: however a peer ends, the reader sees what it would see on TCP.
func TestWebSocketEnds(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		end  func(*websocket.Conn)
		want error
	}{
		"normal":     {func(ws *websocket.Conn) { ws.Close(websocket.StatusNormalClosure, "") }, io.EOF}, //nolint:errcheck // the server tells
		"going away": {func(ws *websocket.Conn) { ws.Close(websocket.StatusGoingAway, "") }, io.EOF},     //nolint:errcheck // the server tells
		"cut":        {func(ws *websocket.Conn) { ws.CloseNow() }, io.ErrUnexpectedEOF},                  //nolint:errcheck // the server tells
	} {
		got := make(chan error, 1)
		l, _ := listen(t, "ws", ListenOptions{}, func(conn net.Conn) {
			defer conn.Close() //nolint:errcheck // the client is gone
			_, err := conn.Read(make([]byte, 10))
			got <- err
		})
		c.end(dialFrames(t, l, "/mqtt", nil, "mqtt"))
		if err := <-got; !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
	}
}

// TestWebSocketDeadline: a read deadline that passes is that error, and does not close: DISCONNECT can still be sent.
func TestWebSocketDeadline(t *testing.T) {
	t.Parallel()
	got := make(chan error, 1)
	l, _ := listen(t, "ws", ListenOptions{}, func(conn net.Conn) {
		defer conn.Close()                                     //nolint:errcheck // the client tells
		conn.SetReadDeadline(time.Now().Add(time.Millisecond)) //nolint:errcheck // the read tells
		_, err := conn.Read(make([]byte, 10))
		got <- err
		conn.Write(AppendDisconnect(nil, V5, KeepAliveTimeout, "")) //nolint:errcheck // the client tells
	})
	r := packetsOf(t, dialFrames(t, l, "/", nil, "mqtt"), V5)
	p, err := r.ReadPacket()
	if d, ok := p.(*Disconnect); err != nil || !ok || d.Code != KeepAliveTimeout {
		t.Errorf("got %#v, %v", p, err)
	}
	if err := <-got; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the reader sees %v", err)
	}
}

// TestWebSocketCloseDoesNotBlock: also when the peer's receive window is full and nobody writes.
func TestWebSocketCloseDoesNotBlock(t *testing.T) {
	t.Parallel()
	closed := make(chan struct{})
	l, _ := listen(t, "ws", ListenOptions{}, func(conn net.Conn) {
		tcp := conn.(*wsConn).Conn
		tcp.SetWriteDeadline(time.Now().Add(50 * time.Millisecond)) //nolint:errcheck // the write tells
		for {
			if _, err := tcp.Write(make([]byte, 1<<20)); err != nil {
				break
			}
		}
		tcp.SetWriteDeadline(time.Time{}) //nolint:errcheck // as it was
		conn.Close()                      //nolint:errcheck // that it returns counts
		close(closed)
	})
	ws := dialFrames(t, l, "/", nil, "mqtt")
	select {
	case <-closed:
	case <-time.After(deadline):
		t.Error("Close blocks")
	}
	ws.CloseNow() //nolint:errcheck // frees it
}

// TestWebSocketStalledWrite: a write to a peer that does not read is freed by a deadline that another goroutine sets,
// and by Close.
func TestWebSocketStalledWrite(t *testing.T) {
	t.Parallel()
	for name, free := range map[string]func(net.Conn){
		"deadline": func(conn net.Conn) { conn.SetWriteDeadline(time.Now()) }, //nolint:errcheck // the writer tells
		"close":    func(conn net.Conn) { conn.Close() },                      //nolint:errcheck // the writer tells
	} {
		started, result := make(chan net.Conn, 1), make(chan error, 1)
		l, _ := listen(t, "ws", ListenOptions{}, func(conn net.Conn) {
			defer conn.Close() //nolint:errcheck // at the end
			started <- conn
			var err error
			for err == nil {
				_, err = conn.Write(make([]byte, 1<<20))
			}
			result <- err
		})
		ws := dialFrames(t, l, "/", nil, "mqtt")
		free(<-started)
		select {
		case err := <-result:
			t.Log(err)
		case <-time.After(deadline):
			t.Errorf("%s: the write is still stalled", name)
		}
		ws.CloseNow() //nolint:errcheck // at the end
	}
}

const goodUpgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"

// upgradeRaw does the handshake by hand.
func upgradeRaw(t *testing.T, conn net.Conn) {
	t.Helper()
	write(t, conn, []byte("GET /mqtt HTTP/1.1\r\nHost: x\r\n"+goodUpgrade+"\r\n"))
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("got %v, %v", resp, err)
	}
}

// TestWebSocketHandshake: who is let in, and what the others are told.
func TestWebSocketHandshake(t *testing.T) {
	t.Parallel()
	l, _ := listen(t, "ws", ListenOptions{
		Origins: []string{"https://good.example"}, HandshakeTimeout: time.Hour,
	}, func(conn net.Conn) {
		conn.Close() //nolint:errcheck // only the handshake counts
	})
	const good = goodUpgrade
	for _, c := range []struct {
		name, path, header string
		status             int
		protocol           string
	}{
		{"mqtt", "/mqtt", good + "Sec-WebSocket-Protocol: mqtt\r\n", 101, "mqtt"},
		{"among others", "/", good + "Sec-WebSocket-Protocol: chat, mqtt\r\n", 101, "mqtt"},
		{"as for 3.1", "/", good + "Sec-WebSocket-Protocol: mqttv3.1\r\n", 101, "mqttv3.1"},
		{"with a query", "/mqtt?x=1", good + "Sec-WebSocket-Protocol: mqtt\r\n", 101, "mqtt"},
		{"none offered", "/mqtt", good, 101, ""},
		{"others offered", "/mqtt", good + "Sec-WebSocket-Protocol: chat\r\n", 400, ""}, // [MQTT-6.0.0-3]
		{"good origin", "/mqtt", good + "Origin: https://good.example\r\n", 101, ""},
		{"bad origin", "/mqtt", good + "Origin: https://bad.example\r\n", 403, ""},
		{"unknown path", "/admin", good, 404, ""},
		{"plain HTTP", "/mqtt", "", 400, ""},
		{"old version", "/mqtt", strings.Replace(good, "13", "8", 1), 400, ""},
	} {
		conn := dial(t, l)
		write(t, conn, []byte("GET "+c.path+" HTTP/1.1\r\nHost: x\r\n"+c.header+"\r\n"))
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if resp.StatusCode != c.status || resp.Header.Get("Sec-WebSocket-Protocol") != c.protocol {
			t.Errorf("%s: got %s, protocol %q", c.name, resp.Status, resp.Header.Get("Sec-WebSocket-Protocol"))
		}
		resp.Body.Close() //nolint:errcheck // read as far as it matters
	}
	for name, in := range map[string]string{
		"not HTTP":   string(AppendConnect(nil, &Connect{Version: V5, ClientID: "c"})) + "\r\n\r\n",
		"endless":    "GET / HTTP/1.1\r\nX: " + strings.Repeat("x", 2*maxHandshake),
		"early data": "GET / HTTP/1.1\r\nHost: x\r\n" + good + "\r\n\x82\x80\x00\x00\x00\x00",
	} {
		conn := dial(t, l)
		conn.Write([]byte(in)) //nolint:errcheck // it may be closed while it comes
		if b, err := io.ReadAll(conn); len(b) > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: got %q, %v", name, b, err)
		}
	}
}

// TestWebSocketHandshakeTimeout: a connection without a request is closed, and Run does not wait for it.
func TestWebSocketHandshakeTimeout(t *testing.T) {
	t.Parallel()
	l, _ := listen(t, "ws", ListenOptions{HandshakeTimeout: time.Millisecond}, echo)
	conn := dial(t, l)
	if n, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("got %d bytes, %v", n, err)
	}
}
