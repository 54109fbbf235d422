package router

import (
	"context"
	"math/bits"
	"slices"
	"sync"
	"time"

	"github.com/lamina-mesh/lamina/pkg/auth"
)

const (
	hedgeLeast   = 250 * time.Millisecond // default of Config.Hedge
	hedgeKept    = 64                     // times to the first token that are kept for each class of prompts
	hedgeTrusted = 8                      // the fewest that say what is late
)

// firstTimes are the times from a sequence's submission to its first token, by the number of prompt rows that
// had to be computed: a class is a power of two.
type firstTimes struct {
	mu      sync.Mutex
	classes [33]struct {
		took []time.Duration // a ring
		next int
	}
}

// add counts a first token.
func (f *firstTimes) add(rows int, took time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := &f.classes[bits.Len32(uint32(rows))]
	if len(c.took) < hedgeKept {
		c.took = append(c.took, took)
		return
	}
	c.took[c.next] = took
	c.next = (c.next + 1) % hedgeKept
}

// p95 returns the 95th percentile of a class of prompts. ok is false while too few are known.
func (f *firstTimes) p95(rows int) (d time.Duration, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	took := f.classes[bits.Len32(uint32(rows))].took
	if len(took) < hedgeTrusted {
		return 0, false
	}
	sorted := slices.Sorted(slices.Values(took))
	return sorted[len(sorted)*95/100], true
}

// attempt is a sequence of a request on a pipeline.
type attempt struct {
	p    *pipeline
	seq  *sequence
	log  []int32            // as it was submitted
	stop context.CancelFunc // ends its drafter
}

// end counts the sequence off the pipeline. Its pipeline has ended it, or is told separately.
func (a *attempt) end() {
	a.stop()
	a.p.assigned.Add(-1)
}

// cancel ends a sequence that nobody reads any more.
func (a *attempt) cancel() {
	_ = a.p.tell(a.seq.cancel()) // a pipeline that is gone holds nothing
	a.end()
}

// race reads the results of a request's sequence. If the first token is late and another pipeline has room, it
// submits the same sequence there, reads both, and keeps the one that gives a token first. The text is the same,
// because it depends on neither the pipeline nor the time.
type race struct {
	q      *request
	first  *attempt
	second *attempt // the hedge; nil for none
	begun  time.Time
	due    *time.Timer // when to hedge; nil if that is not to be done, or was done
}

func (q *request) newRace(a *attempt) *race {
	r := &race{q: q, first: a, begun: time.Now()}
	s := q.service
	if !q.first.IsZero() || s.cfg.Hedge < 0 || !a.p.spare.Load() {
		return r
	}
	a.p.mu.Lock()
	rows := len(a.log) - a.p.sched.Reusable(a.seq.tenant, a.seq.adapter.namespace(), a.log)
	a.p.mu.Unlock()
	if late, ok := s.firsts.p95(rows); ok && q.strikes.count == 0 {
		r.due = time.NewTimer(max(late, s.cfg.Hedge))
	}
	return r
}

// next waits for the next result of either sequence.
func (r *race) next(ctx context.Context) (result, *attempt, error) {
	for r.due != nil || r.second != nil {
		var due <-chan time.Time
		if r.due != nil {
			due = r.due.C
		}
		var out <-chan result
		var done <-chan struct{}
		if r.second != nil {
			out, done = r.second.seq.out, r.second.p.done
		}
		select {
		case o := <-r.first.seq.out:
			r.first.seq.took(r.first.p)
			return o, r.first, nil
		case o := <-out:
			r.second.seq.took(r.second.p)
			return o, r.second, nil
		case <-r.first.p.done:
			o, err := r.first.seq.next(ctx, r.first.p)
			return o, r.first, err
		case <-done:
			o, err := r.second.seq.next(ctx, r.second.p)
			return o, r.second, err
		case <-due:
			r.due = nil
			r.hedge(ctx)
		case <-ctx.Done():
			return result{}, r.first, ctx.Err()
		}
	}
	o, err := r.first.seq.next(ctx, r.first.p)
	return o, r.first, err
}

// hedge submits the sequence to a second pipeline, if one has room and the budget for replays allows it.
func (r *race) hedge(ctx context.Context) {
	q, s, log := r.q, r.q.service, r.first.log
	p := s.hedgePipeline(r.first.p, work{tenant: auth.Tenant(ctx), log: log, maxLen: r.first.seq.maxLen,
		adapter: q.adapter})
	if p == nil {
		return
	}
	p.mu.Lock()
	cost := len(log) - p.sched.Reusable(r.first.seq.tenant, q.adapter.namespace(), log)
	p.mu.Unlock()
	if !s.replays.try(max(1, cost), againHedged) {
		p.assigned.Add(-1)
		s.m.hedges.WithLabelValues("over budget").Inc()
		return
	}
	a, err := q.submit(ctx, p, r.first.seq.epoch, log, r.first.seq.maxLen)
	if err != nil {
		a.end()
		s.m.hedges.WithLabelValues("dropped").Inc()
		return
	}
	s.log.DebugContext(ctx, "hedge session", "session", hexID(r.first.seq.id), "other", hexID(a.seq.id),
		"pipeline", p.id)
	r.second = a
}

// hedgePipeline returns another pipeline that gives the same bits and has room for a sequence, and counts it
// there, or nil.
func (s *Service) hedgePipeline(first *pipeline, w work) *pipeline {
	var best *pipeline
	for _, p := range s.others(first) {
		c, ok := p.candidate(w)
		if !ok || !s.hasAdapter(p, w.adapter) || p.waitingCount.Load() > 0 ||
			p.fingerprint() != first.fingerprint() || p.doubtful.Load() {
			continue
		}
		if best == nil || c.Load < int(best.load()) {
			best = p
		}
	}
	if best != nil {
		best.assigned.Add(1)
	}
	return best
}

// won ends the race: the attempt has given a token.
func (r *race) won(a *attempt) {
	if r.due != nil {
		r.due.Stop()
		r.due = nil
	}
	if r.second == nil {
		return
	}
	loser, end := r.second, "lost"
	if a == r.second {
		loser, end, r.first = r.first, "won", r.second
	}
	r.second = nil
	loser.cancel()
	r.q.service.m.hedges.WithLabelValues(end).Inc()
}

// drop ends an attempt that its pipeline has given up, while the other one goes on.
func (r *race) drop(a *attempt) {
	if a == r.first {
		r.first = r.second
	}
	r.second = nil
	a.end()
	r.q.service.m.hedges.WithLabelValues("dropped").Inc()
}

// stop ends what is left of the race but the first attempt, which is canceled if it may still run.
func (r *race) stop(running bool) {
	if r.due != nil {
		r.due.Stop()
	}
	if r.second != nil {
		r.second.cancel()
		r.q.service.m.hedges.WithLabelValues("dropped").Inc()
	}
	if running {
		_ = r.first.p.tell(r.first.seq.cancel())
	}
}
