package shard

import (
	"context"
	"sync/atomic"
	"time"

	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
)

// progress is how far the handler of a stage is with its actions. Its heartbeat reports it.
type progress struct {
	step          atomic.Uint64
	attempt       atomic.Uint32
	done, actions atomic.Uint32
}

// begin begins an attempt with a number of actions.
func (p *progress) begin(a attempt, actions int) {
	p.step.Store(a.step)
	p.attempt.Store(a.n)
	p.done.Store(0)
	p.actions.Store(uint32(actions))
}

// end ends it.
func (p *progress) end() { p.begin(attempt{}, 0) }

// heartbeat tells the trainer that the stage lives until ctx ends.
func (r *trainRun) heartbeat(ctx context.Context) {
	if r.open.GetHeartbeatMs() == 0 {
		return
	}
	tick := time.NewTicker(time.Duration(r.open.GetHeartbeatMs()) * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		p := &r.progress
		alive := &shardv1.Alive{Step: p.step.Load(), Attempt: p.attempt.Load(), Done: p.done.Load(),
			Actions: p.actions.Load()}
		if r.send(&shardv1.TrainResponse{Frame: &shardv1.TrainResponse_Alive{Alive: alive}}) != nil {
			return // the handler sees why
		}
	}
}
