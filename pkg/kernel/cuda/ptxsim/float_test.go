package ptxsim_test

import (
	"fmt"
	"math"
	"math/big"
	"slices"
	"sort"
	"testing"
)

func of32(v uint64) float32 { return math.Float32frombits(uint32(v)) }
func of64(v uint64) float64 { return math.Float64frombits(v) }

// b32 and b64 are bits with the canonical NaN of PTX.
func b32(x float32) uint64 {
	if x != x {
		return 0x7fffffff
	}
	return uint64(math.Float32bits(x))
}

func b64(x float64) uint64 {
	if x != x {
		return 0x7fffffffffffffff
	}
	return math.Float64bits(x)
}

func finite(xs ...float64) bool {
	for _, x := range xs {
		if math.IsNaN(x) || math.IsInf(x, 0) {
			return false
		}
	}
	return true
}

// exactFMA is a·b+c with 2,000 bits. It is nil if the result is zero or an operand is not finite.
func exactFMA(a, b, c float64) *big.Float {
	if !finite(a, b, c) {
		return nil
	}
	f := func(x float64) *big.Float { return new(big.Float).SetPrec(2000).SetFloat64(x) }
	s := new(big.Float).SetPrec(2000).Mul(f(a), f(b))
	s.Add(s, f(c))
	if s.Sign() == 0 {
		return nil
	}
	return s
}

// fma32 is the reference of fma.rn.f32.
func fma32(a, b, c float32) float32 {
	if s := exactFMA(float64(a), float64(b), float64(c)); s != nil {
		v, _ := s.Float32()
		return v
	}
	return float32(float64(a)*float64(b) + float64(c))
}

// grid has the finite numbers of a 16-bit format that are not negative, in order. It is an oracle of rounding that
// shares nothing with the simulator: the nearest of all numbers.
type grid struct {
	values []float64
	next   float64 // what would follow the largest number
	inf    uint64
}

func newGrid(inf uint64, num func(uint32) float64, next float64) grid {
	g := grid{next: next, inf: inf}
	for v := uint64(0); v < inf; v++ {
		g.values = append(g.values, num(uint32(v)))
	}
	if !slices.IsSorted(g.values) {
		panic("numbers are not in order")
	}
	return g
}

// round returns the bits of the number that is nearest to x, or the next one toward zero.
func (g grid) round(x *big.Float, toward bool) uint64 {
	sign := uint64(0)
	if x.Signbit() {
		sign = 0x8000
	}
	x = new(big.Float).Abs(x)
	at := func(i int) *big.Float {
		if i == len(g.values) {
			return big.NewFloat(g.next)
		}
		return big.NewFloat(g.values[i])
	}
	i := sort.Search(len(g.values)+1, func(i int) bool { return at(i).Cmp(x) > 0 }) - 1 // at(i) <= x
	if toward {
		return sign | uint64(min(i, len(g.values)-1))
	}
	if i == len(g.values) {
		return sign | g.inf
	}
	below := new(big.Float).SetPrec(2000).Sub(x, at(i))
	above := new(big.Float).SetPrec(2000).Sub(at(i+1), x)
	if c := below.Cmp(above); c > 0 || c == 0 && i%2 == 1 {
		i++
	}
	return sign | uint64(i)
}

func halfValue(v uint32) float64 {
	e, f := int(v>>10&31), float64(v&0x3ff)
	x := math.Ldexp(1024+f, e-25)
	switch {
	case e == 31 && f != 0:
		return math.NaN()
	case e == 31:
		x = math.Inf(1)
	case e == 0:
		x = math.Ldexp(f, -24)
	}
	if v>>15 != 0 {
		return -x
	}
	return x
}

var (
	halves  = newGrid(0x7c00, halfValue, 65536)
	bfloats = newGrid(0x7f80, bf16, 0x1p128)
)

