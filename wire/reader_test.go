package wire

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"testing/iotest"

	"rewindmq/schema"
)

// stream is a few packets of each kind, with bodies around the sizes of the buffers.
func stream(v Version) []byte {
	out := AppendConnect(nil, &Connect{Version: v, ClientID: "c", CleanStart: true})
	out = AppendSubscribe(out, v, &Subscribe{PacketID: 1, Filters: []Filter{{Topic: "a/#", QoS: 1}}})
	for _, n := range []int{0, 1, 100, 500, smallBuffer - 1, smallBuffer, smallBuffer + 1, 1000, largeBuffer - 1, largeBuffer, 5000, 70_000} {
		out = AppendPublish(out, v, &Publish{Topic: "a/b", QoS: 1, PacketID: uint16(n + 1), Payload: bytes.Repeat([]byte{byte(n)}, n)})
		out = AppendPingreq(AppendAck(out, v, PUBACK, uint16(n+1), Success))
		out = AppendSubscribe(out, v, &Subscribe{PacketID: 2, Filters: []Filter{{Topic: strings.Repeat("f", n%60_000+1)}}})
	}
	return AppendClientDisconnect(out, v, &Disconnect{})
}

// reencode appends p as it would have been sent.
func reencode(dst []byte, v Version, p Packet) []byte {
	switch p := p.(type) {
	case *Connect:
		return AppendConnect(dst, p)
	case *Connack:
		return AppendConnack(dst, v, p)
	case *Publish:
		return AppendPublish(dst, v, p)
	case *Ack:
		if p.Reason == "" && len(p.User) == 0 {
			return AppendAck(dst, v, p.Type, p.ID, p.Code)
		}
		// No reason string or user property is ever sent in an ack; tests put them in by hand.
		var section []byte
		if p.Reason != "" {
			section = appendString(append(section, 0x1f), p.Reason)
		}
		for _, u := range p.User {
			section = appendString(appendString(append(section, 0x26), u.Key), u.Value)
		}
		b := appendSection([]byte{byte(p.ID >> 8), byte(p.ID), byte(p.Code)}, section)
		first := byte(p.Type) << 4
		if p.Type == PUBREL {
			first |= 2
		}
		return append(appendVarint(append(dst, first), len(b)), b...)
	case *Subscribe:
		return AppendSubscribe(dst, v, p)
	case *Suback:
		return AppendSuback(dst, v, p.PacketID, p.Codes)
	case *Unsubscribe:
		return AppendUnsubscribe(dst, v, p)
	case *Unsuback:
		return AppendUnsuback(dst, v, p.PacketID, p.Codes)
	case *Pingreq:
		return AppendPingreq(dst)
	case *Pingresp:
		return AppendPingresp(dst)
	case *Disconnect:
		return AppendClientDisconnect(dst, v, p)
	case *Auth:
		return AppendAuth(dst, p)
	}
	panic("unknown packet")
}

