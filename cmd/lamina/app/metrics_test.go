package app_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/pkg/kernel/ref"
)

// scraped returns the series of /metrics, by what stands before their value.
func scraped(t *testing.T, ctx context.Context, addr string) map[string]float64 {
	t.Helper()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/metrics", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for line := range strings.Lines(string(text)) {
		at := strings.LastIndexByte(line, ' ')
		if strings.HasPrefix(line, "#") || at < 0 {
			continue
		}
		if out[line[:at]], err = strconv.ParseFloat(strings.TrimSpace(line[at:]), 64); err != nil {
			t.Fatalf("parse %q: %v", line, err)
		}
	}
	return out
}

// queried returns the names of the metrics in the dashboards and alerts, without those of training, of deployments and
// of devices, which a mesh with fixed layers on processors does not have.
func queried(t *testing.T) map[string]bool {
	t.Helper()
	files, err := filepath.Glob("../../../deploy/grafana/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("%d dashboards, %v", len(files), err)
	}
	files = append(files, "../../../deploy/prometheus/alerts.yaml")
	out := map[string]bool{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range regexp.MustCompile(`(vllm:|lamina_)\w+`).FindAllString(string(text), -1) {
			if !strings.HasPrefix(name, "lamina_trainer_") && !strings.HasPrefix(name, "lamina_router_deployment_") &&
				!strings.HasPrefix(name, "lamina_device_") {
				out[name] = true
			}
		}
	}
	return out
}

// The figures of /metrics are those that clients have seen, and all metrics of the dashboards are there.
func TestMesh_MetricsAreWhatClientsHaveSeen(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	m, router := startMesh(t, ctx, app.MeshConfig{
		Model: shared(t, "models/stories260K/stories260K-f32.gguf"), Name: "stories", Stages: 2,
		Kernels: app.Kernels{Set: ref.New[float32](), Threads: 2}, HTTP: "127.0.0.1:0",
	})
	want := map[string]float64{}
	label := `{model_name="stories"}`
	zero := float32(0)
	for i := range 3 {
		stream, err := router.Generate(ctx, &routerv1.GenerateRequest{
			Prompt:    &routerv1.GenerateRequest_Text{Text: strings.Repeat("Once upon a time there was a girl. ", 4)},
			MaxTokens: uint32(8 + i), IgnoreEnd: true, Sampling: &routerv1.Sampling{Temperature: &zero},
		})
		if err != nil {
			t.Fatal(err)
		}
		var usage *routerv1.Usage
		tokens := 0.0
		for {
			e, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if e.GetToken() != nil {
				tokens++
			}
			if e.GetFinished() != nil {
				usage = e.GetFinished().GetUsage()
			}
		}
		prompt := float64(usage.GetPromptTokens())
		for name, v := range map[string]float64{
			"prompt_tokens_total": prompt, "generation_tokens_total": tokens, "prefix_cache_queries_total": prompt,
			"prefix_cache_hits_total": float64(usage.GetCachedTokens()), "time_to_first_token_seconds_count": 1,
			"inter_token_latency_seconds_count": tokens - 1, "e2e_request_latency_seconds_count": 1,
			"request_queue_time_seconds_count": 1, "request_prefill_time_seconds_count": 1,
			"request_decode_time_seconds_count": 1, "request_generation_tokens_sum": tokens,
		} {
			want["vllm:"+name+label] += v
		}
	}
	want[`vllm:request_success_total{finished_reason="length",model_name="stories"}`] = 3
	want[`vllm:request_success_total{finished_reason="stop",model_name="stories"}`] = 0
	want["vllm:num_requests_running"+label], want["vllm:num_requests_waiting"+label] = 0, 0
	want[`lamina_router_requests_total{end="ok"}`] = 3
	want[`lamina_router_pipelines{purpose="answer"}`] = 1
	if want["vllm:prefix_cache_hits_total"+label] == 0 {
		t.Error("no prompt was found in the cache")
	}
	var got map[string]float64
	read, wrong := queried(t), "not scraped"
	// A request ends after its last event.
	for limit := time.Now().Add(time.Minute); wrong != "" && time.Now().Before(limit); {
		got, wrong = scraped(t, ctx, m.HTTPAddr()), ""
		for name, v := range want {
			if have, ok := got[name]; !ok || have != v {
				wrong += name + " is " + strconv.FormatFloat(have, 'g', -1, 64) + ", want " +
					strconv.FormatFloat(v, 'g', -1, 64) + "\n"
			}
		}
		names := map[string]bool{} // one with labels comes with its first value
		for series := range got {
			name, _, _ := strings.Cut(series, "{")
			names[name] = true
		}
		for name := range read {
			if !names[name] {
				wrong += "a dashboard or an alert reads " + name + ", which is not exported\n"
			}
		}
	}
	if wrong != "" {
		t.Error(wrong)
	}
}
