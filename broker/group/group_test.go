package group

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"rewindmq/broker/session"
	"rewindmq/schema"
	"rewindmq/store"
)

// hand is a member with so much room.
type hand struct {
	room  int
	qos   uint8 // 0: it is sent what it gets
	small bool
	gone  bool
	got   []uint64
	asked int
}

func (h *hand) Room() int { return h.room }

func (h *hand) OfferShared(m *schema.Message, _ bool) session.Offered {
	h.asked++
	switch {
	case h.gone:
		return session.NotMember
	case h.small && len(m.Payload) > 0:
		return session.TooLarge
	case h.room == 0:
		return session.Full
	}
	h.room--
	h.got = append(h.got, m.Mark.N)
	if min(h.qos, m.QoS) == 0 {
		return session.Sent
	}
	return session.Took
}

// table is a group with its clock; what it asks of the store is answered by hand.
type table struct {
	t   *testing.T
	g   *Group
	now time.Time
	h   schema.Cursor
	out []Action
}

func newTable(t *testing.T, o Options) *table {
	b := &table{t: t, now: time.Unix(1000, 0), h: schema.At(1, 0)}
	o.Filter, o.Now, o.H = "t", func() time.Time { return b.now }, func() schema.Cursor { return b.h }
	b.g = New(o)
	return b
}

// did gives what the group has asked for since, by name.
func (b *table) did() []Do {
	var out []Do
	b.out = b.g.Actions()
	for _, a := range b.out {
		out = append(out, a.Do)
	}
	return out
}

func (b *table) wants(what string, want ...Do) {
	b.t.Helper()
	if got := b.did(); !slices.Equal(got, want) {
		b.t.Fatalf("%s: actions %v, want %v", what, got, want)
	}
}

// live opens the group with members, and brings it up to the hub.
func (b *table) live(d store.Group, members ...*hand) {
	b.t.Helper()
	for _, m := range members {
		b.g.Join(m)
	}
	b.wants("Join", DoOpen)
	b.g.OnOpened(d, nil)
	if len(members) > 1 { // who came when the store had been asked
		b.wants("OnOpened", DoReplay, DoOpen)
		b.g.OnOpened(d, nil)
	} else {
		b.wants("OnOpened", DoReplay)
	}
	if _, ok := b.g.OnAttach(); !ok || !b.g.OnCaughtUp(b.h) {
		b.t.Fatal("not live")
	}
	b.did()
}

func msg(n uint64, qos uint8) *schema.Message {
	return &schema.Message{
		ID: schema.ID{11: byte(n), 10: byte(n >> 8)}, Mark: schema.Mark{Lane: 1, N: n}, Topic: "t", ClientID: fmt.Sprint("p", n), QoS: qos,
	}
}

func (b *table) offer(from, to uint64) {
	b.t.Helper()
	for n := from; n <= to; n++ {
		if !b.g.Offer(msg(n, 1)) {
			b.t.Fatalf("message %d is refused", n)
		}
	}
}

func at(n uint64) store.Group { return store.Group{After: schema.At(1, n)} }

// The one with most room gets it; equals take turns.
func TestMostRoom(t *testing.T) {
	t.Parallel()
	a, b, c := &hand{room: 3, qos: 1}, &hand{room: 5, qos: 1}, &hand{room: 3, qos: 1}
	x := newTable(t, Options{})
	x.live(at(0), a, b, c)
	x.offer(1, 2)
	if !slices.Equal(b.got, []uint64{1, 2}) {
		t.Errorf("the one with most room got %v", b.got)
	}
	x.offer(3, 11)
	for i, h := range []*hand{a, b, c} {
		if h.room != 0 {
			t.Errorf("member %d has room for %d left", i, h.room)
		}
	}
	if x.offer(12, 12); !x.g.Waits() || x.g.HasRoom() {
		t.Error("the twelfth does not wait")
	}
	c.room = 1
	x.g.Pump()
	if n := c.got[len(c.got)-1]; n != 12 {
		t.Errorf("the twelfth went elsewhere; last is %d", n)
	}
	// Turns, while all have the same room.
	p, q := &hand{qos: 1}, &hand{qos: 1}
	y := newTable(t, Options{})
	y.live(at(0), p, q)
	for n := uint64(1); n <= 10; n++ {
		p.room, q.room = 1, 1
		y.offer(n, n)
	}
	if len(p.got) != 5 || len(q.got) != 5 {
		t.Errorf("equals got %v and %v", p.got, q.got)
	}
}

