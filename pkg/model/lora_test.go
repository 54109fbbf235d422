package model_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/adapter"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/ref"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/optim"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// loraExpectation is the expected.json of a tiny adapter, from PEFT.
type loraExpectation struct {
	IDs        []int32   `json:"ids"`
	LastLogits []float64 `json:"last_logits"`
	Masked     struct {
		Prompt    int                `json:"prompt_tokens"`
		Targets   int                `json:"targets"`
		Loss      float64            `json:"loss"`
		Gradients map[string]float64 `json:"gradients"`
	} `json:"masked"`
	AdamW struct {
		Loss []float64 `json:"loss"`
	} `json:"adamw"`
	Merged []float64 `json:"after_adamw_merged_last_logits"`
}

func readLora(t *testing.T, name string) (loraExpectation, *adapter.Adapter, *model.Files) {
	t.Helper()
	dir := shared(t, "models/tiny-lora", name)
	text, err := os.ReadFile(filepath.Join(dir, "expected.json"))
	if err != nil {
		t.Fatal(err)
	}
	var e loraExpectation
	if err := json.Unmarshal(text, &e); err != nil {
		t.Fatal(err)
	}
	a, err := adapter.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return e, a, open(t, shared(t, "models/tiny", name))
}

// lowTrainer trains an adapter over a chain of stages.
type lowTrainer[F tensor.Float] struct {
	stages []*model.Stage[F]
	grads  []*model.Params[F]
	halves bool // backward passes in two halves
}

func newLow[F tensor.Float](t *testing.T, f *model.Files, a *adapter.Adapter, set kernel.Set[F], stages int,
	dense bool) *lowTrainer[F] {
	t.Helper()
	tr := &lowTrainer[F]{}
	for _, r := range model.Split(len(f.Spec.Layers), stages) {
		s, err := model.Load(f, r, set, model.LoadOptions{Dense: dense})
		if err != nil {
			t.Fatal(err)
		}
		ad, err := s.NewAdapter(a)
		if err != nil {
			t.Fatal(err)
		}
		s.Train(ad)
		tr.stages, tr.grads = append(tr.stages, s), append(tr.grads, s.NewGrads())
	}
	return tr
}

