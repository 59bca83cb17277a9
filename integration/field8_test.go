package integration

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// F-23: keep alive is not a bound on how long a large packet may take, and a limit of
// the operator's holds only for clients that can know it [MQTT-3.1.2-22, 3.2.2-21,
// 3.2.2-22; 3.1.1: 3.1.2-24].
func TestF23_KeepAlive(t *testing.T) {
	forEachStore(t, func(t *testing.T, s backend) {
		b := start(t, s)
		limited := start(t, s, launch{args: []string{"--set", "limits.keep_alive_max=2s"}})
		large := message{topic: "f23/t", qos: 1, payload: make([]byte, 200_000)}.packet(v311, 1, false)
		// slowly sends 25 KB a second.
		slowly := func(c *client, data []byte) {
			tick := time.NewTicker(100 * time.Millisecond)
			defer tick.Stop()
			for ; len(data) > 0; <-tick.C {
				n := min(len(data), 2500)
				c.send(data[:n])
				data = data[n:]
			}
		}
		t.Run("a and b", func(t *testing.T) {
			t.Parallel()
			c := b.open(session{version: v311, clientID: "a", clean: true, keepAlive: 2})
			slowly(c, large)
			c.awaitID(kindPuback, 1)
			c.disconnect()
			c = b.open(session{version: v311, clientID: "b", clean: true, keepAlive: 2})
			slowly(c, large[:100_000])
			begin := time.Now()
			c.closed()
			if took := time.Since(begin); took < 2500*time.Millisecond || took > 10*time.Second {
				t.Errorf("cut after %v, want about 3 s", took)
			}
			b.stop()
			n := 0
			for _, m := range b.place.audit(t).messages {
				if m.topic == "f23/t" {
					n++
				}
			}
			if n != 1 {
				t.Errorf("%d messages are stored, want the first one only", n)
			}
		})
		t.Run("c, 3.1.1", func(t *testing.T) {
			t.Parallel()
			c := limited.open(session{version: v311, clientID: "c3", clean: true, keepAlive: 10})
			for range 2 {
				elapse(t, 8*time.Second)
				c.ping()
			}
		})
		t.Run("c, 5", func(t *testing.T) {
			t.Parallel()
			c := limited.open(session{version: v5, clientID: "c5", clean: true, keepAlive: 10})
			if p, ok := c.connack.prop(0x13); !ok || p.num != 2 {
				t.Errorf("Server Keep Alive %v, want 2", p.num)
			}
			begin := time.Now()
			if rest := c.closed(); len(rest) != 1 || rest[0].kind != kindDisconnect || rest[0].code != 0x8d {
				t.Errorf("got %v, want DISCONNECT 0x8D", rest)
			}
			if took := time.Since(begin); took < 2500*time.Millisecond || took > 10*time.Second {
				t.Errorf("cut after %v, want about 3 s", took)
			}
		})
		t.Run("d", func(t *testing.T) {
			t.Parallel()
			other := start(t, s)
			never := other.open(session{version: v311, clientID: "d0", clean: true})
			rarely := other.open(session{version: v5, clientID: "d65535", clean: true, keepAlive: 65535})
			elapse(t, 10*time.Second)
			never.ping()
			rarely.ping()
		})
	})
}

// rival is one of two devices with the same client id.
type rival struct {
	s        session
	opened   int // connections
	takeover int // DISCONNECT 0x8E
	faults   []string
}

// fight connects again and again until stop, and acknowledges all it gets. heard,
// which is shared, under mu, tells what came, and whether as a first attempt.
func (r *rival) fight(ctx context.Context, b *broker, mu *sync.Mutex, heard map[string]bool, stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		default:
		}
		l, ack, err := connect(ctx, b.addr, r.s)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil: // taken over while it was connecting
			continue
		case ack.code != 0:
			l.cut()
			continue
		}
		r.opened++
		r.serve(l, mu, heard, stop)
		l.cut()
	}
}

func (r *rival) serve(l *link, mu *sync.Mutex, heard map[string]bool, stop <-chan struct{}) {
	for {
		_ = l.conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		if _, err := l.r.Peek(1); err != nil {
			var timeout net.Error
			if !errors.As(err, &timeout) || !timeout.Timeout() {
				return
			}
			select {
			case <-stop:
				return
			default:
				continue
			}
		}
		p, err := l.read(patience)
		switch {
		case err != nil:
			return
		case p.kind == kindDisconnect && p.code == 0x8e:
			r.takeover++
		case p.kind == kindPublish:
			mu.Lock()
			// The one may read its first attempt after the other has read the
			// repeat: what must not be is two first attempts.
			if heard[string(p.payload)] && !p.dup {
				r.faults = append(r.faults, fmt.Sprintf("%v came before", p))
			}
			heard[string(p.payload)] = heard[string(p.payload)] || !p.dup
			mu.Unlock()
			if l.write(ackPacket(kindPuback, p.id)) != nil {
				return
			}
		default:
			r.faults = append(r.faults, fmt.Sprintf("got %v", p))
		}
	}
}

