package plan

import (
	"slices"
)

// Repair returns a plan that keeps what the current one has on hosts that are still there. Only layers whose
// hosts are gone, or have no room for them any more, are placed on other hosts. A pipeline whose gaps cannot
// be filled is dropped, and models that have none then are placed anew, if need be at the cost of the
// replicas of others, or of moving everything. Without a loss the plan stays the same.
func Repair(r Request, current *Plan) (*Plan, error) {
	r, err := r.withDefaults()
	if err != nil {
		return nil, err
	}
	p := newPlacement(r)
	broken := p.keep(current)
	slices.SortStableFunc(broken, func(a, b damage) int { return a.size() - b.size() })
	dropped := make([]int, len(r.Models))
	for _, d := range broken {
		if chain, ok := p.fill(d); ok {
			p.pipelines[d.model] = append(p.pipelines[d.model], chain)
		} else {
			dropped[d.model]++
		}
	}
	uncovered := 0
	for _, m := range p.largestFirst() {
		want := max(1, r.Models[m].Replicas)
		if had := len(p.pipelines[m]) + dropped[m]; r.Goal == Throughput && r.Models[m].Replicas == 0 && had > 0 {
			want = had // as many as there were
		}
		if len(p.pipelines[m]) < want {
			p.placeMore(m, want, all)
		}
		if len(p.pipelines[m]) == 0 && !p.placeForSurplus(m) && !r.Models[m].Yield {
			uncovered++
		}
	}
	if uncovered > 0 {
		fresh := newPlacement(r)
		fresh.placeAll()
		if fresh.missing() < uncovered {
			return Align(r, fresh.plan(), current), nil
		}
	}
	return p.plan(), nil
}

func all(int) bool { return true }

// missing returns the number of models without a pipeline, except those that yield.
func (p *placement) missing() int {
	n := 0
	for m, chains := range p.pipelines {
		if len(chains) == 0 && !p.r.Models[m].Yield {
			n++
		}
	}
	return n
}

// damage is a pipeline that has lost stages.
type damage struct {
	model int
	chain chainOf // the stages that are left, whose memory is reserved
	gaps  [][2]int
}

// size returns the number of layers that are lost.
func (d *damage) size() int {
	n := 0
	for _, g := range d.gaps {
		n += g[1] - g[0]
	}
	return n
}

// keep takes over the pipelines of a plan and returns those that have lost stages.
func (p *placement) keep(current *Plan) []damage {
	index := map[string]int{}
	for i, h := range p.r.Hosts {
		index[h.ID] = i
	}
	models := map[string]int{}
	for m := range p.r.Models {
		models[p.r.Models[m].Digest] = m
	}
	var out []damage
	for _, l := range current.Pipelines {
		m, known := models[l.Digest]
		if !known || len(l.Stages) == 0 || l.Stages[len(l.Stages)-1].Hi != p.jobs[m].hi {
			continue
		}
		if n := p.r.Models[m].Replicas; n > 0 && len(p.pipelines[m]) >= n {
			continue // fewer replicas are wanted now
		}
		d := damage{model: m, chain: chainOf{class: l.Class}}
		for _, s := range l.Stages {
			i, alive := index[s.Host]
			if alive && p.allowed(m, i) && (p.r.Mix || p.r.Hosts[i].Class == l.Class) &&
				p.room[i] >= p.jobs[m].memory(s.Lo, s.Hi) {
				d.chain.cuts = append(d.chain.cuts, cut{i, s.Lo, s.Hi})
				p.reserve(m, chainOf{cuts: []cut{{i, s.Lo, s.Hi}}}, 1)
				continue
			}
			if n := len(d.gaps); n > 0 && d.gaps[n-1][1] == s.Lo {
				d.gaps[n-1][1] = s.Hi
			} else {
				d.gaps = append(d.gaps, [2]int{s.Lo, s.Hi})
			}
		}
		if len(d.gaps) == 0 {
			p.pipelines[m] = append(p.pipelines[m], d.chain)
		} else {
			out = append(out, d)
		}
	}
	return out
}

