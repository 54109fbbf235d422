package router

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lamina-mesh/lamina/pkg/fault"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
)

// Requests are also measured under the names that vLLM uses, so that dashboards and the endpoint pickers of the
// Gateway API inference extension work unchanged. The label model_name is that of a served model and never what a
// client has written, so clients cannot add time series.

const (
	// servingPrefix is the default of Config.MetricsPrefix.
	servingPrefix = "vllm:"
	// NoMetricsPrefix as Config.MetricsPrefix leaves the metrics with vLLM's names out.
	NoMetricsPrefix = "none"

	maxModelLabels   = 256 // different values of model_name; further models share otherModel
	maxModelLabelLen = 256 // bytes
	otherModel       = "other"
	maxAdapterLabels = 64 // adapters that lora_requests_info names
)

// serving holds the metrics with vLLM's names.
type serving struct {
	prefix                                                  string
	prompts, generated, preempted, queried, hits            *prometheus.CounterVec
	ended                                                   *prometheus.CounterVec
	first, between, perToken, whole, queue, prefill, decode *prometheus.HistogramVec
	inference, promptLen, answerLen, mostTokens, askedFor   *prometheus.HistogramVec

	mu     sync.Mutex
	models map[string]*modelMeters // by label
}

// modelMeters are the metrics of one model. They are looked up once for a request, not for each token.
type modelMeters struct {
	label                                                   string
	prompts, generated, preempted, queried, hits            prometheus.Counter
	ended                                                   *prometheus.CounterVec // by finished_reason
	first, between, perToken, whole, queue, prefill, decode prometheus.Observer
	inference, promptLen, answerLen, mostTokens, askedFor   prometheus.Observer
	unassigned                                              atomic.Int64 // requests that wait for a pipeline
}

// finishedReasons are the values of finished_reason. Each request that was admitted ends with one of them.
func finishedReasons() []string { return []string{"stop", "length", "abort", "error"} }

func newServing(prefix string) *serving {
	s := &serving{prefix: cmp.Or(prefix, servingPrefix), models: map[string]*modelMeters{}}
	model := []string{"model_name"}
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: s.prefix + name, Help: help},
			append(model, labels...))
	}
	histogram := func(name, help string, buckets []float64) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: s.prefix + name, Help: help, Buckets: buckets},
			model)
	}
	short := prometheus.ExponentialBuckets(0.0005, 2, 18) // seconds: 0.5 ms to 65 s
	long := prometheus.ExponentialBuckets(0.001, 2, 21)   // seconds: 1 ms to 17 min
	tokens := prometheus.ExponentialBuckets(1, 2, 18)     // 1 to 131072
	s.prompts = counter("prompt_tokens_total", "Prompt tokens of requests that have come to their first token.")
	s.generated = counter("generation_tokens_total", "Tokens generated.")
	s.preempted = counter("num_preemptions_total",
		"Running sequences that gave their KV pages back and waited again.")
	s.queried = counter("prefix_cache_queries_total", "Positions of admitted sequences, looked up in the prefix cache.")
	s.hits = counter("prefix_cache_hits_total", "Positions of sequences that came from the prefix cache.")
	s.ended = counter("request_success_total", "Requests that have ended, by reason: stop, length, abort or error.",
		"finished_reason")
	s.first = histogram("time_to_first_token_seconds", "Time from the request to its first token.", long)
	s.between = histogram("inter_token_latency_seconds", "Time between two tokens of a request.", short)
	s.perToken = histogram("request_time_per_output_token_seconds",
		"Mean time between the tokens of a request that has ended.", short)
	s.whole = histogram("e2e_request_latency_seconds", "Time from the request to its end.", long)
	s.queue = histogram("request_queue_time_seconds", "Time from the request to its admission by the scheduler.", long)
	s.prefill = histogram("request_prefill_time_seconds", "Time from the admission to the first token.", long)
	s.decode = histogram("request_decode_time_seconds", "Time from the first token to the last one.", long)
	s.inference = histogram("request_inference_time_seconds", "Time from the admission to the last token.", long)
	s.promptLen = histogram("request_prompt_tokens", "Prompt tokens of a request.", tokens)
	s.answerLen = histogram("request_generation_tokens", "Generated tokens of a request.", tokens)
	s.mostTokens = histogram("request_max_num_generation_tokens",
		"Generated tokens of a request; the choices of one call are requests of their own.", tokens)
	s.askedFor = histogram("request_params_max_tokens", "Tokens that a request may generate.", tokens)
	return s
}

