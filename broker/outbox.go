package broker

import (
	"net"
	"sync"
	"time"
)

const (
	// keepBuffer is the largest buffer that is used again; larger ones go.
	keepBuffer = 64 << 10
	// flushTimeout bounds the last write before a connection is closed: the
	// peer may not be reading.
	flushTimeout = 2 * time.Second
)

// outbox holds the bytes that wait to be written to one connection. Whoever puts
// the first byte starts the goroutine that writes; it ends when all is written:
// an idle connection has no writer and no buffer.
//
// Order: bytes are written in the order of put; many packets go in one Write.
type outbox struct {
	conn  net.Conn
	tasks *tasks
	pool  *bufferPool
	limit int
	// drained is called, without the lock, when a full outbox has room again.
	drained func()

	mu      sync.Mutex
	buf     []byte
	writing bool
	full    bool  // above limit since the last time it was empty
	closing bool  // write what there is, then close
	err     error // the connection is gone; nothing is kept any more
	room    sync.Cond
}

func (o *outbox) init(conn net.Conn, tasks *tasks, pool *bufferPool, limit int) {
	o.conn, o.tasks, o.pool, o.limit = conn, tasks, pool, limit
	o.room.L = &o.mu
}

// put lets fn append to what waits, and tells whether the outbox is full now.
// Nothing is taken after close.
func (o *outbox) put(fn func([]byte) []byte) (full bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err != nil || o.closing {
		return false
	}
	if o.buf == nil {
		o.buf = o.pool.get()
	}
	o.buf = fn(o.buf)
	o.full = o.full || len(o.buf) > o.limit
	o.start()
	return o.full
}

// isFull tells whether there is more waiting than the limit.
func (o *outbox) isFull() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.full
}

// state tells whether there is more waiting than the limit, and whether the connection
// is being closed.
func (o *outbox) state() (full, closing bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.full, o.closing
}

// readBy sets until when the next byte must have come. Once the connection is being
// closed it does nothing. Invariant: the deadline of hangUp is the last one, whatever the
// peer goes on sending: it is set after closing was, and all others, under mu, before.
func (o *outbox) readBy(t time.Time) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closing {
		return nil
	}
	return o.conn.SetReadDeadline(t)
}

// wait blocks while the outbox is full: a peer that sends and never reads is held
// back. It returns when the connection is gone, too.
func (o *outbox) wait() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.full && o.err == nil && !o.closing {
		o.room.Wait()
	}
}

// close writes what waits and then closes the connection.
func (o *outbox) close() { o.last(nil) }

// last is put and close in one: nothing comes behind what fn appends, whoever else
// puts something meanwhile [MQTT-3.14.4-1].
func (o *outbox) last(fn func([]byte) []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closing || o.err != nil {
		return
	}
	if fn != nil {
		if o.buf == nil {
			o.buf = o.pool.get()
		}
		o.buf = fn(o.buf)
	}
	o.closing = true
	o.room.Broadcast()
	_ = o.conn.SetWriteDeadline(time.Now().Add(flushTimeout))
	o.start()
}

// start begins writing, if nobody does. REQUIRES: mu.
func (o *outbox) start() {
	if o.writing {
		return
	}
	o.writing = true
	o.tasks.Go(o.write)
}

// write writes until nothing waits.
func (o *outbox) write() {
	for {
		o.mu.Lock()
		buf := o.buf
		o.buf = nil
		done := len(buf) == 0 || o.err != nil
		wasFull := false
		if done {
			o.writing = false
			wasFull, o.full = o.full, false
			o.room.Broadcast()
		}
		end := done && o.closing
		o.mu.Unlock()
		if done {
			o.pool.put(buf)
			if end {
				hangUp(o.conn)
			}
			if wasFull && o.drained != nil {
				o.drained()
			}
			return
		}
		if _, err := o.conn.Write(buf); err != nil {
			o.mu.Lock()
			o.err = err
			o.mu.Unlock()
			_ = o.conn.Close() // wakes the reader
		}
		o.pool.put(buf)
	}
}

// hangUp ends a connection so that the peer can read what was written before:
// first our direction is closed, then all of it.
func hangUp(conn net.Conn) {
	if c, ok := conn.(interface{ CloseWrite() error }); ok && c.CloseWrite() == nil {
		_ = conn.SetReadDeadline(time.Now().Add(flushTimeout))
		return // the reader sees the peer's end, or the deadline, and closes
	}
	_ = conn.Close()
}
