package tokenizer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"

	"google.golang.org/grpc"

	"github.com/lamina-mesh/lamina/pkg/fault"
	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
	"github.com/lamina-mesh/lamina/pkg/vocab"
)

// maxText is the longest text of an answer in bytes, which fits into one message. An id may stand for hundreds of bytes
// and takes one or two of a request, so without a limit a small request could take a lot of memory.
const maxText = 4<<20 - 1<<10

// Decode turns ids into text.
func (s *Service) Decode(ctx context.Context, r *tokenizerv1.DecodeRequest) (*tokenizerv1.DecodeResponse, error) {
	m, err := s.find(ctx, r.GetModel())
	if err != nil {
		return nil, err
	}
	ids, err := m.ids("ids", r.GetIds())
	if err != nil {
		return nil, err
	}
	d := &decoder{m, m.Vocab.NewDecoder(vocab.DecodeOptions{SkipSpecial: r.GetSkipSpecial()})}
	var text strings.Builder
	if err := d.each("ids", ids, func(_ int, piece string) { text.WriteString(piece) }); err != nil {
		return nil, err
	}
	text.WriteString(d.text.Flush())
	return &tokenizerv1.DecodeResponse{Text: text.String()}, nil
}

// ids checks ids from the wire and converts them.
func (m *model) ids(field string, wire []uint32) ([]int32, error) {
	ids := make([]int32, len(wire))
	for i, id := range wire {
		if id > math.MaxInt32 || int(id) >= m.Vocab.Size() {
			return nil, fault.Field(fmt.Sprintf("%s[%d]", field, i), "id %d is outside the vocabulary of %d", id,
				m.Vocab.Size())
		}
		ids[i] = int32(id)
	}
	return ids, nil
}

// DecodeStream turns a growing sequence of ids into growing text.
func (s *Service) DecodeStream(
	stream grpc.BidiStreamingServer[tokenizerv1.DecodeStreamRequest, tokenizerv1.DecodeStreamResponse]) error {
	frame, err := stream.Recv()
	if errors.Is(err, io.EOF) {
		return fault.Field("frame", "the stream ended before open")
	}
	if err != nil {
		return err
	}
	open := frame.GetOpen()
	if open == nil {
		return fault.Field("frame", "expected open first, got %T", frame.GetFrame())
	}
	m, err := s.find(stream.Context(), open.GetModel())
	if err != nil {
		return err
	}
	prefix, err := m.ids("open.prefix", open.GetPrefix())
	if err != nil {
		return err
	}
	d := m.newDecoder(open, prefix)
	for {
		frame, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		var reply *tokenizerv1.DecodeStreamResponse
		switch f := frame.GetFrame().(type) {
		case *tokenizerv1.DecodeStreamRequest_Push:
			if reply, err = d.push(f.Push.GetIds()); err != nil {
				return err
			}
		case *tokenizerv1.DecodeStreamRequest_Flush:
			return stream.Send(&tokenizerv1.DecodeStreamResponse{Text: d.text.Flush()})
		default:
			return fault.Field("frame", "expected push or flush, got %T", f)
		}
		if err := stream.Send(reply); err != nil {
			return err
		}
	}
}

// decoder is the state of one DecodeStream.
type decoder struct {
	model *model
	text  *vocab.Decoder
}

func (m *model) newDecoder(open *tokenizerv1.DecodeOpen, prefix []int32) *decoder {
	o := vocab.DecodeOptions{SkipSpecial: open.GetSkipSpecial(), Prefix: prefix}
	if open.GetKeepMarkers() {
		o.Keep = m.markers()
	}
	return &decoder{m, m.Vocab.NewDecoder(o)}
}

// markers returns the control tokens that mark tool calls and reasoning in the model's chats.
func (m *model) markers() map[int32]bool {
	out := map[int32]bool{}
	for _, c := range m.chats {
		for _, marker := range c.format.Markers() {
			if id, ok := m.Vocab.ID(marker); ok {
				out[id] = true
			}
		}
	}
	return out
}

func (d *decoder) push(wire []uint32) (*tokenizerv1.DecodeStreamResponse, error) {
	if len(wire) == 0 {
		return nil, fault.Field("push.ids", "want at least one id")
	}
	ids, err := d.model.ids("push.ids", wire)
	if err != nil {
		return nil, err
	}
	reply := &tokenizerv1.DecodeStreamResponse{Pieces: make([]string, len(ids))}
	if err := d.each("push.ids", ids, func(i int, piece string) { reply.Pieces[i] = piece }); err != nil {
		return nil, err
	}
	reply.Text = strings.Join(reply.Pieces, "")
	return reply, nil
}

// each calls add with what each id adds to the text. field names the ids in errors.
func (d *decoder) each(field string, ids []int32, add func(i int, piece string)) error {
	size := 0
	for i, id := range ids {
		piece, err := d.text.Push(id)
		if err != nil {
			return &fault.Error{Code: fault.Invalid, Field: field,
				Msg: fmt.Sprintf("decode for model %q", d.model.Name), Err: err}
		}
		if size += len(piece); size > maxText {
			return fault.Field(field, "%d of them have a text of more than %d bytes: decode fewer at a time", i+1,
				maxText)
		}
		add(i, piece)
	}
	return nil
}
