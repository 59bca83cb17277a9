package broker

import (
	"fmt"
	"testing"

	"rewindmq/schema"
	"rewindmq/wire"
)

// TestQuotaUsedUp: with the client's Receive Maximum used up no PUBLISH above QoS 0
// comes, and everything else goes on [MQTT-3.3.4-9, MQTT-3.3.4-10, MQTT-4.9.0-1 to
// -3]; a packet id is given again only when it is free [MQTT-2.2.1-4, MQTT-4.3.2-1,
// MQTT-4.3.3-1].
func TestQuotaUsedUp(t *testing.T) {
	t.Parallel()
	for qos := byte(1); qos <= 2; qos++ {
		t.Run(fmt.Sprint("qos", qos), func(t *testing.T) {
			t.Parallel()
			h := memoryHouse(t, Options{})
			sub, _ := h.connect(wire.V5, wire.Connect{
				ClientID: "sub", ReceiveMaximum: 2, SessionExpiry: schema.NoExpiry, HasSessionExpiry: true,
			})
			sub.subscribe("t", qos)
			sub.subscribe("z", 0)
			pub := h.clean(wire.V5, "pub")
			for i := range 6 {
				pub.publish("t", fmt.Sprint(i), qos, 1)
			}
			one, two := sub.delivery(), sub.delivery()
			if one.PacketID == 0 || two.PacketID == 0 || one.PacketID == two.PacketID {
				t.Errorf("packet ids %d, %d", one.PacketID, two.PacketID)
			}
			sub.ping()
			sub.subscribe("another", 1)
			sub.publish("nobody", "x", 2, 9)
			sub.write(wire.AppendUnsubscribe(nil, wire.V5, &wire.Unsubscribe{PacketID: 3, Filters: []string{"another"}}))
			expect[*wire.Unsuback](sub)
			// One is settled, and one comes.
			settle := func(m wire.Publish) {
				if qos == 1 {
					sub.write(wire.AppendAck(nil, wire.V5, wire.PUBACK, m.PacketID, wire.Success))
					return
				}
				sub.write(wire.AppendAck(nil, wire.V5, wire.PUBREC, m.PacketID, wire.Success))
				sub.ack(wire.PUBREL, m.PacketID)
				sub.ping() // PUBREL is not yet the end
				sub.write(wire.AppendAck(nil, wire.V5, wire.PUBCOMP, m.PacketID, wire.Success))
			}
			settle(two)
			three := sub.delivery()
			if string(three.Payload) != "2" || three.PacketID == one.PacketID {
				t.Errorf("got %+v", three)
			}
			sub.ping()
			settle(one)
			four := sub.delivery()
			settle(three)
			five := sub.delivery()
			settle(four)
			six := sub.delivery()
			settle(five)
			settle(six)
			sub.ping()
			if got := fmt.Sprintf("%s %s %s", four.Payload, five.Payload, six.Payload); got != "3 4 5" {
				t.Errorf("got %s at the end", got)
			}
		})
	}
}

// TestRefusedByTheClient: a PUBACK or PUBREC of 0x80 or above ends the delivery: it
// does not come again, and there is no PUBREL [MQTT-4.4.0-2, MQTT-4.3.3-4].
func TestRefusedByTheClient(t *testing.T) {
	t.Parallel()
	h := memoryHouse(t, Options{})
	sub, _ := h.persistent(wire.V5, "sub")
	sub.subscribe("t", 2)
	pub := h.clean(wire.V5, "pub")
	for qos := byte(1); qos <= 2; qos++ {
		pub.publish("t", "no", qos, 1)
		m := sub.delivery()
		sub.write(wire.AppendAck(nil, wire.V5, wire.PUBACK+wire.PacketType(qos)-1, m.PacketID, wire.ImplementationSpecificError))
		sub.ping()
	}
	sub.disconnect()
	sub, _ = h.persistent(wire.V5, "sub")
	sub.ping()
	pub.publish("t", "yes", 2, 1)
	sub.receive("yes")
}

// TestUnacknowledged: until PUBACK, PUBREC and PUBCOMP a delivery comes again on the
// next connection, under its packet id, and not before; from PUBREC on as PUBREL
// [MQTT-4.4.0-1, MQTT-4.3.2-3, MQTT-4.3.3-3, MQTT-4.3.3-5, MQTT-4.3.3-6,
// MQTT-3.3.1-1; 3.1.1: 4.3.2-1, 4.3.3-1, 3.1.2-5].
func TestUnacknowledged(t *testing.T) {
	t.Parallel()
	for _, v := range versions() {
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			h := memoryHouse(t, Options{})
			sub, _ := h.persistent(v, "sub")
			sub.subscribe("t", 2)
			pub := h.clean(v, "pub")
			pub.publish("t", "one", 1, 1)
			pub.publish("t", "two", 2, 2)
			one, two := sub.delivery(), sub.delivery()
			again := func() {
				t.Helper()
				sub.ping() // not on the same connection
				sub.cut()
				sub, _ = h.persistent(v, "sub")
			}
			expectAgain := func(m wire.Publish) {
				t.Helper()
				if got := sub.delivery(); got.PacketID != m.PacketID || !got.Dup || string(got.Payload) != string(m.Payload) {
					t.Errorf("got %+v, want %+v again", got, m)
				}
			}
			again()
			expectAgain(one)
			expectAgain(two)
			sub.write(wire.AppendAck(nil, v, wire.PUBACK, one.PacketID, wire.Success))
			again()
			expectAgain(two)
			sub.write(wire.AppendAck(nil, v, wire.PUBREC, two.PacketID, wire.Success))
			sub.ack(wire.PUBREL, two.PacketID)
			again()
			sub.ack(wire.PUBREL, two.PacketID)
			sub.write(wire.AppendAck(nil, v, wire.PUBCOMP, two.PacketID, wire.Success))
			again()
			sub.ping()
		})
	}
}

