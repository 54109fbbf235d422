package ptxsim

import (
	"math"
	"strings"
)

// fragment says where the elements of the operands of mma.m16n8 lie. Lane l has the group l/4 and the number l%4 in it.
// A register holds p elements of 32/p bits. Register r of A holds row group+8·(r%2), columns from p·number+4·p·(r/2);
// register r of B holds column group, rows from p·number+4·p·r. Register r of C and D holds row group+8·(r/2), column
// 2·number+r%2. This is one rule for all shapes of PTX ISA 9.7.14.5 with m16n8.
type fragment struct {
	k, p int
}

func (f fragment) aRegs() int { return 2 * f.k / (4 * f.p) }
func (f fragment) bRegs() int { return f.k / (4 * f.p) }

func (f fragment) a(lane, r int) (row, col int) { return lane/4 + 8*(r%2), f.p*(lane%4) + 4*f.p*(r/2) }
func (f fragment) b(lane, r int) (row, col int) { return f.p*(lane%4) + 4*f.p*r, lane / 4 }
func (f fragment) c(lane, r int) (row, col int) { return lane/4 + 8*(r/2), 2*(lane%4) + r%2 }

// mmaShapes has the K of the shapes by the type of A and B.
var mmaShapes = map[string][]Type{
	"m16n8k4": {TF32}, "m16n8k8": {TF32, F16, BF16}, "m16n8k16": {F16, BF16, S8, U8}, "m16n8k32": {S8, U8},
}

// opMma is mma.sync.aligned.m16n8kK.row.col.
//
// The sum of an output of floats begins with C and adds the products in the order of k, in float64, and is rounded to
// the type of D once, at the end of the instruction. Products of 16-bit floats and of tf32 are exact in float64.
// A device adds in an order of its own and with fewer bits, so that its result differs in the last places.
func opMma(c *compiler) error {
	if !c.has("sync") || !c.has("aligned") || !c.has("row") || !c.has("col") {
		return c.errorf("only mma.sync.aligned with .row.col is supported")
	}
	shape := c.one("m16n8k4", "m16n8k8", "m16n8k16", "m16n8k32")
	sat := c.has("satfinite")
	var t [4]Type // of D, A, B and C
	for i := range t {
		var err error
		if t[i], err = c.typ(); err != nil {
			return err
		}
	}
	allowed := false
	for _, a := range mmaShapes[shape] {
		allowed = allowed || a == t[1]
	}
	integer := t[1] == S8 || t[1] == U8
	switch {
	case !allowed:
		return c.errorf("shape .%s is not supported for type .%s", shape, t[1])
	case integer && (t[0] != S32 || t[3] != S32 || t[2] != S8 && t[2] != U8):
		return c.errorf("products of bytes are .s32.{s8,u8}.{s8,u8}.s32")
	case !integer && (t[1] != t[2] || t[0] != t[3] || t[0] != F32 && (t[0] != F16 || t[1] != F16) || sat):
		return c.errorf("types .%s.%s.%s.%s are not supported", t[0], t[1], t[2], t[3])
	}
	var k int
	for _, d := range strings.TrimPrefix(shape, "m16n8k") {
		k = 10*k + int(d-'0')
	}
	f := fragment{k: k, p: 32 / t[1].bits()}
	if err := c.count(4); err != nil {
		return err
	}
	acc, accRegs := t[0], 4
	if acc == F16 {
		acc, accRegs = B32, 2
	}
	args := c.s.args
	a, err := c.vector(&args[1], f.aRegs(), B32, false, sameSize)
	if err != nil {
		return err
	}
	b, err := c.vector(&args[2], f.bRegs(), B32, false, sameSize)
	if err != nil {
		return err
	}
	e, err := c.vector(&args[3], accRegs, acc, false, sameSize)
	if err != nil {
		return err
	}
	d, err := c.vector(&args[0], accRegs, acc, true, sameSize)
	if err != nil {
		return err
	}
	mul := product{f: f, a: a, b: b, c: e, d: d}
	switch {
	case integer:
		c.in.run = mul.integers(t[1], t[2], sat)
	default:
		c.in.run = mul.floats(t[1], t[0], c.m.d.opt.Operands && t[0] == F32)
	}
	return nil
}

// product is a compiled mma.
type product struct {
	f          fragment
	a, b, c, d []int32
}

// narrow converts an element of A or B to a number.
func narrow(t Type, v uint64) float64 {
	switch t {
	case BF16:
		return float64(math.Float32frombits(uint32(v) << 16))
	case F16:
		return half(uint16(v))
	}
	return value(TF32, v)
}

// half is the value of an f16, by the exponent of float64.
func half(v uint16) float64 {
	exp := v >> 10 & 31
	if exp == 0 || exp == 31 {
		return formats[F16].decode(uint64(v))
	}
	return math.Float64frombits(uint64(v&0x8000)<<48 | uint64(exp+1023-15)<<52 | uint64(v&0x3ff)<<42)
}

