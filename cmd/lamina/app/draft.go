package app

import (
	"github.com/lamina-mesh/lamina/pkg/vocab"
	"github.com/lamina-mesh/lamina/services/router"
	"github.com/lamina-mesh/lamina/services/tokenizer"
)

// sameVocabulary checks that the ids of a draft model mean the same tokens as those of its target
// model. If they do not, it returns FailedPrecondition.
func sameVocabulary(a, b tokenizer.Model) error {
	tokens, err := texts(a.Vocab)
	if err != nil {
		return err
	}
	drafts, err := texts(b.Vocab)
	if err != nil {
		return err
	}
	return router.SameVocabulary(a.Name, b.Name, tokens, drafts)
}

// texts returns the token pieces of a vocabulary. Those of control tokens are empty.
func texts(v *vocab.Vocab) ([][]byte, error) {
	out := make([][]byte, v.Size())
	for id := range out {
		text, kind, err := v.Token(int32(id))
		if err != nil {
			return nil, err
		}
		if kind != vocab.KindControl && kind != vocab.KindUnspecified {
			out[id] = text
		}
	}
	return out, nil
}
