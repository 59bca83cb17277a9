package fanout

import (
	"hash/maphash"
	"strings"
	"sync"
	"sync/atomic"
)

// Trie maps topic filters to values. Safe for concurrent use: Match goes on in
// any number of goroutines while values are added and removed.
//
// It has two parts. Filters without a wildcard stand in one hash table, keyed by
// the whole topic: one look-up, however many there are. Filters with a wildcard
// stand in a trie with one node per level.
//
// Readers take no lock and write nothing, so two of them do not slow each other.
// Writers take one lock. Each of their steps replaces one pointer, after what it
// points to is complete. That is enough for what Match promises: a filter that
// was added before Match began and not removed before it ended is found. A node
// is cut off only when it is empty, and under the writers' lock, so nothing can
// be added to what is cut off; a reader that still stands in it would find there
// nothing that is in the trie.
//
// A trie that is copied on write from the root was not chosen: a root with
// 100,000 children would be copied at every SUBSCRIBE.
type Trie[T comparable] struct {
	seed  maphash.Seed // so that nobody can choose topics that collide
	exact table[T]     // nodes by their whole filter
	root  node[T]
	mark  *node[T] // stands for removed nodes

	_   [64]byte // what readers read shares no cache line with what writers write
	mu  sync.Mutex
	len atomic.Int64
}

// node stands for the levels of a filter from the root to here.
type node[T comparable] struct {
	name  string                  // its last level; among the exact, the whole filter
	here  values[T]               // of the filters that end here
	below values[T]               // of those that go on with "#", the last level
	plus  atomic.Pointer[node[T]] // the level "+"
	kids  table[T]                // every other level
	// removed stands in a slot whose node was taken out. It is the trie's mark
	// only, and never changes.
	removed bool
	_       [15]byte // a node is one cache line
}

func (n *node[T]) empty() bool {
	return n.kids.root.Load() == nil && n.plus.Load() == nil && n.here.empty() && n.below.empty()
}

// NewTrie makes an empty trie.
func NewTrie[T comparable]() *Trie[T] {
	return &Trie[T]{seed: maphash.MakeSeed(), mark: &node[T]{removed: true}}
}

// Len gives the number of (filter, value) pairs.
func (t *Trie[T]) Len() int { return int(t.len.Load()) }

// Add adds v to the values of filter. The same (filter, v) twice is one.
// REQUIRES: schema.ValidFilter(filter) == nil. The trie keeps the string.
func (t *Trie[T]) Add(filter string, v T) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var added bool
	if wild(filter) {
		added = t.addWild(filter, v)
	} else {
		added = t.addExact(filter, v)
	}
	if added {
		t.len.Add(1)
	}
}

func (t *Trie[T]) addExact(filter string, v T) bool {
	h := maphash.String(t.seed, filter)
	n := t.exact.get(h, filter)
	if n != nil {
		return n.here.add(v)
	}
	n = &node[T]{name: filter}
	n.here.add(v)
	t.exact.put(h, n)
	return true
}

func (t *Trie[T]) addWild(filter string, v T) bool {
	n := &t.root
	for more := true; more; {
		var level string
		level, filter, more = strings.Cut(filter, "/")
		switch level {
		case "#":
			return n.below.add(v)
		case "+":
			k := n.plus.Load()
			if k == nil {
				k = new(node[T])
				n.plus.Store(k)
			}
			n = k
		default:
			h := maphash.String(t.seed, level)
			k := n.kids.get(h, level)
			if k == nil {
				// A copy, else the level of one long filter would keep all of it.
				k = &node[T]{name: strings.Clone(level)}
				n.kids.put(h, k)
			}
			n = k
		}
	}
	return n.here.add(v)
}

// Remove takes v out of the values of filter and tells whether it was there.
func (t *Trie[T]) Remove(filter string, v T) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	var removed bool
	if wild(filter) {
		removed = t.removeWild(&t.root, filter, v)
	} else {
		h := maphash.String(t.seed, filter)
		if n := t.exact.get(h, filter); n != nil {
			if removed = n.here.remove(v); n.empty() {
				t.exact.del(h, n, t.mark)
			}
		}
	}
	if removed {
		t.len.Add(-1)
	}
	return removed
}

// removeWild walks down and cuts off what has become empty on its way back.
func (t *Trie[T]) removeWild(n *node[T], filter string, v T) bool {
	level, rest, more := strings.Cut(filter, "/")
	if level == "#" {
		return n.below.remove(v)
	}
	var k *node[T]
	var h uint64
	if level == "+" {
		k = n.plus.Load()
	} else {
		h = maphash.String(t.seed, level)
		k = n.kids.get(h, level)
	}
	if k == nil {
		return false
	}
	var removed bool
	if more {
		removed = t.removeWild(k, rest, v)
	} else {
		removed = k.here.remove(v)
	}
	if removed && k.empty() {
		if level == "+" {
			n.plus.Store(nil)
		} else {
			n.kids.del(h, k, t.mark)
		}
	}
	return removed
}

// wild tells whether a valid filter has a wildcard.
func wild(filter string) bool { return strings.ContainsAny(filter, "+#") }

// Match appends to dst each value that has a filter that matches topic, and
// returns it. A value appears once for each of its filters that match. It does
// not allocate when dst has room and topic has at most 16 levels.
//
// A filter that begins with a wildcard does not match a topic that begins with
// `$` [MQTT-4.7.2-1]; `sport/#` matches `sport` too. Names are compared byte by
// byte: nothing is normalized [MQTT-4.7.3-4].
func (t *Trie[T]) Match(topic string, dst []T) []T {
	if n := t.exact.get(maphash.String(t.seed, topic), topic); n != nil {
		dst = n.here.appendTo(dst)
	}
	w := walk[T]{seed: t.seed, rest: topic, more: true, dst: dst}
	if topic == "" || topic[0] != '$' {
		w.visit(&t.root, 0)
	} else if l, ok := w.level(0); ok {
		if k := t.root.kids.get(l.hash, l.name); k != nil {
			w.visit(k, 1)
		}
	}
	return w.dst
}

// walk is one Match on its way through the wildcard filters. Each level of the
// topic is cut and hashed once, when the first branch gets there.
type walk[T comparable] struct {
	seed  maphash.Seed
	rest  string // what is not cut yet
	more  bool   // there is a level in rest
	n     int    // levels cut
	first [16]level
	far   []level // those behind first
	dst   []T
}

type level struct {
	name string
	hash uint64
}

// level gives the level d of the topic, or false behind the last.
// REQUIRES: d <= the number of levels cut.
func (w *walk[T]) level(d int) (level, bool) {
	if d == w.n {
		if !w.more {
			return level{}, false
		}
		var l level
		l.name, w.rest, w.more = strings.Cut(w.rest, "/")
		l.hash = maphash.String(w.seed, l.name)
		if d < len(w.first) {
			w.first[d] = l
		} else {
			w.far = append(w.far, l)
		}
		w.n++
		return l, true
	}
	if d < len(w.first) {
		return w.first[d], true
	}
	return w.far[d-len(w.first)], true
}

// visit takes what n matches: the topic's first d levels led to it.
func (w *walk[T]) visit(n *node[T], d int) {
	w.dst = n.below.appendTo(w.dst)
	l, ok := w.level(d)
	if !ok {
		w.dst = n.here.appendTo(w.dst)
		return
	}
	if k := n.kids.get(l.hash, l.name); k != nil {
		w.visit(k, d+1)
	}
	if p := n.plus.Load(); p != nil {
		w.visit(p, d+1)
	}
}
