package cpu_test

import (
	"fmt"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
	"github.com/lamina-mesh/lamina/pkg/kernel/ref"
)

// f32Shapes are numbers of rows, outputs and inputs. They leave remainders for every tile, panel and vector, and some
// are larger than a packed block.
var f32Shapes = [][3]int{{1, 1, 1}, {1, 17, 300}, {3, 16, 15}, {13, 33, 65}, {25, 50, 270}, {14, 97, 530}}

func TestBFloat16_SameBitsOnAllInstructionsAndThreads(t *testing.T) {
	for _, shape := range append(slices.Clone(f32Shapes), [3]int{7, 70, 1100}) {
		rows, n, k := shape[0], shape[1], shape[2]
		x, w, bias, dy := random(1, rows*k), random(2, n*k), random(3, n), random(4, rows*n)
		for i := range dy { // all gradients of some rows are tiny, and others are subnormal
			if i/n%2 == 1 {
				dy[i] *= 1e-36
			}
			if i%5 == 1 {
				dy[i] = math.Float32frombits(uint32(i*7919) & 0x807fffff)
			}
		}
		for i := range x {
			if i%3 == 1 {
				x[i] *= 1e-4
			}
		}
		bias[0] = math.Float32frombits(0x80001234)
		m := &kernel.Matrix[float32]{Rows: n, Cols: k, Dense: w}
		var want []float32
		for _, name := range cpu.Instructions() {
			for _, threads := range []int{1, 3} {
				s := open(t, threads, name)
				rounding := s.BFloat16()
				y, dx, dw, db := make([]float32, rows*n), make([]float32, rows*k), make([]float32, n*k), random(7, n)
				rounding.MatMul(y, x, m, bias, rows)
				rounding.MatMulGrad(dx, x, rows, kernel.ProductGrad[float32]{DY: dy, W: m, DW: dw, DBias: db})
				got := slices.Concat(y, dx, dw, db)
				if want == nil {
					want = got
				}
				for i := range want {
					if math.Float32bits(want[i]) != math.Float32bits(got[i]) {
						t.Errorf("%v: element %d of %d is %x with %s and %d threads, want %x", shape, i, len(want),
							math.Float32bits(got[i]), name, threads, math.Float32bits(want[i]))
						break
					}
				}
				s.Close()
			}
		}
	}
}

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
				s.MatMulGrad(dx[lo*k:hi*k], x[lo*k:hi*k], hi-lo,
					kernel.ProductGrad[float32]{DY: dy[lo*n : hi*n], W: m, DW: dw, DBias: db})
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
						t.Errorf("%v: %s with %d threads, rows split at %d, gives different bits", shape, name, threads,
							split)
					}
				}
				s.Close()
			}
		}
	}
}

