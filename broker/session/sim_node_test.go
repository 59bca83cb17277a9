package session

import (
	"fmt"
	"slices"
	"time"

	"rewindmq/schema"
	"rewindmq/store"
	"rewindmq/store/storetest"
)

// node is one run of a broker.
type node struct {
	w             *world
	id            storetest.Node
	name          string
	alive, paused bool
	draining      bool
	asleep        int
	mustLook      bool
	skew          time.Duration // of its clock
	keep          bool          // housekeeping is due
	finishing     map[string]bool
	willing       map[schema.ID]bool // wills on their way

	inbox    []func() // answers of the store
	tail     *storetest.Tailing
	h        schema.Cursor              // everything not after it was offered
	retained map[string]*schema.Message // read by topic only
	owned    []*owned
	claims   []*claiming
	conns    []*conn
	writers  [2]*queueWriter
	records  [2]*recordLane
	lanes    [2]*appendLane
}

func newNode(w *world) *node {
	n := &node{
		w: w, id: w.m.StartNode(), alive: true, keep: true,
		finishing: map[string]bool{}, willing: map[schema.ID]bool{}, retained: map[string]*schema.Message{},
	}
	n.name = fmt.Sprintf("N%d", n.id)
	n.h = w.m.Head()
	n.tail = w.m.Tail(n.h)
	w.m.Messages(func(m *schema.Message) bool { n.project(m); return true })
	for i := range n.lanes {
		n.writers[i] = newQueueWriter(n, fmt.Sprintf("%s.w%d", n.name, i))
		n.records[i] = newRecordLane(n, fmt.Sprintf("%s.r%d", n.name, i))
		n.lanes[i] = newAppendLane(n, fmt.Sprintf("%s.l%d", n.name, i))
	}
	return n
}

func (n *node) now() time.Time { return n.w.m.Now().Add(n.skew) }

func (n *node) writer(client string) *queueWriter { return n.writers[n.w.index(client)%2] }

func (n *node) project(m *schema.Message) {
	if m.Retain && m.Supersedes(n.retained[m.Topic]) {
		n.retained[m.Topic] = m // one with an empty payload is a tombstone
	}
}

// Next walks through the retained messages, one topic at a time.
func (n *node) Next(filter, after string) (m *schema.Message, at string, end bool) {
	for _, t := range simTopics {
		if t <= after {
			continue
		}
		if m := n.retained[t]; m != nil && len(m.Payload) > 0 && schema.Match(filter, t) {
			return m, t, false
		}
		return nil, t, false
	}
	return nil, "", true
}

// die is SIGKILL.
func (n *node) die() {
	n.alive = false
	for _, c := range n.conns {
		c.closed = true
		if c.dev.c == c {
			if len(c.toClient) > 0 && n.w.faults {
				c.toClient = c.toClient[:n.w.rng.IntN(1+len(c.toClient))]
			}
			c.send(packet{kind: pktClosed})
		}
	}
}

// actions is the scheduler's view.
func (n *node) actions(w *world) {
	if n.paused {
		return
	}
	if len(n.inbox) > 0 {
		w.can("inbox", func() bool {
			f := n.inbox[0]
			n.inbox = n.inbox[1:]
			f()
			return true
		})
	}
	for i := range n.lanes {
		n.writers[i].actions(w)
		n.records[i].actions(w)
		n.lanes[i].actions(w)
	}
	if !w.faults && w.idle > 0 || w.chance(w.x.hub[int(n.id)%len(w.x.hub)]) {
		w.can("hub", n.hub)
	}
	for _, c := range n.conns {
		c.serve(w)
	}
	for _, g := range n.claims {
		if g.ready() {
			w.can("claim", g.step)
		}
	}
	for _, o := range n.owned {
		o.actions(w)
	}
	if n.draining && len(n.owned) == 0 && len(n.claims) == 0 {
		w.can("stop", n.stop)
	}
	if n.keep && (!w.faults || w.chance(w.x.keep)) {
		w.can("keeper", n.keeper)
	}
}

// hub takes one event of the log: it is shown to the projection, offered to who
// is attached, and only then H covers it.
func (n *node) hub() bool {
	e, ok := n.tail.Next()
	if !ok {
		return false
	}
	if m := e.Message; m != nil {
		n.project(m)
		for _, o := range n.owned {
			if o.attached && o.matches(m.Topic) {
				var taken bool
				o.input(func(s *Session) { taken = s.Offer(m) })
				if !taken {
					o.attached = false
				}
			}
		}
	}
	n.h = e.H
	return true
}

// takeOver ends a session that is, or may be, somebody else's now.
func (n *node) takeOver(o *owned, why string) {
	if o.s.Closing() {
		return
	}
	n.w.trace("%s: %s/%d closes: %s", n.name, o.client, o.epoch, why)
	o.input(func(s *Session) { s.Close(ReasonTakenOver) })
}

