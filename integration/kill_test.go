package integration

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
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
	crews    []*crowd
	// dismissing: see dismiss.
	dismissing sync.Once
	pubs       sync.WaitGroup
	subs       sync.WaitGroup
	killed     atomic.Int32
	mu         sync.Mutex
	errs       []error
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
	c.b.reaches(fmt.Sprintf("%d more acknowledgements", more), n, c.ledger.acknowledgedCount)
}

// halt lets the publishers settle what is in flight and go.
func (c *crowd) halt() {
	c.t.Helper()
	c.stopping.Do(func() { close(c.stop) })
	c.await("publishers", &c.pubs)
}

// await waits for clients to end. When nothing goes on any more it ends them, and their
// errors say what they were waiting for.
func (c *crowd) await(who string, group *sync.WaitGroup) {
	c.t.Helper()
	gone := make(chan struct{})
	go func() {
		group.Wait()
		close(gone)
	}()
	err := pollWhile(c.ledger.progress, nil, func() bool {
		select {
		case <-gone:
			return true
		default:
			return false
		}
	})
	if err != nil {
		c.failed(fmt.Errorf("%s did not come to their end", who))
		c.cancel()
		<-gone
	}
}

// finish settles all that is in flight, waits until every subscriber has seen
// the end of every stream, lets everybody go, and judges what was seen. Each
// session then returns once more: nothing of what it acknowledged may come.
func (c *crowd) finish() {
	c.t.Helper()
	close(c.settle)
	c.halt()
	c.publishLast()
	last := ""
	err := pollWhile(c.ledger.progress, c.b.proc.ended, func() bool {
		behind, ok := c.ledger.caughtUp()
		last = behind
		return ok
	})
	if err != nil {
		c.t.Errorf("subscribers did not catch up: %s: %v", last, err)
	}
	for _, crew := range c.crews {
		crew.dismiss()
	}
	close(c.done)
	c.await("subscribers", &c.subs)
	for _, err := range c.errs {
		c.t.Error(err)
	}
	c.ledger.verify(c.t)
	c.t.Logf("%d publishes acknowledged", c.ledger.acknowledgedCount())
}

// publishLast sends one message more to each topic, once: who has that has all before it,
// also the copies of a message that its publisher had to send again.
func (c *crowd) publishLast() {
	c.t.Helper()
	topics := c.ledger.wantedTopics()
	keys := make([]key, len(topics))
	p := c.b.open(transient(v311, "last"))
	c.ledger.publisherConnected("last")
	for i, topic := range topics {
		keys[i] = key{stream{"last", topic, 2}, 1}
		c.ledger.sent(keys[i])
	}
	p.publishAll(len(keys), 50, func(i int) message { return message{topic: topics[i], qos: 2, payload: keys[i].payload(0)} })
	for _, k := range keys {
		c.ledger.acknowledged(k)
	}
	p.disconnect()
}

