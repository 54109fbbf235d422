package cpu_test

import (
	"fmt"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// rate reports work per nanosecond, which is GFLOP/s for floating-point operations and GB/s for bytes.
func rate(b *testing.B, work float64, unit string) {
	b.ReportMetric(work*float64(b.N)/float64(b.Elapsed().Nanoseconds()), unit)
}

func BenchmarkMatMul(b *testing.B) {
	for _, n := range [][3]int{{192, 128, 512}, {768, 128, 384}, {512, 576, 1536}, {1, 576, 1536}} {
		t, k, rows := n[0], n[1], n[2]
		b.Run(fmt.Sprintf("%dx%d·%d", t, k, rows), func(b *testing.B) {
			s := cpu.New(1)
			defer s.Close()
			m := &kernel.Matrix[float32]{Rows: rows, Cols: k, Dense: random(1, rows*k)}
			x, y := random(2, t*k), make([]float32, t*rows)
			for b.Loop() {
				s.MatMul(y, x, m, nil, t)
			}
			rate(b, 2*float64(t*k*rows), "GFLOP/s")
		})
	}
}

func BenchmarkMatMulGrad(b *testing.B) {
	for _, n := range [][3]int{{192, 128, 512}, {768, 128, 384}, {512, 576, 1536}} {
		t, k, rows := n[0], n[1], n[2]
		b.Run(fmt.Sprintf("%dx%d·%d", t, k, rows), func(b *testing.B) {
			s := cpu.New(1)
			defer s.Close()
			m := &kernel.Matrix[float32]{Rows: rows, Cols: k, Dense: random(1, rows*k)}
			x, dy := random(2, t*k), random(3, t*rows)
			dx, dw, db := make([]float32, t*k), make([]float32, rows*k), make([]float32, rows)
			for b.Loop() {
				s.MatMulGrad(dx, x, t, kernel.ProductGrad[float32]{DY: dy, W: m, DW: dw, DBias: db})
			}
			rate(b, 4*float64(t*k*rows), "GFLOP/s")
		})
	}
}

func BenchmarkMatMulRaw(b *testing.B) {
	for _, d := range []tensor.DType{tensor.Q4_0, tensor.Q4_1, tensor.Q8_0, tensor.Q4_K, tensor.Q6_K, tensor.F16,
		tensor.BF16} {
		for _, t := range []int{1, 128} {
			for _, threads := range []int{1, 2} {
				b.Run(fmt.Sprintf("%v/rows=%d/threads=%d", d, t, threads), func(b *testing.B) {
					s := cpu.New(threads)
					defer s.Close()
					const rows, cols = 16384, 768
					m := &kernel.Matrix[float32]{Rows: rows, Cols: cols, DType: d,
						Raw: make([]byte, d.RowBytes(rows*cols))}
					x, y := random(2, t*cols), make([]float32, t*rows)
					for b.Loop() {
						s.MatMul(y, x, m, nil, t)
					}
					rate(b, float64(len(m.Raw)), "GB/s")
					rate(b, 2*float64(t*rows*cols), "GFLOP/s")
				})
			}
		}
	}
}

func BenchmarkAttend(b *testing.B) {
	a := kernel.Heads{H: 9, K: 3, D: 64, Scale: 0.125}
	for _, n := range [][2]int{{1, 63}, {1, 511}, {1, 4095}, {256, 0}} {
		b.Run(fmt.Sprintf("%d rows at %d", n[0], n[1]), func(b *testing.B) {
			s := cpu.New(1)
			defer s.Close()
			kv := kernel.KV[float32]{PageLen: 16}
			for p := 0; p < n[0]+n[1]; p += 16 {
				kv.Pages = append(kv.Pages,
					[]kernel.KVPage[float32]{{Keys: random(1, 16*a.K*a.D), Values: random(2, 16*a.K*a.D)}})
			}
			q := random(3, n[0]*a.H*a.D)
			y := make([]float32, len(q))
			for b.Loop() {
				s.Attend(y, q, []kernel.Span[float32]{{Rows: n[0], Pos: n[1], KV: kv}}, a)
			}
		})
	}
}

// BenchmarkTraining measures every operation except the products at the sizes of nanoGPT's CPU configuration:
// 12 sequences of 64 tokens, width 128, 4 heads, 65 characters.
func BenchmarkTraining(b *testing.B) {
	const rows, c, f, v = 12 * 64, 128, 512, 65
	a := kernel.Heads{H: 4, K: 4, D: 32, Scale: 0.177}
	s := cpu.New(1)
	defer s.Close()
	x, y, dx, dy := random(1, rows*f), random(2, rows*f), random(3, rows*f), random(4, rows*f)
	g, dg, db := random(5, c), random(6, c), random(7, c)
	lse, loss, targets := make([]float32, rows*4), make([]float64, rows), make([]int32, rows)
	q, k, w, dk, dv := random(8, rows*c), random(9, rows*c), random(10, rows*c), random(11, rows*c), random(12, rows*c)
	for _, op := range []struct {
		name string
		run  func()
	}{
		{"LayerNorm", func() { s.LayerNorm(y[:rows*c], x[:rows*c], g, g, 1e-5, rows, c) }},
		{"LayerNormGrad", func() { s.LayerNormGrad(dx[:rows*c], dg, db, dy[:rows*c], x[:rows*c], g, 1e-5, rows, c) }},
		{"RMSNorm", func() { s.RMSNorm(y[:rows*c], x[:rows*c], g, 1e-5, rows, c) }},
		{"RMSNormGrad", func() { s.RMSNormGrad(dx[:rows*c], dg, dy[:rows*c], x[:rows*c], g, 1e-5, rows, c) }},
		{"GELU", func() { s.Activate(y, x, kernel.GELUTanh) }},
		{"GELUGrad", func() { s.ActivateGrad(dx, y, dy, x, kernel.GELUTanh) }},
		{"SwiGLU", func() { s.GLU(y, x, dy, kernel.SiLU) }},
		{"SwiGLUGrad", func() { s.GLUGrad(dx, y, nil, dy, x, dy, kernel.SiLU) }},
		{"AttendCausal", func() { s.AttendCausal(y[:rows*c], lse, q, k, w, 12, 64, a) }},
		{"AttendCausalGrad", func() {
			s.AttendCausalGrad(dx[:rows*c], dk, dv, dy[:rows*c], y[:rows*c], lse, q, k, w, 12,
				64, a)
		}},
		{"CrossEntropy", func() { s.CrossEntropy(loss, dx[:rows*v], x[:rows*v], targets, 1, rows, v) }},
		{"Add", func() { s.Add(y[:rows*c], x[:rows*c]) }},
	} {
		b.Run(op.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				op.run()
			}
		})
	}
}
