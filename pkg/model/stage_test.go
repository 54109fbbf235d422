package model_test

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/ref"
	"github.com/lamina-mesh/lamina/pkg/kvcache"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/tensor"
	"github.com/lamina-mesh/lamina/pkg/weights"
)

func whole(c model.Spec) model.Range { return model.Range{Hi: len(c.Layers)} }

func TestStage_SmolLM2FirstLogits(t *testing.T) {
	if testing.Short() {
		t.Skip("135 million weights by the plain kernels")
	}
	text, err := os.ReadFile(shared(t, "models/smollm2-135m-instruct/expected.json"))
	if err != nil {
		t.Fatal(err)
	}
	var want struct {
		Cases []struct {
			IDs   []int32 `json:"prompt_ids"`
			First struct {
				IDs       []int32   `json:"top_ids"`
				Logits    []float64 `json:"top_logits"`
				LogSumExp float64   `json:"logsumexp"`
			} `json:"first"`
		} `json:"cases"`
	}
	if err := json.Unmarshal(text, &want); err != nil {
		t.Fatal(err)
	}
	files := open(t, shared(t, "models/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf"))
	set := ref.New[float32]()
	c := newChain(t, files, kernel.Set[float32](set), 1)
	example := want.Cases[1]
	got := c.run(t, part[float32]{c.sequence(), example.IDs, 0})
	for i, id := range example.First.IDs {
		if math.Abs(float64(got[id])-example.First.Logits[i]) > 1e-2 {
			t.Errorf("logit of %d is %.4f, want %.4f", id, got[id], example.First.Logits[i])
		}
	}
	if lse := set.LogSumExp(got); math.Abs(lse-example.First.LogSumExp) > 1e-2 {
		t.Errorf("log-sum-exp is %.4f, want %.4f", lse, example.First.LogSumExp)
	}
}

// TestStage_EveryQuantisedType compares the logits of weights as they are in the file with
// those of decoded weights.
func TestStage_EveryQuantisedType(t *testing.T) {
	paths, err := filepath.Glob(filepath.Join(shared(t, "models/quant-types"), "*.gguf"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("%d files, %v", len(paths), err)
	}
	set := kernel.Set[float32](ref.New[float32]())
	for _, path := range paths {
		files := open(t, path)
		ids := []int32{1, 2, 3, 5, 8, 13}
		logits := make([][]float32, 2)
		for i, dense := range []bool{false, true} {
			s, err := model.Load(files, whole(files.Spec), set, model.LoadOptions{Dense: dense})
			if err != nil {
				t.Fatalf("%s: %v", filepath.Base(path), err)
			}
			c := &chain[float32]{stages: []*model.Stage[float32]{s},
				caches: []*kvcache.Cache[float32]{kvcache.New(s.CacheConfig(1), s.Kernels())}}
			logits[i] = c.run(t, part[float32]{c.sequence(), ids, 0})
		}
		var want []float64
		for _, v := range logits[1] {
			want = append(want, float64(v))
		}
		near(t, logits[0], want, 1e-4)
	}
}

// FuzzFromGGUF mutates real files. The result is a valid Spec, or an error with a code.
func FuzzFromGGUF(f *testing.F) {
	for _, name := range []string{"llama", "llama-yarn", "gpt2"} {
		data, err := os.ReadFile(filepath.Join(shared(f, "models/tiny", name), "model-bf16.gguf"))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		g, err := weights.ParseGGUF("fuzz", data)
		if err != nil {
			return
		}
		files, err := model.FromGGUF(g, "fuzz")
		if err != nil {
			if code := fault.CodeOf(err); code != fault.DataLoss && code != fault.Unimplemented {
				t.Errorf("error without a code: %v", err)
			}
			return
		}
		if err := files.Spec.Validate(); err != nil {
			t.Errorf("accepted what is not valid: %v", err)
		}
	})
}

