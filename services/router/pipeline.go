package router

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/lamina-mesh/lamina/pkg/fault"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	tensorv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tensor/v1"
	"github.com/lamina-mesh/lamina/pkg/plan"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/pkg/sched"
)

const (
	openLimit = 20 * time.Second // how long a pipeline may take to open
	eventsLen = 1024             // events waiting for the scheduler
)

// pipeline is a chain of stages with its sampler. It is an actor: one goroutine lets the scheduler
// decide and carries out its commands (runner), and everything else sends it events.
type pipeline struct {
	service *Service
	id      string
	name    []byte
	chain   plan.Chain
	sampler string
	stages  []*shardv1.Held
	class   string
	draft   bool // it runs the draft model
	steps   prometheus.Counter

	ctx    context.Context
	cancel context.CancelCauseFunc
	infer  grpc.BidiStreamingClient[shardv1.InferRequest, shardv1.InferResponse]
	sample grpc.BidiStreamingClient[samplerv1.SampleRequest, samplerv1.SampleResponse]
	events chan event
	frames chan *shardv1.InferRequest    // to be sent to the chain
	rules  chan *samplerv1.SampleRequest // to be sent to the sampler
	done   chan struct{}                 // closed when every sequence has been told that the pipeline is lost

	drafters     sync.WaitGroup // drafters that use it; none is added once the pipeline is not listed
	assigned     atomic.Int64   // sequences assigned to it, counted before they are submitted
	runningCount atomic.Int64
	waitingCount atomic.Int64
	rate         atomic.Uint64 // tokens per second, times 1000
	stepUS       atomic.Int64  // moving average time of a decode step
	stepped      atomic.Int64  // when it was last scheduled, in Unix nanoseconds
	spare        atomic.Bool   // another pipeline of the model could take over

	mu    sync.Mutex
	sched *sched.Scheduler // guarded by mu
}

func (p *pipeline) model() string { return p.stages[0].GetModel() }

// fingerprint names everything besides the request that determines the bits of an answer.
func (p *pipeline) fingerprint() string {
	f := p.chain.Digest() + "/" + p.class
	if p.service.cfg.HiddenType == tensorv1.ElementType_ELEMENT_TYPE_BF16 && len(p.chain) > 1 {
		f += "/bf16"
	}
	return f
}

// load returns the number of assigned sequences. New sequences go to the pipeline with the lowest
// load.
func (p *pipeline) load() int64 { return p.assigned.Load() }

// dead reports whether the pipeline is lost; it may still be listed.
func (p *pipeline) dead() bool { return p.ctx.Err() != nil }

func randomID() []byte {
	id := make([]byte, 16)
	rand.Read(id) // never fails
	return id
}

// open connects the sampler and the chain. When it returns, every stage is ready.
func (s *Service) open(ctx context.Context, chain plan.Chain, sampler string) (*pipeline, error) {
	p := &pipeline{
		service: s, name: randomID(), chain: chain, sampler: sampler, class: chain[0].Class,
		events: make(chan event, eventsLen), done: make(chan struct{}),
		frames: make(chan *shardv1.InferRequest, framesLen), rules: make(chan *samplerv1.SampleRequest, framesLen),
	}
	p.id = hex.EncodeToString(p.name)
	p.ctx, p.cancel = context.WithCancelCause(ctx)
	limit := time.AfterFunc(openLimit, func() {
		p.cancel(fault.New(fault.DeadlineExceeded, "open pipeline %s: it did not open within %v", p.id, openLimit))
	})
	defer limit.Stop()
	err := p.openSampler(sampler)
	if err == nil {
		err = p.openChain()
	}
	if err != nil {
		p.cancel(err)
		return nil, err
	}
	role := "answer"
	if p.draft = s.isDraft(p.model(), chain.Digest()); p.draft {
		role = "draft"
	}
	p.steps = s.m.steps.WithLabelValues(role)
	p.sched = sched.New(p.schedulerConfig())
	return p, nil
}

