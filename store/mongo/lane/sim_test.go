package lane

import (
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"rewindmq/internal/seeds"
)

// runs gives how many seeds TestSimulation runs: REWINDMQ_SIM_SEEDS, else
// 6,000, and a tenth of that with -short.
func runs() int {
	n := 6_000
	if testing.Short() || raceEnabled {
		n = 600
	}
	return seeds.Env("REWINDMQ_SIM_SEEDS", n)
}

// search runs seeds from `from` to `to` and gives the smallest failing one; ok: none
// failed.
func search(from, to uint64, off without, workers int) (seed uint64, failed string, ok bool) {
	return seeds.Search(from, to, workers, func(s uint64) string {
		text, _ := simulate(s, off, false)
		return text
	})
}

// TestSimulation runs many seeds with all rules on. A failing one is printed with
// its trace; REWINDMQ_SIM_SEED=N runs one and prints its trace,
// REWINDMQ_SIM_WITHOUT=rule without a rule, REWINDMQ_SIM_LINES=N with that many lines.
func TestSimulation(t *testing.T) {
	t.Parallel()
	var off without
	if rule := os.Getenv("REWINDMQ_SIM_WITHOUT"); rule != "" {
		off = withoutRule(rule)
	}
	if one := os.Getenv("REWINDMQ_SIM_SEED"); one != "" {
		seed, err := strconv.ParseUint(one, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		report(t, seed, off)
		return
	}
	start := time.Now()
	n := runs()
	seed, failed, ok := search(0, uint64(n), off, 2)
	if ok {
		t.Logf("%d seeds, %v", n, time.Since(start).Round(time.Millisecond))
		return
	}
	t.Errorf("seed %d: %s", seed, failed)
	report(t, seed, off)
}

// report runs one seed again and prints the end of its trace.
func report(t *testing.T, seed uint64, off without) {
	t.Helper()
	text, w := simulate(seed, off, true)
	if text == "" {
		t.Logf("seed %d: clean, %d steps", seed, w.step)
		return
	}
	lines := w.lines
	if n := seeds.Env("REWINDMQ_SIM_LINES", 60); len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	t.Errorf("seed %d: %s\n%s", seed, text, strings.Join(lines, "\n"))
}

// TestSimulationIsDeterministic: the same seed gives the same trace.
func TestSimulationIsDeterministic(t *testing.T) {
	t.Parallel()
	for seed := range uint64(20) {
		_, a := simulate(seed, without{}, true)
		_, b := simulate(seed, without{}, true)
		if x, y := strings.Join(a.lines, "\n"), strings.Join(b.lines, "\n"); x != y {
			t.Fatalf("seed %d gives two traces", seed)
		}
		_, c := simulate(seed, without{}, false)
		if a.step != c.step || a.ids != c.ids || len(a.log.oplog) != len(c.log.oplog) {
			t.Fatalf("seed %d: tracing changes the run", seed)
		}
	}
}
