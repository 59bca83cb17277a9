package integration

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// Further scenarios from reports about other brokers; see field_test.go.

// F-11: what is too large for the client is discarded in its turn, counted, and does
// not come later [MQTT-3.1.2-24, 3.1.2-25].
func TestF11_TooLargeForTheClient(t *testing.T) {
	const dev11 = "101d00044d5154540500003c0a110000012c270000006400066465762d3131"
	forEachStore(t, func(t *testing.T, s backend) {
		for _, live := range []bool{false, true} {
			t.Run(fmt.Sprintf("live %t", live), func(t *testing.T) {
				t.Parallel()
				b := start(t, s)
				all := b.open(persistent(v311, "all"))
				all.subscribe(want{"f11/#", 1})
				dev := session{version: v5, clientID: "dev-11", expiry: 300, maxPacket: 100, receiveMax: 1}
				var c *client
				if live {
					c = b.open(dev)
				} else {
					c = b.openHex(v5, "dev-11", dev11)
				}
				c.subscribe(want{"f11/#", 1})
				if !live {
					c.cut()
				}
				var sent []string
				for i := range 10 {
					n := 50
					if i == 4 {
						n = 300
					}
					sent = append(sent, fmt.Sprint(i)+strings.Repeat("x", n-1))
				}
				b.publishTexts("f11/t", 1, sent...)
				if !live {
					c = b.openHex(v5, "dev-11", dev11).expectPresent(true)
				}
				for i, text := range sent {
					if i != 4 {
						c.settle(c.takePayload(text))
					}
					all.settle(all.takePayload(text))
				}
				c.ping()
				c.disconnect()
				if n := sum(b.metrics(), "deliveries_dropped_total", `reason="too_large"`); n != 1 {
					t.Errorf("%v deliveries counted as too large, want 1", n)
				}
				dev.maxPacket = 1000
				c = b.open(dev).expectPresent(true)
				b.publishTexts("f11/t", 1, "end")
				c.settle(c.takePayload("end"))
			})
		}
	})
}

// F-13: at each takeover the will comes before what the new connection publishes, and
// the retained value is the new one's [MQTT-3.1.4-3, 3.1.3-9; 3.1.1: 3.1.4-2,
// 3.1.2-8].
func TestF13_OnlineYetShownOffline(t *testing.T) {
	forEachStore(t, func(t *testing.T, s backend) {
		for _, version := range []byte{v311, v5} {
			for _, delay := range []uint32{0, 30} {
				if version == v311 && delay > 0 {
					continue
				}
				t.Run(fmt.Sprintf("v%d delay %d", version, delay), func(t *testing.T) {
					t.Parallel()
					b := start(t, s)
					watch := b.open(transient(version, "watch"))
					watch.subscribe(want{"f13/#", 1})
					dev := session{version: version, clientID: "dev", expiry: 60, will: &will{topic: "f13/d", payload: "offline", qos: 1, retain: true, delay: delay}}
					for round := range rounds(50) {
						c := b.open(dev).expectPresent(round > 0)
						c.publish(message{topic: "f13/d", qos: 1, retain: true, payload: []byte("online")})
						if round > 0 && delay == 0 {
							watch.settle(watch.takePayload("offline"))
						}
						watch.settle(watch.takePayload("online"))
						watch.ping()
						if len(watch.inbox) > 0 {
							t.Fatalf("round %d: %v", round, watch.inbox)
						}
						fresh := b.open(transient(version, "fresh"))
						fresh.subscribe(want{"f13/d", 1})
						if p := fresh.settle(fresh.takePayload("online")); !p.retain {
							t.Errorf("round %d: %v, want RETAIN=1", round, p)
						}
						fresh.disconnect()
					}
				})
			}
		}
	})
}

