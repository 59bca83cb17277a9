package embedded

import (
	"container/heap"
	"slices"

	"github.com/cockroachdb/pebble/v2"
)

// mergeFirst and mergeMost bound how many positions of one topic are held.
const (
	mergeFirst = 8
	mergeMost  = 1024
	// mergeHeld bounds them all, beyond mergeFirst for each topic.
	mergeHeld = 1 << 18
)

// merge gives the positions of several topics within one epoch in ascending
// order. It reads each topic's index in runs, with one iterator, which it does
// not keep between calls.
type merge struct {
	topics  []uint32 // not yet begun
	heads   heads
	pending []uint64 // given back
	held    int
	begun   bool
}

// topicRun is what is held of one topic.
type topicRun struct {
	topic uint32
	run   []uint64 // ascending, not empty while in the heap
	size  int      // of the next run
	last  bool     // there is nothing behind run
}

type heads []*topicRun

func (h heads) Len() int           { return len(h) }
func (h heads) Less(i, k int) bool { return h[i].run[0] < h[k].run[0] }
func (h heads) Swap(i, k int)      { h[i], h[k] = h[k], h[i] }
func (h *heads) Push(x any)        { *h = append(*h, x.(*topicRun)) }
func (h *heads) Pop() any {
	old := *h
	x := old[len(old)-1]
	*h = old[:len(old)-1]
	return x
}

func newMerge(topics map[uint32]string) *merge {
	m := &merge{topics: make([]uint32, 0, len(topics))}
	for id := range topics {
		m.topics = append(m.topics, id)
	}
	slices.Sort(m.topics) // in the order of the index
	return m
}

// done tells whether nothing is left.
func (m *merge) done() bool { return m.begun && len(m.heads) == 0 && len(m.pending) == 0 }

// next gives at most limit positions; none: the epoch is done.
func (m *merge) next(l *Log, s span, limit int) (out []uint64, err error) {
	if len(m.pending) > 0 {
		out = append(out, m.pending[:min(limit, len(m.pending))]...)
		m.pending = append(m.pending[:0], m.pending[len(out):]...)
		return out, nil
	}
	prefix := epochKey(nil, keyTopic, s.id)
	iter, err := l.iterate(prefix, after(prefix))
	if err != nil {
		return nil, err
	}
	defer closeIterator(iter, &err)
	if err := m.begin(iter, s); err != nil {
		return nil, err
	}
	for len(out) < limit && len(m.heads) > 0 {
		t := m.heads[0]
		out = append(out, t.run[0])
		t.run = t.run[1:]
		m.held--
		if len(t.run) == 0 {
			if err := m.refill(iter, s, t, out[len(out)-1]+1); err != nil {
				return nil, err
			}
		}
		if len(t.run) == 0 {
			heap.Pop(&m.heads)
		} else {
			heap.Fix(&m.heads, 0)
		}
	}
	return out, nil
}

// begin reads the first run of each topic.
func (m *merge) begin(iter *pebble.Iterator, s span) error {
	if m.begun {
		return nil
	}
	for _, id := range m.topics {
		t := &topicRun{topic: id, size: mergeFirst}
		if err := m.refill(iter, s, t, s.first); err != nil {
			return err
		}
		if len(t.run) > 0 {
			m.heads = append(m.heads, t)
		}
	}
	m.topics, m.begun = nil, true
	heap.Init(&m.heads)
	return nil
}

// refill reads the next run of a topic.
func (m *merge) refill(iter *pebble.Iterator, s span, t *topicRun, from uint64) error {
	t.run = t.run[:0:0]
	if t.last {
		return nil
	}
	ok := iter.SeekGE(topicKey(nil, s.id, t.topic, from))
	for ; ok && len(t.run) < t.size; ok = iter.Next() {
		key := iter.Key()
		if len(key) != 17 {
			return corrupt(slices.Clone(key), errShort)
		}
		n := beU64(key[9:])
		if beU32(key[5:]) != t.topic || n > s.last {
			break
		}
		t.run = append(t.run, n)
	}
	if err := iter.Error(); err != nil {
		return engineError("read", err)
	}
	t.last = len(t.run) < t.size
	if m.held += len(t.run); m.held < mergeHeld {
		t.size = min(2*t.size, mergeMost)
	} else {
		t.size = mergeFirst
	}
	return nil
}
