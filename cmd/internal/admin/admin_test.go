package admin

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start runs a server for one test and returns its base URL.
func start(t *testing.T, reg *prometheus.Registry, ready func(context.Context) error) string {
	t.Helper()
	s, err := Listen("127.0.0.1:0", Options{Registry: reg, Ready: ready})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		http.DefaultClient.CloseIdleConnections()
	})
	return "http://" + s.Addr()
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func TestServe(t *testing.T) {
	var broken atomic.Bool
	reg := NewRegistry(Build{Version: "1.2.3", Revision: "abc"}, true, true)
	url := start(t, reg, func(context.Context) error {
		if broken.Load() {
			return errors.New("the disk is full")
		}
		return nil
	})

	if code, body := get(t, url+"/livez"); code != 200 || body != "ok\n" {
		t.Errorf("/livez: %d %q", code, body)
	}
	if code, body := get(t, url+"/readyz"); code != 200 || body != "ready\n" {
		t.Errorf("/readyz: %d %q", code, body)
	}
	broken.Store(true)
	if code, body := get(t, url+"/readyz"); code != 503 || body != "not ready: the disk is full\n" {
		t.Errorf("/readyz of a broken broker: %d %q", code, body)
	}
	if code, _ := get(t, url+"/livez"); code != 200 {
		t.Errorf("/livez of a broken broker: %d, want 200: it is alive", code)
	}
	if code, _ := get(t, url+"/nothing"); code != 404 {
		t.Errorf("/nothing: %d", code)
	}

	code, body := get(t, url+"/metrics")
	for _, want := range []string{
		`rewindmq_build_info{goarch="`, `version="1.2.3"`, "go_goroutines", "process_open_fds",
		`rewindmq_http_requests_total{code="503",handler="/readyz",method="get"} 1`,
		`rewindmq_http_requests_total{code="200",handler="/livez",method="get"} 2`,
	} {
		if !strings.Contains(body, want) {
			t.Errorf("/metrics (%d) lacks %s", code, want)
		}
	}
	problems, err := testutil.GatherAndLint(reg, "rewindmq_build_info", "rewindmq_http_requests_total", "rewindmq_http_request_duration_seconds")
	if err != nil || len(problems) > 0 {
		t.Errorf("lint: %v %v", problems, err)
	}
}

func TestRegistryToggles(t *testing.T) {
	families, err := NewRegistry(Build{}, false, false).Gather()
	if err != nil || len(families) != 1 {
		t.Errorf("got %d families and %v, want rewindmq_build_info alone", len(families), err)
	}
}

func TestListenRefuses(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	ready := func(context.Context) error { return nil }
	if _, err := Listen(taken.Addr().String(), Options{Registry: prometheus.NewRegistry(), Ready: ready}); err == nil {
		t.Error("a taken address was bound")
	}
	if _, err := Listen("127.0.0.1:0", Options{Ready: ready}); err == nil {
		t.Error("options without a registry were taken")
	}
}
