package integration

import (
	"testing"
	"time"
)

// elapse lets protocol time pass: an expiry, a delay, a keep alive. It is never
// used to wait for something that the broker does by itself.
func elapse(t *testing.T, d time.Duration) {
	t.Helper()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-t.Context().Done():
		t.Fatal(t.Context().Err())
	}
}

// Message expiry does not touch a delivery that is under way [MQTT-4.3.3-7,
// 4.4.0-1, 3.3.2-5].
func TestF10(t *testing.T) {
	const publish = "341000056631302f71000105020000000278"
	sub := session{version: v5, clientID: "f10-s", expiry: 300}
	send := func(b *broker) {
		p := b.open(transient(v5, "f10-p"))
		p.sendHex(publish)
		p.awaitID(kindPubrec, 1)
		p.ack(kindPubrel, 1)
		p.awaitID(kindPubcomp, 1)
	}
	end := func(b *broker, c *client) {
		b.publishTexts("f10/q", 2, "end")
		c.settle(c.takePayload("end"))
	}
	forEachStore(t, func(t *testing.T, s backend) {
		t.Run("a", func(t *testing.T) {
			t.Parallel()
			b := start(t, s)
			c := b.open(sub)
			c.subscribe(want{"f10/q", 2})
			send(b)
			p := c.takePayload("x")
			c.ack(kindPubrec, p.id)
			c.awaitID(kindPubrel, p.id)
			c.cut()
			elapse(t, 4*time.Second)
			c = b.open(sub).expectPresent(true)
			if first := c.wire(); first.kind != kindPubrel || first.id != p.id {
				t.Fatalf("got %v, want PUBREL %d", first, p.id)
			}
			c.ack(kindPubcomp, p.id)
			end(b, c)
		})
		t.Run("b", func(t *testing.T) {
			t.Parallel()
			b := start(t, s)
			c := b.open(sub)
			c.subscribe(want{"f10/q", 2})
			send(b)
			p := c.takePayload("x")
			c.cut()
			elapse(t, 4*time.Second)
			c = b.open(sub).expectPresent(true)
			c.expectResent([]packet{p})
			c.settle(p)
			end(b, c)
		})
		t.Run("c", func(t *testing.T) {
			t.Parallel()
			b := start(t, s)
			narrow := sub
			narrow.receiveMax = 1
			c := b.open(narrow)
			c.subscribe(want{"f10/q", 2})
			b.publishTexts("f10/q", 2, "first")
			p := c.takePayload("first")
			send(b)
			elapse(t, 4*time.Second)
			c.settle(p)
			end(b, c)
			if n := sum(b.metrics(), "deliveries_dropped_total", `reason="expired"`); n != 1 {
				t.Errorf("%v deliveries counted as expired, want 1", n)
			}
		})
	})
}

// A will is published after the broker died with its client [MQTT-3.1.2-8].
func TestF14(t *testing.T) {
	forEachStore(t, func(t *testing.T, s backend) {
		t.Run("does not return", func(t *testing.T) {
			t.Parallel()
			b := start(t, s)
			watcher := persistent(v311, "watcher")
			w := b.open(watcher)
			w.subscribe(want{"f14/d", 1})
			dev := session{version: v311, clientID: "dev", clean: true, will: &will{topic: "f14/d", payload: "0", qos: 1, retain: true}}
			b.open(dev).publish(message{topic: "f14/d", qos: 1, retain: true, payload: []byte("2")})
			w.settle(w.takePayload("2"))
			w.ping()
			b.crash()
			w = b.open(watcher).expectPresent(true)
			// "2" may be in doubt; then the will, once.
			p := w.settle(w.take())
			if p.dup && string(p.payload) == "2" {
				p = w.settle(w.take())
			}
			if string(p.payload) != "0" {
				t.Errorf("got %v, want the will", p)
			}
			fresh := b.open(transient(v311, "fresh"))
			fresh.subscribe(want{"f14/d", 1})
			if p := fresh.settle(fresh.takePayload("0")); !p.retain {
				t.Errorf("%v, want RETAIN=1", p)
			}
			b.publishTexts("f14/d", 1, "end")
			w.settle(w.takePayload("end"))
			b.expectLog("f14/d", "2", "0", "end")
		})
		// MQTT 5, will delay (10 s in the report, scaled here): the client is
		// back in time.
		t.Run("returns before the delay", func(t *testing.T) {
			t.Parallel()
			delay, back := uint32(3), time.Second
			if soak {
				delay, back = 10, 3*time.Second
			}
			b := start(t, s)
			watcher := persistent(v5, "watcher")
			w := b.open(watcher)
			w.subscribe(want{"f14/d", 1})
			dev := session{version: v5, clientID: "dev", expiry: 300, will: &will{topic: "f14/d", payload: "0", qos: 1, retain: true, delay: delay}}
			b.open(dev).publish(message{topic: "f14/d", qos: 1, retain: true, payload: []byte("2")})
			w.settle(w.takePayload("2"))
			w.ping()
			b.crash()
			elapse(t, back)
			d := b.open(dev).expectPresent(true)
			elapse(t, time.Duration(delay)*time.Second)
			d.disconnect()
			b.publishTexts("f14/d", 1, "end")
			w = b.open(watcher).expectPresent(true)
			p := w.settle(w.take())
			if p.dup && string(p.payload) == "2" {
				p = w.settle(w.take())
			}
			if string(p.payload) != "end" {
				t.Errorf("got %v, want no will", p)
			}
			b.expectLog("f14/d", "2", "end")
		})
	})
}
