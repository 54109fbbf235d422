package plan

import (
	"math"
	"slices"
)

// job is a run of layers to be covered by one chain, in the terms of the search. It is a whole model,
// or the layers of a pipeline that have been lost.
type job struct {
	model  *Model
	lo, hi int
	bytes  []int64   // bytes[l] is the memory of the layers below l, with the least KV cache
	works  []float64 // works[l] is the work of the layers below l; an average layer has 1
	head   float64   // work of the head
	least  int64     // memory of the smallest stage
	mean   float64   // bytes that a row reads of an average layer
}

func newJob(m *Model) *job {
	j := &job{model: m, hi: len(m.Layers), bytes: make([]int64, len(m.Layers)+1),
		works: make([]float64, len(m.Layers)+1)}
	j.mean = m.mean()
	mean := j.mean
	for l, n := range m.Layers {
		j.bytes[l+1] = j.bytes[l] + n + m.KVBytes*int64(m.KVPositions)
		j.works[l+1] = j.works[l] + float64(m.Read[l])/mean
	}
	j.head = float64(m.Head) / mean
	j.least = j.memory(0, 1)
	for l := 1; l < j.hi; l++ {
		j.least = min(j.least, j.memory(l, l+1))
	}
	return j
}

// part returns the job of covering only the layers [lo,hi).
func (j *job) part(lo, hi int) *job {
	out := *j
	out.lo, out.hi = lo, hi
	return &out
}

// memory returns the bytes of the layers [lo,hi) with the least KV cache, embedding and head.
func (j *job) memory(lo, hi int) int64 {
	out := j.bytes[hi] - j.bytes[lo]
	if lo == 0 {
		out += j.model.Embedding
	}
	if hi == len(j.model.Layers) && (lo > 0 || !j.model.Tied) {
		out += j.model.Head
	}
	return out
}

// work returns the work of the layers [lo,hi) and the head. The embedding is a lookup, which is none.
func (j *job) work(lo, hi int) float64 {
	out := j.works[hi] - j.works[lo]
	if hi == len(j.model.Layers) {
		out += j.head
	}
	return out
}

// uniform reports whether all layers have the same size and work, so that only the first and the last
// place in a chain differ from the others.
func (j *job) uniform() bool {
	m := j.model
	for l := j.lo; l < j.hi; l++ {
		if m.Layers[l] != m.Layers[j.lo] || m.Read[l] != m.Read[j.lo] {
			return false
		}
	}
	return true
}

// node is a host in the terms of the search for one job.
type node struct {
	index  int     // of the host in the request
	ms     float64 // time of one row through a layer of work 1
	row    float64 // time of each further row
	share  float64 // of a stage's time that it needs in any case, with a quota; else 1
	saved  float64 // of a stage's time if it has waited before, with a quota
	hop    float64 // time of an empty frame to this host
	send   float64 // time of a row of the hidden state to this host; the first stage receives ids instead
	room   int64   // bytes that are left
	pinned bool
}

func (j *job) node(h *Host, index int, room int64, used int) node {
	m := j.model
	n := node{index: index, ms: h.LayerMS, row: h.RowMS, hop: h.HopMS, room: room,
		pinned: slices.Contains(m.Pin, h.ID)}
	if n.row == 0 {
		n.row = h.LayerMS * rowShare
	}
	// Stages of other pipelines on the host take turns with this one.
	scale := float64(1 + used)
	if h.LayerBytes > 0 {
		scale *= j.mean / float64(h.LayerBytes)
	}
	n.ms, n.row = n.ms*scale, n.row*scale
	n.share = 1
	if h.QuotaShare > 0 && h.QuotaShare < 1 {
		n.share, n.saved = h.QuotaShare, h.QuotaMS*(1-h.QuotaShare)
	}
	if h.Mbps > 0 {
		n.send = float64(m.HiddenBytes) * 8 / (h.Mbps * 1000)
	}
	return n
}

// objective is what a chain is judged by.
type objective int

const (
	total      objective = iota // the time of a token: the sum over all stages, with hops
	bottleneck                  // the time of a batch in the slowest stage
)

// cost returns a stage's part of the objective.
func (o objective) cost(n *node, work float64, first bool) float64 {
	send := n.send
	if first {
		send = 0
	}
	if o == total {
		return n.hop + send + rested(n.ms*work, n.share, n.saved)
	}
	return math.Max(n.batchMS()*work, batchRows*send)
}

// rested returns the time of a computation after a wait, such as that of a stage for the others. Without a wait, a host
// with a quota of processor time would take ms for it. In the middle of some period it can use all of the period's
// quota at once, and is then on average (1-share) of a period ahead of one that computes all the time. It cannot be
// faster than without a quota, which is share of the time.
func rested(ms, share, saved float64) float64 { return math.Max(share*ms, ms-saved) }

// add combines the cost of a chain with that of one more stage.
func (o objective) add(a, b float64) float64 {
	if o == total {
		return a + b
	}
	return math.Max(a, b)
}

// batchMS returns the time of a batch through a layer of work 1.
func (n *node) batchMS() float64 { return n.ms + (batchRows-1)*n.row }

// cut is a stage of a chain: layers on a node, by its index in the list that was searched.
type cut struct{ node, lo, hi int }

// costOf returns the cost of a chain.
func (o objective) costOf(j *job, nodes []node, chain []cut) float64 {
	out := 0.0
	for _, c := range chain {
		out = o.add(out, o.cost(&nodes[c.node], j.work(c.lo, c.hi), c.lo == 0))
	}
	return out
}

// recut returns the best cuts of a job over nodes in the given order, each of which gets a layer or more, and
// their cost. With skip, only pinned nodes have to get one. The cost is infinite if there are no such cuts.
func (o objective) recut(j *job, nodes []node, order []int, skip bool) ([]cut, float64) {
	// best[i][l] is the least cost of the layers below l on the first i nodes, by dynamic programming.
	n := j.hi - j.lo
	best := make([]float64, (len(order)+1)*(n+1))
	from := make([]int32, len(best)) // the first layer of the node's stage; -1 if the node is skipped
	for i := range best {
		best[i] = math.Inf(1)
	}
	best[0] = 0
	for i, at := range order {
		this, next, marks := best[i*(n+1):(i+1)*(n+1)], best[(i+1)*(n+1):(i+2)*(n+1)], from[(i+1)*(n+1):(i+2)*(n+1)]
		node := &nodes[at]
		if skip && !node.pinned {
			copy(next, this)
			for l := range marks {
				marks[l] = -1
			}
		}
		for a := range n {
			if math.IsInf(this[a], 1) {
				continue
			}
			for b := a + 1; b <= n && j.bytes[j.lo+b]-j.bytes[j.lo+a] <= node.room; b++ {
				if j.memory(j.lo+a, j.lo+b) > node.room {
					continue // the last layer of a tied model may need less together with the first
				}
				c := o.add(this[a], o.cost(node, j.work(j.lo+a, j.lo+b), j.lo+a == 0))
				if c < next[b] {
					next[b], marks[b] = c, int32(a)
				}
			}
		}
	}
	cost := best[len(order)*(n+1)+n]
	if math.IsInf(cost, 1) {
		return nil, cost
	}
	var chain []cut
	for i, b := len(order), n; i > 0; i-- {
		if a := int(from[i*(n+1)+b]); a >= 0 {
			chain = append(chain, cut{order[i-1], j.lo + a, j.lo + b})
			b = a
		}
	}
	slices.Reverse(chain)
	return chain, cost
}
