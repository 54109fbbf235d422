package tokenizer

import (
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/lamina-mesh/lamina/pkg/fault"
	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
	"github.com/lamina-mesh/lamina/pkg/vocab"
)

// maxBatch bounds the texts of one batch.
const maxBatch = 1 << 16

// encoding holds the settings that all encode requests share.
type encoding interface {
	GetModel() string
	GetSpecial() bool
	GetNoBos() bool
	GetSpans() bool
	GetTruncation() *tokenizerv1.Truncation
	GetPadding() *tokenizerv1.Padding
}

// Encode turns text into ids.
func (s *Service) Encode(ctx context.Context, r *tokenizerv1.EncodeRequest) (*tokenizerv1.EncodeResponse, error) {
	if r.Suffix != nil {
		return s.encodeFIM(ctx, r)
	}
	out, err := s.encodeTexts(ctx, r, []string{r.GetText()}, func(int) string { return "text" })
	if err != nil {
		return nil, err
	}
	return out[0], nil
}

// encodeFIM makes a fill-in-the-middle prompt from two texts.
func (s *Service) encodeFIM(ctx context.Context, r *tokenizerv1.EncodeRequest) (*tokenizerv1.EncodeResponse, error) {
	m, err := s.find(ctx, r.GetModel())
	if err != nil {
		return nil, err
	}
	if r.GetSpans() || r.GetTruncation() != nil || r.GetPadding() != nil {
		return nil, fault.Field("suffix", "cannot be combined with spans, truncation or padding")
	}
	o, err := options(r)
	if err != nil {
		return nil, err
	}
	o.Workers = s.workers
	ids, ok, err := m.Vocab.EncodeFIM(r.GetText(), r.GetSuffix(), o)
	switch {
	case !ok:
		return nil, fault.Field("suffix", "model %q has no fill-in-the-middle tokens", m.Name)
	case err != nil:
		return nil, m.encodeFault("text", err)
	case len(ids) > maxIDs:
		return nil, fault.Field("text", "becomes %d tokens, more than %d fit one reply", len(ids), maxIDs)
	}
	return wireEncoding(&vocab.Encoding{IDs: ids}, false), nil
}

// EncodeBatch turns several texts into ids.
func (s *Service) EncodeBatch(ctx context.Context,
	r *tokenizerv1.EncodeBatchRequest) (*tokenizerv1.EncodeBatchResponse, error) {
	if len(r.GetTexts()) > maxBatch {
		return nil, fault.Field("texts", "%d are more than %d", len(r.GetTexts()), maxBatch)
	}
	out, err := s.encodeTexts(ctx, r, r.GetTexts(), func(i int) string { return fmt.Sprintf("texts[%d]", i) })
	if err != nil {
		return nil, err
	}
	return &tokenizerv1.EncodeBatchResponse{Encodings: out}, nil
}

// encodeTexts encodes several texts with the same settings. field returns the name of a text for
// errors.
func (s *Service) encodeTexts(ctx context.Context, r encoding, texts []string,
	field func(i int) string) ([]*tokenizerv1.EncodeResponse, error) {
	m, err := s.find(ctx, r.GetModel())
	if err != nil {
		return nil, err
	}
	o, err := options(r)
	if err != nil {
		return nil, err
	}
	o.Workers = s.workers
	pad, err := m.padding(r.GetPadding())
	if err != nil {
		return nil, err
	}
	encodings, err := m.encodeAll(ctx, texts, o, r.GetSpans(), field)
	if err != nil {
		return nil, err
	}
	longest, total := 0, 0
	for i := range encodings {
		longest = max(longest, len(encodings[i].IDs))
		total += len(encodings[i].IDs)
	}
	if pad != nil {
		longest = pad.to(longest)
		total = longest * len(encodings)
	}
	per := 1
	if r.GetSpans() {
		per = 3
	}
	if total > maxIDs/per {
		return nil, fault.Field(field(0), "becomes %d tokens, more than %d fit one reply", total, maxIDs/per)
	}
	out := make([]*tokenizerv1.EncodeResponse, len(encodings))
	for i := range encodings {
		out[i] = wireEncoding(&encodings[i], r.GetSpans())
		if pad != nil {
			pad.fill(out[i], longest)
		}
	}
	return out, nil
}

