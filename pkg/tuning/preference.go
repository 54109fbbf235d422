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

// ParsePreference reads a row: {"prompt_ids", "chosen_ids", "rejected_ids"}; {"chosen": {"ids", "mask"}, "rejected":
// {"ids", "mask"}}; {"prompt", "chosen", "rejected"} of texts or of lists of messages; or {"chosen", "rejected"}, two
// conversations of which the last turn is compared. The error is a *RowError.
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
		case strings.HasPrefix(strings.TrimSpace(string(f[side.name])), "{"):
			answer, err := ParseRow(line, f[side.name], FormatIDs)
			if err != nil {
				return nil, err
			}
			*side.to = answer
			continue
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

// Rows returns the number of rows that both answers with their prompts take in training.
func (p *Pair) Rows() int { return len(p.Chosen.IDs) - 1 + len(p.Rejected.IDs) - 1 }

// Refused returns why the pair is not trained, if it is not. The note's detail names the answer.
func (p *Pair) Refused() (Note, bool) {
	for _, side := range p.sides() {
		if n, refused := side.sample.Refused(); refused {
			n.Detail = strings.TrimSpace(side.name + " " + n.Detail)
			return n, true
		}
	}
	return Note{}, false
}

// side is an answer of a pair.
type side struct {
	name   string
	sample *Sample
}

func (p *Pair) sides() []side { return []side{{"chosen", p.Chosen}, {"rejected", p.Rejected}} }

// Pair turns a preference into samples, which may be refused. rows is the largest number of rows of a pair that is
// trained; 0 for no limit.
func (r *Renderer) Pair(ctx context.Context, p *Preference, rows int) (*Pair, error) {
	out := &Pair{Line: p.Line}
	var err error
	if out.Chosen, err = r.Render(ctx, p.Chosen); err != nil {
		return nil, err
	}
	if out.Rejected, err = r.Render(ctx, p.Rejected); err != nil {
		return nil, err
	}
	if _, refused := out.Refused(); !refused && rows > 0 && out.Rows() > rows {
		out.Chosen.note(-1, TooLong, true, "and rejected take %d rows together, a sequence has %d", out.Rows(), rows)
	}
	return out, nil
}

// RenderPair turns a preference into samples. The error names the answer that the rules refuse.
func (r *Renderer) RenderPair(ctx context.Context, p *Preference) (*Pair, error) {
	out, err := r.Pair(ctx, p, 0)
	if err != nil {
		return nil, err
	}
	if n, refused := out.Refused(); refused {
		return nil, fault.Field(fmt.Sprintf("line %d", p.Line), "%s: %s", n.Reason, n.Detail)
	}
	return out, nil
}
