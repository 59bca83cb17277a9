package control

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// open starts a door on a fresh data directory.
func open(t *testing.T, backup func(context.Context, string) error) (data string, stop func()) {
	t.Helper()
	data = t.TempDir()
	s, err := Listen(data, backup)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
	t.Cleanup(stop)
	return data, stop
}

func TestBackup(t *testing.T) {
	var got string
	data, stop := open(t, func(_ context.Context, dir string) error {
		got = dir
		return os.Mkdir(dir, 0o700)
	})
	if info, err := os.Stat(filepath.Join(data, FileName)); err != nil || info.Mode().Perm() != 0o600 && runtime.GOOS != "windows" {
		t.Errorf("control.json: %v %v, want mode 0600", info.Mode(), err)
	}
	target := filepath.Join(t.TempDir(), "copy")
	if err := Backup(t.Context(), data, target); err != nil || got != target {
		t.Errorf("got %v, copied to %q, want %q", err, got, target)
	}
	if err := Backup(t.Context(), data, target); !errors.Is(err, ErrTarget) {
		t.Errorf("a target that exists: got %v, want ErrTarget", err)
	}
	if err := Backup(t.Context(), data, filepath.Join(data, "inside")); !errors.Is(err, ErrTarget) {
		t.Errorf("a target in the data directory: got %v, want ErrTarget", err)
	}
	stop()
	if _, err := os.Stat(filepath.Join(data, FileName)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("control.json after the end: %v", err)
	}
	if err := Backup(t.Context(), data, target+"2"); !errors.Is(err, ErrNoBroker) {
		t.Errorf("after the end: got %v, want ErrNoBroker", err)
	}
}

func TestBackupFails(t *testing.T) {
	data, _ := open(t, func(context.Context, string) error { return errors.New("the disk is full") })
	err := Backup(t.Context(), data, filepath.Join(t.TempDir(), "copy"))
	if err == nil || !strings.Contains(err.Error(), "the disk is full") || errors.Is(err, ErrNoBroker) {
		t.Errorf("got %v, want what the broker said", err)
	}
}

// What a killed broker leaves behind is not taken for a broker: nobody there, or a stranger on the same port.
func TestStaleDoor(t *testing.T) {
	data := t.TempDir()
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := gone.Addr().String()
	if err := gone.Close(); err != nil {
		t.Fatal(err)
	}
	if err := (door{Addr: addr, Token: "old", PID: 1}).save(filepath.Join(data, FileName)); err != nil {
		t.Fatal(err)
	}
	if err := Backup(t.Context(), data, filepath.Join(t.TempDir(), "copy")); !errors.Is(err, ErrNoBroker) {
		t.Errorf("nobody there: got %v, want ErrNoBroker", err)
	}

	other, _ := open(t, func(context.Context, string) error { t.Error("a stranger's token was taken"); return nil })
	text, err := os.ReadFile(filepath.Join(other, FileName))
	if err != nil {
		t.Fatal(err)
	}
	text = bytes.Replace(text, []byte(`"token":"`), []byte(`"token":"x`), 1)
	if err := os.WriteFile(filepath.Join(data, FileName), text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Backup(t.Context(), data, filepath.Join(t.TempDir(), "copy")); !errors.Is(err, ErrNoBroker) {
		t.Errorf("a stranger there: got %v, want ErrNoBroker", err)
	}
}

// The end of the broker cancels a backup that is under way and waits for it.
func TestStopDuringBackup(t *testing.T) {
	begun := make(chan struct{})
	data, stop := open(t, func(ctx context.Context, _ string) error {
		close(begun)
		<-ctx.Done()
		return ctx.Err()
	})
	result := make(chan error, 1)
	go func() { result <- Backup(context.Background(), data, filepath.Join(filepath.Dir(data), "copy")) }()
	<-begun
	stop()
	if err := <-result; err == nil {
		t.Error("a backup that was cut off is reported as done")
	}
}

func TestBadCalls(t *testing.T) {
	data := t.TempDir()
	h := guarded("secret", backupCalls(data, func(context.Context, string) error { t.Error("called"); return nil }))
	for _, tt := range []struct {
		token, body string
		want        int
	}{
		{"", `{"dir":"/x"}`, http.StatusUnauthorized},
		{"Bearer wrong", `{"dir":"/x"}`, http.StatusUnauthorized},
		{"Bearer secret", `not json`, http.StatusBadRequest},
		{"Bearer secret", `{"dir":"relative"}`, http.StatusConflict},
		{"Bearer secret", `{}`, http.StatusConflict},
	} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "/backup", strings.NewReader(tt.body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", tt.token)
		w := &answer{header: http.Header{}}
		h.ServeHTTP(w, r)
		if w.code != tt.want {
			t.Errorf("%q %s: got %d, want %d", tt.token, tt.body, w.code, tt.want)
		}
	}
}

// answer records the status of an HTTP answer.
type answer struct {
	header http.Header
	code   int
}

func (a *answer) Header() http.Header         { return a.header }
func (a *answer) Write(b []byte) (int, error) { return len(b), nil }
func (a *answer) WriteHeader(code int)        { a.code = code }

// Sweep removes what a killed broker left, and nothing else.
func TestSweep(t *testing.T) {
	data, _ := open(t, func(context.Context, string) error { return nil })
	if err := Sweep(t.Context(), data); !errors.Is(err, ErrRunning) {
		t.Fatalf("got %v, want ErrRunning", err)
	}
	live := filepath.Join(data, FileName)
	text, err := os.ReadFile(live)
	if err != nil {
		t.Fatalf("the door of a live broker was swept away: %v", err)
	}
	silent, err := net.Listen("tcp", "127.0.0.1:0") // a broker that is stopped for a while: connects, says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	for name, tt := range map[string]struct {
		text  string
		stays bool
	}{
		"nobody there":      {`{"addr":"127.0.0.1:1","token":"x","pid":1}`, false},
		"a stranger there":  {strings.Replace(string(text), `"token":"`, `"token":"x`, 1), false},
		"half a file":       {`{"addr":"127`, false},
		"a silent one":      {`{"addr":"` + silent.Addr().String() + `","token":"x","pid":1}`, true},
		"nothing to remove": {"", false},
	} {
		dir := t.TempDir()
		file := filepath.Join(dir, FileName)
		if tt.text != "" {
			if err := os.WriteFile(file, []byte(tt.text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := Sweep(t.Context(), dir); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Stat(file); (err == nil) != tt.stays {
			t.Errorf("%s: the file: %v, want it to stay: %v", name, err, tt.stays)
		}
	}
}
