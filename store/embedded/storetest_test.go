package embedded

import (
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"rewindmq/store"
	"rewindmq/store/storetest"
)

// The contract of package store.
func TestContract(t *testing.T) {
	storetest.Run(t, func(t *testing.T) storetest.Harness {
		clock := newTestClock()
		r := start(t, Options{FS: vfs.NewCrashableMem(), Node: "n", Now: clock.Now, claimWait: 20 * time.Millisecond})
		return storetest.Harness{
			Store: r,
			Reopen: func() store.Store {
				r = r.crash(0, 1)
				return r
			},
			Clock:      func(d time.Duration) { clock.add(d) },
			MaxPayload: maxPayload,
		}
	})
}