// step runs a micro-batch forward and backward. It returns the mean loss.
func (tr *lowTrainer[F]) step(t *testing.T, in model.Micro[F]) float64 {
	t.Helper()
	var traces []*model.Trace[F]
	targets := 0
	for _, id := range in.Targets {
		if id >= 0 {
			targets++
		}
	}
	in.B, in.T, in.Scale = 1, len(in.IDs), 1/float64(targets)
	for _, s := range tr.stages {
		trace, err := s.TrainForward(in)
		if err != nil {
			t.Fatal(err)
		}
		traces, in.Hidden = append(traces, trace), trace.Out
	}
	var loss float64
	for _, l := range traces[len(traces)-1].Loss {
		loss += l / float64(targets)
	}
	var d []F
	for i, s := range slices.Backward(tr.stages) {
		var err error
		if tr.halves {
			if d, err = s.TrainBackwardInput(traces[i], d); err == nil {
				d = slices.Clone(d) // it stands until the next call
				err = s.TrainBackwardWeight(traces[i], tr.grads[i])
			}
		} else {
			d, err = s.TrainBackward(traces[i], d, tr.grads[i])
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return loss
}

// all lists the gradients and the weights of the adapter by name.
func (tr *lowTrainer[F]) all() (grads, params map[string][]F) {
	grads, params = map[string][]F{}, map[string][]F{}
	for i, s := range tr.stages {
		for _, p := range s.Stepped() {
			g, _ := tr.grads[i].Get(p.Name)
			grads[p.Name], params[p.Name] = g.Data, p.Data
		}
	}
	return grads, params
}

// masked returns a micro-batch whose prompt is not trained.
func masked[F tensor.Float](ids []int32, prompt int) model.Micro[F] {
	targets := append(slices.Clone(ids[1:]), -1)
	for i := range prompt - 1 {
		targets[i] = -1
	}
	return model.Micro[F]{IDs: ids, Targets: targets}
}

func closeTo(t *testing.T, what string, got []float32, want []float64, tolerance float64) {
	t.Helper()
	for i, w := range want {
		if d := math.Abs(float64(got[i]) - w); !(d <= tolerance) {
			t.Errorf("%s: element %d is %v, want %v", what, i, got[i], w)
			return
		}
	}
}

func TestStage_AdapterLikePEFT(t *testing.T) {
	for _, name := range []string{"llama", "qwen2"} {
		want, a, files := readLora(t, name)
		for kernels, set := range sets(t) {
			for stages := 1; stages <= 2; stages++ {
				what := fmt.Sprintf("%s/%s/%d", name, kernels, stages)
				c := newChain(t, files, set, stages)
				for _, s := range c.stages {
					ad, err := s.NewAdapter(a)
					if err != nil {
						t.Fatal(err)
					}
					s.Use(ad)
				}
				closeTo(t, what+": logits", c.last(t, want.IDs), want.LastLogits, 2e-3)

				tr := newLow(t, files, a, set, stages, true)
				micro := masked[float32](want.IDs, want.Masked.Prompt)
				loss := tr.step(t, micro)
				if math.Abs(loss-want.Masked.Loss) > 1e-3*want.Masked.Loss {
					t.Errorf("%s: loss is %v, want %v", what, loss, want.Masked.Loss)
				}
				grads, params := tr.all()
				if len(grads) != len(want.Masked.Gradients) {
					t.Errorf("%s: %d gradients, want %d", what, len(grads), len(want.Masked.Gradients))
				}
				for full, norm := range want.Masked.Gradients {
					g := grads[strings.TrimPrefix(full, "base_model.model.")]
					if got := math.Sqrt(optim.SumSquares(g)); !(math.Abs(got-norm) <= 1e-3*norm) {
						t.Errorf("%s: gradient of %s is %v, want %v", what, full, got, norm)
					}
				}
				adamw := optim.AdamW{Beta1: 0.9, Beta2: 0.999, Epsilon: 1e-8}
				m, v := map[string][]float32{}, map[string][]float32{}
				for step, loss := range want.AdamW.Loss {
					if name == "qwen2" && step == 2 {
						// The expected losses after the first one are not reproduced by PEFT 0.21.2 itself: run
						// again it has 6.1810 after one step in float32 and in float64, as here, and not 6.1725.
						break
					}
					if got := tr.step(t, micro); math.Abs(got-loss) > 1.5e-3*loss {
						t.Errorf("%s: loss before step %d is %v, want %v", what, step+1, got, loss)
					}
					var squares float64
					for _, g := range grads {
						squares += optim.SumSquares(g)
					}
					for n, p := range params {
						if m[n] == nil {
							m[n], v[n] = make([]float32, len(p)), make([]float32, len(p))
						}
						scale := optim.ClipScale(math.Sqrt(squares), 1)
						adamw.Step(set, p, m[n], v[n], grads[n], scale, 5e-3, step+1, true)
					}
				}
				if name != "qwen2" {
					checkMerged(t, what, files, a, params, want)
				}
			}
		}
	}
}

// checkMerged merges the trained adapter and compares the merged model with PEFT's.
func checkMerged(t *testing.T, what string, files *model.Files, a *adapter.Adapter, params map[string][]float32,
	want loraExpectation) {
	t.Helper()
	trained := *a
	trained.Modules = slices.Clone(a.Modules)
	for i := range trained.Modules {
		m := &trained.Modules[i]
		m.A, m.B = params[adapter.Name(m.Name, adapter.A)], params[adapter.Name(m.Name, adapter.B)]
	}
	exported, spec, err := model.Merged(files, &trained)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := model.ExportFiles(dir, spec, exported, model.ExportOptions{DType: tensor.F32}); err != nil {
		t.Fatal(err)
	}
	c := newChain(t, open(t, dir), kernel.Set[float32](ref.New[float32]()), 1)
	closeTo(t, what+": merged logits", c.last(t, want.IDs), want.Merged, 1e-2)
}

// last returns the logits after the last id.
func (c *chain[F]) last(t *testing.T, ids []int32) []F {
	t.Helper()
	return c.run(t, part[F]{seq: c.sequence(), ids: ids})
}

// The adapter's gradients have the same bits in one and in several stages, in whole and in divided backward
// passes, and with layers run again.
func TestStage_AdapterGradientsAreExact(t *testing.T) {
	for _, name := range []string{"llama", "qwen2"} {
		want, a, files := readLora(t, name)
		for kernels, set := range sets(t) {
			micro := masked[float32](want.IDs, want.Masked.Prompt)
			micro.Dropout = model.Dropout{Adapter: 0.2, Key: 7}
			var first map[string][]float32
			for _, c := range []struct {
				stages            int
				halves, recompute bool
			}{{1, false, false}, {2, false, false}, {2, true, false}, {1, false, true}, {2, true, true}} {
				tr := newLow(t, files, a, set, c.stages, true)
				tr.halves = c.halves
				for _, s := range tr.stages {
					s.RecomputeLayers(c.recompute)
				}
				tr.step(t, micro)
				grads, _ := tr.all()
				if first == nil {
					first = grads
				}
				for n, g := range grads {
					if !slices.Equal(g, first[n]) {
						t.Errorf("%s/%s %+v: gradient of %s differs", name, kernels, c, n)
					}
				}
			}
		}
	}
}

// everywhere targets all matrices, the embedding and the head.
func everywhere(t *testing.T, f *model.Files, dora bool) *adapter.Adapter {
	t.Helper()
	c := adapter.Config{Rank: 3, Alpha: 6, DoRA: dora, Targets: adapter.Pattern{Regexp: `.*(proj|lm_head|c_\w+).*`}}
	if !dora {
		c.Targets.Regexp = `.*(proj|lm_head|embed_tokens|wte|c_\w+).*`
	}
	a, err := f.Spec.NewAdapterFor(c, 3)
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(1, 2))
	for i := range a.Modules { // the initial values would hide half of the gradients
		for j := range a.Modules[i].B {
			a.Modules[i].B[j] = 0.1 * float32(r.NormFloat64())
		}
		for j := range a.Modules[i].A {
			a.Modules[i].A[j] += 0.1 * float32(r.NormFloat64())
		}
	}
	return a
}

// The gradients are those of the loss: along a random direction the loss changes as they say, also with DoRA,
// for fused and transposed matrices, tied heads and embeddings. With DoRA the lengths are constants for the
// gradient, so its direction changes magnitudes alone.
func TestStage_AdapterDirectionalDerivative(t *testing.T) {
	for _, name := range []string{"llama-linear-bias", "phi3", "gpt2", "gemma2", "qwen3"} {
		for _, dora := range []bool{false, true} {
			ids := readExpectation(t, name).Cases[0].IDs[:12]
			files := open(t, shared(t, "models/tiny", name))
			a := everywhere(t, files, dora)
			set := kernel.Set[float64](ref.New[float64]())
			tr := newLow(t, files, a, set, 1, true)
			micro := masked[float64](ids, 3)
			micro.Dropout = model.Dropout{Adapter: 0.1, Key: 3}
			tr.step(t, micro)
			grads, params := tr.all()
			r := rand.New(rand.NewPCG(3, 4))
			const h = 1e-5
			var along float64
			direction := map[string][]float64{}
			for _, n := range slices.Sorted(maps.Keys(params)) {
				if dora && !strings.HasSuffix(n, string(adapter.Magnitude)) {
					continue
				}
				d := make([]float64, len(params[n]))
				for i := range d {
					d[i] = r.NormFloat64()
					along += d[i] * grads[n][i]
				}
				direction[n] = d
			}
			move := func(by float64) float64 {
				for n, d := range direction {
					for i := range d {
						params[n][i] += by * d[i]
					}
				}
				for _, s := range tr.stages {
					s.Changed()
				}
				return tr.step(t, micro)
			}
			up := move(h)
			down := move(-2 * h)
			if got := (up - down) / (2 * h); !(math.Abs(got-along) <= 1e-4*math.Abs(along)) || along == 0 {
				t.Errorf("%s, dora %v: the loss changes by %v, the gradient says %v", name, dora, got, along)
			}
		}
	}
}

// A merged model computes what its base and adapter do, also where a head is tied.
func TestMerged_ComputesTheSame(t *testing.T) {
	for _, name := range []string{"llama-linear-bias", "phi3", "gpt2", "gemma2", "qwen3", "smollm3"} {
		for _, dora := range []bool{false, true} {
			ids := readExpectation(t, name).Cases[0].IDs[:20]
			files := open(t, shared(t, "models/tiny", name))
			a := everywhere(t, files, dora)
			if dora {
				for i := range a.Modules {
					m := &a.Modules[i]
					m.Magnitude = make([]float32, m.Out)
					for j := range m.Magnitude {
						m.Magnitude[j] = 0.5 + float32(j%7)/5
					}
				}
			}
			set := kernel.Set[float32](ref.New[float32]())
			s, err := model.Load(files, model.Range{Hi: len(files.Spec.Layers)}, set, model.LoadOptions{Adapter: a})
			if err != nil {
				t.Fatal(err)
			}
			c := newChain(t, files, set, 1)
			base := c.last(t, ids)
			c.stages[0] = s
			with := c.last(t, ids)
			exported, spec, err := model.Merged(files, a)
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			if err := model.ExportFiles(dir, spec, exported, model.ExportOptions{DType: tensor.F32}); err != nil {
				t.Fatal(err)
			}
			merged := newChain(t, open(t, dir), set, 1).last(t, ids)
			var most, moved float64
			for i := range with {
				most = max(most, math.Abs(float64(with[i]-merged[i])))
				moved = max(moved, math.Abs(float64(with[i]-base[i])))
			}
			if most > 1e-4 || moved < 1e-2 {
				t.Errorf(
					"%s, dora %v: merged logits differ by %g, the adapter moves them by %g",
					name,
					dora,
					most,
					moved,
				)
			}
		}
	}
}

// A quantised base is used as it lies: the gradients are those over the decoded weights, on ref up to the order of
// sums, on cpu up to the rounding of activations. The file orders queries and keys in rotated pairs, the decoded
// weights do not, so this also compares the two orders.
func TestStage_AdapterOverQuantisedBase(t *testing.T) {
	files := open(t, shared(t, "models/smollm2-135m-instruct", "SmolLM2-135M-Instruct.Q4_1.gguf"))
	layers := len(files.Spec.Layers)
	at := model.Range{Lo: layers - 1, Hi: layers}
	a, err := files.Spec.NewAdapterFor(adapter.Config{Rank: 4, Alpha: 8,
		Targets: adapter.Pattern{Regexp: fmt.Sprintf(`.*\.%d\..*proj`, at.Lo)}}, 5)
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(8, 9))
	for i := range a.Modules {
		for j := range a.Modules[i].B {
			a.Modules[i].B[j] = 0.05 * float32(r.NormFloat64())
		}
	}
	const rows = 6
	hidden := make([]float32, rows*files.Spec.Width)
	for i := range hidden {
		hidden[i] = float32(r.NormFloat64())
	}
	run := func(set kernel.Set[float32], dense bool) (map[string][]float32, []float32) {
		s, err := model.Load(files, at, set, model.LoadOptions{Dense: dense})
		if err != nil {
			t.Fatal(err)
		}
		ad, err := s.NewAdapter(a)
		if err != nil {
			t.Fatal(err)
		}
		s.Train(ad)
		trace, err := s.TrainForward(model.Micro[float32]{B: 1, T: rows, Hidden: hidden,
			Targets: []int32{5, -1, 900, 17, 4, 3}, Scale: 0.2})
		if err != nil {
			t.Fatal(err)
		}
		g := s.NewGrads()
		dIn, err := s.TrainBackward(trace, nil, g)
		if err != nil {
			t.Fatal(err)
		}
		out := map[string][]float32{}
		for _, p := range s.Stepped() {
			module, part, _ := adapter.Split(p.Name)
			d, _ := g.Get(p.Name)
			values := d.Data
			if part == adapter.B && s.Spec.Pairs(module) {
				values = model.Unpair(values, 4, files.Spec.Layers[0].Attention.HeadDim)
			}
			out[p.Name] = values
		}
		return out, slices.Clone(dIn)
	}
	all := sets(t)
	want, wantIn := run(all["ref"], true)
	for _, c := range []struct {
		kernels   string
		tolerance float64
	}{{"ref", 1e-4}, {"cpu", 5e-2}} {
		got, dIn := run(all[c.kernels], false)
		got["input"], want["input"] = dIn, wantIn
		for n, w := range want {
			var difference []float32
			for i := range w {
				difference = append(difference, got[n][i]-w[i])
			}
			d, size := math.Sqrt(optim.SumSquares(difference)), math.Sqrt(optim.SumSquares(w))
			if !(d <= c.tolerance*size) || size == 0 {
				t.Errorf("%s: gradient of %s differs by %g of %g", c.kernels, n, d, size)
			}
		}
	}
}

func TestSpec_AdaptersMustFit(t *testing.T) {
	files := open(t, shared(t, "models/tiny", "llama"))
	a, err := files.Spec.NewAdapterFor(adapter.Config{Rank: 2, Alpha: 2,
		Targets: adapter.Pattern{Names: []string{"q_proj"}}}, 1)
	if err != nil || len(a.Modules) != len(files.Spec.Layers) {
		t.Fatalf("%v, %v", a, err)
	}
	for _, c := range []struct {
		want   string
		change func(m *adapter.Module)
	}{
		{"no such module", func(m *adapter.Module) { m.Name = "model.layers.9.self_attn.q_proj" }},
		{"inputs", func(m *adapter.Module) { m.In++ }},
	} {
		b := *a
		b.Modules = slices.Clone(a.Modules)
		c.change(&b.Modules[0])
		if err := files.Spec.CheckAdapter(&b); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, want %q", err, c.want)
		}
	}
	_, err = files.Spec.NewAdapterFor(adapter.Config{Rank: 2, Alpha: 2,
		Targets: adapter.Pattern{Names: []string{"query"}}}, 1)
	if err == nil || !strings.Contains(err.Error(), "q_proj") {
		t.Errorf("%v, want a list of modules", err)
	}
}
