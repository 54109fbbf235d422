package adapter_test

import (
	"encoding/json"
	"errors"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/internal/fixtures"
	"github.com/lamina-mesh/lamina/pkg/adapter"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/tensor"
	"github.com/lamina-mesh/lamina/pkg/weights"
)

// shared returns the path of a fixture, or skips the test.
func shared(t testing.TB, parts ...string) string {
	t.Helper()
	return fixtures.Path(t, parts...)
}

func TestOpen_PEFTFolders(t *testing.T) {
	for name, want := range map[string]struct {
		modules, rank int
		scale         float64
	}{"llama": {8, 4, 2}, "qwen2": {28, 8, 16 / math.Sqrt(8)}} {
		a, err := adapter.Open(shared(t, "models/tiny-lora", name))
		if err != nil {
			t.Fatal(err)
		}
		if len(a.Modules) != want.modules {
			t.Errorf("%s: %d modules, want %d", name, len(a.Modules), want.modules)
		}
		for _, m := range a.Modules {
			if m.Rank != want.rank || math.Abs(m.Scale-want.scale) > 1e-12 || len(m.A) != m.Rank*m.In ||
				len(m.B) != m.Out*m.Rank {
				t.Errorf("%s: %s has rank %d and scale %v", name, m.Name, m.Rank, m.Scale)
			}
			if !a.Selects(adapter.Target{Module: m.Name}) {
				t.Errorf("%s: the config does not select %s", name, m.Name)
			}
		}
	}
}

// sample is a small adapter with everything that a folder can hold.
func sample() *adapter.Adapter {
	return &adapter.Adapter{
		Config: adapter.Config{Base: "base", Rank: 2, Alpha: 4, DoRA: true, Dropout: 0.25,
			Targets: adapter.Pattern{Names: []string{"q_proj", "v_proj"}}, Layers: []int{0, 3},
			LayersPattern: []string{"layers"}, Save: []string{"lm_head"},
			Ranks:  []adapter.Override{{Match: "v_proj", Value: 1}, {Match: "q_proj", Value: 2}},
			Alphas: []adapter.Override{{Match: `layers\.0\..*v_proj`, Value: 3}}},
		Modules: []adapter.Module{
			{Name: "model.layers.0.self_attn.q_proj", Rank: 2, Scale: 2, In: 3, Out: 2,
				A: []float32{1, 2, 3, 4, 5, 6}, B: []float32{7, 8, 9, 10}, Magnitude: []float32{1, 0.5}},
			{Name: "model.layers.0.self_attn.v_proj", Rank: 1, Scale: 3, In: 3, Out: 1,
				A: []float32{1, 2, 3}, B: []float32{7}, Magnitude: []float32{1}},
		},
		Saved: []adapter.Saved{{Name: "lm_head.weight", Shape: []int{2, 3}, Data: []float32{1, 2, 3, 4, 5, 6}}},
	}
}

func TestWrite_ReadsBack(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "adapter")
	want := sample()
	if err := adapter.Write(dir, want); err != nil {
		t.Fatal(err)
	}
	got, err := adapter.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	a, _ := json.Marshal(want)
	b, _ := json.Marshal(got)
	if string(a) != string(b) {
		t.Errorf("wrote\n%s, read\n%s", a, b)
	}
	first, err := adapter.Digest(dir)
	if err != nil || !strings.HasPrefix(first, "sha256:") {
		t.Fatal(first, err)
	}
	want.Modules[0].A[0]++
	if err := adapter.Write(dir, want); err != nil {
		t.Fatal(err)
	}
	if second, err := adapter.Digest(dir); err != nil || second == first {
		t.Errorf("another adapter has the same digest %s, %v", second, err)
	}
	if m, ok := got.Module("model.layers.0.self_attn.v_proj"); !ok || m.Rank != 1 {
		t.Error("module not found")
	}
	if _, ok := got.Replaced("lm_head.weight"); !ok {
		t.Error("saved tensor not found")
	}
}

