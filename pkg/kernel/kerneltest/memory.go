package kerneltest

import (
	"math"
	"slices"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/kernel"
)

// Small operations are checked against their formulas here, since sets may share an implementation.

// upload returns a buffer of the set with the given values.
func upload(s Set, x []float32) kernel.Buffer[float32] {
	b := s.Alloc(len(x))
	s.Upload(b, x)
	return b
}

// memory checks how buffers are made and moved.
func memory(t *testing.T, s Set) {
	x := source(40)(37)
	a := s.Alloc(len(x))
	if back := s.Host(a); slices.ContainsFunc(back, func(v float32) bool { return v != 0 }) {
		t.Errorf("a new buffer is %v", back)
	}
	s.Upload(a, x)
	b, down := s.Alloc(len(x)), make([]float32, len(x))
	s.Copy(b, a)
	s.Download(down, b)
	if !slices.Equal(down, x) || !slices.Equal(s.Host(b), x) {
		t.Error("an upload, a copy and a download change the values")
	}
	s.Clear(a[3:5])
	s.Download(down, a)
	if want := slices.Concat(x[:3], []float32{0, 0}, x[5:]); !slices.Equal(down, want) {
		t.Error("clearing two elements changes others")
	}
}

// formulas checks the elementwise operations and attention sinks.
func formulas(t *testing.T, s Set) {
	const n, limit, alpha = 33, 1.5, 1.7
	in := source(41)
	x, y := in(n), in(n)
	expect := func(name string, got kernel.Buffer[float32], want func(i int) float64) {
		t.Helper()
		host := s.Host(got)
		for i := range host {
			if w := want(i); !(math.Abs(float64(host[i])-w) <= 1e-6*(1+math.Abs(w))) {
				t.Errorf("%s: element %d is %v, want %v", name, i, host[i], w)
			}
		}
	}
	at := func(x []float32, i int) float64 { return float64(x[i]) }

	b := upload(s, x)
	s.Scale(b, 0.75)
	expect("scale", b, func(i int) float64 { return 0.75 * at(x, i) })
	s.Shift(b, upload(s, x), 1)
	expect("shift", b, func(i int) float64 { return at(x, i) + 1 })
	b = upload(s, x)
	s.Softcap(b, limit)
	expect("softcap", b, func(i int) float64 { return limit * math.Tanh(at(x, i)/limit) })
	d := upload(s, y)
	s.SoftcapGrad(d, b, limit)
	expect("softcap grad", d, func(i int) float64 { return at(y, i) * (1 - math.Pow(math.Tanh(at(x, i)/limit), 2)) })

	gate, up, g, u := upload(s, x), upload(s, y), s.Alloc(n), s.Alloc(n)
	s.ClampedGate(g, u, gate, up, alpha, 0.5)
	expect("clamped gate", g, func(i int) float64 { return alpha * min(at(x, i), 0.5) })
	expect("clamped gate", u, func(i int) float64 { return (min(max(at(y, i), -0.5), 0.5) + 1) / alpha })
	dg, du := in(n), in(n)
	g, u = upload(s, dg), upload(s, du)
	s.ClampedGateGrad(g, u, gate, up, alpha, 0.5)
	inside := func(yes bool) float64 {
		if yes {
			return 1
		}
		return 0
	}
	expect("clamped gate grad", g, func(i int) float64 { return alpha * at(dg, i) * inside(x[i] <= 0.5) })
	expect("clamped gate grad", u,
		func(i int) float64 { return at(du, i) / alpha * inside(y[i] >= -0.5 && y[i] <= 0.5) })
}

// sinks checks that Sink is a softmax with one more score, and compares its gradient with central differences.
func sinks(t *testing.T, s Set) {
	const rows, h, d = 3, 2, 4
	in := source(42)
	att, lse, sink, dy := in(rows*h*d), in(rows*h), in(h), in(rows*h*d)
	run := func(sink []float32) []float32 {
		out := upload(s, att)
		s.Sink(out, upload(s, lse), upload(s, sink), h, d)
		return s.Host(out)
	}
	got := run(sink)
	share := func(row, head int) float64 {
		e := math.Exp(float64(lse[row*h+head]))
		return e / (e + math.Exp(float64(sink[head])))
	}
	for i, v := range got {
		if want := float64(att[i]) * share(i/d/h, i/d%h); math.Abs(float64(v)-want) > 1e-6 {
			t.Errorf("sink: element %d is %v, want %v", i, v, want)
		}
	}
	dsinks, datt := s.Alloc(h), upload(s, dy)
	s.SinkGrad(datt, dsinks, upload(s, got), upload(s, lse), upload(s, sink), h, d)
	for i, v := range s.Host(datt) {
		if want := float64(dy[i]) * share(i/d/h, i/d%h); math.Abs(float64(v)-want) > 1e-6 {
			t.Errorf("sink grad: element %d is %v, want %v", i, v, want)
		}
	}
	for head := range h {
		loss := func(by float32) (sum float64) {
			moved := slices.Clone(sink)
			moved[head] += by
			for i, v := range run(moved) {
				sum += float64(v) * float64(dy[i])
			}
			return sum
		}
		want := (loss(1e-2) - loss(-1e-2)) / 2e-2
		if v := float64(s.Host(dsinks)[head]); math.Abs(v-want) > 1e-3 {
			t.Errorf("sink grad: head %d is %v, want %v", head, v, want)
		}
	}
}

