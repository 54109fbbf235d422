package model_test

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
	"github.com/lamina-mesh/lamina/pkg/kernel/ref"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/tensor"
	"github.com/lamina-mesh/lamina/pkg/weights"
)

// variant is a tiny model's Hugging Face folder that a test changes before it is opened.
type variant struct {
	config  map[string]any
	tensors map[string]weights.Named
}

func variantOf(t *testing.T, name string) *variant {
	t.Helper()
	dir := shared(t, "models/tiny", name)
	text, err := os.ReadFile(filepath.Join(dir, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	v := &variant{tensors: map[string]weights.Named{}}
	if err := json.Unmarshal(text, &v.config); err != nil {
		t.Fatal(err)
	}
	source := open(t, dir).Source
	for _, name := range source.Names() {
		info, _ := source.Info(name)
		data, err := source.Data(name)
		if err != nil {
			t.Fatal(err)
		}
		v.tensors[name] = weights.Named{Name: name, DType: info.DType, Shape: info.Shape, Data: data}
	}
	return v
}

// rename puts every tensor under another name.
func (v *variant) rename(to func(name string) string) {
	for _, name := range slices.Collect(maps.Keys(v.tensors)) {
		n := v.tensors[name]
		delete(v.tensors, name)
		n.Name = to(name)
		v.tensors[n.Name] = n
	}
}

// nest moves the configuration into text_config of a multimodal model.
func (v *variant) nest(modelType, textType string) {
	text := v.config
	delete(text, "architectures")
	text["model_type"] = textType
	v.config = map[string]any{"model_type": modelType, "text_config": text,
		"vision_config": map[string]any{"hidden_size": 9}}
	for _, outer := range []string{"bos_token_id", "eos_token_id", "tie_word_embeddings"} {
		v.config[outer] = text[outer]
		delete(text, outer)
	}
}

// open writes the folder, with the text of config.json changed by edit, and opens it.
func (v *variant) open(t *testing.T, edit func(config string) string) *model.Files {
	t.Helper()
	dir := t.TempDir()
	if err := weights.WriteSafetensors(filepath.Join(dir, "model.safetensors"), slices.Collect(maps.Values(v.tensors)),
		nil); err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(v.config)
	if err != nil {
		t.Fatal(err)
	}
	if edit != nil {
		text = []byte(edit(string(text)))
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), text, 0o644); err != nil {
		t.Fatal(err)
	}
	return open(t, dir)
}

func logitsOf(t *testing.T, f *model.Files) []float32 {
	t.Helper()
	c := newChain(t, f, kernel.Set[float32](cpu.New(1)), 2)
	return c.run(t, part[float32]{c.sequence(), []int32{1, 5, 9, 40, 7, 7, 3, 60, 11}, 0})
}

// TestOpen_LanguageModelsOfMultimodalModels moves tiny models to where multimodal releases
// have them: the logits stay the same.
func TestOpen_LanguageModelsOfMultimodalModels(t *testing.T) {
	old := func(name string) string { return "language_model." + name }
	modern := func(name string) string {
		if rest, ok := strings.CutPrefix(name, "model."); ok {
			return "model.language_model." + rest
		}
		return name
	}
	for _, c := range []struct {
		name, outer, text string
		rename            func(string) string
	}{
		{"gemma3", "gemma3", "gemma3_text", old},
		{"gemma3", "gemma3", "gemma3_text", modern},
		{"mistral", "mistral3", "mistral", old},
		{"mistral", "llava", "mistral", modern},
		{"qwen2", "qwen2_vl", "qwen2_vl_text", modern},
		{"qwen2", "qwen2_5_vl", "qwen2_5_vl_text", modern},
		{"qwen3", "qwen3_vl", "qwen3_vl_text", modern},
		{"llama", "idefics3", "llama", func(name string) string {
			return strings.Replace(modern(name), "language_model",
				"text_model", 1)
		}},
	} {
		want := logitsOf(t, open(t, shared(t, "models/tiny", c.name)))
		v := variantOf(t, c.name)
		v.nest(c.outer, c.text)
		v.rename(c.rename)
		v.tensors["vision_tower.encoder.layers.0.self_attn.q_proj.weight"] = weights.Named{
			Name: "vision_tower.encoder.layers.0.self_attn.q_proj.weight", DType: tensor.F32, Shape: []int{1},
			Data: make([]byte, 4),
		}
		f := v.open(t, nil)
		if !slices.Equal(logitsOf(t, f), want) {
			t.Errorf("%s within %s has other logits", c.name, c.outer)
		}
		if !slices.Equal(f.Spec.Unused, []string{"vision_config"}) || !slices.Equal(f.Spec.EOS, []int32{2}) {
			t.Errorf("%s within %s: unused %v, ends %v", c.name, c.outer, f.Spec.Unused, f.Spec.EOS)
		}
	}
}

// TestOpen_FlatQwenVL is Qwen2-VL as first published: no text_config, and rope type mrope,
// which is the plain rotation where the three positions of a token are equal.
func TestOpen_FlatQwenVL(t *testing.T) {
	want := logitsOf(t, open(t, shared(t, "models/tiny/qwen2")))
	v := variantOf(t, "qwen2")
	v.config["model_type"], v.config["vision_config"] = "qwen2_vl", map[string]any{}
	v.config["rope_scaling"] = map[string]any{"type": "mrope", "mrope_section": []int{2, 1, 1}}
	f := v.open(t, nil)
	if !slices.Equal(logitsOf(t, f), want) || len(f.Spec.Unused) != 1 {
		t.Errorf("qwen2_vl with mrope has other logits than qwen2, or unused parts %v", f.Spec.Unused)
	}
	v.config["rope_scaling"] = map[string]any{"rope_type": "default", "mrope_section": []int{2, 1, 1},
		"mrope_interleaved": true}
	if !slices.Equal(logitsOf(t, v.open(t, nil)), want) {
		t.Error("rope type default with mrope_section has other logits")
	}
}

// TestParseHF_SizesThatTextConfigLeavesOut is the config.json of gemma-3-4b-it, shortened.
func TestParseHF_SizesThatTextConfigLeavesOut(t *testing.T) {
	s := parse(
		t,
		`{"model_type":"gemma3","eos_token_id":[1,106],"vision_config":{"hidden_size":1152},"text_config":{"hidden_size":2560,
		"intermediate_size":10240,"model_type":"gemma3_text","num_hidden_layers":34,"rope_scaling":{"factor":8.0,"rope_type":"linear"},"sliding_window":1024}}`,
	)
	a := s.Layers[5].Attention
	if s.Vocab != 262208 || s.Context != 131072 || a.Heads != 8 || a.KVHeads != 4 || a.HeadDim != 256 || !s.Head.Tied {
		t.Errorf("vocabulary %d, context %d, heads %+v", s.Vocab, s.Context, a)
	}
	if a.Window != 0 || a.Rope.Factor != 8 || a.Rope.Base != 1e6 || s.Layers[4].Attention.Window != 1024 ||
		s.Layers[4].Attention.Rope.Base != 1e4 {
		t.Errorf("layer 5 rotates by %+v, layer 4 by %+v", a.Rope, s.Layers[4].Attention.Rope)
	}
	if !slices.Equal(s.EOS, []int32{1, 106}) {
		t.Errorf("texts end at %v", s.EOS)
	}
	if _, err := model.ParseHF([]byte(`{"model_type":"gemma3_text","hidden_size":2560}`)); err == nil ||
		!strings.Contains(err.Error(), "is missing") {
		t.Errorf("sizes are missing outside text_config: %v", err)
	}
}

// TestOpen_ConfigAsPythonWritesIt has what Python writes and reads and JSON lacks.
func TestOpen_ConfigAsPythonWritesIt(t *testing.T) {
	want := logitsOf(t, open(t, shared(t, "models/tiny/llama")))
	v := variantOf(t, "llama")
	for what, edit := range map[string]func(string) string{
		"byte-order mark": func(s string) string { return "\ufeff" + s },
		"Infinity": func(s string) string {
			return `{"a":Infinity,"b":[-Infinity,NaN],"c":"Infinity \" NaN",` +
				s[1:]
		},
		"strings": func(s string) string {
			for _, name := range []string{"hidden_size", "rms_norm_eps", "vocab_size"} {
				text, _ := json.Marshal(v.config[name])
				s = strings.Replace(s, `"`+name+`":`+string(text), `"`+name+`":" `+string(text)+`"`, 1)
			}
			return s
		},
		"float": func(s string) string {
			return strings.Replace(s, `"num_hidden_layers":`, `"num_hidden_layers":0.4e1,"x":`, 1)
		},
	} {
		if got := logitsOf(t, v.open(t, edit)); !slices.Equal(got, want) {
			t.Errorf("%s: other logits", what)
		}
	}
	for text, field := range map[string]string{
		`"hidden_size":"many"`: "hidden_size", `"hidden_size":1.5`: "hidden_size",
		`"hidden_size":Infinity`: "hidden_size",
		`"rope_theta":[1]`:       "rope_theta", `"rope_scaling":3`: "rope_scaling", `"hidden_size":null`: "hidden_size",
		`"attention_bias":"yes"`: "attention_bias", `"bos_token_id":[1,"x"]`: "bos_token_id",
		`"hidden_act":7`: "hidden_act",
	} {
		_, err := model.ParseHF([]byte(llamaText + "," + text + "}")) // the last of two counts
		if err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v does not name the field", text, err)
		}
	}
}