// register exports the metrics, and the gauges that are read from the pipelines of the service.
func (s *serving) register(r prometheus.Registerer, service *Service) {
	if r == nil || s.prefix == NoMetricsPrefix {
		return
	}
	r.MustRegister(s.prompts, s.generated, s.preempted, s.queried, s.hits, s.ended, s.first, s.between, s.perToken,
		s.whole, s.queue, s.prefill, s.decode, s.inference, s.promptLen, s.answerLen, s.mostTokens, s.askedFor,
		newServingGauges(s, service))
}

// of returns the metrics of a model, given its name. The counters begin at 0, so that the first increase is seen.
func (s *serving) of(name string) *modelMeters {
	s.mu.Lock()
	defer s.mu.Unlock()
	label := name
	if len(label) > maxModelLabelLen || s.models[label] == nil && len(s.models) >= maxModelLabels {
		label = otherModel
	}
	if m := s.models[label]; m != nil {
		return m
	}
	m := &modelMeters{
		label: label, prompts: s.prompts.WithLabelValues(label), generated: s.generated.WithLabelValues(label),
		preempted: s.preempted.WithLabelValues(label), queried: s.queried.WithLabelValues(label),
		hits: s.hits.WithLabelValues(label), ended: s.ended.MustCurryWith(prometheus.Labels{"model_name": label}),
		first: s.first.WithLabelValues(label), between: s.between.WithLabelValues(label),
		perToken: s.perToken.WithLabelValues(label), whole: s.whole.WithLabelValues(label),
		queue: s.queue.WithLabelValues(label), prefill: s.prefill.WithLabelValues(label),
		decode: s.decode.WithLabelValues(label), inference: s.inference.WithLabelValues(label),
		promptLen: s.promptLen.WithLabelValues(label), answerLen: s.answerLen.WithLabelValues(label),
		mostTokens: s.mostTokens.WithLabelValues(label), askedFor: s.askedFor.WithLabelValues(label),
	}
	for _, reason := range finishedReasons() {
		m.ended.WithLabelValues(reason)
	}
	s.models[label] = m
	return m
}

// known returns the metrics of all models, in the order of their labels.
func (s *serving) known() []*modelMeters {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]*modelMeters, 0, len(s.models))
	for _, m := range s.models {
		out = append(out, m)
	}
	slices.SortFunc(out, func(a, b *modelMeters) int { return cmp.Compare(a.label, b.label) })
	return out
}

// waits counts a request as waiting while it has no pipeline, until the returned function is called. m may be nil.
func (m *modelMeters) waits() func() {
	if m == nil {
		return func() {}
	}
	m.unassigned.Add(1)
	return func() { m.unassigned.Add(-1) }
}

// meterToken counts a token, or the prompt alone if the request asks for no token. It is called before the token is
// added to the log.
func (q *request) meterToken(now time.Time) {
	m := q.meters
	if q.first.IsZero() && !q.taken && q.sampling.GetChoice() == 0 { // choices of a request share its prompt
		m.prompts.Add(float64(len(q.prompt)))
	}
	switch {
	case q.echo.only:
		return
	case q.first.IsZero() && !q.taken:
		m.first.Observe(now.Sub(q.arrived).Seconds())
	case !q.first.IsZero():
		m.between.Observe(now.Sub(q.last).Seconds())
	}
	m.generated.Inc()
}

