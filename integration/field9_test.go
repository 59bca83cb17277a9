package integration

import (
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
)

// F-21: CSV as devices write it is delivered as it was written, live, replayed and
// retained, and stored so. (The broker does not read it: see docs/RELIABILITY.md.)
func TestF21_CSV(t *testing.T) {
	header := "mpoint;time;value;unit\r\nZA12.P1;2011-11-17 21:25:10,120;93.60;mm\r\n"
	texts := []string{
		header, header,
		"ZA12.P1;2011-11-17 21:25:10,120;93.60;mm",
		"\"ZA12;\"\"P1\"\"\r\nnorth\";2011-11-17 21:25:10,120;93.60;mm\r\n",
		"ZA12.P1;2011-11-17 21:25:10,120;93,60;mm\r\n",
		"ZA12.P1;2011-11-17 21:25:10,120;93.60\r\n",
		"\r\n",
		"ZA12.P1;2011-11-17 21:25:10,120;-0.0;\r\nZA12.P1;2011-11-17 21:25:11,120;;mm\r\n",
	}
	forEachStore(t, func(t *testing.T, s backend) {
		b := start(t, s)
		away := b.open(persistent(v311, "away"))
		away.subscribe(want{"f21/+", 1})
		away.cut()
		live := b.open(transient(v5, "live"))
		live.subscribe(want{"f21/+", 1})
		pub := b.open(transient(v311, "pub"))
		for i, text := range texts {
			pub.publish(message{topic: "f21/" + string(rune('1'+i)), qos: 1, retain: true, payload: []byte(text)})
			live.settle(live.takePayload(text))
		}
		b.crash()
		c := b.open(persistent(v311, "away")).expectPresent(true)
		fresh := b.open(transient(v311, "fresh"))
		fresh.subscribe(want{"f21/+", 1})
		for _, text := range texts {
			c.settle(c.takePayload(text))
			fresh.settle(fresh.takePayload(text))
		}
		c.ping()
		fresh.ping()
		if len(c.inbox)+len(fresh.inbox) > 0 {
			t.Errorf("%v %v after the end", c.inbox, fresh.inbox)
		}
		b.stop()
		var stored []string
		for _, m := range b.place.audit(t).messages {
			stored = append(stored, string(m.payload))
		}
		if !slices.Equal(stored, texts) {
			t.Errorf("the log has %q, want %q", stored, texts)
		}
	})
}

// F-29 (a) and (b), as far as there is no TLS and no PROXY protocol here: health checks
// that connect and reset, and a PROXY header with nobody who wants one, are no event: no
// line above debug, nothing left open, no log-in counted as failed, and others are served.
func TestF29_HealthChecks(t *testing.T) {
	const local = "0d0a0d0a000d0a515549540a20000000"
	proxied := local[:24] + "2111000c" + "7f0000017f00000183e0075b"
	forEachStore(t, func(t *testing.T, s backend) {
		b := start(t, s)
		c := b.open(transient(v5, "beside"))
		c.subscribe(want{"f29", 1})
		b.eventually("one connection", func() bool { return sum(b.metrics(), "connections") == 1 })
		connects := sum(b.metrics(), "connects_total")
		lines := len(logged(b))
		var all sync.WaitGroup
		for range 500 { // at once
			all.Go(func() {
				l, err := net.Dial("tcp", b.addr)
				if err != nil {
					t.Errorf("connect: %v", err)
					return
				}
				_ = l.(*net.TCPConn).SetLinger(0)
				_ = l.Close()
			})
		}
		all.Wait()
		for name, header := range map[string]string{
			"PROXY v2 LOCAL": local, "PROXY v2": proxied, "PROXY v1": "50524f585920544350342031302e302e302e31",
			"TLS": "1603010200010001fc0303",
		} {
			probe := b.dial(v311, name)
			probe.sendHex(header)
			if rest := probe.closed(); len(rest) > 0 {
				t.Errorf("%s: %v before the end", name, rest)
			}
			probe = b.dial(v311, name+", then a CONNECT")
			probe.sendHex(header)
			_ = probe.write(transient(v311, "behind").packet()) // it may be closed already
			if rest := probe.closed(); len(rest) > 0 {
				t.Errorf("%s: %v to a CONNECT behind it", name, rest)
			}
			b.dial(v311, name).cut()
		}
		b.eventually("nothing is left open", func() bool {
			m := b.metrics()
			return sum(m, "connections") == 1 && sum(m, "process_open_fds") < 100
		})
		if n := sum(b.metrics(), "connects_total"); n != connects {
			t.Errorf("%v CONNECTs are counted, there were none", n-connects)
		}
		c.publish(message{topic: "f29", qos: 1, payload: []byte("served")})
		c.settle(c.takePayload("served"))
		if more := logged(b)[lines:]; len(more) > 0 {
			t.Errorf("%d lines of log, first: %s", len(more), more[0])
		}
	})
}

// logged are the lines above debug that the broker has written.
func logged(b *broker) []string {
	var out []string
	for line := range strings.Lines(b.proc.output()) {
		if strings.HasPrefix(line, "{") && !strings.Contains(line, `"level":"debug"`) {
			out = append(out, line)
		}
	}
	return out
}
