package broker

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"rewindmq/broker/group"
	"rewindmq/broker/session"
	"rewindmq/fanout"
	"rewindmq/schema"
	"rewindmq/store"
)

// client is a session while a connection owns it. Inputs come from the
// connection, the hub, the lanes, the store and the ticker; each takes mu, tells
// the state machine, and carries out what it leaves, so that packets leave in the
// order in which they were decided.
type client struct {
	b  *Broker
	id string
	c  *conn

	// ended is closed when the session has let go of everything; welcome when
	// CONNACK was sent, at welcomed.
	ended, welcome chan struct{}
	welcomed       time.Time
	// ousts is why it ends who owns its client id.
	ousts session.Reason
	// room is what the session would take of a group now, for groups to read
	// without its lock.
	room atomic.Int64

	// unrecorded and unwritten are the first failures of a record and of a
	// session write. They belong to the client's lanes.
	unrecorded, unwritten error

	mu         sync.Mutex
	s          *session.Session // nil until the session is claimed
	kicked     session.Reason   // asked to end before CONNACK
	opened     bool             // CONNACK was sent
	gone       bool             // DoEnd was carried out
	publisher  *store.Publisher
	membership *fanout.Membership
	appending  []*schema.Message           // decided in this input, not yet handed to the store
	appended   int64                       // bytes of them
	hold       bool                        // more input follows at once: collect the appends
	later      deferred[session.Action]    // what may wait or needs the hub's lock
	reading    bool                        // a replay is under way
	lived      bool                        // it has been live: the next replay is for being slow
	waiting    func(*session.Session) bool // what the connection waits for, nil: nothing
	changed    sync.Cond                   // for the replay: Feed may take more; for the connection: Admit
	received   [3]int64                    // counted as received and not yet answered, by QoS
	shares     map[string]*share           // the groups that it has joined, also those left since
}

func (b *Broker) newClient(id string, c *conn) *client {
	cl := &client{b: b, id: id, c: c, ended: make(chan struct{}), welcome: make(chan struct{}), ousts: session.ReasonTakenOver}
	cl.changed.L = &cl.mu
	cl.later = deferred[session.Action]{tasks: &b.tasks, mu: &cl.mu, carry: cl.carryLater}
	return cl
}

// input tells the state machine something and carries out what follows.
func (cl *client) input(fn func(s *session.Session)) {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	if cl.s == nil {
		return
	}
	buf := cl.b.scratch.get()
	cl.s.Lend(*buf)
	fn(cl.s)
	actions := cl.s.Actions()
	for i := range actions {
		cl.carry(&actions[i])
	}
	for cl.s.Paused() { // the connection has taken what it was given: on
		clear(actions)
		cl.s.Lend(actions)
		cl.s.Pump()
		actions = cl.s.Actions()
		for i := range actions {
			cl.carry(&actions[i])
		}
	}
	if !cl.hold {
		cl.flushAppends()
	}
	if cl.reading && (cl.s.Hungry() || cl.s.Closing()) || cl.waiting != nil && cl.waiting(cl.s) {
		cl.changed.Broadcast()
	}
	if len(cl.shares) > 0 {
		cl.tellRoom()
	}
	*buf = actions
	cl.b.scratch.put(buf)
}

// tellRoom tells the groups when there is more room. REQUIRES: mu.
func (cl *client) tellRoom() {
	room := int64(cl.s.Room())
	if room <= cl.room.Swap(room) {
		return
	}
	for _, sh := range cl.shares {
		if sh.hungry.Load() {
			sh.poke()
		}
	}
}

// carry carries out one action. REQUIRES: mu. It never blocks: what may wait is
// deferred.
func (cl *client) carry(a *session.Action) {
	switch a.Do {
	case session.SendPublish, session.SendAck, session.SendSuback, session.SendUnsuback:
		cl.send(a)
	case session.DoRecord:
		cl.b.records.put(cl, a.Delivery)
	case session.DoWrite:
		cl.b.writes.put(write{cl: cl, doc: a.Write, done: func(err error) {
			cl.input(func(s *session.Session) { s.OnWritten(err, errors.Is(err, store.ErrSessionLost)) })
		}})
	case session.DoAppend:
		cl.appending = append(cl.appending, a.Message)
		cl.appended += int64(a.Message.Size())
	case session.DoClose:
		cl.closeConn(a.Reason)
	case session.DoEnd:
		cl.gone = true
		cl.later.put(*a)
	case session.Count:
		cl.b.m.dropped(a.QoS, a.Dropped)
	case session.Claimed:
		cl.shares[a.Group].tell(note{member{cl, a.Group}, a.ID, a.Outcome})
	case session.Settled:
		cl.b.m.settled(a.QoS, a.At, cl.b.now())
	default:
		cl.later.put(*a)
	}
}

// closeConn ends the connection with a DISCONNECT, where the protocol has one,
// that can be read before the close.
func (cl *client) closeConn(why session.Reason) {
	switch why {
	case session.ReasonDetached, session.ReasonNormal, session.ReasonWithWill:
	default:
		// Not to be stored after the session has gone elsewhere.
		cl.publisher.Fail()
	}
	cl.c.disconnect(why)
}

