package ptxsim

import "math/bits"

// wrap returns a function of lanes from a function of integers that are extended from type t.
func wrap1(t Type, f func(a int64) int64) func(uint64) uint64 {
	mask := t.mask()
	return func(a uint64) uint64 { return uint64(f(t.extend(a))) & mask }
}

func wrap2(t Type, f func(a, b int64) int64) func(uint64, uint64) uint64 {
	mask := t.mask()
	return func(a, b uint64) uint64 { return uint64(f(t.extend(a), t.extend(b))) & mask }
}

// clampSigned limits an exact result to the range of s32, as .sat does.
func clamp32(v int64) int64 { return min(max(v, -1<<31), 1<<31-1) }

var integers = []Type{U16, U32, U64, S16, S32, S64}

func opAdd(c *compiler) error {
	if c.isFloat() {
		return floatBinary(c, "add")
	}
	return c.addSub(1)
}

func opSub(c *compiler) error {
	if c.isFloat() {
		return floatBinary(c, "sub")
	}
	return c.addSub(-1)
}

// addSub compiles a + sign·b.
func (c *compiler) addSub(sign int64) error {
	sat := c.has("sat")
	t, err := c.typ(integers...)
	if err != nil {
		return err
	}
	if mask := t.mask(); !sat {
		return c.binaryOp(t, func(a, b uint64) uint64 { return (a + uint64(sign)*b) & mask })
	}
	if t != S32 {
		return c.errorf(".sat is for .s32")
	}
	return c.binaryOp(t, wrap2(t, func(a, b int64) int64 { return clamp32(a + sign*b) }))
}

// high returns the high 64 bits of a product.
func high(t Type, a, b int64) int64 {
	if t.bits() < 64 {
		return a * b >> t.bits()
	}
	hi, _ := bits.Mul64(uint64(a), uint64(b))
	if t == S64 {
		hi -= uint64(a>>63)&uint64(b) + uint64(b>>63)&uint64(a)
	}
	return int64(hi)
}

// double returns the type of twice the size.
var double = map[Type]Type{U16: U32, U32: U64, S16: S32, S32: S64}

func opMul(c *compiler) error {
	if c.isFloat() {
		return floatBinary(c, "mul")
	}
	part := c.one("lo", "hi", "wide")
	t, err := c.typ(integers...)
	if err != nil {
		return err
	}
	switch part {
	case "lo":
		mask := t.mask()
		return c.binaryOp(t, func(a, b uint64) uint64 { return a * b & mask })
	case "hi":
		return c.binaryOp(t, wrap2(t, func(a, b int64) int64 { return high(t, a, b) }))
	case "wide":
		d := double[t]
		if d == noType {
			return c.errorf("product of type .%s has no wider type", t)
		}
		r, err := c.args(d, t, t)
		mask := d.mask()
		c.in.run = binary2(r[0], r[1], r[2], func(a, b uint64) uint64 {
			return uint64(t.extend(a)*t.extend(b)) & mask
		})
		return err
	}
	return c.errorf("integer product needs .lo, .hi or .wide")
}

func opMad(c *compiler) error {
	if c.isFloat() {
		return opFma(c)
	}
	part := c.one("lo", "hi", "wide")
	sat := c.has("sat")
	t, err := c.typ(integers...)
	if err != nil {
		return err
	}
	mask := t.mask()
	switch part {
	case "lo":
		return c.ternaryOp(t, func(a, b, e uint64) uint64 { return (a*b + e) & mask })
	case "hi":
		return c.ternaryOp(t, func(a, b, e uint64) uint64 {
			s := high(t, t.extend(a), t.extend(b))
			if sat && t == S32 {
				return uint64(clamp32(s+t.extend(e))) & mask
			}
			return (uint64(s) + e) & mask
		})
	case "wide":
		d := double[t]
		if d == noType {
			return c.errorf("product of type .%s has no wider type", t)
		}
		r, err := c.args(d, t, t, d)
		c.in.run = ternary(r[0], r[1], r[2], r[3], func(a, b, e uint64) uint64 {
			return (uint64(t.extend(a)*t.extend(b)) + e) & d.mask()
		})
		return err
	}
	return c.errorf("integer product needs .lo, .hi or .wide")
}

func opDiv(c *compiler) error {
	if c.isFloat() {
		return floatBinary(c, "div")
	}
	return c.divide(func(t Type, a, b int64) int64 {
		if t == U64 {
			return int64(uint64(a) / uint64(b))
		}
		return a / b // the quotient of the lowest number and -1 wraps
	})
}

func opRem(c *compiler) error {
	return c.divide(func(t Type, a, b int64) int64 {
		if t == U64 {
			return int64(uint64(a) % uint64(b))
		}
		return a % b
	})
}

// divide compiles a division. PTX leaves a division by zero undefined, so that it is a fault here.
func (c *compiler) divide(f func(t Type, a, b int64) int64) error {
	t, err := c.typ(integers...)
	if err != nil {
		return err
	}
	r, err := c.args(t, t, t)
	mask := t.mask()
	c.in.run = func(w *warp, m uint32) {
		for l := 0; l < warpSize; l++ {
			if m>>l&1 == 0 {
				continue
			}
			b := t.extend(w.r[r[2]][l])
			if b == 0 {
				w.failf(CheckUndefined, l, "division by zero")
				return
			}
			w.r[r[0]][l] = uint64(f(t, t.extend(w.r[r[1]][l]), b)) & mask
		}
	}
	return err
}

func opMin(c *compiler) error { return c.extreme("min") }

func opMax(c *compiler) error { return c.extreme("max") }

