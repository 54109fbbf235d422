package router

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// providerName is what OpenTelemetry's conventions call gen_ai.provider.name.
const providerName = "lamina"

// semconv holds the metrics gen_ai.server.* of OpenTelemetry's semantic conventions, under the names that its exporter
// for Prometheus gives them. The buckets are those that the conventions ask for.
type semconv struct {
	duration, first, perToken *prometheus.HistogramVec
}

func newSemconv() *semconv {
	histogram := func(name, help string, buckets []float64, more ...string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: "gen_ai", Subsystem: "server", Name: name, Help: help, Buckets: buckets,
		}, append([]string{"gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model",
			"gen_ai_response_model"}, more...))
	}
	return &semconv{
		duration: histogram("request_duration_seconds",
			"Time from the request to its end (gen_ai.server.request.duration). error_type is empty for success.",
			prometheus.ExponentialBuckets(0.01, 2, 14), "error_type"),
		first: histogram("time_to_first_token_seconds",
			"Time from the request to its first token (gen_ai.server.time_to_first_token).",
			[]float64{0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10}),
		perToken: histogram("time_per_output_token_seconds",
			"Mean time of a token after the first one (gen_ai.server.time_per_output_token).",
			[]float64{0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5}),
	}
}

func (s *semconv) register(r prometheus.Registerer) {
	if r != nil {
		r.MustRegister(s.duration, s.first, s.perToken)
	}
}

// observeEnd measures a request that was admitted and has ended. The model is that of the metrics with vLLM's names,
// and never what a client has written.
func (q *request) observeEnd(err error) {
	m, s := q.meters, q.service.m.semconv
	labels := []string{q.operation(), providerName, m.label, m.label}
	errorType := ""
	if err != nil {
		errorType = fault.CodeOf(err).String()
	}
	s.duration.WithLabelValues(append(labels, errorType)...).Observe(time.Since(q.arrived).Seconds())
	if q.first.IsZero() {
		return
	}
	s.first.WithLabelValues(labels...).Observe(q.first.Sub(q.arrived).Seconds())
	if n := len(q.log) - len(q.prompt); err == nil && n > 1 {
		s.perToken.WithLabelValues(labels...).Observe(q.last.Sub(q.first).Seconds() / float64(n-1))
	}
}
