package optim_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
	"github.com/lamina-mesh/lamina/pkg/kernel/ref"
	"github.com/lamina-mesh/lamina/pkg/optim"
)

// matrix is a plain matrix of float64, the reference.
type matrix struct {
	rows, cols int
	v          []float64
}

func (m matrix) transposed() matrix {
	out := matrix{m.cols, m.rows, make([]float64, len(m.v))}
	for r := range m.rows {
		for c := range m.cols {
			out.v[c*m.rows+r] = m.v[r*m.cols+c]
		}
	}
	return out
}

func (m matrix) times(o matrix) matrix {
	out := matrix{m.rows, o.cols, make([]float64, m.rows*o.cols)}
	for r := range m.rows {
		for c := range o.cols {
			for k := range m.cols {
				out.v[r*o.cols+c] += m.v[r*m.cols+k] * o.v[k*o.cols+c]
			}
		}
	}
	return out
}

func (m matrix) plus(a float64, o matrix, b float64) matrix {
	out := matrix{m.rows, m.cols, make([]float64, len(m.v))}
	for i := range m.v {
		out.v[i] = a*m.v[i] + b*o.v[i]
	}
	return out
}

// orthogonal is the published iteration in float64, word for word: on the transposed matrix if it has
// more rows than columns.
func orthogonal(x matrix, iterations int) matrix {
	var squares float64
	for _, v := range x.v {
		squares += v * v
	}
	x = x.plus(1/math.Max(math.Sqrt(squares), 1e-7), x, 0)
	tall := x.rows > x.cols
	if tall {
		x = x.transposed()
	}
	for range iterations {
		a := x.times(x.transposed())
		b := a.plus(-4.7750, a.times(a), 2.0315)
		x = x.plus(3.4445, b.times(x), 1)
	}
	if tall {
		x = x.transposed()
	}
	return x
}

// plainMuon steps p and m in float64.
func plainMuon(o optim.Muon, p, m, g matrix, scale, lr, decay float64) {
	u := matrix{p.rows, p.cols, make([]float64, len(p.v))}
	for i := range m.v {
		x := g.v[i] * scale
		m.v[i] = o.Momentum*m.v[i] + (1-o.Momentum)*x
		u.v[i] = m.v[i]
		if o.Nesterov {
			u.v[i] = (1-o.Momentum)*x + o.Momentum*m.v[i]
		}
	}
	u = orthogonal(u, o.Iterations)
	size := math.Sqrt(math.Max(1, float64(p.rows)/float64(p.cols)))
	if o.MatchAdamW {
		size = 0.2 * math.Sqrt(math.Max(float64(p.rows), float64(p.cols)))
	}
	for i := range p.v {
		p.v[i] = p.v[i]*(1-lr*decay) - lr*size*u.v[i]
	}
}

func random(r *rand.Rand, n int) []float32 {
	out := make([]float32, n)
	for i := range out {
		out[i] = float32(r.NormFloat64())
	}
	return out
}

func wide(x []float32) []float64 {
	out := make([]float64, len(x))
	for i, v := range x {
		out[i] = float64(v)
	}
	return out
}

// distance returns the norm of the difference relative to the norm of want.
func distance(got []float32, want []float64) float64 {
	var d, n float64
	for i, w := range want {
		d += (float64(got[i]) - w) * (float64(got[i]) - w)
		n += w * w
	}
	return math.Sqrt(d / n)
}

func sets(t *testing.T) map[string]kernel.Set[float32] {
	fast := cpu.New(2)
	t.Cleanup(fast.Close)
	return map[string]kernel.Set[float32]{"ref": ref.New[float32](), "cpu": fast}
}

