package broker

import (
	"context"
	"errors"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"rewindmq/broker/group"
	"rewindmq/broker/session"
	"rewindmq/fanout"
	"rewindmq/replay"
	"rewindmq/schema"
	"rewindmq/store"
)

// shareTick is how often a group does what is due by time.
const shareTick = time.Second

// shares are the groups of shared subscriptions that have a member online here.
type shares struct {
	b  *Broker
	mu sync.Mutex // before a share's own
	by map[string]*share
}

// join makes a client a member of a group.
func (ss *shares) join(cl *client, name string) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	sh := ss.by[name]
	if sh == nil {
		sh = ss.b.newShare(name)
		ss.by[name] = sh
		ss.b.tasks.Go(sh.run)
	}
	cl.mu.Lock()
	if cl.shares == nil {
		cl.shares = make(map[string]*share)
	}
	cl.shares[name] = sh
	cl.tellRoom()
	cl.mu.Unlock()
	sh.remember(cl)
	sh.input(func(g *group.Group) { g.Join(member{cl, name}) })
}

// remember notes that a client knows the share. At most about as many that have ended
// are kept as there are others.
func (sh *share) remember(cl *client) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if len(sh.joined) >= sh.sweepAt {
		maps.DeleteFunc(sh.joined, func(cl *client, _ struct{}) bool {
			select {
			case <-cl.ended:
				return true
			default:
				return false
			}
		})
		sh.sweepAt = 2*len(sh.joined) + 16
	}
	sh.joined[cl] = struct{}{}
}

// forget lets the clients forget the share, which is dead. REQUIRES: mu.
func (sh *share) forget() {
	for cl := range sh.joined {
		cl.mu.Lock()
		if cl.shares[sh.name] == sh {
			delete(cl.shares, sh.name)
		}
		cl.mu.Unlock()
	}
	sh.joined = nil
}

// end lets go of a group that has no member any more.
func (ss *shares) end(sh *share) {
	ss.mu.Lock()
	sh.mu.Lock()
	dead := sh.g.Idle() && !sh.dead
	if dead {
		sh.dead = true
		sh.forget()
		delete(ss.by, sh.name)
		sh.changed.Broadcast()
	}
	sh.mu.Unlock()
	ss.mu.Unlock()
	if dead {
		sh.membership.Leave()
		sh.cancel()
	}
}

// wait waits until no group is left, or ctx ends.
func (ss *shares) wait(ctx context.Context) {
	for {
		var left *share
		ss.mu.Lock()
		for _, sh := range ss.by {
			left = sh
		}
		ss.mu.Unlock()
		if left == nil {
			return
		}
		select {
		case <-left.ctx.Done():
		case <-ctx.Done():
			return
		}
	}
}

// share is a group while a member is online here: the state machine of broker/group
// behind a lock, and the carrying out of its actions. Inputs come from the hub, the
// replay, the store, and the clients, whose own locks come after this one: what a
// client has to tell while it holds its lock it leaves as a note.
//
// Its goroutine (run) takes in notes and does what is due by time; it is one of
// Broker.tasks, and ends with the last member or the broker.
type share struct {
	b          *Broker
	name       string
	ctx        context.Context // ends with the last member
	cancel     context.CancelFunc
	membership *fanout.Membership
	wake       chan struct{}
	// hungry: something waits for room with a member.
	hungry atomic.Bool

	notesMu sync.Mutex // the last in the order of locks
	notes   []note     // bounded by what the members have under way

	mu      sync.Mutex
	g       *group.Group
	later   deferred[group.Action] // for the store
	reading bool                   // a replay is under way
	dead    bool
	changed sync.Cond // for the replay: Feed may take more
	// joined are the clients that know this share: its members, and those that were and
	// have not ended, as last looked at. Beyond sweepAt of them it is looked again.
	joined  map[*client]struct{}
	sweepAt int
}

// note is what became of a claim.
type note struct {
	by      member
	id      schema.ID
	outcome store.Outcome
}

// member is a client as the member of a group.
type member struct {
	cl   *client
	name string
}

// Room implements group.Member. It may be a moment old.
func (m member) Room() int { return int(m.cl.room.Load()) }

// OfferShared implements group.Member.
func (m member) OfferShared(msg *schema.Message, isLive bool) (a session.Offered) {
	a = session.NotMember
	m.cl.input(func(s *session.Session) { a = s.OfferShared(msg, m.name, isLive) })
	return a
}

func (b *Broker) newShare(name string) *share {
	plain, _ := schema.CutShare(name)
	sh := &share{b: b, name: name, wake: make(chan struct{}, 1), joined: make(map[*client]struct{})}
	sh.ctx, sh.cancel = context.WithCancel(b.life)
	sh.changed.L = &sh.mu
	sh.later = deferred[group.Action]{tasks: &b.tasks, mu: &sh.mu, carry: sh.carryLater}
	sh.g = group.New(group.Options{Filter: plain, Queue: b.o.SessionQueue, Now: b.now, H: b.hub.H})
	sh.membership = b.hub.Join(sh)
	sh.membership.Subscribe(plain)
	return sh
}

func (sh *share) run() {
	tick := time.NewTicker(shareTick)
	defer tick.Stop()
	for {
		select {
		case <-sh.wake:
			sh.input((*group.Group).Pump)
		case <-tick.C:
			// H is loaded under the lock: everything up to it has been offered.
			sh.input(func(g *group.Group) { g.Tick(sh.b.hub.H()) })
		case <-sh.ctx.Done():
			sh.mu.Lock()
			sh.changed.Broadcast()
			sh.mu.Unlock()
			return
		}
	}
}

