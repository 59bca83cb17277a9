package broker

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"rewindmq/broker/session"
	"rewindmq/schema"
	"rewindmq/store"
	"rewindmq/store/embedded"
	"rewindmq/store/storetest"
	"rewindmq/wire"
)

// site is a broker that can be killed and started again on what is stored.
type site struct {
	*house
	t *testing.T
	o Options
	// reopen gives the store as a SIGKILL of this moment leaves it.
	reopen func() store.Store
	peers  []*peer
}

// sites runs a test on both stores, for both protocols.
func sites(t *testing.T, o Options, fn func(t *testing.T, s *site, v wire.Version)) {
	t.Helper()
	for _, v := range versions() {
		t.Run(fmt.Sprintf("memory/%v", v), func(t *testing.T) {
			t.Parallel()
			mem := storetest.NewMemory(storetest.Options{Lanes: 2, Wait: time.Second})
			s := &site{t: t, o: o, reopen: func() store.Store {
				mem = mem.Reopen()
				return mem
			}}
			s.house = openHouse(t, mem, o)
			fn(t, s, v)
		})
		t.Run(fmt.Sprintf("embedded/%v", v), func(t *testing.T) {
			t.Parallel()
			fs := vfs.NewCrashableMem()
			open := func() store.Store {
				l, err := embedded.Open(embedded.Options{Dir: "data", FS: fs, Node: "node-1"})
				if err != nil {
					t.Fatal(err)
				}
				return l
			}
			s := &site{t: t, o: o}
			s.reopen = func() store.Store {
				// What was synced; the rest of this file system nobody sees again.
				fs = fs.CrashClone(vfs.CrashCloneCfg{})
				return open()
			}
			s.house = openHouse(t, open(), o)
			fn(t, s, v)
		})
	}
}

// kill is a SIGKILL of broker and store, and a new start. The peers' connections are
// of no use any more. Those of workers are cut before: what the old broker still sends
// is not of the run that the new one knows of.
func (s *site) kill(workers ...*worker) {
	s.t.Helper()
	for _, w := range workers {
		w.cut()
	}
	next := s.reopen()
	for _, p := range s.peers {
		p.cut()
	}
	s.peers = nil
	s.abandon()
	s.house = openHouse(s.t, next, s.o)
}

// online waits until a group has n members online here; 0: it was let go of.
func (s *site) online(name string, n int) {
	s.t.Helper()
	s.until(fmt.Sprintf("have %d members of %s online", n, name), func() bool {
		s.b.shares.mu.Lock()
		defer s.b.shares.mu.Unlock()
		sh := s.b.shares.by[name]
		if sh == nil {
			return n == 0
		}
		sh.mu.Lock()
		defer sh.mu.Unlock()
		return n > 0 && sh.g.Members() == n
	})
}

// gone waits until the session of a client has let go.
func (s *site) gone(id string) {
	s.t.Helper()
	s.until("let go of "+id, func() bool { return s.b.roster.get(id) == nil })
}

// inFlight waits until a session has n deliveries unacknowledged.
func (s *site) inFlight(id string, n int) {
	s.t.Helper()
	s.until(fmt.Sprintf("have %d in flight to %s", n, id), func() bool {
		cl := s.b.roster.get(id)
		if cl == nil {
			return false
		}
		cl.mu.Lock()
		defer cl.mu.Unlock()
		return cl.s != nil && cl.s.InFlight() == n
	})
}

// member opens a persistent session with a Receive Maximum (0: none; 3.1.1 has none).
func (s *site) member(v wire.Version, id string, receiveMaximum uint16) *peer {
	s.t.Helper()
	c := wire.Connect{ClientID: id, SessionExpiry: schema.NoExpiry, HasSessionExpiry: v == wire.V5}
	if v == wire.V5 {
		c.ReceiveMaximum = receiveMaximum
	}
	return s.open(v, c)
}

func (s *site) open(v wire.Version, c wire.Connect) *peer {
	s.t.Helper()
	p, _ := s.connect(v, c)
	s.peers = append(s.peers, p)
	return p
}

// clean opens a session that ends with its connection.
func (s *site) clean(v wire.Version, id string) *peer {
	s.t.Helper()
	return s.open(v, wire.Connect{ClientID: id, CleanStart: true})
}

// save stores a session's cursor.
func (s *site) save(id string) {
	s.t.Helper()
	s.until("save "+id, func() (done bool) {
		s.b.roster.get(id).input(func(ses *session.Session) {
			if done = ses.Saved(); !done {
				ses.Save()
			}
		})
		return done
	})
}

// settle takes what has been sent so far, without acknowledging it.
func (p *peer) settle() {
	p.t.Helper()
	p.write(wire.AppendPingreq(nil))
	for {
		switch pk := p.read().(type) {
		case *wire.Pingresp:
			return
		case *wire.Publish:
			p.early = append(p.early, *pk)
		default:
			p.t.Fatalf("got %#v", pk)
		}
	}
}

