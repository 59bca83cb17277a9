package mongo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/event"

	"rewindmq/schema"
	"rewindmq/store"
)

const shareT = "$share/g/t"

// groupRig is two nodes, of which the first can be killed behind any of its commands.
type groupRig struct {
	*rig
	ctx  context.Context
	one  *Store
	two  *Store
	left atomic.Int64 // commands until the first node is killed; 0: it lives on
	msgs []*schema.Message
	// before is called before the first node sends a command; nil: nothing is.
	before atomic.Pointer[func(e *event.CommandStartedEvent)]
}

func newGroupRig(t *testing.T) *groupRig {
	t.Helper()
	g := &groupRig{rig: newRig(t, 1)}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	g.ctx = ctx
	g.two = g.start()
	g.o.commands = &event.CommandMonitor{Succeeded: func(_ context.Context, e *event.CommandSucceededEvent) {
		// The housekeeping of the node is no part of it.
		if slices.Contains([]string{"find", "update", "insert", "delete", "findAndModify", "aggregate"}, e.CommandName) &&
			g.left.Load() > 0 && !g.quiet(e) && g.left.Add(-1) == 0 {
			g.one.kill()
		}
	}, Started: func(_ context.Context, e *event.CommandStartedEvent) {
		if fn := g.before.Load(); fn != nil {
			(*fn)(e)
		}
	}}
	g.o.ClaimWait = time.Millisecond // nobody lets go
	g.one = g.start()
	return g
}

// at calls fn before the first node sends its next command of a name on a collection.
// The command waits for it.
func (g *groupRig) at(command, collection string, fn func()) {
	var once atomic.Bool
	hook := func(e *event.CommandStartedEvent) {
		if name, _ := e.Command.Lookup(command).StringValueOK(); e.CommandName == command && name == collection && once.CompareAndSwap(false, true) {
			done := make(chan struct{})
			go func() { // which a failed test ends, and not the driver's
				defer close(done)
				fn()
			}()
			<-done
		}
	}
	g.before.Store(&hook)
}

// quiet tells of a write of one of the node's clocks.
func (g *groupRig) quiet(e *event.CommandSucceededEvent) bool {
	ns, _ := e.Reply.Lookup("cursor", "ns").StringValueOK()
	return slices.Contains([]string{g.name + ".lane", g.name + ".message", g.name + ".node"}, ns)
}

func (g *groupRig) publish(n int) {
	g.t.Helper()
	for range n {
		m := &schema.Message{ID: g.two.ids.Next(time.Now()), Topic: "t", ClientID: "pub", QoS: 1, Created: time.Now()}
		kept := *m
		out := make(chan store.Appended, 1)
		g.two.Append(g.ctx, &store.Publisher{Owner: schema.Owner{ClientID: "pub"}}, []*schema.Message{m}, func(a []store.Appended) { out <- a[0] })
		got := <-out
		if got.Err != nil {
			g.t.Fatal(got.Err)
		}
		kept.Mark = got.Mark
		g.msgs = append(g.msgs, &kept)
	}
}

func (g *groupRig) sub(filter string) schema.Subscription {
	g.t.Helper()
	at, err := g.two.Head(g.ctx)
	if err != nil {
		g.t.Fatal(err)
	}
	return schema.Subscription{ID: g.two.ids.Next(time.Now()), Filter: filter, QoS: 2, Created: time.Now(), Since: at}
}

func (g *groupRig) write(s *Store, w ...store.Write) {
	g.t.Helper()
	for i, err := range s.Write(g.ctx, w) {
		if err != nil {
			g.t.Fatalf("write %d: %T: %v", i, w[i], err)
		}
	}
}

func (g *groupRig) member(s *Store, id string) store.Claimed {
	g.t.Helper()
	got := claim(g.t.(*testing.T), s, id)
	g.write(s, store.PutSubscriptions{Owner: got.Owner, Subscriptions: []schema.Subscription{g.sub(shareT)}})
	return got
}

