package replay

import "github.com/prometheus/client_golang/prometheus"

// Why a session catches up.
const (
	Resume = "resume" // its client has come back
	Slow   = "slow"   // its queue was full
)

// Metrics are what replays feed.
type Metrics struct {
	active   prometheus.Gauge
	replays  *prometheus.CounterVec   // trigger, result
	messages *prometheus.CounterVec   // trigger
	duration *prometheus.HistogramVec // trigger
}

// results are the values of the label result.
func results() []string { return []string{"live", "ended", "failed"} }

// NewMetrics makes the metrics and registers them. It fails when they are
// registered already. A nil reg registers nothing.
func NewMetrics(reg prometheus.Registerer) (*Metrics, error) {
	m := &Metrics{
		active: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "rewindmq_replays_active", Help: "Sessions that read the log now.",
		}),
		replays: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "rewindmq_replays_total", Help: "Replays that have ended: the session is live, its connection ended, or the read failed.",
		}, []string{"trigger", "result"}),
		messages: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "rewindmq_replayed_messages_total", Help: "Messages that sessions took from a replay.",
		}, []string{"trigger"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "rewindmq_replay_duration_seconds", Help: "Time from the start of a replay to its end.",
			Buckets:                     []float64{1, 5, 15, 60, 300, 900, 3600, 14400, 86400, 604800},
			NativeHistogramBucketFactor: 1.1,
		}, []string{"trigger"}),
	}
	for _, t := range []string{Resume, Slow} {
		for _, r := range results() {
			m.replays.WithLabelValues(t, r)
		}
		m.messages.WithLabelValues(t)
		m.duration.WithLabelValues(t)
	}
	if reg == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.active, m.replays, m.messages, m.duration} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}
