package sim

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/lamina-mesh/lamina/pkg/plan"
	"github.com/lamina-mesh/lamina/pkg/sched"
)

// A pipeline whose streams break is opened again, as services/router/reopen.go does: the stages keep its
// pages for a while, a free shard may take the place of one that is gone, and another sampler that of a lost
// sampler.
const (
	grace        = 5 * time.Second        // how long a stage keeps the pages of a stream that broke
	reopenLimit  = 500 * time.Millisecond // without another pipeline
	reopenSpared = 150 * time.Millisecond // with another one
	reopenAgain  = 20 * time.Millisecond  // between two tries
	maxFruitless = 2
)

// detach ends a stage's part of a stream that broke. Its block tables are gone. It keeps the pages, unless it
// waits for some of them to be given back.
func (st *stage) detach() {
	if st.ended {
		return
	}
	st.leave()
	if st.next != nil {
		st.next.later(st.shard.node, (*stage).detach)
	}
	for _, id := range slices.Sorted(maps.Keys(st.sessions)) {
		if s := st.sessions[id]; s.table != nil {
			s.table.Free()
			st.drop(s.ids)
		}
	}
	if st.lease.Owes() {
		st.lease.Close()
	} else {
		st.kept = true
		st.shard.after(grace, st.giveUp)
	}
	st.shard.notify()
}

// giveUp frees what a stage has kept.
func (st *stage) giveUp() {
	if st.kept {
		st.kept = false
		st.lease.Close()
		st.shard.notify()
	}
}

// leave takes a stage off its streams.
func (st *stage) leave() {
	st.ended, st.up.closed = true, true
	if st.down != nil {
		st.down.closed = true
	}
	s := st.shard
	s.stages = slices.DeleteFunc(s.stages, func(o *stage) bool { return o == st })
}

// resume makes a stage for a new stream, with what the former one has kept. It returns nil if that is lost.
func (st *stage) resume() *stage {
	if !st.kept || st.life != st.shard.life {
		return nil
	}
	st.kept = false
	out := &stage{shard: st.shard, p: st.p, index: st.index, lease: st.lease, life: st.life,
		sessions: map[sched.ID]*held{}, pages: st.pages}
	st.shard.stages = append(st.shard.stages, out)
	return out
}

// breakLinks breaks the streams between a process and its neighbours. All processes go on.
func (w *world) breakLinks(n *node) {
	w.log("break the streams of %s", n.name)
	for _, r := range w.routers {
		for _, p := range slices.Clone(r.all) {
			if p.reopening {
				continue
			}
			if p.sampler.node == n || r.node == n {
				p.breakSampler("the stream to " + p.sampler.name + " broke")
			}
			if r.node == n {
				p.stages[0].later(r.node, (*stage).detach)
				p.broke("the stream to the chain broke", false)
			}
			for _, st := range p.stages {
				if st.shard.node == n && !st.ended {
					p.breakAt(st.index, "the stream to "+n.name+" broke")
				}
			}
		}
	}
}

// breakSampler breaks both streams to a pipeline's sampler.
func (p *pipe) breakSampler(reason string) {
	w, sampler := p.w, p.sampler
	last := p.stages[len(p.stages)-1]
	if !last.ended && !last.shard.dead {
		p.breakAt(last.index, reason)
	}
	w.after(w.delay(), func() {
		if w.cut(p.router.node, sampler.node) {
			w.onHeal = append(w.onHeal, func() { p.breakSampler(reason) })
			return
		}
		p.router.awake(func() {
			if p.sampler == sampler {
				p.broke(reason, true)
			}
		})
	})
}

// overdue is called in the router when a deadline was missed.
func (p *pipe) overdue(c sched.Fail) {
	p.leave(fmt.Sprintf("step %d %s is late by %v", c.Step, c.ID, c.Late), c.Step == 0, true)
}

// broke is called in the router when a stream has broken.
func (p *pipe) broke(reason string, sampler bool) { p.leave(reason, sampler, false) }

// leave opens the pipeline again, or gives it up.
func (p *pipe) leave(reason string, sampler, late bool) {
	if p.dead {
		return
	}
	p.samplerGone = p.samplerGone || sampler
	if p.reopening {
		return
	}
	p.late = late
	if p.draft || p.fruitless >= maxFruitless {
		p.fail(reason)
		return
	}
	p.w.log("%s broke: %s", p.name, reason)
	p.reopening, p.cause = true, reason
	p.down.closed = true
	p.stages[0].later(p.router.node, (*stage).detach)
	limit := reopenLimit
	if p.spare {
		limit = reopenSpared
	}
	p.tryReopen(p.w.now + limit)
}

