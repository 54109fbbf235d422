package plan

import (
	"math"
	"slices"
)

// The search over many hosts treats all layers as average ones. Then only the numbers of layers count, and
// which hosts are first and last, because those hold the embedding and the head. The order of the others is
// free. The cuts of the chain that is found are then improved with the true sizes (recut).

// roles of a node in a chain, as a set.
const (
	isFirst = 1 << iota
	isLast
)

// average describes the layers of a job as if they were equal.
type average struct {
	n           int     // layers
	bytes       int64   // of one layer
	work        float64 // of one layer
	first, last int64   // what the first and the last stage hold in addition
	both        int64   // what a stage holds in addition that is both
	head        float64
	need        int // the roles to be taken
}

func (j *job) average(largest bool) average {
	m := j.model
	a := average{n: j.hi - j.lo}
	a.work = (j.works[j.hi] - j.works[j.lo]) / float64(a.n)
	a.bytes = (j.bytes[j.hi] - j.bytes[j.lo] + int64(a.n) - 1) / int64(a.n)
	if largest {
		for l := j.lo; l < j.hi; l++ {
			a.bytes = max(a.bytes, j.bytes[l+1]-j.bytes[l])
		}
	}
	a.bytes = max(a.bytes, 1)
	if j.lo == 0 {
		a.need |= isFirst
		a.first = m.Embedding
	}
	if j.hi == len(m.Layers) {
		a.need |= isLast
		a.last, a.head = m.Head, j.head
	}
	a.both = a.first + a.last
	if m.Tied && a.need == isFirst|isLast {
		a.both = a.first
	}
	return a
}

// most returns how many layers a node has room for in a role.
func (a *average) most(n *node, role int) int {
	room := n.room
	switch role {
	case isFirst:
		room -= a.first
	case isLast:
		room -= a.last
	case isFirst | isLast:
		room -= a.both
	}
	if room < a.bytes {
		return 0
	}
	return int(min(room/a.bytes, int64(a.n)))
}

// approxNodes is how many nodes the search for the shortest time looks at.
const approxNodes = 40

// candidates returns the indices of the nodes that may be in the best chain: for several numbers of layers,
// those that compute them in the least time a layer. Pinned nodes are always among them.
func (a *average) candidates(nodes []node, keep int) []int {
	all := make([]int, 0, len(nodes))
	for i := range nodes {
		if a.most(&nodes[i], 0) > 0 || nodes[i].pinned {
			all = append(all, i)
		}
	}
	if len(all) <= keep {
		return all
	}
	chosen := make([]bool, len(nodes))
	for _, i := range all {
		if nodes[i].pinned {
			chosen[i] = true
		}
	}
	var sizes []int
	for n := 1; n < a.n; n *= 2 {
		sizes = append(sizes, n)
	}
	sizes = append(sizes, a.n)
	// least marks the quota nodes of all that have the least keys and are not marked yet.
	least := func(quota int, key func(*node) float64) {
		type entry struct {
			key  float64
			node int
		}
		var lowest []entry // sorted
		for _, i := range all {
			if chosen[i] {
				continue
			}
			k := key(&nodes[i])
			if len(lowest) == quota && k >= lowest[quota-1].key {
				continue
			}
			at := len(lowest)
			for at > 0 && lowest[at-1].key > k {
				at--
			}
			lowest = slices.Insert(lowest, at, entry{k, i})
			lowest = lowest[:min(len(lowest), quota)]
		}
		for _, e := range lowest {
			chosen[e.node] = true
		}
	}
	for _, size := range slices.Backward(sizes) {
		least(max(1, keep/len(sizes)), func(n *node) float64 {
			layers := float64(min(size, max(1, a.most(n, 0))))
			return (n.hop+n.send)/layers + n.ms*a.work
		})
	}
	// Memory decides whether there is a chain at all.
	least(4, func(n *node) float64 { return -float64(n.room) })
	out := make([]int, 0, keep+4)
	for i := range nodes {
		if chosen[i] {
			out = append(out, i)
		}
	}
	return out
}

