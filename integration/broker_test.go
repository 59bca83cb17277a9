package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// broker is one broker of a test: fixed addresses, a store of its own, and the
// process that runs now, if any. Its methods are called by the test's goroutine.
type broker struct {
	t     *testing.T
	store backend
	place place
	addr  string // MQTT over TCP
	ws    string // MQTT over WebSocket
	http  string
	env   []string
	args  []string // further arguments of serve
	node  string

	proc *process

	mu    sync.Mutex
	links []*link // that were dialled, for stop
}

// launch are the deviations from the usual start.
type launch struct {
	args []string
	env  []string // REWINDMQ_…=…
	dir  string   // data directory; empty: a new one
}

// start gives a running broker on a new place of the backend.
func start(t *testing.T, s backend, with ...launch) *broker {
	t.Helper()
	b := prepare(t, s, with...)
	b.start()
	return b
}

// prepare gives a broker that is not yet started.
func prepare(t *testing.T, s backend, with ...launch) *broker {
	t.Helper()
	b := &broker{t: t, store: s, node: "n1"}
	dir := ""
	for _, w := range with {
		b.args, b.env = append(b.args, w.args...), append(b.env, w.env...)
		if w.dir != "" {
			dir = w.dir
		}
	}
	if dir == "" {
		dir = filepath.Join(t.TempDir(), "data")
	}
	b.place = s.place(t, dir)
	b.assignPorts()
	t.Cleanup(func() {
		if b.proc != nil {
			b.kill9()
			if t.Failed() {
				t.Logf("broker %s, its last output:\n%s", b.addr, b.proc.output())
			}
		}
	})
	return b
}

// nextPort begins at a random place below the range that the system gives to
// outgoing connections: else a reconnecting client could be given the port of
// the broker that is just down, and keep it from starting again.
var nextPort = firstPort()

func firstPort() *atomic.Int32 {
	var n atomic.Int32
	n.Store(12000 + rand.Int32N(15000))
	return &n
}

// freePort gives a port of 127.0.0.1 that nobody listens on.
func freePort(t *testing.T) string {
	t.Helper()
	for range 1000 {
		addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(int(nextPort.Add(1))))
		if l, err := net.Listen("tcp", addr); err == nil {
			_ = l.Close()
			return addr
		}
	}
	t.Fatal("no free port")
	return ""
}

func (b *broker) assignPorts() {
	b.addr, b.ws, b.http = freePort(b.t), freePort(b.t), freePort(b.t)
}

func (b *broker) command() *exec.Cmd {
	args := []string{
		"serve", "--listen", "tcp://" + b.addr, "--listen", "ws://" + b.ws,
		"--http", b.http, "--node", b.node,
	}
	args = append(append(args, b.place.args...), b.args...)
	cmd := exec.Command(program, args...)
	cmd.Env = append(os.Environ(), b.env...)
	return cmd
}

// start runs the process and waits until it is ready.
func (b *broker) start() {
	b.t.Helper()
	for attempt := 0; ; attempt++ {
		proc, err := run(b.command())
		if err != nil {
			b.t.Fatalf("start: %v", err)
		}
		first := b.proc == nil
		b.proc = proc
		err = b.awaitReady()
		switch {
		case err == nil:
			return
		case first && attempt < 5 && strings.Contains(proc.output(), "address already in use"):
			b.proc = nil // somebody else took the port in between
			b.assignPorts()
		default:
			b.t.Fatalf("start: %v", err)
		}
	}
}

// poll asks cond until it is true, or the time is over, or gone is closed.
func poll(wait time.Duration, gone <-chan struct{}, cond func() bool) error {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	over := time.NewTimer(wait)
	defer over.Stop()
	for {
		if cond() {
			return nil
		}
		select {
		case <-gone:
			return errors.New("the process has ended")
		case <-over.C:
			return fmt.Errorf("not within %v", wait)
		case <-tick.C:
		}
	}
}

// pollWhile waits until cond is true, or for a minute in which progress has not grown: a
// busy machine is slow, and goes on.
func pollWhile(progress func() int, gone <-chan struct{}, cond func() bool) error {
	for {
		was := progress()
		met := false
		err := poll(time.Minute, gone, func() bool {
			met = cond()
			return met || progress() > was
		})
		if met || err != nil {
			return err
		}
	}
}

// reaches waits until a count that only grows has got so far.
func (b *broker) reaches(what string, n int, count func() int) {
	b.t.Helper()
	if err := pollWhile(count, b.proc.ended, func() bool { return count() >= n }); err != nil {
		b.t.Fatalf("%s: %d of %d: %v", what, count(), n, err)
	}
}

// eventually fails the test unless cond becomes true.
func (b *broker) eventually(what string, cond func() bool) {
	b.t.Helper()
	b.within(patience, what, cond)
}

// within is eventually for what takes its time.
func (b *broker) within(wait time.Duration, what string, cond func() bool) {
	b.t.Helper()
	if err := poll(wait, b.proc.ended, cond); err != nil {
		b.t.Fatalf("%s: %v", what, err)
	}
}

func (b *broker) awaitReady() error {
	return poll(60*time.Second, b.proc.ended, func() bool { return b.status("/readyz") == http.StatusOK })
}

