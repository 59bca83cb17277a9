package bench

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
)

// recordDoc is a delivery record as a plain program makes it.
func recordDoc(client, seq int) bson.D {
	return bson.D{
		{Key: "_id", Value: bson.NewObjectID()},
		{Key: "clientId", Value: fmt.Sprint("s", client)},
		{Key: "topic", Value: "plant/7/line/1"},
		{Key: "messageId", Value: bson.NewObjectID()},
		{Key: "host", Value: "bench"},
		{Key: "created", Value: time.Now()},
		{Key: "sid", Value: int64(1795657964000)},
		{Key: "seq", Value: int64(seq + 1)},
		{Key: "packetId", Value: int32(seq%1000 + 1)},
		{Key: "qos", Value: int32(1)},
		{Key: "lane", Value: int64(1)},
		{Key: "n", Value: int64(seq + 1)},
		{Key: "epoch", Value: int64(1795657964000)},
	}
}

// BenchmarkMongoDeliver is deliveries to persistent sessions, each recorded before
// it is sent: 100 subscribers of all, QoS 1. Beside it, in turns: the best
// unordered majority InsertMany of the same records by a plain program. Target:
// ratio at least 0.7.
func BenchmarkMongoDeliver(b *testing.B) {
	for _, members := range []int{1, 3} {
		b.Run(fmt.Sprint("members=", members), func(b *testing.B) {
			const sessions = 100
			d := newDatabase(b, members)
			addr := d.broker()
			pub := connect(b, addr, "pub", true)
			subs := make([]*peer, sessions)
			for i := range subs {
				subs[i] = connect(b, addr, fmt.Sprint("s", i), false)
				subs[i].subscribe("plant/#", 1)
			}
			messages := 600 / members
			n := messages * sessions
			ours := func() float64 {
				var all sync.WaitGroup
				began := time.Now()
				for _, s := range subs {
					all.Go(func() { s.drain(messages) })
				}
				pub.flood("plant/7/line/1", []byte(reading), messages, 200)
				all.Wait()
				return float64(n) / time.Since(began).Seconds()
			}
			coll, clients := d.like("publishedMessage"), 0
			raw := func(n int) func(s shape) float64 {
				return func(s shape) float64 {
					from := clients
					clients += s.lanes * sessions
					return s.insert(b, coll, n, false, func(lane, i int) bson.D {
						return recordDoc(from+lane*sessions+i%sessions, i/sessions)
					})
				}
			}
			against(b, "deliveries/s", "raw-records/s", ours, raw(20_000/members), raw(n))
		})
	}
}

// drain takes n deliveries and acknowledges them.
func (p *peer) drain(n int) {
	var acks []byte
	for range n {
		id, _, err := delivered(p.read())
		if err != nil {
			p.b.Error(err)
			return
		}
		acks = puback(acks, id)
		if p.in.Buffered() == 0 {
			p.write(acks)
			acks = acks[:0]
		}
	}
	if len(acks) > 0 {
		p.write(acks)
	}
}
