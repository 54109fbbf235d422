package plan

import (
	"fmt"
	"slices"
)

// leftOut lists the hosts that the plan does without, with reasons.
func (p *placement) leftOut(plan *Plan) []LeftOut {
	var out []LeftOut
	inUse := map[string]bool{}
	for _, l := range plan.Pipelines {
		for _, s := range l.Stages {
			inUse[s.Host] = true
		}
	}
	for i, h := range p.r.Hosts {
		if inUse[h.ID] {
			continue
		}
		// The reason for the model that is nearest to having a use for the host.
		rank, reason := -1, "there is no model to place"
		for m := range p.r.Models {
			if n, text := p.whyNot(m, i, plan); n > rank {
				rank, reason = n, text
			}
		}
		out = append(out, LeftOut{h.ID, reason})
	}
	return out
}

// whyNot returns why a model does not use a host, and how near it comes to using it.
func (p *placement) whyNot(m, host int, plan *Plan) (int, string) {
	h, model, j := &p.r.Hosts[host], &p.r.Models[m], p.jobs[m]
	if slices.Contains(model.Avoid, h.ID) {
		return 0, fmt.Sprintf("model %s avoids it", model.Name)
	}
	if !p.allowed(m, host) {
		return 0, fmt.Sprintf("its zone is %q, and model %s wants %q", h.Zone, model.Name, model.Zone)
	}
	least := j.least
	if room := h.usable(p.r.Headroom); room < least {
		return 1, fmt.Sprintf("not enough memory: %s are usable, and a layer with its KV cache takes %s", size(room),
			size(least))
	}
	var same []int // pipelines whose class the host has
	for k := range plan.Pipelines {
		if l := &plan.Pipelines[k]; l.Digest == model.Digest && (p.r.Mix || l.Class == h.Class) {
			same = append(same, k)
		}
	}
	if len(p.pipelines[m]) == 0 {
		return 2, fmt.Sprintf("model %s has no pipeline: %s", model.Name, p.whyUncovered(m))
	}
	if len(same) == 0 {
		return 2, fmt.Sprintf("its kernel class is %q, and that of the pipelines of %s is %q; classes are not mixed",
			h.Class, model.Name, p.pipelines[m][0].class)
	}
	if p.r.Goal == Throughput {
		return 4, "it would not raise the rate: " + p.slower(j, host, &plan.Pipelines[same[0]])
	}
	return 3, p.slower(j, host, &plan.Pipelines[same[0]])
}

// slower says what a token would take if a host had a layer of a pipeline: one that it takes from the stage
// where that costs least.
func (p *placement) slower(j *job, host int, l *Pipeline) string {
	n := j.node(&p.r.Hosts[host], host, 0, 0)
	least := 0.0
	for i, s := range l.Stages {
		other := s.MS / j.work(s.Lo, s.Hi)
		more := n.hop + n.send + n.ms - other
		if s.Hi-s.Lo == 1 { // it would take the stage's place
			more -= s.HopMS
		}
		if i == 0 || more < least {
			least = more
		}
	}
	if least <= 0 {
		if len(l.Stages) == 1 {
			return "not needed: 1 host is enough"
		}
		return fmt.Sprintf("not needed: %d hosts are enough", len(l.Stages))
	}
	return fmt.Sprintf("it would slow the chain: a token would take at least %.3g ms and takes %.3g ms without it",
		l.Predicted.TokenMS+least, l.Predicted.TokenMS)
}

// whyUncovered returns why a model has no pipeline.
func (p *placement) whyUncovered(m int) string {
	j := p.jobs[m]
	room := map[string]int64{} // by kernel class
	for i, h := range p.r.Hosts {
		if !p.allowed(m, i) {
			continue
		}
		class := h.Class
		if p.r.Mix {
			class = ""
		}
		room[class] += max(0, p.room[i])
	}
	if len(room) == 0 {
		return "no host is allowed for it"
	}
	most := int64(0)
	for _, n := range room {
		most = max(most, n)
	}
	if need := j.memory(0, j.hi); most < need {
		return fmt.Sprintf("not enough memory: %s are usable on hosts of one kernel class, and it takes %s with %d "+
			"positions of KV cache", size(most), size(need), j.model.KVPositions)
	}
	if len(j.model.Pin) > 0 {
		return "no chain over its pinned hosts has room for every layer"
	}
	return "no chain of hosts has room for every layer"
}

// size returns a number of bytes for people to read.
func size(n int64) string {
	switch {
	case n >= 10<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 10<<20:
		return fmt.Sprintf("%.0f MiB", float64(n)/(1<<20))
	}
	return fmt.Sprintf("%.0f KiB", float64(n)/(1<<10))
}
