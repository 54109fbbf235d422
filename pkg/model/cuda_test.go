package model_test

import (
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver/testdevice"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver/twin"
)

// onTwin runs body with a chain of stages on a GPU without a GPU, whose kernels an interpreter runs, or on a GPU that
// package testdevice opens.
func onTwin(t *testing.T, name string, stages int, body func(c *chain[float32]) []float32) []float32 {
	t.Helper()
	d, number := testdevice.Open(t, twin.Config{Devices: 1, Machine: twin.Simulated})
	set, err := cuda.Open(d, cuda.Config{Number: number, KV: kernel.KVAuto})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := set.Close(); err != nil {
			t.Error(err)
		}
	}()
	return body(newChain(t, open(t, shared(t, "models/tiny", name)), kernel.Set[float32](set), stages))
}

// TestStage_OnAGPU compares the logits of every architecture with those of the CPU set.
func TestStage_OnAGPU(t *testing.T) {
	for _, name := range tiny {
		t.Run(name, func(t *testing.T) {
			files := open(t, shared(t, "models/tiny", name))
			ids := random(rand.New(rand.NewPCG(3, 1)), files, 9)
			set := cpu.New(1)
			defer set.Close()
			run := func(c *chain[float32]) []float32 { return c.run(t, part[float32]{c.sequence(), ids, 0}) }
			want, got := run(newChain(t, files, kernel.Set[float32](set), 1)), onTwin(t, name, 1, run)
			var worst, size float64
			for i, v := range want {
				worst, size = max(worst, math.Abs(float64(got[i]-v))), max(size, math.Abs(float64(v)))
			}
			if !(worst <= 1e-4*size) {
				t.Errorf("logits up to %.3g are off by %.3g", size, worst)
			}
		})
	}
}

// TestStage_OneResultOnAGPU checks that the logits have the same bits in a batch of 1, 3 and 16 sequences, in chunks,
// and on 1 to 4 stages. Without LAMINA_SLOW it checks one model in a batch of 3, and in chunks on 2 stages.
func TestStage_OneResultOnAGPU(t *testing.T) {
	names, batches, divisions := []string{"llama"}, []int{2}, []int{2}
	if os.Getenv("LAMINA_SLOW") != "" {
		names, batches, divisions = append(names, "gpt-oss-mxfp4"), []int{2, 15}, []int{1, 2, 3, 4}
	}
	for _, name := range names {
		files := open(t, shared(t, "models/tiny", name))
		r := rand.New(rand.NewPCG(4, 1))
		ids := random(r, files, 6)
		want := onTwin(t, name, 1, func(c *chain[float32]) []float32 {
			return c.run(t, part[float32]{c.sequence(), ids, 0})
		})
		check := func(what string, stages int, body func(c *chain[float32]) []float32) {
			t.Helper()
			if stages > len(files.Spec.Layers) {
				return
			}
			if got := onTwin(t, name, stages, body); !slices.Equal(got[:len(want)], want) {
				t.Errorf("%s, %s, %d stages: other bits", name, what, stages)
			}
		}
		for _, others := range batches {
			check("a batch", 1, func(c *chain[float32]) []float32 {
				batch := []part[float32]{{c.sequence(), ids, 0}}
				for range others {
					batch = append(batch, part[float32]{c.sequence(), random(r, files, 1+r.IntN(2)), 0})
				}
				return c.run(t, batch...)
			})
		}
		for _, stages := range divisions {
			check("chunks of 1, 2 and 3", stages, func(c *chain[float32]) (out []float32) {
				seq := c.sequence()
				for pos, n := 0, 1; pos < len(ids); pos, n = pos+n, n+1 {
					out = c.run(t, part[float32]{seq, ids[pos : pos+n], pos})
				}
				return out
			})
		}
	}
}

// TestStage_GradientsOnAGPU compares the loss and the sizes of the gradients of a sequence with those of Transformers.
// Without LAMINA_SLOW it trains one model.
func TestStage_GradientsOnAGPU(t *testing.T) {
	names := []string{"llama"}
	if os.Getenv("LAMINA_SLOW") != "" {
		names = trainable
	}
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			want, files := readExpectation(t, name), open(t, shared(t, "models/tiny", name))
			d := twin.New(twin.Config{Devices: 1, Machine: twin.Simulated})
			set, err := cuda.Open(d, cuda.Config{KV: kernel.KVAuto})
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := set.Close(); err != nil {
					t.Error(err)
				}
			}()
			tr := load(t, files, kernel.Set[float32](set), 1)
			if loss := tr.step(t, want.Cases[0].IDs); math.Abs(loss-want.Training.Loss) > 1e-4 {
				t.Errorf("loss is %.6f, want %.6f", loss, want.Training.Loss)
			}
			checked := 0
			for _, p := range tr.grads[0].Tensors {
				w, ok := want.Training.Gradients[p.Name]
				if !ok {
					continue
				}
				checked++
				if norm := math.Sqrt(set.SumSquares(p.Data)); !(math.Abs(norm-w.L2) <= 1e-3*w.L2) {
					t.Errorf("gradient of %s has norm %g, want %g", p.Name, norm, w.L2)
				}
			}
			if checked < len(want.Training.Gradients) {
				t.Errorf("%d of %d gradients were looked at", checked, len(want.Training.Gradients))
			}
		})
	}
}
