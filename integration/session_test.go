package integration

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// P3, P5, F-11, S7: what was too large for the client is discarded for good, in
// its turn: not after a crash, and not for a client that could take it.
func TestTooLargeThenKill9(t *testing.T) {
	forEachStore(t, func(t *testing.T, s backend) {
		b := start(t, s)
		small := session{version: v5, clientID: "dev-11", expiry: 300, receiveMax: 10, maxPacket: 100}
		c := b.open(small)
		c.subscribe(want{"f11/#", 1})
		c.disconnect()
		pub := b.open(transient(v311, "pub"))
		var fitting []string
		for i := range 10 {
			payload := fmt.Sprintf("%-50d", i)
			if i == 4 {
				payload = fmt.Sprintf("%-300d", i)
			} else {
				fitting = append(fitting, payload)
			}
			pub.publish(message{topic: "f11/t", qos: 1, payload: []byte(payload)})
		}
		c = b.open(small).expectPresent(true)
		var held []packet
		for _, payload := range fitting {
			held = append(held, c.takePayload(payload))
		}
		for _, p := range held[:6] {
			c.settle(p)
		}
		c.ping()
		if n := sum(b.metrics(), "deliveries_dropped_total", `reason="too_large"`); n != 1 {
			t.Errorf("%v deliveries counted as too large, want 1", n)
		}
		b.crash()
		large := small
		large.maxPacket = 1000
		c = b.open(large).expectPresent(true)
		b.publishTexts("f11/t", 1, "end")
		last := -1
		for {
			p := c.settle(c.take())
			if string(p.payload) == "end" {
				break
			}
			i := slices.Index(fitting, string(p.payload))
			if i <= last || !p.dup {
				t.Fatalf("got %v after number %d", p, last)
			}
			last = i
		}
		if last != len(fitting)-1 {
			t.Errorf("the last that was resent is %d, want %d", last, len(fitting)-1)
		}
		fresh := b.open(session{version: v5, clientID: "fresh", clean: true})
		fresh.subscribe(want{"f11/#", 1})
		fresh.ping()
		if len(fresh.inbox) > 0 {
			t.Errorf("a new subscription got %v", fresh.inbox)
		}
	})
}

// P2, P5, F-11 live: with a full window, and for a client without the limit.
func TestTooLargeLive(t *testing.T) {
	forEachStore(t, func(t *testing.T, s backend) {
		b := start(t, s)
		c := b.open(session{version: v5, clientID: "small", expiry: 300, receiveMax: 1, maxPacket: 100})
		c.subscribe(want{"f11/#", 2})
		all := b.open(persistent(v5, "all"))
		all.subscribe(want{"f11/#", 2})
		pub := b.open(transient(v311, "pub"))
		for i := range 10 {
			size := 50
			if i%3 == 1 {
				size = 300
			}
			pub.publish(message{topic: "f11/t", qos: byte(1 + i%2), payload: fmt.Appendf(nil, "%-*d", size, i)})
		}
		for i := range 10 {
			size := 50
			if i%3 == 1 {
				size = 300
			}
			all.settle(all.takePayload(fmt.Sprintf("%-*d", size, i)))
			if size == 50 {
				c.settle(c.takePayload(fmt.Sprintf("%-*d", size, i)))
			}
		}
	})
}

// P6: retained messages survive SIGKILL, the last one of each topic; a cleared
// one stays cleared.
func TestRetainedKill9(t *testing.T) {
	forEachStore(t, func(t *testing.T, s backend) {
		b := start(t, s)
		n := size(1000)
		pub := b.open(transient(v311, "pub"))
		for _, value := range []string{"old", "new"} {
			pub.publishAll(n, 100, func(i int) message {
				return message{topic: fmt.Sprintf("ret/%04d", i), qos: 1, retain: true, payload: []byte(value)}
			})
		}
		pub.publish(message{topic: "ret/0007", qos: 1, retain: true}) // cleared
		b.crash()
		got := map[string]int{}
		c := b.open(transient(v5, "sub"))
		c.subscribe(want{"ret/#", 1})
		for range n - 1 {
			p := c.settle(c.take())
			got[p.topic]++
			if string(p.payload) != "new" || !p.retain || p.dup {
				t.Errorf("got %v", p)
			}
		}
		b.publishTexts("ret/end", 1, "end")
		c.settle(c.takePayload("end"))
		if len(got) != n-1 || got["ret/0007"] != 0 {
			t.Errorf("%d topics, want %d; ret/0007 came %d times", len(got), n-1, got["ret/0007"])
		}
	})
}

