package publish

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/eclipse/paho.golang/packets"

	"rewindmq/cmd/internal/exit"
	"rewindmq/cmd/internal/link"
)

// wire is one connection with its reader and its writer.
//
// The two run apart from the loop that owns the run, so that the loop never blocks in the network: if it did, a server
// that answers before it reads on would wait for us, and we for it. The writer gets a whole batch and meanwhile the
// next one grows: under load many packets go into one write, without load each goes at once.
type wire struct {
	conn    *link.Conn
	in      chan *packets.ControlPacket
	out     chan []byte
	written chan struct{}
	failed  chan error // the first error of either
	stop    chan struct{}
	done    sync.WaitGroup
}

func open(conn *link.Conn) *wire {
	w := &wire{
		conn: conn, stop: make(chan struct{}), in: make(chan *packets.ControlPacket, 256),
		out: make(chan []byte, 1), written: make(chan struct{}, 1), failed: make(chan error, 2),
	}
	w.done.Go(func() {
		for {
			p, err := conn.Read()
			if err != nil {
				w.failed <- err
				return
			}
			select {
			case w.in <- p:
			case <-w.stop:
				return
			}
		}
	})
	w.done.Go(func() {
		for {
			select {
			case b := <-w.out:
				if err := conn.Write(b); err != nil {
					w.failed <- err
					return
				}
				w.written <- struct{}{}
			case <-w.stop:
				return
			}
		}
	})
	return w
}

// close ends both helpers. Reading stops at once, and a packet that was half read is lost to the connection.
func (w *wire) close() {
	close(w.stop)
	w.conn.Interrupt()
	w.done.Wait()
}

// serve works on one connection until everything is settled (nil) or the connection fails.
func (r *run) serve(ctx context.Context, conn *link.Conn) error {
	w := open(conn)
	defer w.close()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	var busy []byte // what the writer has
	var busyPlain int64
	var grace <-chan time.Time
	interrupt := ctx.Done()
	for {
		if err := r.repeat(conn.Server.PacketSize); err != nil {
			return err
		}
		if r.settled() && busy == nil {
			return nil
		}
		var rows <-chan row
		if r.takes() {
			rows = r.rows
		}
		var out chan []byte
		if busy == nil && r.out.Len() > 0 {
			out = w.out
		}
		select {
		case next, ok := <-rows:
			if err := r.take(next, ok, conn.Server.PacketSize); err != nil {
				return err
			}
		case out <- r.out.Bytes():
			busy, busyPlain = r.out.Bytes(), r.plain
			r.out, r.plain = newBuffer(), 0
		case <-w.written:
			busy = nil
			r.wrote(busyPlain)
		case p := <-w.in:
			if err := r.on(p); err != nil {
				return err
			}
		case err := <-w.failed:
			return r.drain(w, err)
		case <-r.pace.wake():
		case <-tick.C:
			if err := r.tick(busy != nil); err != nil {
				return err
			}
		case <-interrupt:
			interrupt = nil
			r.stop, r.hasty = r.interrupted(), true
			grace = time.After(5 * time.Second)
		case <-grace:
			r.stop = r.interrupted()
			return fmt.Errorf("publish: %w", context.Cause(ctx))
		}
	}
}

// drain takes the packets that were read before the connection failed: an acknowledgement that has come counts.
func (r *run) drain(w *wire, cause error) error {
	for {
		select {
		case p := <-w.in:
			if err := r.on(p); err != nil {
				return err
			}
		default:
			if r.ended && r.o.QoS > 0 && r.flight.order.Len() == 0 {
				return nil // the last acknowledgement came with the end of the connection
			}
			return cause
		}
	}
}

// takes says whether a new row may be taken now.
func (r *run) takes() bool {
	return r.stop == nil && !r.ended && r.out.Len() < outLimit && r.flight.room() && r.pace.ready(time.Now())
}

// settled says whether nothing is left to do.
func (r *run) settled() bool {
	return (r.ended || r.stop != nil) && r.flight.order.Len() == 0 && r.out.Len() == 0
}

// repeat encodes what a new connection has to repeat, as the quota and the buffer allow.
func (r *run) repeat(limit uint32) error {
	for r.out.Len() < outLimit {
		e := r.flight.resend()
		if e == nil {
			return nil
		}
		if err := r.encode(e, limit); err != nil {
			return err
		}
		r.res.Again++
	}
	return nil
}

// take handles the next row of the source.
func (r *run) take(next row, ok bool, limit uint32) error {
	if !ok {
		r.ended = true
		return nil
	}
	if next.err != nil {
		r.stop = exit.With(exit.Failed, next.err)
		return nil
	}
	r.pace.took(time.Now())
	e := &entry{Message: next.Message}
	if r.o.QoS > 0 {
		e = r.flight.offer(next.Message)
	}
	if err := r.encode(e, limit); err != nil {
		// It was not sent. What was before it is still finished, then the run ends with this error.
		if r.o.QoS > 0 {
			r.flight.drop(r.flight.byID[e.id])
		}
		r.stop = err
		return nil
	}
	r.res.Rows++
	if r.o.QoS == 0 {
		r.plain++
		r.res.End = next.End
	}
	return nil
}

// wrote counts QoS 0 messages that the network has taken.
func (r *run) wrote(plain int64) {
	if r.o.QoS == 0 {
		r.res.Acked += plain
		r.moved = time.Now()
	}
}

// on handles one packet of the server.
func (r *run) on(p *packets.ControlPacket) error {
	var a answer
	var err error
	switch body := p.Content.(type) {
	case *packets.Puback:
		a, err = r.flight.onPuback(body.PacketID, body.ReasonCode)
	case *packets.Pubrec:
		a, err = r.flight.onPubrec(body.PacketID, body.ReasonCode)
		r.moved = time.Now()
	case *packets.Pubcomp:
		a, err = r.flight.onPubcomp(body.PacketID)
	default:
		err = fmt.Errorf("%w: unexpected %s", link.ErrProtocol, p.PacketType())
	}
	if err != nil {
		return err
	}
	if a.release != nil {
		if err := write(&r.out, a.release); err != nil {
			return err
		}
	}
	switch {
	case a.refused != 0:
		r.refused(*a.done, a.refused)
	case a.done != nil:
		r.acked(*a.done)
	}
	return nil
}

// refused ends the run: the server has certainly not stored this message, and later ones must not overtake it by
// another attempt.
func (r *run) refused(m Message, reason byte) {
	if r.stop != nil && r.hasty {
		return
	}
	code := exit.Failed
	if reason == 0x87 {
		code = exit.Auth
	}
	text := (&packets.Pubrec{ReasonCode: reason}).Reason()
	r.stop, r.hasty = exit.With(code, fmt.Errorf("publish: the server refused row %d (0x%02X): %s", m.Row, reason, text)), true
}

// tick reports, and gives up when nothing has moved for too long.
func (r *run) tick(writing bool) error {
	now := time.Now()
	if r.flight.order.Len() == 0 && !writing {
		r.moved = now // nothing to wait for but the source
	}
	r.report()
	if now.Sub(r.moved) >= r.o.Timeout {
		return errGaveUp
	}
	return nil
}