// poke wakes the goroutine. It takes no lock.
func (sh *share) poke() {
	select {
	case sh.wake <- struct{}{}:
	default:
	}
}

// tell leaves a note. A client calls it while it holds its lock. A dead share, which the
// client has forgotten (nil), takes none: it has no claim under way.
func (sh *share) tell(n note) {
	if sh == nil {
		return
	}
	sh.notesMu.Lock()
	sh.notes = append(sh.notes, n)
	sh.notesMu.Unlock()
	sh.poke()
}

// input tells the group something, after what was left as notes, and carries out what
// follows.
func (sh *share) input(fn func(g *group.Group)) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	sh.notesMu.Lock()
	notes := sh.notes
	sh.notes = nil
	sh.notesMu.Unlock()
	for _, n := range notes {
		sh.g.OnClaimed(n.by, n.id, n.outcome)
	}
	fn(sh.g)
	// A client stores its room and then looks at hungry; here it is the other way
	// round: one of the two sees the other.
	sh.hungry.Store(false)
	if sh.g.Waits() {
		sh.hungry.Store(true)
		if sh.g.HasRoom() {
			sh.g.Pump()
		}
	}
	for _, a := range sh.g.Actions() {
		sh.carry(a)
	}
	if sh.reading && (sh.g.Hungry() || !sh.g.Reads()) {
		sh.changed.Broadcast()
	}
}

// carry carries out one action. REQUIRES: mu. It never blocks.
func (sh *share) carry(a group.Action) {
	switch a.Do {
	case group.Count:
		sh.b.m.dropped(a.QoS, a.Dropped)
	case group.DoReplay:
		sh.startReplay()
	default:
		sh.later.put(a)
	}
}

// carryLater carries out what waits for the store, without the lock.
func (sh *share) carryLater(a *group.Action) {
	s, ctx := sh.b.store, sh.ctx
	switch a.Do {
	case group.DoOpen:
		d, err := s.OpenGroup(ctx, sh.name)
		if err != nil && !errors.Is(err, store.ErrNoGroup) {
			sh.trouble("open group", err)
		}
		sh.input(func(g *group.Group) { g.OnOpened(d, err) })
	case group.DoLookup:
		msgs, err := s.Lookup(ctx, a.Refs)
		if err != nil {
			sh.trouble("look up for group", err)
		}
		sh.input(func(g *group.Group) { g.OnLookup(a.Refs, msgs, err) })
	case group.DoSave:
		err := s.SaveGroup(ctx, sh.name, a.After, a.Passed)
		if err != nil {
			sh.trouble("save group", err)
		}
		sh.input(func(g *group.Group) { g.OnSaved(err) })
	case group.DoEnd:
		sh.b.shares.end(sh)
	}
}

func (sh *share) trouble(what string, err error) {
	if sh.ctx.Err() == nil {
		sh.b.storeTrouble(what, sh.name, err)
	}
}

// Offer takes a message from the hub, under the hub's lock.
func (sh *share) Offer(m *schema.Message) (taken bool) {
	sh.input(func(g *group.Group) { taken = g.Offer(m) })
	return taken
}

// startReplay lets the group read the log until it is live. REQUIRES: mu.
func (sh *share) startReplay() {
	if sh.reading || !sh.g.Reads() {
		return
	}
	sh.reading = true
	sh.b.tasks.Go(func() {
		result, err := replay.CatchUp(sh.ctx, sh.b.source, (*sharing)(sh), sh.b.replay)
		sh.b.m.trimmed(result.Trimmed)
		if err != nil && !errors.Is(err, errGone) && sh.ctx.Err() == nil {
			sh.trouble("replay for group", err)
			select { // the store may be better in a while
			case <-time.After(shareTick):
			case <-sh.ctx.Done():
			}
		}
		sh.mu.Lock()
		defer sh.mu.Unlock()
		sh.reading = false
		if sh.ctx.Err() == nil {
			sh.startReplay() // let go of while CatchUp was returning, or it failed
		}
	})
}

// sharing is the group as the target of a replay.
type sharing share

var _ replay.Target = (*sharing)(nil)

func (r *sharing) filters() []string {
	plain, _ := schema.CutShare(r.name)
	return []string{plain}
}

// Attach makes the hub offer what comes after its cursor, which it returns.
func (r *sharing) Attach() (from, upTo schema.Cursor, filters []string, ok bool) {
	sh := (*share)(r)
	sh.membership.Attach(func(h schema.Cursor) {
		upTo = h
		sh.input(func(g *group.Group) { from, ok = g.OnAttach() })
	})
	return from, upTo, r.filters(), ok
}

// Deliver feeds the group and waits until it has taken something, or all.
func (r *sharing) Deliver(ctx context.Context, msgs []*schema.Message) (taken int, filters []string, err error) {
	sh := (*share)(r)
	for {
		sh.input(func(g *group.Group) { taken = g.Feed(msgs) })
		sh.mu.Lock()
		for taken < len(msgs) && !sh.g.Hungry() && sh.g.Reads() && ctx.Err() == nil {
			sh.changed.Wait()
		}
		reads := sh.g.Reads()
		sh.mu.Unlock()
		switch {
		case !reads:
			return taken, r.filters(), errGone
		case ctx.Err() != nil:
			return taken, r.filters(), ctx.Err()
		case taken > 0:
			return taken, r.filters(), nil
		}
	}
}

// Done tells the group that it has all up to upTo.
func (r *sharing) Done(upTo schema.Cursor) (live bool, err error) {
	reads := false
	(*share)(r).input(func(g *group.Group) { live = g.OnCaughtUp(upTo); reads = g.Reads() })
	if !live && !reads {
		return false, errGone
	}
	return live, nil
}