// Wills: of a link that is cut, of one that disconnects in order, of one that
// asks for it; [MQTT-3.1.2-8], [MQTT-3.1.2-10], [MQTT-3.14.4-3].
func TestWill(t *testing.T) {
	forEachStore(t, func(t *testing.T, s backend) {
		b := start(t, s)
		for _, version := range []byte{v311, v5} {
			t.Run(fmt.Sprintf("v%d", version), func(t *testing.T) {
				topic := fmt.Sprintf("will/%d", version)
				w := b.open(transient(v5, "watch-"+topic))
				w.subscribe(want{topic, 2})
				dev := transient(version, "dev-"+topic)
				dev.will = &will{topic: topic, payload: "gone", qos: 2}
				b.open(dev).cut()
				w.settle(w.takePayload("gone"))
				b.open(dev).disconnect()
				c := b.open(dev)
				if version == v5 {
					c.sendHex("e0020400") // 0x04: disconnect with will message
					c.closed()
				} else {
					c.sendHex("9000") // not a packet that a client sends
					c.closed()
				}
				w.settle(w.takePayload("gone"))
				b.publishTexts(topic, 2, "end")
				w.settle(w.takePayload("end"))
			})
		}
	})
}

// P6: wills of lost connections are published by the broker that comes after a
// SIGKILL, once, to sessions that were there before.
func TestWillKill9(t *testing.T) {
	forEachStore(t, func(t *testing.T, s backend) {
		b := start(t, s)
		watcher := persistent(v311, "watcher")
		w := b.open(watcher)
		w.subscribe(want{"lw/#", 2})
		const n = 20
		for i := range n {
			dev := session{version: []byte{v311, v5}[i%2], clientID: fmt.Sprintf("dev-%d", i), clean: i%4 < 2}
			dev.will = &will{topic: fmt.Sprintf("lw/%d", i), payload: dev.clientID, qos: byte(1 + i%2)}
			c := b.open(dev)
			if i == 0 {
				c.disconnect()
			}
		}
		b.crash()
		b.crash() // twice is once
		w = b.open(watcher).expectPresent(true)
		got := map[string]int{}
		for range n - 1 {
			p := w.settle(w.take())
			got[string(p.payload)]++
		}
		b.publishTexts("lw/end", 2, "end")
		w.settle(w.takePayload("end"))
		for i := 1; i < n; i++ {
			if id := fmt.Sprintf("dev-%d", i); got[id] != 1 {
				t.Errorf("the will of %s came %d times", id, got[id])
			}
		}
	})
}

// A second connection with the same client id takes over: the old one is told
// (v5: 0x8E) and closed, and what it had not acknowledged goes on
// [MQTT-3.1.4-3; 3.1.1: 3.1.4-2].
func TestTakeover(t *testing.T) {
	forEachStore(t, func(t *testing.T, s backend) {
		b := start(t, s)
		for _, version := range []byte{v311, v5} {
			t.Run(fmt.Sprintf("v%d", version), func(t *testing.T) {
				t.Parallel()
				id := fmt.Sprintf("dev-%d", version)
				dev := persistent(version, id)
				dev.will = &will{topic: "will/" + id, payload: "gone", qos: 1}
				w := b.open(transient(v5, "watch-"+id))
				w.subscribe(want{"will/" + id, 1})
				c := b.open(dev).expectPresent(false)
				c.subscribe(want{"to/" + id, 1})
				for round := range rounds(50) {
					text := fmt.Sprintf("m%d", round)
					b.publishTexts("to/"+id, 1, text)
					p := c.takePayload(text)
					old := c
					c = b.open(dev).expectPresent(true)
					rest := old.closed()
					switch {
					case version == v5 && (len(rest) != 1 || rest[0].kind != kindDisconnect || rest[0].code != 0x8e):
						t.Errorf("the old connection got %v, want DISCONNECT 0x8E", rest)
					case version == v311 && len(rest) > 0:
						t.Errorf("the old connection got %v", rest)
					}
					c.expectResent([]packet{p})
					c.settle(p)
					w.settle(w.takePayload("gone")) // [MQTT-3.1.4-3]
				}
			})
		}
	})
}

