package main

import (
	"github.com/lamina-mesh/lamina/cmd/lamina/internal/verb"
	"github.com/lamina-mesh/lamina/pkg/adapter"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/tuning"
)

// evalGroup is the group of commands that evaluate a model.
type evalGroup struct {
	evalTasks
	Loss       evalLossCmd       `cmd:"" help:"Measure the loss over the trained tokens of conversations or token ids."`
	Preference evalPreferenceCmd `cmd:"" help:"Measure the loss of direct preference optimization (DPO) over pairs of answers, and how often the chosen one wins."`
}

// evalModel names a model to evaluate.
type evalModel struct {
	verb.KernelFlags
	Model   string `short:"m" required:"" help:"GGUF file or Hugging Face folder." type:"model"`
	Adapter string `help:"Folder of a low-rank adapter (PEFT's layout) to put on the model."`
	Stages  int    `help:"Number of stages into which the model is split." default:"1"`
	Format  string `help:"Output: text or json." enum:"text,json" default:"text"`
}

// open opens the model and its adapter, and calls body. It loads no weights of the model.
func (c *evalModel) open(body func(*opened) error) error {
	var a *adapter.Adapter
	if c.Adapter != "" {
		var err error
		if a, err = adapter.Open(c.Adapter); err != nil {
			return err
		}
	}
	return verb.WithModel(c.Model, c.KernelFlags, func(f *model.Files, set kernel.Set[float32]) error {
		return body(&opened{Files: f, set: set, stages: c.Stages, adapter: a})
	})
}

// opened is an open model.
type opened struct {
	*model.Files
	set     kernel.Set[float32]
	stages  int
	adapter *adapter.Adapter
	chain   *verb.Chain
}

// load loads the weights, with room for a sequence of any of the samples.
func (m *opened) load(samples []*tuning.Sample) (err error) {
	longest := 1
	for _, s := range samples {
		if err := m.check(s); err != nil {
			return err
		}
		longest = max(longest, len(s.IDs))
	}
	m.chain, err = verb.LoadChain(m.Files, m.stages, 1, longest, m.set, model.LoadOptions{Adapter: m.adapter})
	return err
}

// evalBatch is the number of ids that are computed at once.
const evalBatch = 512

// logLikelihoods returns the sum of the negative log-likelihoods of the trained ids of a sample, and their number.
func (m *opened) logLikelihoods(s *tuning.Sample) (sum float64, n int, err error) {
	ids, targets := s.Targets()
	seq := m.chain.NewSequence()
	defer seq.Free()
	last := 0 // nothing after the last target matters
	for i, t := range targets {
		if t >= 0 {
			last = i + 1
		}
	}
	for at := 0; at < last; at += evalBatch {
		end := min(at+evalBatch, last)
		first := end // the first row of the batch whose logits matter
		for i := end - 1; i >= at; i-- {
			if targets[i] >= 0 {
				first = i
			}
		}
		logits, err := m.chain.Forward(verb.Entry{Seq: seq, IDs: ids[at:end], Logits: end - first})
		if err != nil {
			return 0, 0, err
		}
		if first == end {
			continue
		}
		loss := make([]float64, end-first)
		m.set.CrossEntropy(loss, nil, logits, targets[first:end], 1, end-first, len(logits)/(end-first))
		for i, l := range loss {
			if targets[first+i] >= 0 {
				sum += l
				n++
			}
		}
	}
	return sum, n, nil
}

// check returns an error if a sample does not fit the model.
func (m *opened) check(s *tuning.Sample) error {
	if len(s.IDs) > m.Spec.Context {
		return fault.Field("data", "line %d: %d ids, the context length of %s is %d", s.Line, len(s.IDs), m.Path,
			m.Spec.Context)
	}
	for _, id := range s.IDs {
		if int(id) >= m.Spec.Vocab {
			return fault.Field("data", "line %d: id %d, the vocabulary of %s has %d", s.Line, id, m.Path, m.Spec.Vocab)
		}
	}
	return nil
}
