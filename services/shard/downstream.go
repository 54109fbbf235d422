package shard

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"google.golang.org/grpc"

	"github.com/lamina-mesh/lamina/pkg/fault"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	tensorv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tensor/v1"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/pkg/sample"
	"github.com/lamina-mesh/lamina/pkg/wire"
)

// nextStage is the downstream side of a stage that is not the last.
type nextStage struct {
	pipeline *pipeline
	stream   grpc.BidiStreamingClient[shardv1.InferRequest, shardv1.InferResponse]
}

// dialStage opens Infer to the next hop and waits until the rest of the chain is ready.
func dialStage(ctx context.Context, p *pipeline, open *shardv1.InferOpen) (*nextStage, *shardv1.InferOpened, error) {
	addr := open.GetRoute()[1].GetAddress()
	conn, err := p.service.cfg.Dialer.Dial(addr)
	if err != nil {
		return nil, nil, err
	}
	client := shardv1.NewShardServiceClient(conn)
	var reason string
	p.ring, reason = p.export(ctx, client)
	stream, err := client.Infer(ctx)
	if err != nil {
		p.ringClosed = true // it was not offered
		return nil, nil, rpc.FromStatus(err)
	}
	rest := &shardv1.InferOpen{
		Pipeline: open.GetPipeline(), Digest: open.GetDigest(), Route: open.GetRoute()[1:], Sampler: open.GetSampler(),
		HiddenType: open.GetHiddenType(), Epoch: open.GetEpoch(), Memory: p.ring.offer(p.service.cfg.Host),
	}
	if err := stream.Send(
		&shardv1.InferRequest{Frame: &shardv1.InferRequest_Open{Open: rest}},
	); err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, rpc.FromStatus(err)
	}
	resp, err := stream.Recv()
	if err != nil {
		p.ended(stream)
		return nil, nil, fault.Wrap(fault.CodeOf(rpc.FromStatus(err)), rpc.FromStatus(err), "open next stage at %s",
			addr)
	}
	if resp.GetOpened() == nil {
		return nil, nil, fault.New(fault.Internal, "open next stage at %s: it answered %T", addr, resp.GetFrame())
	}
	p.agree(resp.GetOpened(), reason)
	return &nextStage{p, stream}, resp.GetOpened(), nil
}

func (n *nextStage) batch(b *shardv1.Batch, accepted []*shardv1.Entry, of stageResult) error {
	s, width, result := n.pipeline.service, n.pipeline.held.stage.Spec.Width, of.values
	out := &shardv1.Batch{
		Step: b.GetStep(), DeadlineMs: b.GetDeadlineMs(), Entries: accepted, ReplayUntil: b.GetReplayUntil(),
	}
	var chunks []*tensorv1.Chunk
	if of.slot > 0 {
		out.Slot = slotOf(of.slot)
		rows := 0
		for _, e := range accepted {
			rows += int(e.GetRows())
		}
		s.sent("device", rows, width)
	} else {
		out.Hidden, chunks = wire.Encode(n.pipeline.hidden, []int{len(result) / width, width}, result)
		s.sent("wire", len(result)/width, width)
	}
	if err := n.send(&shardv1.InferRequest{Frame: &shardv1.InferRequest_Batch{Batch: out}}); err != nil {
		return err
	}
	for _, c := range chunks {
		if err := n.send(&shardv1.InferRequest{Frame: &shardv1.InferRequest_Chunk{Chunk: c}}); err != nil {
			return err
		}
	}
	return nil
}

func (n *nextStage) release(r *shardv1.Release) error {
	return n.send(&shardv1.InferRequest{Frame: &shardv1.InferRequest_Release{Release: r}})
}

// send sends a frame. If the stream is broken, receive returns the reason.
func (n *nextStage) send(r *shardv1.InferRequest) error { return broken(n.stream.Send(r)) }

// broken turns the io.EOF of a Send into an error. The stream's own error is returned by
// receive.
func broken(err error) error {
	if errors.Is(err, io.EOF) {
		return fault.New(fault.Unavailable, "send downstream: the stream has ended")
	}
	return rpc.FromStatus(err)
}

// ended notes at the end of the next stage's stream whether that stage has the ring open.
func (p *pipeline) ended(next grpc.ClientStream) {
	p.ringClosed = len(next.Trailer().Get(memoryClosed)) > 0
}

