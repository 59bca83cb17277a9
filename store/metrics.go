package store

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics are those that every store feeds, under the same names; the label
// backend tells which ("embedded", "mongodb").
type Metrics struct {
	BatchMessages   prometheus.Observer
	AppendSeconds   prometheus.Observer
	QueueMessages   prometheus.Gauge
	Up              prometheus.Gauge
	HeadSequence    prometheus.Gauge
	OldestTimestamp prometheus.Gauge
	// StreamLag is how far behind the log the tail stands, in seconds: 0 when it
	// has seen all there is, also when nothing comes.
	StreamLag prometheus.Gauge

	streamEvents, streamResumes *prometheus.CounterVec

	operation *prometheus.HistogramVec
	errors    *prometheus.CounterVec
	backend   string
	failed    []string // see vocabulary
}

// vocabulary holds the label values that a backend can give. Whoever adds an operation
// to a store adds its name here: a test compares the two.
type vocabulary struct {
	timed  []string // operations that are measured
	failed []string // operations whose errors are counted
	kinds  []string // of errors
}

// command is what the names of single commands begin with.
const command = "command_"

// otherCommand stands for all commands without a name of their own: those that
// prepare a database, and the driver's.
const otherCommand = command + "other"

func vocabularyOf(backend string) (vocabulary, bool) {
	switch backend {
	case "embedded":
		ops := []string{
			"claim", "record", "write", "store_retained", "open_group", "save_group", "due_wills", "end_expired", "counts",
			"list_sessions", "look_session", "list_messages", "list_deliveries",
		}
		return vocabulary{
			timed: ops, failed: append([]string{"append", "commit"}, ops...),
			kinds: []string{"no_space", "corrupt", "timeout", "other"},
		}, true
	case "mongodb":
		var commands []string
		for _, name := range []string{"find", "aggregate", "getMore", "insert", "update", "delete", "findAndModify"} {
			commands = append(commands, command+name)
		}
		return vocabulary{
			timed: append([]string{"claim", "record", "session_write", "open_group", "save_group"}, commands...),
			failed: append([]string{
				"append", "tail", "head", "read", "lookup", "claim", "write", "session_write", "load_retained", "store_retained",
				"open_group", "save_group", "due_wills", "end_expired", "counts",
				"list_sessions", "look_session", "list_messages", "list_deliveries", otherCommand,
			}, commands...),
			kinds: []string{"timeout", "not_primary", "network", "duplicate_key", "write_concern", "corrupt", "other"},
		}, true
	}
	return vocabulary{}, false
}

// LatencyBuckets are the bounds of every latency histogram, in seconds.
func LatencyBuckets() []float64 {
	return []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}
}

// NewMetrics registers the metrics for one backend, "embedded" or "mongodb". It fails
// for another one, and when they are registered already.
func NewMetrics(reg prometheus.Registerer, backend string) (*Metrics, error) {
	words, ok := vocabularyOf(backend)
	if !ok {
		return nil, fmt.Errorf("store: no metrics for a backend %q", backend)
	}
	labels := prometheus.Labels{"backend": backend}
	batch := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "rewindmq_store_append_batch_messages", Help: "Messages in an append batch.",
		Buckets: prometheus.ExponentialBuckets(1, 2, 13), NativeHistogramBucketFactor: 1.1,
	}, []string{"backend"})
	app := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "rewindmq_store_append_duration_seconds", Help: "Time from the start of an append batch until it is durable.",
		Buckets: LatencyBuckets(), NativeHistogramBucketFactor: 1.1,
	}, []string{"backend"})
	op := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "rewindmq_store_operation_duration_seconds", Help: "Time of a store operation as its caller sees it; command_*: of a single command to MongoDB, those of appends too.",
		Buckets: LatencyBuckets(), NativeHistogramBucketFactor: 1.1,
	}, []string{"backend", "op"})
	errs := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "rewindmq_store_errors_total", Help: "Errors of store operations; command_*: of a single command to MongoDB.",
	}, []string{"backend", "op", "kind"})
	m := &Metrics{
		BatchMessages: batch.WithLabelValues(backend), AppendSeconds: app.WithLabelValues(backend),
		QueueMessages: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "rewindmq_store_append_queue_messages", Help: "Messages waiting for an append batch.",
		}),
		Up: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "rewindmq_store_up", Help: "1 if the last write to the store succeeded.", ConstLabels: labels,
		}),
		HeadSequence: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "rewindmq_store_head_sequence", Help: "Position of the last durable message, summed over lanes.",
		}),
		OldestTimestamp: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "rewindmq_store_oldest_message_timestamp_seconds", Help: "Creation time of the oldest message kept, Unix time; 0 if none.",
		}),
		StreamLag: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "rewindmq_change_stream_lag_seconds", Help: "How far the tail of the log is behind; 0 when idle. 0 on stores without a stream.",
		}),
		streamEvents: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "rewindmq_change_stream_events_total", Help: "Events read from the change stream of messages.",
		}, []string{"op"}),
		streamResumes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "rewindmq_change_stream_resumes_total", Help: "Times the tail left the change stream for the lanes, by reason.",
		}, []string{"reason"}),
		operation: op, errors: errs, backend: backend, failed: words.failed,
	}
	m.zero(words)
	for _, c := range []prometheus.Collector{batch, app, op, errs, m.QueueMessages, m.Up, m.HeadSequence, m.OldestTimestamp, m.StreamLag, m.streamEvents, m.streamResumes} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// zero makes every label value that can occur, so that the first increment is seen.
func (m *Metrics) zero(words vocabulary) {
	for _, name := range streamOps {
		m.streamEvents.WithLabelValues(name)
	}
	for _, name := range StreamResumeReasons() {
		m.streamResumes.WithLabelValues(name)
	}
	for _, name := range words.timed {
		m.operation.WithLabelValues(m.backend, name)
	}
	for _, name := range words.failed {
		for _, kind := range words.kinds {
			m.errors.WithLabelValues(m.backend, name, kind)
		}
	}
}

// Operation notes how long an operation took.
func (m *Metrics) Operation(op string, took time.Duration) {
	m.operation.WithLabelValues(m.backend, op).Observe(took.Seconds())
}

// Error counts a failed operation. kind is one of timeout, not_primary, network,
// duplicate_key, write_concern, no_space, corrupt, other. A command that is not known by
// name (command_*) counts as command_other.
func (m *Metrics) Error(op, kind string) {
	if strings.HasPrefix(op, command) && !slices.Contains(m.failed, op) {
		op = otherCommand
	}
	m.errors.WithLabelValues(m.backend, op, kind).Inc()
}

var streamOps = []string{"insert", "update", "other"}

// StreamResumeReasons are the values of the label reason: error (the source was
// lost), history_lost (its place in the oplog has gone), gap (it is behind the
// lanes), lane (a lane was opened or retired), adoption, silence, poke (a client
// asked), load (it did not keep up).
func StreamResumeReasons() []string {
	return []string{"error", "history_lost", "gap", "lane", "adoption", "silence", "poke", "load"}
}

// StreamEvent counts an event of the change stream.
func (m *Metrics) StreamEvent(op string) {
	if !slices.Contains(streamOps, op) {
		op = "other"
	}
	m.streamEvents.WithLabelValues(op).Inc()
}

// StreamResume counts that the tail left the stream for one of
// StreamResumeReasons.
func (m *Metrics) StreamResume(reason string) { m.streamResumes.WithLabelValues(reason).Inc() }