// BenchmarkMatMul_Float32 measures the products of training, also as a percentage of the machine's peak.
func BenchmarkMatMul_Float32(b *testing.B) {
	for _, name := range cpu.Instructions() {
		if name == "portable" {
			continue
		}
		s := open(b, 1, name)
		peak := s.Peaks(50 * time.Millisecond).Float32
		for _, c := range [][3]int{{768, 384, 128}, {768, 128, 512}, {768, 512, 128}, {256, 768, 768}, {256, 3072, 768},
			{768, 768, 3072}} {
			rows, n, k := c[0], c[1], c[2]
			x, w, dy, y := random(1, rows*k), random(2, n*k), random(3, rows*n), make([]float32, rows*n)
			dx, dw := make([]float32, rows*k), make([]float32, n*k)
			m := &kernel.Matrix[float32]{Rows: n, Cols: k, Dense: w}
			for _, kind := range []struct {
				name string
				run  func()
			}{
				{"y", func() { s.MatMul(y, x, m, nil, rows) }},
				{"dx", func() { s.MatMulGrad(dx, x, rows, kernel.ProductGrad[float32]{DY: dy, W: m}) }},
				{"dw", func() { s.MatMulGrad(nil, x, rows, kernel.ProductGrad[float32]{DY: dy, W: m, DW: dw}) }},
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

func TestTraining_SameBitsOnAllInstructionsAndThreads(t *testing.T) {
	runs := map[string]func(s *cpu.Set) []float32{}
	for _, a := range []kernel.Heads{
		{H: 2, K: 1, D: 40, Scale: 0.3}, {H: 2, K: 2, D: 16, Scale: 0.2, Window: 37},
		{H: 1, K: 1, D: 32, Scale: 0.1, Window: 1}, {H: 1, K: 1, D: 32, Scale: 0.2, Softcap: 3},
	} {
		for _, rows := range []int{1, 31, 64, 205, 700} {
			if rows == 700 && a.K > 1 {
				continue
			}
			runs[fmt.Sprintf("attention of %d rows, %+v", rows, a)] = func(s *cpu.Set) []float32 {
				n, kn := rows*a.H*a.D, rows*a.K*a.D
				q, k, v, dy := random(1, n), random(2, kn), random(3, kn), random(4, n)
				y, lse, dq, dk, dv := make([]float32, n), make([]float32, rows*a.H), random(5, n), random(6, kn),
					random(7, kn)
				s.AttendCausal(y, lse, q, k, v, 1, rows, a)
				s.AttendCausalGrad(dq, dk, dv, dy, y, lse, q, k, v, 1, rows, a)
				return slices.Concat(y, lse, dq, dk, dv)
			}
		}
	}
	const rows, c = 37, 523
	runs["norms"] = func(s *cpu.Set) []float32 {
		x, g, dy := random(1, rows*c), random(2, c), random(3, rows*c)
		dx1, dg1, dx2, dg2, db2 := random(4, rows*c), random(5, c), random(6, rows*c), random(7, c), random(8, c)
		s.RMSNormGrad(dx1, dg1, dy, x, g, 1e-5, rows, c)
		s.LayerNormGrad(dx2, dg2, db2, dy, x, g, 1e-5, rows, c)
		s.LayerNormGrad(dx2, nil, nil, dy, x, g, 1e-5, rows, c)
		s.LayerNormGrad(nil, dg2, nil, dy, x, g, 1e-5, rows, c)
		return slices.Concat(dx1, dg1, dx2, dg2, db2)
	}
	for _, act := range []kernel.Act{kernel.SiLU, kernel.GELUTanh, kernel.GELU} {
		runs[fmt.Sprintf("activation %d", act)] = func(s *cpu.Set) []float32 {
			x, up, dy := random(1, rows*c), random(2, rows*c), random(3, rows*c)
			dx, dg, du := random(4, rows*c), random(5, rows*c), random(6, rows*c)
			y, z := random(7, rows*c), random(8, rows*c)
			s.ActivateGrad(dx, y, dy, x, act)
			s.GLUGrad(dg, du, z, dy, x, up, act)
			return slices.Concat(dx, dg, du, y, z)
		}
	}
	runs["loss and update"] = func(s *cpu.Set) []float32 {
		logits, loss, d := random(1, rows*c), make([]float64, rows), make([]float32, rows*c)
		targets := make([]int32, rows)
		for i := range targets {
			targets[i] = int32(i*31%500) - 30
		}
		s.CrossEntropy(loss, d, logits, targets, 0.125, rows, c)
		p, m, v := random(2, rows*c), random(3, rows*c), make([]float32, rows*c)
		s.AdamW(p, m, v, d, kernel.AdamW{Scale: 2, Beta1: 0.9, Beta2: 0.95, Size: 0.1, Root: 3, Epsilon: 1e-8,
			Keep: 0.99})
		squares := s.SumSquares(slices.Repeat(logits, 7))
		s.CrossEntropy(loss[:1], logits[:c], logits[:c], targets[1:2], 0.125, 1, c) // in place
		out := slices.Concat(d, p, m, v, logits[:c],
			[]float32{float32(squares), float32(squares - float64(float32(squares)))})
		for _, l := range loss {
			out = append(out, float32(l), float32(l-float64(float32(l))))
		}
		return out
	}
	want := map[string][]float32{}
	for _, name := range cpu.Instructions() {
		for _, threads := range []int{1, 3} {
			if name == "portable" && threads > 1 {
				continue
			}
			s := open(t, threads, name)
			for what, run := range runs {
				got := run(s)
				if want[what] == nil {
					want[what] = got
				}
				if !slices.Equal(got, want[what]) {
					t.Errorf("%s: %s with %d threads gives different bits", what, name, threads)
				}
			}
			s.Close()
		}
	}
}

// TestAttendCausal_LongSequences compares sequences of several blocks of rows with the reference.
func TestAttendCausal_LongSequences(t *testing.T) {
	for _, a := range []kernel.Heads{{H: 2, K: 1, D: 24, Scale: 0.3}, {H: 1, K: 1, D: 16, Scale: 0.3, Window: 50},
		{H: 2, K: 1, D: 16, Scale: 0.3, Softcap: 2}} {
		const rows = 330
		n, kn := rows*a.H*a.D, rows*a.K*a.D
		run := func(s kernel.Set[float32]) []float32 {
			q, k, v, dy := random(1, n), random(2, kn), random(3, kn), random(4, n)
			y, lse, dq, dk, dv := make([]float32, n), make([]float32, rows*a.H), make([]float32, n),
				make([]float32, kn), make([]float32, kn)
			s.AttendCausal(y, lse, q, k, v, 1, rows, a)
			s.AttendCausalGrad(dq, dk, dv, dy, y, lse, q, k, v, 1, rows, a)
			return slices.Concat(y, lse, dq, dk, dv)
		}
		s := cpu.New(2)
		got, want := run(s), run(ref.New[float32]())
		s.Close()
		for i := range want {
			if !(math.Abs(float64(got[i]-want[i])) < 2e-5*(1+math.Abs(float64(want[i])))) {
				t.Fatalf("%+v: element %d is %g, want %g", a, i, got[i], want[i])
			}
		}
	}
}

// TestAttendDocuments_HaveTheBitsOfSingleDocuments compares documents in one call with one call for each.
func TestAttendDocuments_HaveTheBitsOfSingleDocuments(t *testing.T) {
	lengths := []int{3, 1, 330, 96, 0, 97, 15, 16, 17}
	for _, a := range []kernel.Heads{{H: 4, K: 2, D: 24, Scale: 0.3}, {H: 1, K: 1, D: 16, Scale: 0.3, Window: 50},
		{H: 2, K: 1, D: 16, Scale: 0.3, Softcap: 2}} {
		rows := 0
		for _, n := range lengths {
			rows += n
		}
		wide, narrow := a.H*a.D, a.K*a.D
		q, k, v, dy := random(1, rows*wide), random(2, rows*narrow), random(3, rows*narrow), random(4, rows*wide)
		run := func(do func(y, lse, dq, dk, dv []float32)) []float32 {
			y, lse, dq, dk, dv := random(5, rows*wide), random(6, rows*a.H), random(7, rows*wide),
				random(8, rows*narrow), random(9, rows*narrow)
			do(y, lse, dq, dk, dv)
			return slices.Concat(y, lse, dq, dk, dv)
		}
		s := cpu.New(2)
		got := run(func(y, lse, dq, dk, dv []float32) {
			s.AttendDocuments(y, lse, q, k, v, lengths, a)
			s.AttendDocumentsGrad(dq, dk, dv, dy, y, lse, q, k, v, lengths, a)
		})
		want := run(func(y, lse, dq, dk, dv []float32) {
			lo := 0
			for _, n := range lengths {
				part := func(x []float32, width int) []float32 { return x[lo*width : (lo+n)*width] }
				s.AttendCausal(part(y, wide), part(lse, a.H), part(q, wide), part(k, narrow), part(v, narrow), 1, n, a)
				s.AttendCausalGrad(part(dq, wide), part(dk, narrow), part(dv, narrow), part(dy, wide), part(y, wide),
					part(lse, a.H), part(q, wide), part(k, narrow), part(v, narrow), 1, n, a)
				lo += n
			}
		})
		s.Close()
		if !slices.Equal(got, want) {
			t.Errorf("%+v: documents in one call have other bits than alone", a)
		}
	}
}

// BenchmarkAttendCausal measures attention, forward and backward, in the shapes of nanoGPT and GPT-2.
func BenchmarkAttendCausal(b *testing.B) {
	for _, c := range []struct{ batch, rows, h, d int }{{12, 64, 4, 32}, {4, 64, 12, 64}, {1, 1024, 12, 64}} {
		a := kernel.Heads{H: c.h, K: c.h, D: c.d, Scale: 0.2}
		n := c.batch * c.rows * c.h * c.d
		q, k, v, dy := random(1, n), random(2, n), random(3, n), random(4, n)
		y, lse, dq, dk, dv := make([]float32, n), make([]float32, n/c.d), make([]float32, n), make([]float32, n),
			make([]float32, n)
		s := cpu.New(1)
		flops := 2 * 2 * float64(n) * float64(c.rows) // of two full products
		b.Run(fmt.Sprintf("%+v/forward", c), func(b *testing.B) {
			for b.Loop() {
				s.AttendCausal(y, lse, q, k, v, c.batch, c.rows, a)
			}
			rate(b, flops/2, "GFLOP/s")
		})
		b.Run(fmt.Sprintf("%+v/backward", c), func(b *testing.B) {
			for b.Loop() {
				s.AttendCausalGrad(dq, dk, dv, dy, y, lse, q, k, v, c.batch, c.rows, a)
			}
			rate(b, 5*flops/4, "GFLOP/s")
		})
		s.Close()
	}
}
