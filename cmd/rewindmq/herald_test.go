package main

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"rewindmq/cmd/internal/control"
	"rewindmq/cmd/internal/exit"
)

// logged reads a log of JSON objects. A line that is none fails the test.
func logged(t *testing.T, text string) map[string]map[string]any {
	t.Helper()
	lines := map[string]map[string]any{}
	for line := range strings.Lines(text) {
		var o map[string]any
		if err := json.Unmarshal([]byte(line), &o); err != nil {
			t.Errorf("not JSON: %q", line)
			continue
		}
		msg := o["msg"].(string)
		if lines[msg] != nil {
			t.Errorf("%q is told twice", msg)
		}
		lines[msg] = o
	}
	return lines
}

// awaits waits until a text is written.
func (t *text) awaits(want string, ended <-chan exit.Code) bool {
	for !strings.Contains(t.String(), want) {
		select {
		case <-t.at:
		case <-ended:
			return false
		}
	}
	return true
}

// Where the log is JSON every line is, and it tells the whole run.
func TestServeJSON(t *testing.T) {
	for name, tt := range map[string]struct {
		err  error
		code exit.Code
	}{
		"a signal":  {nil, exit.OK},
		"a failure": {&exit.Error{Code: exit.Store, Err: errors.New("the disk is gone"), Try: "another disk"}, exit.Store},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStandIn(t)
			stderr := newText()
			ctx, cancel := context.WithCancelCause(context.Background())
			defer cancel(nil)
			ended := make(chan exit.Code, 1)
			go func() {
				ended <- execute(ctx, newRoot(s.assemble), []string{"serve", "--dev", "--http", "127.0.0.1:0", "--node", "one", "--set", "log.format=json"}, stderr)
			}()
			if !stderr.awaits(`"serving"`, ended) {
				t.Fatalf("serve ended: %s", stderr)
			}
			if tt.err != nil {
				s.fails <- tt.err
			} else {
				cancel(interrupted{syscall.SIGTERM})
				close(s.drained)
			}
			if code := <-ended; code != tt.code {
				t.Errorf("exit code %d, want %d", code, tt.code)
			}
			lines := logged(t, stderr.String())
			l := lines["serving"]
			if l["node"] != "one" || l["version"] == "" || l["listeners"].([]any)[0] != "tcp://127.0.0.1:40000" ||
				!strings.HasPrefix(l["http"].(string), "http://127.0.0.1:") || !strings.HasPrefix(l["store"].(string), "embedded log in ") {
				t.Errorf("serving: %v", l)
			}
			end := lines["stopped"]
			if end == nil || end["exit_code"] != float64(tt.code) {
				t.Fatalf("stopped: %v", end)
			}
			if tt.err == nil && (lines["stopping"] == nil || lines["stopping"]["why"] != "signal terminated") {
				t.Errorf("stopping: %v", lines["stopping"])
			}
			if tt.err != nil && (end["error"] != "the disk is gone" || end["try"] != "another disk") {
				t.Errorf("stopped: %v", end)
			}
		})
	}
}

// After SIGKILL another program may listen on the port of the old door, and answer in its own way. The lock decides who
// has the directory: here nobody, then the broker that was started.
func TestServeStaleDoor(t *testing.T) {
	stranger := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("hello")) }))
	defer stranger.Close()
	dir := t.TempDir()
	file := filepath.Join(dir, control.FileName)
	stale := `{"addr":"` + strings.TrimPrefix(stranger.URL, "http://") + `","token":"old","pid":1}`
	if err := os.WriteFile(file, []byte(stale), 0o600); err != nil {
		t.Fatal(err)
	}
	serving := []string{"serve", "--dev", "--listen", "127.0.0.1:0", "--http", "off", "--data", dir, "--set", "log.format=json"}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	stderr, ended := newText(), make(chan exit.Code, 1)
	go func() { ended <- execute(ctx, newRoot(assemble), serving, stderr) }()
	if !stderr.awaits(`"serving"`, ended) {
		t.Fatalf("serve ended: %s", stderr)
	}
	if now, err := os.ReadFile(file); err != nil || string(now) == stale {
		t.Errorf("the door is still the old one: %s, %v", now, err)
	}
	// As if the second one could not ask the first: the file is another's.
	if err := os.WriteFile(file, []byte(stale), 0o600); err != nil {
		t.Fatal(err)
	}
	second := newText()
	if code := execute(t.Context(), newRoot(assemble), serving, second); code != exit.Failed || !strings.Contains(second.String(), "in use by another process") {
		t.Errorf("a second broker: exit code %d: %s", code, second)
	}
	cancel()
	if code := <-ended; code != exit.OK {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

// An MQTT port that is taken is told with a way out.
func TestServePortTaken(t *testing.T) {
	taken := httptest.NewServer(nil)
	defer taken.Close()
	stderr := newText()
	code := execute(t.Context(), newRoot(assemble), []string{
		"serve", "--dev", "--listen", strings.TrimPrefix(taken.URL, "http://"), "--http", "off", "--data", t.TempDir(), "--set", "log.format=console",
	}, stderr)
	if code != exit.Failed || !strings.Contains(stderr.String(), "Try: --listen with another port") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

// SIGHUP drains like SIGTERM, unless it is ignored.
func TestHangUp(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("there is no SIGHUP")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(t.TempDir(), "rewindmq") // the name makes the test binary the command
	if err := os.Symlink(self, bin); err != nil {
		t.Fatal(err)
	}
	// Where this test runs without a terminal it may have SIGHUP ignored itself, and would
	// hand that on.
	taken := make(chan os.Signal, 1)
	signal.Notify(taken, syscall.SIGHUP)
	t.Cleanup(func() { signal.Stop(taken) })
	for name, tt := range map[string]struct{ before, why string }{
		"taken":   {"", "signal hangup"},
		"ignored": {"trap '' HUP; ", "signal terminated"},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command("sh", "-c", tt.before+`exec "$0" "$@"`, bin, "serve", "--dev", "--listen", "127.0.0.1:0", "--http", "off",
				"--data", t.TempDir(), "--set", "log.format=json")
			stderr := newText()
			cmd.Stderr = stderr
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan exit.Code, 1)
			go func() {
				_ = cmd.Wait()
				ended <- exit.Code(cmd.ProcessState.ExitCode())
			}()
			defer func() { _ = cmd.Process.Kill() }()
			if !stderr.awaits(`"serving"`, ended) {
				t.Fatalf("serve ended: %s", stderr)
			}
			if err := cmd.Process.Signal(syscall.SIGHUP); err != nil {
				t.Fatal(err)
			}
			if tt.before != "" {
				if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
					t.Fatal(err)
				}
			}
			if code := <-ended; code != exit.OK {
				t.Errorf("exit code %d: %s", code, stderr)
			}
			if why := logged(t, stderr.String())["stopping"]["why"]; why != tt.why {
				t.Errorf("stopping: %v, want %s", why, tt.why)
			}
		})
	}
}
