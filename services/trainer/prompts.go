package trainer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/lamina-mesh/lamina/internal/plural"
	"github.com/lamina-mesh/lamina/pkg/corpus"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/vocab"
)

// prompts are what answers are sampled for. A sequence of a slot is a group: all answers to one prompt.
type prompts struct {
	order
	rows []prompt

	round *round // of the last step
}

// prompt is a row of a file of prompts.
type prompt struct {
	line int

	IDs    []int32 `json:"prompt_ids"`
	Text   string  `json:"prompt"` // what rewards see
	Answer string  `json:"answer"` // what rewards compare with
}

// readPrompts reads the file of prompts.
func readPrompts(_ context.Context, m *Manifest, v *vocab.Vocab) (*dataset, error) {
	p := &prompts{}
	d := encoded(p, m, v)
	err := eachRow("data.prompts", m.Data.Prompts, func(line int, row []byte) error {
		one, err := parsePrompt(line, row, m, v.Size())
		if err != nil {
			return err
		}
		p.rows = append(p.rows, *one)
		d.tokens += len(one.IDs)
		return nil
	})
	if err != nil {
		return nil, err
	}
	if p.order, err = newOrder(m, corpus.Part{Samples: int64(len(p.rows))}); err != nil {
		return nil, err
	}
	d.about = fmt.Sprintf("%s: %s, %s to each", m.Data.Prompts, plural.Of(len(p.rows), "prompt"),
		plural.Of(m.GRPO.Group, "answer"))
	return d, nil
}

// parsePrompt reads a row {"prompt_ids", "prompt", "answer"}. The longest answers to it fit into a sequence.
func parsePrompt(line int, row []byte, m *Manifest, size int) (*prompt, error) {
	out := &prompt{line: line}
	d := json.NewDecoder(bytes.NewReader(row))
	d.DisallowUnknownFields()
	err := d.Decode(out)
	if _, more := d.Token(); err == nil && !errors.Is(more, io.EOF) {
		err = errors.New("more than one JSON value")
	}
	if err != nil {
		return nil, fault.Field("data.prompts", "line %d: %v", line, err)
	}
	if len(out.IDs) == 0 {
		return nil, fault.Field("data.prompts", "line %d: want prompt_ids; lamina tune encodes texts", line)
	}
	for i, id := range out.IDs {
		if id < 0 || int(id) >= size {
			return nil, fault.Field("data.prompts", "line %d: id %d at %d is outside the vocabulary of %d", line, id, i,
				size)
		}
	}
	if rows := m.GRPO.Group * (len(out.IDs) + m.GRPO.MaxTokens - 1); rows > m.SequenceLen {
		return nil, fault.Field("data.prompts", "line %d: %d answers of %d tokens take %d rows, sequence_len is %d", line,
			m.GRPO.Group, m.GRPO.MaxTokens, rows, m.SequenceLen)
	}
	return out, nil
}

// within checks that the longest answer to each prompt is within the context length. A router would refuse the prompt
// or cut the answer in the middle of a run.
func (p *prompts) within(context, maxTokens int) error {
	for i := range p.rows {
		if n := len(p.rows[i].IDs); n+maxTokens > context {
			return fault.Field("data.prompts", "line %d: a prompt of %d ids and an answer of %d are more than the context of %d",
				p.rows[i].line, n, maxTokens, context)
		}
	}
	return nil
}

// at returns the prompt of a sequence of a step.
func (p *prompts) at(step uint64, slot, s int) (epoch int64, row *prompt) {
	at := p.place(step, slot, s)
	return at.Epoch, &p.rows[at.Sample]
}

// sequence returns the answers of a group, which have been sampled.
func (p *prompts) sequence(step uint64, slot, s int) (*sequence, error) {
	if p.round == nil || p.round.step != step {
		return nil, fault.New(fault.Internal, "read the answers of step %d: they have not been sampled", step)
	}
	return p.round.groups[slot*p.sequences+s].sequence, nil
}

// held returns 0: answers are sampled for training only.
func (p *prompts) held() int64 { return 0 }

func (p *prompts) heldSequence(i int64) (*sequence, error) {
	return nil, fault.New(fault.Internal, "read validation sequence %d: there is none", i)
}

func (p *prompts) close() error { return nil }
