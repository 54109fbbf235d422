package router_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/services/router"
)

// scrape returns the values of all series by name and labels, as "name{label=value,...}". Of a histogram it returns
// the count and the sum.
func scrape(t *testing.T, r prometheus.Gatherer) map[string]float64 {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			labels := ""
			for _, l := range m.GetLabel() {
				labels += "," + l.GetName() + "=" + l.GetValue()
			}
			key := func(suffix string) string {
				return f.GetName() + suffix + "{" + strings.TrimPrefix(labels, ",") + "}"
			}
			switch f.GetType() {
			case dto.MetricType_COUNTER:
				out[key("")] = m.GetCounter().GetValue()
			case dto.MetricType_HISTOGRAM:
				out[key("_count")] = float64(m.GetHistogram().GetSampleCount())
				out[key("_sum")] = m.GetHistogram().GetSampleSum()
			default:
				out[key("")] = m.GetGauge().GetValue()
			}
		}
	}
	return out
}

// takeTime lets each batch take a millisecond of virtual time on each stage.
func (m *mesh) takeTime() {
	for _, s := range m.shards {
		s.mu.Lock()
		s.cost = func(int) time.Duration { return time.Millisecond }
		s.mu.Unlock()
	}
}

// vllm is a series of the fake model.
func vllm(name string) string { return "vllm:" + name + "{model_name=fake}" }

// The counts are those that clients have seen, and each request that was admitted has ended for one reason.
func TestServing_CountsWhatClientsSee(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		metrics := prometheus.NewRegistry()
		m := newMesh(t, 2, 1, router.Config{Metrics: metrics})
		m.takeTime()
		if got := scrape(t, metrics)[vllm("generation_tokens_total")]; got != 0 {
			t.Errorf("%v tokens before the first request", got)
		}
		want := map[string]float64{}
		seen := func(a answer, n int) {
			u, times := a.finished.GetUsage(), a.finished.GetTimings()
			for name, v := range map[string]float64{
				"prompt_tokens_total": float64(u.GetPromptTokens()), "generation_tokens_total": float64(n),
				"prefix_cache_queries_total": float64(u.GetPromptTokens()),
				"prefix_cache_hits_total":    float64(u.GetCachedTokens()),
				"request_prompt_tokens_sum":  float64(u.GetPromptTokens()), "request_generation_tokens_sum": float64(n),
				"request_queue_time_seconds_sum":    float64(times.GetQueueUs()) / 1e6,
				"request_prefill_time_seconds_sum":  float64(times.GetPrefillUs()) / 1e6,
				"request_decode_time_seconds_sum":   float64(times.GetDecodeUs()) / 1e6,
				"time_to_first_token_seconds_count": 1, "inter_token_latency_seconds_count": float64(n - 1),
				"e2e_request_latency_seconds_count": 1, "request_params_max_tokens_count": 1,
			} {
				want[vllm(name)] += v
			}
		}
		prompt := strings.Repeat("to be or not ", 5)
		for i := range 3 { // the second and the third find most of the prompt in the cache
			a, err := m.generate(t.Context(), greedy(prompt, 10+i), nil)
			if err != nil {
				t.Fatal(err)
			}
			seen(a, 10+i)
		}
		want["vllm:request_success_total{finished_reason=length,model_name=fake}"] = 3
		stopped := greedy("short", 20)
		stopped.Stop = []string{expect("short", 20)[4:6]}
		a, err := m.generate(t.Context(), stopped, nil)
		if err != nil {
			t.Fatal(err)
		}
		seen(a, int(a.finished.GetUsage().GetCompletionTokens()))
		want["vllm:request_success_total{finished_reason=stop,model_name=fake}"] = 1
		want["vllm:request_success_total{finished_reason=abort,model_name=fake}"] = 0
		want["vllm:request_success_total{finished_reason=error,model_name=fake}"] = 0
		want[vllm("num_requests_running")], want[vllm("num_requests_waiting")] = 0, 0
		want[vllm("kv_cache_usage_perc")] = 0
		synctest.Wait()
		got := scrape(t, metrics)
		for name, v := range want {
			if have, ok := got[name]; !ok || have < v-1e-5 || have > v+1e-5 {
				t.Errorf("%s is %v (exported: %v), want %v", name, have, ok, v)
			}
		}
		if got[vllm("prefix_cache_hits_total")] == 0 {
			t.Error("no prompt was found in the cache")
		}
		whole := got[vllm("e2e_request_latency_seconds_sum")]
		parts := got[vllm("request_queue_time_seconds_sum")] + got[vllm("request_inference_time_seconds_sum")]
		if whole < parts || whole == 0 {
			t.Errorf("requests took %v s, and their parts %v s", whole, parts)
		}
	})
}

