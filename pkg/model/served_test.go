package model_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/adapter"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
	"github.com/lamina-mesh/lamina/pkg/model"
)

// TestStage_TrainForwardAsServed checks that a pass of training as served computes the log-probabilities that a sampler
// reports, bit by bit, where the tokens have been generated one at a time: for several architectures, with an adapter,
// with every type of KV cache, over stages, and with documents of different lengths in one sequence.
func TestStage_TrainForwardAsServed(t *testing.T) {
	names := []string{"llama", "qwen2", "gemma2", "gemma3", "gpt2", "gpt-oss", "smollm3", "phi3", "mixtral"}
	for i, name := range names {
		kind := []kernel.KVType{kernel.KVFull, kernel.KVF16, kernel.KVQ8}[i%3]
		t.Run(fmt.Sprintf("%s, %v", name, kind), func(t *testing.T) {
			files := open(t, shared(t, "models/tiny", name))
			set := cpu.New(2)
			defer set.Close()
			served := kernel.Set[float32](set.StoringKV(kind))
			low := noisy(t, files, uint64(i))
			r := rand.New(rand.NewPCG(uint64(i), 3))
			lengths := []int{21, 9, 18}
			var ids, targets []int32
			var want []float32 // by row
			c := newChain(t, files, served, 2)
			for _, s := range c.stages {
				ad, err := s.NewAdapter(low)
				if err != nil {
					t.Fatal(err)
				}
				s.Use(ad)
			}
			for _, n := range lengths {
				all := random(r, files, n+1)
				ids, targets = append(ids, all[:n]...), append(targets, all[1:]...)
				seq := c.sequence()
				for pos := range n {
					logits := c.run(t, part[float32]{seq, all[pos : pos+1], pos})
					row := logits[len(logits)-files.Spec.Vocab:]
					want = append(want, float32(float64(row[all[pos+1]])-set.LogSumExp(row)))
				}
			}
			for _, recompute := range []bool{false, true} {
				tr := newLow(t, files, low, served, 2, false)
				in := model.Micro[float32]{B: 1, T: len(ids), IDs: ids, Targets: targets, Documents: lengths, Scale: 1,
					AsServed: true}
				var traces []*model.Trace[float32]
				for _, s := range tr.stages {
					s.RecomputeLayers(recompute)
					trace, err := s.TrainForward(in)
					if err != nil {
						t.Fatal(err)
					}
					traces, in.Hidden = append(traces, trace), trace.Out
				}
				for row, loss := range traces[1].Loss {
					if got := float32(-loss); math.Float32bits(got) != math.Float32bits(want[row]) {
						t.Fatalf("row %d: log-probability %v, served %v", row, got, want[row])
					}
				}
				d, err := tr.stages[1].TrainBackward(traces[1], nil, tr.grads[1])
				if err != nil {
					t.Fatal(err)
				}
				if _, err := tr.stages[0].TrainBackward(traces[0], d, tr.grads[0]); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// noisy returns an adapter of all matrices of layers that changes what they compute.
func noisy(t *testing.T, f *model.Files, seed uint64) *adapter.Adapter {
	t.Helper()
	config, err := adapter.ParseConfig([]byte(`{"r": 3, "lora_alpha": 6, "target_modules": "all-linear"}`))
	if err != nil {
		t.Fatal(err)
	}
	a, err := f.Spec.NewAdapterFor(*config, seed)
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(seed, 9))
	for i := range a.Modules {
		for j := range a.Modules[i].B {
			a.Modules[i].B[j] = float32(r.NormFloat64() * 0.05)
		}
	}
	return a
}

// The gradients of a pass as served are those of training, but for what the cache rounds.
func TestStage_GradientsAsServed(t *testing.T) {
	e, a, files := readLora(t, "llama")
	set := cpu.New(2)
	defer set.Close()
	for kind, tolerance := range map[kernel.KVType]float64{kernel.KVFull: 1e-4, kernel.KVF16: 1e-2} {
		grads := map[bool]map[string][]float32{}
		for _, served := range []bool{false, true} {
			tr := newLow(t, files, a, kernel.Set[float32](set.StoringKV(kind)), 2, true)
			in := masked[float32](e.IDs, e.Masked.Prompt)
			in.AsServed = served
			tr.step(t, in)
			grads[served], _ = tr.all()
		}
		for name, want := range grads[false] {
			var d, n float64
			for i, v := range want {
				x := float64(grads[true][name][i] - v)
				d, n = d+x*x, n+float64(v)*float64(v)
			}
			if !(math.Sqrt(d) <= tolerance*math.Sqrt(n)) {
				t.Errorf("%v: gradient of %s differs by %v of %v", kind, name, math.Sqrt(d), math.Sqrt(n))
			}
		}
	}
}