// fill covers the gaps of a pipeline by hosts with room. The stages before and after a gap may take layers of
// it, too. If a gap cannot be covered, then it gives back the memory of the pipeline and returns false.
func (p *placement) fill(d damage) (chainOf, bool) {
	chain := chainOf{class: d.chain.class, cuts: slices.Clone(d.chain.cuts)}
	free := len(d.chain.cuts)
	for n, gap := range d.gaps {
		other := map[int]bool{} // a host has one stage of a pipeline, so other hosts of it are no choice
		for _, c := range chain.cuts {
			other[c.node] = c.hi != gap[0] && c.lo != gap[1]
		}
		var hosts []int
		for i := range p.r.Hosts {
			if p.room[i] > 0 && !other[i] && p.allowed(d.model, i) &&
				(p.r.Mix || p.r.Hosts[i].Class == chain.class) {
				hosts = append(hosts, i)
			}
		}
		s := p.search(p.jobs[d.model].part(gap[0], gap[1]), hosts)
		for i := range s.nodes {
			s.nodes[i].pinned = false
			for _, c := range chain.cuts {
				if c.node == hosts[i] { // a longer stage needs no further hop
					s.nodes[i].hop, s.nodes[i].send = 0, 0
				}
			}
		}
		if s.rules.atMost > 0 {
			s.rules.atMost = max(1, s.rules.atMost-free-(len(d.gaps)-1-n))
		}
		found := s.chain()
		if !p.join(d.model, &chain, gap, hosts, found) {
			p.reserve(d.model, chain, -1)
			return chainOf{}, false
		}
		free = len(chain.cuts)
	}
	if most := p.r.Models[d.model].AtMost; most > 0 && len(chain.cuts) > most {
		p.reserve(d.model, chain, -1)
		return chainOf{}, false
	}
	return chain, true
}

// join puts stages into the gap of a chain and merges those that are on one host. It returns false, and
// leaves the chain as it was, if there is none or a neighbour would have two stages.
func (p *placement) join(m int, chain *chainOf, gap [2]int, hosts []int, found []cut) bool {
	if found == nil {
		return false
	}
	cuts := slices.Clone(chain.cuts)
	for _, c := range found {
		cuts = append(cuts, cut{hosts[c.node], c.lo, c.hi})
	}
	slices.SortFunc(cuts, func(a, b cut) int { return a.lo - b.lo })
	merged := cuts[:0:0]
	seen := map[int]bool{}
	for _, c := range cuts {
		if n := len(merged); n > 0 && merged[n-1].node == c.node && merged[n-1].hi == c.lo {
			merged[n-1].hi = c.hi
			continue
		}
		if seen[c.node] { // the neighbour behind the gap has taken layers at its start
			return p.joinWithout(m, chain, gap, hosts, c.node)
		}
		seen[c.node] = true
		merged = append(merged, c)
	}
	p.reserve(m, *chain, -1)
	before := slices.Clone(p.room)
	p.reserve(m, chainOf{cuts: merged}, 1)
	for _, c := range merged {
		if p.room[c.node] < 0 { // first and last stage in one of a model that is not tied
			copy(p.room, before)
			for _, c := range merged {
				p.used[c.node]--
			}
			p.reserve(m, *chain, 1)
			return false
		}
	}
	chain.cuts = merged
	return true
}

// joinWithout fills a gap without a host.
func (p *placement) joinWithout(m int, chain *chainOf, gap [2]int, hosts []int, host int) bool {
	hosts = slices.DeleteFunc(slices.Clone(hosts), func(i int) bool { return i == host })
	s := p.search(p.jobs[m].part(gap[0], gap[1]), hosts)
	for i := range s.nodes {
		s.nodes[i].pinned = false
	}
	found := s.chain()
	for _, c := range found { // neighbours that are on another side than they should be
		for _, old := range chain.cuts {
			if old.node == hosts[c.node] && old.hi != c.lo && old.lo != c.hi {
				return p.joinWithout(m, chain, gap, hosts, old.node)
			}
		}
	}
	return p.join(m, chain, gap, hosts, found)
}

// placeForSurplus places a model in the memory of replicas that other models can do without.
func (p *placement) placeForSurplus(m int) bool {
	for other := range p.r.Models {
		for len(p.pipelines[other]) > 1 {
			last := len(p.pipelines[other]) - 1
			p.reserve(other, p.pipelines[other][last], -1)
			p.pipelines[other] = p.pipelines[other][:last]
			if p.placeMore(m, 1, all); len(p.pipelines[m]) > 0 {
				return true
			}
		}
	}
	return false
}
