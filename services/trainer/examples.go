package trainer

import (
	"context"
	"fmt"

	"github.com/lamina-mesh/lamina/internal/plural"
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
	order
	train, validation []corpus.Sample
	names             []string // of the training sequences
}

// readExamples reads the files of examples and packs them into sequences.
func readExamples(_ context.Context, m *Manifest, v *vocab.Vocab) (*dataset, error) {
	all, held, err := readRows(m, "data.examples", m.Data.Examples, func(field, path string) ([]*tuning.Sample, error) {
		return readExampleFile(field, path, m, v)
	})
	if err != nil {
		return nil, err
	}
	e := &examples{}
	d := encoded(e, m, v)
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
	if e.order, err = newOrder(m, corpus.Part{Samples: int64(len(e.train))}); err != nil {
		return nil, err
	}
	for _, s := range all {
		d.tokens += s.Trained()
	}
	for _, s := range held {
		d.heldTokens += s.Trained()
	}
	d.about = fmt.Sprintf("%s: %s in %s of %d, %s trained; %s for validation", m.Data.Examples,
		plural.Of(len(all), "example"), plural.Of(len(e.train), "sequence"), m.SequenceLen,
		plural.Of(d.tokens, "token"), plural.Of(len(held), "example"))
	return d, nil
}

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
	r, err := tuning.New(tuning.Config{Vocab: v})
	if err != nil {
		return nil, err
	}
	var out []*tuning.Sample
	err = eachRow(field, path, func(line int, row []byte) error {
		c, err := tuning.ParseRow(line, row, tuning.FormatIDs)
		if err != nil {
			return fault.Field(field, "%v", err)
		}
		s, err := r.Render(context.Background(), c)
		if err != nil {
			return err
		}
		if n, refused := s.Refused(); refused {
			return fault.Field(field, "%v", n)
		}
		if rows := len(s.IDs) - 1; rows > m.SequenceLen {
			return fault.Field(field, "line %d has %d ids, sequence_len is %d", line, len(s.IDs), m.SequenceLen)
		}
		out = append(out, s)
		return nil
	})
	return out, err
}

// sequence returns a sequence of a slot of a step.
func (e *examples) sequence(step uint64, slot, s int) (*sequence, error) {
	at := e.place(step, slot, s)
	return &sequence{Sample: e.train[at.Sample], name: fmt.Sprintf("%d/%s", at.Epoch, e.names[at.Sample])}, nil
}

func (e *examples) held() int64 { return int64(len(e.validation)) }

func (e *examples) heldSequence(i int64) (*sequence, error) {
	return &sequence{Sample: e.validation[i]}, nil
}

func (e *examples) close() error { return nil }
