package integration

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	driver "go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"rewindmq/integration/mongod"
)

// keeperOf tells which of the nodes holds the keeper's lease.
func keeperOf(t *testing.T, nodes ...*broker) (keeper *broker, rest []*broker) {
	t.Helper()
	coll := nodes[0].place.db.Collection("node")
	name := ""
	nodes[0].eventually("a keeper", func() bool {
		lease, err := coll.FindOne(t.Context(), bson.D{{Key: "_id", Value: "keeper"}}).Raw()
		if err != nil {
			return false
		}
		owner, err := coll.FindOne(t.Context(), bson.D{{Key: "_id", Value: lease.Lookup("owner")}}).Raw()
		if err != nil {
			return false
		}
		name = owner.Lookup("name").StringValue()
		return true
	})
	i := slices.IndexFunc(nodes, func(b *broker) bool { return b.node == name })
	if i < 0 {
		t.Fatalf("the keeper is %q", name)
	}
	return nodes[i], slices.Concat(nodes[:i], nodes[i+1:])
}

// Item 6, F-02, P7: the keeper is killed in the middle of adopting 10,000 inserts,
// while a transaction with a business document and messages is held open over all of
// it. Another node becomes the keeper and goes on: all of it comes once and in order,
// to who is connected, to a session whose node died, and to one that was away.
func TestAdoption_KeeperKilled(t *testing.T) {
	for name, with := range streamings() {
		if name == "lanes" && !soak && !noStreams {
			continue
		}
		t.Run(name, func(t *testing.T) {
			a, b := pair(t, with)
			keeper, rest := keeperOf(t, a, b)
			other := rest[0]
			db := a.place.db
			messages := db.Collection("message")
			live := other.open(persistent(v5, "live"))
			live.subscribe(want{"adopt/#", 1})
			moves := keeper.open(persistent(v5, "moves"))
			moves.subscribe(want{"adopt/#", 1})
			away := other.open(persistent(v311, "away"))
			away.subscribe(want{"adopt/#", 1})
			away.disconnect()

			sess, err := db.Client().StartSession()
			if err != nil {
				t.Fatal(err)
			}
			defer sess.EndSession(t.Context())
			if err := sess.StartTransaction(); err != nil {
				t.Fatal(err)
			}
			tx := driver.NewSessionContext(t.Context(), sess)
			if _, err := db.Collection("order").InsertOne(tx, bson.D{{Key: "x", Value: 1}}); err != nil {
				t.Fatal(err)
			}
			var held []string
			for i := range 20 {
				held = append(held, fmt.Sprint("held ", i))
				doc := document("adopt/tx", held[i])
				doc[5].Value = time.Now().Add(time.Duration(i) * time.Millisecond) // their order
				if _, err := messages.InsertOne(tx, doc); err != nil {
					t.Fatal(err)
				}
			}

			n := max(4000, size(10_000))
			if soak {
				n = 10_000
			}
			list, docs := make([]string, n), make([]any, n)
			for i := range list {
				list[i] = fmt.Sprint("many ", i)
				docs[i] = document("adopt/many", list[i])
			}
			inserted := make(chan error, 1)
			go func() {
				_, err := messages.InsertMany(t.Context(), docs)
				inserted <- err
			}()
			adopted := func() int {
				k, err := messages.CountDocuments(t.Context(), bson.D{{Key: "topic", Value: "adopt/many"}, {Key: "lane", Value: bson.D{{Key: "$gt", Value: 0}}}})
				if err != nil {
					t.Fatal(err)
				}
				return int(k)
			}
			keeper.eventually("a quarter is adopted", func() bool { return adopted() >= n/4 })
			keeper.kill9()
			if err := <-inserted; err != nil {
				t.Fatal(err)
			}
			k := adopted()
			t.Logf("%d of %d were adopted when the keeper was killed", k, n)
			if k == n {
				t.Error("the keeper was killed too late: the test shows nothing")
			}
			if err := sess.CommitTransaction(t.Context()); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			other.within(time.Minute, "all is adopted", func() bool { return adopted() == n })
			t.Logf("the next keeper was through after %v", time.Since(began).Round(time.Millisecond))
			list = append(list, held...)
			gather(t, live, list)
			gatherFrom(t, other.open(persistent(v5, "moves")).expectPresent(true), moves, list)
			gather(t, other.open(persistent(v311, "away")).expectPresent(true), list)
			audit := a.place.audit(t)
			checkOnce(t, audit, "adopt/many", list[:n])
			checkOnce(t, audit, "adopt/tx", held)
		})
	}
}

// gatherFrom is gather for a session whose connection broke: what the old one was
// sent and had not acknowledged comes again, with DUP; nothing else does.
func gatherFrom(t *testing.T, c, old *client, list []string) {
	t.Helper()
	sent := map[string]bool{}
	for _, p := range old.closed() {
		if p.kind == kindPublish {
			sent[string(p.payload)] = true
		}
	}
	if len(sent) == 0 {
		t.Log("nothing was in flight to it")
	}
	gather(t, c, list)
}

