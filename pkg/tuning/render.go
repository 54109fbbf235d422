package tuning

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/template"
	"github.com/lamina-mesh/lamina/pkg/vocab"
)

// Renderer turns conversations into samples.
type Renderer struct {
	vocab    *vocab.Vocab
	template *template.Template // nil for a model without one
	special  map[string]string
	o        template.Options
	rules    Rules
	control  bool
	ends     map[int32]bool // ids that end a turn

	probe sync.Once
	style template.CallStyle
}

// Config describes a model to render for.
type Config struct {
	Vocab    *vocab.Vocab      // nil if all rows are token ids
	Template string            // the chat template; empty for a model without one
	Special  map[string]string // special tokens by the variable that templates read
	Options  template.Options
	Rules    Rules
	// ControlText recognises control tokens in the text of messages, as transformers does. Without it they
	// stay text, as in service.
	ControlText bool
}

// New returns a renderer.
func New(c Config) (*Renderer, error) {
	r := &Renderer{vocab: c.Vocab, special: c.Special, o: c.Options, rules: c.Rules, control: c.ControlText,
		ends: map[int32]bool{}}
	if !slices.Contains([]string{"", LongRefuse, LongTurns, LongTokens}, c.Rules.Long) {
		return nil, fault.Field("long", "%q is none of %s, %s and %s", c.Rules.Long, LongRefuse, LongTurns, LongTokens)
	}
	if c.Vocab == nil {
		return r, nil
	}
	for _, id := range c.Vocab.EOG() {
		r.ends[id] = true
	}
	if id, ok := c.Vocab.EOS(); ok {
		r.ends[id] = true
	}
	if c.Template != "" {
		t, err := template.Parse(c.Template)
		if err != nil {
			return nil, fault.Wrap(fault.FailedPrecondition, err, "parse the chat template")
		}
		r.template = t
	}
	return r, nil
}

// HasTemplate reports whether conversations are written with a chat template.
func (r *Renderer) HasTemplate() bool { return r.template != nil }

// Render turns a conversation into a sample. What the rules refuse has a note that says so. The error is one
// of ctx only.
func (r *Renderer) Render(ctx context.Context, c *Conversation) (*Sample, error) {
	s := &Sample{Line: c.Line, Format: c.Format}
	var err error
	switch {
	case c.IDs != nil:
		r.idsOf(s, c)
	case r.vocab == nil:
		err = fault.New(fault.FailedPrecondition, "the model has no vocabulary")
	case c.Raw || r.template == nil && c.Prompt+c.Completion != "":
		err = r.raw(s, c)
	case r.template == nil:
		err = fault.New(fault.FailedPrecondition, "the model has no chat template; --template names one")
	default:
		err = r.chat(ctx, s, c)
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		s.IDs, s.Mask, s.Spans, s.Turns = nil, nil, nil, nil
		s.note(-1, TemplateError, true, "%v", err)
		return s, nil
	}
	r.rules.apply(s)
	return s, nil
}

// idsOf takes over a row that is encoded already.
func (r *Renderer) idsOf(s *Sample, c *Conversation) {
	s.IDs, s.Mask = c.IDs, c.Mask
	for i := 0; i < len(s.Mask); i++ {
		if !s.Mask[i] {
			continue
		}
		from := i
		for i < len(s.Mask) && s.Mask[i] {
			i++
		}
		s.Turns = append(s.Turns, Turn{From: from, To: i, Message: -1, Ended: r.ends[s.IDs[i-1]]})
	}
	for _, id := range s.IDs {
		if r.vocab != nil && int(id) >= r.vocab.Size() {
			s.note(-1, Unreadable, true, "id %d is outside the vocabulary of %d", id, r.vocab.Size())
			return
		}
	}
}

// raw joins a prompt and a completion. The completion is trained, and the end-of-text token behind it.
func (r *Renderer) raw(s *Sample, c *Conversation) error {
	s.Text = c.Prompt + c.Completion
	enc, err := r.vocab.EncodeSpans(s.Text, vocab.Options{BOS: true})
	if err != nil {
		return err
	}
	s.IDs, s.Spans = enc.IDs, enc.Spans
	from := len(c.Prompt)
	s.Mask = make([]bool, len(s.IDs))
	r.cover(s, from, len(s.Text))
	if eos, ok := r.vocab.EOS(); ok && len(c.Completion) > 0 {
		if n := len(s.IDs); n == 0 || s.IDs[n-1] != eos || s.Spans[n-1] != [2]int{len(s.Text), len(s.Text)} {
			s.IDs, s.Mask = append(s.IDs, eos), append(s.Mask, true)
			s.Spans = append(s.Spans, [2]int{len(s.Text), len(s.Text)})
		}
		s.Mask[len(s.Mask)-1] = true
	}
	if first := slices.Index(s.Mask, true); first >= 0 {
		s.Turns = []Turn{{From: first, To: len(s.IDs), Message: -1, Ended: r.ends[s.IDs[len(s.IDs)-1]]}}
	}
	return nil
}

// cover marks the ids that stand for any of the bytes [from, to). It returns their range.
func (r *Renderer) cover(s *Sample, from, to int) (lo, hi int) {
	lo = -1
	for i, span := range s.Spans {
		if span[0] < to && span[1] > from {
			s.Mask[i] = true
			if lo < 0 {
				lo = i
			}
			hi = i + 1
		}
	}
	return lo, hi
}

// write renders the first n messages of a conversation.
func (r *Renderer) write(ctx context.Context, c *Conversation, n int, prompt bool) (template.Result, error) {
	in := template.ChatInput{Tools: c.Tools, Variables: c.Variables, Special: r.special, AddGenerationPrompt: prompt}
	for _, m := range c.Messages[:n] {
		in.Messages = append(in.Messages, template.Message{JSON: m.JSON})
	}
	for i := range in.Messages {
		if in.Messages[i].HasCalls() {
			r.probe.Do(func() { r.style = r.template.ProbeCalls(ctx, r.o) })
			r.style.Adapt(&in)
			break
		}
	}
	return r.template.Chat(ctx, in, r.o)
}

// encode encodes a rendered text as the tokenizer service does.
func (r *Renderer) encode(t template.Result) (vocab.Encoding, error) {
	o := vocab.Options{Special: true}
	if !r.control {
		o.Plain = t.Data
	}
	return r.vocab.EncodeSpans(t.Text, o)
}

// chat writes a conversation with the template and finds its turns.
func (r *Renderer) chat(ctx context.Context, s *Sample, c *Conversation) error {
	if len(c.Messages) == 0 {
		return errors.New("there are no messages")
	}
	whole, err := r.write(ctx, c, len(c.Messages), false)
	if err != nil {
		return err
	}
	enc, err := r.encode(whole)
	if err != nil {
		return err
	}
	s.Text, s.IDs, s.Spans = whole.Text, enc.IDs, enc.Spans
	s.Mask = make([]bool, len(s.IDs))
	t := &turns{Renderer: r, ctx: ctx, c: c, s: s, whole: whole}
	if len(whole.Generated) > 0 {
		err = t.generated()
	} else {
		err = t.prefixes()
	}
	if err == nil && r.control {
		t.noteControls()
	}
	return err
}

func (r *Renderer) kind(id int32) vocab.Kind {
	_, kind, _ := r.vocab.Token(id) // the vocabulary has made the id
	return kind
}
