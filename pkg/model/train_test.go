package model_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/ref"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/optim"
	"github.com/lamina-mesh/lamina/pkg/tensor"
	"github.com/lamina-mesh/lamina/pkg/weights"
)

// trainer is a model split into stages for training, with its gradients.
type trainer[F tensor.Float] struct {
	stages []*model.Stage[F]
	grads  []*model.Params[F]
}

func load[F tensor.Float](t testing.TB, f *model.Files, set kernel.Set[F], stages int) *trainer[F] {
	t.Helper()
	tr := &trainer[F]{}
	for _, r := range model.Split(len(f.Spec.Layers), stages) {
		s, err := model.Load(f, r, set, model.LoadOptions{Dense: true})
		if err != nil {
			t.Fatal(err)
		}
		tr.stages = append(tr.stages, s)
		tr.grads = append(tr.grads, s.NewGrads())
	}
	return tr
}

// step runs forward and backward over one sequence and returns the mean loss over
// its next-token targets.
func (tr *trainer[F]) step(t testing.TB, ids []int32) float64 {
	t.Helper()
	targets := append(slices.Clone(ids[1:]), -1)
	count := float64(len(ids) - 1)
	var traces []*model.Trace[F]
	var hidden []F
	for _, s := range tr.stages {
		trace, err := s.TrainForward(model.Micro[F]{B: 1, T: len(ids), IDs: ids, Hidden: hidden, Targets: targets,
			Scale: 1 / count})
		if err != nil {
			t.Fatal(err)
		}
		traces = append(traces, trace)
		hidden = trace.Out
	}
	var loss float64
	for _, l := range traces[len(traces)-1].Loss {
		loss += l / count
	}
	var grad []F
	for i := len(tr.stages) - 1; i >= 0; i-- {
		var err error
		if grad, err = tr.stages[i].TrainBackward(traces[i], slices.Clone(grad), tr.grads[i]); err != nil {
			t.Fatal(err)
		}
	}
	return loss
}

// merged returns the gradient of every parameter, with the two parts of a tied one added.
func (tr *trainer[F]) merged() map[string][]F {
	out := map[string][]F{}
	for _, g := range tr.grads {
		for _, p := range g.Tensors {
			if p.TiedTo == "" {
				out[p.Name] = slices.Clone(p.Data)
			}
		}
	}
	for _, g := range tr.grads {
		for _, p := range g.Tensors {
			for i := range p.Data {
				if p.TiedTo != "" {
					out[p.TiedTo][i] += p.Data[i]
				}
			}
		}
	}
	return out
}

// brief returns all names, or in a short run the given ones.
func brief(all []string, names ...string) []string {
	if testing.Short() {
		return names
	}
	return all
}

var trainable = []string{"llama", "llama3-rope", "llama-yarn", "llama-linear-bias", "mistral", "qwen2", "qwen3",
	"phi3", "smollm3", "gemma2", "gemma3", "mixtral", "qwen3-moe", "gpt-oss", "gpt-oss-mxfp4", "gpt2"}

func TestStage_LossAndGradientsOfTinyModels(t *testing.T) {
	for _, name := range brief(trainable, "llama-linear-bias", "gpt2") {
		want := readExpectation(t, name)
		for form, files := range forms(t, name) {
			for kernels, set := range sets(t) {
				t.Run(fmt.Sprintf("%s/%s/%s", name, form, kernels), func(t *testing.T) {
					var first map[string][]float32
					for _, stages := range []int{1, 2, 4} {
						tr := load(t, files, set, stages)
						loss := tr.step(t, want.Cases[0].IDs)
						if math.Abs(loss-want.Training.Loss) > 1e-4 {
							t.Errorf("loss is %.6f, want %.6f", loss, want.Training.Loss)
						}
						got := tr.merged()
						if first == nil {
							first = got
						}
						for tensor, w := range want.Training.Gradients {
							norm := math.Sqrt(optim.SumSquares(got[tensor]))
							if !(math.Abs(norm-w.L2) <= 1e-3*w.L2) {
								t.Errorf("gradient of %s over %d stages has norm %g, want %g", tensor, stages, norm,
									w.L2)
							}
							for i, v := range w.First {
								if g := firstValue(files.Spec, tr, tensor, got[tensor], i); math.Abs(g-v) > 1e-4+
									1e-3*w.L2 {
									t.Errorf("gradient of %s element %d is %g, want %g", tensor, i, g, v)
								}
							}
							if !slices.Equal(got[tensor], first[tensor]) {
								t.Errorf("gradient of %s over %d stages differs from one stage", tensor, stages)
							}
						}
					}
				})
			}
		}
	}
}

