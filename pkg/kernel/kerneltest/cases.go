package kerneltest

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"unsafe"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// Case is one operation on fixed inputs. Its inputs and results are buffers of the set.
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

// inputs returns a generator of buffers with the values of source.
func inputs(s Set, seed uint64) func(n int) kernel.Buffer[float32] {
	in := source(seed)
	return func(n int) kernel.Buffer[float32] { return upload(s, in(n)) }
}

// results returns the elements of buffers.
func results(s Set, buffers ...kernel.Buffer[float32]) [][]float32 {
	var out [][]float32
	for _, b := range buffers {
		out = append(out, slices.Clone(s.Host(b)))
	}
	return out
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
		out = append(out, dense(n[0], n[1], n[2])...)
	}
	for _, d := range append([]tensor.DType{tensor.F16, tensor.BF16}, blockTypes...) {
		for _, cols := range []int{256, 768} {
			out = append(out, Case{name: fmt.Sprintf("matmul %v, %d inputs", d, cols), tolerance: quantised,
				run: func(s Set) [][]float32 {
					m, in := raw(3, d, 37, cols), inputs(s, 4)
					y, one, packed := s.Alloc(5*37), s.Alloc(37), s.Alloc(5*37)
					x, bias := in(5*cols), inputs(s, 5)(37)
					s.MatMul(y, x, &m, bias, 5)
					s.MatMul(one, x[:cols], &m, nil, 1)
					s.Pack(&m)
					s.MatMul(packed, x, &m, bias, 5)
					return results(s, y, one, packed)
				}}, Case{name: fmt.Sprintf("embed %v of %d", d, cols), run: func(s Set) [][]float32 {
				m, e := raw(3, d, 37, cols), s.Alloc(2*cols)
				s.Embed(e, &m, []int32{36, 0})
				s.Pack(&m)
				again := s.Alloc(2 * cols)
				s.Embed(again, &m, []int32{36, 0})
				return results(s, e, again)
			}}, Case{name: fmt.Sprintf("matmul grad %v, %d inputs", d, cols), tolerance: quantised,
				run: func(s Set) [][]float32 {
					m, dx := raw(3, d, 37, cols), s.Alloc(5*cols)
					s.Pack(&m)
					s.MatMulGrad(dx, nil, 5, kernel.ProductGrad[float32]{DY: inputs(s, 6)(5 * 37), W: &m})
					return results(s, dx)
				}})
		}
	}
	return append(append(append(out, elementwise()...), dropout()...), attention()...)
}

// dense lists the cases of products of t rows with dense matrices.
func dense(t, rows, cols int) []Case {
	n := [3]int{t, rows, cols}
	matrix := func(rows int, w kernel.Buffer[float32]) *kernel.Matrix[float32] {
		return &kernel.Matrix[float32]{Rows: rows, Cols: cols, Dense: w}
	}
	return []Case{{name: fmt.Sprintf("matmul %v", n), run: func(s Set) [][]float32 {
		in, y := inputs(s, 1), s.Alloc(t*rows)
		s.MatMul(y, in(t*cols), matrix(rows, in(rows*cols)), in(rows), t)
		return results(s, y)
	}}, {name: fmt.Sprintf("matmul grad %v", n), run: func(s Set) [][]float32 {
		in := inputs(s, 2)
		dx, dw, db := in(t*cols), in(rows*cols), in(rows)
		dw2, fresh := in((rows+3)*cols), in((rows+1)*cols)
		s.MatMulGrad(dx, in(t*cols), t,
			kernel.ProductGrad[float32]{DY: in(t * rows), W: matrix(rows, in(rows*cols)), DW: dw, DBias: db},
			kernel.ProductGrad[float32]{DY: in(t * (rows + 3)), W: matrix(rows+3, in((rows+3)*cols)), DW: dw2},
			kernel.ProductGrad[float32]{DY: in(t * (rows + 1)), W: matrix(rows+1, in((rows+1)*cols)), DW: fresh,
				Fresh: true})
		return results(s, dx, dw, db, dw2, fresh)
	}}, {name: fmt.Sprintf("bfloat16 products %v", n), run: func(s Set) [][]float32 {
		in := inputs(s, 13)
		s = s.BFloat16()
		m := matrix(rows, in(rows*cols))
		x, y, dx, dw, db := in(t*cols), s.Alloc(t*rows), in(t*cols), in(rows*cols), in(rows)
		s.MatMul(y, x, m, in(rows), t)
		s.MatMulGrad(dx, x, t, kernel.ProductGrad[float32]{DY: in(t * rows), W: m, DW: dw, DBias: db})
		return results(s, y, dx, dw, db)
	}}}
}

