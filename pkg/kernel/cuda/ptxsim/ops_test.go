package ptxsim_test

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/big"
	"math/bits"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/ptxsim"
)

// operation is an instruction with the operands $d, $a, $b and $c, registers of so many bits, and what it computes.
type operation struct {
	instr   string
	d       int
	sources []int
	pool    []uint64 // values of operands beside random ones; nil: integers
	ref     func(a, b, c uint64) uint64
}

var integerPool = []uint64{0, 1, 2, 3, 31, 32, 33, 63, 64, 65, 100, 255, 0x7f, 0x80, 0x7fff, 0x8000, 0xffff, 0x7fffffff,
	0x80000000, 0xffffffff, 0x7fffffffffffffff, 0x8000000000000000, 0xffffffffffffffff, 0xfffffffffffffffe}

var f32Pool = []uint64{
	0, 0x80000000, 0x3f800000, 0xbf800000, 0x7f800000, 0xff800000, 0x7fc00000, 0x00000001, 0x80000001,
	0x007fffff, 0x00800000, 0x7f7fffff, 0x3f000000, 0x40000000, 0x4b000000, 0x4b000001, 0x33800000, 0x33800001,
	0x477fe000, 0x477ff000, 0x38800000, 0x33000000, 0x387fc000, 0x3f801000, 0x3f803000, 0x3f808000, 0x3f818000,
	0xcf000000, 0x4f000000, 0x4f800000, 0x5f000000, 0x5f800000, 0x3fc00000, 0x40200000, 0xc0200000,
}

var f64Pool = []uint64{
	0, 1 << 63, 0x3ff0000000000000, 0x7ff0000000000000, 0x7ff8000000000000, 1, 0x0010000000000000,
	0x7fefffffffffffff, 0x47efffffe0000000, 0x47effffff0000000, 0x36a0000000000000, 0x3690000000000001,
	0xc3e0000000000000, 0x43e0000000000000, 0x43f0000000000000, 0x3fe0000000000000, 0x4004000000000000,
}

var f16Pool = []uint64{0, 0x8000, 0x3c00, 0xbc00, 0x7c00, 0xfc00, 0x7e00, 1, 0x8001, 0x3ff, 0x400, 0x7bff, 0x3555}

var bf16Pool = []uint64{0, 0x8000, 0x3f80, 0xbf80, 0x7f80, 0xff80, 0x7fc0, 1, 0x8001, 0x7f, 0x80, 0x7f7f, 0x3eab}

// runOperations runs each operation on random and on special operands and compares.
func runOperations(t *testing.T, ops []operation) {
	t.Helper()
	const threads = 256
	var text strings.Builder
	for i, o := range ops {
		fmt.Fprintf(&text, ".visible .entry k%d(.param .u64 p)\n{\n.reg .b64 q, w; .reg .b32 i; .reg .pred p1, p2, p3;\n", i)
		instr := o.instr
		fmt.Fprintf(&text, "ld.param.u64 q, [p]; mov.u32 i, %%tid.x; mul.wide.u32 w, i, 32; add.u64 q, q, w;\n")
		for j, n := range o.sources {
			name := string(rune('a' + j))
			fmt.Fprintf(&text, ".reg .b%d v%s; ld.global.b%d v%s, [q+%d];\n", n, name, n, name, 8*j)
			instr = strings.ReplaceAll(instr, "$"+name, "v"+name)
		}
		fmt.Fprintf(&text, ".reg .b%d vd;\n%s\nst.global.b%d [q+24], vd;\nret;\n}\n", o.d, strings.ReplaceAll(instr, "$d", "vd"), o.d)
	}
	d := ptxsim.NewDevice(ptxsim.Options{})
	m := load(t, d, text.String())
	r := rand.New(rand.NewPCG(7, 7))
	p := alloc(t, d, make([]byte, 32*threads))
	data := memory(t, d, p, 32*threads)
	for i, o := range ops {
		pool := o.pool
		if pool == nil {
			pool = integerPool
		}
		for j := range threads * 4 {
			v := r.Uint64() >> r.Uint64N(64)
			if r.IntN(3) > 0 || j < 2*len(pool) {
				v = pool[r.IntN(len(pool))]
			}
			binary.LittleEndian.PutUint64(data[8*j:], v)
		}
		if err := m.Launch(fmt.Sprintf("k%d", i), one(1), one(threads), 0, p); err != nil {
			t.Errorf("%s: %v", o.instr, err)
			continue
		}
		for j := range threads {
			var in [3]uint64
			for s, n := range o.sources {
				in[s] = binary.LittleEndian.Uint64(data[32*j+8*s:]) & (1<<n - 1)
			}
			mask := uint64(1)<<o.d - 1
			got := binary.LittleEndian.Uint64(data[32*j+24:]) & mask
			if want := o.ref(in[0], in[1], in[2]) & mask; got != want {
				t.Errorf("%s: of %#x is %#x, not %#x", o.instr, in, got, want)
				break
			}
		}
	}
}

