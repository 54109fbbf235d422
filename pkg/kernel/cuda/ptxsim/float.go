package ptxsim

import "math"

// isFloat reports whether the instruction has a type of floats.
func (c *compiler) isFloat() bool {
	for _, m := range c.mods {
		if t, ok := typeNames[m]; ok && t.class() == classFloat {
			return true
		}
	}
	return false
}

// floatMods are the modifiers of float arithmetic.
type floatMods struct {
	mode           rounding
	rounded        bool // a mode was given
	ftz, sat, relu bool
	nan            bool
}

func (c *compiler) floatMods() (floatMods, Type, error) {
	var f floatMods
	if m := c.one("rn", "rz", "rm", "rp"); m != "" {
		f.mode, f.rounded = roundings[m], true
	}
	f.ftz, f.sat, f.relu, f.nan = c.has("ftz"), c.has("sat"), c.has("relu"), c.has("NaN")
	t, err := c.typ(F16, F16x2, BF16, BF16x2, F32, F64)
	if err == nil && (f.ftz && t.half() == BF16 || f.ftz && t == F64 || f.sat && (t == F64 || t.half() == BF16)) {
		err = c.errorf("modifier .ftz or .sat is not supported for type .%s", t)
	}
	if err == nil && f.mode != nearest && t != F32 {
		err = c.errorf("only .rn is supported for type .%s", t)
	}
	return f, t, err
}

// half returns the type of the halves of a pair, or of a single half, or the type itself.
func (t Type) half() Type {
	switch t {
	case F16x2:
		return F16
	case BF16x2:
		return BF16
	}
	return t
}

func saturate(x float64) float64 {
	if !(x > 0) { // a NaN gives 0
		return 0
	}
	return min(x, 1)
}

// exact is arithmetic whose result only has to be rounded: see odd.
var exact = map[string]func(a, b, c float64) float64{
	"add": func(a, b, _ float64) float64 { return odd(a, 1, b) },
	"sub": func(a, b, _ float64) float64 { return odd(-b, 1, a) },
	"mul": func(a, b, _ float64) float64 { return a * b },
	"fma": odd,
}

// lift makes a function of bits of type t from a function of numbers whose result is rounded to odd, or is exact.
func (f floatMods) lift(t Type, op func(a, b, c float64) float64) func(a, b, c uint64) uint64 {
	one := func(t Type, a, b, c uint64) uint64 {
		x := op(value(t, a), value(t, b), value(t, c))
		if f.sat {
			x = saturate(x)
		}
		if f.relu && x < 0 { // a NaN stays
			x = 0
		}
		return formats[t].encode(x, f.mode)
	}
	switch t {
	case F32, F16, BF16:
		return func(a, b, c uint64) uint64 {
			if f.ftz && t == F32 {
				return flush(one(t, flush(a), flush(b), flush(c)))
			}
			if f.ftz {
				return flush16(one(t, flush16(a), flush16(b), flush16(c)))
			}
			return one(t, a, b, c)
		}
	}
	half := t.half()
	return func(a, b, c uint64) uint64 {
		if f.ftz {
			a, b, c = flush16(a)|flush16(a>>16)<<16, flush16(b)|flush16(b>>16)<<16, flush16(c)|flush16(c>>16)<<16
		}
		lo := one(half, a&0xffff, b&0xffff, c&0xffff)
		hi := one(half, a>>16, b>>16, c>>16)
		if f.ftz {
			lo, hi = flush16(lo), flush16(hi)
		}
		return hi<<16 | lo
	}
}

// flush16 is flush for the low half as f16.
func flush16(v uint64) uint64 {
	v &= 0xffff
	if v&0x7c00 == 0 {
		return v & 0x8000
	}
	return v
}

// f32s and f64s are operations for which Go's are exact, by name.
var f32s = map[string]func(a, b float32) float32{
	"add": func(a, b float32) float32 { return a + b }, "sub": func(a, b float32) float32 { return a - b },
	"mul": func(a, b float32) float32 { return a * b }, "div": func(a, b float32) float32 { return a / b },
}

var f64s = map[string]func(a, b float64) float64{
	"add": func(a, b float64) float64 { return a + b }, "sub": func(a, b float64) float64 { return a - b },
	"mul": func(a, b float64) float64 { return a * b }, "div": func(a, b float64) float64 { return a / b },
}

