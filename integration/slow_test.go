package integration

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"time"
)

// numbered makes the i-th message of a row, from 1.
func numbered(topic string, qos byte, size int) func(i int) message {
	return func(i int) message {
		return message{topic: topic, qos: qos, payload: key{stream{"-", topic, qos}, i + 1}.payload(size)}
	}
}

// takeRow takes the messages from..to of a row, all of them, in order, each
// once, and settles them. held lets the caller look at each before that.
func (c *client) takeRow(from, to int, held func(p packet)) {
	c.t.Helper()
	for want := from; want <= to; want++ {
		p := c.take()
		if k, ok := parseKey(p.payload); !ok || k.seq != want || p.dup {
			c.t.Fatalf("%s: got %v, want number %d", c.name, p, want)
		}
		if held != nil {
			held(p)
		}
		c.settle(p)
	}
}

// P5: a subscriber that reads nothing slows no one else and loses nothing.
func TestStalledSubscriber(t *testing.T) {
	forEachStore(t, func(t *testing.T, s backend) {
		for _, qos := range []byte{1, 2} {
			t.Run(fmt.Sprintf("QoS %d", qos), func(t *testing.T) {
				t.Parallel()
				stalledSubscriber(t, s, qos)
			})
		}
	})
}

func stalledSubscriber(t *testing.T, s backend, qos byte) {
	const topic, bytes = "slow/t", 4 << 10
	n := size(20_000)
	b := start(t, s)
	stalled := b.dial(v5, "stalled")
	_ = stalled.conn.(*net.TCPConn).SetReadBuffer(64 << 10)
	sub := session{version: v5, clientID: "stalled", expiry: 300}
	stalled.send(sub.packet())
	stalled.accepted().subscribe(want{topic, qos})

	fast := b.open(persistent(v311, "fast"))
	fast.subscribe(want{topic, qos})
	pub := b.open(transient(v311, "pub"))
	make, worst := numbered(topic, qos, bytes), time.Duration(0)
	for from := 0; from < n; from += 100 {
		begin := time.Now()
		pub.publishAll(100, 100, func(i int) message { return make(from + i) })
		fast.takeRow(from+1, from+100, nil)
		worst = max(worst, time.Since(begin))
	}
	t.Logf("worst of %d batches of 100, published and received: %v", n/100, worst)
	// Held up by the stalled one, a batch would take as long as the test: the bound
	// tells that from a busy machine.
	if worst > time.Minute {
		t.Errorf("a batch took %v beside the stalled subscriber", worst)
	}
	// The stalled one wakes. Whether the broker has closed its connection is the
	// broker's affair; nothing may be missing.
	got, resumes := 0, 0
	for got < n {
		p, err := stalled.read(patience)
		if err != nil {
			if resumes++; resumes > 3 {
				t.Fatalf("stalled: %v after %d", err, got)
			}
			stalled.cut()
			stalled = b.open(sub).expectPresent(true)
			continue
		}
		switch k, _ := parseKey(p.payload); {
		case p.kind == kindPubrel:
			stalled.ack(kindPubcomp, p.id)
		case p.kind == kindDisconnect:
		case p.kind != kindPublish || k.seq > got+1 || k.seq <= got && !p.dup:
			t.Fatalf("stalled: %v after %d", p, got)
		default:
			got = max(got, k.seq)
			stalled.ack(map[byte]byte{1: kindPuback, 2: kindPubrec}[p.qos], p.id)
		}
	}
	t.Logf("the stalled subscriber has all %d, with %d reconnects", n, resumes)
}

// P5 and [MQTT-3.3.4-9]: with a small Receive Maximum everything comes, in
// order, and never more at a time.
func TestReceiveMaximum(t *testing.T) {
	forEachStore(t, func(t *testing.T, s backend) {
		for _, window := range []uint16{1, 4} {
			for _, qos := range []byte{1, 2} {
				t.Run(fmt.Sprintf("%d at QoS %d", window, qos), func(t *testing.T) {
					t.Parallel()
					receiveMaximum(t, s, window, qos)
				})
			}
		}
	})
}

