package integration

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"
)

// The tests in this file are about shared subscriptions: on one broker, for every
// backend, and on several brokers, where the mongodb backend runs.

// team notes what the members of a group have got.
type team struct {
	t       *testing.T
	mu      sync.Mutex
	got     map[string][]sharedOne
	changed *sync.Cond
	working sync.WaitGroup
}

// sharedOne is one PUBLISH that a member has got.
type sharedOne struct {
	by  string
	dup bool
	qos byte
}

// teammate is one connection of a member. It settles what it gets, unless it is lazy.
type teammate struct {
	*client
	team *team
	lazy bool
	in   <-chan packet
	stop context.CancelFunc
	pong chan struct{}
	gone chan struct{}
}

func newTeam(t *testing.T) *team {
	c := &team{t: t, got: map[string][]sharedOne{}}
	c.changed = sync.NewCond(&c.mu)
	t.Cleanup(c.working.Wait)
	return c
}

// joins connects s at b, subscribes, and works until it is cut or leaves.
func (c *team) joins(b *broker, s session, lazy bool, filter string, qos byte) *teammate {
	c.t.Helper()
	cl := b.open(s)
	cl.subscribe(want{filter, qos})
	return c.works(cl, lazy)
}

func (c *team) works(cl *client, lazy bool) *teammate {
	ctx, stop := context.WithCancel(context.Background())
	w := &teammate{client: cl, team: c, lazy: lazy, stop: stop, pong: make(chan struct{}, 1), gone: make(chan struct{})}
	early := cl.inbox
	cl.inbox = nil
	w.in = pump(ctx, cl.link)
	c.working.Go(func() {
		defer close(w.gone)
		for _, p := range early {
			w.take(p)
		}
		for p := range w.in {
			w.take(p)
		}
	})
	c.t.Cleanup(w.cut)
	return w
}

func (w *teammate) take(p packet) {
	answer := byte(0)
	switch p.kind {
	case kindPublish:
		w.team.mu.Lock()
		w.team.got[string(p.payload)] = append(w.team.got[string(p.payload)], sharedOne{w.name, p.dup, p.qos})
		w.team.changed.Broadcast()
		w.team.mu.Unlock()
		answer = [3]byte{0, kindPuback, kindPubrec}[p.qos]
	case kindPubrel:
		answer = kindPubcomp
	case kindPingresp:
		w.pong <- struct{}{}
	}
	if answer != 0 && !w.lazy {
		_ = w.link.write(ackPacket(answer, p.id)) // it may have been cut
	}
}

// cut ends the connection as a lost link does.
func (w *teammate) cut() {
	w.stop()
	w.link.cut()
	<-w.gone
}

// leaves ends the connection in order.
func (w *teammate) leaves() {
	_ = w.link.write([]byte{kindDisconnect << 4, 0})
	<-w.gone
}

// flush waits until it has taken in all that the broker had given it.
func (w *teammate) flush() {
	w.t.Helper()
	w.send([]byte{kindPingreq << 4, 0})
	select {
	case <-w.pong:
	case <-time.After(patience):
		w.t.Fatalf("%s: no PINGRESP", w.name)
	}
}

// all waits until each of the texts has come, and gives what else is to be known.
func (c *team) all(wait time.Duration, texts ...string) {
	c.t.Helper()
	over := time.AfterFunc(wait, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.changed.Broadcast()
	})
	defer over.Stop()
	began := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		missing := slices.DeleteFunc(slices.Clone(texts), func(s string) bool { return len(c.got[s]) > 0 })
		if len(missing) == 0 {
			return
		}
		if time.Since(began) >= wait {
			c.t.Fatalf("not within %v: %d messages, %q first; got %v", wait, len(missing), missing[0], c.got)
		}
		c.changed.Wait()
	}
}

// once checks that each of the texts has come to one member, one time.
func (c *team) once(texts ...string) {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range texts {
		if got := c.got[s]; len(got) != 1 || got[0].dup {
			c.t.Errorf("message %q came as %v, want once", s, got)
		}
	}
}

