package integration

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// startRefused starts a process that has to end by itself, and checks its exit
// code (0: any but 0) and that its output names what is wrong.
func (b *broker) startRefused(code int, names ...string) {
	b.t.Helper()
	p, err := run(b.command())
	if err != nil {
		b.t.Fatal(err)
	}
	got := p.wait(b.t)
	if got == 0 || code != 0 && got != code {
		b.t.Errorf("exit code %d, want %d", got, code)
	}
	out := p.output()
	for _, name := range names {
		if !strings.Contains(out, name) {
			b.t.Errorf("the output does not name %q:\n%s", name, out)
		}
	}
	if strings.Contains(out, "goroutine ") {
		b.t.Errorf("a stack trace is no clear text:\n%s", out)
	}
}

// A broken configuration file is refused with exit code 3 and a text that names
// the place; the data is not touched.
func TestBrokenConfig(t *testing.T) {
	forEachStore(t, func(t *testing.T, s backend) {
		b := start(t, s)
		w := newWitness(b)
		b.stop()
		for _, c := range []struct {
			name, text string
			names      []string
		}{
			{"unknown key", "limits:\n  windw: 5\n", []string{"limits.windw", "limits.window"}},
			{"unknown section", "limit:\n  window: 5\n", []string{"limit"}},
			{"wrong type", "limits:\n  window: many\n", []string{"limits.window"}},
			{"out of range", "limits:\n  window: 70000\n", []string{"limits.window"}},
			{"negative", "limits:\n  window: -1\n", []string{"limits.window"}},
			{"not a time", "drain_timeout: soon\n", []string{"drain_timeout"}},
			{"no YAML", "limits: [\n", []string{"broken.yaml"}},
			{"a tab", "limits:\n\twindow: 5\n", []string{"broken.yaml"}},
			{"binary", "\x00\x01\x02", []string{"broken.yaml"}},
			{"key twice", "limits:\n  window: 5\n  window: 6\n", []string{"window"}},
		} {
			file := filepath.Join(t.TempDir(), "broken.yaml")
			if err := os.WriteFile(file, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			b.args = []string{"-c", file}
			t.Log(c.name)
			b.startRefused(3, c.names...)
		}
		b.args = []string{"-c", filepath.Join(t.TempDir(), "nothing.yaml")}
		b.startRefused(3, "nothing.yaml")
		b.args, b.env = nil, []string{"REWINDMQ_LIMITS__WINDW=5"}
		b.startRefused(3, "REWINDMQ_LIMITS__WINDW")
		b.env = []string{"REWINDMQ_LIMITS__WINDOW=x"}
		b.startRefused(3, "REWINDMQ_LIMITS__WINDOW")
		b.args, b.env = []string{"--listen", "udp://127.0.0.1:1"}, nil
		b.startRefused(3, "udp://")
		b.args = []string{"--nothing"}
		b.startRefused(2, "--nothing")

		// And a file that is right is taken.
		file := filepath.Join(t.TempDir(), "right.yaml")
		if err := os.WriteFile(file, []byte("limits:\n  window: 5\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		b.args = []string{"-c", file}
		b.start()
		w.check()
	})
}

// A data directory that holds other things is refused and left as it is.
func TestForeignDirectory(t *testing.T) {
	forEachStore(t, func(t *testing.T, s backend) {
		dir := t.TempDir()
		letter := filepath.Join(dir, "letter.txt")
		if err := os.WriteFile(letter, []byte("dear reader"), 0o600); err != nil {
			t.Fatal(err)
		}
		b := prepare(t, s, launch{dir: dir})
		if b.place.dir == "" {
			t.Skip("the store has no data directory")
		}
		b.startRefused(0, dir)
		entries, err := os.ReadDir(dir)
		if err != nil || len(entries) != 1 {
			t.Errorf("the directory holds %v, %v", entries, err)
		}
		if text, err := os.ReadFile(letter); err != nil || string(text) != "dear reader" {
			t.Errorf("the file holds %q, %v", text, err)
		}
		b = prepare(t, s, launch{dir: letter}) // a file in place of a directory
		b.startRefused(0, letter)
	})
}

// A directory that cannot be written to is refused with a clear text. (For root
// that takes a mount.)
func TestReadOnlyDirectory(t *testing.T) {
	forEachStore(t, func(t *testing.T, s backend) {
		dir := t.TempDir()
		if os.Getuid() == 0 {
			if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", dir).CombinedOutput(); err != nil {
				t.Skipf("mount: %v %s", err, out)
			}
			t.Cleanup(func() { _ = exec.Command("umount", dir).Run() })
		} else {
			if err := os.Chmod(dir, 0o555); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = os.Chmod(dir, 0o755) })
		}
		for _, d := range []string{dir, filepath.Join(dir, "data")} {
			b := prepare(t, s, launch{dir: d})
			if b.place.dir == "" {
				t.Skip("the store has no data directory")
			}
			b.startRefused(0, d)
		}
	})
}

