package embedded

import (
	"encoding/binary"
	"math"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"go.uber.org/zap"

	"rewindmq/schema"
)

// epoch is a stretch of the log: retention drops whole ones. Its number only
// rises; a new one begins when the UTC day has changed. It is never computed
// from a clock, which may step back (T15).
type epoch struct {
	id    uint32
	first uint64 // position of its first message, or of the next one
	day   int64  // days since 1970, by the believed clock when it began
	// newest is the latest time seen while it was the present one, by the
	// believed clock or the machine's, whichever was later: so an epoch is never
	// taken for older than it is. Written when the next one begins.
	newest time.Time
	// messagesGone and recordsGone: what retention has dropped of it.
	messagesGone, recordsGone bool
}

func putEpoch(b []byte, e *epoch) []byte {
	b = binary.AppendUvarint(append(b, encoding), e.first)
	b = binary.AppendVarint(b, e.day)
	return putBool(putBool(putTime(b, e.newest), e.messagesGone), e.recordsGone)
}

func readEpoch(key, value []byte) (epoch, error) {
	if len(key) != 5 {
		return epoch{}, corrupt(key, errShort)
	}
	r := decode(value)
	e := epoch{
		id: binary.BigEndian.Uint32(key[1:]), first: r.uvarint(), day: r.varint(), newest: r.time(),
		messagesGone: r.bool(), recordsGone: r.bool(),
	}
	if err := r.end(); err != nil {
		return epoch{}, corrupt(key, err)
	}
	return e, nil
}

func dayOf(t time.Time) int64 { return int64(math.Floor(float64(t.Unix()) / 86400)) }

// latest gives the later of the believed and the machine's time.
func (c *committer) latest() time.Time {
	if wall := c.clock.last.Round(0).UTC(); wall.After(c.now) {
		return wall
	}
	return c.now
}

// rollEpoch begins a new epoch when the day has changed, in either direction.
func (c *committer) rollEpoch() {
	if c.epoch.id == 0 || c.epoch.day != dayOf(c.now) {
		c.nextEpoch()
	}
	c.noteWrite()
}

// nextEpoch ends the present epoch and begins another, behind position n.
func (c *committer) nextEpoch() {
	if c.epoch.id != 0 {
		c.epoch.newest = c.lastWrite
		c.set(epochKey(c.key[:0], keyEpoch, c.epoch.id), putEpoch(nil, &c.epoch))
		c.l.epochs.update(c.epoch)
	}
	c.epoch = epoch{id: c.epoch.id + 1, first: c.n + 1, day: dayOf(c.now), newest: c.latest()}
	c.set(epochKey(c.key[:0], keyEpoch, c.epoch.id), putEpoch(nil, &c.epoch))
	c.l.epochs.add(c.epoch)
	c.lastWrite = c.epoch.newest
}

// noteWrite notes that the present epoch has something of now. What is stored
// of it lags by at most newestLag, which a start adds.
func (c *committer) noteWrite() {
	c.lastWrite = c.latest()
	if c.lastWrite.Sub(c.epoch.newest) > newestLag {
		c.epoch.newest = c.lastWrite
		c.set(epochKey(c.key[:0], keyEpoch, c.epoch.id), putEpoch(nil, &c.epoch))
		c.l.epochs.update(c.epoch)
	}
}

const newestLag = 10 * time.Minute

// retain drops what is older than its time, at most one epoch of messages and
// one of records in a call. It reports whether there may be more.
//
// Invariant: it runs only in the committer, and so after the sessions of the
// last run are finished: no recovery needs what it drops.
func (c *committer) retain() (more bool, err error) {
	if c.clock.ahead() > 0 {
		return false, nil // an implausible jump: see clock
	}
	if c.epoch.id != 0 && c.epoch.day != dayOf(c.now) && c.droppable(&c.epoch) {
		// Nobody has written for so long that even the present epoch is old.
		c.nextEpoch()
	}
	all := c.l.epochs.list()
	for i := range all {
		e := &all[i]
		if e.id == c.epoch.id {
			break
		}
		messages := !e.messagesGone && c.over(e, c.l.o.RetainMessages)
		records := !e.recordsGone && c.over(e, c.l.o.RetainRecords) && !c.recordsNeeded(e.id)
		// Messages go oldest first, so that the log has one first position.
		if messages && i > 0 && !all[i-1].messagesGone {
			messages = false
		}
		if messages || records {
			return true, c.dropEpoch(e, all[i+1].first, messages, records)
		}
	}
	return false, nil
}