func receiveMaximum(t *testing.T, s backend, window uint16, qos byte) {
	b := start(t, s)
	n := 1000 // the whole of it in every scale, where it is quick
	if b.place.db != nil {
		n = max(200, size(n)) // each waits for writes of a majority
	}
	sub := session{version: v5, clientID: "sub", expiry: 300, receiveMax: window}
	c := b.open(sub)
	c.subscribe(want{"rm/t", qos})
	c.disconnect()
	pub := b.open(transient(v5, "pub"))
	make := numbered("rm/t", qos, 0)
	pub.publishAll(n/2, 100, make) // half of it while away
	c = b.open(sub).expectPresent(true)
	sent := n / 2
	for got := 0; got < n; {
		if got >= n/4 && sent < n { // the other half while it reads
			pub.publishAll(n-sent, 100, func(i int) message { return make(n/2 + i) })
			sent = n
		}
		var held []packet
		for range min(int(window), n-got) {
			p := c.take()
			if k, _ := parseKey(p.payload); k.seq != got+1 || p.dup {
				t.Fatalf("got %v, want number %d", p, got+1)
			}
			got++
			held = append(held, p)
		}
		if got%50 < int(window) {
			c.ping()
			if len(c.inbox) > 0 {
				t.Fatalf("%v beyond Receive Maximum %d", c.inbox, window)
			}
		}
		for _, p := range held {
			c.settle(p)
		}
	}
}

// P2 and P5: a long backlog of one offline session arrives complete and in
// order, and the broker does not take it into memory.
func TestBacklog100k(t *testing.T) {
	forEachStore(t, func(t *testing.T, s backend) {
		n, bytes := size(100_000), 1<<10
		b := start(t, s)
		sub := session{version: v5, clientID: "sub", expiry: 3600, receiveMax: 100}
		c := b.open(sub)
		c.subscribe(want{"log/t", 1})
		c.disconnect()
		b.open(transient(v311, "pub")).publishAll(n, 1000, numbered("log/t", 1, bytes))
		b.stop()
		b.start() // what the writing has left in memory is gone
		before := b.rss()
		c = b.open(sub).expectPresent(true)
		peak := before
		c.takeRow(1, n, func(p packet) {
			if k, _ := parseKey(p.payload); k.seq%(n/100) == 0 {
				peak = max(peak, b.rss())
			}
		})
		t.Logf("backlog of %d MiB: resident %d MiB before, %d MiB at most", n*bytes>>20, before>>20, peak>>20)
		// A quarter of the backlog, and a fixed amount for caches and buffers.
		if limit := int64(n*bytes)/4 + 48<<20; peak-before > limit && !raceEnabled {
			t.Errorf("resident memory grew by %d MiB, limit %d", (peak-before)>>20, limit>>20)
		}
		last := message{topic: "log/t", qos: 1, payload: []byte("last")}
		b.open(transient(v311, "pub")).publish(last)
		c.settle(c.takePayload("last"))
	})
}

// P2: while one session replays its backlog, a SUBSCRIBE adds a second filter:
// the backlog goes on in order, the new filter begins where it was asked for.
func TestSubscribeWhileReplaying(t *testing.T) {
	forEachStore(t, func(t *testing.T, s backend) {
		n := size(10_000)
		b := start(t, s)
		sub := session{version: v5, clientID: "sub", expiry: 300, receiveMax: 10}
		c := b.open(sub)
		c.subscribe(want{"swr/a", 1})
		c.disconnect()
		pub := b.open(transient(v311, "pub"))
		pub.publishAll(n, 500, numbered("swr/a", 1, 0))
		pub.publish(message{topic: "swr/b", qos: 1, payload: []byte("before")})
		c = b.open(sub).expectPresent(true)
		c.takeRow(1, n/2, nil)
		c.subscribe(want{"swr/b", 1})
		pub.publish(message{topic: "swr/b", qos: 1, payload: []byte("after")})
		c.subscribe(want{"swr/a", 1}) // again, as most clients do
		pub.publish(message{topic: "swr/a", qos: 1, payload: []byte("end")})
		var rest []string
		for seq := n/2 + 1; ; {
			p := c.settle(c.take())
			if k, ok := parseKey(p.payload); ok {
				if k.seq != seq || p.dup {
					t.Fatalf("got %v, want number %d", p, seq)
				}
				seq++
				continue
			}
			rest = append(rest, string(p.payload))
			if len(rest) == 2 {
				if seq != n+1 {
					t.Errorf("the end came before number %d", seq)
				}
				break
			}
		}
		if got := strings.Join(rest, " "); got != "after end" {
			t.Errorf("got %q, want %q", got, "after end")
		}
		c.ping()
		if len(c.inbox) > 0 {
			t.Errorf("got %v after the end", c.inbox)
		}
	})
}

