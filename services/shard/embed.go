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

// maxEmbeds is the number of calls of Embed that may read or wait at the same time.
const maxEmbeds = 16

type embedServer = grpc.BidiStreamingServer[shardv1.EmbedRequest, shardv1.EmbedResponse]

// Embed runs whole texts through a stage. A call must have a deadline, since it has no other limit of time.
func (s *Service) Embed(stream embedServer) error {
	if _, limited := stream.Context().Deadline(); !limited {
		return fault.New(fault.FailedPrecondition, "embed texts: the call has no deadline")
	}
	select {
	case s.embeds <- struct{}{}:
		defer func() { <-s.embeds }()
	default:
		return fault.New(fault.Exhausted, "embed texts: %d calls are running", maxEmbeds).After(time.Second)
	}
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	open := first.GetOpen()
	if open == nil {
		return fault.Field("open", "is missing in the first frame")
	}
	h, err := s.find(open.GetDigest(), &shardv1.Hop{Lo: open.GetLo(), Hi: open.GetHi()})
	if err != nil {
		return err
	}
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
			err = fault.New(fault.Internal, "embed texts by layers %v of %s: %v", h.stage.Range, h.name, r)
		}
	}()
	b := &model.Batch[float32]{Hidden: hidden, Features: h.stage.Last()}
	pages, rows := 0, 0
	for _, n := range open.GetLengths() {
		pages += h.cache.PagesFor(int(n))
		rows += int(n)
	}
	for _, id := range open.GetIds() {
		b.IDs = append(b.IDs, int32(id))
	}
	h.compute.Lock() // at most one call has a cache
	defer h.compute.Unlock()
	if err := stream.Context().Err(); err != nil { // nobody waits any more
		return nil, nil, err
	}
	start := time.Now()
	cache := kvcache.New(h.stage.CacheConfig(pages), h.stage.Kernels())
	for _, n := range open.GetLengths() {
		seq := cache.NewSequence()
		defer seq.Free()
		b.Entries = append(b.Entries, model.Entry[float32]{Seq: seq, Rows: int(n), Logits: int(n)})
	}
	result, err := h.stage.Forward(b)
	if err != nil {
		return nil, nil, err
	}
	s.rows.Add(float64(rows))
	s.compute.Add(time.Since(start).Seconds())
	width := h.stage.Spec.Width
	if !h.stage.Last() {
		return []int{rows, width}, append([]float32(nil), result...), nil
	}
	p := h.poolingFor(open.GetPooling())
	for _, n := range open.GetLengths() {
		out = append(out, model.Pool(p, result[:int(n)*width], width)...)
		result = result[int(n)*width:]
	}
	return []int{len(open.GetLengths()), width}, out, nil
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
