package mongo

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/event"

	"rewindmq/integration/mongod"
	"rewindmq/schema"
	"rewindmq/store"
)

// gate stands between a node and a server. It can keep a single command in the
// socket for as long as a test wants, while everything else goes on: so an attempt
// is given up by the node and lands later, at the moment that the test chooses.
type gate struct {
	t      testing.TB
	ln     net.Listener
	target string

	mu    sync.Mutex
	rules []*rule
	conns []net.Conn
	work  sync.WaitGroup
}

// rule is what happens to the first commands that it wants.
type rule struct {
	g     *gate
	wants func(msg []byte) bool
	// lose: the command goes through, its answer does not.
	lose bool
	all  bool // not the first only

	met      chan struct{} // closed when the first has come
	go1      chan struct{} // closed by release
	answered chan struct{} // closed when the server has answered the first
	hits     int
}

func newGate(t testing.TB, set *mongod.Set) *gate {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{t: t, ln: ln, target: set.Members()[0].Addr()}
	g.work.Go(g.accept)
	t.Cleanup(g.close)
	return g
}

// uri leads through the gate.
func (g *gate) uri() string { return "mongodb://" + g.ln.Addr().String() + "/?directConnection=true" }

func (g *gate) close() {
	_ = g.ln.Close()
	g.mu.Lock()
	for _, c := range g.conns {
		_ = c.Close()
	}
	for _, r := range g.rules {
		r.free()
	}
	g.mu.Unlock()
	g.work.Wait()
}

func (g *gate) accept() {
	for {
		c, err := g.ln.Accept()
		if err != nil {
			return
		}
		s, err := net.Dial("tcp4", g.target)
		if err != nil {
			_ = c.Close()
			continue
		}
		g.mu.Lock()
		g.conns = append(g.conns, c, s)
		g.mu.Unlock()
		p := &pipe{g: g, client: c, server: s}
		g.work.Go(p.up)
		g.work.Go(p.down)
	}
}

// pipe is one connection.
type pipe struct {
	g              *gate
	client, server net.Conn
	mu             sync.Mutex
	waits          *rule // whose command is with the server
	late           bool  // its client may have gone: the server's answer is waited for
}

func (p *pipe) up() {
	head := make([]byte, 4)
	for {
		if _, err := io.ReadFull(p.client, head); err != nil {
			break
		}
		msg := make([]byte, binary.LittleEndian.Uint32(head))
		copy(msg, head)
		if _, err := io.ReadFull(p.client, msg[4:]); err != nil {
			break
		}
		if r := p.g.match(msg); r != nil {
			if !r.lose {
				<-r.go1
			}
			p.mu.Lock()
			p.waits, p.late = r, true
			p.mu.Unlock()
		}
		if _, err := p.server.Write(msg); err != nil {
			break
		}
	}
	p.mu.Lock()
	late := p.late
	p.mu.Unlock()
	if !late {
		_ = p.server.Close()
	}
}

func (p *pipe) down() {
	defer func() { _ = p.client.Close() }()
	buf := make([]byte, 64<<10)
	for {
		n, err := p.server.Read(buf)
		if err != nil {
			return
		}
		p.mu.Lock()
		r := p.waits
		p.waits = nil
		p.mu.Unlock()
		if r != nil {
			r.heard()
			if r.lose {
				_ = p.server.Close()
				return
			}
		}
		_, _ = p.client.Write(buf[:n]) // it may have gone
	}
}

// match gives the rule that wants a message.
func (g *gate) match(msg []byte) *rule {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, r := range g.rules {
		if (r.all || r.hits == 0) && r.wants(msg) {
			if r.hits++; r.hits == 1 {
				close(r.met)
			}
			return r
		}
	}
	return nil
}

func (g *gate) add(r *rule) *rule {
	r.g, r.met, r.go1, r.answered = g, make(chan struct{}), make(chan struct{}), make(chan struct{})
	g.mu.Lock()
	defer g.mu.Unlock()
	g.rules = append(g.rules, r)
	return r
}

// hold keeps the first command that has all the texts in it.
func (g *gate) hold(texts ...string) *rule { return g.add(&rule{wants: having(texts)}) }

// holdAll keeps all of them, until release.
func (g *gate) holdAll(texts ...string) *rule { return g.add(&rule{wants: having(texts), all: true}) }

// lose lets the first through, and breaks the connection in the place of an
// answer.
func (g *gate) lose(texts ...string) *rule { return g.add(&rule{wants: having(texts), lose: true}) }

func having(texts []string) func([]byte) bool {
	return func(msg []byte) bool {
		for _, s := range texts {
			if !bytes.Contains(msg, []byte(s)) {
				return false
			}
		}
		return true
	}
}

