// Package publish sends the messages of a source to an MQTT server, in order, many at a time, and ends when each is
// acknowledged, whatever happens to the connection meanwhile.
//
// Nouns: a source gives messages; the flight is what was sent and is not settled (flight.go, a state machine without
// I/O); a run is the life of the client's session over all its connections.
//
// Invariants: at QoS 2 each message is stored by the server exactly once: a new connection continues the session with
// the packet ids that it had, with PUBLISH and DUP, or with PUBREL where PUBREC has come. At QoS 1 what was in flight
// may be stored twice. A message counts as acknowledged when PUBACK or PUBCOMP was read, never earlier. The only
// exception is a server that has lost the session: then what was not confirmed is sent again, and the user is told.
//
// Run owns all goroutines: for each connection a reader and a writer, which it waits for, and one that reads the
// source. It waits for that one too, unless the source is blocked in a read that nobody can interrupt (a terminal).
package publish

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/eclipse/paho.golang/packets"

	"rewindmq/cmd/internal/exit"
	"rewindmq/cmd/internal/link"
)

// Options say what to publish how. The zero value of each optional field is a sensible choice.
type Options struct {
	Link link.Options
	// Topic of every message. Required.
	Topic  string
	QoS    byte
	Retain bool
	// User are user properties of every message, as pairs.
	User [][2]string
	// Rate is the most messages a second; 0: as fast as the server takes them.
	Rate float64
	// Timeout is how long a run goes on without progress; 0: 60 s.
	Timeout time.Duration
	// ConnectWait is how long the first connection is tried; 0: once.
	ConnectWait time.Duration
	// Notice gets what the user should know, one line each. It is called by one goroutine. Nil: nobody is told.
	Notice func(line string)
	// Progress is called a few times a second and at the end, by one goroutine. Nil: not called.
	Progress func(Result)
}

// Result is how far a run has come.
type Result struct {
	// Connected says that the server took a connection.
	Connected bool
	// Rows were taken from the source and handed to the protocol.
	Rows int64
	// Acked were acknowledged by the server; at QoS 0: written to the network.
	Acked int64
	// End is the end in the source of the newest row that is acknowledged, in bytes.
	End int64
	// Again counts packets that were repeated on a new connection; Reconnects counts the connections after the first.
	Again      int64
	Reconnects int64
	Elapsed    time.Duration
}

// outLimit is how many bytes wait for the writer before no new message is taken.
const outLimit = 256 << 10

// run is the state of one Run. It belongs to one goroutine.
type run struct {
	o      Options
	flight *flight
	rows   <-chan row
	ended  bool // the source has no more
	pace   pace
	out    bytes.Buffer // packets that wait for the writer
	plain  int64        // QoS 0 messages in out
	res    Result
	start  time.Time
	moved  time.Time // when something was last acknowledged, or nothing was to do
	stop   error     // why no more rows are taken; the flight is still finished
	hasty  bool      // do not connect again for what is left
}

type row struct {
	Message
	err error
}

// Run publishes everything that source gives. The error carries an exit code: Connect when the first connection fails,
// Timeout when nothing moves for Options.Timeout, Auth or Failed when the server refuses, Interrupted when ctx ended.
// The result is valid beside an error.
func Run(ctx context.Context, source Source, o Options) (Result, error) {
	if o.Timeout == 0 {
		o.Timeout = time.Minute
	}
	if o.Notice == nil {
		o.Notice = func(string) {}
	}
	if o.Progress == nil {
		o.Progress = func(Result) {}
	}
	stopSource := make(chan struct{})
	defer close(stopSource)
	now := time.Now()
	r := &run{
		o: o, flight: newFlight(o.QoS), rows: read(source, stopSource), pace: pace{rate: o.Rate}, start: now, moved: now,
	}
	err := r.run(ctx)
	r.report()
	return r.res, err
}

// read starts the goroutine that reads the source. It ends after the source's end or error, or when stop closes.
func read(source Source, stop <-chan struct{}) <-chan row {
	rows := make(chan row, 64)
	go func() {
		defer close(rows)
		for {
			m, err := source.Next()
			if errors.Is(err, io.EOF) {
				return
			}
			select {
			case rows <- row{m, err}:
			case <-stop:
				return
			}
			if err != nil {
				return
			}
		}
	}()
	return rows
}

// run connects until everything is settled.
func (r *run) run(ctx context.Context) error {
	var wait link.Backoff
	for first := true; ; first = false {
		conn, err := r.connect(ctx, first)
		if err != nil {
			return err
		}
		moved := r.moved
		err = r.begin(conn, first)
		if err == nil {
			err = r.serve(ctx, conn)
		}
		if err == nil {
			conn.Disconnect(r.o.QoS > 0)
			return r.end()
		}
		conn.Close()
		var coded *exit.Error
		code, final := link.Verdict(err)
		switch {
		case errors.Is(err, errGaveUp):
			return r.gaveUp()
		case errors.As(err, &coded):
			return err
		case r.hasty:
			return r.end()
		case final:
			return exit.With(code, err)
		}
		r.lost(err)
		// A server that takes connections and drops them again is not asked without a pause.
		if r.moved != moved {
			wait.Reset()
		} else if wait.Wait(ctx) != nil {
			return r.interrupted()
		}
		if time.Since(r.moved) >= r.o.Timeout {
			return r.gaveUp()
		}
	}
}