// record makes a record of message i; group "": a plain one.
func (g *groupRig) record(o schema.Owner, seq uint64, qos uint8, i int, group string) schema.Delivery {
	m := g.msgs[i]
	return schema.Delivery{
		ID: g.two.ids.Next(time.Now()), Owner: o, Seq: seq, Topic: m.Topic, MessageID: m.ID, Mark: m.Mark,
		PacketID: uint16(seq), QoS: qos, Group: group, Host: "h", Created: time.Now(),
	}
}

func (g *groupRig) stored(s *Store, ds ...schema.Delivery) {
	g.t.Helper()
	for i, err := range s.Record(g.ctx, ds) {
		if err != nil {
			g.t.Fatalf("record %d: %v", i, err)
		}
	}
}

func (g *groupRig) refused(s *Store, d schema.Delivery) {
	g.t.Helper()
	if err := s.Record(g.ctx, []schema.Delivery{d})[0]; !errors.Is(err, store.ErrClaimed) {
		g.t.Errorf("record of a message that is not to be given: %v", err)
	}
}

func flightOf(ds ...schema.Delivery) []schema.Flight {
	var out []schema.Flight
	for i := range ds {
		f := ds[i].Flight()
		f.Created = time.UnixMilli(f.Created.UnixMilli()).UTC()
		out = append(out, f)
	}
	return out
}

func (g *groupRig) again(want ...int) {
	g.t.Helper()
	got, err := g.two.OpenGroup(g.ctx, shareT)
	if err != nil {
		g.t.Fatal(err)
	}
	var refs []store.Ref
	for _, i := range want {
		refs = append(refs, store.Ref{ID: g.msgs[i].ID, Mark: g.msgs[i].Mark})
	}
	if !slices.Equal(got.Again, refs) {
		g.t.Errorf("Again is %v, want %v", got.Again, refs)
	}
}

func (g *groupRig) noGroup() {
	g.t.Helper()
	if got, err := g.two.OpenGroup(g.ctx, shareT); !errors.Is(err, store.ErrNoGroup) {
		g.t.Errorf("a group without members: %+v, %v", got, err)
	}
}

// crashes runs a test with the first node killed behind each of the commands of act
// in turn, until act comes to its end. act tells whether it was answered. keeper: it
// waits until the node was finished.
func crashes(t *testing.T, keeper bool, test func(g *groupRig, act func(do func() error) (answered bool))) {
	t.Helper()
	var ends atomic.Int64 // the first for which act came to its end
	for from := 1; ends.Load() == 0 && !t.Failed(); from += 12 {
		t.Run(fmt.Sprint("from command ", from), func(t *testing.T) {
			for k := from; k < from+12; k++ {
				t.Run(fmt.Sprint(k), func(t *testing.T) {
					t.Parallel()
					g := newGroupRig(t)
					test(g, func(do func() error) bool {
						node := g.one.self.id()
						g.left.Store(int64(k))
						err := do()
						if g.left.Load() > 0 {
							if err != nil {
								t.Fatal(err)
							}
							for was := ends.Load(); was == 0 || int64(k) < was; was = ends.Load() {
								ends.CompareAndSwap(was, int64(k))
							}
						}
						g.left.Store(0)
						g.one.kill()
						if keeper {
							g.finished(node)
						}
						return err == nil
					})
				})
			}
		})
	}
	if n := ends.Load(); n < 5 {
		t.Errorf("killed behind %d commands", n-1)
	} else {
		t.Logf("killed behind each of %d commands", n-1)
	}
}

