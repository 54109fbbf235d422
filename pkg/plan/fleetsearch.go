package plan

import (
	"cmp"
	"math"
	"slices"
)

// fleet is a division of nodes into groups, each of which will be a pipeline.
type fleet struct {
	*search
	average
	groups [][]int
	rates  []float64 // batches in a millisecond, for each group
	spare  []int     // nodes that no group has
}

// bestFleet forms groups in several ways, improves each, and returns the best: count groups, or as many as
// give the highest rate if count is 0.
func (s *search) bestFleet(a average, count int) *fleet {
	var best *fleet
	tries := improveTries
	if s.portion > 1 {
		tries = max(10, improveTries/(8*s.portion))
	}
	try := func(form func(*fleet)) {
		f := &fleet{search: s, average: a}
		form(f)
		f.improve(tries)
		if best == nil || count > 0 && len(f.groups) > len(best.groups) || f.total() > best.total() {
			best = f
		}
	}
	if count > 0 {
		try(func(f *fleet) { f.share(f.sorted((*node).batchMS), count) })
		return best
	}
	room := func(n *node) float64 { return -float64(n.room) }
	try(func(f *fleet) { f.form((*node).batchMS, true) })
	if len(s.nodes) > severalWays/min(s.portion, 4) {
		return best
	}
	try(func(f *fleet) { f.form(room, true) })
	try(func(f *fleet) { f.form((*node).batchMS, false) })
	for n := 1; n <= len(best.groups)+1; n++ {
		try(func(f *fleet) { f.share(f.sorted((*node).batchMS), n) })
	}
	return best
}

const (
	severalWays  = 48   // the largest number of nodes for which groups are formed in several ways
	improveTries = 1500 // the number of changes of groups that improve looks at
)

// total returns the rate of all groups together.
func (f *fleet) total() float64 {
	sum := 0.0
	for _, r := range f.rates {
		sum += r
	}
	return sum
}

// sorted returns the nodes with room for a layer by a key.
func (f *fleet) sorted(key func(*node) float64) []int {
	var out []int
	for i := range f.nodes {
		if f.most(&f.nodes[i], 0) > 0 {
			out = append(out, i)
		}
	}
	slices.SortStableFunc(out, func(a, b int) int { return cmp.Compare(key(&f.nodes[a]), key(&f.nodes[b])) })
	return out
}

// form makes groups of nodes that follow each other in the order of a key, each as small as possible. With
// alone, nodes with room for the whole model are groups of their own.
func (f *fleet) form(key func(*node) float64, alone bool) {
	var rest []int
	for _, i := range f.sorted(key) {
		if alone && f.most(&f.nodes[i], isFirst|isLast) == f.n {
			f.add([]int{i})
		} else {
			rest = append(rest, i)
		}
	}
	if f.rules.atMost > 0 { // only large hosts make short chains
		slices.SortStableFunc(rest, func(a, b int) int { return -cmp.Compare(f.nodes[a].room, f.nodes[b].room) })
	}
	var group []int
	for _, i := range rest {
		group = append(group, i)
		if f.rate(group) > 0 {
			f.add(group)
			group = nil
		}
	}
	f.spare = group
}

// share deals the nodes out to a number of groups, fast ones first, always to the group with the least room.
// If some groups cannot cover the model, then it tries fewer.
func (f *fleet) share(bySpeed []int, count int) {
	for ; count > 0; count-- {
		groups, speed := make([][]int, count), make([]float64, count)
		for _, i := range bySpeed {
			least := 0
			for g := range groups {
				if speed[g] < speed[least] {
					least = g
				}
			}
			groups[least] = append(groups[least], i)
			speed[least] += float64(f.most(&f.nodes[i], 0)) / f.nodes[i].batchMS()
		}
		if !slices.ContainsFunc(groups, func(g []int) bool { return f.rate(g) == 0 }) {
			for _, g := range groups {
				f.add(g)
			}
			return
		}
	}
	f.spare = bySpeed
}

func (f *fleet) add(group []int) {
	f.groups, f.rates = append(f.groups, group), append(f.rates, f.rate(group))
}