// flushAppends hands what was decided to the store, in order. REQUIRES: mu.
func (cl *client) flushAppends() {
	if len(cl.appending) == 0 {
		return
	}
	msgs, size := cl.appending, cl.appended
	cl.appending, cl.appended = nil, 0
	strict := cl.publisher.Strict
	round := cl.b.ingest.add(size, strict)
	cl.b.store.Append(cl.b.life, cl.publisher, msgs, func(answers []store.Appended) {
		cl.b.ingest.done(size, strict, round)
		cl.onAppended(answers)
	})
}

// onAppended hands the store's answers to the session, in order.
func (cl *client) onAppended(answers []store.Appended) {
	cl.input(func(s *session.Session) {
		for _, a := range answers {
			s.OnAppended(a)
		}
	})
}

// Offer takes a message from the hub, under the hub's lock.
func (cl *client) Offer(m *schema.Message) (taken bool) {
	cl.input(func(s *session.Session) { taken = s.Offer(m) })
	return taken
}

// carryLater carries out what was deferred, without mu.
func (cl *client) carryLater(a *session.Action) {
	switch a.Do {
	case session.DoFilters:
		cl.membership.Subscribe(a.Filters...)
	case session.DoUnfilter:
		cl.membership.Unsubscribe(a.Filters...)
	case session.DoHead:
		head, err := cl.head()
		cl.input(func(s *session.Session) { s.OnHead(head, err) })
	case session.DoLookup:
		msgs, err := cl.b.store.Lookup(cl.b.life, a.Refs)
		cl.input(func(s *session.Session) {
			if err != nil {
				s.Close(session.ReasonStore)
				return
			}
			s.OnLookup(a.Refs, msgs)
		})
	case session.DoWaitFor:
		cl.waitFor(a.Place)
	case session.DoWalk:
		cl.input((*session.Session).Walk)
	case session.DoJoin:
		cl.b.shares.join(cl, a.Group)
	case session.DoPart:
		cl.leaveGroup(a.Group, (*group.Group).Part)
	case session.DoReplay:
		cl.startReplay()
	case session.DoEnd:
		cl.end()
	}
}

// subscribePatience is for how long a SUBSCRIBE waits for what others have published.
const subscribePatience = time.Second

// head gives the place of a SUBSCRIBE. What this node has read before lies before it
// as a rule: that is how it looks to two clients that know of each other's doings.
// It is not promised, so a store that is slow is not waited for.
func (cl *client) head() (schema.Cursor, error) {
	ctx, cancel := context.WithTimeout(cl.c.ctx, subscribePatience)
	defer cancel()
	cl.b.ingest.behind(ctx)
	return cl.b.store.Head(cl.b.life)
}

// waitFor pumps the session once the hub has passed place.
func (cl *client) waitFor(place schema.Cursor) {
	if cl.b.hub.H().Covers(place) {
		cl.input((*session.Session).Pump)
		return
	}
	cl.b.tasks.Go(func() {
		if cl.b.hub.WaitFor(cl.c.ctx, place) == nil {
			cl.input((*session.Session).Pump)
		}
	})
}

// leaveGroup takes the client out of a group that it has joined.
func (cl *client) leaveGroup(name string, leave func(*group.Group, group.Member)) {
	cl.mu.Lock()
	sh := cl.shares[name]
	cl.mu.Unlock()
	if sh != nil {
		sh.input(func(g *group.Group) { leave(g, member{cl, name}) })
	}
}

// end lets go of the client id: the next claim of it may begin. What it has left of
// its groups' messages is in the store's hands now, and offered to others.
func (cl *client) end() {
	cl.membership.Leave()
	cl.mu.Lock()
	groups := slices.Collect(maps.Keys(cl.shares))
	cl.mu.Unlock()
	for _, name := range groups {
		cl.leaveGroup(name, (*group.Group).Gone)
	}
	cl.mu.Lock()
	for q, n := range cl.received {
		cl.b.m.unanswered(uint8(q), n)
	}
	cl.received = [3]int64{}
	cl.changed.Broadcast()
	how, released := cl.s.LetGo()
	cl.mu.Unlock()
	if !released {
		cl.b.orphans.add(cl.id, cl.orphan(how))
	}
	cl.leave()
	cl.b.keeper.poke()
}

// leave makes the client id free.
func (cl *client) leave() {
	cl.b.roster.leave(cl)
	close(cl.ended)
}

// takeOver asks the session to end: its client id has connected again, or the
// server ends.
func (cl *client) takeOver(why session.Reason) {
	cl.mu.Lock()
	if !cl.opened { // its own connection ends it: CONNACK says why
		cl.kicked = why
		cl.mu.Unlock()
		return
	}
	cl.mu.Unlock()
	cl.input(func(s *session.Session) { s.Close(why) })
}
