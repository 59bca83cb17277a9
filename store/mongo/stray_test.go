package mongo

import (
	"context"
	"testing"

	"go.mongodb.org/mongo-driver/v2/bson"

	"rewindmq/schema"
	"rewindmq/store"
)

// mourned waits until the keeper has found the will of a session.
func mourned(r *rig, s *Store, id string) {
	r.t.Helper()
	r.eventually("the will of "+id, func(ctx context.Context) bool {
		due, err := s.DueWills(ctx, 10)
		if err != nil {
			r.t.Fatal(err)
		}
		return len(due) == 1 && due[0].ClientID == id
	})
}

func willing(t *testing.T, s *Store, at schema.Cursor, id string) store.Claimed {
	t.Helper()
	return s.Claim(context.Background(), []store.Claim{{ClientID: id, Protocol: 5, Expiry: 100, At: at, Will: &schema.Will{Topic: "w", QoS: 1}}})[0]
}

// A keeper that is cut between its claim of a dead node's session and the release comes
// back to it. What a client has claimed here meanwhile is left alone.
func TestKeeperCutWhileFinishing(t *testing.T) {
	t.Parallel()
	for _, back := range []bool{false, true} {
		r := newRig(t, 1)
		a := r.start()
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		turn, cut := context.WithCancel(ctx)
		defer cut()
		h := newHook("findAndModify", func(cmd bson.Raw) bool {
			c, _ := cmd.Lookup("findAndModify").StringValueOK()
			return c == "cursor"
		}, cut) // the third step of the claim
		at := headOf(t, a)
		if got := willing(t, a, at, "dev"); got.Err != nil {
			t.Fatal(got.Err)
		}
		node := a.self.id()
		r.o.commands = h.monitor()
		b := r.start()
		k := &keeper{s: b}
		close(h.armed)
		if err := k.finishSessions(turn, node); err == nil {
			t.Fatal("it was not cut")
		}
		a.kill()
		r.finished(node)
		if back {
			if got := willing(t, b, at, "dev"); got.Err != nil {
				t.Fatal(got.Err)
			}
		}
		if err := k.finishStray(ctx); err != nil {
			t.Fatal(err)
		}
		if len(k.cut) > 0 {
			t.Errorf("left: %v", k.cut)
		}
		d := sessionOf(t, b, "dev")
		if back {
			if d.Owner == nil || d.Disconnected != nil {
				t.Errorf("its client is here: %+v", d)
			}
			continue
		}
		if d.Owner != nil || d.Epoch != d.Released {
			t.Errorf("session %+v", d)
		}
		mourned(r, b, "dev")
	}
}

// A node that is declared dead goes on under its name until another is registered: nothing
// is owned under a name that no keeper knows.
func TestRebornIsRegistered(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	g := newGate(t, sets[1].get(t))
	a := r.through(g)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	old, at := a.self.id(), headOf(t, a)
	register := g.hold("\x02update\x00\x05\x00\x00\x00node\x00", "started")
	if _, err := r.db.Collection("node").UpdateOne(ctx, fields("_id", old), fields("$set", fields("dead", true))); err != nil {
		t.Fatal(err)
	}
	register.come()
	if a.self.id() != old {
		t.Error("the node has a name that is not registered")
	}
	got := willing(t, a, at, "dev") // under a name that may be finished already
	register.release()
	r.eventually("another name", func(context.Context) bool { return a.self.id() != old })
	if n, err := r.db.Collection("node").CountDocuments(ctx, fields("_id", a.self.id())); err != nil || n != 1 {
		t.Errorf("%d documents of the new name, %v", n, err)
	}
	t.Logf("claim: %v", got.Err)
	if got.Err == nil {
		mourned(r, a, "dev")
	}
}

// What is claimed under the name of a node that has been finished, or of which nothing is
// known, is finished.
func TestSessionOfAFinishedNode(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	s := r.start()
	at := headOf(t, s)
	ctx := context.Background()
	finished := bson.NewObjectID()
	if _, err := r.db.Collection("node").InsertOne(ctx, fields("_id", finished, "finished", bson.DateTime(1))); err != nil {
		t.Fatal(err)
	}
	for id, owner := range map[string]bson.ObjectID{"finished": finished, "unknown": bson.NewObjectID()} {
		got := willing(t, s, at, id)
		if got.Err != nil {
			t.Fatal(got.Err)
		}
		if _, err := r.db.Collection("session").UpdateOne(ctx, fields("_id", id), fields("$set", fields("owner", owner))); err != nil {
			t.Fatal(err)
		}
		r.eventually("the will of "+id, func(ctx context.Context) bool {
			due, err := s.DueWills(ctx, 10)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range due {
				if d.ClientID == id {
					return true
				}
			}
			return false
		})
	}
}
