package ptxsim

import "math/bits"

// unary, binary and ternary return the run of an instruction that computes each lane alone.
func unary(d, a int32, f func(a uint64) uint64) func(*warp, uint32) {
	return func(w *warp, m uint32) {
		rd, ra := &w.r[d], &w.r[a]
		if m == allLanes {
			for l := range rd {
				rd[l] = f(ra[l])
			}
			return
		}
		for ; m != 0; m &= m - 1 {
			l := bits.TrailingZeros32(m) & 31
			rd[l] = f(ra[l])
		}
	}
}

func binary2(d, a, b int32, f func(a, b uint64) uint64) func(*warp, uint32) {
	return func(w *warp, m uint32) {
		rd, ra, rb := &w.r[d], &w.r[a], &w.r[b]
		if m == allLanes {
			for l := range rd {
				rd[l] = f(ra[l], rb[l])
			}
			return
		}
		for ; m != 0; m &= m - 1 {
			l := bits.TrailingZeros32(m) & 31
			rd[l] = f(ra[l], rb[l])
		}
	}
}

func ternary(d, a, b, e int32, f func(a, b, c uint64) uint64) func(*warp, uint32) {
	return func(w *warp, m uint32) {
		rd, ra, rb, re := &w.r[d], &w.r[a], &w.r[b], &w.r[e]
		if m == allLanes {
			for l := range rd {
				rd[l] = f(ra[l], rb[l], re[l])
			}
			return
		}
		for ; m != 0; m &= m - 1 {
			l := bits.TrailingZeros32(m) & 31
			rd[l] = f(ra[l], rb[l], re[l])
		}
	}
}

// unaryOp, binaryOp and ternaryOp compile an instruction whose operands all have type t.
func (c *compiler) unaryOp(t Type, f func(a uint64) uint64) error {
	r, err := c.args(t, t)
	c.in.run = unary(r[0], r[1], f)
	return err
}

func (c *compiler) binaryOp(t Type, f func(a, b uint64) uint64) error {
	r, err := c.args(t, t, t)
	c.in.run = binary2(r[0], r[1], r[2], f)
	return err
}

func (c *compiler) ternaryOp(t Type, f func(a, b, c uint64) uint64) error {
	r, err := c.args(t, t, t, t)
	c.in.run = ternary(r[0], r[1], r[2], r[3], f)
	return err
}
