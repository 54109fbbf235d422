package cuda

import (
	"errors"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/internal/leak"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver/twin"
)

// stepRig is a set with one sequence of a cache of one layer.
type stepRig struct {
	t     *testing.T
	set   *Set
	pages [][]kernel.KVPage[float32]
	kv    kernel.KV[float32]
	pos   int
}

// newStepRig returns a rig whose cache has the type f32.
func newStepRig(t *testing.T) *stepRig {
	t.Helper()
	return newStepRigOn(t, twin.New(twin.Config{Devices: 1, Machine: twin.Simulated}))
}

func newStepRigOn(t *testing.T, d driver.Driver) *stepRig {
	t.Helper()
	t.Cleanup(func() { leak.Check(t) })
	set, err := Open(d, Config{})
	if err != nil {
		t.Fatal(err)
	}
	r := &stepRig{t: t, set: set, pages: [][]kernel.KVPage[float32]{set.NewKVPages(1, kernel.KVFull, 64*8, 8)}}
	r.kv = kernel.KV[float32]{Type: kernel.KVFull, PageLen: 64, Pages: r.pages}
	t.Cleanup(func() {
		runtime.KeepAlive(r)
		if err := set.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// run runs a step of one row at the next position.
func (r *stepRig) run(s kernel.Steps[float32], kind string, body func(kernel.Set[float32], kernel.Span[float32])) bool {
	span := kernel.Span[float32]{Rows: 1, Pos: r.pos, KV: r.kv}
	r.pos++
	return s.Run(kernel.Step[float32]{Kind: kind, Spans: []kernel.Span[float32]{span}, Pos: []int32{int32(span.Pos)}},
		func(set kernel.Set[float32]) { body(set, span) })
}

// graphs checks how many graphs have been made and launched.
func (r *stepRig) graphs(made, played int64) {
	r.t.Helper()
	if m, p := r.set.Graphs(); m != made || p != played {
		r.t.Errorf("%d graphs were made and %d steps launched as one that was there, want %d and %d", m, p, made, played)
	}
}

// A step that a graph cannot hold runs all the same, every time, whether it is refused when it is recorded or when the
// stream is captured.
func TestSteps_WhatAGraphCannotHold(t *testing.T) {
	r := newStepRig(t)
	x := r.set.FromHost([]float32{1, 2, 3, 4})
	rotary := &kernel.Rotary{Dims: 4, Freq: []float64{1, 2}, Scale: 1}
	for name, body := range map[string]func(set kernel.Set[float32]){
		"a result":      func(set kernel.Set[float32]) { set.Host(x) },
		"an upload":     func(set kernel.Set[float32]) { set.Upload(x, []float32{1, 2, 3, 4}) },
		"an allocation": func(set kernel.Set[float32]) { set.Scope().Alloc(4) },
		"rows of the host": func(set kernel.Set[float32]) {
			set.Dispatch(x, x, &kernel.Routing[float32]{Rows: []int{0}}, 4)
		},
		"a table twice": func(set kernel.Set[float32]) {
			y := r.set.Alloc(4)
			set.Rotate(y, rotary, []int32{5}, 1, 4)
			set.Rotate(y, rotary, []int32{6}, 1, 4)
		},
	} {
		t.Run(name, func(t *testing.T) {
			steps := r.set.Steps()
			y := r.set.FromHost([]float32{1, 2, 3, 4})
			for range 2 {
				if r.run(steps, name, func(set kernel.Set[float32], _ kernel.Span[float32]) {
					set.Scale(y, 2)
					body(set)
					set.Shift(y, y, 1)
				}) {
					t.Error("it is launched as a graph")
				}
			}
			if got := r.set.Host(y); !slices.Equal(got, []float32{7, 11, 15, 19}) { // 2(2y+1)+1
				t.Errorf("the result is %v", got)
			}
		})
	}
	r.graphs(0, 0)
}

// ungraphed is a driver that makes no graphs.
type ungraphed struct{ driver.Driver }

func (u ungraphed) Open(number int) (driver.Device, error) {
	d, err := u.Driver.Open(number)
	return ungraphedDevice{d}, err
}

type ungraphedDevice struct{ driver.Device }

func (d ungraphedDevice) EndCapture(s driver.Stream) (driver.Graph, error) {
	g, err := d.Device.EndCapture(s)
	if err == nil {
		err = d.FreeGraph(g)
	}
	return 0, errors.Join(err, &driver.CallError{Call: "cuGraphInstantiate", Code: 801,
		Name: "CUDA_ERROR_NOT_SUPPORTED"})
}

// Steps run kernel by kernel on a driver that refuses to make a graph, and the device stays whole.
func TestSteps_ADriverThatMakesNoGraphs(t *testing.T) {
	r := newStepRigOn(t, ungraphed{twin.New(twin.Config{Devices: 1, Machine: twin.Simulated})})
	y, steps := r.set.FromHost([]float32{1, 2, 3, 4}), r.set.Steps()
	for range 3 {
		if r.run(steps, "step", func(set kernel.Set[float32], _ kernel.Span[float32]) { set.Scale(y, 2) }) {
			t.Error("it is launched as a graph")
		}
	}
	if got := r.set.Host(y); !slices.Equal(got, []float32{8, 16, 24, 32}) {
		t.Errorf("the result is %v", got)
	}
	r.graphs(0, 0)
}

// A graph is launched only while what it reads lies where it was, and its tables have what the step has.
func TestSteps_AGraphReadsTheTablesOfItsStep(t *testing.T) {
	r := newStepRig(t)
	rotary := &kernel.Rotary{Dims: 8, Freq: []float64{1, 0.5, 0.25, 0.125}, Scale: 1}
	k, v, y := r.set.Alloc(8), r.set.Alloc(8), r.set.Alloc(8)
	ones := []float32{1, 1, 1, 1, 1, 1, 1, 1}
	heads := kernel.Heads{H: 1, K: 1, D: 8, Scale: 1}
	steps := r.set.Steps()
	step := func(set kernel.Set[float32], s kernel.Span[float32]) {
		set.Rotate(k, rotary, []int32{int32(s.Pos)}, 1, 8)
		set.(kernel.SpanStorer[float32]).StoreSpans([]kernel.Span[float32]{s}, k, v, 1, 8)
		set.Attend(y, k, []kernel.Span[float32]{s}, heads)
	}
	var all [2][]float32
	run := func(i int, s kernel.Steps[float32]) (played bool) {
		r.set.Upload(k, ones)
		r.set.Upload(v, []float32{float32(r.pos), 1, 2, 3, 4, 5, 6, 7})
		played = r.run(s, "step", step)
		all[i] = append(all[i], r.set.Host(y)...)
		return played
	}
	if run(0, steps) || !run(0, steps) || !run(0, steps) {
		t.Error("the first step makes a graph, and the next ones are launched as that")
	}
	r.graphs(1, 2)
	// Another sequence's step has its own kind, and tables that overwrite those of the first one.
	other := kernel.Span[float32]{Rows: 1, KV: kernel.KV[float32]{Type: kernel.KVFull, PageLen: 64,
		Pages: [][]kernel.KVPage[float32]{r.set.NewKVPages(1, kernel.KVFull, 64*8, 8)}}}
	r.set.StoreSpans([]kernel.Span[float32]{other}, k, v, 1, 8)
	r.set.Rotate(r.set.Alloc(8), rotary, []int32{40}, 1, 8)
	if !run(0, steps) {
		t.Error("what is in the tables moves no graph")
	}
	r.set.workspace(1 << 20)
	if run(0, steps) || !run(0, steps) {
		t.Error("a graph whose workspace has moved is made anew")
	}
	r.graphs(2, 4)
	r.set.noGraphs, r.pos = true, 0
	for range len(all[0]) / 8 {
		run(1, steps)
	}
	if !slices.Equal(all[0], all[1]) {
		t.Errorf("with graphs %v, without %v", all[0], all[1])
	}
	runtime.KeepAlive(other)
}

// Graphs go with their stage, and the one that was not used for the longest time goes when there are too many.
func TestSteps_GraphsAreFreed(t *testing.T) {
	r := newStepRig(t)
	y := r.set.FromHost([]float32{1})
	steps := r.set.Steps()
	for i := range keptGraphs + 3 {
		r.pos = 0
		r.run(steps, string(rune('a'+i)), func(set kernel.Set[float32], _ kernel.Span[float32]) { set.Shift(y, y, 1) })
	}
	left := func() (n int) {
		r.set.core.do(func(w *worker) error {
			n = w.Device.(*twin.Device).Graphs()
			return nil
		})
		return n
	}
	if n := left(); n != keptGraphs {
		t.Errorf("%d graphs are kept, want %d", n, keptGraphs)
	}
	if got := r.set.Host(y); got[0] != keptGraphs+4 {
		t.Errorf("the steps give %v", got)
	}
	runtime.KeepAlive(steps)
	for limit := time.Now().Add(10 * time.Minute); left() > 0; runtime.GC() {
		if time.Now().After(limit) {
			t.Fatalf("%d graphs are left without their stage", left())
		}
	}
}