// end returns how a run ends that stopped of itself: nil, or why it took no more rows.
func (r *run) end() error {
	if exit.Of(r.stop) == exit.Interrupted {
		return r.interrupted() // with the figures of now
	}
	return r.stop
}

func (r *run) lost(err error) {
	left := r.flight.order.Len()
	line := fmt.Sprintf("connection lost with %d messages in flight, connecting again: %v", left, err)
	if r.o.QoS == 1 && left > 0 {
		line += fmt.Sprintf("; at QoS 1 these %d may arrive twice", left)
	}
	r.o.Notice(line)
}

// connect returns a connection, after as many attempts as the time allows.
func (r *run) connect(ctx context.Context, first bool) (*link.Conn, error) {
	session := link.Session{CleanStart: first || r.o.QoS == 0}
	if r.o.QoS > 0 {
		// Longer than this client would try, so that the session cannot end under it.
		session.Expiry = uint32(r.o.Timeout/time.Second) + 3600
	}
	begun := time.Now()
	conn, err := link.Persist(ctx, r.o.Link, session, func() bool {
		if first {
			return time.Since(begun) >= r.o.ConnectWait
		}
		return time.Since(r.moved) >= r.o.Timeout
	})
	if err == nil {
		return conn, nil
	}
	switch _, final := link.Verdict(err); {
	case ctx.Err() != nil:
		return nil, r.interrupted()
	case first, final:
		return nil, err
	}
	r.o.Notice(err.Error())
	return nil, r.gaveUp()
}

// begin tells the flight about a new connection.
func (r *run) begin(conn *link.Conn, first bool) error {
	switch {
	case conn.Server.QoS < r.o.QoS:
		return exit.With(exit.Failed, fmt.Errorf("publish: the server takes QoS %d at most", conn.Server.QoS))
	case r.o.Retain && !conn.Server.Retain:
		return exit.With(exit.Failed, errors.New("publish: the server takes no retained messages"))
	}
	if first {
		r.res.Connected = true
		r.flight.quota = int(conn.Server.ReceiveMaximum)
		r.moved = time.Now()
		return nil
	}
	r.res.Reconnects++
	r.out.Reset() // what the old connection did not get is in the flight
	r.plain = 0
	complete, doubtful := r.flight.connected(conn.Present, conn.Server.ReceiveMaximum)
	for _, m := range complete {
		r.acked(m)
	}
	if doubtful > 0 {
		r.o.Notice(fmt.Sprintf("the server has lost the session; %d messages are sent again and may arrive twice", doubtful))
	}
	return nil
}

func (r *run) acked(m Message) {
	r.res.Acked++
	r.res.End = max(r.res.End, m.End)
	r.moved = time.Now()
}

func (r *run) report() {
	r.res.Elapsed = time.Since(r.start)
	r.o.Progress(r.res)
}

func (r *run) interrupted() error {
	return exit.With(exit.Interrupted, fmt.Errorf(
		"publish: interrupted: %d messages acknowledged, %d in flight and unknown", r.res.Acked, r.flight.order.Len()))
}

func (r *run) gaveUp() error {
	return exit.With(exit.Timeout, fmt.Errorf(
		"publish: no progress for %v: %d messages acknowledged, %d in flight and unknown", r.o.Timeout, r.res.Acked, r.flight.order.Len()))
}

// errGaveUp ends a connection on which nothing moves any more.
var errGaveUp = errors.New("publish: no progress")

// encode appends the packet that is due for e to what waits for the writer.
func (r *run) encode(e *entry, limit uint32) error {
	if e.received {
		return write(&r.out, &packets.Pubrel{PacketID: e.id})
	}
	p := packets.Publish{
		Topic: r.o.Topic, QoS: r.o.QoS, Retain: r.o.Retain, PacketID: e.id, Duplicate: e.again, Payload: e.Payload,
		Properties: &packets.Properties{},
	}
	for _, pair := range r.o.User {
		p.Properties.User = append(p.Properties.User, packets.User{Key: pair[0], Value: pair[1]})
	}
	before := r.out.Len()
	if err := write(&r.out, &p); err != nil {
		return err
	}
	if size := r.out.Len() - before; limit > 0 && size > int(limit) {
		r.out.Truncate(before)
		return exit.With(exit.Failed, fmt.Errorf("publish: row %d makes a packet of %d bytes, the server takes %d", e.Row, size, limit))
	}
	e.again = true
	return nil
}

func write(b *bytes.Buffer, p packets.Packet) error {
	if _, err := p.WriteTo(b); err != nil {
		return fmt.Errorf("publish: encode: %w", err)
	}
	return nil
}