// receive relays frames for the router upstream.
func (n *nextStage) receive() error {
	for {
		resp, err := n.stream.Recv()
		if err != nil {
			n.pipeline.ended(n.stream)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return rpc.FromStatus(err)
		}
		if taken := resp.GetTaken(); taken != nil {
			if err := n.pipeline.ring.taken(taken); err != nil {
				return err
			}
			continue
		}
		if resp.GetRefused() == nil && resp.GetComputed() == nil && resp.GetLease() == nil {
			return fault.New(fault.Internal, "read from next stage: %T was not expected", resp.GetFrame())
		}
		if err := n.pipeline.send(resp); err != nil {
			return err
		}
	}
}

func (n *nextStage) close() error { return n.stream.CloseSend() }

// toSampler is the downstream side of the last stage.
type toSampler struct {
	pipeline *pipeline
	mu       sync.Mutex // guards Send, which compute calls and, for full rows, receive; and CloseSend
	stream   grpc.BidiStreamingClient[samplerv1.PushRequest, samplerv1.PushResponse]
}

func dialSampler(ctx context.Context, p *pipeline, open *shardv1.InferOpen) (*toSampler, error) {
	conn, err := p.service.cfg.Dialer.Dial(open.GetSampler())
	if err != nil {
		return nil, err
	}
	stream, err := samplerv1.NewSamplerServiceClient(conn).Push(ctx)
	if err != nil {
		return nil, rpc.FromStatus(err)
	}
	hello := &samplerv1.PushOpen{Pipeline: open.GetPipeline(), Vocab: uint32(p.held.stage.Spec.Vocab)}
	if err := stream.Send(
		&samplerv1.PushRequest{Frame: &samplerv1.PushRequest_Open{Open: hello}},
	); err != nil && !errors.Is(err, io.EOF) {
		return nil, rpc.FromStatus(err)
	}
	resp, err := stream.Recv()
	if err != nil {
		return nil, fault.Wrap(
			fault.CodeOf(rpc.FromStatus(err)), rpc.FromStatus(err), "open sampler at %s", open.GetSampler(),
		)
	}
	if resp.GetOpened() == nil {
		return nil, fault.New(fault.Internal, "open sampler at %s: it answered %T", open.GetSampler(), resp.GetFrame())
	}
	return &toSampler{pipeline: p, stream: stream}, nil
}

// rowsSize is the approximate size in bytes of a message with several rows.
const rowsSize = wire.ChunkSize / 2

// batch sends the rows with logits to the sampler. If an entry has none, it tells the router that the batch
// is computed.
func (t *toSampler) batch(b *shardv1.Batch, accepted []*shardv1.Entry, of stageResult) error {
	if len(of.values) > 0 || of.ranked != nil {
		if err := t.logits(accepted, of); err != nil {
			return err
		}
	}
	if slices.ContainsFunc(accepted, func(e *shardv1.Entry) bool { return e.GetLogits() == 0 }) {
		return t.pipeline.computed(b.GetStep())
	}
	return nil
}

// logits sends the candidates of each row with logits, or all its logits.
func (t *toSampler) logits(accepted []*shardv1.Entry, of stageResult) error {
	vocab := t.pipeline.held.stage.Spec.Vocab
	var rows []*samplerv1.Row
	size, index := 0, -1
	for _, e := range accepted {
		for i := range e.GetLogits() {
			index++
			pos := e.GetPosition() + e.GetRows() - e.GetLogits() + i
			if int(i) < len(e.GetTargets()) {
				if size > rowsSize {
					if err := t.send(rows, nil); err != nil {
						return err
					}
					rows, size = nil, 0
				}
				out := t.scored(e, pos, of.row(index, vocab), e.GetTargets()[i])
				rows = append(rows, out)
				size += len(out.GetLogits().GetData())
				continue
			}
			var out *samplerv1.Row
			var chunks []*tensorv1.Chunk
			if of.ranked != nil && rankable(e, vocab) {
				out = t.candidates(e, pos, of.ranked, index)
			} else {
				out, chunks = t.row(e, pos, of.row(index, vocab))
			}
			// They belong to the last rows: the first one may follow the log.
			if draft := int(i) - int(e.GetLogits()) + len(e.GetDraftIds()); draft >= 0 && len(e.GetDraftIds()) > 0 {
				out.DraftId = &e.GetDraftIds()[draft]
			}
			if len(chunks) > 0 || size > rowsSize {
				if err := t.send(rows, nil); err != nil {
					return err
				}
				rows, size = nil, 0
			}
			rows = append(rows, out)
			size += len(out.GetLogits().GetData())
			if len(chunks) > 0 {
				if err := t.send(rows, chunks); err != nil {
					return err
				}
				rows, size = nil, 0
			}
		}
	}
	return t.send(rows, nil)
}

