package trainer

import (
	"context"
	"errors"
	"math/bits"
	"slices"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/model"
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
func (m *Manifest) Estimate(ctx context.Context, stages, replicas int, set kernel.Set[float32]) (
	_ *Estimate, err error) {
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
	if err == nil {
		err = data.within(m, spec.Context)
	}
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
	meter, err := newMeter(b, spec, set)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, meter.close()) }()
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
		if meter.low == nil && meter.group(&config, p).Trainable {
			e.Trainable += n
		}
	}
	if meter.low != nil {
		for _, p := range meter.low.names {
			n := elements(p.Shape)
			if !slices.Contains(meter.low.saved, p.Name) { // it is counted with the model
				e.Parameters += n
			}
			if config.For(p).Trainable {
				e.Trainable += n
			}
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
