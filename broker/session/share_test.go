package session

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"rewindmq/schema"
	"rewindmq/store"
)

const sharedT = "$share/g/t"

// sharer is a session whose actions are answered by hand.
type sharer struct {
	*Session
	t *testing.T
	n byte
}

// newSharer begins a session with a shared and a plain subscription.
func newSharer(t *testing.T, o Options, c store.Claimed) *sharer {
	t.Helper()
	a := &sharer{t: t}
	o.Owner, o.ReceiveMaximum, o.Quota = schema.Owner{ClientID: "c", SID: 1, Epoch: 1}, 10, max(o.Quota, 1)
	o.Window = max(o.Window, 3)
	o.Now = func() time.Time { return time.Unix(1000, 0) }
	o.NewID = func(time.Time) schema.ID { a.n++; return schema.ID{0: 9, 11: a.n} }
	o.H = func() schema.Cursor { return schema.At(1, 0) }
	o.Size = func(m *schema.Message, _ uint8, _ []uint32) int { return len(m.Payload) }
	s, err := New(o, &c)
	if err != nil {
		t.Fatal(err)
	}
	a.Session = s
	return a
}

// does gives the actions since, by what they ask for.
func (a *sharer) does(want ...Do) []Action {
	a.t.Helper()
	actions := a.Actions()
	var got []Do
	for _, x := range actions {
		got = append(got, x.Do)
	}
	if !slices.Equal(got, want) {
		a.t.Fatalf("actions %v, want %v", got, want)
	}
	return actions
}

func (a *sharer) subscribe(filters ...string) {
	a.t.Helper()
	var subs []schema.Subscription
	for _, f := range filters {
		sub := schema.Subscription{Filter: f, QoS: 2, Identifier: 7, RetainAsPublished: true}
		if f != sharedT {
			sub.RetainHandling = 2
		}
		subs = append(subs, sub)
	}
	a.OnSubscribe(1, subs, make([]Code, len(subs)))
	a.OnHead(schema.At(1, 0), nil)
}

func sharedMsg(n uint64, qos uint8) *schema.Message {
	return &schema.Message{ID: schema.ID{11: byte(n)}, Mark: schema.Mark{Lane: 1, N: n}, Topic: "t", QoS: qos, Retain: true}
}

// A shared subscription has no part in the hub, the log and the retained messages of
// the session; it makes it a member once it is stored.
func TestSharedSubscription(t *testing.T) {
	t.Parallel()
	a := newSharer(t, Options{}, store.Claimed{})
	a.Start()
	a.does(DoReplay)
	a.subscribe(sharedT)
	x := a.does(DoHead, DoWrite)
	if doc := x[1].Write.(store.PutSubscriptions).Subscriptions[0]; doc.Filter != sharedT || doc.Run != nil || doc.QoS != 2 {
		t.Errorf("stores %+v", doc)
	}
	if a.OfferShared(sharedMsg(1, 0), "$share/other/t", true) != NotMember {
		t.Error("takes another group's message")
	}
	a.OnWritten(nil, false)
	if x = a.does(DoJoin, SendSuback); x[0].Group != sharedT {
		t.Errorf("joins %q", x[0].Group)
	}
	if len(a.Filters()) > 0 || a.Subscriptions() != 1 || !a.Subscribed(sharedT) {
		t.Errorf("filters %q", a.Filters())
	}
	if r := a.match(sharedMsg(1, 1)); r.ok {
		t.Error("it matches as a plain one")
	}
	topic := sharedMsg(1, 1)
	topic.Topic = sharedT
	if r := a.match(topic); r.ok {
		t.Error("it matches a topic of its own name")
	}
	a.subscribe("t", sharedT) // again, with a plain one
	if x = a.does(DoFilters, DoHead, DoWrite); !slices.Equal(x[0].Filters, []string{"t"}) {
		t.Errorf("the hub is told %q", x[0].Filters)
	}
	a.OnUnsubscribe(2, []string{sharedT, "none"}) // before the answer
	a.does(DoPart, DoUnfilter, DoWrite)
	a.OnWritten(nil, false)
	a.does(SendSuback)
	a.OnWritten(nil, false)
	if x = a.does(SendUnsuback); !slices.Equal(x[0].Codes, []Code{Success, NoSubscriptionFound}) {
		t.Errorf("UNSUBACK %v", x[0].Codes)
	}
	if a.OfferShared(sharedMsg(1, 1), sharedT, true) != NotMember || a.Subscriptions() != 1 {
		t.Error("it is a member still")
	}
}

