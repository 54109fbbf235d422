package router

import (
	"context"
	"errors"
	"io"

	"github.com/lamina-mesh/lamina/pkg/fault"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
	"github.com/lamina-mesh/lamina/pkg/rpc"
)

// maxTokenLists bounds the vocabularies whose tokens a router keeps for samplers.
const maxTokenLists = 8

// tokensPart is how many tokens one frame to a sampler has.
const tokensPart = 8192

// tokens are the bytes of a vocabulary's tokens, which grammars read.
func (s *Service) tokens(ctx context.Context, digest string, from []tokenizerv1.TokenizerServiceClient) ([][]byte, error) {
	s.mu.Lock()
	list := s.tokenLists[digest]
	s.mu.Unlock()
	if list != nil {
		return list, nil
	}
	var err error = fault.New(fault.Unavailable, "list tokens of %s: no tokenizer is known", digest)
	for _, t := range from { // one that cannot be reached is no reason to fail
		if list, err = listTokens(ctx, t, digest); fault.CodeOf(err) != fault.Unavailable {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.tokenLists) >= maxTokenLists {
		clear(s.tokenLists)
	}
	s.tokenLists[digest] = list
	return list, nil
}

func listTokens(ctx context.Context, t tokenizerv1.TokenizerServiceClient, digest string) ([][]byte, error) {
	stream, err := t.Tokens(ctx, &tokenizerv1.TokensRequest{Model: digest})
	if err != nil {
		return nil, rpc.FromStatus(err)
	}
	var list [][]byte
	for {
		part, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return list, nil
		case err != nil:
			return nil, rpc.FromStatus(err)
		case int(part.GetFirst()) != len(list):
			return nil, fault.New(fault.Internal, "list tokens of %s: a part begins at %d, not %d", digest, part.GetFirst(), len(list))
		}
		list = append(list, part.GetTokens()...)
	}
}

// tellTokens gives the sampler the vocabulary before the first session with a grammar.
func (s *scheduler) tellTokens(digest string, list [][]byte) {
	if s.toldTokens || list == nil {
		return
	}
	s.toldTokens = true
	for first := 0; first < len(list); first += tokensPart {
		// A broken stream shows at Recv.
		_ = s.p.sample.Send(&samplerv1.SampleRequest{Frame: &samplerv1.SampleRequest_Tokens{Tokens: &samplerv1.Tokens{
			Digest: digest, Size: uint32(len(list)), First: uint32(first), Tokens: list[first:min(first+tokensPart, len(list))],
		}}})
	}
}
