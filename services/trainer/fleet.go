package trainer

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// busName is the maximum length of the part of a run's name that is used in its name on the
// gradient bus. Names on the bus have at most 64 bytes.
const busName = 48

// fleetConfig says what a fleet is made of.
type fleetConfig struct {
	log      *slog.Logger
	dialer   Dialer
	manifest *Manifest
	spec     model.Spec
	initial  *shardv1.InitialWeights // nil for random ones, or if a checkpoint is loaded
	adapter  *shardv1.TrainAdapter   // nil for all parameters
	untied   bool                    // see lowRank
	layout   layout
	timing   timing
	lease    string
	epoch    uint64
	claim    string
	// share makes the folder of the run known to stages that open. The returned function ends that.
	share func() (share, func() error, error)
}

// fleet holds all chains of a run. It works until its context ends or, unless it is elastic, a chain is lost.
type fleet struct {
	fleetConfig
	ctx        context.Context
	fail       context.CancelCauseFunc
	config     []byte // of the model
	bus        string // name of the run on the gradient bus
	chains     []*chain
	ranges     []model.Range // the layers of a chain's spans, in order; span c of stage s is c·stages+s
	parameters uint64
	readers    errgroup.Group
	attempt    uint32       // at the current step, or at the last one
	stepTime   measure      // nanoseconds
	usual      atomic.Int64 // its mean

	mu      sync.Mutex
	classes []string                        // kernel classes of the stages of a chain; one, unless they may differ
	speeds  map[string]*shardv1.TrainOpened // by address

	joining joining
}

// elastic reports whether replicas may join and leave while the run goes on: no replica has state that the others
// lack.
func (f *fleet) elastic() bool { return f.manifest.elastic() }

// openFleet opens all chains. If there are fewer shards than stages, a shard runs several stages. An elastic fleet
// begins with the chains that can be opened.
func openFleet(ctx context.Context, c fleetConfig, addrs []string) (*fleet, error) {
	f := &fleet{fleetConfig: c}
	f.ctx, f.fail = context.WithCancelCause(ctx)
	f.joining.opened = make(chan opened, 1)
	var err error
	if f.config, err = model.ConfigJSON(f.spec); err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "model")
	}
	stages := f.layout.stages
	f.classes = make([]string, 1)
	if f.manifest.MixClasses {
		f.classes = make([]string, stages)
	}
	spans := f.manifest.spans(stages)
	f.ranges = model.Split(len(f.spec.Layers), stages*spans)
	if len(f.ranges) != stages*spans {
		return nil, fault.Field("stages", "%d stages of %d spans for %d layers", stages, spans, len(f.spec.Layers))
	}
	// The random suffix keeps a restarted run from reading its earlier events.
	f.bus = fmt.Sprintf("%.*s-%x", busName, f.manifest.Name, randomBytes(6))
	shared, unshare, err := f.share()
	if err != nil {
		return nil, err
	}
	var failed error
	f.joining.most = (stages*f.layout.replicas + len(addrs) - 1) / len(addrs)
	for r := range f.layout.replicas {
		var at []string
		for i := range stages {
			at = append(at, addrs[(r*stages+i)%len(addrs)])
		}
		ch, err := f.openChain(r, at, shared)
		if err == nil {
			f.chains = append(f.chains, ch)
			f.parameters = ch.parameters
			continue
		}
		failed = err
		if !f.elastic() || !retryable(err) {
			break
		}
		f.log.Warn("begin without a replica", "run", f.manifest.Name, "replica", r, "error", err)
	}
	if len(f.chains) > 0 && (f.elastic() && retryable(failed)) {
		failed = nil
	}
	if err := errors.Join(failed, unshare()); err != nil {
		f.close()
		return nil, err
	}
	return f, nil
}

// openChain opens the stages of a replica at the given addresses.
func (f *fleet) openChain(replica int, addrs []string, shared share) (*chain, error) {
	m, stages := f.manifest, f.layout.stages
	spans := m.spans(stages)
	c := &chain{replica: replica, id: randomBytes(16)}
	c.ctx, c.fail = context.WithCancelCause(f.ctx)
	for i, addr := range addrs {
		s := &stage{chain: c, addr: addr, replies: make(chan *shardv1.TrainResponse, repliesLen)}
		for k := range spans {
			s.spans = append(s.spans, f.ranges[k*stages+i])
		}
		c.stages = append(c.stages, s)
	}
	for i := stages - 1; i >= 0; i-- {
		open := &shardv1.TrainOpen{
			Run: f.bus, Chain: c.id, Stage: uint32(i), Stages: uint32(stages), Replica: uint32(replica),
			Replicas:   uint32(f.layout.replicas),
			ConfigJson: f.config, Seed: m.Seed,
			Slots:     uint32(m.Slots),
			Schedule:  m.Schedule,
			ZLoss:     m.ZLoss,
			Optimizer: optimizer(m), IsolateDocuments: m.Data.Isolate,
			SlotSequences: uint32(m.SlotSequences), SequenceLen: uint32(m.SequenceLen),
			Precision: shardv1.Precision_PRECISION_FLOAT32, Initial: f.initial,
			RecomputeLayers: m.Recompute == recomputeLayers, Dropout: m.Dropout.open(),
			Gradients: m.Gradients.open(), Diloco: m.DiLoCo.open(), Adapter: f.adapter, Objective: m.objective(),
			Folder: shared.folder, Token: shared.token,
			Lease: f.lease, Epoch: f.epoch, Claim: f.claim, HeartbeatMs: uint32(f.timing.heartbeat.Milliseconds()),
		}
		if m.Precision == tensor.BF16.String() {
			open.Precision = shardv1.Precision_PRECISION_BFLOAT16
		}
		if m.Model.Storage == storageBF16 {
			open.Storage = shardv1.Precision_PRECISION_BFLOAT16
		}
		for _, l := range c.stages[i].spans {
			open.Spans = append(open.Spans, &shardv1.Span{Lo: uint32(l.Lo), Hi: uint32(l.Hi)})
		}
		if i+1 < stages || spans > 1 {
			open.Next = c.stages[(i+1)%stages].addr
		}
		if err := f.open(c.stages[i], open); err != nil {
			c.fail(err)
			c.readers.Wait()
			return nil, err
		}
	}
	f.readers.Go(func() error {
		f.watch(c)
		return nil
	})
	return c, nil
}