// UNSUBSCRIBE works in the middle of a replay: what was begun is completed, which
// is at most a window, and no other delivery begins [MQTT-3.10.4-2, 3.10.4-3].
func TestUnsubscribeWhileReplaying(t *testing.T) {
	forEachStore(t, func(t *testing.T, s backend) {
		const window = 10
		b := start(t, s)
		sub := session{version: v5, clientID: "sub", expiry: 300, receiveMax: window}
		c := b.open(sub)
		c.subscribe(want{"uwr/a", 1}, want{"uwr/b", 1})
		c.disconnect()
		pub := b.open(transient(v311, "pub"))
		pub.publishAll(1000, 500, numbered("uwr/a", 1, 0))
		pub.publish(message{topic: "uwr/b", qos: 1, payload: []byte("b")})
		c = b.open(sub).expectPresent(true)
		c.takeRow(1, 100, nil)
		c.send(unsubscribePacket(v5, 77, "uwr/a"))
		c.awaitID(kindUnsuback, 77)
		for seq := 101; ; seq++ {
			p := c.settle(c.take())
			if string(p.payload) == "b" {
				break
			}
			if k, _ := parseKey(p.payload); k.seq != seq || p.dup || seq > 100+2*window {
				t.Fatalf("got %v, want at most a window from number %d on, then the end", p, seq)
			}
		}
	})
}

// P2, P3: a replay that is cut in the middle, resumed, and cut again goes on
// where it was; also when the broker dies with it.
func TestReplayCutAgain(t *testing.T) {
	forEachStore(t, func(t *testing.T, s backend) {
		for name, kill := range map[string]bool{"cut": false, "kill -9": true} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				b := start(t, s)
				c := newCrowd(t, b, seeded(t))
				sub := &subscriber{
					session: session{version: v5, clientID: "sub", expiry: 300, receiveMax: 20},
					wants:   []want{{"rca/#", 2}}, hold: 3,
				}
				first := b.open(sub.session)
				c.ledger.subscriberConnected("sub", 20, false)
				c.ledger.asked("sub", sub.wants)
				first.subscribe(sub.wants...)
				c.ledger.granted("sub")
				first.disconnect()
				c.publish(&publisher{
					session: persistent(v311, "pub"), topics: []string{"rca/a", "rca/b", "rca/c"},
					qos: []byte{1, 2}, window: 100, pace: 100 * time.Microsecond,
				})
				c.acknowledged(size(20_000))
				c.halt()
				for range rounds(25) {
					c.replaySome(sub, 20+c.rng.IntN(100))
					if kill {
						b.crash()
					}
				}
				c.subscribe(sub)
				c.finish()
				c.auditNow()
			})
		}
	})
}

// replaySome resumes the session, takes n deliveries, acknowledges some of them,
// and cuts.
func (c *crowd) replaySome(s *subscriber, n int) {
	c.t.Helper()
	link := c.b.open(s.session).expectPresent(true)
	c.ledger.subscriberConnected(s.clientID, s.window(), link.present)
	for range n {
		p := link.wire()
		c.ledger.arrived(s.clientID, p)
		kind, ok := map[byte]byte{kindPublish: kindPuback, kindPubrel: kindPubcomp}[p.kind]
		if !ok {
			c.t.Fatalf("got %v", p)
		}
		if p.kind == kindPublish && p.qos == 2 {
			kind = kindPubrec
		}
		c.ledger.answered(s.clientID, kind, p.id)
		link.ack(kind, p.id)
	}
	// The last ones stay unanswered.
	for range c.rng.IntN(3) {
		c.ledger.arrived(s.clientID, link.wire())
	}
	link.cut()
}
