package tokenizer

import (
	"context"

	"github.com/lamina-mesh/lamina/pkg/template"
)

// adaptCalls passes messages with tool calls to the template in the form that it expects.
func (c *chat) adaptCalls(ctx context.Context, in *template.ChatInput, o template.Options) {
	for _, m := range in.Messages {
		if m.HasCalls() {
			c.probe.Do(func() { c.style = c.template.ProbeCalls(ctx, o) })
			c.style.Adapt(in)
			return
		}
	}
}
