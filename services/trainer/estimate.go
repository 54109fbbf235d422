package trainer

import (
	"context"
	"math/bits"
	"slices"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/optim"
	"github.com/lamina-mesh/lamina/pkg/schedule"
)

// Estimate is what a run will take, from the kernels of this machine. It leaves out the network, the
// validation and the optimizers' steps.
type Estimate struct {
	Run             string  `json:"run"`
	Parameters      int64   `json:"parameters"`
	Trainable       int64   `json:"trainable"`
	Steps           int     `json:"steps"`
	TokensPerStep   int     `json:"tokens_per_step"`
	Tokens          int64   `json:"tokens"`            // of all steps
	TrainingTokens  int     `json:"training_tokens"`   // of the data
	Epochs          float64 `json:"epochs"`            // Tokens per TrainingTokens
	ValidationToken int     `json:"validation_tokens"` // of the data
	Schedule        string  `json:"schedule"`
	Bubble          float64 `json:"bubble"` // of the slowest chain, simulated with the measured times

	Stages []StageEstimate `json:"stages"` // of one replica

	// StepSeconds is how long a step takes if each stage of each replica has a machine like this one, and
	// SharedStepSeconds if all share this machine.
	StepSeconds       float64 `json:"step_seconds"`
	SharedStepSeconds float64 `json:"shared_step_seconds"`
}

// StageEstimate is a stage's part. Sizes are in bytes.
type StageEstimate struct {
	Layers          []string `json:"layers"` // ranges
	Parameters      int64    `json:"parameters"`
	Weights         int64    `json:"weights"`
	OptimizerState  int64    `json:"optimizer_state"`
	Gradients       int64    `json:"gradients"`
	Activations     int64    `json:"activations"`     // at their peak
	ForwardSeconds  float64  `json:"forward_seconds"` // of a slot
	BackwardSeconds float64  `json:"backward_seconds"`
}

// Memory returns the stage's bytes.
func (s *StageEstimate) Memory() int64 {
	return s.Weights + s.OptimizerState + s.Gradients + s.Activations
}

// Estimate measures the layers of a manifest's model with a kernel set, and returns what the run takes on a
// layout. It reads the data, since the vocabulary's size depends on it. Names of files are as the process
// sees them.
func (m *Manifest) Estimate(ctx context.Context, stages, replicas int, set kernel.Set[float32]) (*Estimate, error) {
	l := layout{stages, replicas}
	b, err := m.blueprint(func(_, path string) (string, error) { return path, nil })
	if err != nil {
		return nil, err
	}
	data, err := readData(ctx, m, b.vocab)
	if err != nil {
		return nil, err
	}
	if err := data.close(); err != nil { // only its sizes are needed
		return nil, err
	}
	spec, err := b.spec(data.vocab.Size(), true)
	if err != nil {
		return nil, err
	}
	if err := l.check(m, len(spec.Layers)); err != nil {
		return nil, err
	}
	e := &Estimate{
		Run: m.Name, Steps: m.Steps, TokensPerStep: m.Slots * m.SlotSequences * m.SequenceLen, Schedule: m.Schedule,
		TrainingTokens: data.tokens, ValidationToken: data.heldTokens,
	}
	e.Tokens = int64(e.TokensPerStep) * int64(m.Steps)
	e.Epochs = float64(e.Tokens) / float64(max(1, e.TrainingTokens))
	meter := &meter{manifest: m, spec: spec, set: set, seen: map[model.Range]cost{}}
	spans := m.spans(stages)
	ranges := model.Split(len(spec.Layers), stages*spans)
	_, hi := schedule.Slots(m.Slots, 0, replicas) // the first replica has at least as many as the others
	for i := range stages {
		s := StageEstimate{}
		for c := range spans {
			if err := meter.add(ctx, &s, ranges[c*stages+i]); err != nil {
				return nil, err
			}
		}
		// Slots are folded pairwise: a node of each level may wait for its sibling.
		s.Gradients *= int64(bits.Len(uint(hi-1)) + 1)
		e.Stages = append(e.Stages, s)
	}
	return e, e.finish(m, l, hi, meter)
}

// finish counts parameters and simulates a step of the first replica.
func (e *Estimate) finish(m *Manifest, l layout, slots int, meter *meter) error {
	all, err := meter.spec.Parameters()
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "model")
	}
	config := m.optim()
	for _, p := range all {
		if p.Tied() {
			continue
		}
		n := elements(p.Shape)
		e.Parameters += n
		if meter.group(&config, p).Trainable {
			e.Trainable += n
		}
	}
	slowest, each := schedule.Costs{}, 0.0
	for _, s := range e.Stages {
		each += s.ForwardSeconds + s.BackwardSeconds
		if s.ForwardSeconds+s.BackwardSeconds > slowest.Forward+slowest.Input+slowest.Weight {
			slowest = schedule.Costs{
				Forward: s.ForwardSeconds,
				Input:   s.BackwardSeconds / 2,
				Weight:  s.BackwardSeconds / 2,
			}
		}
	}
	lists, err := schedule.Config{Name: m.Schedule, Stages: l.stages, Spans: m.spans(l.stages), Micro: slots}.All()
	if err != nil {
		return err
	}
	r, err := schedule.Simulate(lists, slowest)
	if err != nil {
		return err
	}
	e.Bubble, e.StepSeconds, e.SharedStepSeconds = r.Bubble, r.Makespan, each*float64(m.Slots)
	for i := range e.Stages {
		e.Stages[i].Activations = int64(float64(e.Stages[i].Activations) * r.Peak[i])
	}
	return nil
}

