package plan

import (
	"math"
	"math/bits"
)

// exactTable holds the best chain over every set of a few nodes, in every order and with all cuts.
type exactTable struct {
	j     *job
	o     objective
	nodes []node
	n     int       // layers
	cost  []float64 // cost[mask*(n+1)+l]: of the first l layers over all nodes of mask
	from  []int32   // the last stage of that: its node and first layer
}

// exactWork bounds the time of a table: the number of combinations of set, node and cuts.
const exactWork = 12 << 20

// exactFits returns how many nodes a table may have for n layers within 1/share of exactWork.
func exactFits(n, share int) int {
	k := 1
	for k < 8 && (1<<(k+1))*(k+1)*n*(n+1)/2 <= exactWork/share {
		k++
	}
	return k
}

// exact fills in the table by dynamic programming over sets: the last stage of the best chain over a set is
// on one of its nodes, and the stages before it are the best chain over the others.
func (o objective) exact(j *job, nodes []node) *exactTable {
	n := j.hi - j.lo
	t := &exactTable{j: j, o: o, nodes: nodes, n: n, cost: make([]float64, (n+1)<<len(nodes))}
	t.from = make([]int32, len(t.cost))
	for i := range t.cost {
		t.cost[i] = math.Inf(1)
	}
	t.cost[0] = 0
	for mask := 1; mask < 1<<len(nodes); mask++ {
		next := t.cost[mask*(n+1) : (mask+1)*(n+1)]
		for i := range nodes {
			if mask>>i&1 == 0 {
				continue
			}
			before := mask &^ (1 << i)
			this := t.cost[before*(n+1) : (before+1)*(n+1)]
			for a := bits.OnesCount(uint(before)); a < n; a++ {
				if math.IsInf(this[a], 1) {
					continue
				}
				for b := a + 1; b <= n; b++ {
					if j.memory(j.lo+a, j.lo+b) > nodes[i].room {
						continue
					}
					c := o.add(this[a], o.cost(&nodes[i], j.work(j.lo+a, j.lo+b), j.lo+a == 0))
					if c < next[b] {
						next[b], t.from[mask*(n+1)+b] = c, int32(i<<16|a)
					}
				}
			}
		}
	}
	return t
}

// of returns the cost of the best chain over a set of nodes.
func (t *exactTable) of(mask int) float64 { return t.cost[mask*(t.n+1)+t.n] }

// chain returns the best chain over a set.
func (t *exactTable) chain(mask int) []cut {
	out := make([]cut, bits.OnesCount(uint(mask)))
	for i, b := len(out), t.n; i > 0; i-- {
		from := t.from[mask*(t.n+1)+b]
		at, a := int(from>>16), int(from&0xffff)
		out[i-1] = cut{at, t.j.lo + a, t.j.lo + b}
		mask, b = mask&^(1<<at), a
	}
	return out
}

// pins returns the set of pinned nodes.
func pins(nodes []node) int {
	out := 0
	for i := range nodes {
		if nodes[i].pinned {
			out |= 1 << i
		}
	}
	return out
}

// rules are what a chain has to comply with.
type rules struct {
	atMost int  // stages; 0 for any number
	fewest bool // prefer fewer stages to less time
}

// better compares a chain of a cost and number of stages with the best one so far.
func (r rules) better(cost float64, stages int, best float64, bestStages int) bool {
	switch {
	case math.IsInf(cost, 1) || r.atMost > 0 && stages > r.atMost:
		return false
	case math.IsInf(best, 1):
		return true
	case r.fewest && stages != bestStages:
		return stages < bestStages
	case math.Abs(cost-best) <= 1e-9*best:
		return stages < bestStages
	}
	return cost < best
}

// bestChain returns the best chain over any set with all pinned nodes, or nil.
func (t *exactTable) bestChain(r rules) ([]cut, float64) {
	must, best, at := pins(t.nodes), math.Inf(1), 0
	for mask := 1; mask < 1<<len(t.nodes); mask++ {
		if mask&must == must &&
			r.better(t.of(mask), bits.OnesCount(uint(mask)), best, bits.OnesCount(uint(at))) {
			best, at = t.of(mask), mask
		}
	}
	if at == 0 {
		return nil, best
	}
	return t.chain(at), best
}

// bestGroups returns the best chains over disjoint sets. value says what a chain of a cost is worth; their
// sum is to be as large as possible. count is the number of chains; if it is 0, then any number will do. If
// there is no division into count chains, then it returns as many as possible.
func (t *exactTable) bestGroups(r rules, count int, value func(cost float64) float64) [][]cut {
	all, never := 1<<len(t.nodes), math.Inf(-1)
	worth := make([]float64, all)
	for mask := range worth {
		worth[mask] = never
		if c := t.of(mask); mask > 0 && !math.IsInf(c, 1) &&
			(r.atMost == 0 || bits.OnesCount(uint(mask)) <= r.atMost) {
			worth[mask] = value(c)
		}
	}
	limit := len(t.nodes)
	if count > 0 {
		limit = min(limit, count)
	}
	// best[k][mask] is what the best division of all nodes of mask into k chains is worth, and last[k][mask]
	// one of its chains: the one with the lowest node.
	best, last := [][]float64{make([]float64, all)}, [][]int{nil}
	for mask := 1; mask < all; mask++ {
		best[0][mask] = never
	}
	for k := 1; k <= limit; k++ {
		row, sets := make([]float64, all), make([]int, all)
		row[0] = never
		for mask := 1; mask < all; mask++ {
			row[mask] = never
			low := mask & -mask
			rest := mask &^ low
			for sub := rest; ; sub = (sub - 1) & rest {
				if v := best[k-1][rest&^sub] + worth[sub|low]; v > row[mask] {
					row[mask], sets[mask] = v, sub|low
				}
				if sub == 0 {
					break
				}
			}
		}
		best, last = append(best, row), append(last, sets)
	}
	must, at, k, top := pins(t.nodes), 0, 0, never
	for n := limit; n >= 1 && (at == 0 || count == 0); n-- {
		for mask := 1; mask < all; mask++ {
			v := best[n][mask]
			if mask&must != must || math.IsInf(v, -1) {
				continue
			}
			eps := 1e-9 * math.Abs(top)
			fewer := bits.OnesCount(uint(mask)) < bits.OnesCount(uint(at))
			if at == 0 || v > top+eps || v > top-eps && fewer {
				at, k, top = mask, n, v
			}
		}
	}
	var out [][]cut
	for ; k > 0; k-- {
		set := last[k][at]
		out = append(out, t.chain(set))
		at &^= set
	}
	return out
}
