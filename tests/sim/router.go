package sim

import (
	"fmt"
	"slices"
	"time"

	"github.com/lamina-mesh/lamina/pkg/plan"
)

const (
	rebuildAfter = 500 * time.Millisecond // between tries to build pipelines
	openLimit    = 20 * time.Second
	probePrompt  = 16
	probeTokens  = 6
	probeRounds  = 2
	probeLimit   = 60 * time.Second
)

// router is a process that builds pipelines and runs requests on them.
type router struct {
	*node
	alive    []bool // by shard: what discovery says
	held     []bool // by shard: it was described
	used     map[plan.Span]bool
	pipes    []*pipe // that requests may use, in the order in which they were listed
	all      []*pipe // that are not lost
	waiters  []*request
	tries    int
	opened   int
	building bool
	stopped  bool // builds nothing any more
}

func (w *world) startRouter(r *router) {
	r.alive, r.held = make([]bool, len(w.shards)), make([]bool, len(w.shards))
	r.used = map[plan.Span]bool{}
	for i, s := range w.shards {
		r.after(w.between(0, 20*w.sc.Hop), func() { r.alive[i] = !s.dead; r.rebuild() })
	}
	r.tick()
}

func (r *router) tick() {
	r.after(rebuildAfter, func() { r.build(); r.tick() })
}

// rebuild builds soon.
func (r *router) rebuild() {
	if r.building {
		return
	}
	r.building = true
	r.after(r.w.sc.Hop, func() { r.building = false; r.build() })
}

// build describes shards and opens pipelines over those that are free.
func (r *router) build() {
	if r.stopped {
		return
	}
	w := r.w
	var spans []plan.Span
	for i, s := range w.shards {
		if !r.alive[i] {
			r.held[i] = false
			continue
		}
		if !r.held[i] {
			if !s.dead && !s.frozen && !w.cut(r.node, s.node) {
				r.held[i] = true
			} else {
				continue
			}
		}
		if !r.used[s.span] {
			spans = append(spans, s.span)
		}
	}
	if len(spans) == 0 {
		return
	}
	for _, chain := range plan.Chains(spans) {
		for _, span := range chain {
			r.used[span] = true
		}
		sampler := w.samplers[r.tries%len(w.samplers)]
		r.tries++
		r.after(w.delay()*time.Duration(2+2*len(chain)), func() { r.open(chain, sampler, 0) })
	}
}

// open opens a pipeline. While a process does not answer, it tries until the limit.
func (r *router) open(chain plan.Chain, sampler *sampler, waited time.Duration) {
	w := r.w
	broken, silent := sampler.dead, sampler.frozen || w.cut(r.node, sampler.node)
	before := r.node
	for _, span := range chain {
		s := w.shardOf(span)
		broken = broken || s.dead
		silent = silent || s.frozen || w.cut(before, s.node)
		before = s.node
	}
	silent = silent || w.cut(before, sampler.node)
	if silent && !broken && waited < openLimit {
		again := 500 * time.Millisecond
		r.after(again, func() { r.open(chain, sampler, waited+again) })
		return
	}
	if broken || silent {
		r.forget(chain)
		return
	}
	r.opened++
	p := &pipe{w: w, router: r, name: fmt.Sprintf("%s.p%d", r.name, r.opened), chain: chain, sampler: sampler,
		draft: chain.Digest() == draftDigest}
	w.log("open %s over %v with %s", p.name, chain, sampler.name)
	for i, span := range chain {
		st := w.shardOf(span).open(p, i)
		if st == nil {
			for _, o := range p.stages {
				o.up = &stream{w: w}
				o.end()
			}
			r.forget(chain)
			return
		}
		p.stages = append(p.stages, st)
	}
	p.join()
	p.toSampler, p.fromSampler = p.stream(r.node, sampler.node), p.stream(sampler.node, r.node)
	sampler.pipes[p] = map[schedID]*picker{}
	r.all = append(r.all, p)
	p.start()
	p.router.after(10*time.Millisecond, func() { w.probe(p) }) // after its first step
}

// list makes a pipeline known to requests, after its probe.
func (r *router) list(p *pipe) {
	if p.dead || p.listed {
		return
	}
	r.w.log("list %s", p.name)
	p.listed = true
	r.pipes = append(r.pipes, p)
	r.serveWaiters()
}

func (r *router) unlist(p *pipe) {
	r.pipes = slices.DeleteFunc(r.pipes, func(o *pipe) bool { return o == p })
	r.all = slices.DeleteFunc(r.all, func(o *pipe) bool { return o == p })
	r.forget(p.chain)
}

// forget makes the shards of a chain free and has them described again.
func (r *router) forget(chain plan.Chain) {
	for _, span := range chain {
		delete(r.used, span)
		r.held[r.w.shardOf(span).index] = false
	}
}

// hasSpare reports whether another pipeline could take over from p.
func (r *router) hasSpare(p *pipe) bool {
	if !p.listed {
		return false
	}
	for _, o := range r.pipes {
		if o != p && o.chain.Digest() == p.chain.Digest() {
			return true
		}
	}
	return false
}

// best returns the least loaded pipeline of a model that holds a log of the given length, or nil.
func (r *router) best(digest string, length int) *pipe {
	var best *pipe
	for _, p := range r.pipes {
		if p.chain.Digest() != digest || p.sched.ContextLength() < length {
			continue
		}
		if best == nil || p.assigned < best.assigned {
			best = p
		}
	}
	return best
}

// serveWaiters starts requests that wait for a pipeline.
func (r *router) serveWaiters() {
	for i := 0; i < len(r.waiters); {
		q := r.waiters[i]
		p := r.best(q.digest, q.length())
		if p == nil {
			i++
			continue
		}
		r.waiters = append(r.waiters[:i:i], r.waiters[i+1:]...)
		q.waits = 0
		q.submit(p)
	}
}
