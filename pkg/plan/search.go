package plan

import (
	"cmp"
	"math"
	"slices"
)

// search finds chains for one job over many nodes.
type search struct {
	j       *job
	nodes   []node
	rules   rules
	portion int // of exactWork, as 1/portion

	approximate bool // as in Request
}

// few reports whether there are so few nodes that the search is exact.
func (s *search) few() bool { return !s.approximate && s.fits() >= len(s.nodes) }

// fits returns how many nodes an exact search may have.
func (s *search) fits() int { return exactFits(s.j.hi-s.j.lo, s.portion) }

// chain returns the chain with the shortest time for a token, or nil if no chain covers the job.
func (s *search) chain() []cut {
	if s.few() {
		out, _ := total.exact(s.j, s.nodes).bestChain(s.rules)
		return out
	}
	return s.approxChain()
}

// approxChain is chain for more nodes than can be searched exactly.
func (s *search) approxChain() []cut {
	var best []cut
	cost := math.Inf(1)
	try := func(order []int, skip bool) {
		if len(order) == 0 {
			return
		}
		got, c := total.recut(s.j, s.nodes, order, skip)
		if got != nil && s.rules.better(c, len(got), cost, len(best)) {
			best, cost = got, c
		}
	}
	var order, some []int
	ideal := 0.0
	for _, largest := range []bool{true, false} {
		a := s.j.average(largest)
		some = a.candidates(s.nodes, approxNodes)
		if order, ideal = a.approx(s.nodes, some, 0, s.rules.fewest); order == nil {
			some = a.candidates(s.nodes, 8*approxNodes)
			order, ideal = a.approx(s.nodes, some, 0, s.rules.fewest)
		}
		try(order, false)
		if s.rules.atMost > 0 && len(order) > s.rules.atMost {
			fewest, _ := a.approx(s.nodes, some, 0, true)
			try(fewest, false)
			// Stages cost more and more until there are few enough.
			low, high := 0.0, a.bonus(s.nodes, some)
			for range 24 {
				middle := (low + high) / 2
				order, _ := a.approx(s.nodes, some, middle, false)
				if try(order, false); len(order) > s.rules.atMost {
					low = middle
				} else {
					high = middle
				}
			}
		}
		if best != nil && s.j.uniform() {
			return best
		}
	}
	// With sizes of an average layer the chain cannot be much better than this.
	if best != nil && cost <= ideal*(1+goodEnough) {
		return best
	}
	for _, order := range s.orders(order, some) {
		try(order, true)
	}
	return s.polish(best)
}

// goodEnough is how much longer than the shortest time for average layers a chain may take before other orders
// are tried.
const goodEnough = 0.005

// orders returns several orders of nodes, in which the best chain over unequal layers may be: with nodes that
// have been found to be good in front, by speed, by room, and mixed.
func (s *search) orders(found, some []int) [][]int {
	first := slices.Clone(found)
	for _, i := range some {
		if !slices.Contains(found, i) {
			first = append(first, i)
		}
	}
	by := func(key func(*node) float64) []int {
		out := slices.Clone(some)
		slices.SortStableFunc(out, func(a, b int) int { return cmp.Compare(key(&s.nodes[a]), key(&s.nodes[b])) })
		return out
	}
	out := [][]int{
		first, by(func(n *node) float64 { return n.ms }), by(func(n *node) float64 { return -n.ms }),
		by(func(n *node) float64 { return float64(n.room) }), by(func(n *node) float64 { return -float64(n.room) }),
	}
	random := uint64(1)
	for range 8 {
		mixed := slices.Clone(first)
		for i := len(mixed) - 1; i > 0; i-- {
			random = random*6364136223846793005 + 1442695040888963407 // Knuth's linear congruential generator
			k := int(random>>33) % (i + 1)
			mixed[i], mixed[k] = mixed[k], mixed[i]
		}
		out = append(out, mixed)
	}
	return out
}

