package shard

import (
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/grpc"

	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	tensorv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tensor/v1"
	"github.com/lamina-mesh/lamina/pkg/kvcache"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/wire"
)

const (
	maxEmbeds = 16  // calls of Embed that may read or wait at the same time; half of them without priority
	embedRows = 256 // rows that a decoder computes at a time for Embed
)

type embedServer = grpc.BidiStreamingServer[shardv1.EmbedRequest, shardv1.EmbedResponse]

// Embed runs whole texts through a stage. A call must have a deadline, since it has no other limit of time.
func (s *Service) Embed(stream embedServer) error {
	if _, limited := stream.Context().Deadline(); !limited {
		return fault.New(fault.FailedPrecondition, "embed texts: the call has no deadline")
	}
	full := func(most chan struct{}) error {
		return fault.New(fault.Unavailable, "embed texts: %d calls are running", cap(most)).After(time.Second).
			Because("QUEUE_FULL")
	}
	select {
	case s.embeds <- struct{}{}:
		defer func() { <-s.embeds }()
	default:
		return full(s.embeds)
	}
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	open := first.GetOpen()
	if open == nil {
		return fault.Field("open", "is missing in the first frame")
	}
	if open.GetLow() {
		select {
		case s.lows <- struct{}{}:
			defer func() { <-s.lows }()
		default:
			return full(s.lows)
		}
	}
	h, err := s.find(open.GetDigest(), &shardv1.Hop{Lo: open.GetLo(), Hi: open.GetHi()})
	if err == nil {
		err = h.beginEmbed()
	}
	if err != nil {
		return err
	}
	defer h.endEmbed()
	if err := h.checkTexts(open); err != nil {
		return err
	}
	hidden, err := h.receiveHidden(stream, open.GetHidden())
	if err != nil {
		return err
	}
	shape, out, err := h.embed(s, stream, open, hidden)
	if err != nil {
		return err
	}
	head, chunks := wire.Encode(tensorv1.ElementType_ELEMENT_TYPE_F32, shape, out)
	if err := stream.Send(&shardv1.EmbedResponse{Frame: &shardv1.EmbedResponse_Result{Result: head}}); err != nil {
		return err
	}
	for _, c := range chunks {
		if err := stream.Send(&shardv1.EmbedResponse{Frame: &shardv1.EmbedResponse_Chunk{Chunk: c}}); err != nil {
			return err
		}
	}
	return nil
}

// beginEmbed counts a call of Embed, for which the span stays in memory.
func (h *held) beginEmbed() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.unloaded { // between the look for the span and this
		return fault.New(fault.NotFound, "find layers %v of %s: they were unloaded", h.stage.Range, h.digest)
	}
	h.embeds++
	return nil
}

func (h *held) endEmbed() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.embeds--
}

// embedTokens returns the most tokens of a text; 0 if the model's pooling is not supported.
func (h *held) embedTokens() int {
	if h.poolingErr != nil {
		return 0
	}
	return min(h.pooling.MaxTokens, maxRows)
}

// checkTexts checks the lengths of the texts and what comes with them.
func (h *held) checkTexts(open *shardv1.EmbedOpen) error {
	if h.poolingErr != nil {
		return fault.Wrap(fault.FailedPrecondition, h.poolingErr, "embed texts by %s", h.name)
	}
	if n := len(open.GetLengths()); n == 0 || n > maxEntries {
		return fault.Field("open.lengths", "%d texts are not within 1..%d", n, maxEntries)
	}
	rows := 0
	for i, n := range open.GetLengths() {
		if n == 0 || n > uint32(h.embedTokens()) {
			return fault.Field(fmt.Sprintf("open.lengths[%d]", i), "%d tokens are not within 1..%d", n,
				h.embedTokens())
		}
		rows += int(n)
	}
	if rows > maxRows {
		return fault.Field("open.lengths", "%d rows are more than %d", rows, maxRows)
	}
	if h.stage.First() {
		if len(open.GetIds()) != rows {
			return fault.Field("open.ids", "%d for %d rows", len(open.GetIds()), rows)
		}
		for i, id := range open.GetIds() {
			if int64(id) >= int64(h.stage.Spec.Vocab) {
				return fault.Field(fmt.Sprintf("open.ids[%d]", i), "%d is outside the vocabulary of %d", id,
					h.stage.Spec.Vocab)
			}
		}
		return nil
	}
	shape := open.GetHidden().GetShape()
	if len(shape) != 2 || int(shape[0]) != rows || int(shape[1]) != h.stage.Spec.Width {
		return fault.Field("open.hidden", "shape %v, want [%d %d]", shape, rows, h.stage.Spec.Width)
	}
	return nil
}

