package ptxsim

import "math/bits"

// opFindBit is bfind: the highest bit that differs from the sign.
func opFindBit(c *compiler) error {
	amount := c.has("shiftamt")
	t, err := c.typ(U32, U64, S32, S64)
	if err != nil {
		return err
	}
	r, err := c.args(U32, t)
	c.in.run = unary(r[0], r[1], func(a uint64) uint64 {
		if t.signed() && t.extend(a) < 0 {
			a = ^a & t.mask()
		}
		if a == 0 {
			return 0xffffffff
		}
		n := bits.Len64(a) - 1
		if amount {
			n = t.bits() - 1 - n
		}
		return uint64(n)
	})
	return err
}

// opExtract is bfe: n bits from position p, extended by the highest of them if the type is signed.
func opExtract(c *compiler) error {
	t, err := c.typ(U32, U64, S32, S64)
	if err != nil {
		return err
	}
	r, err := c.args(t, t, U32, U32)
	size := t.bits()
	c.in.run = ternary(r[0], r[1], r[2], r[3], func(a, p, n uint64) uint64 {
		pos, length := int(p&0xff), int(n&0xff)
		sign := uint64(0)
		if t.signed() && length > 0 {
			sign = a >> min(pos+length-1, size-1) & 1
		}
		var d uint64
		for i := 0; i < size; i++ {
			bit := sign
			if i < length && pos+i < size {
				bit = a >> (pos + i) & 1
			}
			d |= bit << i
		}
		return d
	})
	return err
}

// opInsert is bfi: b with n bits from position p replaced by the low bits of a.
func opInsert(c *compiler) error {
	t, err := c.typ(B32, B64)
	if err != nil {
		return err
	}
	r, err := c.args(t, t, t, U32, U32)
	c.in.run = func(w *warp, m uint32) {
		for l := 0; l < warpSize; l++ {
			if m>>l&1 == 0 {
				continue
			}
			a, b := w.r[r[1]][l], w.r[r[2]][l]
			pos, length := w.r[r[3]][l]&0xff, w.r[r[4]][l]&0xff
			field := (uint64(1)<<length - 1) << pos // all ones if length is 64 or more
			w.r[r[0]][l] = (b&^field | a<<pos&field) & t.mask()
		}
	}
	return err
}

// opPermute is prmt: bytes of two registers by a selector.
func opPermute(c *compiler) error {
	t, err := c.typ(B32)
	if err != nil {
		return err
	}
	mode := c.one("f4e", "b4e", "rc8", "ecl", "ecr", "rc16")
	r, err := c.args(t, t, t, t)
	c.in.run = ternary(r[0], r[1], r[2], r[3], func(a, b, sel uint64) uint64 {
		both := b<<32 | a
		var d uint64
		for i := uint64(0); i < 4; i++ {
			s := sel >> (4 * i) & 15
			n := sel & 3
			switch mode {
			case "f4e":
				s = n + i
			case "b4e":
				s = (n - i) & 7
			case "rc8":
				s = n
			case "ecl":
				s = max(n, i)
			case "ecr":
				s = min(n, i)
			case "rc16":
				s = n&1*2 + i&1
			}
			v := both >> (8 * (s & 7)) & 0xff
			if s&8 != 0 { // the sign of the byte, in all its bits
				v = uint64(int64(int8(v))>>7) & 0xff
			}
			d |= v << (8 * i)
		}
		return d
	})
	return err
}

// opLop3 is any function of three bits, by its table.
func opLop3(c *compiler) error {
	t, err := c.typ(B32)
	if err != nil {
		return err
	}
	if err := c.count(5); err != nil {
		return err
	}
	table := c.s.args[4]
	if table.kind != operandInt || table.int > 255 {
		return c.errorf("table is not a constant of 8 bits")
	}
	var r [4]int32
	for i := 1; i < 4; i++ {
		if r[i], err = c.src(i, t); err != nil {
			return err
		}
	}
	r[0], err = c.dst(0, t)
	c.in.run = ternary(r[0], r[1], r[2], r[3], func(x, y, z uint64) uint64 {
		var d uint64
		for i := 0; i < 8; i++ {
			if table.int>>i&1 == 0 {
				continue
			}
			p, q, s := x, y, z
			if i&4 == 0 {
				p = ^p
			}
			if i&2 == 0 {
				q = ^q
			}
			if i&1 == 0 {
				s = ^s
			}
			d |= p & q & s
		}
		return d & 0xffffffff
	})
	return err
}