// G2, G4: a release that is cut behind any of its commands: what was in flight at
// QoS 1 goes back to the group, once; QoS 2 and what is no group's stay.
func TestG4_ReleaseCut(t *testing.T) {
	t.Parallel()
	crashes(t, true, func(g *groupRig, act func(func() error) bool) {
		b := g.member(g.two, "b")
		a := g.member(g.one, "a")
		g.publish(4)
		ds := []schema.Delivery{
			g.record(a.Owner, 1, 1, 0, shareT), g.record(a.Owner, 2, 2, 1, shareT), g.record(a.Owner, 3, 1, 2, ""), g.record(a.Owner, 4, 1, 3, shareT),
		}
		g.stored(g.one, ds...)
		g.write(g.one, store.SaveCursor{Owner: a.Owner, Cursor: schema.SessionCursor{After: a.Cursor.After, Seq: 4, Flight: flightOf(ds...)}})
		act(func() error { return g.one.Write(g.ctx, []store.Write{store.Release{Owner: a.Owner}})[0] })
		g.again(0, 3)
		next := claim(g.t.(*testing.T), g.two, "a")
		if got, want := next.Cursor.Flight, flightOf(ds[1], ds[2]); !slices.Equal(got, want) {
			g.t.Errorf("in flight %+v, want %+v", got, want)
		}
		g.again(0, 3)
		g.refused(g.two, g.record(b.Owner, 1, 2, 1, shareT))
		g.stored(g.two, g.record(b.Owner, 1, 1, 0, shareT))
		g.again(3)
		g.refused(g.two, g.record(next.Owner, next.Cursor.Seq+1, 1, 0, shareT))
	})
}

// The same, and the client is back before anybody has missed the node: all of it is
// still the session's, or it went back.
func TestG4_ReleaseCutThenClaimed(t *testing.T) {
	t.Parallel()
	crashes(t, false, func(g *groupRig, act func(func() error) bool) {
		g.member(g.two, "b")
		a := g.member(g.one, "a")
		g.publish(3)
		ds := []schema.Delivery{g.record(a.Owner, 1, 1, 0, shareT), g.record(a.Owner, 2, 2, 1, shareT), g.record(a.Owner, 3, 1, 2, shareT)}
		g.stored(g.one, ds...)
		g.write(g.one, store.SaveCursor{Owner: a.Owner, Cursor: schema.SessionCursor{After: a.Cursor.After, Seq: 3, Flight: flightOf(ds...)}})
		answered := act(func() error { return g.one.Write(g.ctx, []store.Write{store.Release{Owner: a.Owner}})[0] })
		got := claim(g.t.(*testing.T), g.two, "a").Cursor.Flight
		switch {
		case slices.Equal(got, flightOf(ds...)) && !answered:
			g.again()
		case slices.Equal(got, flightOf(ds[1])):
			g.again(0, 2)
		default:
			g.t.Errorf("in flight %+v", got)
		}
	})
}

// G2, G4: a clean start that is cut behind any of its commands ends the session, or
// does not; its messages at QoS 1 go back, saved or not.
func TestG4_CleanStartCut(t *testing.T) {
	t.Parallel()
	crashes(t, true, func(g *groupRig, act func(func() error) bool) {
		b := g.member(g.two, "b")
		a := g.member(g.one, "a")
		g.publish(3)
		ds := []schema.Delivery{g.record(a.Owner, 1, 1, 0, shareT), g.record(a.Owner, 2, 2, 1, shareT), g.record(a.Owner, 3, 1, 2, shareT)}
		g.stored(g.one, ds...)
		g.write(g.one, store.SaveCursor{Owner: a.Owner, Cursor: schema.SessionCursor{After: a.Cursor.After, Seq: 2, Flight: flightOf(ds[:2]...)}})
		act(func() error {
			return g.one.Claim(g.ctx, []store.Claim{{ClientID: "a", CleanStart: true, Expiry: schema.NoExpiry, Protocol: 5, At: g.sub("x").Since}})[0].Err
		})
		g.again(0, 2)
		next := claim(g.t.(*testing.T), g.two, "a")
		switch {
		case next.SID == a.SID: // it was not carried out
			if got, want := next.Cursor.Flight, flightOf(ds[1]); !slices.Equal(got, want) || len(next.Subscriptions) != 1 {
				g.t.Errorf("the session that goes on: %+v", next)
			}
			g.write(g.two, store.DeleteSubscriptions{Owner: next.Owner, Filters: []string{shareT}})
		case len(next.Cursor.Flight)+len(next.Subscriptions) > 0:
			g.t.Errorf("the new session: %+v", next)
		}
		g.refused(g.two, g.record(b.Owner, 1, 2, 1, shareT))
		g.again(0, 2)
		g.write(g.two, store.DeleteSubscriptions{Owner: b.Owner, Filters: []string{shareT}})
		g.noGroup()
	})
}

