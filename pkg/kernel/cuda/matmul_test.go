package cuda_test

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// files are the types whose weights are multiplied as they lie.
var files = map[string]tensor.DType{"q8_0": tensor.Q8_0, "q4_0": tensor.Q4_0, "q4_1": tensor.Q4_1,
	"mxfp4": tensor.MXFP4, "q4_k": tensor.Q4_K, "q5_k": tensor.Q5_K, "q6_k": tensor.Q6_K, "bf16": tensor.BF16,
	"f16": tensor.F16}

// weightsOf returns random rows of a type, whose scales are small numbers.
func weightsOf(d tensor.DType, rows, cols int) []byte {
	r := rand.New(rand.NewPCG(uint64(d), 3))
	if d == tensor.BF16 || d == tensor.F16 {
		var out []byte
		for range rows * cols {
			v := float32(r.NormFloat64())
			b := tensor.Float16bits(v)
			if d == tensor.BF16 {
				b = tensor.BFloat16bits(v)
			}
			out = append(out, byte(b), byte(b>>8))
		}
		return out
	}
	out := make([]byte, d.RowBytes(rows*cols))
	for i := range out {
		out[i] = byte(r.Uint32())
	}
	half := func(b []byte) {
		bits := tensor.Float16bits(float32(0.005 + 0.01*r.Float64()))
		b[0], b[1] = byte(bits), byte(bits>>8)
	}
	for at := 0; at < len(out); at += d.BlockBytes() {
		switch b := out[at:]; d {
		case tensor.Q4_1, tensor.Q5_1, tensor.Q4_K, tensor.Q5_K:
			half(b)
			half(b[2:])
		case tensor.Q6_K:
			half(b[208:])
		case tensor.MXFP4:
			b[0] = byte(118 + r.IntN(6))
		default:
			half(b)
		}
	}
	return out
}

// product computes rows of x times weights on the device with the kernel of a shape.
func (r *rig) product(name string, w uint64, stride int, x, bias []float32, n, k int, shape [2]int) []float32 {
	r.Helper()
	t := len(x) / k
	pad := (t + shape[1] - 1) / shape[1] * shape[1]
	act, unit := "act_q8", 32
	if name == "bf16" || name == "f16" {
		act, unit = "act_bf16", 64
	}
	xq, xs, y := r.alloc(k/32*pad*unit), r.alloc(k/32*pad*8), r.alloc(4*t*n)
	r.launch(act, [3]int{(k + 255) / 256, pad, 1}, 0, xq, xs, r.floats(x), uint32(k), uint32(t), uint32(pad))
	var b uint64
	if bias != nil {
		b = r.floats(bias)
	}
	grid := [3]int{(n + shape[0] - 1) / shape[0], pad / shape[1], 1}
	r.launch(fmt.Sprintf("matmul_%s_%dx%d", name, shape[0], shape[1]), grid, 0, y, w, xq, xs, b, uint64(0), uint32(n),
		uint32(k), uint32(stride), uint32(t), uint32(pad))
	return r.read(y, t*n)
}

var shapes = [][2]int{{16, 8}, {16, 32}, {64, 64}}

func TestMatmul_SameBitsForAnyKernelAndNumberOfRows(t *testing.T) {
	set := cpu.New(1)
	defer set.Close()
	for name, d := range files {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			const n, rows = 21, 9
			for _, k := range []int{512, 1024 + max(32, d.BlockLen())} {
				m := kernel.Matrix[float32]{Rows: n, Cols: k, DType: d, Raw: weightsOf(d, n, k)}
				w := r.raw(m.Raw)
				x, bias := normal(1, rows*k), normal(2, n)
				whole := r.product(name, w, d.RowBytes(k), x, bias, n, k, shapes[2])
				want := make([]float32, rows*n)
				set.Pack(&m)
				set.MatMul(want, x, &m, bias, rows)
				near(t, fmt.Sprintf("%s, %d inputs", name, k), whole, want, 2e-6)
				if k <= 1024 && d != tensor.BF16 && d != tensor.F16 { // one segment has the CPU set's order
					equal(t, fmt.Sprintf("%s, %d inputs, on the processor", name, k), whole, want)
				}
				for _, shape := range shapes {
					for _, some := range []int{1, 9} {
						got := r.product(name, w, d.RowBytes(k), x[:some*k], bias, n, k, shape)
						equal(t, fmt.Sprintf("%v, %d of %d rows", shape, some, rows), got, whole[:some*n])
					}
				}
			}
		})
	}
}

func TestMatmul_ManySegments(t *testing.T) {
	set := cpu.New(1)
	defer set.Close()
	for _, name := range []string{"q8_0", "bf16"} { // six segments, or eleven
		r, d := newRig(t), files[name]
		const n, rows, k = 2, 2, 5*1024 + 512
		m := kernel.Matrix[float32]{Rows: n, Cols: k, DType: d, Raw: weightsOf(d, n, k)}
		w, x, want := r.raw(m.Raw), normal(1, rows*k), make([]float32, rows*n)
		whole := r.product(name, w, d.RowBytes(k), x, nil, n, k, shapes[2])
		set.Pack(&m)
		set.MatMul(want, x, &m, nil, rows)
		near(t, name, whole, want, 2e-6)
		for _, shape := range shapes[:2] {
			equal(t, fmt.Sprintf("%s, %v", name, shape), r.product(name, w, d.RowBytes(k), x, nil, n, k, shape), whole)
		}
	}
}

func TestGemm_ProductAndGradients(t *testing.T) {
	r := newRig(t)
	for _, s := range [][3]int{{1, 5, 7}, {17, 70, 33}, {70, 40, 64}} {
		rows, n, k := s[0], s[1], s[2]
		x, w, bias := normal(1, rows*k), normal(2, n*k), normal(3, n)
		want := make([]float32, rows*n)
		for i := range rows {
			for j := range n {
				var sum float32
				for p := range k {
					// Rounded twice, and so nearly always a fused multiply-add.
					sum = float32(float64(x[i*k+p])*float64(w[j*k+p]) + float64(sum))
				}
				want[i*n+j] = sum + bias[j]
			}
		}
		for _, tile := range []int{16, 64} {
			y := r.alloc(4 * rows * n)
			grid := [3]int{(n + 63) / 64, (rows + tile - 1) / tile, 1}
			r.launch(fmt.Sprintf("gemm_f32_%d", tile), grid, 0, y, r.floats(x), r.floats(w), r.floats(bias), uint64(0),
				uint32(rows), uint32(n), uint32(k), uint32(k), uint32(1), uint32(k), uint32(1), uint32(n), uint32(0))
			near(t, fmt.Sprintf("%v in tiles of %d", s, tile), r.read(y, rows*n), want, 1e-7)
			// A gradient reads the same memory by columns and adds to what is there: dw[N,K] += dy^T x, of y as dy.
			dw := r.floats(w)
			grid = [3]int{(k + 63) / 64, (n + tile - 1) / tile, 1}
			r.launch(fmt.Sprintf("gemm_f32_%d", tile), grid, 0, dw, r.floats(want), r.floats(x), uint64(0), uint64(0),
				uint32(n), uint32(k), uint32(rows), uint32(1), uint32(n), uint32(1), uint32(k), uint32(k), uint32(1))
			sums := make([]float32, n*k)
			for j := range n {
				for p := range k {
					sum := float64(w[j*k+p])
					for i := range rows {
						sum += float64(want[i*n+j]) * float64(x[i*k+p])
					}
					sums[j*k+p] = float32(sum)
				}
			}
			near(t, "gradient", r.read(dw, n*k), sums, 1e-6)
		}
	}
}
