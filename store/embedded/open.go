package embedded

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"runtime/debug"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"go.uber.org/zap"

	"rewindmq/store"
)

// formatVersion is that of the layout in doc.go. A log of a newer one is
// refused.
const formatVersion = 1

// Open opens the log in o.Dir, or makes it, and recovers: a torn tail of the
// engine's log is cut and reported, damage elsewhere is an error, and every
// session that a connection of the last run held is finished. It starts no
// goroutine of its own; Pebble starts some. Run has to be called, or Close.
//
// Errors: store.ErrLocked, store.ErrFormat, store.ErrCorrupt, or what the file
// system said.
func Open(o Options) (*Log, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	l := &Log{
		o: o, log: o.Log.With(zap.String("dir", o.Dir)), engine: newEngine(o.Log),
		topics: newCatalog(o.topicLimit), queue: &queue{}, spare: &queue{}, wake: make(chan struct{}, 1),
		running: make(chan struct{}), stopped: make(chan struct{}),
	}
	if err := l.inspect(); err != nil {
		return nil, err
	}
	l.cache = pebble.NewCache(64 << 20)
	if err := l.openEngine(); err != nil {
		l.cache.Unref()
		return nil, errors.Join(err, l.lock.Close())
	}
	l.com = newCommitter(l)
	if err := l.recover(); err != nil {
		l.started.Store(true)
		return nil, errors.Join(err, l.closeEngine(l.engine.err() != nil))
	}
	return l, nil
}

func newCommitter(l *Log) *committer {
	return &committer{
		l: l, batch: l.db.NewBatch(), overlay: map[string][]byte{}, touched: map[uint64]struct{}{},
		seen: newSeen(), owned: map[string]*session{}, waiting: map[string]*claimCall{}, groups: map[string]*group{},
		space: space{probe: l.o.FreeSpace, dir: l.o.Dir},
	}
}

// openEngine opens Pebble and tells its errors apart.
func (l *Log) openEngine() (err error) {
	defer func() {
		// Pebble panics on some kinds of damage.
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %s: %v\n%s", store.ErrCorrupt, l.o.Dir, r, debug.Stack())
		}
	}()
	options := l.engine.options(l.o.FS, l.cache, l.memtable())
	options.Lock = l.lock
	l.db, err = pebble.Open(l.o.Dir, options)
	if err == nil {
		err = l.engine.err()
	}
	if err != nil {
		return l.openError(err)
	}
	return nil
}

// memtable gives the size of Pebble's memtables: 64 MiB as measured, less on a
// small file system, as the log files of several of them lie there at once.
func (l *Log) memtable() uint64 {
	_, total, err := l.o.FreeSpace(l.o.Dir)
	if err != nil || total == 0 {
		return 64 << 20
	}
	return min(max(total/64, 1<<20), 64<<20)
}

// recover loads what the committer has in memory.
func (l *Log) recover() error {
	c := l.com
	if err := c.checkFormat(); err != nil {
		return err
	}
	if err := c.loadState(); err != nil {
		return err
	}
	if err := c.loadEpochs(); err != nil {
		return err
	}
	next, err := l.loadTopics()
	if err != nil {
		return err
	}
	c.nextTopic = max(next, c.state.nextTopic)
	if err := c.loadEnd(); err != nil {
		return err
	}
	l.ring.open(c.n)
	if err := c.openClock(); err != nil {
		return err
	}
	if err := c.probeSpace(); err != nil {
		return err
	}
	if err := c.loadShared(); err != nil {
		return err
	}
	if err := c.finishSessions(); err != nil {
		return err
	}
	if err := c.observeOldest(); err != nil {
		return err
	}
	if m := l.o.Metrics; m != nil {
		m.Up.Set(1)
		m.HeadSequence.Set(float64(c.n))
	}
	return nil
}

// checkFormat refuses what is of a newer version, and marks a new log.
func (c *committer) checkFormat() error {
	key := []byte{keyFormat}
	value, err := c.l.get(key)
	if err != nil {
		return err
	}
	if value == nil {
		empty := true
		if err := c.l.scanRange([]byte{0}, []byte{0xff}, 1, func([]byte, []byte) error { empty = false; return nil }); err != nil {
			return err
		}
		if !empty {
			return fmt.Errorf("%w: %s holds a Pebble database that is not a log of rewindmq", store.ErrFormat, c.l.o.Dir)
		}
		c.now = c.l.o.Now().Round(0).UTC()
		c.set(key, appendU32(nil, formatVersion))
		return c.commitAtOpen()
	}
	if len(value) != 4 {
		return corrupt(key, errShort)
	}
	if v := binary.BigEndian.Uint32(value); v != formatVersion {
		return fmt.Errorf("%w: %s has format %d, this program knows %d: start a newer rewindmq on it, or give it another data directory",
			store.ErrFormat, c.l.o.Dir, v, formatVersion)
	}
	return nil
}

