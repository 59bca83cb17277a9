package embedded

import (
	"encoding/binary"

	"rewindmq/schema"
	"rewindmq/store"
)

// window is how many of the last messages are known by their id in memory.
const window = 1 << 16

// seen knows the last messages by id: between window and twice as many.
type seen struct{ now, before map[schema.ID]uint64 }

func newSeen() seen {
	return seen{make(map[schema.ID]uint64, window), make(map[schema.ID]uint64, window)}
}

func (s *seen) note(id schema.ID, n uint64) {
	if len(s.now) >= window {
		s.now, s.before = s.before, s.now
		clear(s.now)
	}
	s.now[id] = n
}

func (s *seen) find(id schema.ID) (uint64, bool) {
	if n, ok := s.now[id]; ok {
		return n, true
	}
	n, ok := s.before[id]
	return n, ok
}

// indexed tells whether a message is found again by its id for as long as
// retention keeps it, and not only within the window: those that can be sent
// again long after, which are QoS 2 and what nobody's session appends (wills).
func indexed(p *store.Publisher, m *schema.Message) bool { return m.QoS == 2 || p.SID == 0 }

// repeated tells whether a message is in the log already, and where (promise 2).
func (c *committer) repeated(p *store.Publisher, m *schema.Message) (uint64, bool, error) {
	if n, ok := c.seen.find(m.ID); ok {
		return n, true, nil
	}
	if !indexed(p, m) {
		return 0, false, nil
	}
	key := seenKey(c.key[:0], m.ID)
	value, err := c.l.get(key)
	if err != nil || value == nil {
		return 0, false, err
	}
	if len(value) != 8 {
		return 0, false, corrupt(key, errShort)
	}
	return binary.BigEndian.Uint64(value), true, nil
}

func (c *committer) noteSeen(p *store.Publisher, m *schema.Message) {
	c.seen.note(m.ID, m.Mark.N)
	if indexed(p, m) {
		c.key = seenKey(c.key[:0], m.ID)
		c.value = appendU64(c.value[:0], m.Mark.N)
		c.set(c.key, c.value)
	}
}
