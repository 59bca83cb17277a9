package wire

import (
	"bytes"
	"encoding/binary"
	"unicode/utf8"
	"unsafe"
)

// body is a cursor over what follows a fixed header. Each method takes one field from the front. The first fault is kept in
// err, the rest of the input is dropped then, and every later field is empty: so a decoder reads all fields, and
// asks for err once.
type body struct {
	buf []byte
	err *Error
	// shared: buf was allocated for this packet and never changes, so strings and slices may point into it.
	shared bool
	// refuseControl: see ReaderOptions.RefuseControlCharacters.
	refuseControl bool
}

func (b *body) fail(e *Error) {
	if b.err == nil {
		b.err = e
	}
	b.buf = nil
}

func (b *body) malformed(what string) { b.fail(malformed(what)) }

func (b *body) protocolError(what string) { b.fail(protocolError(what)) }

func (b *body) byte(what string) byte {
	if len(b.buf) < 1 {
		b.malformed(what + " is missing")
		return 0
	}
	v := b.buf[0]
	b.buf = b.buf[1:]
	return v
}

func (b *body) uint16(what string) uint16 {
	if len(b.buf) < 2 {
		b.malformed(what + " is cut short")
		return 0
	}
	v := binary.BigEndian.Uint16(b.buf)
	b.buf = b.buf[2:]
	return v
}

func (b *body) uint32(what string) uint32 {
	if len(b.buf) < 4 {
		b.malformed(what + " is cut short")
		return 0
	}
	v := binary.BigEndian.Uint32(b.buf)
	b.buf = b.buf[4:]
	return v
}

// varint takes a variable byte integer.
func (b *body) varint(what string) uint32 {
	v, n, minimal := varint(b.buf)
	switch {
	case n == 0:
		b.malformed(what + " is cut short")
		return 0
	case n < 0:
		b.malformed(what + " has more than four bytes")
		return 0
	case !minimal: // [MQTT-1.5.5-1]
		b.malformed(what + " is not in its shortest form")
		return 0
	}
	b.buf = b.buf[n:]
	return v
}

// field takes a length of two bytes and as many bytes. The result points into buf.
func (b *body) field(what string) []byte {
	if len(b.buf) < 2 {
		b.malformed(what + " is cut short")
		return nil
	}
	n := int(binary.BigEndian.Uint16(b.buf))
	if len(b.buf)-2 < n {
		b.malformed(what + " is longer than the packet")
		return nil
	}
	v := b.buf[2 : 2+n : 2+n]
	b.buf = b.buf[2+n:]
	return v
}

// binary takes binary data. The result is not nil unless there was a fault: an empty value differs from none.
func (b *body) binary(what string) []byte {
	v := b.field(what)
	if b.shared || v == nil {
		return v
	}
	return append([]byte{}, v...)
}

// string takes a UTF-8 encoded string. It is returned as it came: no normalisation, and a U+FEFF stays
// where it is [MQTT-1.5.4-3].
func (b *body) string(what string) string {
	v := b.field(what)
	if len(v) == 0 {
		return ""
	}
	if !validString(v) {
		b.malformed(what + " is not well-formed UTF-8, or has U+0000 in it")
		return ""
	}
	if b.refuseControl && hasControl(v) {
		b.malformed(what + " has a control character in it")
		return ""
	}
	if b.shared {
		return unsafe.String(&v[0], len(v)) // buf is never written again
	}
	return string(v)
}

// end demands that nothing is left.
func (b *body) end() {
	if len(b.buf) > 0 {
		b.malformed("there are bytes after the end of the content")
	}
}

// validString reports whether v may stand in a UTF-8 encoded string: well-formed, no surrogates [MQTT-1.5.4-1],
// no U+0000 [MQTT-1.5.4-2] (in 3.1.1: [MQTT-1.5.3-1], [MQTT-1.5.3-2]).
func validString(v []byte) bool {
	return bytes.IndexByte(v, 0) < 0 && utf8.Valid(v)
}

// hasControl reports whether the well-formed v has a code point that a receiver may refuse, U+0001 to U+001F, U+007F to
// U+009F, or a non-character (section 1.5.4).
func hasControl(v []byte) bool {
	for _, r := range string(v) { // no copy: the compiler ranges over the bytes
		if r < 0x20 || r >= 0x7f && r <= 0x9f || r&0xfffe == 0xfffe || r >= 0xfdd0 && r <= 0xfdef {
			return true
		}
	}
	return false
}

// varint decodes a variable byte integer at the front of b. n is its length, 0 when b ends too early, and -1 when it
// has more than four bytes. minimal says that no shorter form of the same value exists.
func varint(b []byte) (v uint32, n int, minimal bool) {
	for i, c := range b {
		if i == 4 {
			return 0, -1, false
		}
		v |= uint32(c&0x7f) << (7 * i)
		if c < 0x80 {
			return v, i + 1, i == 0 || c != 0
		}
		if i == 3 {
			return 0, -1, false
		}
	}
	return 0, 0, false
}

const maxVarint = 1<<28 - 1 // the largest variable byte integer, and so the largest remaining length

func varintSize(v int) int {
	switch {
	case v < 1<<7:
		return 1
	case v < 1<<14:
		return 2
	case v < 1<<21:
		return 3
	}
	return 4
}

func appendVarint(dst []byte, v int) []byte {
	for v >= 0x80 {
		dst = append(dst, byte(v)|0x80)
		v >>= 7
	}
	return append(dst, byte(v))
}

func appendString(dst []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint16(dst, uint16(len(s))), s...)
}

func appendBinary(dst, b []byte) []byte {
	return append(binary.BigEndian.AppendUint16(dst, uint16(len(b))), b...)
}