// A session that is resumed joins at its start.
func TestSharedResumed(t *testing.T) {
	t.Parallel()
	flight := []schema.Flight{
		{Seq: 4, PacketID: 2, QoS: 2, MessageID: schema.ID{11: 4}, Mark: schema.Mark{Lane: 1, N: 4}, Group: sharedT},
	}
	a := newSharer(t, Options{}, store.Claimed{
		Present: true, Subscriptions: []schema.Subscription{{Filter: sharedT, QoS: 1, Identifier: 9}},
		Cursor: schema.SessionCursor{Seq: 4, Flight: flight},
	})
	a.Start()
	a.does(DoJoin, DoReplay, DoLookup)
	if a.Room() != 0 || a.OfferShared(sharedMsg(5, 1), sharedT, true) != Full {
		t.Error("it takes something new before its flight is sent again")
	}
	a.OnLookup([]store.Ref{{ID: flight[0].MessageID, Mark: flight[0].Mark}}, []*schema.Message{sharedMsg(4, 2)})
	if x := a.does(SendPublish); x[0].PacketID != 2 || !x[0].Dup || x[0].QoS != 2 || !slices.Equal(x[0].Identifiers, []uint32{9}) {
		t.Errorf("resent as %+v", x[0])
	}
	if a.Room() != 2 {
		t.Errorf("room for %d", a.Room())
	}
}

// A clean session that shares has records that a claimer reads: its ids stay in the
// window, whatever it had before, so that at most a window of what was acknowledged
// and not saved goes back to the group after a crash.
func TestSharedIDsStayInTheWindow(t *testing.T) {
	t.Parallel()
	a := newSharer(t, Options{Clean: true}, store.Claimed{})
	for range 10 { // its ids have gone round before
		a.win.settle(func() *entry {
			e := &entry{Flight: schema.Flight{PacketID: a.nextID()}}
			a.win.add(e)
			return e
		}())
	}
	held := &entry{Flight: schema.Flight{PacketID: a.nextID()}}
	a.win.add(held)
	a.subscribe(sharedT)
	a.OnWritten(nil, false)
	a.Actions()
	var left []schema.Delivery
	for n := range uint64(9) {
		if got := a.OfferShared(sharedMsg(50+n, 1), sharedT, true); got != Took {
			t.Fatalf("answers %d", got)
		}
		d := a.does(DoRecord)[0].Delivery
		left = append(left, *d)
		a.OnRecorded(nil, false)
		a.OnAck(Puback, d.PacketID, 0)
		a.Actions()
		if d.PacketID < 1 || d.PacketID > 3 {
			t.Fatalf("id %d, beside %d, in a window of 3", d.PacketID, held.PacketID)
		}
	}
	var c schema.SessionCursor
	if c.Recover(left, nil, nil); len(c.Flight) > 3 {
		t.Errorf("%d are in doubt after a crash, the window is 3", len(c.Flight))
	}
}

// Invariant: the record of a shared delivery is committed before it leaves, also in a
// clean session; it does not move the session's own place.
func TestSharedRecordFirst(t *testing.T) {
	t.Parallel()
	for _, clean := range []bool{false, true} {
		a := newSharer(t, Options{Clean: clean}, store.Claimed{})
		a.subscribe(sharedT)
		a.OnWritten(nil, false)
		a.Actions()
		if got := a.OfferShared(sharedMsg(50, 1), sharedT, true); got != Took {
			t.Fatalf("clean %v: answers %d", clean, got)
		}
		x := a.does(DoRecord)
		if d := x[0].Delivery; d.Group != sharedT || d.PacketID != 1 || d.Seq != 1 || d.QoS != 1 {
			t.Errorf("clean %v: records %+v", clean, d)
		}
		a.OnRecorded(nil, false)
		x = a.does(Claimed, SendPublish)
		if c := x[0]; c.Group != sharedT || c.ID != sharedMsg(50, 1).ID || c.Outcome != store.Stored {
			t.Errorf("clean %v: tells %+v", clean, c)
		}
		if p := x[1]; p.Dup || !p.Retain || !p.Live || !slices.Equal(p.Identifiers, []uint32{7}) {
			t.Errorf("clean %v: sends %+v", clean, p)
		}
		if a.taken.After(schema.Mark{Lane: 1, N: 40}) != true || len(a.line) > 0 {
			t.Errorf("clean %v: the session's own place has moved to %v", clean, a.taken)
		}
		// It is saved, so that only what is in flight goes back.
		a.Save()
		save := a.does(DoWrite)[0].Write.(store.SaveCursor)
		if f := save.Cursor.Flight; len(f) != 1 || f[0].Group != sharedT || save.Cursor.Seq != 1 {
			t.Errorf("clean %v: saves %+v", clean, save.Cursor)
		}
		a.OnWritten(nil, false)
		a.OnAck(Puback, 1, UnspecifiedError) // [MQTT-4.8.2-6] refused: it is settled
		a.does(Settled)
		a.Close(ReasonDetached)
		x = a.does(DoClose, DoWrite, DoWrite)
		if f := x[1].Write.(store.SaveCursor).Cursor.Flight; len(f) > 0 {
			t.Errorf("clean %v: leaves %+v", clean, f)
		}
		if a.Room() != 0 || a.OfferShared(sharedMsg(51, 1), sharedT, true) != NotMember {
			t.Error("a closing session takes something")
		}
	}
}

