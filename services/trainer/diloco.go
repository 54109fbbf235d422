package trainer

import (
	"math"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/optim"
	"github.com/lamina-mesh/lamina/pkg/schedule"
)

// DiLoCo holds the settings of training with few exchanges: each worker makes optimizer steps on its own slots,
// and from time to time the mean of the workers' progress becomes an outer step of the common weights. The
// common weights are what is evaluated and exported.
type DiLoCo struct {
	// Workers is a power of two, at most the number of slots, and the largest number of replicas. A replica
	// computes one or more workers, and keeps weights and moments for each.
	Workers int `json:"workers"`
	// Interval is the number of steps between two outer steps of a parameter; 50 when absent.
	Interval int `json:"interval"`
	// Fragments is the number of groups of parameters that are exchanged at different steps, evenly spread over
	// the interval, so that less is sent at once; 1 when absent. It divides the interval.
	Fragments int `json:"fragments"`
	// Delay is the number of steps during which the workers go on while their progress travels; 0 when absent.
	Delay int `json:"delay"`
	// Mix is the share of a worker's own weights that stays when the common ones come back; for a delay, 0.5 is
	// usual. 0 when absent.
	Mix float64 `json:"mix"`
	// LearningRate and Momentum are those of the outer optimizer, SGD with Nesterov momentum; 0.7 and 0.9 when
	// absent.
	LearningRate float64  `json:"learning_rate"`
	Momentum     *float64 `json:"momentum"`
}

func (d *DiLoCo) check(slots int) error {
	if err := schedule.CheckLevel("diloco.workers", slots, d.Workers); err != nil {
		return err
	}
	switch {
	case d.Interval < 1 || d.Interval > 1<<20:
		return fault.Field("diloco.interval", "%d is not within 1..%d", d.Interval, 1<<20)
	case d.Fragments < 1 || d.Fragments > d.Interval || d.Interval%d.Fragments != 0:
		return fault.Field("diloco.fragments", "%d do not divide the interval, %d", d.Fragments, d.Interval)
	case d.Delay < 0 || d.Delay >= d.Interval:
		return fault.Field("diloco.delay", "%d is not within 0..%d", d.Delay, d.Interval-1)
	case !(d.Mix >= 0 && d.Mix < 1):
		return fault.Field("diloco.mix", "%v is not within [0, 1)", d.Mix)
	case !(d.LearningRate > 0 && d.LearningRate <= 10):
		return fault.Field("diloco.learning_rate", "%v is not within (0, 10]", d.LearningRate)
	case !(*d.Momentum >= 0 && *d.Momentum < 1):
		return fault.Field("diloco.momentum", "%v is not within [0, 1)", *d.Momentum)
	}
	return nil
}

// open returns the section as stages are told.
func (d *DiLoCo) open() *shardv1.DiLoCo {
	if d == nil {
		return nil
	}
	return &shardv1.DiLoCo{Workers: uint32(d.Workers), Interval: uint32(d.Interval), Fragments: uint32(d.Fragments),
		Delay: uint32(d.Delay), Mix: d.Mix, LearningRate: d.LearningRate, Momentum: *d.Momentum}
}

// workersStep lets every worker make a step. The workers of a replica step one after another, each with its own
// gradient norm; replicas do not wait for one another until the end. It returns the losses in slot order and
// the root mean square of the workers' norms.
func (t *training) workersStep(
	f *fleet, step uint64, data *batch, rate float64, idle *bubble, sent *traffic,
) (losses []float64, norm float64, err error) {
	m := t.run.manifest
	losses = make([]float64, m.Slots)
	squares := make([]float64, m.DiLoCo.Workers)
	digests := make([][]uint64, len(f.chains))
	var mu sync.Mutex
	var g errgroup.Group
	for _, c := range f.chains {
		digests[c.replica] = make([]uint64, len(c.stages))
		lo, hi := m.share(c.replica, len(f.chains))
		g.Go(func() error {
			for w, node := range schedule.Level(m.Slots, m.DiLoCo.Workers) {
				if node.Lo < lo || node.Hi > hi {
					continue
				}
				s := &shardv1.Step{Step: step, Worker: uint32(w)}
				norms, err := t.workerGradients(f, c, s, node, data, losses, &mu, idle, sent)
				if err != nil {
					return err
				}
				for _, n := range norms { // in name order
					squares[w] += n.GetSumSquares()
				}
				if size := math.Sqrt(squares[w]); math.IsNaN(size) || math.IsInf(size, 0) {
					return fault.New(fault.DataLoss, "step %d: gradient norm %v of worker %d is not finite", step,
						size, w)
				}
				a := &shardv1.Apply{Step: step, Epoch: f.epoch, LearningRate: rate, Worker: uint32(w),
					AverageAll:    step == uint64(m.Steps),
					GradientScale: optim.ClipScale(math.Sqrt(squares[w]), m.Clip)}
				if err := f.applyChain(c, a, digests[c.replica], func(a *shardv1.Applied) {
					mu.Lock()
					defer mu.Unlock()
					sent.add(a)
				}); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, 0, err
	}
	if err := sameDigests(step, digests); err != nil {
		return nil, 0, err
	}
	for _, s := range squares { // in the order of workers
		norm += s
	}
	return losses, math.Sqrt(norm / float64(len(squares))), nil
}

// workerGradients runs a worker's slots on its chain and returns the norms in name order.
func (t *training) workerGradients(
	f *fleet, c *chain, s *shardv1.Step, node schedule.Node, data *batch, losses []float64, mu *sync.Mutex,
	idle *bubble, sent *traffic,
) ([]*shardv1.Norm, error) {
	for slot := node.Lo; slot < node.Hi; slot++ {
		s.Slots = append(s.Slots, uint32(slot))
		s.Targets += data.slots[slot].counted
	}
	s.Targets = max(1, s.GetTargets()) // a worker without targets has a gradient of 0
	var norms []*shardv1.Norm
	var reports []*shardv1.Folded
	var g errgroup.Group
	g.Go(func() error { return f.feed(c.ctx, c, s, data.slots[node.Lo:node.Hi]) })
	for _, stage := range c.stages {
		g.Go(func() error {
			return f.collect(c.ctx, stage, s.GetStep(), func(l *shardv1.Loss) error {
				mu.Lock()
				defer mu.Unlock()
				err := data.lost(l, c.replica)
				if err == nil {
					losses[l.GetSlot()] = l.GetSum()
				}
				return err
			}, func(folded *shardv1.Folded) {
				mu.Lock()
				defer mu.Unlock()
				norms, reports = append(norms, folded.GetNorms()...), append(reports, folded)
				sent.add(folded)
			})
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	if len(c.stages) > 1 {
		mu.Lock()
		idle.add(reports)
		mu.Unlock()
	}
	slices.SortFunc(norms, func(a, b *shardv1.Norm) int { return strings.Compare(a.GetName(), b.GetName()) })
	return norms, nil
}
