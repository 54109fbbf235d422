package tokenizer

import (
	"context"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/template"
)

// argumentsAsTold has the arguments of calls given to the template as it expects
// them, where there are calls.
func (c *chat) argumentsAsTold(ctx context.Context, in *template.ChatInput, o template.Options) {
	for _, m := range in.Messages {
		if strings.Contains(string(m.JSON), `"tool_calls"`) {
			c.probe.Do(func() { c.arguments = wantedArguments(ctx, c.template, o) })
			in.Arguments = c.arguments
			return
		}
	}
}

// wantedArguments finds out by trying: a template that joins arguments to its own
// text, or writes an object as Python does, wants text.
func wantedArguments(ctx context.Context, t *template.Template, o template.Options) template.Arguments {
	const key = "lamina_probe"
	ctx = context.WithoutCancel(ctx) // what is found out stays
	try := func(arguments template.Arguments) (string, bool) {
		turns := []string{`{"role":"user","content":"x"}`,
			`{"role":"assistant","content":"","tool_calls":[{"id":"call00000","type":"function","function":{"name":"f","arguments":{"` + key + `":"y"}}}]}`}
		in := template.ChatInput{Arguments: arguments, BOS: "<s>", EOS: "</s>",
			Tools: []byte(`[{"type":"function","function":{"name":"f","description":"f","parameters":{"type":"object","properties":{"x":{"type":"string","description":"x"}},"required":[]}}}]`)}
		for _, turn := range turns {
			in.Messages = append(in.Messages, template.Message{JSON: []byte(turn)})
		}
		r, err := t.Chat(ctx, in, o)
		if err != nil {
			return "", false
		}
		return r.Text, true
	}
	object, ok := try(template.ArgumentsAsObjects)
	if ok && strings.Contains(object, key) && !strings.Contains(object, "'"+key+"'") {
		return template.ArgumentsAsObjects
	}
	if text, ok := try(template.ArgumentsAsText); ok && strings.Contains(text, key) {
		return template.ArgumentsAsText
	}
	return template.ArgumentsAsObjects
}
