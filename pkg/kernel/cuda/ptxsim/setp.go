package ptxsim

import "math"

// comparison compares two values of a type.
type comparison func(a, b uint64) bool

var unordered = map[string]string{"equ": "eq", "neu": "ne", "ltu": "lt", "leu": "le", "gtu": "gt", "geu": "ge"}

// order applies a comparison to the result of comparing: below 0, 0 or above 0.
var order = map[string]func(n int) bool{
	"eq": func(n int) bool { return n == 0 }, "ne": func(n int) bool { return n != 0 },
	"lt": func(n int) bool { return n < 0 }, "le": func(n int) bool { return n <= 0 },
	"gt": func(n int) bool { return n > 0 }, "ge": func(n int) bool { return n >= 0 },
	"lo": func(n int) bool { return n < 0 }, "ls": func(n int) bool { return n <= 0 },
	"hi": func(n int) bool { return n > 0 }, "hs": func(n int) bool { return n >= 0 },
}

// comparison removes the comparison from the modifiers; the type follows it.
func (c *compiler) comparison() (cmp string, boolean string) {
	cmp = c.one("eq", "ne", "lt", "le", "gt", "ge", "lo", "ls", "hi", "hs", "equ", "neu", "ltu", "leu", "gtu", "geu",
		"num", "nan")
	return cmp, c.one("and", "or", "xor")
}

func (c *compiler) compare(cmp string, t Type, ftz bool) (comparison, error) {
	if t.class() == classFloat {
		return c.compareFloats(cmp, t, ftz)
	}
	f := order[cmp]
	unsigned := cmp == "lo" || cmp == "ls" || cmp == "hi" || cmp == "hs"
	if f == nil || unsigned && t.class() != classUnsigned || ftz ||
		t.class() == classBits && cmp != "eq" && cmp != "ne" {
		return nil, c.errorf("comparison .%s is not for type .%s", cmp, t)
	}
	if !t.signed() {
		return func(a, b uint64) bool { return f(three(a < b, a > b)) }, nil
	}
	shift := 64 - t.bits()
	return func(a, b uint64) bool {
		x, y := int64(a<<shift), int64(b<<shift)
		return f(three(x < y, x > y))
	}, nil
}

func three(below, above bool) int {
	switch {
	case below:
		return -1
	case above:
		return 1
	}
	return 0
}

func (c *compiler) compareFloats(cmp string, t Type, ftz bool) (comparison, error) {
	number := func(v uint64) float64 { return value(t, v) }
	if ftz {
		if t != F32 {
			return nil, c.errorf(".ftz is supported for .f32")
		}
		number = func(v uint64) float64 { return value(t, flush(v)) }
	}
	switch cmp {
	case "num", "nan":
		return func(a, b uint64) bool {
			return (math.IsNaN(number(a)) || math.IsNaN(number(b))) == (cmp == "nan")
		}, nil
	}
	f, nan := order[cmp], false
	if base, ok := unordered[cmp]; ok {
		f, nan = order[base], true
	}
	if f == nil || cmp == "lo" || cmp == "ls" || cmp == "hi" || cmp == "hs" {
		return nil, c.errorf("comparison .%s is not for type .%s", cmp, t)
	}
	return func(a, b uint64) bool {
		x, y := number(a), number(b)
		if x != x || y != y {
			return nan
		}
		return f(three(x < y, x > y))
	}, nil
}

var compared = []Type{B16, B32, B64, U16, U32, U64, S16, S32, S64, F16, BF16, F32, F64}

// combine applies the operation of booleans to a comparison and a predicate.
func combine(op string, v, p uint32) uint32 {
	switch op {
	case "and":
		return v & p
	case "or":
		return v | p
	case "xor":
		return v ^ p
	}
	return v
}

// opSetp is setp.cmp{.bool}.type p{|q}, a, b{, {!}c}. The second destination takes the negated comparison, combined
// with c in the same way.
func opSetp(c *compiler) error {
	cmp, boolean := c.comparison()
	ftz := c.has("ftz")
	t, err := c.typ(compared...)
	if err != nil {
		return err
	}
	n := 3
	if boolean != "" {
		n = 4
	}
	if err := c.count(n); err != nil {
		return err
	}
	f, err := c.compare(cmp, t, ftz)
	if err != nil {
		return err
	}
	a, err := c.src(1, t)
	if err != nil {
		return err
	}
	b, err := c.src(2, t)
	if err != nil {
		return err
	}
	var e int32 = -1
	var flip uint32
	if boolean != "" {
		if e, flip, err = c.psrc(&c.s.args[3]); err != nil {
			return err
		}
	}
	p, err := c.pdst(&c.s.args[0])
	if err != nil {
		return err
	}
	var q int32 = -1
	if o := c.s.args[0].pair; o != nil {
		if q, err = c.pdst(o); err != nil {
			return err
		}
	}
	c.in.run = func(w *warp, m uint32) {
		var v, with uint32
		ra, rb := &w.r[a], &w.r[b]
		for l := range ra {
			if m>>l&1 != 0 && f(ra[l], rb[l]) {
				v |= 1 << l
			}
		}
		if e >= 0 {
			with = w.p[e] ^ flip
		}
		if q >= 0 {
			w.p[q] = w.p[q]&^m | combine(boolean, ^v, with)&m
		}
		w.p[p] = w.p[p]&^m | combine(boolean, v, with)&m
	}
	return nil
}

// opSet is set.cmp.dtype.stype: all ones or 1.0 if the comparison is true, else 0.
func opSet(c *compiler) error {
	cmp, boolean := c.comparison()
	ftz := c.has("ftz")
	d, err := c.typ(U32, S32, F32)
	if err != nil {
		return err
	}
	t, err := c.typ(compared...)
	if err != nil {
		return err
	}
	if boolean != "" {
		return c.errorf("set with a boolean operation is not supported")
	}
	f, err := c.compare(cmp, t, ftz)
	if err != nil {
		return err
	}
	yes := uint64(0xffffffff)
	if d == F32 {
		yes = pattern(F32, 1)
	}
	r, err := c.args(d, t, t)
	c.in.run = binary2(r[0], r[1], r[2], func(a, b uint64) uint64 {
		if f(a, b) {
			return yes
		}
		return 0
	})
	return err
}
