package kerneltest

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// Case is one operation on fixed inputs.
type Case struct {
	name      string
	run       func(s Set) [][]float32
	tolerance float64 // 0 means the common one
}

// quantised is the tolerance of products of quantised weights and of 16-bit floats. A set may also round the
// activations: to bytes, with an error of at most 1/254 of the largest of 32, or to bfloat16.
const quantised = 1e-2

// source returns a generator of inputs that depend on the seed alone.
func source(seed uint64) func(n int) []float32 {
	r := rand.New(rand.NewPCG(seed, 1))
	return func(n int) []float32 {
		x := make([]float32, n)
		for i := range x {
			x[i] = float32(r.NormFloat64())
		}
		return x
	}
}

// raw returns a matrix of valid blocks of a type.
func raw(seed uint64, d tensor.DType, rows, cols int) kernel.Matrix[float32] {
	x := source(seed)(rows * cols)
	m := kernel.Matrix[float32]{Rows: rows, Cols: cols, DType: d}
	for _, v := range x {
		switch d {
		case tensor.F16:
			b := tensor.Float16bits(v)
			m.Raw = append(m.Raw, byte(b), byte(b>>8))
		case tensor.BF16:
			b := tensor.BFloat16bits(v)
			m.Raw = append(m.Raw, byte(b), byte(b>>8))
		}
	}
	if m.Raw == nil { // blocks: random bytes with small scales
		r := rand.New(rand.NewPCG(seed, 2))
		m.Raw = make([]byte, d.RowBytes(rows*cols))
		for i := range m.Raw {
			m.Raw[i] = byte(r.Uint32())
		}
		for at := 0; at < len(m.Raw); at += d.BlockBytes() {
			scaleBlock(m.Raw[at:at+d.BlockBytes()], d)
		}
	}
	return m
}

// blockTypes are the quantised types, each of which a set multiplies and embeds.
var blockTypes = []tensor.DType{
	tensor.Q4_0,
	tensor.Q4_1,
	tensor.Q5_0,
	tensor.Q5_1,
	tensor.Q8_0,
	tensor.Q2_K,
	tensor.Q3_K,
	tensor.Q4_K,
	tensor.Q5_K,
	tensor.Q6_K,
	tensor.IQ1_S,
	tensor.IQ1_M,
	tensor.IQ2_XXS,
	tensor.IQ2_XS,
	tensor.IQ2_S,
	tensor.IQ3_XXS,
	tensor.IQ3_S,
	tensor.IQ4_NL,
	tensor.IQ4_XS,
	tensor.TQ1_0,
	tensor.TQ2_0,
	tensor.MXFP4,
	tensor.NVFP4,
	tensor.Q1_0,
}

// scaleBlock sets the scales of a block of random bytes to about 0.01.
func scaleBlock(b []byte, d tensor.DType) {
	scale := tensor.Float16bits(0.01)
	setFloat16 := func(offsets ...int) {
		for _, at := range offsets {
			b[at], b[at+1] = byte(scale), byte(scale>>8)
		}
	}
	switch d {
	case tensor.Q4_1, tensor.Q5_1, tensor.Q4_K, tensor.Q5_K:
		setFloat16(0, 2)
	case tensor.Q2_K:
		setFloat16(80, 82)
	case tensor.Q3_K, tensor.Q6_K, tensor.TQ1_0, tensor.TQ2_0:
		setFloat16(d.BlockBytes() - 2)
	case tensor.MXFP4: // an exponent
		b[0] = 127 - 6
	case tensor.NVFP4: // 8-bit floats
		for i := range 4 {
			b[i] &= 0x0f
		}
	case tensor.IQ1_M: // a quarter of the float16 in the top bits of each of four words
		for i := range 4 {
			b[49+2*i] = b[49+2*i]&15 | byte(scale>>(4*i))<<4
		}
	default:
		setFloat16(0)
	}
}