// floatBinary compiles add, sub, mul, div, min and max.
func floatBinary(c *compiler, name string) error {
	approx := name == "div" && c.one("approx", "full") != ""
	f, t, err := c.floatMods()
	if err != nil {
		return err
	}
	switch name {
	case "min", "max":
		if f.rounded || f.sat || f.relu {
			return c.errorf("modifier is not supported for %s", name)
		}
		return c.binaryOp(t, floatExtreme(t, name == "min", f))
	case "div":
		if t != F32 && t != F64 || f.mode != nearest || f.sat || !f.rounded && !approx {
			return c.errorf("only .rn, .approx and .full are supported, for types .f32 and .f64")
		}
	}
	if f.nan || f.relu {
		return c.errorf("modifier is not supported for %s", name)
	}
	switch {
	case t == F64:
		op := f64s[name]
		return c.binaryOp(t, func(a, b uint64) uint64 {
			return bits64(op(math.Float64frombits(a), math.Float64frombits(b)))
		})
	case t == F32 && f.mode == nearest:
		op := f32s[name]
		return c.binaryOp(t, f.f32(func(a, b uint64) uint64 {
			return bits32(op(math.Float32frombits(uint32(a)), math.Float32frombits(uint32(b))))
		}))
	}
	op := f.lift(t, exact[name])
	return c.binaryOp(t, func(a, b uint64) uint64 { return op(a, b, 0) })
}

// f32 adds .ftz and .sat to an operation of f32.
func (f floatMods) f32(op func(a, b uint64) uint64) func(a, b uint64) uint64 {
	if !f.ftz && !f.sat {
		return op
	}
	return func(a, b uint64) uint64 {
		if f.ftz {
			a, b = flush(a), flush(b)
		}
		v := op(a, b)
		if f.sat {
			v = bits32(float32(saturate(value(F32, v))))
		}
		if f.ftz {
			v = flush(v)
		}
		return v
	}
}

// opFma is fma, and mad of floats, which is the same on every target that is supported.
func opFma(c *compiler) error {
	f, t, err := c.floatMods()
	if err != nil {
		return err
	}
	if !f.rounded || f.nan || f.relu && t == F32 {
		return c.errorf("fma needs .rn or another rounding, and has no .NaN")
	}
	if t == F64 {
		return c.ternaryOp(t, func(a, b, e uint64) uint64 {
			return bits64(math.FMA(math.Float64frombits(a), math.Float64frombits(b), math.Float64frombits(e)))
		})
	}
	if t == F32 && f.mode == nearest && !f.ftz && !f.sat {
		return c.ternaryOp(t, func(a, b, e uint64) uint64 {
			return bits32(float32(odd(value(F32, a), value(F32, b), value(F32, e))))
		})
	}
	return c.ternaryOp(t, f.lift(t, odd))
}

// floatExtreme is min and max. The result is the other operand if one is a NaN, unless .NaN is given; -0 is below +0.
func floatExtreme(t Type, least bool, f floatMods) func(a, b uint64) uint64 {
	one := func(t Type, a, b uint64) uint64 {
		if f.ftz && t == F32 {
			a, b = flush(a), flush(b)
		}
		if f.ftz && t == F16 {
			a, b = flush16(a), flush16(b)
		}
		x, y := value(t, a), value(t, b)
		switch {
		case x != x && y != y, f.nan && (x != x || y != y):
			return pattern(t, math.NaN())
		case x != x:
			return b
		case y != y:
			return a
		}
		below := x < y || x == y && math.Signbit(x)
		if below == least {
			return a
		}
		return b
	}
	half := t.half()
	if half == t {
		return func(a, b uint64) uint64 { return one(t, a, b) }
	}
	return func(a, b uint64) uint64 { return one(half, a>>16, b>>16)<<16 | one(half, a&0xffff, b&0xffff) }
}

// floatSign is abs and neg.
func floatSign(c *compiler, name string) error {
	ftz := c.has("ftz")
	t, err := c.typ(F16, F16x2, BF16, BF16x2, F32, F64)
	if err != nil {
		return err
	}
	sign := uint64(1) << (t.bits() - 1)
	if t.half() != t {
		sign |= 1 << 15
	}
	if ftz && t != F32 {
		return c.errorf(".ftz is supported for .f32")
	}
	return c.unaryOp(t, func(a uint64) uint64 {
		if ftz {
			a = flush(a)
		}
		if name == "abs" {
			return a &^ sign
		}
		return a ^ sign
	})
}

