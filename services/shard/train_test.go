package shard_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/lamina-mesh/lamina/internal/leak"
	"github.com/lamina-mesh/lamina/pkg/checkpoint"
	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/gradbus"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/ref"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/pkg/rpc/memnet"
	"github.com/lamina-mesh/lamina/services/shard"
)

const (
	busLimit   = 64 << 20
	vocabSize  = 2048
	width      = 40 // the embedding alone is more than one event
	slotLength = 4
	slotCount  = 4
)

func TestMain(m *testing.M) { leak.Main(m) }

// trainRig is one shard that trains. The test plays the trainer.
type trainRig struct {
	t       *testing.T
	ctx     context.Context
	service *shard.Service
	client  shardv1.ShardServiceClient
}

func newTrainRig(t *testing.T, bus shard.Bus) *trainRig { return newSharedRig(t, bus, nil) }

// newTrainRigOn returns a rig whose shard computes with a kernel set.
func newTrainRigOn(t *testing.T, bus shard.Bus, set kernel.Set[float32]) *trainRig {
	t.Helper()
	return newRig(t, bus, nil, set)
}

// newSharedRig returns a rig whose shard shares a folder of runs.
func newSharedRig(t *testing.T, bus shard.Bus, runs checkpoint.FS) *trainRig {
	t.Helper()
	return newRig(t, bus, runs, ref.New[float32]())
}

func newRig(t *testing.T, bus shard.Bus, runs checkpoint.FS, set kernel.Set[float32]) *trainRig {
	t.Helper()
	return newRigOf(t, shard.Config{Kernels: set, Bus: bus, Runs: runs})
}

// newRigOf returns a rig whose shard has a configuration, to which a dialer is added.
func newRigOf(t *testing.T, config shard.Config) *trainRig {
	t.Helper()
	return newRigAt(t, memnet.New(), "mem:shard", config)
}

// newRigAt is newRigOf at an address of a network.
func newRigAt(t *testing.T, network *memnet.Network, addr string, config shard.Config) *trainRig {
	t.Helper()
	dialer := rpc.NewDialer(rpc.DialOptions{Net: network})
	config.Dialer = dialer
	s := shard.New(config)
	server := rpc.NewServer(rpc.ServerOptions{Log: slog.New(slog.DiscardHandler)})
	s.Register(server)
	l, err := rpc.Listen(addr, rpc.ListenOptions{Net: network})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	done := make(chan error, 1)
	go func() { done <- rpc.Serve(ctx, server, l, func() {}, rpc.DrainLimit(time.Second)) }()
	conn, err := dialer.Dial(addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-done, dialer.Close(), s.Close()); err != nil {
			t.Error(err)
		}
	})
	return &trainRig{t: t, ctx: ctx, service: s, client: shardv1.NewShardServiceClient(conn)}
}

// trainOpening returns a valid first frame for a single stage.
func trainOpening(replica, replicas uint32) *shardv1.TrainOpen {
	chain := make([]byte, 16)
	chain[0] = byte(replica + 1)
	return &shardv1.TrainOpen{
		Run: "run", Chain: chain, Stages: 1, Replica: replica, Replicas: replicas, Seed: 5, Slots: slotCount,
		Spans:         []*shardv1.Span{{Hi: 2}},
		Schedule:      "1f1b",
		SlotSequences: 1, SequenceLen: slotLength,
		Optimizer: &shardv1.Optimizer{Name: "adamw", Adamw: &shardv1.AdamW{Beta1: 0.9, Beta2: 0.95, Epsilon: 1e-8},
			Decay: 0.1},
		ConfigJson: []byte(
			`{"model_type":"llama","hidden_size":40,"num_hidden_layers":2,"num_attention_heads":2,"intermediate_size":16,"vocab_size":2048,"max_position_embeddings":8,"tie_word_embeddings":true}`,
		),
	}
}

