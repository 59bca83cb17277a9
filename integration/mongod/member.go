package mongod

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
)

// Member is one mongod process of a Set. Safe for concurrent use.
type Member struct {
	set  *Set
	port int
	dir  string

	mu   sync.Mutex
	cmd  *exec.Cmd     // nil: it does not run
	gone chan struct{} // closed when cmd has been waited for
}

// Addr gives host:port.
func (m *Member) Addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(m.port)) }

// Start starts the process over its data; one that runs is left alone.
func (m *Member) Start() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cmd != nil {
		return nil
	}
	if err := os.MkdirAll(m.dir, 0o755); err != nil {
		return fmt.Errorf("mongod: %w", err)
	}
	o := m.set.opt
	args := []string{
		"--replSet", setName, "--bind_ip", "127.0.0.1", "--port", strconv.Itoa(m.port), "--dbpath", m.dir,
		"--logpath", filepath.Join(m.dir, "mongod.log"), "--logappend", "--nounixsocket",
		"--wiredTigerCacheSizeGB", strconv.FormatFloat(o.CacheGB, 'f', -1, 64),
		"--oplogSize", strconv.Itoa(o.OplogMB),
		"--setParameter", "diagnosticDataCollectionEnabled=false",
	}
	if o.Checkpoint > 0 {
		args = append(args, "--syncdelay", strconv.Itoa(int(o.Checkpoint.Seconds())))
	}
	for _, p := range o.Parameters {
		args = append(args, "--setParameter", p)
	}
	cmd := exec.Command(m.set.binary, args...)
	cmd.SysProcAttr = dieWithParent()
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("mongod: start %s: %w", m.set.binary, err)
	}
	gone := make(chan struct{})
	m.cmd, m.gone = cmd, gone
	go func() { // ends with the process; Kill and Stop wait for it
		_ = cmd.Wait()
		m.mu.Lock()
		if m.cmd == cmd {
			m.cmd = nil
		}
		m.mu.Unlock()
		close(gone)
	}()
	return nil
}

// signal sends to the process, if it runs, and gives the channel of its end.
func (m *Member) signal(sig syscall.Signal) <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cmd == nil {
		return nil
	}
	_ = m.cmd.Process.Signal(sig)
	return m.gone
}

// Kill sends SIGKILL and waits for the end.
func (m *Member) Kill() { wait(m.signal(syscall.SIGKILL)) }

// Stop ends the process in order.
func (m *Member) Stop() {
	m.signal(syscall.SIGCONT)
	wait(m.signal(syscall.SIGTERM))
}

// Pause stops the process (SIGSTOP): its sockets stay open and say nothing.
func (m *Member) Pause() { m.signal(syscall.SIGSTOP) }

// Resume lets a paused process go on.
func (m *Member) Resume() { m.signal(syscall.SIGCONT) }

func wait(gone <-chan struct{}) {
	if gone != nil {
		<-gone
	}
}