// half2 applies the exact result of a·b+c to a format, with zeros, infinities and NaNs from float64.
func (g grid) fma(num func(uint32) float64, a, b, c uint64) uint64 {
	x, y, z := num(uint32(a)), num(uint32(b)), num(uint32(c))
	if s := exactFMA(x, y, z); s != nil {
		return g.round(s, false)
	}
	return g.special(x*y + z)
}

// special returns the bits of a zero, an infinity or a NaN.
func (g grid) special(x float64) uint64 {
	switch {
	case x != x:
		return 0x7fff
	case math.IsInf(x, 1):
		return g.inf
	case math.IsInf(x, -1):
		return 0x8000 | g.inf
	}
	return math.Float64bits(x) >> 48 & 0x8000
}

func both(f func(a, b, c uint64) uint64) func(a, b, c uint64) uint64 {
	return func(a, b, c uint64) uint64 {
		return f(a&0xffff, b&0xffff, c&0xffff) | f(a>>16, b>>16, c>>16)<<16
	}
}

// lesser is min of PTX: a number wins over a NaN, and -0 is below +0.
func lesser(x, y float64) float64 {
	switch {
	case x != x:
		return y
	case y != y:
		return x
	}
	return min(x, y)
}

func TestFloats(t *testing.T) {
	b, c, d := []int{32, 32}, []int{32, 32, 32}, []int{64, 64, 64}
	un := func(instr string, f func(x float32) float32) operation {
		return operation{instr, 32, b[:1], f32Pool, func(a, _, _ uint64) uint64 { return b32(f(of32(a))) }}
	}
	bin := func(instr string, f func(x, y float32) float32) operation {
		return operation{instr, 32, b, f32Pool, func(a, e, _ uint64) uint64 { return b32(f(of32(a), of32(e))) }}
	}
	bin64 := func(instr string, f func(x, y float64) float64) operation {
		return operation{instr, 64, d[:2], f64Pool, func(a, e, _ uint64) uint64 { return b64(f(of64(a), of64(e))) }}
	}
	double := func(f func(x float64) float64) func(float32) float32 {
		return func(x float32) float32 { return float32(f(float64(x))) }
	}
	flush := func(x float32) float32 {
		if x > -0x1p-126 && x < 0x1p-126 {
			return float32(math.Copysign(0, float64(x)))
		}
		return x
	}
	sat := func(x float32) float32 {
		if x != x {
			return 0
		}
		return max(0, min(x, 1))
	}
	runOperations(t, []operation{
		bin("add.rn.f32 $d, $a, $b;", func(x, y float32) float32 { return x + y }),
		bin("add.f32 $d, $a, $b;", func(x, y float32) float32 { return x + y }),
		bin("sub.f32 $d, $a, $b;", func(x, y float32) float32 { return x - y }),
		bin("mul.f32 $d, $a, $b;", func(x, y float32) float32 { return x * y }),
		bin("mul.ftz.f32 $d, $a, $b;", func(x, y float32) float32 { return flush(flush(x) * flush(y)) }),
		bin("add.sat.f32 $d, $a, $b;", func(x, y float32) float32 { return sat(x + y) }),
		bin("div.rn.f32 $d, $a, $b;", func(x, y float32) float32 { return x / y }),
		bin("min.f32 $d, $a, $b;", func(x, y float32) float32 { return float32(lesser(float64(x), float64(y))) }),
		bin("max.f32 $d, $a, $b;", func(x, y float32) float32 { return float32(-lesser(-float64(x), -float64(y))) }),
		bin("max.NaN.f32 $d, $a, $b;", func(x, y float32) float32 { return max(x, y) }),
		{"fma.rn.f32 $d, $a, $b, $c;", 32, c, f32Pool,
			func(a, b, c uint64) uint64 { return b32(fma32(of32(a), of32(b), of32(c))) }},
		{"add.rz.f32 $d, $a, $b;", 32, b, f32Pool, func(a, b, _ uint64) uint64 {
			x, y := of32(a), of32(b)
			s := x + y
			if e := exactFMA(float64(x), 1, float64(y)); e != nil {
				back, acc := e.Float32()
				if s = back; acc == big.Above && back > 0 || acc == big.Below && back < 0 {
					s = math.Nextafter32(back, 0)
				}
			}
			return b32(s)
		}},
		un("sqrt.rn.f32 $d, $a;", double(math.Sqrt)),
		un("rcp.rn.f32 $d, $a;", func(x float32) float32 { return 1 / x }),
		un("rcp.approx.ftz.f32 $d, $a;", func(x float32) float32 { return flush(1 / flush(x)) }),
		un("rsqrt.approx.f32 $d, $a;", double(func(x float64) float64 { return 1 / math.Sqrt(x) })),
		un("ex2.approx.f32 $d, $a;", double(math.Exp2)),
		un("ex2.approx.ftz.f32 $d, $a;", func(x float32) float32 {
			return flush(float32(math.Exp2(float64(flush(x)))))
		}),
		un("lg2.approx.f32 $d, $a;", double(math.Log2)),
		un("tanh.approx.f32 $d, $a;", double(math.Tanh)),
		un("sin.approx.f32 $d, $a;", double(math.Sin)),
		un("cos.approx.f32 $d, $a;", double(math.Cos)),
		{"abs.f32 $d, $a;", 32, b[:1], f32Pool, func(a, _, _ uint64) uint64 { return a &^ (1 << 31) }},
		{"neg.f32 $d, $a;", 32, b[:1], f32Pool, func(a, _, _ uint64) uint64 { return a ^ 1<<31 }},
		{"copysign.f32 $d, $a, $b;", 32, b, f32Pool,
			func(a, b, _ uint64) uint64 { return a&(1<<31) | b&^(1<<31) }},
		bin64("add.f64 $d, $a, $b;", func(x, y float64) float64 { return x + y }),
		bin64("sub.f64 $d, $a, $b;", func(x, y float64) float64 { return x - y }),
		bin64("mul.f64 $d, $a, $b;", func(x, y float64) float64 { return x * y }),
		bin64("div.rn.f64 $d, $a, $b;", func(x, y float64) float64 { return x / y }),
		bin64("min.f64 $d, $a, $b;", lesser),
		{"fma.rn.f64 $d, $a, $b, $c;", 64, d, f64Pool,
			func(a, b, c uint64) uint64 { return b64(math.FMA(of64(a), of64(b), of64(c))) }},
		{"sqrt.rn.f64 $d, $a;", 64, d[:1], f64Pool, func(a, _, _ uint64) uint64 { return b64(math.Sqrt(of64(a))) }},
		{"rcp.rn.f64 $d, $a;", 64, d[:1], f64Pool, func(a, _, _ uint64) uint64 { return b64(1 / of64(a)) }},
		{"neg.f64 $d, $a;", 64, d[:1], f64Pool, func(a, _, _ uint64) uint64 { return a ^ 1<<63 }},
	})
}

