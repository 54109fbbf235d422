package cuda_test

import (
	"encoding/binary"
	"math"
	"slices"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/ref"
)

func TestCrossEntropy_EqualsTheReference(t *testing.T) {
	r, set := newRig(t), ref.New[float32]()
	const rows, v = 3, 4100 // two chunks
	logits := normal(1, rows*v)
	for i := range logits {
		logits[i] *= 5
	}
	logits[7], logits[v+4099] = float32(math.Inf(-1)), 60
	targets := []int32{5, -1, 4099}
	loss, want := make([]float64, rows), make(kernel.Buffer[float32], rows*v)
	set.CrossEntropy(loss, want, logits, targets, 0.25, rows, v)
	x, parts, stats, d := r.floats(logits), r.alloc(rows*2*8), r.alloc(rows*8), r.alloc(4*rows*v)
	r.launch("lse_part", [3]int{2, rows, 1}, 0, parts, x, uint32(v))
	r.launch("lse_join", over(rows), 0, stats, parts, uint32(2), uint32(rows))
	for i, s := range r.read(stats, 2*rows) {
		if i%2 == 1 {
			continue
		}
		row := logits[i/2*v : (i/2+1)*v]
		got := float64(s) + math.Log(float64(r.read(stats, 2*rows)[i+1]))
		if want := set.LogSumExp(row); math.Abs(got-want) > 1e-6 {
			t.Errorf("log-sum-exp of row %d is %v, want %v", i/2, got, want)
		}
	}
	r.launch("cross_entropy_grad", over(rows*v), 0, d, x, stats, r.ints(targets), float32(0.25), uint32(v),
		uint32(rows*v))
	near(t, "gradient", r.read(d, rows*v), want, 1e-6)
}

func TestCandidates_LargestFirstAndOfEqualOnesTheFirst(t *testing.T) {
	r := newRig(t)
	const rows, n, count = 2, 2100, 40
	x := normal(1, rows*n)
	for i := range x {
		x[i] = float32(math.Round(float64(x[i]*20))) / 20 // many are equal
	}
	x[3], x[n+2099], x[n+1] = 9, 9, 9
	values, ids, at, in := uint64(0), uint64(0), r.floats(x), n
	at0 := at
	for {
		blocks := (in + 1023) / 1024
		v, i := r.alloc(4*rows*blocks*count), r.alloc(4*rows*blocks*count)
		r.launch("candidates", [3]int{blocks, rows, 1}, 0, v, i, at, ids, uint32(in), uint32(count))
		values, ids, at, in = v, i, v, blocks*count
		if blocks == 1 {
			break
		}
	}
	for row := range rows {
		order := make([]int, n)
		for i := range order {
			order[i] = i
		}
		slices.SortStableFunc(order, func(a, b int) int {
			switch d := x[row*n+b] - x[row*n+a]; {
			case d > 0:
				return 1
			case d < 0:
				return -1
			}
			return 0
		})
		got := r.read(values+uint64(4*row*count), count)
		for i, v := range got {
			id := int(binary.LittleEndian.Uint32(r.bytes(ids+uint64(4*(row*count+i)), 4)))
			if id != order[i] || v != x[row*n+id] {
				t.Fatalf("row %d: candidate %d is %d with %v, want %d with %v", row, i, id, v, order[i], x[row*n+order[i]])
			}
		}
	}
	ties := r.alloc(16)
	r.launch("fill", over(1000), 0, at0, float32(1), uint32(1000))
	r.launch("candidates", [3]int{1, 1, 1}, 0, r.alloc(16), ties, at0, uint64(0), uint32(1000), uint32(3))
	for i := range 3 {
		if id := binary.LittleEndian.Uint32(r.bytes(ties+uint64(4*i), 4)); id != uint32(i) {
			t.Errorf("of equal values number %d is element %d", i, id)
		}
	}
	few := r.alloc(16)
	r.launch("candidates", [3]int{1, 1, 1}, 0, few, r.alloc(16), r.floats([]float32{-1, 2}), uint64(0), uint32(2),
		uint32(3))
	equal(t, "few candidates", r.read(few, 3), []float32{2, -1, float32(math.Inf(-1))})
}

