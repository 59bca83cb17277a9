package main

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"rewindmq/cmd/internal/config"
	"rewindmq/cmd/internal/control"
	"rewindmq/cmd/internal/exit"
)

// standIn is a broker that does what serve relies on, and notes what happens to it.
type standIn struct {
	dir      string
	draining chan struct{} // closed when run sees the end of its context
	drained  chan struct{} // run returns when this is closed
	fails    chan error    // run returns this
	discards int
}

func newStandIn(t *testing.T) *standIn {
	t.Helper()
	return &standIn{dir: t.TempDir(), draining: make(chan struct{}), drained: make(chan struct{}), fails: make(chan error, 1)}
}

func (s *standIn) assemble(c *config.Config, _ *zap.Logger, _ *prometheus.Registry) (*broker, error) {
	c.Store.Data = s.dir
	return &broker{
		addresses: []string{"tcp://127.0.0.1:40000"},
		store:     "embedded log in " + s.dir,
		run: func(ctx context.Context) error {
			select {
			case err := <-s.fails:
				return err
			case <-ctx.Done():
				close(s.draining)
				<-s.drained
				return nil
			}
		},
		ready:   func(context.Context) error { return nil },
		backup:  func(_ context.Context, dir string) error { return os.Mkdir(dir, 0o700) },
		discard: func() { s.discards++ },
	}, nil
}

// text is a standard error that can be read meanwhile.
type text struct {
	mu sync.Mutex
	b  bytes.Buffer
	at chan struct{} // gets a token for each write
}

func newText() *text { return &text{at: make(chan struct{}, 1000)} }

func (t *text) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.at <- struct{}{}
	return t.b.Write(b)
}

func (t *text) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.b.String()
}

// run starts `serve` with a stand-in and waits for its five lines.
func run(t *testing.T, s *standIn, args ...string) (stderr *text, stop context.CancelFunc, code <-chan exit.Code) {
	t.Helper()
	stderr = newText()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	ended := make(chan exit.Code, 1)
	go func() {
		ended <- execute(ctx, newRoot(s.assemble), append([]string{"serve", "--dev", "--http", "127.0.0.1:0", "--set", "log.format=console"}, args...), stderr)
	}()
	for !strings.Contains(stderr.String(), "\ntry ") {
		select {
		case <-stderr.at:
		case c := <-ended:
			t.Fatalf("serve ended with %d: %s", c, stderr)
		}
	}
	return stderr, cancel, ended
}

func TestServe(t *testing.T) {
	s := newStandIn(t)
	stderr, stop, ended := run(t, s, "--node", "one")
	lines := strings.Split(strings.TrimSpace(stderr.String()), "\n")
	if len(lines) != 5 {
		t.Errorf("got %d lines, want 5:\n%s", len(lines), stderr)
	}
	for i, want := range []string{
		`^mqtt   tcp://127.0.0.1:40000$`, `^store  embedded log in `, `^node   one, rewindmq `,
		`^http   http://127.0.0.1:\d+  \(/metrics`, `^try    rewindmq sub -p 40000 -t 'dev/#' .* rewindmq pub -p 40000 -t dev/1 -m hello$`,
	} {
		if !regexp.MustCompile(want).MatchString(lines[i]) {
			t.Errorf("line %d is %q, want %s", i+1, lines[i], want)
		}
	}
	url := regexp.MustCompile(`http://\S+`).FindString(lines[3])
	addr := strings.TrimPrefix(url, "http://")
	if said, err := askReady(t.Context(), addr); err != nil || said != "ready" {
		t.Errorf("readyz: %q %v", said, err)
	}
	copyTo := filepath.Join(t.TempDir(), "copy")
	var out bytes.Buffer
	backup := newRoot(nil)
	backup.SetOut(&out)
	if code := execute(t.Context(), backup, []string{"backup", copyTo, "--data", s.dir}, &out); code != exit.OK {
		t.Errorf("backup: exit %d: %s", code, out.String())
	}
	if _, err := os.Stat(copyTo); err != nil {
		t.Error(err)
	}

	// The drain: HTTP still answers, and says that nobody should come now. Then all ends.
	stop()
	<-s.draining
	if _, err := askReady(t.Context(), addr); err == nil || !strings.Contains(err.Error(), "503: not ready: the broker is stopping") {
		t.Errorf("readyz while draining: %v", err)
	}
	close(s.drained)
	if code := <-ended; code != exit.OK {
		t.Errorf("exit code %d, want 0: %s", code, stderr)
	}
	if _, err := os.Stat(filepath.Join(s.dir, control.FileName)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the control file after the end: %v", err)
	}
	if said := stderr.String(); strings.Count(said, "stopping: ") != 1 || strings.Contains(said, "{") {
		t.Errorf("people read:\n%s", said)
	}
	if _, err := http.Get(url + "/livez"); err == nil {
		t.Error("HTTP answers after the end")
	}
}

// A broker that fails brings everything down, and its own exit code is kept.
func TestServeBrokerFails(t *testing.T) {
	s := newStandIn(t)
	stderr, _, ended := run(t, s, "--set", "listen=127.0.0.1:0")
	s.fails <- exit.With(exit.Store, errors.New("the disk is gone"))
	if code := <-ended; code != exit.Store || !strings.Contains(stderr.String(), "rewindmq: the disk is gone") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

// What cannot be bound is told, and the broker's things are given back.
func TestServeAddressTaken(t *testing.T) {
	s := newStandIn(t)
	stderr, stop, ended := run(t, s)
	addr := regexp.MustCompile(`http://(\S+)`).FindStringSubmatch(stderr.String())[1]
	second := newStandIn(t)
	errText := newText()
	code := execute(t.Context(), newRoot(second.assemble), []string{"serve", "--dev", "--http", addr, "--set", "log.format=console"}, errText)
	if code != exit.Failed || !strings.Contains(errText.String(), "--http with another address") || second.discards != 1 {
		t.Errorf("exit code %d, %d discards: %s", code, second.discards, errText)
	}
	stop()
	close(s.drained)
	<-ended
}

func TestServeCannotOpen(t *testing.T) {
	var out bytes.Buffer
	fails := func(*config.Config, *zap.Logger, *prometheus.Registry) (*broker, error) {
		return nil, errors.New("no store here")
	}
	if code := execute(t.Context(), newRoot(fails), []string{"serve", "--dev"}, &out); code != exit.Failed {
		t.Errorf("exit code %d: %s", code, out.String())
	}
}

func TestLoggerFormats(t *testing.T) {
	t.Parallel()
	for format, want := range map[string]string{"json": `"msg":"hello"`, "auto": `"msg":"hello"`, "console": "INFO\thello"} {
		var b bytes.Buffer
		log := newLogger("info", format, &b)
		log.Debug("never")
		log.Info("hello")
		if !strings.Contains(b.String(), want) || strings.Contains(b.String(), "never") {
			t.Errorf("%s: got %q", format, b.String())
		}
	}
}

func TestReachable(t *testing.T) {
	t.Parallel()
	for addr, want := range map[string]string{
		":8080": "localhost:8080", "[::]:8080": "localhost:8080", "0.0.0.0:1": "localhost:1", "10.0.0.1:2": "10.0.0.1:2",
	} {
		if got := reachable(addr); got != want {
			t.Errorf("%s: got %s, want %s", addr, got, want)
		}
	}
	for addr, want := range map[string]string{":1883": "", "127.0.0.1:1884": " -p 1884", "10.0.0.1:1883": " -h 10.0.0.1"} {
		if got := dialFlags(addr); got != want {
			t.Errorf("%s: got %q, want %q", addr, got, want)
		}
	}
}
