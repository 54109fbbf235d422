package app

import (
	"github.com/lamina-mesh/lamina/pkg/vocab"
	"github.com/lamina-mesh/lamina/services/router"
	"github.com/lamina-mesh/lamina/services/tokenizer"
)

// sameVocabulary checks that a draft model's ids mean the same tokens as those of the model
// that it drafts for. Others are a failed precondition.
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

// texts are a vocabulary's tokens, empty where they are no text.
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
