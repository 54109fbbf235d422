package model_test

import (
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/pkg/adapter"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda"
	"github.com/lamina-mesh/lamina/pkg/kernel/ref"
	"github.com/lamina-mesh/lamina/pkg/model"
)

// trainOnce runs a micro-batch of so many rows forward and backward.
func trainOnce(t *testing.T, s *model.Stage[float32], g *model.Params[float32], rows int, split bool, d model.Dropout) {
	t.Helper()
	in := model.Micro[float32]{B: 1, T: rows, Scale: 1, Dropout: d}
	if s.First() {
		in.IDs = make([]int32, rows)
	} else {
		in.Hidden = make([]float32, rows*s.Spec.Width)
		for i := range in.Hidden {
			in.Hidden[i] = float32(i%5) - 1
		}
	}
	var dOut []float32
	if s.Last() {
		in.Targets = make([]int32, rows)
	} else {
		dOut = slices.Repeat([]float32{0.5}, rows*s.Spec.Width)
	}
	tr, err := s.TrainForward(in)
	if err != nil {
		t.Fatal(err)
	}
	if !split {
		_, err = s.TrainBackward(tr, dOut, g)
	} else if _, err = s.TrainBackwardInput(tr, dOut); err == nil {
		err = s.TrainBackwardWeight(tr, g)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// What a trace keeps is counted to the byte before anything is loaded, for every architecture and way to train it.
func TestTrainSizeOn_CountsTheTrace(t *testing.T) {
	device := twinSet(t)
	const rows = 3
	for _, name := range trainable {
		files := open(t, shared(t, "models/tiny", name))
		spec, err := files.Dense()
		if err != nil {
			t.Fatal(err)
		}
		experts := spec.Layers[0].FFN.Experts != nil
		for _, span := range []model.Range{{Lo: 0, Hi: 1}, {Lo: 1, Hi: len(spec.Layers)}} {
			for _, o := range []model.TrainOptions{
				{}, {Split: true}, {Recompute: true}, {Recompute: true, Split: true}, {StoreBF16: true},
				{Dropout: model.Dropout{Residual: 0.1, Embedding: 0.1}},
			} {
				o.Rows = rows
				size, err := model.TrainSizeOn(nil, spec, span, kernel.Set[float32](device), o)
				if err != nil {
					t.Fatal(err)
				}
				s, err := model.Init(spec, span, kernel.Set[float32](ref.New[float32]()), 1)
				if err != nil {
					t.Fatal(err)
				}
				s.RecomputeLayers(o.Recompute)
				trainOnce(t, s, s.NewGrads(), rows, o.Split, o.Dropout)
				kept := int64(s.ActivationBytes())
				if o.Recompute && !o.Split && !experts { // the layer that is run again is in both
					if kept <= size.Trace || kept > size.Trace+size.Scratch {
						t.Errorf("%s %v %+v: %d bytes are kept, %d and %d were counted", name, span, o, kept, size.Trace,
							size.Scratch)
					}
				} else if experts && !o.Recompute && kept >= size.Trace { // what experts keep is not in kept
					t.Errorf("%s %v %+v: %d bytes are kept, %d were counted with experts", name, span, o, kept, size.Trace)
				} else if !experts && !o.Recompute && kept != size.Trace {
					t.Errorf("%s %v %+v: %d bytes are kept, %d were counted", name, span, o, kept, size.Trace)
				}
				for i, p := range s.Params().Tensors {
					if shape := size.Shape.Params().Tensors[i]; shape.Name != p.Name || len(shape.Data) != len(p.Data) {
						t.Errorf("%s: %s has %d values, %s was counted with %d", name, p.Name, len(p.Data), shape.Name,
							len(shape.Data))
					}
				}
			}
		}
	}
}

// onDevice returns what is allocated on a device.
func onDevice(set *cuda.Set) int64 {
	d := set.Device()
	return d.Weights + d.KV + d.Workspace
}

// Training takes what was counted before: weights, gradients, a trace and scratch memory.
func TestTrainSizeOn_IsWhatTrainingTakes(t *testing.T) {
	spec := model.NewLlama(model.Shape{Layers: 2, Width: 16, Heads: 2, FF: 24, Vocab: 40, Context: 8})
	for name, o := range map[string]model.TrainOptions{
		"all at once": {}, "in halves": {Split: true}, "recomputed": {Recompute: true},
		"stored in bfloat16": {StoreBF16: true},
	} {
		checkTaken(t, name, nil, spec, o, func(set kernel.Set[float32]) (*model.Stage[float32], error) {
			s, err := model.Init(spec, model.Range{Hi: 2}, set, 1)
			if err == nil && o.StoreBF16 {
				s.StoreBF16()
			}
			return s, err
		})
	}
	files := open(t, shared(t, "models/tiny/llama"))
	config, err := adapter.ParseConfig([]byte(`{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "use_dora": false,
		"target_modules": ["q_proj", "down_proj", "lm_head"]}`))
	if err != nil {
		t.Fatal(err)
	}
	a, err := files.Spec.NewAdapterFor(*config, 1)
	if err != nil {
		t.Fatal(err)
	}
	o := model.TrainOptions{Adapter: a, Stored: true, Dropout: model.Dropout{Adapter: 0.1}}
	checkTaken(t, "an adapter", files, files.Spec, o, func(set kernel.Set[float32]) (*model.Stage[float32], error) {
		s, err := model.Load(files, model.Range{Hi: 2}, set, model.LoadOptions{Saved: a})
		if err != nil {
			return nil, err
		}
		part, err := s.NewAdapter(a)
		if err == nil {
			s.Train(part)
		}
		return s, err
	})
}

// checkTaken compares what is counted for the first two layers of a model with what their training takes.
func checkTaken(t *testing.T, name string, f *model.Files, spec model.Spec, o model.TrainOptions,
	build func(kernel.Set[float32]) (*model.Stage[float32], error)) {
	t.Helper()
	set := twinSet(t) // of its own: what others have left to the collector would be counted
	o.Rows = 4
	size, err := model.TrainSizeOn(f, spec, model.Range{Hi: 2}, kernel.Set[float32](set), o)
	if err != nil {
		t.Fatal(err)
	}
	const tables = 16 << 10 // of the set, for lists that steer operations and for angles
	before := onDevice(set)
	s, err := build(set)
	if err != nil {
		t.Fatal(err)
	}
	s.RecomputeLayers(o.Recompute)
	g := s.NewGrads()
	gradient := int64(0)
	for _, p := range g.Tensors {
		gradient += 4 * int64(len(p.Data))
	}
	for range 2 { // memory that grows is in two places for a while
		trainOnce(t, s, g, o.Rows, o.Split, o.Dropout)
	}
	most := size.Weights + size.Trace + size.Scratch + gradient + tables
	used := onDevice(set) - before
	// The collector frees what was there for a while.
	for limit := time.Now().Add(time.Minute); used > most && time.Now().Before(limit); used = onDevice(set) - before {
		runtime.GC()
	}
	if used > most || used < size.Weights+size.Trace+gradient {
		t.Errorf("%s: training takes %d bytes of the device, %d, %d and %d were counted beside gradients of %d", name, used,
			size.Weights, size.Trace, size.Scratch, gradient)
	}
	runtime.KeepAlive(s)
	runtime.KeepAlive(g)
}
