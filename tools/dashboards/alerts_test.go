package dashboards_test

import (
	"log/slog"
	"math"
	"testing"
	"time"

	prom "github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
)

// Scenarios have samples of two hours: a calm hour and a half, and from then on what an alert is about.
const (
	scrapeEvery = 30 * time.Second
	faultAt     = 90 * time.Minute
	scenarioEnd = faultAt + 2*time.Hour
)

// line is a series of a scenario, such as metric{label="value"}. Its values are those of a gauge, or with rate the
// increase a second of a counter.
type line struct {
	series      string
	calm, fault float64
	rate        bool
}

func counter(series string, calm, fault float64) line { return line{series, calm, fault, true} }
func gauge(series string, calm, fault float64) line   { return line{series, calm, fault, false} }

// scenarios returns for each alert the series that it reads, before and while what it is about happens.
func scenarios() map[string][]line {
	requests := func(end string, calm, fault float64) line {
		return counter(`lamina_router_requests_total{end="`+end+`"}`, calm, fault)
	}
	first := func(le string, calm, fault float64) line {
		return counter(`vllm:time_to_first_token_seconds_bucket{model_name="m",le="`+le+`"}`, calm, fault)
	}
	stage := `lamina_router_stage_seconds{host="a",part="rows",stage="0",from="`
	run := func(name string) string { return "lamina_trainer_" + name + `{run="r"}` }
	return map[string][]line{
		"LaminaDown":       {gauge("up", 1, 0)},
		"LaminaNoPipeline": {gauge(`lamina_router_pipelines{purpose="answer"}`, 1, 0)},
		"LaminaErrors":     {requests("ok", 10, 10), requests("internal", 0, 0.5), requests("exhausted", 1, 1)},
		"LaminaRefusals":   {requests("ok", 10, 10), requests("exhausted", 0.1, 2)},
		"LaminaQueue": {gauge(`vllm:num_requests_waiting{model_name="m"}`, 1, 9),
			gauge(`vllm:num_requests_running{model_name="m"}`, 4, 4)},
		"LaminaSlowFirstToken": {first("1", 1, 0), first("10", 1, 1), first("+Inf", 1, 1)},
		"LaminaKVFull":         {gauge(`vllm:kv_cache_usage_perc{model_name="m"}`, 0.9, 0.99)},
		"LaminaPreemptions":    {counter("lamina_router_preemptions_total", 0.01, 1)},
		"LaminaNoSpare":        {gauge(`lamina_router_pipeline_spare{pipeline="p",model="m"}`, 1, 0)},
		"LaminaFailovers": {counter("lamina_router_moves_total", 0, 0.1),
			counter(`lamina_router_reopens_total{end="resumed"}`, 0, 0)},
		"LaminaReplayBudget": {counter("lamina_router_replays_over_budget_total", 0, 0.1)},
		"LaminaSlowStage":    {gauge(stage+`measured"}`, 1, 3), gauge(stage+`plan"}`, 1, 1)},
		"LaminaRollBack":     {counter(`lamina_router_deployment_rollbacks_total{deployment="chat"}`, 0, 0.01)},
		"LaminaBatchStalled": {gauge(`lamina_batch_lines{state="waiting"}`, 5, 5),
			counter(`lamina_batch_lines_total{end="ok"}`, 0.1, 0)},
		"LaminaRunStalled":         {counter(run("step"), 1, 0), gauge(run("steps"), 1e6, 1e6)},
		"LaminaRunDiverged":        {gauge(run("loss"), 2, math.NaN()), gauge(run("spikes"), 0, 0)},
		"LaminaReplicaQuarantined": {gauge(run("quarantined"), 0, 1)},
		"LaminaReplicasLost":       {counter(run("replicas_lost"), 0, 0.01)},
	}
}

// fill adds the samples of a scenario from a moment on.
func fill(t *testing.T, s *store, lines []line, from time.Time) {
	t.Helper()
	for _, l := range lines {
		metric, err := parser.NewParser(parser.Options{}).ParseMetric(l.series)
		if err != nil {
			t.Fatalf("%s: %v", l.series, err)
		}
		sum := 0.0
		for at := time.Duration(0); at <= scenarioEnd; at += scrapeEvery {
			v := l.calm
			if at >= faultAt {
				v = l.fault
			}
			if sum += v * scrapeEvery.Seconds(); l.rate {
				v = sum
			}
			s.add(metric, from.Add(at), v)
		}
	}
}

// fires reports whether an alert fires at a moment, evaluated at each scrape as Prometheus does: its expression has
// held for as long as the rule asks for.
func fires(t *testing.T, s *store, e *promql.Engine, rule rulefmt.Rule, at time.Time) bool {
	t.Helper()
	for ago := time.Duration(0); ago <= time.Duration(rule.For); ago += scrapeEvery {
		if s.query(t, e, rule.Expr, at.Add(-ago)) == 0 {
			return false
		}
	}
	return true
}

// TestAlerts_FireWhenTheyShould plays to each alert what it is about.
func TestAlerts_FireWhenTheyShould(t *testing.T) {
	groups, errs := rulefmt.ParseFile("../../deploy/prometheus/alerts.yaml", false, prom.UTF8Validation,
		parser.NewParser(parser.Options{}), slog.New(slog.DiscardHandler))
	for _, err := range errs {
		t.Fatal(err)
	}
	e := promql.NewEngine(promql.EngineOpts{MaxSamples: 1e6, Timeout: time.Minute})
	from, played := time.Date(2026, 11, 30, 0, 0, 0, 0, time.UTC), scenarios()
	for _, g := range groups.Groups {
		for _, rule := range g.Rules {
			lines, ok := played[rule.Alert]
			if !ok {
				t.Errorf("%s is an alert without a scenario", rule.Alert)
				continue
			}
			delete(played, rule.Alert)
			s := newStore()
			fill(t, s, lines, from)
			if fires(t, s, e, rule, from.Add(faultAt-scrapeEvery)) {
				t.Errorf("%s fires while all is well", rule.Alert)
			}
			if hold := time.Duration(rule.For); hold > 0 && fires(t, s, e, rule, from.Add(faultAt+hold-2*scrapeEvery)) {
				t.Errorf("%s fires before it has held for %v", rule.Alert, hold)
			}
			if !fires(t, s, e, rule, from.Add(scenarioEnd)) {
				t.Errorf("%s does not fire", rule.Alert)
			}
		}
	}
	for name := range played {
		t.Errorf("there is no alert %s", name)
	}
	s := newStore() // a series that ends is no fault
	fill(t, s, []line{gauge("up", 1, 1)}, from)
	if s.query(t, e, "up == 1", from.Add(scenarioEnd)) != 1 || s.values("up", labels.MetricName)[0] != "up" {
		t.Error("the scenarios are not in the store")
	}
}
