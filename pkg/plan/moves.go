package plan

import (
	"cmp"
	"math"
	"slices"
)

// Action is what a host does in a move.
type Action int

// The actions.
const (
	Load Action = iota + 1
	Unload
)

// String returns the action's name.
func (a Action) String() string {
	if a == Load {
		return "load"
	}
	return "unload"
}

// Move is a change of the layers that a host holds.
type Move struct {
	Action Action
	Host   string
	Model  string // name
	Digest string
	Lo, Hi int
	Bytes  int64 // of weights that are loaded or unloaded
	// Step orders the moves: those of a step may run at once, after those of the steps before.
	Step int
}

// holding is a model on a host.
type holding struct{ host, digest string }

// Moves returns what has to be loaded and unloaded to get from one plan to another. Layers that a host holds
// already are not loaded again.
//
// The steps are: 0, unloads on hosts that have no room for what they load; then the loads, those of one
// pipeline in one step, and the pipelines in the order in which they can serve, models that no pipeline serves
// first; at last the other unloads. So what serves goes on serving as long as possible.
func Moves(r Request, from, to *Plan) ([]Move, error) {
	r, err := r.withDefaults()
	if err != nil {
		return nil, err
	}
	p := newPlacement(r)
	had, has := layersOf(from), layersOf(to)
	var out []Move
	add := func(action Action, host string, m int, layers []bool, step int) {
		model := &r.Models[m]
		for lo := 0; lo < len(layers); lo++ {
			if !layers[lo] {
				continue
			}
			hi := lo
			for hi < len(layers) && layers[hi] {
				hi++
			}
			move := Move{Action: action, Host: host, Model: model.Name, Digest: model.Digest, Lo: lo, Hi: hi,
				Step: step}
			for _, n := range model.Layers[lo:hi] {
				move.Bytes += n
			}
			if lo == 0 {
				move.Bytes += model.Embedding
			}
			if hi == len(model.Layers) && (lo > 0 || !model.Tied) {
				move.Bytes += model.Head
			}
			out = append(out, move)
			lo = hi
		}
	}
	index := map[string]int{}
	for m := range r.Models {
		index[r.Models[m].Digest] = m
	}
	loaded := map[holding][]bool{}
	for step, k := range p.order(from, to, had) {
		l := &to.Pipelines[k]
		m, known := index[l.Digest]
		if !known {
			continue
		}
		for _, s := range l.Stages {
			at := holding{s.Host, l.Digest}
			layers := make([]bool, len(r.Models[m].Layers))
			if loaded[at] == nil {
				loaded[at] = make([]bool, len(layers))
			}
			for i := s.Lo; i < s.Hi; i++ {
				layers[i] = !had[at].has(i) && !loaded[at][i]
				loaded[at][i] = loaded[at][i] || layers[i]
			}
			add(Load, s.Host, m, layers, step+1)
		}
	}
	hosts := map[string]bool{}
	usable := map[string]int64{}
	for _, h := range r.Hosts {
		hosts[h.ID], usable[h.ID] = true, h.usable(r.Headroom)
	}
	need := map[string]int64{} // bytes of what a host holds before and after, together
	for _, of := range []*Plan{from, to} {
		for _, l := range of.Pipelines {
			m, known := index[l.Digest]
			for _, s := range l.Stages {
				if known && s.Hi <= len(r.Models[m].Layers) && s.Lo < s.Hi {
					need[s.Host] += p.jobs[m].memory(s.Lo, s.Hi)
				}
			}
		}
	}
	for _, at := range sortedHoldings(had) {
		m, known := index[at.digest]
		if !hosts[at.host] || !known { // a host that is gone unloads nothing; an unknown model has no sizes
			continue
		}
		layers := make([]bool, len(r.Models[m].Layers))
		for i := range layers {
			layers[i] = had[at].has(i) && !has[at].has(i)
		}
		step := len(to.Pipelines) + 1
		if need[at.host] > usable[at.host] {
			step = 0
		}
		add(Unload, at.host, m, layers, step)
	}
	slices.SortStableFunc(out, func(a, b Move) int { return a.Step - b.Step })
	return out, nil
}

// order returns the pipelines in the order in which they are loaded: those of models that nothing serves
// first, then by the time that loading takes.
func (p *placement) order(from, to *Plan, had map[holding]layerSet) []int {
	served := map[string]bool{}
	hosts := map[string]*Host{}
	for i := range p.r.Hosts {
		hosts[p.r.Hosts[i].ID] = &p.r.Hosts[i]
	}
	for _, l := range from.Pipelines {
		if !slices.ContainsFunc(l.Stages, func(s Stage) bool { return hosts[s.Host] == nil }) {
			served[l.Digest] = true
		}
	}
	time := make([]float64, len(to.Pipelines))
	order := make([]int, len(to.Pipelines))
	for k, l := range to.Pipelines {
		order[k] = k
		for _, s := range l.Stages {
			missing := 0
			for i := s.Lo; i < s.Hi; i++ {
				if !had[holding{s.Host, l.Digest}].has(i) {
					missing++
				}
			}
			bytes := float64(s.Memory) * float64(missing) / float64(s.Hi-s.Lo)
			if h := hosts[s.Host]; h != nil && h.Mbps > 0 {
				bytes /= h.Mbps
			} else {
				bytes /= defaultMbps
			}
			time[k] = math.Max(time[k], bytes)
		}
	}
	slices.SortStableFunc(order, func(a, b int) int {
		x, y := served[to.Pipelines[a].Digest], served[to.Pipelines[b].Digest]
		if x != y {
			if y {
				return -1
			}
			return 1
		}
		return cmp.Compare(time[a], time[b])
	})
	return order
}

// defaultMbps is the assumed bandwidth of a host that says nothing of it.
const defaultMbps = 10_000

