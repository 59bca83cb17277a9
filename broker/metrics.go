package broker

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"rewindmq/broker/session"
	"rewindmq/store"
	"rewindmq/wire"
)

// Metrics are the broker's, by the names and conventions of docs/METRICS.md. No
// label is a client id or a topic; every label value that can occur is there from
// the start, at 0, so that the first increment is seen.
type Metrics struct {
	connectsTotal    *prometheus.CounterVec
	connections      *prometheus.GaugeVec
	disconnectsTotal *prometheus.CounterVec
	sessions         *prometheus.GaugeVec
	sessionEvents    *prometheus.CounterVec
	subscribed       *prometheus.GaugeVec
	retainedMessages prometheus.Gauge
	retainedBytes    prometheus.Gauge

	publishReceived [3]prometheus.Counter
	publishBytes    [3]prometheus.Counter
	publishAcked    [3]prometheus.Counter
	publishRejected *prometheus.CounterVec
	publishSeconds  [3]prometheus.Observer
	suppressed      *prometheus.CounterVec

	deliverySent        [3][2]prometheus.Counter // by QoS; live, replay
	deliveryAcked       [3]prometheus.Counter
	deliveryRedelivered [3]prometheus.Counter
	deliveryDropped     *prometheus.CounterVec
	deliverySeconds     [3]prometheus.Observer
	deliveryAckSeconds  [3]prometheus.Observer
	replayAge           [3]prometheus.Observer
	inflight            *prometheus.GaugeVec
	violations          *prometheus.CounterVec
	protocolErrors      *prometheus.CounterVec

	totals sysTotals
}

// vectors of metrics that are only needed while they are made.
type metricMaker struct {
	reg prometheus.Registerer
	err error
}

func (k *metricMaker) add(c prometheus.Collector) {
	if err := k.reg.Register(c); err != nil && k.err == nil {
		k.err = err
	}
}

func (k *metricMaker) counter(name, help string, labels ...string) *prometheus.CounterVec {
	c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "rewindmq_" + name, Help: help}, labels)
	k.add(c)
	return c
}

func (k *metricMaker) gauge(name, help string, labels ...string) *prometheus.GaugeVec {
	g := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "rewindmq_" + name, Help: help}, labels)
	k.add(g)
	return g
}

func (k *metricMaker) histogram(name, help string, buckets []float64) [3]prometheus.Observer {
	h := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "rewindmq_" + name, Help: help, Buckets: buckets, NativeHistogramBucketFactor: 1.1,
	}, []string{"qos"})
	k.add(h)
	var out [3]prometheus.Observer
	for q, label := range qosLabels() {
		out[q] = h.WithLabelValues(label)
	}
	return out
}

func byQoS(c *prometheus.CounterVec, more ...string) [3]prometheus.Counter {
	var out [3]prometheus.Counter
	for q, label := range qosLabels() {
		out[q] = c.WithLabelValues(append([]string{label}, more...)...)
	}
	return out
}

func qosLabels() [3]string { return [3]string{"0", "1", "2"} }

// NewMetrics makes the metrics and registers them. It fails when they are
// registered already.
func NewMetrics(reg prometheus.Registerer) (*Metrics, error) {
	k := &metricMaker{reg: reg}
	ages := []float64{1, 5, 15, 60, 300, 900, 3600, 14400, 86400, 604800}
	m := &Metrics{
		connectsTotal:    k.counter("connects_total", "CONNECT packets, by the reason code of CONNACK.", "listener", "result"),
		connections:      k.gauge("connections", "Open connections with a session.", "listener", "protocol_version"),
		disconnectsTotal: k.counter("disconnects_total", "Ended connections that had a session.", "reason"),
		sessions:         k.gauge("sessions", "Sessions stored.", "state"),
		sessionEvents:    k.counter("session_events_total", "What happened to sessions.", "event"),
		subscribed:       k.gauge("subscriptions", "Subscriptions stored.", "kind"),

		publishReceived: byQoS(k.counter("publishes_received_total", "PUBLISH packets accepted off the wire.", "qos")),
		publishBytes:    byQoS(k.counter("publish_received_bytes_total", "Payload bytes of PUBLISH packets accepted off the wire.", "qos")),
		publishAcked:    byQoS(k.counter("publishes_acked_total", "PUBLISH packets acknowledged after the durable append; QoS 0: appended.", "qos")),
		publishRejected: k.counter("publishes_rejected_total", "PUBLISH packets that were not taken, or not answered before the connection ended.", "qos", "reason"),
		publishSeconds:  k.histogram("publish_ack_duration_seconds", "Time from reading PUBLISH until its acknowledgement is written.", store.LatencyBuckets()),
		suppressed:      k.counter("duplicates_suppressed_total", "Repeated messages that were taken once.", "stage"),

		deliveryAcked:       byQoS(k.counter("deliveries_acked_total", "Deliveries that the client has acknowledged.", "qos")),
		deliveryRedelivered: byQoS(k.counter("deliveries_redelivered_total", "Deliveries sent again, with DUP.", "qos")),
		deliveryDropped:     k.counter("deliveries_dropped_total", "Matching messages that were not delivered.", "qos", "reason"),
		deliverySeconds:     k.histogram("delivery_latency_seconds", "Time from taking a message in until it is written to a live subscriber.", store.LatencyBuckets()),
		deliveryAckSeconds:  k.histogram("delivery_ack_duration_seconds", "Time from the record of a delivery until its PUBACK or PUBCOMP.", store.LatencyBuckets()),
		replayAge:           k.histogram("replay_delivery_age_seconds", "Age of a replayed message when it is written.", ages),
		inflight:            k.gauge("inflight_messages", "Messages under way: in from clients, out to clients.", "direction"),
		violations:          k.counter("lossless_violations_total", "Messages that were promised and not delivered. It must stay 0.", "reason"),
		protocolErrors:      k.counter("protocol_errors_total", "Connections ended for what the peer sent.", "reason"),
	}
	retained := k.gauge("retained_messages", "Retained messages.")
	m.retainedMessages = retained.WithLabelValues()
	bytes := k.gauge("retained_bytes", "Memory of the retained messages.")
	m.retainedBytes = bytes.WithLabelValues()
	sent := k.counter("deliveries_sent_total", "PUBLISH packets written to clients.", "qos", "path")
	for q, label := range qosLabels() {
		m.deliverySent[q] = [2]prometheus.Counter{sent.WithLabelValues(label, "live"), sent.WithLabelValues(label, "replay")}
	}
	m.zero()
	return m, k.err
}