// commitAtOpen commits without the state, which may not be loaded yet.
func (c *committer) commitAtOpen() error {
	err := c.l.apply(c.batch)
	c.batch.Reset()
	c.items = 0
	return err
}

func (c *committer) loadEpochs() error {
	l := c.l
	err := l.scan([]byte{keyEpoch}, nil, func(key, value []byte) error {
		e, err := readEpoch(key, value)
		if err != nil {
			return err
		}
		l.epochs.all = append(l.epochs.all, e)
		return nil
	})
	if err != nil {
		return err
	}
	l.floor.Store(1)
	for _, e := range l.epochs.all {
		l.floor.Store(max(e.first, 1))
		if !e.messagesGone {
			break
		}
	}
	if n := len(l.epochs.all); n > 0 {
		c.epoch = l.epochs.all[n-1]
		c.lastWrite = c.epoch.newest.Add(newestLag)
	}
	return nil
}

// loadEnd finds where the log ends, and the ids of the last messages.
func (c *committer) loadEnd() error {
	c.n, c.ts = c.state.n, c.state.ts
	c.n = max(c.n, c.l.floor.Load()-1)
	from := uint64(1)
	last, err := c.l.lastPosition()
	if err != nil {
		return err
	}
	c.n = max(c.n, last)
	if c.n > window {
		from = c.n - window + 1
	}
	for from = max(from, c.l.floor.Load()); from <= c.n; {
		msgs, err := c.l.load(from, c.n, 1024, &interner{})
		if err != nil {
			return err
		}
		for _, m := range msgs {
			c.seen.note(m.ID, m.Mark.N)
			c.ts = max(c.ts, m.TS)
			from = m.Mark.N + 1
		}
	}
	return nil
}

// lastPosition gives the position of the last message; 0: there is none.
func (l *Log) lastPosition() (n uint64, err error) {
	iter, err := l.iterate([]byte{keyMessage}, []byte{keyMessage + 1})
	if err != nil {
		return 0, err
	}
	defer closeIterator(iter, &err)
	if !iter.Last() {
		return 0, nil // closeIterator gives the error
	}
	n, _, ok := splitMessageKey(iter.Key())
	if !ok {
		return 0, corrupt(append([]byte(nil), iter.Key()...), errShort)
	}
	return n, nil
}

// openClock starts the store's clock from the newest time that is known.
func (c *committer) openClock() error {
	var known time.Time
	if c.state.clock > 0 {
		known = time.Unix(0, c.state.clock).UTC()
	}
	c.clock.open(c.l.o.Now(), known)
	if from := c.state.from; from > 0 {
		if c.clock.from.IsZero() {
			// The last run did not believe the clock, this one does, by the shorter
			// way that it is ahead.
			c.begin()
			if by := c.now.Sub(known); by > 0 {
				if err := c.moveSessions(time.Unix(0, from).UTC(), by); err != nil {
					return err
				}
			}
		} else {
			c.clock.from, c.clock.ran = time.Unix(0, from).UTC(), time.Duration(c.state.ran)
		}
	}
	c.begin()
	c.watchClock()
	return nil
}

// Checkpoint copies the log, as it is now and durable, to a directory that must
// not exist. It works while the log runs. A broker can be started on the copy.
func (l *Log) Checkpoint(dir string) error {
	if err := l.wait(context.Background()); err != nil {
		return err
	}
	if err := l.enter(); err != nil {
		return err
	}
	defer l.leave()
	if _, err := l.o.FS.Stat(dir); err == nil {
		return fmt.Errorf("embedded: checkpoint %s: %w", dir, fs.ErrExist)
	}
	// The engine's log needs no flush: every commit is synced. (A flush would
	// write a record of its own, and only the committer writes records: that is
	// what chunkFile.proof goes by.) A commit that is under way is the copy's
	// torn tail.
	if err := l.db.Checkpoint(dir); err != nil {
		return engineError("checkpoint "+dir, err)
	}
	return nil
}