// rate returns the batches in a millisecond of the best chain over nodes of the group, or 0.
func (f *fleet) rate(group []int) float64 {
	slow := f.slowest(group)
	if math.IsInf(slow, 1) {
		return 0
	}
	return 1 / slow
}

// covers returns the number of layers that the nodes of a group compute within a time, with first and last
// stage, and the roles and numbers of layers of the nodes that do so. It may be more than there are.
func (f *fleet) covers(group []int, ms float64, role, layers []int) int {
	// most[r] is the largest number of layers if the roles r are taken.
	most := [4]int{-1, -1, -1, -1}
	most[(isFirst|isLast)&^f.need] = 0
	type step struct {
		before int8
		layers int32
	}
	var steps [][4]step
	if role != nil {
		steps = make([][4]step, len(group))
	}
	for k, i := range group {
		node := &f.nodes[i]
		batch := node.batchMS()
		next := most
		if steps != nil {
			for r := range steps[k] {
				steps[k][r].before = int8(r)
			}
		}
		for role := range 4 {
			if role&f.need != role || role&isFirst == 0 && batchRows*node.send > ms {
				continue
			}
			time := ms
			if role&isLast != 0 {
				time -= batch * f.head
			}
			n := min(f.most(node, role), int(math.Min(float64(f.n), time/(batch*f.work)+1e-9)))
			if time < 0 || n < 1 || role == isFirst|isLast && n < f.n { // a stage that is both has all layers
				continue
			}
			for taken, m := range most {
				if m >= 0 && taken&role == 0 && m+n > next[taken|role] {
					next[taken|role] = m + n
					if steps != nil {
						steps[k][taken|role] = step{int8(taken), int32(n)}
					}
				}
			}
		}
		most = next
	}
	if role != nil {
		at := isFirst | isLast
		for k := len(group) - 1; k >= 0; k-- {
			s := steps[k][at]
			role[k], layers[k] = at&^int(s.before), int(s.layers)
			at = int(s.before)
		}
	}
	return most[isFirst|isLast]
}

// slowest returns the shortest time of the slowest stage of a chain over the group, by bisection.
func (f *fleet) slowest(group []int) float64 {
	high := 0.0
	for _, i := range group {
		node := &f.nodes[i]
		high = max(high, node.batchMS()*(f.work*float64(f.n)+f.head), batchRows*node.send)
	}
	if f.covers(group, high, nil, nil) < f.n {
		return math.Inf(1)
	}
	low := 0.0
	for range 40 {
		if middle := (low + high) / 2; f.covers(group, middle, nil, nil) < f.n {
			low = middle
		} else {
			high = middle
		}
		if high-low < 1e-4*high {
			break
		}
	}
	return high
}

// cut returns the chain of a group.
func (f *fleet) cut(group []int) []cut {
	role, layers := make([]int, len(group)), make([]int, len(group))
	if f.covers(group, f.slowest(group), role, layers) < f.n {
		return nil
	}
	var order []int
	first, last, left := -1, -1, f.n
	for _, pass := range []bool{true, false} { // the first and the last stage are needed in any case
		for k, i := range group {
			if layers[k] == 0 || (role[k] != 0) != pass {
				continue
			}
			switch {
			case role[k]&isFirst != 0:
				first = i
			case role[k]&isLast != 0:
				last = i
			case left <= 0 || len(order) >= f.n-2:
				continue
			default:
				order = append(order, i)
			}
			left -= layers[k]
		}
	}
	if first >= 0 {
		order = append([]int{first}, order...)
	}
	if last >= 0 {
		order = append(order, last)
	}
	if n := len(group); n <= exactFits(f.n, f.portion*len(f.groups)) && !f.j.uniform() {
		some := make([]node, n)
		for k, i := range group {
			some[k] = f.nodes[i]
		}
		if chain, _ := bottleneck.exact(f.j, some).bestChain(f.rules); chain != nil {
			for i := range chain {
				chain[i].node = group[chain[i].node]
			}
			return chain
		}
	}
	if most := f.rules.atMost; most > 0 && len(order) > most {
		if order = nodesOf(f.only(group).approxChain()); len(order) == 0 {
			return nil
		}
	}
	chain, _ := bottleneck.recut(f.j, f.nodes, order, false)
	if chain == nil {
		chain = f.only(group).approxChain()
	}
	return chain
}

