package router

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"

	"github.com/lamina-mesh/lamina/pkg/fault"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	tensorv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tensor/v1"
	"github.com/lamina-mesh/lamina/pkg/plan"
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
	key     string          // in Service.building
	digest  string          // of the model
	opening time.Duration   // how long the chain took to open
	stages  []*shardv1.Held // what the first stages said when it was opened
	class   string
	draft   bool // it runs the draft model
	steps   prometheus.Counter
	meters  *modelMeters

	ctx    context.Context
	cancel context.CancelCauseFunc
	events chan event
	done   chan struct{} // closed when every sequence has been told that the pipeline is lost

	// Used only by the goroutine that opens the pipeline and then runs it.
	epoch    uint64 // of the chain; it grows each time that the pipeline is opened again
	chained  *link[shardv1.InferRequest, shardv1.InferResponse]
	sampling *link[samplerv1.SampleRequest, samplerv1.SampleResponse]

	drafters     sync.WaitGroup // drafters that use it; none is added once the pipeline is not listed
	assigned     atomic.Int64   // sequences assigned to it, counted before they are submitted
	epochs       atomic.Uint64  // epoch, for others to read
	runningCount atomic.Int64
	waitingCount atomic.Int64
	rate         atomic.Uint64 // tokens per second, times 1000
	stepUS       atomic.Int64  // moving average time of a decode step
	stepped      atomic.Int64  // when it was last scheduled, in Unix nanoseconds
	spare        atomic.Bool   // another pipeline of the model could take over
	spareShard   atomic.Bool   // a free shard could take the place of a stage
	doubtful     atomic.Bool   // it has missed a step deadline and computed nothing since
	firsts       firstTokens

	mu      sync.Mutex
	sched   *sched.Scheduler // guarded by mu
	sampler string           // its address; guarded by mu
	chain   plan.Chain       // changed by the goroutine that runs it; guarded by mu
}

// hops returns the stages that the pipeline has now.
func (p *pipeline) hops() plan.Chain {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.chain
}

// samplerAddr returns the address of the sampler.
func (p *pipeline) samplerAddr() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.sampler
}

func (p *pipeline) model() string { return p.stages[0].GetModel() }

// fingerprint names everything besides the request that determines the bits of an answer.
func (p *pipeline) fingerprint() string {
	f := p.digest + "/" + p.class
	if p.service.cfg.HiddenType == tensorv1.ElementType_ELEMENT_TYPE_BF16 && len(p.chain) > 1 {
		f += "/bf16"
	}
	return f
}

// fingerprint is that of a pipeline for requests with an adapter, which may be nil.
func fingerprint(p *pipeline, a *servedAdapter) string {
	if a == nil {
		return p.fingerprint()
	}
	return p.fingerprint() + "/" + a.digest.String()
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
		service: s, name: randomID(), chain: chain, digest: chain.Digest(), sampler: sampler, class: chain.Class(),
		events: make(chan event, eventsLen), done: make(chan struct{}),
	}
	p.id = hex.EncodeToString(p.name)
	p.ctx, p.cancel = context.WithCancelCause(ctx)
	opening, stop := context.WithTimeoutCause(p.ctx, openLimit,
		fault.New(fault.DeadlineExceeded, "open pipeline %s: it did not open within %v", p.id, openLimit))
	defer stop()
	err := p.openSampler(opening, sampler)
	if err == nil {
		start := time.Now()
		p.stages, err = p.openChain(opening)
		p.opening = time.Since(start)
	}
	if err != nil {
		if p.sampling != nil {
			p.sampling.stop()
		}
		p.cancel(err)
		return nil, err
	}
	role := "answer"
	if p.draft = s.isDraft(p.model(), chain.Digest()); p.draft {
		role = "draft"
	}
	p.steps, p.meters = s.m.steps.WithLabelValues(role), s.m.serving.of(p.model())
	p.sched = sched.New(p.schedulerConfig())
	return p, nil
}

// openSampler opens the stream to the sampler.
func (p *pipeline) openSampler(ctx context.Context, addr string) error {
	conn, err := p.service.cfg.Dialer.Dial(addr)
	if err != nil {
		return err
	}
	l, _, err := openLink(ctx, "sampler", addr, &samplerv1.SampleRequest{
		Frame: &samplerv1.SampleRequest_Open{Open: &samplerv1.SampleOpen{Pipeline: p.name}},
	}, samplerv1.NewSamplerServiceClient(conn).Sample)
	if err != nil {
		return err
	}
	p.sampling = l
	p.mu.Lock()
	p.sampler = addr
	p.mu.Unlock()
	return nil
}

