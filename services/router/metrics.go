package router

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// metrics holds the router's metrics.
type metrics struct {
	requests    *prometheus.CounterVec
	tokens      prometheus.Counter
	first       prometheus.Histogram
	between     prometheus.Histogram
	moves       prometheus.Counter
	reopens     *prometheus.CounterVec
	again       *prometheus.CounterVec
	overBudget  prometheus.Counter
	hedges      *prometheus.CounterVec
	preemptions prometheus.Counter
	drafted     *prometheus.CounterVec
	accepted    *prometheus.CounterVec
	steps       *prometheus.CounterVec
	windows     *prometheus.CounterVec
	dropped     *prometheus.CounterVec
	drafting    prometheus.Histogram
	resumed     *prometheus.CounterVec
	moveBytes   prometheus.Counter
	// unjournaled counts requests whose journal was given up.
	unjournaled *prometheus.CounterVec
	serving     *serving
	semconv     *semconv
	deployed    *deployMetrics
}

func newMetrics(r prometheus.Registerer, prefix string) *metrics {
	m := &metrics{
		serving: newServing(prefix), semconv: newSemconv(), deployed: newDeployMetrics(),
		requests: prometheus.NewCounterVec(
			prometheus.CounterOpts{Name: "lamina_router_requests_total", Help: "Requests, by how they ended: ok or the code of the error."},
			[]string{"end"},
		),
		tokens: prometheus.NewCounter(
			prometheus.CounterOpts{Name: "lamina_router_tokens_total", Help: "Tokens generated."},
		),
		first: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "lamina_router_first_token_seconds", Help: "Time from request to first token.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 16),
		}),
		between: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "lamina_router_inter_token_seconds", Help: "Time between tokens of a request.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 16),
		}),
		drafted: prometheus.NewCounterVec(
			prometheus.CounterOpts{
				Name: "lamina_router_draft_tokens_total", Help: "Draft tokens sent to be verified, by proposer.",
			},
			[]string{"proposer"},
		),
		accepted: prometheus.NewCounterVec(
			prometheus.CounterOpts{Name: "lamina_router_accepted_tokens_total",
				Help: "Draft tokens accepted, by proposer."},
			[]string{"proposer"},
		),
		steps: prometheus.NewCounterVec(
			prometheus.CounterOpts{
				Name: "lamina_router_steps_total",
				Help: "Batches sent, by the purpose of their pipeline: answer or draft.",
			},
			[]string{"pipeline"},
		),
		windows: prometheus.NewCounterVec(
			prometheus.CounterOpts{
				Name: "lamina_router_chained_windows_total",
				Help: "Entries of draft tokens that were sent behind others, and those of them that were discarded.",
			},
			[]string{"event"},
		),
		dropped: prometheus.NewCounterVec(
			prometheus.CounterOpts{Name: "lamina_router_draft_sessions_dropped_total",
				Help: "Draft sessions dropped, by code."},
			[]string{"code"},
		),
		drafting: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "lamina_router_draft_seconds",
			Help:    "Time from a request for draft tokens to the draft model's answer.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 16),
		}),
		preemptions: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "lamina_router_preemptions_total",
			Help: "Running sequences that gave their KV pages back and waited again.",
		}),
		resumed: prometheus.NewCounterVec(
			prometheus.CounterOpts{Name: "lamina_router_resumes_total",
				Help: "Calls that read a resumable request again, by how they ended."},
			[]string{"end"},
		),
		unjournaled: prometheus.NewCounterVec(
			prometheus.CounterOpts{Name: "lamina_router_unjournaled_total",
				Help: "Resumable requests whose journal was given up, by code."},
			[]string{"code"},
		),
		reopens: prometheus.NewCounterVec(
			prometheus.CounterOpts{Name: "lamina_router_reopens_total",
				Help: "Pipelines with a broken stream that were opened again, by what became of them."},
			[]string{"end"},
		),
		again: prometheus.NewCounterVec(
			prometheus.CounterOpts{Name: "lamina_router_replayed_tokens_total",
				Help: "Tokens whose positions were computed again: of sequences that moved, and of stages that " +
					"were rebuilt."},
			[]string{"why"},
		),
		overBudget: prometheus.NewCounter(
			prometheus.CounterOpts{Name: "lamina_router_replays_over_budget_total",
				Help: "Replays that had to wait for the budget."},
		),
		hedges: prometheus.NewCounterVec(
			prometheus.CounterOpts{Name: "lamina_router_hedges_total",
				Help: "Prompts with a late first token that were computed on a second pipeline too, by which " +
					"answered first: the second has won or lost, or was dropped or over budget."},
			[]string{"end"},
		),
		moves: prometheus.NewCounter(
			prometheus.CounterOpts{Name: "lamina_router_moves_total", Help: "Sessions moved to another pipeline."},
		),
	}
	m.moveBytes = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "lamina_router_planned_bytes_total", Help: "Bytes of weights that changes of the plan move to hosts.",
	})
	if r != nil {
		r.MustRegister(
			m.moveBytes, m.requests, m.tokens, m.first, m.between, m.moves, m.reopens, m.again, m.overBudget, m.hedges,
			m.preemptions,
			m.drafted, m.accepted, m.steps, m.dropped, m.drafting, m.resumed, m.unjournaled, m.windows,
			m.deployed.requests, m.deployed.rollbacks,
		)
	}
	m.semconv.register(r)
	m.begin()
	return m
}

// begin lets the series of known labels begin at 0, so that the first increase of each is seen.
func (m *metrics) begin() {
	for _, end := range []string{endLabel(nil), endLabel(fault.New(fault.Internal, "")),
		endLabel(fault.New(fault.Unavailable, "")), endLabel(fault.New(fault.Exhausted, ""))} {
		m.requests.WithLabelValues(end)
	}
	for _, end := range []string{"resumed", "rebuilt", "lost"} {
		m.reopens.WithLabelValues(end)
	}
	for _, why := range []string{againMoved, againRebuilt, againHedged} {
		m.again.WithLabelValues(why)
	}
	for _, end := range []string{"won", "lost", "dropped", "over budget"} {
		m.hedges.WithLabelValues(end)
	}
}

// endLabel is the label of how a request has ended: ok, or the code of its error.
func endLabel(err error) string {
	if err == nil {
		return "ok"
	}
	return fault.CodeOf(err).String()
}
