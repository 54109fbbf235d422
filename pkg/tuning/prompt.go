package tuning

import (
	"context"
	"fmt"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/vocab"
)

// Prompt is a row that a model answers, with the right answer if there is one.
type Prompt struct {
	Line   int
	Text   string // what rewards see: the prompt, or the text of messages as the template writes it
	Answer string
	IDs    []int32 // as in service
}

// ParsePrompt reads a row: {"prompt"}, a text or a list of messages, or {"messages"}, or {"prompt_ids"}; and
// "answer". The conversation has no answer of the assistant. The error is a *RowError.
func ParsePrompt(line int, text []byte) (c *Conversation, answer string, err error) {
	f, err := rowOf(line, text)
	if err != nil {
		return nil, "", err
	}
	c = &Conversation{Line: line, Format: "prompt"}
	r := &rowReader{fields: f, line: line, out: c}
	if f.has("answer") {
		answer = strings.Trim(string(f["answer"]), `"`)
		if strings.HasPrefix(string(f["answer"]), `"`) {
			answer = r.text("answer")
		}
	}
	switch isList := strings.HasPrefix(strings.TrimSpace(string(f["prompt"])), "["); {
	case f.has("prompt_ids"):
		c.Prompt, c.IDs = r.optional("prompt"), r.tokens("prompt_ids")
		if r.err == nil && len(c.IDs) == 0 {
			r.fail("prompt_ids", "want at least one token id")
		}
	case f.has("prompt") && isList:
		r.common()
		c.Messages = r.chat("prompt", false)
	case f.has("prompt"):
		r.common()
		c.Prompt = r.text("prompt")
		if system := r.optional("system"); system != "" {
			c.Messages = append(c.Messages, made(roleSystem, system, false))
		}
		c.Messages = append(c.Messages, made(roleUser, c.Prompt, false))
	case f.has("messages"):
		r.common()
		c.Messages = r.chat("messages", false)
	default:
		r.fail("prompt", "is missing: want prompt, messages or prompt_ids")
	}
	if r.err != nil {
		return nil, "", r.err
	}
	return c, answer, nil
}

// Prompt encodes what comes before an answer, as in service. most bounds the ids; 0 for no limit. The error is
// Invalid for a prompt that cannot be encoded, or one of ctx.
func (r *Renderer) Prompt(ctx context.Context, c *Conversation, answer string, most int) (*Prompt, error) {
	out := &Prompt{Line: c.Line, Text: c.Prompt, Answer: answer, IDs: c.IDs}
	var err error
	switch {
	case c.IDs != nil:
	case r.vocab == nil:
		err = fault.New(fault.FailedPrecondition, "the model has no vocabulary")
	case r.template == nil && c.Prompt != "":
		out.IDs, err = r.vocab.Encode(c.Prompt, vocab.Options{BOS: true})
	case r.template == nil:
		err = fault.New(fault.FailedPrecondition, "the model has no chat template; --template names one")
	default:
		written, failure := r.write(ctx, c, len(c.Messages), true)
		if err = failure; err != nil {
			break
		}
		enc, failure := r.encode(written)
		out.IDs, err = enc.IDs, failure
		if out.Text == "" {
			out.Text = written.Text
		}
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err == nil && (len(out.IDs) == 0 || most > 0 && len(out.IDs) > most) {
		err = fmt.Errorf("%d ids, want 1 to %d", len(out.IDs), most)
	}
	if err != nil {
		return nil, fault.Field(fmt.Sprintf("line %d", c.Line), "%v", err)
	}
	return out, nil
}
