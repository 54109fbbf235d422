// Package filetest makes damaged and split model files for tests. Mutants changes a
// file field by field: it sets counts, lengths, offsets, types and ids to the values
// that parsers get wrong (0, 1, -1, the largest value and one more, another field's
// value), one field at a time and then pairs drawn from a seed. The same seed gives
// the same mutants.
//
// It knows the layout of the formats and shares no code with the parsers, so that a parser and its
// test do not share a mistake.
package filetest

import (
	"fmt"
	"math/rand/v2"
)

// Mutant is a damaged copy of a file.
type Mutant struct {
	Name string // which fields were set to what
	Data []byte
}

// Format is a kind of model file that Mutants can change.
type Format int

// Formats of model files.
const (
	GGUF Format = iota + 1
	Safetensors
	JSON          // tokenizer.json, config.json and the like
	SentencePiece // a .model file
)

// Mutants calls yield with n damaged copies of a valid file: half of them have one
// field changed, the others two. It stops when yield returns false.
func Mutants(format Format, file []byte, seed uint64, n int, yield func(Mutant) bool) error {
	f, err := parse(format, file)
	if err != nil {
		return fmt.Errorf("parse the file to damage: %w", err)
	}
	r := rand.New(rand.NewPCG(seed, 0))
	for i := range n {
		edits := f.draw(r, 1)
		if i >= n/2 {
			edits = f.draw(r, 2)
		}
		if !yield(f.apply(edits)) {
			return nil
		}
	}
	return nil
}

// document is a file as a list of fields that may be changed.
type document interface {
	// fields returns the number of fields. The first main of them are not entries of long lists.
	fields() (n, main int)
	// name of a field, for people.
	name(field int) string
	// values returns how many values a field may be set to, not counting the values of other
	// fields.
	values(field int) int
	// render writes the file with some fields changed. A value beyond those of the
	// field is the value of field value-values.
	render(edits []edit) []byte
}

// edit sets a field to one of its values.
type edit struct{ field, value int }

// mutator draws and applies edits.
type mutator struct{ document }

// draw picks count fields, each of the main ones as often as all entries together.
func (m mutator) draw(r *rand.Rand, count int) []edit {
	n, main := m.fields()
	edits := make([]edit, 0, count)
	for range count {
		field := r.IntN(n)
		if main > 0 && r.IntN(4) > 0 {
			field = r.IntN(main)
		}
		value := r.IntN(m.values(field) + 1)
		if value == m.values(field) {
			value += r.IntN(n)
		}
		edits = append(edits, edit{field, value})
	}
	return edits
}

func (m mutator) apply(edits []edit) Mutant {
	name := ""
	for _, e := range edits {
		if value := e.value - m.values(e.field); value >= 0 {
			name += fmt.Sprintf("[%s = that of %s]", m.name(e.field), m.name(value))
		} else {
			name += fmt.Sprintf("[%s = value %d]", m.name(e.field), e.value)
		}
	}
	return Mutant{Name: name, Data: m.render(edits)}
}

func parse(format Format, file []byte) (mutator, error) {
	switch format {
	case GGUF:
		d, err := parseGGUF(file)
		return mutator{d}, err
	case Safetensors:
		d, err := parseSafetensors(file)
		return mutator{d}, err
	case JSON:
		d, err := parseJSON(file)
		return mutator{d}, err
	case SentencePiece:
		d, err := parseMessage(file)
		return mutator{d}, err
	}
	return mutator{}, fmt.Errorf("unknown format %d", format)
}
