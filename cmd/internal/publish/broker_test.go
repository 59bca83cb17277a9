package publish

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"

	"github.com/eclipse/paho.golang/packets"
)

// points are the places in the protocol at which the scripted broker can cut the connection.
var points = []string{
	"connect",  // CONNECT was read, nothing is answered
	"connack",  // CONNACK was sent
	"publish",  // PUBLISH was read, nothing is stored
	"stored",   // stored, nothing is answered
	"answered", // PUBREC or PUBACK was sent
	"pubrel",   // PUBREL was read, the id is still held
	"released", // the id is free, nothing is answered
	"pubcomp",  // PUBCOMP was sent
}

// broker is a scripted MQTT 5 server with one session: it keeps what the standard demands and nothing else, cuts the
// connection where the script says, and notes what a client does wrong.
type broker struct {
	t  *testing.T
	ln net.Listener
	// cut says whether to cut at a point; it is called under mu. Set before the first connection.
	cut func(point string) bool
	// refuse returns the reason code for a payload, 0 to take it. Set before the first connection.
	refuse     func(payload string) byte
	receiveMax uint16
	packetSize uint32

	mu       sync.Mutex
	stored   []string
	held     map[uint16]bool // QoS 2 ids between PUBLISH and PUBREL
	session  bool
	connects int
	conns    []net.Conn
	mute     bool // read and answer nothing
	done     sync.WaitGroup
}

var errCut = errors.New("cut")

func newBroker(t *testing.T) *broker {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &broker{t: t, ln: ln, held: map[uint16]bool{}, receiveMax: 4, cut: func(string) bool { return false }}
	b.done.Go(b.accept)
	t.Cleanup(b.close)
	return b
}

func (b *broker) addr() string { return b.ln.Addr().String() }

func (b *broker) close() {
	_ = b.ln.Close()
	b.mu.Lock()
	for _, c := range b.conns {
		_ = c.Close()
	}
	b.mu.Unlock()
	b.done.Wait()
}

func (b *broker) accept() {
	for {
		c, err := b.ln.Accept()
		if err != nil {
			return
		}
		b.mu.Lock()
		b.conns = append(b.conns, c)
		b.mu.Unlock()
		b.done.Go(func() {
			defer func() { _ = c.Close() }()
			b.serve(c)
		})
	}
}

// at cuts the connection when the script says so.
func (b *broker) at(point string) error {
	if b.cut(point) {
		return errCut
	}
	return nil
}

func (b *broker) wrong(format string, args ...any) {
	b.t.Errorf("the client did wrong: "+format, args...)
}

// serve answers one connection until it ends.
func (b *broker) serve(c net.Conn) {
	open := map[uint16]bool{} // ids that count against Receive Maximum on this connection
	for {
		p, err := packets.ReadPacket(c)
		if err != nil {
			return
		}
		b.mu.Lock()
		mute := b.mute
		out, err := b.on(p, open)
		b.mu.Unlock()
		if mute {
			continue
		}
		if len(out) > 0 {
			if _, err := c.Write(out); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// on handles one packet under mu. What it returns is sent even when the connection is then cut.
func (b *broker) on(p *packets.ControlPacket, open map[uint16]bool) (out []byte, err error) {
	switch body := p.Content.(type) {
	case *packets.Connect:
		return b.onConnect(body)
	case *packets.Publish:
		return b.onPublish(body, open)
	case *packets.Pubrel:
		if err := b.at("pubrel"); err != nil {
			return nil, err
		}
		delete(b.held, body.PacketID)
		if err := b.at("released"); err != nil {
			return nil, err
		}
		delete(open, body.PacketID)
		return encodeTest(&packets.Pubcomp{PacketID: body.PacketID}), b.at("pubcomp")
	case *packets.Pingreq:
		return []byte{packets.PINGRESP << 4, 0}, nil
	case *packets.Disconnect:
		return nil, errors.New("disconnected")
	default:
		b.wrong("unexpected %s", p.PacketType())
		return nil, errCut
	}
}

func (b *broker) onConnect(body *packets.Connect) ([]byte, error) {
	b.connects++
	if b.session && body.CleanStart && len(b.stored) > 0 {
		b.wrong("clean start of a session with messages")
	}
	if body.CleanStart {
		b.held, b.session = map[uint16]bool{}, false
	}
	if err := b.at("connect"); err != nil {
		return nil, err
	}
	ack := packets.Connack{SessionPresent: b.session, Properties: &packets.Properties{ReceiveMaximum: &b.receiveMax}}
	if b.packetSize > 0 {
		ack.Properties.MaximumPacketSize = &b.packetSize
	}
	b.session = body.Properties.SessionExpiryInterval != nil && *body.Properties.SessionExpiryInterval > 0
	return encodeTest(&ack), b.at("connack")
}

func (b *broker) onPublish(body *packets.Publish, open map[uint16]bool) ([]byte, error) {
	if err := b.at("publish"); err != nil {
		return nil, err
	}
	open[body.PacketID] = true
	if len(open) > int(b.receiveMax) {
		b.wrong("%d messages in flight, Receive Maximum is %d [MQTT-3.3.4-9]", len(open), b.receiveMax)
	}
	if b.refuse != nil {
		if code := b.refuse(string(body.Payload)); code != 0 {
			return encodeTest(&packets.Pubrec{PacketID: body.PacketID, ReasonCode: code}), nil
		}
	}
	switch {
	case body.QoS == 2 && b.held[body.PacketID] && !body.Duplicate:
		b.wrong("id %d used for a new message before PUBCOMP [MQTT-2.2.1-3]", body.PacketID)
	case body.QoS == 2 && b.held[body.PacketID]:
	default:
		b.stored = append(b.stored, string(body.Payload))
		if body.QoS == 2 {
			b.held[body.PacketID] = true
		}
	}
	if err := b.at("stored"); err != nil {
		return nil, err
	}
	switch body.QoS {
	case 0:
		return nil, nil
	case 1:
		delete(open, body.PacketID)
		return encodeTest(&packets.Puback{PacketID: body.PacketID}), b.at("answered")
	default:
		return encodeTest(&packets.Pubrec{PacketID: body.PacketID}), b.at("answered")
	}
}

func (b *broker) messages() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.stored)
}

func encodeTest(p packets.Packet) []byte {
	var b bytes.Buffer
	if _, err := p.WriteTo(&b); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// numbered is a source of the messages row-1 to row-n.
func numbered(n int) (Source, []string) {
	var text bytes.Buffer
	want := make([]string, n)
	for i := range n {
		want[i] = fmt.Sprintf("row-%d", i+1)
		fmt.Fprintln(&text, want[i])
	}
	return Lines(&text), want
}
