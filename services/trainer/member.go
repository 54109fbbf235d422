package trainer

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/schedule"
)

// timing says when a replica counts as lost whose connections are well.
type timing struct {
	heartbeat time.Duration // how often a stage says that it lives; 0 for never
	silence   time.Duration // without a frame of a stage
	// wedged is how long a stage may take for one action of its schedule, at least. A multiple of the usual time of
	// a step counts if that is longer.
	wedged time.Duration
}

const (
	defaultHeartbeat = time.Second
	defaultSilence   = 15 * time.Second
	defaultWedged    = time.Minute
	wedgedSteps      = 10              // times the usual time of a step
	farewell         = 2 * time.Second // for the stages of a lost replica to end by themselves
	abortLimit       = time.Minute     // for a stage to end an attempt: it may have to compute a slot first
)

// elastic reports whether replicas may join and leave between steps, and whether a step may be repeated without
// one: with float32 and bfloat16 gradients, all replicas have the same state. The residuals of int8 and topk and
// the workers of DiLoCo are on one replica each, so that their runs go back to a checkpoint.
func (m *Manifest) elastic() bool { return m.DiLoCo == nil && !m.Gradients.codec().Feedback() }

// units returns the number of nodes of the gradient tree that are shared among replicas, and the slots of each; nil
// stands for single slots.
func (m *Manifest) units() (int, []schedule.Node) {
	if m.Gradients.codec().Exact() {
		return m.Slots, nil
	}
	return m.Gradients.Nodes, schedule.Level(m.Slots, m.Gradients.Nodes)
}

// measure is a moving mean.
type measure struct {
	mean float64
	n    int
}

// add adds a value, which counts for a third or, at the beginning, for more.
func (m *measure) add(v float64) {
	m.n++
	m.mean += (v - m.mean) * max(1/float64(m.n), 1./3)
}

const (
	enough = 3    // measurements before slots are handed from slow replicas to fast ones
	gain   = 0.15 // of a step's time, for which it is worth it
)

// balance divides n units among replicas, given the seconds that each takes for one, so that the slowest is done as
// early as possible. Each gets at least one. now is the present division; it stays if another one gains little.
func balance(n int, seconds []float64, now []int) []int {
	even := make([]int, len(seconds))
	for i := range even {
		lo, hi := schedule.Slots(n, i, len(even))
		even[i] = hi - lo
	}
	if len(now) != len(even) {
		now = even
	}
	if slices.Min(seconds) <= 0 { // not measured yet
		return now
	}
	longest := func(counts []int) (most float64) {
		for i, c := range counts {
			most = max(most, float64(c)*seconds[i])
		}
		return most
	}
	best := slices.Repeat([]int{1}, len(seconds))
	for range n - len(seconds) {
		next := 0
		for i := range best {
			if float64(best[i]+1)*seconds[i] < float64(best[next]+1)*seconds[next] {
				next = i
			}
		}
		best[next]++
	}
	if longest(best) < (1-gain)*longest(now) {
		return best
	}
	return now
}

// assign gives the chains their slots for the next attempt.
func (f *fleet) assign() {
	if !f.elastic() {
		for _, c := range f.chains {
			c.lo, c.hi = f.manifest.share(c.replica, len(f.chains))
		}
		return
	}
	n, nodes := f.manifest.units()
	var seconds []float64
	var now []int
	at := 0
	for _, c := range f.chains {
		speed := c.speed.mean
		if c.speed.n < enough {
			speed = 0
		}
		seconds = append(seconds, speed)
		if count := c.units(nodes); c.lo == at && count > 0 {
			now, at = append(now, count), c.hi
		}
	}
	if at != f.manifest.Slots {
		now = nil // other replicas made the last attempt
	}
	at = 0
	for i, count := range balance(n, seconds, now) {
		c := f.chains[i]
		c.lo, c.hi = at, at+count
		if at += count; nodes != nil {
			c.lo, c.hi = nodes[c.lo].Lo, nodes[c.hi-1].Hi
		}
	}
}

// units returns the number of units that a chain computes.
func (c *chain) units(nodes []schedule.Node) int {
	if nodes == nil {
		return c.hi - c.lo
	}
	n := 0
	for _, node := range nodes {
		if node.Lo >= c.lo && node.Hi <= c.hi {
			n++
		}
	}
	return n
}

// members lists the chains as stages are told. With direct, they are told which of them share a machine.
func (f *fleet) members(direct bool) []*shardv1.Member {
	shared := direct && f.sharesMachines()
	if !f.elastic() && !shared {
		return nil
	}
	var out []*shardv1.Member
	numbers := map[string]uint32{}
	for _, c := range f.chains {
		m := &shardv1.Member{Replica: uint32(c.replica), Lo: uint32(c.lo), Hi: uint32(c.hi)}
		if shared {
			m.Chain, m.Places = c.id, c.places(numbers)
		}
		out = append(out, m)
	}
	return out
}