// openChain opens the stream to the first stage under the next epoch, and returns what the stages say of
// themselves.
func (p *pipeline) openChain(ctx context.Context) ([]*shardv1.Held, error) {
	chain := p.hops()
	first := chain[0]
	conn, err := p.service.cfg.Dialer.Dial(first.Addr)
	if err != nil {
		return nil, err
	}
	p.epoch++
	p.epochs.Store(p.epoch)
	l, resp, err := openLink(ctx, "chain", first.Addr, &shardv1.InferRequest{
		Frame: &shardv1.InferRequest_Open{Open: &shardv1.InferOpen{
			Pipeline: p.name, Digest: first.Digest, Route: p.route(), Sampler: p.samplerAddr(),
			HiddenType: p.service.cfg.HiddenType, Epoch: p.epoch,
		}},
	}, shardv1.NewShardServiceClient(conn).Infer)
	if err != nil {
		return nil, err
	}
	stages := resp.GetOpened().GetStages()
	if len(stages) != len(chain) {
		l.stop()
		return nil, fault.New(fault.Internal, "open chain at %s: %d stages answered, want %d", first.Addr, len(stages),
			len(chain))
	}
	p.chained = l
	return stages, nil
}

func (p *pipeline) route() []*shardv1.Hop {
	var out []*shardv1.Hop
	for _, s := range p.hops() {
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

// submit submits a sequence to the scheduler.
func (p *pipeline) submit(seq *sequence) error {
	e := sched.Submit{
		ID: seq.name(), Epoch: seq.epoch, Tenant: seq.tenant, Priority: seq.priority, Log: seq.log,
		MaxLen: seq.maxLen, Score: seq.score, Suspect: seq.suspect, Proven: seq.proven, Private: seq.private,
		Speculate: seq.drafts, Draft: seq.draft, Namespace: seq.adapter.namespace(),
	}
	if seq.picker != nil {
		e.Candidates = shifted{seq.picker, seq.dropped()}
	}
	return p.tell(event{e, seq})
}

// cancel is the event that ends a sequence.
func (seq *sequence) cancel() event { return event{Event: sched.Cancel{ID: seq.name()}} }

// proceed is the event that lets a sequence go on although a stage was lost under it.
func (seq *sequence) proceed(suspect bool) event {
	return event{Event: sched.Proceed{ID: seq.name(), Suspect: suspect}}
}

// closeLimit is how long a pipeline that ends waits for its streams to end.
const closeLimit = 100 * time.Millisecond

// run schedules until the pipeline cannot go on. Then it tells every sequence that the pipeline is lost.
func (p *pipeline) run(ctx context.Context) error {
	r := newRunner(p)
	p.serve()
	for {
		err := r.run(p.ctx)
		if p.ctx.Err() == nil && r.reopen(err) {
			continue
		}
		p.cancel(err)
		break
	}
	r.failAll()
	close(p.done)
	p.chained.close(closeLimit)
	p.sampling.close(closeLimit)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return context.Cause(p.ctx)
}

// serve starts the goroutines of both links.
func (p *pipeline) serve() {
	p.serveSampler()
	p.serveChain()
}

// broken returns why one of the streams has broken, or nil.
func (p *pipeline) broken() error {
	if err := p.sampling.broken(); err != nil {
		return err
	}
	return p.chained.broken()
}

// report tells the scheduler what has arrived on a link.
func (p *pipeline) report(ctx context.Context, e sched.Event) error {
	select {
	case p.events <- event{Event: e}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (p *pipeline) serveSampler() {
	l := p.sampling
	l.serve(func(resp *samplerv1.SampleResponse) error {
		switch frame := resp.GetFrame().(type) {
		case *samplerv1.SampleResponse_Added:
			return p.report(
				l.ctx,
				sched.Accepted{ID: sched.ID(frame.Added.GetSession()), Epoch: frame.Added.GetEpoch()},
			)
		case *samplerv1.SampleResponse_Token:
			t := frame.Token
			return p.report(l.ctx, sched.Picked{
				ID: sched.ID(t.GetSession()), Epoch: t.GetEpoch(), Position: int(t.GetPosition()),
				Token: int32(t.GetId()), Logprob: float64(t.GetLogprob()), Data: t,
				Finished: t.GetFinishReason() != samplerv1.FinishReason_FINISH_REASON_UNSPECIFIED,
			})
		case *samplerv1.SampleResponse_Score:
			c := frame.Score
			return p.report(l.ctx, sched.Scored{
				ID: sched.ID(c.GetSession()), Epoch: c.GetEpoch(), Position: int(c.GetPosition()), Data: c,
			})
		case *samplerv1.SampleResponse_Failed:
			return p.report(l.ctx, refusedBySampler(frame.Failed))
		default:
			return fault.New(fault.Internal, "read from sampler: unexpected frame %T", frame)
		}
	})
}

func (p *pipeline) serveChain() {
	l := p.chained
	l.serve(func(resp *shardv1.InferResponse) error {
		switch frame := resp.GetFrame().(type) {
		case *shardv1.InferResponse_Refused:
			if codes.Code(frame.Refused.GetCode()) == codes.NotFound {
				p.service.adapterMissing(p, int(frame.Refused.GetLo()))
			}
			return p.report(l.ctx, refusedByStage(frame.Refused))
		case *shardv1.InferResponse_Computed:
			return p.report(l.ctx, sched.Computed{Step: frame.Computed.GetStep()})
		case *shardv1.InferResponse_Lease:
			return p.report(l.ctx, sched.Lease{Lo: int(frame.Lease.GetLo()), Pages: int(frame.Lease.GetPages())})
		default:
			return fault.New(fault.Internal, "read from chain: unexpected frame %T", frame)
		}
	})
}
