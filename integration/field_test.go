package integration

// Scenarios from reports by users of other brokers, named by their numbers in
// the project's collection of field reports.

import (
	"fmt"
	"testing"
)

// once is an ear that knows which deliveries are repeats: DUP=1 under the packet
// id of the last one, unacknowledged or in doubt.
type once struct {
	ids  map[uint16]string
	seen []string
}

// hear notes p and tells whether it is new.
func (o *once) hear(p packet) bool {
	if o.ids == nil {
		o.ids = map[uint16]string{}
	}
	text := string(p.payload)
	if p.dup && o.ids[p.id] == text {
		return false
	}
	o.ids[p.id] = text
	o.seen = append(o.seen, text)
	return true
}

// texts makes "m<from>" .. "m<to>".
func texts(from, to int) []string {
	var out []string
	for i := from; i <= to; i++ {
		out = append(out, fmt.Sprintf("m%d", i))
	}
	return out
}

// publishTexts sends each text to topic and waits for all acknowledgements.
func (b *broker) publishTexts(topic string, qos byte, list ...string) {
	b.t.Helper()
	c := b.open(transient(v311, fmt.Sprintf("pub-%s", freeName())))
	c.publishAll(len(list), 500, func(i int) message {
		return message{topic: topic, qos: qos, payload: []byte(list[i])}
	})
	c.disconnect()
}

// A repeated SUBSCRIBE in the middle of a backlog loses and doubles nothing, and
// brings the retained message again [MQTT-3.8.4-3, 3.8.4-4].
func TestF03_1(t *testing.T) {
	forEachStore(t, func(t *testing.T, s backend) {
		b := start(t, s)
		pub := b.open(transient(v5, "pub"))
		pub.publish(message{topic: "f03/k", qos: 1, retain: true, payload: []byte("kept")})
		sub := session{version: v5, clientID: "f03-s", expiry: 300, receiveMax: 1}
		c := b.open(sub)
		c.subscribe(want{"f03/+", 1})
		if p := c.settle(c.takePayload("kept")); !p.retain {
			t.Errorf("%v, want RETAIN=1", p)
		}
		c.disconnect()
		b.publishTexts("f03/a", 1, texts(1, 50)...)

		var row, kept once
		hear := func(p packet) {
			if p.topic == "f03/k" {
				if kept.hear(p) && !p.retain {
					t.Errorf("%v, want RETAIN=1", p)
				}
			} else if row.hear(p) && p.retain {
				t.Errorf("%v, want RETAIN=0", p)
			}
		}
		for _, part := range []struct {
			qos        byte
			upTo, kept int
		}{{1, 20, 0}, {2, 50, 2}} {
			c = b.open(sub).expectPresent(true)
			first := c.take()
			hear(first)
			c.lastID = 100
			c.send(subscribePacket(v5, 101, nil, want{"f03/+", part.qos}))
			c.settle(first)
			for len(row.seen) < part.upTo || len(kept.seen) < part.kept {
				p := c.wire()
				switch p.kind {
				case kindSuback:
					if p.codes[0] != part.qos {
						t.Errorf("%v, want %d", p, part.qos)
					}
				case kindPublish:
					hear(p)
					c.settle(p)
				default:
					t.Fatalf("got %v", p)
				}
			}
			if part.upTo < 50 {
				c.cut()
			}
		}
		c.ping()
		if len(c.inbox) > 0 {
			t.Errorf("%v after the end", c.inbox)
		}
		if got, want := fmt.Sprint(row.seen), fmt.Sprint(texts(1, 50)); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
		if len(kept.seen) != 2 {
			t.Errorf("the retained message came %d times for two more SUBSCRIBEs", len(kept.seen))
		}
	})
}