// opCopySign is copysign: the magnitude of b with the sign of a.
func opCopySign(c *compiler) error {
	t, err := c.typ(F32, F64)
	if err != nil {
		return err
	}
	sign := uint64(1) << (t.bits() - 1)
	return c.binaryOp(t, func(a, b uint64) uint64 { return a&sign | b&^sign })
}

// opRoot is sqrt and rcp, which are correctly rounded for .approx too.
func opRoot(c *compiler) error {
	approx := c.has("approx")
	f, t, err := c.floatMods()
	if err != nil {
		return err
	}
	if t != F32 && t != F64 || f.mode != nearest || approx == f.rounded || f.sat || f.relu || f.nan {
		return c.errorf("only .rn and .approx are supported, for types .f32 and .f64")
	}
	op := math.Sqrt
	if c.s.op == "rcp" {
		op = func(x float64) float64 { return 1 / x }
	}
	return c.unaryOp(t, f.unary(t, op))
}

// unary makes a function of bits from one of numbers. Its result is rounded from float64, which for sqrt and rcp of
// f32 is the same as one rounding.
func (f floatMods) unary(t Type, op func(float64) float64) func(uint64) uint64 {
	one := func(t Type, a uint64) uint64 { return pattern(t, op(value(t, a))) }
	switch {
	case t == F32 && f.ftz:
		return func(a uint64) uint64 { return flush(one(t, flush(a))) }
	case t.half() != t:
		return func(a uint64) uint64 { return one(t.half(), a>>16)<<16 | one(t.half(), a&0xffff) }
	}
	return func(a uint64) uint64 { return one(t, a) }
}

// opApprox is the functions that PTX has as approximations. Here they are rounded from float64, so that a device gives
// other bits within the error that PTX allows.
func opApprox(c *compiler) error {
	allowed := map[string][]Type{
		"rsqrt": {F32, F64}, "ex2": {F32, F16, F16x2, BF16, BF16x2}, "tanh": {F32, F16, F16x2, BF16, BF16x2},
		"lg2": {F32}, "sin": {F32}, "cos": {F32},
	}[c.s.op]
	approx := c.has("approx")
	ftz := c.has("ftz")
	t, err := c.typ(allowed...)
	if err != nil {
		return err
	}
	if !approx || ftz && t != F32 && t.half() != BF16 {
		return c.errorf("%s is .approx, and .ftz is for .f32 and .bf16", c.s.op)
	}
	op := map[string]func(float64) float64{
		"rsqrt": func(x float64) float64 { return 1 / math.Sqrt(x) },
		"ex2":   math.Exp2, "lg2": math.Log2, "sin": math.Sin, "cos": math.Cos, "tanh": math.Tanh,
	}[c.s.op]
	return c.unaryOp(t, floatMods{ftz: ftz}.unary(t, op))
}

// opTest is testp.
func opTest(c *compiler) error {
	what := c.one("finite", "infinite", "number", "notanumber", "normal", "subnormal")
	t, err := c.typ(F32, F64)
	if err != nil {
		return err
	}
	if what == "" {
		return c.errorf("testp has no test")
	}
	if err := c.count(2); err != nil {
		return err
	}
	a, err := c.src(1, t)
	if err != nil {
		return err
	}
	d, err := c.pdst(&c.s.args[0])
	tiny := math.SmallestNonzeroFloat64 * (1 << 52)
	if t == F32 {
		tiny = 0x1p-126
	}
	c.in.run = func(w *warp, m uint32) {
		for l := 0; l < warpSize; l++ {
			x := value(t, w.r[a][l])
			inf, nan := math.IsInf(x, 0), x != x
			is := map[string]bool{"finite": !inf && !nan, "infinite": inf, "number": !nan, "notanumber": nan,
				"normal": !inf && !nan && math.Abs(x) >= tiny, "subnormal": x != 0 && math.Abs(x) < tiny}[what]
			w.setPredicate(d, l, is, m)
		}
	}
	return err
}

// setPredicate sets a predicate in a lane, if it is in m.
func (w *warp) setPredicate(d int32, lane int, v bool, m uint32) {
	bit := uint32(1) << lane & m
	w.p[d] &^= bit
	if v {
		w.p[d] |= bit
	}
}
