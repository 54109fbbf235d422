package responses

import (
	"encoding/json"

	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/services/router/httpapi"
)

// object returns the response object in the given state. Parameters that the request leaves out are shown with
// their defaults; those of the model are not known here and shown as 1.
func (o *run) object(status string, u *routerv1.Usage) object {
	c := o.c
	out := object{
		"id":                   o.id,
		"object":               "response",
		"created_at":           o.created,
		"completed_at":         nil,
		"status":               status,
		"model":                o.model,
		"output":               o.made.output(),
		"error":                nil,
		"incomplete_details":   nil,
		"usage":                nil,
		"instructions":         c.Instructions,
		"previous_response_id": c.Previous,
		"max_output_tokens":    c.MaxOutputTokens,
		"max_tool_calls":       c.MaxToolCalls,
		"temperature":          number(c.Temperature),
		"top_p":                number(c.TopP),
		"top_logprobs":         0,
		"presence_penalty":     c.PresencePenalty,
		"frequency_penalty":    c.FrequencyPenalty,
		"store":                c.stores(),
		"background":           false,
		"service_tier":         "default",
		"truncation":           "disabled",
		"tools":                tools(c.Tools),
		"tool_choice":          json.RawMessage(`"auto"`),
		"parallel_tool_calls":  c.ParallelToolCalls == nil || *c.ParallelToolCalls,
		"text": object{
			"format": object{"type": "text"},
		},
		"reasoning": object{"effort": nil, "summary": nil},
		"metadata": json.RawMessage(
			"{}",
		),
		"user":              c.User,
		"safety_identifier": c.SafetyID,
		"prompt_cache_key":  c.CacheKey,
	}
	if httpapi.Given(c.Metadata) {
		out["metadata"] = c.Metadata
	}
	if httpapi.Given(c.ToolChoice) {
		out["tool_choice"] = c.ToolChoice
	}
	if c.TopLogprobs != nil {
		out["top_logprobs"] = *c.TopLogprobs
	}
	if c.Truncation != nil {
		out["truncation"] = *c.Truncation
	}
	if c.Reasoning != nil {
		out["reasoning"] = object{"effort": c.Reasoning.Effort, "summary": c.Reasoning.Summary}
	}
	if c.Text != nil && c.Text.Format != nil {
		out["text"] = object{"format": c.Text.Format.shown()}
	}
	if status == incomplete {
		out["incomplete_details"] = object{"reason": "max_output_tokens"}
	}
	if u != nil {
		out["usage"] = object{
			"input_tokens": u.GetPromptTokens(), "input_tokens_details": object{"cached_tokens": u.GetCachedTokens()},
			"output_tokens": u.GetCompletionTokens(), "output_tokens_details": object{"reasoning_tokens": o.thought},
			"total_tokens": u.GetPromptTokens() + u.GetCompletionTokens(),
		}
	}
	return out
}

func number(v *float32) float32 {
	if v == nil {
		return 1
	}
	return *v
}

// tools returns the tools of a request as the response shows them.
func tools(list []json.RawMessage) []any {
	out := make([]any, len(list))
	for i, raw := range list {
		shown := object{}
		if json.Unmarshal(raw, &shown) != nil {
			shown = object{}
		}
		if shown["type"] == "function" {
			for _, name := range []string{"description", "parameters", "strict"} {
				if _, given := shown[name]; !given {
					shown[name] = nil
				}
			}
		}
		out[i] = shown
	}
	return out
}
