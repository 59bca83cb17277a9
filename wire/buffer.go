package wire

import "io"

// fill reads once from the source, behind what is buffered. It returns nil only when there are more bytes than before.
//
// REQUIRES: fewer bytes are buffered than fit, which holds because it is called only for headers (5 bytes) and for
// bodies that fit.
func (r *Reader) fill() error {
	if r.pending != nil {
		return r.pending
	}
	r.makeRoom()
	n, err := r.read(r.buf[r.end:])
	if n == 0 {
		return err
	}
	r.pending = err
	r.end += n
	switch {
	case r.end == len(r.buf): // there may be more
		r.large, r.small = true, 0
	case n > smallBuffer:
		r.small = 0
	default:
		if r.small++; r.small >= smallReads {
			r.large, r.small = false, 0
		}
	}
	return nil
}

// makeRoom moves what is buffered to the front of a buffer of the size that suits the traffic.
func (r *Reader) makeRoom() {
	size := smallBuffer
	if r.large {
		size = largeBuffer
	}
	in := r.buf[r.start:r.end]
	if len(r.buf) != size && len(in) < size {
		r.buf = make([]byte, size)
	}
	r.start, r.end = 0, copy(r.buf, in)
}

// readBody takes n bytes into a slice of their own, of exactly that length. It becomes larger only as bytes
// arrive: a header that announces 8 MiB costs 4 KiB.
func (r *Reader) readBody(n int) ([]byte, error) {
	have := min(n, r.end-r.start)
	size := n
	if have < n {
		size = min(n, firstStep)
	}
	out := make([]byte, size)
	have = copy(out, r.buf[r.start:r.start+have])
	r.start += have
	for have < n {
		if have == len(out) {
			more := make([]byte, min(n, stepFactor*len(out)))
			copy(more, out)
			out = more
		}
		got, err := r.readInto(out[have:], n-have)
		if err != nil {
			return nil, inside(err)
		}
		have += got
	}
	return out, nil
}

// readInto reads into p when much is missing, and through the buffer, for the sake of what comes behind, when little
// is. What is buffered comes first: there is something when p was shorter than what was missing.
func (r *Reader) readInto(p []byte, missing int) (int, error) {
	if missing >= smallBuffer && r.start == r.end {
		if r.pending != nil {
			return 0, r.pending
		}
		n, err := r.read(p)
		if n > 0 {
			r.pending, err = err, nil
		}
		return n, err
	}
	if r.start == r.end {
		if err := r.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.buf[r.start:r.end])
	r.start += n
	return n, nil
}

// read reads at least one byte, or returns an error.
func (r *Reader) read(p []byte) (int, error) {
	for range maxEmptyReads {
		n, err := r.src.Read(p)
		if n > 0 || err != nil {
			return n, err
		}
	}
	return 0, io.ErrNoProgress
}

// Wait blocks until a byte of the next packet is buffered, or the source has failed: ReadPacket then tells how. A server
// that calls it before ReadPacket waits higher up on its stack, and the stacks of idle connections stay small.
func (r *Reader) Wait() {
	if r.start < r.end || r.failed != nil || r.pending != nil {
		return
	}
	if err := r.fill(); err != nil && r.pending == nil {
		r.pending = err
	}
}
