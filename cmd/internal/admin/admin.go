// Package admin serves what an operator's tools ask of a running broker over HTTP: /metrics for Prometheus, /livez
// and /readyz for whoever starts and stops the process.
//
// Nouns: alive means that the process answers; ready means that a client that connects now is served.
//
// Server.Run owns the goroutines that serve requests and returns when they have ended. Listen starts none.
package admin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// readyTimeout bounds one readiness check, so that a probe never hangs.
const readyTimeout = 5 * time.Second

// Options are what the server shows.
type Options struct {
	// Registry is served at /metrics. Required.
	Registry *prometheus.Registry
	// Ready answers nil when the broker can serve clients, else the reason why not. Required. It must be safe for
	// concurrent use.
	Ready func(context.Context) error
	// API is served below /api/; nil: nothing is.
	API http.Handler
}

// Server is the HTTP server.
type Server struct {
	listener net.Listener
	http     *http.Server
}

// Listen binds the address and prepares the server. Requests are answered once Run is called.
func Listen(addr string, o Options) (*Server, error) {
	if o.Registry == nil || o.Ready == nil {
		return nil, errors.New("admin: options lack the registry or the readiness check")
	}
	handler, err := routes(o)
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("admin: listen for HTTP: %w", err)
	}
	return &Server{listener: l, http: &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      time.Minute,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
	}}, nil
}

// Addr returns the address that is bound, with its port.
func (s *Server) Addr() string { return s.listener.Addr().String() }

// Close gives the address back when Run was never called. After Run it does nothing.
func (s *Server) Close() { _ = s.listener.Close() }

// Run serves until ctx ends, then lets requests under way finish for up to two seconds.
func (s *Server) Run(ctx context.Context) error {
	served := make(chan error, 1)
	go func() { served <- s.http.Serve(s.listener) }()
	select {
	case err := <-served:
		return fmt.Errorf("admin: serve HTTP: %w", err)
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if err := s.http.Shutdown(grace); err != nil {
		_ = s.http.Close() // requests that do not end are cut off
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("admin: serve HTTP: %w", err)
	}
	return nil
}

func routes(o Options) (http.Handler, error) {
	requests := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "rewindmq_http_requests_total", Help: "HTTP requests answered.",
	}, []string{"handler", "method", "code"})
	duration := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "rewindmq_http_request_duration_seconds", Help: "Time to answer an HTTP request.",
		Buckets:                     []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		NativeHistogramBucketFactor: 1.1,
	}, []string{"handler"})
	for _, c := range []prometheus.Collector{requests, duration} {
		if err := o.Registry.Register(c); err != nil {
			return nil, fmt.Errorf("admin: register HTTP metrics: %w", err)
		}
	}
	mux := http.NewServeMux()
	if o.API != nil {
		mux.Handle("/api/", promhttp.InstrumentHandlerCounter(requests.MustCurryWith(prometheus.Labels{"handler": "/api"}),
			promhttp.InstrumentHandlerDuration(duration.MustCurryWith(prometheus.Labels{"handler": "/api"}), o.API)))
	}
	for path, h := range map[string]http.Handler{
		"/metrics": promhttp.HandlerFor(o.Registry, promhttp.HandlerOpts{MaxRequestsInFlight: 8}),
		"/livez":   http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { say(w, http.StatusOK, "ok") }),
		"/readyz":  readyz(o.Ready),
	} {
		label := prometheus.Labels{"handler": path}
		requests.With(prometheus.Labels{"handler": path, "method": "get", "code": "200"})
		mux.Handle("GET "+path, promhttp.InstrumentHandlerCounter(requests.MustCurryWith(label),
			promhttp.InstrumentHandlerDuration(duration.MustCurryWith(label), h)))
	}
	return mux, nil
}

// readyz answers 200, or 503 with the reason.
func readyz(ready func(context.Context) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), readyTimeout)
		defer cancel()
		if err := ready(ctx); err != nil {
			say(w, http.StatusServiceUnavailable, "not ready: "+err.Error())
			return
		}
		say(w, http.StatusOK, "ready")
	})
}

func say(w http.ResponseWriter, code int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	_, _ = io.WriteString(w, text+"\n") // a prober that has gone away is no concern of ours
}

// Build says which program runs, for rewindmq_build_info.
type Build struct {
	Version  string
	Revision string
}

// NewRegistry returns a registry with the build's metric and, where wanted, those of the Go runtime and the process.
func NewRegistry(b Build, goMetrics, processMetrics bool) *prometheus.Registry {
	reg := prometheus.NewRegistry()
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "rewindmq_build_info", Help: "Always 1; the labels tell which build runs.",
		ConstLabels: prometheus.Labels{
			"version": b.Version, "revision": b.Revision, "goversion": runtime.Version(),
			"goos": runtime.GOOS, "goarch": runtime.GOARCH,
		},
	})
	info.Set(1)
	reg.MustRegister(info) // an empty registry takes each of these
	if goMetrics {
		reg.MustRegister(collectors.NewGoCollector())
	}
	if processMetrics {
		reg.MustRegister(collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	}
	return reg
}
