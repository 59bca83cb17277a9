package embedded

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/zap"

	"rewindmq/store"
)

func beU16(b []byte) uint16 { return binary.BigEndian.Uint16(b) }
func beU32(b []byte) uint32 { return binary.BigEndian.Uint32(b) }
func beU64(b []byte) uint64 { return binary.BigEndian.Uint64(b) }

// engine listens to Pebble. What Pebble calls fatal ends the log: its own logger
// would end the process on the spot, or, if it returned, let the failed commit
// pass for stored.
type engine struct {
	log    *zap.Logger
	failed chan struct{} // closed by the first failure

	mu      sync.Mutex
	failure error
	// corruption is the first damage met; it does not end the log, as the rest
	// can still be read.
	corruption error
}

func newEngine(log *zap.Logger) *engine { return &engine{log: log, failed: make(chan struct{})} }

// fail notes the first failure, and gives err back.
func (e *engine) fail(err error) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.failure == nil {
		e.failure = err
		close(e.failed)
	}
	return err
}

// err gives the failure; nil: none.
func (e *engine) err() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.failure
}

func (e *engine) damaged() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.corruption
}

// Infof implements pebble.Logger.
func (e *engine) Infof(format string, args ...any) {
	if ce := e.log.Check(zap.DebugLevel, ""); ce != nil {
		ce.Message = fmt.Sprintf("pebble: "+format, args...)
		ce.Write()
	}
}

// Errorf implements pebble.Logger.
func (e *engine) Errorf(format string, args ...any) {
	e.log.Error(fmt.Sprintf("pebble: "+format, args...))
}

// Fatalf implements pebble.Logger. It returns: whoever committed finds the
// failure before it answers anybody (see Log.apply).
func (e *engine) Fatalf(format string, args ...any) {
	err := fmt.Errorf("embedded: engine: "+format, args...)
	e.log.Error("the storage engine failed", zap.Error(err))
	_ = e.fail(err)
}

// options are those of EMBEDDED.md.
func (e *engine) options(fs vfs.FS, cache *pebble.Cache, memtable uint64) *pebble.Options {
	o := &pebble.Options{
		FS:                    fs,
		Cache:                 cache,
		FormatMajorVersion:    pebble.FormatNewest,
		FlushDelayDeleteRange: 500 * time.Millisecond,
		MemTableSize:          memtable,
		// Writers are stopped by Pebble beyond that many memtables.
		MemTableStopWritesThreshold: 4,
		L0CompactionThreshold:       2,
		L0StopWritesThreshold:       32,
		LBaseMaxBytes:               64 << 20,
		MaxOpenFiles:                1000,
		Logger:                      e,
		CompactionConcurrencyRange:  func() (int, int) { return 1, 2 },
		EventListener: &pebble.EventListener{
			DataCorruption: func(info pebble.DataCorruptionInfo) {
				e.log.Error("the data directory is damaged", zap.String("path", info.Path), zap.Error(info.Details))
				e.mu.Lock()
				defer e.mu.Unlock()
				if e.corruption == nil {
					e.corruption = fmt.Errorf("%w: %s: %w", store.ErrCorrupt, info.Path, info.Details)
				}
			},
			BackgroundError: func(err error) {
				e.log.Warn("pebble: work in the background failed, it is tried again", zap.Error(err))
			},
			WriteStallBegin: func(info pebble.WriteStallBeginInfo) {
				e.log.Warn("pebble: writes are held up", zap.String("reason", info.Reason))
			},
		},
	}
	o.Experimental.ValueSeparationPolicy = func() pebble.ValueSeparationPolicy {
		return pebble.ValueSeparationPolicy{
			Enabled: true, MinimumSize: 256, MaxBlobReferenceDepth: 10,
			RewriteMinimumAge: 5 * time.Minute, TargetGarbageRatio: 0.2,
		}
	}
	return o
}

