package trainer

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"slices"

	"github.com/lamina-mesh/lamina/pkg/corpus"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/tuning"
	"github.com/lamina-mesh/lamina/pkg/vocab"
)

// packExamples is the packing that gives every example a sequence of its own. corpus.PackBestFit puts several
// into one.
const packExamples = "none"

// examples are conversations or other samples that are encoded already. A sample is never divided, and attention
// keeps the samples of a sequence apart, so the packing changes no loss.
type examples struct {
	train, validation []corpus.Sample
	names             []string // of the training sequences
	mixture           *corpus.Mixture
	slots, sequences  int
}

// readExamples reads the files of examples and packs them into sequences.
func readExamples(_ context.Context, m *Manifest, v *vocab.Vocab) (*dataset, error) {
	all, err := readExampleFile("data.examples", m.Data.Examples, m, v)
	if err != nil {
		return nil, err
	}
	var held []*tuning.Sample
	if f := m.Data.ValidationFraction; f > 0 {
		cut := len(all) - max(1, int(float64(len(all))*f))
		if cut < 1 {
			return nil, fault.Field("data.validation_fraction", "%s has only one row", m.Data.Examples)
		}
		all, held = all[:cut], slices.Clone(all[cut:])
	}
	for i, path := range m.Data.Validation {
		more, err := readExampleFile(fmt.Sprintf("data.validation[%d]", i), path, m, v)
		if err != nil {
			return nil, err
		}
		held = append(held, more...)
	}
	e := &examples{slots: m.Slots, sequences: m.SlotSequences}
	d := &dataset{source: e, vocab: v, length: m.SequenceLen, isolate: true, begin: -1, end: -1}
	if bos, ok := v.BOS(); ok {
		d.begin = bos
	}
	if eos, ok := v.EOS(); ok {
		d.end = eos
	}
	var bins [][]int
	if e.train, bins, err = packOf(all, m, d.pad()); err != nil {
		return nil, err
	}
	for _, bin := range bins {
		name := ""
		for i, at := range bin {
			if i > 0 {
				name += "+"
			}
			name += fmt.Sprint(all[at].Line)
		}
		e.names = append(e.names, name)
	}
	if e.validation, _, err = packOf(held, m, d.pad()); err != nil {
		return nil, err
	}
	if e.mixture, err = corpus.NewMixture(m.Seed, []corpus.Part{{Samples: int64(len(e.train))}}); err != nil {
		return nil, err
	}
	for _, s := range all {
		d.tokens += s.Trained()
	}
	for _, s := range held {
		d.heldTokens += s.Trained()
	}
	d.about = fmt.Sprintf("%s: %d examples in %d sequences of %d, %d tokens trained; %d examples for validation",
		m.Data.Examples, len(all), len(e.train), m.SequenceLen, d.tokens, len(held))
	return d, nil
}

// pad is the id of padding. Its targets are masked, so any id will do.
func (d *dataset) pad() int32 { return max(d.end, 0) }

// packOf packs samples as the manifest says.
func packOf(samples []*tuning.Sample, m *Manifest, pad int32) ([]corpus.Sample, [][]int, error) {
	if m.Data.Packing == corpus.PackBestFit {
		return tuning.Pack(samples, m.SequenceLen, pad)
	}
	var out []corpus.Sample
	var bins [][]int
	for i, s := range samples {
		one, _, err := tuning.Pack([]*tuning.Sample{s}, m.SequenceLen, pad)
		if err != nil {
			return nil, nil, err
		}
		out, bins = append(out, one...), append(bins, []int{i})
	}
	return out, bins, nil
}

// readExampleFile reads rows {"ids", "mask"} or {"ids", "trained_from"}, which "lamina data masks --rows-only" writes.
func readExampleFile(field, path string, m *Manifest, v *vocab.Vocab) ([]*tuning.Sample, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fault.Wrap(fault.NotFound, err, "%s", field)
	}
	r, err := tuning.New(tuning.Config{Vocab: v})
	if err != nil {
		return nil, err
	}
	var out []*tuning.Sample
	for line := 1; len(text) > 0; line++ {
		row, rest, _ := bytes.Cut(text, []byte("\n"))
		text = rest
		if row = bytes.TrimSpace(row); len(row) == 0 {
			continue
		}
		c, err := tuning.ParseRow(line, row, tuning.FormatIDs)
		if err != nil {
			return nil, fault.Field(field, "%v", err)
		}
		s, err := r.Render(context.Background(), c)
		if err != nil {
			return nil, err
		}
		if n, refused := s.Refused(); refused {
			return nil, fault.Field(field, "%v", n)
		}
		if rows := len(s.IDs) - 1; rows > m.SequenceLen {
			return nil, fault.Field(field, "line %d has %d ids, sequence_len is %d", line, len(s.IDs), m.SequenceLen)
		}
		out = append(out, s)
	}
	if len(out) == 0 {
		return nil, fault.Field(field, "%s has no rows", path)
	}
	return out, nil
}

// sequence returns a sequence of a slot of a step: every epoch has each once, in an order of its own.
func (e *examples) sequence(step uint64, slot, s int) (*sequence, error) {
	n := (int64(step-1)*int64(e.slots)+int64(slot))*int64(e.sequences) + int64(s)
	at := e.mixture.At(n)
	return &sequence{Sample: e.train[at.Sample], name: fmt.Sprintf("%d/%s", at.Epoch, e.names[at.Sample])}, nil
}

func (e *examples) held() int64 { return int64(len(e.validation)) }

func (e *examples) heldSequence(i int64) (*sequence, error) {
	return &sequence{Sample: e.validation[i]}, nil
}

func (e *examples) close() error { return nil }
