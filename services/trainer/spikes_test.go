package trainer

import (
	"context"
	"log/slog"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
)

// obedient answers a trainer as a stage does. An attempt that has been aborted is not begun again.
type obedient struct {
	trainStream
	stage   *stage
	aborted map[uint32]bool
}

func (o *obedient) Send(r *shardv1.TrainRequest) error {
	switch frame := r.GetFrame().(type) {
	case *shardv1.TrainRequest_Abort:
		o.aborted[frame.Abort.GetAttempt()] = true
		o.stage.replies <- &shardv1.TrainResponse{Frame: &shardv1.TrainResponse_Aborted{Aborted: &shardv1.Aborted{
			Step: frame.Abort.GetStep(), Attempt: frame.Abort.GetAttempt()}}}
	case *shardv1.TrainRequest_Step:
		if n := frame.Step.GetAttempt(); o.aborted[n] {
			o.stage.chain.fail(fault.New(fault.FailedPrecondition, "begin attempt %d: it has been aborted", n))
		}
	case *shardv1.TrainRequest_Microbatch:
		o.stage.replies <- &shardv1.TrainResponse{Frame: &shardv1.TrainResponse_Loss{Loss: &shardv1.Loss{
			Step: frame.Microbatch.GetStep(), Slot: frame.Microbatch.GetSlot(), Sum: 2}}}
	case *shardv1.TrainRequest_Apply:
		o.stage.replies <- &shardv1.TrainResponse{Frame: &shardv1.TrainResponse_Applied{Applied: &shardv1.Applied{
			Step: frame.Apply.GetStep()}}}
	}
	return nil
}

// A step whose gradient is not finite is aborted and skipped. What the stages compute after that at the same step, such
// as the validation loss, is no part of the attempt that was aborted: a stage never answers that.
func TestTraining_EvaluatesAfterASkippedStep(t *testing.T) {
	dir := t.TempDir()
	m := &Manifest{Name: "run", Spikes: &Spikes{Action: spikeSkip, Most: 10, Window: 50, Deviations: 6}}
	tr := &training{run: newRun(&Service{log: slog.New(slog.DiscardHandler)}, m, nil, dir), store: claimed(t, dir)}
	tr.run.manifest, tr.run.layout = m, layout{stages: 1, replicas: 1}
	f := &fleet{fleetConfig: fleetConfig{log: tr.run.service.log, manifest: m, layout: tr.run.layout,
		timing: timing{wedged: defaultWedged}}}
	f.ctx, f.fail = context.WithCancelCause(t.Context())
	c := &chain{}
	c.ctx, c.fail = context.WithCancelCause(f.ctx)
	defer c.fail(nil)
	s := &stage{chain: c, replies: make(chan *shardv1.TrainResponse, repliesLen)}
	s.stream = &obedient{stage: s, aborted: map[uint32]bool{}}
	c.stages, f.chains = []*stage{s}, []*chain{c}
	const step = 3
	skipped, err := tr.judge(f, step, result{}, &notFiniteError{step, "a gradient is not finite"})
	if !skipped || err != nil {
		t.Fatalf("skipped: %v, %v", skipped, err)
	}
	sum := 0.0
	err = tr.forward(f, c, &shardv1.Step{Step: step}, 2, func(int) (*micro, error) {
		return &micro{Microbatch: &shardv1.Microbatch{Step: step}}, nil
	}, func(_ int, l *shardv1.Loss) error {
		sum += l.GetSum()
		return nil
	})
	if sum != 4 || err != nil {
		t.Errorf("the losses are %v: %v", sum, err)
	}
}