func TestSumSquares_EqualsTheReference(t *testing.T) {
	r := newRig(t)
	x := normal(1, 8192+301)
	sums := r.alloc(16)
	r.launch("sum_squares", [3]int{2, 1, 1}, 0, sums, r.floats(x), uint32(len(x)))
	var got float64
	for i := range 2 {
		got += math.Float64frombits(binary.LittleEndian.Uint64(r.bytes(sums+uint64(8*i), 8)))
	}
	if want := ref.New[float32]().SumSquares(x); math.Abs(got-want) > 1e-12*want {
		t.Errorf("the sum is %v, want %v", got, want)
	}
}

func TestTraining_EqualsTheReference(t *testing.T) {
	r, set := newRig(t), ref.New[float32]()
	type buffer = kernel.Buffer[float32]
	const rows, c = 13, 45
	const n = rows * c
	in := func(seed uint64) (uint64, buffer) { x := buffer(normal(seed, n)); return r.floats(x), slices.Clone(x) }

	dx, x := in(1)
	set.Dropout(x, kernel.Dropout{Rate: 0.25, Key: 77 << 40, From: 3}, rows, c)
	rate := 0.25
	r.launch("dropout", over(n), 0, dx, uint32(0), uint32(77<<8), uint32(rate*(1<<32)), float32(1/(1-rate)), uint32(3),
		uint32(c), uint32(n))
	equal(t, "dropout", r.read(dx, n), x)

	dp, p := in(2)
	dm, m := in(3)
	_, v := in(4)
	for i := range v {
		v[i] *= v[i]
	}
	dv := r.floats(v)
	dg, g := in(5)
	o := kernel.AdamW{Scale: 0.5, Beta1: 0.9, Beta2: 0.95, Size: 0.01, Root: 1.5, Epsilon: 1e-8, Keep: 0.999}
	set.AdamW(p, m, v, g, o)
	r.launch("adamw", over(n), 0, dp, dm, dv, dg, float32(o.Scale), float32(o.Beta1), float32(1-o.Beta1),
		float32(o.Beta2), float32(1-o.Beta2), float32(o.Size), float32(o.Root), float32(o.Epsilon), float32(o.Keep),
		uint32(n))
	equal(t, "adamw weights", r.read(dp, n), p)
	equal(t, "adamw means", r.read(dm, n), m)
	equal(t, "adamw squares", r.read(dv, n), v)

	for name, act := range acts {
		_, x := in(6)
		dup, up := in(7)
		ddy, dy := in(8)
		x[0], x[1], x[2] = 40, -40, 0
		dx := r.floats(x)
		gate, gradUp, y := make(buffer, n), make(buffer, n), make(buffer, n)
		outGate, outUp, outY := r.alloc(4*n), r.alloc(4*n), r.alloc(4*n)
		set.GLUGrad(gate, gradUp, y, dy, x, up, act)
		r.launch("glu_grad_"+name, over(n), 0, outGate, outUp, outY, ddy, dx, dup, uint32(n))
		near(t, name+" gradient of the gate", r.read(outGate, n), gate, 1e-6)
		near(t, name+" gradient of up", r.read(outUp, n), gradUp, 1e-6)
		near(t, name+" again", r.read(outY, n), y, 1e-6)
		set.ActivateGrad(gate, y, dy, x, act)
		r.launch("activate_grad_"+name, over(n), 0, ddy, uint64(0), ddy, dx, uint32(n))
		near(t, name+" gradient in place", r.read(ddy, n), gate, 1e-6)
	}

	ids := []int32{4, 1, 4}
	dw, w := in(9)
	dy := normal(10, 3*c)
	set.EmbedGrad(w, dy, ids, c)
	r.launch("embed_grad", over(c), 0, dw, r.floats(dy), r.ints(ids), uint32(c), uint32(3))
	equal(t, "embed grad", r.read(dw, n), w)

	// Experts: three rows of x, and what they add.
	routing := kernel.Routing[float32]{Rows: []int{4, 1, 2}, Weight: buffer{0.5, 0.25, -2}}
	list := r.ints([]int32{4, 1, 2})
	dx, x = in(11)
	dst, at := make(buffer, 3*c), r.alloc(4*3*c)
	set.Dispatch(dst, x, &routing, c)
	r.launch("dispatch", over(3*c), 0, at, dx, list, uint32(c), uint32(3*c))
	equal(t, "dispatch", r.read(at, 3*c), dst)
	dw, w = in(12)
	set.Combine(w, dst, &routing, 0, 3, c)
	r.launch("combine", over(3*c), 0, dw, at, list, r.floats(routing.Weight), uint32(c), uint32(3*c))
	equal(t, "combine", r.read(dw, n), w)
}
