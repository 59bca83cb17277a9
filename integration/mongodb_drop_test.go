package integration

import (
	"fmt"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
)

// Item 4, T12: `message` is dropped or renamed while brokers run: each of them says
// so and ends, by its stream or without one, also where an append has made the
// collection anew in that moment. None starts again on an empty log until the
// operator has taken the mark away; then they go on, with the sessions.
func TestMessageDropped(t *testing.T) {
	t.Parallel()
	if !chosen("mongodb") {
		t.Skip("REWINDMQ_TEST_STORES leaves mongodb out")
	}
	for name, with := range streamings() {
		for _, how := range []string{"dropped", "renamed", "dropped under load"} {
			t.Run(name+"/"+how, func(t *testing.T) {
				t.Parallel()
				a := start(t, mongodbBackend(), with)
				b := a.another("n2", with)
				db := a.place.db
				sub := b.open(persistent(v5, "sub"))
				sub.subscribe(want{"drop/#", 1})
				pub := a.open(transient(v5, "pub"))
				pub.publish(message{topic: "drop/t", qos: 1, payload: []byte("before")})
				sub.settle(sub.takePayload("before"))

				var err error
				if how == "renamed" {
					err = db.Client().Database("admin").RunCommand(t.Context(), bson.D{
						{Key: "renameCollection", Value: db.Name() + ".message"}, {Key: "to", Value: db.Name() + ".kept"},
					}).Err()
				} else {
					err = db.Collection("message").Drop(t.Context())
				}
				if err != nil {
					t.Fatal(err)
				}
				if how == "dropped under load" {
					for i := range 20 { // into what is made anew, without index and validator
						if pub.write(message{topic: "drop/t", qos: 1, payload: fmt.Append(nil, i)}.packet(v5, uint16(100+i), false)) != nil {
							break // it has ended already
						}
					}
				}
				for _, x := range []*broker{a, b} {
					if code := x.proc.waitFor(t, patience); code != 8 {
						t.Errorf("node %s: exit code %d", x.node, code)
					}
					if out := x.proc.output(); !contains(out, `"level":"error"`, "the store cannot go on", "message") {
						t.Errorf("node %s does not say why:\n%s", x.node, out)
					}
				}
				a.startRefused(8, "acknowledged are not there any more", "Restore the collection", "$unset: {lost: 1}")
				b.startRefused(8, "$unset: {lost: 1}")
				if _, err := db.Collection("meta").UpdateOne(t.Context(), bson.D{{Key: "_id", Value: "format"}},
					bson.D{{Key: "$unset", Value: bson.D{{Key: "lost", Value: 1}}}}); err != nil {
					t.Fatal(err)
				}
				if n, err := db.ListCollectionNames(t.Context(), bson.D{{Key: "name", Value: "message"}}); err != nil {
					t.Fatal(err)
				} else if len(n) == 0 {
					a.startRefused(8, "is gone", "db.createCollection(")
					if err := db.CreateCollection(t.Context(), "message"); err != nil {
						t.Fatal(err)
					}
				}
				a.start()
				b.start()
				again := a.open(persistent(v5, "sub")).expectPresent(true)
				pub = b.open(transient(v5, "pub"))
				pub.publish(message{topic: "drop/t", qos: 1, payload: []byte("after")})
				for { // what went into the new collection before the end comes too
					p := again.settle(again.take())
					if string(p.payload) == "after" {
						break
					}
					if how != "dropped under load" {
						t.Errorf("got %v", p)
					}
				}
				again.nothing()
			})
		}
	}
}

// The log is dropped while no broker runs: the start is refused, until there is a
// collection again, restored or empty.
func TestMessageDroppedAtRest(t *testing.T) {
	t.Parallel()
	if !chosen("mongodb") {
		t.Skip("REWINDMQ_TEST_STORES leaves mongodb out")
	}
	b := start(t, mongodbBackend())
	b.stop()
	if err := b.place.db.Collection("message").Drop(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.startRefused(8, "collection message", "is gone", "createCollection")
	if err := b.place.db.CreateCollection(t.Context(), "message"); err != nil {
		t.Fatal(err)
	}
	b.start()
	began := time.Now()
	b.publishTexts("drop/t", 1, "x")
	t.Logf("acknowledged after %v", time.Since(began).Round(time.Millisecond))
}