// layerSet says which layers of a model a host holds.
type layerSet []bool

func (s layerSet) has(i int) bool { return i < len(s) && s[i] }

func layersOf(p *Plan) map[holding]layerSet {
	out := map[holding]layerSet{}
	for _, l := range p.Pipelines {
		for _, s := range l.Stages {
			if s.Lo < 0 || s.Hi > maxLayers {
				continue
			}
			at := holding{s.Host, l.Digest}
			for len(out[at]) < s.Hi {
				out[at] = append(out[at], false)
			}
			for i := s.Lo; i < s.Hi; i++ {
				out[at][i] = true
			}
		}
	}
	return out
}

func sortedHoldings(of map[holding]layerSet) []holding {
	out := make([]holding, 0, len(of))
	for at := range of {
		out = append(out, at)
	}
	slices.SortFunc(out, func(a, b holding) int {
		return cmp.Or(cmp.Compare(a.host, b.host), cmp.Compare(a.digest, b.digest))
	})
	return out
}

// Loads returns the number of layers that a set of moves loads, and their bytes.
func Loads(moves []Move) (layers int, bytes int64) {
	for _, m := range moves {
		if m.Action == Load {
			layers, bytes = layers+m.Hi-m.Lo, bytes+m.Bytes
		}
	}
	return layers, bytes
}

// alignOrders is the largest number of stages of which all orders are tried.
const alignOrders = 6

// Align returns a plan as good as p, whose stages are in an order that moves few layers from the current plan.
func Align(r Request, p, current *Plan) *Plan {
	r, err := r.withDefaults()
	if err != nil {
		return p
	}
	had := layersOf(current)
	place := newPlacement(r)
	index := map[string]int{}
	for i, h := range r.Hosts {
		index[h.ID] = i
	}
	out := *p
	out.Pipelines = slices.Clone(p.Pipelines)
	for k, l := range out.Pipelines {
		m := slices.IndexFunc(r.Models, func(m Model) bool { return m.Digest == l.Digest })
		if m < 0 || len(l.Stages) < 2 {
			continue
		}
		best, chain := place.align(m, l, index, had, others(p, k))
		if best < keptLayers(l, had) {
			continue
		}
		aligned := place.pipeline(m, chainOf{l.Class, chain}, l.KVPositions)
		aligned.Predicted = l.Predicted
		t := place.chain(m, chainOf{l.Class, chain}).predict(r.Prompt)
		t.Streams, t.StreamsTPS = l.Predicted.Streams, l.Predicted.StreamsTPS
		aligned.Predicted = t
		out.Pipelines[k] = aligned
	}
	return &out
}

// others returns the memory that the other pipelines of a plan take on each host.
func others(p *Plan, pipeline int) map[string]int64 {
	out := map[string]int64{}
	for k, l := range p.Pipelines {
		for _, s := range l.Stages {
			if k != pipeline {
				out[s.Host] += s.Memory
			}
		}
	}
	return out
}

func keptLayers(l Pipeline, had map[holding]layerSet) int {
	n := 0
	for _, s := range l.Stages {
		for i := s.Lo; i < s.Hi; i++ {
			if had[holding{s.Host, l.Digest}].has(i) {
				n++
			}
		}
	}
	return n
}

// align returns the order of a pipeline's hosts that keeps most layers, and how many it keeps. Each host keeps
// its number of layers. It tries all orders of a few stages, and one order of many. others is the memory that
// other pipelines take.
func (p *placement) align(m int, l Pipeline, index map[string]int, had map[holding]layerSet,
	others map[string]int64) (int, []cut) {
	j := p.jobs[m]
	type part struct{ host, n int }
	parts := make([]part, len(l.Stages))
	for i, s := range l.Stages {
		parts[i] = part{index[s.Host], s.Hi - s.Lo}
	}
	best, bestCost := -1, 0.0
	var chain []cut
	limit := l.Predicted.TokenMS * (1 + 1e-6)
	if p.r.Goal == Throughput {
		limit = l.Predicted.TokenMS * 1.05
	}
	try := func(order []part) {
		cuts, at, kept := make([]cut, len(order)), 0, 0
		for i, x := range order {
			cuts[i] = cut{x.host, at, at + x.n}
			h := &p.r.Hosts[x.host]
			bytes := j.memory(at, at+x.n) + int64(x.n)*j.model.KVBytes*int64(l.KVPositions-j.model.KVPositions)
			if bytes+others[h.ID] > h.usable(p.r.Headroom) {
				return
			}
			for k := at; k < at+x.n; k++ {
				if had[holding{h.ID, l.Digest}].has(k) {
					kept++
				}
			}
			at += x.n
		}
		t := p.chain(m, chainOf{l.Class, cuts}).predict(p.r.Prompt)
		if t.TokenMS <= limit && t.SaturatedTPS*(1+1e-6) >= l.Predicted.SaturatedTPS &&
			(kept > best || kept == best && t.TokenMS < bestCost) {
			best, bestCost, chain = kept, t.TokenMS, cuts
		}
	}
	try(parts)
	if len(parts) > alignOrders {
		sorted := slices.Clone(parts)
		first := func(x part) int {
			set := had[holding{p.r.Hosts[x.host].ID, l.Digest}]
			return slices.Index(set, true)
		}
		slices.SortStableFunc(sorted, func(a, b part) int { return first(a) - first(b) })
		try(sorted)
		return best, chain
	}
	var permute func(k int)
	permute = func(k int) {
		if k == len(parts) {
			try(parts)
			return
		}
		for i := k; i < len(parts); i++ {
			parts[k], parts[i] = parts[i], parts[k]
			permute(k + 1)
			parts[k], parts[i] = parts[i], parts[k]
		}
	}
	permute(0)
	return best, chain
}
