package trainer

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

type trainStream = grpc.BidiStreamingClient[shardv1.TrainRequest, shardv1.TrainResponse]

// repliesLen is the number of replies of a stage that may wait to be read.
const repliesLen = 4096

// busName is the maximum length of the part of a run's name that is used in its name on the
// gradient bus. Names on the bus have at most 64 bytes.
const busName = 48

// stage is the trainer's end of the Train stream of a stage.
type stage struct {
	addr    string
	spans   []model.Range
	client  shardv1.ShardServiceClient
	stream  trainStream
	shares  bool // it reads and writes the files of checkpoints itself
	replies chan *shardv1.TrainResponse
}

// chain holds the stages of one replica.
type chain struct {
	replica int
	id      []byte
	stages  []*stage
}

// fleet holds all chains of a run. It works until its context ends or a stage fails.
type fleet struct {
	ctx        context.Context
	fail       context.CancelCauseFunc
	spec       model.Spec
	manifest   *Manifest
	chains     []*chain
	ranges     []model.Range // the layers of a chain's spans, in order; span c of stage s is c·stages+s
	parameters uint64
	class      string // kernel class of every stage
	readers    errgroup.Group
}

// openFleet opens all chains. If there are fewer shards than stages, a shard runs several stages.
func openFleet(ctx context.Context, dialer Dialer, m *Manifest, spec model.Spec, initial *shardv1.InitialWeights,
	layout layout, addrs []string, shared share) (*fleet, error) {
	f := &fleet{spec: spec, manifest: m}
	f.ctx, f.fail = context.WithCancelCause(ctx)
	config, err := model.ConfigJSON(spec)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "model")
	}
	spans := m.spans(layout.stages)
	f.ranges = model.Split(len(spec.Layers), layout.stages*spans)
	if len(f.ranges) != layout.stages*spans {
		return nil, fault.Field("stages", "%d stages of %d spans for %d layers", layout.stages, spans, len(spec.Layers))
	}
	// The random suffix keeps a restarted run from reading its earlier events.
	bus := fmt.Sprintf("%.*s-%x", busName, m.Name, randomBytes(6))
	for r := range layout.replicas {
		ch := &chain{replica: r, id: randomBytes(16)}
		f.chains = append(f.chains, ch)
		for i := range layout.stages {
			s := &stage{addr: addrs[(r*layout.stages+i)%len(addrs)],
				replies: make(chan *shardv1.TrainResponse, repliesLen)}
			for c := range spans {
				s.spans = append(s.spans, f.ranges[c*layout.stages+i])
			}
			ch.stages = append(ch.stages, s)
		}
		for i := layout.stages - 1; i >= 0; i-- {
			open := &shardv1.TrainOpen{
				Run: bus, Chain: ch.id, Stage: uint32(i), Stages: uint32(layout.stages), Replica: uint32(r),
				Replicas:   uint32(layout.replicas),
				ConfigJson: config, Seed: m.Seed,
				Slots:     uint32(m.Slots),
				Schedule:  m.Schedule,
				ZLoss:     m.ZLoss,
				Optimizer: optimizer(m), IsolateDocuments: m.Data.Isolate,
				SlotSequences: uint32(m.SlotSequences), SequenceLen: uint32(m.SequenceLen),
				Precision: shardv1.Precision_PRECISION_FLOAT32, Initial: initial,
				RecomputeLayers: m.Recompute == recomputeLayers, Dropout: m.Dropout.open(),
				Gradients: m.Gradients.open(), Diloco: m.DiLoCo.open(),
				Folder: shared.folder, Token: shared.token,
			}
			if m.Precision == tensor.BF16.String() {
				open.Precision = shardv1.Precision_PRECISION_BFLOAT16
			}
			for _, l := range ch.stages[i].spans {
				open.Spans = append(open.Spans, &shardv1.Span{Lo: uint32(l.Lo), Hi: uint32(l.Hi)})
			}
			if i+1 < layout.stages || spans > 1 {
				open.Next = ch.stages[(i+1)%layout.stages].addr
			}
			if err := f.open(dialer, ch.stages[i], open); err != nil {
				f.close()
				return nil, err
			}
		}
	}
	return f, nil
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
func (f *fleet) open(dialer Dialer, s *stage, open *shardv1.TrainOpen) error {
	conn, err := dialer.Dial(s.addr)
	if err != nil {
		return err
	}
	s.client = shardv1.NewShardServiceClient(conn)
	if s.stream, err = s.client.Train(f.ctx); err != nil {
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
	s.shares = resp.GetOpened().GetSharesFolder()
	class := resp.GetOpened().GetKernelClass()
	if f.class == "" {
		f.class = class
	}
	if class != f.class { // equal results require one kernel class
		return fault.New(fault.FailedPrecondition,
			"open layers %v at %s: kernel class %s differs from %s of the other shards", s.spans, s.addr, class,
			f.class)
	}
	if open.GetReplica() == 0 {
		f.parameters += resp.GetOpened().GetParameters()
	}
	f.readers.Go(func() error {
		for {
			resp, err := s.stream.Recv()
			if err != nil {
				f.fail(fault.Wrap(fault.CodeOf(rpc.FromStatus(err)), rpc.FromStatus(err), "layers %v at %s", s.spans,
					s.addr))
				return nil
			}
			select {
			case s.replies <- resp:
			case <-f.ctx.Done():
				return nil
			}
		}
	})
	return nil
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
	_ = f.readers.Wait()
}

func (f *fleet) send(s *stage, r *shardv1.TrainRequest) error {
	if err := s.stream.Send(r); err != nil {
		<-f.ctx.Done() // the reader sets the cause
		return context.Cause(f.ctx)
	}
	return nil
}

// reply waits for the next frame of a stage.
func (f *fleet) reply(s *stage) (*shardv1.TrainResponse, error) {
	select {
	case r := <-s.replies:
		return r, nil
	case <-f.ctx.Done():
		return nil, context.Cause(f.ctx)
	}
}

// each calls do for all stages of all chains concurrently.
func (f *fleet) each(do func(c *chain, i int, s *stage) error) error {
	var g errgroup.Group
	for _, c := range f.chains {
		for i, s := range c.stages {
			g.Go(func() error { return do(c, i, s) })
		}
	}
	return g.Wait()
}

// feed sends a chain its step and micro-batches.
func (f *fleet) feed(c *chain, step *shardv1.Step, data []*micro) error {
	for _, s := range c.stages {
		if err := f.send(s, &shardv1.TrainRequest{Frame: &shardv1.TrainRequest_Step{Step: step}}); err != nil {
			return err
		}
	}
	first, last := c.stages[0], c.stages[len(c.stages)-1]
	for _, m := range data {
		for _, s := range c.stages {
			part := &shardv1.Microbatch{Step: m.GetStep(), Slot: m.GetSlot(), Sequences: m.GetSequences(),
				Length: m.GetLength(), Documents: m.GetDocuments()}
			if s == first {
				part.Ids = m.GetIds()
			}
			if s == last {
				part.Targets, part.Picks = m.GetTargets(), m.GetPicks()
			}
			if s != first && s != last && part.Documents == nil {
				continue // it learns the shape from the activation
			}
			if err := f.send(s,
				&shardv1.TrainRequest{Frame: &shardv1.TrainRequest_Microbatch{Microbatch: part}}); err != nil {
				return err
			}
		}
	}
	return nil
}

// collect reads a stage's replies to a step until it has folded its gradient.
func (f *fleet) collect(
	s *stage, step uint64, loss func(*shardv1.Loss) error, folded func(*shardv1.Folded),
) error {
	for {
		r, err := f.reply(s)
		if err != nil {
			return err
		}
		switch frame := r.GetFrame().(type) {
		case *shardv1.TrainResponse_Loss:
			if frame.Loss.GetStep() != step {
				return fault.New(fault.Internal, "step %d: got a loss of step %d", step, frame.Loss.GetStep())
			}
			if err := loss(frame.Loss); err != nil {
				return err
			}
		case *shardv1.TrainResponse_Folded:
			folded(frame.Folded)
			return nil
		default:
			return fault.New(fault.Internal, "step %d: layers %v answered with %T", step, s.spans, frame)
		}
	}
}

// applyChain has the stages of a chain step their optimizers. It sets their digests, and calls applied for each.
func (f *fleet) applyChain(c *chain, a *shardv1.Apply, digests []uint64, applied func(*shardv1.Applied)) error {
	var g errgroup.Group
	for i, s := range c.stages {
		g.Go(func() error {
			if err := f.send(s, &shardv1.TrainRequest{Frame: &shardv1.TrainRequest_Apply{Apply: a}}); err != nil {
				return err
			}
			r, err := f.reply(s)
			if err != nil {
				return err
			}
			if r.GetApplied() == nil {
				return fault.New(fault.Internal, "step %d: layers %v answered apply with %T", a.GetStep(), s.spans,
					r.GetFrame())
			}
			digests[i] = r.GetApplied().GetDigest()
			applied(r.GetApplied())
			return nil
		})
	}
	return g.Wait()
}
