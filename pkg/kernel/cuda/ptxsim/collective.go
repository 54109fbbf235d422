package ptxsim

import "math/bits"

// members checks the member mask of a .sync instruction: each lane is in its own mask, the lanes of a mask have the
// same mask, and all of them that have not exited execute the instruction now.
//
// A device would let lanes wait for those that come to the instruction later. Here the sides of a branch run one after
// the other, so that members on two sides never meet; such code is refused.
func (w *warp) members(m uint32, mask int32) bool {
	r := &w.r[mask]
	if v := uint32(r[first(m)]); v == m {
		same := true
		for l := range r {
			same = same && (m>>l&1 == 0 || uint32(r[l]) == v)
		}
		if same {
			return true
		}
	}
	for l := range r {
		if m>>l&1 == 0 {
			continue
		}
		v := uint32(r[l])
		switch {
		case v>>l&1 == 0:
			w.failf(CheckWarp, l, "the member mask %#x does not contain lane %d, which executes the instruction", v, l)
			return false
		case v&w.live&^m != 0:
			w.failf(CheckWarp, l, "lanes %#x of the member mask %#x are in other code", v&w.live&^m, v)
			return false
		}
		for o := range r {
			if (v&m)>>o&1 != 0 && uint32(r[o]) != v {
				w.failf(CheckWarp, l, "lanes %d and %d have the member masks %#x and %#x", l, o, v, uint32(r[o]))
				return false
			}
		}
	}
	return true
}

// whole checks that all 32 lanes execute an .aligned instruction.
func (w *warp) whole(m uint32) bool {
	if m != allLanes {
		w.failf(CheckWarp, first(m), "lanes %#x execute an instruction of the whole warp", m)
		return false
	}
	return true
}

func opWarpSync(c *compiler) error {
	if c.one("sync") == "" {
		return c.errorf("bar.warp has no operation")
	}
	if err := c.count(1); err != nil {
		return err
	}
	mask, err := c.src(0, U32)
	c.in.run = func(w *warp, m uint32) {
		if !w.members(m, mask) {
			return
		}
		for left := m; left != 0; {
			v := uint32(w.r[mask][first(left)])
			w.clock.sync(w.id, v&m, w.all)
			left &^= v
		}
	}
	return err
}

// opShuffle is shfl.sync.mode.b32 d{|p}, a, b, c, mask.
func opShuffle(c *compiler) error {
	if !c.has("sync") {
		return c.errorf("only .sync is supported")
	}
	mode := c.one("up", "down", "bfly", "idx")
	t, err := c.typ(B32)
	if err != nil {
		return err
	}
	if mode == "" {
		return c.errorf("shuffle has no mode")
	}
	if err := c.count(5); err != nil {
		return err
	}
	var r [5]int32
	for i, t := range []Type{t, U32, U32, U32} {
		if r[i+1], err = c.src(i+1, t); err != nil {
			return err
		}
	}
	if r[0], err = c.dst(0, t); err != nil {
		return err
	}
	p := int32(-1)
	if o := c.s.args[0].pair; o != nil {
		if p, err = c.pdst(o); err != nil {
			return err
		}
	}
	c.in.run = func(w *warp, m uint32) {
		if !w.members(m, r[4]) {
			return
		}
		values := w.r[r[1]]
		for l := 0; l < warpSize; l++ {
			if m>>l&1 == 0 {
				continue
			}
			from, in := shuffleSource(mode, l, int(w.r[r[2]][l]), int(w.r[r[3]][l]))
			if m>>from&1 == 0 || uint32(w.r[r[4]][l])>>from&1 == 0 {
				w.failf(CheckWarp, l, "shuffle reads lane %d, which is not a member or does not execute it", from)
				return
			}
			w.r[r[0]][l] = values[from]
			if p >= 0 {
				w.setPredicate(p, l, in, m)
			}
		}
	}
	return nil
}

// shuffleSource returns the lane that a shuffle reads, and whether it is in range; if it is not, the lane reads itself.
func shuffleSource(mode string, lane, b, c int) (int, bool) {
	segment := c >> 8 & 31
	last := lane&segment | c&31&^segment
	from, in := 0, false
	switch b &= 31; mode {
	case "up":
		from = lane - b
		in = from >= last
	case "down":
		from = lane + b
		in = from <= last
	case "bfly":
		from = lane ^ b
		in = from <= last
	default:
		from = lane&segment | b&^segment
		in = from <= last
	}
	if !in {
		from = lane
	}
	return from, in
}

