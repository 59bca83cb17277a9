package bench

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
)

// messageDoc is a document of `message` as a plain program makes it.
func messageDoc(lane, n int) bson.D {
	return bson.D{
		{Key: "_id", Value: bson.NewObjectID()},
		{Key: "topic", Value: fmt.Sprint("plant/7/line/", lane)},
		{Key: "data", Value: reading},
		{Key: "clientId", Value: fmt.Sprint("p", lane)},
		{Key: "qos", Value: int32(1)},
		{Key: "retain", Value: false},
		{Key: "created", Value: time.Now()},
		{Key: "host", Value: "bench"},
		{Key: "lane", Value: int64(lane+1) << 32},
		{Key: "n", Value: int64(n + 1)},
		{Key: "ts", Value: bson.Timestamp{}},
	}
}

// BenchmarkMongoIngest is QoS 1 from 50 clients with 20 in flight each, through a
// broker process, against the best ordered majority InsertMany of a plain program,
// with the same documents and indexes, in turns. Target: ratio at least 0.7.
func BenchmarkMongoIngest(b *testing.B) {
	for _, members := range []int{1, 3} {
		b.Run(fmt.Sprint("members=", members), func(b *testing.B) {
			d := newDatabase(b, members)
			addr := d.broker()
			peers := make([]*peer, 50)
			for i := range peers {
				peers[i] = connect(b, addr, fmt.Sprint("p", i), true)
			}
			n := 60_000 / members
			ours := func() float64 {
				var all sync.WaitGroup
				began := time.Now()
				for i, p := range peers {
					all.Go(func() { p.flood(fmt.Sprint("plant/7/line/", i), []byte(reading), n/len(peers), 20) })
				}
				all.Wait()
				return float64(n) / time.Since(began).Seconds()
			}
			coll, lanes := d.like("message"), 0
			raw := func(n int) func(s shape) float64 {
				return func(s shape) float64 {
					from := lanes
					lanes += s.lanes // so that {lane, n} is never used again
					return s.insert(b, coll, n, true, func(lane, i int) bson.D { return messageDoc(from+lane, i) })
				}
			}
			against(b, "msgs/s", "raw-docs/s", ours, raw(20_000/members), raw(n))
		})
	}
}