func s32(v uint64) int64 { return int64(int32(v)) }
func s16(v uint64) int64 { return int64(int16(v)) }

// wide is an exact product by math/big, shifted right.
func wide(a, b *big.Int, shift uint) uint64 {
	p := new(big.Int).Mul(a, b)
	p.Rsh(p, shift)
	return p.And(p, new(big.Int).SetUint64(math.MaxUint64)).Uint64()
}

func signed(v uint64) *big.Int   { return big.NewInt(int64(v)) }
func unsigned(v uint64) *big.Int { return new(big.Int).SetUint64(v) }

func choose[T any](b bool, x, y T) T {
	if b {
		return x
	}
	return y
}

func TestIntegers(t *testing.T) {
	b32, b64, b16 := []int{32, 32}, []int{64, 64}, []int{16, 16}
	t32, t64 := []int{32, 32, 32}, []int{64, 64, 64}
	runOperations(t, []operation{
		{"add.u32 $d, $a, $b;", 32, b32, nil, func(a, b, _ uint64) uint64 { return a + b }},
		{"add.s64 $d, $a, $b;", 64, b64, nil, func(a, b, _ uint64) uint64 { return a + b }},
		{"add.u16 $d, $a, $b;", 16, b16, nil, func(a, b, _ uint64) uint64 { return a + b }},
		{"add.sat.s32 $d, $a, $b;", 32, b32, nil, func(a, b, _ uint64) uint64 {
			return uint64(max(min(s32(a)+s32(b), math.MaxInt32), math.MinInt32))
		}},
		{"sub.s32 $d, $a, $b;", 32, b32, nil, func(a, b, _ uint64) uint64 { return a - b }},
		{"sub.u64 $d, $a, 5;", 64, b64[:1], nil, func(a, _, _ uint64) uint64 { return a - 5 }},
		{"add.s32 $d, $a, -7;", 32, b32[:1], nil, func(a, _, _ uint64) uint64 { return a - 7 }},
		{"mul.lo.s32 $d, $a, $b;", 32, b32, nil, func(a, b, _ uint64) uint64 { return a * b }},
		{"mul.lo.u64 $d, $a, $b;", 64, b64, nil, func(a, b, _ uint64) uint64 { return a * b }},
		{"mul.hi.s32 $d, $a, $b;", 32, b32, nil, func(a, b, _ uint64) uint64 { return uint64(s32(a)*s32(b)) >> 32 }},
		{"mul.hi.u32 $d, $a, $b;", 32, b32, nil, func(a, b, _ uint64) uint64 { return a * b >> 32 }},
		{"mul.hi.u64 $d, $a, $b;", 64, b64, nil, func(a, b, _ uint64) uint64 { return wide(unsigned(a), unsigned(b), 64) }},
		{"mul.hi.s64 $d, $a, $b;", 64, b64, nil, func(a, b, _ uint64) uint64 { return wide(signed(a), signed(b), 64) }},
		{"mul.wide.s32 $d, $a, $b;", 64, b32, nil, func(a, b, _ uint64) uint64 { return uint64(s32(a) * s32(b)) }},
		{"mul.wide.u32 $d, $a, $b;", 64, b32, nil, func(a, b, _ uint64) uint64 { return a * b }},
		{"mul.wide.s16 $d, $a, $b;", 32, b16, nil, func(a, b, _ uint64) uint64 { return uint64(s16(a) * s16(b)) }},
		{"mad.lo.s32 $d, $a, $b, $c;", 32, t32, nil, func(a, b, c uint64) uint64 { return a*b + c }},
		{"mad.lo.u64 $d, $a, $b, $c;", 64, t64, nil, func(a, b, c uint64) uint64 { return a*b + c }},
		{"mad.hi.u32 $d, $a, $b, $c;", 32, t32, nil, func(a, b, c uint64) uint64 { return a*b>>32 + c }},
		{"mad.wide.u32 $d, $a, $b, $c;", 64, []int{32, 32, 64}, nil, func(a, b, c uint64) uint64 { return a*b + c }},
		{"mad.wide.s32 $d, $a, $b, $c;", 64, []int{32, 32, 64}, nil,
			func(a, b, c uint64) uint64 { return uint64(s32(a)*s32(b)) + c }},
		{"or.b32 vb, $b, 1; div.u32 $d, $a, $b;", 32, b32, nil, func(a, b, _ uint64) uint64 { return a / (b | 1) }},
		{"or.b32 vb, $b, 1; div.s32 $d, $a, $b;", 32, b32, nil, func(a, b, _ uint64) uint64 { return uint64(s32(a) / s32(b|1)) }},
		{"or.b32 vb, $b, 1; rem.s32 $d, $a, $b;", 32, b32, nil, func(a, b, _ uint64) uint64 { return uint64(s32(a) % s32(b|1)) }},
		{"or.b64 vb, $b, 1; rem.u64 $d, $a, $b;", 64, b64, nil, func(a, b, _ uint64) uint64 { return a % (b | 1) }},
		{"or.b64 vb, $b, 1; div.u64 $d, $a, $b;", 64, b64, nil, func(a, b, _ uint64) uint64 { return a / (b | 1) }},
		{"min.s32 $d, $a, $b;", 32, b32, nil, func(a, b, _ uint64) uint64 { return uint64(min(s32(a), s32(b))) }},
		{"max.s32 $d, $a, $b;", 32, b32, nil, func(a, b, _ uint64) uint64 { return uint64(max(s32(a), s32(b))) }},
		{"min.u32 $d, $a, $b;", 32, b32, nil, func(a, b, _ uint64) uint64 { return min(a, b) }},
		{"max.u64 $d, $a, $b;", 64, b64, nil, func(a, b, _ uint64) uint64 { return max(a, b) }},
		{"min.s64 $d, $a, $b;", 64, b64, nil, func(a, b, _ uint64) uint64 { return uint64(min(int64(a), int64(b))) }},
		{"abs.s32 $d, $a;", 32, b32[:1], nil, func(a, _, _ uint64) uint64 { return uint64(max(s32(a), -s32(a))) }},
		{"neg.s64 $d, $a;", 64, b64[:1], nil, func(a, _, _ uint64) uint64 { return -a }},
	})
}

