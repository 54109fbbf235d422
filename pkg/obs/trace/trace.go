// Package trace makes OpenTelemetry spans that follow a request over router, tokenizer, stages and sampler, and exports
// them by OTLP. Unary calls carry the context of a span as gRPC metadata (ServerHandler, ClientHandler). Streams
// between services are shared by many requests, so there a session carries it: the router sends the traceparent of its
// span once with each session, and the service that holds the session makes one span of its life (Adopt). No step and
// no token makes a span or an event.
//
// Tracing is off unless there is an endpoint. A nil *Tracer makes nil spans, and the methods of a nil *Span do
// nothing and allocate nothing.
package trace

import (
	"context"
	"net/http"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	otel "go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/stats"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// Config says where spans go.
type Config struct {
	// Endpoint is the URL of a collector that takes OTLP over gRPC, such as http://127.0.0.1:4317; empty for none.
	// The variables OTEL_EXPORTER_OTLP_*, OTEL_TRACES_SAMPLER and OTEL_RESOURCE_ATTRIBUTES say more.
	Endpoint string
	// Exporter takes the spans in place of the endpoint, each when it ends.
	Exporter sdk.SpanExporter
	// Service and Version describe this process.
	Service, Version string
}

// Tracer makes the spans of a process. nil makes none.
type Tracer struct {
	provider   *sdk.TracerProvider
	propagator propagation.TraceContext
}

// New returns a tracer, or nil if there is neither an endpoint nor an exporter. It does not wait for the collector.
func New(ctx context.Context, c Config) (*Tracer, error) {
	var to sdk.TracerProviderOption
	switch {
	case c.Exporter != nil:
		to = sdk.WithSyncer(c.Exporter)
	case c.Endpoint != "":
		exporter, err := otlptracegrpc.New(ctx, otlptracegrpc.WithEndpointURL(c.Endpoint))
		if err != nil {
			return nil, fault.Wrap(fault.Invalid, err, "export traces to %s", c.Endpoint)
		}
		to = sdk.WithBatcher(exporter)
	default:
		return nil, nil
	}
	about, err := resource.New(ctx, resource.WithTelemetrySDK(), resource.WithAttributes(
		attribute.String("service.name", c.Service), attribute.String("service.version", c.Version)),
		resource.WithFromEnv())
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "read OTEL_RESOURCE_ATTRIBUTES")
	}
	return &Tracer{provider: sdk.NewTracerProvider(to, sdk.WithResource(about))}, nil
}

// closeLimit is how long the last spans may take to be exported.
const closeLimit = 3 * time.Second

// Close exports what is left.
func (t *Tracer) Close() error {
	if t == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), closeLimit)
	defer cancel()
	_ = t.provider.Shutdown(ctx) // a collector that is away must not fail the stop of a service
	return nil
}

// Span is a span of a request. nil does nothing.
type Span struct{ span otel.Span }

// Start begins a span below the one of ctx, and returns a context with it. scope names the part of the program, such
// as "lamina/router".
func (t *Tracer) Start(ctx context.Context, scope, name string, attrs ...attribute.KeyValue) (context.Context, *Span) {
	if t == nil {
		return ctx, nil
	}
	ctx, s := t.provider.Tracer(scope).Start(ctx, name, otel.WithSpanKind(otel.SpanKindServer),
		otel.WithAttributes(attrs...))
	return ctx, &Span{s}
}

// Adopt begins a span below the one of another process, given its traceparent. Without a valid one it returns nil.
func (t *Tracer) Adopt(traceparent, scope, name string) *Span {
	if t == nil || traceparent == "" {
		return nil
	}
	ctx := t.propagator.Extract(context.Background(), propagation.MapCarrier{"traceparent": traceparent})
	if !otel.SpanContextFromContext(ctx).IsSampled() {
		return nil
	}
	_, s := t.provider.Tracer(scope).Start(ctx, name)
	return &Span{s}
}

// Traceparent returns what Adopt takes, or an empty string if the span is not recorded.
func (s *Span) Traceparent() string {
	if s == nil || !s.span.SpanContext().IsSampled() {
		return ""
	}
	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(otel.ContextWithSpan(context.Background(), s.span), carrier)
	return carrier["traceparent"]
}

// Rename gives the span another name.
func (s *Span) Rename(name string) {
	if s != nil {
		s.span.SetName(name)
	}
}

// Set adds attributes.
func (s *Span) Set(attrs ...attribute.KeyValue) {
	if s != nil {
		s.span.SetAttributes(attrs...)
	}
}

// Event records that something has happened now.
func (s *Span) Event(name string, attrs ...attribute.KeyValue) {
	if s != nil {
		s.span.AddEvent(name, otel.WithAttributes(attrs...))
	}
}

// End ends the span, as failed if err is not nil.
func (s *Span) End(err error) {
	if s == nil {
		return
	}
	if err != nil {
		s.span.SetStatus(codes.Error, fault.CodeOf(err).String())
		s.span.SetAttributes(attribute.String("error.type", fault.CodeOf(err).String()))
	}
	s.span.End()
}

// Detach returns a context that has the span of from and nothing else of it, for work that outlives a call.
func Detach(ctx, from context.Context) context.Context {
	if c := otel.SpanContextFromContext(from); c.IsValid() {
		return otel.ContextWithSpanContext(ctx, c)
	}
	return ctx
}

// Below returns a context whose next span is below the one of another process, given its traceparent. Without a valid
// one it returns ctx.
func Below(ctx context.Context, traceparent string) context.Context {
	if traceparent == "" {
		return ctx
	}
	return propagation.TraceContext{}.Extract(ctx, propagation.MapCarrier{"traceparent": traceparent})
}

// traced are the calls that belong to one request. All others are shared by requests or belong to none.
func traced(info *stats.RPCTagInfo) bool {
	switch info.FullMethodName {
	case "/lamina.router.v1.RouterService/Generate", "/lamina.router.v1.RouterService/Chat",
		"/lamina.router.v1.RouterService/Resume", "/lamina.router.v1.RouterService/Embed",
		"/lamina.tokenizer.v1.TokenizerService/Encode", "/lamina.tokenizer.v1.TokenizerService/EncodeBatch",
		"/lamina.tokenizer.v1.TokenizerService/ApplyChatTemplate", "/lamina.shard.v1.ShardService/Embed":
		return true
	}
	return false
}

// ServerHandler and ClientHandler return what makes spans of calls; nil for a nil Tracer.
func (t *Tracer) ServerHandler() stats.Handler {
	if t == nil {
		return nil
	}
	return otelgrpc.NewServerHandler(otelgrpc.WithTracerProvider(t.provider), otelgrpc.WithPropagators(t.propagator),
		otelgrpc.WithFilter(traced))
}

// ClientHandler is ServerHandler for the calls that a process makes.
func (t *Tracer) ClientHandler() stats.Handler {
	if t == nil {
		return nil
	}
	return otelgrpc.NewClientHandler(otelgrpc.WithTracerProvider(t.provider), otelgrpc.WithPropagators(t.propagator),
		otelgrpc.WithFilter(traced))
}

// HTTP lets the spans of requests be part of their clients' traces, by the header traceparent.
func (t *Tracer) HTTP(next http.Handler) http.Handler {
	if t == nil {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx := t.propagator.Extract(r.Context(), propagation.HeaderCarrier(r.Header))
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}