// elsewhere tells whether the session was claimed by somebody else.
func (n *node) elsewhere(o *owned) bool {
	owner, _, ok := n.w.m.Owner(o.client)
	return !ok || owner.Epoch != o.epoch
}

// look reads the control events up to now: what waits of a session that was
// claimed elsewhere is taken out.
func (n *node) look() {
	n.w.trace("%s: looks", n.name)
	n.mustLook = false
	for _, o := range slices.Clone(n.owned) {
		if n.elsewhere(o) {
			o.pub.Fail()
			n.takeOver(o, "claimed elsewhere (looked)")
		}
	}
	n.takeOut(func(o *owned) bool { return n.elsewhere(o) })
}

// takeOut refuses what waits in the lanes for some sessions; their clients send
// it again.
func (n *node) takeOut(of func(*owned) bool) {
	for _, l := range n.lanes {
		waiting := l.queue
		l.queue = nil
		for _, it := range waiting {
			if it.o != nil && of(it.o) {
				it.done(store.Appended{Outcome: store.Refused, Err: store.ErrPublisherFailed})
			} else {
				l.queue = append(l.queue, it)
			}
		}
	}
}

// wake ends a pause.
func (n *node) wake() {
	w := n.w
	n.paused = false
	if w.tick-n.asleep > simPause {
		n.mustLook = true
	}
	lapsed := w.m.Lapsed(n.id)
	w.trace("%s: WAKES%s", n.name, map[bool]string{true: ", lapsed"}[lapsed])
	if lapsed {
		for _, g := range n.claims {
			if g.c != nil {
				g.c.close()
			}
		}
		n.claims, n.finishing = nil, map[string]bool{}
		for _, o := range slices.Clone(n.owned) {
			o.pub.Fail()
			n.takeOver(o, "lapsed")
		}
		n.takeOut(func(*owned) bool { return true })
	}
	w.m.Beat(n.id)
}

// drain ends a node in order: its sessions are let go, then its lanes are retired.
func (n *node) drain() {
	n.w.trace("%s: drains", n.name)
	n.draining = true
	for _, o := range slices.Clone(n.owned) {
		o.input(func(s *Session) { s.Close(ReasonShutdown) })
	}
	n.w.ensureNode()
}

func (n *node) stop() bool {
	for i := range n.lanes {
		if n.lanes[i].cur != nil || len(n.lanes[i].queue) > 0 || n.writers[i].cur != nil || len(n.writers[i].queue) > 0 {
			return false
		}
	}
	n.w.trace("%s: stops", n.name)
	for _, l := range n.lanes {
		n.w.m.RetireLane(l.lane)
	}
	n.die()
	n.w.m.Kill(n.id)
	return true
}

// ---- the keeper: any node may play it, two only waste

func (n *node) keeper() bool {
	n.keep = false
	w, did := n.w, false
	for _, id := range w.m.Orphans() {
		if !n.finishing[id] && n.at(id) == nil && !n.claimed(id) {
			w.trace("%s: keeper finishes %s", n.name, id)
			n.finishing[id], did = true, true
			n.claims = append(n.claims, &claiming{n: n, client: id, k: storetest.NewFinish(n.id, id, n.h, w.m.NewID())})
		}
	}
	for _, x := range w.nodes {
		if w.m.Lapsed(x.id) && len(w.m.LanesOf(x.id)) > 0 && !n.owns(x.id) {
			for _, k := range w.m.LanesOf(x.id) {
				w.trace("%s: retires lane %d", n.name, k)
				w.m.RetireLane(k)
				did = true
			}
		}
	}
	for _, id := range w.m.Clients() {
		owner, at, _ := w.m.Owner(id)
		if at != 0 || n.finishing[id] {
			continue
		}
		did = n.keepSession(owner) || did
	}
	return did
}

// owns tells whether a session still names the node as its owner.
func (n *node) owns(of storetest.Node) bool {
	for _, id := range n.w.m.Clients() {
		if _, at, _ := n.w.m.Owner(id); at == of {
			return true
		}
	}
	return false
}

// keepSession decides the wills of a session without a connection, and ends it
// when its time is over. With faults both come later than they were thought of.
func (n *node) keepSession(o schema.Owner) bool {
	w := n.w
	if w.faults {
		n.writer(o.ClientID).queue = append(n.writer(o.ClientID).queue, &op{
			name: n.name + ": keeper decides the wills of " + o.ClientID,
			do:   func(bool) any { return w.decideWill(o) },
			done: func(r any) {
				for _, x := range r.([]schema.Will) {
					n.publishWill(o.ClientID, x)
				}
			},
		}, &op{
			name: n.name + ": keeper ends expired sessions",
			do:   func(bool) any { return w.m.EndExpired(10) },
			done: func(any) {},
		})
		return true
	}
	did := false
	for _, x := range w.decideWill(o) {
		did = n.publishWill(o.ClientID, x) || did
	}
	for _, o := range w.m.EndExpired(10) {
		w.trace("%s: session of %s ends", n.name, o.ClientID)
		did = true
	}
	return did
}

