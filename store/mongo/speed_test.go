package mongo

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	driver "go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
	"go.mongodb.org/mongo-driver/v2/mongo/writeconcern"

	"rewindmq/schema"
	"rewindmq/store"
)

func speedMessage(s *Store, client string) *schema.Message {
	return &schema.Message{
		ID: s.ids.Next(time.Now()), Topic: "factory/line/7/" + client, ClientID: client, QoS: 1, Created: time.Now(), Host: "h",
		Payload: []byte("1795657964.123,21.5,1013.2,45.1,0.002,17,ok,0001,0002,0003,00004"),
	}
}

// BenchmarkAppend is 50 publishers with 20 in flight; BenchmarkRawInsertMany the
// same documents by the driver alone, for the ratio.
func BenchmarkAppend(b *testing.B) {
	r := newRig(b, 1)
	s := r.start()
	var pubs sync.WaitGroup
	b.ResetTimer()
	for p := range 50 {
		pubs.Go(func() {
			pub := &store.Publisher{Owner: schema.Owner{ClientID: fmt.Sprint("p", p)}}
			room := make(chan struct{}, 20)
			for range b.N/50 + 1 {
				room <- struct{}{}
				s.Append(context.Background(), pub, []*schema.Message{speedMessage(s, pub.ClientID)}, func([]store.Appended) { <-room })
			}
			for range 20 {
				room <- struct{}{}
			}
		})
	}
	pubs.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
}

func BenchmarkRawInsertMany(b *testing.B) {
	for _, shape := range [][2]int{{1, 500}, {2, 500}, {4, 500}, {8, 500}, {2, 1000}} {
		b.Run(fmt.Sprintf("%dx%d", shape[0], shape[1]), func(b *testing.B) {
			r := newRig(b, 1)
			s := r.start()
			coll := r.db.Collection("message", options.Collection().SetWriteConcern(writeconcern.Majority()))
			var lanes sync.WaitGroup
			b.ResetTimer()
			for l := range shape[0] {
				lanes.Go(func() {
					n := uint64(1)
					for left := b.N / shape[0]; left > 0; left -= shape[1] {
						docs := make([]any, min(left, shape[1]))
						for i := range docs {
							docs[i] = form{}.encode(speedMessage(s, "p"), newLaneID(schema.Lane(1000+l), 1), n)
							n++
						}
						if _, err := coll.InsertMany(context.Background(), docs); err != nil {
							b.Error(err)
						}
					}
				})
			}
			lanes.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
		})
	}
}

// BenchmarkDelivery is the time from Append to the event of a tail on another node,
// with nothing else going on; BenchmarkRawEvent the same by the driver alone.
func BenchmarkDelivery(b *testing.B) {
	r := newRig(b, 1)
	r.o.Lease = 10 * time.Second
	x, y := r.start(), r.start()
	ctx := context.Background()
	at, err := y.Head(ctx)
	if err != nil {
		b.Fatal(err)
	}
	tl, err := y.Tail(ctx, at)
	if err != nil {
		b.Fatal(err)
	}
	defer tl.Close()
	var took []time.Duration
	pub := &store.Publisher{Owner: schema.Owner{ClientID: "p"}}
	for range b.N {
		m := speedMessage(x, "p")
		began := time.Now()
		x.Append(ctx, pub, []*schema.Message{m}, func([]store.Appended) {})
		for seen := false; !seen; {
			events, err := tl.Next(ctx)
			if err != nil {
				b.Fatal(err)
			}
			for _, e := range events {
				seen = seen || e.Message != nil && e.Message.ID == m.ID
			}
		}
		took = append(took, time.Since(began))
	}
	report(b, took)
}

func report(b *testing.B, took []time.Duration) {
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
}

func BenchmarkRawEvent(b *testing.B) {
	r := newRig(b, 1)
	s := r.start()
	ctx := context.Background()
	coll := r.db.Collection("message", options.Collection().SetWriteConcern(writeconcern.Majority()))
	cs, err := coll.Watch(ctx, driver.Pipeline{{{Key: "$match", Value: fields("operationType", "insert")}}})
	if err != nil {
		b.Fatal(err)
	}
	defer cs.Close(ctx)
	var took []time.Duration
	for i := range b.N {
		doc := form{}.encode(speedMessage(s, "p"), newLaneID(1000, 1), uint64(i+1))
		began := time.Now()
		if _, err := coll.InsertOne(ctx, doc); err != nil {
			b.Fatal(err)
		}
		if !cs.Next(ctx) {
			b.Fatal(cs.Err())
		}
		took = append(took, time.Since(began))
	}
	report(b, took)
}

// BenchmarkRecord is delivery records of 200 sessions, 100 in each call.
func BenchmarkRecord(b *testing.B) {
	r := newRig(b, 1)
	r.o.Lease = 10 * time.Second
	s := r.start()
	ctx := context.Background()
	at, err := s.Head(ctx)
	if err != nil {
		b.Fatal(err)
	}
	const sessions = 200
	claims := make([]store.Claim, sessions)
	for i := range claims {
		claims[i] = store.Claim{ClientID: fmt.Sprint("c", i), Expiry: schema.NoExpiry, Protocol: 5, At: at}
	}
	owners := s.Claim(ctx, claims)
	b.ResetTimer()
	var all sync.WaitGroup
	for part := range 20 {
		all.Go(func() {
			seq := uint64(0)
			for left := b.N / 20; left > 0; left -= 100 {
				batch := make([]schema.Delivery, min(left, 100))
				for i := range batch {
					if i%10 == 0 {
						seq++
					}
					o := owners[part*10+i%10]
					batch[i] = schema.Delivery{
						ID: s.ids.Next(time.Now()), Owner: o.Owner, Seq: seq, Topic: "factory/line/7", MessageID: s.ids.Next(time.Now()),
						Mark: schema.Mark{Lane: 1, N: seq}, PacketID: uint16(seq%1000 + 1), QoS: 1, Host: "h", Created: time.Now(),
					}
				}
				for _, err := range s.Record(ctx, batch) {
					if err != nil {
						b.Error(err)
						return
					}
				}
			}
		})
	}
	all.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "records/s")
}