// A second process on the same directory is refused; the first goes on.
func TestSecondProcess(t *testing.T) {
	forEachStore(t, func(t *testing.T, s backend) {
		b := start(t, s)
		if b.place.dir == "" {
			t.Skip("the store has no data directory")
		}
		w := newWitness(b)
		second := prepare(t, s, launch{dir: b.place.dir})
		second.startRefused(0, b.place.dir, "another")
		w.check()
		b.kill9()
		second.start() // the lock went with the process
		second.stop()
	})
}

// A store of a newer format version is refused and left as it is.
func TestNewerFormat(t *testing.T) {
	forEachStore(t, func(t *testing.T, s backend) {
		b := start(t, s)
		b.publishTexts("nf/t", 1, "m")
		b.stop()
		b.place.makeNewer(t)
		b.startRefused(0, "1000", "newer")
		b.startRefused(0, "1000", "newer") // still
	})
}

// A port that is taken is refused, by name, and leaves no lock behind.
func TestPortTaken(t *testing.T) {
	forEachStore(t, func(t *testing.T, s backend) {
		b := start(t, s)
		second := prepare(t, s)
		second.addr = b.addr
		second.startRefused(0, b.addr)
		second.assignPorts()
		second.http = b.http
		second.startRefused(0, b.http)
		second.assignPorts()
		second.start()
		b.open(transient(v5, "one")).disconnect()
	})
}

// SIGTERM drains: clients are told (v5: 0x8B), writes under way are finished,
// the exit code is 0. A second signal ends the process at once.
func TestDrain(t *testing.T) {
	forEachStore(t, func(t *testing.T, s backend) {
		b := start(t, s)
		five, three := b.open(persistent(v5, "five")), b.open(persistent(v311, "three"))
		five.subscribe(want{"dr/t", 1})
		dev := transient(v5, "dev")
		dev.will = &will{topic: "dr/t", payload: "gone", qos: 1}
		b.open(dev)
		b.signal(syscall.SIGTERM)
		if rest := five.closed(); len(rest) != 1 || rest[0].kind != kindDisconnect || rest[0].code != 0x8b {
			t.Errorf("got %v, want DISCONNECT 0x8B", rest)
		}
		if rest := three.closed(); len(rest) > 0 {
			t.Errorf("v3.1.1 got %v", rest)
		}
		if code := b.proc.wait(t); code != 0 {
			t.Errorf("exit code %d", code)
		}
		b.start()
		five = b.open(persistent(v5, "five")).expectPresent(true)
		five.settle(five.takePayload("gone"))
		b.pause() // it cannot drain now
		b.signal(syscall.SIGTERM)
		b.signal(syscall.SIGINT)
		b.resume()
		b.proc.wait(t)
		if status := b.status("/readyz"); status == http.StatusOK {
			t.Error("/readyz is 200 after the end")
		}
	})
}
