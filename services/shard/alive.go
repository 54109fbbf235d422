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

// heartbeat tells the trainer that the stage lives, and when it wants to leave, until ctx ends.
func (r *trainRun) heartbeat(ctx context.Context) {
	var beat <-chan time.Time
	if ms := r.open.GetHeartbeatMs(); ms > 0 {
		tick := time.NewTicker(time.Duration(ms) * time.Millisecond)
		defer tick.Stop()
		beat = tick.C
	}
	leave := r.service.training.leave
	for {
		f := &shardv1.TrainResponse{}
		select {
		case <-beat:
			p := &r.progress
			f.Frame = &shardv1.TrainResponse_Alive{Alive: &shardv1.Alive{Step: p.step.Load(), Attempt: p.attempt.Load(),
				Done: p.done.Load(), Actions: p.actions.Load()}}
		case <-leave:
			leave = nil // once
			f.Frame = &shardv1.TrainResponse_Leaving{Leaving: &shardv1.Leaving{}}
		case <-ctx.Done():
			return
		}
		if r.send(f) != nil {
			return // the handler sees why
		}
	}
}
