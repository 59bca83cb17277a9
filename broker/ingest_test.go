package broker

import (
	"context"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"rewindmq/store/embedded"
	"rewindmq/wire"
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
				open = append(open, call{next, i.add(1, false)})
				next++
			case 2:
				if len(open) > 0 {
					k := rng.IntN(len(open))
					c := open[k]
					open = append(open[:k], open[k+1:]...)
					i.done(1, false, c.round)
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
			i.done(1, false, c.round)
		}
		synctest.Wait()
		for _, w := range waiting {
			<-w.done
		}

		// Calls that never end are not waited for for ever.
		i.add(1, false)
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
		before := i.add(1, false)
		done := make(chan struct{})
		go func() {
			i.behind(t.Context())
			close(done)
		}()
		synctest.Wait()
		i.add(1, false) // never done
		i.done(1, false, before)
		synctest.Wait()
		select {
		case <-done:
		default:
			t.Error("it waits for what came after")
		}
	})
}

// TestIngestKinds: what is held of strict publishers leaves a quarter for the others;
// both together keep to the bound; neither kind is ever stopped by the other alone.
func TestIngestKinds(t *testing.T) {
	t.Parallel()
	fill := func(i *ingest, size int64, strict bool) (bytes int64) {
		for ; i.hasRoom(size, strict); bytes += size {
			i.add(size, strict)
		}
		return bytes
	}
	i := newIngest(1000)
	if n := fill(i, 10, true); n != 750 {
		t.Errorf("%d bytes of strict publishers", n)
	}
	if n := fill(i, 10, false); n != 250 {
		t.Errorf("%d bytes of the others behind them", n)
	}
	i = newIngest(1000)
	if n := fill(i, 10, false); n != 1000 {
		t.Errorf("%d bytes of the others", n)
	}
	if n := fill(i, 10, true); n != 10 {
		t.Errorf("%d bytes of strict publishers behind them", n)
	}
	i = newIngest(1000)
	fill(i, 10, true)
	if n := fill(i, 900, false); n != 900 {
		t.Errorf("%d bytes of a large one", n)
	}
}

// TestIngestBelowReserve: the messages of a 3.1.1 client that wait for room on the disk
// keep no MQTT 5 client from being told that there is none, nor from its PINGRESP; what
// waits keeps to the bound, and is stored when there is room.
func TestIngestBelowReserve(t *testing.T) {
	t.Parallel()
	var low atomic.Bool
	s, err := embedded.Open(embedded.Options{Dir: t.TempDir(), Reserve: 200 << 20, FreeSpace: func(string) (uint64, uint64, error) {
		if low.Load() {
			return 190 << 20, 1 << 30, nil
		}
		return 900 << 20, 1 << 30, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	const limit, size, messages = 2 << 20, 100_000, 40
	h := openHouse(t, s, Options{IngestBytes: limit})
	p := h.clean(wire.V5, "v5")
	publish := func(id uint16) wire.ReasonCode {
		p.write(wire.AppendPublish(nil, p.v, &wire.Publish{Topic: "y", Payload: make([]byte, size), QoS: 1, PacketID: id}))
		return expect[*wire.Ack](p).Code
	}
	low.Store(true)
	h.until("run out of space", func() bool { return publish(1) == wire.QuotaExceeded })
	old := h.clean(wire.V311, "v3")
	sent := make(chan error, 1)
	go func() {
		for i := range messages {
			if _, err := old.nc.Write(wire.AppendPublish(nil, old.v, &wire.Publish{Topic: "y", Payload: make([]byte, size), QoS: 1, PacketID: uint16(i + 1)})); err != nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	h.until("fill what held messages may take", func() bool { return !h.b.ingest.hasRoom(size+1000, true) })
	for id := range uint16(30) { // more bytes than the bound
		if code := publish(id + 2); code != wire.QuotaExceeded {
			t.Fatalf("PUBACK %v", code)
		}
	}
	p.ping()
	h.b.ingest.mu.Lock()
	held := h.b.ingest.strict
	h.b.ingest.mu.Unlock()
	if held > limit {
		t.Errorf("%d bytes are held", held)
	}
	low.Store(false)
	for i := range messages {
		old.ack(wire.PUBACK, uint16(i+1))
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
}
