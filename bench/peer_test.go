package bench

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"testing"
	"time"
)

// peer is a client of MQTT 3.1.1 that costs next to nothing, so that the broker
// and its store are measured. For one goroutine that reads and one that writes.
type peer struct {
	b    *testing.B
	conn net.Conn
	in   *bufio.Reader
	body []byte
}

// connect opens a connection and waits for CONNACK.
func connect(b *testing.B, addr, id string, clean bool) *peer {
	b.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = c.Close() })
	p := &peer{b: b, conn: c, in: bufio.NewReaderSize(c, 64<<10)}
	flags := byte(0)
	if clean {
		flags = 2
	}
	body := append([]byte{0, 4, 'M', 'Q', 'T', 'T', 4, flags, 0, 0}, str(id)...)
	p.write(frame(0x10, body))
	if head, ack := p.read(); head != 0x20 || ack[1] != 0 {
		b.Fatalf("CONNACK %x % x", head, ack)
	}
	return p
}

func str(s string) []byte { return append(binary.BigEndian.AppendUint16(nil, uint16(len(s))), s...) }

func frame(head byte, body []byte) []byte {
	out := []byte{head}
	n := len(body)
	for {
		d := byte(n & 0x7f)
		if n >>= 7; n > 0 {
			d |= 0x80
		}
		out = append(out, d)
		if n == 0 {
			return append(out, body...)
		}
	}
}

// publish makes a PUBLISH at QoS 1.
func publish(topic string, id uint16, payload []byte) []byte {
	return frame(0x32, append(binary.BigEndian.AppendUint16(str(topic), id), payload...))
}

func (p *peer) write(b []byte) {
	if _, err := p.conn.Write(b); err != nil {
		p.b.Errorf("write: %v", err)
	}
}

// read gives the next packet; its body is good until the next read.
func (p *peer) read() (head byte, body []byte) {
	head, body, err := p.next()
	if err != nil {
		p.b.Errorf("read: %v", err)
	}
	return head, body
}

func (p *peer) next() (head byte, body []byte, err error) {
	if head, err = p.in.ReadByte(); err != nil {
		return 0, nil, err
	}
	n, shift := 0, 0
	for {
		d, err := p.in.ReadByte()
		if err != nil {
			return 0, nil, err
		}
		n |= int(d&0x7f) << shift
		if shift += 7; d < 0x80 {
			break
		}
	}
	if cap(p.body) < n {
		p.body = make([]byte, 2*n)
	}
	_, err = io.ReadFull(p.in, p.body[:n])
	return head, p.body[:n], err
}

// subscribe asks for a filter and waits for SUBACK.
func (p *peer) subscribe(filter string, qos byte) {
	p.write(frame(0x82, append(append([]byte{0, 1}, str(filter)...), qos)))
	if head, ack := p.read(); head != 0x90 || len(ack) != 3 || ack[2] != qos {
		p.b.Fatalf("SUBACK %x % x", head, ack)
	}
}

// disconnect says good-bye and waits until the broker has closed.
func (p *peer) disconnect() {
	p.write([]byte{0xe0, 0})
	_ = p.conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	_, _ = io.Copy(io.Discard, p.in)
	_ = p.conn.Close()
}

// acks reads PUBACKs: at least one, and all that is there already.
func (p *peer) acks() int {
	n := 0
	for {
		head, body, err := p.next()
		if err != nil || head != 0x40 || len(body) != 2 {
			p.b.Errorf("PUBACK: %x % x %v", head, body, err)
			return -1
		}
		n++
		if p.in.Buffered() < 4 {
			return n
		}
	}
}

// flood publishes n messages with inFlight of them unacknowledged, and returns
// when all are acknowledged.
func (p *peer) flood(topic string, payload []byte, n, inFlight int) {
	packets := make([][]byte, inFlight)
	for i := range packets {
		packets[i] = publish(topic, uint16(i+1), payload)
	}
	var out []byte
	sent, acked, room := 0, 0, inFlight
	for acked < n {
		out = out[:0]
		for ; room > 0 && sent < n; room-- {
			out = append(out, packets[sent%inFlight]...)
			sent++
		}
		if len(out) > 0 {
			p.write(out)
		}
		k := p.acks()
		if k < 0 {
			return
		}
		acked += k
		room += k
	}
}

// delivered takes a PUBLISH apart.
func delivered(head byte, body []byte) (id uint16, payload []byte, err error) {
	if head&0xf0 != 0x30 || len(body) < 2 {
		return 0, nil, fmt.Errorf("no PUBLISH: %x", head)
	}
	at := 2 + int(binary.BigEndian.Uint16(body))
	if head&0x06 != 0 {
		id = binary.BigEndian.Uint16(body[at:])
		at += 2
	}
	return id, body[at:], nil
}

func puback(b []byte, id uint16) []byte {
	return binary.BigEndian.AppendUint16(append(b, 0x40, 2), id)
}
