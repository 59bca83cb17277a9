// Package seeds runs a simulation with many seeds. The simulations of
// broker/session, broker/group and store/mongo/lane share it.
//
// Nouns: a run is one seed played to its end; it fails with a text, or is clean.
// Search owns its workers and waits for them.
package seeds

import (
	"os"
	"strconv"
	"sync"
	"sync/atomic"
)

// Env gives a number from the environment, def where there is none.
func Env(name string, def int) int {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
		return n
	}
	return def
}

// Search runs the seeds from `from` up to, not including, `to` on so many workers,
// until one fails. It gives the smallest failing one and its text; ok: none failed.
// run is called by several goroutines at once.
func Search(from, to uint64, workers int, run func(seed uint64) string) (seed uint64, failed string, ok bool) {
	var next, found atomic.Uint64
	next.Store(from)
	found.Store(to)
	texts := make([]string, workers)
	at := make([]uint64, workers)
	var wg sync.WaitGroup
	for i := range workers {
		at[i] = to
		wg.Go(func() {
			for {
				s := next.Add(1) - 1
				if s >= to || s >= found.Load() {
					return
				}
				if text := run(s); text != "" {
					texts[i], at[i] = text, s
					for f := found.Load(); s < f && !found.CompareAndSwap(f, s); f = found.Load() {
					}
					return
				}
			}
		})
	}
	wg.Wait()
	seed, ok = to, true
	for i := range workers {
		if at[i] < seed {
			seed, failed, ok = at[i], texts[i], false
		}
	}
	return seed, failed, ok
}