// F-17 in short: a session ends when its expiry is over, also across a SIGKILL,
// and DISCONNECT may change it [MQTT-3.1.2-23, 3.2.2-2, 3.2.2-3].
func TestSessionExpiry(t *testing.T) {
	forEachStore(t, func(t *testing.T, s backend) {
		type walk struct {
			leave   string        // how the first connection ends
			away    time.Duration // in seconds of protocol time
			kill    bool          // SIGKILL while away
			present bool
			expiry  uint32
		}
		const disconnect = "e000"
		for name, w := range map[string]walk{
			"back in time":       {disconnect, 500 * time.Millisecond, false, true, 30},
			"too late":           {disconnect, 3 * time.Second, false, false, 1},
			"too late, cut":      {"", 3 * time.Second, false, false, 1},
			"too late, kill -9":  {disconnect, 3 * time.Second, true, false, 1},
			"changed to 60":      {"e007 00 05 11 0000003c", 3 * time.Second, false, true, 1},
			"ends with the link": {disconnect, 0, false, false, 0},
			"does not end":       {disconnect, 2 * time.Second, true, true, 0xffffffff},
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				b := start(t, s)
				dev := session{version: v5, clientID: "dev", expiry: w.expiry}
				c := b.open(dev).expectPresent(false)
				c.subscribe(want{"exp/t", 1})
				if w.leave != "" {
					c.sendHex(w.leave)
					c.closed()
				} else {
					c.cut()
				}
				if w.kill {
					// What the broker does with DISCONNECT has to be durable first:
					// the client cannot see when.
					b.eventually("the session is offline", func() bool { return sum(b.metrics(), "sessions", `state="offline"`) == 1 })
					b.kill9()
				}
				elapse(t, w.away)
				if w.kill {
					b.start()
				}
				c = b.open(dev).expectPresent(w.present)
				b.publishTexts("exp/t", 1, "m")
				if w.present {
					c.settle(c.takePayload("m"))
				} else { // the old subscription has no effect
					c.subscribe(want{"exp/end", 1})
					b.publishTexts("exp/end", 1, "end")
					c.settle(c.takePayload("end"))
				}
			})
		}
	})
}

// A clean session ends with its connection: nothing of it is there afterwards
// [MQTT-3.1.2-4; 3.1.1: 3.1.2-6]; and a clean start throws away what was there.
func TestCleanSession(t *testing.T) {
	forEachStore(t, func(t *testing.T, s backend) {
		b := start(t, s)
		for _, version := range []byte{v311, v5} {
			for _, kill := range []bool{false, true} {
				id := fmt.Sprintf("dev-%d-%t", version, kill)
				topic := "cs/" + id
				// Persistent first, so that there is something to throw away.
				c := b.open(persistent(version, id)).expectPresent(false)
				c.subscribe(want{topic, 1})
				b.publishTexts(topic, 1, "held")
				c.takePayload("held")
				c.cut()
				c = b.open(transient(version, id)).expectPresent(false)
				b.publishTexts(topic, 1, "nobody")
				c.subscribe(want{topic, 1})
				b.publishTexts(topic, 1, "live")
				if p := c.takePayload("live"); p.dup {
					t.Errorf("%v, want DUP=0", p)
				}
				if kill {
					b.crash()
				} else {
					c.cut()
				}
				c = b.open(persistent(version, id)).expectPresent(false)
				b.publishTexts(topic, 1, "nobody")
				c.subscribe(want{topic + "/end", 1})
				b.publishTexts(topic+"/end", 1, "end")
				c.settle(c.takePayload("end"))
				c.disconnect()
			}
		}
	})
}
