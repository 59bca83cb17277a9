package fanout

import (
	"sync"
	"sync/atomic"

	"rewindmq/schema"
)

// Membership is a subscriber's place in the hub: its filters, and whether it is
// attached. Safe for concurrent use. Its methods take the hub's lock (Attached
// does not): call them without holding the lock that Offer takes.
type Membership struct {
	hub        *Hub
	subscriber Subscriber

	attached atomic.Bool // written under the hub's lock
	last     uint64      // the last event offered; under the hub's lock

	mu      sync.Mutex // never taken together with the hub's lock
	filters map[string]struct{}
	left    bool
}

// Join makes a place for s, without filters and not attached. One per session.
// Leave gives it up.
func (h *Hub) Join(s Subscriber) *Membership { return &Membership{hub: h, subscriber: s} }

// Subscribe adds filters. It returns a cursor: everything after it is matched
// with them; so H merged with the head of the log is where the subscriptions
// begin, live and replayed alike. After Leave it adds nothing.
// REQUIRES: each filter is valid (schema.ValidFilter).
func (m *Membership) Subscribe(filters ...string) schema.Cursor {
	m.mu.Lock()
	if !m.left {
		for _, f := range filters {
			if _, ok := m.filters[f]; ok {
				continue
			}
			if m.filters == nil {
				m.filters = make(map[string]struct{}, len(filters))
			}
			m.filters[f] = struct{}{}
			m.hub.trie.Add(f, m)
		}
	}
	m.mu.Unlock()
	// Through the hub's lock: an event in the middle of its step may have been
	// matched without the filters, so it has to be in the cursor.
	m.hub.mu.Lock()
	defer m.hub.mu.Unlock()
	return m.hub.at
}

// Unsubscribe removes filters. What matched only them and comes after the return
// is not offered.
func (m *Membership) Unsubscribe(filters ...string) {
	m.mu.Lock()
	for _, f := range filters {
		if _, ok := m.filters[f]; ok {
			delete(m.filters, f)
			m.hub.trie.Remove(f, m)
		}
	}
	m.mu.Unlock()
	m.hub.mu.Lock() // wait for an event that was matched with them
	defer m.hub.mu.Unlock()
}

// Attach calls fn with H under the hub's lock, and attaches the subscriber: from
// then on everything after that H that matches is offered. fn must be quick, and
// must not call the hub. It may take the subscriber's lock.
// REQUIRES: the hub is ready, else what lies before its first H would be in
// neither a read nor the offers.
func (m *Membership) Attach(fn func(H schema.Cursor)) {
	select {
	case <-m.hub.ready:
	default:
		panic("fanout: Attach to a hub that is not ready")
	}
	m.hub.mu.Lock()
	defer m.hub.mu.Unlock()
	fn(m.hub.at)
	m.attached.Store(true)
}

// Attached tells whether the subscriber is offered what matches: it was attached,
// and neither refused an offer nor was detached since. It takes no lock.
func (m *Membership) Attached() bool { return m.attached.Load() }

// Detach ends the offers. None is under way when it returns.
func (m *Membership) Detach() {
	m.hub.mu.Lock()
	defer m.hub.mu.Unlock()
	m.attached.Store(false)
}

// Leave removes all filters and detaches. None of the subscriber's methods is
// running when it returns, nor will be called. It may be called twice.
func (m *Membership) Leave() {
	m.mu.Lock()
	m.left = true
	for f := range m.filters {
		m.hub.trie.Remove(f, m)
	}
	m.filters = nil
	m.mu.Unlock()
	m.Detach()
}
