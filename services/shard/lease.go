package shard

import (
	"context"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
)

// notify tells the router when the pipeline's lease changes, until stop is closed. Other pipelines'
// goroutines change it, and they must not wait for this pipeline's stream.
//
// A pipeline that is asked to shrink holds pages that others wait for. If it does not acknowledge in
// time, its router is taken for dead and the stream ends.
func (p *pipeline) notify(ctx context.Context, stop <-chan struct{}) error {
	limit := p.service.cfg.LeaseLimit
	timer := time.NewTimer(limit)
	timer.Stop()
	defer timer.Stop()
	watched := 0 // the request that the timer is for
	watch := func() {
		if asked := p.lease.Asked(); asked != watched {
			watched = asked
			timer.Stop()
			if asked != 0 {
				timer.Reset(limit)
			}
		}
	}
	for {
		select {
		case <-p.lease.Changed():
			n, news := p.lease.Notice()
			watch()
			if !news {
				continue
			}
			frame := &shardv1.Lease{Pages: uint32(n), Lo: uint32(p.held.stage.Range.Lo)}
			if err := p.send(&shardv1.InferResponse{Frame: &shardv1.InferResponse_Lease{Lease: frame}}); err != nil {
				return err
			}
		case <-timer.C:
			if expired := watched; p.lease.Asked() == expired && p.lease.Mapped() {
				return fault.New(fault.DeadlineExceeded, "shrink lease of layers %v: it was not acknowledged in %v",
					p.held.stage.Range, limit)
			}
			watch()
		case <-stop:
			return nil
		case <-ctx.Done():
			return nil // the code that ended it reports the cause
		}
	}
}
