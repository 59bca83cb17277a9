package wire

import (
	"bytes"
	"cmp"
	"errors"
	"io"
	"testing"

	"github.com/mochi-mqtt/server/v2/packets"
)

// FuzzReadPacket: whatever comes in, the reader does not panic, takes no byte behind the packet's end out of account, and
// what it decodes can be encoded again and decodes to the same.
func FuzzReadPacket(f *testing.F) {
	for _, v := range []Version{0, V31, V311, V5} {
		for _, s := range []string{
			"82 06 0001 00 0001 61", "e0 01 04", "c000", "d000", "62 02 0001", "f0 02 18 00", "30 ff ff ff 7f 00",
			"10 0d 0004 4d515454 04 02 0000 0001 61 c000", "10 0f 0006 4d5149736470 03 c2 0000 0001 61",
			"10 17 0004 4d515454 05 06 0000 00 0001 61 02 01 01 0001 77 0001 70",
			"33 0e 0001 61 0007 08 01 01 02 00000005 62", "20 05 01 00 02 24 01",
		} {
			f.Add(byte(v), v == 0, raw(f, s))
		}
		if v != 0 {
			f.Add(byte(v), false, stream(v)[:2000])
		}
	}
	// The cases of mochi's own tests, well-formed and not.
	for _, cases := range packets.TPacketData {
		for _, c := range cases {
			v := byte(0)
			if c.Packet != nil {
				v = c.Packet.ProtocolVersion
			}
			f.Add(v, false, c.RawBytes)
			f.Add(v, true, c.RawBytes)
		}
	}
	f.Fuzz(func(t *testing.T, v byte, server bool, in []byte) {
		src := &meter{src: bytes.NewReader(in)}
		r := NewReader(src, ReaderOptions{FromServer: server, MaxPacketSize: 1 << 16})
		r.SetVersion(Version(v))
		parsed := 0
		for {
			p, err := r.ReadPacket()
			if err != nil {
				var fault *Error
				if !errors.As(err, &fault) && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Fatalf("error %v", err)
				}
				if fault != nil && (fault.Err == nil || !fault.Code.Failed()) {
					t.Fatalf("error %+v", fault)
				}
				return
			}
			_, n, _ := varint(in[parsed+1:])
			size, _, _ := varint(in[parsed+1:])
			parsed += 1 + n + int(size)
			if left := src.sum - r.Buffered(); left != parsed {
				t.Fatalf("%d bytes are parsed, the packets have %d", left, parsed)
			}
			checkAgain(t, cmp.Or(r.version, V311), server, p)
		}
	})
}

// checkAgain encodes p, decodes that, and compares.
func checkAgain(t *testing.T, v Version, server bool, p Packet) {
	t.Helper()
	switch p := p.(type) {
	case *Suback: // what a server of ours never sends is not encoded
		p.Reason, p.User = "", nil
	case *Unsuback:
		p.Reason, p.User = "", nil
	case *Connack:
		p.ReasonString = reasonString(p.ReasonString)
		if p.Code == ServerUnavailable || v != V5 && p.Code != Success {
			return // several reason codes share a return code
		}
	case *Auth:
		p.Reason = reasonString(p.Reason)
	}
	out := reencode(nil, v, p)
	if pub, ok := p.(*Publish); ok && PublishSize(v, pub) != len(out) {
		t.Fatalf("%#v: PublishSize %d, encoded %d", pub, PublishSize(v, pub), len(out))
	}
	r := NewReader(bytes.NewReader(out), ReaderOptions{FromServer: server})
	if _, first := p.(*Connect); !first {
		r.SetVersion(v)
	}
	again, err := r.ReadPacket()
	if err != nil {
		t.Fatalf("%#v encodes to % x: %v", p, out, err)
	}
	if !same(p, again) {
		t.Fatalf("%#v encodes to % x, which decodes to %#v", p, out, again)
	}
}
