package integration

import (
	"fmt"
	"testing"
	"time"
)

// P3: QoS 2 is exactly once when the broker dies at any step of the handshake,
// from a client [MQTT-4.3.3-8 to -12] and to a client [MQTT-4.3.3-1 to -7].
func TestKill9InHandshake(t *testing.T) {
	forEachStore(t, func(t *testing.T, s backend) {
		for _, version := range []byte{v311, v5} {
			for _, step := range []string{"PUBLISH sent", "PUBREC read", "PUBREL sent", "PUBCOMP read"} {
				t.Run(fmt.Sprintf("inbound v%d %s", version, step), func(t *testing.T) {
					t.Parallel()
					inboundHandshake(t, start(t, s), version, step)
				})
			}
			for _, step := range []string{"PUBLISH read", "PUBREC sent", "PUBREL read", "PUBCOMP sent"} {
				t.Run(fmt.Sprintf("outbound v%d %s", version, step), func(t *testing.T) {
					t.Parallel()
					outboundHandshake(t, start(t, s), version, step)
				})
			}
		}
	})
}

// inboundHandshake publishes one message under the same packet id in each round.
func inboundHandshake(t *testing.T, b *broker, version byte, step string) {
	watcher, dev := persistent(v5, "watcher"), persistent(version, "dev")
	w := b.open(watcher)
	w.subscribe(want{"in/t", 2})
	var sent []string
	for i := range rounds(10) {
		m := message{topic: "in/t", qos: 2, payload: fmt.Appendf(nil, "m%d", i)}
		sent = append(sent, string(m.payload))
		c := b.open(dev).expectPresent(i > 0)
		c.send(m.packet(version, 7, false))
		if step != "PUBLISH sent" {
			c.awaitID(kindPubrec, 7)
		}
		if step == "PUBREL sent" || step == "PUBCOMP read" {
			c.ack(kindPubrel, 7)
		}
		if step == "PUBCOMP read" {
			c.awaitID(kindPubcomp, 7)
		}
		b.crash()
		c = b.open(dev).expectPresent(true)
		if step == "PUBLISH sent" {
			c.send(m.packet(version, 7, true))
			c.awaitID(kindPubrec, 7)
		}
		// A PUBREL whose PUBCOMP was read may be repeated all the same.
		c.ack(kindPubrel, 7)
		if p := c.await(kindPubcomp); p.id != 7 || p.code != 0 {
			t.Fatalf("got %v", p)
		}
		c.cut()
	}
	w = b.open(watcher).expectPresent(true)
	b.publishTexts("in/t", 2, "end")
	for _, text := range append(append([]string{}, sent...), "end") {
		// The first ones may have been taken by a connection that died.
		w.settle(w.takePayload(text))
	}
	w.disconnect()
	b.expectLog("in/t", append(sent, "end")...)
}

// outboundHandshake kills the broker at one step of a delivery and completes it
// afterwards as the standard says.
func outboundHandshake(t *testing.T, b *broker, version byte, step string) {
	sub := persistent(version, "sub")
	c := b.open(sub)
	c.subscribe(want{"out/t", 2})
	for i := range rounds(10) {
		text := fmt.Sprintf("m%d", i)
		b.publishTexts("out/t", 2, text)
		p := c.takePayload(text)
		if p.dup {
			t.Fatalf("%v, want DUP=0", p)
		}
		received := step != "PUBLISH read"
		if received {
			c.ack(kindPubrec, p.id)
		}
		released := step == "PUBREL read" || step == "PUBCOMP sent"
		if released {
			c.awaitID(kindPubrel, p.id)
		}
		if step == "PUBCOMP sent" {
			c.ack(kindPubcomp, p.id)
		}
		b.crash()
		b.publishTexts("out/t", 2, text+" next")
		c = b.open(sub).expectPresent(true)
		// What the client has seen decides what may come.
		for done := false; !done; {
			switch q := c.wire(); {
			case q.kind == kindPublish && string(q.payload) == text+" next":
				if !released && !received {
					t.Errorf("%v before %v was completed", q, p)
				}
				if q.dup {
					t.Errorf("%v, want DUP=0", q)
				}
				done = true
				c.settle(q)
			case q.kind == kindPublish && q.id == p.id && q.dup && string(q.payload) == text && !released:
				c.ack(kindPubrec, q.id)
				received = true
			case q.kind == kindPubrel && q.id == p.id && received:
				c.ack(kindPubcomp, q.id)
				released = true
			case q.kind == kindPubrel && q.id != p.id:
				c.ack(kindPubcomp, q.id) // of an earlier round: its PUBCOMP was in doubt
			default:
				t.Fatalf("step %s: got %v after %v", step, q, p)
			}
		}
		if !released { // PUBREL of the first one came behind the second
			c.awaitID(kindPubrel, p.id)
			c.ack(kindPubcomp, p.id)
		}
		c.ping()
		if len(c.inbox) > 0 {
			t.Fatalf("%v after the end", c.inbox)
		}
	}
	c.disconnect()
	b.stop()
	a := b.place.audit(t)
	per := map[string]int{}
	for _, r := range a.records {
		if r.clientID == "sub" && r.messageID != "" {
			per[r.messageID]++
		}
	}
	for id, n := range per {
		if n != 1 {
			t.Errorf("message %s has %d records", id, n)
		}
	}
	if want := 2 * rounds(10); len(per) != want {
		t.Errorf("%d messages have records, want %d", len(per), want)
	}
}

