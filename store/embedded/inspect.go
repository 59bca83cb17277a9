package embedded

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"syscall"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/wal"
	"go.uber.org/zap"

	"rewindmq/store"
)

// inspect looks at the directory before Pebble does, which would make a new
// database in a directory that is somebody else's; and it reads Pebble's log
// files with a stricter eye. Pebble looks for signs of damage from the next
// block of 32 KiB on only, takes a damaged log number for a clean end, and a
// damaged manifest record for the last: all of which would pass over what was
// acknowledged.
func (l *Log) inspect() error {
	names, err := l.o.FS.List(l.o.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return l.openError(err)
	}
	if err := l.foreign(names); err != nil {
		return err
	}
	if err := l.o.FS.MkdirAll(l.o.Dir, 0o755); err != nil {
		return l.openError(err)
	}
	if l.lock, err = pebble.LockDirectory(l.o.Dir, l.o.FS); err != nil {
		return l.openError(err)
	}
	if err := l.inspectManifest(); err != nil {
		return errors.Join(err, l.lock.Close())
	}
	if err := l.inspectLogs(); err != nil {
		return errors.Join(err, l.lock.Close())
	}
	return nil
}

// doorFile is the file of the process that has the log open, which waits there
// for calls of its own machine. A killed one leaves it behind, so it says
// nothing: whether a broker runs is for the lock to decide.
const doorFile = "control.json"

// foreign refuses a directory that holds anything that neither Pebble nor this
// program makes.
func (l *Log) foreign(names []string) error {
	for _, name := range names {
		_, _, isLog := wal.ParseLogFilename(name)
		ours := isLog || name == "LOCK" || name == doorFile || name == "lost+found" || strings.HasPrefix(name, "MANIFEST-") ||
			strings.HasPrefix(name, "OPTIONS-") || strings.HasPrefix(name, "marker.") || strings.HasPrefix(name, "temporary.") ||
			strings.HasSuffix(name, ".sst") || strings.HasSuffix(name, ".blob") || strings.HasSuffix(name, ".dbtmp")
		if !ours {
			return fmt.Errorf("%w: %s is not empty and holds %q, which is not ours: give rewindmq a data directory of its own",
				store.ErrFormat, l.o.Dir, name)
		}
	}
	return nil
}

func (l *Log) readFile(name string) ([]byte, error) {
	f, err := l.o.FS.Open(l.o.FS.PathJoin(l.o.Dir, name), vfs.SequentialReadsOption)
	if err != nil {
		return nil, l.openError(err)
	}
	defer f.Close()
	data, err := io.ReadAll(f)
	if err != nil {
		return nil, l.openError(err)
	}
	return data, nil
}

// inspectManifest refuses a manifest with a damaged record.
func (l *Log) inspectManifest() error {
	desc, err := pebble.Peek(l.o.Dir, l.o.FS)
	if err != nil {
		return l.openError(err)
	}
	if !desc.Exists {
		return nil
	}
	data, err := l.readFile(l.o.FS.PathBase(desc.ManifestFilename))
	if err != nil {
		return err
	}
	f := chunkFile{data: data}
	e := f.walk()
	if e.at == len(data) && e.record == e.at {
		return nil
	}
	_, proved := f.proof(e)
	if proved || f.flipped(e) {
		return fmt.Errorf("%w: %s: damaged at byte %d", store.ErrCorrupt, desc.ManifestFilename, e.at)
	}
	return nil
}

// inspectLogs refuses log files with damage in what had been synced, and reports
// a torn end of the newest.
func (l *Log) inspectLogs() error {
	names, err := l.o.FS.List(l.o.Dir)
	if err != nil {
		return l.openError(err)
	}
	var newest wal.NumWAL
	for _, name := range names {
		if number, _, ok := wal.ParseLogFilename(name); ok {
			newest = max(newest, number)
		}
	}
	for _, name := range names {
		number, _, ok := wal.ParseLogFilename(name)
		if !ok {
			continue
		}
		data, err := l.readFile(name)
		if err != nil {
			return err
		}
		f := chunkFile{data: data, number: uint32(number)}
		e := f.walk()
		if at, proved := f.proof(e); proved {
			return fmt.Errorf("%w: %s: damaged at byte %d: what is at byte %d was written after that had been synced",
				store.ErrCorrupt, l.o.FS.PathJoin(l.o.Dir, name), e.at, at)
		}
		if n := f.torn(e); n > 0 && number == newest {
			l.recovery.TornFile, l.recovery.TornBytes = name, int64(n)
			l.log.Warn("the end of the log was torn by a crash and is cut; nothing of it was acknowledged",
				zap.String("file", name), zap.Int("at_byte", e.record), zap.Int("bytes", n))
		}
	}
	return nil
}

// openError tells the errors of opening apart.
func (l *Log) openError(err error) error {
	text := err.Error()
	switch {
	case errors.Is(err, syscall.EAGAIN) || strings.Contains(text, "lock held by current process"):
		return fmt.Errorf("%w: %s (%w)", store.ErrLocked, l.o.Dir, err)
	case errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS):
		return fmt.Errorf("embedded: the data directory %s cannot be written: %w", l.o.Dir, err)
	case pebble.IsCorruptionError(err):
		return fmt.Errorf("%w: %s: %w", store.ErrCorrupt, l.o.Dir, err)
	case strings.Contains(text, "unknown format major version"):
		return fmt.Errorf("%w: %s was written by a newer rewindmq: start that one, or give this one another data directory (%w)",
			store.ErrFormat, l.o.Dir, err)
	case errors.Is(err, pebble.ErrDBNotPristine):
		return fmt.Errorf("%w: %s: %w", store.ErrFormat, l.o.Dir, err)
	}
	return fmt.Errorf("embedded: open %s: %w", l.o.Dir, err)
}
