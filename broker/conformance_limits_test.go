package broker

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"rewindmq/schema"
	"rewindmq/store"
	"rewindmq/wire"
)

const allIDs = 65535

// TestAllPacketIDs: with the window set so, all 65,535 packet identifiers are in
// flight at once, each once; the next message waits for one of them. What is not
// acknowledged comes again on the next connection, in order, under its identifier,
// with DUP [MQTT-2.2.1-4, MQTT-3.3.4-9, MQTT-4.4.0-1, MQTT-4.6.0-1]. So it is from a
// client, too.
func TestAllPacketIDs(t *testing.T) {
	t.Parallel()
	if testing.Short() || raceEnabled {
		t.Skip("65,535 messages, several times: too slow for the race detector")
	}
	for v, clean := range map[wire.Version]bool{wire.V311: true, wire.V5: false} {
		t.Run(v.String(), func(t *testing.T) {
			h := memoryHouse(t, Options{Window: allIDs, ReceiveMaximum: allIDs, Unrecorded: true})
			open := func() *peer {
				if clean {
					return h.clean(v, "sub")
				}
				p, _ := h.persistent(v, "sub")
				return p
			}
			sub := open()
			sub.subscribe("t", 1)
			flood(h, v, 1, allIDs+2)
			order := inFlight(sub, allIDs, false)
			sub.ping() // no other
			free := order[allIDs/2]
			sub.write(wire.AppendAck(nil, v, wire.PUBACK, free, wire.Success))
			if m := sub.delivery(); m.PacketID != free || string(m.Payload) != fmt.Sprint(allIDs+1) || m.Dup {
				t.Errorf("got %q under %d, dup %v; %d was free", m.Payload, m.PacketID, m.Dup, free)
			}
			sub.ping()
			if clean {
				return
			}
			order = append(slices.Delete(order, allIDs/2, allIDs/2+1), free)
			sub.cut()
			sub = open()
			if again := inFlight(sub, allIDs, true); !slices.Equal(again, order) {
				t.Error("they do not come again in order")
			}
		})
	}
}

// inFlight takes n deliveries, all under different identifiers, and gives these.
func inFlight(p *peer, n int, dup bool) []uint16 {
	p.t.Helper()
	var order []uint16
	seen := make([]bool, allIDs+1)
	seen[0] = true
	for range n {
		m := p.delivery()
		if seen[m.PacketID] || m.Dup != dup {
			p.t.Fatalf("%q under %d with dup %v: in flight already, or no identifier, or not as it should be", m.Payload, m.PacketID, m.Dup)
		}
		seen[m.PacketID] = true
		order = append(order, m.PacketID)
	}
	return order
}

// flood publishes n messages to t, under all identifiers there are, without a wait
// in between.
func flood(h *house, v wire.Version, qos byte, n int) {
	h.t.Helper()
	pub := h.clean(v, "pub")
	var out []byte
	for i := 1; i <= n; i++ {
		id := uint16((i-1)%allIDs + 1)
		out = wire.AppendPublish(out, v, &wire.Publish{Topic: "t", Payload: []byte(fmt.Sprint(i)), QoS: qos, PacketID: id})
		if i%allIDs == 0 || i == n {
			pub.write(out)
			out = out[:0]
			for k := range (i-1)%allIDs + 1 {
				if a := expect[*wire.Ack](pub); a.ID != uint16(k+1) || a.Code != wire.Success {
					h.t.Fatalf("answer %d: %v %d %v", k+1, a.Type, a.ID, a.Code)
				}
			}
		}
	}
	pub.disconnect()
}

// TestAllPacketIDsOfAClient: 65,535 QoS 2 handshakes of a client are open at once.
func TestAllPacketIDsOfAClient(t *testing.T) {
	t.Parallel()
	if testing.Short() || raceEnabled {
		t.Skip("65,535 messages, twice: too slow for the race detector")
	}
	h := memoryHouse(t, Options{ReceiveMaximum: allIDs})
	pub, ack := h.connect(wire.V5, wire.Connect{ClientID: "pub", CleanStart: true})
	if ack.ReceiveMaximum != allIDs {
		t.Errorf("CONNACK tells %d", ack.ReceiveMaximum)
	}
	var out []byte
	for id := range allIDs {
		out = wire.AppendPublish(out, wire.V5, &wire.Publish{Topic: "t", QoS: 2, PacketID: uint16(id + 1)})
	}
	pub.write(out)
	for id := range allIDs {
		if a := expect[*wire.Ack](pub); a.Type != wire.PUBREC || a.ID != uint16(id+1) || a.Code != wire.Success {
			t.Fatalf("got %v %d %v", a.Type, a.ID, a.Code)
		}
	}
	out = out[:0]
	for id := range allIDs {
		out = wire.AppendAck(out, wire.V5, wire.PUBREL, uint16(id+1), wire.Success)
	}
	pub.write(out)
	for id := range allIDs {
		if a := expect[*wire.Ack](pub); a.Type != wire.PUBCOMP || a.ID != uint16(id+1) || a.Code != wire.Success {
			t.Fatalf("got %v %d %v", a.Type, a.ID, a.Code)
		}
	}
	pub.ping()
}

