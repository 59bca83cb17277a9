package integration

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"
)

// crowd runs publishers and subscribers against one broker, with one ledger.
type crowd struct {
	t      *testing.T
	b      *broker
	addrs  []string // of further nodes; a client is at one of them all the time
	ledger *ledger
	rng    *rand.Rand

	ctx      context.Context
	cancel   context.CancelFunc
	stop     chan struct{} // publishers: settle and go
	settle   chan struct{} // subscribers: stay connected
	done     chan struct{} // subscribers: disconnect
	stopping sync.Once
	pubs     sync.WaitGroup
	subs     sync.WaitGroup
	mu       sync.Mutex
	errs     []error
}

func newCrowd(t *testing.T, b *broker, rng *rand.Rand) *crowd {
	t.Helper()
	c := &crowd{
		t: t, b: b, ledger: newLedger(), rng: rng,
		stop: make(chan struct{}), settle: make(chan struct{}), done: make(chan struct{}),
	}
	c.ctx, c.cancel = context.WithCancel(t.Context())
	t.Cleanup(func() {
		c.cancel()
		c.pubs.Wait()
		c.subs.Wait()
	})
	return c
}

// addr gives the i-th client its broker.
func (c *crowd) addr(i int) string {
	if len(c.addrs) == 0 {
		return c.b.addr
	}
	return c.addrs[i%len(c.addrs)]
}

// chance gives a client a source of its own.
func (c *crowd) chance() *rand.Rand { return rand.New(rand.NewPCG(c.rng.Uint64(), c.rng.Uint64())) }

func (c *crowd) failed(err error) {
	if err != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.errs = append(c.errs, err)
	}
}

// subscribe starts subscribers and returns when each has its first SUBACK.
func (c *crowd) subscribe(subs ...*subscriber) {
	c.t.Helper()
	waits := make([]chan struct{}, len(subs))
	for i, s := range subs {
		s.ledger, s.addr, s.rng, waits[i] = c.ledger, c.addr(i), c.chance(), make(chan struct{})
		c.subs.Go(func() { c.failed(s.run(c.ctx, waits[i], c.settle, c.done)) })
	}
	over := time.NewTimer(patience)
	defer over.Stop()
	for i, wait := range waits {
		select {
		case <-wait:
		case <-over.C:
			c.t.Fatalf("subscriber %s has no SUBACK", subs[i].clientID)
		}
	}
}

func (c *crowd) publish(pubs ...*publisher) {
	for i, p := range pubs {
		p.ledger, p.addr, p.rng = c.ledger, c.addr(i), c.chance()
		c.pubs.Go(func() { c.failed(p.run(c.ctx, c.stop)) })
	}
}

// acknowledged waits until so many more publishes have been acknowledged.
func (c *crowd) acknowledged(more int) {
	c.t.Helper()
	n := c.ledger.acknowledgedCount() + more
	c.b.eventually(fmt.Sprintf("%d more acknowledgements", more), func() bool { return c.ledger.acknowledgedCount() >= n })
}

// halt lets the publishers settle what is in flight and go.
func (c *crowd) halt() {
	c.t.Helper()
	c.stopping.Do(func() { close(c.stop) })
	c.await("publishers", &c.pubs)
}

// await waits for clients to end. After a minute it ends them, and their errors
// say what they were waiting for.
func (c *crowd) await(who string, group *sync.WaitGroup) {
	c.t.Helper()
	over := time.AfterFunc(time.Minute, func() {
		c.failed(fmt.Errorf("%s did not come to their end", who))
		c.cancel()
	})
	defer over.Stop()
	group.Wait()
}

// finish settles all that is in flight, waits until every subscriber has seen
// the end of every stream, lets everybody go, and judges what was seen. Each
// session then returns once more: nothing of what it acknowledged may come.
func (c *crowd) finish() {
	c.t.Helper()
	close(c.settle)
	c.halt()
	last := ""
	err := poll(time.Minute, c.b.proc.ended, func() bool {
		behind, ok := c.ledger.caughtUp()
		last = behind
		return ok
	})
	if err != nil {
		c.t.Errorf("subscribers did not catch up: %s: %v", last, err)
	}
	close(c.done)
	c.await("subscribers", &c.subs)
	for _, err := range c.errs {
		c.t.Error(err)
	}
	c.ledger.verify(c.t)
	c.t.Logf("%d publishes acknowledged", c.ledger.acknowledgedCount())
}

