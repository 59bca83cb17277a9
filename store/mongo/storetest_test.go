package mongo

import (
	"testing"
	"time"

	"rewindmq/schema"
	"rewindmq/store"
	"rewindmq/store/storetest"
)

func contract(t *testing.T, members int, tune func(*Options)) {
	storetest.Run(t, func(t *testing.T) storetest.Harness {
		r := newRig(t, members)
		r.o.MaxPayload = 100 << 10
		if tune != nil {
			tune(&r.o)
		}
		s := r.start()
		return storetest.Harness{
			Store: s,
			Reopen: func() store.Store {
				s.kill()
				node := s.self.id()
				s = r.start()
				r.finished(node)
				return s
			},
			Clock:      func(d time.Duration) { r.o.clock.ahead.Add(int64(d)) },
			Trim:       func(upTo schema.Cursor) { r.trim(upTo) },
			MaxPayload: r.o.MaxPayload,
			Patience:   time.Minute,
		}
	})
}

func TestContract(t *testing.T) {
	t.Parallel()
	contract(t, 1, nil)
}

func TestContractWithoutStreams(t *testing.T) {
	t.Parallel()
	contract(t, 1, func(o *Options) { o.NoStreams = true })
}

func TestContractOnThree(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("three members in a short run")
	}
	contract(t, 3, nil)
}
