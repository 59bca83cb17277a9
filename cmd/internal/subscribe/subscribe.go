// Package subscribe receives messages from an MQTT server and writes them, so that a message is acknowledged only after
// it has left this process.
//
// Nouns: the inbox is the receiving half of QoS 2 (inbox.go); a run is the life of the client over all its
// connections; a batch is what is written and acknowledged together.
//
// Invariants: the acknowledgement of a message is sent after the write that holds the message has returned, so a
// client that is killed loses nothing. At QoS 2 one run writes each message once, over any number of lost
// connections. A client that is killed between the write and its acknowledgement gets the message again when it comes
// back: only the reader of the output could tell.
//
// Run works in the caller's goroutine; the connection owns the one that keeps it alive.
package subscribe

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

// Options say what to receive how.
type Options struct {
	Link link.Options
	// Filters to subscribe to, at least one.
	Filters []string
	QoS     byte
	// Persistent keeps the session on the server between connections and between runs, for Expiry seconds.
	Persistent bool
	Expiry     uint32
	// Count ends the run after so many messages; 0: no end.
	Count int64
	// Wait ends the run after this time; 0: no end.
	Wait time.Duration
	// ConnectWait is how long the first connection is tried; 0: once. Later ones are tried for ever.
	ConnectWait time.Duration
	// Format of the output. Required.
	Format Format
	// Notice gets what the user should know, one line each. Nil: nobody is told.
	Notice func(line string)
}

// run is the state of one Run.
type run struct {
	o        Options
	out      io.Writer
	inbox    *inbox
	text     bytes.Buffer // written messages that have not left yet
	acks     bytes.Buffer // what may be sent once text has left
	count    int64
	accepted bool // SUBACK has come for the present session
}

// errEnough ends a run that has all its messages.
var errEnough = errors.New("subscribe: enough messages")

// Run subscribes and writes each message to out until ctx ends (nil), Count messages are written (nil), or Wait has
// passed (nil when Count is 0, else an error with the exit code Timeout). Other errors carry the exit codes Connect,
// Auth or Failed. It reconnects by itself.
func Run(ctx context.Context, out io.Writer, o Options) error {
	if o.Notice == nil {
		o.Notice = func(string) {}
	}
	r := &run{o: o, out: out, inbox: newInbox()}
	stop := ctx
	if o.Wait > 0 {
		var cancel context.CancelFunc
		stop, cancel = context.WithTimeout(ctx, o.Wait)
		defer cancel()
	}
	err := r.run(stop)
	switch {
	case errors.Is(err, errEnough), ctx.Err() != nil && errors.Is(err, context.Canceled):
		return nil
	case errors.Is(err, context.DeadlineExceeded) && stop.Err() != nil:
		if r.count < o.Count {
			return exit.With(exit.Timeout, fmt.Errorf("subscribe: %d of %d messages came in %v", r.count, o.Count, o.Wait))
		}
		return nil
	default:
		return err
	}
}

func (r *run) run(ctx context.Context) error {
	var wait link.Backoff
	for first := true; ; first = false {
		conn, err := r.connect(ctx, first)
		if err != nil {
			return err
		}
		before := r.count
		err = r.serve(ctx, conn)
		var coded *exit.Error
		code, final := link.Verdict(err)
		switch {
		case errors.As(err, &coded), errors.Is(err, errEnough):
			conn.Disconnect(false)
			return err
		case ctx.Err() != nil:
			conn.Disconnect(false)
			return ctx.Err()
		case final:
			conn.Close()
			return exit.With(code, err)
		}
		conn.Close()
		r.o.Notice(fmt.Sprintf("connection lost, connecting again: %v", err))
		if !r.o.Persistent {
			r.o.Notice("what is published meanwhile is missed: only a session with --persistent gets it later")
		}
		if r.count > before {
			wait.Reset()
		} else if err := wait.Wait(ctx); err != nil {
			return err
		}
	}
}

// connect returns a connection, after as many attempts as it takes.
func (r *run) connect(ctx context.Context, first bool) (*link.Conn, error) {
	session := link.Session{CleanStart: !r.o.Persistent}
	if r.o.Persistent {
		session.Expiry = r.o.Expiry
	}
	begun := time.Now()
	return link.Persist(ctx, r.o.Link, session, func() bool { return first && time.Since(begun) >= r.o.ConnectWait })
}

