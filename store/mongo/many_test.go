package mongo

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/event"

	"rewindmq/schema"
	"rewindmq/store"
)

// A SUBSCRIBE of 1,000 filters, and the end of a session that has them, are a few
// writes, not thousands: they are done long before an attempt is over.
func TestManySubscriptions(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	var commands atomic.Int64
	r.o.commands = &event.CommandMonitor{Started: func(_ context.Context, e *event.CommandStartedEvent) {
		switch e.CommandName {
		case "insert", "update", "delete", "findAndModify":
			commands.Add(1)
		}
	}}
	s := r.start()
	ctx := context.Background()
	got := s.Claim(ctx, []store.Claim{{ClientID: "c", Protocol: 5}})
	if got[0].Err != nil {
		t.Fatal(got[0].Err)
	}
	ids := schema.NewIDSource()
	subs := make([]schema.Subscription, 1000)
	filters := make([]string, len(subs))
	for i := range subs {
		filters[i] = fmt.Sprint("f/", i)
		subs[i] = schema.Subscription{ID: ids.Next(time.Now()), Filter: filters[i], Created: time.Now()}
	}
	began := time.Now()
	commands.Store(0)
	if err := s.Write(ctx, []store.Write{store.PutSubscriptions{Owner: got[0].Owner, Subscriptions: subs}})[0]; err != nil {
		t.Fatal(err)
	}
	if err := s.Write(ctx, []store.Write{store.Release{Owner: got[0].Owner}})[0]; err != nil {
		t.Fatal(err)
	}
	t.Logf("took %v", time.Since(began))
	if sent := commands.Load(); sent > 100 {
		t.Errorf("%d writes were sent", sent)
	}
	n, err := r.db.Collection("subscription").CountDocuments(ctx, fields("clientId", "c"))
	if err != nil || n > 0 {
		t.Errorf("%d subscriptions are left: %v", n, err)
	}
}
