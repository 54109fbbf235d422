package template

import (
	"context"
	"strings"
)

// CallStyle is how a template expects messages with tool calls.
type CallStyle struct {
	Arguments Arguments
	Text      bool // missing content must be an empty string, not null
}

// HasCalls reports whether a message has tool calls, so that Adapt matters.
func (m *Message) HasCalls() bool { return strings.Contains(string(m.JSON), `"tool_calls"`) }

// Adapt passes messages with tool calls to the template in the form that it expects.
func (c CallStyle) Adapt(in *ChatInput) { in.Arguments, in.TextContent = c.Arguments, c.Text }

// ProbeCalls finds the style by rendering a sample. A template that concatenates the arguments
// with its own text, or prints an object in Python's notation, expects a string; one that
// fails for null content but not for empty content expects an empty string there.
func (t *Template) ProbeCalls(ctx context.Context, o Options) CallStyle {
	const key = "lamina_probe"
	ctx = context.WithoutCancel(ctx) // the result outlives the request
	try := func(content string, arguments Arguments) (string, bool) {
		r, err := t.Chat(ctx, ChatInput{
			Arguments: arguments,
			BOS:       "<s>",
			EOS:       "</s>",
			Tools: []byte(
				`[{"type":"function","function":{"name":"f","description":"f",` +
					`"parameters":{"type":"object",` +
					`"properties":{"x":{"type":"string","description":"x"}},"required":[]}}}]`,
			),
			Messages: []Message{{Role: "user", Content: "x"},
				{JSON: []byte(`{"role":"assistant","content":` + content +
					`,"tool_calls":[{"id":"call00000","type":"function","function":{"name":"f","arguments":{"` + key +
					`":"y"}}}]}`)}},
		}, o)
		return r.Text, err == nil
	}
	out := CallStyle{Arguments: ArgumentsAsObjects}
	if text, ok := try(`""`, out.Arguments); !ok || !strings.Contains(text, key) ||
		strings.Contains(text, "'"+key+"'") {
		if text, ok := try(`""`, ArgumentsAsText); ok && strings.Contains(text, key) {
			out.Arguments = ArgumentsAsText
		}
	}
	_, null := try("null", out.Arguments)
	_, empty := try(`""`, out.Arguments)
	out.Text = empty && !null
	return out
}