// A client that leaves is an abort, and a request that is refused is none of the counts. Names that clients make up
// are no labels.
func TestServing_CountsAbortsAndIgnoresMadeUpNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		metrics := prometheus.NewRegistry()
		m := newMesh(t, 1, 1, router.Config{Metrics: metrics})
		m.takeTime()
		before := len(scrape(t, metrics))
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		_, err := m.generate(ctx, greedy("leave me", 500), func(n int) {
			if n == 3 {
				if got := scrape(t, metrics)[vllm("num_requests_running")]; got != 1 {
					t.Errorf("%v requests run, want 1", got)
				}
				if got := scrape(t, metrics)[vllm("kv_cache_usage_perc")]; got <= 0 || got > 1 {
					t.Errorf("the share of the KV cache is %v", got)
				}
				cancel()
			}
		})
		if err == nil {
			t.Fatal("the request that was canceled ended well")
		}
		synctest.Wait()
		for i := range 200 {
			r := greedy("hello", 4)
			zero := uint32(0)
			r.Model, r.WaitForCapacity = fmt.Sprintf("model-%d\"\n{}", i), &zero
			if _, err := m.generate(t.Context(), r, nil); err == nil {
				t.Fatalf("model %q answered", r.GetModel())
			}
		}
		if _, err := m.generate(t.Context(), &routerv1.GenerateRequest{}, nil); err == nil {
			t.Fatal("a request without a prompt was answered")
		}
		got := scrape(t, metrics)
		for reason, n := range map[string]float64{"abort": 1, "stop": 0, "length": 0, "error": 0} {
			if v := got["vllm:request_success_total{finished_reason="+reason+",model_name=fake}"]; v != n {
				t.Errorf("%v requests ended with %s, want %v", v, reason, n)
			}
		}
		if after := len(got); after > before+10 { // codes of errors, and times that were measured meanwhile
			t.Errorf("%d series became %d", before, after)
		}
		for name := range got {
			if strings.Contains(name, "model-") {
				t.Errorf("a client has made up %s", name)
			}
		}
	})
}

// While a model has no pipeline, its requests wait. A pipeline that is lost is seen as a move and as a new epoch or
// pipeline.
func TestServing_CountsRequestsWithoutAPipeline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		metrics := prometheus.NewRegistry()
		m := newMesh(t, 2, 1, router.Config{Metrics: metrics})
		m.takeTime()
		done := make(chan error, 1)
		begun := make(chan struct{})
		begin := sync.OnceFunc(func() { close(begun) })
		go func() {
			defer begin() // if it fails
			_, err := m.generate(t.Context(), greedy("wait for me", 900), func(n int) {
				if n == 2 {
					begin()
				}
			})
			done <- err
		}()
		<-begun
		m.stops["shard-0-1"]()
		eventually(t, "the request waits for a pipeline", func() bool {
			return scrape(t, metrics)[vllm("num_requests_waiting")] == 1
		})
		<-done
		eventually(t, "nothing waits", func() bool { return scrape(t, metrics)[vllm("num_requests_waiting")] == 0 })
	})
}

// The prefix can be chosen, and the metrics can be left out.
func TestServing_Prefix(t *testing.T) {
	for prefix, want := range map[string]string{"": "vllm:", "engine_": "engine_", router.NoMetricsPrefix: ""} {
		metrics := prometheus.NewRegistry()
		synctest.Test(t, func(t *testing.T) {
			newMesh(t, 1, 1, router.Config{Metrics: metrics, MetricsPrefix: prefix})
			for name := range scrape(t, metrics) {
				if !strings.HasPrefix(name, "lamina_router_") && (want == "" || !strings.HasPrefix(name, want)) {
					t.Errorf("prefix %q: %s is exported", prefix, name)
				}
			}
			_, ok := scrape(t, metrics)[want+"num_requests_running{model_name=fake}"]
			if ok != (want != "") {
				t.Errorf("prefix %q: num_requests_running is exported: %v", prefix, ok)
			}
		})
	}
}