// measured takes over how long the stages of a chain were busy with its slots.
func (c *chain) measured(reports []*shardv1.Folded) {
	longest := uint64(0)
	for _, r := range reports {
		longest = max(longest, r.GetScheduleUs()-min(r.GetIdleUs(), r.GetScheduleUs()))
	}
	c.speed.add(float64(longest) / 1e6 / float64(c.hi-c.lo))
}

// progressed takes over how far a stage is.
func (s *stage) progressed(a *shardv1.Alive) {
	if a.GetDone() >= a.GetActions() {
		s.actions.Store(0)
		return
	}
	s.actions.Store(1 + a.GetStep()<<32 ^ uint64(a.GetAttempt())<<20 ^ uint64(a.GetDone()))
}

// watch ends a chain when one of its stages has been silent or busy with one action for too long. Only time in which
// the trainer runs counts: if it was suspended, the frames of that time are still to be read.
func (f *fleet) watch(c *chain) {
	if f.timing.heartbeat == 0 {
		return
	}
	interval := f.timing.heartbeat
	tick := time.NewTicker(interval)
	defer tick.Stop()
	type state struct {
		heard, actions uint64
		silent, busy   time.Duration
	}
	states := make([]state, len(c.stages))
	for {
		select {
		case <-tick.C:
		case <-c.ctx.Done():
			return
		}
		for i, s := range c.stages {
			now := &states[i]
			now.silent, now.busy = now.silent+interval, now.busy+interval
			if heard := s.heard.Load(); heard != now.heard {
				now.heard, now.silent = heard, 0
			}
			if actions := s.actions.Load(); actions == 0 || actions != now.actions {
				now.actions, now.busy = actions, 0
			}
			var err error
			switch {
			case now.silent >= f.timing.silence:
				err = fault.New(fault.DeadlineExceeded, "layers %v at %s: no sign of life for %v", s.spans, s.addr,
					now.silent)
			case now.busy >= max(f.timing.wedged, time.Duration(f.usual.Load())*wedgedSteps):
				err = fault.New(fault.DeadlineExceeded, "layers %v at %s: no progress for %v", s.spans, s.addr,
					now.busy)
			}
			if err != nil {
				f.lost(c, err)
				return
			}
		}
	}
}

// close ends a chain: politely first, so that its stages remove what they have published, and then at once.
func (c *chain) close() {
	done := make(chan struct{})
	go func() {
		defer close(done)
		for _, s := range c.stages {
			if s.stream != nil {
				_ = s.stream.CloseSend()
			}
		}
		c.readers.Wait()
	}()
	limit := time.NewTimer(farewell)
	defer limit.Stop()
	select {
	case <-done:
	case <-limit.C:
	}
	c.fail(context.Canceled)
	<-done
}

// sweep removes the chains that are lost and returns them.
func (f *fleet) sweep() []*chain {
	var out []*chain
	f.chains = slices.DeleteFunc(f.chains, func(c *chain) bool {
		if c.lost() == nil {
			return false
		}
		out = append(out, c)
		return true
	})
	for _, c := range out {
		c.close()
	}
	return out
}

// abort ends the current attempt on all chains. Chains that do not answer are lost.
func (f *fleet) abort(step uint64) {
	ctx, cancel := context.WithTimeout(f.ctx, max(abortLimit, f.timing.wedged))
	defer cancel()
	_ = f.each(func(c *chain, _ int, s *stage) error {
		if err := f.abortStage(ctx, s, step); err != nil {
			f.lost(c, err)
		}
		return nil
	})
}

func (f *fleet) abortStage(ctx context.Context, s *stage, step uint64) error {
	a := &shardv1.Abort{Step: step, Attempt: f.attempt}
	if err := f.send(s, &shardv1.TrainRequest{Frame: &shardv1.TrainRequest_Abort{Abort: a}}); err != nil {
		return err
	}
	for {
		r, err := f.replyIn(ctx, s)
		switch err.(type) { //nolint:errorlint // it comes from replyIn itself
		case *rejectedError, *linkError:
			continue // another one of the same attempt
		}
		if err != nil {
			return fault.Wrap(fault.DeadlineExceeded, err, "abort step %d: layers %v at %s", step, s.spans, s.addr)
		}
		if done := r.GetAborted(); done.GetStep() == step && done.GetAttempt() == f.attempt {
			return nil
		}
	}
}

// first calls do with the first chain. If that is lost on the way, the next one takes its place.
func (f *fleet) first(do func(*chain) error) error {
	for {
		c := f.chains[0]
		err := do(c)
		if err == nil || c.lost() == nil || !f.elastic() || !retryable(err) {
			return err
		}
		if f.sweep(); len(f.chains) == 0 {
			return err
		}
	}
}

// sortChains orders the chains by their numbers.
func (f *fleet) sortChains() {
	slices.SortFunc(f.chains, func(a, b *chain) int { return cmp.Compare(a.replica, b.replica) })
}