// A claim that is refused is withdrawn: nothing leaves, its packet id is free, and what
// lies behind goes on. In doubt, nothing leaves any more, and the group is told.
func TestSharedOutcomes(t *testing.T) {
	t.Parallel()
	a := newSharer(t, Options{Window: 3}, store.Claimed{})
	a.subscribe(sharedT)
	a.OnWritten(nil, false)
	for n := uint64(1); n <= 3; n++ {
		a.OfferShared(sharedMsg(n, 1), sharedT, true)
	}
	if a.OfferShared(sharedMsg(4, 1), sharedT, true) != Full || a.OfferShared(sharedMsg(4, 0), sharedT, true) != Full {
		t.Error("it takes more than its window")
	}
	a.Actions()
	a.OnRecorded(fmt.Errorf("no: %w", store.ErrClaimed), false)
	if x := a.does(Claimed); x[0].Outcome != store.Refused || a.InFlight() != 2 || a.Room() != 1 {
		t.Errorf("%+v, %d in flight, room for %d", x[0], a.InFlight(), a.Room())
	}
	a.OnRecorded(nil, false)
	a.does(Claimed, SendPublish)
	a.OnRecorded(errors.New("doubt"), false)
	if x := a.does(Claimed, DoClose, DoEnd); x[0].Outcome != store.InDoubt {
		t.Errorf("%+v", x[0])
	}
	// The same while it is closing: the group gets each answer.
	b := newSharer(t, Options{}, store.Claimed{})
	b.subscribe(sharedT)
	b.OnWritten(nil, false)
	b.OfferShared(sharedMsg(1, 1), sharedT, true)
	b.OfferShared(sharedMsg(2, 2), sharedT, true)
	b.Close(ReasonDetached)
	b.Actions()
	b.OnRecorded(nil, false)
	if x := b.does(Claimed); x[0].Outcome != store.Stored {
		t.Errorf("%+v", x[0])
	}
	b.OnRecorded(store.ErrClaimed, false)
	x := b.does(Claimed, DoWrite, DoWrite)
	if f := x[1].Write.(store.SaveCursor).Cursor.Flight; len(f) != 1 || f[0].Seq != 1 {
		t.Errorf("leaves %+v", f)
	}
}

// What is too large for the client, and QoS 0.
func TestSharedSent(t *testing.T) {
	t.Parallel()
	a := newSharer(t, Options{MaximumPacketSize: 10}, store.Claimed{})
	a.subscribe(sharedT)
	a.OnWritten(nil, false)
	a.Actions()
	large := sharedMsg(1, 1)
	large.Payload = make([]byte, 20)
	if got := a.OfferShared(large, sharedT, true); got != TooLarge {
		t.Errorf("answers %d", got)
	}
	a.does()
	if got := a.OfferShared(sharedMsg(2, 0), sharedT, false); got != Sent {
		t.Errorf("answers %d", got)
	}
	if x := a.does(SendPublish); x[0].QoS != 0 || x[0].PacketID != 0 || x[0].Live {
		t.Errorf("sends %+v", x[0])
	}
	a.Block(true)
	if a.OfferShared(sharedMsg(3, 0), sharedT, true) != Full || a.OfferShared(sharedMsg(3, 1), sharedT, true) != Full {
		t.Error("a connection that takes no bytes is given some")
	}
}
