package mongo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	driver "go.mongodb.org/mongo-driver/v2/mongo"

	"rewindmq/schema"
	"rewindmq/store"
)

// load appends n messages over topics, through the store.
func load(t *testing.T, s *Store, n int, topic func(i int) string) {
	t.Helper()
	var all sync.WaitGroup
	all.Add(n)
	pubs := make([]*store.Publisher, 16)
	for i := range pubs {
		pubs[i] = &store.Publisher{Owner: schema.Owner{ClientID: fmt.Sprint("p", i)}}
	}
	room := make(chan struct{}, 4000)
	for i := range n {
		room <- struct{}{}
		m := &schema.Message{ID: s.ids.Next(time.Now()), Topic: topic(i), ClientID: pubs[i%16].ClientID, Payload: []byte("1795657964,21.5"), QoS: 1, Created: time.Now()}
		s.Append(context.Background(), pubs[i%16], []*schema.Message{m}, func(a []store.Appended) {
			if a[0].Outcome != store.Stored {
				t.Errorf("append: %+v", a[0])
			}
			<-room
			all.Done()
		})
	}
	all.Wait()
}

func readAll(ctx context.Context, t *testing.T, s *Store, after, upTo schema.Cursor, filters ...string) int {
	t.Helper()
	r, err := s.Read(ctx, after, upTo, filters)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for n := 0; ; n++ {
		_, err := r.Next(ctx)
		if errors.Is(err, io.EOF) {
			return n
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// examined gives what the server has examined of `message` while fn ran, keys and
// documents, by its profile. The change streams are left out: they examine the oplog,
// and one that is behind still does when fn runs. The server's counters have all of it.
func examined(ctx context.Context, t *testing.T, db *driver.Database, fn func()) int64 {
	t.Helper()
	for _, level := range []int{2, 0} {
		if err := db.RunCommand(ctx, bson.D{
			{Key: "profile", Value: level}, {Key: "filter", Value: bson.D{
				{Key: "ns", Value: db.Name() + ".message"},
				{Key: "command.pipeline.0.$changeStream", Value: fields("$exists", false)},
				{Key: "originatingCommand.pipeline.0.$changeStream", Value: fields("$exists", false)},
			}},
		}).Err(); err != nil {
			t.Fatal(err)
		}
		if level > 0 {
			fn()
		}
	}
	profile := db.Collection("system.profile")
	cur, err := profile.Find(ctx, bson.D{})
	if err != nil {
		t.Fatal(err)
	}
	var ops []struct {
		Keys int64 `bson:"keysExamined"`
		Docs int64 `bson:"docsExamined"`
	}
	if err := cur.All(ctx, &ops); err != nil {
		t.Fatal(err)
	}
	if err := profile.Drop(ctx); err != nil {
		t.Fatal(err)
	}
	sum := int64(0)
	for _, op := range ops {
		sum += op.Keys + op.Docs
	}
	return sum
}

// A replay's cost follows what it delivers, for exact filters, `+` and narrow `#`.
func TestReplayCostFollowsDelivery(t *testing.T) {
	t.Parallel()
	set := ownSet(t, 1)
	r := rigOn(t, set)
	r.o.RetainMessages = 0
	r.o.Lease = time.Minute // no heartbeat and no keeper in between
	s := r.start()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	from, err := s.Head(ctx)
	if err != nil {
		t.Fatal(err)
	}
	const n, topics = 60_000, 6000
	load(t, s, n, func(i int) string { return fmt.Sprintf("d/%d/k%d/x", i%topics/10, i%10) })
	upTo, err := s.Head(ctx)
	if err != nil {
		t.Fatal(err)
	}
	readAll(ctx, t, s, from, upTo, "d/1/+/x") // the catalog is read once
	for _, tt := range []struct {
		filter string
		want   int
	}{{"d/77/k7/x", n / topics}, {"d/55/#", 100}, {"d/+/k3/nothing", 0}, {"d/8/+/x", 100}, {"d/33/+/x", 100}} {
		got := 0
		cost := examined(ctx, t, r.db, func() { got = readAll(ctx, t, s, from, upTo, tt.filter) })
		t.Logf("%s: %d delivered, %d keys and documents examined", tt.filter, got, cost)
		if got != tt.want || cost > int64(5*tt.want+300) {
			t.Errorf("%s: %d delivered, want %d; %d examined", tt.filter, got, tt.want, cost)
		}
	}
	if got := readAll(ctx, t, s, from, upTo, "#"); got != n {
		t.Errorf("#: %d of %d", got, n)
	}
	if got := readAll(ctx, t, s, from, upTo, "d/+/k3/x"); got != n/10 {
		t.Errorf("d/+/k3/x: %d of %d", got, n/10)
	}
	// T13: a topic that comes after the catalog was read.
	load(t, s, 1, func(int) string { return "d/new/k1/x" })
	if upTo, err = s.Head(ctx); err != nil {
		t.Fatal(err)
	}
	if got := readAll(ctx, t, s, from, upTo, "d/new/#"); got != 1 {
		t.Errorf("a new topic: %d", got)
	}
	follow(ctx, t, s, from, upTo)
	if got := readAll(ctx, t, s, from, upTo, "d/new/#"); got != 1 {
		t.Errorf("a new topic, after a tail: %d", got)
	}
}