func TestHalves(t *testing.T) {
	c, p := []int{16, 16, 16}, []int{32, 32, 32}
	pairs := func(pool []uint64) (out []uint64) {
		for i, v := range pool {
			out = append(out, v|pool[(i+5)%len(pool)]<<16, v<<16|pool[(i*7+1)%len(pool)])
		}
		return out
	}
	one := func(g grid, num func(uint32) float64, f func(x, y float64) float64) func(a, b, c uint64) uint64 {
		return func(a, b, _ uint64) uint64 {
			x := f(num(uint32(a)), num(uint32(b)))
			if x == 0 || !finite(x) {
				return g.special(x)
			}
			return g.round(big.NewFloat(x), false) // a sum or product of halves that is rounded here is exact
		}
	}
	var ops []operation
	for _, f := range []struct {
		name string
		g    grid
		num  func(uint32) float64
		pool []uint64
	}{{"f16", halves, halfValue, f16Pool}, {"bf16", bfloats, bf16, bf16Pool}} {
		fma := func(a, b, c uint64) uint64 { return f.g.fma(f.num, a, b, c) }
		sum := func(a, b, _ uint64) uint64 {
			x, y := f.num(uint32(a)), f.num(uint32(b))
			if s := exactFMA(x, 1, y); s != nil {
				return f.g.round(s, false)
			}
			return f.g.special(x + y)
		}
		product := one(f.g, f.num, func(x, y float64) float64 { return x * y })
		least := func(a, b, _ uint64) uint64 {
			x, y := f.num(uint32(a)), f.num(uint32(b))
			switch m := lesser(x, y); {
			case m != m:
				return 0x7fff
			case x == m && (math.Signbit(x) == math.Signbit(m)):
				return a
			default:
				return b
			}
		}
		tanh := one(f.g, f.num, func(x, _ float64) float64 { return math.Tanh(x) })
		relu := func(a, b, c uint64) uint64 {
			if v := fma(a, b, c); v < 0x8000 {
				return v
			}
			return 0
		}
		two := pairs(f.pool)
		ops = append(ops,
			operation{"fma.rn." + f.name + " $d, $a, $b, $c;", 16, c, f.pool, fma},
			operation{"fma.rn." + f.name + "x2 $d, $a, $b, $c;", 32, p, two, both(fma)},
			operation{"fma.rn.relu." + f.name + " $d, $a, $b, $c;", 16, c, f.pool, relu},
			operation{"add.rn." + f.name + "x2 $d, $a, $b;", 32, p[:2], two, both(sum)},
			operation{"add.rn." + f.name + " $d, $a, $b;", 16, c[:2], f.pool, sum},
			operation{"mul.rn." + f.name + "x2 $d, $a, $b;", 32, p[:2], two, both(product)},
			operation{"min." + f.name + "x2 $d, $a, $b;", 32, p[:2], two, both(least)},
			operation{"tanh.approx." + f.name + " $d, $a;", 16, c[:1], f.pool, tanh},
			operation{"neg." + f.name + "x2 $d, $a;", 32, p[:1], two,
				func(a, _, _ uint64) uint64 { return a ^ 0x80008000 }},
			operation{"abs." + f.name + " $d, $a;", 16, c[:1], f.pool,
				func(a, _, _ uint64) uint64 { return a & 0x7fff }},
		)
	}
	runOperations(t, ops)
}

