package mongo

import (
	"sync"

	"rewindmq/schema"
	"rewindmq/store"
)

// ownedBook holds the sessions that this node owns: an Owner counts only while it
// is here. It is bounded by the connections of the node.
type ownedBook struct {
	mu sync.Mutex
	by map[string]schema.Owner
}

func (b *ownedBook) init() { b.by = map[string]schema.Owner{} }

func (b *ownedBook) take(o schema.Owner) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.by[o.ClientID].Epoch < o.Epoch {
		b.by[o.ClientID] = o
	}
}

// drop forgets a claim of the client older than epoch.
func (b *ownedBook) drop(clientID string, below uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if o, ok := b.by[clientID]; ok && o.Epoch < below {
		delete(b.by, clientID)
	}
}

func (b *ownedBook) loseAll() {
	b.mu.Lock()
	defer b.mu.Unlock()
	clear(b.by)
}

func (b *ownedBook) has(o schema.Owner) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.by[o.ClientID] == o
}

// older tells whether this node owns the client's session by a claim older than
// epoch.
func (b *ownedBook) older(clientID string, epoch uint64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	o, ok := b.by[clientID]
	return ok && o.Epoch < epoch
}

func (b *ownedBook) empty() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.by) == 0
}

func (b *ownedBook) all() []schema.Owner {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := make([]schema.Owner, 0, len(b.by))
	for _, o := range b.by {
		out = append(out, o)
	}
	return out
}

// watchers are the open Watches.
type watchers struct {
	mu   sync.Mutex
	list []*watching
}

// tell gives l to every Watch. What one has not taken yet is held once for each
// client.
func (w *watchers) tell(l store.Lost) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, x := range w.list {
		if old, ok := x.queue[l.ClientID]; !ok || old.Epoch < l.Epoch {
			x.queue[l.ClientID] = l
		}
		select {
		case x.poke <- struct{}{}:
		default:
		}
	}
}
