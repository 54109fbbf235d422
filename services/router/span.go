package router

import (
	"context"

	"go.opentelemetry.io/otel/attribute"

	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
)

// startSpan begins the span of a request, with the attributes that OpenTelemetry's conventions for generative models
// give it. Neither prompts nor answers are part of it.
func (q *request) startSpan(ctx context.Context) context.Context {
	if q.service.cfg.Tracer == nil {
		return ctx
	}
	attrs := []attribute.KeyValue{
		attribute.String("gen_ai.operation.name", q.operation()), attribute.String("gen_ai.provider.name", "lamina"),
		attribute.String("gen_ai.request.model", q.model), attribute.String("gen_ai.response.id", q.id),
		attribute.Int("gen_ai.request.choice.index", int(q.sampling.GetChoice())),
	}
	if q.maxTokens > 0 {
		attrs = append(attrs, attribute.Int("gen_ai.request.max_tokens", int(q.maxTokens)))
	}
	if s := q.sampling; s != nil {
		if s.Temperature != nil {
			attrs = append(attrs, attribute.Float64("gen_ai.request.temperature", float64(s.GetTemperature())))
		}
		if s.TopP != nil {
			attrs = append(attrs, attribute.Float64("gen_ai.request.top_p", float64(s.GetTopP())))
		}
	}
	ctx, q.span = q.service.cfg.Tracer.Start(ctx, "lamina/router", q.operation(), attrs...)
	return ctx
}

// operation is what the conventions call the request.
func (q *request) operation() string {
	if q.field == "messages" {
		return "chat"
	}
	return "text_completion"
}

// endSpan ends the span with what has become of the request.
func (q *request) endSpan(err error) {
	if q.span == nil {
		return
	}
	if q.meters != nil {
		q.span.Rename(q.operation() + " " + q.meters.label)
		q.span.Set(attribute.String("gen_ai.response.model", q.meters.label))
	}
	q.span.Set(
		attribute.Int("gen_ai.usage.input_tokens", len(q.prompt)),
		attribute.Int("gen_ai.usage.output_tokens", max(0, len(q.log)-len(q.prompt))),
		attribute.Int("lamina.cached_tokens", q.cached),
	)
	switch q.reason {
	case samplerv1.FinishReason_FINISH_REASON_STOP:
		q.span.Set(attribute.StringSlice("gen_ai.response.finish_reasons", []string{"stop"}))
	case samplerv1.FinishReason_FINISH_REASON_LENGTH:
		q.span.Set(attribute.StringSlice("gen_ai.response.finish_reasons", []string{"length"}))
	case samplerv1.FinishReason_FINISH_REASON_UNSPECIFIED:
	}
	q.span.End(err)
}