// opVote is vote.sync.
func opVote(c *compiler) error {
	if !c.has("sync") {
		return c.errorf("only .sync is supported")
	}
	mode := c.one("all", "any", "uni", "ballot")
	t, err := c.typ(Pred, B32)
	if err != nil {
		return err
	}
	if mode == "" || (mode == "ballot") != (t == B32) {
		return c.errorf("mode and type do not match")
	}
	if err := c.count(3); err != nil {
		return err
	}
	a, flip, err := c.psrc(&c.s.args[1])
	if err != nil {
		return err
	}
	mask, err := c.src(2, U32)
	if err != nil {
		return err
	}
	var d int32
	if t == B32 {
		d, err = c.dst(0, B32)
	} else {
		d, err = c.pdst(&c.s.args[0])
	}
	c.in.run = func(w *warp, m uint32) {
		if !w.members(m, mask) {
			return
		}
		votes := (w.p[a] ^ flip) & m
		for l := 0; l < warpSize; l++ {
			if m>>l&1 == 0 {
				continue
			}
			group := uint32(w.r[mask][l]) & m
			v := votes & group
			switch mode {
			case "ballot":
				w.r[d][l] = uint64(v)
			case "all":
				w.setPredicate(d, l, v == group, m)
			case "any":
				w.setPredicate(d, l, v != 0, m)
			case "uni":
				w.setPredicate(d, l, v == group || v == 0, m)
			}
		}
	}
	return err
}

func opActive(c *compiler) error {
	if _, err := c.typ(B32); err != nil {
		return err
	}
	if err := c.count(1); err != nil {
		return err
	}
	d, err := c.dst(0, B32)
	c.in.run = func(w *warp, m uint32) {
		for l := range w.r[d] {
			if m>>l&1 != 0 {
				w.r[d][l] = uint64(m)
			}
		}
	}
	return err
}

// opRedux is redux.sync.
func opRedux(c *compiler) error {
	if !c.has("sync") {
		return c.errorf("only .sync is supported")
	}
	op := c.one("add", "min", "max", "and", "or", "xor")
	t, err := c.typ(U32, S32, B32)
	if err != nil {
		return err
	}
	f := integerOperation(op, t)
	if f == nil || (t == B32) != (op == "and" || op == "or" || op == "xor") {
		return c.errorf("operation and type do not match")
	}
	r, err := c.args(t, t, U32)
	c.in.run = func(w *warp, m uint32) {
		if !w.members(m, r[2]) {
			return
		}
		values := w.r[r[1]]
		for l := 0; l < warpSize; l++ {
			if m>>l&1 == 0 {
				continue
			}
			group := uint32(w.r[r[2]][l]) & m
			v := values[bits.TrailingZeros32(group)]
			for rest := group & (group - 1); rest != 0; rest &= rest - 1 {
				v = f(v, values[bits.TrailingZeros32(rest)])
			}
			w.r[r[0]][l] = v
		}
	}
	return err
}

// integerOperation returns an operation of redux and atom on integers, or nil.
func integerOperation(op string, t Type) func(a, b uint64) uint64 {
	switch op {
	case "add":
		return func(a, b uint64) uint64 { return (a + b) & t.mask() }
	case "min", "max":
		return integerExtreme(t, op == "min", false)
	case "and":
		return func(a, b uint64) uint64 { return a & b }
	case "or":
		return func(a, b uint64) uint64 { return a | b }
	case "xor":
		return func(a, b uint64) uint64 { return a ^ b }
	case "exch":
		return func(_, b uint64) uint64 { return b }
	case "inc":
		return func(a, b uint64) uint64 {
			if a >= b {
				return 0
			}
			return a + 1
		}
	case "dec":
		return func(a, b uint64) uint64 {
			if a == 0 || a > b {
				return b
			}
			return a - 1
		}
	}
	return nil
}

// opMatch is match.any.sync: the lanes that have the same value.
func opMatch(c *compiler) error {
	if !c.has("any") || !c.has("sync") {
		return c.errorf("only .any.sync is supported")
	}
	t, err := c.typ(B32, B64)
	if err != nil {
		return err
	}
	r, err := c.args(B32, t, U32)
	c.in.run = func(w *warp, m uint32) {
		if !w.members(m, r[2]) {
			return
		}
		values := w.r[r[1]]
		for l := range values {
			if m>>l&1 == 0 {
				continue
			}
			var same uint64
			for o := range values {
				if (uint32(w.r[r[2]][l])&m)>>o&1 != 0 && values[o] == values[l] {
					same |= 1 << o
				}
			}
			w.r[r[0]][l] = same
		}
	}
	return err
}
