package broker

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"rewindmq/schema"
	"rewindmq/store"
	"rewindmq/store/storetest"
	"rewindmq/wire"
)

// retain puts messages into the projection.
func (h *house) retain(n, size int) {
	now := time.Now()
	for i := range n {
		h.b.projection.put(&schema.Message{
			ID: h.b.ids.Next(now), Mark: schema.Mark{Lane: 1, N: 1}, Topic: fmt.Sprintf("d/%05d", i), Payload: make([]byte, size), Retain: true, Created: now,
		}, false)
	}
}

// Retained messages at QoS 0 are paced by the connection: a client that reads gets all of
// them, however many.
func TestRetainedAtQoS0IsNoFlood(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ n, size int }{{1000, 2000}, {20_000, 100}, {5000, 2000}} {
		t.Run(fmt.Sprintf("%dx%d", c.n, c.size), func(t *testing.T) {
			t.Parallel()
			h := openHouse(t, storetest.NewMemory(storetest.Options{Lanes: 1}), Options{})
			h.clean(wire.V5, "first").publish("x", "1", 1, 1) // the hub stands behind the place of what is retained
			h.retain(c.n, c.size)
			p := h.clean(wire.V5, "p")
			p.write(wire.AppendSubscribe(nil, p.v, &wire.Subscribe{PacketID: 1, Filters: []wire.Filter{{Topic: "d/#"}}}))
			for got := 0; got < c.n; {
				if m, ok := p.read().(*wire.Publish); ok {
					if want := fmt.Sprintf("d/%05d", got); m.Topic != want || !m.Retain {
						t.Fatalf("%q retain %t, want %q", m.Topic, m.Retain, want)
					}
					got++
				}
			}
		})
	}
}

// [MQTT-3.1.2-24] An alias is not told where the packet gets too large by it.
func TestAliasWithinMaximumPacketSize(t *testing.T) {
	t.Parallel()
	const most = 100
	for _, topic := range []string{"topic", "t"} {
		for short := range 6 {
			h := memoryHouse(t, Options{})
			m := wire.Publish{Topic: topic, QoS: 1, PacketID: 1}
			for wire.PublishSize(wire.V5, &m) < most-short {
				m.Payload = append(m.Payload, 'x')
			}
			p, _ := h.connect(wire.V5, wire.Connect{ClientID: "s", CleanStart: true, MaximumPacketSize: most, TopicAliasMaximum: 10})
			p.subscribe(topic, 1)
			q := h.clean(wire.V5, "q")
			for range 2 {
				q.write(wire.AppendPublish(nil, q.v, &m))
				q.ack(wire.PUBACK, 1)
				d := p.delivery()
				if n := wire.PublishSize(wire.V5, &d); n > most || (short >= 3) != (d.TopicAlias > 0) {
					t.Errorf("%d bytes with alias %d, %d without: the client takes %d", n, d.TopicAlias, most-short, most)
				}
			}
		}
	}
}

// gated holds appends back while gate is not nil.
type gated struct {
	*storetest.Memory
	mu   sync.Mutex
	gate chan struct{}
	met  chan struct{}
}

func (g *gated) Append(ctx context.Context, p *store.Publisher, m []*schema.Message, done func([]store.Appended)) {
	g.mu.Lock()
	gate := g.gate
	g.mu.Unlock()
	if gate == nil {
		g.Memory.Append(ctx, p, m, done)
		return
	}
	go func() { // ends with the test, which opens the gate
		g.met <- struct{}{}
		<-gate
		g.Memory.Append(ctx, p, m, done)
	}()
}

// [MQTT-3.2.0-1] CONNACK is the first packet, also when $SYS is published while the will
// of the former connection is being appended.
func TestSysAfterConnack(t *testing.T) {
	t.Parallel()
	s := &gated{Memory: storetest.NewMemory(storetest.Options{Lanes: 1}), met: make(chan struct{}, 10)}
	h := openHouse(t, s, Options{})
	c := wire.Connect{ClientID: "a", SessionExpiry: 1000, HasSessionExpiry: true, Will: &wire.Will{Topic: "w", Payload: []byte("x"), QoS: 1}}
	p, _ := h.connect(wire.V5, c)
	p.subscribe("$SYS/#", 0)
	gate := make(chan struct{})
	s.mu.Lock()
	s.gate = gate
	s.mu.Unlock()
	q := h.dial(wire.V5)
	c.Version, c.RequestProblemInfo = wire.V5, true
	p.cut()
	q.write(wire.AppendConnect(nil, &c))
	<-s.met // the will
	h.until("the claim", func() bool {
		cl := h.b.roster.get("a")
		if cl == nil {
			return false
		}
		cl.mu.Lock()
		defer cl.mu.Unlock()
		return cl.s != nil && !cl.s.Closing()
	})
	h.b.publishSys(99, time.Second)
	s.mu.Lock()
	s.gate = nil
	s.mu.Unlock()
	close(gate)
	first := q.read()
	if _, ok := first.(*wire.Connack); !ok {
		t.Errorf("[MQTT-3.2.0-1] the first packet is %T", first)
	}
}
