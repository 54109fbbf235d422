package cuda

import (
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/pkg/kernel"
)

// lowAdapter is an adapter of a step's matrix.
type lowAdapter struct {
	name   string
	memory kernel.Memory[float32]
	a, b   kernel.Matrix[float32]
}

func (r *stepRig) adapter(name string, seed uint64, rank int) *lowAdapter {
	const in, out = 8, 70
	values := rand.New(rand.NewPCG(seed, 3))
	ad := &lowAdapter{name: name, memory: r.set.Scope()}
	for _, m := range []struct {
		to         *kernel.Matrix[float32]
		rows, cols int
	}{{&ad.a, rank, in}, {&ad.b, out, rank}} {
		x := make([]float32, m.rows*m.cols)
		for i := range x {
			x[i] = float32(values.NormFloat64())
		}
		*m.to = kernel.Matrix[float32]{Rows: m.rows, Cols: m.cols, Dense: ad.memory.FromHost(x)}
	}
	return ad
}

// Steps of one kind whose rows have other adapters are launched as one graph, with the bits of their kernels one by
// one, if there is room for the products; else the step is recorded again. An adapter that is gone is in no table.
func TestSteps_AdaptersChangeUnderOneGraph(t *testing.T) {
	r := newStepRig(t)
	const in, out = 8, 70
	x, y := r.set.FromHost(make([]float32, 4*in)), r.set.Alloc(4*out)
	steps := r.set.Steps()
	r.set.workspace(4 << 10) // which moves no more
	// run runs a step whose row i has the adapter all[i], or none, and compares it with the operations one by one.
	run := func(what string, s kernel.Steps[float32], all ...*lowAdapter) (played bool) {
		t.Helper()
		values, from := rand.New(rand.NewPCG(uint64(r.pos), 4)), make([]float32, len(x))
		for i := range from {
			from[i] = float32(values.NormFloat64())
		}
		r.set.Upload(x, from)
		name := ""
		var products []kernel.LowRank[float32]
		for i, ad := range all {
			if ad == nil {
				name += "-"
				continue
			}
			name += ad.name
			products = append(products, kernel.LowRank[float32]{X: x[i*in : (i+1)*in], Y: y[i*out : (i+1)*out],
				A: &ad.a, B: &ad.b, Scale: 0.5, Rows: 1})
		}
		body := func(set kernel.Set[float32]) {
			set.Clear(y)
			for range 2 { // two sites
				kernel.AddLowRanks(set, products)
			}
		}
		span := kernel.Span[float32]{Rows: 1, Pos: r.pos, KV: r.kv}
		r.pos++
		played = s.Run(kernel.Step[float32]{Kind: "step", Spans: []kernel.Span[float32]{span},
			Pos: []int32{int32(span.Pos)}, Adapters: name}, body)
		got := r.set.Host(y)
		body(r.set)
		if want := r.set.Host(y); !slices.Equal(got, want) {
			t.Errorf("%s: the step gives %v, its operations %v", what, got, want)
		}
		runtime.KeepAlive(all)
		return played
	}
	one, two := r.adapter("1", 1, 8), r.adapter("2", 2, 5)
	if run("the first", steps, one, two) || !run("the same", steps, one, two) {
		t.Error("the first step makes a graph, and the next one is launched as that")
	}
	if !run("the other way round", steps, two, one) || !run("a row of none", steps, nil, two) ||
		!run("no adapter", steps, nil, nil) {
		t.Error("other adapters need no other graph")
	}
	r.graphs(1, 4)
	// Nothing below refers to the second adapter, so what it has lain in is freed.
	before, _ := r.set.Use()
	for limit := time.Now().Add(10 * time.Minute); ; runtime.GC() {
		if used, _ := r.set.Use(); used < before {
			break
		}
		if time.Now().After(limit) {
			t.Fatal("the memory of an adapter that nobody has is not freed")
		}
	}
	three := r.adapter("3", 3, 8) // perhaps where the second has lain
	if !run("without the second", steps, one, nil) || !run("with a third", steps, three, one) {
		t.Error("an adapter that comes needs no other graph")
	}
	r.graphs(1, 6)
	// More rows with adapters than the graph has room for, and a greater rank.
	if run("more products", steps, one, three, one, three) || !run("fewer", steps, three, one) {
		t.Error("a step with more products makes a graph, which has room for those with fewer")
	}
	wide := r.adapter("4", 4, 40)
	if run("a greater rank", steps, wide) || !run("more again", steps, one, three, one, wide) {
		t.Error("a step with a greater rank makes a graph, which has the room of the one before")
	}
	r.graphs(3, 8)
	// A step of the same set beside it brings a table of its own.
	other := r.set.Steps()
	run("another stage", other, wide, one)
	run("another stage again", other, wide, one)
	if !run("after another stage", steps, one, three, one, wide) {
		t.Error("the other stage's table moves no graph")
	}
	runtime.KeepAlive([]any{one, three, wide})
}

// A graph is none if low-rank products round to bfloat16, since those are not in its table.
func TestSteps_LowRanksInBFloat16AreRefused(t *testing.T) {
	r := newStepRig(t)
	r.set = r.set.BFloat16().(*Set)
	ad, x, y := r.adapter("1", 1, 8), r.set.FromHost([]float32{1, 2, 3, 4, 5, 6, 7, 8}), r.set.Alloc(70)
	u, v := r.set.Alloc(8), r.set.Alloc(70)
	steps := r.set.Steps()
	for range 2 {
		if r.run(steps, "step", func(set kernel.Set[float32], _ kernel.Span[float32]) {
			kernel.AddLowRanks(set, []kernel.LowRank[float32]{{X: x, Y: y, U: u, V: v, A: &ad.a, B: &ad.b, Scale: 1,
				Rows: 1}})
		}) {
			t.Error("it is launched as a graph")
		}
	}
	if got := r.set.Host(y); slices.Equal(got, make([]float32, 70)) {
		t.Error("the products are not computed")
	}
	r.graphs(0, 0)
	runtime.KeepAlive(ad)
}