func TestComparisons(t *testing.T) {
	var ops []operation
	yes := func(b bool) uint64 { return choose[uint64](b, 1, 0) }
	add := func(instr string, bits int, pool []uint64, f func(a, b uint64) bool) {
		ops = append(ops, operation{instr + " selp.b32 $d, 1, 0, p1;", 32, []int{bits, bits}, pool,
			func(a, b, _ uint64) uint64 { return yes(f(a, b)) }})
	}
	type rel struct {
		name string
		f    func(n int) bool
	}
	rels := []rel{{"eq", func(n int) bool { return n == 0 }}, {"ne", func(n int) bool { return n != 0 }},
		{"lt", func(n int) bool { return n < 0 }}, {"le", func(n int) bool { return n <= 0 }},
		{"gt", func(n int) bool { return n > 0 }}, {"ge", func(n int) bool { return n >= 0 }}}
	for _, r := range rels {
		add("setp."+r.name+".s32 p1, $a, $b;", 32, nil,
			func(a, b uint64) bool { return r.f(big.NewInt(s32(a)).Cmp(big.NewInt(s32(b)))) })
		add("setp."+r.name+".u32 p1, $a, $b;", 32, nil,
			func(a, b uint64) bool { return r.f(unsigned(a).Cmp(unsigned(b))) })
		add("setp."+r.name+".u64 p1, $a, $b;", 64, nil,
			func(a, b uint64) bool { return r.f(unsigned(a).Cmp(unsigned(b))) })
		add("setp."+r.name+".s64 p1, $a, $b;", 64, nil,
			func(a, b uint64) bool { return r.f(signed(a).Cmp(signed(b))) })
		floats := func(name string, nan bool) {
			add("setp."+name+".f32 p1, $a, $b;", 32, f32Pool, func(a, b uint64) bool {
				x, y := of32(a), of32(b)
				if x != x || y != y {
					return nan
				}
				return r.f(choose(x < y, -1, choose(x > y, 1, 0)))
			})
			add("setp."+name+".f64 p1, $a, $b;", 64, f64Pool, func(a, b uint64) bool {
				x, y := of64(a), of64(b)
				if x != x || y != y {
					return nan
				}
				return r.f(choose(x < y, -1, choose(x > y, 1, 0)))
			})
			add("setp."+name+".f16 p1, $a, $b;", 16, f16Pool, func(a, b uint64) bool {
				x, y := halfValue(uint32(a)), halfValue(uint32(b))
				if x != x || y != y {
					return nan
				}
				return r.f(choose(x < y, -1, choose(x > y, 1, 0)))
			})
		}
		floats(r.name, false)
		floats(r.name+"u", true)
	}
	add("setp.num.f32 p1, $a, $b;", 32, f32Pool,
		func(a, b uint64) bool { return of32(a) == of32(a) && of32(b) == of32(b) })
	add("setp.nan.f32 p1, $a, $b;", 32, f32Pool,
		func(a, b uint64) bool { return of32(a) != of32(a) || of32(b) != of32(b) })
	add("setp.hi.u32 p1, $a, $b;", 32, nil,
		func(a, b uint64) bool { return a > b })
	add("testp.subnormal.f32 p1, $a;", 32, f32Pool,
		func(a, _ uint64) bool { return a&0x7f800000 == 0 && a&0x7fffff != 0 })
	add("setp.gt.s32 p2, $b, 0; setp.lt.and.s32 p1, $a, $b, p2;", 32, nil,
		func(a, b uint64) bool { return s32(a) < s32(b) && s32(b) > 0 })
	add("setp.gt.s32 p2, $b, 0; setp.lt.or.s32 p1, $a, $b, !p2;", 32, nil,
		func(a, b uint64) bool { return s32(a) < s32(b) || s32(b) <= 0 })
	add("setp.gt.s32 p2, $b, 0; setp.lt.xor.s32 p3|p1, $a, $b, p2;", 32, nil,
		func(a, b uint64) bool { return s32(a) >= s32(b) != (s32(b) > 0) })
	add("setp.lt.s32 p2|p3, $a, $b; not.pred p1, p2; and.pred p1, p1, p3;", 32, nil,
		func(a, b uint64) bool { return s32(a) >= s32(b) })
	add("setp.lt.s32 p2, $a, 0; setp.lt.s32 p3, $b, 0; xor.pred p1, p2, p3;", 32, nil,
		func(a, b uint64) bool { return s32(a) < 0 != (s32(b) < 0) })
	ops = append(ops, operation{"set.gt.u32.f32 $d, $a, $b;", 32, []int{32, 32}, f32Pool,
		func(a, b, _ uint64) uint64 { return -yes(of32(a) > of32(b)) }})
	runOperations(t, ops)
}