func TestConfig_SelectsLikePEFT(t *testing.T) {
	all := []adapter.Target{{Module: "model.embed_tokens", Embeds: true}, {Module: "model.layers.0.self_attn.q_proj"},
		{Module: "model.layers.1.self_attn.q_proj"}, {Module: "model.layers.1.mlp.up_proj"},
		{Module: "lm_head", Head: true}}
	for _, c := range []struct {
		config string
		want   []int
	}{
		{`{"target_modules": ["q_proj"]}`, []int{1, 2}},
		{`{"target_modules": ["proj"]}`, nil}, // a name is a whole part
		{`{"target_modules": ["q_proj"], "layers_to_transform": [1]}`, []int{2}},
		{`{"target_modules": ["q_proj"], "layers_to_transform": 0}`, []int{1}},
		{`{"target_modules": ["q_proj"], "layers_to_transform": 1, "layers_pattern": "blocks"}`, nil},
		{`{"target_modules": ["q_proj", "up_proj"], "exclude_modules": ["up_proj"]}`, []int{1, 2}},
		{`{"target_modules": ".*1.*proj"}`, []int{2, 3}},
		{`{"target_modules": ".*q_pro"}`, nil}, // an expression is for the whole name
		{`{"target_modules": "all-linear"}`, []int{1, 2, 3}},
		{`{"target_modules": "all-linear", "layers_to_transform": [1]}`, []int{2, 3}},
		{`{"target_modules": ["lm_head", "embed_tokens"]}`, []int{0, 4}},
		{`{"target_modules": ["lm_head", "q_proj"], "modules_to_save": ["lm_head"]}`, []int{1, 2}},
	} {
		config, err := adapter.ParseConfig([]byte(c.config))
		if err != nil {
			t.Errorf("%s: %v", c.config, err)
			continue
		}
		var got []int
		for i, target := range all {
			if config.Selects(target) {
				got = append(got, i)
			}
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s selects %v, want %v", c.config, got, c.want)
		}
	}
}

func TestParseConfig_ErrorsNameTheField(t *testing.T) {
	for text, want := range map[string]struct {
		part string
		code fault.Code
	}{
		`{`:                                 {"file", fault.DataLoss},
		`{"r": 0, "target_modules": ["q"]}`: {"r: want", fault.DataLoss},
		`{"r": 4}`:                          {"target_modules", fault.DataLoss},
		`{"target_modules": 5}`:             {"target_modules", fault.DataLoss},
		`{"target_modules": "(?<=x)"}`:      {"target_modules", fault.DataLoss},
		`{"target_modules": ["q"], "lora_alpha": -1}`:             {"lora_alpha", fault.DataLoss},
		`{"target_modules": ["q"], "lora_dropout": 1}`:            {"lora_dropout", fault.DataLoss},
		`{"target_modules": ["q"], "rank_pattern": {"q": 1.5}}`:   {"rank_pattern", fault.DataLoss},
		`{"target_modules": ["q"], "alpha_pattern": {"q": "x"}}`:  {"alpha_pattern", fault.DataLoss},
		`{"target_modules": ["q"], "peft_type": "LOHA"}`:          {"peft_type", fault.Unimplemented},
		`{"target_modules": ["q"], "bias": "all"}`:                {"bias", fault.Unimplemented},
		`{"target_modules": ["q"], "target_parameters": ["x"]}`:   {"target_parameters", fault.Unimplemented},
		`{"target_modules": ["q"], "ensure_weight_tying": true}`:  {"ensure_weight_tying", fault.Unimplemented},
		`{"target_modules": ["q"], "layer_replication": [[0,1]]}`: {"layer_replication", fault.Unimplemented},
	} {
		_, err := adapter.ParseConfig([]byte(text))
		if err == nil || !strings.Contains(err.Error(), want.part) || fault.CodeOf(err) != want.code {
			t.Errorf("%s: %v (%v), want %q and %v", text, err, fault.CodeOf(err), want.part, want.code)
		}
	}
}

