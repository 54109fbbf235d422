package tokenizer

import (
	"context"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/template"
)

// wants is how a template expects turns with calls.
type wants struct {
	arguments template.Arguments
	text      bool // no content is empty text, not null
}

// asWanted has turns with calls given to the template as it expects them.
func (c *chat) asWanted(ctx context.Context, in *template.ChatInput, o template.Options) {
	for _, m := range in.Messages {
		if strings.Contains(string(m.JSON), `"tool_calls"`) {
			c.probe.Do(func() { c.wants = probe(ctx, c.template, o) })
			in.Arguments, in.TextContent = c.wants.arguments, c.wants.text
			return
		}
	}
}

// probe finds out by trying. A template that joins arguments to its own text, or
// writes an object as Python does, wants text; one that fails where content is null
// and does not where it is empty wants text there.
func probe(ctx context.Context, t *template.Template, o template.Options) wants {
	const key = "lamina_probe"
	ctx = context.WithoutCancel(ctx) // what is found out stays
	try := func(content string, arguments template.Arguments) (string, bool) {
		r, err := t.Chat(ctx, template.ChatInput{
			Arguments: arguments, BOS: "<s>", EOS: "</s>",
			Tools: []byte(`[{"type":"function","function":{"name":"f","description":"f","parameters":{"type":"object","properties":{"x":{"type":"string","description":"x"}},"required":[]}}}]`),
			Messages: []template.Message{{Role: "user", Content: "x"}, {JSON: []byte(`{"role":"assistant","content":` + content +
				`,"tool_calls":[{"id":"call00000","type":"function","function":{"name":"f","arguments":{"` + key + `":"y"}}}]}`)}},
		}, o)
		return r.Text, err == nil
	}
	out := wants{arguments: template.ArgumentsAsObjects}
	if text, ok := try(`""`, out.arguments); !ok || !strings.Contains(text, key) || strings.Contains(text, "'"+key+"'") {
		if text, ok := try(`""`, template.ArgumentsAsText); ok && strings.Contains(text, key) {
			out.arguments = template.ArgumentsAsText
		}
	}
	_, null := try("null", out.arguments)
	_, empty := try(`""`, out.arguments)
	out.text = empty && !null
	return out
}
