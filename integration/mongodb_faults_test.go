package integration

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	driver "go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
	"go.mongodb.org/mongo-driver/v2/mongo/readconcern"

	"rewindmq/integration/mongod"
)

// Item 4: step-down, primary killed, all members killed and started again, under
// load; after each: complete, once, in order.
func TestFaultsOfThreeMembers(t *testing.T) {
	t.Parallel()
	for name, with := range streamings() {
		t.Run(name, func(t *testing.T) {
			set := ownSet(t, 3)
			b := startOn(t, set.URI(), with)
			c := faultCrowd(t, b)
			for range rounds(5) {
				for _, f := range []struct {
					name string
					do   func(ctx context.Context) error
				}{
					{"step-down", set.StepDown},
					{"primary killed", func(ctx context.Context) error { return killPrimary(ctx, set) }},
					{"all killed", func(context.Context) error { return killAll(set) }},
				} {
					c.flows(10)
					ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
					if err := f.do(ctx); err != nil {
						t.Fatalf("%s: %v", f.name, err)
					}
					began := time.Now()
					c.flows(10)
					t.Logf("%s: 10 acknowledgements after %v", f.name, time.Since(began).Round(time.Millisecond))
					cancel()
				}
			}
			c.finish()
			c.auditNow()
		})
	}
}

// faultCrowd is a crowd that is at work: some stay connected, some come and go.
func faultCrowd(t *testing.T, b *broker, nodes ...string) *crowd {
	t.Helper()
	c := newCrowd(t, b, rand.New(rand.NewPCG(7, uint64(time.Now().UnixNano()))))
	c.addrs = nodes
	pubs, subs := standardCrowd()
	for i, p := range pubs {
		p.pace = 40 * time.Millisecond
		if i%2 == 0 {
			p.cutIn = 0
		}
	}
	for i, s := range subs {
		if i%2 == 0 {
			s.stay, s.away = 0, 0
		}
	}
	c.subscribe(subs...)
	c.publish(pubs...)
	return c
}

// flows waits until the load flows again; an outage may take its time.
func (c *crowd) flows(more int) {
	c.t.Helper()
	n := c.ledger.acknowledgedCount() + more
	c.b.within(2*time.Minute, fmt.Sprintf("%d more acknowledgements", more), func() bool { return c.ledger.acknowledgedCount() >= n })
}

func killPrimary(ctx context.Context, set *mongod.Set) error {
	p, err := set.Primary(ctx)
	if err != nil {
		return err
	}
	p.Kill()
	if _, err := set.Primary(ctx); err != nil {
		return err
	}
	return p.Start()
}

func killAll(set *mongod.Set) error {
	set.Stop()
	var err error
	for _, m := range set.Members() {
		err = errors.Join(err, m.Start())
	}
	return err
}

// Item 4: the network is cut, for a moment and for longer than a socket notices;
// and the server forgets the tail's cursors.
func TestFaultsOfTheNetwork(t *testing.T) {
	t.Parallel()
	for name, with := range streamings() {
		t.Run(name, func(t *testing.T) {
			set := lone(t)
			p := proxyTo(t, set.Members()[0].Addr())
			b := startOn(t, p.uri(), with)
			c := faultCrowd(t, b)
			for i := range rounds(25) {
				c.flows(50)
				switch i % 4 {
				case 0:
					p.cut()
				case 1: // half a connection: nothing comes back
					p.swallow(true)
					elapse(t, 2*time.Second)
					p.swallow(false)
					p.cut()
				case 2:
					p.away(true)
					elapse(t, 3*time.Second)
					p.away(false)
				case 3:
					if name == "streams" {
						b.eventually("a cursor of the tail is killed", func() bool { return killCursors(t, b.place.db) > 0 })
					}
				}
			}
			c.flows(50)
			c.finish()
			c.auditNow()
		})
	}
}