// zero makes every label value that can occur.
func (m *Metrics) zero() {
	for _, q := range qosLabels() {
		for _, r := range rejections() {
			m.publishRejected.WithLabelValues(q, r)
		}
		for _, r := range []string{"qos0_offline", "qos0_slow", "expired", "too_large", "trimmed"} {
			m.deliveryDropped.WithLabelValues(q, r)
		}
	}
	for _, e := range []string{"created", "resumed", "taken_over", "expired", "terminated"} {
		m.sessionEvents.WithLabelValues(e)
	}
	for _, s := range []string{"connected", "offline"} {
		m.sessions.WithLabelValues(s)
	}
	for _, d := range []string{"in", "out"} {
		m.inflight.WithLabelValues(d)
	}
	for _, c := range faults() {
		m.protocolErrors.WithLabelValues(c.String())
		m.disconnectsTotal.WithLabelValues(c.String())
	}
	for _, c := range []wire.ReasonCode{wire.ReceiveMaximumExceeded, wire.UnsupportedProtocolVersion} {
		m.protocolErrors.WithLabelValues(c.String()) // the one is receive_max among disconnects, the other has no session yet
	}
	m.subscribed.WithLabelValues("plain")
	m.subscribed.WithLabelValues("shared")
	m.suppressed.WithLabelValues("publish")
	m.suppressed.WithLabelValues("deliver")
	m.violations.WithLabelValues("retention_trimmed_backlog")
	for _, r := range []session.Reason{
		session.ReasonTakenOver, session.ReasonStore, session.ReasonRefused, session.ReasonInDoubt, session.ReasonReceiveMax,
		session.ReasonNormal, session.ReasonWithWill, session.ReasonShutdown, session.ReasonExpired, session.ReasonProtocol, session.ReasonAdmin, "closed", "network",
	} {
		m.disconnectsTotal.WithLabelValues(string(r))
	}
}

// Listener makes the label values of a listener, before its first connection.
func (m *Metrics) Listener(name string) {
	m.connectsTotal.WithLabelValues(name, wire.Success.String())
	for _, code := range refusals() {
		m.connectsTotal.WithLabelValues(name, code.String())
	}
	for _, v := range []wire.Version{wire.V31, wire.V311, wire.V5} {
		m.connections.WithLabelValues(name, v.String())
	}
}

// refusals are the codes that CONNECT can be refused with: what package wire finds in
// the packet, and what conn.connect decides.
func refusals() []wire.ReasonCode {
	return []wire.ReasonCode{
		wire.MalformedPacket, wire.ProtocolError, wire.UnsupportedProtocolVersion, wire.ClientIdentifierNotValid, wire.PayloadFormatInvalid,
		wire.BadAuthenticationMethod, wire.TopicNameInvalid, wire.QuotaExceeded, wire.PacketTooLarge,
		wire.UseAnotherServer, wire.ServerUnavailable, wire.ServerBusy,
	}
}

