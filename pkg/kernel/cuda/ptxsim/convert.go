package ptxsim

import "math"

// opConvert is cvt.
func opConvert(c *compiler) error {
	mode, rounded := nearest, false
	m := c.one("rn", "rz", "rm", "rp", "rna", "rni", "rzi", "rmi", "rpi")
	if m != "" {
		mode, rounded = roundings[m], true
	}
	toInteger := len(m) == 3 && m != "rna"
	f := floatMods{mode: mode, rounded: rounded, ftz: c.has("ftz"), sat: c.has("sat"), relu: c.has("relu")}
	d, err := c.typ(U8, U16, U32, U64, S8, S16, S32, S64, F16, F16x2, BF16, BF16x2, TF32, F32, F64)
	if err != nil {
		return err
	}
	s, err := c.typ(U8, U16, U32, U64, S8, S16, S32, S64, F16, BF16, F32, F64)
	if err != nil {
		return err
	}
	if d == F16x2 || d == BF16x2 {
		return c.convertPair(f, d, s)
	}
	var op func(uint64) uint64
	switch {
	case d.integer() && s.integer():
		if rounded || f.ftz || f.relu {
			return c.errorf("conversion between integers has no rounding")
		}
		op = integerToInteger(d, s, f.sat)
	case d.integer():
		if !toInteger || f.relu {
			return c.errorf("conversion to an integer needs .rni, .rzi, .rmi or .rpi")
		}
		op = floatToInteger(d, s, f)
	case s.integer():
		if !rounded || toInteger || mode == away || f.relu || f.ftz {
			return c.errorf("conversion from an integer needs .rn, .rz, .rm or .rp")
		}
		op = integerToFloat(d, s, f)
	default:
		if op, err = c.floatToFloat(d, s, f, toInteger); err != nil {
			return err
		}
	}
	if err := c.count(2); err != nil {
		return err
	}
	a, err := c.srcOf(&c.s.args[1], bitsOf(s), wider)
	if err != nil {
		return err
	}
	to := bitsOf(d)
	r, err := c.dstOf(&c.s.args[0], to, wider)
	if err != nil {
		return err
	}
	if err := c.kinds(d, s); err != nil {
		return err
	}
	mask := c.masks(&c.s.args[0], to)[0]
	source := s.mask()
	c.in.run = unary(r, a, func(a uint64) uint64 {
		v := op(a & source)
		if d.integer() { // a wider register takes the extended value
			return uint64(d.extend(v)) & mask
		}
		return v
	})
	return nil
}

// bitsOf returns the type of bits of the same size: registers of cvt may be wider than integers, and floats are kept in
// registers of bits or of their type.
func bitsOf(t Type) Type {
	if t.integer() {
		return t
	}
	return [...]Type{16: B16, 32: B32, 64: B64}[t.bits()]
}

// kinds checks that registers of floats hold the type that the instruction has.
func (c *compiler) kinds(types ...Type) error {
	for i, t := range types {
		o := &c.s.args[i]
		if o.kind == operandRegister && t.class() == classFloat && !t.accepts(o.reg.typ) {
			return c.errorf("register %s has type .%s where .%s belongs", o.name, o.reg.typ, t)
		}
	}
	return nil
}

func integerToInteger(d, s Type, sat bool) func(uint64) uint64 {
	return func(a uint64) uint64 {
		if !sat {
			return uint64(s.extend(a)) & d.mask()
		}
		return clampInteger(d, uint64(s.extend(a)), s.signed())
	}
}

// clampInteger limits an integer to the range of d.
func clampInteger(d Type, v uint64, signed bool) uint64 {
	least, most := int64(0), d.mask()
	if d.signed() {
		least, most = -1<<(d.bits()-1), d.mask()>>1
	}
	if signed && int64(v) < 0 {
		return uint64(max(int64(v), least)) & d.mask()
	}
	return min(v, most) & d.mask()
}

// roundWhole rounds to an integer.
func roundWhole(x float64, mode rounding) float64 {
	switch mode {
	case zero:
		return math.Trunc(x)
	case down:
		return math.Floor(x)
	case up:
		return math.Ceil(x)
	}
	return math.RoundToEven(x)
}