// Item 6, P7: a copy from another database carries lane and n of that one. It is
// adopted like any insert: once, in order, though the numbers of its lanes are those
// of lanes that this log has, or of one that it has not.
func TestAdoption_CopyFromAnotherDatabase(t *testing.T) {
	t.Parallel()
	if !chosen("mongodb") {
		t.Skip("REWINDMQ_TEST_STORES leaves mongodb out")
	}
	for name, with := range streamings() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			from := start(t, mongodbBackend())
			list := texts(1, 300)
			from.publishTexts("copy/t", 1, list...)
			to := start(t, mongodbBackend(), with)
			live := to.open(persistent(v5, "live"))
			live.subscribe(want{"copy/#", 1})
			away := to.open(persistent(v5, "away"))
			away.subscribe(want{"copy/#", 1})
			away.disconnect()
			var own []string
			for i := range 100 {
				own = append(own, fmt.Sprint("own ", i))
			}
			to.publishTexts("copy/own", 1, own...) // the same marks are taken here
			gather(t, live, own)

			var docs []any
			for _, d := range stored(t, from.place.db, "copy/t") {
				docs = append(docs, d)
			}
			if len(docs) != len(list) {
				t.Fatalf("%d of %d to copy", len(docs), len(list))
			}
			copies := to.place.db.Collection("message")
			if _, err := copies.InsertMany(t.Context(), docs); err != nil {
				t.Fatal(err)
			}
			strange := document("copy/strange", "strange")
			strange = append(strange, bson.E{Key: "lane", Value: int64(1_000_000)<<32 | 5}, bson.E{Key: "n", Value: int64(77)})
			if _, err := copies.InsertOne(t.Context(), strange); err != nil {
				t.Fatal(err)
			}
			all := append(slices.Clone(list), "strange")
			gather(t, live, all)
			to.publishTexts("copy/own", 1, "after") // the log goes on behind them
			live.settle(live.takePayload("after"))
			live.nothing()
			whole := slices.Concat(own, all, []string{"after"})
			gather(t, to.open(persistent(v5, "away")).expectPresent(true), whole)
			checkOnce(t, to.place.audit(t), "copy/t", list)
			live.disconnect()
			to.letGo("live")
			to.crash() // and nothing of it is adopted once more
			again := to.open(persistent(v5, "live")).expectPresent(true)
			to.publishTexts("copy/own", 1, "last")
			again.settle(again.takePayload("last"))
			again.nothing()
		})
	}
}

// stored reads the documents of a topic as they are, in the order of their lane.
func stored(t *testing.T, db *driver.Database, topic string) []bson.Raw {
	t.Helper()
	cur, err := db.Collection("message").Find(t.Context(), bson.D{{Key: "topic", Value: topic}},
		options.Find().SetSort(bson.D{{Key: "lane", Value: 1}, {Key: "n", Value: 1}}))
	if err != nil {
		t.Fatal(err)
	}
	var out []bson.Raw
	if err := cur.All(t.Context(), &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// F-27 c, P2: the driver inserts documents whose `created` lies before what retention
// keeps, in 2001 and 400 days ago, while the server's TTL monitor goes round each
// second: while a broker runs, and while none does. Each is delivered, live and to a
// session that was away, and then kept: none is silently gone.
func TestF27_OldCreated(t *testing.T) {
	t.Parallel()
	for name, with := range streamings() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			set := setWith(t, mongod.Options{Parameters: []string{"ttlMonitorSleepSecs=1"}})
			b := startOn(t, set.URI(), with)
			messages := b.place.db.Collection("message")
			live := b.open(persistent(v5, "live"))
			live.subscribe(want{"old/#", 1})
			away := b.open(persistent(v5, "away"))
			away.subscribe(want{"old/#", 1})
			away.disconnect()
			times := []time.Time{time.Date(2001, 1, 1, 0, 0, 0, 0, time.UTC), time.Now().Add(-400 * 24 * time.Hour)}
			var list []string
			insert := func(text string, more ...bson.E) {
				t.Helper()
				for i, at := range times {
					list = append(list, fmt.Sprint(text, " ", i))
					doc := document("old/"+text, list[len(list)-1])
					doc[5].Value = at
					if _, err := messages.InsertOne(t.Context(), append(doc, more...)); err != nil {
						t.Fatal(err)
					}
				}
			}
			rounds := ttlRounds(t, b.place.db)
			pass := func() {
				t.Helper()
				from := rounds()
				_ = poll(patience, nil, func() bool { return rounds() >= from+3 })
			}
			insert("a broker runs")
			gather(t, live, list)
			pass()
			live.disconnect()
			b.stop()
			none := len(list)
			insert("none runs")
			pass()
			b.start()
			live = b.open(persistent(v5, "live")).expectPresent(true)
			gather(t, live, list[none:])
			pass()
			gather(t, b.open(persistent(v5, "away")).expectPresent(true), list)
			// The monitor does its work: it takes what has a place and is old.
			for _, doc := range stored(t, b.place.db, "old/none runs") {
				if _, err := messages.UpdateByID(t.Context(), doc.Lookup("_id"), bson.D{{Key: "$set", Value: bson.D{{Key: "created", Value: times[0]}}}}); err != nil {
					t.Fatal(err)
				}
			}
			b.eventually("the TTL monitor takes what is old", func() bool { return len(stored(t, b.place.db, "old/none runs")) == 0 })
			if n := len(stored(t, b.place.db, "old/a broker runs")); n != len(times) {
				t.Errorf("%d of %d are kept", n, len(times))
			}
		})
	}
}

// ttlRounds tells how often the TTL monitor has gone round.
func ttlRounds(t *testing.T, db *driver.Database) func() int64 {
	return func() int64 {
		t.Helper()
		status, err := db.RunCommand(t.Context(), bson.D{{Key: "serverStatus", Value: 1}}).Raw()
		if err != nil {
			t.Fatal(err)
		}
		n, _ := status.Lookup("metrics", "ttl", "passes").AsInt64OK()
		return n
	}
}