// TestPayloadFormat: a payload that is not UTF-8 although it says so is refused, and
// the connection goes on: 0x99 in PUBACK, PUBREC, and CONNACK for a will. Without the
// indicator, and with 0, bytes are bytes.
func TestPayloadFormat(t *testing.T) {
	t.Parallel()
	h := memoryHouse(t, Options{})
	sub := h.clean(wire.V5, "sub")
	sub.subscribe("t", 2)
	pub := h.clean(wire.V5, "pub")
	send := func(qos byte, format byte, payload string) {
		p := wire.Publish{Topic: "t", Payload: []byte(payload), QoS: qos, Properties: &schema.Properties{HasPayloadFormat: true, PayloadFormat: format}}
		if qos > 0 {
			p.PacketID = 3
		}
		pub.write(wire.AppendPublish(nil, wire.V5, &p))
	}
	for qos := byte(0); qos <= 2; qos++ {
		send(qos, 1, "not \xff text")
		if qos > 0 {
			if a := expect[*wire.Ack](pub); a.Code != wire.PayloadFormatInvalid || a.ID != 3 {
				t.Errorf("QoS %d: %v %d %v", qos, a.Type, a.ID, a.Code)
			}
		}
	}
	send(0, 0, "bytes \xff")
	send(0, 1, "text °")
	pub.ping()
	sub.receive("bytes \xff")
	sub.receive("text °")
	dev := h.dial(wire.V5)
	dev.write(wire.AppendConnect(nil, &wire.Connect{Version: wire.V5, ClientID: "dev", Will: &wire.Will{
		Topic: "t", Payload: []byte("\xff"), Properties: &schema.Properties{HasPayloadFormat: true, PayloadFormat: 1},
	}}))
	if a := expect[*wire.Connack](dev); a.Code != wire.PayloadFormatInvalid {
		t.Errorf("CONNACK %v", a.Code)
	}
	dev.closed()
}

// TestTopicLimits: length and levels, of topics, filters and wills, at the limit and
// above it.
func TestTopicLimits(t *testing.T) {
	t.Parallel()
	h := memoryHouse(t, Options{TopicBytes: 100, TopicLevels: 5})
	for _, tt := range []struct {
		topic string
		fits  bool
	}{
		{strings.Repeat("x", 100), true},
		{strings.Repeat("x", 101), false},
		{"a/b/c/d/e", true},
		{"a/b/c/d/e/", false},
	} {
		want := func(code wire.ReasonCode) wire.ReasonCode {
			if tt.fits {
				return wire.Success
			}
			return code
		}
		for qos := byte(1); qos <= 2; qos++ {
			p := h.clean(wire.V5, "five")
			p.send(tt.topic, "x", qos, 1)
			if a := expect[*wire.Ack](p); a.Code != want(wire.TopicNameInvalid) {
				t.Errorf("%s at QoS %d: %v", tt.topic, qos, a.Code)
			}
			p.write(wire.AppendSubscribe(nil, wire.V5, &wire.Subscribe{PacketID: 1, Filters: []wire.Filter{{Topic: tt.topic}}}))
			if a := expect[*wire.Suback](p); a.Codes[0] != want(wire.TopicFilterInvalid) {
				t.Errorf("%s: SUBACK %v", tt.topic, a.Codes)
			}
			p.disconnect()
		}
		p := h.clean(wire.V311, "four")
		p.write(wire.AppendSubscribe(nil, wire.V311, &wire.Subscribe{PacketID: 1, Filters: []wire.Filter{{Topic: tt.topic}}}))
		if a := expect[*wire.Suback](p); a.Codes[0] != want(wire.UnspecifiedError) {
			t.Errorf("%s: SUBACK %v", tt.topic, a.Codes)
		}
		p.send(tt.topic, "x", 1, 1)
		if tt.fits {
			p.ack(wire.PUBACK, 1)
			p.receive("x")
			p.disconnect()
		} else {
			p.closed()
		}
		p = h.dial(wire.V5)
		p.write(wire.AppendConnect(nil, &wire.Connect{Version: wire.V5, ClientID: "will", CleanStart: true, Will: &wire.Will{Topic: tt.topic}}))
		if a := expect[*wire.Connack](p); a.Code != want(wire.TopicNameInvalid) {
			t.Errorf("will at %s: CONNACK %v", tt.topic, a.Code)
		}
		p.cut()
	}
}