// TestOpen_BiasesOfSomeMatrices leaves out biases, or makes them zero: the same.
func TestOpen_BiasesOfSomeMatrices(t *testing.T) {
	gone := func(name string) bool {
		return strings.HasSuffix(name, ".o_proj.bias") || strings.HasSuffix(name, "layers.1.self_attn.q_proj.bias") ||
			strings.Contains(name, "layers.2.") && strings.HasSuffix(name, ".bias") ||
			strings.HasSuffix(name, "layers.0.mlp.up_proj.bias")
	}
	without, zeroed := variantOf(t, "llama-linear-bias"), variantOf(t, "llama-linear-bias")
	biases := 0
	for name, n := range zeroed.tensors {
		if !gone(name) {
			continue
		}
		delete(without.tensors, name)
		n.Data = make([]byte, len(n.Data))
		zeroed.tensors[name] = n
		biases++
	}
	if biases < 6 {
		t.Fatalf("%d biases to leave out: the model lacks them", biases)
	}
	a, b := without.open(t, nil), zeroed.open(t, nil)
	if !slices.Equal(logitsOf(t, a), logitsOf(t, b)) {
		t.Error("a bias that is not there differs from one of zeros")
	}
	plain := variantOf(t, "llama-linear-bias")
	if slices.Equal(logitsOf(t, plain.open(t, nil)), logitsOf(t, a)) {
		t.Error("biases change nothing: the test cannot fail")
	}
	ids := []int32{1, 5, 9, 40, 7, 7, 3, 60, 11}
	set := kernel.Set[float32](ref.New[float32]())
	x, y := load(t, a, set, 2), load(t, b, set, 1)
	if x.step(t, ids) != y.step(t, ids) {
		t.Error("the losses differ")
	}
	want := y.merged()
	for name, g := range x.merged() {
		if gone(name) || !slices.Equal(g, want[name]) {
			t.Errorf("the gradient of %s differs, or should not be there", name)
		}
	}
}

// TestOpen_BiasesThatTheConfigDoesNotMention reads the biases of a model whose config.json
// says nothing of them, as files of some conversions are.
func TestOpen_BiasesThatTheConfigDoesNotMention(t *testing.T) {
	v := variantOf(t, "llama-linear-bias")
	want := logitsOf(t, v.open(t, nil))
	delete(v.config, "attention_bias")
	delete(v.config, "mlp_bias")
	if !slices.Equal(logitsOf(t, v.open(t, nil)), want) {
		t.Error("biases that are in the file are passed over")
	}
}