// after stops at the first claim without an answer; what needs none waits behind it.
func TestAfterFollows(t *testing.T) {
	t.Parallel()
	a := &hand{room: 100, qos: 1}
	x := newTable(t, Options{})
	x.live(at(0), a)
	x.offer(1, 3)
	x.g.Offer(msg(4, 0))
	for _, tt := range []struct {
		answered uint64
		outcome  store.Outcome
		want     uint64
	}{{2, store.Stored, 0}, {1, store.Refused, 2}, {3, store.Stored, 4}} {
		x.g.OnClaimed(a, msg(tt.answered, 1).ID, tt.outcome)
		if !x.g.after.Equal(schema.At(1, tt.want)) {
			t.Errorf("after the answer for %d: after is %v, want %d", tt.answered, x.g.after, tt.want)
		}
	}
	x.now = x.now.Add(time.Second)
	x.g.Tick(x.h)
	if x.wants("Tick", DoSave); !x.out[0].After.Equal(schema.At(1, 4)) {
		t.Errorf("saves %v", x.out[0].After)
	}
	x.g.Tick(x.h)
	x.wants("Tick while saving")
	x.g.OnSaved(errors.New("no"))
	x.g.Tick(x.h)
	x.wants("Tick at once after a failure")
	x.now = x.now.Add(time.Second)
	x.g.Tick(x.h)
	x.wants("Tick a second later", DoSave)
}

// One whose claim is in doubt comes again, before anything else, and only after the
// store was asked; the claims of others count.
func TestInDoubt(t *testing.T) {
	t.Parallel()
	a, b := &hand{room: 2, qos: 1}, &hand{qos: 1}
	x := newTable(t, Options{})
	x.live(at(0), a, b)
	x.offer(1, 3)
	b.room = 10
	a.gone = true
	x.g.OnClaimed(a, msg(1, 1).ID, store.InDoubt)
	x.g.OnClaimed(a, msg(2, 1).ID, store.InDoubt)
	x.wants("two in doubt", DoOpen)
	x.g.OnOpened(store.Group{After: schema.At(1, 0), Claimed: []store.Ref{{ID: msg(2, 1).ID, Mark: msg(2, 1).Mark}}}, nil)
	// The first OpenGroup was asked before the second was in doubt.
	x.wants("answered", DoOpen, DoLookup)
	refs := x.out[1].Refs
	x.g.OnLookup(refs, []*schema.Message{msg(1, 1), msg(2, 1)}, nil)
	if !slices.Equal(b.got, []uint64{1}) {
		t.Fatalf("b got %v", b.got)
	}
	x.g.OnOpened(store.Group{After: schema.At(1, 0), Claimed: []store.Ref{{ID: msg(2, 1).ID, Mark: msg(2, 1).Mark}}}, nil)
	if !slices.Equal(b.got, []uint64{1, 3}) {
		t.Errorf("b got %v; the second had its record", b.got)
	}
	x.g.OnClaimed(b, msg(1, 1).ID, store.Stored)
	x.g.OnClaimed(b, msg(3, 1).ID, store.Stored)
	if !x.g.after.Equal(schema.At(1, 3)) {
		t.Errorf("after is %v", x.g.after)
	}
}