func TestBits(t *testing.T) {
	b32, b64 := []int{32, 32}, []int{64, 64}
	t32 := []int{32, 32, 32}
	n64 := []int{64, 32}
	ops := []operation{
		{"and.b32 $d, $a, $b;", 32, b32, nil, func(a, b, _ uint64) uint64 { return a & b }},
		{"or.b64 $d, $a, $b;", 64, b64, nil, func(a, b, _ uint64) uint64 { return a | b }},
		{"xor.b16 $d, $a, $b;", 16, []int{16, 16}, nil, func(a, b, _ uint64) uint64 { return a ^ b }},
		{"not.b32 $d, $a;", 32, b32[:1], nil, func(a, _, _ uint64) uint64 { return ^a }},
		{"cnot.b32 $d, $a;", 32, b32[:1], nil, func(a, _, _ uint64) uint64 { return choose[uint64](a == 0, 1, 0) }},
		{"shl.b32 $d, $a, $b;", 32, b32, nil, func(a, b, _ uint64) uint64 { return uint64(uint32(a) << b) }},
		{"shl.b64 $d, $a, $b;", 64, n64, nil, func(a, b, _ uint64) uint64 { return a << b }},
		{"shr.u32 $d, $a, $b;", 32, b32, nil, func(a, b, _ uint64) uint64 { return uint64(uint32(a) >> b) }},
		{"shr.b64 $d, $a, $b;", 64, n64, nil, func(a, b, _ uint64) uint64 { return a >> b }},
		{"shr.s32 $d, $a, $b;", 32, b32, nil, func(a, b, _ uint64) uint64 { return uint64(int32(a) >> b) }},
		{"shr.s64 $d, $a, $b;", 64, n64, nil, func(a, b, _ uint64) uint64 { return uint64(int64(a) >> b) }},
		{"shf.l.wrap.b32 $d, $a, $b, $c;", 32, t32, nil,
			func(a, b, c uint64) uint64 { return (b<<32 | a) << (c & 31) >> 32 }},
		{"shf.r.clamp.b32 $d, $a, $b, $c;", 32, t32, nil, func(a, b, c uint64) uint64 { return (b<<32 | a) >> min(c, 32) }},
		{"popc.b32 $d, $a;", 32, b32[:1], nil, func(a, _, _ uint64) uint64 { return uint64(bits.OnesCount64(a)) }},
		{"popc.b64 $d, $a;", 32, b64[:1], nil, func(a, _, _ uint64) uint64 { return uint64(bits.OnesCount64(a)) }},
		{"clz.b32 $d, $a;", 32, b32[:1], nil, func(a, _, _ uint64) uint64 { return uint64(bits.LeadingZeros32(uint32(a))) }},
		{"clz.b64 $d, $a;", 32, b64[:1], nil, func(a, _, _ uint64) uint64 { return uint64(bits.LeadingZeros64(a)) }},
		{"brev.b32 $d, $a;", 32, b32[:1], nil, func(a, _, _ uint64) uint64 { return uint64(bits.Reverse32(uint32(a))) }},
		{"bfind.u32 $d, $a;", 32, b32[:1], nil, func(a, _, _ uint64) uint64 { return uint64(bits.Len64(a) - 1) }},
		{"bfind.shiftamt.s32 $d, $a;", 32, b32[:1], nil, func(a, _, _ uint64) uint64 {
			n := bits.LeadingZeros32(uint32(choose(int32(a) < 0, ^a, a)))
			return choose(n == 32, ^uint64(0), uint64(n))
		}},
		{"bfe.u32 $d, $a, 5, 9;", 32, b32[:1], nil, func(a, _, _ uint64) uint64 { return a >> 5 & 0x1ff }},
		{"bfe.s32 $d, $a, 28, 4;", 32, b32[:1], nil, func(a, _, _ uint64) uint64 { return uint64(int32(a) >> 28) }},
		{"bfe.s32 $d, $a, 3, 7;", 32, b32[:1], nil, func(a, _, _ uint64) uint64 { return uint64(int32(a) << 22 >> 25) }},
		{"bfe.s32 $d, $a, 20, 30;", 32, b32[:1], nil, func(a, _, _ uint64) uint64 { return uint64(int32(a) >> 20) }},
		{"bfe.u64 $d, $a, 40, 64;", 64, b64[:1], nil, func(a, _, _ uint64) uint64 { return a >> 40 }},
		{"bfe.s32 $d, $a, 3, 0;", 32, b32[:1], nil, func(_, _, _ uint64) uint64 { return 0 }},
		{"bfi.b32 $d, $a, $b, 4, 8;", 32, b32, nil, func(a, b, _ uint64) uint64 { return b&^0xff0 | a<<4&0xff0 }},
		{"bfi.b64 $d, $a, $b, 60, 8;", 64, b64, nil, func(a, b, _ uint64) uint64 { return b&(1<<60-1) | a<<60 }},
		{"bfi.b32 $d, $a, $b, 0, 200;", 32, b32, nil, func(a, _, _ uint64) uint64 { return a }},
		{"prmt.b32 $d, $a, $b, 0x5410;", 32, b32, nil, func(a, b, _ uint64) uint64 { return a&0xffff | b<<16 }},
		{"prmt.b32 $d, $a, $b, 0xf607;", 32, b32, nil, func(a, b, _ uint64) uint64 {
			return b>>24 | a&0xff<<8 | b>>16&0xff<<16 | choose[uint64](b>>31 != 0, 0xff000000, 0)
		}},
		{"prmt.b32.f4e $d, $a, $b, 1;", 32, b32, nil, func(a, b, _ uint64) uint64 { return (b<<32 | a) >> 8 }},
		{"prmt.b32.b4e $d, $a, $b, 1;", 32, b32, nil, func(a, b, _ uint64) uint64 {
			return a>>8&0xff | a&0xff<<8 | b>>24<<16 | b>>16&0xff<<24
		}},
		{"prmt.b32.rc8 $d, $a, $b, 2;", 32, b32, nil, func(a, _, _ uint64) uint64 { return a >> 16 & 0xff * 0x01010101 }},
		{"prmt.b32.rc16 $d, $a, $b, 1;", 32, b32, nil, func(a, _, _ uint64) uint64 { return a >> 16 * 0x10001 }},
		{"prmt.b32.ecl $d, $a, $b, 2;", 32, b32, nil, func(a, _, _ uint64) uint64 {
			return a>>16&0xff*0x010101 | a>>24<<24
		}},
		{"prmt.b32.ecr $d, $a, $b, 1;", 32, b32, nil, func(a, _, _ uint64) uint64 { return a&0xff | a>>8&0xff*0x01010100 }},
		{"dp4a.s32.s32 $d, $a, $b, $c;", 32, t32, nil, func(a, b, c uint64) uint64 {
			for i := range 4 {
				c += uint64(int64(int8(a>>(8*i))) * int64(int8(b>>(8*i))))
			}
			return c
		}},
		{"dp4a.u32.s32 $d, $a, $b, $c;", 32, t32, nil, func(a, b, c uint64) uint64 {
			for i := range 4 {
				c += uint64(int64(uint8(a>>(8*i))) * int64(int8(b>>(8*i))))
			}
			return c
		}},
		{"dp2a.hi.s32.u32 $d, $a, $b, $c;", 32, t32, nil, func(a, b, c uint64) uint64 {
			for i := range 2 {
				c += uint64(int64(int16(a>>(16*i))) * int64(uint8(b>>(16+8*i))))
			}
			return c
		}},
		{"mov.b64 $d, {$a, $b};", 64, b32, nil, func(a, b, _ uint64) uint64 { return b<<32 | a }},
		{"{.reg .b16 l, h; mov.b32 {l, h}, $a; mov.b32 $d, {h, l};}", 32, b32[:1], nil,
			func(a, _, _ uint64) uint64 { return a>>16 | a<<16 }},
		{"{.reg .b16 l, h; mov.b64 {l, _, _, h}, $a; mov.b32 $d, {h, l};}", 32, b64[:1], nil,
			func(a, _, _ uint64) uint64 { return a>>48 | a<<16 }},
		{"setp.lt.s32 p1, $a, $b; selp.b32 $d, $a, $b, p1;", 32, b32, nil,
			func(a, b, _ uint64) uint64 { return choose(s32(a) < s32(b), a, b) }},
	}
	for _, table := range []uint64{0x80, 0xfe, 0x96, 0xca, 0xe8, 0x1d} {
		ops = append(ops, operation{fmt.Sprintf("lop3.b32 $d, $a, $b, $c, %d;", table), 32, t32, nil,
			func(a, b, c uint64) (d uint64) {
				for i := range 32 {
					d |= table >> (a>>i&1*4 + b>>i&1*2 + c>>i&1) & 1 << i
				}
				return d
			}})
	}
	runOperations(t, ops)
}
