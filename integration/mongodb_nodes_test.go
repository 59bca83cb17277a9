package integration

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	driver "go.mongodb.org/mongo-driver/v2/mongo"
)

// The tests in this file are about several brokers on one replica set. They need
// a store that nodes share: they run where the mongodb backend runs.

// node gives one more broker on the place of b, running.
func (b *broker) another(name string, with ...launch) *broker {
	b.t.Helper()
	o := prepare(b.t, backend{name: b.store.name, place: func(*testing.T, string) place { return b.place }}, with...)
	o.node = name
	o.start()
	return o
}

// pair gives two brokers, A and B, on one database.
func pair(t *testing.T, with ...launch) (a, b *broker) {
	t.Helper()
	t.Parallel()
	if !chosen("mongodb") {
		t.Skip("REWINDMQ_TEST_STORES leaves mongodb out")
	}
	a = start(t, mongodbBackend(), with...)
	return a, a.another("n2", with...)
}

// S-02, S-42, S-44: a subscriber on any node gets what is published on any other,
// once and in order, also when the publisher's node is killed right after the ack.
func TestNodes_PublisherNodeKilledAfterAck(t *testing.T) {
	a, b := pair(t)
	stays := b.open(persistent(v5, "stays"))
	stays.subscribe(want{"s02/#", 2})
	clean := b.open(transient(v311, "clean"))
	clean.subscribe(want{"s02/#", 2})
	next := 0
	for range rounds(20) {
		pub := a.open(transient(v5, "pub"))
		for range 20 {
			pub.publish(message{topic: "s02/t", qos: byte(1 + next%2), payload: fmt.Append(nil, next)})
			next++
		}
		a.kill9() // the last ack has been read
		a.start()
	}
	for i := range next {
		text := fmt.Sprint(i)
		stays.settle(stays.takePayload(text))
		clean.settle(clean.takePayload(text))
	}
	stays.nothing()
	clean.nothing()
}

// nothing fails the test if the client has been sent anything else.
func (c *client) nothing() {
	c.t.Helper()
	c.ping()
	if len(c.inbox) > 0 {
		c.t.Errorf("%s: got %v, want nothing", c.name, c.inbox)
	}
}

// F-06, F-08: a persistent session goes on at the other node under its packet ids:
// after its node was killed, and by taking it over from a living owner (S-66).
func TestF06_OtherNode(t *testing.T) {
	for _, killed := range []bool{true, false} {
		t.Run(map[bool]string{true: "killed", false: "taken over"}[killed], func(t *testing.T) {
			a, b := pair(t)
			dev := persistent(v5, "f06-s")
			dev.receiveMax = 20
			c := a.open(dev)
			c.subscribe(want{"f06/t", 2})
			pub := b.open(transient(v5, "pub"))
			var held []packet
			for i := range 6 {
				pub.publish(message{topic: "f06/t", qos: byte(1 + i/5), payload: fmt.Append(nil, i)})
				held = append(held, c.takePayload(fmt.Sprint(i)))
			}
			// The QoS 2 one goes as far as PUBREC; PUBREL has been read.
			c.send(ackPacket(kindPubrec, held[5].id))
			c.awaitID(kindPubrel, held[5].id)
			if killed {
				a.kill9()
			}
			for i := 6; i < 11; i++ {
				pub.publish(message{topic: "f06/t", qos: 1, payload: fmt.Append(nil, i)})
			}
			began := time.Now()
			n := b.open(dev).expectPresent(true)
			t.Logf("CONNACK after %v", time.Since(began).Round(time.Millisecond))
			if !killed {
				for {
					p, err := c.read(patience)
					if err != nil {
						t.Fatalf("the old connection: %v, want DISCONNECT 0x8E", err)
					}
					if p.kind == kindDisconnect {
						if p.code != 0x8e {
							t.Errorf("the old connection got %v", p)
						}
						break
					}
				}
			}
			for i := range 5 {
				p := n.takePayload(fmt.Sprint(i))
				if p.id != held[i].id || !p.dup {
					t.Errorf("message %d comes as %v, was sent as %v", i, p, held[i])
				}
				n.settle(p)
			}
			n.awaitID(kindPubrel, held[5].id)
			n.send(ackPacket(kindPubcomp, held[5].id))
			for i := 6; i < 11; i++ {
				// On a living owner they may have been sent before the takeover.
				p := n.takePayload(fmt.Sprint(i))
				if killed && p.dup {
					t.Errorf("message %d comes with DUP: %v", i, p)
				}
				n.settle(p)
			}
			n.nothing()
			if killed {
				a.start()
			}
			n.disconnect()
			again := a.open(dev).expectPresent(true)
			again.nothing() // F-08: nothing that was settled comes again
		})
	}
}