// TestTopicAliasLimit: CONNACK tells the number, and it holds.
func TestTopicAliasLimit(t *testing.T) {
	t.Parallel()
	h := memoryHouse(t, Options{TopicAliases: 2})
	for alias := uint16(2); alias <= 3; alias++ {
		p, ack := h.connect(wire.V5, wire.Connect{ClientID: "p", CleanStart: true})
		if ack.TopicAliasMaximum != 2 {
			t.Errorf("CONNACK tells %d", ack.TopicAliasMaximum)
		}
		p.write(wire.AppendPublish(nil, wire.V5, &wire.Publish{Topic: "t", TopicAlias: alias, QoS: 1, PacketID: 1}))
		if alias == 2 {
			p.ack(wire.PUBACK, 1)
			p.disconnect()
			continue
		}
		if d := expect[*wire.Disconnect](p); d.Code != wire.TopicAliasInvalid {
			t.Errorf("DISCONNECT %v", d.Code)
		}
		p.closed()
	}
}

// TestConnackWithinMaximumPacketSize: [MQTT-3.1.2-24] what a client need not know is left
// out; where what it has to know does not fit [MQTT-3.2.2-16, MQTT-3.2.2-22] it is refused,
// by a CONNACK that it takes, or by none.
func TestConnackWithinMaximumPacketSize(t *testing.T) {
	t.Parallel()
	h := memoryHouse(t, Options{KeepAliveMax: 2 * time.Second, SessionExpiryMax: 3, ReceiveMaximum: 9})
	for _, c := range []wire.Connect{
		{CleanStart: true},
		{ClientID: "p", CleanStart: true, KeepAlive: 60, SessionExpiry: 100, HasSessionExpiry: true},
		{ClientID: "auth", CleanStart: true, AuthMethod: "x"},
	} {
		c.Version, c.RequestProblemInfo = wire.V5, true
		whole := 0
		for most := uint32(1); most < 80; most++ {
			c.MaximumPacketSize = most
			p := h.dial(wire.V5)
			p.write(wire.AppendConnect(nil, &c))
			_ = p.nc.SetReadDeadline(time.Now().Add(patience))
			pk, err := p.r.ReadPacket()
			if errors.Is(err, io.EOF) && most < 5 {
				continue
			}
			a, ok := pk.(*wire.Connack)
			if err != nil || !ok {
				t.Fatalf("%d bytes: %#v, %v", most, pk, err)
			}
			if n := len(wire.AppendConnack(nil, wire.V5, a)); n > int(most) {
				t.Errorf("a CONNACK of %d bytes: the client takes %d", n, most)
			}
			switch {
			case c.AuthMethod != "":
				if a.Code != wire.BadAuthenticationMethod {
					t.Errorf("%d bytes: %v", most, a.Code)
				}
			case a.Code == wire.PacketTooLarge && whole == 0:
			case a.Code != wire.Success || c.ClientID == "" && a.AssignedClientID == "" || a.ReceiveMaximum != 9 ||
				a.ServerKeepAlive == nil || c.HasSessionExpiry && a.SessionExpiry == nil:
				t.Errorf("%d bytes: %+v", most, a)
			default:
				whole++
			}
			p.cut()
		}
		if c.AuthMethod == "" && whole < 30 {
			t.Errorf("%q is served for %d sizes", c.ClientID, whole)
		}
	}
}

// TestServerReference: at the end of the broker MQTT 5 clients are sent to another
// server, if there is one and the packet is not too large for them [MQTT-3.1.2-24];
// others are just told or closed.
func TestServerReference(t *testing.T) {
	t.Parallel()
	for _, reference := range []string{"", "b.example:1883 c.example:1883"} {
		h := memoryHouse(t, Options{ServerReference: reference})
		five := h.clean(wire.V5, "five")
		small, _ := h.connect(wire.V5, wire.Connect{ClientID: "small", CleanStart: true, MaximumPacketSize: 20})
		four := h.clean(wire.V311, "four")
		h.stop()
		code := wire.ServerShuttingDown
		if reference != "" {
			code = wire.UseAnotherServer
		}
		if d := expect[*wire.Disconnect](five); d.Code != code || d.ServerReference != reference {
			t.Errorf("%q: DISCONNECT %v %q", reference, d.Code, d.ServerReference)
		}
		if d := expect[*wire.Disconnect](small); d.Code != code || d.ServerReference != "" {
			t.Errorf("%q: DISCONNECT %v %q to a client that takes 20 bytes", reference, d.Code, d.ServerReference)
		}
		for _, p := range []*peer{five, small, four} {
			p.closed()
		}
	}
}

