package integration

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// still are the metrics that a load without trouble does not move, and why.
func still(s backend) map[string]string {
	quiet := map[string]string{
		"lossless_violations_total":   "must stay 0; store/embedded and replay test what feeds it",
		"store_errors_total":          "counts failures; TestF28 and the stores' own tests move it",
		"offers_refused_total":        "counts live sessions that were full; fanout's tests move it",
		"change_stream_lag_seconds":   "is 0 while the tail keeps up; store/mongo's TestStreamMetrics moves it",
		"change_stream_events_total":  "MongoDB alone",
		"change_stream_resumes_total": "MongoDB alone",
		"replays_active":              "a gauge that is back at 0 when all is quiet",
		"inflight_messages":           "a gauge that is back at 0 when all is quiet",
		"store_append_queue_messages": "a gauge that is back at 0 when all is quiet",
		"store_up":                    "stays 1",
		"build_info":                  "is always 1",
	}
	if s.name == "mongodb" && !noStreams {
		delete(quiet, "change_stream_events_total")
		delete(quiet, "change_stream_resumes_total") // in the end by silence
	}
	return quiet
}

// Every metric of docs/METRICS.md moves under a load that does a little of everything.
func TestMetricsMove(t *testing.T) {
	forEachStore(t, metricsMove)
}

func metricsMove(t *testing.T, s backend) {
	t.Helper()
	b := start(t, s)
	before := b.metrics()

	sub := b.open(persistent(v5, "moved"))
	sub.subscribe(want{"move/#", 2})
	pub := b.open(transient(v5, "mover"))
	for qos := range 3 {
		pub.publish(message{topic: "move/live", qos: byte(qos), payload: []byte("x"), retain: qos == 1})
		sub.settle(sub.take())
	}
	// A repeat, a refusal, a violation.
	twice := message{topic: "move/twice", qos: 2, payload: []byte("x")}
	for range 2 {
		pub.send(twice.packet(v5, 500, false))
		pub.awaitID(kindPubrec, 500)
	}
	pub.ack(kindPubrel, 500)
	pub.awaitID(kindPubcomp, 500)
	pub.send(message{topic: "$mine", qos: 1, payload: []byte("x")}.packet(v5, 501, false))
	pub.await(kindPuback)
	bad := b.open(transient(v5, "bad"))
	bad.sendHex("c101")
	bad.closed()
	// Cut with one in flight; a message at each QoS is missed; it comes back.
	sub.take()
	sub.cut()
	b.eventually("the session is offline", func() bool { return sum(b.metrics(), "sessions", `state="offline"`) == 1 })
	for qos := range 3 {
		pub.publish(message{topic: "move/away", qos: byte(qos), payload: []byte("x")})
	}
	sub = b.open(persistent(v5, "moved")).expectPresent(true)
	for range 3 {
		sub.settle(sub.take())
	}
	sub.ping()
	sub.disconnect() // pub stays: a connection is open

	document, err := os.ReadFile("../docs/METRICS.md")
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile("(?m)^\\| `rewindmq_([a-z_]+)`").FindAllStringSubmatch(string(document), -1)
	if len(names) < 30 {
		t.Fatalf("docs/METRICS.md has %d metrics", len(names))
	}
	quiet := still(s)
	for _, n := range names {
		name := n[1]
		if _, ok := quiet[name]; ok {
			continue
		}
		b.eventually(name+" moves", func() bool { return moved(before, b.metrics(), name) })
	}
}

// moved tells whether any sample of a metric differs.
func moved(before, after map[string]float64, name string) bool {
	for sample, n := range after {
		base, _, _ := strings.Cut(sample, "{")
		base = strings.TrimSuffix(strings.TrimSuffix(base, "_count"), "_sum")
		if base == "rewindmq_"+name && before[sample] != n {
			return true
		}
	}
	return false
}
