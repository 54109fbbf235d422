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
func Run(t *testing.T, set Set) { RunPart(t, set) }

// RunPart is Run for a set that lacks the named operations yet: what needs them is skipped, and the set must panic with
// a *kernel.MissingError.
func RunPart(t *testing.T, set Set, lacks ...string) {
	p := part{set: set, lacks: lacks, met: map[string]bool{}}
	first := map[string][][]float32{} // the results of the cases
	p.run(t, "EqualsTheReference", func(t *testing.T) {
		for _, c := range Cases() {
			p.run(t, c.name, func(t *testing.T) {
				got, want := c.run(set), c.run(ref.New[float32]())
				first[c.name] = got
				for i := range want {
					if worst := distance(got[i], want[i]); !(worst <= max(c.tolerance, tolerance)) {
						t.Errorf("result %d is off by %.2g of its size", i, worst)
					}
				}
			})
		}
	})
	p.run(t, "Memory", func(t *testing.T) { memory(t, set) })
	p.run(t, "Formulas", func(t *testing.T) { formulas(t, set) })
	p.run(t, "Sinks", func(t *testing.T) { sinks(t, set) })
	p.run(t, "Experts", func(t *testing.T) { experts(t, set) })
	if router, ok := set.(kernel.ExpertRouter[float32]); ok {
		p.run(t, "ExpertsOnTheDevice", func(t *testing.T) { routed(t, set, router) })
	}
	p.run(t, "RowsOfProductsStandAlone", func(t *testing.T) { p.productRows(t) })
	p.run(t, "RowsOfNormsStandAlone", func(t *testing.T) { normRows(t, set) })
	p.run(t, "ElementsOfActivationsStandAlone", func(t *testing.T) { activationElements(t, set) })
	p.run(t, "AttentionOfChunks", func(t *testing.T) { chunks(t, set) })
	p.run(t, "RepeatsItself", func(t *testing.T) {
		for _, c := range Cases() {
			p.run(t, c.name, func(t *testing.T) {
				before := first[c.name]
				if before == nil { // -run chose this test alone
					before = c.run(set)
				}
				if !slices.EqualFunc(c.run(set), before, slices.Equal[[]float32]) {
					t.Error("different bits the second time")
				}
			})
		}
	})
	p.run(t, "MisusePanics", func(t *testing.T) { misuse(t, set) })
	for _, op := range lacks {
		if !p.met[op] {
			t.Errorf("the set is said to lack %q, but panics nowhere for it", op)
		}
	}
}

// part is a set and what it lacks.
type part struct {
	set   Set
	lacks []string
	met   map[string]bool // operations for which the set has panicked
}

// run runs a test and skips it at an operation that the set lacks.
func (p *part) run(t *testing.T, name string, f func(t *testing.T)) {
	t.Run(name, func(t *testing.T) {
		defer func() {
			r := recover()
			if missing, ok := r.(*kernel.MissingError); ok && slices.Contains(p.lacks, missing.Operation) {
				p.met[missing.Operation] = true
				t.Skip(missing.Error())
			}
			if r != nil {
				panic(r)
			}
		}()
		f(t)
	})
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

// productRows compares each row of a product with the product of the row alone.
func (p *part) productRows(t *testing.T) {
	const rows, cols, most = 70, 77, 37
	in := source(20)
	matrices := []kernel.Matrix[float32]{
		{Rows: rows, Cols: cols, Dense: upload(p.set, in(rows*cols))}, raw(21, tensor.Q4_1, rows, 96),
		raw(22, tensor.BF16, rows, 48),
		raw(23, tensor.IQ2_XS, rows, 512), raw(24, tensor.IQ3_XXS, rows, 512), raw(25, tensor.NVFP4, rows, 64),
	}
	for _, m := range matrices {
		values := in(most * m.Cols)
		p.run(t, m.DType.String(), func(t *testing.T) {
			x := upload(p.set, values)
			for _, n := range []int{1, 2, 4, 7, most, -most} {
				if n < 0 { // packed
					n = -n
					p.set.Pack(&m)
				}
				y, alone := p.set.Alloc(n*rows), p.set.Alloc(rows)
				p.set.MatMul(y, x[:n*m.Cols], &m, nil, n)
				together := p.set.Host(y)
				for r := range n {
					p.set.MatMul(alone, x[r*m.Cols:(r+1)*m.Cols], &m, nil, 1)
					if !slices.Equal(p.set.Host(alone), together[r*rows:(r+1)*rows]) {
						t.Errorf("row %d of %d has different bits than alone", r, n)
					}
				}
			}
		})
	}
}

// normRows compares each row of a norm with the norm of the row alone.
func normRows(t *testing.T, set Set) {
	const cols, most = 77, 37
	in := inputs(set, 21)
	g, x := in(cols), in(most*cols)
	y, alone := set.Alloc(most*cols), set.Alloc(cols)
	set.RMSNorm(y, x, g, 1e-5, most, cols)
	together := set.Host(y)
	for r := range most {
		set.RMSNorm(alone, x[r*cols:(r+1)*cols], g, 1e-5, 1, cols)
		if !slices.Equal(set.Host(alone), together[r*cols:(r+1)*cols]) {
			t.Errorf("norm of row %d has different bits than alone", r)
		}
	}
}

// chunks compares attention over a whole prompt with attention over chunks of it, with another page length.
func chunks(t *testing.T, set Set) {
	a := kernel.Heads{H: 4, K: 2, D: 12, Scale: 0.25}
	const n = 41
	in := inputs(set, 30)
	q, k, v := in(n*a.H*a.D), in(n*a.K*a.D), in(n*a.K*a.D)
	y := set.Alloc(len(q))
	set.Attend(y, q, []kernel.Span[float32]{{Rows: n, KV: paged(set, kernel.KVFull, k, v, a, 16)}}, a)
	whole := set.Host(y)
	for _, size := range []int{1, 3, 16, 40} {
		for pos := 0; pos < n; pos += size {
			rows := min(size, n-pos)
			lo, hi := pos*a.H*a.D, (pos+rows)*a.H*a.D
			got := set.Alloc(hi - lo)
			set.Attend(got, q[lo:hi],
				[]kernel.Span[float32]{{Rows: rows, Pos: pos, KV: paged(set, kernel.KVFull, k, v, a, 8)}}, a)
			if !slices.Equal(set.Host(got), whole[lo:hi]) {
				t.Fatalf("attention in chunks of %d differs at position %d", size, pos)
			}
		}
	}
}

// misuse checks that slices of wrong lengths panic.
func misuse(t *testing.T, set Set) {
	x := set.Alloc(8)
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
				r := recover()
				if missing, ok := r.(*kernel.MissingError); ok {
					panic(missing) // the operation was not looked at
				}
				if r == nil {
					t.Errorf("%s accepts slices of wrong lengths", name)
				}
			}()
			call()
		}()
	}
}