// F-15: a wildcard SUBSCRIBE brings all retained messages, however slowly they are
// acknowledged or read, with no further push.
func TestF15_AllRetained(t *testing.T) {
	forEachStore(t, func(t *testing.T, s backend) {
		n := max(size(5000), 2500) // above every known bound of others
		fill := func(t *testing.T) *broker {
			t.Helper()
			b := start(t, s)
			b.open(transient(v311, "filler")).publishAll(n, 1000, func(i int) message {
				return message{topic: fmt.Sprintf("f15/%d", i), qos: 1, retain: true, payload: fmt.Append(nil, i)}
			})
			return b
		}
		// tally counts what came: each retained topic once, each live number in order.
		type tally struct{ retained, live int }
		note := func(t *testing.T, seen map[string]bool, got *tally, p packet) {
			t.Helper()
			switch {
			case p.topic == "f15/x":
				if p.retain {
					t.Errorf("%v is live", p)
				}
				got.live++
			case !p.retain || seen[p.topic] || p.topic != "f15/"+string(p.payload):
				t.Errorf("%v, want RETAIN=1, once", p)
			default:
				seen[p.topic] = true
				got.retained++
			}
		}
		live := func(b *broker) { b.publishTexts("f15/x", 1, texts(1, 100)...) }
		t.Run("a", func(t *testing.T) {
			t.Parallel()
			b, seen, got := fill(t), map[string]bool{}, tally{}
			c := b.open(session{version: v5, clientID: "a", expiry: 300, receiveMax: 10})
			c.subscribe(want{"f15/#", 1})
			live(b)
			tick := time.NewTicker(time.Millisecond)
			defer tick.Stop()
			for got.retained < n || got.live < 100 {
				p := c.take()
				<-tick.C
				c.settle(p)
				note(t, seen, &got, p)
			}
			c.ping()
			if len(c.inbox) > 0 {
				t.Errorf("%v after the end", c.inbox)
			}
		})
		t.Run("b", func(t *testing.T) {
			t.Parallel()
			b, seen, got := fill(t), map[string]bool{}, tally{}
			c := b.open(persistent(v311, "b"))
			c.subscribe(want{"f15/#", 1})
			live(b)
			elapse(t, time.Duration(size(5000))*time.Millisecond)
			for got.retained < n || got.live < 100 {
				note(t, seen, &got, c.settle(c.take()))
			}
			c.ping()
			if len(c.inbox) > 0 {
				t.Errorf("%v after the end", c.inbox)
			}
		})
		t.Run("c", func(t *testing.T) {
			t.Parallel()
			b, seen, got := fill(t), map[string]bool{}, tally{}
			c := b.open(transient(v5, "c"))
			c.subscribe(want{"f15/#", 0})
			live(b)
			tick := time.NewTicker(10 * time.Millisecond)
			for range size(1000) {
				<-tick.C
				note(t, seen, &got, c.take())
			}
			tick.Stop()
			b.eventually("all has come or is counted", func() bool {
				for c.r.Buffered() > 0 || len(c.inbox) > 0 || c.firstByteWithin(quickly) == nil {
					note(t, seen, &got, c.take())
				}
				dropped := sum(b.metrics(), "deliveries_dropped_total", `qos="0"`)
				t.Logf("%+v came, %v dropped", got, dropped)
				return got.retained+got.live+int(dropped) == n+100
			})
		})
	})
}