// TestLoad_DenseFilesAgree compares the decoded parameters of a GGUF file, which may have
// interleaved rows, with those of the same model in safetensors.
func TestLoad_DenseFilesAgree(t *testing.T) {
	set := kernel.Set[float32](ref.New[float32]())
	for _, name := range tiny {
		all := forms(t, name)
		if len(all) < 2 {
			continue
		}
		load := func(form string) *model.Stage[float32] {
			s, err := model.Load(all[form], whole(all[form].Spec), set, model.LoadOptions{Dense: true})
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		a, b := load("safetensors"), load("gguf")
		for i, p := range a.Params().Tensors {
			if q := b.Params().Tensors[i]; q.Name != p.Name || q.TiedTo != p.TiedTo || !slices.Equal(p.Data, q.Data) {
				t.Errorf("%s: %s differs from the GGUF file's %s", name, p.Name, q.Name)
			}
		}
		if r := b.Spec.Rope(); r != nil && r.Interleaved {
			t.Errorf("%s: dense weights still say interleaved", name)
		}
		if name == "llama3-rope" {
			continue // its GGUF file has the factors but not the settings that they come from
		}
		if name == "gpt-oss-mxfp4" {
			continue // it is not exported
		}
		dir := t.TempDir()
		if err := model.ExportHF(dir, b.Spec, b.Params().Tensors, tensor.BF16); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		want := readExpectation(t, name).Cases[0]
		c := newChain(t, open(t, dir), set, 2)
		near(t, c.run(t, part[float32]{c.sequence(), want.IDs, 0}), want.LastLogits, 1e-3)
	}
}

func TestStage_RepeatedStepGivesTheSameLogits(t *testing.T) {
	files := open(t, shared(t, "models/tiny/llama"))
	ids := readExpectation(t, "llama").Cases[0].IDs
	c := newChain(t, files, kernel.Set[float32](ref.New[float32]()), 2)
	seq := c.sequence()
	want := c.run(t, part[float32]{seq, ids, 0})
	c.run(t, part[float32]{seq, []int32{3, 4, 5}, len(ids)}) // draft tokens that are rejected
	for _, s := range seq {
		s.Truncate(20)
	}
	c.run(t, part[float32]{seq, ids[20:30], 20})
	if got := c.run(t, part[float32]{seq, ids[25:], 25}); !slices.Equal(got, want) { // repeats cached positions
		t.Error("logits after truncation and a repeated step differ")
	}
}

// TestStage_ScaleByLayer compares scores divided by l+1 with queries divided by l+1.
func TestStage_ScaleByLayer(t *testing.T) {
	set := kernel.Set[float32](ref.New[float32]())
	logits := func(byLayer bool) []float32 {
		c := model.NewGPT2(small(model.Shape{}))
		if byLayer {
			for l := range c.Layers {
				a := &c.Layers[l].Attention
				a.Scale = 1 / math.Sqrt(float64(a.HeadDim)) / float64(l+1)
			}
		}
		s, err := model.Init(c, whole(c), set, 5)
		if err != nil {
			t.Fatal(err)
		}
		for l := range c.Layers {
			p, _ := s.Params().Get("transformer.h." + string(rune('0'+l)) + ".attn.c_attn.weight")
			for i := range p.Data[:c.Width*c.Width] {
				p.Data[i] *= 50 // makes the softmax sharper than the initial weights do
				if !byLayer {
					p.Data[i] /= float32(l + 1)
				}
			}
		}
		ch := &chain[float32]{stages: []*model.Stage[float32]{s},
			caches: []*kvcache.Cache[float32]{kvcache.New(s.CacheConfig(1), s.Kernels())}}
		return ch.run(t, part[float32]{ch.sequence(), []int32{1, 2, 3, 5, 8, 13}, 0})
	}
	var want []float64
	for _, v := range logits(false) {
		want = append(want, float64(v))
	}
	near(t, logits(true), want, 1e-6)
}

// TestStage_DynamicRopeWithinItsContext checks that a dynamic rope is the plain one within the
// context length, and that longer sequences are refused.
func TestStage_DynamicRopeWithinItsContext(t *testing.T) {
	set := kernel.Set[float32](ref.New[float32]())
	run := func(rope model.Rope, n int) ([]float32, error) {
		c := model.NewLlama(small(model.Shape{Rope: rope}))
		s, err := model.Init(c, whole(c), set, 5)
		if err != nil {
			t.Fatal(err)
		}
		seq := kvcache.New(s.CacheConfig(2), s.Kernels()).NewSequence()
		return s.Forward(&model.Batch[float32]{IDs: make([]int32, n),
			Entries: []model.Entry[float32]{{Seq: seq, Rows: n, Logits: 1}}})
	}
	dynamic := model.Rope{Type: "dynamic", Factor: 4}
	want, err := run(model.Rope{}, 16)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := run(dynamic, 16); err != nil || !slices.Equal(got, want) {
		t.Errorf("the logits differ from those without scaling (%v)", err)
	}
	if _, err := run(dynamic, 17); fault.CodeOf(err) != fault.Invalid {
		t.Errorf("a position beyond the context: %v", err)
	}
}

func TestStage_RefusesMalformedBatches(t *testing.T) {
	files := open(t, shared(t, "models/tiny/gpt2"))
	set := kernel.Set[float32](ref.New[float32]())
	s, err := model.Load(files, model.Range{Hi: 2}, set, model.LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	seq := kvcache.New(s.CacheConfig(64), s.Kernels()).NewSequence()
	if err := seq.Reserve(300); err != nil {
		t.Fatal(err)
	}
	entry := func(pos, rows, logits int) []model.Entry[float32] {
		return []model.Entry[float32]{{Seq: seq, Pos: pos, Rows: rows, Logits: logits}}
	}
	for name, b := range map[string]model.Batch[float32]{
		"id":       {Entries: entry(0, 1, 0), IDs: []int32{320}},
		"negative": {Entries: entry(0, 1, 0), IDs: []int32{-1}},
		"count":    {Entries: entry(0, 2, 0), IDs: []int32{1}},
		"gap":      {Entries: entry(1, 1, 0), IDs: []int32{1}},
		"rows":     {Entries: entry(0, 0, 0)},
		"logits":   {Entries: entry(0, 1, 2), IDs: []int32{1}},
		"context":  {Entries: entry(0, 257, 0), IDs: make([]int32, 257)},
		"pages":    {Entries: entry(0, 1, 0), IDs: []int32{1}},
		"none":     {Entries: []model.Entry[float32]{{Rows: 1}}, IDs: []int32{1}},
		"empty":    {},
	} {
		if name == "pages" {
			b.Entries[0].Seq = kvcache.New(s.CacheConfig(0), s.Kernels()).NewSequence()
		}
		want := map[string]fault.Code{"gap": fault.FailedPrecondition, "pages": fault.Exhausted}[name]
		if want == fault.Unspecified {
			want = fault.Invalid
		}
		if _, err := s.Forward(&b); fault.CodeOf(err) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
	if seq.Len() != 0 {
		t.Errorf("refused batches left %d positions", seq.Len())
	}
	if _, err := s.TrainForward(model.Micro[float32]{B: 1, T: 1,
		IDs: []int32{1}}); fault.CodeOf(err) != fault.FailedPrecondition {
		t.Errorf("training on mapped weights: %v", err)
	}
	if _, err := model.Load(files, model.Range{Lo: 2, Hi: 5}, set,
		model.LoadOptions{}); fault.CodeOf(err) != fault.Invalid {
		t.Errorf("layers beyond the model: %v", err)
	}
}

// memory is a source of tensors in memory.
type memory map[string]weights.Named

func (m memory) Names() []string { return nil }
func (memory) Relax()            {}

func (m memory) Close() error { return nil }
func (m memory) Info(name string) (weights.Info, bool) {
	n, ok := m[name]
	return weights.Info{Name: name, DType: n.DType, Shape: n.Shape, Bytes: int64(len(n.Data))}, ok
}
func (m memory) Data(name string) ([]byte, error) {
	if n, ok := m[name]; ok {
		return n.Data, nil
	}
	return nil, &weights.NotFoundError{File: "memory", Tensor: name}
}

func small(c model.Shape) model.Shape {
	c.Layers, c.Width, c.Heads, c.FF, c.Vocab, c.Context = 2, 16, 2, 24, 30, 16
	return c
}

// exported returns the tensors of a newly initialised model.
func exported(t *testing.T, c model.Spec) memory {
	t.Helper()
	s, err := model.Init(c, whole(c), kernel.Set[float32](ref.New[float32]()), 7)
	if err != nil {
		t.Fatal(err)
	}
	out := memory{}
	for _, p := range s.Params().Tensors {
		if p.TiedTo != "" {
			continue
		}
		data := make([]byte, 4*len(p.Data))
		tensor.Encode(data, p.Data, tensor.F32)
		out[p.Name] = weights.Named{DType: tensor.F32, Shape: p.Shape, Data: data}
	}
	return out
}

func TestLoad_NamesTheTensorWithAWrongShape(t *testing.T) {
	c := model.NewLlama(small(model.Shape{}))
	set := kernel.Set[float32](ref.New[float32]())
	const name = "model.layers.1.mlp.up_proj.weight"
	for what, change := range map[string]func(m memory){
		"missing": func(m memory) { delete(m, name) },
		"shape":   func(m memory) { n := m[name]; n.Shape = []int{16, 24}; m[name] = n },
		"type":    func(m memory) { n := m[name]; n.DType = tensor.I32; m[name] = n },
	} {
		m := exported(t, c)
		change(m)
		f := model.NewFiles(c, "memory", m)
		if _, err := model.Load(f, whole(c), set, model.LoadOptions{}); err == nil ||
			!strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v does not name %s", what, err, name)
		}
		if _, err := model.Load(f, model.Range{Hi: 1}, set, model.LoadOptions{}); err != nil {
			t.Errorf("%s: a stage without that tensor does not load: %v", what, err)
		}
	}
}

func TestOpen_HeadThatDiffersIsNotTied(t *testing.T) {
	c := model.NewLlama(small(model.Shape{TiedHead: true}))
	config, err := model.ConfigJSON(c)
	if err != nil {
		t.Fatal(err)
	}
	for _, own := range []bool{false, true} {
		m := exported(t, c)
		head := m["model.embed_tokens.weight"]
		if own {
			head.Data = slices.Clone(head.Data)
			head.Data[5] ^= 1
		}
		m["lm_head.weight"] = head
		dir := t.TempDir()
		var named []weights.Named
		for name, n := range m {
			n.Name = name
			named = append(named, n)
		}
		if err := weights.WriteSafetensors(filepath.Join(dir, "model.safetensors"), named, nil); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "config.json"), config, 0o644); err != nil {
			t.Fatal(err)
		}
		if got := open(t, dir).Spec.Head.Tied; got == own {
			t.Errorf("a head of its own: %v; tied: %v", own, got)
		}
	}
}

