package integration

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// target gives -h and -p for the command line tools.
func (b *broker) target() []string {
	host, port, err := net.SplitHostPort(b.addr)
	if err != nil {
		b.t.Fatal(err)
	}
	return []string{"-h", host, "-p", port}
}

// tool starts a program with the broker's address and its standard output apart.
func (b *broker) tool(program string, args ...string) (*process, *bytes.Buffer) {
	b.t.Helper()
	cmd := exec.Command(program, args...)
	out := &bytes.Buffer{}
	cmd.Stdout = out
	p, err := run(cmd)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(p.kill)
	return p, out
}

// ended waits for a tool that has to succeed.
func (p *process) succeeded(t *testing.T) {
	t.Helper()
	if code := p.wait(t); code != 0 {
		t.Errorf("%v: exit code %d\n%s", p.cmd.Args, code, p.output())
	}
}

// register makes a persistent MQTT 5 session as `sub --persistent` would have it,
// so that the test knows when it exists.
func (b *broker) register(id, filter string) {
	b.t.Helper()
	c := b.open(session{version: v5, clientID: id, expiry: 0xffffffff})
	c.subscribe(want{filter, 2})
	c.disconnect()
}

// The whole file of readings (on MongoDB its first half, where sizes are small) through
// `pub --csv`, with three SIGKILLs of the broker on the way, and out of
// `sub --persistent -o csv`, byte for byte.
func TestCSVRoundTrip(t *testing.T) {
	forEachStore(t, func(t *testing.T, s backend) {
		want, err := os.ReadFile(filepath.Join("testdata", "sf-temps.csv"))
		if err != nil {
			t.Fatal(err)
		}
		rate := "5000"
		b := start(t, s)
		if b.place.db != nil && !soak {
			lines := bytes.SplitAfter(want, []byte("\n"))
			want, rate = bytes.Join(lines[:len(lines)/2], nil), "1000"
		}
		rows := bytes.Count(want, []byte("\n"))
		file := filepath.Join(t.TempDir(), "sf-temps.csv")
		if err := os.WriteFile(file, want, 0o600); err != nil {
			t.Fatal(err)
		}
		b.register("dashboard", "dev/+/reading")
		args := append([]string{
			"pub", "-t", "dev/7/reading", "-i", "dev-7", "--csv", file,
			"--header", "keep", "--rate", rate, "--progress",
		}, b.target()...)
		pub, _ := b.tool(program, args...)
		for i := range 3 {
			sofar := 0.0
			b.eventually("rows acknowledged", func() bool {
				m := b.metrics()
				sofar = sum(m, "publishes_acked_total", `qos="2"`)
				return sofar >= float64(rows)/8
			})
			t.Logf("SIGKILL %d after %v more rows", i+1, sofar)
			b.crash()
		}
		pub.succeeded(t)
		sub, out := b.tool(program, append([]string{
			"sub", "-t", "dev/+/reading", "-i", "dashboard", "--persistent", "-o", "csv", "-C", fmt.Sprint(rows), "-W", "60",
		}, b.target()...)...)
		b.eventually("rows delivered", func() bool { return sum(b.metrics(), "deliveries_sent_total") > float64(rows)/3 })
		b.crash()
		sub.succeeded(t)
		if !bytes.Equal(out.Bytes(), want) {
			t.Errorf("%d bytes came out of %d, first difference at %d", out.Len(), len(want), difference(out.Bytes(), want))
		}
		b.stop()
		n := 0
		for _, m := range b.place.audit(t).messages {
			if m.topic == "dev/7/reading" {
				n++
			}
		}
		if n != rows {
			t.Errorf("the log has %d rows, want %d", n, rows)
		}
	})
}

