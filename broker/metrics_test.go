package broker

import (
	"fmt"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"rewindmq/store/storetest"
	"rewindmq/wire"
)

// labelled are all series of a registry.
func labelled(t *testing.T, reg *prometheus.Registry) map[string]bool {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]bool{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			all[fmt.Sprint(f.GetName(), m.GetLabel())] = true
		}
	}
	return all
}

// TestMetricsRefusals: each CONNACK code is there at 0 before it is sent for the first
// time; so are the reasons of what follows CONNECT.
func TestMetricsRefusals(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	m, err := NewMetrics(reg)
	if err != nil {
		t.Fatal(err)
	}
	m.Listener("tcp")
	before := labelled(t, reg)
	h := openHouse(t, storetest.NewMemory(storetest.Options{Lanes: 2}), Options{Metrics: m, Connections: 1, Sessions: 1, TopicAliases: 1})

	full := &wire.Connect{ClientID: "c"}
	will := func(topic string) *wire.Connect { return &wire.Connect{ClientID: "c", Will: &wire.Will{Topic: topic}} }
	for _, c := range []struct {
		code    wire.ReasonCode
		connect *wire.Connect
		spoil   func(b []byte)
	}{
		{wire.MalformedPacket, full, func(b []byte) { b[9] |= 1 }},                // the reserved flag
		{wire.UnsupportedProtocolVersion, full, func(b []byte) { b[8] = 9 }},      // the level
		{wire.ProtocolError, full, func(b []byte) { b[13] = 0x23 }},               // a topic alias in CONNECT
		{wire.ClientIdentifierNotValid, full, func(b []byte) { b[len(b)-1] = 0 }}, // U+0000
		{wire.BadAuthenticationMethod, &wire.Connect{AuthMethod: "SCRAM"}, nil},
		{wire.TopicNameInvalid, will("$SYS/will"), nil},
		{wire.PacketTooLarge, &wire.Connect{MaximumPacketSize: 4, ClientID: "c"}, nil},
	} {
		c.connect.Version, c.connect.RequestProblemInfo, c.connect.CleanStart = wire.V5, true, true
		c.connect.ReceiveMaximum = 9 // the first property
		b := wire.AppendConnect(nil, c.connect)
		if c.spoil != nil {
			c.spoil(b)
		}
		p := h.dial(wire.V5)
		p.write(b)
		if c.code != wire.PacketTooLarge { // which says that nothing can be sent
			if got := expect[*wire.Connack](p).Code; got != c.code {
				t.Errorf("CONNACK %v, want %v", got, c.code)
			}
		}
		p.closed()
		if n := testutil.ToFloat64(m.connectsTotal.WithLabelValues("tcp", c.code.String())); n != 1 {
			t.Errorf("%v is counted %v times", c.code, n)
		}
		h.until("no connection is left", func() bool { return h.b.connections.Load() == 0 })
	}
	p := h.clean(wire.V5, "only")
	more := h.dial(wire.V5)
	more.write(wire.AppendConnect(nil, &wire.Connect{Version: wire.V5, RequestProblemInfo: true, ClientID: "more"}))
	if got := expect[*wire.Connack](more).Code; got != wire.QuotaExceeded {
		t.Errorf("CONNACK %v to a connection too many", got)
	}
	p.write([]byte{0x30, 7, 0, 1, 't', 3, 0x23, 0, 99}) // topic alias 99
	if got := expect[*wire.Disconnect](p).Code; got != wire.TopicAliasInvalid {
		t.Errorf("DISCONNECT %v", got)
	}
	h.until("it is counted", func() bool {
		return testutil.ToFloat64(m.disconnectsTotal.WithLabelValues(wire.TopicAliasInvalid.String())) == 1
	})
	for s := range labelled(t, reg) {
		if !before[s] {
			t.Errorf("%s was not there at the start", s)
		}
	}
}