// F-16: what a new subscriber gets: at most one retained value, first, then all that
// follow it, in order.
func TestF16_SnapshotThenStream(t *testing.T) {
	forEachStore(t, func(t *testing.T, s backend) {
		b := start(t, s)
		stop, ended := make(chan struct{}), make(chan error, 1)
		pub := b.open(transient(v311, "counter"))
		go func() {
			tick := time.NewTicker(2 * time.Millisecond)
			defer tick.Stop()
			for i := 1; ; i++ {
				select {
				case <-stop:
					ended <- nil
					return
				case <-tick.C:
				}
				m := message{topic: "f16/c", qos: 1, retain: true, payload: fmt.Append(nil, i)}
				if err := pub.write(m.packet(v311, uint16(i%60000)+1, false)); err != nil {
					ended <- err
					return
				}
				if _, err := pub.read(patience); err != nil {
					ended <- err
					return
				}
			}
		}()
		for round := range rounds(100) {
			c := b.open(transient(v5, "sub"))
			c.subscribe(want{"f16/c", 1})
			last := 0
			for i := range 50 {
				p := c.settle(c.take())
				var v int
				if _, err := fmt.Sscan(string(p.payload), &v); err != nil {
					t.Fatal(err)
				}
				if p.retain && i > 0 || last > 0 && v != last+1 {
					t.Fatalf("round %d, message %d: %v after %d", round, i, p, last)
				}
				last = v
			}
			c.cut()
		}
		close(stop)
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// F-17: a session ends with its expiry, also over a restart; DISCONNECT may change it
// [MQTT-3.1.2-23, 3.2.2-2, 3.2.2-3].
func TestF17_SessionExpiry(t *testing.T) {
	forEachStore(t, func(t *testing.T, s backend) {
		dev := func(expiry uint32) session { return session{version: v5, clientID: "f17", expiry: expiry} }
		leave := func(c *client, props ...property) {
			c.t.Helper()
			c.send(frame(kindDisconnect<<4, appendProps([]byte{0}, props)))
			c.closed()
		}
		gone := func(t *testing.T, b *broker) {
			t.Helper()
			c := b.open(dev(3)).expectPresent(false)
			b.publishTexts("f17/t", 1, "after the return")
			c.ping()
			if len(c.inbox) > 0 {
				t.Errorf("%v on a subscription of the old session", c.inbox)
			}
			c.cut()
		}
		t.Run("away for short, then for long", func(t *testing.T) {
			t.Parallel()
			b := start(t, s)
			c := b.open(dev(3))
			c.subscribe(want{"f17/t", 1})
			leave(c)
			elapse(t, time.Second)
			leave(b.open(dev(3)).expectPresent(true))
			elapse(t, 6*time.Second)
			gone(t, b)
		})
		t.Run("over a restart", func(t *testing.T) {
			t.Parallel()
			b := start(t, s)
			c := b.open(dev(3))
			c.subscribe(want{"f17/t", 1})
			leave(c)
			b.letGo("f17")
			b.kill9()
			elapse(t, 5*time.Second)
			b.start()
			gone(t, b)
		})
		t.Run("longer by DISCONNECT", func(t *testing.T) {
			t.Parallel()
			b := start(t, s)
			c := b.open(dev(3))
			c.subscribe(want{"f17/t", 1})
			leave(c, property{id: propSessionExpiry, num: 60})
			elapse(t, 6*time.Second)
			b.publishTexts("f17/t", 1, "meanwhile")
			c = b.open(dev(3)).expectPresent(true)
			c.settle(c.takePayload("meanwhile"))
		})
		t.Run("without end", func(t *testing.T) {
			t.Parallel()
			b := start(t, s)
			c := b.open(dev(0xffffffff))
			c.subscribe(want{"f17/t", 1})
			leave(c)
			elapse(t, 4*time.Second)
			b.crash()
			b.publishTexts("f17/t", 1, "meanwhile")
			c = b.open(dev(3)).expectPresent(true)
			c.settle(c.takePayload("meanwhile"))
		})
	})
}

// F-18: topics come back byte by byte, live, replayed and retained [MQTT-1.5.4-3,
// 4.7.3-4, 4.7.1-2; 3.1.1: 1.5.3-3].
func TestF18_Topics(t *testing.T) {
	packets := []string{
		"330f000aefbbbf6631382f626f6d000176",             // begins with U+FEFF
		"330f000a6631382f736c6173682f000176",             // ends with a slash
		"330900042f663138000176",                         // begins with one
		"330f000a6631382f2f656d707479000176",             // an empty level
		"330c00076631382f612062000176",                   // a space
		"330e00096631382f636166c3a9000176",               // é composed
		"330f000a6631382f63616665cc81000176",             // é decomposed
		"330e00096631382f782e79247a000176",               // a dot, a dollar
		"331500106631382f282e2a295b612d7a5d2a5c64000176", // like a pattern; the report has a + in it
		"330d00086631382ff09f8ca1000176",                 // outside the BMP
	}
	long, deep := "f18/"+strings.Repeat("x", 64_996), "f18"+strings.Repeat("/x", 199)
	forEachStore(t, func(t *testing.T, s backend) {
		b := start(t, s)
		var topics []string
		for _, p := range packets {
			raw := fromHex(p)
			m, err := parsePacket(raw[0], raw[2:], v311)
			if err != nil {
				t.Fatal(err)
			}
			topics = append(topics, m.topic)
		}
		topics = append(topics, long, deep)
		every := b.open(persistent(v311, "every"))
		every.subscribe(want{"#", 1})
		every.cut()
		exact := make([]*client, len(topics))
		for i, topic := range topics {
			exact[i] = b.open(persistent(v311, fmt.Sprint("exact", i)))
			exact[i].subscribe(want{topic, 1})
			exact[i].cut()
		}
		pub := b.open(transient(v311, "pub"))
		for _, topic := range topics {
			pub.publish(message{topic: topic, qos: 1, retain: true, payload: []byte("v")})
		}
		check := func(c *client, retain bool, topics ...string) {
			t.Helper()
			var got []string
			for range topics {
				p := c.settle(c.takePayload("v"))
				if p.retain != retain {
					t.Errorf("%s: %v", c.name, p)
				}
				got = append(got, p.topic)
			}
			c.ping()
			if len(c.inbox) > 0 {
				t.Errorf("%s: %v after the end", c.name, c.inbox)
			}
			if retain { // in topic order
				slices.Sort(got)
				topics = slices.Sorted(slices.Values(topics))
			}
			if !slices.Equal(got, topics) {
				t.Errorf("%s: got %.200q, want %.200q", c.name, got, topics)
			}
		}
		check(b.open(persistent(v311, "every")).expectPresent(true), false, topics...)
		for i, topic := range topics {
			check(b.open(persistent(v311, fmt.Sprint("exact", i))).expectPresent(true), false, topic)
		}
		b.crash()
		below := slices.DeleteFunc(slices.Clone(topics), func(topic string) bool { return !strings.HasPrefix(topic, "f18/") })
		single := slices.DeleteFunc(slices.Clone(below), func(topic string) bool { return strings.Count(topic, "/") != 1 })
		fresh := b.open(transient(v311, "fresh"))
		fresh.subscribe(want{"f18/#", 1})
		check(fresh, true, below...)
		fresh = b.open(transient(v311, "fresh"))
		fresh.subscribe(want{"f18/+", 1})
		check(fresh, true, single...)
		// A retained message under any topic can be removed: by the operator, and by a
		// client.
		kept := map[string]string{}
		for _, topic := range topics {
			if len(topic) < 1000 && strings.Count(topic, "/") < 100 {
				kept[topic] = "v"
			}
		}
		pub = b.open(transient(v311, "pub"))
		for _, topic := range []string{long, deep} {
			pub.publish(message{topic: topic, qos: 1, retain: true})
		}
		expectRetained(t, b, "#", kept)
		fresh = b.open(transient(v311, "fresh"))
		fresh.subscribe(want{"#", 1})
		fresh.ping()
		if len(fresh.inbox) > 0 {
			t.Errorf("%v was to be removed", fresh.inbox)
		}

		many := make([]want, 1000)
		for i := range many {
			many[i] = want{fmt.Sprintf("f18/%s/%04d", strings.Repeat("y", 71), i), 1}
		}
		fresh.subscribe(many...)
		pub.publish(message{topic: many[999].filter, qos: 1, payload: []byte("v")})
		check(fresh, false, many[999].filter)
		// U+0007 is refused.
		bell := b.open(transient(v311, "bell"))
		bell.sendHex("330c00076631382f610762000176")
		if rest := bell.closed(); len(rest) > 0 {
			t.Errorf("U+0007 in a topic: %v before the end", rest)
		}
		// With the + of the report it is no topic at all [MQTT-3.3.2-2].
		plus := b.open(transient(v311, "plus"))
		plus.sendHex("331500106631382f282e2a295b612d7a5d2b5c64000176")
		if rest := plus.closed(); len(rest) > 0 {
			t.Errorf("+ in a topic: %v before the end", rest)
		}
	})
}

// F-19: client ids with anything in them are taken, never mixed up, and those with
// control characters are refused [MQTT-3.1.3-5; 3.1.1: 3.1.3-9].
func TestF19_ClientIDs(t *testing.T) {
	ids := []string{
		"plant/7/pump", "k1|mode=3,sign=sha1,ts=1700000000|", "a b", "50%2F", "$SYS", "x.y$z", `"q'`, "温度-1",
		strings.Repeat("x", 300), strings.Repeat("x", 299), "plant", "a", "50/", "#", "+", "a  b",
	}
	forEachStore(t, func(t *testing.T, s backend) {
		b := start(t, s)
		exact := b.openHex(v311, ids[1], "102e00044d5154540400003c00226b317c6d6f64653d332c7369676e3d736861312c74733d313730303030303030307c")
		exact.disconnect()
		for i, id := range ids {
			c := b.open(persistent(v311, id)).expectPresent(i == 1)
			c.subscribe(want{fmt.Sprintf("f19/%d", i), 1})
			c.disconnect()
			b.publishTexts(fmt.Sprintf("f19/%d", i), 1, id)
		}
		b.crash()
		for _, id := range ids {
			c := b.open(persistent(v311, id)).expectPresent(true)
			c.settle(c.takePayload(id))
			c.ping()
			if len(c.inbox) > 0 {
				t.Errorf("%q: %v", id, c.inbox)
			}
			c.disconnect()
		}
		for name, c := range map[string]struct {
			version byte
			packet  string
			code    byte
		}{
			"v3": {v311, "101700044d5154540400003c000b6c696e65310a6c696e6532", 2},
			"v5": {v5, "101800044d5154540500003c00000b6c696e65310a6c696e6532", 0x85},
		} {
			bad := b.dial(c.version, name)
			bad.sendHex(c.packet)
			if rest := bad.closed(); len(rest) != 1 || rest[0].kind != kindConnack || rest[0].code != c.code {
				t.Errorf("%s: a line feed in a client id: %v", name, rest)
			}
		}
		_, metrics := b.get("/metrics")
		for _, id := range ids {
			if len(id) > 3 && id != "plant" && strings.Contains(metrics, id) {
				t.Errorf("%q is in the metrics", id)
			}
		}
		endSessions(t, b, ids)
		for _, id := range ids {
			b.open(persistent(v311, id)).expectPresent(false).disconnect()
		}
		for line := range strings.Lines(b.proc.output()) {
			// A line of the log is one JSON object, whatever the client id.
			if strings.HasPrefix(line, "line2") || strings.HasPrefix(line, "{") && !json.Valid([]byte(line)) {
				t.Errorf("a client id broke a line of the log: %q", line)
			}
		}
	})
}

// F-20: the bytes of a payload are the same everywhere.
func TestF20_PayloadBytes(t *testing.T) {
	random := make([]byte, 65_536)
	forEachStore(t, func(t *testing.T, s backend) {
		rng := seeded(t)
		for i := range random {
			random[i] = byte(rng.Uint32())
		}
		payloads := []string{
			string(fromHex("743b32332c353bb0430d0a")), string(fromHex("610062")), string(fromHex("efbbbf742c310a")),
			string(fromHex("c328")), string(fromHex("eda080")), "", string(random),
		}
		b := start(t, s)
		away := b.open(persistent(v311, "away"))
		away.subscribe(want{"f20/#", 1})
		away.cut()
		live := b.open(transient(v311, "live"))
		live.subscribe(want{"f20/#", 1})
		pub := b.open(transient(v311, "pub"))
		var all []string
		hear := func(payload string) {
			all = append(all, payload)
			live.settle(live.takePayload(payload))
		}
		for i, payload := range payloads {
			pub.publish(message{topic: "f20/p", qos: 1, payload: []byte(payload)})
			hear(payload)
			if payload != "" {
				pub.publish(message{topic: fmt.Sprintf("f20/r/%d", i), qos: 1, retain: true, payload: []byte(payload)})
				hear(payload)
			}
			if len(payload) <= 65_535 {
				dev := b.open(session{version: v311, clientID: "dev", clean: true, will: &will{topic: "f20/w", payload: payload, qos: 1}})
				dev.cut()
				hear(payload)
			}
		}
		b.crash()
		c := b.open(persistent(v311, "away")).expectPresent(true)
		for _, payload := range all {
			c.settle(c.takePayload(payload))
		}
		fresh := b.open(transient(v311, "fresh"))
		fresh.subscribe(want{"f20/r/+", 1})
		for i, payload := range payloads {
			if payload == "" {
				continue
			}
			if p := fresh.settle(fresh.takePayload(payload)); p.topic != fmt.Sprintf("f20/r/%d", i) || !p.retain {
				t.Errorf("got %v", p)
			}
		}
		kept := map[string]string{}
		for i, payload := range payloads {
			if payload != "" {
				kept[fmt.Sprintf("f20/r/%d", i)] = payload
				all = append(all, "") // what removes it
			}
		}
		expectRetained(t, b, "f20/r/+", kept)
		b.stop()
		var stored []string
		for _, m := range b.place.audit(t).messages {
			if strings.HasPrefix(m.topic, "f20/") {
				stored = append(stored, string(m.payload))
			}
		}
		if !slices.Equal(stored, all) {
			t.Errorf("the log has %d payloads, want the %d that were sent, unchanged", len(stored), len(all))
		}
	})
}
