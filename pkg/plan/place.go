package plan

import (
	"cmp"
	"math"
	"slices"
)

// Place returns the best plan for a request that starts from nothing. Models for which there is no chain are
// listed as uncovered. The error is Invalid and names the field.
func Place(r Request) (*Plan, error) {
	r, err := r.withDefaults()
	if err != nil {
		return nil, err
	}
	p := newPlacement(r)
	p.placeAll()
	return p.plan(), nil
}

// placement is a plan in the making.
type placement struct {
	r         Request
	jobs      []*job
	room      []int64 // bytes that are left on each host
	used      []int   // stages on each host
	pipelines [][]chainOf
}

// chainOf is a chain of the hosts of a request: node is the index of a host.
type chainOf struct {
	class string
	cuts  []cut
}

func newPlacement(r Request) *placement {
	p := &placement{r: r, room: make([]int64, len(r.Hosts)), used: make([]int, len(r.Hosts)),
		pipelines: make([][]chainOf, len(r.Models))}
	for i, h := range r.Hosts {
		p.room[i] = h.usable(r.Headroom)
	}
	for i := range r.Models {
		p.jobs = append(p.jobs, newJob(&r.Models[i]))
	}
	return p
}

// usable returns the bytes that a plan may use.
func (h *Host) usable(headroom float64) int64 { return int64(float64(h.Memory) * (1 - headroom)) }

// placeAll places all models.
func (p *placement) placeAll() {
	order := p.largestFirst()
	if p.r.Goal == Throughput {
		share := p.shares(order)
		for _, m := range order {
			p.placeMore(m, p.r.Models[m].Replicas, func(i int) bool { return share == nil || share[i] == m })
		}
	}
	for _, m := range order {
		if want := max(1, p.r.Models[m].Replicas); len(p.pipelines[m]) < want {
			p.placeMore(m, want, func(int) bool { return true })
		}
	}
}

// largestFirst returns the models in the order in which they are placed: a large one is harder to place. Those that
// yield come last.
func (p *placement) largestFirst() []int {
	order := make([]int, len(p.r.Models))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int {
		if x, y := p.r.Models[a].Yield, p.r.Models[b].Yield; x != y {
			if x {
				return 1
			}
			return -1
		}
		return -cmp.Compare(p.jobs[a].memory(0, p.jobs[a].hi), p.jobs[b].memory(0, p.jobs[b].hi))
	})
	return order
}

// shares divides the hosts between models by the memory that the models need, or returns nil for one model.
func (p *placement) shares(order []int) []int {
	if len(order) == 1 {
		return nil
	}
	hosts := make([]int, len(p.r.Hosts))
	for i := range hosts {
		hosts[i] = i
	}
	slices.SortStableFunc(hosts, func(a, b int) int { return -cmp.Compare(p.room[a], p.room[b]) })
	out, got := make([]int, len(hosts)), make([]float64, len(order))
	for _, i := range hosts {
		out[i] = -1
		for _, m := range order {
			if p.allowed(m, i) && (out[i] < 0 || got[m] < got[out[i]]) {
				out[i] = m
			}
		}
		if m := out[i]; m >= 0 {
			got[m] += float64(p.room[i]) / float64(p.jobs[m].memory(0, p.jobs[m].hi)+1)
		}
	}
	return out
}

// allowed reports whether a model may be on a host.
func (p *placement) allowed(m, host int) bool {
	h, model := &p.r.Hosts[host], &p.r.Models[m]
	return !slices.Contains(model.Avoid, h.ID) && (model.Zone == "" || model.Zone == h.Zone)
}

// classes returns the kernel classes that chains of a model may have, each with its hosts.
func (p *placement) classes(m int, keep func(int) bool) ([]string, map[string][]int) {
	hosts := map[string][]int{}
	var names []string
	for i := range p.r.Hosts {
		if p.room[i] <= 0 || !p.allowed(m, i) || !keep(i) {
			continue
		}
		class := p.r.Hosts[i].Class
		if p.r.Mix {
			class = ""
		}
		if hosts[class] == nil {
			names = append(names, class)
		}
		hosts[class] = append(hosts[class], i)
	}
	if p.r.Goal != Throughput || p.r.Models[m].Replicas == 1 {
		// There is one chain, which needs all pinned hosts. So its class is theirs.
		names = slices.DeleteFunc(names, func(class string) bool {
			for i := range p.r.Hosts {
				if slices.Contains(p.r.Models[m].Pin, p.r.Hosts[i].ID) && !slices.Contains(hosts[class], i) {
					return true
				}
			}
			return false
		})
	}
	slices.Sort(names)
	return names, hosts
}