// Cases lists operations with sizes that are odd, even, smaller and larger than
// vectors and tiles.
func Cases() []Case {
	var out []Case
	for _, n := range [][3]int{{1, 5, 7}, {3, 4, 16}, {5, 9, 33}, {17, 70, 130}, {64, 96, 64}} {
		t, rows, cols := n[0], n[1], n[2]
		out = append(out, Case{name: fmt.Sprintf("matmul %v", n), run: func(s Set) [][]float32 {
			in := source(1)
			y := make([]float32, t*rows)
			s.MatMul(y, in(t*cols), &kernel.Matrix[float32]{Rows: rows, Cols: cols, Dense: in(rows * cols)}, in(rows),
				t)
			return [][]float32{y}
		}}, Case{name: fmt.Sprintf("matmul grad %v", n), run: func(s Set) [][]float32 {
			in := source(2)
			dx, dw, db := in(t*cols), in(rows*cols), in(rows)
			dw2, fresh := in((rows+3)*cols), in((rows+1)*cols)
			s.MatMulGrad(dx, in(t*cols), t,
				kernel.ProductGrad[float32]{DY: in(t * rows),
					W: &kernel.Matrix[float32]{Rows: rows, Cols: cols, Dense: in(rows * cols)}, DW: dw, DBias: db},
				kernel.ProductGrad[float32]{DY: in(t * (rows + 3)),
					W: &kernel.Matrix[float32]{Rows: rows + 3, Cols: cols, Dense: in((rows + 3) * cols)}, DW: dw2},
				kernel.ProductGrad[float32]{DY: in(t * (rows + 1)),
					W: &kernel.Matrix[float32]{Rows: rows + 1, Cols: cols, Dense: in((rows + 1) * cols)}, DW: fresh,
					Fresh: true})
			return [][]float32{dx, dw, db, dw2, fresh}
		}}, Case{name: fmt.Sprintf("bfloat16 products %v", n), run: func(s Set) [][]float32 {
			in := source(13)
			s = s.BFloat16()
			m := &kernel.Matrix[float32]{Rows: rows, Cols: cols, Dense: in(rows * cols)}
			x, y, dx, dw, db := in(t*cols), make([]float32, t*rows), in(t*cols), in(rows*cols), in(rows)
			s.MatMul(y, x, m, in(rows), t)
			s.MatMulGrad(dx, x, t, kernel.ProductGrad[float32]{DY: in(t * rows), W: m, DW: dw, DBias: db})
			return [][]float32{y, dx, dw, db}
		}})
	}
	for _, d := range append([]tensor.DType{tensor.F16, tensor.BF16}, blockTypes...) {
		for _, cols := range []int{256, 768} {
			out = append(out, Case{name: fmt.Sprintf("matmul %v, %d inputs", d, cols), tolerance: quantised,
				run: func(s Set) [][]float32 {
					m := raw(3, d, 37, cols)
					y, one, packed, e := make([]float32, 5*37), make([]float32, 37), make([]float32, 5*37),
						make([]float32, 2*cols)
					x, bias := source(4)(5*cols), source(5)(37)
					s.MatMul(y, x, &m, bias, 5)
					s.MatMul(one, x[:cols], &m, nil, 1)
					s.Pack(&m)
					s.MatMul(packed, x, &m, bias, 5)
					s.Embed(e, &m, []int32{36, 0})
					dx := make([]float32, 5*cols)
					s.MatMulGrad(dx, nil, 5, kernel.ProductGrad[float32]{DY: source(6)(5 * 37), W: &m})
					return [][]float32{y, one, packed, e, dx}
				}})
		}
	}
	return append(append(append(out, elementwise()...), dropout()...), attention()...)
}

