package node

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"
	"go.uber.org/zap"

	"rewindmq/cmd/internal/config"
)

var update = flag.Bool("update", false, "write docs/METRICS.md anew")

const metricsHead = `# Metrics

` + "`GET /metrics`" + ` on the HTTP address. This page is generated: ` + "`go test ./cmd/internal/node -run TestMetricsDocument -update`" + `.

No label is a client id or a topic. Every label value that can be known beforehand is there from the start, at 0. Latencies
are in seconds, sizes in bytes. Every histogram is native, too.

Per node, when nothing is under way:

- ` + "`publishes_received = publishes_acked + publishes_rejected + duplicates_suppressed{stage=\"publish\"}`" + `, for each QoS;
- ` + "`deliveries_sent - deliveries_redelivered = deliveries_acked + inflight_messages{direction=\"out\"}`" + ` for QoS 1 and 2, on
  connections that are still open;
- ` + "`lossless_violations_total`" + ` is 0. If it is not, retention has removed messages before a session had them.

| metric | type | labels | meaning |
|---|---|---|---|
`

// TestMetricsDocument: every metric of a node passes promlint and stands in
// docs/METRICS.md.
func TestMetricsDocument(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	c := config.Default()
	c.Node.Name, c.Store.Data, c.Listen = "n", filepath.Join(t.TempDir(), "data"), []string{"127.0.0.1:0"}
	n, err := Open(&c, reg, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	}()
	problems, err := testutil.GatherAndLint(reg)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	want := metricsHead + strings.Join(rows(families), "\n") + "\n"
	path := filepath.Join("..", "..", "..", "docs", "METRICS.md")
	if *update {
		if err := os.WriteFile(path, []byte(want), 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, []byte(want)) {
		t.Errorf("docs/METRICS.md is not fresh; run this test with -update")
	}
}

// rows gives the table. A vector without any label value is not gathered: the
// metrics make theirs at the start, or are listed by their owners' tests.
func rows(families []*dto.MetricFamily) []string {
	var out []string
	for _, f := range families {
		labels := map[string]bool{}
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				labels[l.GetName()] = true
			}
		}
		names := make([]string, 0, len(labels))
		for l := range labels {
			names = append(names, l)
		}
		sort.Strings(names)
		out = append(out, fmt.Sprintf("| `%s` | %s | %s | %s |", f.GetName(), strings.ToLower(f.GetType().String()),
			strings.Join(names, ", "), f.GetHelp()))
	}
	return out
}
