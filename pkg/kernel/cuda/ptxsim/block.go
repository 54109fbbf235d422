package ptxsim

import (
	"fmt"
	"strings"
)

// slice is how many instructions a warp executes before the next one runs, so that a warp that waits for another by
// reading memory does not run forever.
const slice = 4096

// shape is the shape of a launch.
type shape struct{ grid, block [3]int }

func (s shape) index(number int) [3]int {
	return [3]int{number % s.grid[0], number / s.grid[0] % s.grid[1], number / s.grid[0] / s.grid[1]}
}

// block is a block of threads while it runs. A block is used again for others, one after another.
type block struct {
	k       *kernel
	m       *Module
	shape   shape
	table   table
	params  []byte
	number  int
	index   [3]int
	threads int
	warps   []*warp
	steps   uint64

	shared   []byte
	barriers [16]barrier

	gen    uint32
	cells  []cell // of shared memory
	nodes  []node
	free   int32
	pages  map[uint64]*page
	order  []*page // pages in the order of their first access
	recent [256]*page
	spare  []*page
}

// thread returns the index of a thread within the block.
func (b *block) thread(n int) [3]int {
	s := b.shape.block
	return [3]int{n % s[0], n / s[0] % s[1], n / s[0] / s[1]}
}

// launch is what the blocks of a launch share.
type launch struct {
	m      *Module
	k      *kernel
	shape  shape
	shared int // bytes, static and dynamic
	params []byte
	table  table
	steps  uint64
}

// run executes a block. It returns the first fault.
func (b *block) run(l *launch, number int) *Fault {
	b.k, b.m, b.shape, b.table, b.params = l.k, l.m, l.shape, l.table, l.params
	b.number, b.index = number, l.shape.index(number)
	b.threads = l.shape.block[0] * l.shape.block[1] * l.shape.block[2]
	b.steps = 0
	b.gen++
	b.nodes, b.free = b.nodes[:0], 0
	if b.pages == nil {
		b.pages = map[uint64]*page{}
	}
	if len(b.shared) < l.shared {
		b.shared = make([]byte, l.shared)
	}
	b.shared = b.shared[:l.shared]
	if n := (l.shared + 1<<b.k.granule - 1) >> b.k.granule; len(b.cells) < n {
		b.cells = make([]cell, n)
	}
	b.barriers = [16]barrier{}
	n := (b.threads + warpSize - 1) / warpSize
	for len(b.warps) < n {
		b.warps = append(b.warps, &warp{})
	}
	for i, w := range b.warps[:n] {
		w.reset(b, i)
	}
	return b.loop(b.warps[:n], l.steps)
}

// loop runs the warps in turn until all have ended.
func (b *block) loop(warps []*warp, limit uint64) *Fault {
	for {
		ran, left := false, false
		for _, w := range warps {
			if w.done() {
				continue
			}
			left = true
			if w.wait != nil {
				continue
			}
			ran = true
			b.steps += uint64(w.run(slice))
			if w.fault == nil && b.steps > limit {
				w.failf(CheckSteps, 0, "the block executed more than %d warp instructions", limit)
			}
			if w.fault != nil {
				return w.fault
			}
		}
		if !left {
			return nil
		}
		if !ran {
			return b.stuck(warps)
		}
	}
}

// stuck reports a barrier at which warps wait for others that do not come.
func (b *block) stuck(warps []*warp) *Fault {
	var first *warp
	var others []string
	for _, w := range warps {
		switch {
		case w.wait == nil:
			others = append(others, fmt.Sprintf("warp %d has exited", w.id))
		case first == nil:
			first = w
		case w.wait != first.wait:
			others = append(others, fmt.Sprintf("warp %d waits at barrier %d, line %d", w.id, w.wait.id,
				b.k.code[w.pc].line))
		}
	}
	first.failf(CheckBarrier, 0, "barrier %d has %d of %d threads and no other will arrive: %s", first.wait.id,
		first.wait.arrived, first.wait.count, strings.Join(others, ", "))
	return first.fault
}

// barrier is a named barrier of the block.
type barrier struct {
	id      int
	count   int // threads that complete it; 0 if no thread has arrived
	arrived int
	known   [warpSize]uint32 // what the warps that arrived know
	waiting []*warp
	popc    int
	and, or bool
}

// barrierRequest is what an instruction asks of a barrier.
type barrierRequest struct {
	votes  uint32                              // lanes whose predicate is true
	result func(w *warp, n int, all, any bool) // of bar.red
}

// arrive is bar.sync and bar.arrive by a whole warp. A count of 0 means all threads of the block.
func (b *block) arrive(w *warp, m uint32, id, count uint64, wait bool) {
	switch {
	case m != w.all:
		where := "in other code"
		if w.live&^m == 0 {
			where = "exited"
		}
		w.failf(CheckBarrier, 0, "lanes %#x of the warp execute the barrier, and lanes %#x are %s", m, w.all&^m, where)
		return
	case id >= uint64(len(b.barriers)):
		w.failf(CheckBarrier, 0, "barrier %d is not one of 0 to 15", id)
		return
	}
	all := (b.threads + warpSize - 1) / warpSize * warpSize
	n := int(count)
	if count == 0 {
		n = all
	}
	if n%warpSize != 0 || n > all {
		w.failf(CheckBarrier, 0, "a barrier of %d threads in a block of %d is not whole warps", count, b.threads)
		return
	}
	r := &b.barriers[id]
	if r.arrived == 0 {
		*r = barrier{id: int(id), count: n, waiting: r.waiting[:0], and: true}
	}
	if r.count != n {
		w.failf(CheckBarrier, 0, "barrier %d has %d threads here and %d elsewhere", id, n, r.count)
		return
	}
	r.arrived += warpSize
	w.clock.publish(w.id, &r.known)
	for l := 0; l < warpSize; l++ {
		if m>>l&1 != 0 && w.request.votes>>l&1 != 0 {
			r.popc++
		}
	}
	r.or = r.or || w.request.votes&m != 0
	r.and = r.and && w.request.votes&m == m
	if wait {
		r.waiting = append(r.waiting, w)
		w.wait = r
	}
	if r.arrived < r.count {
		return
	}
	r.arrived = 0
	for _, o := range r.waiting {
		o.clock.learn(&r.known)
		o.wait = nil
		if o.request.result != nil {
			o.request.result(o, r.popc, r.and, r.or)
			o.request.result = nil
		}
	}
	r.waiting = r.waiting[:0]
}
