package embedded

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
)

// Pebble's log files and its manifest are made of blocks of 32 KiB that hold
// chunks: checksum4 length2 kind1, then for a log file its number4, then in the
// newer kind offset8 (meant to tell up to where the file had been synced; Pebble
// v2.1.7 counts too little, so it is not used here). A record is one full chunk,
// or a first, middle ones and a last.
const (
	chunkBlock    = 32 << 10
	legacyHeader  = 7
	recycleHeader = 11
	syncHeader    = 19
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// chunk is one chunk found in a file.
type chunk struct {
	at, payload, end int // in the file
	first, last      bool
}

// chunkFile is a file of chunks. number is that of a log file; 0 in the manifest.
type chunkFile struct {
	data   []byte
	number uint32
}

// header gives the size of a chunk's header by its kind; 0: there is none such.
func (f *chunkFile) header(kind byte) int {
	switch {
	case kind >= 1 && kind <= 4 && f.number == 0:
		return legacyHeader
	case kind >= 5 && kind <= 8 && f.number != 0:
		return recycleHeader
	case kind >= 9 && kind <= 12 && f.number != 0:
		return syncHeader
	}
	return 0
}

// claimed tells what the header at `at` says, right or wrong: where the chunk
// ends; false: it is no header of this file.
func (f *chunkFile) claimed(at int) (c chunk, ok bool) {
	blockEnd := min(at-at%chunkBlock+chunkBlock, len(f.data))
	if at+legacyHeader > blockEnd {
		return c, false
	}
	kind := f.data[at+6]
	size := f.header(kind)
	if size == 0 || at+size > blockEnd {
		return c, false
	}
	if f.number != 0 && binary.LittleEndian.Uint32(f.data[at+7:]) != f.number {
		return c, false
	}
	position := (kind - 1) % 4 // full, first, middle, last
	c = chunk{at: at, payload: at + size, first: position <= 1, last: position == 0 || position == 3}
	c.end = at + size + int(binary.LittleEndian.Uint16(f.data[at+4:]))
	return c, true
}

// chunk gives the chunk at `at` if it is whole.
func (f *chunkFile) chunk(at int) (chunk, bool) {
	c, ok := f.claimed(at)
	if !ok || c.end > len(f.data) || c.end > at-at%chunkBlock+chunkBlock {
		return c, false
	}
	return c, f.checksum(c) == binary.LittleEndian.Uint32(f.data[at:])
}

func (f *chunkFile) checksum(c chunk) uint32 { return mask(f.crc(c)) }

func (f *chunkFile) crc(c chunk) uint32 {
	return crc32.Checksum(f.data[c.at+6:c.end], castagnoli)
}

// mask is what Pebble, as LevelDB, makes of a checksum.
func mask(c uint32) uint32 { return (c>>15 | c<<17) + 0xa282ead8 }

func unmask(m uint32) uint32 {
	m -= 0xa282ead8
	return m<<15 | m>>17
}

// end is where the readable part of a file stops.
type end struct {
	at int // of the first chunk that is not whole
	// record is where the last record begins that is not whole; at: none is.
	record int
	clean  bool // the file was closed
}

// walk reads whole chunks from the beginning, as Pebble's reader does.
func (f *chunkFile) walk() end {
	var e end
	open := false
	for at := 0; at < len(f.data); {
		left := min(at-at%chunkBlock+chunkBlock, len(f.data)) - at
		full := at-at%chunkBlock+chunkBlock <= len(f.data)
		if left < legacyHeader {
			if !full {
				e.at = at
				return e.close(at, open)
			}
			at += left
			continue
		}
		if full && left < syncHeader && zero(f.data[at:at+left]) {
			at += left
			continue
		}
		c, ok := f.chunk(at)
		if !ok || open == c.first {
			e.at = at
			e.clean = !open && f.trailer(at)
			return e.close(at, open)
		}
		if c.first {
			e.record = at
		}
		open = !c.last
		at = c.end
		e.at = at
	}
	e.clean = false
	return e.close(len(f.data), open)
}

func (e end) close(at int, open bool) end {
	e.at = at
	if !open {
		e.record = at
	}
	return e
}

// trailer tells whether a log file was closed at `at`.
func (f *chunkFile) trailer(at int) bool {
	if f.number == 0 || at+recycleHeader > len(f.data) {
		return false
	}
	h := f.data[at : at+recycleHeader]
	return zero(h[:6]) && h[6] == 5 && binary.LittleEndian.Uint32(h[7:]) == f.number+1
}

func zero(b []byte) bool {
	for _, x := range b {
		if x != 0 {
			return false
		}
	}
	return true
}

// torn tells how many bytes of a record are there that is not whole; 0: none.
func (f *chunkFile) torn(e end) int {
	if e.clean {
		return 0
	}
	stop := e.at
	if c, ok := f.claimed(e.at); ok {
		stop = min(c.end, len(f.data))
	} else if rest := f.data[e.at:]; len(rest) < syncHeader && !zero(rest) {
		stop = len(f.data) // not even a header
	}
	return stop - e.record
}

// proof looks behind e for the whole first chunk of a later record. It shows
// that what is at e is not torn but damaged: each record is synced before the
// next is written. (Of one record, later chunks may have reached the disk before
// earlier ones.)
func (f *chunkFile) proof(e end) (at int, found bool) {
	number := binary.LittleEndian.AppendUint32(nil, f.number)
	for at = e.at + 1; at+legacyHeader <= len(f.data); at++ {
		if f.number != 0 {
			i := bytes.Index(f.data[at+legacyHeader:], number)
			if i < 0 {
				return 0, false
			}
			at += i
		}
		if c, ok := f.chunk(at); ok && c.first && c.end > c.payload {
			return at, true
		}
	}
	return 0, false
}

// flipped tells whether the chunk at e becomes whole when one byte is changed:
// then it is damaged, and not torn, but for a chance of one in 2^24 for each
// byte of it. It is meant for the manifest, whose chunks are short.
func (f *chunkFile) flipped(e end) bool {
	c, ok := f.claimed(e.at)
	if !ok || c.end > len(f.data) || c.end-c.at > 4096 {
		return false
	}
	// A checksum is linear: what a change of one byte changes in it depends on
	// the change and on the distance to the end alone.
	diff := f.crc(c) ^ unmask(binary.LittleEndian.Uint32(f.data[c.at:]))
	var bit [8]uint32
	for i := range bit {
		bit[i] = castagnoli[1<<i]
	}
	for range c.end - (c.at + 6) {
		for change := 1; change < 256; change++ {
			sum := uint32(0)
			for i := range bit {
				if change>>i&1 != 0 {
					sum ^= bit[i]
				}
			}
			if sum == diff {
				return true
			}
		}
		for i, b := range bit {
			bit[i] = castagnoli[byte(b)] ^ b>>8
		}
	}
	return bits8(f.checksum(c) ^ binary.LittleEndian.Uint32(f.data[c.at:]))
}

// bits8 tells whether two checksums differ in one byte: it is the checksum that
// is damaged.
func bits8(x uint32) bool {
	for i := range 4 {
		if x != 0 && x&^(0xff<<(8*i)) == 0 {
			return true
		}
	}
	return false
}
