package cpu_test

import (
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// quantTypes are the types that are multiplied in quantised form.
var quantTypes = []tensor.DType{
	tensor.Q4_0, tensor.Q4_1, tensor.Q5_0, tensor.Q5_1, tensor.Q8_0, tensor.IQ4_NL, tensor.MXFP4,
	tensor.Q2_K, tensor.Q3_K, tensor.Q4_K, tensor.Q5_K, tensor.Q6_K, tensor.IQ4_XS,
	tensor.IQ1_S, tensor.IQ1_M, tensor.IQ2_XXS, tensor.IQ2_XS, tensor.IQ2_S, tensor.IQ3_XXS, tensor.IQ3_S,
}

// rawMatrix returns a matrix of random blocks with scales near 0.01, or of random 16-bit floats.
func rawMatrix(seed uint64, d tensor.DType, rows, cols int) *kernel.Matrix[float32] {
	r := rand.New(rand.NewPCG(seed, uint64(d)))
	m := &kernel.Matrix[float32]{Rows: rows, Cols: cols, DType: d, Raw: make([]byte, d.RowBytes(rows*cols))}
	for i := range m.Raw {
		m.Raw[i] = byte(r.Uint32())
	}
	if d == tensor.F16 || d == tensor.BF16 {
		for i := 0; i < len(m.Raw); i += 2 {
			h := tensor.Float16bits(float32(r.NormFloat64()))
			if d == tensor.BF16 {
				h = tensor.BFloat16bits(float32(r.NormFloat64()))
			}
			m.Raw[i], m.Raw[i+1] = byte(h), byte(h>>8)
		}
		return m
	}
	at := scalesAt(d)
	for block := 0; block < len(m.Raw); block += d.BlockBytes() {
		if d == tensor.MXFP4 {
			m.Raw[block] = byte(118 + r.IntN(4))
			continue
		}
		if d == tensor.IQ1_M { // its float16 scale is in the top bits of four words
			h := tensor.Float16bits(float32(r.NormFloat64() * 0.01))
			for i := range 4 {
				top := &m.Raw[block+49+2*i]
				*top = *top&15 | byte(h>>(4*i))<<4
			}
			continue
		}
		for _, off := range at {
			h := tensor.Float16bits(float32(r.NormFloat64() * 0.01))
			m.Raw[block+off], m.Raw[block+off+1] = byte(h), byte(h>>8)
		}
	}
	return m
}

// scalesAt returns where the float16 scales of a block are.
func scalesAt(d tensor.DType) []int {
	at := map[tensor.DType][]int{
		tensor.Q4_1: {0, 2}, tensor.Q5_1: {0, 2}, tensor.Q2_K: {80, 82}, tensor.Q3_K: {108}, tensor.Q4_K: {0, 2},
		tensor.Q5_K: {0, 2}, tensor.Q6_K: {208},
	}[d]
	if at == nil {
		at = []int{0}
	}
	return at
}

// exact returns the product in float64, where x is quantised as the set does it.
func exact(m *kernel.Matrix[float32], x []float32, t int) []float64 {
	w := make([]float64, m.Rows*m.Cols)
	tensor.Dequantize(w, m.Raw, m.DType)
	q := make([]float64, len(x))
	for b := 0; b < len(x); b += 32 {
		var most float32
		for _, v := range x[b : b+32] {
			most = max(most, float32(math.Abs(float64(v))))
		}
		for i := b; i < b+32; i++ {
			if most > 0 {
				q[i] = math.RoundToEven(float64(x[i]*(127/most))) * float64(most/127)
			}
		}
	}
	y := make([]float64, t*m.Rows)
	for r := range t {
		for n := range m.Rows {
			for k := range m.Cols {
				y[r*m.Rows+n] += q[r*m.Cols+k] * w[n*m.Cols+k]
			}
		}
	}
	return y
}

func TestMatMul_QuantisedIsNearFloat64(t *testing.T) {
	for _, d := range quantTypes {
		t.Run(d.String(), func(t *testing.T) {
			const rows, cols, n = 37, 512, 5
			m, x := rawMatrix(1, d, rows, cols), random(2, n*cols)
			want := exact(m, x, n)
			var size float64
			for _, v := range want {
				size = max(size, math.Abs(v))
			}
			for _, name := range cpu.Instructions() {
				s := open(t, 1, name)
				y := make([]float32, n*rows)
				s.MatMul(y, x, m, nil, n)
				for i, v := range y {
					if math.Abs(float64(v)-want[i]) > 1e-5*size {
						t.Fatalf("%s: element %d is %v, want %v", name, i, v, want[i])
					}
				}
				s.Close()
			}
		})
	}
}

// TestMatMul_SameBitsHoweverComputed compares packed and unpacked weights, batch sizes, numbers of threads and
// instruction families.
func TestMatMul_SameBitsHoweverComputed(t *testing.T) {
	for _, d := range append(slices.Clone(quantTypes), tensor.F16, tensor.BF16) {
		t.Run(d.String(), func(t *testing.T) {
			rows, cols, most := 53, 768, 39
			if d == tensor.BF16 {
				cols = 577
			}
			x, bias := random(4, most*cols), random(5, rows)
			plain := open(t, 1, "portable")
			defer plain.Close()
			want := make([]float32, most*rows)
			plain.MatMul(want, x, rawMatrix(3, d, rows, cols), bias, most)
			for i, name := range append(cpu.Instructions(), cpu.Instructions()...) {
				threads := 1 + 2*i/len(cpu.Instructions())
				s := open(t, threads, name)
				for _, pack := range []bool{false, true} {
					m := rawMatrix(3, d, rows, cols)
					if pack {
						s.Pack(m)
					}
					for _, n := range []int{1, 2, 3, 4, 5, 7, 16, most} {
						y := make([]float32, n*rows)
						for from := 0; from+n <= most; from += n {
							s.MatMul(y, x[from*cols:(from+n)*cols], m, bias, n)
							if !slices.Equal(y, want[from*rows:(from+n)*rows]) {
								t.Fatalf(
									"%d rows from row %d, %d threads, packed %v: %s gives different bits",
									n,
									from,
									threads,
									pack,
									name,
								)
							}
						}
					}
				}
				s.Close()
			}
		})
	}
}

// TestMatMul_LargestCodes multiplies the largest codes by the largest activations, whose sums come nearest to what the
// registers of the loops can hold.
func TestMatMul_LargestCodes(t *testing.T) {
	for _, d := range quantTypes[:12] {
		if d == tensor.MXFP4 {
			continue
		}
		const rows, cols, most = 16, 768, 9
		m := rawMatrix(3, d, rows, cols)
		for i := range m.Raw {
			in := i % d.BlockBytes()
			if !slices.ContainsFunc(scalesAt(d), func(at int) bool { return in == at || in == at+1 }) {
				m.Raw[i] = 0xff
			}
		}
		x := make([]float32, most*cols)
		for i := range x {
			x[i] = float32(1 - i/cols%2*2)
		}
		plain := open(t, 1, "portable")
		want, got := make([]float32, most*rows), make([]float32, most*rows)
		plain.MatMul(want, x, m, nil, most)
		plain.Close()
		for _, name := range cpu.Instructions() {
			s := open(t, 1, name)
			for n := 1; n <= most; n++ {
				s.MatMul(got[:n*rows], x[:n*cols], m, nil, n)
				if !slices.Equal(got[:n*rows], want[:n*rows]) {
					t.Errorf("%v, %d rows: %s gives different bits", d, n, name)
				}
			}
			s.Close()
		}
	}
}

func BenchmarkMatMulPacked(b *testing.B) {
	for _, d := range []tensor.DType{
		tensor.Q4_0, tensor.Q4_1, tensor.Q8_0, tensor.Q5_0, tensor.Q4_K, tensor.Q6_K, tensor.IQ4_XS, tensor.IQ2_XXS,
		tensor.IQ2_S, tensor.F16,
	} {
		for _, n := range []int{1, 8, 128} {
			b.Run(fmt.Sprintf("%v/%d", d, n), func(b *testing.B) {
				s := open(b, 1, cmp.Or(os.Getenv("INSTRUCTIONS"), cpu.Instructions()[0]))
				defer s.Close()
				const cols, rows = 1536, 576
				m := rawMatrix(1, d, rows, cols)
				s.Pack(m)
				x, y := random(2, n*cols), make([]float32, n*rows)
				for b.Loop() {
					s.MatMul(y, x, m, nil, n)
				}
				rate(b, 2*float64(n*cols*rows), "Gop/s")
				rate(b, float64(len(m.Raw)), "GB/s")
			})
		}
	}
}

// BenchmarkPack measures packing, which happens when a model is loaded.
func BenchmarkPack(b *testing.B) {
	for _, d := range []tensor.DType{tensor.Q4_0, tensor.Q4_1, tensor.Q8_0, tensor.Q4_K, tensor.Q6_K, tensor.MXFP4,
		tensor.IQ2_S, tensor.F16} {
		for _, threads := range []int{1, 2} {
			b.Run(fmt.Sprintf("%v/threads=%d", d, threads), func(b *testing.B) {
				s := open(b, threads, cpu.Instructions()[0])
				defer s.Close()
				m := rawMatrix(1, d, 4096, 4096)
				for b.Loop() {
					m.Packed = nil
					s.Pack(m)
				}
				rate(b, float64(len(m.Raw)), "GB/s")
			})
		}
	}
}

// TestMatMul_PlainMatricesAreNotRounded compares matrices with Plain set with the product over decoded weights.
func TestMatMul_PlainMatricesAreNotRounded(t *testing.T) {
	for _, d := range []tensor.DType{tensor.Q4_0, tensor.Q6_K, tensor.F16, tensor.BF16} {
		const rows, cols, n = 37, 1024, 3
		m, x := rawMatrix(1, d, rows, cols), random(2, n*cols)
		dense := &kernel.Matrix[float32]{Rows: rows, Cols: cols, Dense: make([]float32, rows*cols)}
		tensor.Dequantize(dense.Dense, m.Raw, d)
		m.Plain = true
		s := cpu.New(2)
		want, got := make([]float32, n*rows), make([]float32, n*rows)
		s.MatMul(want, x, dense, nil, n)
		s.MatMul(got, x, m, nil, n)
		if !slices.Equal(got, want) {
			t.Errorf("%v: different bits before packing", d)
		}
		s.Pack(m)
		s.MatMul(got, x, m, nil, n)
		if !slices.Equal(got, want) {
			t.Errorf("%v: different bits after packing", d)
		}
		s.Close()
	}
}