// A long absence with holes in what was acknowledged [MQTT-4.4.0-1, 3.3.1-1].
func TestF04(t *testing.T) {
	forEachStore(t, func(t *testing.T, s backend) {
		b := start(t, s)
		n := size(2000)
		sub := session{version: v5, clientID: "f04-s", expiry: 300, receiveMax: 10}
		c := b.open(sub)
		c.subscribe(want{"f04/t", 1})
		b.publishTexts("f04/t", 1, texts(1, 10)...)
		var first []packet
		for _, text := range texts(1, 10) {
			first = append(first, c.takePayload(text))
		}
		c.settle(first[2])
		c.settle(first[6])
		c.ping() // both were read
		c.cut()
		b.publishTexts("f04/t", 1, texts(11, n)...)

		open := append(append(append([]packet{}, first[:2]...), first[3:6]...), first[7:]...)
		c = b.open(sub).expectPresent(true)
		c.expectResent(open)
		for _, text := range texts(11, 12) {
			p := c.takePayload(text)
			if p.dup {
				t.Errorf("%v, want DUP=0", p)
			}
			open = append(open, p)
		}
		b.crash()
		c = b.open(sub).expectPresent(true)
		c.expectResent(open)
		for _, p := range open {
			c.settle(p)
		}
		for _, text := range texts(13, n) {
			p := c.settle(c.takePayload(text))
			if p.dup {
				t.Errorf("%v, want DUP=0", p)
			}
		}
	})
}

// expectResent takes those packets again: same order, ids and payloads, DUP=1.
func (c *client) expectResent(list []packet) {
	c.t.Helper()
	for _, want := range list {
		p := c.takePayload(string(want.payload))
		if p.id != want.id || !p.dup || p.qos != want.qos {
			c.t.Errorf("%s: %v, want id %d with DUP=1", c.name, p, want.id)
		}
	}
}

// One message is held while 70,000 pass: its id goes to no other, and the cursor
// passes it [MQTT-2.2.1-4].
func TestF05(t *testing.T) {
	forEachStore(t, func(t *testing.T, s backend) {
		b := start(t, s)
		n, chunk := size(70_000), 1000
		sub := persistent(v311, "f05-s")
		c := b.open(sub)
		c.subscribe(want{"f05/t", 1})
		pub := b.open(transient(v311, "f05-p"))
		row := numbered("f05/t", 1, 64)
		pub.publishAll(1, 1, row)
		held := c.take()
		before := b.rss()
		for from := 1; from < n; from += chunk {
			to := min(from+chunk, n)
			pub.publishAll(to-from, 500, func(i int) message { return row(from + i) })
			c.takeRow(from+1, to, func(p packet) {
				if p.id == held.id {
					t.Fatalf("%v is given the id of the held message", p)
				}
			})
		}
		c.ping()
		grown := b.rss() - before
		t.Logf("resident memory grew by %d MiB over %d messages", grown>>20, n)
		if grown > 128<<20 && !raceEnabled {
			t.Errorf("resident memory grew by %d MiB", grown>>20)
		}
		b.crash()
		c = b.open(sub).expectPresent(true)
		pub = b.open(transient(v311, "f05-p"))
		pub.publish(message{topic: "f05/t", qos: 1, payload: []byte("end")})
		c.expectResent([]packet{held})
		c.settle(held)
		// What was acknowledged just before the kill may be in doubt: at most a
		// window, in order, under old ids.
		last, repeats := 0, 0
		for {
			p := c.settle(c.take())
			k, ok := parseKey(p.payload)
			if !ok {
				break
			}
			if repeats++; !p.dup || k.seq <= last || k.seq <= n-1000 {
				t.Fatalf("got %v after %d, want only what was in doubt", p, last)
			}
			last = k.seq
		}
		t.Logf("%d in doubt were repeated", repeats)
	})
}

// The send quota belongs to the connection [MQTT-4.9.0-1].
func TestF07(t *testing.T) {
	forEachStore(t, func(t *testing.T, s backend) {
		b := start(t, s)
		c := b.openHex(v5, "dev-7", "101a00044d5154540500003c08110000012c21000100056465762d37")
		c.subscribe(want{"f07/t", 1})
		b.publishTexts("f07/t", 1, "m0")
		m0 := c.takePayload("m0")
		c.cut()
		b.publishTexts("f07/t", 1, texts(1, 4)...)
		c = b.openHex(v5, "dev-7", "101a00044d5154540500003c08110000012c21000400056465762d37").expectPresent(true)
		c.expectResent([]packet{m0})
		c.settle(m0)
		for _, text := range texts(1, 4) {
			if p := c.settle(c.takePayload(text)); p.dup {
				t.Errorf("%v, want DUP=0", p)
			}
		}
	})
}

