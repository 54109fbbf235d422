package router

import (
	"sync"
	"time"

	"github.com/lamina-mesh/lamina/pkg/plan"
)

// What only shows in a whole token is learned from streams that are alone on their pipeline, and corrects the cost
// model of the plans that follow (plan.Calibration).

const (
	leastSingles = 32               // tokens of lone streams before their time counts
	keptFirsts   = 32               // first tokens of a pipeline
	correctMore  = 0.1              // by which an expectation has changed before it is written
	correctEvery = 10 * time.Second // default of Placement.Correct
)

// firstTokens keeps the latest first tokens of lone prompts on a pipeline.
type firstTokens struct {
	mu   sync.Mutex
	kept []plan.First
	n    int // that were added
}

func (f *firstTokens) add(t plan.First) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.kept) < keptFirsts {
		f.kept = append(f.kept, t)
	} else {
		f.kept[f.n%keptFirsts] = t
	}
	f.n++
}

// read returns them, and how many there were.
func (f *firstTokens) read() ([]plan.First, int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]plan.First(nil), f.kept...), f.n
}

// observeFirst notes the time to a first token, if the request was alone on its pipeline and all of its prompt was
// computed there.
func (q *request) observeFirst(a *attempt, cached int) {
	if cached > 0 || len(a.log) != len(q.prompt) || a.p.runningCount.Load() > 1 || a.p.waitingCount.Load() > 0 {
		return
	}
	ms := time.Since(q.arrived).Seconds() * 1000
	a.p.firsts.add(plan.First{PromptTokens: len(q.prompt), MS: ms})
}

// observed is how much of a pipeline's measurements has been taken into account.
type observed struct{ singles, firsts int }

// observe corrects the cost model by what pipelines of the plan have shown since the last time. current is the plan
// with predictions for what is known now.
func (l *leader) observe(current *plan.Plan) {
	for k := range current.Pipelines {
		pipeline := &current.Pipelines[k]
		p := l.openOf(pipeline)
		if p == nil {
			continue
		}
		stats := p.stats()
		firsts, n := p.firsts.read()
		before, o := l.observed[p.id], plan.Observation{Predicted: pipeline.Predicted}
		if stats.Singles >= leastSingles && stats.Singles != before.singles {
			before.singles = stats.Singles
			o.TokenMS = stats.Single.Seconds() * 1000
		}
		if n != before.firsts && stats.Singles >= leastSingles { // first tokens are predicted by what tokens have shown
			before.firsts = n
			o.Firsts = firsts
		}
		for _, s := range pipeline.Stages {
			ping := l.pingOf(s.Host)
			o.HopsMS += ping
			// Bytes of a row on a link of limited bandwidth take their time whatever the ping does.
			o.ComputeMS += s.MS + max(0, s.HopMS-l.calibration.Hop(ping))
		}
		if o.TokenMS > 0 || len(o.Firsts) > 0 {
			l.calibration.Observe(o)
			l.observed[p.id] = before
		}
	}
}

// openOf returns the open pipeline of a pipeline of the plan, or nil.
func (l *leader) openOf(planned *plan.Pipeline) *pipeline {
	want := chainOf(planned).String()
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	for _, p := range l.s.pipelines {
		if !p.draft && !p.dead() && p.digest == planned.Digest && p.hops().String() == want {
			return p
		}
	}
	return nil
}

// pingOf returns the measured time of the way to a host.
func (p *placer) pingOf(host string) float64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	if h := p.hosts[host]; h != nil {
		return h.hop.ms
	}
	return 0
}

// routerMS returns what a token takes besides stages and hops: as streams have shown, or before any has, the way to a
// sampler and back.
func (l *leader) routerMS() float64 {
	if l.calibration.Tokens > 0 {
		return l.calibration.RouterMS
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.samplerMS
}