// elementwise lists the cases of elementwise operations, norms, losses and updates.
func elementwise() []Case {
	const t, c = 7, 45
	out := []Case{{name: "norms", run: func(s Set) [][]float32 {
		in := inputs(s, 5)
		x, g, b := in(t*c), in(c), in(c)
		y1, y2 := s.Alloc(t*c), s.Alloc(t*c)
		s.RMSNorm(y1, x, g, 1e-5, t, c)
		s.LayerNorm(y2, x, g, b, 1e-5, t, c)
		return results(s, y1, y2)
	}}, {name: "norm grads", run: func(s Set) [][]float32 {
		in := inputs(s, 5)
		x, g, dy := in(t*c), in(c), in(t*c)
		dx1, dg1, dx2, dg2, db2 := in(t*c), in(c), in(t*c), in(c), in(c)
		s.RMSNormGrad(dx1, dg1, dy, x, g, 1e-5, t, c)
		s.LayerNormGrad(dx2, dg2, db2, dy, x, g, 1e-5, t, c)
		return results(s, dx1, dg1, dx2, dg2, db2)
	}}, {name: "rotate", run: func(s Set) [][]float32 {
		in := inputs(s, 6)
		var got [][]float32
		for _, interleaved := range []bool{false, true} {
			r := &kernel.Rotary{Dims: 6, Interleaved: interleaved, Freq: []float64{1, 0.1, 0.01}, Scale: 1.2}
			x, dx := in(3*2*8), in(3*2*8)
			s.Rotate(x, r, []int32{0, 5, 300}, 2, 8)
			s.RotateGrad(dx, r, []int32{0, 5, 300}, 2, 8)
			got = append(got, results(s, x, dx)...)
		}
		return got
	}}, {name: "add", run: func(s Set) [][]float32 {
		in := inputs(s, 7)
		y := in(t * c)
		s.Add(y, in(t*c))
		return results(s, y)
	}}, {name: "embed grad", run: func(s Set) [][]float32 {
		in := inputs(s, 7)
		dw := in(5 * c)
		s.EmbedGrad(dw, in(3*c), []int32{4, 1, 4}, c)
		return results(s, dw)
	}}, {name: "adamw, squares", run: func(s Set) [][]float32 {
		in, squares := inputs(s, 12), source(14)(t*c)
		for i, x := range squares {
			squares[i] = x * x
		}
		p, m, v, g := in(t*c), in(t*c), upload(s, squares), in(t*c)
		s.AdamW(p, m, v, g, kernel.AdamW{Scale: 0.5, Beta1: 0.9, Beta2: 0.95, Size: 0.01, Root: 1.5, Epsilon: 1e-8,
			Keep: 0.999})
		return append(results(s, p, m, v), []float32{float32(s.SumSquares(g)), float32(s.SumSquares(nil))})
	}}, {name: "log-sum-exp", run: func(s Set) [][]float32 {
		return [][]float32{{float32(s.LogSumExp(inputs(s, 8)(t * c)))}}
	}}, {name: "cross entropy", run: func(s Set) [][]float32 {
		loss, d := make([]float64, t), s.Alloc(t*c)
		logits := inputs(s, 8)(t * c)
		targets := []int32{0, 44, -1, 3, 7, 9, 11}
		s.CrossEntropy(loss, d, logits, targets, 0.25, t, c)
		var l []float32
		for _, v := range loss {
			l = append(l, float32(v))
		}
		z := upload(s, s.Host(d))
		s.ZLossGrad(z, logits, loss, targets, 0.01, 0.25, t, c)
		return append(results(s, d, z), l)
	}}, {name: "bfloat16", run: func(s Set) [][]float32 {
		values := source(12)(t*c + 5)
		// two ties, a value near the end of the range and a subnormal number
		values[0], values[1], values[2], values[3] = 1+1.0/256, 1+3.0/256, -3e38, 1e-40
		x, h, back := upload(s, values), s.AllocBF16(len(values)), s.Alloc(len(values))
		s.RoundBF16(h, x)
		s.WidenBF16(back, h)
		return results(s, x, back)
	}}}
	for _, act := range []kernel.Act{kernel.SiLU, kernel.GELUTanh, kernel.GELU} {
		out = append(out, activation(act, t*c)...)
	}
	return out
}

// activation lists the cases of an activation of n elements.
func activation(act kernel.Act, n int) []Case {
	extremes := func() []float32 {
		x := source(9)(n)
		x[0], x[1], x[2] = 40, -40, 0
		return x
	}
	return []Case{{name: fmt.Sprintf("activation %d", act), run: func(s Set) [][]float32 {
		x, up := upload(s, extremes()), inputs(s, 15)(n)
		y1, y2 := s.Alloc(n), s.Alloc(n)
		s.GLU(y1, x, up, act)
		s.Activate(y2, x, act)
		return results(s, y1, y2)
	}}, {name: fmt.Sprintf("activation grad %d", act), run: func(s Set) [][]float32 {
		in := inputs(s, 16)
		x, up, dy := upload(s, extremes()), in(n), in(n)
		dx, dg, du := in(n), in(n), in(n)
		again1, again2 := in(n), in(n)
		s.ActivateGrad(dx, again1, dy, x, act)
		s.GLUGrad(dg, du, again2, dy, x, up, act)
		same, inPlace := upload(s, s.Host(dy)), upload(s, s.Host(dy))
		s.ActivateGrad(same, nil, same, x, act)
		s.GLUGrad(in(n), inPlace, nil, inPlace, x, up, act)
		return results(s, dx, dg, du, again1, again2, same, inPlace)
	}}}
}