func (r *rule) heard() {
	r.g.mu.Lock()
	defer r.g.mu.Unlock()
	select {
	case <-r.answered:
	default:
		close(r.answered)
	}
}

func (r *rule) free() {
	r.all = false
	select {
	case <-r.go1:
	default:
		close(r.go1)
	}
}

// come waits until a command is held.
func (r *rule) come() {
	r.g.t.Helper()
	r.await(r.met, "the command that is to be held")
}

// release lets go of what is held and waits until the server has answered it.
func (r *rule) release() {
	r.g.t.Helper()
	r.g.mu.Lock()
	r.free()
	r.g.mu.Unlock()
	r.await(r.answered, "the server's answer to what was held")
}

func (r *rule) await(ch chan struct{}, what string) {
	r.g.t.Helper()
	select {
	case <-ch:
	case <-time.After(patience):
		r.g.t.Fatalf("waiting for %s", what)
	}
}

// command makes the text by which a command on a collection is known in a message.
func command(name, coll string) string {
	return "\x02" + name + "\x00" + string(binary.LittleEndian.AppendUint32(nil, uint32(len(coll)+1))) + coll + "\x00"
}

// through starts a node that reaches the server through a gate.
func (r *rig) through(g *gate) *Store {
	r.t.Helper()
	was := r.o.URI
	defer func() { r.o.URI = was }()
	r.o.URI = g.uri()
	return r.start()
}

// hook calls fn for the first command that has the name and wanted tells of,
// before it is sent.
type hook struct {
	name   string
	wanted func(cmd bson.Raw) bool
	fn     func() // for the first
	each   func() // for all, if not nil
	done   sync.Once
	armed  chan struct{} // closed: on
}

func newHook(name string, wanted func(bson.Raw) bool, fn func()) *hook {
	return &hook{name: name, wanted: wanted, fn: fn, armed: make(chan struct{})}
}

func (h *hook) monitor() *event.CommandMonitor {
	return &event.CommandMonitor{Started: func(_ context.Context, e *event.CommandStartedEvent) {
		select {
		case <-h.armed:
		default:
			return
		}
		if e.CommandName == h.name && h.wanted(e.Command) {
			if h.each != nil {
				h.each()
			} else {
				h.done.Do(h.fn)
			}
		}
	}}
}

// watchReads calls fn for each find and aggregate on `message` while it is on, but
// for the adopter's.
func watchReads(on *atomic.Bool, fn func(cmd bson.Raw)) *event.CommandMonitor {
	return &event.CommandMonitor{Started: func(_ context.Context, e *event.CommandStartedEvent) {
		c, _ := e.Command.Lookup(e.CommandName).StringValueOK()
		if !on.Load() || c != "message" || e.CommandName != "find" && e.CommandName != "aggregate" {
			return
		}
		if hint, _ := e.Command.Lookup("hint").StringValueOK(); hint != "foreign" {
			fn(e.Command)
		}
	}}
}

// patience bounds each wait of a test: a busy machine is no fault.
const patience = 2 * time.Minute

// eventually waits for a condition.
func (r *rig) eventually(what string, cond func(ctx context.Context) bool) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for !cond(ctx) {
		if rest(ctx, 10*time.Millisecond) != nil {
			r.t.Fatalf("waiting for %s", what)
		}
	}
}

// ended waits until the keeper has finished a node that was killed.
func (r *rig) ended(node bson.ObjectID) {
	r.t.Helper()
	r.eventually("the end of node "+node.Hex(), func(ctx context.Context) bool {
		n, err := r.db.Collection("node").CountDocuments(ctx, fields("_id", node, "finished", fields("$ne", nil)))
		return err == nil && n == 1
	})
}

// soak tells whether all of the tests have the time that they want.
func soak() bool { return os.Getenv("REWINDMQ_TEST_SCALE") == "soak" }

// later starts an append and gives the channel of its answer.
func later(s *Store, p *store.Publisher, topic, payload string) <-chan store.Appended {
	out := make(chan store.Appended, 1)
	m := message(s, p, topic, payload)
	s.Append(context.Background(), p, []*schema.Message{m}, func(a []store.Appended) { out <- a[0] })
	return out
}

func message(s *Store, p *store.Publisher, topic, payload string) *schema.Message {
	return &schema.Message{
		ID: s.ids.Next(time.Now()), Topic: topic, Payload: []byte(payload), ClientID: p.ClientID, QoS: 1, Created: time.Now().Truncate(time.Millisecond),
	}
}

// answer waits for one.
func answer[T any](t *testing.T, ch <-chan T) T {
	t.Helper()
	select {
	case a := <-ch:
		return a
	case <-time.After(patience):
		t.Fatal("no answer")
	}
	panic("unreachable")
}

// nobody is a publisher without a session.
func nobody() *store.Publisher { return &store.Publisher{} }