// elementwise lists the cases of elementwise operations, norms, losses and updates.
func elementwise() []Case {
	const t, c = 7, 45
	var out []Case
	out = append(out, Case{name: "norms", run: func(s Set) [][]float32 {
		in := source(5)
		x, g, b, dy := in(t*c), in(c), in(c), in(t*c)
		y1, y2 := make([]float32, t*c), make([]float32, t*c)
		s.RMSNorm(y1, x, g, 1e-5, t, c)
		s.LayerNorm(y2, x, g, b, 1e-5, t, c)
		dx1, dg1, dx2, dg2, db2 := in(t*c), in(c), in(t*c), in(c), in(c)
		s.RMSNormGrad(dx1, dg1, dy, x, g, 1e-5, t, c)
		s.LayerNormGrad(dx2, dg2, db2, dy, x, g, 1e-5, t, c)
		return [][]float32{y1, y2, dx1, dg1, dx2, dg2, db2}
	}}, Case{name: "rotate", run: func(s Set) [][]float32 {
		in := source(6)
		var got [][]float32
		for _, interleaved := range []bool{false, true} {
			r := &kernel.Rotary{Dims: 6, Interleaved: interleaved, Freq: []float64{1, 0.1, 0.01}, Scale: 1.2}
			x, dx := in(3*2*8), in(3*2*8)
			s.Rotate(x, r, []int32{0, 5, 300}, 2, 8)
			s.RotateGrad(dx, r, []int32{0, 5, 300}, 2, 8)
			got = append(got, x, dx)
		}
		return got
	}}, Case{name: "embed grad, add", run: func(s Set) [][]float32 {
		in := source(7)
		dw, y := in(5*c), in(t*c)
		s.EmbedGrad(dw, in(3*c), []int32{4, 1, 4}, c)
		s.Add(y, in(t*c))
		return [][]float32{dw, y}
	}}, Case{name: "adamw, squares", run: func(s Set) [][]float32 {
		in := source(12)
		p, m, v, g := in(t*c), in(t*c), in(t*c), in(t*c)
		for i, x := range v {
			v[i] = x * x
		}
		s.AdamW(p, m, v, g, kernel.AdamW{Scale: 0.5, Beta1: 0.9, Beta2: 0.95, Size: 0.01, Root: 1.5, Epsilon: 1e-8,
			Keep: 0.999})
		return [][]float32{p, m, v, {float32(s.SumSquares(g)), float32(s.SumSquares(nil))}}
	}}, Case{name: "cross entropy", run: func(s Set) [][]float32 {
		loss, d := make([]float64, t), make([]float32, t*c)
		logits := source(8)(t * c)
		targets := []int32{0, 44, -1, 3, 7, 9, 11}
		s.CrossEntropy(loss, d, logits, targets, 0.25, t, c)
		var l []float32
		for _, v := range loss {
			l = append(l, float32(v))
		}
		z := slices.Clone(d)
		s.ZLossGrad(z, logits, loss, targets, 0.01, 0.25, t, c)
		return [][]float32{l, d, z, {float32(s.LogSumExp(logits))}}
	}})
	out = append(out, Case{name: "bfloat16", run: func(s Set) [][]float32 {
		x := source(12)(t*c + 5)
		// two ties, a value near the end of the range and a subnormal number
		x[0], x[1], x[2], x[3] = 1+1.0/256, 1+3.0/256, -3e38, 1e-40
		h, back := make([]uint16, len(x)), make([]float32, len(x))
		s.RoundBF16(h, x)
		s.WidenBF16(back, h)
		return [][]float32{x, back}
	}})
	for _, act := range []kernel.Act{kernel.SiLU, kernel.GELUTanh, kernel.GELU} {
		out = append(out, Case{name: fmt.Sprintf("activation %d", act), run: func(s Set) [][]float32 {
			in := source(9)
			x, up, dy := in(t*c), in(t*c), in(t*c)
			x[0], x[1], x[2] = 40, -40, 0
			y1, y2, dx, dg, du := make([]float32, t*c), make([]float32, t*c), in(t*c), in(t*c), in(t*c)
			s.GLU(y1, x, up, act)
			s.Activate(y2, x, act)
			again1, again2 := in(t*c), in(t*c)
			s.ActivateGrad(dx, again1, dy, x, act)
			s.GLUGrad(dg, du, again2, dy, x, up, act)
			same, inPlace := slices.Clone(dy), slices.Clone(dy)
			s.ActivateGrad(same, nil, same, x, act)
			s.GLUGrad(in(t*c), inPlace, nil, inPlace, x, up, act)
			return [][]float32{y1, y2, dx, dg, du, again1, again2, same, inPlace}
		}})
	}
	return out
}

// dropout lists the cases of dropout.
func dropout() []Case {
	const t, c = 13, 301
	return []Case{{name: "dropout", run: func(s Set) [][]float32 {
		x := source(12)(t * c)
		s.Dropout(x, kernel.Dropout{Rate: 0.25, Key: 77, From: 3}, t, c)
		return [][]float32{x}
	}}}
}

