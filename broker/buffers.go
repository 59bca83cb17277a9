package broker

import "sync"

// bufferPool lends the buffers that outboxes write from. It is bounded: what
// nobody uses is the garbage collector's.
type bufferPool struct{ pool sync.Pool }

func (p *bufferPool) get() []byte {
	if b, ok := p.pool.Get().(*[]byte); ok {
		return (*b)[:0]
	}
	return make([]byte, 0, 2048)
}

func (p *bufferPool) put(b []byte) {
	if cap(b) == 0 || cap(b) > keepBuffer {
		return
	}
	p.pool.Put(&b)
}
