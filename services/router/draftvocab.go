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

// SameVocabulary returns nil if each id means the same token to a draft model and to a model, and
// otherwise an error with code FailedPrecondition that names both models. The tokens are in the
// order of their ids. A gap is an empty token, and gaps at the end are ignored.
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
			fault.FailedPrecondition, "draft for model %q by %q: vocabularies differ: %d tokens and %d tokens", model,
			draft,
			len(tokens), len(drafts),
		)
	}
	for id := range a {
		if !bytes.Equal(tokens[id], drafts[id]) {
			return fault.New(
				fault.FailedPrecondition, "draft for model %q by %q: vocabularies differ: token %d is %q and %q", model,
				draft, id, tokens[id], drafts[id],
			)
		}
	}
	return nil
}

// vocabKey is the key of two models in draftVocabs.
func vocabKey(target, draft *pipeline) string {
	return target.digest + " " + draft.digest
}

// checkDraftVocabs compares the vocabulary of a pipeline that has just been listed with those of
// the pipelines it drafts for, or that draft for it. The caller holds mu. A check that is not
// possible now is made when the draft model is first used.
func (s *Service) checkDraftVocabs(p *pipeline) {
	for _, o := range s.pipelines {
		if o.draft == p.draft {
			continue
		}
		target, draft := p, o
		if p.draft {
			target, draft = o, p
		}
		p.drafters.Go(func() { _ = s.checkDraftVocab(p.ctx, target, draft) })
	}
}

// checkDraftVocab checks, once for each pair of models, that one may draft for the other.
func (s *Service) checkDraftVocab(ctx context.Context, target, draft *pipeline) error {
	model, other := target.digest, draft.digest
	if model == other {
		return nil
	}
	key := vocabKey(target, draft)
	s.mu.Lock()
	err, known := s.draftVocabs[key]
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
	if _, known := s.draftVocabs[key]; !known && err != nil {
		s.log.Error("refuse draft model", "model", target.model(), "draft", draft.model(), "error", err)
	}
	if len(s.draftVocabs) >= maxVocabularies*maxVocabularies {
		clear(s.draftVocabs)
	}
	s.draftVocabs[key] = err
	return err
}
