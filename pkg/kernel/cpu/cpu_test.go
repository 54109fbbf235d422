package cpu_test

import (
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/lamina-mesh/lamina/internal/leak"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
	"github.com/lamina-mesh/lamina/pkg/kernel/kerneltest"
)

func TestSet_KeepsTheContract(t *testing.T) {
	for _, name := range cpu.Instructions() {
		for _, threads := range []int{1, 3} {
			t.Run(name, func(t *testing.T) {
				s := open(t, threads, name)
				defer s.Close()
				t.Log(s.Class())
				kerneltest.Run(t, s)
			})
		}
	}
}

// open returns a set with the named instructions.
func open(t testing.TB, threads int, name string) *cpu.Set {
	t.Helper()
	s, err := cpu.Open(threads, name)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// random returns n normally distributed numbers that depend on the seed.
func random(seed uint64, n int) []float32 {
	r := rand.New(rand.NewPCG(seed, 3))
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(r.NormFloat64())
	}
	return x
}

func TestSet_SameBitsOnThreadsAndConcurrentCalls(t *testing.T) {
	defer leak.Check(t)
	const rows, cols, n = 300, 256, 33
	x, w, dy := random(1, n*cols), random(2, rows*cols), random(3, n*rows)
	m := &kernel.Matrix[float32]{Rows: rows, Cols: cols, Dense: w}
	run := func(s *cpu.Set) []float32 {
		y, dx, dw := make([]float32, n*rows), make([]float32, n*cols), make([]float32, rows*cols)
		s.MatMul(y, x, m, nil, n)
		s.MatMulGrad(dx, x, n, kernel.ProductGrad[float32]{DY: dy, W: m, DW: dw})
		return slices.Concat(y, dx, dw)
	}
	one := cpu.New(1)
	defer one.Close()
	want := run(one)
	five := cpu.New(5)
	defer five.Close()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if !slices.Equal(run(five), want) {
				t.Error("concurrent calls on five threads give different bits from one thread")
			}
		})
	}
	wg.Wait()
}

func TestLogSumExp_OfExtremes(t *testing.T) {
	s := cpu.New(1)
	defer s.Close()
	for _, c := range []struct {
		in   []float32
		want float64
	}{
		{[]float32{0}, 0},
		{[]float32{1000, 1000}, 1000 + math.Ln2},
		{[]float32{-1000, -3000}, -1000},
		{[]float32{80, float32(math.Inf(-1))}, 80},
	} {
		if got := s.LogSumExp(c.in); math.Abs(got-c.want) > 1e-5*max(1, math.Abs(c.want)) {
			t.Errorf("log-sum-exp of %v is %v, want %v", c.in, got, c.want)
		}
	}
}
