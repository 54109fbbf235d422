package tuning

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// Preference is a row with two answers to one prompt.
type Preference struct {
	Line             int
	Chosen, Rejected *Conversation
}

// ParsePreference reads a row: {"prompt_ids", "chosen_ids", "rejected_ids"}; {"prompt", "chosen", "rejected"} of
// texts or of lists of messages; or {"chosen", "rejected"}, two conversations of which the last turn is compared.
// The error is a *RowError.
func ParsePreference(line int, text []byte) (*Preference, error) {
	f, err := rowOf(line, text)
	if err != nil {
		return nil, err
	}
	p := &Preference{Line: line}
	for _, side := range []struct {
		name string
		to   **Conversation
	}{{"chosen", &p.Chosen}, {"rejected", &p.Rejected}} {
		c := &Conversation{Line: line, Format: "preference"}
		r := &rowReader{fields: f, line: line, out: c}
		switch isList := strings.HasPrefix(strings.TrimSpace(string(f[side.name])), "["); {
		case f.has("prompt_ids") || f.has("chosen_ids"):
			prompt, answer := r.tokens("prompt_ids"), r.tokens(side.name+"_ids")
			c.Format = FormatIDs
			c.IDs = append(slices.Clone(prompt), answer...)
			c.Mask = append(make([]bool, len(prompt)), slices.Repeat([]bool{true}, len(answer))...)
		case f.has("prompt") && isList:
			r.common()
			c.Messages = append(r.chat("prompt", false), r.chat(side.name, true)...)
		case isList:
			r.common()
			c.Messages = r.chat(side.name, false)
			if n := len(c.Messages); r.err == nil && c.Messages[n-1].Role != roleAssistant {
				r.fail(side.name, "want a last message of the assistant, got one of %q", c.Messages[n-1].Role)
			} else if r.err == nil {
				c.Messages[n-1].Train = true
			}
		case f.has(side.name):
			r.common()
			r.pair(r.text("prompt"), r.text(side.name))
		default:
			r.fail(side.name, "is missing: want prompt, chosen and rejected, or their ids")
		}
		if r.err != nil {
			return nil, r.err
		}
		*side.to = c
	}
	return p, nil
}

// Pair is a preference as samples. The trained ids of each are its answer.
type Pair struct {
	Line             int
	Chosen, Rejected *Sample
}

// RenderPair turns a preference into samples. The error names the answer that the rules refuse.
func (r *Renderer) RenderPair(ctx context.Context, p *Preference) (*Pair, error) {
	out := &Pair{Line: p.Line}
	for _, side := range []struct {
		name string
		from *Conversation
		to   **Sample
	}{{"chosen", p.Chosen, &out.Chosen}, {"rejected", p.Rejected, &out.Rejected}} {
		s, err := r.Render(ctx, side.from)
		if err != nil {
			return nil, err
		}
		if n, refused := s.Refused(); refused {
			return nil, fault.Field(fmt.Sprintf("line %d: %s", p.Line, side.name), "%s %s", n.Reason, n.Detail)
		}
		*side.to = s
	}
	return out, nil
}
