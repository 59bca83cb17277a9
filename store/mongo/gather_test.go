package mongo

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"rewindmq/schema"
	"rewindmq/store"
	"rewindmq/store/mongo/lane"
)

// Behind a large batch a lane writer waits for half as much, at most a quarter of the
// batch's time and maxGather; behind a small one it does not wait.
func TestGather(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		wrote int
		in    time.Duration // the batch took
		there int           // messages that have come before, each with its poke
		come  int           // after a millisecond
		end   bool          // after a millisecond
		want  time.Duration
	}{
		{"a small batch", largeBatch - 1, time.Second, 0, 0, false, 0},
		{"nothing comes", 100, time.Second, 0, 0, false, maxGather},
		{"a fast batch", 100, 4 * time.Millisecond, 0, 0, false, time.Millisecond},
		{"half is there", 100, time.Second, 50, 0, false, 0},
		{"half comes", 100, time.Second, 0, 50, false, time.Millisecond},
		{"the rest of a half comes", 100, time.Second, 20, 30, false, time.Millisecond},
		{"less comes, and what is there has poked", 100, time.Second, 20, 20, false, maxGather},
		{"the end comes", 100, time.Second, 0, 0, true, time.Millisecond},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				life, die := context.WithCancel(t.Context())
				defer die()
				w := newLaneWriter(&Store{life: life}, 0)
				put := func(n int) {
					for range n {
						w.put(&lane.Pending{Pub: &store.Publisher{}, Msgs: []*schema.Message{{}}})
					}
				}
				put(tt.there)
				w.wrote, w.wroteIn = tt.wrote, tt.in
				began := time.Now()
				timer := time.AfterFunc(time.Millisecond, func() {
					put(tt.come)
					if tt.end {
						w.close()
					}
				})
				w.gather()
				if took := time.Since(began); took != tt.want {
					t.Errorf("waits %v, want %v", took, tt.want)
				}
				timer.Stop()
			})
		})
	}
}
