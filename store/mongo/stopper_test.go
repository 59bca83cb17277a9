package mongo

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/event"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"rewindmq/schema"
	"rewindmq/store"
	"rewindmq/store/mongo/lane"
)

// L11: the answer to a claimer's stopper is lost, and the writer has gone on behind
// it. The claimer finds that it stands, and does not go on until its time is over.
func TestL11_StopperStandsWhereTheWriterWentOn(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	s := r.start()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	p := &store.Publisher{}
	p.ClientID = "c"
	before := appendOne(t, s, p, "t")
	var d laneDoc
	if err := s.c.lane.FindOne(ctx, fields("_id", int64(before.Mark.Lane))).Decode(&d); err != nil {
		t.Fatal(err)
	}
	doc := bson.NewObjectID()
	if _, err := s.c.message.InsertOne(ctx, s.stopper(doc, d.id(), before.Mark.N+1, lane.Stopper)); err != nil {
		t.Fatal(err)
	}
	if behind := appendOne(t, s, p, "t"); behind.Mark.N != before.Mark.N+2 {
		t.Fatalf("appended at %v, want it behind the stopper", behind.Mark)
	}
	err := s.inSession(ctx, bson.Timestamp{}, func(ctx context.Context) error {
		return s.putStopper(ctx, doc, d.id(), lane.Stopper)
	})
	if err != nil {
		t.Error(err)
	}
	if n, err := s.c.message.CountDocuments(ctx, fields("lane", int64(d.id()), "stop", lane.Stopper)); err != nil || n != 1 {
		t.Errorf("%d stoppers, want 1: %v", n, err)
	}
}

// stopAttempts counts the attempts to insert a stopper that a node makes which appends
// nothing.
type stopAttempts struct {
	n     atomic.Int64
	limit atomic.Int64
	over  func() // more than limit
}

func (c *stopAttempts) monitor() *event.CommandMonitor {
	return &event.CommandMonitor{Started: func(_ context.Context, e *event.CommandStartedEvent) {
		coll, _ := e.Command.Lookup(e.CommandName).StringValueOK()
		puts := e.CommandName == "insert" && coll == "message"
		if stages, ok := e.Command.Lookup("pipeline").ArrayOK(); ok && e.CommandName == "aggregate" {
			list, _ := stages.Values()
			puts = len(list) > 0 && list[len(list)-1].Document().Lookup("$merge").Type == bson.TypeEmbeddedDocument
		}
		if puts && c.n.Add(1) > c.limit.Load() {
			c.over()
		}
	}}
}

// busy has publishers append through s as fast as they are answered, until stop.
func busy(ctx context.Context, s *Store, publishers int) (stored *atomic.Int64, stop func()) {
	stored = new(atomic.Int64)
	var end atomic.Bool
	var all sync.WaitGroup
	for i := range publishers {
		p := &store.Publisher{}
		p.ClientID = fmt.Sprint("p", i)
		all.Go(func() {
			for !end.Load() && ctx.Err() == nil {
				done := make(chan struct{})
				list := []*schema.Message{message(s, p, "t", "x"), message(s, p, "t", "x"), message(s, p, "t", "x")}
				s.Append(ctx, p, list, func(got []store.Appended) {
					for _, a := range got {
						if a.Outcome == store.Stored {
							stored.Add(1)
						}
					}
					close(done)
				})
				<-done
			}
		})
	}
	return stored, func() {
		end.Store(true)
		all.Wait()
	}
}

// L11: a stopper gets into the lane of a writer that is never idle, on a set in which
// a majority has a batch only after a member has told of it: by then the next one is on
// the primary. It is not counted how long that takes, but how often it is tried.
func TestL11_StopperGetsIntoABusyLane(t *testing.T) {
	t.Parallel()
	const most = 20 // attempts for one stopper; a writer with a gap now and then needs two
	r := newRig(t, 3)
	r.o.Lanes, r.o.Lease = 1, time.Minute
	a := r.start()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c := &stopAttempts{over: cancel}
	r.o.commands = c.monitor()
	b := r.start()
	lanes, err := b.readLanes(ctx, fields("node", a.self.id()))
	if err != nil || len(lanes) != 1 {
		t.Fatalf("lanes of the busy node: %v, %v", lanes, err)
	}
	stored, stop := busy(ctx, a, 100)
	defer stop()
	const stoppers = 5
	for i := range stoppers {
		was := stored.Load()
		r.eventually("appends", func(context.Context) bool { return stored.Load() > was+1000 })
		c.limit.Store(c.n.Load() + most)
		err := b.inSession(ctx, bson.Timestamp{}, func(ctx context.Context) error {
			return b.stopLane(ctx, lanes[0].id(), lane.Stopper)
		})
		if err != nil {
			t.Fatalf("stopper %d, after %d attempts at all: %v", i, c.n.Load(), err)
		}
	}
	t.Logf("%d attempts for %d stoppers", c.n.Load(), stoppers)
	stop()
	if n := checkLane(ctx, t, r, lanes[0].id()); n != stoppers {
		t.Errorf("%d stoppers stand, want %d", n, stoppers)
	}
}

// checkLane checks that a lane is dense, and that ts rises in it. It counts the stoppers.
func checkLane(ctx context.Context, t *testing.T, r *rig, id laneID) (stoppers int) {
	t.Helper()
	cur, err := r.db.Collection("message").Find(ctx, fields("lane", int64(id)), options.Find().SetSort(fields("n", 1)))
	if err != nil {
		t.Fatal(err)
	}
	var before place
	for cur.Next(ctx) {
		p := placeOf(cur.Current)
		if p.n != before.n+1 || p.ts <= before.ts {
			t.Fatalf("%+v stands behind %+v", p, before)
		}
		if p.stop != "" {
			stoppers++
		}
		before = p
	}
	if err := cur.Err(); err != nil {
		t.Fatal(err)
	}
	return stoppers
}