// recordsNeeded tells whether an epoch may hold a record that no saved cursor
// speaks for: of a session that a connection holds, as the others are finished.
func (c *committer) recordsNeeded(epoch uint32) bool {
	for _, s := range c.owned {
		if !s.read.Load() || len(s.days) > 0 && s.days[0].epoch <= epoch {
			return true
		}
	}
	return false
}

func (c *committer) droppable(e *epoch) bool {
	newest := *e
	newest.newest = c.lastWrite
	return c.over(&newest, c.l.o.RetainMessages) || c.over(&newest, c.l.o.RetainRecords)
}

func (c *committer) over(e *epoch, retain time.Duration) bool {
	return retain >= 0 && c.now.Sub(e.newest) > retain
}

// dropEpoch removes an epoch's messages, its records, or both, by range.
func (c *committer) dropEpoch(e *epoch, next uint64, messages, records bool) error {
	if messages {
		c.deleteRange(messageFrom(nil, 0), messageFrom(nil, next))
		prefix := epochKey(nil, keyTopic, e.id)
		c.deleteRange(prefix, after(prefix))
		// Message ids begin with the seconds at which they were made.
		if sec := e.newest.Unix() - 86400; sec > 0 && sec < math.MaxUint32 {
			var id schema.ID
			binary.BigEndian.PutUint32(id[:], uint32(sec))
			c.deleteRange([]byte{keySeen}, seenKey(nil, id))
		}
		c.dropTopics(e.id)
		e.messagesGone = true
		c.state.n, c.state.ts = c.n, c.ts
		// The floor moves first: a reader that finds a hole then sees why.
		c.l.floor.Store(next)
	}
	if records {
		prefix := epochKey(nil, keyDelivery, e.id)
		c.deleteRange(prefix, after(prefix))
		e.recordsGone = true
	}
	key := epochKey(nil, keyEpoch, e.id)
	if e.messagesGone && e.recordsGone {
		c.delete(key)
		c.l.epochs.remove(e.id)
	} else {
		c.set(key, putEpoch(nil, e))
		c.l.epochs.update(*e)
	}
	c.l.log.Info("retention", zap.Uint32("epoch", e.id), zap.Time("newest", e.newest),
		zap.Bool("messages", messages), zap.Bool("records", records), zap.Uint64("first_position", c.l.floor.Load()))
	if err := c.commit(); err != nil {
		return err
	}
	return c.observeOldest()
}

func (c *committer) deleteRange(from, to []byte) {
	if err := c.batch.DeleteRange(from, to, pebble.NoSync); err != nil {
		panic("embedded: " + err.Error())
	}
	c.items++
}

// dropTopics forgets the names that no kept epoch has used.
func (c *committer) dropTopics(dropped uint32) {
	topics := c.l.topics
	topics.mu.RLock()
	var old []*topic
	for _, t := range topics.byName {
		if t.epoch <= dropped {
			old = append(old, t)
		}
	}
	topics.mu.RUnlock()
	for _, t := range old {
		topics.remove(t)
		c.delete(stringKey(c.key[:0], keyTopicID, t.name))
		c.delete(epochKey(c.key[:0], keyTopicName, t.id))
	}
	c.state.nextTopic = c.nextTopic
}

// observeOldest feeds the metric of the oldest message.
func (c *committer) observeOldest() error {
	m := c.l.o.Metrics
	if m == nil {
		return nil
	}
	found, err := c.l.load(c.l.floor.Load(), c.n, 1, nil)
	if err != nil {
		return err
	}
	m.OldestTimestamp.Set(0)
	if len(found) > 0 {
		m.OldestTimestamp.Set(float64(found[0].Created.UnixNano()) / 1e9)
	}
	return nil
}
