package integration

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	driver "go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
	"go.mongodb.org/mongo-driver/v2/mongo/readconcern"

	"rewindmq/integration/mongod"
)

// The scenarios of the field reports that need several nodes, or a server that can
// be disturbed.

// device is one of two programs with the same client id.
type device struct {
	s    session
	addr string
	with *rivalry

	accepted  int // connections with CONNACK 0
	refused   int // others
	takenOver int // DISCONNECT 0x8E
	ended     int // connections that ended by themselves, without it
}

// rivalry is what two devices have seen together. Safe for concurrent use.
type rivalry struct {
	mu      sync.Mutex
	heard   map[string]hearing
	settled map[string]int // text: the connection on which its acknowledgement was read for sure
	opened  int            // connections
	faults  []string
}

// hearing is how a message came.
type hearing struct {
	id    uint16
	first bool // also as a first attempt
}

// fault notes what should not be. REQUIRES: mu is held.
func (h *rivalry) fault(format string, args ...any) {
	if len(h.faults) < 20 {
		h.faults = append(h.faults, fmt.Sprintf(format, args...))
	}
}

// open counts a connection, and numbers it.
func (h *rivalry) open() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.opened++
	return h.opened
}

// hear takes a PUBLISH that came on a connection. The one may read its first attempt
// after the other has read the repeat: what must not be is two first attempts, or
// two ids, or a repeat of what was settled on a connection before.
func (h *rivalry) hear(p packet, link int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	text := string(p.payload)
	old, came := h.heard[text]
	switch at := h.settled[text]; {
	case old.first && !p.dup:
		h.fault("%v came before as a first attempt", p)
	case came && old.id != p.id:
		h.fault("%v came before under the id %d", p, old.id)
	case at > 0 && at < link:
		h.fault("%v was settled on connection %d and comes on %d", p, at, link)
	}
	h.heard[text] = hearing{p.id, old.first || !p.dup}
}

// settle notes acknowledgements that the broker has read.
func (h *rivalry) settle(texts []string, link int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, t := range texts {
		h.settled[t] = link
	}
}

func (h *rivalry) count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.heard)
}

func (h *rivalry) connections() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.opened
}

// fight connects again and again until stop.
func (d *device) fight(ctx context.Context, stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		case <-ctx.Done():
			return
		default:
		}
		l, ack, err := connect(ctx, d.addr, d.s)
		switch {
		case err != nil:
			d.refused++
			continue
		case ack.code != 0:
			d.refused++
			l.cut()
			continue
		}
		d.accepted++
		d.serve(l, d.with.open(), stop)
		l.cut()
	}
}

