package embedded

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"rewindmq/schema"
	"rewindmq/store"
)

// encoding is the first byte of every value. A change of a layout gets a new
// one; what is not known is corrupt, never skipped.
const encoding = 1

var (
	errShort   = errors.New("too short")
	errTrail   = errors.New("bytes behind the end")
	errVersion = errors.New("unknown encoding")
	errValue   = errors.New("value out of range")
)

// corrupt names the key and the reason.
func corrupt(key []byte, reason error) error {
	return fmt.Errorf("%w: key %q: %w", store.ErrCorrupt, key, reason)
}

func putString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func putBytes(b, s []byte) []byte { return append(binary.AppendUvarint(b, uint64(len(s))), s...) }

func putBool(b []byte, v bool) []byte {
	if v {
		return append(b, 1)
	}
	return append(b, 0)
}

// putTime keeps seconds and nanoseconds; the zero time is one byte of its own.
func putTime(b []byte, t time.Time) []byte {
	if t.IsZero() {
		return append(b, 0)
	}
	b = binary.AppendVarint(append(b, 1), t.Unix())
	return binary.AppendUvarint(b, uint64(t.Nanosecond()))
}

func putCursor(b []byte, c schema.Cursor) []byte {
	b = binary.AppendUvarint(b, uint64(c.Newest()))
	b = binary.AppendUvarint(b, uint64(len(c.Marks())))
	for _, m := range c.Marks() {
		b = binary.AppendUvarint(b, uint64(m.Lane))
		b = binary.AppendUvarint(b, m.N)
	}
	return b
}

func putMark(b []byte, m schema.Mark) []byte {
	return binary.AppendUvarint(binary.AppendUvarint(b, uint64(m.Lane)), m.N)
}

// decoder reads a value. The first error stays; what is read after it is zero.
type decoder struct {
	b   []byte
	err error
}

// decode begins a value: it checks the encoding.
func decode(b []byte) *decoder {
	d := &decoder{b: b}
	if v := d.byte(); d.err == nil && v != encoding {
		d.err = errVersion
	}
	return d
}

func (d *decoder) fail(err error) {
	if d.err == nil {
		d.err = err
	}
	d.b = nil
}

// end gives the error, also when bytes are left.
func (d *decoder) end() error {
	if d.err == nil && len(d.b) > 0 {
		d.err = errTrail
	}
	return d.err
}

func (d *decoder) byte() byte {
	if len(d.b) == 0 {
		d.fail(errShort)
		return 0
	}
	v := d.b[0]
	d.b = d.b[1:]
	return v
}

func (d *decoder) bool() bool {
	v := d.byte()
	if v > 1 {
		d.fail(errValue)
	}
	return v == 1
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.fail(errShort)
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) u16() uint16 {
	if len(d.b) < 2 {
		d.fail(errShort)
		return 0
	}
	v := binary.BigEndian.Uint16(d.b)
	d.b = d.b[2:]
	return v
}

func (d *decoder) u32() uint32 {
	if len(d.b) < 4 {
		d.fail(errShort)
		return 0
	}
	v := binary.BigEndian.Uint32(d.b)
	d.b = d.b[4:]
	return v
}

func (d *decoder) u64() uint64 {
	if len(d.b) < 8 {
		d.fail(errShort)
		return 0
	}
	v := binary.BigEndian.Uint64(d.b)
	d.b = d.b[8:]
	return v
}

// below reads a number that has to be at most limit.
func (d *decoder) below(limit uint64) uint64 {
	v := d.uvarint()
	if v > limit {
		d.fail(errValue)
		return 0
	}
	return v
}

func (d *decoder) varint() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.fail(errShort)
		return 0
	}
	d.b = d.b[n:]
	return v
}

// bytes shares the memory of the value.
func (d *decoder) bytes() []byte {
	n := d.uvarint()
	if n > uint64(len(d.b)) {
		d.fail(errShort)
		return nil
	}
	v := d.b[:n:n]
	d.b = d.b[n:]
	return v
}

func (d *decoder) string() string { return string(d.bytes()) }

func (d *decoder) id() schema.ID {
	var id schema.ID
	if len(d.b) < len(id) {
		d.fail(errShort)
		return id
	}
	d.b = d.b[copy(id[:], d.b):]
	return id
}

func (d *decoder) time() time.Time {
	if !d.bool() {
		return time.Time{}
	}
	sec := d.varint()
	return time.Unix(sec, int64(d.below(999_999_999))).UTC()
}