// G3: whoever joins gets nothing before the store was asked again.
func TestJoinAsks(t *testing.T) {
	t.Parallel()
	a := &hand{room: 1, qos: 1}
	x := newTable(t, Options{})
	x.live(at(0), a)
	x.offer(1, 2)
	a.gone = true // it has unsubscribed, which we do not know yet
	b := &hand{room: 9}
	x.g.Join(b)
	x.g.Join(b)
	x.wants("Join", DoOpen)
	x.g.Pump()
	if b.asked > 0 {
		t.Error("the new member was offered something at once")
	}
	x.g.OnOpened(at(2), nil) // another group of that name
	x.offer(3, 3)
	if !slices.Equal(b.got, []uint64{3}) {
		t.Errorf("the new member got %v", b.got)
	}
}

// A lost member makes the group ask the store at once; what was left comes first, and
// what nobody is to have is taken out of the store.
func TestGoneAsks(t *testing.T) {
	t.Parallel()
	a, b := &hand{room: 3, qos: 1}, &hand{qos: 1}
	x := newTable(t, Options{})
	x.live(at(0), a, b)
	x.offer(1, 3)
	for n := uint64(1); n <= 3; n++ {
		x.g.OnClaimed(a, msg(n, 1).ID, store.Stored)
	}
	x.did()
	x.g.Gone(a)
	x.wants("Gone", DoOpen)
	d := at(0)
	for n := uint64(1); n <= 4; n++ {
		d.Again = append(d.Again, store.Ref{ID: msg(n, 1).ID, Mark: msg(n, 1).Mark})
	}
	x.g.OnOpened(d, nil)
	x.wants("opened", DoLookup)
	expired, large := msg(2, 1), msg(3, 1)
	expired.Expiry, large.Payload = x.now, []byte("x")
	b.small = true
	b.room = 9
	x.g.OnLookup(x.out[0].Refs, []*schema.Message{msg(1, 1), expired, large, nil}, nil)
	x.wants("looked up", Count, Count, Count)
	why := []session.Drop{x.out[0].Dropped, x.out[1].Dropped, x.out[2].Dropped}
	if want := []session.Drop{session.DropTrimmed, session.DropExpired, session.DropTooLarge}; !slices.Equal(why, want) {
		t.Errorf("dropped %v, want %v", why, want)
	}
	if !slices.Equal(b.got, []uint64{1}) {
		t.Errorf("b got %v", b.got)
	}
	x.now = x.now.Add(saveEvery)
	x.g.Tick(x.h)
	if x.wants("Tick", DoSave); len(x.out[0].Passed) != 3 {
		t.Errorf("passes %v", x.out[0].Passed)
	}
	// Until it is saved the store may still say so.
	x.g.Refresh()
	x.did()
	x.g.OnOpened(d, nil)
	x.wants("opened again")
}

// A full queue makes a reader of it; so does a full line.
func TestFull(t *testing.T) {
	t.Parallel()
	a := &hand{room: 2, qos: 1}
	x := newTable(t, Options{Queue: 3, Line: 4})
	x.live(at(0), a)
	x.offer(1, 5)
	if x.g.Offer(msg(6, 1)) {
		t.Error("the sixth is taken")
	}
	x.wants("overflow", DoReplay)
	a.room = 10
	if from, ok := x.g.OnAttach(); !ok || !from.Equal(schema.At(1, 2)) {
		t.Errorf("reads from %v, %v", from, ok)
	}
	page := []*schema.Message{msg(3, 1), msg(4, 1), msg(5, 1), msg(6, 1)}
	if n := x.g.Feed(page); n != 2 || x.g.Hungry() {
		t.Errorf("with four in the line it takes %d more", n)
	}
	x.g.OnClaimed(a, msg(2, 1).ID, store.Stored)
	if x.g.Hungry() {
		t.Error("the line goes on over a claim without an answer")
	}
	x.g.OnClaimed(a, msg(1, 1).ID, store.Stored)
	if !x.g.Hungry() || x.g.Feed(page[2:]) != 2 {
		t.Error("the line does not go on")
	}
	for range 3 {
		x.g.Offer(msg(7, 1))
	}
	if x.g.Offer(msg(7, 1)) || x.g.OnCaughtUp(schema.At(1, 6)) {
		t.Error("the buffer has no bound")
	}
}