// receiveHidden reads the hidden states of the stage before; there are none for the first stage.
func (h *held) receiveHidden(stream embedServer, head *tensorv1.Tensor) ([]float32, error) {
	if h.stage.First() {
		return nil, nil
	}
	tensor := wire.NewAssembler(4 * maxRows * h.stage.Spec.Width)
	done, err := tensor.Start(head)
	for !done && err == nil {
		var frame *shardv1.EmbedRequest
		switch frame, err = stream.Recv(); {
		case errors.Is(err, io.EOF):
			return nil, fault.Field("chunk", "the hidden states are not complete")
		case err != nil:
			return nil, err
		case frame.GetChunk() == nil:
			return nil, fault.Field("frame", "want a chunk")
		}
		done, err = tensor.Add(frame.GetChunk())
	}
	if err != nil {
		return nil, err
	}
	return tensor.Float32(nil)
}

// embed computes the texts and returns the shape and the values of the result.
func (h *held) embed(s *Service, stream embedServer, open *shardv1.EmbedOpen, hidden []float32) (
	shape []int, out []float32, err error,
) {
	defer func() {
		if r := recover(); r != nil {
			err = s.recovered(fmt.Sprintf("embed texts by layers %v of %s", h.stage.Range, h.name), r)
		}
	}()
	if err := h.embedding.lock(stream.Context(), open.GetLow()); err != nil { // one call at a time has a cache
		return nil, nil, err
	}
	defer h.embedding.unlock()
	pages := 0
	for _, n := range open.GetLengths() {
		pages += h.cache.PagesFor(int(n))
	}
	cache := kvcache.New(h.stage.CacheConfig(pages), h.stage.Kernels())
	seqs := make([]*kvcache.Sequence[float32], len(open.GetLengths()))
	for i := range seqs {
		seqs[i] = cache.NewSequence()
		defer seqs[i].Free()
	}
	width, row := h.stage.Spec.Width, 0
	for _, parts := range h.divide(open.GetLengths()) {
		if err := stream.Context().Err(); err != nil { // nobody waits any more
			return nil, nil, err
		}
		b, rows := &model.Batch[float32]{Features: h.stage.Last()}, 0
		for _, p := range parts {
			b.Entries = append(b.Entries,
				model.Entry[float32]{Seq: seqs[p.text], Pos: p.from, Rows: p.rows, Logits: p.rows})
			rows += p.rows
		}
		if h.stage.First() {
			for _, id := range open.GetIds()[row : row+rows] {
				b.IDs = append(b.IDs, int32(id))
			}
		} else {
			b.Hidden = hidden[row*width : (row+rows)*width]
		}
		if out, err = h.embedPart(s, b, rows, out); err != nil {
			return nil, nil, err
		}
		row += rows
	}
	if !h.stage.Last() {
		return []int{row, width}, out, nil
	}
	p, texts := h.poolingFor(open.GetPooling()), []float32(nil)
	for _, n := range open.GetLengths() {
		texts = append(texts, model.Pool(p, out[:int(n)*width], width)...)
		out = out[int(n)*width:]
	}
	return []int{len(open.GetLengths()), width}, texts, nil
}

// part is some consecutive rows of a text.
type part struct{ text, from, rows int }

// divide divides the rows of texts into batches, in order. A decoder computes at most embedRows rows at a time, so
// that generation on the same stage does not wait for long; that changes no bits. An encoder has to see a whole text
// at once, and generates nothing.
func (h *held) divide(lengths []uint32) (out [][]part) {
	var batch []part
	room := embedRows
	for i, n := range lengths {
		for from := 0; from < int(n); {
			rows := int(n) - from
			if !h.stage.Spec.Encoder() {
				rows = min(rows, room)
			}
			batch = append(batch, part{i, from, rows})
			from += rows
			if room -= rows; room <= 0 {
				out, batch, room = append(out, batch), nil, embedRows
			}
		}
	}
	if batch != nil {
		out = append(out, batch)
	}
	return out
}

// embedPart computes a batch of the given number of rows and appends its hidden states to out.
func (h *held) embedPart(s *Service, b *model.Batch[float32], rows int, out []float32) ([]float32, error) {
	h.compute.Lock()
	defer h.compute.Unlock()
	start := time.Now()
	result, err := h.stage.Forward(b)
	if err != nil {
		return nil, err
	}
	s.rows.Add(float64(rows))
	s.compute.Add(time.Since(start).Seconds())
	h.mu.Lock()
	h.rows += uint64(rows) // the placer sees by it that the model is used
	h.mu.Unlock()
	return append(out, result...), nil
}

// poolingFor returns the model's pooling with what a call says otherwise.
func (h *held) poolingFor(asked *shardv1.Pooling) model.Pooling {
	p := h.pooling
	switch asked.GetKind() {
	case shardv1.PoolKind_POOL_KIND_MEAN:
		p.Kind = model.PoolMean
	case shardv1.PoolKind_POOL_KIND_FIRST:
		p.Kind = model.PoolFirst
	case shardv1.PoolKind_POOL_KIND_LAST:
		p.Kind = model.PoolLast
	}
	if asked != nil && asked.Normalize != nil {
		p.Normalize = asked.GetNormalize()
	}
	return p
}
