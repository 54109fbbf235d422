package vocab

import (
	"fmt"
	"slices"
)

// FamilyIDs is the family of a model without tokenizer files.
const FamilyIDs = "ids"

// NewIDs returns the vocabulary of a model without tokenizer files, which works on ids
// alone. Every token decodes to no text, and encoding text is a *TextError. bos and
// eos list the ids that begin and that end a text; the first of each is BOS and EOS, and
// every id of eos ends a generation.
func NewIDs(size int, bos, eos []int32) (*Vocab, error) {
	for _, id := range slices.Concat(bos, eos) {
		if id < 0 || int(id) >= size {
			return nil, fmt.Errorf("make vocabulary of ids: id %d is outside its %d ids", id, size)
		}
	}
	if size < 1 {
		return nil, fmt.Errorf("make vocabulary of ids: size %d", size)
	}
	v := &Vocab{
		family: FamilyIDs, tokens: make([]token, size), ids: map[string]int32{},
		model: idsOnly{}, bos: -1, eos: -1, unk: -1,
	}
	for i := range v.tokens {
		v.tokens[i].kind = KindNormal
	}
	if len(bos) > 0 {
		v.bos = bos[0]
	}
	if len(eos) > 0 {
		v.eos = eos[0]
	}
	v.finish(slices.Clone(eos))
	return v, nil
}

// idsOnly is a model that rejects all text.
type idsOnly struct{}

func (idsOnly) encode(piece string, _ *sink) error {
	return &TextError{Piece: piece[:min(len(piece), 32)], Reason: "the model has no tokenizer files (give ids instead)"}
}
