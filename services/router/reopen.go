package router

import (
	"context"
	"errors"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/sched"
)

const (
	// How long a pipeline whose streams have broken may take to open again while another one could take
	// over its sequences: about as long as that one would need to compute their logs, within these bounds.
	reopenLeast = 100 * time.Millisecond
	reopenMost  = 200 * time.Millisecond
	// The same while no other pipeline of the model is open. The stages keep the pages for longer.
	reopenAlone = 500 * time.Millisecond

	// How often a pipeline is opened again without having computed anything in between. The breaks of its
	// two streams may be noticed one after the other.
	maxFruitless = 2

	// How long a stage may take to say that it is there.
	silentLimit = 100 * time.Millisecond

	reopenAgain = 10 * time.Millisecond // before the first repeated try; doubled after each
)

// reopen opens the pipeline's streams again after they have broken with the given error. If every stage
// has kept its pages, the scheduler goes on with them, and reopen returns true. If a stage is lost, a shard
// that no pipeline uses takes its place, and only what the lost stage had is computed again. Otherwise the
// pipeline is lost: its sequences are replayed elsewhere.
//
// What the request of a sequence may have caused is not tried again: that would break the next stream
// as well. Neither is a pipeline that has computed nothing since it was opened, or opened again, before,
// nor one of the draft model: its sessions only save time, and their drafters go on without it at once.
func (r *runner) reopen(cause error) bool {
	p := r.p
	switch fault.CodeOf(cause) {
	case fault.Unavailable, fault.Canceled, fault.DeadlineExceeded, fault.Aborted:
	default:
		return false
	}
	if p.draft || r.fruitless >= maxFruitless {
		return false
	}
	start := time.Now()
	r.cause = cause
	if errors.As(cause, new(late)) {
		p.doubtful.Store(true)
	}
	p.chained.stop()
	sampling := p.sampling
	stages, until, err := r.openAgain(cause)
	end := "resumed"
	switch {
	case err != nil:
		end = "lost"
	case until > 0:
		end = "rebuilt"
	}
	p.service.m.reopens.WithLabelValues(end).Inc()
	if err != nil {
		p.service.log.Debug("open pipeline again", "pipeline", p.id, "took", time.Since(start), "error", err)
		return false
	}
	// All that has arrived before is handled first. Nothing of the former chain arrives after it.
	r.takeAll()
	resampled := p.sampling != sampling
	r.events = append(r.events, sched.Reopened{Sampler: resampled, Leases: leases(stages), ReplayUntil: until})
	r.fruitless++
	for _, seq := range r.sequences {
		seq.traced = false // a stage may be new
	}
	if resampled {
		r.vocabularySent = false
		p.serveSampler()
	}
	p.serveChain()
	p.service.log.Info("pipeline is open again", "pipeline", p.id, "epoch", p.epoch, "took", time.Since(start),
		"chain", p.hops().String(), "replay_until", until, "cause", cause)
	return true
}

// openAgain opens the same chain, or one with other shards in the place of those that are lost. until is
// the layer up to which the logs have to be replayed, or 0 if nothing is lost.
func (r *runner) openAgain(cause error) (stages []*shardv1.Held, until int, err error) {
	p := r.p
	if errors.As(cause, new(late)) && p.spare.Load() && !r.mayReplace() {
		return nil, 0, cause // nothing can be gained by a search
	}
	ctx, cancel := context.WithTimeout(p.ctx, silentLimit)
	defer cancel()
	silent := p.findSilent(ctx)
	stages, err = r.openSame(cause, silent)
	if err == nil {
		until, err = r.lacking(stages)
		if err == nil && until > 0 && (!r.worthReplay(until) || !r.payReplay()) {
			err = fault.New(fault.Unavailable, "open pipeline %s again: a stage has lost its pages", p.id)
		}
	} else if lost := silent.wait(); len(lost) > 0 {
		if stages, err = r.replace(lost, err); err == nil {
			until, err = r.lacking(stages)
		}
	}
	if err != nil && stages != nil {
		p.serveChain() // until the end of run closes it
	}
	return stages, until, err
}

// openSame opens the same chain again. It gives up when a stage is known to be silent.
func (r *runner) openSame(cause error, silent *silence) ([]*shardv1.Held, error) {
	p := r.p
	limit := reopenAlone
	var overdue late
	missed := errors.As(cause, &overdue)
	if p.spare.Load() {
		if missed { // a stage that has computed nothing so far will not do so now
			return nil, cause
		}
		p.mu.Lock()
		replay := p.sched.Replay()
		p.mu.Unlock()
		limit = min(max(replay, reopenLeast), reopenMost)
	}
	ctx, cancel := context.WithTimeout(p.ctx, limit)
	defer cancel()
	if missed {
		// A frozen stage takes the new stream and does not answer. Nobody waits for it once it is known to be silent
		// as well.
		go func() { // ends with ctx at the latest
			select {
			case <-silent.done:
				if len(silent.stages) > 0 {
					cancel()
				}
			case <-ctx.Done():
			}
		}()
	}
	return r.tryOpen(ctx, func() bool { return len(silent.known()) > 0 })
}

