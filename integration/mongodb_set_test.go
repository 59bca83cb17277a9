package integration

import (
	"context"
	"errors"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"rewindmq/integration/mongod"
)

// ownSet gives a replica set for this test alone: it may be harmed.
func ownSet(t *testing.T, members int) *mongod.Set {
	t.Helper()
	return setWith(t, mongod.Options{Members: members})
}

func setWith(t *testing.T, o mongod.Options) *mongod.Set {
	t.Helper()
	mongod.Need(t)
	if !chosen("mongodb") {
		t.Skip("REWINDMQ_TEST_STORES leaves mongodb out")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	o.Dir = t.TempDir()
	set, err := mongod.Start(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(set.Stop)
	return set
}

func lone(t *testing.T) *mongod.Set { t.Helper(); return ownSet(t, 1) }

// startOn gives a running broker on a database of its own of the server at uri.
func startOn(t *testing.T, uri string, with ...launch) *broker {
	t.Helper()
	return start(t, backend{name: "mongodb", place: func(t *testing.T, _ string) place {
		t.Helper()
		return database(t, uri)
	}}, with...)
}

// standalone starts a mongod that is no replica set, and gives its URI.
func standalone(t *testing.T) string {
	t.Helper()
	binary := mongod.Need(t)
	if !chosen("mongodb") {
		t.Skip("REWINDMQ_TEST_STORES leaves mongodb out")
	}
	addr, dir := freePort(t), t.TempDir()
	_, port, _ := net.SplitHostPort(addr)
	p, err := run(exec.Command(binary, "--bind_ip", "127.0.0.1", "--port", port, "--dbpath", dir, "--nounixsocket",
		"--wiredTigerCacheSizeGB", "0.25", "--logpath", filepath.Join(dir, "log")))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	if err := poll(time.Minute, p.ended, func() bool {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	}); err != nil {
		t.Fatalf("mongod: %v\n%s", err, p.output())
	}
	return "mongodb://" + addr + "/"
}

// contains tells whether one line of out has all the parts.
func contains(out string, parts ...string) bool {
next:
	for line := range strings.Lines(out) {
		for _, p := range parts {
			if !strings.Contains(line, p) {
				continue next
			}
		}
		return true
	}
	return false
}

// proxy stands between a broker and one member. It is told to cut what it has, to
// keep the answers to itself, or to say nothing at all. Safe for concurrent use.
type proxy struct {
	l    net.Listener
	to   string
	all  sync.WaitGroup
	mu   sync.Mutex
	open map[net.Conn]bool
	mute bool // answers are swallowed
	off  bool // nothing is taken
	gone bool
}

func proxyTo(t *testing.T, to string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{l: l, to: to, open: map[net.Conn]bool{}}
	p.all.Go(p.accept)
	t.Cleanup(func() {
		_ = l.Close()
		p.mu.Lock()
		p.gone = true
		p.mu.Unlock()
		p.cut()
		p.all.Wait()
	})
	return p
}

// uri connects to the member alone, by way of the proxy.
func (p *proxy) uri() string { return "mongodb://" + p.l.Addr().String() + "/?directConnection=true" }

func (p *proxy) accept() {
	for {
		down, err := p.l.Accept()
		if err != nil {
			return
		}
		up, err := net.Dial("tcp", p.to)
		if err != nil {
			_ = down.Close()
			continue
		}
		p.mu.Lock()
		if p.gone || p.off {
			p.mu.Unlock()
			_ = up.Close()
			_ = down.Close()
			continue
		}
		p.open[up], p.open[down] = true, true
		p.all.Go(func() { p.copy(up, down, false) })
		p.all.Go(func() { p.copy(down, up, true) })
		p.mu.Unlock()
	}
}

func (p *proxy) copy(to, from net.Conn, answers bool) {
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		p.mu.Lock()
		silent := answers && p.mute
		p.mu.Unlock()
		if n > 0 && !silent {
			_, err2 := to.Write(buf[:n])
			if err == nil {
				err = err2
			}
		}
		if err != nil && !errors.Is(err, io.ErrShortWrite) {
			break
		}
	}
	_ = to.Close()
	_ = from.Close()
	p.mu.Lock()
	delete(p.open, to)
	delete(p.open, from)
	p.mu.Unlock()
}

// swallow keeps what the server answers from the broker.
func (p *proxy) swallow(yes bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mute = yes
}

// cut closes all connections; new ones are taken.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.open {
		_ = c.Close()
	}
}

// away takes no connections for as long as it is on, and closes those that are.
func (p *proxy) away(yes bool) {
	p.mu.Lock()
	p.off = yes
	p.mu.Unlock()
	if yes {
		p.cut()
	}
}