// engineError names what failed; damage is store.ErrCorrupt.
func engineError(what string, err error) error {
	if pebble.IsCorruptionError(err) && !errors.Is(err, store.ErrCorrupt) {
		return fmt.Errorf("%w: %s: %w", store.ErrCorrupt, what, err)
	}
	return fmt.Errorf("embedded: %s: %w", what, err)
}

// apply commits a batch with a sync.
//
// Invariant: it returns nil only when the batch is durable. Pebble's Apply
// returns nil also behind a call of Fatalf, so the failure is looked at here,
// behind it, by the goroutine that committed.
func (l *Log) apply(b *pebble.Batch) (err error) {
	defer func() {
		// Pebble panics when its log writer is gone.
		if r := recover(); r != nil {
			err = l.engine.fail(fmt.Errorf("embedded: engine: %v", r))
		}
		if err != nil {
			l.count("commit", err)
			if m := l.o.Metrics; m != nil {
				m.Up.Set(0)
			}
		}
	}()
	if err := l.engine.err(); err != nil {
		return err
	}
	sync := pebble.Sync
	if l.o.noSync {
		sync = pebble.NoSync
	}
	if err := l.db.Apply(b, sync); err != nil {
		return l.engine.fail(engineError("commit", err))
	}
	return l.engine.err()
}

// get copies the value of a key; nil: not there.
func (l *Log) get(key []byte) ([]byte, error) { return getFrom(l.db, key) }

func getFrom(r pebble.Reader, key []byte) (value []byte, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = damagePanic(r)
		}
	}()
	value, closer, err := r.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, engineError(fmt.Sprintf("read of key %q", key), err)
	}
	defer closer.Close()
	return append([]byte{}, value...), nil
}

func (l *Log) iterate(from, to []byte) (*pebble.Iterator, error) { return iterateIn(l.db, from, to) }

func iterateIn(r pebble.Reader, from, to []byte) (*pebble.Iterator, error) {
	iter, err := r.NewIter(&pebble.IterOptions{LowerBound: from, UpperBound: to})
	if err != nil {
		return nil, engineError("iterator", err)
	}
	return iter, nil
}

// closeIterator is deferred. It keeps the first error.
func closeIterator(iter *pebble.Iterator, err *error) {
	if r := recover(); r != nil {
		*err = damagePanic(r)
	}
	if cerr := iter.Close(); *err == nil && cerr != nil {
		*err = engineError("iterator", cerr)
	}
}

// damagePanic makes an error of the panic that Pebble v2.1.7 raises where it
// should report a damaged blob file; any other goes on.
func damagePanic(r any) error {
	if text, ok := r.(string); ok && strings.HasPrefix(text, "unknown metadata type") {
		return fmt.Errorf("%w: a blob file (pebble: %s)", store.ErrCorrupt, text)
	}
	panic(r)
}

// scan calls fn for the keys that begin with prefix, from `from` on. Key and
// value are valid during the call only.
func (l *Log) scan(prefix, from []byte, fn func(key, value []byte) error) error {
	if from == nil {
		from = prefix
	}
	return l.scanRange(from, after(prefix), -1, fn)
}

// scanRange calls fn for at most limit keys; negative: for all.
func (l *Log) scanRange(from, to []byte, limit int, fn func(key, value []byte) error) error {
	return scanIn(l.db, from, to, limit, fn)
}

func scanIn(r pebble.Reader, from, to []byte, limit int, fn func(key, value []byte) error) (err error) {
	iter, err := iterateIn(r, from, to)
	if err != nil {
		return err
	}
	defer closeIterator(iter, &err)
	for ok := iter.First(); ok && limit != 0; ok = iter.Next() {
		limit--
		value, err := iter.ValueAndErr()
		if err != nil {
			return engineError("read", err)
		}
		if err := fn(iter.Key(), value); err != nil {
			return err
		}
	}
	if err := iter.Error(); err != nil {
		return engineError("read", err)
	}
	return nil
}