// tryReopen tries to open the pipeline again until a time, which is how long frames take there and back.
func (p *pipe) tryReopen(until time.Duration) {
	w := p.w
	p.router.after(time.Duration(2+2*len(p.chain))*w.delay(), func() {
		if p.dead {
			return
		}
		done, lost := p.reopen()
		switch {
		case done:
		case lost || w.now > until:
			p.fail(p.cause)
		default:
			p.router.after(reopenAgain, func() { p.tryReopen(until) })
		}
	})
}

// reopen opens the pipeline again. lost says that it cannot be opened any more.
func (p *pipe) reopen() (done, lost bool) {
	w, r := p.w, p.router
	sampler := p.sampler
	if p.samplerGone || sampler.dead {
		sampler = w.samplers[r.tries%len(w.samplers)]
		r.tries++
	}
	if sampler.dead || sampler.frozen || w.cut(r.node, sampler.node) {
		return false, false
	}
	chain, ok := p.replaceDead()
	if !ok {
		return false, true
	}
	before := r.node
	for _, span := range chain {
		s := w.shardOf(span)
		if s.frozen || w.cut(before, s.node) {
			return false, false
		}
		before = s.node
	}
	if w.cut(before, sampler.node) {
		return false, false
	}
	stages, replay := make([]*stage, len(chain)), 0
	for i, span := range chain {
		st := p.stages[i]
		if span == p.chain[i] {
			st.detach() // it may not have noticed yet
			stages[i] = st.resume()
		}
		if stages[i] == nil {
			replay = span.Hi
			if stages[i] = w.shardOf(span).open(p, i); stages[i] == nil {
				for _, o := range stages[:i] {
					o.up = &stream{w: w}
					o.end()
				}
				return false, true
			}
		}
	}
	p.reopened(chain, stages, sampler, replay)
	return true, false
}

// replaceDead returns the chain with free shards in the place of dead ones. It does not always try.
func (p *pipe) replaceDead() (plan.Chain, bool) {
	w, r := p.w, p.router
	var dead []int
	for i, span := range p.chain {
		if w.shardOf(span).dead {
			dead = append(dead, i)
		}
	}
	if len(dead) == 0 {
		return p.chain, true
	}
	var free []plan.Span
	for i, s := range w.shards {
		if r.alive[i] && r.held[i] && !r.used[s.span] && !s.dead {
			free = append(free, s.span)
		}
	}
	if w.chance(0.2) {
		return nil, false
	}
	return p.chain.Replace(dead, free)
}

// reopened joins the stages by streams and tells the scheduler.
func (p *pipe) reopened(chain plan.Chain, stages []*stage, sampler *sampler, replay int) {
	w, r := p.w, p.router
	for i, span := range chain {
		if span != p.chain[i] {
			delete(r.used, p.chain[i])
			r.held[w.shardOf(p.chain[i]).index] = false
			r.used[span] = true
		}
	}
	p.chain, p.stages = chain, stages
	p.join()
	resampled := p.samplerGone || sampler != p.sampler
	if resampled {
		p.toSampler.closed, p.fromSampler.closed = true, true
		if sampler != p.sampler {
			p.sampler.endLater(p)
		}
		p.sampler = sampler
		sampler.pipes[p] = map[sched.ID]*picker{}
		p.toSampler, p.fromSampler = p.stream(r.node, sampler.node), p.stream(sampler.node, r.node)
	}
	e := sched.Reopened{Sampler: resampled, ReplayUntil: replay}
	for _, st := range stages {
		e.Leases = append(e.Leases, sched.Lease{Lo: st.shard.span.Lo, Pages: st.lease.Resume()})
	}
	p.reopening, p.samplerGone = false, false
	p.fruitless++
	w.report.Reopened++
	if replay > 0 {
		w.report.Rebuilt++
		p.rebuilt = true
	}
	w.log("%s is open again over %v with %s, replay until %d", p.name, chain, sampler.name, replay)
	p.events = append(p.events, e)
	p.wake()
}

// join opens the streams between a pipeline's stages, and to the sampler.
func (p *pipe) join() {
	from := p.router.node
	for i, st := range p.stages {
		st.up = p.stream(st.shard.node, from)
		if i > 0 {
			st.prev = p.stages[i-1]
			st.prev.next = st
			st.prev.down = p.stream(from, st.shard.node)
		}
		from = st.shard.node
	}
	p.down = p.stream(p.router.node, p.stages[0].shard.node)
	p.stages[len(p.stages)-1].down = p.stream(from, p.sampler.node)
}

// blame passes on that a sequence may have been the cause when a stage was lost.
func (p *pipe) blame(b sched.Blame) {
	if q := p.seqs[b.ID]; q != nil && len(q.out) < q.limit {
		p.put(q, result{struck: p.cause, late: p.late, blame: b})
		return
	}
	p.events = append(p.events, sched.Proceed{ID: b.ID, Suspect: true})
	p.wake()
}
