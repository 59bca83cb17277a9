package wire

import "testing"

// loop is a source that repeats the same bytes for ever.
type loop struct {
	in []byte
	at int
}

func (l *loop) Read(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		c := copy(p[n:], l.in[l.at:])
		n += c
		if l.at += c; l.at == len(l.in) {
			l.at = 0
		}
	}
	return n, nil
}

func looped(v Version, in []byte) *Reader {
	r := NewReader(&loop{in: in}, ReaderOptions{})
	r.SetVersion(v)
	return r
}

func reading() *Publish {
	return &Publish{
		Topic: "dev/1234/reading", Payload: []byte("2024-01-01T00:00:00Z,12.5,80,1013.2,3.4,NW,0.0,ok"), QoS: 1, PacketID: 1234,
	}
}

func benchmarkRead(b *testing.B, v Version, in []byte) {
	r := looped(v, in)
	b.SetBytes(int64(len(in)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.ReadPacket(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkReadPublishV311(b *testing.B) {
	benchmarkRead(b, V311, AppendPublish(nil, V311, reading()))
}

func BenchmarkReadPublishV5(b *testing.B) {
	benchmarkRead(b, V5, AppendPublish(nil, V5, reading()))
}

func BenchmarkReadPublish64KiB(b *testing.B) {
	p := reading()
	p.Payload = make([]byte, 64<<10)
	benchmarkRead(b, V5, AppendPublish(nil, V5, p))
}

func BenchmarkReadPuback(b *testing.B)  { benchmarkRead(b, V5, AppendAck(nil, V5, PUBACK, 1, Success)) }
func BenchmarkReadPingreq(b *testing.B) { benchmarkRead(b, V5, AppendPingreq(nil)) }

func benchmarkAppend(b *testing.B, v Version, p *Publish) {
	dst := make([]byte, 0, PublishSize(v, p))
	b.SetBytes(int64(cap(dst)))
	b.ReportAllocs()
	for b.Loop() {
		dst = AppendPublish(dst[:0], v, p)
	}
}

func BenchmarkAppendPublishV311(b *testing.B) { benchmarkAppend(b, V311, reading()) }

func BenchmarkAppendPublishV5(b *testing.B) {
	p := reading()
	p.HasExpiry, p.SubscriptionIDs = true, []uint32{1, 300}
	benchmarkAppend(b, V5, p)
}

// TestAllocations holds the figures of the benchmarks that must not get worse unseen.
func TestAllocations(t *testing.T) { // not parallel: it counts allocations of the process
	full := reading()
	full.HasExpiry, full.SubscriptionIDs = true, []uint32{1, 300}
	dst := make([]byte, 0, 512)
	read := func(v Version, in []byte) func() {
		r := looped(v, in)
		return func() {
			if _, err := r.ReadPacket(); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, c := range []struct {
		name string
		max  float64
		do   func()
	}{
		{"read PUBLISH 3.1.1", 1, read(V311, AppendPublish(nil, V311, reading()))},
		{"read PUBLISH 5", 1, read(V5, AppendPublish(nil, V5, reading()))},
		{"read PUBLISH across buffers", 1, read(V5, AppendPublish(nil, V5, &Publish{Topic: "t", Payload: make([]byte, 3000)}))},
		{"read PUBACK", 0, read(V5, AppendAck(nil, V5, PUBACK, 1, Success))},
		{"read PUBREC with code", 0, read(V5, AppendAck(nil, V5, PUBREC, 1, QuotaExceeded))},
		{"read PINGREQ", 0, read(V311, AppendPingreq(nil))},
		{"append PUBLISH 3.1.1", 0, func() { dst = AppendPublish(dst[:0], V311, full) }},
		{"append PUBLISH 5", 0, func() { dst = AppendPublish(dst[:0], V5, full) }},
		{"append ack", 0, func() { dst = AppendAck(dst[:0], V5, PUBACK, 1, QuotaExceeded) }},
		{"append PINGRESP", 0, func() { dst = AppendPingresp(dst[:0]) }},
	} {
		if got := testing.AllocsPerRun(1000, c.do); got > c.max {
			t.Errorf("%s: %v allocations, at most %v", c.name, got, c.max)
		}
	}
}