// farewell brings each session back: the first that it gets is what is published
// then, since all before was acknowledged and the connection ended in order.
func (c *crowd) farewell(subs []*subscriber, topic string) {
	c.t.Helper()
	p := c.b.open(transient(v5, "farewell"))
	for _, s := range subs {
		sub := c.b.open(s.session).expectPresent(true)
		sub.complete(func(p packet) bool { return p.dup && !c.ledger.settledLast(s.clientID, p) })
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

// complete ends what the subscriber had left open: QoS 2 handshakes in which it had sent
// PUBREC and left before PUBREL came, and deliveries that it went without (open tells
// which). With a window of 1 nothing else would come before.
func (c *client) complete(open func(packet) bool) {
	c.t.Helper()
	for more := true; more; {
		c.ping()
		more = false
		var left []packet
		rest := c.inbox[:0]
		for _, p := range c.inbox {
			switch {
			case p.kind == kindPubrel:
				c.ack(kindPubcomp, p.id)
				more = true
			case p.kind == kindPublish && open(p):
				left = append(left, p)
			default:
				rest = append(rest, p)
			}
		}
		c.inbox = rest
		for _, p := range left {
			c.settle(p)
			more = true
		}
	}
}

// settledLast tells whether a subscriber has answered a PUBLISH on its last link, which
// ended in order. If not, it may have left while a repeat was on its way.
func (l *ledger) settledLast(id string, p packet) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	k, _ := parseKey(p.payload)
	came := false
	for _, e := range l.sub(id).link().events {
		switch {
		case !e.out && e.kind == kindPublish && e.key == k:
			came = true
		case e.out && came && e.id == p.id:
			return true
		}
	}
	return false
}

// auditNow stops the broker and holds its store against the ledger.
func (c *crowd) auditNow() audit {
	c.t.Helper()
	c.b.stop()
	a := c.b.place.audit(c.t)
	c.ledger.verifyAudit(c.t, a)
	c.t.Logf("the store holds %d messages and %d delivery records", len(a.messages), len(a.records))
	return a
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

// crash kills the broker and starts it again.
func (c *crowd) crash() {
	c.t.Helper()
	c.killed.Add(1)
	c.ledger.killing()
	c.b.crash()
}

// live starts devices; they end when the publishers do.
func (c *crowd) live(devices ...*mortal) {
	for i, d := range devices {
		d.ledger, d.addr, d.rng = c.ledger, c.addr(i), c.chance()
		d.kills = func() int { return int(c.killed.Load()) }
		c.pubs.Go(func() { c.failed(d.run(c.ctx, c.stop)) })
	}
}

// crew gives a crowd with the same ledger, whose subscribers come and go by themselves.
func (c *crowd) crew() *crowd {
	c.t.Helper()
	other := newCrowd(c.t, c.b, c.rng)
	other.addrs, other.ledger = c.addrs, c.ledger
	c.crews = append(c.crews, other)
	return other
}

// dismiss lets the subscribers of a crew go, in order.
func (c *crowd) dismiss() {
	c.t.Helper()
	c.dismissing.Do(func() {
		close(c.settle)
		close(c.done)
		c.await("members", &c.subs)
		for _, err := range c.errs {
			c.t.Error(err)
		}
	})
}

// look subscribes anew and holds what is retained against the ledger.
func (c *crowd) look(filter string) *look {
	c.t.Helper()
	fresh := c.b.open(transient([]byte{v311, v5}[c.rng.IntN(2)], "look"))
	k := c.ledger.beginLook(filter)
	fresh.send(subscribePacket(fresh.version, 1, nil, want{filter, byte(1 + c.rng.IntN(2))}))
	over := time.Now().Add(patience)
	for whole := k.whole(); !whole && time.Now().Before(over); {
		switch p := fresh.wire(); p.kind {
		case kindPublish:
			whole = k.arrived(c.ledger, p)
			fresh.ack(map[byte]byte{1: kindPuback, 2: kindPubrec}[p.qos], p.id)
		case kindPubrel:
			fresh.ack(kindPubcomp, p.id)
		}
	}
	fresh.cut()
	report(c.t, c.ledger.checkLook(k))
	return k
}

// retaining are publishers whose messages are retained, each with topics of its own.
func retaining() []*publisher {
	var all []*publisher
	for i := range 4 {
		p := &publisher{
			session: session{version: []byte{v311, v5}[i%2], clientID: fmt.Sprintf("r%02d", i), expiry: 600, keepAlive: 60},
			qos:     []byte{byte(1 + i/2)}, window: 8, pace: 15 * time.Millisecond, cutIn: 100, retain: true,
		}
		for k := range 10 {
			p.topics = append(p.topics, fmt.Sprintf("k9r/%d/%d", i, k))
		}
		all = append(all, p)
	}
	return all
}

// retainLast writes lastTopic, once.
func (c *crowd) retainLast() {
	c.t.Helper()
	k := key{stream{"once", lastTopic, 1}, 1}
	c.ledger.publisherConnected(k.pub)
	p := c.b.open(transient(v5, k.pub))
	c.ledger.sent(k)
	p.publish(message{topic: k.topic, payload: k.payload(0), qos: k.qos, retain: true})
	c.ledger.acknowledged(k)
	p.disconnect()
}

// hasGroups tells whether the broker's store keeps groups of shared subscriptions.
func (b *broker) hasGroups() bool {
	b.t.Helper()
	c := b.open(transient(v5, "asks"))
	defer c.disconnect()
	p, ok := c.connack.prop(propSharedAvailable)
	return !ok || p.num == 1
}

// members are those of two groups, one at QoS 2 and one at QoS 1, that come and go; only
// these, which stay.
func members(only ...string) []*subscriber {
	var all []*subscriber
	for i := range 7 {
		qos := byte(1 + i%2)
		s := &subscriber{
			session: session{version: []byte{v5, v311}[i/2%2], clientID: fmt.Sprintf("m%02d", i), expiry: 600, keepAlive: 60},
			wants:   []want{{fmt.Sprintf("$share/g%d/k9s/#", qos), qos}},
			hold:    1 + i, stay: 500 * time.Millisecond, away: 300 * time.Millisecond,
		}
		if s.version == v5 {
			s.receiveMax = []uint16{20, 4, 0, 0, 8, 1, 0}[i]
		}
		if len(only) > 0 {
			if !slices.Contains(only, s.clientID) {
				continue
			}
			s.stay = 0
		}
		all = append(all, s)
	}
	return all
}

// P1, P2, P3, P4, P6: what was acknowledged is delivered, once and in order,
// whenever the broker is killed; so are wills, retained messages and what goes to the
// members of a group.
func TestKill9Rounds(t *testing.T) {
	forEachStore(t, func(t *testing.T, s backend) {
		b := start(t, s)
		c := newCrowd(t, b, seeded(t))
		pubs, subs := standardCrowd()
		for i := range 2 { // watch the devices
			subs = append(subs, &subscriber{
				session: session{version: []byte{v5, v311}[i], clientID: fmt.Sprintf("w%02d", i), expiry: 600, keepAlive: 60},
				wants:   []want{{"k9w/#", byte(2 - i)}}, hold: 1 + i, stay: 600 * time.Millisecond, away: 200 * time.Millisecond,
			})
		}
		pubs = append(pubs, retaining()...)
		groups := b.hasGroups()
		if groups {
			for i := range 4 {
				pubs = append(pubs, &publisher{
					session: session{version: []byte{v311, v5}[i%2], clientID: fmt.Sprintf("g%02d", i), expiry: 600, keepAlive: 60},
					topics:  []string{"k9s/a", fmt.Sprintf("k9s/%d", i)}, qos: []byte{1, 2}, window: 10, pace: 10 * time.Millisecond, cutIn: 150,
				})
			}
		}
		c.retainLast()
		c.subscribe(subs...)
		crew := c.crew()
		if groups {
			crew.subscribe(members()...)
		}
		c.publish(pubs...)
		c.live(mortals()...)
		for range rounds(50) {
			c.acknowledged(50) // the load flows again
			most := 400_000
			if c.rng.IntN(4) == 0 {
				most = 2_000_000 // so that places and retained messages have been saved
			}
			moment := time.NewTimer(time.Duration(c.rng.IntN(most)) * time.Microsecond)
			<-moment.C
			c.crash()
			if c.look("k9r/#"); t.Failed() {
				break
			}
		}
		if groups {
			crew.dismiss() // the backlog stays, over a kill
			c.acknowledged(300)
			c.crash()
			c.acknowledged(100)
			crew = c.crew()
			crew.subscribe(members("m01", "m02")...) // one of each group: all of it, in order
			c.acknowledged(300)
			c.crew().subscribe(members("m00", "m03", "m04", "m05")...)
		}
		c.finish()
		c.farewell(subs, "k9-farewell")
		c.ledger.tally(t)
		last := []*look{c.look("k9r/#"), c.look("k9w/kept/#")}
		a := c.auditNow()
		for _, k := range last {
			report(t, c.ledger.checkLast(k, a))
		}
	})
}
