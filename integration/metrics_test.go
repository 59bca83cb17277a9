package integration

import (
	"strconv"
	"strings"
	"testing"
)

// metrics reads /metrics: each sample by its name with its labels.
func (b *broker) metrics() map[string]float64 {
	b.t.Helper()
	status, text := b.get("/metrics")
	if status != 200 {
		b.t.Fatalf("/metrics: %d %s", status, text)
	}
	out := map[string]float64{}
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		name, value, ok := strings.Cut(strings.TrimSpace(line), "} ")
		if ok {
			name += "}"
		} else {
			name, value, _ = strings.Cut(strings.TrimSpace(line), " ")
		}
		n, err := strconv.ParseFloat(value, 64)
		if err != nil {
			b.t.Fatalf("/metrics: %q: %v", line, err)
		}
		out[name] = n
	}
	return out
}

// sum adds up the samples of rewindmq_<name> that have all those labels, each
// given as key="value".
func sum(metrics map[string]float64, name string, labels ...string) float64 {
	total := 0.0
next:
	for sample, n := range metrics {
		if base, _, _ := strings.Cut(sample, "{"); base != "rewindmq_"+name {
			continue
		}
		for _, l := range labels {
			if !strings.Contains(sample, l) {
				continue next
			}
		}
		total += n
	}
	return total
}

// After a mixed load, received = acked + rejected + suppressed + in flight, for
// each QoS, and no gauge is negative.
func TestAccounting(t *testing.T) {
	forEachStore(t, func(t *testing.T, s backend) {
		b := start(t, s)
		c := newCrowd(t, b, seeded(t))
		pubs, subs := standardCrowd()
		c.subscribe(subs...)
		c.publish(pubs...)
		plain := b.open(transient(v5, "plain"))
		for i := range 100 {
			plain.publish(message{topic: "k9/all0", qos: byte(i % 2), payload: []byte("x")})
		}
		// A repeated QoS 2 PUBLISH is received and suppressed.
		twice := message{topic: "k9/twice", qos: 2, payload: []byte("x")}
		plain.send(twice.packet(v5, 5000, false))
		plain.awaitID(kindPubrec, 5000)
		plain.send(twice.packet(v5, 5000, true))
		plain.awaitID(kindPubrec, 5000)
		plain.ack(kindPubrel, 5000)
		plain.awaitID(kindPubcomp, 5000)
		c.acknowledged(rounds(5000))
		c.finish()
		c.farewell(subs, "k9-farewell")
		plain.disconnect()

		var m map[string]float64
		b.eventually("no connections, and each connect has its disconnect", func() bool {
			m = b.metrics()
			connects := sum(m, "connects_total", `result="success"`)
			return sum(m, "connections") == 0 && connects > 0 && connects == sum(m, "disconnects_total")
		})
		for _, qos := range []string{`qos="0"`, `qos="1"`, `qos="2"`} {
			received := sum(m, "publishes_received_total", qos)
			settled := sum(m, "publishes_acked_total", qos) + sum(m, "publishes_rejected_total", qos)
			if qos == `qos="2"` {
				settled += sum(m, "duplicates_suppressed_total", `stage="publish"`)
			}
			// What a cut connection left unanswered is neither.
			t.Logf("%s: received %v, settled %v", qos, received, settled)
			if received == 0 || received != settled {
				t.Errorf("%s: received %v = acked + rejected + suppressed %v", qos, received, settled)
			}
		}
		for _, gauge := range []string{"inflight_messages", "store_append_queue_messages", "replays_active"} {
			// They are set by a clock, so they may lag.
			b.eventually(gauge+" is 0 when all is quiet", func() bool { return sum(b.metrics(), gauge) == 0 })
		}
		if n := sum(m, "lossless_violations_total"); n != 0 {
			t.Errorf("lossless_violations_total is %v", n)
		}
		for name, n := range m {
			if n < 0 && strings.HasPrefix(name, "rewindmq_") {
				t.Errorf("%s is %v", name, n)
			}
		}
		c.auditNow()
	})
}

// /livez, /readyz and /metrics answer; the build is named.
func TestHTTP(t *testing.T) {
	forEachStore(t, func(t *testing.T, s backend) {
		b := start(t, s)
		for _, path := range []string{"/livez", "/readyz", "/metrics"} {
			if status := b.status(path); status != 200 {
				t.Errorf("%s: %d", path, status)
			}
		}
		if status := b.status("/nothing"); status != 404 {
			t.Errorf("/nothing: %d", status)
		}
		c := b.open(transient(v5, "one"))
		if n := sum(b.metrics(), "connections"); n != 1 {
			t.Errorf("connections is %v", n)
		}
		c.disconnect()
		b.eventually("connections back to 0", func() bool { return sum(b.metrics(), "connections") == 0 })
	})
}
