package grammar

import (
	"slices"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// Vocabulary is the bytes of a model's tokens, laid out for masks. It never changes
// and may be shared by any number of grammars and goroutines.
type Vocabulary struct {
	tokens [][]byte
	end    []int32 // ids, ascending
}

// NewVocabulary takes the bytes of every id and the ids that end a text. Ids
// without bytes (control tokens, holes) never fit a grammar, and neither do the
// bytes of ids that end a text. The slices stay the caller's to read, not to change.
func NewVocabulary(tokens [][]byte, ends ...int32) (*Vocabulary, error) {
	v := &Vocabulary{tokens: tokens, end: slices.Clone(ends)}
	slices.Sort(v.end)
	for _, id := range v.end {
		if id < 0 || int(id) >= len(tokens) {
			return nil, fault.New(fault.Invalid, "lay out vocabulary: end token %d is not among %d ids", id, len(tokens))
		}
	}
	return v, nil
}

// Size is the number of ids.
func (v *Vocabulary) Size() int { return len(v.tokens) }

func (v *Vocabulary) ends(id int32) bool {
	_, found := slices.BinarySearch(v.end, id)
	return found
}