// F-24: two devices with one client id throw each other out; together they get
// everything, and when one gives up all is quiet again.
func TestF24_TwoDevicesOneClientID(t *testing.T) {
	forEachStore(t, func(t *testing.T, s backend) {
		b := start(t, s)
		watch := b.open(transient(v5, "watch"))
		watch.subscribe(want{"f24w", 1})
		dev := session{version: v5, clientID: "f24", expiry: 300, will: &will{topic: "f24w", payload: "gone", qos: 1}}
		first := b.open(dev)
		first.subscribe(want{"f24/#", 1})
		first.disconnect()

		pub := b.open(transient(v311, "pub"))
		before := sum(b.metrics(), "connects_total", `result="success"`)

		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		var mu sync.Mutex
		heard := map[string]bool{}
		rivals := []*rival{{s: dev}, {s: dev}}
		stops := []chan struct{}{make(chan struct{}), make(chan struct{})}
		var fights sync.WaitGroup
		for i, r := range rivals {
			fights.Go(func() { r.fight(ctx, b, &mu, heard, stops[i]) })
		}
		n := size(1000)
		tick := time.NewTicker(5 * time.Millisecond)
		for i := range n {
			pub.publish(message{topic: "f24/t", qos: 1, payload: fmt.Append(nil, i)})
			<-tick.C
		}
		if soak {
			elapse(t, 15*time.Second)
		} else {
			elapse(t, 2*time.Second)
		}
		tick.Stop()
		close(stops[0])
		b.eventually("the rest comes to the one that stays", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return len(heard) == n
		})
		b.eventually("one connection of the three is left to it", func() bool { return sum(b.metrics(), "connections") == 3 })
		close(stops[1])
		fights.Wait()
		opened := rivals[0].opened + rivals[1].opened
		t.Logf("%d connections, %d times DISCONNECT 0x8E", opened, rivals[0].takeover+rivals[1].takeover)
		for i, r := range rivals {
			for _, f := range r.faults {
				t.Errorf("rival %d: %s", i, f)
			}
		}
		if opened < 4 || rivals[0].takeover+rivals[1].takeover < opened/2 {
			t.Errorf("%d connections, %d takeovers were told", opened, rivals[0].takeover+rivals[1].takeover)
		}
		// One will for each connection that was accepted, none of which ended by
		// DISCONNECT.
		b.eventually("the last one has ended", func() bool { return sum(b.metrics(), "connections") == 2 })
		wills := 0
		for len(watch.inbox) > 0 || watch.r.Buffered() > 0 || watch.firstByteWithin(2*time.Second) == nil {
			watch.settle(watch.takePayload("gone"))
			wills++
		}
		if accepted := int(sum(b.metrics(), "connects_total", `result="success"`) - before); wills != accepted {
			t.Errorf("%d wills for %d connections", wills, accepted)
		}
		// The session has an empty backlog.
		c := b.open(dev).expectPresent(true)
		c.ping()
		for _, p := range c.inbox {
			if !p.dup {
				t.Errorf("%v is left over", p)
			}
		}
		c.disconnect()
		b.eventually("nothing in flight", func() bool { return sum(b.metrics(), "inflight_messages") == 0 })
		if lines := strings.Count(b.proc.output(), "\n"); lines > 20*opened+200 {
			t.Errorf("%d lines of log for %d connections", lines, opened)
		}
	})
}

