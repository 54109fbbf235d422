package tokenizer

import (
	"context"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/template"
)

// callStyle is how a template expects messages with tool calls.
type callStyle struct {
	arguments template.Arguments
	text      bool // missing content must be an empty string, not null
}

// adaptCalls passes messages with tool calls to the template in the form that it expects.
func (c *chat) adaptCalls(ctx context.Context, in *template.ChatInput, o template.Options) {
	for _, m := range in.Messages {
		if strings.Contains(string(m.JSON), `"tool_calls"`) {
			c.probe.Do(func() { c.style = probe(ctx, c.template, o) })
			in.Arguments, in.TextContent = c.style.arguments, c.style.text
			return
		}
	}
}

// probe finds the style by rendering a sample. A template that concatenates the arguments
// with its own text, or prints an object in Python's notation, expects a string; one that
// fails for null content but not for empty content expects an empty string there.
func probe(ctx context.Context, t *template.Template, o template.Options) callStyle {
	const key = "lamina_probe"
	ctx = context.WithoutCancel(ctx) // the result outlives the request
	try := func(content string, arguments template.Arguments) (string, bool) {
		r, err := t.Chat(ctx, template.ChatInput{
			Arguments: arguments,
			BOS:       "<s>",
			EOS:       "</s>",
			Tools: []byte(
				`[{"type":"function","function":{"name":"f","description":"f",` +
					`"parameters":{"type":"object",` +
					`"properties":{"x":{"type":"string","description":"x"}},"required":[]}}}]`,
			),
			Messages: []template.Message{{Role: "user", Content: "x"},
				{JSON: []byte(`{"role":"assistant","content":` + content +
					`,"tool_calls":[{"id":"call00000","type":"function","function":{"name":"f","arguments":{"` + key +
					`":"y"}}}]}`)}},
		}, o)
		return r.Text, err == nil
	}
	out := callStyle{arguments: template.ArgumentsAsObjects}
	if text, ok := try(`""`, out.arguments); !ok || !strings.Contains(text, key) ||
		strings.Contains(text, "'"+key+"'") {
		if text, ok := try(`""`, template.ArgumentsAsText); ok && strings.Contains(text, key) {
			out.arguments = template.ArgumentsAsText
		}
	}
	_, null := try("null", out.arguments)
	_, empty := try(`""`, out.arguments)
	out.text = empty && !null
	return out
}