// G3: a first SUBSCRIBE that is cut behind any of its commands: there is a group from
// then on, or there is none, and the next first member begins it.
func TestG3_JoinCut(t *testing.T) {
	t.Parallel()
	crashes(t, true, func(g *groupRig, act func(func() error) bool) {
		// What a former group of that name has left behind, where its end was cut.
		old := g.sub(shareT)
		if err := g.two.beginGroup(g.ctx, shareT, newCursorDoc(old.Since)); err != nil {
			g.t.Fatal(err)
		}
		g.publish(1)
		g.noGroup()
		a := claim(g.t.(*testing.T), g.one, "a")
		sub := g.sub(shareT)
		act(func() error {
			return g.one.Write(g.ctx, []store.Write{store.PutSubscriptions{Owner: a.Owner, Subscriptions: []schema.Subscription{sub}}})[0]
		})
		next := claim(g.t.(*testing.T), g.two, "a")
		if len(next.Subscriptions) > 0 {
			got, err := g.two.OpenGroup(g.ctx, shareT)
			if err != nil || !got.After.Equal(sub.Since) {
				g.t.Errorf("the group of a first member: %+v, %v, want it at %v", got, err, sub.Since)
			}
		} else {
			g.noGroup()
		}
		g.publish(1)
		b := g.member(g.two, "b")
		g.publish(1)
		if len(next.Subscriptions) == 0 {
			g.refused(g.two, g.record(b.Owner, 1, 1, 1, shareT))
		} else {
			g.stored(g.two, g.record(b.Owner, 1, 1, 1, shareT))
		}
		g.stored(g.two, g.record(b.Owner, 2, 1, 2, shareT))
		g.refused(g.two, g.record(b.Owner, 3, 1, 0, shareT))
	})
}

// G3: the last UNSUBSCRIBE, cut behind any of its commands: the group is there, or it
// is not, and the next begins anew.
func TestG3_LeaveCut(t *testing.T) {
	t.Parallel()
	crashes(t, true, func(g *groupRig, act func(func() error) bool) {
		a := g.member(g.one, "a")
		g.publish(1)
		answered := act(func() error {
			return g.one.Write(g.ctx, []store.Write{store.DeleteSubscriptions{Owner: a.Owner, Filters: []string{shareT}}})[0]
		})
		next := claim(g.t.(*testing.T), g.two, "a")
		if answered && len(next.Subscriptions) > 0 {
			g.t.Errorf("still there: %+v", next.Subscriptions)
		}
		b := claim(g.t.(*testing.T), g.two, "b")
		if len(next.Subscriptions) == 0 {
			g.noGroup()
			// The keeper has finished the node.
			if d, err := g.two.readGroup(g.ctx, shareT); err != nil || d != nil {
				g.t.Errorf("left behind: %+v, %v", d, err)
			}
			g.refused(g.two, g.record(b.Owner, 1, 1, 0, shareT))
		}
		g.write(g.two, store.PutSubscriptions{Owner: b.Owner, Subscriptions: []schema.Subscription{g.sub(shareT)}})
		if len(next.Subscriptions) == 0 {
			g.refused(g.two, g.record(b.Owner, 2, 1, 0, shareT))
		} else {
			g.stored(g.two, g.record(b.Owner, 2, 1, 0, shareT))
		}
	})
}

