package bench

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// workshop holds the real binary, built once for all benchmarks of a run, and
// the databases.
var workshop = struct {
	sync.Once
	dir string
	err error
}{}

func TestMain(m *testing.M) {
	var err error
	if workshop.dir, err = os.MkdirTemp("", "rewindmq-bench-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	stopSets()
	_ = os.RemoveAll(workshop.dir)
	os.Exit(code)
}

// build gives the workshop's directory, with the binary in it.
func build(b *testing.B) string {
	b.Helper()
	workshop.Do(func() {
		out, err := exec.Command("go", "build", "-o", filepath.Join(workshop.dir, "rewindmq"), "rewindmq/cmd/rewindmq").CombinedOutput()
		if err != nil {
			workshop.err = fmt.Errorf("build: %w\n%s", err, out)
		}
	})
	if workshop.err != nil {
		b.Fatal(workshop.err)
	}
	return workshop.dir
}

// startBroker runs the real binary until the benchmark ends.
func startBroker(b *testing.B, args ...string) (addr string, pid int) {
	b.Helper()
	cmd := exec.Command(filepath.Join(build(b), "rewindmq"), append([]string{"serve", "--listen", "127.0.0.1:0", "--http", "off", "--node", "bench", "--set", "log.format=console"}, args...)...)
	cmd.Env = append(os.Environ(), "REWINDMQ_LOG__LEVEL=error")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	lines := bufio.NewScanner(stderr)
	for lines.Scan() {
		if _, url, ok := strings.Cut(lines.Text(), "tcp://"); ok {
			go func() { _, _ = io.Copy(os.Stderr, stderr) }()
			return strings.TrimSpace(url), cmd.Process.Pid
		}
		b.Log(lines.Text())
	}
	b.Fatal("the broker did not tell its address")
	return "", 0
}
