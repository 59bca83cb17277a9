package broker

import (
	"context"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"
)

// TestIngestBehind: behind waits for every call that was made before, not for later
// ones, and never beyond its context; any number may wait at once.
func TestIngestBehind(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(3, 4))
		i := newIngest(1 << 20)
		type call struct {
			at    int
			round uint64
		}
		type waiter struct {
			calls map[int]bool // what it waits for
			done  chan struct{}
		}
		var open []call
		var waiting []*waiter
		next := 0
		for range 3000 {
			switch rng.IntN(4) {
			case 0, 1:
				open = append(open, call{next, i.add(1)})
				next++
			case 2:
				if len(open) > 0 {
					k := rng.IntN(len(open))
					c := open[k]
					open = append(open[:k], open[k+1:]...)
					i.done(1, c.round)
					for _, w := range waiting {
						delete(w.calls, c.at)
					}
				}
			case 3:
				w := &waiter{map[int]bool{}, make(chan struct{})}
				for _, c := range open {
					w.calls[c.at] = true
				}
				waiting = append(waiting, w)
				go func() {
					i.behind(t.Context())
					close(w.done)
				}()
			}
			synctest.Wait()
			rest := waiting[:0]
			for _, w := range waiting {
				select {
				case <-w.done:
					if len(w.calls) > 0 {
						t.Fatalf("returned, and %d calls made before are under way", len(w.calls))
					}
				default:
					rest = append(rest, w)
				}
			}
			waiting = rest
			if len(open) == 0 && len(waiting) > 0 {
				t.Fatalf("%d wait for nothing", len(waiting))
			}
		}
		for _, c := range open {
			i.done(1, c.round)
		}
		synctest.Wait()
		for _, w := range waiting {
			<-w.done
		}

		// Calls that never end are not waited for for ever.
		i.add(1)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begun := time.Now()
		i.behind(ctx)
		if took := time.Since(begun); took != time.Second {
			t.Errorf("it waited for %v", took)
		}
	})
}

// TestIngestBehindLater: what comes after does not hold up who waits for what was
// before.
func TestIngestBehindLater(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		i := newIngest(1 << 20)
		before := i.add(1)
		done := make(chan struct{})
		go func() {
			i.behind(t.Context())
			close(done)
		}()
		synctest.Wait()
		i.add(1) // never done
		i.done(1, before)
		synctest.Wait()
		select {
		case <-done:
		default:
			t.Error("it waits for what came after")
		}
	})
}
