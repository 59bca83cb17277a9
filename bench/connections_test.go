package bench

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	idleConnections = 5000
	churnRounds     = 3
)

// BenchmarkIdleConnections measures the memory of the broker process for each of
// 5,000 connections on which nothing happens, after rounds in which all of them
// were closed and opened again. It reports KiB of RSS for each connection.
func BenchmarkIdleConnections(b *testing.B) {
	if runtime.GOOS != "linux" {
		b.Skip("reads /proc: Linux only")
	}
	raiseFileLimit(b)
	for b.Loop() {
		addr, pid := startBroker(b, "--data", filepath.Join(b.TempDir(), "data"))
		before := rss(b, pid)
		var open []net.Conn
		for range churnRounds + 1 {
			for _, c := range open {
				_ = c.Close()
			}
			open = open[:0]
			for i := range idleConnections {
				open = append(open, idle(b, addr, i))
			}
		}
		// Memory of the last round's connections is still being given back: the
		// least of a few looks is what stays.
		least := rss(b, pid)
		for range 20 {
			time.Sleep(250 * time.Millisecond) // not a test: the broker is left alone
			least = min(least, rss(b, pid))
		}
		b.ReportMetric(float64(least-before)/1024/idleConnections, "KiB/connection")
		b.ReportMetric(float64(least)/(1<<20), "MiB-RSS")
		for _, c := range open {
			_ = c.Close()
		}
	}
}

func raiseFileLimit(b *testing.B) {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		b.Fatal(err)
	}
	if l.Cur = l.Max; l.Cur < idleConnections+200 {
		b.Skipf("open files: at most %d here", l.Cur)
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		b.Fatal(err)
	}
}

// idle opens an MQTT 3.1.1 connection and says nothing more.
func idle(b *testing.B, addr string, i int) net.Conn {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		b.Fatal(err)
	}
	id := fmt.Sprintf("idle%05d", i)
	p := append([]byte{0, 4, 'M', 'Q', 'T', 'T', 4, 2, 0, 0}, binary.BigEndian.AppendUint16(nil, uint16(len(id)))...)
	p = append(p, id...)
	if _, err := c.Write(append([]byte{0x10, byte(len(p))}, p...)); err != nil {
		b.Fatal(err)
	}
	var ack [4]byte
	if _, err := io.ReadFull(c, ack[:]); err != nil || ack[3] != 0 {
		b.Fatalf("CONNACK % x, %v", ack, err)
	}
	return c
}

// rss is the resident memory of a process, in bytes.
func rss(b *testing.B, pid int) int64 {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		b.Fatal(err)
	}
	pages, err := strconv.ParseInt(strings.Fields(string(raw))[1], 10, 64)
	if err != nil {
		b.Fatal(err)
	}
	return pages * int64(os.Getpagesize())
}
