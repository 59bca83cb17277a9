package node

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"
	"go.uber.org/zap"

	"rewindmq/cmd/internal/admin"
	"rewindmq/cmd/internal/config"
	"rewindmq/store"
	"rewindmq/store/embedded"
	"rewindmq/store/storetest"
)

var update = flag.Bool("update", false, "write docs/METRICS.md anew")

const metricsHead = `# Metrics

` + "`GET /metrics`" + ` on the HTTP address. This page is generated: ` + "`go test ./cmd/internal/node -run TestMetricsDocument -update`" + `.

No label is a client id or a topic. Every label value that can be known beforehand is there from the start, at 0; those of
HTTP come with the first request of their kind. Latencies are in seconds, sizes in bytes. Every histogram is native, too.
Beside what is listed here there are the usual ` + "`go_*` and `process_*`" + `, of the Go runtime and of the process; ` + "`metrics.go` and\n`metrics.process`" + ` turn them off.

Per node, when nothing is under way:

- ` + "`publishes_received = publishes_acked + publishes_rejected + duplicates_suppressed{stage=\"publish\"}`" + `, for each QoS;
- ` + "`deliveries_sent - deliveries_redelivered = deliveries_acked + inflight_messages{direction=\"out\"}`" + ` for QoS 1 and 2, on
  connections that are still open;
- ` + "`lossless_violations_total`" + ` is 0. If it is not, retention has removed messages before a session had them.

| metric | type | labels | meaning |
|---|---|---|---|
`

// serving opens a node with the registry and the HTTP server of the program, has one
// request answered, and gives the registry.
func serving(t *testing.T) *prometheus.Registry {
	t.Helper()
	c := config.Default()
	c.Node.Name, c.Store.Data, c.Listen = "n", filepath.Join(t.TempDir(), "data"), []string{"127.0.0.1:0"}
	reg := admin.NewRegistry(admin.Build{}, c.Metrics.Go, c.Metrics.Process)
	n, err := Open(&c, reg, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	web, err := admin.Listen("127.0.0.1:0", admin.Options{Registry: reg, API: n.API(), Ready: n.Ready})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- web.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+web.Addr()+"/livez", nil)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{DisableKeepAlives: true}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	return reg
}

// ours tells whether a metric is not one of the Go client's own.
func ours(name string) bool {
	return !strings.HasPrefix(name, "go_") && !strings.HasPrefix(name, "process_")
}

// TestMetricsDocument: every metric that the program serves passes promlint and
// stands in docs/METRICS.md.
func TestMetricsDocument(t *testing.T) {
	t.Parallel()
	reg := serving(t)
	problems, err := testutil.GatherAndLint(reg)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if ours(p.Metric) {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{
		"go_goroutines", "process_start_time_seconds", "rewindmq_build_info", "rewindmq_http_requests_total", "rewindmq_http_request_duration_seconds",
	} {
		if !gathered(families, name) {
			t.Errorf("%s is not served", name)
		}
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

func gathered(families []*dto.MetricFamily, name string) bool {
	for _, f := range families {
		if f.GetName() == name {
			return true
		}
	}
	return false
}

// TestStoreLabels: what the embedded store does in the whole of its contract makes no
// label value that was not there before.
func TestStoreLabels(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("half a minute of waits in a short run; store TestVocabulary reads the names in the sources")
	}
	reg := prometheus.NewRegistry()
	m, err := store.NewMetrics(reg, "embedded")
	if err != nil {
		t.Fatal(err)
	}
	before, _ := series(t, reg)
	t.Run("contract", func(t *testing.T) {
		storetest.Run(t, func(t *testing.T) storetest.Harness {
			l, err := embedded.Open(embedded.Options{Dir: filepath.Join(t.TempDir(), "data"), Node: "n", Metrics: m})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan error, 1)
			go func() { done <- l.Run(ctx) }()
			t.Cleanup(func() {
				cancel()
				if err := <-done; err != nil {
					t.Error(err)
				}
			})
			return storetest.Harness{Store: l}
		})
	})
	after, counted := series(t, reg)
	for s := range after {
		if !before[s] {
			t.Errorf("%s was not there at the start", s)
		}
	}
	if !counted["rewindmq_store_operation_duration_seconds"] {
		t.Error("no operation was measured")
	}
}

// series gives all series, and the metrics of which one is not at 0.
func series(t *testing.T, reg *prometheus.Registry) (all, counted map[string]bool) {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	all, counted = map[string]bool{}, map[string]bool{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			all[fmt.Sprint(f.GetName(), m.GetLabel())] = true
			if m.GetCounter().GetValue() > 0 || m.GetHistogram().GetSampleCount() > 0 {
				counted[f.GetName()] = true
			}
		}
	}
	return all, counted
}

// rows gives the table. A vector without any label value is not gathered: the
// metrics make theirs at the start.
func rows(families []*dto.MetricFamily) []string {
	var out []string
	for _, f := range families {
		if !ours(f.GetName()) {
			continue
		}
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