// S11: a claim that was refused leaves no hole behind which a record of the former
// owner could pass the claimer's fence.
func TestS11_NoHoleForTheFence(t *testing.T) {
	t.Parallel()
	g := newGroupRig(t)
	a, b := g.member(g.one, "a"), g.member(g.two, "b")
	g.publish(4)
	g.stored(g.one, g.record(a.Owner, 1, 1, 0, shareT))
	g.stored(g.two, g.record(b.Owner, 1, 1, 1, shareT))
	g.refused(g.one, g.record(a.Owner, 2, 1, 1, shareT))
	next := claim(t, g.two, "a")
	if next.Released {
		t.Fatal("released?")
	}
	if err := g.one.Record(g.ctx, []schema.Delivery{g.record(a.Owner, 3, 1, 2, shareT)})[0]; !errors.Is(err, store.ErrSessionLost) {
		t.Errorf("a record of the former owner behind the fence: %v", err)
	}
	g.stored(g.two, g.record(b.Owner, 2, 1, 2, shareT))
	// In one batch as well.
	g.refused(g.two, g.record(next.Owner, next.Cursor.Seq+1, 1, 1, shareT))
	g.stored(g.two, g.record(next.Owner, next.Cursor.Seq+2, 1, 3, shareT))
	last := claim(t, g.one, "a")
	if last.Cursor.Seq != next.Cursor.Seq+3 || len(last.Cursor.Flight) != 2 { // with the fence
		t.Errorf("recovered %+v", last.Cursor)
	}
	n, err := g.db.Collection("publishedMessage").CountDocuments(g.ctx, fields("clientId", "a"))
	if err != nil || uint64(n) != last.Cursor.Seq {
		t.Errorf("%d records up to %d, %v", n, last.Cursor.Seq, err)
	}
}

// What fills a hole may lie above the saved cursor. A release takes it along: the next
// owner's records do not meet it.
func TestFillerAboveTheCursor(t *testing.T) {
	t.Parallel()
	g := newGroupRig(t)
	a, b := g.member(g.one, "a"), g.member(g.two, "b")
	g.publish(3)
	one := g.record(a.Owner, 1, 1, 0, shareT)
	g.stored(g.one, one)
	g.stored(g.two, g.record(b.Owner, 1, 1, 1, shareT))
	g.at("insert", "publishedMessage", func() { g.stored(g.two, g.record(b.Owner, 2, 1, 2, shareT)) })
	for i, err := range g.one.Record(g.ctx, []schema.Delivery{g.record(a.Owner, 2, 1, 1, shareT), g.record(a.Owner, 3, 1, 2, shareT)}) {
		if !errors.Is(err, store.ErrClaimed) {
			t.Errorf("record %d: %v", i, err)
		}
	}
	g.write(g.one,
		store.SaveCursor{Owner: a.Owner, Cursor: schema.SessionCursor{After: a.Cursor.After, Seq: 1, Flight: flightOf(one)}},
		store.Release{Owner: a.Owner})
	g.again(0)
	next := claim(t, g.two, "a")
	if next.Cursor.Seq != 2 {
		t.Errorf("goes on from %d, want 2", next.Cursor.Seq)
	}
	g.stored(g.two, g.record(next.Owner, next.Cursor.Seq+1, 1, 0, shareT))
}

// S11 of a session that ends: a record of the former owner that comes behind a clean
// start is lost. Nobody would hand it back.
func TestS11_CleanStartFencesTheFormer(t *testing.T) {
	t.Parallel()
	g := newGroupRig(t)
	a := g.member(g.one, "a")
	b := g.member(g.two, "b")
	g.publish(2)
	g.stored(g.one, g.record(a.Owner, 1, 1, 0, shareT))
	got := g.two.Claim(g.ctx, []store.Claim{{ClientID: "a", CleanStart: true, Expiry: schema.NoExpiry, Protocol: 5, At: g.sub("x").Since}})[0]
	if got.Err != nil {
		t.Fatal(got.Err)
	}
	g.again(0)
	if err := g.one.Record(g.ctx, []schema.Delivery{g.record(a.Owner, 2, 1, 1, shareT)})[0]; !errors.Is(err, store.ErrSessionLost) {
		t.Errorf("a record of the former session: %v", err)
	}
	g.stored(g.two, g.record(b.Owner, 1, 1, 1, shareT))
}

