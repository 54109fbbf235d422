package shard

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	tensorv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tensor/v1"
	"github.com/lamina-mesh/lamina/pkg/kvcache"
	"github.com/lamina-mesh/lamina/pkg/wire"
)

type inferServer = grpc.BidiStreamingServer[shardv1.InferRequest, shardv1.InferResponse]

// pipeline is this stage's part of a pipeline: one Infer stream from upstream and
// one stream downstream.
type pipeline struct {
	service    *Service
	held       *held
	id         string
	ends       []uint32 // where the stages of the route end, from this one on
	hidden     tensorv1.ElementType
	up         inferServer
	upMu       sync.Mutex // Send upstream comes from two goroutines
	down       downstream
	work       chan work
	scratch    []float32
	ids        []int32
	infoOpened *shardv1.InferOpened

	ring       *ring    // that the next stage reads; nil if all goes over the wire
	ringClosed bool     // the next stage has ended the stream, and does not have the ring open
	mapping    *mapping // of the ring of the stage before; nil if all comes over the wire

	lease    *kvcache.Lease[float32] // of the compute goroutine, except where its methods say otherwise
	granted  int                     // pages of the lease when the stream was attached
	resumed  bool                    // the lease is that of the pipeline's former stream
	sessions int                     // guarded by held.mu

	epoch    uint64
	fail     context.CancelCauseFunc // ends the stream
	left     chan struct{}           // closed when the stream no longer uses the lease
	detached bool                    // the stream has left its pages here; guarded by held.mu
	grace    *time.Timer             // frees them
}

// work is a frame whose tensor is complete.
type work struct {
	batch   *shardv1.Batch
	arrived time.Time // the batch, for its deadline
	hidden  []float32
	release *shardv1.Release
}

// late reports whether the batch's deadline has passed, so that nobody waits for it.
func (w *work) late(now time.Time) bool {
	limit := time.Duration(w.batch.GetDeadlineMs()) * time.Millisecond
	return limit > 0 && now.Sub(w.arrived) > limit
}

// downstream is the destination of results: the next stage, or the sampler.
type downstream interface {
	// batch sends the stage's result for the accepted entries.
	batch(b *shardv1.Batch, accepted []*shardv1.Entry, result stageResult) error
	// release passes a release downstream.
	release(r *shardv1.Release) error
	// receive handles frames from downstream until that side ends.
	receive() error
	// close closes this side of the stream.
	close() error
}

// Infer implements the inference stream.
func (s *Service) Infer(up inferServer) (err error) {
	first, err := up.Recv()
	if err != nil {
		return err
	}
	open := first.GetOpen()
	closed := true // the memory that was offered
	defer func() {
		if closed && open.GetMemory() != nil {
			up.SetTrailer(metadata.Pairs(memoryClosed, "true"))
		}
	}()
	if open == nil || len(open.GetPipeline()) != idLen || len(open.GetRoute()) == 0 {
		return fault.Field("open", "the first frame must name a pipeline with %d bytes and a route", idLen)
	}
	if _, known := tensorv1.ElementType_name[int32(open.GetHiddenType())]; !known {
		return fault.Field("open.hidden_type", "unknown element type %d", open.GetHiddenType())
	}
	h, err := s.find(open.GetDigest(), open.GetRoute()[0])
	if err != nil {
		return err
	}
	if h.stage.Spec.Encoder() {
		return fault.New(fault.FailedPrecondition, "open pipeline: %s is an encoder, which generates no text", h.name)
	}
	if err := h.checkRoute(open.GetRoute()); err != nil {
		return err
	}
	ctx, fail := context.WithCancelCause(up.Context())
	defer fail(nil)
	p := &pipeline{
		service: s, held: h, id: string(open.GetPipeline()), hidden: open.GetHiddenType(), up: up,
		work: make(chan work, queueLen), epoch: open.GetEpoch(), fail: fail, left: make(chan struct{}),
	}
	for _, hop := range open.GetRoute() {
		p.ends = append(p.ends, hop.GetHi())
	}
	// The router must not hang on a chain that does not open.
	limit := time.AfterFunc(openLimit, func() {
		fail(fault.New(fault.DeadlineExceeded, "open pipeline %x: the chain did not open in %v", p.id, openLimit))
	})
	defer limit.Stop()
	if err := p.attach(ctx); err != nil {
		return err
	}
	defer func() { p.leave(err) }()
	defer func() { closed = p.unshare() }()
	if p.infoOpened, err = p.connect(ctx, open); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return err
	}
	p.readMemory(open.GetMemory())
	limit.Stop()
	if err := p.send(&shardv1.InferResponse{Frame: &shardv1.InferResponse_Opened{Opened: p.infoOpened}}); err != nil {
		return err
	}
	s.log.Debug("open pipeline", "pipeline", fmt.Sprintf("%x", p.id), "epoch", p.epoch, "resumed", p.resumed,
		"layers", h.stage.Range.String())
	return p.run(ctx)
}

