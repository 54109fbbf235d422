package cuda_test

import (
	"encoding/binary"
	"fmt"
	"math"
	"runtime"
	"slices"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// words reads n integers from the device.
func (r *rig) words(at uint64, n int) []int {
	r.Helper()
	b, out := r.bytes(at, 4*n), make([]int, n)
	for i := range out {
		out[i] = int(binary.LittleEndian.Uint32(b[4*i:]))
	}
	return out
}

// route runs the kernels of a choice and compares everything with Route on the host, bit for bit.
func (r *rig) route(name string, logits []float32, t, e, top int, normalize bool) {
	r.Helper()
	n, divide := t*top, uint32(0)
	if normalize {
		divide = 1
	}
	groups := min(e, n)
	at, chosen, weight := r.floats(logits), r.alloc(4*n), r.alloc(4*n)
	rows, slots, list := r.alloc(4*n), r.alloc(4*n), r.alloc(12*groups)
	r.launch("route", [3]int{(t + 3) / 4, 1, 1}, 0, at, chosen, weight, uint32(t), uint32(e), uint32(top), divide)
	r.launch("route_groups", [3]int{(e + 3) / 4, 1, 1}, 0, rows, slots, list, chosen, uint32(n), uint32(e), uint32(top))
	probs := slices.Clone(logits)
	want := kernel.HostOps[float32]{}.Route(make([]float32, n), probs, t, e, top, normalize)
	equalOrNaN(r, name+": probabilities", r.read(at, len(logits)), probs)
	if got := r.words(rows, n); !slices.Equal(got, want.Rows) {
		r.Errorf("%s: rows %v, want %v", name, got, want.Rows)
	}
	// The entries of a row are its experts ascending; the slot of each is its grouped index.
	weights := make([]float32, n)
	for i, j := range r.words(slots, n) {
		expert := r.words(chosen, n)[i]
		if want.Rows[j] != i/top || j < want.Bounds[expert] || j >= want.Bounds[expert+1] {
			r.Errorf("%s: entry %d of expert %d is grouped at %d, bounds %v", name, i, expert, j, want.Bounds)
		}
		weights[i] = want.Weight[j]
		if i%top > 0 && r.words(slots, n)[i-1] >= j {
			r.Errorf("%s: the experts of row %d do not ascend", name, i/top)
		}
	}
	equalOrNaN(r, name+": weights", r.read(weight, n), weights)
	got, covered := r.words(list, 3*groups), 0
	for i := range groups {
		expert, from, to := got[3*i], got[3*i+1], got[3*i+2]
		if from == to {
			continue
		}
		if from != want.Bounds[expert] || to != want.Bounds[expert+1] {
			r.Errorf("%s: group %d is %d to %d of expert %d, bounds %v", name, i, from, to, expert, want.Bounds)
		}
		covered += to - from
	}
	if covered != n {
		r.Errorf("%s: groups have %d of %d rows", name, covered, n)
	}
}

// equalOrNaN is equal where NaNs are equal.
func equalOrNaN(r *rig, name string, got, want []float32) {
	r.Helper()
	for i := range want {
		if math.Float32bits(got[i]) != math.Float32bits(want[i]) && (got[i] == got[i] || want[i] == want[i]) {
			r.Errorf("%s: element %d is %v, want %v", name, i, got[i], want[i])
			return
		}
	}
}

func TestRoute_HasTheBitsOfTheHost(t *testing.T) {
	r := newRig(t)
	inf, nan := float32(math.Inf(1)), float32(math.NaN())
	odd := []float32{
		1, 1, 1, 1, 1, 1, // all are equal
		-inf, 0, -inf, 0, -800, -710, // zero and subnormal powers
		inf, 1, 2, 3, 4, 5,
		0, nan, 9, 8, 7, 6,
		-inf, -inf, -inf, -inf, -inf, -inf,
		3e38, -3e38, 88, 87.5, -1e-40, 0,
		-90, -100, -103, -104, 0, -149, // whose probabilities are subnormal numbers, or zero
	}
	for _, top := range []int{1, 2, 6} {
		for _, normalize := range []bool{false, true} {
			r.route(fmt.Sprintf("odd logits, top %d, normalize %v", top, normalize), odd, len(odd)/6, 6, top, normalize)
		}
	}
	for i, c := range [][3]int{{1, 1, 1}, {1, 32, 4}, {5, 33, 8}, {9, 130, 5}, {40, 4, 2}} {
		logits := normal(uint64(i), c[0]*c[1])
		for j := range logits {
			logits[j] = float32(math.Round(float64(logits[j])*16)) / 4 // many are equal
		}
		r.route(fmt.Sprint(c), logits, c[0], c[1], c[2], i%2 == 0)
	}
	r.route("small differences", normal(9, 20*60), 20, 60, 6, true)
}

// A set routes no rows by matrices of several forms, or that are not on the device, and refuses their products.
func TestSet_RoutesByMatricesOfOneForm(t *testing.T) {
	s := open(t, 0)
	memory := s.Scope()
	matrix := func(d tensor.DType) *kernel.Matrix[float32] {
		m := kernel.Matrix[float32]{Rows: 2, Cols: 64, DType: d, Raw: weightsOf(d, 2, 64)}
		return &m
	}
	on := func(d tensor.DType) *kernel.Matrix[float32] {
		m := matrix(d)
		s.Pack(m)
		return m
	}
	dense := &kernel.Matrix[float32]{Rows: 2, Cols: 64, Dense: memory.Alloc(128)}
	decoded := matrix(tensor.Q8_0)
	decoded.Plain = true
	s.Pack(decoded)
	for _, c := range []struct {
		name string
		rows int
		w    []*kernel.Matrix[float32]
		want bool
	}{
		{"one type", 3, []*kernel.Matrix[float32]{on(tensor.Q8_0), on(tensor.Q8_0)}, true},
		{"dense and decoded", 3, []*kernel.Matrix[float32]{dense, decoded}, true},
		{"two types", 3, []*kernel.Matrix[float32]{on(tensor.Q8_0), on(tensor.Q4_0)}, false},
		{"one is decoded", 3, []*kernel.Matrix[float32]{on(tensor.Q8_0), decoded}, false},
		{"one is on the host", 3, []*kernel.Matrix[float32]{on(tensor.Q8_0), matrix(tensor.Q8_0)}, false},
		{"more rows than a launch has blocks", 40000, []*kernel.Matrix[float32]{dense, dense}, false},
	} {
		x := kernel.ExpertMatrices[float32]{W: c.w}
		if got := s.Routes(c.rows, 2, &x); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
	defer func() {
		if want := "expert matmul: the matrices are not all on the device in one form"; recover() != want {
			t.Errorf("a product of two forms does not panic with %q", want)
		}
	}()
	lists := memory.Alloc(s.RoutedLists(1, 2, 1))
	r := s.RouteRows(memory.Alloc(1), lists, memory.Alloc(2), 1, 2, 1, false)
	s.ExpertMatMuls(memory.Alloc(64), &r, kernel.RoutedProduct[float32]{Y: memory.Alloc(2),
		W: &kernel.ExpertMatrices[float32]{W: []*kernel.Matrix[float32]{on(tensor.Q8_0), on(tensor.Q4_0)}}})
	runtime.KeepAlive(memory)
}