func (c *compiler) extreme(name string) error {
	if c.isFloat() {
		return floatBinary(c, name)
	}
	relu := c.has("relu")
	t, err := c.typ(integers...)
	if err != nil {
		return err
	}
	if relu && t != S32 {
		return c.errorf(".relu is for .s32")
	}
	return c.binaryOp(t, integerExtreme(t, name == "min", relu))
}

func integerExtreme(t Type, least, relu bool) func(a, b uint64) uint64 {
	return func(a, b uint64) uint64 {
		below := t.extend(a) < t.extend(b)
		if t == U64 {
			below = a < b
		}
		if below != least {
			a = b
		}
		if relu && t.extend(a) < 0 {
			return 0
		}
		return a
	}
}

func opAbs(c *compiler) error {
	if c.isFloat() {
		return floatSign(c, "abs")
	}
	t, err := c.typ(S16, S32, S64)
	if err != nil {
		return err
	}
	return c.unaryOp(t, wrap1(t, func(a int64) int64 { return max(a, -a) }))
}

func opNeg(c *compiler) error {
	if c.isFloat() {
		return floatSign(c, "neg")
	}
	t, err := c.typ(S16, S32, S64)
	if err != nil {
		return err
	}
	return c.unaryOp(t, wrap1(t, func(a int64) int64 { return -a }))
}

// opLogic is and, or and xor of bits and of predicates.
func opLogic(c *compiler) error {
	t, err := c.typ(B16, B32, B64, Pred)
	if err != nil {
		return err
	}
	f := map[string]func(a, b uint64) uint64{
		"and": func(a, b uint64) uint64 { return a & b },
		"or":  func(a, b uint64) uint64 { return a | b },
		"xor": func(a, b uint64) uint64 { return a ^ b },
	}[c.s.op]
	if t != Pred {
		return c.binaryOp(t, f)
	}
	if err := c.count(3); err != nil {
		return err
	}
	a, flipA, err := c.psrc(&c.s.args[1])
	if err != nil {
		return err
	}
	b, flipB, err := c.psrc(&c.s.args[2])
	if err != nil {
		return err
	}
	d, err := c.pdst(&c.s.args[0])
	c.in.run = func(w *warp, m uint32) {
		v := uint32(f(uint64(w.p[a]^flipA), uint64(w.p[b]^flipB)))
		w.p[d] = w.p[d]&^m | v&m
	}
	return err
}

// opNot is not and cnot.
func opNot(c *compiler) error {
	t, err := c.typ(B16, B32, B64, Pred)
	if err != nil {
		return err
	}
	mask := t.mask()
	if c.s.op == "cnot" {
		if t == Pred {
			return c.errorf("type .pred is not supported here")
		}
		return c.unaryOp(t, func(a uint64) uint64 {
			if a == 0 {
				return 1
			}
			return 0
		})
	}
	if t != Pred {
		return c.unaryOp(t, func(a uint64) uint64 { return ^a & mask })
	}
	if err := c.count(2); err != nil {
		return err
	}
	a, flip, err := c.psrc(&c.s.args[1])
	if err != nil {
		return err
	}
	d, err := c.pdst(&c.s.args[0])
	c.in.run = func(w *warp, m uint32) { w.p[d] = w.p[d]&^m | ^(w.p[a]^flip)&m }
	return err
}

// opShift is shl and shr. Shifts by more than the size give what a shift by the size does.
func opShift(c *compiler) error {
	allowed := []Type{B16, B32, B64}
	if c.s.op == "shr" {
		allowed = append(allowed, integers...)
	}
	t, err := c.typ(allowed...)
	if err != nil {
		return err
	}
	r, err := c.args(t, t, U32)
	mask := t.mask()
	size := uint64(t.bits())
	if c.s.op == "shl" {
		c.in.run = binary2(r[0], r[1], r[2], func(a, n uint64) uint64 { return a << min(n, size) & mask })
		return err
	}
	c.in.run = binary2(r[0], r[1], r[2], func(a, n uint64) uint64 {
		if t == U64 || t == B64 {
			return a >> min(n, 64)
		}
		return uint64(t.extend(a)>>min(n, size)) & mask
	})
	return err
}

// opFunnel is shf: 32 bits of the 64 bits of two registers.
func opFunnel(c *compiler) error {
	side := c.one("l", "r")
	mode := c.one("clamp", "wrap")
	t, err := c.typ(B32)
	if err != nil {
		return err
	}
	if side == "" || mode == "" {
		return c.errorf("funnel shift needs .l or .r, and .clamp or .wrap")
	}
	r, err := c.args(t, t, t, U32)
	c.in.run = ternary(r[0], r[1], r[2], r[3], func(a, b, n uint64) uint64 {
		if mode == "wrap" {
			n &= 31
		}
		n = min(n, 32)
		both := b<<32 | a
		if side == "l" {
			return both << n >> 32
		}
		return both >> n & 0xffffffff
	})
	return err
}

func opCountBits(c *compiler) error {
	t, err := c.typ(B32, B64)
	if err != nil {
		return err
	}
	r, err := c.args(U32, t)
	if c.s.op == "popc" {
		c.in.run = unary(r[0], r[1], func(a uint64) uint64 { return uint64(bits.OnesCount64(a)) })
		return err
	}
	c.in.run = unary(r[0], r[1], func(a uint64) uint64 { return uint64(bits.LeadingZeros64(a) - 64 + t.bits()) })
	return err
}

func opReverse(c *compiler) error {
	t, err := c.typ(B32, B64)
	if err != nil {
		return err
	}
	return c.unaryOp(t, func(a uint64) uint64 { return bits.Reverse64(a) >> (64 - t.bits()) })
}
