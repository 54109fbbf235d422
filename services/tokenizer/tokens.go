package tokenizer

import (
	"google.golang.org/grpc"

	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
	"github.com/lamina-mesh/lamina/pkg/grammar"
	"github.com/lamina-mesh/lamina/pkg/vocab"
)

// tokensPart is the number of tokens in one message of Tokens.
const tokensPart = 8192

// Tokens lists a vocabulary's tokens, with what is needed to decode ids as Decode does.
func (s *Service) Tokens(r *tokenizerv1.TokensRequest,
	stream grpc.ServerStreamingServer[tokenizerv1.TokensResponse]) error {
	m, err := s.find(stream.Context(), r.GetModel())
	if err != nil {
		return err
	}
	size, markers := m.Vocab.Size(), m.markers()
	for first := 0; first < size; first += tokensPart {
		part := &tokenizerv1.TokensResponse{First: uint32(first)}
		if first == 0 {
			part.Joining = joining(m.Vocab.Joining())
		}
		for id := int32(first); id < int32(min(first+tokensPart, size)); id++ {
			piece := m.Vocab.Piece(id)
			text := []byte(piece.Bytes)
			irregular := &tokenizerv1.Irregular{Id: uint32(id), Kind: tokenizerv1.TokenKind(piece.Kind),
				Added: piece.Added, Marker: markers[id]}
			switch piece.Kind {
			case vocab.KindControl:
				text = grammar.ControlBytes(piece.Bytes)
			case vocab.KindUnspecified:
				text, irregular.Hidden = nil, text
			}
			if piece.Headed {
				irregular.Head = []byte(piece.Head) // never nil
			}
			part.Tokens = append(part.Tokens, text)
			if piece.Kind != vocab.KindNormal || piece.Added || piece.Headed || markers[id] {
				part.Irregular = append(part.Irregular, irregular)
			}
		}
		if err := stream.Send(part); err != nil {
			return err
		}
	}
	return nil
}

func joining(j vocab.Joining) *tokenizerv1.Joining {
	out := &tokenizerv1.Joining{
		StripSpace: j.StripSpace, StripAll: j.StripAll, JoinSpace: j.JoinSpace, HeldSpace: j.HeldSpace, Once: j.Once,
	}
	if j.Unknown >= 0 {
		id := uint32(j.Unknown)
		out.Unknown = &id
	}
	return out
}