func TestInit_WeightsDoNotDependOnTheSplit(t *testing.T) {
	set := kernel.Set[float32](ref.New[float32]())
	for _, c := range []model.Spec{
		model.NewLlama(model.Shape{Layers: 4, Width: 64, Heads: 4, KVHeads: 2, FF: 128, Vocab: 300, Context: 64,
			TiedHead: true}),
		model.NewGPT2(model.Shape{Layers: 4, Width: 64, Heads: 4, Vocab: 300, Context: 64}),
	} {
		one, err := model.Init(c, whole(c), set, 11)
		if err != nil {
			t.Fatal(err)
		}
		var split []model.Param[float32]
		for _, r := range model.Split(len(c.Layers), 3) {
			s, err := model.Init(c, r, set, 11)
			if err != nil {
				t.Fatal(err)
			}
			split = append(split, s.Params().Tensors...)
		}
		for i, p := range one.Params().Tensors {
			if q := split[i]; q.Name != p.Name || !slices.Equal(p.Data, q.Data) {
				t.Errorf("%s: parameter %d is %s in one stage, %s in three, or differs", c.Architecture, i, p.Name,
					q.Name)
			}
			var mean, square float64
			for _, x := range p.Data {
				mean += float64(x) / float64(len(p.Data))
				square += float64(x) * float64(x) / float64(len(p.Data))
			}
			std := math.Sqrt(square - mean*mean)
			want := 0.02
			if strings.HasSuffix(p.Name, "o_proj.weight") || strings.HasSuffix(p.Name, "down_proj.weight") ||
				strings.HasSuffix(p.Name, ".c_proj.weight") {
				want /= math.Sqrt(8)
			}
			if len(p.Shape) == 2 && (math.Abs(std-want) > 0.05*want || math.Abs(mean) > 0.1*want) {
				t.Errorf("%s: mean %.4g, deviation %.4g, want 0 and %.4g", p.Name, mean, std, want)
			}
		}
		other, err := model.Init(c, whole(c), set, 12)
		if err != nil {
			t.Fatal(err)
		}
		if slices.Equal(other.Params().Tensors[0].Data, one.Params().Tensors[0].Data) {
			t.Error("another seed gives the same weights")
		}
	}
}
