package shard

import (
	"context"
	"errors"
	"io"
	"sync"

	"google.golang.org/grpc"

	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	tensorv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tensor/v1"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/pkg/wire"
)

type exchangeServer = grpc.BidiStreamingServer[shardv1.ExchangeRequest, shardv1.ExchangeResponse]

// slotTensor is one slot's activation or its gradient.
type slotTensor struct {
	attempt
	slot   uint32
	span   uint32 // the receiver's
	values []float32
}

// inbox has the tensors from a neighbour for one span.
type inbox struct {
	queue chan slotTensor
	held  *slotTensor // of the next attempt, which the neighbour has begun already
}

// queues has one queue for each span of a stage. A neighbour's tensors for different spans arrive on
// one stream, so a full queue would hold up the others. But no more than one for each stage wait for a
// span of several (see TestConfig_FewActivationsWaitForASpan in pkg/schedule).
func queues(spans, stages int) []*inbox {
	out := make([]*inbox, spans)
	for i := range out {
		out[i] = &inbox{queue: make(chan slotTensor, max(frameQueue, stages))}
	}
	return out
}

// next waits for the next tensor.
func (in *inbox) next(ctx context.Context) (slotTensor, error) {
	if t := in.held; t != nil {
		in.held = nil
		return *t, nil
	}
	select {
	case t := <-in.queue:
		return t, nil
	case <-ctx.Done():
		return slotTensor{}, context.Cause(ctx)
	}
}

// await waits for the tensor that the schedule expects next. It drops those of aborted attempts.
func (in *inbox) await(ctx context.Context, at attempt, slot int) ([]float32, error) {
	for {
		t, err := in.next(ctx)
		switch {
		case err != nil:
			return nil, err
		case at.after(t.attempt):
		case t.step == at.step && t.n > at.n: // this stage has yet to hear of the abort
			in.held = &t
			<-ctx.Done()
			return nil, context.Cause(ctx)
		case t.attempt != at || int(t.slot) != slot:
			return nil, fault.New(fault.Aborted, "exchange: got slot %d of step %d, want slot %d of step %d", t.slot,
				t.step, slot, at.step)
		default:
			return t.values, nil
		}
	}
}

// fromPrev is the connection from the previous stage, which calls Exchange on this shard.
type fromPrev struct {
	tensors []*inbox      // by span
	joined  chan struct{} // closed when stream is set
	stream  exchangeServer
	once    sync.Once
}

func newFromPrev(spans, stages int) *fromPrev {
	return &fromPrev{tensors: queues(spans, stages), joined: make(chan struct{})}
}

func (p *fromPrev) activation(ctx context.Context, at attempt, slot, span int) ([]float32, error) {
	return p.tensors[span].await(ctx, at, slot)
}

// send sends an activation's gradient to a span of the previous stage. The activation has arrived, so
// there is a stream.
func (p *fromPrev) send(at attempt, slot, span int, x []float32, width int) error {
	head, chunks := wire.Encode(f32, []int{len(x) / width, width}, x)
	g := &shardv1.ActivationGradient{Step: at.step, Attempt: at.n, Slot: uint32(slot), Span: uint32(span), Tensor: head}
	if err := p.stream.Send(
		&shardv1.ExchangeResponse{Frame: &shardv1.ExchangeResponse_Gradient{Gradient: g}},
	); err != nil {
		return rpc.FromStatus(err)
	}
	for _, c := range chunks {
		if err := p.stream.Send(
			&shardv1.ExchangeResponse{Frame: &shardv1.ExchangeResponse_Chunk{Chunk: c}}); err != nil {
			return rpc.FromStatus(err)
		}
	}
	return nil
}

// Exchange receives the previous stage's activations until that stage closes its side.
func (s *Service) Exchange(stream exchangeServer) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	open := first.GetOpen()
	s.training.mu.Lock()
	r := s.training.runs[runKey(open.GetChain(), open.GetTo())]
	s.training.mu.Unlock()
	if open == nil || r == nil || r.prev == nil || (open.GetStage()+1)%r.open.GetStages() != open.GetTo() {
		return fault.New(
			fault.FailedPrecondition,
			"exchange of stage %d with stage %d of chain %x: the stage is not open on this shard",
			open.GetStage(),
			open.GetTo(),
			open.GetChain(),
		)
	}
	joined := false
	r.prev.once.Do(func() {
		r.prev.stream = stream
		close(r.prev.joined)
		joined = true
	})
	if !joined {
		return fault.New(
			fault.AlreadyExists, "exchange with stage %d of chain %x: the stage already has a neighbour",
			open.GetTo(), open.GetChain(),
		)
	}
	if err := stream.Send(
		&shardv1.ExchangeResponse{Frame: &shardv1.ExchangeResponse_Opened{Opened: &shardv1.ExchangeOpened{}}},
	); err != nil {
		return err
	}
	var pending slotTensor
	err = receiveTensors(r.ctx, r.activationBytes(), r.prev.tensors, r.fence,
		func() (*tensorv1.Tensor, *tensorv1.Chunk, *slotTensor, error) {
			req, err := stream.Recv()
			if err != nil {
				return nil, nil, nil, err
			}
			if a := req.GetActivation(); a != nil {
				pending = slotTensor{
					attempt: attempt{a.GetStep(), a.GetAttempt()},
					slot:    a.GetSlot(),
					span:    a.GetSpan(),
				}
				return a.GetTensor(), nil, &pending, nil
			}
			return nil, req.GetChunk(), &pending, nil
		})
	if errors.Is(err, io.EOF) {
		return nil
	}
	r.fail(err)
	return err
}

