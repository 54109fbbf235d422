package trainer

import (
	"bytes"
	"fmt"
	"os"
	"slices"

	"github.com/lamina-mesh/lamina/pkg/corpus"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/vocab"
)

// order is the order in which a run reads its samples: every epoch of a part has each of the part's once, in an order
// of its own.
type order struct {
	mixture          *corpus.Mixture
	slots, sequences int
}

func newOrder(m *Manifest, parts ...corpus.Part) (order, error) {
	mixture, err := corpus.NewMixture(m.Seed, parts)
	return order{mixture, m.Slots, m.SlotSequences}, err
}

// place returns which sample is sequence s of a slot of a step.
func (o *order) place(step uint64, slot, s int) corpus.Place {
	return o.mixture.At((int64(step-1)*int64(o.slots)+int64(slot))*int64(o.sequences) + int64(s))
}

// encoded returns a dataset of samples that are encoded already. Attention keeps them apart.
func encoded(s source, m *Manifest, v *vocab.Vocab) *dataset {
	d := &dataset{source: s, vocab: v, length: m.SequenceLen, isolate: true, begin: -1, end: -1}
	if bos, ok := v.BOS(); ok {
		d.begin = bos
	}
	if eos, ok := v.EOS(); ok {
		d.end = eos
	}
	return d
}

// pad is the id of padding. Its targets are masked, so any id will do.
func (d *dataset) pad() int32 { return max(d.end, 0) }

// eachRow calls read with the rows of a file that a field of the manifest names: the lines that are not empty, with
// their numbers from 1. There must be one.
func eachRow(field, path string, read func(line int, row []byte) error) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return fault.Wrap(fault.NotFound, err, "%s", field)
	}
	rows := 0
	for line := 1; len(text) > 0; line++ {
		row, rest, _ := bytes.Cut(text, []byte("\n"))
		text = rest
		if row = bytes.TrimSpace(row); len(row) == 0 {
			continue
		}
		if err := read(line, row); err != nil {
			return err
		}
		rows++
	}
	if rows == 0 {
		return fault.Field(field, "%s has no rows", path)
	}
	return nil
}

// readRows reads the rows of training from the file that a field names. Rows for validation are the end of that file,
// as validation_fraction says, and those of the files that are for validation only.
func readRows[T any](m *Manifest, field, path string, read func(field, path string) ([]T, error)) (
	train, held []T, err error,
) {
	if train, err = read(field, path); err != nil {
		return nil, nil, err
	}
	if f := m.Data.ValidationFraction; f > 0 {
		cut := len(train) - max(1, int(float64(len(train))*f))
		if cut < 1 {
			return nil, nil, fault.Field("data.validation_fraction", "%s has only one row", path)
		}
		train, held = train[:cut], slices.Clone(train[cut:])
	}
	for i, path := range m.Data.Validation {
		more, err := read(fmt.Sprintf("data.validation[%d]", i), path)
		if err != nil {
			return nil, nil, err
		}
		held = append(held, more...)
	}
	return train, held, nil
}