// QoS 0 from before the group was opened is dropped, and counted; the same to a member
// at QoS 0, published higher, is not.
func TestQoS0FromBefore(t *testing.T) {
	t.Parallel()
	a := &hand{room: 9}
	x := newTable(t, Options{})
	x.h = schema.At(1, 10)
	x.g.Join(a)
	x.did()
	x.g.OnOpened(at(0), nil)
	x.g.OnAttach()
	x.did()
	x.g.Feed([]*schema.Message{msg(1, 0), msg(2, 2), msg(11, 0)})
	if x.wants("fed", Count); x.out[0].Dropped != session.DropQoS0Offline || !slices.Equal(a.got, []uint64{2, 11}) {
		t.Errorf("%v, got %v", x.out[0].Dropped, a.got)
	}
	if !x.g.after.Equal(schema.At(1, 11)) {
		t.Errorf("after is %v", x.g.after)
	}
}

// What was claimed before is passed.
func TestClaimedBefore(t *testing.T) {
	t.Parallel()
	a := &hand{room: 9, qos: 1}
	x := newTable(t, Options{})
	d := at(0)
	d.Claimed = []store.Ref{{ID: msg(2, 1).ID, Mark: msg(2, 1).Mark}, {ID: msg(9, 1).ID, Mark: msg(9, 1).Mark}}
	x.g.Join(a)
	x.did()
	x.g.OnOpened(d, nil)
	x.g.OnAttach()
	if n := x.g.Feed([]*schema.Message{msg(1, 1), msg(2, 1), msg(3, 1)}); n != 3 || !slices.Equal(a.got, []uint64{1, 3}) {
		t.Errorf("fed %d, got %v", n, a.got)
	}
	x.g.OnCaughtUp(schema.At(1, 10)) // the ninth was not read: retention has it
	if len(x.g.claimed) != 0 {
		t.Errorf("%d claims are kept for ever", len(x.g.claimed))
	}
}

// A group without members saves its place and ends; unless somebody comes meanwhile.
func TestEnds(t *testing.T) {
	t.Parallel()
	a, b := &hand{room: 9, qos: 1}, &hand{room: 9, qos: 1}
	x := newTable(t, Options{})
	x.live(at(0), a)
	x.offer(1, 1)
	x.g.Part(a)
	if x.wants("Part with a claim under way"); x.g.Idle() {
		t.Error("idle with a claim under way")
	}
	x.g.OnClaimed(a, msg(1, 1).ID, store.Stored)
	x.wants("answered", DoSave)
	x.g.Join(b)
	x.g.OnSaved(nil)
	x.wants("joined meanwhile", DoOpen)
	x.g.OnOpened(at(1), nil)
	x.wants("opened", DoReplay)
	x.g.Gone(b)
	x.wants("Gone", DoEnd)
	if !x.g.Idle() || x.g.Offer(msg(2, 1)) || x.g.Reads() {
		t.Error("a group without members goes on")
	}
	// A group that is not there has no members, but for who came since.
	y := newTable(t, Options{})
	y.g.Join(a)
	y.did()
	y.g.Join(b)
	y.g.OnOpened(store.Group{}, fmt.Errorf("no: %w", store.ErrNoGroup))
	if y.wants("no group", DoOpen); len(y.g.members) != 1 {
		t.Errorf("%d members", len(y.g.members))
	}
	y.g.OnOpened(store.Group{}, errors.New("trouble"))
	y.wants("trouble")
	y.g.Tick(y.h)
	y.wants("Tick", DoOpen)
	y.g.OnOpened(store.Group{}, store.ErrNoGroup)
	y.wants("still no group", DoEnd)
}