// firstValue returns element i of a gradient in the layout of the architecture's files.
func firstValue(c model.Spec, tr *trainer[float32], name string, grad []float32, i int) float64 {
	if c.Architecture == "gpt2" && strings.Contains(name, ".c_") && strings.HasSuffix(name, ".weight") {
		for _, g := range tr.grads {
			if p, ok := g.Get(name); ok {
				return float64(grad[i*p.Shape[1]]) // row 0 there is column 0 here
			}
		}
	}
	if x := c.Layers[0].FFN.Experts; c.Architecture == "gpt-oss" { // gates and ups alternate there, inputs come first
		f := x.Width
		switch name[strings.LastIndex(name, ".")+1:] {
		case "gate_up_proj":
			i = (i%2*f + i/2) * c.Width
		case "gate_up_proj_bias":
			i = i%2*f + i/2
		case "down_proj":
			i *= f
		}
	}
	return float64(grad[i])
}

// TestStage_SequencesOfAMicroBatchAreIndependent trains two sequences in one micro-batch and in
// two. The losses have the same bits and the gradients the same sum, and masked targets do not
// count.
func TestStage_SequencesOfAMicroBatchAreIndependent(t *testing.T) {
	for _, name := range []string{"mistral", "gpt2"} {
		ids := readExpectation(t, name).Cases[0].IDs[:40]
		files := open(t, shared(t, "models/tiny", name))
		for kernels, set := range sets(t) {
			s, err := model.Load(files, model.Range{Hi: len(files.Spec.Layers)}, set, model.LoadOptions{Dense: true})
			if err != nil {
				t.Fatal(err)
			}
			targets := slices.Clone(ids)
			targets[3], targets[39] = -1, -1
			run := func(b, from, to int, g *model.Params[float32]) []float64 {
				micro := model.Micro[float32]{B: b, T: 20, IDs: ids[from:to], Targets: targets[from:to], Scale: 0.5,
					ForwardOnly: g == nil}
				tr, err := s.TrainForward(micro)
				if err != nil {
					t.Fatal(err)
				}
				loss := slices.Clone(tr.Loss)
				if g == nil {
					s.Drop(tr)
				} else if _, err := s.TrainBackward(tr, nil, g); err != nil {
					t.Fatal(err)
				}
				return loss
			}
			both, apart, second := s.NewGrads(), s.NewGrads(), s.NewGrads()
			loss := run(2, 0, 40, both)
			one := append(run(1, 0, 20, apart), run(1, 20, 40, second)...)
			for i, p := range second.Tensors {
				set.Add(apart.Tensors[i].Data, p.Data)
			}
			if !slices.Equal(loss, one) || !slices.Equal(loss, run(2, 0, 40, nil)) {
				t.Errorf("%s/%s: losses of a batch differ from those of its sequences", name, kernels)
			}
			if loss[3] != 0 || loss[39] != 0 || loss[4] == 0 {
				t.Errorf("%s/%s: masked rows lose %g and %g, another %g", name, kernels, loss[3], loss[39], loss[4])
			}
			for i, p := range both.Tensors {
				var difference []float32
				for e, g := range p.Data {
					difference = append(difference, g-apart.Tensors[i].Data[e])
				}
				if d, n := optim.SumSquares(difference), optim.SumSquares(p.Data); !(d <= 1e-10*n) || n == 0 {
					t.Errorf("%s/%s: gradient of %s differs by %g of %g", name, kernels, p.Name, math.Sqrt(d),
						math.Sqrt(n))
				}
			}
		}
	}
}

// partings are the steps from which on two orders of summation lead to different results, so
// that comparing float32 with float32 makes no sense. In the sixth step of gpt-oss the reference
// chooses between experts by a margin of 1.6e-6; in the other model a difference of 1e-7 grows
// tenfold a step. TestStage_GPTOSSFollowsItsReferenceToTheEnd follows both to the twelfth step.
var partings = map[string]int{"gpt-oss": 6, "gpt-oss-mxfp4": 5}

