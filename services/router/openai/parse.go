package openai

import (
	"crypto/sha256"
	"strconv"
	"strings"

	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	"github.com/lamina-mesh/lamina/pkg/toolcall"
)

// parsing holds the parser settings that all choices of a chat share.
type parsing struct {
	tools     string
	reasoning bool // reasoning is separated from content
	one       bool // return at most one call
}

// reader parses the text of one choice into content, reasoning and calls.
type reader struct {
	p         *toolcall.Parser
	one       bool
	content   strings.Builder
	reasoning strings.Builder
	made      []toolCall
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

func (g *parsing) reader(i int, s *routerv1.Started) *reader {
	format := toolcall.Format{Calls: s.GetFormat().GetCalls()}
	if g.reasoning {
		format.Reasoning = s.GetFormat().GetReasoning()
	}
	return &reader{one: g.one, p: toolcall.New(format, toolcall.Options{
		Tools: []byte(g.tools), Prompt: s.GetPromptEnd(),
		ID: func(index int) string { return callID(s.GetRequestId(), i, index) },
	})}
}

// callID returns a call's id: nine letters and digits, which every chat template accepts.
func callID(request string, choice, index int) string {
	const letters = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	sum := sha256.Sum256([]byte(request + "/" + strconv.Itoa(choice) + "/" + strconv.Itoa(index)))
	out := make([]byte, 9)
	for i := range out {
		out[i] = letters[int(sum[i])%len(letters)]
	}
	return string(out)
}

// push parses more text.
func (r *reader) push(text string) toolcall.Delta { return r.keep(r.p.Push(text)) }

// end parses the last text of a choice.
func (r *reader) end(f *routerv1.Finished) toolcall.Delta {
	d := r.push(f.GetText())
	last := r.keep(r.p.Flush(f.GetFinishReason() == samplerv1.FinishReason_FINISH_REASON_LENGTH))
	d.Content += last.Content
	d.Reasoning += last.Reasoning
	for _, c := range last.Calls {
		if n := len(d.Calls); n > 0 && d.Calls[n-1].Index == c.Index {
			d.Calls[n-1].Arguments += c.Arguments
			continue
		}
		d.Calls = append(d.Calls, c)
	}
	return d
}

// keep adds a delta to the complete answer and drops excess calls.
func (r *reader) keep(d toolcall.Delta) toolcall.Delta {
	calls := d.Calls[:0:0]
	for _, c := range d.Calls {
		if r.one && c.Index > 0 {
			continue
		}
		calls = append(calls, c)
		if c.Index == len(r.made) {
			r.made = append(r.made, toolCall{ID: c.ID, Type: "function", Function: toolFunction{Name: c.Name}})
		}
		r.made[c.Index].Function.Arguments += c.Arguments
	}
	d.Calls = calls
	r.content.WriteString(d.Content)
	r.reasoning.WriteString(d.Reasoning)
	return d
}

// reason returns the finish reason of a choice.
func (r *reader) reason(f samplerv1.FinishReason) string {
	if len(r.made) > 0 && f != samplerv1.FinishReason_FINISH_REASON_LENGTH {
		return "tool_calls"
	}
	return reason(f)
}

// message returns a complete choice as a message object.
func (r *reader) message() map[string]any {
	out := map[string]any{"role": "assistant", "content": r.content.String(), "refusal": nil}
	if r.reasoning.Len() > 0 {
		out["reasoning_content"] = r.reasoning.String()
	}
	if len(r.made) > 0 {
		out["tool_calls"] = r.made
		if r.content.Len() == 0 {
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