// G1: of two nodes that know of each other one gives each message, each some of them,
// at QoS 0 as well.
func TestTurns(t *testing.T) {
	t.Parallel()
	one, two := schema.ID{11: 1}, schema.ID{11: 2}
	for qos := range uint8(2) {
		got := map[uint64]int{}
		for _, self := range []schema.ID{one, two} {
			a := &hand{room: 1000, qos: 1}
			x := newTable(t, Options{})
			x.live(store.Group{After: schema.At(1, 0), Self: self, Nodes: []schema.ID{one, two}}, a)
			for n := uint64(1); n <= 200; n++ {
				x.g.Offer(msg(n, qos))
			}
			for _, n := range a.got {
				got[n]++
			}
			if len(a.got) < 50 || len(a.got) > 150 {
				t.Errorf("QoS %d: one of two gives %d of 200", qos, len(a.got))
			}
		}
		for n := uint64(1); n <= 200; n++ {
			if got[n] != 1 {
				t.Errorf("QoS %d: message %d is given by %d nodes", qos, n, got[n])
			}
		}
	}
}

// What it is another node's turn to give waits: after does not pass it until the store
// tells that it is claimed or passed; what nobody has claimed in time is given here.
func TestTurnOfAnother(t *testing.T) {
	t.Parallel()
	one, two := schema.ID{11: 1}, schema.ID{11: 2}
	a := &hand{room: 1000, qos: 1}
	x := newTable(t, Options{})
	d := store.Group{After: schema.At(1, 0), Self: one, Nodes: []schema.ID{one, two}}
	x.live(d, a)
	const n = 40
	x.offer(1, n)
	var others []uint64
	for k := uint64(1); k <= n; k++ {
		if !slices.Contains(a.got, k) {
			others = append(others, k)
		} else {
			x.g.OnClaimed(a, msg(k, 1).ID, store.Stored)
		}
	}
	if len(others) < 6 {
		t.Fatalf("another's are %v", others)
	}
	after := func(what string, want uint64) {
		t.Helper()
		if got, _ := x.g.after.N(1); got != want {
			t.Errorf("%s: after is at %d, want %d", what, got, want)
		}
	}
	after("nobody has said anything", others[0]-1)
	// A second later the store is asked: two are claimed, one of those was left again,
	// another is passed.
	x.now = x.now.Add(shareEvery)
	x.g.Tick(x.h)
	if did := x.did(); !slices.Contains(did, DoOpen) {
		t.Fatalf("Tick: actions %v", did)
	}
	ref := func(k uint64) store.Ref { return store.Ref{ID: msg(k, 1).ID, Mark: msg(k, 1).Mark} }
	d.After = schema.At(1, others[0])
	d.Claimed = []store.Ref{ref(others[1]), ref(others[2])}
	d.Again = []store.Ref{ref(others[2])}
	x.g.OnSaved(nil)
	before := len(a.got)
	x.g.OnOpened(d, nil)
	after("three are answered for", others[3]-1)
	if x.wants("what was left", DoLookup); len(x.out[0].Refs) != 1 || x.out[0].Refs[0] != ref(others[2]) {
		t.Errorf("looks up %v", x.out[0].Refs)
	}
	x.g.OnLookup(x.out[0].Refs, []*schema.Message{msg(others[2], 1)}, nil)
	if got := a.got[before:]; !slices.Equal(got, others[2:3]) {
		t.Errorf("gave %v, want what was left: %v", got, others[2:3])
	}
	x.g.OnClaimed(a, msg(others[2], 1).ID, store.Stored)
	d.Again = nil
	// Nobody claims the rest: asked when it has waited long enough, not by what was
	// asked before.
	x.now = x.now.Add(turnWait - shareEvery)
	x.g.Tick(x.h)
	if did := x.did(); !slices.Contains(did, DoOpen) {
		t.Fatalf("Tick: actions %v", did)
	}
	d.Claimed = append(d.Claimed, ref(others[4]))
	before = len(a.got)
	x.g.OnOpened(d, nil)
	for len(a.got) < before+len(others)-4 {
		x.wants("the rest is looked up", DoLookup)
		var msgs []*schema.Message
		for _, r := range x.out[0].Refs {
			msgs = append(msgs, msg(r.Mark.N, 1))
		}
		x.g.OnLookup(x.out[0].Refs, msgs, nil)
	}
	want := append([]uint64{others[3]}, others[5:]...)
	if got := a.got[before:]; !slices.Equal(got, want) {
		t.Errorf("gave %v, want what nobody had claimed: %v", got, want)
	}
	for _, k := range want {
		x.g.OnClaimed(a, msg(k, 1).ID, store.Refused) // another was first after all
	}
	after("all is answered for", n)
}