// status gives the HTTP status of a path, 0 when there is no answer.
func (b *broker) status(path string) int {
	status, _ := b.get(path)
	return status
}

func (b *broker) get(path string) (int, string) {
	ctx, cancel := context.WithTimeout(b.t.Context(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+b.http+path, nil)
	if err != nil {
		b.t.Fatal(err)
	}
	resp, err := httpClient.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(text)
}

// httpClient opens a connection per request: the process at the other end may
// be another one each time.
var httpClient = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}

// kill9 ends the process as a power switch would, and waits until it is gone.
func (b *broker) kill9() {
	b.t.Helper()
	b.proc.kill()
	b.inspect()
}

// inspect fails the test when the process has told of a race or a panic.
func (b *broker) inspect() {
	b.t.Helper()
	if alarm := b.proc.out.alarm(); alarm != "" {
		b.t.Errorf("the broker said:\n%s", alarm)
	}
}

// crash is kill9 followed by a start.
func (b *broker) crash() {
	b.t.Helper()
	b.kill9()
	b.start()
}

// pause stops the process; nothing of it runs until resume.
func (b *broker) pause() { b.signal(syscall.SIGSTOP) }

func (b *broker) resume() { b.signal(syscall.SIGCONT) }

func (b *broker) signal(s os.Signal) {
	b.t.Helper()
	if err := b.proc.cmd.Process.Signal(s); err != nil {
		b.t.Fatalf("signal %v: %v", s, err)
	}
}

// stop asks the process to drain, and checks that it ends with 0. A broker waits for
// a while until its clients have closed: those of the test do, a little later.
func (b *broker) stop() {
	b.t.Helper()
	b.signal(syscall.SIGTERM)
	leave := time.AfterFunc(quickly, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, l := range b.links {
			if tcp, ok := l.conn.(*net.TCPConn); ok {
				_ = tcp.CloseWrite()
			}
		}
		b.links = nil
	})
	defer leave.Stop()
	if code := b.proc.wait(b.t); code != 0 {
		b.t.Errorf("SIGTERM: exit code %d", code)
	}
	b.inspect()
}

// rss gives the resident memory of the process in bytes, or skips the test.
func (b *broker) rss() int64 {
	b.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", b.proc.cmd.Process.Pid))
	if err != nil {
		b.t.Skipf("no resident memory to read here: %v", err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			if err != nil {
				b.t.Fatal(err)
			}
			return kb << 10
		}
	}
	b.t.Fatal("no VmRSS")
	return 0
}

// process is a running program whose end is waited for by one goroutine.
type process struct {
	cmd   *exec.Cmd
	out   *tailBuffer
	ended chan struct{} // closed when it has been waited for
	code  int           // exit code, after ended
}

func run(cmd *exec.Cmd) (*process, error) {
	p := &process{cmd: cmd, out: &tailBuffer{}, ended: make(chan struct{})}
	if cmd.Stdout == nil {
		cmd.Stdout = p.out
	}
	cmd.Stderr = p.out
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		_ = cmd.Wait()
		p.code = cmd.ProcessState.ExitCode()
		close(p.ended)
	}()
	return p, nil
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill() // fails only when it has ended
	<-p.ended
}

// wait waits for the end and gives the exit code.
func (p *process) wait(t *testing.T) int {
	t.Helper()
	return p.waitFor(t, time.Minute)
}

func (p *process) waitFor(t *testing.T, wait time.Duration) int {
	t.Helper()
	over := time.NewTimer(wait)
	defer over.Stop()
	select {
	case <-p.ended:
	case <-over.C:
		// Where it hangs: the runtime writes all goroutines.
		_ = p.cmd.Process.Signal(syscall.SIGQUIT)
		select {
		case <-p.ended:
		case <-time.After(10 * time.Second):
		}
		p.kill()
		t.Fatalf("%v did not end within %v; its output:\n%s", p.cmd.Args, wait, p.output())
	}
	return p.code
}

func (p *process) output() string { return p.out.String() }

// tailBuffer keeps the last 64 KiB that were written, and what came behind the
// first alarm. Safe for concurrent use.
type tailBuffer struct {
	mu      sync.Mutex
	buf     bytes.Buffer
	alarmed bytes.Buffer
	lines   int
}

// count tells how many lines were written.
func (b *tailBuffer) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.lines
}

// alarm gives the first report of a race or a panic, up to 16 KiB.
func (b *tailBuffer) alarm() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.alarmed.String()
}

func (b *tailBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.buf.Write(p)
	b.lines += bytes.Count(p, []byte("\n"))
	alarm := bytes.Contains(p, []byte("DATA RACE")) || bytes.HasPrefix(p, []byte("panic: ")) || bytes.HasPrefix(p, []byte("fatal error: "))
	if (alarm || b.alarmed.Len() > 0) && b.alarmed.Len() < 16<<10 {
		b.alarmed.Write(p)
	}
	if n := b.buf.Len() - 64<<10; n > 0 {
		b.buf.Next(n)
	}
	return len(p), nil
}

func (b *tailBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// runTool runs another command of the binary to its end, within patience.
func (b *broker) runTool(args ...string) (code int, out string) {
	b.t.Helper()
	p, err := run(exec.Command(program, args...))
	if err != nil {
		b.t.Fatal(err)
	}
	code = p.wait(b.t)
	return code, p.output()
}
