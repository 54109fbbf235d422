package ptxsim

import (
	"math"
	"math/bits"
)

// rounding is a rounding mode.
type rounding uint8

const (
	nearest rounding = iota // to nearest, ties to even: rn, rni
	zero                    // rz, rzi
	down                    // rm, rmi
	up                      // rp, rpi
	away                    // to nearest, ties away from zero: rna
)

var roundings = map[string]rounding{"rn": nearest, "rz": zero, "rm": down, "rp": up, "rna": away,
	"rni": nearest, "rzi": zero, "rmi": down, "rpi": up}

// format is a binary float: bits of the fraction and of the exponent.
type format struct{ fraction, exponent int }

var formats = map[Type]format{F16: {10, 5}, BF16: {7, 8}, TF32: {10, 8}, F32: {23, 8}}

// encode rounds x to a format. A NaN becomes the canonical NaN of PTX, whose bits are all ones but for the sign.
func (f format) encode(x float64, mode rounding) uint64 {
	neg := math.Signbit(x)
	sign := uint64(0)
	if neg {
		sign = 1 << (f.fraction + f.exponent)
	}
	inf := (uint64(1)<<f.exponent - 1) << f.fraction
	switch {
	case math.IsNaN(x):
		return 1<<(f.fraction+f.exponent) - 1
	case math.IsInf(x, 0):
		return sign | inf
	case x == 0:
		return sign
	}
	frac, exp := math.Frexp(math.Abs(x))
	sig := uint64(math.Ldexp(frac, 53)) // 53 bits, of which the first is 1
	exp--                               // |x| = sig·2^(exp-52)
	least := 2 - 1<<(f.exponent-1)      // exponent of the smallest normal number
	shift := 52 - f.fraction
	if exp < least {
		shift = min(shift+least-exp, 55)
	}
	q := sig >> shift
	rest, half := sig&(1<<shift-1), uint64(1)<<(shift-1)
	switch {
	case mode == nearest && (rest > half || rest == half && q&1 != 0),
		mode == away && rest >= half,
		mode == down && neg && rest > 0,
		mode == up && !neg && rest > 0:
		q++
	}
	if exp >= least {
		q += uint64(exp-least) << f.fraction // the leading 1 of q adds the last 1 to the exponent
	}
	if q >= inf {
		q = inf
		if mode == zero || mode == down && !neg || mode == up && neg {
			q--
		}
	}
	return sign | q
}

// decode returns the value of a float.
func (f format) decode(v uint64) float64 {
	frac := v & (1<<f.fraction - 1)
	exp := int(v >> f.fraction & (1<<f.exponent - 1))
	bias := 1<<(f.exponent-1) - 1
	var x float64
	switch {
	case exp == 1<<f.exponent-1 && frac != 0:
		return math.NaN()
	case exp == 1<<f.exponent-1:
		x = math.Inf(1)
	case exp == 0:
		x = math.Ldexp(float64(frac), 1-bias-f.fraction)
	default:
		x = math.Float64frombits(uint64(exp-bias+1023)<<52 | frac<<(52-f.fraction))
	}
	if v>>(f.fraction+f.exponent)&1 != 0 {
		return -x
	}
	return x
}

// value and pattern convert between the bits of a type and a number; pattern rounds to nearest.
func value(t Type, v uint64) float64 {
	switch t {
	case F32:
		return float64(math.Float32frombits(uint32(v)))
	case F64:
		return math.Float64frombits(v)
	case BF16:
		return float64(math.Float32frombits(uint32(v) << 16))
	case TF32:
		return float64(math.Float32frombits(uint32(v) &^ 0x1fff))
	}
	return formats[F16].decode(v)
}

func pattern(t Type, x float64) uint64 {
	switch t {
	case F32:
		return bits32(float32(x))
	case F64:
		return bits64(x)
	}
	return formats[t].encode(x, nearest)
}

const (
	nan32 = 0x7fffffff
	nan64 = 0x7fffffffffffffff
)

// bits32 and bits64 return the bits of a result, whose NaN is the canonical one.
func bits32(x float32) uint64 {
	if x != x {
		return nan32
	}
	return uint64(math.Float32bits(x))
}

func bits64(x float64) uint64 {
	if x != x {
		return nan64
	}
	return math.Float64bits(x)
}

// odd returns a·b+c with a, b and c of at most 26 bits, rounded to odd: if the result is not exact, its last bit is 1.
// Rounding it again to 51 bits or fewer gives what one rounding of the exact result does (Boldo and Melquiond, 2005).
func odd(a, b, c float64) float64 {
	p := float64(a * b)
	s := float64(p + c)
	if math.IsInf(s, 0) || math.IsNaN(s) {
		return s
	}
	t := float64(s - p)
	e := float64(p-float64(s-t)) + float64(c-t)
	return stick(s, e)
}

// stick makes s odd if an error e remains.
func stick(s, e float64) float64 {
	if e == 0 || math.Float64bits(s)&1 != 0 {
		return s
	}
	v := math.Float64bits(s)
	if (e > 0) == (s > 0) {
		v++
	} else {
		v--
	}
	return math.Float64frombits(v)
}

// oddInteger converts an integer to a float, rounded to odd.
func oddInteger(v uint64, signed bool) float64 {
	neg := signed && int64(v) < 0
	if neg {
		v = -v
	}
	if n := bits.Len64(v); n > 53 {
		s := n - 53
		if v&(1<<s-1) != 0 {
			v |= 1 << s
		}
		v = v >> s << s
	}
	if neg {
		return -float64(v)
	}
	return float64(v)
}

// flush replaces a subnormal number of f32 by a zero with its sign.
func flush(v uint64) uint64 {
	if v&0x7f800000 == 0 {
		return v & 0x80000000
	}
	return v
}