type conversation struct {
	*trainRig
	stream grpc.BidiStreamingClient[shardv1.TrainRequest, shardv1.TrainResponse]
}

func (r *trainRig) train(open *shardv1.TrainOpen) *conversation {
	r.t.Helper()
	stream, err := r.client.Train(r.ctx)
	if err != nil {
		r.t.Fatal(err)
	}
	c := &conversation{r, stream}
	c.send(&shardv1.TrainRequest{Frame: &shardv1.TrainRequest_Open{Open: open}})
	if got := c.next().GetOpened(); got.GetParameters() == 0 {
		r.t.Fatalf("first reply is %v", got)
	}
	return c
}

func (c *conversation) send(f *shardv1.TrainRequest) {
	c.t.Helper()
	if err := c.stream.Send(f); err != nil && !errors.Is(err, io.EOF) {
		c.t.Fatal(err)
	}
}

func (c *conversation) next() *shardv1.TrainResponse {
	c.t.Helper()
	f, err := c.stream.Recv()
	if err != nil {
		c.t.Fatal(err)
	}
	return f
}

// fails reads until the stream ends and returns its error.
func (c *conversation) fails() error {
	for {
		if _, err := c.stream.Recv(); err != nil {
			return rpc.FromStatus(err)
		}
	}
}

// end closes the stream and waits for the stage to end without an error.
func (c *conversation) end() {
	c.t.Helper()
	if err := c.stream.CloseSend(); err != nil {
		c.t.Fatal(err)
	}
	if f, err := c.stream.Recv(); !errors.Is(err, io.EOF) {
		c.t.Errorf("after the end: %v, %v", f, err)
	}
}

func microbatch(step uint64, slot uint32) *shardv1.Microbatch {
	m := &shardv1.Microbatch{Step: step, Slot: slot, Sequences: 1, Length: slotLength}
	for i := range uint32(slotLength) {
		m.Ids = append(m.Ids, (slot*731+i*17+uint32(step))%vocabSize)
		m.Targets = append(m.Targets, int32((slot*97+i*5)%vocabSize))
	}
	return m
}

// step sends a step with slots [lo,hi).
func (c *conversation) step(step uint64, lo, hi uint32, forwardOnly bool) {
	c.t.Helper()
	s := &shardv1.Step{Step: step, Targets: slotCount * slotLength, ForwardOnly: forwardOnly}
	for slot := lo; slot < hi; slot++ {
		s.Slots = append(s.Slots, slot)
	}
	c.send(&shardv1.TrainRequest{Frame: &shardv1.TrainRequest_Step{Step: s}})
	for slot := lo; slot < hi; slot++ {
		c.send(&shardv1.TrainRequest{Frame: &shardv1.TrainRequest_Microbatch{Microbatch: microbatch(step, slot)}})
	}
}

// rejected reads until the stage rejects a gradient.
func (c *conversation) rejected() *shardv1.Rejected {
	c.t.Helper()
	for {
		f := c.next()
		if r := f.GetRejected(); r != nil {
			return r
		}
		if f.GetFolded() != nil {
			c.t.Fatal("the gradient is used, want it to be rejected")
		}
	}
}

// abort ends an attempt, and reads until the stage has ended it.
func (c *conversation) abort(step uint64, attempt uint32) {
	c.t.Helper()
	c.send(&shardv1.TrainRequest{Frame: &shardv1.TrainRequest_Abort{Abort: &shardv1.Abort{Step: step,
		Attempt: attempt}}})
	for {
		if a := c.next().GetAborted(); a != nil {
			if a.GetStep() != step || a.GetAttempt() != attempt {
				c.t.Errorf("aborted %v, want attempt %d at step %d", a, attempt, step)
			}
			return
		}
	}
}