// F-30: connections end in every way there is; then all gauges are 0 and the counts
// add up.
func TestF30_Gauges(t *testing.T) {
	forEachStore(t, func(t *testing.T, s backend) {
		b := start(t, s)
		pub := b.open(transient(v311, "pub"))
		var waiting []*client // end by themselves
		ways := []func(id string){
			func(id string) { b.open(transient(v5, id)).disconnect() },
			func(id string) { b.open(persistent(v311, id)).cut() },
			func(id string) { // half-closed
				c := b.open(transient(v311, id))
				if err := c.conn.(*net.TCPConn).CloseWrite(); err != nil {
					t.Error(err)
				}
				waiting = append(waiting, c)
			},
			func(id string) {
				waiting = append(waiting, b.open(session{version: v5, clientID: id, clean: true, keepAlive: 1}))
			},
			func(id string) { // takeover
				waiting = append(waiting, b.open(persistent(v5, id)))
				b.open(persistent(v5, id)).disconnect()
			},
			func(id string) { // refused CONNECT
				c := b.dial(v311, id)
				c.sendHex("100c00044d5154540400003c0000")
				c.closed()
			},
			func(id string) { b.dial(v311, id).cut() },
			func(id string) { // a subscriber is reset while its socket is full
				c := b.dial(v5, id)
				_ = c.conn.(*net.TCPConn).SetReadBuffer(4096)
				c.send(session{version: v5, clientID: id, expiry: 1}.packet())
				c.accepted().subscribe(want{"f30/big", 1})
				pub.publishAll(20, 20, func(int) message {
					return message{topic: "f30/big", qos: 1, payload: make([]byte, 100_000)}
				})
				c.cut()
			},
			func(id string) { // its session expires while it is connected again
				b.open(session{version: v5, clientID: id, expiry: 1}).cut()
				b.open(session{version: v5, clientID: id, expiry: 1}).disconnect()
			},
			func(id string) { // a packet that is not MQTT
				c := b.open(transient(v5, id))
				c.sendHex("f0021800")
				c.closed()
			},
		}
		negative := func() {
			for name, n := range b.metrics() {
				if n < 0 && strings.HasPrefix(name, "rewindmq_") {
					t.Errorf("%s is %v", name, n)
				}
			}
		}
		for i := range rounds(300) {
			ways[i%len(ways)](fmt.Sprint("f30-", i))
			if i%7 == 0 {
				negative()
			}
		}
		for _, c := range waiting {
			c.closed()
		}
		pub.disconnect()
		quiet := func() {
			b.eventually("no connections, and all that was opened has ended", func() bool {
				m := b.metrics()
				return sum(m, "connections") == 0 && sum(m, "connects_total", `result="success"`) == sum(m, "disconnects_total")
			})
			for _, gauge := range []string{"inflight_messages", "store_append_queue_messages", "replays_active"} {
				b.eventually(gauge+" is 0", func() bool { return sum(b.metrics(), gauge) == 0 })
			}
			negative()
		}
		quiet()
		connected := `state="connected"`
		b.eventually("no session is connected", func() bool { return sum(b.metrics(), "sessions", connected) == 0 })
		b.open(persistent(v5, "last"))
		b.crash()
		quiet()
		b.eventually("no session is connected after the restart", func() bool { return sum(b.metrics(), "sessions", connected) == 0 })
	})
}

// TestManyWithoutConnect: thousands of connections that say nothing, or very little,
// cost bounded memory, and nobody else waits for them.
func TestManyWithoutConnect(t *testing.T) {
	forEachStore(t, func(t *testing.T, s backend) {
		b := start(t, s)
		pub, sub := b.open(transient(v311, "pub")), b.open(transient(v311, "sub"))
		sub.subscribe(want{"t", 1})
		before := b.rss()
		n := 5000
		if raceEnabled {
			n = 1000
		}
		idle := make([]net.Conn, 0, n)
		defer func() {
			for _, c := range idle {
				_ = c.Close()
			}
		}()
		hello := transient(v311, "half").packet()
		begin := time.Now()
		worst := time.Duration(0)
		for i := range n {
			c, err := net.Dial("tcp", b.addr)
			if err != nil {
				t.Skipf("connection %d: %v", i, err)
			}
			idle = append(idle, c)
			if i%2 == 1 {
				_, _ = c.Write(hello[:len(hello)-1])
			}
			if i%250 == 0 {
				at := time.Now()
				pub.publish(message{topic: "t", qos: 1, payload: []byte("x")})
				sub.settle(sub.takePayload("x"))
				worst = max(worst, time.Since(at))
			}
		}
		grown := b.rss() - before
		t.Logf("%d connections in %v: resident memory grew by %d KiB, the slowest of the others' messages took %v",
			n, time.Since(begin), grown>>10, worst)
		if grown > int64(n)*24<<10 && !raceEnabled {
			t.Errorf("resident memory grew by %d KiB", grown>>10)
		}
		if worst > 5*time.Second {
			t.Errorf("a message took %v beside them", worst)
		}
		// All of them are closed in time.
		for _, c := range idle {
			_ = c.SetReadDeadline(time.Now().Add(patience))
			if m, err := io.Copy(io.Discard, c); err != nil || m > 0 {
				var timeout net.Error
				if errors.As(err, &timeout) && timeout.Timeout() {
					t.Fatal("a connection without CONNECT is still open")
				}
			}
		}
		pub.publish(message{topic: "t", qos: 1, payload: []byte("end")})
		sub.settle(sub.takePayload("end"))
	})
}