func difference(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// The header row as a property, skipped, and kept; text and JSON; QoS 0 and 1.
func TestTools(t *testing.T) {
	forEachStore(t, func(t *testing.T, s backend) {
		b := start(t, s)
		file := filepath.Join(t.TempDir(), "a.csv")
		if err := os.WriteFile(file, []byte("temp,date\n47.8,\"a\nb\"\n47.4,c\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		b.register("tools", "tools/#")
		pub := func(args ...string) {
			t.Helper()
			p, _ := b.tool(program, append(append([]string{"pub"}, args...), b.target()...)...)
			p.succeeded(t)
		}
		pub("-t", "tools/skip", "--csv", file, "--header", "skip", "-q", "1")
		pub("-t", "tools/keep", "--csv", file, "--header", "keep", "-q", "2")
		pub("-t", "tools/property", "--csv", file, "--header", "property")
		pub("-t", "tools/m", "-m", "hello", "-q", "1", "-r")
		sub, out := b.tool(program, append([]string{
			"sub", "-t", "tools/#", "-i", "tools", "--persistent", "-o", "text", "-v", "-C", "8", "-W", "30",
		}, b.target()...)...)
		sub.succeeded(t)
		want := "tools/skip 47.8,\"a\nb\"\ntools/skip 47.4,c\n" +
			"tools/keep temp,date\ntools/keep 47.8,\"a\nb\"\ntools/keep 47.4,c\n" +
			"tools/property 47.8,\"a\nb\"\ntools/property 47.4,c\ntools/m hello\n"
		if out.String() != want {
			t.Errorf("got %q\nwant %q", out.String(), want)
		}
		sub, out = b.tool(program, append([]string{"sub", "-t", "tools/m", "-o", "json", "-C", "1", "-W", "30"}, b.target()...)...)
		sub.succeeded(t)
		for _, part := range []string{`"topic":"tools/m"`, `"payload":"hello"`, `"retain":true`} {
			if !strings.Contains(out.String(), part) {
				t.Errorf("%s has no %s", out, part)
			}
		}
		// Nothing comes: the time is over, with the exit code for it.
		sub, _ = b.tool(program, append([]string{"sub", "-t", "nothing", "-C", "1", "-W", "0.2"}, b.target()...)...)
		if code := sub.wait(t); code != 6 {
			t.Errorf("sub -W: exit code %d, want 6", code)
		}
		b.stop()
		p, _ := b.tool(program, append([]string{"pub", "-t", "t", "-m", "x"}, b.target()...)...)
		if code := p.wait(t); code != 4 {
			t.Errorf("pub without a broker: exit code %d, want 4", code)
		}
	})
}

// mosquitto gives the paths of mosquitto_pub and mosquitto_sub, or skips.
func mosquitto(t *testing.T) (pub, sub string) {
	t.Helper()
	pub, err := exec.LookPath("mosquitto_pub")
	if err == nil {
		sub, err = exec.LookPath("mosquitto_sub")
	}
	if err != nil {
		t.Skipf("foreign clients are not installed (Debian: mosquitto-clients): %v", err)
	}
	return pub, sub
}

// mosquitto's clients: every QoS in both versions, persistent sessions with -c,
// over a SIGKILL.
func TestMosquittoClients(t *testing.T) {
	forEachStore(t, func(t *testing.T, s backend) {
		mpub, msub := mosquitto(t)
		for _, version := range []string{"mqttv311", "mqttv5"} {
			for _, qos := range []string{"0", "1", "2"} {
				t.Run(version+" QoS "+qos, func(t *testing.T) {
					t.Parallel()
					b := start(t, s)
					mosquittoWalk(t, b, mpub, msub, version, qos)
				})
			}
		}
	})
}

func mosquittoWalk(t *testing.T, b *broker, mpub, msub, version, qos string) {
	common := append([]string{"-V", version, "-q", qos}, b.target()...)
	id := []string{"-i", "msub", "-c", "-t", "m/#"}
	if version == "mqttv5" {
		id = append(id, "-x", "300")
	}
	pub := func(args ...string) {
		t.Helper()
		p, _ := b.tool(mpub, append(append([]string{}, common...), args...)...)
		p.succeeded(t)
	}
	sub := func(args ...string) (*process, *bytes.Buffer) {
		t.Helper()
		return b.tool(msub, append(append(append([]string{}, common...), id...), args...)...)
	}
	connected := func(n float64) {
		t.Helper()
		b.eventually("mosquitto_sub is subscribed", func() bool {
			m := b.metrics()
			return sum(m, "connections") == n && sum(m, "subscriptions") == 1
		})
	}
	// Live.
	live, out := sub("-C", "2", "-v")
	connected(1)
	pub("-t", "m/a", "-m", "one")
	pub("-t", "m/b", "-m", "two", "-r")
	live.succeeded(t)
	if out.String() != "m/a one\nm/b two\n" {
		t.Errorf("live: got %q", out)
	}
	// Missed, over a SIGKILL; QoS 0 is not kept.
	b.eventually("mosquitto_sub is gone", func() bool { return sum(b.metrics(), "connections") == 0 })
	cmd := exec.Command(mpub, append(append([]string{}, common...), "-t", "m/l", "-l")...)
	cmd.Stdin = strings.NewReader("three\nfour\nfive\n")
	lines, err := run(cmd)
	if err != nil {
		t.Fatal(err)
	}
	lines.succeeded(t)
	b.crash()
	missed, out := sub("-C", "4", "-W", "20", "-F", "%r %p")
	want := "0 three\n0 four\n0 five\n"
	if qos == "0" { // three others, live
		want = ""
		connected(1)
		for i := range 3 {
			pub("-t", "m/x", "-m", fmt.Sprint(i))
			want += fmt.Sprintf("0 %d\n", i)
		}
	}
	missed.succeeded(t)
	// mosquitto_sub subscribes at each connection: the retained message comes
	// once more, somewhere among the others.
	if got := strings.Replace(out.String(), "1 two\n", "", 1); got != want || strings.Count(out.String(), "1 two\n") != 1 {
		t.Errorf("missed: got %q, want %q and the retained message", out, want)
	}
}

// A copy of the running log, taken under load, is a log of its own: a broker
// starts from it, and it holds what had been acknowledged when it was asked for.
func TestBackup(t *testing.T) {
	forEachStore(t, func(t *testing.T, s backend) {
		b := start(t, s)
		if b.place.dir == "" {
			t.Skip("the store has no data directory")
		}
		c := newCrowd(t, b, seeded(t))
		pubs, subs := standardCrowd()
		c.subscribe(subs...)
		c.publish(pubs...)
		b.register("reader", "k9/#")
		b.open(transient(v5, "kept")).publish(message{topic: "kept", qos: 1, retain: true, payload: []byte("kept")})
		c.acknowledged(200)
		c.ledger.mu.Lock()
		acked := map[key]bool{}
		for _, p := range c.ledger.pubs {
			for k := range p.acked {
				acked[k] = true
			}
		}
		c.ledger.mu.Unlock()
		dir := filepath.Join(t.TempDir(), "copy")
		code, out := b.runTool("backup", dir, "--data", b.place.dir)
		if code != 0 {
			t.Fatalf("backup: exit code %d\n%s", code, out)
		}
		if code, _ := b.runTool("backup", dir, "--data", b.place.dir); code == 0 {
			t.Error("backup overwrote a directory")
		}
		c.acknowledged(100) // the broker goes on
		c.finish()
		c.auditNow()

		restored := start(t, s, launch{dir: dir})
		reader := restored.open(session{version: v5, clientID: "reader", expiry: 0xffffffff}).expectPresent(true)
		reader.subscribe(want{"kept", 1})
		restored.publishTexts("kept", 1, "end")
		for kept := false; ; {
			p := reader.settle(reader.take())
			if string(p.payload) == "end" {
				break
			}
			kept = kept || string(p.payload) == "kept" && p.retain
		}
		restored.stop()
		for _, m := range restored.place.audit(t).messages {
			if k, ok := parseKey(m.payload); ok {
				delete(acked, k)
			}
		}
		for k := range acked {
			t.Errorf("%v was acknowledged before the backup and is not in the copy", k)
		}
	})
}
