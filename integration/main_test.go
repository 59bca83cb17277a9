package integration

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"
)

// program is the broker under test. Set by TestMain, read only afterwards.
var program string

// soak tells whether rounds and sizes are whole.
var soak = os.Getenv("REWINDMQ_TEST_SCALE") == "soak"

func TestMain(m *testing.M) {
	flag.Parse()
	// The tests mostly wait: for a process to start, or for time to pass.
	if p := flag.Lookup("test.parallel"); p.Value.String() == p.DefValue {
		_ = p.Value.Set(strconv.Itoa(4 * runtime.GOMAXPROCS(0)))
	}
	os.Exit(testMain(m))
}

func testMain(m *testing.M) int {
	defer replicaSet.stop()
	if s := os.Getenv("REWINDMQ_TEST_SCALE"); s != "" && s != "ci" && s != "soak" {
		fmt.Fprintf(os.Stderr, "REWINDMQ_TEST_SCALE is %q, want ci or soak\n", s)
		return 2
	}
	if program = os.Getenv("REWINDMQ_TEST_BINARY"); program != "" {
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "rewindmq-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	defer func() { _ = os.RemoveAll(dir) }()
	program = filepath.Join(dir, "rewindmq")
	args := []string{"build", "-o", program}
	if raceEnabled {
		args = append(args, "-race")
	}
	build := exec.Command("go", append(args, "rewindmq/cmd/rewindmq")...)
	build.Stdout, build.Stderr = os.Stderr, os.Stderr
	if err := build.Run(); err != nil {
		fmt.Fprintf(os.Stderr, "building the broker: %v\n", err)
		return 2
	}
	return m.Run()
}

// rounds gives n for soak and a fifth of it for ci.
func rounds(n int) int {
	if soak {
		return n
	}
	return max(1, n/5)
}

// size gives n for soak and a tenth of it for ci.
func size(n int) int {
	if soak {
		return n
	}
	return max(1, n/10)
}

// seeded gives the test's source of chance and prints how to repeat it.
func seeded(t *testing.T) *rand.Rand {
	t.Helper()
	seed := rand.Uint64()
	if s := os.Getenv("REWINDMQ_TEST_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatalf("REWINDMQ_TEST_SEED: %v", err)
		}
		seed = n
	}
	t.Logf("REWINDMQ_TEST_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 1))
}
