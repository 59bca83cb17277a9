package group

import (
	"errors"
	"slices"
	"time"

	"rewindmq/broker/session"
	"rewindmq/schema"
	"rewindmq/store"
)

// Member is a session that is online on this node. It is compared by ==.
type Member interface {
	// Room gives how many messages it would take now.
	Room() int
	// OfferShared gives it a message. After Took, and only then, OnClaimed is
	// called once with it and the message's ID.
	OfferShared(m *schema.Message, isLive bool) session.Offered
}

// Options of a Group.
type Options struct {
	// Filter is the topic filter behind the group's name. REQUIRED.
	Filter string
	// Queue bounds the messages waiting in memory, live and while attaching
	// (default 256 each).
	Queue int
	// Line bounds the messages that were given or passed while one before them has
	// no answer (default 4,096).
	Line int
	// Now is the node's clock. REQUIRED.
	Now func() time.Time
	// H gives the hub's cursor. REQUIRED.
	H func() schema.Cursor
}

const (
	defaultQueue  = 256
	defaultLine   = 4096
	defaultLookup = 32
	// saveEvery is how often the place is saved, at most; refreshEvery how often
	// the store is asked what lost members have left, whom this node did not know.
	saveEvery      = time.Second
	saveMergeEvery = 10 * time.Minute
	refreshEvery   = 5 * time.Second
)

// Group is a group while a member is online on this node. Not safe for concurrent
// use.
type Group struct {
	o       Options
	off     rule
	members []*member
	next    int // round robin: where to begin to look among equals
	round   uint64

	// The place in the log. Invariant: taken covers after.
	taken, after schema.Cursor
	begin        schema.Cursor             // H when it was opened: QoS 0 is not replayed from before
	line         []*step                   // what after still has to follow, in order
	claimed      map[schema.ID]schema.Mark // after taken, and given by others
	under        map[schema.ID]*entry
	again        []*entry // to be given before anything else, by mark
	looking      bool

	opened  bool // taken stands
	opening bool
	stale   bool // to be opened again
	askedAt time.Time

	mode   mode
	queue  []*schema.Message
	buffer []*schema.Message

	moved, merged bool        // since the last save
	passed        []schema.ID // of Again, not yet taken out of the store
	saving        bool
	savingPassed  []schema.ID
	overtaken     []schema.ID // claimed or passed since the store was asked: its answer may still have them
	savedAt       time.Time
	self          schema.ID
	nodes         []schema.ID // those with members, as of the last OnOpened
	parked        []*entry    // given by other nodes, as far as known; in the order taken
	parkedOf      map[key]int // how many of them have a key

	out []Action
}

// member is a Member with what the group knows of it.
type member struct {
	Member
	state memberState
	tried uint64 // the round in which it did not take the message
}

type memberState uint8

const (
	joined memberState = iota // since the last OpenGroup was asked for
	asked                     // before it was
	active                    // and answered: it is given messages
)

// New makes a group without members.
func New(o Options) *Group {
	if o.Queue == 0 {
		o.Queue = defaultQueue
	}
	if o.Line == 0 {
		o.Line = defaultLine
	}
	now := o.Now()
	return &Group{
		o: o, claimed: map[schema.ID]schema.Mark{}, under: map[schema.ID]*entry{}, savedAt: now, askedAt: now,
	}
}

// Actions gives what is to be carried out, and forgets it. The slice is the
// caller's.
func (g *Group) Actions() []Action {
	a := g.out
	g.out = nil
	return a
}

func (g *Group) do(a Action) { g.out = append(g.out, a) }

// Join adds a member; one that is there already stays. It is given messages once the
// store was asked where the group stands, later than this: the group that is known
// here may have gone with its last member, and the member may be the first of
// another (G3).
func (g *Group) Join(m Member) {
	if g.find(m) >= 0 {
		return
	}
	g.members = append(g.members, &member{Member: m})
	if !g.on(ruleJoinAsks) && g.opened {
		g.members[len(g.members)-1].state = active
	}
	g.Refresh()
}

