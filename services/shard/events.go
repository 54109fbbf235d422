package shard

import (
	"context"
	"slices"
	"time"
)

// removeTimeout bounds the removal of a run's events.
const removeTimeout = 5 * time.Second

// removeEvents removes the run's events from the bus. The run has ended on all stages, or it will restart with
// another name on the bus.
func (r *trainRun) removeEvents() {
	if !r.cleans() || !r.stepped {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.ctx), removeTimeout)
	defer cancel()
	if err := r.service.cfg.Bus.Remove(ctx, r.open.GetRun()); err != nil {
		r.service.log.Warn("remove gradient events", "run", r.open.GetRun(), "error", err)
	}
}

// purgeEvents forgets this stage's events of steps up to the given one and, on one stage of the run, removes
// the events of earlier steps from the bus. Every replica has read them.
func (r *trainRun) purgeEvents(step uint64) {
	r.outbox.Commit(step)
	if !r.cleans() || step < 2 {
		return
	}
	if err := r.service.cfg.Bus.Purge(r.ctx, r.open.GetRun(), step-1); err != nil {
		r.service.log.Warn("purge gradient events", "run", r.open.GetRun(), "step", step, "error", err)
	}
}

// cleans reports whether this stage removes the run's events from the bus. That is the first stage of the
// first replica, if there are any events.
func (r *trainRun) cleans() bool {
	tied := slices.ContainsFunc(r.spans, func(s *trainSpan) bool { return s.tied != "" })
	return r.members.first() && r.open.GetStage() == 0 && (r.open.GetReplicas() > 1 || tied)
}