// by gives what a member has got of the texts, at least QoS qos.
func (c *team) by(name string, qos byte, texts ...string) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []string
	for _, s := range texts {
		if slices.ContainsFunc(c.got[s], func(a sharedOne) bool { return a.by == name && a.qos >= qos }) {
			out = append(out, s)
		}
	}
	return out
}

// P2, P3, P6, G3: members share what is published, also over a SIGKILL, with the
// backlog kept while all are away; what is in flight at QoS 2 stays with its member;
// the group goes with its last member.
func TestShared(t *testing.T) {
	forEachStore(t, func(t *testing.T, s backend) {
		b := start(t, s)
		const filter = "$share/g/sh/#"
		c := newTeam(t)
		m1 := c.joins(b, persistent(v5, "m1"), false, filter, 2)
		m2 := c.joins(b, persistent(v311, "m2"), false, filter, 2)
		first := texts(1, size(1000))
		b.publishTexts("sh/t", 1, first[:len(first)/2]...)
		b.publishTexts("sh/t", 2, first[len(first)/2:]...)
		c.all(patience, first...)
		c.once(first...)
		for _, name := range []string{"m1", "m2"} {
			if len(c.by(name, 0, first...)) == 0 {
				t.Errorf("%s got nothing", name)
			}
		}
		m1.leaves()
		m2.cut()
		away := texts(1001, 1000+size(500))
		b.publishTexts("sh/t", 2, away...)
		b.crash()
		b.publishTexts("sh/t", 2, "last")
		away = append(away, "last")
		m1 = c.works(b.open(persistent(v5, "m1")).expectPresent(true), false)
		c.all(patience, away...)
		c.once(away...)

		m2 = c.works(b.open(persistent(v311, "m2")).expectPresent(true), false)
		for _, w := range []*teammate{m1, m2} {
			w.leaves()
			cl := b.open(w.sessionOf())
			cl.send(unsubscribePacket(cl.version, 9, filter))
			cl.await(kindUnsuback)
			cl.disconnect()
		}
		b.publishTexts("sh/t", 1, "between")
		c.joins(b, persistent(v5, "m1"), false, filter, 2)
		b.publishTexts("sh/t", 1, "after")
		c.all(patience, "after")
		if got := c.got["between"]; len(got) > 0 {
			t.Errorf("from before the group: %v", got)
		}
	})
}

func (w *teammate) sessionOf() session { return persistent(w.version, w.name) }

