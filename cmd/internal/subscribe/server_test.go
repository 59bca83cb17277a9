package subscribe

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/eclipse/paho.golang/packets"
)

// points are the places in the protocol at which the scripted server can cut the connection.
var points = []string{
	"connect",    // CONNECT was read, nothing is answered
	"subscribe",  // SUBSCRIBE was read and forgotten
	"suback",     // SUBACK was sent
	"publish",    // PUBLISH was sent
	"ack",        // PUBREC or PUBACK was read and forgotten
	"received",   // PUBREC counts, PUBREL is not sent
	"pubrel",     // PUBREL was sent
	"pubcomp",    // PUBCOMP was read and forgotten
	"acked",      // the message is settled
	"disconnect", // DISCONNECT was read
}

// delivery is one message on its way to the client.
type delivery struct {
	payload  string
	qos      byte
	id       uint16
	tried    bool
	received bool
}

// server is a scripted MQTT 5 server with one session that has a list of messages to deliver.
type server struct {
	t      *testing.T
	ln     net.Listener
	cut    func(point string) bool // called under mu; set before the first connection
	window int
	// granted is the code in SUBACK.
	granted byte
	// written returns what the client has written so far.
	written func() string

	mu       sync.Mutex
	session  bool
	subs     int
	queue    []delivery // not yet sent in this session
	flight   []delivery
	nextID   uint16
	expiry   uint32
	handling byte
	conns    []net.Conn
	done     sync.WaitGroup
}

var errCut = errors.New("cut")

func newServer(t *testing.T, qos byte, n int) *server {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{t: t, ln: ln, window: 3, granted: qos, cut: func(string) bool { return false }}
	for i := range n {
		s.queue = append(s.queue, delivery{payload: fmt.Sprintf("row-%d", i+1), qos: qos})
	}
	s.done.Go(s.accept)
	t.Cleanup(func() {
		_ = ln.Close()
		s.mu.Lock()
		for _, c := range s.conns {
			_ = c.Close()
		}
		s.mu.Unlock()
		s.done.Wait()
	})
	return s
}

func (s *server) accept() {
	for {
		c, err := s.ln.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		s.conns = append(s.conns, c)
		s.mu.Unlock()
		s.done.Go(func() {
			defer func() { _ = c.Close() }()
			s.serve(c)
		})
	}
}

func (s *server) serve(c net.Conn) {
	for {
		p, err := packets.ReadPacket(c)
		if err != nil {
			return
		}
		var out bytes.Buffer
		s.mu.Lock()
		err = s.on(p, &out)
		s.mu.Unlock()
		if out.Len() > 0 {
			if _, err := c.Write(out.Bytes()); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func (s *server) at(point string) error {
	if s.cut(point) {
		return errCut
	}
	return nil
}

func send(out *bytes.Buffer, p packets.Packet) {
	if _, err := p.WriteTo(out); err != nil {
		panic(err)
	}
}

// on handles one packet under mu. What is in out is sent even when the connection is then cut.
func (s *server) on(p *packets.ControlPacket, out *bytes.Buffer) error {
	switch body := p.Content.(type) {
	case *packets.Connect:
		return s.onConnect(body, out)
	case *packets.Subscribe:
		if err := s.at("subscribe"); err != nil {
			return err
		}
		s.subs++
		s.handling = body.Subscriptions[0].RetainHandling
		send(out, &packets.Suback{PacketID: body.PacketID, Reasons: []byte{s.granted}, Properties: &packets.Properties{}})
		return errors.Join(s.at("suback"), s.fill(out))
	case *packets.Puback:
		return s.onAck(body.PacketID, 1, out)
	case *packets.Pubrec:
		return s.onAck(body.PacketID, 2, out)
	case *packets.Pubcomp:
		if err := s.at("pubcomp"); err != nil {
			return err
		}
		s.settle(body.PacketID)
		return errors.Join(s.at("acked"), s.fill(out))
	case *packets.Pingreq:
		out.Write([]byte{packets.PINGRESP << 4, 0})
		return nil
	case *packets.Disconnect:
		return errors.Join(s.at("disconnect"), errCut)
	default:
		s.t.Errorf("unexpected %s", p.PacketType())
		return errCut
	}
}

func (s *server) onConnect(body *packets.Connect, out *bytes.Buffer) error {
	if err := s.at("connect"); err != nil {
		return err
	}
	if body.CleanStart {
		s.session, s.flight, s.subs = false, nil, 0
	}
	send(out, &packets.Connack{SessionPresent: s.session, Properties: &packets.Properties{}})
	if body.Properties.SessionExpiryInterval != nil {
		s.expiry = *body.Properties.SessionExpiryInterval
	}
	s.session = s.expiry > 0
	if s.subs == 0 {
		return nil
	}
	for i, d := range s.flight { // [MQTT-4.4.0-1]
		if d.received {
			send(out, &packets.Pubrel{PacketID: d.id})
			continue
		}
		s.publish(&s.flight[i], out)
	}
	return s.fill(out)
}

func (s *server) publish(d *delivery, out *bytes.Buffer) {
	send(out, &packets.Publish{
		Topic: "dev/1", QoS: d.qos, PacketID: d.id, Duplicate: d.tried, Payload: []byte(d.payload), Properties: &packets.Properties{},
	})
	d.tried = true
}

// fill sends new messages as far as the window allows.
func (s *server) fill(out *bytes.Buffer) error {
	for len(s.queue) > 0 && len(s.flight) < s.window {
		d := s.queue[0]
		s.queue = s.queue[1:]
		if d.qos > 0 {
			s.nextID = s.nextID%5 + 1 // a few ids, so that they come again soon
			for s.find(s.nextID) != nil {
				s.nextID = s.nextID%5 + 1
			}
			d.id = s.nextID
		}
		s.publish(&d, out)
		if d.qos > 0 {
			s.flight = append(s.flight, d)
		}
		if err := s.at("publish"); err != nil {
			return err
		}
	}
	return nil
}

func (s *server) find(id uint16) *delivery {
	for i := range s.flight {
		if s.flight[i].id == id {
			return &s.flight[i]
		}
	}
	return nil
}

func (s *server) settle(id uint16) {
	for i := range s.flight {
		if s.flight[i].id == id {
			s.flight = append(s.flight[:i], s.flight[i+1:]...)
			return
		}
	}
}

// onAck takes a PUBACK or PUBREC, and checks that the message had left the client before.
func (s *server) onAck(id uint16, qos byte, out *bytes.Buffer) error {
	d := s.find(id)
	if d == nil || d.qos != qos {
		s.t.Errorf("acknowledgement of QoS %d for id %d, which holds %v", qos, id, d)
		return errCut
	}
	if s.written != nil && !strings.Contains(s.written(), d.payload+"\n") {
		s.t.Errorf("%s was acknowledged before it was written", d.payload)
	}
	if err := s.at("ack"); err != nil {
		return err
	}
	if qos == 1 {
		s.settle(id)
		return errors.Join(s.at("acked"), s.fill(out))
	}
	d.received = true
	if err := s.at("received"); err != nil {
		return err
	}
	send(out, &packets.Pubrel{PacketID: id})
	return s.at("pubrel")
}