func TestConversions(t *testing.T) {
	var ops []operation
	types := []struct {
		name   string
		bits   int
		signed bool
	}{{"u8", 8, false}, {"s8", 8, true}, {"u16", 16, false}, {"s16", 16, true}, {"u32", 32, false}, {"s32", 32, true},
		{"u64", 64, false}, {"s64", 64, true}}
	value := func(v uint64, bits int, sign bool) *big.Int {
		if sign {
			return signed(uint64(int64(v<<(64-bits)) >> (64 - bits)))
		}
		return unsigned(v << (64 - bits) >> (64 - bits))
	}
	limits := func(bits int, sign bool) (lo, hi *big.Int) {
		n := new(big.Int).Lsh(big.NewInt(1), uint(bits))
		if sign {
			n.Rsh(n, 1)
			return new(big.Int).Neg(n), n.Sub(n, big.NewInt(1))
		}
		return new(big.Int), n.Sub(n, big.NewInt(1))
	}
	low := func(x *big.Int) uint64 {
		return new(big.Int).And(x, new(big.Int).SetUint64(math.MaxUint64)).Uint64()
	}
	clamp := func(x *big.Int, bits int, sign bool) uint64 {
		lo, hi := limits(bits, sign)
		if x.Cmp(lo) < 0 {
			x = lo
		}
		if x.Cmp(hi) > 0 {
			x = hi
		}
		return low(x)
	}
	for _, d := range types {
		db := max(d.bits, 16)
		for _, s := range types {
			sb := max(s.bits, 16)
			ops = append(ops, operation{fmt.Sprintf("cvt.%s.%s $d, $a;", d.name, s.name), db, []int{sb}, nil,
				func(a, _, _ uint64) uint64 {
					return low(value(low(value(a, s.bits, s.signed)), d.bits, d.signed))
				}})
			if d.name != s.name && (d.bits < s.bits || d.bits == s.bits || s.signed && !d.signed) {
				ops = append(ops, operation{fmt.Sprintf("cvt.sat.%s.%s $d, $a;", d.name, s.name), db, []int{sb}, nil,
					func(a, _, _ uint64) uint64 { return clamp(value(a, s.bits, s.signed), d.bits, d.signed) }})
			}
		}
		for mode, round := range map[string]func(float64) float64{"rni": math.RoundToEven, "rzi": math.Trunc,
			"rmi": math.Floor, "rpi": math.Ceil} {
			for _, s := range []struct {
				name string
				bits int
				pool []uint64
				num  func(uint64) float64
			}{{"f32", 32, f32Pool, func(v uint64) float64 { return float64(of32(v)) }}, {"f64", 64, f64Pool, of64},
				{"f16", 16, f16Pool, func(v uint64) float64 { return halfValue(uint32(v)) }}} {
				ops = append(ops, operation{fmt.Sprintf("cvt.%s.%s.%s $d, $a;", mode, d.name, s.name), db,
					[]int{s.bits}, s.pool, func(a, _, _ uint64) uint64 {
						x := round(s.num(a))
						switch lo, hi := limits(d.bits, d.signed); {
						case x != x && d.bits != 64 && s.bits != 64:
							return 0
						case x != x && d.signed:
							return low(lo)
						case x != x:
							return 1 << (d.bits - 1)
						case math.IsInf(x, 1):
							return low(hi)
						case math.IsInf(x, -1):
							return low(lo)
						}
						i, _ := big.NewFloat(x).Int(nil)
						return clamp(i, d.bits, d.signed)
					}})
			}
		}
		sb := max(d.bits, 16)
		for mode, m := range map[string]big.RoundingMode{"rn": big.ToNearestEven, "rz": big.ToZero,
			"rm": big.ToNegativeInf, "rp": big.ToPositiveInf} {
			exact := func(a uint64, prec uint) *big.Float {
				return new(big.Float).SetPrec(prec).SetMode(m).SetInt(value(a, d.bits, d.signed))
			}
			ops = append(ops, operation{fmt.Sprintf("cvt.%s.f32.%s $d, $a;", mode, d.name), 32, []int{sb}, nil,
				func(a, _, _ uint64) uint64 {
					v, _ := exact(a, 24).Float32()
					return b32(v)
				}}, operation{fmt.Sprintf("cvt.%s.f64.%s $d, $a;", mode, d.name), 64, []int{sb}, nil,
				func(a, _, _ uint64) uint64 {
					v, _ := exact(a, 53).Float64()
					return b64(v)
				}})
		}
		ops = append(ops, operation{fmt.Sprintf("cvt.rn.f16.%s $d, $a;", d.name), 16, []int{sb}, nil,
			func(a, _, _ uint64) uint64 {
				x := new(big.Float).SetInt(value(a, d.bits, d.signed))
				return choose(x.Sign() == 0, 0, halves.round(x, false))
			}})
	}
	narrow := func(g grid, toward bool, num func(uint64) float64) func(a, _, _ uint64) uint64 {
		return func(a, _, _ uint64) uint64 {
			x := num(a)
			if x == 0 || !finite(x) {
				return g.special(x)
			}
			return g.round(big.NewFloat(x), toward)
		}
	}
	num32 := func(v uint64) float64 { return float64(of32(v)) }
	pair := func(g grid, toward bool) func(a, b, _ uint64) uint64 {
		f := narrow(g, toward, num32)
		return func(a, b, _ uint64) uint64 { return f(a, 0, 0)<<16 | f(b, 0, 0) }
	}
	f, ff := []int{32}, []int{32, 32}
	ops = append(ops,
		operation{"cvt.rn.f16.f32 $d, $a;", 16, f, f32Pool, narrow(halves, false, num32)},
		operation{"cvt.rz.f16.f32 $d, $a;", 16, f, f32Pool, narrow(halves, true, num32)},
		operation{"cvt.rn.f16.f64 $d, $a;", 16, []int{64}, f64Pool, narrow(halves, false, of64)},
		operation{"cvt.rn.bf16.f32 $d, $a;", 16, f, f32Pool, narrow(bfloats, false, num32)},
		operation{"cvt.rn.f16x2.f32 $d, $a, $b;", 32, ff, f32Pool, pair(halves, false)},
		operation{"cvt.rz.bf16x2.f32 $d, $a, $b;", 32, ff, f32Pool, pair(bfloats, true)},
		operation{"cvt.rn.bf16x2.f32 $d, $a, $b;", 32, ff, f32Pool, pair(bfloats, false)},
		operation{"cvt.f32.f16 $d, $a;", 32, []int{16}, f16Pool,
			func(a, _, _ uint64) uint64 { return b32(float32(halfValue(uint32(a)))) }},
		operation{"cvt.f32.bf16 $d, $a;", 32, []int{16}, bf16Pool,
			func(a, _, _ uint64) uint64 { return b32(float32(bf16(uint32(a)))) }},
		operation{"cvt.f64.f32 $d, $a;", 64, f, f32Pool,
			func(a, _, _ uint64) uint64 { return b64(num32(a)) }},
		operation{"cvt.rn.f32.f64 $d, $a;", 32, []int{64}, f64Pool,
			func(a, _, _ uint64) uint64 { return b32(float32(of64(a))) }},
		operation{"cvt.rzi.f32.f32 $d, $a;", 32, f, f32Pool,
			func(a, _, _ uint64) uint64 { return b32(float32(math.Trunc(num32(a)))) }},
		operation{"cvt.sat.f32.f32 $d, $a;", 32, f, f32Pool, func(a, _, _ uint64) uint64 {
			return b32(float32(choose(num32(a) > 0, min(num32(a), 1), 0)))
		}},
		operation{"cvt.rna.tf32.f32 $d, $a;", 32, f, f32Pool, func(a, _, _ uint64) uint64 {
			if x := num32(a); !finite(x) {
				return b32(float32(x))
			}
			return (a + 0x1000) &^ 0x1fff
		}},
		operation{"cvt.u32.u8 $d, $a;", 32, []int{16}, nil,
			func(a, _, _ uint64) uint64 { return a & 0xff }},
		operation{"cvt.s32.s8 $d, $a;", 32, f, nil,
			func(a, _, _ uint64) uint64 { return uint64(int8(a)) }},
	)
	runOperations(t, ops)
}
