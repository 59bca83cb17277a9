package embedded

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// script is a source of chance that reads its choices from an input, so that the fuzzer
// has them in its hand. At its end it gives zeros.
type script struct {
	rest []byte
	n    uint64
}

func (s *script) byte() byte {
	if len(s.rest) == 0 {
		return 0
	}
	b := s.rest[0]
	s.rest = s.rest[1:]
	return b
}

// Uint64 implements rand.Source: one byte, in the upper part of either half, is enough for
// a choice among a few. What is below changes, as IntN asks again where it would not be
// fair.
func (s *script) Uint64() uint64 {
	s.n++
	b := uint64(s.byte())<<24 | s.n*0x5bd1e9&0xffffff
	return b<<32 | b
}

// FuzzRecovery lets publishers and a session write in any order, with power losses and
// orderly ends between, and holds what the next start finds against what was answered:
// see ledger.lost.
func FuzzRecovery(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{0, 1, 2, 3, 9, 0, 4, 3, 4, 3, 9, 1, 0, 9, 2})
	f.Add([]byte{3, 40, 0, 3, 40, 0, 3, 90, 9, 3, 90, 3, 130, 9, 0, 3, 200, 3, 220, 8, 3, 0, 9, 1, 9, 2})
	f.Add([]byte{0, 0, 0, 255, 255, 255, 9, 2, 0, 0, 0, 9, 0, 3, 3, 3, 3, 9, 0})
	f.Fuzz(func(t *testing.T, program []byte) {
		if len(program) > 400 {
			return
		}
		s := &script{rest: program}
		rng := rand.New(s)
		r := start(t, Options{FS: vfs.NewCrashableMem(), claimWait: time.Millisecond})
		g := newLedger()
		g.session(context.Background(), r, rng, "c", 0)
		for lives := 0; len(s.rest) > 0 && lives < 5; {
			switch op := s.byte() % 10; op {
			case 0, 1, 2:
				g.publish(context.Background(), r, rng, int(op), 1)
				continue
			case 8:
				r = r.again()
			case 9:
				r = r.crash([]int{0, 50, 90}[s.byte()%3], uint64(lives))
			default:
				g.session(context.Background(), r, rng, "c", 1+int(op)%3)
				continue
			}
			if lost := g.lost(r); len(lost) > 0 {
				t.Fatalf("%d lost, first: %s", len(lost), lost[0])
			}
			lives++
		}
	})
}