// meterEnd counts a request that was admitted by its end. The times of a request that another router began are not
// those that its client has seen, so they are left out.
func (q *request) meterEnd(ctx context.Context, err error) {
	m := q.meters
	if m == nil {
		return
	}
	if !q.taken {
		q.observeEnd(err)
	}
	if err != nil {
		reason := "error"
		if code := fault.CodeOf(err); ctx.Err() != nil || code == fault.Canceled || code == fault.DeadlineExceeded {
			reason = "abort"
		}
		m.ended.WithLabelValues(reason).Inc()
		return
	}
	reason := "stop"
	if q.reason == samplerv1.FinishReason_FINISH_REASON_LENGTH {
		reason = "length"
	}
	m.ended.WithLabelValues(reason).Inc()
	if q.taken {
		return
	}
	tokens := len(q.log) - len(q.prompt)
	m.whole.Observe(time.Since(q.arrived).Seconds())
	m.queue.Observe(max(0, q.admitted.Sub(q.arrived)).Seconds())
	m.prefill.Observe(max(0, q.first.Sub(q.admitted)).Seconds())
	m.decode.Observe(q.last.Sub(q.first).Seconds())
	m.inference.Observe(max(0, q.last.Sub(q.admitted)).Seconds())
	if tokens > 1 {
		m.perToken.Observe(q.last.Sub(q.first).Seconds() / float64(tokens-1))
	}
	m.promptLen.Observe(float64(len(q.prompt)))
	m.answerLen.Observe(float64(tokens))
	m.mostTokens.Observe(float64(tokens))
	m.askedFor.Observe(float64(q.maxTokens))
}

// servingGauges exports the state of the pipelines under vLLM's names.
type servingGauges struct {
	serving                              *serving
	service                              *Service
	running, waiting, usage, cache, lora *prometheus.Desc
}

func newServingGauges(s *serving, service *Service) *servingGauges {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(s.prefix+name, help, labels, nil)
	}
	return &servingGauges{
		serving: s, service: service,
		running: desc("num_requests_running", "Requests that are computed in batches.", "model_name"),
		waiting: desc("num_requests_waiting", "Requests that wait for a pipeline or for KV pages.", "model_name"),
		usage: desc("kv_cache_usage_perc", "Share of the KV pages that requests hold; 1 is all of them. Pages that "+
			"are only cached are free.", "model_name"),
		cache: desc("cache_config_info", "Always 1. The labels tell the positions of a KV page and the number of pages.",
			"model_name", "block_size", "num_gpu_blocks"),
		lora: desc("lora_requests_info", "Adapters that requests may name, and those that requests wait for. The value "+
			"is the time of the scrape.", "max_lora", "running_lora_adapters", "waiting_lora_adapters"),
	}
}

// Describe implements prometheus.Collector.
func (g *servingGauges) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{g.running, g.waiting, g.usage, g.cache, g.lora} {
		ch <- d
	}
}

// load is what the pipelines of a model hold together.
type load struct{ running, waiting, pages, held, pageLen int }

// Collect implements prometheus.Collector.
func (g *servingGauges) Collect(ch chan<- prometheus.Metric) {
	loads, ready, loading := g.service.loads()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	for _, m := range g.serving.known() {
		l := loads[m.label]
		gauge(g.running, float64(l.running), m.label)
		gauge(g.waiting, float64(l.waiting)+float64(m.unassigned.Load()), m.label)
		if l.pages > 0 {
			gauge(g.usage, float64(l.held)/float64(l.pages), m.label)
			gauge(g.cache, 1, m.label, strconv.Itoa(l.pageLen), strconv.Itoa(l.pages))
		}
	}
	if len(ready)+len(loading) > 0 {
		now := float64(time.Now().UnixNano()) / 1e9
		gauge(g.lora, now, strconv.Itoa(maxAdapterLabels), joined(ready), joined(loading))
	}
}

// joined returns the first names of a list with commas between them.
func joined(names []string) string {
	return strings.Join(names[:min(len(names), maxAdapterLabels)], ",")
}

// loads returns what the pipelines of each model hold, by label, and the adapters that some pipeline holds and that
// requests wait for.
func (s *Service) loads() (loads map[string]load, ready, loading []string) {
	loads = map[string]load{}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.pipelines {
		if p.draft || p.dead() {
			continue
		}
		stats, l := p.stats(), loads[p.meters.label]
		l.running, l.waiting = l.running+stats.Running, l.waiting+stats.Waiting
		l.pages, l.held = l.pages+stats.Pages, l.held+stats.Held-stats.Cached
		l.pageLen = int(p.stages[0].GetKvPageLen())
		loads[p.meters.label] = l
	}
	for _, a := range s.describeAdapters("") {
		switch name := adapted(a.GetModel(), a.GetName()); {
		case a.GetPipelines() > 0:
			ready = append(ready, name)
		case a.GetRequests() > 0:
			loading = append(loading, name)
		}
	}
	return loads, ready, loading
}