// P3: SIGKILL right after a record was committed: from outside that is the
// moment when the first byte of a PUBLISH can be read.
func TestKill9AfterRecord(t *testing.T) {
	forEachStore(t, func(t *testing.T, s backend) {
		for _, qos := range []byte{1, 2} {
			t.Run(fmt.Sprintf("QoS %d", qos), func(t *testing.T) {
				t.Parallel()
				b := start(t, s)
				c := newCrowd(t, b, seeded(t))
				sub := &subscriber{
					session: session{version: v5, clientID: "sub", expiry: 300, receiveMax: 20},
					wants:   []want{{"rec/t", 2}}, hold: 1,
				}
				c.ledger.subscriberConnected("sub", 20, false)
				c.ledger.asked("sub", sub.wants)
				link := b.open(sub.session)
				link.subscribe(sub.wants...)
				c.ledger.granted("sub")
				c.publish(&publisher{
					session: persistent(v311, "pub"), topics: []string{"rec/t"}, qos: []byte{qos},
					window: 20, pace: time.Millisecond, size: 200,
				})
				for range rounds(50) {
					// The subscriber takes some, acknowledges most, and the broker
					// dies as soon as more begins to come.
					takeSome(c, sub, link)
					b.kill9()
					link.cut()
					b.start()
					link = b.open(sub.session).expectPresent(true)
					c.ledger.subscriberConnected("sub", 20, true)
				}
				link.cut()
				c.subscribe(sub)
				c.finish()
				c.auditNow()
			})
		}
	})
}

// takeSome reads until a chosen number of packets has been answered, then waits
// for the first byte of another if one is due.
func takeSome(c *crowd, s *subscriber, link *client) {
	c.t.Helper()
	for range c.rng.IntN(15) {
		if link.r.Buffered() == 0 && link.firstByteWithin(quickly) != nil {
			return
		}
		p := link.wire()
		c.ledger.arrived(s.clientID, p)
		kind := map[byte]byte{kindPublish: kindPuback, kindPubrel: kindPubcomp}[p.kind]
		if p.kind == kindPublish && p.qos == 2 {
			kind = kindPubrec
		}
		if c.rng.IntN(4) > 0 {
			c.ledger.answered(s.clientID, kind, p.id)
			link.ack(kind, p.id)
		}
	}
	_ = link.firstByteWithin(quickly)
}

// P3, R2: a second SUBSCRIBE on a retained QoS 2 message, and the broker dies in
// the handshake of its delivery: each SUBSCRIBE brings it once, RETAIN=1, also
// when it is resent.
func TestRetainedHandshakeKill9(t *testing.T) {
	forEachStore(t, func(t *testing.T, s backend) {
		for _, step := range []string{"PUBLISH read", "PUBREC sent", "PUBREL read", "PUBCOMP sent"} {
			t.Run(step, func(t *testing.T) {
				t.Parallel()
				b := start(t, s)
				b.open(transient(v311, "pub")).publish(message{topic: "rh/k", qos: 2, retain: true, payload: []byte("kept")})
				sub := persistent(v5, "sub")
				c := b.open(sub)
				for round := range rounds(10) {
					c.subscribe(want{"rh/k", 2})
					p := c.takePayload("kept")
					if !p.retain || p.dup {
						t.Fatalf("round %d: %v, want RETAIN=1, DUP=0", round, p)
					}
					received := step != "PUBLISH read"
					if received {
						c.ack(kindPubrec, p.id)
					}
					released := step == "PUBREL read" || step == "PUBCOMP sent"
					if released {
						c.awaitID(kindPubrel, p.id)
					}
					if step == "PUBCOMP sent" {
						c.ack(kindPubcomp, p.id)
					}
					b.crash()
					b.publishTexts("rh/k", 2, "live")
					c = b.open(sub).expectPresent(true)
					for done := false; !done; {
						switch q := c.wire(); {
						case q.kind == kindPublish && string(q.payload) == "live" && !q.retain && !q.dup:
							c.settle(q)
							done = true
						case q.kind == kindPublish && q.id == p.id && q.dup && q.retain && string(q.payload) == "kept" && !released:
							c.ack(kindPubrec, q.id)
							received = true
						case q.kind == kindPubrel && q.id == p.id && received:
							c.ack(kindPubcomp, q.id)
							released = true
						case q.kind == kindPubrel && q.id != p.id:
							c.ack(kindPubcomp, q.id) // of an earlier round
						default:
							t.Fatalf("round %d: got %v after %v", round, q, p)
						}
					}
					if !released {
						c.awaitID(kindPubrel, p.id)
						c.ack(kindPubcomp, p.id)
					}
				}
				c.ping()
				if len(c.inbox) > 0 {
					t.Errorf("%v after the end", c.inbox)
				}
			})
		}
	})
}