// search returns a search for a job over some hosts, whose nodes are in the order of hosts.
func (p *placement) search(j *job, hosts []int) *search {
	s := &search{j: j, portion: max(1, len(p.r.Models)), approximate: p.r.approximate,
		rules: rules{atMost: j.model.AtMost, fewest: p.r.Goal == FewestHosts}}
	for _, i := range hosts {
		s.nodes = append(s.nodes, j.node(&p.r.Hosts[i], i, p.room[i], p.used[i]))
	}
	return s
}

// placeMore adds pipelines of a model until it has want of them, or as many as possible if want is 0. It uses
// hosts that keep returns true for and that no other pipeline of the model uses.
func (p *placement) placeMore(m, want int, keep func(int) bool) {
	taken := map[int]bool{}
	for _, chain := range p.pipelines[m] {
		for _, c := range chain.cuts {
			taken[c.node] = true
		}
	}
	names, hosts := p.classes(m, func(i int) bool { return keep(i) && !taken[i] })
	o, count := total, max(0, want-len(p.pipelines[m]))
	if p.r.Goal == Throughput {
		o = bottleneck
	}
	var best []found
	var choose func(class, count int, some []found)
	// Every division of the pipelines over kernel classes is tried if there are few of them.
	few := len(names) <= maxClasses
	options := make([][][]found, len(names))
	for k, class := range names {
		s := p.search(p.jobs[m], hosts[class])
		options[k] = [][]found{nil}
		for _, n := range counts(count, len(names), few) {
			var chains [][]cut
			if p.r.Goal == Throughput {
				chains = s.fleet(n)
			} else {
				chains = s.chains(n)
			}
			var all []found
			for _, chain := range chains {
				f := found{chainOf{class: class}, o.costOf(p.jobs[m], s.nodes, chain), 0}
				for _, c := range chain {
					host := hosts[class][c.node]
					f.cuts = append(f.cuts, cut{host, c.lo, c.hi})
					if slices.Contains(p.r.Models[m].Pin, p.r.Hosts[host].ID) {
						f.pinned++
					}
				}
				all = append(all, f)
			}
			options[k] = append(options[k], all)
		}
	}
	choose = func(k, left int, some []found) {
		if k == len(names) {
			if p.better(want, some, best) {
				best = slices.Clone(some)
			}
			return
		}
		for _, option := range options[k] {
			if want == 0 || len(option) <= left {
				choose(k+1, left-len(option), append(slices.Clip(some), option...))
			}
		}
	}
	if few {
		choose(0, count, nil)
	} else {
		best = p.firstOf(count, want, options)
	}
	slices.SortStableFunc(best, func(a, b found) int { return cmp.Compare(a.cost, b.cost) })
	pins := len(p.r.Models[m].Pin)
	for _, f := range best {
		pins -= f.pinned
	}
	if pins > 0 && len(p.pipelines[m]) == 0 {
		return // a pinned host cannot be used
	}
	for _, f := range best {
		p.take(m, f.chainOf)
	}
}

// found is a chain and its cost.
type found struct {
	chainOf
	cost   float64
	pinned int // stages on pinned hosts
}

// maxClasses is the largest number of kernel classes of which all divisions are tried.
const maxClasses = 4

// firstOf returns the best of all pipelines that were found, up to count, those on pinned hosts first.
func (p *placement) firstOf(count, want int, options [][][]found) []found {
	var all []found
	for _, option := range options {
		all = append(all, option[1]...)
	}
	slices.SortStableFunc(all, func(a, b found) int {
		if p.r.Goal == FewestHosts {
			return cmp.Or(cmp.Compare(b.pinned, a.pinned), cmp.Compare(len(a.cuts), len(b.cuts)),
				cmp.Compare(a.cost, b.cost))
		}
		return cmp.Or(cmp.Compare(b.pinned, a.pinned), cmp.Compare(a.cost, b.cost))
	})
	if want > 0 && len(all) > count {
		all = all[:count]
	}
	return all
}

// counts returns the numbers of pipelines to try for one of several classes.
func counts(count, classes int, few bool) []int {
	if classes == 1 || count <= 1 || count > 4 || !few {
		return []int{count}
	}
	out := make([]int, count)
	for i := range out {
		out[i] = i + 1
	}
	return out
}