// farewell brings each session back: the first that it gets is what is published
// then, since all before was acknowledged and the connection ended in order.
func (c *crowd) farewell(subs []*subscriber, topic string) {
	c.t.Helper()
	p := c.b.open(transient(v5, "farewell"))
	for _, s := range subs {
		sub := c.b.open(s.session).expectPresent(true)
		sub.complete()
		text := "farewell " + s.clientID
		sub.subscribe(want{topic, 2})
		p.publish(message{topic: topic, payload: []byte(text), qos: 1})
		sub.settle(sub.takePayload(text))
		sub.send(unsubscribePacket(s.version, 9, topic))
		sub.awaitID(kindUnsuback, 9)
		sub.disconnect()
	}
	p.disconnect()
}

// complete ends the QoS 2 handshakes in which the subscriber had sent PUBREC and left
// before PUBREL came: with a window of 1 nothing else would come before.
func (c *client) complete() {
	c.t.Helper()
	for released := true; released; {
		c.ping()
		released = false
		rest := c.inbox[:0]
		for _, p := range c.inbox {
			if p.kind == kindPubrel {
				c.ack(kindPubcomp, p.id)
				released = true
				continue
			}
			rest = append(rest, p)
		}
		c.inbox = rest
	}
}

// auditNow stops the broker and holds its store against the ledger.
func (c *crowd) auditNow() {
	c.t.Helper()
	c.b.stop()
	a := c.b.place.audit(c.t)
	c.ledger.verifyAudit(c.t, a)
	c.t.Logf("the store holds %d messages and %d delivery records", len(a.messages), len(a.records))
}

// standardCrowd is 20 publishers at QoS 1 and 2 and 10 persistent subscribers
// that come and go, of both protocol versions, with overlapping filters and all
// kinds of windows.
func standardCrowd() (pubs []*publisher, subs []*subscriber) {
	for i := range 20 {
		pubs = append(pubs, &publisher{
			session: session{version: []byte{v311, v5}[i%2], clientID: fmt.Sprintf("p%02d", i), expiry: 600, keepAlive: 60},
			topics:  []string{fmt.Sprintf("k9/%d/p%02d", i%5, i), "k9/all"},
			qos:     []byte{1, 2}, window: 1 + i, pace: 15 * time.Millisecond, size: 64 << (i % 6), cutIn: 150,
		})
	}
	for i := range 10 {
		s := &subscriber{
			session:     session{version: []byte{v5, v311}[i%2], clientID: fmt.Sprintf("s%02d", i), expiry: 600, keepAlive: 60},
			wants:       []want{{fmt.Sprintf("k9/%d/#", i%5), 2}},
			resubscribe: i%3 == 0, hold: 1 + i%4*3,
			stay: 600 * time.Millisecond, away: 400 * time.Millisecond,
		}
		if s.version == v5 {
			s.receiveMax = []uint16{1, 4, 20, 100, 0}[i/2]
		}
		switch i {
		case 2, 3:
			s.wants = append(s.wants, want{"k9/+/+", 1}) // overlaps
		case 4:
			s.wants = []want{{"k9/all", 1}}
		case 5:
			s.wants = append(s.wants, want{"k9/all", 2})
		}
		subs = append(subs, s)
	}
	return pubs, subs
}

// P1, P2, P3, P4, P6: what was acknowledged is delivered, once and in order,
// whenever the broker is killed.
func TestKill9Rounds(t *testing.T) {
	forEachStore(t, func(t *testing.T, s backend) {
		b := start(t, s)
		c := newCrowd(t, b, seeded(t))
		pubs, subs := standardCrowd()
		c.subscribe(subs...)
		c.publish(pubs...)
		for range rounds(50) {
			c.acknowledged(50) // the load flows again
			moment := time.NewTimer(time.Duration(c.rng.IntN(400_000)) * time.Microsecond)
			<-moment.C
			b.crash()
		}
		c.finish()
		c.farewell(subs, "k9-farewell")
		c.auditNow()
	})
}