// checkRoute reports a route whose hops do not fit the range. It is checked before anything else is done,
// so that an open that cannot succeed does not end the pipeline's former stream.
func (h *held) checkRoute(route []*shardv1.Hop) error {
	if h.stage.Last() != (len(route) == 1) {
		return fault.Field("open.route", "%d hops from layers %v of %d", len(route), h.stage.Range,
			len(h.stage.Spec.Layers))
	}
	if len(route) > 1 && int(route[1].GetLo()) != h.stage.Range.Hi {
		return fault.Field("open.route", "layers %d-%d do not follow %v", route[1].GetLo(), route[1].GetHi(),
			h.stage.Range)
	}
	return nil
}

// connect opens the rest of the chain and collects the spans of its stages.
func (p *pipeline) connect(ctx context.Context, open *shardv1.InferOpen) (*shardv1.InferOpened, error) {
	opened := &shardv1.InferOpened{
		Stages: []*shardv1.Held{p.held.describe()}, KernelClasses: []string{p.service.cfg.Kernels.Class()},
	}
	opened.Stages[0].Lease, opened.Stages[0].Resumed = proto.Uint32(uint32(p.granted)), p.resumed
	if p.held.stage.Last() {
		down, err := dialSampler(ctx, p, open)
		p.down = down
		return opened, err
	}
	down, rest, err := dialStage(ctx, p, open)
	p.down = down
	if err != nil {
		return nil, err
	}
	opened.Stages = append(opened.Stages, rest.GetStages()...)
	opened.KernelClasses = append(opened.KernelClasses, rest.GetKernelClasses()...)
	return opened, nil
}

// run runs the pipeline's four goroutines. The one that receives from upstream ends after the
// handler, because Recv returns only then, so it uses nothing but the queue. run waits for the
// others: compute, receive from downstream, and notify, which ends after these two. The first
// failure ends all of them.
func (p *pipeline) run(ctx context.Context) error {
	go func() {
		defer close(p.work)
		if err := p.receive(ctx); err != nil {
			p.fail(err)
		}
	}()
	var g errgroup.Group
	g.Go(func() error {
		err := p.compute(ctx)
		if err == nil {
			err = p.down.close()
		}
		if err != nil {
			p.fail(err)
		}
		return err
	})
	g.Go(func() error {
		err := p.down.receive()
		if err != nil {
			p.fail(err)
		}
		return err
	})
	var notifier sync.WaitGroup
	stop := make(chan struct{})
	notifier.Go(func() {
		if err := p.notify(ctx, stop); err != nil {
			p.fail(err)
		}
	})
	err := g.Wait()
	close(stop)
	notifier.Wait()
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	p.service.log.Debug("end pipeline", "pipeline", fmt.Sprintf("%x", p.id), "error", err)
	return err
}

func (p *pipeline) send(r *shardv1.InferResponse) error {
	p.upMu.Lock()
	defer p.upMu.Unlock()
	return p.up.Send(r)
}

