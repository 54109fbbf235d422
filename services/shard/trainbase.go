package shard

import (
	"context"
	"slices"
	"time"
	"weak"

	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/model"
)

// settleLimit bounds how long a stage that opens waits for those that have been given up.
const settleLimit = time.Minute

// base is a stage whose weights are frozen and in memory as they are stored. The stage of a chain that has ended counts
// until it has been collected: its packed matrices are outside of Go's heap, so that loading them again would make no
// collection come sooner.
type base struct {
	digest string
	stage  weak.Pointer[model.Stage[float32]]
}

// remember makes the base of a stage known to the stages that open later.
func (t *training) remember(digest string, stage *model.Stage[float32]) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.bases = append(t.bases, base{digest, weak.Make(stage)})
}

// beside returns the stages in memory whose packed matrices a base may share: those that serve the same model, and
// those of other chains that train adapters of it.
func (t *training) beside(digest string, set kernel.Set[float32]) []*model.Stage[float32] {
	s := t.service
	var out []*model.Stage[float32]
	add := func(stage *model.Stage[float32]) {
		if stage.Kernels() == set {
			out = append(out, stage)
		}
	}
	s.mu.Lock()
	for _, h := range slices.Concat(s.held, s.retiring) {
		if h.digest == digest {
			add(h.stage)
		}
	}
	s.mu.Unlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.bases = slices.DeleteFunc(t.bases, func(b base) bool {
		stage := b.stage.Value()
		if stage != nil && b.digest == digest {
			add(stage)
		}
		return stage == nil
	})
	return out
}

// settle ends the stages of deposed trainers and waits until all stages that have been given up are gone, so that their
// weights and activations are not in memory beside those of a new stage. Such a stage ends when it is done with the
// slot that it computes. One that does not end in time is left alone.
func (t *training) settle(ctx context.Context, o *shardv1.TrainOpen) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.lead(o); err != nil {
		return err
	}
	limit := time.NewTimer(settleLimit)
	defer limit.Stop()
	waiting := false
	for {
		old := t.givenUp()
		if old == nil {
			return nil
		}
		if !waiting {
			waiting = true
			t.service.log.Info("wait for a train stage that has been given up", "run", o.GetRun(), "of", old.open.GetRun(),
				"layers", old.layers())
		}
		ended := t.ended
		t.mu.Unlock()
		var over, late bool
		select {
		case <-ended:
		case <-limit.C:
			late = true
		case <-ctx.Done():
			over = true
		}
		t.mu.Lock()
		switch {
		case over:
			return context.Cause(ctx)
		case late:
			t.service.log.Warn("open a train stage beside one that has been given up", "run", o.GetRun(), "of",
				old.open.GetRun(), "layers", old.layers())
			return nil
		}
	}
}

// givenUp returns a stage that has been given up and is not gone, or nil. The caller holds mu.
func (t *training) givenUp() *trainRun {
	for _, r := range t.runs {
		if r.ctx.Err() != nil {
			return r
		}
	}
	return nil
}