// G2: between Again and the record's `left` another may come: he makes it free.
func TestG2_ClaimOfWhatIsBeingLeft(t *testing.T) {
	t.Parallel()
	g := newGroupRig(t)
	a, b := g.member(g.one, "a"), g.member(g.two, "b")
	g.publish(1)
	d := g.record(a.Owner, 1, 1, 0, shareT)
	g.stored(g.one, d)
	g.write(g.one, store.SaveCursor{Owner: a.Owner, Cursor: schema.SessionCursor{After: a.Cursor.After, Seq: 1, Flight: flightOf(d)}})
	at := a.Cursor.After.Clone()
	at.Advance(g.msgs[0].Mark)
	if err := g.two.SaveGroup(g.ctx, shareT, at, nil); err != nil {
		t.Fatal(err)
	}
	g.at("update", "publishedMessage", func() {
		g.again(0)
		e := g.record(b.Owner, 1, 1, 0, shareT)
		g.stored(g.two, e, e)
		g.again()
	})
	g.write(g.one, store.Release{Owner: a.Owner})
	g.again()
	g.write(g.two, store.Release{Owner: b.Owner})
	g.again(0) // it was not acknowledged
}

// G4: what goes back while another node saves the group is not overwritten.
func TestG4_SaveMeetsHandBack(t *testing.T) {
	t.Parallel()
	g := newGroupRig(t)
	g.member(g.one, "b")
	a := g.member(g.two, "a")
	g.publish(1)
	d := g.record(a.Owner, 1, 1, 0, shareT)
	g.stored(g.two, d)
	g.write(g.two, store.SaveCursor{Owner: a.Owner, Cursor: schema.SessionCursor{After: a.Cursor.After, Seq: 1, Flight: flightOf(d)}})
	at := a.Cursor.After.Clone()
	at.Advance(g.msgs[0].Mark)
	g.at("update", "group", func() { g.write(g.two, store.Release{Owner: a.Owner}) })
	if err := g.one.SaveGroup(g.ctx, shareT, at, nil); err != nil {
		t.Fatal(err)
	}
	g.again(0)
	if got, err := g.two.OpenGroup(g.ctx, shareT); err != nil || !got.After.Equal(at) {
		t.Errorf("saved at %v, %v, want %v", got.After, err, at)
	}
}

// G3: the last member leaves while another joins: whichever is first, the group that
// is there in the end gives what is published from then on.
func TestG3_LeaveMeetsJoin(t *testing.T) {
	t.Parallel()
	works := func(g *groupRig, o schema.Owner) {
		g.t.Helper()
		g.publish(1)
		g.stored(g.two, g.record(o, 1, 1, len(g.msgs)-1, shareT))
		if got, err := g.two.OpenGroup(g.ctx, shareT); err != nil || len(got.Claimed) != 1 {
			g.t.Errorf("%+v, %v", got, err)
		}
	}
	t.Run("join before the removal", func(t *testing.T) {
		t.Parallel()
		g := newGroupRig(t)
		a := g.member(g.one, "a")
		var b store.Claimed
		g.at("delete", "group", func() { b = g.member(g.two, "b") })
		g.write(g.one, store.DeleteSubscriptions{Owner: a.Owner, Filters: []string{shareT}})
		works(g, b.Owner)
	})
	t.Run("leave within the join", func(t *testing.T) {
		t.Parallel()
		g := newGroupRig(t)
		b := g.member(g.two, "b")
		g.publish(1)
		a := claim(t, g.one, "a")
		g.at("update", "subscription", func() {
			g.write(g.two, store.DeleteSubscriptions{Owner: b.Owner, Filters: []string{shareT}})
			g.noGroup()
		})
		g.write(g.one, store.PutSubscriptions{Owner: a.Owner, Subscriptions: []schema.Subscription{g.sub(shareT)}})
		g.before.Store(nil)
		g.refused(g.one, g.record(a.Owner, 1, 1, 0, shareT))
		g.publish(1)
		g.stored(g.one, g.record(a.Owner, 1, 1, 1, shareT))
	})
}