// TestReaderSplits reads the same stream in pieces of every kind. What comes out is the same, so nothing depends on where
// a Read ends.
func TestReaderSplits(t *testing.T) {
	t.Parallel()
	for _, v := range []Version{V31, V311, V5} {
		in := stream(v)
		rnd := rand.New(rand.NewPCG(1, uint64(v)))
		for name, src := range map[string]io.Reader{
			"whole":                bytes.NewReader(in),
			"a byte at a time":     iotest.OneByteReader(bytes.NewReader(in)),
			"half of what is free": iotest.HalfReader(bytes.NewReader(in)),
			"error with the data":  iotest.DataErrReader(bytes.NewReader(in)),
			"random": readerFunc(func() func(p []byte) (int, error) {
				src := bytes.NewReader(in)
				return func(p []byte) (int, error) { return src.Read(p[:min(len(p), rnd.IntN(700))]) }
			}()),
		} {
			r := NewReader(src, ReaderOptions{})
			var out []byte
			for {
				p, err := r.ReadPacket()
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					t.Fatalf("%s, %s: after %d bytes: %v", v, name, len(out), err)
				}
				out = reencode(out, v, p)
			}
			if !bytes.Equal(in, out) {
				t.Errorf("%s, %s: %d bytes came in, %d other ones out", v, name, len(in), len(out))
			}
			if r.Version() != v || r.Buffered() != 0 {
				t.Errorf("%s, %s: version %s, %d bytes buffered", v, name, r.Version(), r.Buffered())
			}
		}
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// TestReaderEnds checks the error for an end at each byte of a stream: io.EOF between packets, else not.
func TestReaderEnds(t *testing.T) {
	t.Parallel()
	in := AppendConnect(nil, &Connect{Version: V5, ClientID: "c", CleanStart: true})
	border := map[int]bool{0: true, len(in): true}
	for _, n := range []int{3, 600} {
		in = AppendPublish(in, V5, &Publish{Topic: "t", Payload: make([]byte, n)})
		border[len(in)] = true
		in = AppendSubscribe(in, V5, &Subscribe{PacketID: 1, Filters: []Filter{{Topic: strings.Repeat("f", n)}}})
		border[len(in)] = true
	}
	broken := errors.New("broken")
	for i := range len(in) + 1 {
		for _, end := range []error{io.EOF, broken, os.ErrDeadlineExceeded} {
			r := NewReader(io.MultiReader(bytes.NewReader(in[:i]), iotest.ErrReader(end)), ReaderOptions{})
			var err error
			for err == nil {
				_, err = r.ReadPacket()
			}
			want := end
			if end == io.EOF && !border[i] { //nolint:errorlint // the table holds it as it is
				want = io.ErrUnexpectedEOF
			}
			if !errors.Is(err, want) {
				t.Fatalf("end %v at %d: got %v, want %v", end, i, err, want)
			}
			if _, again := r.ReadPacket(); again != err { //nolint:errorlint // the very same
				t.Fatalf("end %v at %d: then %v", end, i, again)
			}
		}
	}
}

// TestReaderStopsAtTheFirstFault: nothing behind a fault is parsed.
func TestReaderStopsAtTheFirstFault(t *testing.T) {
	t.Parallel()
	r := NewReader(bytes.NewReader(raw(t, "c000 c100 c000")), ReaderOptions{})
	r.SetVersion(V311)
	if p, err := r.ReadPacket(); err != nil {
		t.Fatalf("got %#v, %v", p, err)
	}
	_, first := r.ReadPacket()
	var fault *Error
	if !errors.As(first, &fault) {
		t.Fatalf("got %v", first)
	}
	for range 3 {
		if p, err := r.ReadPacket(); p != nil || err != first { //nolint:errorlint // the very same
			t.Fatalf("got %#v, %v", p, err)
		}
	}
}

// TestReaderMaxPacketSize: a packet of the maximum is read, one above it is refused by its header alone.
func TestReaderMaxPacketSize(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		option uint32
		limit  int
	}{{0, DefaultMaxPacketSize}, {100, 100}, {2000, 2000}, {1 << 31, LimitMaxPacketSize}} {
		n := c.limit - 2 // the remaining length of a packet of that size
		for 1+varintSize(n)+n > c.limit {
			n--
		}
		fits := AppendPublish(nil, V311, &Publish{Topic: "t", Payload: make([]byte, n-3)})
		if p, err := readOne(V311, fits, ReaderOptions{MaxPacketSize: c.option}); err != nil || len(fits) != c.limit {
			t.Errorf("limit %d: got %T, %v for %d bytes", c.limit, p, err, len(fits))
		}
		header := appendVarint([]byte{0x30}, n+1)
		src := &meter{src: bytes.NewReader(header)}
		r := NewReader(src, ReaderOptions{MaxPacketSize: c.option})
		r.SetVersion(V5)
		_, err := r.ReadPacket()
		var fault *Error
		if !errors.As(err, &fault) || fault.Code != PacketTooLarge { // [MQTT-3.1.2-24]
			t.Errorf("limit %d: got %v", c.limit, err)
		}
		if src.reads != 1 {
			t.Errorf("limit %d: %d reads, though the header was there after one", c.limit, src.reads)
		}
	}
}

func TestReaderSetMaxPacketSize(t *testing.T) {
	t.Parallel()
	in := AppendConnect(nil, &Connect{Version: V311, ClientID: "c", CleanStart: true})
	for range 2 {
		in = AppendPublish(in, V311, &Publish{Topic: "t", Payload: make([]byte, 1000)})
	}
	r := NewReader(bytes.NewReader(in), ReaderOptions{MaxPacketSize: 100})
	if p, err := r.ReadPacket(); err != nil {
		t.Fatalf("got %#v, %v", p, err)
	}
	r.SetMaxPacketSize(2000)
	if p, err := r.ReadPacket(); err != nil {
		t.Fatalf("got %#v, %v", p, err)
	}
	r.SetMaxPacketSize(100)
	var fault *Error
	if p, err := r.ReadPacket(); !errors.As(err, &fault) || fault.Code != PacketTooLarge {
		t.Fatalf("got %#v, %v", p, err)
	}
}

