package broker

import (
	"context"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"rewindmq/schema"
	"rewindmq/store"
	"rewindmq/wire"
)

// laneStore takes appends into a lane of its own and answers them when it is
// told: what lies behind the lane is not measured.
type laneStore struct {
	store.Store
	n     uint64
	dones []func([]store.Appended)
	sizes []int
}

func (s *laneStore) Append(_ context.Context, _ *store.Publisher, msgs []*schema.Message, done func([]store.Appended)) {
	s.dones = append(s.dones, done)
	s.sizes = append(s.sizes, len(msgs))
}

func (s *laneStore) answer(buf []store.Appended) {
	for i, done := range s.dones {
		buf = buf[:0]
		for range s.sizes[i] {
			s.n++
			buf = append(buf, store.Appended{Outcome: store.Stored, Mark: schema.Mark{Lane: 1, N: s.n}})
		}
		done(buf)
	}
	s.dones, s.sizes = s.dones[:0], s.sizes[:0]
}

func (s *laneStore) Claim(_ context.Context, claims []store.Claim) []store.Claimed {
	return []store.Claimed{{Owner: schema.Owner{ClientID: claims[0].ClientID, SID: 1, Epoch: 1}}}
}

// Read finds nothing: the log is not read here.
func (s *laneStore) Read(context.Context, schema.Cursor, schema.Cursor, []string) (store.Messages, error) {
	return nothing{}, nil
}

func (s *laneStore) Head(context.Context) (schema.Cursor, error) { return schema.At(1, 0), nil }

func (s *laneStore) Tail(context.Context, schema.Cursor) (store.Tail, error) { return still{}, nil }

// still is a tail on which nothing happens.
type still struct{}

func (still) Next(ctx context.Context) ([]store.Event, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func (still) Close() error { return nil }

// nothing is an empty read.
type nothing struct{}

func (nothing) Next(context.Context) (*schema.Message, error) { return nil, io.EOF }
func (nothing) Trimmed() uint64                               { return 0 }
func (nothing) Close() error                                  { return nil }

// feed is a connection that always has the next packets.
type feed struct {
	s     *laneStore
	first []byte
	chunk []byte
	left  int // chunks
	rest  []byte
	buf   []store.Appended
}

func (f *feed) Read(p []byte) (int, error) {
	if len(f.rest) == 0 {
		switch {
		case f.first != nil:
			f.rest, f.first = f.first, nil
		case f.left == 0:
			f.s.answer(f.buf)
			return 0, io.EOF
		default:
			f.s.answer(f.buf)
			f.rest = f.chunk
			f.left--
		}
	}
	n := copy(p, f.rest)
	f.rest = f.rest[n:]
	return n, nil
}

func (f *feed) Write(p []byte) (int, error)      { return len(p), nil }
func (f *feed) Close() error                     { return nil }
func (f *feed) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (f *feed) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (f *feed) SetDeadline(time.Time) error      { return nil }
func (f *feed) SetReadDeadline(time.Time) error  { return nil }
func (f *feed) SetWriteDeadline(time.Time) error { return nil }

// BenchmarkPublish is the way of a QoS 1 PUBLISH from its bytes into the store's
// lane, and of its answer back into the outbox.
func BenchmarkPublish(b *testing.B) {
	for _, v := range []wire.Version{wire.V311, wire.V5} {
		b.Run(fmt.Sprintf("v%d", v), func(b *testing.B) {
			const packets = 64
			s := &laneStore{}
			br, err := New(s, Options{Node: "n"})
			if err != nil {
				b.Fatal(err)
			}
			go br.claims.run(br.life, br.claimAll)
			go func() { _ = br.hub.Run(br.life) }()
			<-br.hub.Ready()
			f := &feed{s: s, first: wire.AppendConnect(nil, &wire.Connect{Version: v, ClientID: "dev-7", CleanStart: true}), left: b.N/packets + 1}
			for i := range packets {
				f.chunk = wire.AppendPublish(f.chunk, v, &wire.Publish{
					Topic: "dev/7/reading", Payload: []byte("2026-11-26T00:00:00Z,21.5,1013.2,47"), QoS: 1, PacketID: uint16(i + 1),
				})
			}
			b.ReportAllocs()
			b.ResetTimer()
			br.Serve("bench", f)
			b.StopTimer()
			br.kill()
			if s.n < uint64(b.N) {
				b.Fatalf("%d of %d messages came to the lane", s.n, b.N)
			}
		})
	}
}