// dropout lists the cases of dropout.
func dropout() []Case {
	const t, c = 13, 301
	return []Case{{name: "dropout", run: func(s Set) [][]float32 {
		x := inputs(s, 12)(t * c)
		s.Dropout(x, kernel.Dropout{Rate: 0.25, Key: 77, From: 3}, t, c)
		return results(s, x)
	}}}
}

// wholeAttention lists the cases of attention over whole sequences.
func wholeAttention(a kernel.Heads) []Case {
	const b, t = 2, 19
	return []Case{
		{
			name: fmt.Sprintf("causal attention, window %d, dropout %v", a.Window, a.Dropout.Rate),
			run: func(s Set) [][]float32 {
				in := inputs(s, 10)
				q, k, v, dy := in(b*t*a.H*a.D), in(b*t*a.K*a.D), in(b*t*a.K*a.D), in(b*t*a.H*a.D)
				y, lse := s.Alloc(len(q)), s.Alloc(b*t*a.H)
				s.AttendCausal(y, lse, q, k, v, b, t, a)
				dq, dk, dv := in(len(q)), in(len(k)), in(len(v))
				s.AttendCausalGrad(dq, dk, dv, dy, y, lse, q, k, v, b, t, a)
				return results(s, y, lse, dq, dk, dv)
			},
		},
		{
			name: fmt.Sprintf("attention within documents, window %d, dropout %v", a.Window, a.Dropout.Rate),
			run: func(s Set) [][]float32 {
				in, lengths := inputs(s, 10), []int{1, 19, 0, 7, 1, 40, 3}
				const rows = 71
				q, k, v, dy := in(rows*a.H*a.D), in(rows*a.K*a.D), in(rows*a.K*a.D), in(rows*a.H*a.D)
				y, lse := s.Alloc(len(q)), s.Alloc(rows*a.H)
				s.AttendDocuments(y, lse, q, k, v, lengths, a)
				dq, dk, dv := in(len(q)), in(len(k)), in(len(v))
				s.AttendDocumentsGrad(dq, dk, dv, dy, y, lse, q, k, v, lengths, a)
				return results(s, y, lse, dq, dk, dv)
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
					in := inputs(s, 11)
					q := in(13 * a.H * a.D)
					y := s.Alloc(len(q))
					s.Attend(y, q, []kernel.Span[float32]{
						{Rows: 12, Pos: 7, KV: paged(s, kind, in(19*a.K*a.D), in(19*a.K*a.D), a, length)},
						{Rows: 1, Pos: 9, KV: paged(s, kind, in(10*a.K*a.D), in(10*a.K*a.D), a, length)},
					}, a)
					return results(s, y)
				}})
			}
		}
	}
	return out
}

// paged stores keys and values [n,K*D] in pages, in two calls: the first five positions and the others.
func paged(s Set, kind kernel.KVType, k, v kernel.Buffer[float32], a kernel.Heads, pageLen int) kernel.KV[float32] {
	size := pageLen * a.K * a.D
	kv := kernel.KV[float32]{Type: kind, PageLen: pageLen, Layer: 1}
	for range (len(k) + size - 1) / size {
		kv.Pages = append(kv.Pages, s.NewKVPages(2, kind, size, a.D))
	}
	for i := range kv.Pages { // positions that were not written must not be read
		page := kv.Page(i)
		for _, b := range []kernel.Buffer[float32]{page.Keys, page.Values, page.KeyScales, page.ValueScales,
			words(page.KeyCodes), words(page.ValueCodes)} {
			// These bits are a NaN in float32 and, twice, in float16.
			s.Upload(b, slices.Repeat([]float32{math.Float32frombits(math.MaxUint32)}, len(b)))
		}
	}
	first := min(5*a.K*a.D, len(k))
	s.Store(kv, 0, k[:first], v[:first], a.K, a.D)
	s.Store(kv, 5, k[first:], v[first:], a.K, a.D)
	return kv
}

// words returns the memory of codes as floats, so that it can be uploaded to.
func words(b []byte) kernel.Buffer[float32] {
	return unsafe.Slice((*float32)(unsafe.Pointer(unsafe.SliceData(b))), len(b)/4)
}