// meter counts reads and the largest slice that was offered to one.
type meter struct {
	src     io.Reader
	reads   int
	largest int
	sum     int
}

func (m *meter) Read(p []byte) (int, error) {
	m.reads++
	m.largest = max(m.largest, len(p))
	n, err := m.src.Read(p)
	m.sum += n
	return n, err
}

// TestReaderGrowsWithTheBytes: a header that announces 8 MiB, and then silence, costs one small step; and at no time has
// a body more than stepFactor times what has arrived.
func TestReaderGrowsWithTheBytes(t *testing.T) {
	t.Parallel()
	const n = LimitMaxPacketSize - 5
	for _, first := range []byte{0x30, 0x82} {
		head := append(appendVarint([]byte{first}, n), 0, 1)
		for _, arrived := range []int{0, 100, 5000, 100_000, 1 << 20} {
			src := &meter{src: bytes.NewReader(append(head[:len(head):len(head)], make([]byte, arrived)...))}
			r := NewReader(src, ReaderOptions{MaxPacketSize: LimitMaxPacketSize})
			r.SetVersion(V311)
			if _, err := r.ReadPacket(); !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatalf("got %v", err)
			}
			if limit := stepFactor*src.sum + firstStep; src.largest > limit {
				t.Errorf("%#x, %d bytes arrived: offered %d to a read, at most %d", first, src.sum, src.largest, limit)
			}
		}
	}
}

// TestReaderShrinks: the buffer is small when idle, large while packets stream, and small again afterwards.
func TestReaderShrinks(t *testing.T) {
	t.Parallel()
	var src bytes.Buffer
	r := NewReader(&src, ReaderOptions{})
	r.SetVersion(V311)
	read := func(packets int) {
		t.Helper()
		for range packets {
			if _, err := r.ReadPacket(); err != nil {
				t.Fatal(err)
			}
		}
	}
	src.Write(AppendPingreq(nil))
	read(1)
	if len(r.buf) != smallBuffer {
		t.Fatalf("%d bytes for a PINGREQ", len(r.buf))
	}
	src.Write(bytes.Repeat([]byte{0xc0, 0}, 2000))
	read(2000)
	if len(r.buf) != largeBuffer {
		t.Fatalf("%d bytes in a stream", len(r.buf))
	}
	for range smallReads + 1 {
		src.Write(AppendPingreq(nil))
		read(1)
	}
	if len(r.buf) != smallBuffer {
		t.Fatalf("%d bytes when it was quiet again", len(r.buf))
	}
}

// TestReaderKeepsNothing: strings, payloads and properties of a packet stay as they are, whatever is read afterwards.
func TestReaderKeepsNothing(t *testing.T) {
	t.Parallel()
	want := Publish{
		Topic: "topic", Payload: []byte("payload"), QoS: 1, PacketID: 7, HasExpiry: true, MessageExpiry: 5,
		Properties: &schema.Properties{
			ContentType: "type", ResponseTopic: "r", CorrelationData: []byte("data"), User: []schema.UserProperty{{Key: "k", Value: "v"}},
		},
	}
	filters := Subscribe{PacketID: 9, Filters: []Filter{{Topic: "filter"}}}
	in := AppendSubscribe(AppendPublish(nil, V5, &want), V5, &filters)
	in = append(in, bytes.Repeat(AppendPublish(nil, V5, &Publish{Topic: "xxxxxxxxxxxxx", Payload: bytes.Repeat([]byte("x"), 200)}), 50)...)
	r := NewReader(bytes.NewReader(in), ReaderOptions{})
	r.SetVersion(V5)
	first, err := r.ReadPacket()
	if err != nil {
		t.Fatal(err)
	}
	kept := *first.(*Publish)
	second, err := r.ReadPacket()
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = r.ReadPacket()
	}
	if got := AppendPublish(nil, V5, &kept); !bytes.Equal(got, AppendPublish(nil, V5, &want)) {
		t.Errorf("the PUBLISH has become % x", got)
	}
	if s := second.(*Subscribe); s.Filters[0].Topic != "filter" {
		t.Errorf("the SUBSCRIBE has become %+v", s)
	}
}

