package main

import (
	"context"
	"errors"
	"io"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/corpus"
	"github.com/lamina-mesh/lamina/pkg/fault"
	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
	"github.com/lamina-mesh/lamina/pkg/grammar"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/pkg/vocab"
)

const (
	encodeText = 1 << 20  // bytes of the texts of one call
	encodePush = 64 << 10 // bytes of a frame
)

// serviceEncoder encodes texts with a tokenizer service.
type serviceEncoder struct {
	client tokenizerv1.TokenizerServiceClient
	model  string
}

// Encode implements corpus.Encoder. Long texts are streamed.
func (e *serviceEncoder) Encode(ctx context.Context, texts []string) ([][]uint32, error) {
	if len(texts) == 1 && len(texts[0]) > encodeText {
		var ids []uint32
		err := e.EncodeStream(ctx, strings.NewReader(texts[0]), func(part []uint32) error {
			ids = append(ids, part...)
			return nil
		})
		return [][]uint32{ids}, err
	}
	resp, err := e.client.EncodeBatch(ctx, &tokenizerv1.EncodeBatchRequest{Model: e.model, Texts: texts, NoBos: true})
	if err != nil {
		return nil, rpc.FromStatus(err)
	}
	var out [][]uint32
	for _, encoding := range resp.GetEncodings() {
		out = append(out, encoding.GetIds())
	}
	return out, nil
}

// EncodeStream implements corpus.Encoder.
func (e *serviceEncoder) EncodeStream(ctx context.Context, text io.Reader, emit func([]uint32) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := e.client.EncodeStream(ctx)
	if err != nil {
		return rpc.FromStatus(err)
	}
	// ask sends a frame and reads the replies that it obliges.
	ask := func(frame *tokenizerv1.EncodeStreamRequest, replies bool) error {
		if err := stream.Send(frame); err != nil && !errors.Is(err, io.EOF) {
			return rpc.FromStatus(err)
		}
		for more := replies; more; {
			r, err := stream.Recv()
			if err != nil {
				return rpc.FromStatus(err)
			}
			if err := emit(r.GetIds()); err != nil {
				return err
			}
			more = r.GetMore()
		}
		return nil
	}
	open := &tokenizerv1.EncodeOpen{Model: e.model, NoBos: true}
	if err := ask(&tokenizerv1.EncodeStreamRequest{Frame: &tokenizerv1.EncodeStreamRequest_Open{Open: open}},
		false); err != nil {
		return err
	}
	buffer := make([]byte, encodePush)
	for {
		n, err := io.ReadFull(text, buffer)
		if n > 0 {
			push := &tokenizerv1.EncodePush{Text: buffer[:n]}
			if err := ask(&tokenizerv1.EncodeStreamRequest{Frame: &tokenizerv1.EncodeStreamRequest_Push{Push: push}},
				true); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return ask(&tokenizerv1.EncodeStreamRequest{
				Frame: &tokenizerv1.EncodeStreamRequest_Flush{Flush: &tokenizerv1.EncodeFlush{}}}, true)
		case err != nil:
			return err
		}
	}
}

// describeVocabulary identifies the vocabulary of a model. Documents end with the end token, by default the
// vocabulary's own, and begin with the begin token, or else with the end token.
func describeVocabulary(ctx context.Context, client tokenizerv1.TokenizerServiceClient, model, end string) (
	corpus.Vocabulary, error) {
	var v corpus.Vocabulary
	resp, err := client.Describe(ctx, &tokenizerv1.DescribeRequest{Model: model})
	if err != nil {
		return v, rpc.FromStatus(err)
	}
	if len(resp.GetVocabularies()) != 1 {
		return v, fault.Field("tokenizer", "the service has %d vocabularies: name one", len(resp.GetVocabularies()))
	}
	about := resp.GetVocabularies()[0]
	pieces, err := listPieces(ctx, client, model)
	if err != nil {
		return v, err
	}
	if len(pieces) != int(about.GetSize()) || len(pieces) == 0 {
		return v, fault.New(fault.Internal, "list tokens: got %d of %d", len(pieces), about.GetSize())
	}
	v = corpus.Vocabulary{Family: about.GetKind(), Size: len(pieces), End: about.GetEnd(),
		SHA256: corpus.DigestVocabulary(len(pieces), func(id int32) vocab.Piece { return pieces[id] })}
	found := about.End != nil
	for id, p := range pieces {
		if end != "" && p.Bytes == end {
			v.End, found = uint32(id), true
			end = ""
		}
	}
	if !found || end != "" {
		return v, fault.Field("end", "the vocabulary has no token %q to end documents with", end)
	}
	if v.Begin = v.End; about.GetAddsBos() {
		v.Begin = about.GetBos()
	}
	return v, nil
}

// listPieces lists the tokens of a vocabulary.
func listPieces(ctx context.Context, client tokenizerv1.TokenizerServiceClient, model string) ([]vocab.Piece, error) {
	stream, err := client.Tokens(ctx, &tokenizerv1.TokensRequest{Model: model})
	if err != nil {
		return nil, rpc.FromStatus(err)
	}
	var pieces []vocab.Piece
	for {
		part, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return pieces, nil
		}
		if err != nil {
			return nil, rpc.FromStatus(err)
		}
		first := len(pieces)
		for _, token := range part.GetTokens() {
			pieces = append(pieces, vocab.Piece{Bytes: string(token), Kind: vocab.KindNormal})
		}
		for _, irregular := range part.GetIrregular() {
			id := int(irregular.GetId())
			if id < first || id >= len(pieces) || int(part.GetFirst()) != first {
				return nil, fault.New(fault.Internal, "list tokens: id %d is not in its part", id)
			}
			p := &pieces[id]
			switch p.Kind = vocab.Kind(irregular.GetKind()); p.Kind {
			case vocab.KindControl: // the list has its text between special bytes
				if spelling, ok := grammar.ControlSpelling([]byte(p.Bytes)); ok {
					p.Bytes = spelling
				}
			case vocab.KindUnspecified:
				p.Bytes = string(irregular.GetHidden())
			}
		}
	}
}
