package embedded

import (
	"errors"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/zap"
)

const (
	probeInterval = 100 * time.Millisecond
	minReserve    = 16 << 20
	maxReserve    = 512 << 20
)

// space watches the room on the file system. Below the reserve, appends are
// refused or wait; below half of it, writes of sessions and records wait too.
// The engine cannot be given less: a failed write of its log ends the process.
type space struct {
	probe   func(dir string) (free, total uint64, err error)
	dir     string
	reserve uint64
	every   int // bytes written between two probes
	written int
	level   spaceLevel
	probed  time.Time
	free    uint64
}

type spaceLevel uint8

const (
	spaceEnough   spaceLevel = iota
	spaceLow                 // below the reserve
	spaceCritical            // below half of it
)

func (s *space) low() bool      { return s.level >= spaceLow }
func (s *space) critical() bool { return s.level >= spaceCritical }
func (s *space) wrote(n int)    { s.written += n }

// due tells whether the room has to be looked at again.
func (s *space) due() bool {
	if s.low() {
		return time.Since(s.probed) >= probeInterval
	}
	return s.probed.IsZero() || s.written >= s.every
}

// judge takes a reading. unflushed is what the engine holds in memory and its
// log: it is written once more as a table, beside what it takes now.
func (s *space) judge(free, total, unflushed uint64, configured int64) {
	s.reserve = reserveFor(configured, total)
	s.every = int(min(s.reserve/8, 8<<20))
	s.written, s.probed, s.free = 0, time.Now(), free
	room := uint64(0)
	if free > 2*unflushed {
		room = free - 2*unflushed
	}
	switch {
	case room < s.reserve/2:
		s.level = spaceCritical
	case room < s.reserve:
		s.level = spaceLow
	default:
		s.level = spaceEnough
	}
}

// reserveFor gives the bytes that stay free: what was configured, else 5 % of
// the file system, at least 16 MiB, at most 512 MiB.
func reserveFor(configured int64, total uint64) uint64 {
	if configured > 0 {
		return uint64(configured)
	}
	return min(max(total/20, minReserve), maxReserve)
}

// diskUsage is the default probe. A file system that cannot tell is taken for
// endless.
func diskUsage(fs vfs.FS) func(string) (uint64, uint64, error) {
	return func(dir string) (uint64, uint64, error) {
		u, err := fs.GetDiskUsage(dir)
		if errors.Is(err, vfs.ErrUnsupported) || err == nil && u.TotalBytes == 0 {
			return 1 << 62, 1 << 62, nil
		}
		return u.AvailBytes, u.TotalBytes, err
	}
}

// probeSpace looks at the room when it is time to.
func (c *committer) probeSpace() error {
	s := &c.space
	if !s.due() {
		return nil
	}
	free, total, err := s.probe(s.dir)
	if err != nil {
		c.l.log.Warn("free space is not known", zap.Error(err))
		s.written, s.probed = 0, time.Now()
		return nil
	}
	before := s.level
	s.judge(free, total, c.l.unflushed(), c.l.o.Reserve)
	if s.level != before {
		c.l.spaceLevel.Store(uint32(s.level))
		log := c.l.log.Info
		if s.level > before {
			log = c.l.log.Error
		}
		log("free space", zap.Uint64("free_bytes", free), zap.Uint64("reserve_bytes", s.reserve), zap.Bool("appends_taken", !s.low()))
	}
	return nil
}

// unflushed gives the bytes that the engine holds in memory and has yet to
// write as tables.
func (l *Log) unflushed() uint64 { return l.db.Metrics().MemTable.Size }
