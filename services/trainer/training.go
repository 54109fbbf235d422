package trainer

import (
	"context"
	"errors"
	"math"
	"time"

	"github.com/lamina-mesh/lamina/pkg/checkpoint"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	trainerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/trainer/v1"
	"github.com/lamina-mesh/lamina/pkg/model"
)

// training is the loop of a run over successive fleets.
type training struct {
	run        *run
	data       *dataset
	spec       model.Spec
	initial    *shardv1.InitialWeights // nil for random ones
	store      *checkpoint.Store
	last       *checkpoint.Checkpoint // the last one that is whole; nil before the first
	saving     *saving                // the one that is being written
	damaged    map[uint64]bool        // steps whose checkpoints are damaged
	metrics    *stepFile
	ledger     *stepFile
	samples    *stepFile
	rollouts   *stepFile
	prompts    [][]int32 // of the sample texts
	loss       float64   // of the last step
	validation float64
	bits       float64 // validation in bits per byte
	began      time.Time
	from       uint64 // the step at which it began
	tokens     int
	simulated  float64 // bubble of the schedule
	sent       traffic // since the start; of bytes alone
	torn       int     // attempts in a row that have lost a link between replicas of one machine

	fruitless int // fleets in a row that have been lost without completing a step

	history history // of losses and norms, for the rule about spikes

	client routerv1.RouterServiceClient // of the router that samples; nil before the first answer

	banned map[string]bool // addresses of shards in quarantine
	doubts doubts
	norms  measure   // of gradients
	led    time.Time // when the claim was last checked
}

// timing returns when stages count as lost. A stage that has no progress may only be slow, on a machine that has other
// work: after each fleet that was lost before it completed a step, the next one has twice the time.
func (t *training) timing() timing {
	out := t.run.service.timing()
	out.wedged <<= min(t.fruitless, rebuilds)
	return out
}

func (t *training) step() uint64 {
	if t.last == nil {
		return 0
	}
	return t.last.Step
}

// open finds the checkpoint to resume from, or removes those of an earlier run.
func (t *training) open() error {
	if t.run.resume {
		return t.findCheckpoint(math.MaxUint64)
	}
	steps, err := t.store.Steps()
	for _, step := range steps {
		err = errors.Join(err, t.store.Remove(step))
	}
	return errors.Join(err, t.forgetEvents())
}

// attempt builds a fleet and steps until the end or an error.
func (t *training) attempt(ctx context.Context) (stopped bool, err error) {
	r, m := t.run, t.run.manifest
	if err := t.restoreHistory(); err != nil {
		return false, err
	}
	for name, file := range map[string]**stepFile{"metrics.jsonl": &t.metrics, "ledger.jsonl": &t.ledger,
		"samples.jsonl": &t.samples, rolloutsFile: &t.rollouts} {
		if name == rolloutsFile && m.Objective != objectiveGRPO {
			continue
		}
		if *file, err = t.openSteps(name); err != nil {
			return false, err
		}
		defer func() { err = errors.Join(err, (*file).Close()) }()
	}
	addrs, err := r.service.shards(ctx, t.banned)
	if err != nil {
		return false, err
	}
	initial := t.initial
	if t.last != nil && m.Adapter == nil {
		initial = nil // the checkpoint has the weights
	}
	low, err := r.plan.lowRank.open()
	if err != nil {
		return false, err
	}
	f, err := openFleet(ctx, fleetConfig{log: r.service.log, dialer: r.service.cfg.Dialer, manifest: m, spec: t.spec,
		initial: initial, adapter: low, untied: r.plan.lowRank.isUntied(), layout: r.layout,
		timing: t.timing(), lease: r.lock(), epoch: r.epoch.Load(), claim: t.store.Claim(),
		share: func() (share, func() error, error) { return newShare(r.service.cfg.Dir, r.dir) }}, addrs)
	if err != nil {
		return false, err
	}
	defer func() {
		f.close()
		_ = t.wait() // a checkpoint that has failed with the fleet matters no more
	}()
	if err := f.follow(r.service.cfg.Registry); err != nil {
		return false, err
	}
	if t.last != nil {
		if err := f.load(t.last, f.chains...); err != nil {
			return false, err
		}
	}
	r.update(func(s *trainerv1.Run) {
		s.State, s.Step, s.Parameters = trainerv1.RunState_RUN_STATE_RUNNING, t.step(), f.parameters
		s.CheckpointStep = t.step()
	})
	if err := t.references(f); err != nil {
		return false, err
	}
	t.client = nil // the router of an attempt that has failed may be gone
	defer func() { t.unpublishPolicy(context.WithoutCancel(ctx)) }()
	t.began, t.tokens, t.from = time.Now(), 0, t.step()
	due := false
	for step := t.step() + 1; step <= uint64(m.Steps); step++ {
		if err := t.lead(); err != nil {
			return false, err
		}
		if err := t.part(f, step-1); err != nil {
			return false, err
		}
		if err := t.join(f, step-1); err != nil {
			return false, err
		}
		if err := t.runStep(f, step); err != nil {
			return false, err
		}
		if err := t.tolerate(t.collect()); err != nil {
			return false, err
		}
		select {
		case <-r.stop:
			return true, t.finish(f, step)
		default:
		}
		// While a checkpoint is being written the next one waits, and the steps do not.
		due = due || step%uint64(m.CheckpointEvery) == 0
		if due && t.saving == nil && step < uint64(m.Steps) {
			due = false
			if err := t.save(f, step); err != nil {
				return false, err
			}
		}
	}
	if t.validation == 0 {
		if err := t.evaluate(f, uint64(m.Steps)); err != nil {
			return false, err
		}
	}
	if err := t.finish(f, uint64(m.Steps)); err != nil {
		return false, err
	}
	return false, t.export()
}

// result is the sum of the stages' reports of a step.
type result struct {
	loss  float64
	norm  float64
	rate  float64
	scale float64
	took  time.Duration // without reading data, validation and sample texts

	skipped bool // because of a spike
}

// firstOf returns the first error that is not nil.
func firstOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