// publishes publishes messages first to last, in order.
func (p *peer) publishes(topic string, qos byte, first, last int) {
	p.t.Helper()
	for i := first; i <= last; i++ {
		p.publish(topic, fmt.Sprint(i), qos, uint16(i))
	}
}

// worker takes deliveries in a goroutine of its own, and acknowledges them, until its
// connection ends.
type worker struct {
	id   string
	p    *peer
	crew *crew
	done chan struct{}
}

// crew is what several workers have received.
type crew struct {
	t       *testing.T
	mu      sync.Mutex
	by      map[string][]string // payloads by worker, in order, without QoS 2 repeats
	pending map[pending]bool    // received at QoS 2, and not released
	changed chan struct{}
}

type pending struct {
	id     string
	packet uint16
}

func newCrew(t *testing.T) *crew {
	return &crew{t: t, by: map[string][]string{}, pending: map[pending]bool{}, changed: make(chan struct{}, 1)}
}

// works lets a worker work; also one that has worked before, on another connection.
func (c *crew) works(id string, p *peer) *worker {
	w := &worker{id: id, p: p, crew: c, done: make(chan struct{})}
	for _, m := range p.early {
		w.take(&m)
	}
	p.early = nil
	_ = p.nc.SetReadDeadline(time.Time{})
	go w.run()
	c.t.Cleanup(func() { w.cut() })
	return w
}

func (w *worker) run() {
	defer close(w.done)
	for {
		pk, err := w.p.r.ReadPacket()
		if err != nil {
			return
		}
		switch pk := pk.(type) {
		case *wire.Publish:
			w.take(pk)
		case *wire.Ack:
			if pk.Type == wire.PUBREL {
				w.crew.mu.Lock()
				delete(w.crew.pending, pending{w.id, pk.ID})
				w.crew.mu.Unlock()
				_, _ = w.p.nc.Write(wire.AppendAck(nil, w.p.v, wire.PUBCOMP, pk.ID, wire.Success))
			}
		}
	}
}

func (w *worker) take(m *wire.Publish) {
	w.crew.mu.Lock()
	if k := (pending{w.id, m.PacketID}); m.QoS < 2 || !w.crew.pending[k] {
		w.crew.by[w.id] = append(w.crew.by[w.id], string(m.Payload))
		w.crew.pending[k] = m.QoS == 2
	}
	w.crew.mu.Unlock()
	select {
	case w.crew.changed <- struct{}{}:
	default:
	}
	switch m.QoS {
	case 1:
		_, _ = w.p.nc.Write(wire.AppendAck(nil, w.p.v, wire.PUBACK, m.PacketID, wire.Success))
	case 2:
		_, _ = w.p.nc.Write(wire.AppendAck(nil, w.p.v, wire.PUBREC, m.PacketID, wire.Success))
	}
}

// cut resets the connection and waits for the goroutine.
func (w *worker) cut() {
	w.p.cut()
	<-w.done
}

// total gives how often each payload was received.
func (c *crew) total() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := map[string]int{}
	for _, list := range c.by {
		for _, payload := range list {
			out[payload]++
		}
	}
	return out
}

func (c *crew) of(id string) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.by[id])
}

// waitFor waits until the payloads first to last were received.
func (c *crew) waitFor(first, last int) {
	c.t.Helper()
	late := time.NewTimer(patience)
	defer late.Stop()
	for {
		got := c.total()
		missing := []string{}
		for i := first; i <= last; i++ {
			if got[fmt.Sprint(i)] == 0 {
				missing = append(missing, fmt.Sprint(i))
			}
		}
		if len(missing) == 0 {
			return
		}
		select {
		case <-c.changed:
		case <-late.C:
			c.t.Fatalf("%d messages are missing: %s", len(missing), strings.Join(missing[:min(len(missing), 20)], " "))
		}
	}
}

// once wants exactly the payloads first to last, each once.
func (c *crew) once(first, last int) {
	c.t.Helper()
	c.times(first, last, 1, 1)
}

// times wants exactly the payloads first to last, each from least to most times.
func (c *crew) times(first, last, least, most int) {
	c.t.Helper()
	got := c.total()
	for i := first; i <= last; i++ {
		if n := got[fmt.Sprint(i)]; n < least || n > most {
			c.t.Errorf("message %d was received %d times", i, n)
		}
		delete(got, fmt.Sprint(i))
	}
	if len(got) > 0 {
		c.t.Errorf("received too: %v", slices.Sorted(maps.Keys(got)))
	}
}

// ordered wants what a worker has received to ascend.
func (c *crew) ordered(id string) {
	c.t.Helper()
	last := 0
	for _, payload := range c.of(id) {
		n := 0
		_, _ = fmt.Sscan(payload, &n)
		if n <= last {
			c.t.Errorf("%s got %d after %d", id, n, last)
		}
		last = n
	}
}
