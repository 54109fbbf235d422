package app_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/pkg/kernel/ref"
	"github.com/lamina-mesh/lamina/pkg/obs/trace"
)

// collected polls the spans until there are n of each name in a trace, and returns those of the trace.
func collected(t *testing.T, out *tracetest.InMemoryExporter, id string, want map[string]int) tracetest.SpanStubs {
	t.Helper()
	limit := time.After(time.Minute)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		var in tracetest.SpanStubs
		have := map[string]int{}
		for _, s := range out.GetSpans() {
			if s.SpanContext.TraceID().String() == id {
				in = append(in, s)
				have[s.Name]++
			}
		}
		complete := true
		for name, n := range want {
			complete = complete && have[name] == n
		}
		if complete {
			return in
		}
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("trace %s has the spans %v, want %v", id, have, want)
		}
	}
}

// One trace follows a request over router, tokenizer, every stage and the sampler, and no other request is part of it.
func TestMesh_OneTraceForEachRequest(t *testing.T) {
	out := tracetest.NewInMemoryExporter()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	_, router := startMesh(t, ctx, app.MeshConfig{
		Model: shared(t, "models/stories260K/stories260K-f32.gguf"), Name: "stories", Stages: 3,
		Kernels: app.Kernels{Set: ref.New[float32](), Threads: 2}, Traces: trace.Config{Exporter: out},
	})
	ids := []string{"0af7651916cd43dd8448eb211c80319c", "4bf92f3577b34da6a3ce929d0e0e4736"}
	for i, id := range ids {
		zero := float32(0)
		ctx := propagation.TraceContext{}.Extract(ctx,
			propagation.MapCarrier{"traceparent": "00-" + id + "-b7ad6b7169203331-01"})
		stream, err := router.Generate(ctx, &routerv1.GenerateRequest{
			Prompt: &routerv1.GenerateRequest_Text{Text: "Once upon a time"}, MaxTokens: uint32(10 + i),
			Sampling: &routerv1.Sampling{Temperature: &zero}, IgnoreEnd: true,
		})
		if err != nil {
			t.Fatal(err)
		}
		for err == nil {
			_, err = stream.Recv()
		}
	}
	const encode = "lamina.tokenizer.v1.TokenizerService/Encode"
	for i, id := range ids {
		spans := collected(t, out, id, map[string]int{
			"text_completion stories": 1, encode: 2, "stage 0-1": 1, "stage 1-3": 1, "stage 3-5": 1, "sample": 1,
		})
		var request tracetest.SpanStub
		for _, s := range spans {
			if strings.HasPrefix(s.Name, "text_completion") {
				request = s
			}
		}
		got := attributes(request.Attributes)
		for key, want := range map[string]any{
			"gen_ai.operation.name": "text_completion", "gen_ai.response.model": "stories",
			"gen_ai.usage.output_tokens": int64(10 + i), "gen_ai.request.max_tokens": int64(10 + i),
		} {
			if got[key] != want {
				t.Errorf("%s is %v, want %v", key, got[key], want)
			}
		}
		prompt, _ := got["gen_ai.usage.input_tokens"].(int64)
		for _, s := range spans {
			a := attributes(s.Attributes)
			if strings.HasPrefix(s.Name, "stage ") || s.Name == "sample" {
				if s.Parent.SpanID() != request.SpanContext.SpanID() {
					t.Errorf("%s is not below the request", s.Name)
				}
				if s.EndTime.Sub(s.StartTime) <= 0 {
					t.Errorf("%s took no time", s.Name)
				}
			}
			if strings.HasPrefix(s.Name, "stage ") {
				rows, _ := a["lamina.rows"].(int64)
				cached, _ := got["lamina.cached_tokens"].(int64)
				// Every position but those in the cache and that of the last token goes through every stage once.
				if want := prompt - cached + int64(10+i) - 1; rows != want {
					t.Errorf("%s computed %d rows, want %d", s.Name, rows, want)
				}
			}
			if s.Name == "sample" && a["lamina.tokens"] != int64(10+i) {
				t.Errorf("the sampler picked %v tokens", a["lamina.tokens"])
			}
			for key, v := range a {
				if text, ok := v.(string); ok && strings.Contains(text, "Once upon") {
					t.Errorf("%s of %s shows the prompt", key, s.Name)
				}
			}
		}
	}
}

func attributes(list []attribute.KeyValue) map[string]any {
	out := map[string]any{}
	for _, a := range list {
		out[string(a.Key)] = a.Value.AsInterface()
	}
	return out
}