// experts compares routing with its formula, and its gradients with central differences.
func experts(t *testing.T, s Set) {
	const rows, e, top, c = 5, 4, 2, 3
	in := source(43)
	logits, x, dy := in(rows*e), in(rows*c), in(rows*c)
	copy(logits[:e], []float32{0.5, 2, 2, 2}) // among equal logits the first experts are chosen
	for _, normalize := range []bool{false, true} {
		// Expert i multiplies its input by i+1.
		run := func(logits []float32) (kernel.Routing[float32], kernel.Buffer[float32], kernel.Buffer[float32]) {
			r := s.Route(s.Alloc(rows*top), upload(s, logits), rows, e, top, normalize)
			grouped, y := s.Alloc(len(r.Rows)*c), s.Alloc(rows*c)
			s.Dispatch(grouped, upload(s, x), &r, c)
			for i := range e {
				lo, hi := r.Bounds[i], r.Bounds[i+1]
				s.Scale(grouped[lo*c:hi*c], float64(i+1))
				s.Combine(y, grouped[lo*c:hi*c], &r, lo, hi, c)
			}
			return r, grouped, y
		}
		r, grouped, y := run(logits)
		if len(r.Rows) != rows*top || r.Bounds[e] != rows*top || !slices.Contains(r.Rows[r.Bounds[1]:r.Bounds[2]], 0) ||
			!slices.Contains(r.Rows[r.Bounds[2]:r.Bounds[3]], 0) {
			t.Fatalf("rows %v in groups %v", r.Rows, r.Bounds)
		}
		chosen := make([][]int, rows) // experts by row
		for i := range e {
			for _, row := range r.Rows[r.Bounds[i]:r.Bounds[i+1]] {
				chosen[row] = append(chosen[row], i)
			}
		}
		// combined returns the factor of x in a row for other logits and the same choice of experts.
		combined := func(logits []float32, row int) float64 {
			var all, picked, sum float64
			for i := range e {
				all += math.Exp(float64(logits[row*e+i]))
			}
			for _, i := range chosen[row] {
				p := math.Exp(float64(logits[row*e+i])) / all
				picked += p
				sum += p * float64(i+1)
			}
			if normalize {
				return sum / picked
			}
			return sum
		}
		for i, v := range s.Host(y) {
			if want := combined(logits, i/c) * float64(x[i]); math.Abs(float64(v)-want) > 1e-5 {
				t.Errorf("experts: element %d is %v, want %v", i, v, want)
			}
		}
		dgrouped, dx, dlogits := s.Alloc(len(r.Rows)*c), s.Alloc(rows*c), s.Alloc(rows*e)
		for i := range e {
			lo, hi := r.Bounds[i], r.Bounds[i+1]
			s.CombineGrad(dgrouped[lo*c:hi*c], upload(s, dy), grouped[lo*c:hi*c], &r, lo, hi, c)
			s.Scale(dgrouped[lo*c:hi*c], float64(i+1))
		}
		s.DispatchGrad(dx, dgrouped, &r, c)
		s.RouteGrad(dlogits, &r, rows, e, normalize)
		for i, v := range s.Host(dx) {
			if want := combined(logits, i/c) * float64(dy[i]); math.Abs(float64(v)-want) > 1e-5 {
				t.Errorf("experts: gradient %d of the input is %v, want %v", i, v, want)
			}
		}
		for i, v := range s.Host(dlogits) {
			row := i / e
			var product float64 // Σ x·dy of the row
			for j := row * c; j < (row+1)*c; j++ {
				product += float64(x[j]) * float64(dy[j])
			}
			moved := func(by float32) float64 {
				l := slices.Clone(logits)
				l[i] += by
				return combined(l, row)
			}
			if want := product * (moved(1e-2) - moved(-1e-2)) / 2e-2; math.Abs(float64(v)-want) > 1e-3 {
				t.Errorf("experts: gradient of logit %d is %v, want %v (normalize %v)", i, v, want, normalize)
			}
		}
	}
}
