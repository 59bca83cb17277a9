package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"rewindmq/schema"
	"rewindmq/store"
	"rewindmq/store/mongo"
)

// plainMessage is what a plain program decodes a document of `message` into.
type plainMessage struct {
	ID       bson.ObjectID  `bson:"_id"`
	Topic    string         `bson:"topic"`
	Data     string         `bson:"data"`
	ClientID string         `bson:"clientId"`
	QoS      int32          `bson:"qos"`
	Retain   bool           `bson:"retain"`
	Created  time.Time      `bson:"created"`
	Host     string         `bson:"host"`
	Lane     int64          `bson:"lane"`
	N        int64          `bson:"n"`
	TS       bson.Timestamp `bson:"ts"`
}

// BenchmarkMongoReplay reads 100,000 messages from the log as a replay does, by
// lanes (all of them) and by topics (half of them), against a plain find of the
// same documents in the same order, decoded by the driver, in turns. Target: ratio at
// least 0.6.
func BenchmarkMongoReplay(b *testing.B) {
	const n, topics = 100_000, 100
	d := newDatabase(b, 1)
	s, err := mongo.Open(context.Background(), mongo.Options{URI: d.uri, Database: d.Name(), Node: "bench"})
	if err != nil {
		b.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	b.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			b.Error(err)
		}
	})
	from, err := s.Head(ctx)
	if err != nil {
		b.Fatal(err)
	}
	fill(b, s, n, topics)
	to, err := s.Head(ctx)
	if err != nil {
		b.Fatal(err)
	}
	reach(b, s, from, to)

	var half bson.A
	var halfFilters []string
	for i := 0; i < topics; i += 2 {
		half = append(half, fmt.Sprint("plant/", i))
		halfFilters = append(halfFilters, fmt.Sprint("plant/", i))
	}
	for _, c := range []struct {
		name    string
		filters []string
		count   int
		filter  bson.D
		sort    bson.D
	}{
		{"lanes", []string{"plant/#"}, n, bson.D{{Key: "lane", Value: bson.D{{Key: "$gt", Value: 0}}}}, bson.D{{Key: "lane", Value: 1}, {Key: "n", Value: 1}}},
		{"topics", halfFilters, n / 2, bson.D{{Key: "topic", Value: bson.D{{Key: "$in", Value: half}}}}, bson.D{{Key: "ts", Value: 1}}},
	} {
		b.Run(c.name, func(b *testing.B) {
			r := rounds{}
			for b.Loop() {
				x := replayed(b, s, from, to, c.filters, c.count)
				y := found(b, d, c.filter, c.sort, c.count)
				r.add("msgs/s", x)
				r.add("find-docs/s", y)
				r.add("ratio", x/y)
			}
			r.report(b)
		})
	}
}

func fill(b *testing.B, s *mongo.Store, n, topics int) {
	ids := schema.NewIDSource()
	room := make(chan struct{}, 2000)
	pubs := make([]*store.Publisher, topics)
	for i := range pubs {
		pubs[i] = &store.Publisher{Owner: schema.Owner{ClientID: fmt.Sprint("p", i)}}
	}
	for i := range n {
		p := pubs[i%topics]
		m := &schema.Message{
			ID: ids.Next(time.Now()), Topic: fmt.Sprint("plant/", i%topics), ClientID: p.ClientID, QoS: 1, Created: time.Now(),
			Host: "bench", Payload: []byte(reading),
		}
		room <- struct{}{}
		s.Append(context.Background(), p, []*schema.Message{m}, func(a []store.Appended) {
			if a[0].Outcome != store.Stored {
				b.Error(a[0].Err)
			}
			<-room
		})
	}
	for range cap(room) {
		room <- struct{}{}
	}
}

// reach has a tail pass over everything up to `to`: a read needs an end that a
// tail has reached.
func reach(b *testing.B, s *mongo.Store, from, to schema.Cursor) {
	t, err := s.Tail(context.Background(), from)
	if err != nil {
		b.Fatal(err)
	}
	defer t.Close()
	for h := from; !h.Covers(to); {
		events, err := t.Next(context.Background())
		if err != nil {
			b.Fatal(err)
		}
		h = events[len(events)-1].H
	}
}

func replayed(b *testing.B, s *mongo.Store, from, to schema.Cursor, filters []string, want int) float64 {
	ctx := context.Background()
	began := time.Now()
	r, err := s.Read(ctx, from, to, filters)
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	for n := 0; ; n++ {
		if _, err := r.Next(ctx); errors.Is(err, io.EOF) {
			if n != want {
				b.Fatalf("read %d messages, want %d", n, want)
			}
			return float64(n) / time.Since(began).Seconds()
		} else if err != nil {
			b.Fatal(err)
		}
	}
}

func found(b *testing.B, d *database, filter, sort bson.D, want int) float64 {
	ctx := context.Background()
	began := time.Now()
	cur, err := d.Collection("message").Find(ctx, filter, options.Find().SetSort(sort))
	if err != nil {
		b.Fatal(err)
	}
	n := 0
	for ; cur.Next(ctx); n++ {
		var m plainMessage
		if err := cur.Decode(&m); err != nil {
			b.Fatal(err)
		}
	}
	if err := cur.Err(); err != nil || n < want {
		b.Fatalf("found %d documents, want %d: %v", n, want, err)
	}
	return float64(n) / time.Since(began).Seconds()
}
