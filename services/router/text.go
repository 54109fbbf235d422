package router

import (
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
	"github.com/lamina-mesh/lamina/pkg/session"
	"github.com/lamina-mesh/lamina/pkg/vocab"
)

// tokenizers returns clients of the tokenizers that currently know a model.
func (s *Service) tokenizers(digest string) ([]tokenizerv1.TokenizerServiceClient, error) {
	s.mu.Lock()
	m := s.models[digest]
	s.mu.Unlock()
	if m == nil {
		return nil, fault.New(fault.Unavailable, "find the tokenizer of model %s: none is known",
			digest).After(time.Second)
	}
	var out []tokenizerv1.TokenizerServiceClient
	for _, addr := range m.tokenizers {
		conn, err := s.cfg.Dialer.Dial(addr)
		if err != nil {
			return nil, err
		}
		out = append(out, tokenizerv1.NewTokenizerServiceClient(limitedConn{conn, tokenizerLimit}))
	}
	return out, nil
}

// textOut turns a request's tokens into text, up to the first stop string. It decodes in the
// router, which has the token log, so that a token costs no hop to a tokenizer.
type textOut struct {
	vocabulary *vocabulary
	decoder    *vocab.Decoder
	stopper    *session.Stopper
}

// newTextOut returns a textOut for the text that follows a prompt. With markers, the text keeps the
// control tokens that mark tool calls and reasoning.
func newTextOut(v *vocabulary, prompt []uint32, stop []string, markers bool) *textOut {
	o := vocab.DecodeOptions{SkipSpecial: true, Prefix: make([]int32, len(prompt))}
	for i, id := range prompt {
		o.Prefix[i] = int32(id)
	}
	if markers {
		o.Keep = v.markers
	}
	return &textOut{vocabulary: v, decoder: v.pieces.NewDecoder(o), stopper: session.NewStopper(stop)}
}

// push adds a token. It returns the text that may be shown, and whether a stop string was found.
func (o *textOut) push(id uint32) (string, bool, error) {
	text, err := o.decoder.Push(int32(id))
	if err != nil {
		return "", false, fault.Wrap(fault.Internal, err, "decode token")
	}
	show, stopped := o.stopper.Push(text)
	return show, stopped, nil
}

// flush returns the text that was held back.
func (o *textOut) flush() string {
	show, stopped := o.stopper.Push(o.decoder.Flush())
	if !stopped {
		show += o.stopper.Flush()
	}
	return show
}

// candidates returns the best candidates with their texts.
func (o *textOut) candidates(top []*samplerv1.Candidate) ([]*routerv1.TopCandidate, error) {
	var out []*routerv1.TopCandidate
	for _, c := range top {
		text, err := o.vocabulary.pieces.Decode([]int32{int32(c.GetId())}, vocab.DecodeOptions{})
		if err != nil {
			return nil, fault.Wrap(fault.Internal, err, "decode candidate")
		}
		out = append(out, &routerv1.TopCandidate{Id: c.GetId(), Text: text, Logprob: c.GetLogprob()})
	}
	return out, nil
}