func (p *product) floats(t, acc Type, operands bool) func(w *warp, m uint32) {
	return func(w *warp, m uint32) {
		if !w.whole(m) {
			return
		}
		var a [16][32]float64 // [row][k]
		var b [8][32]float64  // [column][k]
		size := t.bits()
		mask := t.mask()
		for r, s := range p.a {
			for l, v := range &w.r[s] {
				row, col := p.f.a(l, r)
				for i := 0; i < p.f.p; i++ {
					a[row][col+i] = narrow(t, v>>(i*size)&mask)
				}
			}
		}
		for r, s := range p.b {
			for l, v := range &w.r[s] {
				row, col := p.f.b(l, r)
				for i := 0; i < p.f.p; i++ {
					b[col][row+i] = narrow(t, v>>(i*size)&mask)
				}
			}
		}
		var rows [16]uint64
		var columns [8]uint64
		if operands {
			for i := range rows {
				rows[i] = digest(a[i][:p.f.k])
			}
			for i := range columns {
				columns[i] = digest(b[i][:p.f.k])
			}
		}
		for l := 0; l < warpSize; l++ {
			var s [4]float64
			for r := range s {
				if acc == F32 {
					s[r] = value(F32, w.r[p.c[r]][l])
				} else {
					s[r] = value(F16, w.r[p.c[r/2]][l]>>(r%2*16)&0xffff)
				}
			}
			for r := range s {
				row, col := p.f.c(l, r)
				ra, rb := a[row][:p.f.k], b[col][:p.f.k]
				for i, x := range ra {
					s[r] += float64(x * rb[i])
				}
			}
			for r, d := range p.d {
				if acc == F32 {
					v := bits32(float32(s[r]))
					if operands && s[r] != 0 {
						row, col := p.f.c(l, r)
						v ^= mixed(mixed(rows[row]^w.r[p.c[r]][l])^columns[col]) & 1
					}
					w.r[d][l] = v
				} else {
					w.r[d][l] = pattern(F16, s[2*r]) | pattern(F16, s[2*r+1])<<16
				}
			}
		}
	}
}

// digest returns a number that depends on every bit of a list.
func digest(x []float64) uint64 {
	var h uint64
	for _, v := range x {
		h = mixed(h ^ math.Float64bits(v))
	}
	return h
}

// mixed is SplitMix64's finalizer after a step.
func mixed(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

func (p *product) integers(ta, tb Type, sat bool) func(w *warp, m uint32) {
	return func(w *warp, m uint32) {
		if !w.whole(m) {
			return
		}
		var a [16][32]int64
		var b [8][32]int64
		for r, s := range p.a {
			for l, v := range &w.r[s] {
				row, col := p.f.a(l, r)
				for i := 0; i < 4; i++ {
					a[row][col+i] = ta.extend(v >> (8 * i))
				}
			}
		}
		for r, s := range p.b {
			for l, v := range &w.r[s] {
				row, col := p.f.b(l, r)
				for i := 0; i < 4; i++ {
					b[col][row+i] = tb.extend(v >> (8 * i))
				}
			}
		}
		for l := 0; l < warpSize; l++ {
			var s [4]int64
			for r := range s {
				s[r] = int64(int32(w.r[p.c[r]][l]))
			}
			for r, d := range p.d {
				row, col := p.f.c(l, r)
				for i := 0; i < p.f.k; i++ {
					s[r] += a[row][i] * b[col][i]
				}
				if sat {
					s[r] = clamp32(s[r])
				}
				w.r[d][l] = uint64(uint32(s[r]))
			}
		}
	}
}

// opLoadMatrix is ldmatrix: each lane gives the address of a row of 8 elements of 16 bits, and gets two elements of
// each matrix: of row l/4, columns 2·(l%4) and the next, or with .trans of column l/4 and these rows.
func opLoadMatrix(c *compiler) error {
	if !c.has("sync") || !c.has("aligned") || !c.has("m8n8") {
		return c.errorf("only ldmatrix.sync.aligned.m8n8 is supported")
	}
	count := map[string]int{"x1": 1, "x2": 2, "x4": 4}[c.one("x1", "x2", "x4")]
	trans := c.has("trans")
	s := c.space()
	if _, err := c.typ(B16); err != nil {
		return err
	}
	if count == 0 || s != spaceShared {
		return c.errorf("ldmatrix needs .x1, .x2 or .x4, and .shared")
	}
	if err := c.count(2); err != nil {
		return err
	}
	a, err := c.address(&c.s.args[1], s, 16)
	if err != nil {
		return err
	}
	dst, err := c.vector(&c.s.args[0], count, B32, true, sameSize)
	c.in.run = func(w *warp, m uint32) {
		if !w.whole(m) {
			return
		}
		var rows [warpSize]uint64
		for l := range rows {
			rows[l] = a.of(w, l)
		}
		for l := 0; l < 8*count; l++ {
			if rows[l]%16 != 0 {
				w.failf(CheckAlign, l, "address %#x of a row is not a multiple of 16 bytes", rows[l])
				return
			}
		}
		for i, d := range dst {
			for l := 0; l < warpSize; l++ {
				if !trans {
					data := w.at(s, l, rows[8*i+l/4]+uint64(l%4*4), 4, accessRead)
					if data == nil {
						return
					}
					w.r[d][l] = get(data, 4)
					continue
				}
				var v uint64
				for j := 0; j < 2; j++ {
					data := w.at(s, l, rows[8*i+l%4*2+j]+uint64(l/4*2), 2, accessRead)
					if data == nil {
						return
					}
					v |= get(data, 2) << (16 * j)
				}
				w.r[d][l] = v
			}
		}
	}
	return err
}

// opMoveMatrix is movmatrix: the transpose of a matrix of 8 by 8 elements of 16 bits in registers.
func opMoveMatrix(c *compiler) error {
	if !c.has("sync") || !c.has("aligned") || !c.has("m8n8") || !c.has("trans") {
		return c.errorf("only movmatrix.sync.aligned.m8n8.trans is supported")
	}
	if _, err := c.typ(B16); err != nil {
		return err
	}
	r, err := c.args(B32, B32)
	c.in.run = func(w *warp, m uint32) {
		if !w.whole(m) {
			return
		}
		old := w.r[r[1]]
		for l := range old {
			var v uint64
			for j := 0; j < 2; j++ {
				row, col := l%4*2+j, l/4 // of the element before
				v |= old[row*4+col/2] >> (16 * (col % 2)) & 0xffff << (16 * j)
			}
			w.r[r[0]][l] = v
		}
	}
	return err
}