func TestMuon_FollowsThePaperInFloat64(t *testing.T) {
	for name, set := range sets(t) {
		for _, shape := range [][2]int{{1, 1}, {3, 7}, {7, 3}, {16, 16}, {24, 40}, {65, 33}} {
			for i, o := range []optim.Muon{optim.DefaultMuon(), {Momentum: 0.9, Iterations: 3}} {
				r := rand.New(rand.NewPCG(1, uint64(i)))
				rows, cols := shape[0], shape[1]
				p, m := random(r, rows*cols), make([]float32, rows*cols)
				wantP, wantM := matrix{rows, cols, wide(p)}, matrix{rows, cols, wide(m)}
				scratch := optim.NewScratch(set)
				for step := range 5 {
					g := random(r, rows*cols)
					lr := 0.01 * float64(step+1)
					o.Step(scratch, p, m, g, rows, cols, 0.5, lr, 0.1)
					plainMuon(o, wantP, wantM, matrix{rows, cols, wide(g)}, 0.5, lr, 0.1)
				}
				if d := distance(p, wantP.v); !(d < 2e-5) {
					t.Errorf("%s: weights of %v are %g away", name, shape, d)
				}
				if d := distance(m, wantM.v); !(d < 1e-6) {
					t.Errorf("%s: momentum of %v is %g away", name, shape, d)
				}
			}
		}
	}
}

// The published coefficients bring singular values into a band around 1.
func TestScratch_OrthogonalizeBringsSingularValuesNearOne(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	const rows, cols = 12, 20
	x := optim.NewScratch(ref.New[float32]()).Orthogonalize(random(r, rows*cols), rows, cols, 5)
	o := matrix{rows, cols, wide(x)}
	square := o.times(o.transposed())
	var trace float64
	for i := range rows {
		trace += square.v[i*rows+i]
	}
	if mean := trace / rows; !(mean > 0.5 && mean < 1.4) {
		t.Errorf("the mean square of the singular values is %g", mean)
	}
	v := make([]float64, rows) // power iteration for the largest one
	for i := range v {
		v[i] = r.NormFloat64()
	}
	var largest float64
	for range 200 {
		next := square.times(matrix{rows, 1, v}).v
		largest = math.Sqrt(squares(next))
		for i := range v {
			v[i] = next[i] / largest
		}
	}
	if largest = math.Sqrt(largest); largest > 1.3 {
		t.Errorf("the largest singular value is %g", largest)
	}
}

func squares(x []float64) (sum float64) {
	for _, v := range x {
		sum += v * v
	}
	return sum
}

func TestMuon_ThreadsDoNotChangeBits(t *testing.T) {
	for _, shape := range [][2]int{{130, 70}, {64, 300}, {256, 256}} {
		rows, cols := shape[0], shape[1]
		var want []float32
		for threads := 1; threads <= 5; threads++ {
			set := cpu.New(threads)
			r := rand.New(rand.NewPCG(7, 8))
			p, m := random(r, rows*cols), make([]float32, rows*cols)
			scratch := optim.NewScratch(set)
			for range 3 {
				optim.DefaultMuon().Step(scratch, p, m, random(r, rows*cols), rows, cols, 1, 0.02, 0.1)
			}
			set.Close()
			if want == nil {
				want = p
			}
			if !slices.Equal(p, want) {
				t.Errorf("%v: %d threads give other bits than one", shape, threads)
			}
		}
	}
}

func TestMuon_AZeroGradientChangesNothing(t *testing.T) {
	p, m := []float32{1, 2, 3, 4, 5, 6}, make([]float32, 6)
	optim.DefaultMuon().Step(optim.NewScratch(ref.New[float32]()), p, m, make([]float32, 6), 2, 3, 1, 0.1, 0)
	if got := fmt.Sprint(p); got != "[1 2 3 4 5 6]" {
		t.Errorf("weights are %s", got)
	}
}

func TestSGD_FollowsItsDefinitionInFloat64(t *testing.T) {
	for name, set := range sets(t) {
		for _, o := range []optim.SGD{{}, {Momentum: 0.9}, {Momentum: 0.9, Nesterov: true}} {
			r := rand.New(rand.NewPCG(5, 6))
			const n = 37
			p, m := random(r, n), make([]float32, n)
			wantP, wantM := wide(p), wide(m)
			scratch := optim.NewScratch(set)
			for range 10 {
				g := random(r, n)
				o.Step(scratch, p, m, g, 0.5, 0.1, 0.01)
				for i := range wantP {
					x := float64(g[i]) * 0.5
					wantM[i] = o.Momentum*wantM[i] + x
					u := wantM[i]
					if o.Nesterov {
						u = x + o.Momentum*wantM[i]
					}
					wantP[i] = wantP[i]*(1-0.1*0.01) - 0.1*u
				}
			}
			if d := distance(p, wantP); !(d < 1e-6) {
				t.Errorf("%s: weights with %+v are %g away", name, o, d)
			}
		}
	}
}