// improve gives spare nodes to groups and swaps nodes between groups while that raises the rate. It looks at
// no more changes than tries.
func (f *fleet) improve(tries int) {
	for again := true; again && tries > 0; {
		again = false
		for s := 0; s < len(f.spare); s++ {
			best, gain := -1, 1e-3
			for g := range f.groups {
				if tries--; tries < 0 {
					return
				}
				if n := len(f.groups[g]); n >= f.n || f.rules.atMost > 0 && n >= f.rules.atMost {
					continue
				}
				if d := f.rate(append(slices.Clone(f.groups[g]), f.spare[s])) - f.rates[g]; d > gain*f.rates[g] {
					best, gain = g, d/f.rates[g]
				}
			}
			if best >= 0 {
				f.groups[best] = append(f.groups[best], f.spare[s])
				f.rates[best] = f.rate(f.groups[best])
				f.spare = slices.Delete(f.spare, s, s+1)
				s--
				again = true
			}
		}
		again = f.merge(&tries) || again
		for a := range f.groups {
			for b := a + 1; b < len(f.groups); b++ {
				again = f.swap(a, b, &tries) || again
				if tries < 0 {
					return
				}
			}
		}
	}
}

// merge makes one group of two while that raises the rate.
func (f *fleet) merge(tries *int) bool {
	changed := false
	for a := 0; a < len(f.groups); a++ {
		for b := a + 1; b < len(f.groups); b++ {
			if *tries--; *tries < 0 {
				return changed
			}
			both := slices.Concat(f.groups[a], f.groups[b])
			if len(both) > f.n || f.rules.atMost > 0 && len(both) > f.rules.atMost {
				continue
			}
			if r := f.rate(both); r > (f.rates[a]+f.rates[b])*(1+1e-3) {
				f.groups[a], f.rates[a] = both, r
				f.groups, f.rates = slices.Delete(f.groups, b, b+1), slices.Delete(f.rates, b, b+1)
				b--
				changed = true
			}
		}
	}
	return changed
}

// swap exchanges and moves nodes between two groups while that raises their rates.
func (f *fleet) swap(a, b int, tries *int) bool {
	if len(f.groups[a]) == 1 && len(f.groups[b]) == 1 {
		return false
	}
	changed := false
	for x := range f.groups[a] {
		for y := range f.groups[b] {
			if *tries -= 2; *tries < 0 {
				return changed
			}
			p, q := f.groups[a], f.groups[b]
			p[x], q[y] = q[y], p[x]
			rp, rq := f.rate(p), f.rate(q)
			if rp > 0 && rq > 0 && rp+rq > (f.rates[a]+f.rates[b])*(1+1e-3) {
				f.rates[a], f.rates[b], changed = rp, rq, true
				continue
			}
			p[x], q[y] = q[y], p[x]
		}
	}
	// A node may also move from one group to the other.
	for _, way := range [][2]int{{a, b}, {b, a}} {
		for x := 0; x < len(f.groups[way[0]]); x++ {
			p, q := f.groups[way[0]], f.groups[way[1]]
			if *tries -= 2; *tries < 0 {
				return changed
			}
			if len(q) >= f.n || f.rules.atMost > 0 && len(q) >= f.rules.atMost {
				continue
			}
			less, more := slices.Delete(slices.Clone(p), x, x+1), append(slices.Clone(q), p[x])
			rp, rq := f.rate(less), f.rate(more)
			if rp > 0 && rp+rq > (f.rates[a]+f.rates[b])*(1+1e-3) {
				f.groups[way[0]], f.groups[way[1]] = less, more
				f.rates[way[0]], f.rates[way[1]] = rp, rq
				changed = true
				x--
			}
		}
	}
	return changed
}