// Part takes a member out: it has unsubscribed. What it was given before it keeps.
func (g *Group) Part(m Member) {
	if i := g.find(m); i >= 0 {
		g.members = slices.Delete(g.members, i, i+1)
	}
	g.settleDown()
}

// Gone takes a member out whose session has let go of everything. What it had not
// acknowledged stands in the store's Again now.
func (g *Group) Gone(m Member) {
	for id, e := range g.under {
		if e.by == m {
			delete(g.under, id) // its answer will not come any more
			e.doubt = inDoubt
			g.putAgain(e)
		}
	}
	g.Part(m)
	if len(g.members) > 0 {
		g.Refresh()
	}
}

func (g *Group) find(m Member) int {
	return slices.IndexFunc(g.members, func(o *member) bool { return o.Member == m })
}

// Refresh asks the store where the group stands, as soon as it can.
func (g *Group) Refresh() {
	g.stale = true
	g.open()
}

// open asks the store, once at a time.
func (g *Group) open() {
	if g.opening || len(g.members) == 0 {
		return
	}
	g.opening, g.stale, g.askedAt, g.overtaken = true, false, g.o.Now(), nil
	for _, m := range g.members {
		if m.state == joined {
			m.state = asked
		}
	}
	for _, e := range g.again {
		if e.doubt == inDoubt {
			e.doubt = askedFor
		}
	}
	g.askForParked()
	g.do(Action{Do: DoOpen})
}

// OnOpened brings what DoOpen asked for. After an error Tick asks again; but a group
// that does not exist has no members: who was one when it was asked for is none now.
func (g *Group) OnOpened(d store.Group, err error) {
	g.opening = false
	switch {
	case errors.Is(err, store.ErrNoGroup):
		g.members = slices.DeleteFunc(g.members, func(m *member) bool { return m.state != joined })
		g.settleDown()
	case err != nil:
		for _, m := range g.members {
			if m.state == asked {
				m.state = joined
			}
		}
		for _, e := range g.again {
			if e.doubt == askedFor {
				e.doubt = inDoubt
			}
		}
		for _, e := range g.parked {
			e.doubt = certain
		}
		g.stale = true
		return
	default:
		g.stand(&d)
	}
	if g.stale {
		g.open()
	}
	g.Pump()
}

// stand takes over where the group stands. Whatever it is, merging is right: what is
// not after the store's place is nobody's to give, but for Again.
func (g *Group) stand(d *store.Group) {
	first := !g.opened
	g.opened, g.self, g.nodes = true, d.Self, d.Nodes
	g.taken.Merge(d.After)
	g.after.Merge(d.After)
	g.reconcile(d)
	idle := true
	for _, m := range g.members {
		idle = idle && m.state != active
		if m.state == asked {
			m.state = active
		}
	}
	if first {
		g.begin = g.o.H()
	}
	if idle && g.mode != live {
		g.do(Action{Do: DoReplay})
	}
}

// settleDown ends the work when no member is left.
func (g *Group) settleDown() {
	if len(g.members) > 0 {
		return
	}
	g.mode, g.queue, g.buffer = replaying, nil, nil
	if !g.saving && (g.moved || g.merged || len(g.passed) > 0) {
		g.save()
	}
	g.end()
}

func (g *Group) end() {
	if g.Idle() {
		g.do(Action{Do: DoEnd})
	}
}

// Idle tells whether the group has no member, nothing to save and no claim under way:
// who lets go of it loses nothing, and who opens it next finds all that was claimed.
func (g *Group) Idle() bool { return len(g.members) == 0 && !g.saving && len(g.under) == 0 }

// Members gives the number of members that are given messages. One that has just joined is
// none of them before the store was asked where the group stands.
func (g *Group) Members() (n int) {
	for _, m := range g.members {
		if m.state == active {
			n++
		}
	}
	return n
}

// Waits tells that something waits for room, with a member or in the line.
func (g *Group) Waits() bool {
	return len(g.members) > 0 && (len(g.again) > 0 || len(g.queue) > 0 || g.mode != live)
}

// HasRoom tells whether a member would take a message now.
func (g *Group) HasRoom() bool {
	return slices.ContainsFunc(g.members, func(m *member) bool { return m.state == active && m.Room() > 0 })
}
