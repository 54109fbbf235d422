package shard

import (
	"maps"

	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
)

// maxLeases bounds the leases whose epochs a shard remembers.
const maxLeases = 4096

// lead checks that the trainer which opens a stage has not been deposed, and ends the stages of trainers that this
// one has deposed. The caller holds mu.
func (t *training) lead(o *shardv1.TrainOpen) error {
	lease, epoch := o.GetLease(), o.GetEpoch()
	if lease == "" {
		return nil
	}
	if known := t.epochs[lease]; epoch < known {
		return fault.New(fault.Aborted, "open a stage of %s: epoch %d has been superseded by %d", lease, epoch, known)
	}
	open := map[string]bool{lease: true}
	for _, r := range t.runs {
		open[r.open.GetLease()] = true
		if r.open.GetLease() == lease && r.open.GetEpoch() < epoch {
			r.fail(fault.New(fault.Aborted, "train layers %v: epoch %d has been superseded by %d", r.layers(),
				r.open.GetEpoch(), epoch))
		}
	}
	if len(t.epochs) >= maxLeases {
		maps.DeleteFunc(t.epochs, func(lease string, _ uint64) bool { return !open[lease] })
	}
	t.epochs[lease] = epoch
	return nil
}