// serve works on one connection until it fails, ctx ends or there are enough messages.
func (r *run) serve(ctx context.Context, conn *link.Conn) error {
	r.text.Reset()
	r.acks.Reset() // a lost connection's acknowledgements mean nothing on this one
	if !conn.Present {
		if r.accepted && r.o.Persistent {
			r.o.Notice("the server has lost the session: what was published meanwhile is missed")
		}
		r.inbox.clear()
		r.accepted = false
	}
	if !r.accepted {
		if err := r.subscribe(conn); err != nil {
			return err
		}
	}
	defer context.AfterFunc(ctx, conn.Interrupt)()
	for {
		// Everything that is here already goes out together; then it is acknowledged; then the network is waited for.
		if !conn.Buffered() || r.text.Len()+r.acks.Len() > 1<<20 {
			if err := r.flush(conn); err != nil {
				return err
			}
		}
		if ctx.Err() != nil {
			return r.flush(conn)
		}
		p, err := conn.Read()
		if err != nil {
			return r.last(conn, err)
		}
		if err := r.on(p); err != nil {
			return r.last(conn, err)
		}
	}
}

// last writes and acknowledges what is left when a connection ends because of cause, and returns the cause or what is
// worse.
func (r *run) last(conn *link.Conn, cause error) error {
	err := r.flush(conn)
	var coded *exit.Error
	switch {
	case errors.As(err, &coded):
		return err // the output failed
	case err != nil && errors.Is(cause, errEnough) && r.o.QoS > 0:
		r.o.Notice(fmt.Sprintf("the last acknowledgements could not be sent, so these messages may come again: %v", err))
	}
	return cause
}

// subscribe sends SUBSCRIBE. Retained messages come for filters that are new to the session.
func (r *run) subscribe(conn *link.Conn) error {
	s := packets.Subscribe{PacketID: 1, Properties: &packets.Properties{}}
	for _, f := range r.o.Filters {
		options := packets.SubOptions{Topic: f, QoS: r.o.QoS}
		if r.o.Persistent {
			options.RetainHandling = 1 // only if the subscription is new [MQTT-3.3.1-10]
		}
		s.Subscriptions = append(s.Subscriptions, options)
	}
	var b bytes.Buffer
	if _, err := s.WriteTo(&b); err != nil {
		return fmt.Errorf("subscribe: encode SUBSCRIBE: %w", err)
	}
	return conn.Write(b.Bytes())
}

// on handles one packet of the server.
func (r *run) on(p *packets.ControlPacket) error {
	switch body := p.Content.(type) {
	case *packets.Publish:
		return r.onPublish(body)
	case *packets.Pubrel:
		return r.acknowledge(r.inbox.onPubrel(body.PacketID))
	case *packets.Suback:
		return r.onSuback(body)
	default:
		return fmt.Errorf("%w: unexpected %s", link.ErrProtocol, p.PacketType())
	}
}

func (r *run) onPublish(p *packets.Publish) error {
	if p.QoS > 2 || (p.QoS > 0 && p.PacketID == 0) {
		return fmt.Errorf("%w: PUBLISH with QoS %d and packet id %d", link.ErrProtocol, p.QoS, p.PacketID)
	}
	fresh := r.inbox.fresh(p)
	if fresh {
		if err := r.o.Format(&r.text, p, time.Now()); err != nil {
			return exit.With(exit.Failed, err)
		}
		r.count++
	}
	if err := r.acknowledge(r.inbox.written(p)); err != nil {
		return err
	}
	if fresh && r.o.Count > 0 && r.count == r.o.Count {
		return errEnough
	}
	return nil
}

func (r *run) acknowledge(p packets.Packet) error {
	if p == nil {
		return nil
	}
	if _, err := p.WriteTo(&r.acks); err != nil {
		return fmt.Errorf("subscribe: encode: %w", err)
	}
	return nil
}

func (r *run) onSuback(ack *packets.Suback) error {
	if len(ack.Reasons) != len(r.o.Filters) {
		return fmt.Errorf("%w: SUBACK with %d codes for %d filters", link.ErrProtocol, len(ack.Reasons), len(r.o.Filters))
	}
	for i, reason := range ack.Reasons {
		switch {
		case reason >= 0x80:
			code := exit.Failed
			if reason == 0x87 {
				code = exit.Auth
			}
			return exit.With(code, fmt.Errorf("subscribe: the server refused %q (0x%02X): %s", r.o.Filters[i], reason, ack.Reason(i)))
		case reason < r.o.QoS:
			r.o.Notice(fmt.Sprintf("the server grants QoS %d for %s", reason, r.o.Filters[i]))
		}
	}
	r.accepted = true
	return nil
}

// flush writes the messages, and only when that has succeeded acknowledges them.
func (r *run) flush(conn *link.Conn) error {
	if r.text.Len() > 0 {
		if _, err := r.out.Write(r.text.Bytes()); err != nil {
			return exit.With(exit.Failed, fmt.Errorf("subscribe: write output: %w", err))
		}
		r.text.Reset()
	}
	if r.acks.Len() > 0 {
		if err := conn.Write(r.acks.Bytes()); err != nil {
			return err
		}
		r.acks.Reset()
	}
	return nil
}