// S20: a shared subscription of a former owner that landed late makes no member.
func TestS20_LateMember(t *testing.T) {
	t.Parallel()
	g := newGroupRig(t)
	a := claim(t, g.one, "a")
	next := claim(t, g.two, "a") // not released
	if next.Released {
		t.Fatal("released?")
	}
	sub := g.sub(shareT)
	if _, err := g.db.Collection("subscription").InsertOne(g.ctx, newSubscriptionDoc(&sub, a.Owner)); err != nil {
		t.Fatal(err)
	}
	g.noGroup()
	if got := claim(t, g.two, "a"); len(got.Subscriptions) > 0 {
		t.Errorf("claimed with %+v", got.Subscriptions)
	}
}

// G3: what a session has left whose end was cut behind the removal of its document
// makes no member, and the next one begins the group anew.
func TestG3_SubscriptionWithoutSession(t *testing.T) {
	t.Parallel()
	g := newGroupRig(t)
	g.member(g.two, "a")
	g.publish(1)
	if _, err := g.db.Collection("session").DeleteOne(g.ctx, fields("_id", "a")); err != nil {
		t.Fatal(err)
	}
	g.noGroup()
	b := g.member(g.two, "b")
	g.refused(g.two, g.record(b.Owner, 1, 1, 0, shareT))
	g.publish(1)
	g.stored(g.two, g.record(b.Owner, 2, 1, 1, shareT))
}

// S19: a claimer that has recovered and is overtaken lets go of nothing: the next one
// finds what lies above the saved cursor.
func TestS19_OvertakenAfterTheFence(t *testing.T) {
	t.Parallel()
	g := newGroupRig(t)
	g.publish(1)
	a := claim(t, g.two, "a")
	d := g.record(a.Owner, 1, 1, 0, "")
	g.stored(g.two, d)
	g.two.o.ClaimWait = 2 * time.Second
	over := make(chan store.Claimed, 1)
	g.at("insert", "publishedMessage", func() { // the fence
		go func() {
			over <- g.two.Claim(g.ctx, []store.Claim{{ClientID: "a", Protocol: 5, Expiry: schema.NoExpiry}})[0]
		}()
		g.until("a newer claim", func(ctx context.Context) bool {
			n, err := g.db.Collection("session").CountDocuments(ctx, fields("_id", "a", "past.1", fields("$exists", true)))
			return err == nil && n == 1
		})
	})
	got := g.one.Claim(g.ctx, []store.Claim{{ClientID: "a", Protocol: 5, Expiry: schema.NoExpiry}})[0]
	if !errors.Is(got.Err, store.ErrSuperseded) {
		t.Errorf("the claim that was overtaken: %+v", got)
	}
	last := <-over
	if last.Err != nil || last.Released || !slices.Equal(last.Cursor.Flight, flightOf(d)) {
		t.Errorf("the one that overtook it: %+v", last)
	}
}

// Promise 6: an owner that was paused in the middle of its release hands back nothing
// once another has claimed the session.
func TestG4_FormerOwnerHandsBackNothing(t *testing.T) {
	t.Parallel()
	g := newGroupRig(t)
	g.member(g.two, "b")
	a := g.member(g.one, "a")
	g.publish(1)
	d := g.record(a.Owner, 1, 1, 0, shareT)
	g.stored(g.one, d)
	g.write(g.one, store.SaveCursor{Owner: a.Owner, Cursor: schema.SessionCursor{After: a.Cursor.After, Seq: 1, Flight: flightOf(d)}})
	next := claim(t, g.two, "a")
	if err := g.one.Write(g.ctx, []store.Write{store.Release{Owner: a.Owner}})[0]; !errors.Is(err, store.ErrSessionLost) {
		t.Errorf("a release of the former owner: %v", err)
	}
	g.again()
	if !slices.Equal(next.Cursor.Flight, flightOf(d)) {
		t.Errorf("in flight %+v", next.Cursor.Flight)
	}
}