// killCursors kills the cursors on `message`, and tells how many there were.
func killCursors(t *testing.T, db *driver.Database) int {
	t.Helper()
	admin := db.Client().Database("admin", options.Database().SetReadConcern(readconcern.Local()))
	cur, err := admin.Aggregate(t.Context(), driver.Pipeline{
		{{Key: "$currentOp", Value: bson.D{{Key: "allUsers", Value: true}, {Key: "idleCursors", Value: true}}}},
		{{Key: "$match", Value: bson.D{{Key: "ns", Value: db.Name() + ".message"}, {Key: "cursor.cursorId", Value: bson.D{{Key: "$exists", Value: true}}}}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	var ops []struct {
		Cursor struct {
			ID int64 `bson:"cursorId"`
		} `bson:"cursor"`
	}
	if err := cur.All(t.Context(), &ops); err != nil {
		t.Fatal(err)
	}
	ids := bson.A{}
	for _, op := range ops {
		ids = append(ids, op.Cursor.ID)
	}
	if len(ids) == 0 {
		return 0
	}
	var res struct {
		Killed bson.A `bson:"cursorsKilled"`
	}
	err = db.RunCommand(t.Context(), bson.D{{Key: "killCursors", Value: "message"}, {Key: "cursors", Value: ids}}).Decode(&res)
	if err != nil {
		t.Fatal(err)
	}
	return len(res.Killed)
}

// document is a message in the shape that other writers use.
func document(topic string, payload any) bson.D {
	return bson.D{
		{Key: "topic", Value: topic},
		{Key: "data", Value: payload},
		{Key: "clientId", Value: "erp"},
		{Key: "qos", Value: 1},
		{Key: "retain", Value: false},
		{Key: "created", Value: time.Now()},
		{Key: "host", Value: "erp"},
	}
}

// Item 6, P7: a document that the plain driver inserts is a publish, while brokers
// run and while none does: it comes once to each subscriber, connected or away, in
// the order of its transaction; a malformed one is refused by the database.
func TestInsertIsPublish(t *testing.T) {
	for name, with := range streamings() {
		t.Run(name, func(t *testing.T) {
			a, b := pair(t, with)
			messages := a.place.db.Collection("message")
			insert := func(docs ...any) {
				t.Helper()
				if _, err := messages.InsertMany(t.Context(), docs); err != nil {
					t.Fatal(err)
				}
			}
			live := a.open(persistent(v5, "live"))
			live.subscribe(want{"ins/#", 2})
			clean := b.open(transient(v311, "clean"))
			clean.subscribe(want{"ins/+", 1})
			away := b.open(persistent(v311, "away"))
			away.subscribe(want{"ins/#", 1})
			away.disconnect()

			insert(document("ins/1", "one"))
			old := document("ins/2", "old")
			old[5].Value = time.Date(2001, 1, 1, 0, 0, 0, 0, time.UTC)
			insert(old)
			insert(bson.D{{Key: "topic", Value: "ins/3"}, {Key: "data", Value: "bare"}})
			// With a business document, in one transaction.
			err := a.place.db.Client().UseSession(t.Context(), func(ctx context.Context) error {
				_, err := driver.SessionFromContext(ctx).WithTransaction(ctx, func(ctx context.Context) (any, error) {
					if _, err := a.place.db.Collection("order").InsertOne(ctx, bson.D{{Key: "x", Value: 1}}); err != nil {
						return nil, err
					}
					for i := range 10 {
						if _, err := messages.InsertOne(ctx, document("ins/tx", fmt.Sprint("tx ", i))); err != nil {
							return nil, err
						}
					}
					return nil, nil
				})
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			many := make([]any, size(10_000))
			for i := range many {
				many[i] = document("ins/many", fmt.Sprint("many ", i))
			}
			insert(many...)
			list := []string{"one", "old", "bare"}
			for i := range 10 {
				list = append(list, fmt.Sprint("tx ", i))
			}
			for i := range many {
				list = append(list, fmt.Sprint("many ", i))
			}
			gather(t, live, list)
			gather(t, clean, list)
			for _, bad := range []bson.D{
				document("ins/#", "x"), document("", "x"), document("ins/bad", 7), document("ins/\x00", "x"),
			} {
				if _, err := messages.InsertOne(t.Context(), bad); err == nil {
					t.Errorf("%v was taken", bad[:2])
				}
			}
			copied, err := messages.FindOne(t.Context(), bson.D{{Key: "topic", Value: "ins/1"}}).Raw()
			if err != nil {
				t.Fatal(err)
			}
			again := append(document("ins/1", "copy"), bson.E{Key: "lane", Value: copied.Lookup("lane")}, bson.E{Key: "n", Value: copied.Lookup("n")})
			if _, err := messages.InsertOne(t.Context(), again); !driver.IsDuplicateKeyError(err) {
				t.Errorf("a copy within the database: %v, want a duplicate key", err)
			}

			live.disconnect()
			clean.disconnect()
			a.stop()
			b.kill9()
			insert(document("ins/4", "while none runs"), document("ins/4", "and another"))
			a.start()
			b.start()
			list = append(list, "while none runs", "and another")
			gather(t, b.open(persistent(v311, "away")).expectPresent(true), list)
			gather(t, a.open(persistent(v5, "live")).expectPresent(true), list[len(list)-2:])
		})
	}
}

// gather takes exactly the messages of list, each once, those of one topic in
// order.
func gather(t *testing.T, c *client, list []string) {
	t.Helper()
	place := map[string]int{}
	for i, text := range list {
		place[text] = i
	}
	last := map[string]int{}
	for range list {
		p := c.settle(c.take())
		i, ok := place[string(p.payload)]
		switch before, some := last[p.topic]; {
		case !ok:
			t.Fatalf("%s: got %v, unknown or twice", c.name, p)
		case some && i < before:
			t.Errorf("%s: got %v after %q", c.name, p, list[before])
		}
		delete(place, string(p.payload))
		last[p.topic] = i
	}
	c.nothing()
}