// P2, P3, P6, G1, G2, G4: members on two nodes. Each message goes to one of them,
// wherever it was published. A node is killed: what its members had not acknowledged at
// QoS 1 others get, at QoS 2 it stays with the member; and while all are away the
// backlog is kept.
func TestNodes_Shared(t *testing.T) {
	a, b := pair(t)
	const filter = "$share/g/sh/#"
	c := newTeam(t)
	m1 := c.joins(a, persistent(v5, "m1"), false, filter, 2)
	m2 := c.joins(b, persistent(v5, "m2"), false, filter, 2)
	m3 := c.joins(b, persistent(v311, "m3"), false, filter, 2)
	n := size(1000)
	var all []string
	for i, node := range []*broker{a, b, a, b} {
		part := texts(len(all)+1, len(all)+n/4)
		// On many topics: what a publisher sends on one is one node's turn, and which
		// that is, chance decides.
		for topic := range 5 {
			k := len(part) / 5
			node.publishTexts(fmt.Sprint("sh/t", topic), byte(1+i/2), part[topic*k:(topic+1)*k]...)
		}
		all = append(all, part...)
	}
	c.all(patience, all...)
	c.once(all...)
	for _, nodes := range [][]string{{"m1"}, {"m2", "m3"}} {
		got := 0
		for _, name := range nodes {
			got += len(c.by(name, 0, all...))
		}
		if got == 0 {
			t.Errorf("%v got nothing", nodes)
		}
	}

	// The only members left hold what they get; then their node is killed.
	m1.leaves()
	dev := persistent(v5, "lazy")
	dev.receiveMax = 20
	lazy := c.joins(a, dev, true, filter, 2)
	m2.leaves()
	m3.leaves()
	held := texts(10_001, 10_010)
	a.publishTexts("sh/t", 1, held...)
	two := texts(10_011, 10_020)
	a.publishTexts("sh/t", 2, two...)
	c.all(patience, append(held, two...)...)
	lazy.flush()
	a.kill9()
	lazy.cut()
	rest := texts(10_021, 10_050)
	b.publishTexts("sh/t", 1, rest...) // nobody is there
	m2 = c.works(b.open(persistent(v5, "m2")).expectPresent(true), false)
	c.all(patience, rest...)
	c.once(rest...)
	// As soon as the node is declared dead.
	b.within(time.Minute, "what was left at QoS 1 comes to another", func() bool {
		return len(c.by("m2", 0, held...)) == len(held)
	})
	a.start()
	back := c.works(a.open(dev).expectPresent(true), false)
	b.within(time.Minute, "what was held at QoS 2 is completed by its member", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, s := range two {
			if len(c.got[s]) != 2 {
				return false
			}
		}
		return true
	})
	back.flush()
	m2.flush()
	c.mu.Lock()
	for _, s := range held {
		if got := c.got[s]; len(got) != 2 || got[0].by != "lazy" || got[1].by != "m2" {
			t.Errorf("message %q, held at QoS 1, came as %v", s, got)
		}
	}
	for _, s := range two {
		if got := c.got[s]; got[0].by != "lazy" || got[1].by != "lazy" || !got[1].dup {
			t.Errorf("message %q, held at QoS 2, came as %v", s, got)
		}
	}
	c.mu.Unlock()

	back.leaves()
	m2.leaves()
	away := texts(20_001, 20_050)
	a.publishTexts("sh/t", 1, away[:25]...)
	a.crash()
	b.publishTexts("sh/t", 2, away[25:]...)
	c.works(a.open(persistent(v5, "m1")).expectPresent(true), false)
	c.works(b.open(persistent(v311, "m3")).expectPresent(true), false)
	c.all(patience, away...)
	c.once(away...)
}

// G1: at QoS 0 no record decides. Once the nodes know of each other, one of them
// gives it.
func TestNodes_SharedQoS0(t *testing.T) {
	a, b := pair(t)
	const filter = "$share/g/sh/#"
	c := newTeam(t)
	workers := []*teammate{
		c.joins(a, persistent(v5, "m1"), false, filter, 2), c.joins(b, persistent(v5, "m2"), false, filter, 2),
	}
	watch := []*client{a.open(transient(v5, "w1")), b.open(transient(v5, "w2"))}
	for _, w := range watch {
		w.subscribe(want{"sh/end", 1})
	}
	// round publishes some and tells how many did not come once.
	round := func(no int) (wrong int, text []string) {
		text = texts(no*20+1, no*20+20)
		pub := []*broker{a, b}[no%2].open(transient(v5, "pub"))
		for i, s := range text { // on many topics: those of one are one node's turn
			pub.send(message{topic: fmt.Sprint("sh/t", i), payload: []byte(s)}.packet(v5, 0, false))
		}
		pub.publish(message{topic: "sh/pub", qos: 1, payload: []byte("all are in")})
		pub.disconnect()
		end := fmt.Sprint("end ", no)
		a.publishTexts("sh/end", 1, end)
		for _, w := range watch {
			w.settle(w.takePayload(end))
		}
		for _, w := range workers {
			w.flush()
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, s := range text {
			if len(c.got[s]) != 1 {
				wrong++
			}
		}
		return wrong, text
	}
	no := 0
	a.within(time.Minute, "each comes once", func() bool {
		wrong, _ := round(no)
		no++
		return wrong == 0
	})
	var all []string
	for range 5 {
		wrong, text := round(no)
		if wrong > 0 {
			t.Errorf("%d of %d came more than once, or not at all", wrong, len(text))
		}
		all = append(all, text...)
		no++
	}
	for _, name := range []string{"m1", "m2"} {
		if len(c.by(name, 0, all...)) == 0 {
			t.Errorf("%s got nothing of %d", name, len(all))
		}
	}
}