// meter measures ranges of layers. Ranges of equal layers inside the model are measured once.
type meter struct {
	manifest *Manifest
	spec     model.Spec
	set      kernel.Set[float32]
	seen     map[model.Range]cost
}

// cost is what one layer of a range takes for one slot.
type cost struct {
	forward, backward float64 // seconds
	activations       int64   // bytes
}

// group returns how a parameter is stepped.
func (t *meter) group(c *optim.Config, p model.Param[float32]) optim.Group {
	return c.For(optim.Parameter{Name: p.Owner(), Shape: p.Shape, Hidden: t.spec.Hidden(p.Name)})
}

// add adds a range of layers to a stage.
func (t *meter) add(ctx context.Context, s *StageEstimate, r model.Range) error {
	config := t.manifest.optim()
	stage, err := model.Init(t.spec, r, t.set, t.manifest.Seed)
	if err != nil {
		return err
	}
	s.Layers = append(s.Layers, r.String())
	for _, p := range stage.Params().Tensors {
		n := elements(p.Shape)
		s.Parameters, s.Weights = s.Parameters+n, s.Weights+4*n
		if g := t.group(&config, p); g.Trainable {
			s.Gradients += 4 * n
			s.OptimizerState += 4 * n * int64(config.Moments(g))
		}
	}
	// The ends of the model are layers with an embedding or a head, the rest is measured by its first layer.
	for at := r.Lo; at < r.Hi; {
		one, count := model.Range{Lo: at, Hi: at + 1}, 1
		if at > 0 {
			count = max(1, min(r.Hi, len(t.spec.Layers)-1)-at)
		}
		c, err := t.measure(ctx, one)
		if err != nil {
			return err
		}
		s.ForwardSeconds += float64(count) * c.forward
		s.BackwardSeconds += float64(count) * c.backward
		s.Activations += int64(count) * c.activations
		at += count
	}
	return nil
}

// How often and how long a layer is measured.
const (
	measureRuns = 5
	measureTime = time.Second
)

// measure returns the cost of a layer: medians of its times, after one run that is not counted.
func (t *meter) measure(ctx context.Context, r model.Range) (cost, error) {
	key := r
	if r.Lo > 0 && r.Hi < len(t.spec.Layers) {
		key = model.Range{Lo: 1, Hi: 2}
	}
	if c, ok := t.seen[key]; ok {
		return c, nil
	}
	counted := &counting{Set: t.set}
	stage, err := model.Init[float32](t.spec, r, counted, t.manifest.Seed)
	if err != nil {
		return cost{}, err
	}
	in := t.micro(stage)
	grads := stage.NewGrads()
	var forward, backward []float64
	var c cost
	end := time.Now().Add(measureTime)
	for len(forward) <= measureRuns && (len(forward) < 2 || time.Now().Before(end)) {
		if err := ctx.Err(); err != nil {
			return cost{}, err
		}
		begin := time.Now()
		tr, err := stage.TrainForward(in)
		if err != nil {
			return cost{}, err
		}
		middle := time.Now()
		if len(forward) == 0 { // a second trace shares no memory with the first one, but all scratch
			before := counted.bytes
			second, err := stage.TrainForward(in)
			if err != nil {
				return cost{}, err
			}
			c.activations = counted.bytes - before
			stage.Drop(second)
			middle = time.Now()
		}
		var dOut []float32
		if !stage.Last() {
			dOut = make([]float32, in.B*in.T*t.spec.Width)
		}
		if _, err := stage.TrainBackward(tr, dOut, grads); err != nil {
			return cost{}, err
		}
		forward = append(forward, middle.Sub(begin).Seconds())
		backward = append(backward, time.Since(middle).Seconds())
	}
	c.forward, c.backward = median(forward[1:]), median(backward[1:])
	t.seen[key] = c
	return c, nil
}

// micro returns a slot for a stage. Its values do not matter to the time.
func (t *meter) micro(stage *model.Stage[float32]) model.Micro[float32] {
	m := t.manifest
	in := model.Micro[float32]{B: m.SlotSequences, T: m.SequenceLen, Scale: 1}
	n := in.B * in.T
	if stage.First() {
		in.IDs = make([]int32, n)
		for i := range in.IDs {
			in.IDs[i] = int32(i % t.spec.Vocab)
		}
	} else {
		in.Hidden = make([]float32, n*t.spec.Width)
		for i := range in.Hidden {
			in.Hidden[i] = float32(i%7) - 3
		}
	}
	if stage.Last() {
		in.Targets = make([]int32, n)
	}
	return in
}

// counting counts the bytes that a kernel set allocates.
type counting struct {
	kernel.Set[float32]
	bytes int64
}

// Alloc allocates floats.
func (c *counting) Alloc(n int) kernel.Buffer[float32] {
	c.bytes += 4 * int64(n)
	return c.Set.Alloc(n)
}

// AllocBF16 allocates bfloat16 values.
func (c *counting) AllocBF16(n int) []uint16 {
	c.bytes += 2 * int64(n)
	return c.Set.AllocBF16(n)
}

func elements(shape []int) int64 {
	n := int64(1)
	for _, d := range shape {
		n *= int64(d)
	}
	return n
}

func median(v []float64) float64 {
	slices.Sort(v)
	return v[len(v)/2]
}