func TestStage_TwelveAdamWSteps(t *testing.T) {
	for _, name := range brief(trainable, "llama-linear-bias", "gpt2") {
		want := readExpectation(t, name)
		files := open(t, shared(t, "models/tiny", name))
		for kernels, set := range sets(t) {
			tr := load(t, files, set, 1)
			adamw := optim.AdamW{Beta1: 0.9, Beta2: 0.95, Epsilon: 1e-8, Decay: 0.1}
			m, v := map[string][]float32{}, map[string][]float32{}
			for step, wantLoss := range want.AdamW.Loss {
				if step+1 == partings[name] {
					break
				}
				loss := tr.step(t, want.Cases[0].IDs)
				if math.Abs(loss-wantLoss) > 1e-3 {
					t.Errorf("%s/%s: loss before step %d is %.5f, want %.5f", name, kernels, step+1, loss, wantLoss)
				}
				grads := tr.merged()
				var squares float64
				for _, g := range grads {
					squares += optim.SumSquares(g)
				}
				if norm := math.Sqrt(squares); math.Abs(norm-want.AdamW.GradNorm[step]) > 5e-3*norm {
					t.Errorf("%s/%s: norm before step %d is %.5f, want %.5f", name, kernels, step+1, norm,
						want.AdamW.GradNorm[step])
				}
				scale := optim.ClipScale(math.Sqrt(squares), 1)
				for _, p := range tr.stages[0].Params().Tensors {
					if p.TiedTo != "" {
						continue
					}
					if m[p.Name] == nil {
						m[p.Name], v[p.Name] = make([]float32, len(p.Data)), make([]float32, len(p.Data))
					}
					adamw.Step(set, p.Data, m[p.Name], v[p.Name], grads[p.Name], scale, 1e-3, step+1, true)
				}
			}
		}
	}
}

// TestStage_LongRopeOfWholeSequences trains sequences shorter and longer than the original
// context. Each must be rotated by one list of factors only.
func TestStage_LongRopeOfWholeSequences(t *testing.T) {
	set := kernel.Set[float32](ref.New[float32]())
	short, long := []float32{1, 2, 1.5, 3}, []float32{5, 2, 7, 3}
	run := func(near, far []float32, n int) ([]float64, []float32) {
		c := model.NewLlama(small(
			model.Shape{Rope: model.Rope{Type: "longrope", Original: 8, Factors: near, Far: far}}))
		s, err := model.Init(c, whole(c), set, 5)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range s.Params().Tensors {
			for i := range p.Data {
				p.Data[i] *= 10 // makes the softmax sharper than the initial weights do
			}
		}
		ids := []int32{1, 2, 3, 5, 8, 13, 21, 4, 6, 9, 15}[:n]
		tr, err := s.TrainForward(model.Micro[float32]{B: 1, T: n, IDs: ids, Targets: ids, Scale: 1})
		if err != nil {
			t.Fatal(err)
		}
		loss, g := slices.Clone(tr.Loss), s.NewGrads()
		if _, err := s.TrainBackward(tr, nil, g); err != nil {
			t.Fatal(err)
		}
		return loss, g.Tensors[2].Data
	}
	for n, want := range map[int][]float32{8: short, 9: long, 11: long} {
		loss, grad := run(short, long, n)
		wantLoss, wantGrad := run(want, want, n)
		if !slices.Equal(loss, wantLoss) || !slices.Equal(grad, wantGrad) {
			t.Errorf("%d tokens do not turn by the factors %v", n, want)
		}
	}
}

