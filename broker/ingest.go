package broker

import (
	"context"
	"sync"
)

// ingest bounds the bytes of all messages that wait for the store. A connection
// that finds no room is not read.
type ingest struct {
	limit int64
	mu    sync.Mutex
	bytes int64
	room  sync.Cond

	// round numbers the calls of the store; under way are only those of this one
	// and of the one before, by the lowest bit. See behind.
	round uint64
	calls [2]int
}

func newIngest(limit int64) *ingest {
	i := &ingest{limit: limit}
	i.room.L = &i.mu
	return i
}

// hasRoom tells whether size more bytes may wait.
func (i *ingest) hasRoom(size int64) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.fits(size)
}

// fits lets one message in, however large, when nothing else waits. REQUIRES: mu.
func (i *ingest) fits(size int64) bool { return i.bytes == 0 || i.bytes+size <= i.limit }

// wait blocks until size more bytes may wait, or ctx ends.
func (i *ingest) wait(ctx context.Context, size int64) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.fits(size) {
		return
	}
	stop := context.AfterFunc(ctx, func() {
		i.mu.Lock()
		defer i.mu.Unlock()
		i.room.Broadcast()
	})
	defer stop()
	for !i.fits(size) && ctx.Err() == nil {
		i.room.Wait()
	}
}

// add notes a call of the store with size bytes; done takes back what it gives.
func (i *ingest) add(size int64) (round uint64) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.bytes += size
	i.calls[i.round&1]++
	return i.round
}

func (i *ingest) done(size int64, round uint64) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.bytes -= size
	i.calls[round&1]--
	i.room.Broadcast()
}

// behind waits until the store has answered every call that was made before, at most
// until ctx ends.
//
// Why two counters are enough: a round begins only when the one before the last is
// over, so a counter is never shared by two. When round r+1 has been left, r was over.
func (i *ingest) behind(ctx context.Context) {
	i.mu.Lock()
	defer i.mu.Unlock()
	stop := func() bool { return false }
	if i.calls[0]+i.calls[1] > 0 {
		stop = context.AfterFunc(ctx, func() {
			i.mu.Lock()
			defer i.mu.Unlock()
			i.room.Broadcast()
		})
	}
	defer stop()
	r := i.round
	for i.round == r && i.calls[(r+1)&1] > 0 && ctx.Err() == nil {
		i.room.Wait()
	}
	if i.round == r && i.calls[(r+1)&1] == 0 {
		i.round++
	}
	for i.round == r+1 && i.calls[r&1] > 0 && ctx.Err() == nil {
		i.room.Wait()
	}
}