// folded reads losses until the stage has folded the gradient.
func (c *conversation) folded() (losses []float64, norms []*shardv1.Norm) {
	c.t.Helper()
	for {
		f := c.next()
		if l := f.GetLoss(); l != nil {
			losses = append(losses, l.GetSum())
			continue
		}
		if f.GetFolded() == nil {
			c.t.Fatalf("got %T (%s), want loss or folded", f.GetFrame(), f.GetRejected().GetMessage())
		}
		return losses, f.GetFolded().GetNorms()
	}
}

func (c *conversation) apply(step uint64) uint64 {
	c.t.Helper()
	c.send(
		&shardv1.TrainRequest{
			Frame: &shardv1.TrainRequest_Apply{Apply: &shardv1.Apply{Step: step, LearningRate: 0.01, GradientScale: 1}},
		},
	)
	f := c.next()
	if f.GetApplied().GetStep() != step {
		c.t.Fatalf("reply to apply %d is %v", step, f)
	}
	return f.GetApplied().GetDigest()
}

// alone returns the norms and digests of a single replica after the first steps.
func alone(t *testing.T, steps uint64) (norms [][]*shardv1.Norm, digests []uint64) {
	t.Helper()
	c := newTrainRig(t, gradbus.NewMemory(busLimit)).train(trainOpening(0, 1))
	for step := uint64(1); step <= steps; step++ {
		c.step(step, 0, slotCount, false)
		_, n := c.folded()
		norms, digests = append(norms, n), append(digests, c.apply(step))
	}
	c.end()
	return norms, digests
}

func sameNorms(a, b []*shardv1.Norm) bool {
	return proto.Equal(&shardv1.Folded{Norms: a}, &shardv1.Folded{Norms: b})
}

// interleaving stores the nodes of all replicas in alternation, chunk by chunk, and sums at once.
type interleaving struct {
	shard.Bus
	events chan gradbus.Event
}

func (b *interleaving) Publish(ctx context.Context, e gradbus.Event) error {
	if strings.HasSuffix(e.Key.Part, ".fold") {
		return b.Bus.Publish(ctx, e)
	}
	b.events <- e
	return nil
}

