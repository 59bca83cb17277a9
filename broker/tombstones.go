package broker

import (
	"crypto/sha256"

	"rewindmq/schema"
)

const (
	// tombstoneTurns is for how many rounds of the saver, of a second each, a cleared
	// topic is remembered at least, and twice that at most. Rounds, not a clock: a
	// process that was stopped has not met what others wrote meanwhile.
	tombstoneTurns = 60
	// tombstoneSize is what one costs in memory: key, value, and what a map of them
	// leaves empty.
	tombstoneSize = 160
	// minTombstoneBytes is the least bound of all, see newTombstones.
	minTombstoneBytes = 16 << 20
)

// topicKey stands for a topic of any length. Two topics with the same key are not met.
type topicKey [16]byte

func keyOf(topic string) (k topicKey) {
	h := sha256.Sum256([]byte(topic))
	copy(k[:], h[:])
	return k
}

// tombstone is what is kept of the empty message that has cleared a topic: its place
// in the order of Supersedes.
type tombstone struct {
	ts   uint64
	mark schema.Mark
	id   schema.ID
	// bare: nothing older has been met on the topic. So the store holds nothing of it.
	bare bool
}

// tombstones remembers cleared topics, so that an older message of another lane, met
// later, does not bring back what was cleared. Part of the projection, under its lock.
//
// Invariant: a topic is in the projection's tree, or here once, or not known at all.
// Invariant: a tombstone stays until the store has it, and then until nothing older
// can be met: with several lanes for tombstoneTurns, with one lane until the hub has
// passed it.
//
// The bound is kept at the door (admits), for what is here may not be forgotten early:
// neither of two lanes says how late it is. So it can be passed by what is under way,
// and by what other nodes and the store have: each is bounded by itself.
type tombstones struct {
	limit      int64
	young, old map[topicKey]tombstone
	turns      int
	unsaved    int64 // bytes of the empty messages that the store does not have yet
}

// newTombstones bounds them by a quarter of the bound of retained messages, which they
// do not count against.
func newTombstones(retained int64) tombstones {
	return tombstones{
		limit: max(retained/4, minTombstoneBytes),
		young: make(map[topicKey]tombstone), old: make(map[topicKey]tombstone),
	}
}

func (t *tombstones) len() int { return len(t.young) + len(t.old) }

func (t *tombstones) bytes() int64 { return int64(t.len())*tombstoneSize + t.unsaved }

// admits tells whether an empty message may be published. One that clears something
// may use all of the bound; those that clear nothing only half, so that they keep
// nobody from clearing.
func (t *tombstones) admits(clears bool) bool {
	if clears {
		return t.bytes() < t.limit
	}
	return t.bytes() < t.limit/2
}

// allows tells whether m may come to its topic, which holds nothing: false, the topic
// was cleared behind it.
func (t *tombstones) allows(k topicKey, m *schema.Message) bool {
	for _, g := range []map[topicKey]tombstone{t.young, t.old} {
		s, ok := g[k]
		if !ok {
			continue
		}
		if m.Supersedes(&schema.Message{TS: s.ts, Mark: s.mark, ID: s.id}) {
			return true
		}
		if s.bare {
			s.bare = false
			g[k] = s
		}
		return false
	}
	return true
}

// add notes the empty message m. had: it has cleared something. aged: long ago.
func (t *tombstones) add(k topicKey, m *schema.Message, had, aged bool) {
	s := tombstone{ts: m.TS, mark: m.Mark, id: m.ID, bare: !had}
	if before, ok := t.find(k); ok {
		s.bare = s.bare && before.bare
	}
	t.remove(k)
	if aged {
		t.old[k] = s
	} else {
		t.young[k] = s
	}
}

func (t *tombstones) find(k topicKey) (tombstone, bool) {
	s, ok := t.young[k]
	if !ok {
		s, ok = t.old[k]
	}
	return s, ok
}

func (t *tombstones) remove(k topicKey) {
	delete(t.young, k)
	delete(t.old, k)
}

// loaded ends the time in which messages are met in no order at all: of the aged ones
// only those are still needed whose clearing the checkpoint has not passed.
func (t *tombstones) loaded(checkpoint schema.Cursor) {
	for k, s := range t.old {
		if !checkpoint.After(s.mark) {
			delete(t.old, k)
		}
	}
}

// oneLane tells whether there is one lane, as far as h tells. Then everything that is
// still to be met supersedes everything that is not after h: it is in the same lane,
// or in one that was opened behind it all.
func oneLane(h schema.Cursor) bool { return len(h.Marks()) == 1 }

// saved forgets what need not be remembered any more, once the store has everything
// that is not after h.
func (t *tombstones) saved(h schema.Cursor) {
	if oneLane(h) {
		for _, g := range []map[topicKey]tombstone{t.young, t.old} {
			for k, s := range g {
				if !h.After(s.mark) {
					delete(g, k)
				}
			}
		}
	}
	if t.turns++; t.turns >= tombstoneTurns {
		t.turns, t.old, t.young = 0, t.young, make(map[topicKey]tombstone)
	}
}
