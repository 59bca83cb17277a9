package wire

import (
	"bytes"
	"io"
	"testing"
)

// waiting is a source that has no more bytes, and would block.
type waiting struct {
	*bytes.Reader
	step int
}

func (w *waiting) Read(p []byte) (int, error) {
	if w.Len() == 0 {
		return 0, io.ErrNoProgress
	}
	return w.Reader.Read(p[:min(len(p), w.step)])
}

// TestBodyAroundItsSteps: a packet whose bytes have all arrived is returned, whatever
// its size and however they came: none of them is left in the buffer while the
// reader waits for more.
func TestBodyAroundItsSteps(t *testing.T) {
	t.Parallel()
	for _, size := range []int{smallBuffer, largeBuffer, firstStep, firstStep * stepFactor} {
		for n := size - 40; n < size+600; n += 7 {
			for _, step := range []int{1 << 20, 4093, 509, 13} {
				packet := AppendPublish(nil, V5, &Publish{Topic: "t", Payload: bytes.Repeat([]byte("x"), n), QoS: 1, PacketID: 1})
				// Small ones before it make the buffer large, or bring it half in.
				var in []byte
				for range 3 {
					in = AppendPublish(in, V5, &Publish{Topic: "t", Payload: make([]byte, 200)})
				}
				in = append(append(in, packet...), packet...)
				r := NewReader(&waiting{bytes.NewReader(in), step}, ReaderOptions{})
				r.SetVersion(V5)
				for i := range 5 {
					p, err := r.ReadPacket()
					if err != nil {
						t.Fatalf("packet %d of %d bytes in steps of %d: %v", i, n, step, err)
					}
					if m := p.(*Publish); i > 2 && len(m.Payload) != n {
						t.Fatalf("%d bytes, want %d", len(m.Payload), n)
					}
				}
			}
		}
	}
}