// F-01: nodes publish at once, a subscriber comes and goes between them: complete,
// once, in order.
func TestF01_ManyWriters(t *testing.T) {
	a, b := pair(t)
	c := newCrowd(t, a, rand.New(rand.NewPCG(1, uint64(time.Now().UnixNano()))))
	c.addrs = []string{a.addr, b.addr}
	pubs, subs := standardCrowd()
	c.subscribe(subs...)
	c.publish(pubs...)
	for range rounds(20) {
		c.acknowledged(50)
		which := []*broker{a, b}[c.rng.IntN(2)]
		which.crash()
	}
	c.finish()
	c.auditShared(a, b)
}

// auditShared stops the brokers and holds their store against the ledger.
func (c *crowd) auditShared(brokers ...*broker) {
	c.t.Helper()
	for _, b := range brokers {
		b.stop()
	}
	c.ledger.verifyAudit(c.t, brokers[0].place.audit(c.t))
}

// F-02: a foreign transaction that stays open does not hold up or disturb others,
// and its message comes to everybody who was subscribed when it committed.
func TestF02_OpenTransaction(t *testing.T) {
	a, b := pair(t)
	open := 2 * time.Second
	if soak {
		open = 35 * time.Second
	}
	s := persistent(v5, "f02-s")
	c := a.open(s)
	c.subscribe(want{"f02/#", 1})
	live := b.open(persistent(v5, "f02-l"))
	live.subscribe(want{"f02/#", 1})
	server := a.place.db.Client()
	sess, err := server.StartSession()
	if err != nil {
		t.Fatal(err)
	}
	defer sess.EndSession(t.Context())
	if err := sess.StartTransaction(); err != nil {
		t.Fatal(err)
	}
	tx := driver.NewSessionContext(t.Context(), sess)
	if _, err := a.place.db.Collection("message").InsertOne(tx, bson.D{
		{Key: "topic", Value: "f02/t"},
		{Key: "data", Value: "held"},
		{Key: "clientId", Value: "erp"},
		{Key: "qos", Value: 1},
		{Key: "retain", Value: false},
		{Key: "created", Value: time.Now()},
		{Key: "host", Value: "erp"},
	}); err != nil {
		t.Fatal(err)
	}
	n := b.open(persistent(v5, "f02-n"))
	n.subscribe(want{"f02/#", 1})
	n.disconnect()
	pub := b.open(transient(v311, "pub"))
	count := 0
	for began := time.Now(); time.Since(began) < open; count++ {
		pub.publish(message{topic: "f02/u", qos: 1, payload: fmt.Append(nil, count)})
		live.settle(live.takePayload(fmt.Sprint(count)))
		c.settle(c.takePayload(fmt.Sprint(count)))
		switch count % 10 {
		case 5:
			c.disconnect()
			c = b.open(s).expectPresent(true)
		case 9:
			c.cut()
			c = a.open(s).expectPresent(true)
		}
		elapse(t, 50*time.Millisecond)
	}
	if err := sess.CommitTransaction(t.Context()); err != nil {
		t.Fatal(err)
	}
	live.settle(live.takePayload("held"))
	c.settle(c.takePayload("held"))
	n = a.open(persistent(v5, "f02-n")).expectPresent(true)
	for i := range count {
		n.settle(n.takePayload(fmt.Sprint(i)))
	}
	n.settle(n.takePayload("held"))
	for _, c := range []*client{live, c, n} {
		c.nothing()
	}
}

// F-03, scenario 2: in the moment in which SUBACK is read on A, a publisher on B
// sends. It comes.
func TestF03_OtherNode(t *testing.T) {
	a, b := pair(t)
	c := a.open(transient(v5, "f03"))
	pub := b.open(transient(v5, "pub"))
	for i := range rounds(200) {
		topic := fmt.Sprintf("f03/%d", i)
		pub.publish(message{topic: topic, qos: 1, payload: []byte("before")})
		c.subscribe(want{topic, 1})
		pub.publish(message{topic: topic, qos: 1, payload: []byte("after")})
		c.settle(c.takePayload("after"))
	}
	c.nothing()
}