// serve acknowledges what comes, and asks after each whether that was read.
func (d *device) serve(l *link, no int, stop <-chan struct{}) {
	var acked, asked []string // not yet known to be read; before the PINGREQ on its way
	pinging := false
	for {
		_ = l.conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		if _, err := l.r.Peek(1); err != nil {
			var timeout net.Error
			if !errors.As(err, &timeout) || !timeout.Timeout() {
				d.ended++
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
		if err != nil {
			d.ended++
			return
		}
		switch p.kind {
		case kindDisconnect:
			if p.code != 0x8e {
				d.ended++
				return
			}
			d.takenOver++
			return
		case kindPublish:
			d.with.hear(p, no)
			out := ackPacket(kindPuback, p.id)
			acked = append(acked, string(p.payload))
			if !pinging {
				pinging = true
				acked, asked = nil, acked
				out = append(out, kindPingreq<<4, 0)
			}
			if l.write(out) != nil {
				d.ended++
				return
			}
		case kindPingresp:
			pinging = false
			d.with.settle(asked, no)
		}
	}
}

// weight is what a broker holds of its machine.
type weight struct{ goroutines, handles, memory float64 }

func (b *broker) weigh() weight {
	b.t.Helper()
	m := b.metrics()
	return weight{m["go_goroutines"], m["process_open_fds"], float64(b.rss())}
}

// F-24: two devices with one client id, at two nodes, throw each other out; together
// they get everything, and when one gives up all is quiet again.
func TestF24_TwoNodes(t *testing.T) {
	a, b := pair(t)
	watch := b.open(persistent(v5, "watch"))
	watch.subscribe(want{"f24w", 1})
	dev := session{version: v5, clientID: "f24", expiry: 300, will: &will{topic: "f24w", payload: "gone", qos: 1}}
	first := b.open(dev)
	first.subscribe(want{"f24/#", 1})
	first.disconnect()

	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	h := &rivalry{heard: map[string]hearing{}, settled: map[string]int{}}
	devices := []*device{{s: dev, addr: a.addr, with: h}, {s: dev, addr: b.addr, with: h}}
	stops := []chan struct{}{make(chan struct{}), make(chan struct{})}
	var fights sync.WaitGroup
	for i, d := range devices {
		fights.Go(func() { d.fight(ctx, stops[i]) })
	}
	takeovers := func(n int) {
		t.Helper()
		b.within(2*time.Minute, fmt.Sprintf("%d connections", n), func() bool { return h.connections() >= n })
	}
	takeovers(10) // what grows once has grown
	before := []weight{a.weigh(), b.weigh()}
	lines := a.proc.out.count() + b.proc.out.count()
	began, from := time.Now(), h.connections()

	n := size(1000)
	pub := b.open(transient(v311, "pub"))
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for i := range n {
		pub.publish(message{topic: "f24/t", qos: 1, payload: fmt.Append(nil, i)})
		<-tick.C
	}
	takeovers(from + 20)
	if soak {
		elapse(t, 20*time.Second-time.Since(began))
	}
	if h.count() == 0 {
		t.Error("while they fought nothing came to either")
	}
	t.Logf("%d of %d messages and %d connections in %v", h.count(), n, h.connections()-from, time.Since(began).Round(time.Millisecond))
	close(stops[0])
	b.eventually("the rest comes to the one that stays", func() bool { return h.count() == n })
	for i, o := range []*broker{a, b} {
		var now weight
		b.eventually(o.node+" is back at its weight", func() bool {
			now = o.weigh()
			return now.goroutines <= before[i].goroutines+10 && now.handles <= before[i].handles+10 && now.memory <= before[i].memory+64<<20
		})
		t.Logf("%s: %+v, before: %+v", o.node, now, before[i])
	}
	opened := h.connections()
	if grown := a.proc.out.count() + b.proc.out.count() - lines; grown > 10*(opened-from)+100 {
		t.Errorf("%d lines of log for %d connections", grown, opened-from)
	}
	close(stops[1])
	fights.Wait()
	accepted, ended, unsure := 0, 0, 0
	for i, d := range devices {
		unsure += d.refused // the broker may have accepted it, and the device not have read that
		t.Logf("device %d: accepted %d, refused %d, DISCONNECT 0x8E %d, ended otherwise %d", i, d.accepted, d.refused, d.takenOver, d.ended)
		accepted, ended = accepted+d.accepted, ended+d.ended
		if d.accepted < opened/5 {
			t.Errorf("device %d was let in %d times of %d", i, d.accepted, opened)
		}
	}
	for _, f := range h.faults {
		t.Error(f)
	}
	if ended > 0 {
		t.Errorf("%d connections ended without DISCONNECT 0x8E", ended)
	}
	// One will for each connection that was accepted: none of them ended in order.
	for range accepted {
		watch.settle(watch.takePayload("gone"))
	}
	// The session has an empty backlog.
	dev.will = nil
	c := a.open(dev).expectPresent(true)
	b.publishTexts("f24/end", 1, "end")
	for p := c.settle(c.take()); string(p.payload) != "end"; p = c.settle(c.take()) {
		if !p.dup {
			t.Errorf("%v is left over", p)
		}
	}
	c.disconnect()
	for _, o := range []*broker{a, b} {
		o.eventually("nothing in flight", func() bool {
			for watch.ping(); len(watch.inbox) > 0 && unsure > 0; unsure-- {
				watch.settle(watch.takePayload("gone"))
			}
			return sum(o.metrics(), "inflight_messages", `direction="out"`) == 0
		})
	}
	watch.nothing()
}

// restart starts a killed node again, under another name.
func (b *broker) restart() {
	b.t.Helper()
	b.node = "again-" + freeName()
	b.start()
}

// F-01: stored messages and fresh ones come to a session that returns, at another
// node each time, in the order in which they were published, each once.
func TestF01_StoredThenFresh(t *testing.T) {
	for _, publishers := range []int{1, 2} {
		t.Run(fmt.Sprintf("%d publishers", publishers), func(t *testing.T) {
			a, b := pair(t)
			n := size(10_000)
			dev := persistent(v5, "f01-s")
			dev.receiveMax = 20
			c := a.open(dev)
			c.subscribe(want{"f01/t", 1})
			c.cut()
			var pubs sync.WaitGroup
			t.Cleanup(pubs.Wait)
			for k := range publishers {
				p := a.open(transient(v311, fmt.Sprintf("f01-p%d", k)))
				pubs.Go(func() {
					tick := time.NewTicker(2 * time.Millisecond)
					defer tick.Stop()
					for i := range n {
						m := message{topic: "f01/t", qos: 1, payload: fmt.Appendf(nil, "%d %d", k, i)}
						if p.write(m.packet(v311, uint16(i%60000)+1, false)) != nil {
							return // the end misses it
						}
						<-tick.C
					}
				})
				go func() { // nobody else reads on this connection; it ends with it
					for {
						if _, err := p.read(5 * time.Minute); err != nil {
							return
						}
					}
				}()
			}
			elapse(t, time.Duration(n)*time.Millisecond/2)
			last, open := map[int]int{}, map[uint16]string{}
			got, stays := 0, 0
			for got < n*publishers {
				c = []*broker{b, a}[stays%2].open(dev).expectPresent(true)
				stays++
				until := time.Now().Add(time.Second)
				if !soak {
					until = time.Now().Add(200 * time.Millisecond)
				}
				for time.Now().Before(until) && got < n*publishers {
					if c.firstByteWithin(100*time.Millisecond) != nil {
						continue
					}
					p := c.settle(c.take())
					if p.dup && open[p.id] == string(p.payload) {
						continue // its acknowledgement was lost with the connection
					}
					open[p.id] = string(p.payload)
					var k, i int
					if _, err := fmt.Sscanf(string(p.payload), "%d %d", &k, &i); err != nil || i != last[k] {
						t.Fatalf("got %v, want number %d of publisher %d", p, last[k], k)
					}
					last[k]++
					got++
				}
				c.cut()
			}
			t.Logf("%d messages over %d connections", got, stays)
		})
	}
}

// F-06 as it was seen: a node dies with five messages out; at another node they come
// first, under their ids, and nothing new wears one of these. A PUBACK settles its own
// message only. Also where the node lives.
func TestF06_OldIDs(t *testing.T) {
	for _, how := range []string{"killed", "cut", "taken over"} {
		t.Run(how, func(t *testing.T) {
			a, b := pair(t)
			dev := persistent(v5, "f06-s")
			dev.receiveMax = 20
			c := a.open(dev)
			c.subscribe(want{"f06/t", 1})
			b.publishTexts("f06/t", 1, texts(1, 5)...)
			var first []packet
			for _, text := range texts(1, 5) {
				first = append(first, c.takePayload(text))
			}
			switch how {
			case "killed":
				a.kill9()
			case "cut":
				c.cut()
				a.letGo("f06-s")
			}
			if how != "taken over" {
				b.publishTexts("f06/t", 1, texts(6, 10)...)
			}
			n := b.open(dev).expectPresent(true)
			n.expectResent(first)
			if how == "taken over" {
				if rest := c.closed(); len(rest) != 1 || rest[0].kind != kindDisconnect || rest[0].code != 0x8e {
					t.Errorf("the old connection got %v, want DISCONNECT 0x8E", rest)
				}
				b.publishTexts("f06/t", 1, texts(6, 10)...)
			}
			open := first[1:]
			for _, text := range texts(6, 10) {
				p := n.takePayload(text)
				if p.dup || slices.ContainsFunc(first, func(o packet) bool { return o.id == p.id }) {
					t.Errorf("%v, want DUP=0 and an id of its own", p)
				}
				open = append(open, p)
			}
			n.settle(first[0])
			n.ping() // it was read
			n.cut()
			if how == "killed" {
				a.restart()
			}
			n = a.open(dev).expectPresent(true)
			n.expectResent(open)
			for _, p := range open {
				n.settle(p)
			}
			n.nothing()
		})
	}
}

// F-08: a publish whose first half one node has taken is finished at another: after
// SIGKILL, and by taking over from a node that lives [MQTT-4.3.3-8, -10 to -12].
func TestF08_OtherNode(t *testing.T) {
	const dev8, first, again = "101100044d5154540400003c00056465762d38", "340d00056630382f72000732312e35", "3c0d00056630382f72000732312e35"
	for _, killed := range []bool{true, false} {
		t.Run(map[bool]string{true: "killed", false: "taken over"}[killed], func(t *testing.T) {
			a, b := pair(t)
			sub := b.open(persistent(v5, "sub"))
			sub.subscribe(want{"f08/#", 2})
			c := a.openHex(v311, "dev-8", dev8)
			c.sendHex(first)
			c.awaitID(kindPubrec, 7)
			if killed {
				a.kill9()
			}
			n := b.openHex(v311, "dev-8", dev8).expectPresent(true)
			for range 2 {
				n.sendHex(again)
				n.awaitID(kindPubrec, 7)
			}
			if killed {
				a.restart()
			} else if rest := c.closed(); len(rest) > 0 {
				t.Errorf("the old connection got %v", rest)
			}
			// PUBREL goes to one node, and its repeat to the other.
			n.sendHex("62020007")
			n.awaitID(kindPubcomp, 7)
			n = a.openHex(v311, "dev-8", dev8).expectPresent(true)
			n.sendHex("62020007")
			n.awaitID(kindPubcomp, 7)
			n.send(message{topic: "f08/r", qos: 2, payload: []byte("22.0")}.packet(v311, 7, false))
			n.awaitID(kindPubrec, 7)
			n.sendHex("62020007")
			n.awaitID(kindPubcomp, 7)
			for _, text := range []string{"21.5", "22.0"} {
				sub.settle(sub.takePayload(text))
			}
			sub.nothing()
			b.stop()
			a.expectLog("f08/r", "21.5", "22.0")
		})
	}
}

// P3, P6: all nodes are killed at once, with deliveries and publishes under way, and
// come back under other names: cursors are recovered from the records, nothing is
// lost, and QoS 2 is once.
func TestAllNodesKilled(t *testing.T) {
	a, b := pair(t)
	c := newCrowd(t, a, seeded(t))
	c.addrs = []string{a.addr, b.addr}
	pubs, subs := standardCrowd()
	c.subscribe(subs...)
	c.publish(pubs...)
	for range rounds(20) {
		c.acknowledged(50)
		moment := time.NewTimer(time.Duration(c.rng.IntN(400_000)) * time.Microsecond)
		<-moment.C
		a.kill9()
		b.kill9()
		a.restart()
		b.restart()
	}
	c.finish()
	c.auditShared(a, b)
}

// S-39: a session is away for longer than the oplog reaches back and for longer than
// records are kept. It gets what it missed, each once, what it had in flight under its
// ids, and nothing of what it had settled.
func TestS39_RecordsGone(t *testing.T) {
	t.Parallel()
	set := smallOplog(t)
	a := startOn(t, set.URI())
	b := a.another("n2")
	dev := persistent(v5, "s39")
	c := a.open(dev)
	c.subscribe(want{"s39/#", 2})
	pub := b.open(transient(v5, "pub"))
	n := 0
	publish := func(count int) {
		t.Helper()
		for range count {
			pub.publish(message{topic: "s39/t", qos: byte(1 + n%2), payload: fmt.Append(nil, n)})
			n++
		}
	}
	publish(20)
	for i := range 20 {
		c.settle(c.takePayload(fmt.Sprint(i)))
	}
	publish(4)
	var held []packet
	for i := 20; i < 24; i++ {
		held = append(held, c.takePayload(fmt.Sprint(i)))
	}
	c.disconnect()
	publish(30)
	rollOplog(t, set.URI())
	purged, err := a.place.db.Collection("publishedMessage").DeleteMany(t.Context(), bson.D{})
	if err != nil || purged.DeletedCount < 24 {
		t.Fatalf("purge: %v, %v", purged, err)
	}
	a.kill9()
	a.restart()
	publish(30)
	for i, o := range []*broker{b, a} {
		c = o.open(dev).expectPresent(true)
		if i == 0 {
			c.expectResent(held)
			for _, p := range held {
				c.settle(p)
			}
			for k := 24; k < n; k++ {
				if p := c.settle(c.takePayload(fmt.Sprint(k))); p.dup {
					t.Errorf("%v, want DUP=0", p)
				}
			}
		}
		c.nothing()
		c.disconnect()
	}
}

// failPoint is a fail point of a member that runs with enableTestCommands.
type failPoint struct {
	t       *testing.T
	admin   *driver.Database
	name    string
	entered int64 // how often, before it was set
}

func setFailPoint(t *testing.T, m *mongod.Member, name string, mode any, data bson.D) *failPoint {
	t.Helper()
	f := &failPoint{t: t, admin: dialMongoDB(t, "mongodb://"+m.Addr()+"/?directConnection=true").Database("admin"), name: name}
	f.entered = f.set(mode, data)
	return f
}

func (f *failPoint) set(mode any, data bson.D) int64 {
	f.t.Helper()
	var out struct {
		Count int64 `bson:"count"`
	}
	err := f.admin.RunCommand(f.t.Context(), bson.D{{Key: "configureFailPoint", Value: f.name}, {Key: "mode", Value: mode}, {Key: "data", Value: data}}).Decode(&out)
	if err != nil {
		f.t.Fatalf("fail point %s: %v", f.name, err)
	}
	return out.Count
}

// met waits until the server has come to the point.
func (f *failPoint) met() {
	f.t.Helper()
	err := f.admin.RunCommand(f.t.Context(), bson.D{
		{Key: "waitForFailPoint", Value: f.name}, {Key: "timesEntered", Value: f.entered + 1}, {Key: "maxTimeMS", Value: patience.Milliseconds()},
	}).Err()
	if err != nil {
		f.t.Fatalf("fail point %s is not met: %v", f.name, err)
	}
}

func (f *failPoint) off() { f.t.Helper(); f.set("off", bson.D{}) }

// killInsert ends what inserts into `message` on the server now.
func killInsert(t *testing.T, db *driver.Database) {
	t.Helper()
	admin := db.Client().Database("admin", options.Database().SetReadConcern(readconcern.Local()))
	cur, err := admin.Aggregate(t.Context(), driver.Pipeline{
		{{Key: "$currentOp", Value: bson.D{{Key: "allUsers", Value: true}}}},
		{{Key: "$match", Value: bson.D{{Key: "ns", Value: db.Name() + ".message"}, {Key: "op", Value: "insert"}}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	var ops []struct {
		ID any `bson:"opid"`
	}
	if err := cur.All(t.Context(), &ops); err != nil || len(ops) != 1 {
		t.Fatalf("%d inserts are under way, want 1: %v", len(ops), err)
	}
	if err := admin.RunCommand(t.Context(), bson.D{{Key: "killOp", Value: 1}, {Key: "op", Value: ops[0].ID}}).Err(); err != nil {
		t.Fatal(err)
	}
}

// F-25 a: a batch of ten is cut off in the server when three of it are stored. All ten
// are stored once, in order, before any of the rest is acknowledged.
func TestF25_CutHalfWay(t *testing.T) {
	t.Parallel()
	set := setWith(t, mongod.Options{Parameters: []string{"enableTestCommands=1", "internalInsertMaxBatchSize=1"}})
	m := set.Members()[0]
	b := startOn(t, set.URI(), launch{args: []string{"--set", "store.mongo.lanes=1"}})
	sub := b.open(persistent(v5, "sub"))
	sub.subscribe(want{"f25/t", 1})
	messages := b.place.db.Collection("message", options.Collection().SetReadConcern(readconcern.Local()))
	pub := b.open(transient(v5, "pub"))
	send := func(i int) {
		t.Helper()
		pub.send(message{topic: "f25/t", qos: 1, payload: fmt.Append(nil, i)}.packet(v5, uint16(i+1), false))
	}
	ns := b.place.db.Name() + ".message"
	for round := range rounds(10) {
		hangs := setFailPoint(t, m, "hangDuringBatchInsert", bson.D{{Key: "skip", Value: 1 + 3}}, bson.D{
			{Key: "nss", Value: ns}, {Key: "shouldCheckForInterrupt", Value: true},
		})
		waits := setFailPoint(t, m, "failCommand", bson.D{{Key: "times", Value: 1}}, bson.D{
			{Key: "failCommands", Value: bson.A{"insert"}},
			{Key: "namespace", Value: ns},
			{Key: "blockConnection", Value: true},
			{Key: "blockTimeMS", Value: 1000},
		})
		send(0) // goes by itself, and waits; the ten collect behind it
		waits.met()
		for i := 1; i < 11; i++ {
			send(i)
		}
		pub.awaitID(kindPuback, 1)
		hangs.met()
		n, err := messages.CountDocuments(t.Context(), bson.D{{Key: "topic", Value: "f25/t"}})
		if err != nil || n != int64(11*round+4) {
			t.Errorf("round %d: %d are stored when the batch hangs, %v", round, n, err)
		}
		pub.nothing()
		killInsert(t, b.place.db)
		hangs.off()
		for i := 1; i < 11; i++ {
			pub.awaitID(kindPuback, uint16(i+1))
		}
		for i := range 11 {
			sub.settle(sub.takePayload(fmt.Sprint(i)))
		}
	}
	sub.nothing()
}

// F-25 c: the primary has a batch and the majority has not. Nothing is acknowledged or
// delivered, whatever is tried in between; when the majority has it, it is, and stands
// there once. (Which answers of the server leave a batch in doubt, duplicates beside a
// write concern error among them, is a test of store/mongo.)
func TestF25_WithoutMajority(t *testing.T) {
	t.Parallel()
	set := setWith(t, mongod.Options{Members: 3, Parameters: []string{"enableTestCommands=1"}})
	b := startOn(t, set.URI())
	sub := b.open(persistent(v5, "sub"))
	sub.subscribe(want{"f25/t", 1})
	pub := b.open(transient(v5, "pub"))
	primary, err := set.Primary(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var stopped []*failPoint
	for _, m := range set.Members() {
		if m != primary {
			stopped = append(stopped, setFailPoint(t, m, "stopReplProducer", "alwaysOn", bson.D{}))
		}
	}
	for _, f := range stopped {
		f.met()
	}
	local := dialMongoDB(t, "mongodb://"+primary.Addr()+"/?directConnection=true").
		Database(b.place.db.Name(), options.Database().SetReadConcern(readconcern.Local()))
	for i := range 10 {
		pub.send(message{topic: "f25/t", qos: 1, payload: fmt.Append(nil, i)}.packet(v5, uint16(i+1), false))
	}
	b.within(time.Minute, "/readyz is red", func() bool { return b.status("/readyz") == 503 })
	// None, if the node had reason to look behind its lease before it appended.
	n, err := local.Collection("message").CountDocuments(t.Context(), bson.D{{Key: "topic", Value: "f25/t"}})
	t.Logf("the primary has %d, %v", n, err)
	pub.nothing()
	sub.nothing()
	for _, f := range stopped {
		f.off()
	}
	for i := range 10 {
		pub.awaitID(kindPuback, uint16(i+1))
		sub.settle(sub.takePayload(fmt.Sprint(i)))
	}
	sub.nothing()
	b.expectLog("f25/t", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
}