// opDot is dp4a, four products of bytes, and dp2a, two products of 16 bits and a byte.
func opDot(c *compiler) error {
	half := ""
	if c.s.op == "dp2a" {
		if half = c.one("lo", "hi"); half == "" {
			return c.errorf("dp2a needs .lo or .hi")
		}
	}
	ta, err := c.typ(U32, S32)
	if err != nil {
		return err
	}
	tb, err := c.typ(U32, S32)
	if err != nil {
		return err
	}
	td := U32
	if ta == S32 || tb == S32 {
		td = S32
	}
	r, err := c.args(td, B32, B32, td)
	part := func(t Type, v uint64, i, bits int) int64 {
		v = v >> (i * bits) << (64 - bits)
		if t == S32 {
			return int64(v) >> (64 - bits)
		}
		return int64(v >> (64 - bits))
	}
	c.in.run = ternary(r[0], r[1], r[2], r[3], func(a, b, e uint64) uint64 {
		s := int64(e)
		if half == "" {
			for i := 0; i < 4; i++ {
				s += part(ta, a, i, 8) * part(tb, b, i, 8)
			}
			return uint64(s) & 0xffffffff
		}
		from := 0
		if half == "hi" {
			from = 2
		}
		for i := 0; i < 2; i++ {
			s += part(ta, a, i, 16) * part(tb, b, from+i, 8)
		}
		return uint64(s) & 0xffffffff
	})
	return err
}

// opMov copies a register, a constant, an address or a predicate, and packs or unpacks a vector.
func opMov(c *compiler) error {
	t, err := c.typ()
	if err != nil {
		return err
	}
	if err := c.count(2); err != nil {
		return err
	}
	args := c.s.args
	switch {
	case t == Pred:
		return c.movPredicate()
	case t.bits() == 8:
		return c.errorf("type .%s is not supported here", t)
	case args[1].kind == operandVector:
		return c.pack(t)
	case args[0].kind == operandVector:
		return c.unpack(t)
	}
	return c.unaryOp(t, func(a uint64) uint64 { return a })
}

func (c *compiler) movPredicate() error {
	o := &c.s.args[1]
	if o.kind == operandInt && o.int <= 1 {
		d, err := c.pdst(&c.s.args[0])
		v := -uint32(o.int)
		c.in.run = func(w *warp, m uint32) { w.p[d] = w.p[d]&^m | v&m }
		return err
	}
	a, flip, err := c.psrc(o)
	if err != nil {
		return err
	}
	if flip != 0 {
		return c.errorf("mov has no negated operand")
	}
	d, err := c.pdst(&c.s.args[0])
	c.in.run = func(w *warp, m uint32) { w.p[d] = w.p[d]&^m | w.p[a]&m }
	return err
}

// part returns the type of bits of which n are in t.
func (c *compiler) part(t Type, n int) (Type, error) {
	for _, p := range []Type{B8, B16, B32} {
		if t.class() == classBits && p.bits()*n == t.bits() && (n == 2 || n == 4) {
			return p, nil
		}
	}
	return noType, c.errorf("vector of %d elements in type .%s", n, t)
}

func (c *compiler) pack(t Type) error {
	p, err := c.part(t, len(c.s.args[1].vec))
	if err != nil {
		return err
	}
	src, err := c.vector(&c.s.args[1], len(c.s.args[1].vec), p, false, sameSize)
	if err != nil {
		return err
	}
	d, err := c.dst(0, t)
	c.in.run = func(w *warp, m uint32) {
		for l := 0; l < warpSize; l++ {
			if m>>l&1 == 0 {
				continue
			}
			var v uint64
			for i, s := range src {
				v |= w.r[s][l] & p.mask() << (i * p.bits())
			}
			w.r[d][l] = v
		}
	}
	return err
}

func (c *compiler) unpack(t Type) error {
	p, err := c.part(t, len(c.s.args[0].vec))
	if err != nil {
		return err
	}
	s, err := c.src(1, t)
	if err != nil {
		return err
	}
	dst, err := c.vector(&c.s.args[0], len(c.s.args[0].vec), p, true, sameSize)
	c.in.run = func(w *warp, m uint32) {
		for l := 0; l < warpSize; l++ {
			if m>>l&1 == 0 {
				continue
			}
			v := w.r[s][l]
			for i, d := range dst {
				w.r[d][l] = v >> (i * p.bits()) & p.mask()
			}
		}
	}
	return err
}

// opSelp reads only the operand that it selects.
func opSelp(c *compiler) error {
	t, err := c.typ()
	if err != nil {
		return err
	}
	if t == Pred || t.bits() == 8 {
		return c.errorf("type .%s is not supported here", t)
	}
	if err := c.count(4); err != nil {
		return err
	}
	a, err := c.source(&c.s.args[1], t, sameSize)
	if err != nil {
		return err
	}
	b, err := c.source(&c.s.args[2], t, sameSize)
	if err != nil {
		return err
	}
	p, flip, err := c.psrc(&c.s.args[3])
	if err != nil {
		return err
	}
	d, err := c.dst(0, t)
	c.in.run = func(w *warp, m uint32) {
		v := w.p[p] ^ flip
		if unset := m & (v&^w.set[a] | ^v&^w.set[b]); unset != 0 {
			w.failf(CheckUnset, first(unset), "the selected operand has no value")
			return
		}
		rd, ra, rb := &w.r[d], &w.r[a], &w.r[b]
		for l := range rd {
			if m>>l&1 == 0 {
				continue
			}
			if v>>l&1 != 0 {
				rd[l] = ra[l]
			} else {
				rd[l] = rb[l]
			}
		}
	}
	return err
}