// TestSubscribeBehindPublish: what the broker has read of another client before a
// SUBSCRIBE lies before the subscription, although the store has not answered yet.
func TestSubscribeBehindPublish(t *testing.T) {
	t.Parallel()
	for _, v := range versions() {
		h := memoryHouse(t, Options{})
		pub, sub := h.clean(v, "pub"), h.clean(v, "sub")
		h.mem.Doubt()
		pub.send("t", "before", 0, 0)
		if err := h.mem.UntilDoubt(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
		sub.write(wire.AppendSubscribe(nil, v, &wire.Subscribe{PacketID: 1, Filters: []wire.Filter{{Topic: "t", QoS: 1}}}))
		sub.ping() // the SUBSCRIBE has been read, and waits
		h.mem.Resolve(true, store.Stored)
		expect[*wire.Suback](sub)
		pub.publish("t", "behind", 1, 1)
		sub.receive("behind")
		sub.ping()
	}
}

// TestWrongAcknowledgement: an acknowledgement that has no place in the handshake of
// its delivery is a protocol error: DISCONNECT 0x82 in MQTT 5, and the end of the
// connection. The delivery comes again on the next one.
func TestWrongAcknowledgement(t *testing.T) {
	t.Parallel()
	h := memoryHouse(t, Options{})
	for _, v := range versions() {
		for name, tt := range map[string]struct {
			qos   byte
			right []wire.PacketType
			wrong wire.PacketType
		}{
			"PUBREC for QoS 1":            {1, nil, wire.PUBREC},
			"PUBCOMP for QoS 1":           {1, nil, wire.PUBCOMP},
			"PUBACK for QoS 2":            {2, nil, wire.PUBACK},
			"PUBCOMP before PUBREC":       {2, nil, wire.PUBCOMP},
			"PUBACK in place of PUBCOMP":  {2, []wire.PacketType{wire.PUBREC}, wire.PUBACK},
			"PUBREC again is no error":    {2, []wire.PacketType{wire.PUBREC, wire.PUBREC}, 0},
			"an unknown identifier is no": {1, []wire.PacketType{wire.PUBACK, wire.PUBACK, wire.PUBCOMP}, 0},
		} {
			id := fmt.Sprint(v, name)
			sub, _ := h.persistent(v, id)
			sub.subscribe(id, 2)
			pub := h.clean(v, "pub")
			pub.publish(id, "x", tt.qos, 1)
			m := sub.delivery()
			for _, a := range tt.right {
				sub.write(wire.AppendAck(nil, v, a, m.PacketID, wire.Success))
				if a == wire.PUBREC {
					sub.ack(wire.PUBREL, m.PacketID)
				}
			}
			if tt.wrong == 0 {
				sub.ping()
				sub.disconnect()
				continue
			}
			sub.write(wire.AppendAck(nil, v, tt.wrong, m.PacketID, wire.Success))
			if v == wire.V5 {
				if d := expect[*wire.Disconnect](sub); d.Code != wire.ProtocolError {
					t.Errorf("%s: DISCONNECT %v", name, d.Code)
				}
			}
			sub.closed()
			sub, _ = h.persistent(v, id)
			if len(tt.right) > 0 {
				sub.ack(wire.PUBREL, m.PacketID)
			} else if again := sub.delivery(); !again.Dup || again.PacketID != m.PacketID {
				t.Errorf("%s: %+v comes after it, want %+v again", name, again, m)
			}
			sub.cut()
		}
	}
}

// TestWillEnds: a will is published when the connection ends without DISCONNECT: for
// silence beyond the keep alive, for a protocol error, at the end of the broker; also
// one without payload [MQTT-3.1.2-8, MQTT-3.1.2-22; 3.1.1: 3.1.2-8].
func TestWillEnds(t *testing.T) {
	t.Parallel()
	for _, v := range versions() {
		for _, payload := range []string{"gone", ""} {
			t.Run(fmt.Sprintf("%v %q", v, payload), func(t *testing.T) {
				t.Parallel()
				h := memoryHouse(t, Options{})
				watch, _ := h.persistent(v, "watch")
				watch.subscribe("w/#", 1)
				open := func(how string) *peer {
					p, _ := h.connect(v, wire.Connect{
						ClientID: how, CleanStart: true, KeepAlive: 1, Will: &wire.Will{Topic: "w/" + how, Payload: []byte(payload), QoS: 1},
					})
					return p
				}
				gone := func(how string) {
					t.Helper()
					if m := watch.receive(payload); m.Topic != "w/"+how {
						t.Errorf("got %+v, want the will of %s", m, how)
					}
				}
				open("silent")
				gone("silent")
				open("wrong").write([]byte{0xf0, 1, 0})
				gone("wrong")
				open("shutdown")
				watch.disconnect()
				mem := h.mem
				h.stop()
				h = openHouse(t, mem.Reopen(), Options{})
				watch, _ = h.persistent(v, "watch")
				gone("shutdown")
				watch.ping()
			})
		}
	}
}