// TestStage_DirectionalDerivative compares the gradient with central differences of
// the loss along random directions, in float64.
func TestStage_DirectionalDerivative(t *testing.T) {
	for _, name := range brief(trainable, "llama-linear-bias", "gpt2") {
		ids := readExpectation(t, name).Cases[0].IDs[:24]
		files := open(t, shared(t, "models/tiny", name))
		set := kernel.Set[float64](ref.New[float64]())
		r := rand.New(rand.NewPCG(3, 4))
		tries := 3
		if testing.Short() {
			tries = 1
		}
		for try := range tries {
			tr := load(t, files, set, 1)
			tr.step(t, ids)
			grads := tr.merged()
			direction := map[string][]float64{}
			var along, size float64
			for _, p := range tr.stages[0].Params().Tensors {
				if p.TiedTo != "" {
					continue
				}
				d := make([]float64, len(p.Data))
				for i := range d {
					d[i] = r.NormFloat64()
					along += d[i] * grads[p.Name][i]
					size += d[i] * d[i]
				}
				direction[p.Name] = d
			}
			loss := func(by float64) float64 {
				shift := func(by float64) {
					for _, p := range tr.stages[0].Params().Tensors {
						for i, d := range direction[p.Name] {
							p.Data[i] += by * d
						}
					}
				}
				shift(by)
				defer shift(-by)
				return tr.step(t, ids)
			}
			// Richardson's extrapolation of two central differences.
			h := 2e-3 / math.Sqrt(size)
			wide, narrow := (loss(2*h)-loss(-2*h))/(4*h), (loss(h)-loss(-h))/(2*h)
			numeric := (4*narrow - wide) / 3
			if err := math.Abs(numeric-along) / math.Abs(along); err > 1e-6 {
				t.Errorf("%s try %d: derivative %.12g, by differences %.12g (relative error %.2g)", name, try, along,
					numeric, err)
			}
		}
	}
}

// TestOpen_StackedExperts compares experts that are stacked in two tensors a layer with
// experts that have a tensor for each matrix.
func TestOpen_StackedExperts(t *testing.T) {
	for _, name := range []string{"mixtral", "qwen3-moe"} {
		files := open(t, shared(t, "models/tiny", name))
		set := kernel.Set[float32](ref.New[float32]())
		want := load(t, files, set, 1).stages[0].Params()
		var named []weights.Named
		for _, p := range want.Tensors {
			data := make([]byte, 4*len(p.Data))
			tensor.Encode(data, p.Data, tensor.F32)
			named = append(named, weights.Named{Name: p.Name, DType: tensor.F32, Shape: p.Shape, Data: data})
		}
		dir := t.TempDir()
		if err := weights.WriteSafetensors(filepath.Join(dir, "model.safetensors"), named, nil); err != nil {
			t.Fatal(err)
		}
		config, err := os.ReadFile(filepath.Join(files.Path, "config.json"))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, "config.json"), config, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
		for i, p := range load(t, open(t, dir), set, 1).stages[0].Params().Tensors {
			if w := want.Tensors[i]; p.Name != w.Name || !slices.Equal(p.Data, w.Data) {
				t.Errorf("%s: %s differs from %s of experts one by one", name, p.Name, w.Name)
			}
		}
	}
}

func TestExportHF_ReadsBackTheSame(t *testing.T) {
	for _, c := range []model.Spec{
		model.NewLlama(model.Shape{Layers: 3, Width: 24, Heads: 4, KVHeads: 2, FF: 40, Vocab: 50, Context: 32,
			TiedHead: true}),
		model.NewLlama(model.Shape{Layers: 2, Width: 16, Heads: 2, FF: 20, Vocab: 30, Context: 16}),
		model.NewGPT2(model.Shape{Layers: 2, Width: 16, Heads: 2, Vocab: 30, Context: 16}),
	} {
		set := kernel.Set[float32](ref.New[float32]())
		var split []model.Param[float32]
		for _, r := range model.Split(len(c.Layers), 2) {
			s, err := model.Init(c, r, set, 42)
			if err != nil {
				t.Fatal(err)
			}
			split = append(split, s.Params().Tensors...)
		}
		dir := filepath.Join(t.TempDir(), "model")
		if err := model.ExportHF(dir, c, split, tensor.F32); err != nil {
			t.Fatal(err)
		}
		whole, err := model.Init(c, model.Range{Hi: len(c.Layers)}, set, 42)
		if err != nil {
			t.Fatal(err)
		}
		files := open(t, dir)
		if !reflect.DeepEqual(files.Spec, c) {
			t.Errorf("config comes back as %+v, want %+v", files.Spec, c)
		}
		read, err := model.Load(files, model.Range{Hi: len(c.Layers)}, set, model.LoadOptions{Dense: true})
		if err != nil {
			t.Fatal(err)
		}
		for i, p := range whole.Params().Tensors {
			if got := read.Params().Tensors[i]; got.Name != p.Name || !slices.Equal(got.Data, p.Data) {
				t.Errorf("%s: %s differs after export of a split model", c.Architecture, p.Name)
			}
		}
	}
}