func (p *pipeline) openSampler(addr string) error {
	conn, err := p.service.cfg.Dialer.Dial(addr)
	if err != nil {
		return err
	}
	if p.sample, err = samplerv1.NewSamplerServiceClient(conn).Sample(p.ctx); err != nil {
		return rpc.FromStatus(err)
	}
	open := &samplerv1.SampleRequest{
		Frame: &samplerv1.SampleRequest_Open{Open: &samplerv1.SampleOpen{Pipeline: p.name}},
	}
	if err := p.sample.Send(open); err != nil && !errors.Is(err, io.EOF) {
		return rpc.FromStatus(err)
	}
	if _, err := p.sample.Recv(); err != nil {
		return fault.Wrap(fault.CodeOf(rpc.FromStatus(err)), rpc.FromStatus(err), "open sampler at %s", addr)
	}
	return nil
}

func (p *pipeline) openChain() error {
	first := p.chain[0]
	conn, err := p.service.cfg.Dialer.Dial(first.Addr)
	if err != nil {
		return err
	}
	if p.infer, err = shardv1.NewShardServiceClient(conn).Infer(p.ctx); err != nil {
		return rpc.FromStatus(err)
	}
	if err := p.infer.Send(&shardv1.InferRequest{Frame: &shardv1.InferRequest_Open{Open: &shardv1.InferOpen{
		Pipeline: p.name, Digest: first.Digest, Route: p.route(), Sampler: p.sampler,
		HiddenType: p.service.cfg.HiddenType,
	}}}); err != nil && !errors.Is(err, io.EOF) {
		return rpc.FromStatus(err)
	}
	resp, err := p.infer.Recv()
	if err != nil {
		return fault.Wrap(fault.CodeOf(rpc.FromStatus(err)), rpc.FromStatus(err), "open chain at %s", first.Addr)
	}
	if p.stages = resp.GetOpened().GetStages(); len(p.stages) != len(p.chain) {
		return fault.New(
			fault.Internal, "open chain at %s: %d stages answered, want %d", first.Addr, len(p.stages), len(p.chain),
		)
	}
	return nil
}

func (p *pipeline) route() []*shardv1.Hop {
	var out []*shardv1.Hop
	for _, s := range p.chain {
		out = append(out, &shardv1.Hop{Address: s.Addr, Lo: uint32(s.Lo), Hi: uint32(s.Hi)})
	}
	return out
}

// tell sends an event to the scheduler, or reports that the pipeline is gone.
func (p *pipeline) tell(e event) error {
	select {
	case p.events <- e:
		return nil
	case <-p.ctx.Done():
		return context.Cause(p.ctx)
	}
}

// toChain queues a frame for the first stage. It never blocks: a queue that is full means that the
// stage takes no frames.
func (p *pipeline) toChain(r *shardv1.InferRequest) error {
	select {
	case p.frames <- r:
		return nil
	default:
		return fault.New(fault.Unavailable, "send to chain: %d frames wait to be sent", framesLen)
	}
}

// toSampler queues a frame for the sampler, as toChain does for the chain.
func (p *pipeline) toSampler(r *samplerv1.SampleRequest) error {
	select {
	case p.rules <- r:
		return nil
	default:
		return fault.New(fault.Unavailable, "send to sampler: %d frames wait to be sent", framesLen)
	}
}

