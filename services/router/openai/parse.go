package openai

import (
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	"github.com/lamina-mesh/lamina/pkg/toolcall"
	"github.com/lamina-mesh/lamina/services/router/httpapi"
)

// reader parses the text of one choice into content, reasoning and calls.
type reader struct{ *httpapi.Answer }

func newReader(p *httpapi.Parsing, choice int, s *routerv1.Started) *reader {
	return &reader{p.NewAnswer(choice, s)}
}

// toolCall is OpenAI's object. In a stream it has an index, and only the first part of a call
// has id and name.
type toolCall struct {
	Index    *int         `json:"index,omitempty"`
	ID       string       `json:"id,omitempty"`
	Type     string       `json:"type,omitempty"`
	Function toolFunction `json:"function"`
}

type toolFunction struct {
	Name      string `json:"name,omitempty"`
	Arguments string `json:"arguments"`
}

// reason returns the finish reason of a choice.
func (r *reader) reason(f samplerv1.FinishReason) string {
	if len(r.Calls) > 0 && f != samplerv1.FinishReason_FINISH_REASON_LENGTH {
		return "tool_calls"
	}
	return reason(f)
}

// message returns a complete choice as a message object.
func (r *reader) message() map[string]any {
	out := map[string]any{"role": "assistant", "content": r.Content(), "refusal": nil}
	if r.Reasoning() != "" {
		out["reasoning_content"] = r.Reasoning()
	}
	if len(r.Calls) > 0 {
		calls := make([]toolCall, len(r.Calls))
		for i, c := range r.Calls {
			calls[i] = toolCall{ID: c.ID, Type: "function", Function: toolFunction{c.Name, c.Arguments}}
		}
		out["tool_calls"] = calls
		if r.Content() == "" {
			out["content"] = nil
		}
	}
	return out
}

// show writes a delta into a JSON delta object.
func show(d toolcall.Delta, into map[string]any) {
	if d.Content != "" {
		into["content"] = d.Content
	}
	if d.Reasoning != "" {
		into["reasoning_content"] = d.Reasoning
	}
	if len(d.Calls) == 0 {
		return
	}
	calls := make([]toolCall, len(d.Calls))
	for i, c := range d.Calls {
		calls[i] = toolCall{Index: &c.Index, ID: c.ID, Function: toolFunction{Name: c.Name, Arguments: c.Arguments}}
		if c.Name != "" {
			calls[i].Type = "function"
		}
	}
	into["tool_calls"] = calls
}