// faults are the codes that the connection of a session ends with for what its peer
// sent.
func faults() []wire.ReasonCode {
	return []wire.ReasonCode{
		wire.MalformedPacket, wire.ProtocolError, wire.PacketTooLarge, wire.TopicAliasInvalid, wire.TopicNameInvalid, wire.QuotaExceeded,
	}
}

func rejections() []string {
	return []string{"bad_topic", "bad_payload", "quota", "store_unavailable", "too_large", "connection_lost"}
}

func (m *Metrics) connects(listener string, code wire.ReasonCode) {
	m.connectsTotal.WithLabelValues(listener, code.String()).Inc()
}

func (m *Metrics) connected(listener string, v wire.Version, by float64) {
	m.connections.WithLabelValues(listener, v.String()).Add(by)
}

// disconnected counts a session's connection by the reason of its end. A keep alive
// that ran out is one reason, whether the connection or the session noticed.
func (m *Metrics) disconnected(why string) {
	if why == wire.KeepAliveTimeout.String() {
		why = string(session.ReasonExpired)
	}
	m.disconnectsTotal.WithLabelValues(why).Inc()
}

func (m *Metrics) sessionEvent(e string) { m.sessionEvents.WithLabelValues(e).Inc() }
func (m *Metrics) protocolError(c wire.ReasonCode) {
	m.protocolErrors.WithLabelValues(c.String()).Inc()
}

func (m *Metrics) retained(messages int, size int64) {
	m.retainedMessages.Set(float64(messages))
	m.retainedBytes.Set(float64(size))
}

func (m *Metrics) counts(c store.Counts, connected int) {
	m.sessions.WithLabelValues("connected").Set(float64(connected))
	m.sessions.WithLabelValues("offline").Set(float64(max(0, c.Sessions-connected)))
	m.subscribed.WithLabelValues("plain").Set(float64(c.Subscriptions - c.Shared))
	m.subscribed.WithLabelValues("shared").Set(float64(c.Shared))
}

func (m *Metrics) received(qos uint8, size int) {
	m.totals.received.Add(1)
	m.totals.bytesReceived.Add(int64(size))
	m.publishReceived[qos].Inc()
	m.publishBytes[qos].Add(float64(size))
}

// rejected counts a message that was not taken.
func (m *Metrics) rejected(qos uint8, code wire.ReasonCode) {
	reason := "store_unavailable"
	switch code {
	case wire.TopicNameInvalid:
		reason = "bad_topic"
	case wire.PayloadFormatInvalid:
		reason = "bad_payload"
	case wire.QuotaExceeded:
		reason = "quota"
	case wire.ImplementationSpecificError, wire.PacketTooLarge:
		reason = "too_large"
	}
	m.publishRejected.WithLabelValues(qosLabels()[qos], reason).Inc()
}

// unanswered counts messages whose connection ended before the answer: the client
// sends them again, or has given them up.
func (m *Metrics) unanswered(qos uint8, n int64) {
	if n > 0 {
		m.publishRejected.WithLabelValues(qosLabels()[qos], "connection_lost").Add(float64(n))
	}
}

// answered counts what became of a message from a client.
func (m *Metrics) answered(a *session.Action, now time.Time) {
	switch {
	case a.Code >= 0x80:
		m.rejected(a.QoS, wire.ReasonCode(a.Code))
	case a.Again:
		m.suppressed.WithLabelValues("publish").Inc()
	default:
		m.publishAcked[a.QoS].Inc()
	}
	m.publishSeconds[a.QoS].Observe(now.Sub(a.At).Seconds())
}

func (m *Metrics) sent(a *session.Action, now time.Time) {
	m.totals.sent.Add(1)
	m.totals.bytesSent.Add(int64(len(a.Message.Payload)))
	path := 1
	age := now.Sub(a.Message.Created).Seconds()
	if a.Live {
		path = 0
		m.deliverySeconds[a.QoS].Observe(age)
	} else {
		m.replayAge[a.QoS].Observe(age)
	}
	m.deliverySent[a.QoS][path].Inc()
	if a.Dup {
		m.deliveryRedelivered[a.QoS].Inc()
	}
}

func (m *Metrics) settled(qos uint8, at, now time.Time) {
	m.deliveryAcked[qos].Inc()
	m.deliveryAckSeconds[qos].Observe(now.Sub(at).Seconds())
}

func (m *Metrics) dropped(qos uint8, why session.Drop) {
	m.totals.dropped.Add(1)
	m.deliveryDropped.WithLabelValues(qosLabels()[qos], string(why)).Inc()
	if why == session.DropTrimmed {
		m.trimmed(1)
	}
}

func (m *Metrics) trimmed(n uint64) {
	if n > 0 {
		m.violations.WithLabelValues("retention_trimmed_backlog").Add(float64(n))
	}
}

func (m *Metrics) underWay(in, out int) {
	m.inflight.WithLabelValues("in").Set(float64(in))
	m.inflight.WithLabelValues("out").Set(float64(out))
}
