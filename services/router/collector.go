package router

import (
	"context"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lamina-mesh/lamina/pkg/plan"
	"github.com/lamina-mesh/lamina/pkg/sched"
)

// stageCollector exports the state of all pipelines that are open, and the times of their stages and hops as they were
// predicted and measured. A pipeline that has ended leaves the metrics, so that they do not grow.
type stageCollector struct {
	s                  *Service
	stage, token, span *prometheus.Desc
	first, wrong       *prometheus.Desc
	active, pipelines  *prometheus.Desc
	state              []pipelineGauge
}

// pipelineGauge is an exported value of a pipeline.
type pipelineGauge struct {
	desc  *prometheus.Desc
	value func(p *pipeline) float64
}

// observeStages exports the state of the pipelines.
func (m *metrics) observeStages(r prometheus.Registerer, s *Service) {
	if r == nil {
		return
	}
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("lamina_router_"+name, help, labels, nil)
	}
	gauge := func(name, help string, value func(p *pipeline) float64) pipelineGauge {
		return pipelineGauge{desc("pipeline_"+name, help, "model", "pipeline"), value}
	}
	r.MustRegister(&stageCollector{
		s: s,
		stage: desc("stage_seconds",
			"Time of one row in a stage (part compute) and on the hop to it (part hop), as the plan has predicted it and "+
				"as it was measured last.", "model", "pipeline", "stage", "host", "part", "from"),
		token: desc("token_seconds",
			"Time of a token of a single stream, as the plan has predicted it (from plan), as it is expected now "+
				"(expected), and as it was measured (lone), and of a step of any batch (measured).",
			"model", "pipeline", "from"),
		first: desc("first_token_predicted_seconds",
			"Time to the first token of a prompt of 128 tokens on an idle pipeline, as the plan has predicted it (from "+
				"plan), as it is expected now (expected), and as lone prompts suggest (lone).", "model", "pipeline", "from"),
		wrong: desc("prediction_error_ratio",
			"How far the expected time of a token or first_token of a single stream is from the measured one, as a "+
				"share of the measured one.", "model", "pipeline", "of"),
		span:      desc("stage_layers", "Layers of a stage.", "model", "pipeline", "stage", "host"),
		active:    desc("active_requests", "Requests that run or wait on this router."),
		pipelines: desc("pipelines", "Pipelines that are open, by their purpose: answer or draft.", "purpose"),
		state: []pipelineGauge{
			gauge("epoch", "How often the chain was opened: 1, and one more after each stage that was lost.",
				func(p *pipeline) float64 { return float64(p.epochs.Load()) }),
			gauge("running", "Sequences in batches.",
				func(p *pipeline) float64 { return float64(p.runningCount.Load()) }),
			gauge("waiting", "Sequences that wait for KV pages.",
				func(p *pipeline) float64 { return float64(p.waitingCount.Load()) }),
			gauge("tokens_per_second", "Tokens a second in the last second with steps.",
				func(p *pipeline) float64 { return float64(p.rate.Load()) / 1000 }),
			gauge("bubble_ratio", "Share of the stages' time without a batch while sequences ran, since the beginning.",
				func(p *pipeline) float64 { return p.stats().Bubble }),
			gauge("slow_step_seconds", "99th percentile of the time of a decode step.",
				func(p *pipeline) float64 { return p.stats().Slow.Seconds() }),
			gauge("kv_pages", "KV pages that the leases of the stages allow.",
				func(p *pipeline) float64 { return float64(p.stats().Pages) }),
			gauge("kv_pages_held", "KV pages that hold something.",
				func(p *pipeline) float64 { return float64(p.stats().Held) }),
			gauge("kv_pages_cached", "KV pages that only the prefix cache holds.",
				func(p *pipeline) float64 { return float64(p.stats().Cached) }),
			gauge("spare", "1 if another pipeline or a free shard could take over, else 0.", func(p *pipeline) float64 {
				if p.spare.Load() || p.spareShard.Load() {
					return 1
				}
				return 0
			}),
		},
	})
}

// Describe implements prometheus.Collector.
func (c *stageCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.stage, c.token, c.first, c.wrong, c.span, c.active, c.pipelines} {
		ch <- d
	}
	for _, g := range c.state {
		ch <- g.desc
	}
}

// Collect implements prometheus.Collector. It asks the shards of the pipelines for their times.
func (c *stageCollector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), describeLimit)
	defer cancel()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	purposes := map[string]int{"answer": 0, "draft": 0}
	c.s.mu.Lock()
	for _, p := range c.s.pipelines {
		if p.draft {
			purposes["draft"]++
		} else {
			purposes["answer"]++
		}
		for _, g := range c.state {
			gauge(g.desc, g.value(p), p.model(), p.id)
		}
	}
	c.s.mu.Unlock()
	for purpose, n := range purposes {
		gauge(c.pipelines, float64(n), purpose)
	}
	gauge(c.active, float64(c.s.requests.active()))
	time := func(d *prometheus.Desc, ms float64, labels ...string) {
		if ms > 0 { // otherwise it is not known
			gauge(d, ms/1000, labels...)
		}
	}
	for _, p := range c.s.mesh(ctx).GetPipelines() {
		time(c.token, p.GetPredictedTokenMs(), p.GetModel(), p.GetId(), "plan")
		time(c.token, p.GetExpectedTokenMs(), p.GetModel(), p.GetId(), "expected")
		time(c.token, p.GetLoneTokenMs(), p.GetModel(), p.GetId(), "lone")
		time(c.token, float64(p.GetStepMs()), p.GetModel(), p.GetId(), "measured")
		time(c.first, p.GetPredictedTtftMs(), p.GetModel(), p.GetId(), "plan")
		time(c.first, p.GetExpectedTtftMs(), p.GetModel(), p.GetId(), "expected")
		time(c.first, p.GetMeasuredTtftMs(), p.GetModel(), p.GetId(), "lone")
		wrong := func(of string, expected, measured float64) {
			if expected > 0 && measured > 0 {
				gauge(c.wrong, plan.Off(expected, measured), p.GetModel(), p.GetId(), of)
			}
		}
		wrong("token", p.GetExpectedTokenMs(), p.GetLoneTokenMs())
		wrong("first_token", p.GetExpectedTtftMs(), p.GetMeasuredTtftMs())
		for i, t := range p.GetTimes() {
			at := []string{p.GetModel(), p.GetId(), strconv.Itoa(i), t.GetHost()}
			if stages := p.GetStages(); i < len(stages) {
				gauge(c.span, float64(stages[i].GetHi())-float64(stages[i].GetLo()), at...)
			}
			time(c.stage, t.GetPredictedMs(), append(at, "compute", "plan")...)
			time(c.stage, t.GetMeasuredMs(), append(at, "compute", "measured")...)
			time(c.stage, t.GetPredictedHopMs(), append(at, "hop", "plan")...)
			time(c.stage, t.GetMeasuredHopMs(), append(at, "hop", "measured")...)
		}
	}
}

// stats returns what the scheduler has done and holds.
func (p *pipeline) stats() sched.Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.sched.Stats()
}

// active returns the number of requests that run.
func (r *requests) active() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.running)
}
