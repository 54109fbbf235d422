package router

import (
	"context"
	"errors"
	"io"

	"github.com/lamina-mesh/lamina/pkg/fault"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
	"github.com/lamina-mesh/lamina/pkg/grammar"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/pkg/vocab"
)

// maxVocabularies is the number of vocabularies that a router keeps.
const maxVocabularies = 8

// tokensPart is the number of tokens in one frame to a sampler.
const tokensPart = 8192

// vocabulary holds a model's tokens, which are fetched once. The router decodes generated tokens
// with it and sends it to samplers for grammars.
type vocabulary struct {
	tokens  [][]byte // the form that grammars use
	pieces  *vocab.Pieces
	markers map[int32]bool // control tokens that mark tool calls and reasoning
}

// vocabulary returns a model's tokens. It fetches them from a tokenizer the first time.
func (s *Service) vocabulary(
	ctx context.Context, digest string, from []tokenizerv1.TokenizerServiceClient,
) (*vocabulary, error) {
	s.mu.Lock()
	v := s.vocabularies[digest]
	s.mu.Unlock()
	if v != nil {
		return v, nil
	}
	var err error = fault.New(fault.Unavailable, "list tokens of %s: no tokenizer is known", digest)
	for _, t := range from { // try the next one if one cannot be reached
		if v, err = fetchVocabulary(ctx, t, digest); fault.CodeOf(err) != fault.Unavailable {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if known := s.vocabularies[digest]; known != nil { // another request has fetched it meanwhile
		return known, nil
	}
	if len(s.vocabularies) >= maxVocabularies {
		clear(s.vocabularies)
	}
	s.vocabularies[digest] = v
	return v, nil
}

func fetchVocabulary(ctx context.Context, t tokenizerv1.TokenizerServiceClient, digest string) (*vocabulary, error) {
	stream, err := t.Tokens(ctx, &tokenizerv1.TokensRequest{Model: digest})
	if err != nil {
		return nil, rpc.FromStatus(err)
	}
	v := &vocabulary{markers: map[int32]bool{}}
	var pieces []vocab.Piece
	joining := vocab.Joining{Unknown: -1}
	for {
		part, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			v.pieces = vocab.NewPieces(pieces, joining)
			return v, nil
		case err != nil:
			return nil, rpc.FromStatus(err)
		case int(part.GetFirst()) != len(v.tokens):
			return nil, fault.New(
				fault.Internal, "list tokens of %s: got a part that begins at %d, want %d", digest, part.GetFirst(),
				len(v.tokens),
			)
		}
		if j := part.GetJoining(); j != nil {
			joining = readJoining(j)
		}
		v.tokens = append(v.tokens, part.GetTokens()...)
		for _, token := range part.GetTokens() {
			pieces = append(pieces, vocab.Piece{Bytes: string(token), Kind: vocab.KindNormal})
		}
		for _, irregular := range part.GetIrregular() {
			id := irregular.GetId()
			if int64(id) < int64(part.GetFirst()) || int64(id) >= int64(len(pieces)) {
				return nil, fault.New(fault.Internal, "list tokens of %s: id %d is not in its part", digest, id)
			}
			pieces[id] = readPiece(pieces[id].Bytes, irregular)
			if irregular.GetMarker() {
				v.markers[int32(id)] = true
			}
		}
	}
}

func readJoining(j *tokenizerv1.Joining) vocab.Joining {
	out := vocab.Joining{
		StripSpace: j.GetStripSpace(), StripAll: j.GetStripAll(), JoinSpace: j.GetJoinSpace(),
		HeldSpace: j.GetHeldSpace(), Once: j.GetOnce(), Unknown: -1,
	}
	if j.Unknown != nil {
		out.Unknown = int32(j.GetUnknown())
	}
	return out
}

// readPiece returns the piece of an irregular token, about which the list says more than its bytes.
func readPiece(listed string, irregular *tokenizerv1.Irregular) vocab.Piece {
	p := vocab.Piece{
		Bytes: listed, Kind: vocab.Kind(irregular.GetKind()), Added: irregular.GetAdded(),
		Headed: irregular.Head != nil, Head: string(irregular.GetHead()),
	}
	switch p.Kind {
	case vocab.KindControl: // the list has its text between special bytes
		if spelling, ok := grammar.ControlSpelling([]byte(listed)); ok {
			p.Bytes = spelling
		}
	case vocab.KindUnspecified:
		p.Bytes = string(irregular.GetHidden())
	}
	return p
}

// sendVocabulary sends the sampler the vocabulary before the first session with a grammar.
func (r *runner) sendVocabulary(digest string, list [][]byte) {
	if r.vocabularySent || list == nil {
		return
	}
	r.vocabularySent = true
	for first := 0; first < len(list); first += tokensPart {
		r.p.sampling.send(&samplerv1.SampleRequest{Frame: &samplerv1.SampleRequest_Tokens{Tokens: &samplerv1.Tokens{
			Digest: digest, Size: uint32(len(list)), First: uint32(first),
			Tokens: list[first:min(first+tokensPart, len(list))],
		}}})
	}
}
