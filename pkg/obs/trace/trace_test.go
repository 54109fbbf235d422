package trace_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/obs/trace"
)

func memory(t *testing.T) (*trace.Tracer, *tracetest.InMemoryExporter) {
	t.Helper()
	out := tracetest.NewInMemoryExporter()
	tracer, err := trace.New(t.Context(), trace.Config{Exporter: out, Service: "test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tracer.Close(); err != nil {
			t.Error(err)
		}
	})
	return tracer, out
}

// Nothing is made and nothing allocated while tracing is off.
func TestTracer_Nil_CostsNothing(t *testing.T) {
	tracer, err := trace.New(t.Context(), trace.Config{Service: "test"})
	if err != nil || tracer != nil {
		t.Fatalf("without an endpoint: %v, %v", tracer, err)
	}
	ctx := context.Background()
	allocs := testing.AllocsPerRun(100, func() {
		_, s := tracer.Start(ctx, "lamina/router", "chat")
		if s.Traceparent() != "" || tracer.Adopt("", "lamina/shard", "stage") != nil {
			t.Error("a span was made")
		}
		s.Event("first token")
		s.Rename("other")
		s.End(nil)
	})
	if allocs > 0 {
		t.Errorf("%v allocations for a request", allocs)
	}
	if tracer.ServerHandler() != nil || tracer.ClientHandler() != nil || tracer.Close() != nil {
		t.Error("a nil tracer handles calls")
	}
}

func TestTracer_SessionsAdoptTheSpanOfTheirRequest(t *testing.T) {
	tracer, out := memory(t)
	_, request := tracer.Start(t.Context(), "lamina/router", "chat", attribute.Int("n", 1))
	parent := request.Traceparent()
	if len(parent) != 55 {
		t.Fatalf("the traceparent is %q", parent)
	}
	stage := tracer.Adopt(parent, "lamina/shard", "stage 0-2")
	stage.Set(attribute.Int("lamina.rows", 7))
	stage.End(nil)
	request.Event("first token")
	request.End(fault.New(fault.Exhausted, "full"))
	spans := out.GetSpans()
	if len(spans) != 2 || spans[0].SpanContext.TraceID() != spans[1].SpanContext.TraceID() ||
		spans[0].Parent.SpanID() != spans[1].SpanContext.SpanID() {
		t.Fatalf("the spans are %+v", spans)
	}
	if s := spans[1]; s.Status.Code != codes.Error || s.Status.Description != "exhausted" || len(s.Events) != 1 {
		t.Errorf("the request's span has the status %v and %d events", s.Status, len(s.Events))
	}
}

// What other processes send is not trusted to be well formed.
func TestTracer_AdoptsNoMalformedParent(t *testing.T) {
	tracer, out := memory(t)
	for _, parent := range []string{"", "x", "00-0-0-01", "00-00000000000000000000000000000000-0000000000000000-01",
		"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00", string(make([]byte, 1<<16))} {
		if s := tracer.Adopt(parent, "lamina/shard", "stage"); s != nil {
			t.Errorf("%.60q was adopted", parent)
		}
	}
	if n := len(out.GetSpans()); n != 0 {
		t.Errorf("%d spans", n)
	}
}

func TestTracer_HTTP_JoinsTheClientsTrace(t *testing.T) {
	tracer, out := memory(t)
	h := tracer.HTTP(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, s := tracer.Start(trace.Detach(context.Background(), r.Context()), "lamina/router", "chat")
		s.End(nil)
	}))
	r := httptest.NewRequest(http.MethodPost, "/", http.NoBody)
	r.Header.Set("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	h.ServeHTTP(httptest.NewRecorder(), r)
	if spans := out.GetSpans(); len(spans) != 1 ||
		spans[0].SpanContext.TraceID().String() != "0af7651916cd43dd8448eb211c80319c" {
		t.Errorf("the spans are %+v", spans)
	}
}

func FuzzTracer_Adopt(f *testing.F) {
	out := tracetest.NewInMemoryExporter()
	tracer, err := trace.New(context.Background(), trace.Config{Exporter: out, Service: "fuzz"})
	if err != nil {
		f.Fatal(err)
	}
	f.Add("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	f.Fuzz(func(t *testing.T, parent string) {
		tracer.Adopt(parent, "lamina/shard", "stage").End(nil)
		out.Reset()
	})
}
