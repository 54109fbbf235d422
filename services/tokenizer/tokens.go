package tokenizer

import (
	"google.golang.org/grpc"

	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
	"github.com/lamina-mesh/lamina/pkg/grammar"
	"github.com/lamina-mesh/lamina/pkg/vocab"
)

// tokensPart is how many tokens one message of Tokens has.
const tokensPart = 8192

// Tokens lists a vocabulary's tokens.
func (s *Service) Tokens(r *tokenizerv1.TokensRequest, stream grpc.ServerStreamingServer[tokenizerv1.TokensResponse]) error {
	m, err := s.find(stream.Context(), r.GetModel())
	if err != nil {
		return err
	}
	size := m.Vocab.Size()
	for first := 0; first < size; first += tokensPart {
		part := &tokenizerv1.TokensResponse{First: uint32(first)}
		for id := first; id < min(first+tokensPart, size); id++ {
			text, kind, err := m.Vocab.Token(int32(id))
			if err != nil {
				return err
			}
			switch kind {
			case vocab.KindControl:
				text = grammar.ControlBytes(string(text))
			case vocab.KindUnspecified:
				text = nil
			}
			part.Tokens = append(part.Tokens, text)
		}
		if err := stream.Send(part); err != nil {
			return err
		}
	}
	return nil
}