func (d *decoder) mark() schema.Mark {
	return schema.Mark{Lane: schema.Lane(d.below(1<<32 - 1)), N: d.uvarint()}
}

func (d *decoder) cursor() schema.Cursor {
	newest := schema.Lane(d.below(1<<32 - 1))
	n := d.below(uint64(len(d.b)))
	marks := make([]schema.Mark, 0, n)
	last := schema.Lane(0)
	for range n {
		m := d.mark()
		if d.err != nil || m.Lane <= last || m.Lane > newest {
			d.fail(errValue)
			return schema.Cursor{}
		}
		last = m.Lane
		marks = append(marks, m)
	}
	if d.err != nil {
		return schema.Cursor{}
	}
	return schema.NewCursor(newest, marks)
}

const (
	flagQoS        = 3
	flagRetain     = 1 << 2
	flagExpiry     = 1 << 3
	flagProperties = 1 << 4
)

// putMessage encodes all but the topic and the mark, which are in the key.
func putMessage(b []byte, m *schema.Message) []byte {
	flags := m.QoS & flagQoS
	if m.Retain {
		flags |= flagRetain
	}
	if !m.Expiry.IsZero() {
		flags |= flagExpiry
	}
	if m.Properties != nil {
		flags |= flagProperties
	}
	b = append(b, encoding, flags)
	b = append(b, m.ID[:]...)
	b = appendU64(b, m.TS)
	b = putTime(b, m.Created)
	if flags&flagExpiry != 0 {
		b = putTime(b, m.Expiry)
	}
	b = putString(b, m.ClientID)
	b = putString(b, m.Host)
	if flags&flagProperties != 0 {
		b = putProperties(b, m.Properties)
	}
	return append(b, m.Payload...)
}

// readMessage decodes into m. It keeps parts of value, which must be the
// caller's to give away. names may be nil.
func readMessage(m *schema.Message, value []byte, names *interner) error {
	d := decode(value)
	flags := d.byte()
	m.QoS, m.Retain = flags&flagQoS, flags&flagRetain != 0
	if m.QoS == 3 || flags >= flagProperties<<1 {
		d.fail(errValue)
	}
	m.ID = d.id()
	m.TS = d.u64()
	m.Created = d.time()
	if flags&flagExpiry != 0 {
		m.Expiry = d.time()
	}
	m.ClientID = names.string(d.bytes())
	m.Host = names.string(d.bytes())
	if flags&flagProperties != 0 {
		m.Properties = d.properties()
	}
	if len(d.b) > 0 {
		m.Payload = d.b
	}
	return d.err
}

func putProperties(b []byte, p *schema.Properties) []byte {
	var flags byte
	if p.HasPayloadFormat {
		flags |= 1
	}
	if p.CorrelationData != nil {
		flags |= 2
	}
	if p.EmptyContentType {
		flags |= 4
	}
	b = append(b, flags, p.PayloadFormat)
	b = putString(b, p.ContentType)
	b = putString(b, p.ResponseTopic)
	b = putBytes(b, p.CorrelationData)
	b = binary.AppendUvarint(b, uint64(len(p.User)))
	for _, u := range p.User {
		b = putString(putString(b, u.Key), u.Value)
	}
	return b
}

func (d *decoder) properties() *schema.Properties {
	flags := d.byte()
	if flags > 7 {
		d.fail(errValue)
	}
	p := &schema.Properties{HasPayloadFormat: flags&1 != 0, PayloadFormat: d.byte(), EmptyContentType: flags&4 != 0}
	p.ContentType, p.ResponseTopic = d.string(), d.string()
	// Present but empty is not the same as absent.
	if data := d.bytes(); flags&2 != 0 {
		p.CorrelationData = append([]byte{}, data...)
	}
	if n := d.below(uint64(len(d.b))); n > 0 {
		p.User = make([]schema.UserProperty, 0, min(n, 64))
		for range n {
			if d.err != nil {
				return p
			}
			p.User = append(p.User, schema.UserProperty{Key: d.string(), Value: d.string()})
		}
	}
	return p
}

// interner gives one string for the same bytes: publishers and hosts come again
// and again in a run of messages. For one goroutine. Bound: 1,024 strings.
type interner struct{ known map[string]string }

func (i *interner) string(b []byte) string {
	if i == nil {
		return string(b)
	}
	if s, ok := i.known[string(b)]; ok {
		return s
	}
	if i.known == nil || len(i.known) >= 1024 {
		i.known = make(map[string]string)
	}
	s := string(b)
	i.known[s] = s
	return s
}