// receiveTensors assembles tensors from frames and passes them on to the queues of their spans, until
// recv or a tensor fails.
func receiveTensors(
	ctx context.Context, limit int, out []*inbox, fence *fence,
	recv func() (*tensorv1.Tensor, *tensorv1.Chunk, *slotTensor, error),
) error {
	tensors := wire.NewAssembler(limit)
	for {
		head, chunk, t, err := recv()
		if err != nil {
			return err
		}
		var done bool
		switch {
		case head != nil:
			done, err = tensors.Start(head)
		case chunk != nil:
			done, err = tensors.Add(chunk)
		default:
			err = fault.Field("frame", "is neither a tensor nor a chunk")
		}
		if err != nil {
			return err
		}
		if !done {
			continue
		}
		if t.values, err = tensors.Float32(nil); err != nil {
			return err
		}
		if int(t.span) >= len(out) {
			return fault.Field("span", "%d is not one of %d spans", t.span, len(out))
		}
		if err := fence.pass(ctx, *t, out[t.span].queue); err != nil {
			return err
		}
	}
}

// toNext is the connection to the next stage, which this stage has dialed.
type toNext struct {
	stream  grpc.BidiStreamingClient[shardv1.ExchangeRequest, shardv1.ExchangeResponse]
	tensors []*inbox // by span
	fence   *fence
	limit   int // maximum bytes of a gradient
	cancel  context.CancelFunc
	done    chan struct{}
}

// dialNext opens Exchange on the next stage, which is already open.
func dialNext(
	ctx context.Context, fail context.CancelCauseFunc, dialer Dialer, o *shardv1.TrainOpen, limit int, fence *fence,
) (*toNext, error) {
	conn, err := dialer.Dial(o.GetNext())
	if err != nil {
		return nil, err
	}
	own, cancel := context.WithCancel(ctx)
	n := &toNext{limit: limit, fence: fence, tensors: queues(len(o.GetSpans()), int(o.GetStages())), cancel: cancel,
		done: make(chan struct{})}
	if n.stream, err = shardv1.NewShardServiceClient(conn).Exchange(own); err != nil {
		cancel()
		return nil, rpc.FromStatus(err)
	}
	hello := &shardv1.ExchangeOpen{Chain: o.GetChain(), Stage: o.GetStage(), To: (o.GetStage() + 1) % o.GetStages()}
	if err := n.stream.Send(
		&shardv1.ExchangeRequest{Frame: &shardv1.ExchangeRequest_Open{Open: hello}},
	); err != nil && !errors.Is(err, io.EOF) {
		cancel()
		return nil, rpc.FromStatus(err)
	}
	if _, err := n.stream.Recv(); err != nil {
		cancel()
		return nil, fault.Wrap(fault.CodeOf(rpc.FromStatus(err)), rpc.FromStatus(err), "join next stage at %s",
			o.GetNext())
	}
	go func() {
		defer close(n.done)
		if err := n.receive(own); own.Err() == nil {
			fail(err)
		}
	}()
	return n, nil
}

func (n *toNext) receive(ctx context.Context) error {
	var pending slotTensor
	err := receiveTensors(ctx, n.limit, n.tensors, n.fence,
		func() (*tensorv1.Tensor, *tensorv1.Chunk, *slotTensor, error) {
			resp, err := n.stream.Recv()
			if err != nil {
				return nil, nil, nil, rpc.FromStatus(err)
			}
			if g := resp.GetGradient(); g != nil {
				pending = slotTensor{
					attempt: attempt{g.GetStep(), g.GetAttempt()},
					slot:    g.GetSlot(),
					span:    g.GetSpan(),
				}
				return g.GetTensor(), nil, &pending, nil
			}
			return nil, resp.GetChunk(), &pending, nil
		})
	if errors.Is(err, io.EOF) {
		return fault.New(fault.Unavailable, "exchange: the next stage has ended")
	}
	return err
}

func (n *toNext) gradient(ctx context.Context, at attempt, slot, span int) ([]float32, error) {
	return n.tensors[span].await(ctx, at, slot)
}

// send sends an activation to a span of the next stage.
func (n *toNext) send(at attempt, slot, span int, x []float32, width int) error {
	head, chunks := wire.Encode(f32, []int{len(x) / width, width}, x)
	a := &shardv1.Activation{Step: at.step, Attempt: at.n, Slot: uint32(slot), Span: uint32(span), Tensor: head}
	if err := n.stream.Send(
		&shardv1.ExchangeRequest{Frame: &shardv1.ExchangeRequest_Activation{Activation: a}},
	); err != nil {
		return broken(err)
	}
	for _, c := range chunks {
		if err := n.stream.Send(&shardv1.ExchangeRequest{Frame: &shardv1.ExchangeRequest_Chunk{Chunk: c}}); err != nil {
			return broken(err)
		}
	}
	return nil
}

// close ends the exchange and waits for its reader to end.
func (n *toNext) close() {
	_ = n.stream.CloseSend()
	n.cancel()
	<-n.done
}
