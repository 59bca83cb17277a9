package broker

import (
	"context"
	"sync"
)

// ingest bounds the bytes of all messages that wait for the store. A connection
// that finds no room is not read.
//
// A store that is below its reserve answers the others at once and lets the messages
// of strict publishers wait, for hours maybe. So those may fill three quarters of the
// bound and no more: what they leave is for publishers that get their refusal.
//
// Invariant: all that waits is at most limit and one message of each kind, held
// messages included.
type ingest struct {
	limit  int64
	mu     sync.Mutex
	strict int64 // bytes of strict publishers, see store.Publisher
	others int64
	room   sync.Cond

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

// hasRoom tells whether size more bytes of a publisher may wait.
func (i *ingest) hasRoom(size int64, strict bool) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.fits(size, strict)
}

// fits lets one message in, however large, when no other of its kind waits: so neither
// kind stops the other. REQUIRES: mu.
func (i *ingest) fits(size int64, strict bool) bool {
	if *i.of(strict) == 0 {
		return true
	}
	if strict && i.strict+size > i.limit-i.limit/4 {
		return false
	}
	return i.strict+i.others+size <= i.limit
}

// of gives the bytes of a kind of publishers. REQUIRES: mu.
func (i *ingest) of(strict bool) *int64 {
	if strict {
		return &i.strict
	}
	return &i.others
}

// wait blocks until size more bytes of a publisher may wait, or ctx ends.
func (i *ingest) wait(ctx context.Context, size int64, strict bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.fits(size, strict) {
		return
	}
	stop := context.AfterFunc(ctx, func() {
		i.mu.Lock()
		defer i.mu.Unlock()
		i.room.Broadcast()
	})
	defer stop()
	for !i.fits(size, strict) && ctx.Err() == nil {
		i.room.Wait()
	}
}

// add notes a call of the store with size bytes; done takes back what it gives.
func (i *ingest) add(size int64, strict bool) (round uint64) {
	i.mu.Lock()
	defer i.mu.Unlock()
	*i.of(strict) += size
	i.calls[i.round&1]++
	return i.round
}

func (i *ingest) done(size int64, strict bool, round uint64) {
	i.mu.Lock()
	defer i.mu.Unlock()
	*i.of(strict) -= size
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