// floatToInteger converts to the nearest integer of the type. A NaN gives 0, but the highest bit alone if either type
// has 64 bits.
func floatToInteger(d, s Type, f floatMods) func(uint64) uint64 {
	none := uint64(0)
	if d.bits() == 64 || s.bits() == 64 {
		none = 1 << (d.bits() - 1)
	}
	least, most := 0.0, math.Ldexp(1, d.bits()) // the range is least to most-1
	if d.signed() {
		least, most = -math.Ldexp(1, d.bits()-1), math.Ldexp(1, d.bits()-1)
	}
	return func(a uint64) uint64 {
		if f.ftz && s == F32 {
			a = flush(a)
		}
		x := roundWhole(value(s, a), f.mode)
		switch {
		case x != x:
			return none
		case x < least:
			return uint64(int64(least)) & d.mask()
		case x >= most:
			if d.signed() {
				return d.mask() >> 1
			}
			return d.mask()
		case x < 0:
			return uint64(int64(x)) & d.mask()
		}
		return uint64(x)
	}
}

func integerToFloat(d, s Type, f floatMods) func(uint64) uint64 {
	return func(a uint64) uint64 {
		v := uint64(s.extend(a))
		if d == F64 {
			if f.mode == nearest {
				if s.signed() {
					return math.Float64bits(float64(int64(v)))
				}
				return math.Float64bits(float64(v))
			}
			return math.Float64bits(directed(v, s.signed(), f.mode))
		}
		x := oddInteger(v, s.signed())
		if f.sat {
			x = saturate(x)
		}
		return formats[d].encode(x, f.mode)
	}
}

// directed converts an integer to f64 with a directed rounding.
func directed(v uint64, signed bool, mode rounding) float64 {
	neg := signed && int64(v) < 0
	if neg {
		v = -v
	}
	x := float64(v) // to nearest; 1<<64 if v is close to it
	over := x >= 1<<64 || uint64(x) > v
	under := !over && uint64(x) < v
	outward := mode == up && !neg || mode == down && neg
	if over && !outward {
		x = math.Nextafter(x, 0)
	}
	if under && outward {
		x = math.Nextafter(x, math.Inf(1))
	}
	if neg {
		return -x
	}
	return x
}

func (c *compiler) floatToFloat(d, s Type, f floatMods, toInteger bool) (func(uint64) uint64, error) {
	narrow := d.bits() < s.bits() || d == TF32 || d.bits() == 16 && d != s
	switch {
	case d == TF32 && (s != F32 || f.mode != away && f.mode != nearest && f.mode != zero):
		return nil, c.errorf("conversion to .tf32 is from .f32 with .rna, .rn or .rz")
	case d != TF32 && f.mode == away && f.rounded:
		return nil, c.errorf(".rna is for .tf32")
	case narrow && (!f.rounded || toInteger):
		return nil, c.errorf("conversion from .%s to .%s needs .rn, .rz, .rm or .rp", s, d)
	case !narrow && f.rounded && !toInteger:
		return nil, c.errorf("conversion from .%s to .%s is exact and has no rounding", s, d)
	case toInteger && d != s:
		return nil, c.errorf("rounding to an integer keeps the type")
	case d.bits() == 16 && (f.mode == down || f.mode == up) && !toInteger:
		return nil, c.errorf("conversion to .%s is .rn or .rz", d)
	}
	return func(a uint64) uint64 {
		if f.ftz && s == F32 {
			a = flush(a)
		}
		x := value(s, a)
		if toInteger {
			x = roundWhole(x, f.mode)
		}
		if f.sat {
			x = saturate(x)
		}
		if f.relu && x < 0 {
			x = 0
		}
		switch d {
		case F64:
			return bits64(x)
		case TF32:
			if x != x {
				return nan32
			}
			return formats[TF32].encode(x, f.mode) << 13
		}
		v := formats[d].encode(x, f.mode)
		if f.ftz && d == F32 {
			v = flush(v)
		}
		return v
	}, nil
}

// convertPair is cvt.f16x2.f32 and cvt.bf16x2.f32: a goes to the upper half and b to the lower.
func (c *compiler) convertPair(f floatMods, d, s Type) error {
	if s != F32 || !f.rounded || f.mode != nearest && f.mode != zero || f.ftz || f.sat {
		return c.errorf("conversion to .%s is from two .f32 with .rn or .rz", d)
	}
	r, err := c.args(d, F32, F32)
	half := formats[d.half()]
	one := func(v uint64) uint64 {
		x := value(F32, v)
		if f.relu && x < 0 {
			x = 0
		}
		return half.encode(x, f.mode)
	}
	c.in.run = binary2(r[0], r[1], r[2], func(a, b uint64) uint64 { return one(a)<<16 | one(b) })
	return err
}
