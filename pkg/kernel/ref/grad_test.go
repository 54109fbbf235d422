package ref_test

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/ref"
)

// check compares an operation's gradients with central differences in float64. forward computes the outputs from
// inputs. backward adds the gradients of all inputs to grads, given the gradient of the outputs.
func check(t *testing.T, name string, inputs [][]float64, outputs int, forward func(y []float64),
	backward func(grads [][]float64, dy []float64)) {
	t.Helper()
	r := rand.New(rand.NewPCG(11, 12))
	dy := make([]float64, outputs)
	for i := range dy {
		dy[i] = r.NormFloat64()
	}
	var grads [][]float64
	for _, in := range inputs {
		grads = append(grads, make([]float64, len(in)))
	}
	backward(grads, dy)
	y := make([]float64, outputs)
	weighted := func() float64 { // Σ dy·y, whose derivative is the gradient
		forward(y)
		var sum float64
		for i, v := range y {
			sum += dy[i] * v
		}
		return sum
	}
	for n, in := range inputs {
		var size float64
		for _, g := range grads[n] {
			size = max(size, math.Abs(g))
		}
		for i := range in {
			const h = 1e-4
			old := in[i]
			at := func(by float64) float64 {
				in[i] = old + by
				defer func() { in[i] = old }()
				return weighted()
			}
			wide, narrow := (at(2*h)-at(-2*h))/(4*h), (at(h)-at(-h))/(2*h)
			numeric := (4*narrow - wide) / 3
			if err := math.Abs(numeric-grads[n][i]) / max(size, 1); !(err < 1e-6) {
				t.Errorf("%s: gradient of input %d[%d] is %.10g, want %.10g by central differences", name, n, i,
					grads[n][i], numeric)
			}
		}
	}
}

func TestGradients_EveryOperationByCentralDifferences(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	in := func(n int) []float64 {
		x := make([]float64, n)
		for i := range x {
			x[i] = r.NormFloat64()
		}
		return x
	}
	s := ref.New[float64]()

	x, w, bias := in(3*5), in(4*5), in(4)
	m := &kernel.Matrix[float64]{Rows: 4, Cols: 5, Dense: w}
	check(t, "matmul", [][]float64{x, w, bias}, 12,
		func(y []float64) { s.MatMul(y, x, m, bias, 3) },
		func(g [][]float64, dy []float64) {
			s.MatMulGrad(g[0], x, 3, kernel.ProductGrad[float64]{DY: dy, W: m, DW: g[1], DBias: g[2]})
		})

	table := in(6 * 5)
	ids := []int32{2, 5, 2}
	check(t, "embed", [][]float64{table}, 15,
		func(y []float64) { s.Embed(y, &kernel.Matrix[float64]{Rows: 6, Cols: 5, Dense: table}, ids) },
		func(g [][]float64, dy []float64) { s.EmbedGrad(g[0], dy, ids, 5) })

	gain, shift := in(5), in(5)
	check(t, "rmsnorm", [][]float64{x, gain}, 15,
		func(y []float64) { s.RMSNorm(y, x, gain, 1e-5, 3, 5) },
		func(g [][]float64, dy []float64) { s.RMSNormGrad(g[0], g[1], dy, x, gain, 1e-5, 3, 5) })
	check(t, "layernorm", [][]float64{x, gain, shift}, 15,
		func(y []float64) { s.LayerNorm(y, x, gain, shift, 1e-5, 3, 5) },
		func(g [][]float64, dy []float64) { s.LayerNormGrad(g[0], g[1], g[2], dy, x, gain, 1e-5, 3, 5) })

	for _, interleaved := range []bool{false, true} {
		rot := &kernel.Rotary{Dims: 4, Interleaved: interleaved, Freq: []float64{1, 0.3}, Scale: 1.1}
		heads, pos := in(3*2*6), []int32{0, 4, 9}
		check(t, "rotate", [][]float64{heads}, 36,
			func(y []float64) { copy(y, heads); s.Rotate(y, rot, pos, 2, 6) },
			func(g [][]float64, dy []float64) { copy(g[0], dy); s.RotateGrad(g[0], rot, pos, 2, 6) })
	}

	for _, window := range []int{0, 3} {
		a := kernel.Heads{H: 4, K: 2, D: 3, Scale: 0.7, Window: window}
		const b, n = 2, 5
		q, k, v := in(b*n*12), in(b*n*6), in(b*n*6)
		y, lse := make([]float64, b*n*12), make([]float64, b*n*4)
		check(t, "attention", [][]float64{q, k, v}, b*n*12,
			func(y []float64) { s.AttendCausal(y, lse, q, k, v, b, n, a) },
			func(g [][]float64, dy []float64) {
				s.AttendCausal(y, lse, q, k, v, b, n, a)
				s.AttendCausalGrad(g[0], g[1], g[2], dy, y, lse, q, k, v, b, n, a)
			})
	}

	up := in(15)
	for _, act := range []kernel.Act{kernel.SiLU, kernel.GELUTanh, kernel.GELU} {
		check(t, "glu", [][]float64{x, up}, 15,
			func(y []float64) { s.GLU(y, x, up, act) },
			func(g [][]float64, dy []float64) { s.GLUGrad(g[0], g[1], nil, dy, x, up, act) })
		check(t, "activate", [][]float64{x}, 15,
			func(y []float64) { s.Activate(y, x, act) },
			func(g [][]float64, dy []float64) { s.ActivateGrad(g[0], nil, dy, x, act) })
	}

	targets := []int32{1, -1, 4}
	check(t, "cross entropy", [][]float64{x}, 1,
		func(y []float64) {
			loss := make([]float64, 3)
			s.CrossEntropy(loss, nil, x, targets, 1, 3, 5)
			y[0] = loss[0] + loss[1] + loss[2]
		},
		func(g [][]float64, dy []float64) {
			s.CrossEntropy(make([]float64, 3), g[0], x, targets, dy[0], 3, 5)
		})
	check(t, "z-loss", [][]float64{x}, 1,
		func(y []float64) {
			loss := make([]float64, 3)
			s.CrossEntropy(loss, nil, x, targets, 1, 3, 5)
			a, b := s.LogSumExp(x[:5]), s.LogSumExp(x[10:])
			y[0] = loss[0] + loss[2] + 0.3*(a*a+b*b)
		},
		func(g [][]float64, dy []float64) {
			loss := make([]float64, 3)
			s.CrossEntropy(loss, g[0], x, targets, dy[0], 3, 5)
			s.ZLossGrad(g[0], x, loss, targets, 0.3, dy[0], 3, 5)
		})
}