// P4: the messages of a publisher on a topic are one node's turn. When that node dies,
// another gives what it has left, in order, and what comes meanwhile waits behind it,
// though it is this node's turn by then.
func TestTurnKeepsOrder(t *testing.T) {
	t.Parallel()
	one, two := schema.ID{11: 1}, schema.ID{11: 2}
	a := &hand{room: 1000, qos: 1}
	x := newTable(t, Options{})
	d := store.Group{After: schema.At(1, 0), Self: one, Nodes: []schema.ID{one, two}}
	x.live(d, a)
	publisher := "" // whose turn is the other node's
	for n := 0; publisher == "" || x.g.turn(keyOf(&schema.Message{ClientID: publisher, Topic: "t"})); n++ {
		publisher = fmt.Sprint("p", n)
	}
	of := func(n uint64) *schema.Message {
		m := msg(n, 1)
		m.ClientID = publisher
		return m
	}
	offer := func(from, to uint64) {
		for n := from; n <= to; n++ {
			if !x.g.Offer(of(n)) {
				t.Fatalf("message %d is refused", n)
			}
		}
	}
	lookUp := func() {
		x.wants("what is given is looked up", DoLookup)
		var msgs []*schema.Message
		for _, r := range x.out[0].Refs {
			msgs = append(msgs, of(r.Mark.N))
		}
		x.g.OnLookup(x.out[0].Refs, msgs, nil)
	}
	offer(1, 4)
	x.now = x.now.Add(shareEvery)
	x.g.Tick(x.h)
	x.did()
	offer(5, 6)
	// The other has given two, and is gone. One more has come meanwhile: it is not its
	// turn any more, but the older ones of its publisher are not given yet.
	d.Nodes = []schema.ID{one}
	d.Claimed = []store.Ref{{ID: of(1).ID, Mark: of(1).Mark}, {ID: of(2).ID, Mark: of(2).Mark}}
	x.g.OnOpened(d, nil)
	offer(7, 8)
	for len(a.got) < 4 {
		lookUp()
	}
	if want := []uint64{3, 4, 5, 6, 7, 8}; !slices.Equal(a.got, want) {
		t.Errorf("gave %v, want %v", a.got, want)
	}
	// And the other way: it comes back while some are parked, and goes again.
	d.Nodes, d.Claimed = []schema.ID{one, two}, nil
	reopen := func() {
		x.now = x.now.Add(refreshEvery)
		x.g.Tick(x.h)
		x.did()
		x.g.OnOpened(d, nil)
	}
	reopen()
	offer(9, 9)
	x.g.nodes = []schema.ID{one} // what is known changes, and 9 is still parked
	offer(10, 10)
	if len(a.got) != 6 {
		t.Errorf("gave %v: 10 has overtaken 9", a.got[6:])
	}
	d.Nodes = []schema.ID{one}
	reopen()
	for len(a.got) < 8 {
		lookUp()
	}
	if got := a.got[6:]; !slices.Equal(got, []uint64{9, 10}) {
		t.Errorf("gave %v, want 9 and 10", got)
	}
}