// mayReplace reports whether a free shard could take the place of a stage in less time than the other pipelines
// need for the sequences. If the first stage is not worth it, no other one is: more layers would be replayed.
func (r *runner) mayReplace() bool { return r.p.spareShard.Load() && r.worthReplay(r.p.hops()[0].Hi) }

// replace opens the chain with other shards in the place of stages that are lost, if there are such and if
// that is expected to cost less than to replay the sequences elsewhere.
func (r *runner) replace(lost []int, cause error) ([]*shardv1.Held, error) {
	p := r.p
	until := 0
	for _, i := range lost {
		until = max(until, p.hops()[i].Hi)
	}
	if !r.worthReplay(until) || !p.service.replaceShards(p, lost) || !r.payReplay() {
		return nil, cause
	}
	ctx, cancel := context.WithTimeout(p.ctx, reopenAlone)
	defer cancel()
	return r.tryOpen(ctx, func() bool { return false })
}

// lacking returns the layer at which the last stage ends that has not kept its pages, or 0 if all have. A
// stage must hold as many pages as the scheduler has given out.
func (r *runner) lacking(stages []*shardv1.Held) (until int, err error) {
	need := r.p.schedulerConfig()
	for _, h := range stages {
		if h.GetResumed() {
			continue
		}
		until = int(h.GetHi())
		if int(h.GetKvPages()) < need.Pages || int(h.GetKvPageLen()) != need.PageLen ||
			int(h.GetPositions()) < need.Positions {
			return 0, fault.New(fault.Unavailable, "open pipeline %s again: layers %d-%d have %d KV pages of %d, want %d of %d",
				r.p.id, h.GetLo(), h.GetHi(), h.GetKvPages(), h.GetKvPageLen(), need.Pages, need.PageLen)
		}
	}
	return until, nil
}

// payReplay spends what the replay of a stage costs, if the budget allows it.
func (r *runner) payReplay() bool {
	r.p.mu.Lock()
	positions := r.p.sched.Computed()
	r.p.mu.Unlock()
	return r.p.service.replays.try(positions, againRebuilt)
}

// worthReplay reports whether it is expected to take less time to replay the sequences up to a layer here
// than to replay them whole on the other pipelines of the model. It is if there are none.
func (r *runner) worthReplay(until int) bool {
	p := r.p
	p.mu.Lock()
	positions, whole := p.sched.Computed(), p.sched.Replay()
	layers := p.chain[0].Layers
	p.mu.Unlock()
	here := p.opening + time.Duration(float64(whole)*float64(until)/float64(layers))
	others := p.service.others(p)
	elsewhere := time.Duration(0)
	for _, o := range others { // each gets a part of the sequences
		o.mu.Lock()
		elsewhere = max(elsewhere, o.sched.TakeOver(positions/len(others)))
		o.mu.Unlock()
	}
	return len(others) == 0 || here <= elsewhere
}

// tryOpen opens the streams that are broken until all are open, ctx ends, or a try has failed and stop
// returns true.
func (r *runner) tryOpen(ctx context.Context, stop func() bool) (stages []*shardv1.Held, err error) {
	p := r.p
	for again := reopenAgain; ; again *= 2 {
		err = nil
		if p.sampling.broken() != nil {
			p.sampling.stop()
			err = p.openSampler(ctx, p.service.otherSampler(p.samplerAddr()))
		}
		if err == nil {
			if stages, err = p.openChain(ctx); err == nil {
				return stages, nil
			}
		}
		switch fault.CodeOf(err) {
		case fault.Unavailable, fault.Canceled, fault.DeadlineExceeded, fault.Aborted, fault.AlreadyExists,
			fault.FailedPrecondition: // a sampler or a stage may not have noticed yet that a stream has ended
		default:
			return nil, err
		}
		if stop() {
			return nil, err
		}
		select {
		case <-time.After(again):
		case <-ctx.Done():
			return nil, err
		}
	}
}

// otherSampler returns the address of a sampler: another one than the given one, if there is one.
func (s *Service) otherSampler(addr string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	samplers := s.instances["sampler"]
	for range samplers {
		next := samplers[s.tries%len(samplers)].Addr
		s.tries++
		if next != addr {
			return next
		}
	}
	return addr
}