// sendAll sends the frames of a queue until the context ends or the stream breaks. It has a goroutine
// of its own, because Send blocks while the receiver takes nothing.
func sendAll[T any](ctx context.Context, who string, queue <-chan T, send func(T) error) error {
	for {
		select {
		case r := <-queue:
			if err := send(r); err != nil && !errors.Is(err, io.EOF) { // the receiver gets the reason of an EOF
				return streamEnd(who, err)
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// submit submits a sequence to the scheduler.
func (p *pipeline) submit(seq *sequence) error {
	e := sched.Submit{
		ID: seq.name(), Epoch: seq.epoch, Tenant: seq.tenant, Priority: seq.priority, Log: seq.log,
		MaxLen: seq.maxLen, Score: seq.score, Suspect: seq.suspect, Private: seq.private, Speculate: seq.drafts,
		Draft: seq.draft,
	}
	if seq.picker != nil {
		e.Candidates = shifted{seq.picker, seq.dropped()}
	}
	return p.tell(event{e, seq})
}

// cancel is the event that ends a sequence.
func (seq *sequence) cancel() event { return event{Event: sched.Cancel{ID: seq.name()}} }

// run sends, receives and schedules until a stream ends. Then it tells every sequence that the
// pipeline is lost.
func (p *pipeline) run(ctx context.Context) error {
	r := newRunner(p)
	var g errgroup.Group
	for _, part := range []func() error{
		p.receiveTokens, p.receiveRefusals,
		func() error { return sendAll(p.ctx, "chain", p.frames, p.infer.Send) },
		func() error { return sendAll(p.ctx, "sampler", p.rules, p.sample.Send) },
		func() error { return r.run(p.ctx) },
	} {
		g.Go(func() error {
			err := part()
			p.cancel(err)
			return err
		})
	}
	_ = g.Wait()
	r.failAll()
	close(p.done)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return context.Cause(p.ctx)
}

func (p *pipeline) receiveTokens() error {
	for {
		resp, err := p.sample.Recv()
		if err != nil {
			return streamEnd("sampler", err)
		}
		var e event
		switch frame := resp.GetFrame().(type) {
		case *samplerv1.SampleResponse_Added:
			e.Event = sched.Accepted{ID: sched.ID(frame.Added.GetSession())}
		case *samplerv1.SampleResponse_Token:
			t := frame.Token
			e.Event = sched.Picked{
				ID: sched.ID(t.GetSession()), Epoch: t.GetEpoch(), Position: int(t.GetPosition()),
				Token: int32(t.GetId()), Logprob: float64(t.GetLogprob()), Data: t,
				Finished: t.GetFinishReason() != samplerv1.FinishReason_FINISH_REASON_UNSPECIFIED,
			}
		case *samplerv1.SampleResponse_Score:
			c := frame.Score
			e.Event = sched.Scored{
				ID: sched.ID(c.GetSession()), Epoch: c.GetEpoch(), Position: int(c.GetPosition()), Data: c,
			}
		case *samplerv1.SampleResponse_Failed:
			e.Event = refusedBySampler(frame.Failed)
		default:
			return fault.New(fault.Internal, "read from sampler: unexpected frame %T", frame)
		}
		if err := p.tell(e); err != nil {
			return err
		}
	}
}

func (p *pipeline) receiveRefusals() error {
	for {
		resp, err := p.infer.Recv()
		if err != nil {
			return streamEnd("chain", err)
		}
		var e event
		switch frame := resp.GetFrame().(type) {
		case *shardv1.InferResponse_Refused:
			e.Event = refusedByStage(frame.Refused)
		case *shardv1.InferResponse_Computed:
			e.Event = sched.Computed{Step: frame.Computed.GetStep()}
		case *shardv1.InferResponse_Lease:
			e.Event = sched.Lease{Lo: int(frame.Lease.GetLo()), Pages: int(frame.Lease.GetPages())}
		default:
			return fault.New(fault.Internal, "read from chain: unexpected frame %T", frame)
		}
		if err := p.tell(e); err != nil {
			return err
		}
	}
}

// streamEnd returns the error for a stream that ended, since only the router may end it.
func streamEnd(who string, err error) error {
	if errors.Is(err, io.EOF) {
		return fault.New(fault.Unavailable, "read from %s: it closed the stream", who)
	}
	return fault.Wrap(fault.CodeOf(rpc.FromStatus(err)), rpc.FromStatus(err), "read from %s", who)
}
