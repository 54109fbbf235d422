package ptxsim

import (
	"fmt"
	"math/bits"
)

const allLanes = ^uint32(0)

// lanes are the values of a register in the lanes of a warp. Values of fewer than 64 bits have zeros above.
type lanes [warpSize]uint64

// side is lanes that run together until they reach join.
type side struct {
	pc, join int32
	mask     uint32
}

// warp is 32 threads in lockstep.
//
// When a branch sends lanes both ways, the warp runs one side and then the other up to the immediate post-dominator of
// the branch, where they continue together. sides is the stack of what remains; its top is what runs.
type warp struct {
	b     *block
	id    int
	r     []lanes
	set   []uint32 // lanes of a register that have a value
	p     []uint32 // predicates, a bit per lane
	pset  []uint32
	live  uint32 // lanes that have not exited
	all   uint32 // lanes that exist
	sides []side

	pc      int32 // of the instruction that runs
	fault   *Fault
	wait    *barrier // at which the warp waits, or nil
	request barrierRequest
	local   []byte // local memory, lane after lane
	// localSet says which bytes of local memory have a value.
	localSet []bool
	last     *allocation

	clock clock
	async asyncQueue
}

// reset prepares the warp for a block.
func (w *warp) reset(b *block, id int) {
	k := b.k
	w.b, w.id = b, id
	if len(w.r) < k.slots {
		w.r = make([]lanes, k.slots)
		w.set = make([]uint32, k.slots)
	}
	if len(w.p) < k.preds {
		w.p = make([]uint32, k.preds)
		w.pset = make([]uint32, k.preds)
	}
	clear(w.set)
	clear(w.pset)
	if len(w.local) < k.local*warpSize {
		w.local = make([]byte, k.local*warpSize)
		w.localSet = make([]bool, k.local*warpSize)
	}
	clear(w.localSet[:k.local*warpSize])
	w.all = allLanes
	if n := b.threads - id*warpSize; n < warpSize {
		w.all = 1<<n - 1
	}
	w.live = w.all
	w.sides = append(w.sides[:0], side{pc: 0, join: -1, mask: w.all})
	w.fault, w.wait, w.last = nil, nil, nil
	w.clock.reset(id)
	w.async.reset()
	for i := range k.fixed {
		f := &k.fixed[i]
		r := &w.r[f.slot]
		w.set[f.slot] = allLanes
		if f.special == "" {
			for l, v := 0, w.fixedValue(f, 0); l < warpSize; l++ {
				r[l] = v
			}
			continue
		}
		for l := range r {
			r[l] = w.fixedValue(f, l)
		}
	}
}

// failf records the first fault of the warp, in a lane.
func (w *warp) failf(check Check, lane int, format string, args ...any) {
	if w.fault != nil {
		return
	}
	in := &w.b.k.code[w.pc]
	w.fault = &Fault{Check: check, Kernel: w.b.k.fn.name, Line: in.line, Instr: in.text, Block: w.b.index,
		Thread: w.b.thread(w.id*warpSize + lane), Text: fmt.Sprintf(format, args...)}
}

// run executes at most n instructions. It returns how many it executed, and stops early at a barrier, at a fault, or
// when no lane is left.
func (w *warp) run(n int) int {
	code := w.b.k.code
	for i := 0; i < n; i++ {
		for len(w.sides) > 0 {
			t := &w.sides[len(w.sides)-1]
			if t.mask &= w.live; t.mask != 0 && t.pc != t.join {
				break
			}
			w.sides = w.sides[:len(w.sides)-1]
		}
		if len(w.sides) == 0 {
			return i
		}
		top := &w.sides[len(w.sides)-1]
		w.pc = top.pc
		in := &code[w.pc]
		m := top.mask
		if in.pred >= 0 {
			if unset := m &^ w.pset[in.pred]; unset != 0 {
				w.failf(CheckUnset, bits.TrailingZeros32(unset), "the predicate has no value")
				return i
			}
			v := w.p[in.pred]
			if in.neg {
				v = ^v
			}
			m &= v
		}
		switch in.kind {
		case kindRun:
			top.pc++
			if m == 0 {
				continue
			}
			if !w.check(in, m) {
				return i
			}
			in.run(w, m)
			if w.fault != nil {
				return i
			}
			for _, d := range in.dsts {
				w.set[d] |= m
			}
			for _, d := range in.pdsts {
				w.pset[d] |= m
			}
		case kindBranch:
			if w.branch(top, in, m); w.fault != nil {
				return i
			}
		case kindExit:
			top.pc++
			w.live &^= m
		case kindBarrier:
			top.pc++
			if m == 0 {
				continue
			}
			if !w.check(in, m) {
				return i
			}
			in.run(w, m)
			if w.fault != nil {
				return i
			}
			for _, d := range in.dsts {
				w.set[d] |= m
			}
			for _, d := range in.pdsts {
				w.pset[d] |= m
			}
			if w.wait != nil {
				return i + 1
			}
		}
	}
	return n
}

// check reports whether every register that an instruction reads has a value.
func (w *warp) check(in *inst, m uint32) bool {
	for _, s := range in.srcs {
		if unset := m &^ w.set[s]; unset != 0 {
			w.failf(CheckUnset, bits.TrailingZeros32(unset), "register %s has no value", w.b.k.registerName(s))
			return false
		}
	}
	for _, s := range in.psrcs {
		if unset := m &^ w.pset[s]; unset != 0 {
			w.failf(CheckUnset, bits.TrailingZeros32(unset), "a predicate has no value")
			return false
		}
	}
	return true
}

// branch sends the lanes of m to the target and the others to the next instruction.
func (w *warp) branch(top *side, in *inst, m uint32) {
	rest := top.mask &^ m
	switch {
	case m == 0:
		top.pc++
		return
	case rest == 0:
		top.pc = in.target
		return
	}
	if in.uni {
		w.failf(CheckUndefined, first(m), "bra.uni is taken by lanes %#x and not by lanes %#x", m, rest)
		return
	}
	next, join := top.pc+1, in.join
	// The top becomes what continues at the join. If it would end there, what lies below it covers its lanes.
	if join == top.join {
		w.sides = w.sides[:len(w.sides)-1]
	} else {
		top.pc = join
	}
	if next != join {
		w.sides = append(w.sides, side{pc: next, join: join, mask: rest})
	}
	if in.target != join {
		w.sides = append(w.sides, side{pc: in.target, join: join, mask: m})
	}
}

// done reports whether every lane has exited.
func (w *warp) done() bool { return w.live == 0 }