// TestReaderReusesCleanStructs: nothing of one PUBLISH or ack is seen in the next, and nothing of it is held while waiting.
func TestReaderReusesCleanStructs(t *testing.T) {
	t.Parallel()
	full := Publish{
		Topic: "topic", Payload: []byte("payload"), QoS: 2, Retain: true, Dup: true, PacketID: 7, HasExpiry: true, MessageExpiry: 5,
		TopicAlias: 3, SubscriptionIDs: []uint32{1}, Properties: &schema.Properties{ContentType: "type"},
	}
	chunks := [][]byte{
		AppendPublish(nil, V5, &full),
		AppendPublish(nil, V5, &Publish{Topic: "t"}),
		AppendAck(nil, V5, PUBACK, 1, QuotaExceeded),
		AppendAck(nil, V5, PUBACK, 2, Success),
	}
	var r *Reader
	r = NewReader(readerFunc(func(p []byte) (int, error) {
		if !same(&r.publish, &Publish{}) || !same(&r.ack, &Ack{}) {
			t.Errorf("while waiting the reader holds %+v and %+v", r.publish, r.ack)
		}
		n := copy(p, chunks[0])
		chunks = chunks[1:]
		return n, nil
	}), ReaderOptions{FromServer: true})
	r.SetVersion(V5)
	for _, want := range []Packet{
		&full, &Publish{Topic: "t"}, &Ack{Type: PUBACK, ID: 1, Code: QuotaExceeded}, &Ack{Type: PUBACK, ID: 2},
	} {
		if p, err := r.ReadPacket(); err != nil || !same(p, want) {
			t.Errorf("got %+v, %v, want %+v", p, err, want)
		}
	}
}

// TestReaderCopiesWhatIsLongLived: the strings of a CONNECT or SUBSCRIBE do not hold the whole packet in memory.
func TestReaderCopiesWhatIsLongLived(t *testing.T) {
	t.Parallel()
	for _, in := range [][]byte{
		AppendConnect(nil, &Connect{Version: V5, ClientID: "xx", HasUsername: true, Username: "xx", HasPassword: true, Password: []byte("xx")}),
		AppendSubscribe(nil, V5, &Subscribe{PacketID: 1, Filters: []Filter{{Topic: "xx"}}}),
		AppendUnsubscribe(nil, V5, &Unsubscribe{PacketID: 1, Filters: []string{"xx"}}),
	} {
		r := NewReader(nil, ReaderOptions{})
		r.SetVersion(V5)
		body := in[2:]
		p, err := r.decode(in[0], body, true)
		if err != nil {
			t.Fatal(err)
		}
		before := reencode(nil, V5, p)
		clear(body)
		if !bytes.Equal(before, reencode(nil, V5, p)) {
			t.Errorf("%T points into the bytes that were read", p)
		}
	}
}

// TestReaderErrorWithData: an error that comes together with bytes is not lost, wherever they end.
func TestReaderErrorWithData(t *testing.T) {
	t.Parallel()
	in := AppendPublish(AppendPingreq(nil), V311, &Publish{Topic: "t", Payload: make([]byte, 20_000)})
	broken := errors.New("broken")
	for _, n := range []int{1, 2, 3, 100, smallBuffer, 600, firstStep, 10_000, len(in) - 1, len(in)} {
		rest, failed := in[:n], false
		r := NewReader(readerFunc(func(p []byte) (int, error) {
			if failed {
				return 0, io.EOF
			}
			c := copy(p, rest)
			if rest = rest[c:]; len(rest) == 0 {
				failed = true
				return c, broken
			}
			return c, nil
		}), ReaderOptions{})
		r.SetVersion(V311)
		var err error
		for err == nil {
			_, err = r.ReadPacket()
		}
		if !errors.Is(err, broken) {
			t.Errorf("broken after %d bytes: got %v", n, err)
		}
	}
}

// TestReaderNoProgress: a source that returns nothing for ever is given up.
func TestReaderNoProgress(t *testing.T) {
	t.Parallel()
	r := NewReader(readerFunc(func([]byte) (int, error) { return 0, nil }), ReaderOptions{})
	if _, err := r.ReadPacket(); !errors.Is(err, io.ErrNoProgress) {
		t.Fatalf("got %v", err)
	}
}

// TestDecodeRecovers: a fault of ours in a decoder costs the connection, not the process.
func TestDecodeRecovers(t *testing.T) {
	t.Parallel()
	var none *Reader // makes any decoder fault
	p, err := none.decode(0x30, []byte{0, 1, 'a'}, true)
	var fault *Error
	if !errors.As(err, &fault) || fault.Code != MalformedPacket || fault.Packet != PUBLISH || p != nil {
		t.Fatalf("got %#v, %v", p, err)
	}
}