// G1: a group tells on which nodes its members are connected.
func TestG1_NodesOfAGroup(t *testing.T) {
	t.Parallel()
	g := newGroupRig(t)
	a, _, c := g.member(g.one, "a"), g.member(g.two, "b"), g.member(g.two, "c")
	nodes := func(s *Store, want ...*Store) {
		t.Helper()
		got, err := s.OpenGroup(g.ctx, shareT)
		if err != nil || got.Self != schema.ID(s.self.id()) || len(got.Nodes) != len(want) {
			t.Fatalf("%+v, %v", got, err)
		}
		for _, w := range want {
			if !slices.Contains(got.Nodes, schema.ID(w.self.id())) {
				t.Errorf("%v is not among %v", w.self.id(), got.Nodes)
			}
		}
	}
	nodes(g.one, g.one, g.two)
	nodes(g.two, g.one, g.two)
	g.write(g.two, store.Release{Owner: c.Owner})
	nodes(g.two, g.one, g.two)
	g.write(g.one, store.Release{Owner: a.Owner})
	nodes(g.two, g.two)
}

// A shared subscription that another program had stored before the first start makes
// a member, as one of ours does.
func TestHistoryMember(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	ctx := context.Background()
	if _, err := r.db.Collection("subscription").InsertOne(ctx, fields("topic", shareT, "clientId", "old", "qos", 1, "created", time.Now())); err != nil {
		t.Fatal(err)
	}
	g := &groupRig{rig: r, ctx: ctx}
	g.two = g.start()
	g.publish(2)
	old := claim(t, g.two, "old")
	if got, err := g.two.OpenGroup(ctx, shareT); err != nil || !got.After.After(g.msgs[0].Mark) || len(old.Subscriptions) != 1 {
		t.Fatalf("%+v, %v of %+v", got, err, old.Subscriptions)
	}
	d := g.record(old.Owner, 1, 1, 0, shareT)
	g.stored(g.two, d)
	g.member(g.two, "b")
	g.write(g.two, store.SaveCursor{Owner: old.Owner, Cursor: schema.SessionCursor{Seq: 1, Flight: flightOf(d)}}, store.Release{Owner: old.Owner})
	g.again(0)
}

// The claims of a group are found by seeks, however many records it has.
func TestGroupClaimsByIndex(t *testing.T) {
	t.Parallel()
	g := newGroupRig(t)
	a := g.member(g.one, "a")
	g.publish(3)
	for i := range g.msgs {
		g.stored(g.one, g.record(a.Owner, uint64(i+1), 1, i, shareT))
	}
	at := a.Cursor.After.Clone()
	at.Advance(g.msgs[1].Mark)
	if err := g.one.SaveGroup(g.ctx, shareT, at, nil); err != nil {
		t.Fatal(err)
	}
	if err := g.db.RunCommand(g.ctx, fields("profile", 2)).Err(); err != nil {
		t.Fatal(err)
	}
	got, err := g.one.OpenGroup(g.ctx, shareT)
	if err != nil || len(got.Claimed) != 1 {
		t.Fatalf("%+v, %v", got, err)
	}
	var op struct {
		Keys int64 `bson:"keysExamined"`
		Docs int64 `bson:"docsExamined"`
	}
	err = g.db.Collection("system.profile").FindOne(g.ctx, bson.D{
		{Key: "op", Value: "query"}, {Key: "ns", Value: g.name + ".publishedMessage"}, {Key: "command.hint", Value: "group_lane_n"},
	}).Decode(&op)
	if err != nil || op.Docs > 1 {
		t.Errorf("claims were looked for by %+v, %v", op, err)
	}
}
