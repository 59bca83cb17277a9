package wire

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/websocket"
)

const (
	maxHandshake  = 8 << 10 // bytes of an upgrade request
	wsReadBuffer  = 512     // bytes, for each connection
	wsWriteBuffer = 4096    // bytes, only while a frame is written
	closeTimeout  = 100 * time.Millisecond
)

// The subprotocols: "mqtt" [MQTT-6.0.0-3], and what clients of 3.1 offered before it was registered.
const (
	subprotocol    = "mqtt"
	subprotocolV31 = "mqttv3.1"
)

// upgrader makes WebSocket connections out of TCP connections. It is safe for concurrent use.
type upgrader struct {
	ws      websocket.Upgrader
	timeout time.Duration
}

func newUpgrader(o ListenOptions) *upgrader {
	return &upgrader{
		timeout: o.HandshakeTimeout,
		ws: websocket.Upgrader{
			ReadBufferSize:  wsReadBuffer,
			WriteBufferSize: wsWriteBuffer,
			WriteBufferPool: &sync.Pool{},
			Subprotocols:    []string{subprotocol, subprotocolV31}, // [MQTT-6.0.0-4]
			CheckOrigin: func(r *http.Request) bool {
				origin := r.Header.Get("Origin")
				return origin == "" || len(o.Origins) == 0 || slices.Contains(o.Origins, origin)
			},
		},
	}
}

// upgrade reads the request and answers it. When it fails the peer has been told, and conn is to be closed.
func (u *upgrader) upgrade(conn net.Conn) (net.Conn, error) {
	if err := conn.SetDeadline(time.Now().Add(u.timeout)); err != nil {
		return nil, err
	}
	limit := &io.LimitedReader{R: conn, N: maxHandshake}
	in := bufio.NewReaderSize(limit, 1024)
	r, err := http.ReadRequest(in)
	if err != nil {
		return nil, fmt.Errorf("read upgrade request: %w", err)
	}
	w := &response{conn: conn, in: in, header: make(http.Header)}
	switch offered := websocket.Subprotocols(r); {
	case r.URL.Path != "/" && r.URL.Path != "/mqtt":
		http.Error(w, "MQTT is at / and /mqtt", http.StatusNotFound)
		return nil, errors.New("unknown path")
	case len(offered) > 0 && !slices.Contains(offered, subprotocol) && !slices.Contains(offered, subprotocolV31):
		// Who names subprotocols has to name mqtt [MQTT-6.0.0-3]. Who names none is let in, as elsewhere.
		http.Error(w, "offer the subprotocol mqtt", http.StatusBadRequest)
		return nil, errors.New("subprotocol mqtt is not offered")
	}
	ws, err := u.ws.Upgrade(w, r, nil) // clears the deadlines
	if err != nil {
		return nil, fmt.Errorf("upgrade: %w", err)
	}
	return &wsConn{Conn: conn, ws: ws}, nil
}

// response is the little of an http.ResponseWriter that a handshake needs: an error text, or the connection itself.
type response struct {
	conn    net.Conn
	in      *bufio.Reader
	header  http.Header
	started bool
}

func (w *response) Header() http.Header { return w.header }

func (w *response) WriteHeader(status int) {
	w.started = true
	w.header.Set("Connection", "close")
	var head strings.Builder
	fmt.Fprintf(&head, "HTTP/1.1 %d %s\r\n", status, http.StatusText(status))
	w.header.Write(&head)                        //nolint:errcheck // a Builder does not fail
	io.WriteString(w.conn, head.String()+"\r\n") //nolint:errcheck // the connection is closed next
}

func (w *response) Write(p []byte) (int, error) {
	if !w.started {
		w.WriteHeader(http.StatusOK)
	}
	return w.conn.Write(p)
}

func (w *response) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn := frameConn{w.conn}
	return conn, bufio.NewReadWriter(w.in, bufio.NewWriterSize(conn, 16)), nil
}

// frameConn is the connection that gorilla writes to. Gorilla sets the write deadline anew at each write, from a field that
// is not safe for concurrent use; so a deadline that another goroutine sets to free a stalled writer would be lost.
// Here only wsConn sets deadlines.
type frameConn struct{ net.Conn }

func (frameConn) SetWriteDeadline(time.Time) error { return nil }

// wsConn carries a byte stream in binary frames. Frame borders mean nothing: a packet may be split over frames, and a frame
// may hold several [MQTT-6.0.0-2].
//
// Deadlines and addresses are those of the TCP connection. Read may be called by one goroutine at a time, the rest
// concurrently.
type wsConn struct {
	net.Conn
	ws    *websocket.Conn
	frame io.Reader // the message that is being read; nil between two

	writing sync.Mutex // held while a message is written: two at once would mix their frames
}

var errTextFrame = errors.New("WebSocket frame is not binary")

// Read returns bytes from inside binary frames. Any other data frame closes the connection [MQTT-6.0.0-1].
func (c *wsConn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		if c.frame == nil {
			kind, frame, err := c.ws.NextReader()
			if err != nil {
				return 0, wsReadError(err)
			}
			if kind != websocket.BinaryMessage {
				c.closeWith(websocket.CloseUnsupportedData) //nolint:errcheck // it is closed anyhow
				return 0, &Error{Code: ProtocolError, Err: errTextFrame}
			}
			c.frame = frame
		}
		n, err := c.frame.Read(p)
		if errors.Is(err, io.EOF) {
			c.frame, err = nil, nil
		}
		if n > 0 || err != nil {
			return n, wsReadError(err)
		}
	}
}

// wsReadError gives errors the form that a TCP connection would give them.
func wsReadError(err error) error {
	var timeout net.Error
	switch {
	case err == nil:
		return nil
	case websocket.IsCloseError(err, websocket.CloseNormalClosure, websocket.CloseGoingAway, websocket.CloseNoStatusReceived):
		return io.EOF
	case websocket.IsCloseError(err, websocket.CloseAbnormalClosure):
		return io.ErrUnexpectedEOF // gone without a close frame
	case errors.As(err, &timeout) && timeout.Timeout():
		return os.ErrDeadlineExceeded // gorilla hides which error it was
	}
	return err
}

// Write sends p in one message.
func (c *wsConn) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	c.writing.Lock()
	defer c.writing.Unlock()
	// Not WriteMessage: it writes the frame header by itself, a segment of its own for each small packet.
	w, err := c.ws.NextWriter(websocket.BinaryMessage)
	if err != nil {
		return 0, err
	}
	n, err := w.Write(p)
	if err != nil {
		return n, err
	}
	if err := w.Close(); err != nil {
		return 0, err
	}
	return n, nil
}

// CloseWrite sends a close frame. What comes after it from the peer can still be read.
func (c *wsConn) CloseWrite() error {
	return c.ws.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""),
		time.Now().Add(closeTimeout))
}

// Close sends a close frame if the peer takes it at once, and closes the connection.
func (c *wsConn) Close() error { return c.closeWith(websocket.CloseNormalClosure) }

func (c *wsConn) closeWith(code int) error {
	deadline := time.Now().Add(closeTimeout)
	if c.Conn.SetWriteDeadline(deadline) == nil { // ends a write that is stalled, too
		c.ws.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(code, ""), deadline) //nolint:errcheck // a courtesy
	}
	return c.Conn.Close()
}
