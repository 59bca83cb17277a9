package mongo

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"rewindmq/schema"
	"rewindmq/store"
)

// Run returns only when all that it started has ended, in order and when killed.
// Not parallel: it counts goroutines.
func TestRunEndsAllItStarted(t *testing.T) {
	for _, kill := range []bool{false, true} {
		sets[1].get(t)
		r := newRig(t, 1)
		if err := r.db.Client().Ping(context.Background(), nil); err != nil {
			t.Fatal(err)
		}
		before := goleak.IgnoreCurrent()
		ctx, stop := context.WithTimeout(context.Background(), time.Minute)
		s, err := Open(ctx, r.o)
		if err != nil {
			t.Fatal(err)
		}
		gone := make(chan error, 1)
		go func() { gone <- s.Run(ctx) }()
		if got := appendOne(t, s, &store.Publisher{}, "t"); got.Outcome != store.Stored {
			t.Errorf("append: %+v", got)
		}
		if _, err := s.Head(ctx); err != nil {
			t.Error(err)
		}
		if kill {
			s.kill()
		} else {
			stop()
		}
		if err := <-gone; err != nil {
			t.Errorf("Run: %v", err)
		}
		stop()
		goleak.VerifyNone(t, before, goleak.IgnoreAnyFunction("go.mongodb.org/mongo-driver/v2/x/mongo/driver/topology.(*rttMonitor).start"))
		if _, err := s.Head(context.Background()); !errors.Is(err, store.ErrClosed) {
			t.Errorf("Head after the end: %v", err)
		}
		if !kill {
			// The answer takes what the caller of Append holds, as a connection does.
			var held sync.Mutex
			told := make(chan store.Appended, 1)
			held.Lock()
			s.Append(context.Background(), &store.Publisher{}, []*schema.Message{{ID: s.ids.Next(time.Now()), Topic: "t"}},
				func(a []store.Appended) {
					held.Lock()
					defer held.Unlock()
					told <- a[0]
				})
			held.Unlock()
			if a := <-told; a.Outcome != store.Refused || !errors.Is(a.Err, store.ErrClosed) {
				t.Errorf("append after the end: %+v", a)
			}
		}
	}
}