// polish improves a chain over unequal layers: it tries all orders of its nodes and of a few others, as long
// as these are few.
func (s *search) polish(best []cut) []cut {
	fits := s.fits()
	if len(best) > fits {
		return best
	}
	some := make([]int, 0, fits)
	for _, c := range best {
		some = append(some, c.node)
	}
	a := s.j.average(false)
	others := a.candidates(s.nodes, approxNodes)
	slices.SortStableFunc(others, func(x, y int) int { return cmp.Compare(s.nodes[x].ms, s.nodes[y].ms) })
	for _, i := range others {
		if len(some) < fits && !slices.Contains(some, i) {
			some = append(some, i)
		}
	}
	few := make([]node, len(some))
	for k, i := range some {
		few[k] = s.nodes[i]
	}
	if pins(few) == 0 && slices.ContainsFunc(s.nodes, func(n node) bool { return n.pinned }) {
		return best
	}
	got, _ := total.exact(s.j, few).bestChain(s.rules)
	if got == nil {
		return best
	}
	for i := range got {
		got[i].node = some[got[i].node]
	}
	return got
}

// chains returns chains of the shortest time, up to count, each over nodes that the others do not use.
func (s *search) chains(count int) [][]cut {
	if s.few() && count > 1 && !s.rules.fewest {
		return total.exact(s.j, s.nodes).bestGroups(s.rules, count, func(c float64) float64 { return -c })
	}
	var out [][]cut
	for left := s.without(nil); len(out) < count; left = left.without(out[len(out)-1]) {
		got := left.chain()
		if got == nil {
			break
		}
		out = append(out, got)
	}
	return out
}

// without returns a search in which the nodes of a chain have no room, so that indices stay the same.
func (s *search) without(chain []cut) *search {
	out := *s
	out.nodes = slices.Clone(s.nodes)
	for _, c := range chain {
		out.nodes[c.node].room, out.nodes[c.node].pinned = 0, false
	}
	return &out
}

// fleet returns chains that give the highest rate together.
func (s *search) fleet(count int) [][]cut {
	rate := func(ms float64) float64 { return batchRows / ms }
	if s.few() {
		return bottleneck.exact(s.j, s.nodes).bestGroups(s.rules, count, rate)
	}
	return s.approxFleet(count)
}

// approxFleet is fleet for more nodes than can be searched exactly. A host with room for the whole model is a
// pipeline of its own, since a chain is never faster than its hosts on their own would be together. The
// others are grouped in the order of their speeds, so that no stage waits much for another.
func (s *search) approxFleet(count int) [][]cut {
	var out [][]cut
	rest := s
	if slices.ContainsFunc(s.nodes, func(n node) bool { return n.pinned }) {
		// All pinned hosts are in the first pipeline.
		chain := s.approxChain()
		if chain == nil {
			return nil
		}
		rest = s.without(chain)
		if order := nodesOf(chain); len(order) > 0 {
			chain, _ = bottleneck.recut(s.j, s.nodes, order, false)
		}
		if out = append(out, chain); count == 1 {
			return out
		}
		count = max(0, count-1)
	}
	f := rest.bestFleet(rest.j.average(true), count)
	if len(f.groups) == 0 {
		f = rest.bestFleet(rest.j.average(false), count)
	}
	for _, g := range f.groups {
		if chain := f.cut(g); chain != nil {
			out = append(out, chain)
		}
	}
	if len(out) == 0 {
		if chain := rest.approxChain(); chain != nil {
			out = append(out, chain)
		}
	}
	return out
}

func nodesOf(chain []cut) []int {
	out := make([]int, len(chain))
	for i, c := range chain {
		out[i] = c.node
	}
	return out
}

// only returns a search over some of the nodes. The others have no room, so that indices stay the same.
func (s *search) only(some []int) *search {
	out := *s
	out.nodes = slices.Clone(s.nodes)
	for i := range out.nodes {
		if !slices.Contains(some, i) {
			out.nodes[i].room, out.nodes[i].pinned = 0, false
		}
	}
	return &out
}
