package seeds

import (
	"fmt"
	"testing"
)

// The seed that is given does not depend on which worker was faster.
func TestSearch(t *testing.T) {
	t.Parallel()
	run := func(s uint64) string {
		if s%97 == 5 {
			return fmt.Sprint("seed ", s)
		}
		return ""
	}
	for _, workers := range []int{1, 2, 8} {
		for _, tt := range []struct {
			from, to, want uint64
			ok             bool
		}{{0, 1000, 5, false}, {6, 1000, 102, false}, {6, 102, 102, true}, {6, 103, 102, false}, {9, 9, 9, true}} {
			seed, text, ok := Search(tt.from, tt.to, workers, run)
			if seed != tt.want || ok != tt.ok || !ok && text != fmt.Sprint("seed ", tt.want) {
				t.Errorf("%d workers, %d to %d: seed %d, %q, %v", workers, tt.from, tt.to, seed, text, ok)
			}
		}
	}
}

func TestEnv(t *testing.T) {
	t.Setenv("REWINDMQ_SEEDS_TEST", "12")
	if n := Env("REWINDMQ_SEEDS_TEST", 3); n != 12 {
		t.Errorf("got %d", n)
	}
	t.Setenv("REWINDMQ_SEEDS_TEST", "many")
	if n := Env("REWINDMQ_SEEDS_TEST", 3); n != 3 {
		t.Errorf("got %d where it is no number", n)
	}
}
