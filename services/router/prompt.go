package router

import (
	"context"
	"time"

	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
	"github.com/lamina-mesh/lamina/pkg/rpc"
)

// chatPrompt renders and encodes a chat. It notes how the answer has to be parsed.
func (q *request) chatPrompt(
	ctx context.Context, r *routerv1.ChatRequest, use *toolUse, t tokenizerv1.TokenizerServiceClient,
) ([]uint32, error) {
	resp, err := q.fitChat(r.GetMessages(), func(messages []*tokenizerv1.Message) (
		*tokenizerv1.ApplyChatTemplateResponse, error,
	) {
		resp, err := t.ApplyChatTemplate(ctx, &tokenizerv1.ApplyChatTemplateRequest{
			Model: q.digest, Messages: q.describeTools(use, messages), ToolsJson: use.tools,
			DocumentsJson: r.GetDocumentsJson(), VariablesJson: r.GetVariablesJson(),
			Template: r.GetTemplate(), NoGenerationPrompt: r.GetNoGenerationPrompt(),
			ContinueFinalMessage: r.GetContinueFinalMessage(),
		})
		return resp, rpc.FromStatus(err)
	})
	q.format, q.promptEnd = resp.GetFormat(), endOf(resp.GetText())
	return resp.GetIds(), err
}

// stopString returns the stop string that ended the answer; empty for none.
func (q *request) stopString() string {
	if q.text == nil {
		return ""
	}
	return q.text.stopper.Found()
}

// servedModel returns the digest of a model that is served, encoders included, and checks that the caller may use it.
// Its name may be followed by that of an adapter, which has the vocabulary of its model.
func (s *Service) servedModel(ctx context.Context, model string) (digest string, err error) {
	base, adapterName, err := s.splitModel(model, "")
	if err != nil {
		return "", err
	}
	if err := s.mayWake(ctx, base, adapterName); err != nil {
		return "", err
	}
	name, digest, err := s.findServed(ctx, base)
	if err != nil {
		return "", err
	}
	if err := auth.CheckModel(ctx, name, digest, adapted(name, adapterName), adapted(base, adapterName),
		base); err != nil {
		return "", err
	}
	a, err := s.acquire(ctx, digest, name, adapterName)
	s.release(a)
	return digest, err
}

// findServed returns the name and digest of a model that has a pipeline, or is an encoder that shards hold completely.
func (s *Service) findServed(ctx context.Context, model string) (name, digest string, err error) {
	p, err := s.await(ctx, model, 0)
	if err == nil {
		return p.model(), p.digest, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if d := s.deploys.state.Find(model); d != nil && d.Live != nil && s.models[d.Live.Digest] != nil {
		return d.Name, d.Live.Digest, nil // its model is not loaded now
	}
	var found []*shardv1.Held
	for _, h := range s.encoders() {
		if model == "" || h.GetModel() == model || h.GetDigest() == model {
			found = append(found, h)
		}
	}
	if len(found) != 1 {
		return "", "", err
	}
	return found[0].GetModel(), found[0].GetDigest(), nil
}

// withTokenizer calls f with the digest of a served model and a client of one of its tokenizers. It tries the
// next tokenizer if one cannot be reached.
func (s *Service) withTokenizer(
	ctx context.Context, model string, f func(digest string, t tokenizerv1.TokenizerServiceClient) error,
) error {
	digest, err := s.servedModel(ctx, model)
	if err != nil {
		return err
	}
	clients, err := s.tokenizers(digest)
	if err != nil {
		return err
	}
	err = fault.New(fault.Unavailable, "find the tokenizer of model %s: none is known", digest).After(time.Second)
	for _, t := range clients {
		if err = f(digest, t); fault.CodeOf(err) != fault.Unavailable {
			break
		}
	}
	return err
}

// Prompt returns the ids of a chat's prompt, as Chat would compute them without a context policy.
func (b *Backend) Prompt(ctx context.Context, r *routerv1.ChatRequest) (ids []uint32, err error) {
	if len(r.GetMessages()) == 0 {
		return nil, fault.Field("messages", "give at least one")
	}
	use, err := readToolUse(r)
	if err != nil {
		return nil, err
	}
	err = b.s.withTokenizer(ctx, r.GetModel(), func(digest string, t tokenizerv1.TokenizerServiceClient) error {
		q := &request{service: b.s, digest: digest}
		ids, err = q.chatPrompt(ctx, r, use, t)
		return err
	})
	return ids, err
}

// Encode returns the ids of a text. With special, spellings of control tokens become control tokens; with bare,
// the begin and end tokens that the vocabulary asks for are left out.
func (b *Backend) Encode(ctx context.Context, model, text string, special, bare bool) (ids []uint32, err error) {
	err = b.s.withTokenizer(ctx, model, func(digest string, t tokenizerv1.TokenizerServiceClient) error {
		resp, err := t.Encode(ctx,
			&tokenizerv1.EncodeRequest{Model: digest, Text: text, Special: special, NoBos: bare})
		ids = resp.GetIds()
		return rpc.FromStatus(err)
	})
	return ids, err
}

// Decode returns the text of ids.
func (b *Backend) Decode(ctx context.Context, model string, ids []uint32, skipSpecial bool) (text string, err error) {
	err = b.s.withTokenizer(ctx, model, func(digest string, t tokenizerv1.TokenizerServiceClient) error {
		resp, err := t.Decode(ctx, &tokenizerv1.DecodeRequest{Model: digest, Ids: ids, SkipSpecial: skipSpecial})
		text = resp.GetText()
		return rpc.FromStatus(err)
	})
	return text, err
}
