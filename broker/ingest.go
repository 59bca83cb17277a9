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

func (i *ingest) add(size int64) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.bytes += size
}

func (i *ingest) done(size int64) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.bytes -= size
	i.room.Broadcast()
}