// TestOrder: what one client publishes on one topic at one QoS comes in its order,
// live and after a pause [MQTT-4.6.0-5, MQTT-4.6.0-6; 3.1.1: 4.6.0-5, 4.6.0-6].
func TestOrder(t *testing.T) {
	t.Parallel()
	for _, v := range versions() {
		for qos := byte(0); qos <= 2; qos++ {
			t.Run(fmt.Sprintf("%v/qos%d", v, qos), func(t *testing.T) {
				t.Parallel()
				h := memoryHouse(t, Options{SessionQueue: 10, Window: 5})
				sub, _ := h.persistent(v, "sub")
				sub.subscribe("t", qos)
				pub := h.clean(v, "pub")
				const n = 200
				for i := range n {
					id := uint16(0)
					if qos > 0 {
						id = uint16(i + 1)
					}
					pub.send("t", fmt.Sprint(i), qos, id)
				}
				for i := range n {
					sub.receive(fmt.Sprint(i))
				}
				sub.ping()
			})
		}
	}
}

// TestNothingBehindDisconnect: DISCONNECT is the last packet, and the connection is
// closed behind it, although messages are on their way [MQTT-3.14.4-1,
// MQTT-3.14.4-2, MQTT-4.13.1-1].
func TestNothingBehindDisconnect(t *testing.T) {
	t.Parallel()
	h := memoryHouse(t, Options{})
	pub := h.clean(wire.V5, "pub")
	for round := range 20 {
		sub := h.clean(wire.V5, "sub")
		sub.subscribe("t", 0)
		for range 20 {
			pub.send("t", "x", 0, 0)
		}
		sub.write(wire.AppendPublish(nil, wire.V5, &wire.Publish{Topic: "t", TopicAlias: 999}))
		for {
			pk := sub.read()
			if d, ok := pk.(*wire.Disconnect); ok {
				if d.Code != wire.TopicAliasInvalid {
					t.Errorf("round %d: DISCONNECT %v", round, d.Code)
				}
				break
			}
			if _, ok := pk.(*wire.Publish); !ok {
				t.Fatalf("got %#v", pk)
			}
		}
		sub.closed()
	}
}

// TestPingresp: PINGREQ is answered [MQTT-3.12.4-1], over a stream in order
// [MQTT-4.2.0-1].
func TestPingresp(t *testing.T) {
	t.Parallel()
	for _, v := range versions() {
		h := memoryHouse(t, Options{})
		p := h.clean(v, "p")
		for range 3 {
			p.ping()
		}
	}
}

// TestResendIsNotJudgedAgain: [MQTT-4.3.3-9, MQTT-4.3.3-10] a QoS 2 message that was taken
// is acknowledged again, whatever has become full since; the next message under its
// identifier is a new one. A resend with another topic is none.
func TestResendIsNotJudgedAgain(t *testing.T) {
	t.Parallel()
	for _, v := range []wire.Version{wire.V311, wire.V5} {
		h := memoryHouse(t, Options{RetainedBytes: 4000})
		sub := h.clean(wire.V5, "sub")
		sub.subscribe("t/#", 2)
		p, _ := h.persistent(v, "p")
		kept := wire.Publish{Topic: "t/1", Payload: []byte("one"), QoS: 2, PacketID: 7, Retain: true}
		p.write(wire.AppendPublish(nil, v, &kept))
		p.ack(wire.PUBREC, 7)
		p.cut()
		full := h.clean(wire.V5, "full")
		for i := uint16(1); ; i++ {
			full.write(wire.AppendPublish(nil, wire.V5, &wire.Publish{Topic: fmt.Sprint("f/", i), Payload: make([]byte, 500), QoS: 1, PacketID: i, Retain: true}))
			if expect[*wire.Ack](full).Code == wire.QuotaExceeded {
				break
			}
		}
		p, _ = h.persistent(v, "p")
		kept.Dup, kept.Payload = true, append(kept.Payload, make([]byte, 3000)...)
		p.write(wire.AppendPublish(nil, v, &kept))
		p.ack(wire.PUBREC, 7)
		p.write(wire.AppendAck(nil, v, wire.PUBREL, 7, wire.Success))
		p.ack(wire.PUBCOMP, 7)
		p.publish("t/2", "two", 2, 7)
		sub.receive("one")
		sub.receive("two")

		p.send("t/3", "three", 2, 8)
		p.ack(wire.PUBREC, 8)
		p.send("$t/3", "three", 2, 8)
		if v == wire.V5 {
			if d := expect[*wire.Disconnect](p); d.Code != wire.ProtocolError {
				t.Errorf("DISCONNECT %v, want a protocol error", d.Code)
			}
		}
		p.closed()
	}
}