// publishWill appends a due will, then takes it out.
func (n *node) publishWill(client string, x schema.Will) bool {
	if n.willing[x.Key] {
		return false
	}
	w := n.w
	n.willing[x.Key] = true
	m := store.WillMessage(client, n.name, &x)
	if !w.on(ruleWillAlike) {
		m.ID = w.m.NewID()
	}
	w.trace("%s: will of %s is due", n.name, client)
	l := n.lanes[w.index(client)%2]
	l.queue = append(l.queue, appendItem{m: m, done: func(store.Appended) {
		q := n.writer(client)
		doc := store.TakeOutWill{Owner: schema.Owner{ClientID: client}, Key: x.Key}
		q.queue = append(q.queue, &op{
			name: n.name + ": will out " + client,
			do:   func(bool) any { return w.m.Write(doc) },
			done: func(any) { delete(n.willing, x.Key) },
		})
	}})
	return true
}

func (n *node) at(client string) *owned {
	for _, o := range n.owned {
		if o.client == client {
			return o
		}
	}
	return nil
}

func (n *node) claimed(client string) bool {
	for _, g := range n.claims {
		if g.client == client {
			return true
		}
	}
	return false
}

// ---- claims

// claiming is a claim under way: between any two steps the node can crash, or be
// overtaken.
type claiming struct {
	n      *node
	client string
	c      *conn // nil: the keeper's
	k      *storetest.Claim
	ans    storetest.Answer
	busy   bool
	until  int // tick before which it only waits
	raised bool
}

func (g *claiming) ready() bool { return !g.busy && g.n.w.tick >= g.until }

func (g *claiming) step() bool {
	n, w := g.n, g.n.w
	owner, _, raised := g.k.Raised()
	if raised && !g.raised {
		g.raised = true
		w.trace("%s: claims %s epoch %d sid %d", n.name, g.client, owner.Epoch, owner.SID)
	}
	if !raised && g.c != nil && g.c.eof {
		g.end()
		return true
	}
	step, more := g.k.Next(g.ans)
	if !more {
		g.end()
		g.over()
		return true
	}
	read := func() {
		g.ans = step.Do(w.m)
	}
	switch step.Name {
	case "read", "records", "load":
		read()
	case "wait":
		read()
		g.until = w.tick + pick(w, 0, 1)
		if !w.faults {
			g.until = w.tick + 1
		}
	default:
		g.busy = true
		n.writer(g.client).queue = append(n.writer(g.client).queue, &op{
			name: n.name + ": claim of " + g.client + ": " + step.Name,
			do: func(bool) any {
				was, _, _ := w.m.Owner(g.client)
				a := step.Do(w.m)
				if step.Name == "wills" {
					w.decided[g.client] = was.Epoch
				}
				if now, _, ok := w.m.Owner(g.client); step.Name == "raise" && ok && now.Epoch != was.Epoch {
					w.claims = append(w.claims, claimNote{client: g.client, tick: w.tick, fresh: now.SID != was.SID, c: g.c})
				}
				return a
			},
			done: func(r any) { g.busy, g.ans = false, r.(storetest.Answer) },
		})
	}
	return true
}

func (g *claiming) end() {
	g.n.claims = slices.DeleteFunc(g.n.claims, func(x *claiming) bool { return x == g })
	if g.c == nil {
		delete(g.n.finishing, g.client)
	}
}

// over takes the outcome of the claim.
func (g *claiming) over() {
	n, w := g.n, g.n.w
	a := g.k.Claimed()
	if a.Err != nil {
		w.trace("%s: claim of %s: %v", n.name, g.client, a.Err)
		if g.c != nil {
			g.c.close()
		}
		return
	}
	w.trace("%s: has %s/%d sid %d present %v released %v after %v seq %d flight %v", n.name, g.client, a.Epoch, a.SID, a.Present, a.Released, a.Cursor.After, a.Cursor.Seq, flightOf(a.Cursor.Flight))
	if g.c == nil {
		q := n.writer(g.client)
		n.finishing[g.client] = true
		for _, doc := range []store.Write{store.SaveCursor{Owner: a.Owner, Cursor: a.Cursor}, store.Release{Owner: a.Owner}} {
			q.queue = append(q.queue, &op{
				name: q.describe(doc), do: func(bool) any { return w.write(doc) },
				done: func(any) {
					if _, ok := doc.(store.Release); ok {
						delete(n.finishing, g.client)
					}
				},
			})
		}
		return
	}
	for _, x := range a.Wills {
		n.publishWill(g.client, x)
	}
	o := newOwned(n, g.c, &a)
	if g.c.eof && w.chance(0.5) {
		o.input(func(s *Session) { s.Close(ReasonDetached) })
		return
	}
	if n.draining {
		o.input(func(s *Session) { s.Close(ReasonShutdown) })
		return
	}
	g.c.o = o
	g.c.accepted = true
	g.c.send(packet{kind: pktConnack, present: a.Present, sid: a.SID})
	o.input((*Session).Start)
}
