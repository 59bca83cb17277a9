package integration

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// foreign is a client library of another ecosystem, with its script in clients/, which
// clients/install.sh has put into the project's cache.
type foreign struct {
	name    string
	program string // relative to the cache; empty: node, from the PATH
	script  string
}

func foreigners() []foreign {
	return []foreign{{"paho-mqtt", "python/bin/python", "paho_walk.py"}, {"mqtt.js", "", "mqttjs_walk.mjs"}}
}

// command gives the command that runs a phase of the walk, or skips the test in one line.
func (f foreign) command(t *testing.T, cache string, args ...string) *exec.Cmd {
	t.Helper()
	script, err := filepath.Abs(filepath.Join("clients", f.script))
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(cache, f.program)
	if f.program == "" {
		// ES modules are looked for beside the script.
		if program, err = exec.LookPath("node"); err != nil {
			t.Skipf("no node here: no %s", f.name)
		}
		text, err := os.ReadFile(script)
		if err != nil {
			t.Fatal(err)
		}
		modules := filepath.Join(cache, "node/node_modules")
		if _, err := os.Stat(filepath.Join(modules, "mqtt")); err != nil {
			t.Skipf("no %s here: integration/clients/install.sh", f.name)
		}
		dir := t.TempDir()
		if err := os.Symlink(modules, filepath.Join(dir, "node_modules")); err != nil {
			t.Fatal(err)
		}
		script = filepath.Join(dir, f.script)
		if err := os.WriteFile(script, text, 0o600); err != nil {
			t.Fatal(err)
		}
	} else if _, err := os.Stat(program); err != nil {
		t.Skipf("no %s here: integration/clients/install.sh", f.name)
	}
	return exec.Command(program, append([]string{script}, args...)...)
}

// Clients of other ecosystems connect, publish and subscribe at each QoS, and come back
// to their session after a restart of the broker: everything once, in order, over TCP
// and WebSocket.
func TestForeignClients(t *testing.T) {
	cache, err := filepath.Abs("../.cache/clients")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range foreigners() {
		for _, version := range []string{"3.1.1", "5"} {
			for _, transport := range []string{"tcp", "ws"} {
				t.Run(fmt.Sprintf("%s %s %s", f.name, version, transport), func(t *testing.T) {
					f.command(t, cache) // or skip
					forEachStore(t, func(t *testing.T, s backend) {
						b := start(t, s)
						host, port, err := net.SplitHostPort(map[string]string{"tcp": b.addr, "ws": b.ws}[transport])
						if err != nil {
							t.Fatal(err)
						}
						id := strings.NewReplacer("-", "", ".", "").Replace(f.name)
						walk := func(phase string, want ...string) {
							t.Helper()
							p, err := run(f.command(t, cache, phase, host, port, version, transport, id))
							if err != nil {
								t.Fatal(err)
							}
							p.succeeded(t)
							if got := strings.TrimSpace(p.output()); got != strings.Join(want, "\n") {
								t.Errorf("%s:\n%s\nwant:\n%s", phase, got, strings.Join(want, "\n"))
							}
						}
						message := func(topic, payload string, qos int) string {
							return fmt.Sprintf("message %s/%s %s qos=%d dup=False", id, topic, payload, qos)
						}
						walk(
							"first", "connected success present=False", "subscribed 2", "connected success present=False",
							message("live", "at 0", 0), message("live", "at 1", 1), message("live", "at 2", 2),
						)
						b.stop()
						b.start()
						want := []string{"connected success present=False", "connected success present=True"}
						for i := range 10 {
							want = append(want, message("away", fmt.Sprintf("number %d", i), 1+i/5)) // at QoS 2 clients hand over later
						}
						walk("second", append(want, message("live", "after", 2), "unsubscribed")...)
					})
				})
			}
		}
	}
}