// better compares the pipelines of a model: those on pinned hosts first, then by number if one is wanted, and
// then by the goal.
func (p *placement) better(want int, a, b []found) bool {
	type value struct {
		pinned, chains, hosts int
		rate, time            float64
	}
	measure := func(all []found) (v value) {
		for _, f := range all {
			v.pinned += f.pinned
			v.chains++
			v.hosts += len(f.cuts)
			v.rate += 1 / f.cost
			v.time += f.cost
		}
		return v
	}
	x, y := measure(a), measure(b)
	switch {
	case x.pinned != y.pinned:
		return x.pinned > y.pinned
	case p.r.Goal == Throughput && want == 0:
		return x.rate > y.rate*(1+1e-9)
	case x.chains != y.chains:
		return x.chains > y.chains
	case p.r.Goal == FewestHosts && x.hosts != y.hosts:
		return x.hosts < y.hosts
	case p.r.Goal == Throughput:
		return x.rate > y.rate*(1+1e-9)
	}
	return x.time < y.time*(1-1e-9)
}

// take adds a pipeline.
func (p *placement) take(m int, chain chainOf) {
	p.pipelines[m] = append(p.pipelines[m], chain)
	p.reserve(m, chain, 1)
}

// reserve takes a pipeline's memory from its hosts, or gives it back if sign is -1.
func (p *placement) reserve(m int, chain chainOf, sign int) {
	for _, c := range chain.cuts {
		p.room[c.node] -= int64(sign) * p.jobs[m].memory(c.lo, c.hi)
		p.used[c.node] += sign
	}
}

// plan returns the finished plan.
func (p *placement) plan() *Plan {
	out := &Plan{}
	kv := p.kvShares()
	for m := range p.r.Models {
		first := len(out.Pipelines)
		for k, chain := range p.pipelines[m] {
			out.Pipelines = append(out.Pipelines, p.pipeline(m, chain, kv[m][k]))
		}
		p.predict(m, out.Pipelines[first:])
		if len(p.pipelines[m]) == 0 {
			out.Uncovered = append(out.Uncovered, LeftOut{p.r.Models[m].Name, p.whyUncovered(m)})
		}
	}
	out.LeftOut = p.leftOut(out)
	return out
}

func (p *placement) pipeline(m int, chain chainOf, positions int) Pipeline {
	model, j := &p.r.Models[m], p.jobs[m]
	out := Pipeline{Model: model.Name, Digest: model.Digest, Class: chain.class, KVPositions: positions}
	for _, c := range chain.cuts {
		n := j.node(&p.r.Hosts[c.node], c.node, 0, 0)
		s := Stage{Host: p.r.Hosts[c.node].ID, Lo: c.lo, Hi: c.hi, HopMS: n.hop,
			MS: rested(n.ms*j.work(c.lo, c.hi), n.share, n.saved)}
		s.Memory = j.memory(c.lo, c.hi) + int64(c.hi-c.lo)*model.KVBytes*int64(positions-model.KVPositions)
		if c.lo > 0 {
			s.HopMS += n.send
		}
		out.Stages = append(out.Stages, s)
	}
	return out
}

// kvShares divides the memory that is left between the KV caches of the pipelines. It returns the positions of
// each pipeline.
func (p *placement) kvShares() [][]int {
	out := make([][]int, len(p.r.Models))
	room, stages := slices.Clone(p.room), slices.Clone(p.used)
	for m := range p.r.Models {
		model := &p.r.Models[m]
		for _, chain := range p.pipelines[m] {
			more := int64(model.MaxKVPositions - model.KVPositions)
			for _, c := range chain.cuts {
				if each := int64(c.hi-c.lo) * model.KVBytes; each > 0 {
					more = min(more, room[c.node]/int64(stages[c.node])/each)
				}
			}
			positions := model.KVPositions + int(max(0, more))
			if positions < model.MaxKVPositions {
				positions = max(model.KVPositions, positions/kvPage*kvPage)
			}
			for _, c := range chain.cuts {
				room[c.node] -= int64(c.hi-c.lo) * model.KVBytes * int64(positions-model.KVPositions)
				stages[c.node]--
			}
			out[m] = append(out[m], positions)
		}
	}
	return out
}

// predict fills in the predictions of all pipelines of a model.
func (p *placement) predict(m int, pipelines []Pipeline) {
	chains := p.pipelines[m]
	sum := 0.0
	for k := range pipelines {
		c := p.chain(m, chains[k])
		pipelines[k].Predicted = c.predict(p.r.Prompt)
		sum += pipelines[k].Predicted.SaturatedTPS
	}
	// Streams are divided by the rates of the pipelines.
	before, rates := 0, 0.0
	for k := range pipelines {
		predicted := &pipelines[k].Predicted
		rates += predicted.SaturatedTPS
		upTo := int(math.Round(float64(p.r.Streams) * rates / sum))
		predicted.Streams, before = upTo-before, upTo
		if predicted.Streams > 0 {
			predicted.StreamsTPS = p.chain(m, chains[k]).streams(predicted.Streams)
		}
	}
}
