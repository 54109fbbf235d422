package trainer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/lamina-mesh/lamina/pkg/corpus"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/vocab"
)

// prompts are what answers are sampled for. A sequence of a slot is a group: all answers to one prompt.
type prompts struct {
	rows             []prompt
	mixture          *corpus.Mixture
	slots, sequences int

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
	text, err := os.ReadFile(m.Data.Prompts)
	if err != nil {
		return nil, fault.Wrap(fault.NotFound, err, "data.prompts")
	}
	p := &prompts{slots: m.Slots, sequences: m.SlotSequences}
	d := &dataset{source: p, vocab: v, length: m.SequenceLen, isolate: true, begin: -1, end: -1}
	if bos, ok := v.BOS(); ok {
		d.begin = bos
	}
	if eos, ok := v.EOS(); ok {
		d.end = eos
	}
	for line := 1; len(text) > 0; line++ {
		row, rest, _ := bytes.Cut(text, []byte("\n"))
		text = rest
		if row = bytes.TrimSpace(row); len(row) == 0 {
			continue
		}
		one, err := parsePrompt(line, row, m, v.Size())
		if err != nil {
			return nil, err
		}
		p.rows = append(p.rows, *one)
		d.tokens += len(one.IDs)
	}
	if len(p.rows) == 0 {
		return nil, fault.Field("data.prompts", "%s has no rows", m.Data.Prompts)
	}
	if p.mixture, err = corpus.NewMixture(m.Seed, []corpus.Part{{Samples: int64(len(p.rows))}}); err != nil {
		return nil, err
	}
	d.about = fmt.Sprintf("%s: %d prompts, %d answers to each", m.Data.Prompts, len(p.rows), m.GRPO.Group)
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

// at returns the prompt of a sequence of a step: every epoch has each once, in an order of its own.
func (p *prompts) at(step uint64, slot, s int) (epoch int64, row *prompt) {
	n := (int64(step-1)*int64(p.slots)+int64(slot))*int64(p.sequences) + int64(s)
	at := p.mixture.At(n)
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