// A half-finished publish goes on after the broker died [MQTT-4.3.3-8 to -12].
func TestF08(t *testing.T) {
	forEachStore(t, func(t *testing.T, s backend) {
		b := start(t, s)
		const dev8, publish = "101100044d5154540400003c00056465762d38", "340d00056630382f72000732312e35"
		sub := persistent(v311, "sub")
		w := b.open(sub)
		w.subscribe(want{"f08/#", 2})
		c := b.openHex(v311, "dev-8", dev8)
		c.sendHex(publish)
		c.awaitID(kindPubrec, 7)
		b.crash()
		c = b.openHex(v311, "dev-8", dev8).expectPresent(true)
		for range 2 {
			c.sendHex("3c0d00056630382f72000732312e35")
			c.awaitID(kindPubrec, 7)
		}
		for range 2 {
			c.sendHex("62020007")
			c.awaitID(kindPubcomp, 7)
		}
		c.send(message{topic: "f08/r", qos: 2, payload: []byte("22.0")}.packet(v311, 7, false))
		c.awaitID(kindPubrec, 7)
		c.sendHex("62020007")
		c.awaitID(kindPubcomp, 7)
		w = b.open(sub).expectPresent(true)
		w.settle(w.takePayload("21.5"))
		w.settle(w.takePayload("22.0"))
		w.ping()
		if len(w.inbox) > 0 {
			t.Errorf("%v after the end", w.inbox)
		}
		b.expectLog("f08/r", "21.5", "22.0")
	})
}

// expectLog stops the broker and checks which payloads the log has on a topic.
func (b *broker) expectLog(topic string, payloads ...string) {
	b.t.Helper()
	b.stop()
	var got []string
	for _, m := range b.place.audit(b.t).messages {
		if m.topic == topic {
			got = append(got, string(m.payload))
		}
	}
	if fmt.Sprint(got) != fmt.Sprint(payloads) {
		b.t.Errorf("the log has %q on %s, want %q", got, topic, payloads)
	}
}

// A clean start forgets the ids of QoS 2 messages [MQTT-3.1.2-4; 3.1.1: 3.1.2-6].
func TestF09(t *testing.T) {
	const dirty, clean = "101100044d5154540400003c00056465762d39", "101100044d5154540402003c00056465762d39"
	forEachStore(t, func(t *testing.T, s backend) {
		for name, c := range map[string]struct {
			first string
			kill  bool
		}{"cut": {dirty, false}, "kill -9": {dirty, true}, "clean both times": {clean, false}, "clean, kill -9": {clean, true}} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				b := start(t, s)
				sub := persistent(v311, "sub")
				w := b.open(sub)
				w.subscribe(want{"f09/#", 2})
				dev := b.openHex(v311, "dev-9", c.first)
				dev.sendHex("340c00056630392f7200076f6c64")
				dev.awaitID(kindPubrec, 7)
				w.settle(w.takePayload("old"))
				w.ping()
				if c.kill {
					b.crash()
				} else {
					dev.cut()
				}
				dev = b.openHex(v311, "dev-9", clean).expectPresent(false)
				dev.sendHex("340c00056630392f7200076e6577")
				dev.awaitID(kindPubrec, 7)
				dev.sendHex("62020007")
				dev.awaitID(kindPubcomp, 7)
				if c.kill {
					w = b.open(sub).expectPresent(true)
				}
				// PUBREL of "old" may be repeated after the kill; its PUBLISH may not.
				w.settle(w.takePayload("new"))
				b.expectLog("f09/r", "old", "new")
			})
		}
	})
}
