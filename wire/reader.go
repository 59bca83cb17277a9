package wire

import (
	"errors"
	"fmt"
	"io"
)

const (
	// DefaultMaxPacketSize is in bytes, for the whole packet.
	DefaultMaxPacketSize = 1 << 20
	// LimitMaxPacketSize is the most that can be asked for.
	LimitMaxPacketSize = 8 << 20

	// An idle connection holds a buffer of smallBuffer bytes. One that streams reads through largeBuffer until
	// smallReads reads in a row would have fitted into the small one.
	smallBuffer = 512
	largeBuffer = 4096
	smallReads  = 2

	// A body that does not fit into the buffer gets a slice of its own, of firstStep bytes at most. It becomes
	// stepFactor times as large each time it is full, up to the exact size.
	firstStep  = 4096
	stepFactor = 4

	maxEmptyReads = 100 // of a source that returns neither bytes nor an error
)

// ReaderOptions are the options of a [Reader]. The zero value is that of a server.
type ReaderOptions struct {
	// MaxPacketSize bounds a whole packet, in bytes. 0 is DefaultMaxPacketSize; more than LimitMaxPacketSize is taken as
	// LimitMaxPacketSize.
	MaxPacketSize uint32
	// FromServer reads what a server sends, as a client does. The version has to be set with SetVersion; else it is 3.1.1.
	FromServer bool
	// RefuseControlCharacters makes a string malformed that has U+0001 to U+001F, U+007F to U+009F or a non-character in
	// it, as the standard allows (section 1.5.4). By default they are carried like any other.
	RefuseControlCharacters bool
}

// Reader takes the packets of one peer from a byte stream. It is not safe for concurrent use.
//
// Memory: about 1 KiB with its buffer while nothing happens, at most 4 KiB more after a burst, and beside that only the
// packet that is being read, which grows with the bytes that arrive.
type Reader struct {
	src io.Reader
	// buf[start:end] has been read and not parsed. Invariant: 0 <= start <= end <= len(buf).
	buf        []byte
	start, end int
	// large says that the next buffer is to be a large one; small counts reads in a row that a small one would have held.
	large bool
	small uint8
	// pending is an error that came together with bytes.
	pending error
	// failed is the first error that ReadPacket returned. Nothing is parsed behind it.
	failed error

	maxSize       int
	version       Version // 0 before CONNECT
	connected     bool    // CONNECT has been read
	fromServer    bool
	refuseControl bool

	// Returned again and again: see Packet.
	publish Publish
	ack     Ack
	ping    Pingreq
}

// NewReader returns a Reader that takes packets from r. It reads nothing yet.
func NewReader(r io.Reader, o ReaderOptions) *Reader {
	out := &Reader{src: r, fromServer: o.FromServer, refuseControl: o.RefuseControlCharacters}
	out.SetMaxPacketSize(o.MaxPacketSize)
	return out
}

// SetMaxPacketSize sets the bound for the packets from the next one on, as ReaderOptions.MaxPacketSize does. A server may
// want a smaller one until a client has shown who it is.
func (r *Reader) SetMaxPacketSize(bytes uint32) {
	if bytes == 0 {
		bytes = DefaultMaxPacketSize
	}
	r.maxSize = int(min(bytes, LimitMaxPacketSize))
}

// SetVersion sets the version in which the next packets are read. A server's Reader sets it by itself at CONNECT, and
// needs this only when it does not see the CONNECT. With any other version than the three, the next packet has to
// be a CONNECT again.
func (r *Reader) SetVersion(v Version) {
	if v != V31 && v != V311 && v != V5 {
		v = 0
	}
	r.version, r.connected = v, v != 0
}

// Version returns the version of the connection, and 0 before CONNECT. When CONNECT was refused it is the version to
// answer it in, and 0 when there is nothing to answer: pass it to [AppendConnack] as it is.
func (r *Reader) Version() Version { return r.version }

// Buffered returns how many bytes have been read from the source and not been parsed. The next ReadPacket may have to
// wait all the same, for the rest of a packet.
func (r *Reader) Buffered() int { return r.end - r.start }

// ReadPacket returns the next packet. It blocks until it is complete. For what is valid how long, see [Packet].
//
// Errors of the source are returned as they are, but io.EOF inside a packet becomes [io.ErrUnexpectedEOF]. What the peer
// did wrong is an [*Error]; a packet above the maximum is one with PacketTooLarge, and its body is not read. Every
// error is final: the next call returns the same.
func (r *Reader) ReadPacket() (Packet, error) {
	if r.failed != nil {
		return nil, r.failed
	}
	// Let go of the last packet before the wait: an idle connection must not hold 8 MiB of payload.
	r.publish, r.ack = Publish{}, Ack{}
	p, err := r.next()
	if err != nil {
		r.failed = err
		return nil, err
	}
	return p, nil
}

// next waits for a packet and decodes it. The blocked Read lies only two small frames below ReadPacket: with
// thousands of idle connections their stacks count.
func (r *Reader) next() (Packet, error) {
	first, n, err := r.readHeader()
	if err != nil {
		return nil, err
	}
	t := PacketType(first >> 4)
	if t == PUBLISH || n > len(r.buf) {
		// The body gets a slice of its own: the strings and the payload of a PUBLISH stay where they are, and a
		// large body is not copied through the buffer.
		own, err := r.readBody(n)
		if err != nil {
			return nil, err
		}
		return r.decode(first, own, true)
	}
	for r.end-r.start < n {
		if err := r.fill(); err != nil {
			return nil, inside(err)
		}
	}
	in := r.buf[r.start : r.start+n : r.start+n]
	r.start += n
	return r.decode(first, in, false)
}

