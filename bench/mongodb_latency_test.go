package bench

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
)

// BenchmarkMongoLatency is one publisher on one broker and one subscriber on
// another, with nothing else going on: from the write of PUBLISH to the PUBLISH at
// the subscriber, clean and persistent. Beside it, in turns: a plain majority
// InsertOne, to its return and to its event in a plain change stream. Targets:
// clean at most 1.5 times the event; persistent at most one majority write more.
func BenchmarkMongoLatency(b *testing.B) {
	for _, members := range []int{1, 3} {
		b.Run(fmt.Sprint("members=", members), func(b *testing.B) {
			d := newDatabase(b, members)
			there, here := d.broker("--node", "a"), d.broker("--node", "b")
			pub := connect(b, there, "pub", true)
			clean, kept := connect(b, here, "clean", true), connect(b, here, "kept", false)
			clean.subscribe("plant/clean", 1)
			kept.subscribe("plant/kept", 1)
			coll := d.like("message")
			ctx := context.Background()
			cs, err := coll.Watch(ctx, mongo.Pipeline{{{Key: "$match", Value: bson.D{{Key: "operationType", Value: "insert"}}}}})
			if err != nil {
				b.Fatal(err)
			}
			defer cs.Close(ctx)
			took := map[string][]time.Duration{}
			n := 0
			turn := func(keep bool) {
				mqtt := func(name, topic string, sub *peer) {
					began := time.Now()
					pub.write(publish(topic, 1, []byte(reading)))
					id, _, err := delivered(sub.read())
					if err != nil {
						b.Fatal(err)
					}
					if keep {
						took[name] = append(took[name], time.Since(began))
					}
					sub.write(puback(nil, id))
					pub.acks()
				}
				for range 50 {
					mqtt("clean", "plant/clean", clean)
				}
				for range 50 {
					began := time.Now()
					n++
					if _, err := coll.InsertOne(ctx, messageDoc(0, n)); err != nil {
						b.Fatal(err)
					}
					wrote := time.Since(began)
					if !cs.Next(ctx) {
						b.Fatal(cs.Err())
					}
					if keep {
						took["write"] = append(took["write"], wrote)
						took["event"] = append(took["event"], time.Since(began))
					}
				}
				for range 50 {
					mqtt("kept", "plant/kept", kept)
				}
			}
			turn(false)
			for b.Loop() {
				turn(true)
			}
			for name, t := range took {
				slices.Sort(t)
				b.ReportMetric(quantile(t, 0.5), name+"-p50-ms")
				b.ReportMetric(quantile(t, 0.99), name+"-p99-ms")
			}
			event := quantile(took["event"], 0.5)
			b.ReportMetric(quantile(took["clean"], 0.5)/event, "clean/event")
			b.ReportMetric((quantile(took["kept"], 0.5)-quantile(took["clean"], 0.5))/quantile(took["write"], 0.5), "record-writes")
		})
	}
}
