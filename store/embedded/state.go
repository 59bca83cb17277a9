package embedded

import (
	"encoding/binary"
	"errors"
	"time"
)

// state is what is counted for ever, in one key.
type state struct {
	// n and ts: the log was there when retention last removed something. Both go
	// on above, also when no message is left.
	n, ts uint64
	// session is the number given last; sid: no epoch of a session that is
	// gone was above it, so epochs never start again.
	session, floor uint64
	nextTopic      uint32
	// How many there are.
	sessions, subscriptions int64
	// clock is the believed time, Unix nanoseconds, a minute behind at most
	// while the log runs; from and ran are the clock's.
	clock, from, ran int64
}

func putState(b []byte, s *state) []byte {
	b = append(b, encoding)
	for _, v := range []uint64{s.n, s.ts, s.session, s.floor, uint64(s.nextTopic), uint64(s.sessions), uint64(s.subscriptions)} {
		b = binary.AppendUvarint(b, v)
	}
	for _, v := range []int64{s.clock, s.from, s.ran} {
		b = binary.AppendVarint(b, v)
	}
	return b
}

func readState(value []byte) (state, error) {
	r := decode(value)
	s := state{
		n: r.uvarint(), ts: r.uvarint(), session: r.uvarint(), floor: r.uvarint(),
		nextTopic: uint32(r.below(1<<32 - 1)), sessions: int64(r.below(1 << 62)), subscriptions: int64(r.below(1 << 62)),
		clock: r.varint(), from: r.varint(), ran: r.varint(),
	}
	return s, r.end()
}

// stateLag is how far the stored time may lie behind while something is written.
const stateLag = 10 * time.Second

// stageState puts the state into the batch when it has changed.
func (c *committer) stageState() {
	if now := c.now.UnixNano(); !c.batch.Empty() && absolute(now-c.state.clock) > int64(stateLag) {
		c.noteClock()
	}
	if c.state == c.saved {
		return
	}
	c.set([]byte{keyState}, putState(nil, &c.state))
	c.saved = c.state
}

func absolute(v int64) int64 { return max(v, -v) }

func (c *committer) noteClock() {
	c.state.clock = c.now.UnixNano()
	c.state.from, c.state.ran = 0, int64(c.clock.ran)
	if !c.clock.from.IsZero() {
		c.state.from = c.clock.from.UnixNano()
	}
}

// saveState writes the time down also when nothing else is written.
func (c *committer) saveState() error {
	c.begin()
	c.noteClock()
	return c.commit()
}

// loadState reads it at the start; a new log has none.
func (c *committer) loadState() error {
	key := []byte{keyState}
	value, err := c.l.get(key)
	if err != nil || value == nil {
		return err
	}
	if c.state, err = readState(value); err != nil {
		return corrupt(key, err)
	}
	if c.state.clock < 0 {
		return corrupt(key, errors.New("time before 1970"))
	}
	c.saved = c.state
	return nil
}