// readHeader takes a fixed header, judges all that can be judged before the body, and returns the first byte and the
// remaining length.
func (r *Reader) readHeader() (first byte, n int, err error) {
	for {
		if in := r.buf[r.start:r.end]; len(in) > 1 {
			v, size, minimal := varint(in[1:])
			if size != 0 {
				if fault := r.checkHeader(in[0], v, size, minimal); fault != nil {
					fault.Packet = PacketType(in[0] >> 4)
					return 0, 0, fault
				}
				r.start += 1 + size
				return in[0], int(v), nil
			}
		}
		if err := r.fill(); err != nil {
			if r.start < r.end {
				err = inside(err)
			}
			return 0, 0, err
		}
	}
}

func inside(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// checkHeader judges a fixed header. n is the remaining length, size how many bytes it took.
func (r *Reader) checkHeader(first byte, n uint32, size int, minimal bool) *Error {
	t, flags := PacketType(first>>4), first&0xf
	if fault := r.checkOrder(t); fault != nil {
		return fault
	}
	switch {
	case size < 0:
		return malformed("remaining length has more than four bytes")
	case !minimal && r.version == V5: // [MQTT-1.5.5-1]; 3.1.1 does not say
		return malformed("remaining length is not in its shortest form")
	}
	if fault := checkFlags(t, flags, r.version); fault != nil {
		return fault
	}
	if 1+size+int(n) > r.maxSize { // [MQTT-3.1.2-24]
		return &Error{Code: PacketTooLarge, Err: fmt.Errorf("%d bytes, at most %d", 1+size+int(n), r.maxSize)}
	}
	if (t == PINGREQ || t == PINGRESP) && n > 0 {
		return malformed("there are bytes after the end of the content")
	}
	return nil
}

// checkOrder judges whether a packet type may come now, from this side.
func (r *Reader) checkOrder(t PacketType) *Error {
	if r.fromServer {
		switch t {
		case CONNECT, SUBSCRIBE, UNSUBSCRIBE, PINGREQ:
			return protocolError("a server does not send this packet")
		case DISCONNECT:
			if r.version != V5 {
				return protocolError("a server does not send this packet")
			}
		}
	} else {
		switch {
		case t == CONNACK || t == SUBACK || t == UNSUBACK || t == PINGRESP:
			return protocolError("a client does not send this packet")
		case t == CONNECT && r.connected: // [MQTT-3.1.0-2]
			return protocolError("a second CONNECT")
		case t != CONNECT && !r.connected: // [MQTT-3.1.0-1]
			return protocolError("the first packet is not a CONNECT")
		}
	}
	if t == 0 || t == AUTH && r.version != V5 {
		return protocolError("this packet type does not exist")
	}
	return nil
}

// checkFlags judges the reserved bits of a first byte [MQTT-2.1.3-1]. In 3.1 they have no meaning. Those of CONNECT are
// judged when the version is known.
func checkFlags(t PacketType, flags byte, v Version) *Error {
	want := byte(0)
	switch t {
	case PUBLISH:
		return checkPublishFlags(flags)
	case CONNECT:
		return nil
	case PUBREL, SUBSCRIBE, UNSUBSCRIBE: // [MQTT-3.6.1-1] [MQTT-3.8.1-1] [MQTT-3.10.1-1]
		want = 2
	}
	if flags != want && v != V31 { // of DISCONNECT: [MQTT-3.14.1-1], of AUTH: [MQTT-3.15.1-1]
		return malformed("reserved bits of the fixed header are set")
	}
	return nil
}

// decode turns a body into a packet. shared says that in is a slice of its own, which the packet may keep.
//
// The recover is the last resort, for a fault of ours: it costs one connection then, not the process.
func (r *Reader) decode(first byte, in []byte, shared bool) (p Packet, err error) {
	t := PacketType(first >> 4)
	defer func() {
		if x := recover(); x != nil {
			p, err = nil, &Error{Code: MalformedPacket, Packet: t, Err: fmt.Errorf("decode: %v", x)}
		}
	}()
	b := body{buf: in, shared: shared, refuseControl: r.refuseControl}
	p, fault := r.decodeBody(t, first&0xf, &b)
	if fault != nil {
		fault.Packet = t
		return nil, fault
	}
	return p, nil
}

func (r *Reader) decodeBody(t PacketType, flags byte, b *body) (Packet, *Error) {
	switch t {
	case PUBLISH:
		return r.decodePublish(flags, b)
	case PUBACK, PUBREC, PUBREL, PUBCOMP:
		return r.decodeAck(t, b)
	case PINGREQ:
		return &r.ping, nil
	}
	// The rest is rare and long-lived: its strings are copies, so that a client identifier does not hold a password or a
	// will in memory.
	b.shared = false
	switch t {
	case CONNECT:
		r.connected = true
		return r.decodeConnect(flags, b)
	case SUBSCRIBE:
		return r.decodeSubscribe(b)
	case UNSUBSCRIBE:
		return r.decodeUnsubscribe(b)
	case DISCONNECT:
		return r.decodeDisconnect(b)
	case AUTH:
		return r.decodeAuth(b)
	case CONNACK:
		return r.decodeConnack(b)
	case SUBACK:
		return r.decodeSuback(b)
	case UNSUBACK:
		return r.decodeUnsuback(b)
	case PINGRESP:
		return &Pingresp{}, nil
	}
	return nil, protocolError("this packet type does not exist")
}