// row returns the message of one row. If it has only candidates, the row is kept, since the sampler
// may ask for the rest.
func (t *toSampler) row(e *shardv1.Entry, pos uint32, row []float32) (*samplerv1.Row, []*tensorv1.Chunk) {
	h := t.pipeline.held
	out := &samplerv1.Row{
		Session: e.GetSession(), Epoch: e.GetEpoch(), Position: pos,
		LogSumExp: t.pipeline.service.cfg.Kernels.LogSumExp(row),
	}
	if k := int(e.GetCandidates()); k > 0 && k < len(row) {
		h.mu.Lock()
		if s := h.sessions[string(e.GetSession())]; s != nil {
			h.keepRow(s, row, pos, out.GetLogSumExp())
		}
		h.mu.Unlock()
		best := sample.Best(row, k)
		values := make([]float32, len(best))
		for i, c := range best {
			out.Ids = append(out.Ids, uint32(c.ID))
			values[i] = c.Logit
		}
		row = values
	}
	var chunks []*tensorv1.Chunk
	out.Logits, chunks = wire.Encode(tensorv1.ElementType_ELEMENT_TYPE_F32, []int{len(row)}, row)
	return out, chunks
}

// maxScored bounds the candidates of a row that is scored.
const maxScored = 1024

// scored returns the message of a prompt row: its best candidates, and after them the next prompt
// token unless it is one of them. The row itself is not kept.
func (t *toSampler) scored(e *shardv1.Entry, pos uint32, row []float32, target uint32) *samplerv1.Row {
	out := &samplerv1.Row{
		Session: e.GetSession(), Epoch: e.GetEpoch(), Position: pos,
		LogSumExp: t.pipeline.service.cfg.Kernels.LogSumExp(row), Target: &target,
	}
	k := min(int(e.GetCandidates()), maxScored, len(row))
	best := sample.Best(row, k)
	if !slices.ContainsFunc(best, func(c sample.Candidate) bool { return uint32(c.ID) == target }) {
		best = append(best, sample.Candidate{ID: int32(target), Logit: row[target]})
	}
	values := make([]float32, len(best))
	for i, c := range best {
		out.Ids = append(out.Ids, uint32(c.ID))
		values[i] = c.Logit
	}
	out.Logits, _ = wire.Encode(tensorv1.ElementType_ELEMENT_TYPE_F32, []int{len(values)}, values)
	return out
}

func (t *toSampler) send(rows []*samplerv1.Row, chunks []*tensorv1.Chunk) error {
	if len(rows) == 0 {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.stream.Send(
		&samplerv1.PushRequest{Frame: &samplerv1.PushRequest_Rows{Rows: &samplerv1.Rows{Rows: rows}}},
	); err != nil {
		return broken(err)
	}
	for _, c := range chunks {
		if err := t.stream.Send(&samplerv1.PushRequest{Frame: &samplerv1.PushRequest_Chunk{Chunk: c}}); err != nil {
			return broken(err)
		}
	}
	return nil
}

// release sends nothing: the router removes its sessions from the sampler itself.
func (t *toSampler) release(*shardv1.Release) error { return nil }

// receive answers the sampler's requests for full logits rows.
func (t *toSampler) receive() error {
	for {
		resp, err := t.stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return rpc.FromStatus(err)
		}
		wanted := resp.GetRowWanted()
		if wanted == nil {
			return fault.New(fault.Internal, "read from sampler: %T was not expected", resp.GetFrame())
		}
		if err := t.whole(wanted); err != nil {
			return err
		}
	}
}

// whole sends a row that was kept. If the row is gone, its session has ended or moved on, and
// nobody waits for it. A device that is lost ends the stream.
func (t *toSampler) whole(w *samplerv1.RowWanted) (err error) {
	p := t.pipeline
	defer func() {
		if r := recover(); r != nil {
			err = p.service.recovered(fmt.Sprintf("copy a row of layers %v", p.held.stage.Range), r)
		}
	}()
	out := &samplerv1.Row{Session: w.GetSession(), Position: w.GetPosition()}
	row := p.held.keptRow(p.id, out)
	if len(row) == 0 {
		return nil
	}
	var chunks []*tensorv1.Chunk
	out.Logits, chunks = wire.Encode(tensorv1.ElementType_ELEMENT_TYPE_F32, []int{len(row)}, row)
	return t.send([]*samplerv1.Row{out}, chunks)
}

// close closes this side of the stream, not while receive sends a row.
func (t *toSampler) close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.stream.CloseSend()
}
