package fanout

import "github.com/prometheus/client_golang/prometheus"

// Metrics are what a hub feeds.
type Metrics struct {
	TailSequence prometheus.Gauge   // sum of the entries of H
	RecentBytes  prometheus.Gauge   // held by the memory of the last messages
	Refused      prometheus.Counter // offers that a full subscriber refused
}

// NewMetrics makes the metrics and registers them. It fails when they are
// registered already. A nil reg registers nothing.
func NewMetrics(reg prometheus.Registerer) (*Metrics, error) {
	m := &Metrics{
		TailSequence: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "rewindmq_tail_sequence", Help: "Position of the last message this node has fanned out, summed over lanes.",
		}),
		RecentBytes: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "rewindmq_recent_bytes", Help: "Memory held by the last messages of the log.",
		}),
		Refused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "rewindmq_offers_refused_total", Help: "Times that a live session was full and became a reader of the log.",
		}),
	}
	if reg == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.TailSequence, m.RecentBytes, m.Refused} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}