// receive takes frames from upstream and queues work.
func (p *pipeline) receive(ctx context.Context) error {
	tensors := wire.NewAssembler(4 * maxRows * p.held.stage.Spec.Width)
	var pending *shardv1.Batch
	for {
		req, err := p.up.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		var w work
		switch frame := req.GetFrame().(type) {
		case *shardv1.InferRequest_Batch:
			if pending != nil {
				return fault.Field("batch", "comes before the batch of step %d is complete", pending.GetStep())
			}
			if err := p.check(frame.Batch); err != nil {
				return err
			}
			w.batch = frame.Batch
			if !p.held.stage.First() && frame.Batch.Slot == nil {
				done, err := tensors.Start(frame.Batch.GetHidden())
				if err != nil {
					return err
				}
				if !done {
					pending = frame.Batch
					continue
				}
				if w.hidden, err = tensors.Float32(nil); err != nil {
					return err
				}
			}
		case *shardv1.InferRequest_Chunk:
			done, err := tensors.Add(frame.Chunk)
			if err != nil {
				return err
			}
			if !done {
				continue
			}
			w.batch, pending = pending, nil
			if w.hidden, err = tensors.Float32(nil); err != nil {
				return err
			}
		case *shardv1.InferRequest_Release:
			w.release = frame.Release
		default:
			return fault.Field("frame", "%T is not allowed after open", frame)
		}
		w.arrived = time.Now()
		select {
		case p.work <- w:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// check reports an error that makes the whole batch unreadable, because its rows cannot be
// assigned to its entries. It ends the stream. Errors of a single entry are refusals.
func (p *pipeline) check(b *shardv1.Batch) error {
	if n := len(b.GetEntries()); n == 0 || n > maxEntries {
		return fault.Field("batch.entries", "%d are not within 1..%d", n, maxEntries)
	}
	rows := 0
	for i, e := range b.GetEntries() {
		if e.GetRows() > maxRows {
			return fault.Field(fmt.Sprintf("batch.entries[%d].rows", i), "%d are more than %d", e.GetRows(), maxRows)
		}
		rows += int(e.GetRows())
	}
	if rows > maxRows {
		return fault.Field("batch.entries", "%d rows are more than %d", rows, maxRows)
	}
	if until := b.GetReplayUntil(); until > 0 && !slices.Contains(p.ends, until) {
		return fault.Field("batch.replay_until", "no stage from layers %v on ends at layer %d", p.held.stage.Range,
			until)
	}
	if b.Slot != nil {
		return p.mapping.check(b, rows)
	}
	if p.held.stage.First() {
		if len(b.GetIds()) != rows {
			return fault.Field("batch.ids", "%d for %d rows", len(b.GetIds()), rows)
		}
		return nil
	}
	shape, width := b.GetHidden().GetShape(), p.held.stage.Spec.Width
	if len(shape) != 2 || int(shape[0]) != rows || int(shape[1]) != width {
		return fault.Field("batch.hidden", "shape %v, want [%d %d]", shape, rows, width)
	}
	return nil
}

// refusal returns the reason why an entry cannot be computed, or nil. It does not look at the
// session's state. ids are the token ids of the entry's rows, on the first stage.
func (p *pipeline) refusal(e *shardv1.Entry, ids []uint32) error {
	switch end := uint64(e.GetPosition()) + uint64(e.GetRows()); {
	case uint64(e.GetPageFrom())+uint64(len(e.GetPages())) > uint64(p.held.cache.PagesFor(p.held.positions())):
		return fault.New(fault.Invalid, "a block table of %d pages from %d on, for %d positions", len(e.GetPages()),
			e.GetPageFrom(), p.held.positions())
	case len(e.GetSession()) != idLen:
		return fault.New(fault.Invalid, "a session's name of %d bytes, want %d", len(e.GetSession()), idLen)
	case e.GetRows() == 0:
		return fault.New(fault.Invalid, "no rows at position %d", e.GetPosition())
	case e.GetLogits() > e.GetRows():
		return fault.New(
			fault.Invalid, "logits of %d rows at position %d, which has %d", e.GetLogits(), e.GetPosition(),
			e.GetRows(),
		)
	case len(e.GetDraftIds()) > 0 && len(e.GetDraftIds()) != int(e.GetLogits()) &&
		len(e.GetDraftIds()) != int(e.GetLogits())-1:
		return fault.New(fault.Invalid, "%d draft tokens for %d rows that want logits", len(e.GetDraftIds()),
			e.GetLogits())
	case len(e.GetTargets()) > 0 && (len(e.GetDraftIds()) > 0 || len(e.GetTargets()) > int(e.GetLogits())):
		return fault.New(fault.Invalid, "%d targets for %d rows that want logits and %d draft tokens",
			len(e.GetTargets()), e.GetLogits(), len(e.GetDraftIds()))
	case end > uint64(p.held.positions()):
		return fault.New(
			fault.Exhausted, "%d rows at position %d exceed the %d positions of the cache", e.GetRows(),
			e.GetPosition(),
			p.held.positions(),
		)
	}
	for _, id := range e.GetTargets() {
		if int64(id) >= int64(p.held.stage.Spec.Vocab) {
			return fault.New(fault.Invalid, "target %d is outside the vocabulary of %d", id, p.held.stage.Spec.Vocab)
		}
	}
	for i, id := range ids {
		if int64(id) >= int64(p.held.stage.Spec.Vocab) {
			return fault.New(
				fault.Invalid, "id %d at position %d is outside the vocabulary of %d", id, int(e.GetPosition())+i,
				p.held.stage.Spec.Vocab,
			)
		}
	}
	return nil
}

// compute computes the queued batches in order. A panic in a kernel ends the stream.
func (p *pipeline) compute(ctx context.Context) (err error) {
	defer func() {
		if r := recover(); r != nil {
			p.service.log.Error("recover from a panic in a kernel", "panic", fmt.Sprint(r), "stack",
				string(debug.Stack()))
			err = p.service.recovered(fmt.Sprintf("compute layers %v", p.held.stage.Range), r)
		}
	}()
	for {
		var w work
		var open bool
		select {
		case w, open = <-p.work:
		case <-ctx.Done():
			return ctx.Err()
		}
		if ctx.Err() != nil || !open {
			return ctx.Err()
		}
		switch {
		case w.batch == nil:
			p.release(w.release)
			err = p.down.release(w.release)
		case !w.late(time.Now()):
			err = p.batch(w)
		default:
			p.forget(w.batch.GetEntries())
			err = p.taken(w.batch)
		}
		if err != nil {
			return err
		}
	}
}
