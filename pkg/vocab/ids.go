package vocab

import "fmt"

// FamilyIDs is the family of a model without tokenizer files.
const FamilyIDs = "ids"

// NewIDs is the vocabulary of a model that has no tokenizer files: ids stand for
// themselves. Every token decodes to no text, and encoding text is a *TextError. eos
// is the id that ends a generation, or -1.
func NewIDs(size int, eos int32) (*Vocab, error) {
	if size < 1 || int(eos) >= size {
		return nil, fmt.Errorf("make vocabulary of ids: %d ids, end id %d", size, eos)
	}
	v := &Vocab{
		family: FamilyIDs, tokens: make([]token, size), ids: map[string]int32{},
		model: idsOnly{}, bos: -1, eos: max(eos, -1), unk: -1,
	}
	for i := range v.tokens {
		v.tokens[i].kind = KindNormal
	}
	if eos >= 0 {
		v.eog = []int32{eos}
	}
	return v, nil
}

// idsOnly refuses text.
type idsOnly struct{}

func (idsOnly) encode(piece string, _ *sink) error {
	return &TextError{Piece: piece[:min(len(piece), 32)], Reason: "the model has no tokenizer files (give ids instead)"}
}
