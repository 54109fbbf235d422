// Package kerneltest tests the contract of kernel sets: results equal those of the reference within stated tolerances,
// the bits of a row do not depend on the rows, chunks or sequences around it, and misuse panics.
package kerneltest

import (
	"math"
	"slices"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/ref"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// Set is the kind of set that is tested.
type Set = kernel.Set[float32]

// tolerance is the largest difference from the reference, relative to its largest element.
const tolerance = 2e-5

// Run tests a set.
func Run(t *testing.T, set Set) {
	t.Run("EqualsTheReference", func(t *testing.T) {
		for _, c := range Cases() {
			got, want := c.run(set), c.run(ref.New[float32]())
			for i := range want {
				if worst := distance(got[i], want[i]); !(worst <= max(c.tolerance, tolerance)) {
					t.Errorf("%s: result %d is off by %.2g of its size", c.name, i, worst)
				}
			}
		}
	})
	t.Run("Memory", func(t *testing.T) { memory(t, set) })
	t.Run("Formulas", func(t *testing.T) { formulas(t, set) })
	t.Run("Sinks", func(t *testing.T) { sinks(t, set) })
	t.Run("Experts", func(t *testing.T) { experts(t, set) })
	t.Run("RowsStandAlone", func(t *testing.T) { rowsStandAlone(t, set) })
	t.Run("AttentionOfChunks", func(t *testing.T) { chunks(t, set) })
	t.Run("RepeatsItself", func(t *testing.T) {
		for _, c := range Cases() {
			if !slices.EqualFunc(c.run(set), c.run(set), slices.Equal[[]float32]) {
				t.Errorf("%s gives different bits the second time", c.name)
			}
		}
	})
	t.Run("MisusePanics", func(t *testing.T) { misuse(t, set) })
}

// distance returns the largest difference divided by the largest value.
func distance(got, want []float32) float64 {
	var worst, size float64
	for i := range want {
		worst = max(worst, math.Abs(float64(got[i])-float64(want[i])))
		size = max(size, math.Abs(float64(want[i])))
		if math.IsNaN(float64(got[i])) {
			return math.NaN()
		}
	}
	if size == 0 {
		return worst
	}
	return worst / size
}

// rowsStandAlone compares each row of a product with the product of the row alone.
func rowsStandAlone(t *testing.T, set Set) {
	const rows, cols, most = 70, 77, 37
	in := source(20)
	matrices := []kernel.Matrix[float32]{
		{Rows: rows, Cols: cols, Dense: in(rows * cols)}, raw(21, tensor.Q4_1, rows, 96),
		raw(22, tensor.BF16, rows, 48),
		raw(23, tensor.IQ2_XS, rows, 512), raw(24, tensor.IQ3_XXS, rows, 512), raw(25, tensor.NVFP4, rows, 64),
	}
	for _, m := range matrices {
		x := in(most * m.Cols)
		for _, n := range []int{1, 2, 4, 7, most} {
			y, alone := make([]float32, n*rows), make([]float32, rows)
			set.MatMul(y, x[:n*m.Cols], &m, nil, n)
			for r := range n {
				set.MatMul(alone, x[r*m.Cols:(r+1)*m.Cols], &m, nil, 1)
				if !slices.Equal(alone, y[r*rows:(r+1)*rows]) {
					t.Errorf("row %d of %d over %v weights has different bits than alone", r, n, m.DType)
				}
			}
		}
	}
	g := in(cols)
	x := in(most * cols)
	y, alone := make([]float32, most*cols), make([]float32, cols)
	set.RMSNorm(y, x, g, 1e-5, most, cols)
	for r := range most {
		set.RMSNorm(alone, x[r*cols:(r+1)*cols], g, 1e-5, 1, cols)
		if !slices.Equal(alone, y[r*cols:(r+1)*cols]) {
			t.Errorf("norm of row %d has different bits than alone", r)
		}
	}
}

// chunks compares attention over a whole prompt with attention over chunks of it, with another page length.
func chunks(t *testing.T, set Set) {
	a := kernel.Heads{H: 4, K: 2, D: 12, Scale: 0.25}
	const n = 41
	in := source(30)
	q, k, v := in(n*a.H*a.D), in(n*a.K*a.D), in(n*a.K*a.D)
	whole := make([]float32, len(q))
	set.Attend(whole, q, []kernel.Span[float32]{{Rows: n, KV: paged(set, kernel.KVFull, k, v, a, 16)}}, a)
	for _, size := range []int{1, 3, 16, 40} {
		for pos := 0; pos < n; pos += size {
			rows := min(size, n-pos)
			lo, hi := pos*a.H*a.D, (pos+rows)*a.H*a.D
			got := make([]float32, hi-lo)
			set.Attend(got, q[lo:hi],
				[]kernel.Span[float32]{{Rows: rows, Pos: pos, KV: paged(set, kernel.KVFull, k, v, a, 8)}}, a)
			if !slices.Equal(got, whole[lo:hi]) {
				t.Fatalf("attention in chunks of %d differs at position %d", size, pos)
			}
		}
	}
}

// misuse checks that slices of wrong lengths panic.
func misuse(t *testing.T, set Set) {
	x := make([]float32, 8)
	for name, call := range map[string]func(){
		"matmul": func() { set.MatMul(x[:3], x, &kernel.Matrix[float32]{Rows: 2, Cols: 4, Dense: x}, nil, 2) },
		"norm":   func() { set.RMSNorm(x, x, x[:3], 1e-5, 2, 4) },
		"add":    func() { set.Add(x, x[:7]) },
		"rotate": func() { set.Rotate(x, &kernel.Rotary{Dims: 2, Freq: []float64{1}, Scale: 1}, []int32{0}, 3, 2) },
		"attend": func() { set.Attend(x[:2], x, nil, kernel.Heads{H: 1, K: 1, D: 8}) },
		"act":    func() { set.Activate(x, x, 0) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s accepts slices of wrong lengths", name)
				}
			}()
			call()
		}()
	}
}