// wholeAttention lists the cases of attention over whole sequences.
func wholeAttention(a kernel.Heads) []Case {
	const b, t = 2, 19
	return []Case{
		{
			name: fmt.Sprintf("causal attention, window %d, dropout %v", a.Window, a.Dropout.Rate),
			run: func(s Set) [][]float32 {
				in := source(10)
				q, k, v, dy := in(b*t*a.H*a.D), in(b*t*a.K*a.D), in(b*t*a.K*a.D), in(b*t*a.H*a.D)
				y, lse := make([]float32, len(q)), make([]float32, b*t*a.H)
				s.AttendCausal(y, lse, q, k, v, b, t, a)
				dq, dk, dv := in(len(q)), in(len(k)), in(len(v))
				s.AttendCausalGrad(dq, dk, dv, dy, y, lse, q, k, v, b, t, a)
				return [][]float32{y, lse, dq, dk, dv}
			},
		},
		{
			name: fmt.Sprintf("attention within documents, window %d, dropout %v", a.Window, a.Dropout.Rate),
			run: func(s Set) [][]float32 {
				in, lengths := source(10), []int{1, 19, 0, 7, 1, 40, 3}
				const rows = 71
				q, k, v, dy := in(rows*a.H*a.D), in(rows*a.K*a.D), in(rows*a.K*a.D), in(rows*a.H*a.D)
				y, lse := make([]float32, len(q)), make([]float32, rows*a.H)
				s.AttendDocuments(y, lse, q, k, v, lengths, a)
				dq, dk, dv := in(len(q)), in(len(k)), in(len(v))
				s.AttendDocumentsGrad(dq, dk, dv, dy, y, lse, q, k, v, lengths, a)
				return [][]float32{y, lse, dq, dk, dv}
			},
		},
	}
}

// attention lists the cases of attention.
func attention() []Case {
	var out []Case
	for _, window := range []int{0, 5} {
		a := kernel.Heads{H: 4, K: 2, D: 10, Scale: 0.3, Window: window}
		for _, rate := range []float64{0, 0.3} {
			a.Dropout = kernel.Dropout{Rate: rate, Key: 5}
			out = append(out, wholeAttention(a)...)
		}
		for _, kind := range []kernel.KVType{kernel.KVFull, kernel.KVF16, kernel.KVQ8} {
			for _, length := range []int{4, 16, 32} {
				out = append(out, Case{name: fmt.Sprintf("paged attention, window %d, %v, pages of %d", window, kind,
					length), run: func(s Set) [][]float32 {
					in := source(11)
					q := in(13 * a.H * a.D)
					y := make([]float32, len(q))
					s.Attend(y, q, []kernel.Span[float32]{
						{Rows: 12, Pos: 7, KV: paged(s, kind, in(19*a.K*a.D), in(19*a.K*a.D), a, length)},
						{Rows: 1, Pos: 9, KV: paged(s, kind, in(10*a.K*a.D), in(10*a.K*a.D), a, length)},
					}, a)
					return [][]float32{y}
				}})
			}
		}
	}
	return out
}

// paged stores keys and values [n,K*D] in pages, in two calls: the first five positions and the others.
func paged(s Set, kind kernel.KVType, k, v []float32, a kernel.Heads, pageLen int) kernel.KV[float32] {
	size := pageLen * a.K * a.D
	kv := kernel.KV[float32]{Type: kind, PageLen: pageLen, Layer: 1}
	for range (len(k) + size - 1) / size {
		kv.Pages = append(kv.Pages, s.NewKVPages(2, kind, size, a.D))
	}
	for i := range kv.Pages { // positions that were not written must not be read
		page := kv.Page(i)
		for i := range page.Keys {
			page.Keys[i], page.Values[i] = float32(math.NaN()), float32(math.NaN())
		}
		for i := range page.KeyCodes {
			page.KeyCodes[i], page.ValueCodes[i] = 0xff, 0xff // NaN in float16
		}
		for i := range page.KeyScales {
			page.KeyScales[i], page.ValueScales[i] = float32(math.NaN()), float32(math.NaN())
		}
	}
	first := min(5*a.K*a.D, len(k))
	s.Store(kv, 0, k[:first], v[:first], a.K, a.D)
	s.Store(kv, 5, k[first:], v[first:], a.K, a.D)
	return kv
}
