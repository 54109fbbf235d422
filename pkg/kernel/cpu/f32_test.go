package cpu_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
)

// f32Shapes are rows, outputs and inputs with tails everywhere, and more than a block.
var f32Shapes = [][3]int{{1, 1, 1}, {1, 17, 300}, {3, 16, 15}, {13, 33, 65}, {25, 50, 270}, {14, 97, 530}}

func TestMatMul_SameBitsOnAllInstructionsThreadsAndSplits(t *testing.T) {
	for _, shape := range f32Shapes {
		rows, n, k := shape[0], shape[1], shape[2]
		x, w, bias, dy := random(1, rows*k), random(2, n*k), random(3, n), random(4, rows*n)
		m := &kernel.Matrix[float32]{Rows: n, Cols: k, Dense: w}
		run := func(s *cpu.Set, split int) []float32 {
			y, dx, dw, db := make([]float32, rows*n), random(5, rows*k), random(6, n*k), random(7, n)
			for _, cut := range [][2]int{{0, split}, {split, rows}} {
				lo, hi := cut[0], cut[1]
				s.MatMul(y[lo*n:hi*n], x[lo*k:hi*k], m, bias, hi-lo)
				s.MatMulGrad(dx[lo*k:hi*k], dw, db, dy[lo*n:hi*n], x[lo*k:hi*k], m, hi-lo)
			}
			return slices.Concat(y, dx, dw, db)
		}
		var want []float32
		for _, name := range cpu.Instructions() {
			for _, threads := range []int{1, 3} {
				s := open(t, threads, name)
				for _, split := range []int{0, rows / 3, rows} {
					got := run(s, split)
					if want == nil {
						want = got
					}
					if !slices.Equal(got, want) {
						t.Errorf("%v: %s with %d threads, rows cut at %d, gives other bits", shape, name, threads, split)
					}
				}
				s.Close()
			}
		}
	}
}

// BenchmarkMatMul_Float32 tells products of training as a share of the machine's peak.
func BenchmarkMatMul_Float32(b *testing.B) {
	for _, name := range cpu.Instructions() {
		if name == "portable" {
			continue
		}
		s := open(b, 1, name)
		peak := s.Peaks(50 * time.Millisecond).Float32
		for _, c := range [][3]int{{768, 384, 128}, {768, 128, 512}, {768, 512, 128}, {256, 768, 768}, {256, 3072, 768}, {768, 768, 3072}} {
			rows, n, k := c[0], c[1], c[2]
			x, w, dy, y := random(1, rows*k), random(2, n*k), random(3, rows*n), make([]float32, rows*n)
			dx, dw := make([]float32, rows*k), make([]float32, n*k)
			m := &kernel.Matrix[float32]{Rows: n, Cols: k, Dense: w}
			for _, kind := range []struct {
				name string
				run  func()
			}{
				{"y", func() { s.MatMul(y, x, m, nil, rows) }},
				{"dx", func() { s.MatMulGrad(dx, nil, nil, dy, x, m, rows) }},
				{"dw", func() { s.MatMulGrad(nil, dw, nil, dy, x, m, rows) }},
			} {
				b.Run(fmt.Sprintf("%s/%dx%dx%d/%s", name, rows, n, k, kind.name), func(b *testing.B) {
					for b.Loop() {
						kind.run()
					}
					rate := 2 * float64(rows*n*k) / float64(b.Elapsed().Nanoseconds()) * float64(b.N)
					b.ReportMetric(rate, "GFLOP/s")
					b.ReportMetric(100*rate/peak, "%peak")
				})
			}
		}
		s.Close()
	}
}
