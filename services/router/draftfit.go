package router

import (
	"bytes"
	"context"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// isDraft reports whether a model is the draft model.
func (s *Service) isDraft(model, digest string) bool {
	return s.cfg.Draft != "" && (model == s.cfg.Draft || digest == s.cfg.Draft)
}

// SameVocabulary reports whether the ids of a draft model mean the same tokens as those of a
// model; the error is a failed precondition that names both. The tokens are in the order of
// their ids, empty ones for gaps; the number of gaps at the end does not matter.
func SameVocabulary(model, draft string, tokens, drafts [][]byte) error {
	a, b := len(tokens), len(drafts)
	for a > 0 && len(tokens[a-1]) == 0 {
		a--
	}
	for b > 0 && len(drafts[b-1]) == 0 {
		b--
	}
	if a != b || a == 0 && len(tokens) != len(drafts) {
		return fault.New(
			fault.FailedPrecondition, "draft for model %q by %q: their vocabularies differ: %d tokens and %d", model, draft,
			len(tokens), len(drafts),
		)
	}
	for id := range a {
		if !bytes.Equal(tokens[id], drafts[id]) {
			return fault.New(
				fault.FailedPrecondition, "draft for model %q by %q: their vocabularies differ: token %d is %q and %q", model,
				draft, id, tokens[id], drafts[id],
			)
		}
	}
	return nil
}

// fitKey is the key of two models in fits.
func fitKey(target, draft *pipeline) string {
	return target.chain.Digest() + " " + draft.chain.Digest()
}

// checkDrafts compares the vocabulary of a pipeline that has just been listed with those of
// the pipelines it drafts for, or that draft for it; mu is held. What cannot be checked now
// is checked when it is used.
func (s *Service) checkDrafts(p *pipeline) {
	for _, o := range s.pipelines {
		if o.draft == p.draft {
			continue
		}
		target, draft := p, o
		if p.draft {
			target, draft = o, p
		}
		p.drafters.Go(func() { _ = s.draftFits(p.ctx, target, draft) })
	}
}

// draftFits checks, once for each pair of models, that one may draft for the other.
func (s *Service) draftFits(ctx context.Context, target, draft *pipeline) error {
	model, other := target.chain.Digest(), draft.chain.Digest()
	if model == other {
		return nil
	}
	key := fitKey(target, draft)
	s.mu.Lock()
	err, known := s.fits[key]
	s.mu.Unlock()
	if known {
		return err
	}
	var lists [2][][]byte
	for i, digest := range []string{model, other} {
		from, err := s.tokenizers(digest)
		if err != nil {
			return err
		}
		v, err := s.vocabulary(ctx, digest, from)
		if err != nil {
			return err
		}
		lists[i] = v.tokens
	}
	err = SameVocabulary(target.model(), draft.model(), lists[0], lists[1])
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.fits[key]; !known && err != nil {
		s.log.Error("refuse draft model", "model", target.model(), "draft", draft.model(), "error", err)
	}
	if len(s.fits) >= maxVocabularies*maxVocabularies {
		clear(s.fits)
	}
	s.fits[key] = err
	return err
}
