package mongo

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"rewindmq/schema"
	"rewindmq/store"
)

// The lag is 0 on a log in which nothing happens, and grows while nobody tails it;
// the head is told.
func TestStreamMetrics(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	m, err := store.NewMetrics(prometheus.NewRegistry(), "mongodb")
	if err != nil {
		t.Fatal(err)
	}
	r.o.Metrics = m
	s := r.start()
	ctx := context.Background()
	head, err := s.Head(ctx)
	if err != nil {
		t.Fatal(err)
	}
	tail, err := s.Tail(ctx, head)
	if err != nil {
		t.Fatal(err)
	}
	defer tail.Close()
	var got atomic.Int64
	turn, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			events, err := tail.Next(turn)
			if err != nil {
				return
			}
			for _, e := range events {
				if e.Message != nil {
					got.Add(1)
				}
			}
		}
	}()
	lag := func() float64 { return testutil.ToFloat64(m.StreamLag) }
	// Longer than an idle stream waits: it is looked at more than once.
	began := time.Now()
	r.until("an idle stream", func(context.Context) bool { return time.Since(began) > 3*time.Second && lag() == 0 })
	ids := schema.NewIDSource()
	for range 20 {
		done := make(chan struct{})
		msg := &schema.Message{ID: ids.Next(time.Now()), Topic: "t", QoS: 1, Created: time.Now()}
		s.Append(ctx, &store.Publisher{}, []*schema.Message{msg}, func([]store.Appended) { close(done) })
		<-done
	}
	r.until("20 messages", func(context.Context) bool { return got.Load() == 20 })
	r.until("the head", func(context.Context) bool { return testutil.ToFloat64(m.HeadSequence) >= 20 })
	if lag() > 1 {
		t.Errorf("lag %v s on a stream that keeps up", lag())
	}
	stop()
	<-ended
	r.until("a lag that grows", func(context.Context) bool { return lag() > 2 })
}