// encodeAll encodes several texts in parallel; an error names the text.
func (m *model) encodeAll(ctx context.Context, texts []string, o vocab.Options, spans bool,
	field func(i int) string) ([]vocab.Encoding, error) {
	encode := m.Vocab.EncodeBatch
	if spans {
		encode = m.Vocab.EncodeBatchSpans
	}
	out, err := encode(ctx, texts, o, nil)
	if err == nil {
		return out, nil
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	for i, text := range texts { // find the text that failed
		if _, err := m.Vocab.Encode(text, o); err != nil {
			return nil, m.encodeFault(field(i), err)
		}
	}
	return nil, m.encodeFault(field(0), err)
}

func (m *model) encodeFault(field string, err error) error {
	return &fault.Error{Code: fault.Invalid, Field: field, Msg: fmt.Sprintf("encode for model %q", m.Name), Err: err}
}

// options reads a request's settings for special tokens and truncation.
func options(r encoding) (vocab.Options, error) {
	o := vocab.Options{Special: r.GetSpecial(), BOS: !r.GetNoBos()}
	if t := r.GetTruncation(); t != nil {
		if t.GetMaxTokens() < 1 || t.GetMaxTokens() > math.MaxInt32 {
			return o, fault.Field("truncation.max_tokens", "%d is not within 1..%d", t.GetMaxTokens(), math.MaxInt32)
		}
		left, err := isLeft("truncation.side", t.GetSide())
		if err != nil {
			return o, err
		}
		o.Limit, o.KeepEnd = int(t.GetMaxTokens()), left
	}
	return o, nil
}

func isLeft(field string, side tokenizerv1.Side) (bool, error) {
	switch side {
	case tokenizerv1.Side_SIDE_LEFT:
		return true, nil
	case tokenizerv1.Side_SIDE_UNSPECIFIED, tokenizerv1.Side_SIDE_RIGHT:
		return false, nil
	}
	return false, fault.Field(field, "unknown side %d", side)
}

// padding holds the checked padding settings of a request.
type padding struct {
	id               uint32
	left             bool
	length, multiple int
}

func (m *model) padding(p *tokenizerv1.Padding) (*padding, error) {
	if p == nil {
		return nil, nil
	}
	out := &padding{length: int(p.GetLength()), multiple: max(int(p.GetMultiple()), 1)}
	var err error
	if out.left, err = isLeft("padding.side", p.GetSide()); err != nil {
		return nil, err
	}
	if out.length > maxIDs {
		return nil, fault.Field("padding.length", "%d is more than %d", out.length, maxIDs)
	}
	if out.multiple > maxIDs {
		return nil, fault.Field("padding.multiple", "%d is more than %d", out.multiple, maxIDs)
	}
	switch {
	case p.Id != nil:
		if int64(p.GetId()) >= int64(m.Vocab.Size()) {
			return nil, fault.Field("padding.id", "id %d is outside the vocabulary of %d", p.GetId(), m.Vocab.Size())
		}
		out.id = p.GetId()
	default:
		id, ok := m.Vocab.ID(m.Chat.Special["pad_token"])
		if !ok {
			if id, ok = m.Vocab.EOS(); !ok {
				return nil, fault.Field("padding.id",
					"is missing: model %q has neither a padding token nor an end-of-text token",
					m.Name)
			}
		}
		out.id = uint32(id)
	}
	return out, nil
}

// to returns the length to which a sequence of n ids is padded.
func (p *padding) to(n int) int {
	n = max(n, p.length)
	return (n + p.multiple - 1) / p.multiple * p.multiple
}

// fill pads an encoding to a length. Padding ids have empty spans.
func (p *padding) fill(e *tokenizerv1.EncodeResponse, length int) {
	n := length - len(e.GetIds())
	e.Padding = uint32(n)
	e.Ids = p.around(e.GetIds(), slices.Repeat([]uint32{p.id}, n))
	if e.Starts != nil {
		none := make([]uint32, n)
		e.Starts, e.Ends = p.around(e.GetStarts(), none), p.around(e.GetEnds(), none)
	}
}

func (p *padding) around(values, fill []uint32) []uint32 {
	if p.left {
		return slices.Concat(fill, values)
	}
	return slices.Concat(values, fill)
}

func wireEncoding(e *vocab.Encoding, spans bool) *tokenizerv1.EncodeResponse {
	out := &tokenizerv1.EncodeResponse{Ids: wireIDs(e.IDs), LeftOut: uint32(e.Truncated)}
	if spans {
		out.Starts, out.Ends = make([]uint32, len(e.Spans)), make([]uint32, len(e.Spans))
		for i, span := range e.Spans {
			out.Starts[i], out.Ends[i] = uint32(span[0]), uint32(span[1])
		}
	}
	return out
}

func wireIDs(ids []int32) []uint32 {
	out := make([]uint32, len(ids))
	for i, id := range ids {
		out[i] = uint32(id)
	}
	return out
}

// encode encodes a text into wire ids.
func (m *model) encode(field, text string, o vocab.Options) ([]uint32, error) {
	ids, err := m.Vocab.Encode(text, o)
	if err != nil {
		return nil, m.encodeFault(field, err)
	}
	if len(ids) > maxIDs {
		return nil, fault.Field(field, "becomes %d tokens, more than %d fit one reply", len(ids), maxIDs)
	}
	return wireIDs(ids), nil
}
