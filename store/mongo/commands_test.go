package mongo

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/event"

	"rewindmq/schema"
	"rewindmq/store"
)

// readCount counts the commands that read what grows with the messages, by name and
// collection, but for the tail's passes (in a snapshot) and the adopter's look.
type readCount struct {
	mu     sync.Mutex
	on     bool
	passes int
	by     map[string]int
}

func (c *readCount) monitor() *event.CommandMonitor {
	return &event.CommandMonitor{Started: func(_ context.Context, e *event.CommandStartedEvent) {
		coll, _ := e.Command.Lookup(e.CommandName).StringValueOK()
		switch e.CommandName {
		case "find", "aggregate", "count", "distinct":
		default:
			return
		}
		switch coll {
		case "message", "publishedMessage", "subscription", "session", "cursor", "retained":
		default:
			return
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if !c.on {
			return
		}
		level, _ := e.Command.Lookup("readConcern", "level").StringValueOK()
		hint, _ := e.Command.Lookup("hint").StringValueOK()
		switch {
		case level == "snapshot":
			c.passes++
		case hint == "foreign" || hint == "epoch" || e.CommandName == "distinct" || streams(e.Command):
		default:
			c.by[e.CommandName+" "+coll]++
		}
	}}
}

func streams(cmd bson.Raw) bool {
	stages, _ := cmd.Lookup("pipeline").ArrayOK()
	list, _ := stages.Values()
	return len(list) > 0 && list[0].Document().Lookup("$changeStream").Type == bson.TypeEmbeddedDocument
}

func (c *readCount) switched(on bool) (passes, reads int, by string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range c.by {
		reads += n
	}
	passes, by = c.passes, fmt.Sprint(c.by)
	c.on, c.passes, c.by = on, 0, map[string]int{}
	return passes, reads, by
}

// No read of MongoDB per publish or per live delivery: publishes on one node, each
// recorded and delivered to a persistent session on another, whose cursor is saved,
// are writes alone. What is read is the tail's passes, of many messages each.
func TestNoReadPerPublishOrDelivery(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	r.o.Lease = time.Minute
	var c readCount
	c.switched(false)
	r.o.commands = c.monitor()
	a, b := r.start(), r.start()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	at := headOf(t, b)
	owner := claimAt(t, b, "sub", at).Owner
	mustWrite(t, b, store.PutSubscriptions{Owner: owner, Subscriptions: []schema.Subscription{subscription(b, "t", 1)}})
	publisher := &store.Publisher{Owner: claimAt(t, a, "pub", at).Owner}
	tl, err := b.Tail(ctx, at)
	if err != nil {
		t.Fatal(err)
	}
	defer tl.Close()
	seq := uint64(0)
	live := func(n int) {
		room := make(chan struct{}, 20)
		go func() {
			for i := range n {
				room <- struct{}{}
				a.Append(ctx, publisher, []*schema.Message{message(a, publisher, "t", fmt.Sprint(i))}, func(got []store.Appended) {
					if got[0].Outcome != store.Stored {
						t.Errorf("%+v", got[0])
					}
					<-room
				})
			}
		}()
		for end := seq + uint64(n); seq < end; {
			events, err := tl.Next(ctx)
			if err != nil {
				t.Fatal(err)
			}
			var batch []schema.Delivery
			for _, e := range events {
				if e.Message == nil {
					continue
				}
				seq++
				d := delivery(b, owner, seq, e.Message.Mark)
				d.MessageID, d.PacketID = e.Message.ID, uint16(seq%1000+1)
				batch = append(batch, d)
			}
			for _, err := range b.Record(ctx, batch) {
				if err != nil {
					t.Fatal(err)
				}
			}
			if seq%500 < uint64(len(batch)) {
				mustWrite(t, b, store.SaveCursor{Owner: owner, Cursor: schema.SessionCursor{After: events[len(events)-1].H, Seq: seq}})
			}
		}
	}
	live(100) // connections are open, and the stream
	for _, n := range []int{300, 3000} {
		c.switched(true)
		live(n)
		passes, reads, by := c.switched(false)
		t.Logf("%d publishes and deliveries: %d reads (%s), %d commands of passes", n, reads, by, passes)
		// What does not grow with n: a keeper's looks.
		if reads > 30 || passes > 30+n/5 {
			t.Errorf("%d publishes and deliveries: %d reads (%s), %d commands of passes", n, reads, by, passes)
		}
	}
}