func TestOpen_ErrorsNameTheTensor(t *testing.T) {
	f32 := func(name string, shape ...int) weights.Named {
		n := 4
		for _, d := range shape {
			n *= d
		}
		return weights.Named{Name: name, DType: tensor.F32, Shape: shape, Data: make([]byte, n)}
	}
	const q = "base_model.model.model.layers.0.self_attn.q_proj."
	for want, tensors := range map[string][]weights.Named{
		"lora_B.weight: is missing": {f32(q+"lora_A.weight", 2, 3)},
		"lora_A.weight: is missing": {f32(q+"lora_B.weight", 3, 2)},
		"want a shape [N,2]":        {f32(q+"lora_A.weight", 2, 3), f32(q+"lora_B.weight", 3, 4)},
		"want a shape [r,I]":        {f32(q+"lora_A.weight", 6), f32(q+"lora_B.weight", 3, 2)},
		"want rank 2":               {f32(q+"lora_A.weight", 3, 3), f32(q+"lora_B.weight", 3, 3)},
		"use_dora is false": {f32(q+"lora_A.weight", 2, 3), f32(q+"lora_B.weight", 3, 2),
			f32(q+"lora_magnitude_vector", 3)},
		"lora_A.weight: is the same as base_model.model.": {f32(q+"lora_A.default.weight", 2, 3),
			f32(q+"lora_A.weight", 2, 4), f32(q+"lora_B.weight", 3, 2)},
		"of an embedding and of a matrix": {f32(q+"lora_embedding_A", 2, 3), f32(q+"lora_embedding_B", 3, 2),
			f32(q+"lora_B.weight", 1, 1)},
		"base_model.model.":     {f32("model.layers.0.q_proj.lora_A.weight", 2, 3)},
		"neither to an adapter": {f32("base_model.model.lm_head.weight", 2, 3)},
		"lora_B.bias is not":    {f32(q+"lora_B.bias", 3)},
		"there are no tensors":  {f32(q+"base_layer.weight", 3)},
		"type of base_model.model": {{Name: q + "lora_A.weight", DType: tensor.I32, Shape: []int{1},
			Data: make([]byte, 4)}},
		"element 0 is NaN": {{Name: q + "lora_A.weight", DType: tensor.F32, Shape: []int{1},
			Data: []byte{0, 0, 0xc0, 0x7f}}},
	} {
		dir := t.TempDir()
		text := []byte(`{"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"]}`)
		if err := errors.Join(os.WriteFile(filepath.Join(dir, adapter.ConfigFile), text, 0o600),
			weights.WriteSafetensors(filepath.Join(dir, adapter.WeightsFile), tensors, nil)); err != nil {
			t.Fatal(err)
		}
		if _, err := adapter.Open(dir); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	if _, err := adapter.Open(t.TempDir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an empty folder: %v", err)
	}
}

func TestSplit_PartsOfNames(t *testing.T) {
	for name, want := range map[string]string{
		"model.layers.0.self_attn.q_proj.lora_A.weight": "model.layers.0.self_attn.q_proj lora_A.weight true",
		"model.embed_tokens.lora_embedding_B":           "model.embed_tokens lora_embedding_B true",
		"a.lora_magnitude_vector":                       "a lora_magnitude_vector true",
		"model.norm.weight":                             "model.norm.weight  false",
		".lora_A.weight":                                ".lora_A.weight  false",
	} {
		module, part, ok := adapter.Split(name)
		if got := module + " " + string(part) + map[bool]string{true: " true", false: " false"}[ok]; got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

// TestOpen_KnowsTheBase writes the digest of the base and reads it again. It is no part of the adapter's own digest,
// and PEFT's folders do not have it.
func TestOpen_KnowsTheBase(t *testing.T) {
	base, other := "sha256:"+strings.Repeat("5a", 32), "sha256:"+strings.Repeat("a5", 32)
	plain, known := t.TempDir(), t.TempDir()
	a := sample()
	if err := adapter.Write(plain, a); err != nil {
		t.Fatal(err)
	}
	a.BaseDigest = base
	if err := adapter.Write(known, a); err != nil {
		t.Fatal(err)
	}
	var digests []string
	for _, tc := range []struct{ dir, base string }{{plain, ""}, {known, base}} {
		got, err := adapter.Open(tc.dir)
		if err != nil || got.BaseDigest != tc.base {
			t.Fatalf("base %q, %v, want %q", got.BaseDigest, err, tc.base)
		}
		if err := got.CheckBase(base); err != nil {
			t.Error(err)
		}
		err = got.CheckBase(other)
		if (err != nil) != (tc.base != "") || err != nil && (fault.CodeOf(err) != fault.FailedPrecondition ||
			!strings.Contains(err.Error(), base[:19]) || !strings.Contains(err.Error(), other[:19])) {
			t.Errorf("another base than %q: %v", tc.base, err)
		}
		digests = append(digests, got.Outline().Digest().String())
	}
	if digests[0] != digests[1] {
		t.Errorf("the digests are %v", digests)
	}
	a.BaseDigest = "sha256:5a"
	if err := adapter.Write(t.TempDir(), a); err == nil || !strings.Contains(err.Error(), "lamina.base") {
		t.Errorf("a digest that is none: %v", err)
	}
	file := filepath.Join(known, adapter.WeightsFile)
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	damaged := strings.Replace(string(text), base, base[:len(base)-2]+"xx", 1)
	if err := os.WriteFile(file, []byte(damaged), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = adapter.Open(known)
	if fault.CodeOf(err) != fault.DataLoss || !strings.Contains(err.Error(), "lamina.base") {
		t.Errorf("a damaged digest: %v", err)
	}
}

// FuzzParseSum reads any text as a digest. What is read is written the same way, but for the case of its digits.
func FuzzParseSum(f *testing.F) {
	f.Add(adapter.SumOf([]float32{1, 2}).String())
	f.Add("sha256:")
	f.Add("sha256:" + strings.Repeat("g", 64))
	f.Fuzz(func(t *testing.T, text string) {
		sum, ok := adapter.ParseSum(text)
		if ok && sum.String() != "sha256:"+strings.ToLower(strings.TrimPrefix(text, "sha256:")) {
			t.Errorf("%q is read as %s", text, sum)
		}
	})
}

// FuzzParse reads arbitrary configs and files. They give an adapter that can be written and read again, or an
// error.
func FuzzParse(f *testing.F) {
	dir := f.TempDir()
	if err := adapter.Write(dir, sample()); err != nil {
		f.Fatal(err)
	}
	config, _ := os.ReadFile(filepath.Join(dir, adapter.ConfigFile))
	file, _ := os.ReadFile(filepath.Join(dir, adapter.WeightsFile))
	f.Add(config, file)
	f.Add([]byte(`{"target_modules": "all-linear"}`), file)
	f.Fuzz(func(t *testing.T, config, file []byte) {
		c, err := adapter.ParseConfig(config)
		if err != nil {
			return
		}
		source, err := weights.ParseSafetensors("fuzz", file)
		if err != nil {
			return
		}
		a, err := adapter.Parse(c, source)
		if err != nil {
			return
		}
		dir := t.TempDir()
		if err := adapter.Write(dir, a); err != nil {
			t.Fatalf("write: %v", err)
		}
		b, err := adapter.Open(dir)
		if err != nil {
			t.Fatalf("read again: %v", err)
		}
		names := func(a *adapter.Adapter) []string {
			set := map[string]bool{}
			for _, m := range a.Modules {
				set[m.Name] = true
			}
			return slices.Sorted(maps.Keys(set))
		}
		if !slices.Equal(names(a), names(b)) {
			t.Errorf("wrote %v, read %v", names(a), names(b))
		}
	})
}

// TestConfig_SavesByTheEndsOfNames compares modules_to_save with what PEFT 0.21 does: it saves by the ends of the names
// of a module and of those that it is in, and gives whole names no low-rank parts.
func TestConfig_SavesByTheEndsOfNames(t *testing.T) {
	const layer = "model.layers.0."
	for _, c := range []struct {
		save, module   string
		saves, selects bool
	}{
		{"lm_head", "lm_head", true, false},
		{"norm", "model.norm", true, false},
		{"norm", layer + "input_layernorm", true, true},
		{"mlp", layer + "mlp.up_proj", true, false},
		{"q_proj", layer + "self_attn.q_proj", true, false},
		{"proj", layer + "self_attn.q_proj", true, true},
		{"q_proj", layer + "self_attn.k_proj", false, true},
		{"head", "model.heads", false, true},
		{"model.norm", "model.norm", true, false},
		{"", layer + "mlp.up_proj", false, true},
	} {
		config := adapter.Config{Save: []string{c.save}, Targets: adapter.Pattern{Regexp: ".*"}}
		if got := config.Saves(c.module); got != c.saves {
			t.Errorf("%q saves %s: %v", c.save, c.module, got)
		}
		if got := config.Selects(adapter.Target{Module: c.module}); got != c.selects {
			t.Errorf("beside %q, %s has an adapter: %v", c.save, c.module, got)
		}
	}
}