// optimizer returns how the parameters are stepped, as stages are told.
func optimizer(m *Manifest) *shardv1.Optimizer {
	c := m.optim()
	out := &shardv1.Optimizer{
		Name:  c.Name,
		Adamw: &shardv1.AdamW{Beta1: c.AdamW.Beta1, Beta2: c.AdamW.Beta2, Epsilon: c.AdamW.Epsilon},
		Muon: &shardv1.Muon{Momentum: c.Muon.Momentum, Nesterov: c.Muon.Nesterov, Iterations: uint32(c.Muon.Iterations),
			MatchAdamw: c.Muon.MatchAdamW},
		Sgd:   &shardv1.SGD{Momentum: c.SGD.Momentum, Nesterov: c.SGD.Nesterov},
		Decay: c.Decay, DecayMatricesOnly: c.DecayMatricesOnly,
	}
	for _, r := range c.Rules {
		out.Rules = append(
			out.Rules,
			&shardv1.ParameterRule{Match: r.Match, Optimizer: r.Optimizer, LearningRate: r.Rate,
				Decay: r.Decay, Trainable: r.Trainable},
		)
	}
	return out
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.Read(b) // never fails
	return b
}

// open opens the Train stream of a stage and starts its reader.
func (f *fleet) open(s *stage, open *shardv1.TrainOpen) error {
	c := s.chain
	conn, err := f.dialer.Dial(s.addr)
	if err != nil {
		return err
	}
	s.client = shardv1.NewShardServiceClient(conn)
	if s.stream, err = s.client.Train(c.ctx); err != nil {
		return rpc.FromStatus(err)
	}
	if err := s.stream.Send(&shardv1.TrainRequest{Frame: &shardv1.TrainRequest_Open{Open: open}}); err != nil &&
		!errors.Is(err, io.EOF) {
		return rpc.FromStatus(err)
	}
	resp, err := s.stream.Recv()
	if err != nil {
		return fault.Wrap(fault.CodeOf(rpc.FromStatus(err)), rpc.FromStatus(err), "open layers %v at %s", s.spans,
			s.addr)
	}
	s.shares, s.host = resp.GetOpened().GetSharesFolder(), resp.GetOpened().GetHost()
	if err := f.sameClass(s, int(open.GetStage()), resp.GetOpened().GetKernelClass()); err != nil {
		return err
	}
	f.addSpeed(s.addr, resp.GetOpened())
	c.parameters += resp.GetOpened().GetParameters()
	c.readers.Go(func() {
		for {
			resp, err := s.stream.Recv()
			if err != nil {
				f.lost(c, fault.Wrap(fault.CodeOf(rpc.FromStatus(err)), rpc.FromStatus(err), "layers %v at %s", s.spans,
					s.addr))
				return
			}
			s.heard.Add(1)
			switch {
			case resp.GetAlive() != nil:
				s.progressed(resp.GetAlive())
				continue
			case resp.GetLeaving() != nil:
				c.leaving.Store(true)
				continue
			}
			select {
			case s.replies <- resp:
			case <-c.ctx.Done():
				return
			}
		}
	})
	return nil
}

// sameClass checks that all stages have one kernel class, since equal results require it. If classes may be mixed,
// those of the same layers have.
func (f *fleet) sameClass(s *stage, index int, class string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	want, others := &f.classes[0], "the other shards"
	if f.manifest.MixClasses {
		want, others = &f.classes[index], "another replica"
	}
	if *want == "" {
		*want = class
	}
	if class != *want {
		return fault.New(fault.FailedPrecondition, "open layers %v at %s: kernel class %s differs from %s of %s", s.spans,
			s.addr, class, *want, others)
	}
	return nil
}

// class names the kernel classes that the results depend on, in the order of the stages.
func (f *fleet) class() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return strings.Join(f.classes, "+")
}

// lost ends a chain and, unless the fleet is elastic, the fleet with it.
func (f *fleet) lost(c *chain, err error) {
	c.fail(err)
	if !f.elastic() {
		f.fail(err)
	}
}

// close ends all streams and waits for the readers.
func (f *fleet) close() {
	for _, c := range f.chains {
		for _, s := range c.stages {
			if s.stream != nil {
				_ = s.stream.CloseSend()
			}
		}
	}
	f.fail(context.Canceled)
	for _, c := range f.chains {
		c.readers.Wait()
	}
	_ = f.readers.Wait()
	select {
	case late := <-f.joining.opened:
		late.close()
	default:
	}
}