// release stores what has been published once the replicas 1 to n-1 have published whole nodes for replica 0,
// which sums them.
func (b *interleaving) release(ctx context.Context, n int) error {
	byNode := map[uint32][]gradbus.Event{}
	chunks := 0
	whole := func() bool {
		if len(byNode) < n-1 {
			return false
		}
		for _, list := range byNode {
			if len(list) < chunks {
				return false
			}
		}
		return true
	}
	for !whole() {
		select {
		case e := <-b.events:
			byNode[e.Key.SlotLo] = append(byNode[e.Key.SlotLo], e)
			chunks = (4*tensorCount + 256<<10 - 1) / (256 << 10)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	for chunk := range chunks {
		for slot := uint32(1); slot < uint32(n); slot++ {
			list := byNode[slot]
			slices.SortFunc(list, func(a, b gradbus.Event) int { return int(a.Key.Chunk) - int(b.Key.Chunk) })
			if err := b.Bus.Publish(ctx, list[chunk]); err != nil {
				return err
			}
		}
	}
	return nil
}

// tensorCount is the number of floats in a single stage's gradient, with separate embedding and
// head.
const tensorCount = 2*vocabSize*width + 2*(4*width*width+3*width*16+2*width) + width

func TestTrain_InterleavedReplicasMatchASingleReplica(t *testing.T) {
	norms, digests := alone(t, 2)
	bus := &interleaving{Bus: gradbus.NewMemory(busLimit), events: make(chan gradbus.Event, 1024)}
	r := newTrainRig(t, bus)
	var replicas []*conversation
	for i := range uint32(slotCount) {
		replicas = append(replicas, r.train(trainOpening(i, slotCount)))
	}
	for step := uint64(1); step <= 2; step++ {
		for i, c := range replicas {
			c.step(step, uint32(i), uint32(i)+1, false)
		}
		if err := bus.release(r.ctx, slotCount); err != nil {
			t.Fatalf("wait for all replicas' events: %v", err)
		}
		for i, c := range replicas {
			if _, got := c.folded(); !sameNorms(got, norms[step-1]) {
				t.Errorf("step %d: norms of replica %d differ from those of a single one", step, i)
			}
		}
		for i, c := range replicas {
			if got := c.apply(step); got != digests[step-1] {
				t.Errorf("step %d: replica %d has weights %x, a single one %x", step, i, got, digests[step-1])
			}
		}
	}
	for _, c := range replicas {
		c.end()
	}
}

func TestTrain_RestartedStepGivesTheSameResult(t *testing.T) {
	norms, digests := alone(t, 1)
	r := newTrainRig(t, gradbus.NewMemory(busLimit))
	a, b := r.train(trainOpening(0, 2)), r.train(trainOpening(1, 2))
	for try := range 2 {
		a.step(1, 0, 2, false)
		b.step(1, 2, 4, false)
		for _, c := range []*conversation{a, b} {
			if _, got := c.folded(); !sameNorms(got, norms[0]) {
				t.Errorf("try %d: norms differ from those of a single replica", try)
			}
		}
	}
	for _, c := range []*conversation{a, b} {
		if got := c.apply(1); got != digests[0] {
			t.Errorf("weights %x, a single replica has %x", got, digests[0])
		}
		c.end()
	}
}

func TestTrain_ForwardOnlyChangesNothing(t *testing.T) {
	c := newTrainRig(t, gradbus.NewMemory(busLimit)).train(trainOpening(0, 1))
	c.step(1, 0, slotCount, true)
	var measured []float64
	for range slotCount {
		measured = append(measured, c.next().GetLoss().GetSum())
	}
	c.step(1, 0, slotCount, false)
	losses, _ := c.folded()
	for i := range losses {
		if losses[i] != measured[i] || math.Abs(losses[i]/slotLength-math.Log(vocabSize)) > 0.5 {
			t.Errorf("slot %d: loss %v, measured %v, want near %v a token", i, losses[i], measured[i],
				math.Log(vocabSize))
		}
	}
	c.end()
}

func TestTrain_WrongFramesAreRefused(t *testing.T) {
	r := newTrainRig(t, gradbus.NewMemory(busLimit))
	wrap := func(m *shardv1.Microbatch) *shardv1.TrainRequest {
		return &shardv1.TrainRequest{Frame: &shardv1.TrainRequest_Microbatch{Microbatch: m}}
	}
	stepOf := func(slots ...uint32) *shardv1.TrainRequest {
		return &shardv1.TrainRequest{
			Frame: &shardv1.TrainRequest_Step{Step: &shardv1.Step{Step: 1, Slots: slots, Targets: 16}},
		}
	}
	foreign, long := microbatch(1, 0), microbatch(1, 0)
	foreign.Ids[1] = vocabSize
	long.Length = 9
	// changed returns the frames of a step with a first micro-batch.
	changed := func(forwardOnly bool, change func(*shardv1.Step, *shardv1.Microbatch)) []*shardv1.TrainRequest {
		step, m := stepOf(0, 1, 2, 3), microbatch(1, 0)
		step.GetStep().ForwardOnly = forwardOnly
		change(step.GetStep(), m)
		return []*shardv1.TrainRequest{step, wrap(m)}
	}
	for name, c := range map[string]struct {
		frames []*shardv1.TrainRequest
		want   fault.Code
	}{
		"slots of another replica": {[]*shardv1.TrainRequest{stepOf(0, 1)}, fault.Invalid},
		"slots with a gap":         {[]*shardv1.TrainRequest{stepOf(0, 2, 3)}, fault.Invalid},
		"a later slot first": {[]*shardv1.TrainRequest{stepOf(0, 1, 2, 3), wrap(microbatch(1, 1))},
			fault.Invalid},
		"an id beyond the vocabulary": {[]*shardv1.TrainRequest{stepOf(0, 1, 2, 3), wrap(foreign)}, fault.Invalid},
		"a longer sequence":           {[]*shardv1.TrainRequest{stepOf(0, 1, 2, 3), wrap(long)}, fault.Invalid},
		"a second open": {
			[]*shardv1.TrainRequest{{Frame: &shardv1.TrainRequest_Open{Open: trainOpening(0, 1)}}}, fault.Invalid,
		},
		"apply without a gradient": {
			[]*shardv1.TrainRequest{{Frame: &shardv1.TrainRequest_Apply{Apply: &shardv1.Apply{Step: 1}}}},
			fault.FailedPrecondition,
		},
		"an unknown parameter": {
			[]*shardv1.TrainRequest{{Frame: &shardv1.TrainRequest_State{State: &shardv1.State{Name: "x", Kind: 1}}}},
			fault.Invalid,
		},
		"load without state": {
			[]*shardv1.TrainRequest{{Frame: &shardv1.TrainRequest_Load{Load: &shardv1.Load{Step: 1}}}}, fault.Invalid,
		},
		"load from a folder that is not shared": {
			[]*shardv1.TrainRequest{{Frame: &shardv1.TrainRequest_Load{Load: &shardv1.Load{Step: 1,
				ManifestSha256: make([]byte, 32)}}}}, fault.FailedPrecondition,
		},
		"save of another step": {
			[]*shardv1.TrainRequest{{Frame: &shardv1.TrainRequest_Save{Save: &shardv1.Save{Step: 7}}}}, fault.Invalid,
		},
		"an empty frame": {[]*shardv1.TrainRequest{{}}, fault.Invalid},
		"documents that were not announced": {changed(false, func(_ *shardv1.Step, m *shardv1.Microbatch) {
			m.Documents = []uint32{m.GetLength(), m.GetLength()}
		}), fault.Invalid},
		"another length in training": {changed(false, func(s *shardv1.Step, m *shardv1.Microbatch) {
			s.Length, m.Length = 1, 1
		}), fault.Invalid},
		"a length beyond the run's": {changed(true, func(s *shardv1.Step, m *shardv1.Microbatch) {
			s.Length, m.Length = 1000, 1000
		}), fault.Invalid},
		"picks in training": {changed(false, func(_ *shardv1.Step, m *shardv1.Microbatch) {
			m.Picks = []*shardv1.Pick{{}}
		}), fault.Invalid},
		"a pick of a row beyond the end": {changed(true, func(_ *shardv1.Step, m *shardv1.Microbatch) {
			m.Picks = []*shardv1.Pick{{Row: m.GetSequences() * m.GetLength()}}
		}), fault.Invalid},
		"a draw of 1": {changed(true, func(_ *shardv1.Step, m *shardv1.Microbatch) {
			m.Picks = []*shardv1.Pick{{Draw: 1}}
		}), fault.Invalid},
		"a temperature that is no number": {changed(true, func(_ *shardv1.Step, m *shardv1.Microbatch) {
			m.Picks = []*shardv1.Pick{{Temperature: math.NaN()}}
		}), fault.Invalid},
		"too many picks": {changed(true, func(_ *shardv1.Step, m *shardv1.Microbatch) {
			m.Picks = slices.Repeat([]*shardv1.Pick{{}}, 1025)
		}), fault.Invalid},
	} {
		conv := r.train(trainOpening(0, 1))
		for _, f := range c.frames {
			conv.send(f)
		}
		if err := conv.fails(); fault.CodeOf(err) != c.want {
			t.Errorf("%s: %v, want code %v", name, err, c.want)
		}
	}
}

func TestTrain_WrongOpeningsNameTheField(t *testing.T) {
	r := newTrainRig(t, gradbus.NewMemory(busLimit))
	spans := func(bounds ...uint32) (out []*shardv1.Span) {
		for i := 0; i < len(bounds); i += 2 {
			out = append(out, &shardv1.Span{Lo: bounds[i], Hi: bounds[i+1]})
		}
		return out
	}
	for name, c := range map[string]struct {
		change func(*shardv1.TrainOpen)
		want   string
	}{
		"an unknown schedule":        {func(o *shardv1.TrainOpen) { o.Schedule = "zigzag" }, "schedule"},
		"no span":                    {func(o *shardv1.TrainOpen) { o.Spans = nil }, "open.spans"},
		"an empty span":              {func(o *shardv1.TrainOpen) { o.Spans = spans(1, 1) }, "open.spans"},
		"a span beyond the end":      {func(o *shardv1.TrainOpen) { o.Spans = spans(0, 3) }, "open.spans"},
		"a span that ends too early": {func(o *shardv1.TrainOpen) { o.Spans = spans(0, 1) }, "open.spans"},
		"two spans on one stage": {func(o *shardv1.TrainOpen) {
			o.Schedule, o.Spans, o.Next = "interleaved-1f1b", spans(0, 1, 1, 2), "mem:shard"
		}, "open.spans"},
		"two spans without interleaving": {func(o *shardv1.TrainOpen) {
			o.Stages, o.Spans, o.Next = 2, spans(0, 1, 1, 2), "mem:shard"
		}, "spans"},
		"spans out of order": {func(o *shardv1.TrainOpen) {
			o.Schedule, o.Stages, o.Stage, o.Spans, o.Next = "interleaved-1f1b", 2, 1, spans(1, 2, 1, 2), "mem:shard"
		}, "open.spans"},
		"a folder outside": {func(o *shardv1.TrainOpen) {
			o.Folder, o.Token = "../x", ".lamina-"+strings.Repeat("0", 32)
		}, "open.folder"},
		"an absolute folder": {func(o *shardv1.TrainOpen) {
			o.Folder, o.Token = "/etc", ".lamina-"+strings.Repeat("0", 32)
		}, "open.folder"},
		"pairs that are not isolated": {func(o *shardv1.TrainOpen) {
			o.Objective = &shardv1.Objective{Kind: &shardv1.Objective_Dpo{Dpo: &shardv1.DPO{Beta: 0.1}}}
		}, "open.objective"},
		"no beta": {func(o *shardv1.TrainOpen) {
			o.IsolateDocuments = true
			o.Objective = &shardv1.Objective{Kind: &shardv1.Objective_Dpo{Dpo: &shardv1.DPO{}}}
		}, "open.objective.dpo.beta"},
		"a label that is always wrong": {func(o *shardv1.TrainOpen) {
			o.IsolateDocuments = true
			o.Objective = &shardv1.Objective{Kind: &shardv1.Objective_Dpo{Dpo: &shardv1.DPO{Beta: 0.1, Smoothing: 0.5}}}
		}, "open.objective.dpo.smoothing"},
		"an objective of nothing": {func(o *shardv1.TrainOpen) { o.Objective = &shardv1.Objective{} }, "open.objective"},
		"a claim that is a path":  {func(o *shardv1.TrainOpen) { o.Claim = "../.claim-1" }, "open.claim"},
		"a token that is a path":  {func(o *shardv1.TrainOpen) { o.Folder, o.Token = "x", "../../passwd" }, "open.token"},
		"a last stage without the first": {func(o *shardv1.TrainOpen) {
			o.Schedule, o.Stages, o.Stage, o.Spans = "interleaved-1f1b", 2, 1, spans(1, 2, 3, 4)
		}, "open.next"},
	} {
		open := trainOpening(0, 1)
		c.change(open)
		stream, err := r.client.Train(r.ctx)
		if err != nil {
			t.Fatal(err)
		}
		conv := &conversation{r, stream}
		conv.send(&shardv1.TrainRequest{Frame: &shardv1.TrainRequest_Open{Open: open}})
		if err := conv.fails(); fault.CodeOf(err) != fault.Invalid || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want an error that names %s", name, err, c.want)
		}
	}
}
