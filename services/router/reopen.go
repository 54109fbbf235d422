package router

import (
	"context"
	"errors"
	"slices"
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

	reopenAgain = 10 * time.Millisecond // before the first repeated try; doubled after each
)

// reopen opens the pipeline's streams again after they have broken with the given error. If every stage
// has kept its pages, the scheduler goes on with them, and reopen returns true. Otherwise the pipeline is
// lost: its sequences are replayed elsewhere.
//
// What the request of a sequence may have caused is not tried again: that would break the next stream
// as well. Neither is a pipeline that has computed nothing since it was opened, or opened again, before,
// nor one of the draft model: its sessions only save time, and their drafters go on without it at once.
func (r *runner) reopen(cause error) bool {
	p := r.p
	limit := r.reopenLimit(cause)
	if limit == 0 {
		return false
	}
	start := time.Now()
	ctx, cancel := context.WithTimeout(p.ctx, limit)
	defer cancel()
	p.chained.stop()
	sampling := p.sampling
	stages, err := r.tryReopen(ctx)
	if err == nil && !slices.ContainsFunc(stages, func(h *shardv1.Held) bool { return !h.GetResumed() }) {
		// All that has arrived before is handled first. Nothing of the former chain arrives after it.
		r.takeAll()
		resampled := p.sampling != sampling
		r.events = append(r.events, sched.Reopened{Sampler: resampled, Leases: leases(stages)})
		r.fruitless++
		if resampled {
			r.vocabularySent = false
			p.serveSampler()
		}
		p.serveChain()
		p.service.m.reopens.WithLabelValues("resumed").Inc()
		p.service.log.Info("pipeline is open again", "pipeline", p.id, "epoch", p.epoch, "took", time.Since(start),
			"cause", cause)
		return true
	}
	if err == nil {
		p.serveChain() // until the end of run closes it
		err = fault.New(fault.Unavailable, "open pipeline %s again: a stage has lost its pages", p.id)
	}
	p.service.m.reopens.WithLabelValues("lost").Inc()
	p.service.log.Debug("open pipeline again", "pipeline", p.id, "took", time.Since(start), "error", err)
	return false
}

// reopenLimit returns how long the pipeline may take to open again, or 0 if it must not.
func (r *runner) reopenLimit(cause error) time.Duration {
	switch fault.CodeOf(cause) {
	case fault.Unavailable, fault.Canceled, fault.DeadlineExceeded, fault.Aborted:
	default:
		return 0
	}
	var overdue late
	switch spare := r.p.spare.Load(); {
	case r.p.draft, r.fruitless >= maxFruitless:
		return 0
	case spare && errors.As(cause, &overdue): // a stage that has computed nothing so far will not do so now
		return 0
	case !spare:
		return reopenAlone
	}
	r.p.mu.Lock()
	replay := r.p.sched.Replay()
	r.p.mu.Unlock()
	return min(max(replay, reopenLeast), reopenMost)
}

// tryReopen opens the streams that are broken until all are open.
func (r *runner) tryReopen(ctx context.Context) (stages []*shardv1.Held, err error) {
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