// F-14: the node that holds a will dies; it is published once, by the other; and
// not if its client is back in time.
func TestF14_WillOfADeadNode(t *testing.T) {
	a, b := pair(t)
	watch := b.open(persistent(v5, "watch"))
	watch.subscribe(want{"f14/#", 1})
	gone := session{version: v5, clientID: "gone", expiry: 600, will: &will{topic: "f14/gone", payload: "gone", qos: 1}}
	a.open(gone)
	back := session{version: v5, clientID: "back", expiry: 600, will: &will{topic: "f14/back", payload: "back", qos: 1, delay: 60}}
	a.open(back)
	a.kill9()
	b.open(back).expectPresent(true)
	if err := watch.firstByteWithin(time.Minute); err != nil {
		t.Fatalf("no will: %v", err)
	}
	watch.settle(watch.takePayload("gone"))
	a.start()
	elapse(t, 2*time.Second)
	watch.nothing()
}

// F-25 b: the reply of an insert is swallowed; the message is stored once, and then
// acknowledged. d: options that would weaken the promise are overruled, and said.
func TestF25_WritesInDoubt(t *testing.T) {
	t.Run("b", func(t *testing.T) {
		t.Parallel()
		set := lone(t)
		p := proxyTo(t, set.Members()[0].Addr())
		b := startOn(t, p.uri())
		c := b.open(persistent(v5, "sub"))
		c.subscribe(want{"f25/#", 1})
		pub := b.open(transient(v5, "pub"))
		for i := range rounds(20) {
			text := fmt.Sprint(i)
			p.swallow(true)
			pub.send(message{topic: "f25/t", qos: 1, payload: []byte(text)}.packet(v5, uint16(i+1), false))
			elapse(t, 100*time.Millisecond) // the server has executed it
			p.cut()
			p.swallow(false)
			pub.awaitID(kindPuback, uint16(i+1))
			c.settle(c.takePayload(text))
		}
		c.nothing()
	})
	t.Run("d", func(t *testing.T) {
		t.Parallel()
		set := lone(t)
		b := startOn(t, set.URI()+"&w=1&journal=false&retryWrites=false&readPreference=secondary")
		out := b.proc.output()
		for _, name := range []string{`"w"`, `"journal"`, `"retryWrites"`, `"readPreference"`} {
			if !contains(out, "option overridden", name) {
				t.Errorf("nothing is said of %s:\n%s", name, out)
			}
		}
		if err := b.place.db.RunCommand(t.Context(), bson.D{{Key: "profile", Value: 2}}).Err(); err != nil {
			t.Fatal(err)
		}
		b.publishTexts("f25/t", 1, texts(1, 20)...)
		n := 0
		each(t, b.place.db.Collection("system.profile"), bson.D{}, func(d bson.Raw) {
			if ns, _ := d.Lookup("ns").StringValueOK(); ns != b.place.db.Name()+".message" {
				return
			}
			if op, _ := d.Lookup("op").StringValueOK(); op != "insert" {
				return
			}
			n++
			if w, _ := d.Lookup("command", "writeConcern", "w").StringValueOK(); w != "majority" {
				t.Errorf("an append with %v", d.Lookup("command", "writeConcern"))
			}
			if j, _ := d.Lookup("command", "writeConcern", "j").BooleanOK(); !j {
				t.Errorf("an append with %v", d.Lookup("command", "writeConcern"))
			}
		})
		if n == 0 {
			t.Error("the profile shows no append")
		}
	})
}

// S-65: readiness is red while MongoDB is away, and green after. Nothing is
// acknowledged meanwhile, and all of it afterwards.
func TestReadyFollowsMongoDB(t *testing.T) {
	t.Parallel()
	set := lone(t)
	b := startOn(t, set.URI())
	c := b.open(persistent(v5, "sub"))
	c.subscribe(want{"s65/#", 1})
	pub := b.open(transient(v5, "pub"))
	set.Members()[0].Kill()
	pub.send(message{topic: "s65/t", qos: 1, payload: []byte("while it is away")}.packet(v5, 7, false))
	b.within(40*time.Second, "/readyz is red", func() bool { return b.status("/readyz") == 503 })
	if _, text := b.get("/readyz"); !contains(text, "majority") && !contains(text, "mongo") {
		t.Errorf("/readyz says %q", text)
	}
	if b.status("/livez") != 200 {
		t.Error("/livez is red as well")
	}
	pub.nothing()
	if err := set.Members()[0].Start(); err != nil {
		t.Fatal(err)
	}
	b.within(time.Minute, "/readyz is green", func() bool { return b.status("/readyz") == 200 })
	pub.awaitID(kindPuback, 7)
	c.settle(c.takePayload("while it is away"))
	c.nothing()
}

// A standalone has no change streams and no majority: the start is refused.
func TestStandaloneRefused(t *testing.T) {
	t.Parallel()
	uri := standalone(t)
	b := prepare(t, backend{name: "mongodb", place: func(t *testing.T, _ string) place { return database(t, uri) }})
	b.startRefused(0, "standalone", "replica set")
}