// approx finds a chain of short time: a dynamic program over the nodes, in which each takes some number of
// layers and roles, or nothing. Every stage costs penalty in addition to its time, or with fewest more than
// any time, which is how fewer stages are found. It returns the order of the nodes, or nil, and the cost.
func (a *average) approx(nodes []node, some []int, penalty float64, fewest bool) ([]int, float64) {
	width := a.n + 1
	const roles = 4
	best := make([]float64, roles*width)
	for i := range best {
		best[i] = math.Inf(1)
	}
	best[(isFirst|isLast)&^a.need*width] = 0
	type choice struct{ layers, role int16 }
	choices := make([]choice, len(some)*roles*width)
	next := slices.Clone(best)
	buffer := make([]int, 0, width)
	bonus := a.bonus(nodes, some)
	if fewest {
		penalty = bonus
	}
	for k, i := range some {
		node := &nodes[i]
		copy(next, best)
		chosen := choices[k*roles*width : (k+1)*roles*width]
		step := node.ms * a.work
		for role := range roles {
			most := a.most(node, role)
			if role&a.need != role || most == 0 || role == isFirst|isLast && most < a.n {
				continue
			}
			fixed := node.hop + penalty
			if role&isFirst == 0 {
				fixed += node.send
			}
			if role&isLast != 0 {
				fixed += node.ms * a.head
			}
			if node.pinned {
				fixed -= bonus * float64(len(some)+1)
			}
			for taken := range roles {
				if taken&role != 0 {
					continue
				}
				from, to := best[taken*width:(taken+1)*width], next[(taken|role)*width:(taken|role+1)*width]
				marks := chosen[(taken|role)*width : (taken|role+1)*width]
				// to[x] is the least from[l]+step*(x-l) over the last most values of l. A queue
				// of those l that may still become the least makes this linear.
				queue := buffer[:0]
				x := 1
				if role == isFirst|isLast { // a stage that is both has all layers
					queue, x = append(queue, 0), a.n
				}
				for ; x < width; x++ {
					if l := x - 1; !math.IsInf(from[l], 1) && role != isFirst|isLast {
						for len(queue) > 0 && from[queue[len(queue)-1]]+step*float64(l-queue[len(queue)-1]) >= from[l] {
							queue = queue[:len(queue)-1]
						}
						queue = append(queue, l)
					}
					if len(queue) > 0 && queue[0] < x-most {
						queue = queue[1:]
					}
					if len(queue) == 0 {
						continue
					}
					if c := from[queue[0]] + step*float64(x-queue[0]) + fixed; c < to[x] {
						to[x], marks[x] = c, choice{int16(x - queue[0]), int16(role)}
					}
				}
			}
		}
		best, next = next, best
	}
	at, l := isFirst|isLast, a.n
	cost := best[at*width+l]
	if math.IsInf(cost, 1) {
		return nil, cost
	}
	var order []int
	last := -1
	for k := len(some) - 1; k >= 0; k-- {
		c := choices[k*roles*width+at*width+l]
		if c.layers == 0 {
			continue
		}
		switch role := int(c.role); {
		case role&isFirst != 0:
			order = append([]int{some[k]}, order...)
			if role&isLast != 0 {
				last = -1
			}
		case role&isLast != 0:
			last = some[k]
		default:
			order = append(order, some[k])
		}
		at, l = at&^int(c.role), l-int(c.layers)
		if l == 0 {
			break
		}
	}
	if last >= 0 {
		order = append(order, last)
	}
	return order, cost
}

// bonus returns a time that is longer than that of any chain.
func (a *average) bonus(nodes []node, some []int) float64 {
	hop, ms := 0.0, 0.0
	for _, i := range some {
		hop, ms = max(hop, nodes[i].hop+nodes[i].send), max(ms, nodes[i].ms)
	}
	return 1 + hop*float64(min(a.n, len(some))) + ms*(a.work*float64(a.n)+a.head)
}
