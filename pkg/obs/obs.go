// Package obs provides structured logs, Prometheus metrics, and the small HTTP server that exports
// them. cmd/lamina makes one logger and one registry for each process and passes them to its
// services, which create their metrics with a Scope. The package has no global state.
package obs

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// NewLogger returns a logger with a level (debug, info, warn or error) and a format (text or json). The level can be
// changed later.
func NewLogger(w io.Writer, level, format string) (*slog.Logger, *slog.LevelVar, error) {
	var at slog.Level
	if err := at.UnmarshalText([]byte(strings.ToUpper(level))); err != nil {
		return nil, nil, fault.Field("log-level", "parse %q: want debug, info, warn or error", level)
	}
	l := &slog.LevelVar{}
	l.Set(at)
	o := &slog.HandlerOptions{Level: l}
	switch format {
	case "text":
		return slog.New(LogRequestIDs(slog.NewTextHandler(w, o))), l, nil
	case "json":
		return slog.New(LogRequestIDs(slog.NewJSONHandler(w, o))), l, nil
	}
	return nil, nil, fault.Field("log-format", "parse %q: want text or json", format)
}

// NewRegistry returns a registry with the metrics of the process and of the Go runtime.
func NewRegistry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// CheckPrefix returns an error unless prefix can begin the names of metrics: letters, digits, underscores and colons,
// and not the names of this program or of its runtime.
func CheckPrefix(prefix string) error {
	for i, c := range []byte(prefix) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', c == '_', c == ':', '0' <= c && c <= '9' && i > 0:
		default:
			return fault.Field("metrics-prefix", "parse %q: want letters, digits, underscores and colons", prefix)
		}
	}
	for _, taken := range []string{"lamina_", "go_", "process_", "promhttp_"} {
		if strings.HasPrefix(prefix, taken) {
			return fault.Field("metrics-prefix", "%q: metrics of other meaning begin with %s", prefix, taken)
		}
	}
	return nil
}

// Scope creates the metrics of one service, which are called lamina_SERVICE_NAME. A name ends in
// its unit or in "total". Creating a metric twice is a programming error and panics.
type Scope struct {
	registerer prometheus.Registerer
	service    string
}

// NewScope returns the scope of a service. With a nil registerer the metrics work but are not
// exported.
func NewScope(r prometheus.Registerer, service string) Scope { return Scope{r, service} }

func register[C prometheus.Collector](s Scope, c C) C {
	if s.registerer != nil {
		s.registerer.MustRegister(c)
	}
	return c
}

// Counter returns a counter with labels.
func (s Scope) Counter(name, help string, labels ...string) *prometheus.CounterVec {
	return register(s, prometheus.NewCounterVec(
		prometheus.CounterOpts{Namespace: "lamina", Subsystem: s.service, Name: name, Help: help}, labels))
}

// Gauge returns a gauge with labels.
func (s Scope) Gauge(name, help string, labels ...string) *prometheus.GaugeVec {
	return register(s, prometheus.NewGaugeVec(
		prometheus.GaugeOpts{Namespace: "lamina", Subsystem: s.service, Name: name, Help: help}, labels))
}

// Level returns a gauge that calls f when it is read. f must be safe for concurrent use.
func (s Scope) Level(name, help string, f func() float64) prometheus.GaugeFunc {
	return register(s, prometheus.NewGaugeFunc(
		prometheus.GaugeOpts{Namespace: "lamina", Subsystem: s.service, Name: name, Help: help}, f))
}

// Seconds returns a histogram of durations from 100 us to 26 s with labels.
func (s Scope) Seconds(name, help string, labels ...string) *prometheus.HistogramVec {
	return register(s, prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Namespace: "lamina", Subsystem: s.service, Name: name, Help: help,
		Buckets: prometheus.ExponentialBuckets(0.0001, 4, 10),
	}, labels))
}

// Handler serves /metrics, /healthz (liveness: always ok) and /readyz (readiness: ok while ready
// returns nil). ready must be safe for concurrent use.
func Handler(r prometheus.Gatherer, ready func() error) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(r, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := ready(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		_, _ = io.WriteString(w, "ok\n")
	})
	return mux
}

// socketBuffer is the size in bytes of the send buffer of a connection; Linux doubles it. With the
// default, the kernel buffers megabytes for a client that has stopped reading, and write
// deadlines notice such a client late.
const socketBuffer = 64 << 10

// ServeHTTP serves a handler until ctx ends, with limits against slow clients. Then it gives
// running requests the time drain to finish, and cuts those that are left. It closes the listener.
func ServeHTTP(ctx context.Context, l net.Listener, h http.Handler, drain time.Duration) error {
	s := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: 64 << 10}
	s.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		if encrypted, ok := c.(*tls.Conn); ok {
			c = encrypted.NetConn()
		}
		if tcp, ok := c.(*net.TCPConn); ok {
			_ = tcp.SetWriteBuffer(socketBuffer) // fails only on a closed connection, which needs no buffer
		}
		return ctx
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), drain)
	defer cancel()
	if err := s.Shutdown(stop); err != nil {
		err = errors.Join(err, s.Close())
		if !errors.Is(err, context.DeadlineExceeded) {
			return err
		}
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
