package app

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/lamina-mesh/lamina/pkg/lifecycle"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/vocab"
	"github.com/lamina-mesh/lamina/services/router"
	"github.com/lamina-mesh/lamina/services/tokenizer"
)

// draft is a draft model and the one shard that holds it.
type draft struct {
	model tokenizer.Model
	shard lifecycle.Part
}

// draft opens the draft of a model. One whose ids mean other tokens is a failed
// precondition.
func (m *Mesh) draft(of tokenizer.Model, closers *[]func() error, metrics prometheus.Registerer) (draft, error) {
	files, name, digest, err := openModel(m.cfg.Speculation.Draft, "")
	if err != nil {
		return draft{}, err
	}
	*closers = append(*closers, files.Close)
	if name == of.Name || digest == of.Digest {
		name = of.Name + "-draft" // the router tells the two by their names
	}
	d := draft{}
	if d.model, err = loadModel(files, name, digest); err != nil {
		return draft{}, err
	}
	if digest != of.Digest {
		err = sameVocabulary(of, d.model)
	}
	if err != nil {
		return draft{}, err
	}
	s := m.shard("shard-draft", nil, metrics)
	if err := s.Hold(name, digest, files, model.Range{Lo: 0, Hi: len(files.Spec.Layers)}); err != nil {
		return draft{}, err
	}
	d.shard = m.part("shard", "shard-draft", s, nil)
	return d, nil
}

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
