package model_test

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/model"
)

const llamaText = `{"model_type":"llama","hidden_size":48,"num_hidden_layers":3,"num_attention_heads":6,"num_key_value_heads":2,
"intermediate_size":80,"vocab_size":90,"max_position_embeddings":128,"rms_norm_eps":1e-5,"hidden_act":"silu"`

func parse(t *testing.T, text string) model.Spec {
	t.Helper()
	c, err := model.ParseHF([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestParseHF_BothSpellingsOfRope(t *testing.T) {
	for _, pair := range [][2]string{
		{`"rope_theta":5e5,"rope_scaling":{"type":"linear","factor":2.5}`,
			`"rope_parameters":{"rope_type":"linear","factor":2.5,"rope_theta":5e5}`},
		{`"rope_theta":5e5,"rope_scaling":{"rope_type":"llama3","factor":8,"low_freq_factor":1,"high_freq_factor":4,"original_max_position_embeddings":32}`,
			`"rope_parameters":{"rope_type":"llama3","factor":8,"low_freq_factor":1,"high_freq_factor":4,"original_max_position_embeddings":32,"rope_theta":5e5}`},
		{`"rope_theta":1e4,"rope_scaling":{"type":"yarn","factor":4,"original_max_position_embeddings":32,"beta_fast":16}`,
			// factor by the contexts
			`"rope_parameters":{"rope_type":"yarn","original_max_position_embeddings":32,"beta_fast":16,"rope_theta":1e4}`},
		{`"rope_theta":7e4,"rope_scaling":null`, `"rope_parameters":{"rope_type":"default","rope_theta":7e4}`},
	} {
		classic, modern := parse(t, llamaText+","+pair[0]+"}"), parse(t, llamaText+","+pair[1]+"}")
		if !reflect.DeepEqual(classic, modern) {
			t.Errorf("%s reads as %+v, %s as %+v", pair[0], classic.Rope(), pair[1], modern.Rope())
		}
	}
}

func TestParseHF_WindowsOfLayers(t *testing.T) {
	qwen := strings.Replace(llamaText, `"llama"`, `"qwen2"`, 1)
	mistral := strings.Replace(llamaText, `"llama"`, `"mistral"`, 1)
	for text, want := range map[string]struct {
		window int
		full   []bool
	}{
		llamaText + `,"sliding_window":9}`:                                            {0, nil},
		mistral + `,"sliding_window":9}`:                                              {9, nil},
		mistral + `,"sliding_window":null}`:                                           {0, nil},
		mistral + `}`:                                                                 {4096, nil},
		qwen + `,"sliding_window":9,"use_sliding_window":false}`:                      {0, nil},
		qwen + `,"sliding_window":9,"use_sliding_window":true,"max_window_layers":2}`: {9, []bool{true, true, false}},
		qwen + `,"sliding_window":9,"use_sliding_window":true,"max_window_layers":0}`: {9, nil},
		qwen + `,"sliding_window":9,"use_sliding_window":true,"layer_types":["sliding_attention","full_attention","sliding_attention"]}`: {9, []bool{false, true, false}},
		as("qwen3_moe") + `,"sliding_window":9,"use_sliding_window":true}`:                                                               {9, nil},
		as("smollm3") + `,"use_sliding_window":true,"no_rope_layer_interval":2}`:                                                         {0, nil},
		as("smollm3") + `,"sliding_window":9,"use_sliding_window":true,"no_rope_layer_interval":2}`:                                      {9, []bool{true, false, true}},
		as("smollm3") + `,"sliding_window":9,"no_rope_layers":[0,0,0,1]}`:                                                                {0, nil},
		as("smollm3") + `,"sliding_window":9,"layer_types":["sliding_attention","full_attention","full_attention"]}`:                     {9, []bool{false, true, true}},
	} {
		if got, want := windows(parse(t, text)), windowed(3, want.window, want.full); !slices.Equal(got, want) {
			t.Errorf("%s has windows %v, want %v", text, got, want)
		}
	}
}

// windows lists the windows of a model's layers.
func windows(s model.Spec) []int {
	var out []int
	for l := range s.Layers {
		out = append(out, s.Layers[l].Attention.Window)
	}
	return out
}

// windowed lists the windows of layers if all have one except those marked full.
func windowed(layers, window int, full []bool) []int {
	out := make([]int, layers)
	for l := range out {
		if full == nil || !full[l] {
			out[l] = window
		}
	}
	return out
}

// as returns llamaText with another model_type.
func as(kind string) string { return strings.Replace(llamaText, `"llama"`, `"`+kind+`"`, 1) }

func TestParseHF_DefaultsOfMissingSettings(t *testing.T) {
	bare := func(kind string) string {
		return strings.Replace(as(kind), `"rms_norm_eps":1e-5,`, "", 1) + "}"
	}
	for kind, want := range map[string]struct {
		base, eps float64
		headDim   int
		tied      bool
	}{
		"llama":       {1e4, 1e-6, 8, false},
		"mistral":     {1e4, 1e-6, 8, false},
		"qwen2":       {1e4, 1e-6, 8, false},
		"qwen3":       {1e4, 1e-6, 128, false},
		"qwen3_moe":   {1e4, 1e-6, 8, false},
		"mixtral":     {1e6, 1e-5, 8, false},
		"phi3":        {1e4, 1e-5, 8, false},
		"smollm3":     {2e6, 1e-6, 8, true},
		"gemma2":      {1e4, 1e-6, 256, true},
		"gemma3_text": {1e6, 1e-6, 256, true},
		"gpt_oss":     {150000, 1e-5, 64, false},
	} {
		if kind == "gemma3_text" {
			kind += `","layer_types":["full_attention","full_attention","full_attention"],"x":"`
		}
		c := parse(t, bare(kind))
		r, headDim := c.Rope(), c.Layers[0].Attention.HeadDim
		if r.Base != want.base || c.Norm.Eps != want.eps || headDim != want.headDim || c.Head.Tied != want.tied {
			t.Errorf("%s has base %g, epsilon %g, head size %d, tied head %v; want %+v", kind, r.Base, c.Norm.Eps,
				headDim,
				c.Head.Tied, want)
		}
		if kind == "gpt_oss" && (r.Type != "yarn" || r.Factor != 32 || r.Original != 4096 || !r.KeepRamp) {
			t.Errorf("gpt_oss rotates by %+v", r)
		}
	}
}

// TestParseHF_IgnoredFields checks settings that transformers ignores for the architecture.
func TestParseHF_IgnoredFields(t *testing.T) {
	for _, pair := range [][2]string{
		{as("llama"), `,"partial_rotary_factor":0.5`},
		{as("llama"), `,"rope_scaling":{}`},
		{as("mistral"), `,"attention_bias":true,"mlp_bias":true`},
		{as("mixtral"), `,"attention_bias":true`},
		{as("phi3"), `,"attention_bias":true`},
		{as("qwen2"), `,"attention_bias":false,"mlp_bias":true`},
		{as("qwen3"), `,"mlp_bias":true`},
		{as("gemma2"), `,"hidden_act":"silu"`},
		{as("gemma3_text"), `,"attn_logit_softcapping":9`},
		{as("gemma3_text"), `,"rope_parameters":{"rope_type":"linear","factor":2,"rope_theta":77}`},
		{as("gpt_oss"), `,"hidden_act":"gelu"`},
		{as("qwen3_moe") + `,"use_sliding_window":true,"sliding_window":9`, `,"max_window_layers":2`},
	} {
		if got, want := parse(t, pair[0]+pair[1]+"}"), parse(t, pair[0]+"}"); !reflect.DeepEqual(got, want) {
			t.Errorf("%s%s reads as %+v, without as %+v", pair[0], pair[1], got, want)
		}
	}
}

func TestParseHF_RopesOfGemma3(t *testing.T) {
	for text, want := range map[string][2]model.Rope{
		`,"rope_theta":5e5,"rope_local_base_freq":300,"rope_scaling":{"rope_type":"linear","factor":8}`: {
			{Base: 5e5, Dims: 256, Type: "linear", Factor: 8}, {Base: 300, Dims: 256}},
		`,"rope_theta":5e5,"rope_parameters":{"full_attention":{"rope_type":"linear","factor":8},"sliding_attention":{"rope_type":"default"}}`: {
			{Base: 5e5, Dims: 256, Type: "linear", Factor: 8}, {Base: 1e4, Dims: 256}},
		`,"rope_parameters":{"sliding_attention":{"rope_type":"default","rope_theta":700}}`: {
			{Base: 1e6, Dims: 256}, {Base: 700, Dims: 256}},
		`,"rope_scaling":{"rope_type":"linear","factor":8},"rope_parameters":{"full_attention":{"rope_theta":500}}`: {
			{Base: 500, Dims: 256, Type: "linear", Factor: 8}, {Base: 1e4, Dims: 256}},
	} {
		c := parse(t, as("gemma3_text")+text+`,"sliding_window_pattern":3}`)
		if got := [2]model.Rope{*c.Layers[2].Attention.Rope, *c.Layers[1].Attention.Rope}; !reflect.DeepEqual(got,
			want) {
			t.Errorf("%s rotates by %+v, want %+v", text, got, want)
		}
	}
}

// TestParseHF_ContextsBeforeTheExtension checks which of several settings gives that context length.
func TestParseHF_ContextsBeforeTheExtension(t *testing.T) {
	const yarn, long = `,"rope_scaling":{"rope_type":"yarn","factor":4`,
		`,"rope_scaling":{"rope_type":"longrope","short_factor":[1,1,1,1],"long_factor":[2,2,2,2]`
	for text, want := range map[string]struct {
		original int
		factor   float64
	}{
		as("llama") + yarn + `}`: {128, 4},
		as("llama") + yarn + `,"original_max_position_embeddings":32}`:               {32, 4},
		as("llama") + yarn + `},"original_max_position_embeddings":64`:               {64, 4},
		as("llama") + long + `,"factor":3}`:                                          {128, 3},
		as("llama") + long + `,"original_max_position_embeddings":32}`:               {32, 4},
		as("phi3") + long + `},"original_max_position_embeddings":64`:                {64, 2},
		as("phi3") + long + `,"original_max_position_embeddings":32}`:                {4096, 1. / 32},
		as("phi3") + strings.Replace(long, "longrope", "yarn", 1) + `,"factor":0.5}`: {4096, 0.5},
	} {
		if r := new(parse(t, text+"}")).Rope(); r.Original != want.original || r.Factor != want.factor {
			t.Errorf("%s extends %d positions by %g, want %+v", text, r.Original, r.Factor, want)
		}
	}
	if r := new(parse(t, as("phi3")+`,"head_dim":20,"partial_rotary_factor":0.35}`)).Rope(); r.Dims != 8 ||
		r.Base <= 1e4 {
		t.Errorf("an odd part of a head rotates by %+v", r)
	}
}

func TestParseHF_RefusesWhatItCannotRun(t *testing.T) {
	for text, code := range map[string]fault.Code{
		`{"model_type":"mamba"}`: fault.Unimplemented,
		llamaText + `,"rope_scaling":{"rope_type":"axial","factor":2}}`:  fault.Unimplemented,
		llamaText + `,"rope_scaling":{"rope_type":"dynamic"}}`:           fault.DataLoss,
		as("gemma3_text") + `,"use_bidirectional_attention":true}`:       fault.Unimplemented,
		as("smollm3") + `,"no_rope_layers":[1,0]}`:                       fault.DataLoss,
		llamaText + `,"rope_scaling":{"rope_type":"linear","factor":0}}`: fault.DataLoss,
		llamaText + `,"num_attention_heads":0}`:                          fault.DataLoss,
		llamaText + `,"num_key_value_heads":4}`:                          fault.DataLoss,
		llamaText + `,"head_dim":7}`:                                     fault.DataLoss,
		llamaText + `,"vocab_size":-3}`:                                  fault.DataLoss,
		`{"model_type":"llama"`:                                          fault.DataLoss,
		`{"model_type":"gpt2","n_embd":30,"n_head":4,"n_layer":1}`:       fault.DataLoss,
	} {
		_, err := model.ParseHF([]byte(text))
		if err == nil || fault.CodeOf(err) != code {
			t.Errorf("%s: %v (%v), want %v", text, err, fault.CodeOf(err), code)
		}
	}
	_, err := model.ParseHF([]byte(`{"model_type":"mamba"}`))
	var unsupported *model.UnsupportedError
	if !errors.As(err, &unsupported) || unsupported.Value != "mamba" || !strings.Contains(err.Error(), "llama") {
		t.Errorf("an unknown architecture gives %v, want its name and the supported ones", err)
	}
}

func TestConfigJSON_ReadsBackEqual(t *testing.T) {
	configs := map[string]model.Spec{
		"tanh llama": parse(t, strings.Replace(llamaText, "silu", "gelu_pytorch_tanh", 1)+`}`),
		"longrope": parse(t, llamaText+
			`,"rope_scaling":{"type":"longrope","original_max_position_embeddings":32,"short_factor":[1,1,1,1],"long_factor":[2,2,2,2]}}`),
		"dynamic": parse(t, llamaText+`,"rope_scaling":{"type":"dynamic","factor":4}}`),
		"part":    parse(t, as("phi3")+`,"partial_rotary_factor":0.5}`),
		"gpt2 scales": parse(
			t,
			`{"model_type":"gpt2","hidden_size":32,"num_attention_heads":4,"num_hidden_layers":2,"max_position_embeddings":8,"vocab_size":9,"n_inner":7,"scale_attn_weights":false,"scale_attn_by_inverse_layer_idx":true}`,
		),
		"qwen window": parse(t, strings.Replace(llamaText, `"llama"`, `"qwen2"`,
			1)+`,"sliding_window":9,"use_sliding_window":true,"max_window_layers":2,"eos_token_id":[5,6]}`),
		"yarn": parse(t, llamaText+
			`,"rope_scaling":{"type":"yarn","factor":4,"mscale":2,"mscale_all_dim":1,"truncate":false}}`),
	}
	for _, name := range tiny {
		if text, err := os.ReadFile(filepath.Join(shared(t, "models/tiny", name), "config.json")); err == nil {
			configs[name] = parse(t, string(text))
		}
	}
	for name, c := range configs {
		text, err := model.ConfigJSON(c)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if again := parse(t, string(text)); !reflect.DeepEqual(again, c) {
			t.Errorf("%s comes back as %+v, want %+v", name, again, c)
		}
	}
	odd := configs["yarn"]
	odd.Rope().Interleaved = true
	if _, err := model.ConfigJSON(odd); fault.CodeOf(err) != fault.Unimplemented {
		t.Errorf("a rotation that config.json cannot say is written: %v", err)
	}
}

func TestSplit_CoversLayersInOrder(t *testing.T) {
	for layers := 1; layers < 9; layers++ {
		for stages := 0; stages < 12; stages++ {
			at := 0
			for _, r := range model.Split(layers, stages) {
				if r.Lo != at || r.Len() < 1 {
					t.Errorf("%d layers over %d stages: %v after layer %d", layers, stages, r, at)
				}
				at = r.Hi
			}
			if at != layers {
				t.Errorf("%d layers over %d stages end at %d", layers, stages, at)
			}
		}
	}
}

func TestNewLlama_IsValid(t *testing.T) {
	c := model.NewLlama(model.Shape{Layers: 2, Width: 24, Heads: 4, KVHeads: 2, FF: 40, Vocab: 50, Context: 32})
	if err := c.Validate(); err != nil || c.Layers[1].FFN.Act != kernel.SiLU || c.Layers[1].Attention.HeadDim != 6 {
		t.Errorf("%+v: %v", c, err)
	}
}

func FuzzParseHF(f *testing.F) {
	f.Add(
		[]byte(
			`{"model_type":"gemma3","text_config":{"hidden_size":32,"num_hidden_layers":2,"rope_scaling":{"factor":"8"}}}`,
		),
	)
	f.Add([]byte(llamaText + `,"rope_scaling":{"type":"yarn","factor":4,"truncate":false}}`))
	f.Add([]byte(`{"model_type":"gpt2","n_embd":32,"n_head":4,"n_layer":1,"n_positions":8,"vocab_size":9}`))
	f.Add([]byte(strings.Replace(llamaText, `"llama"`, `"qwen2"`,
		1) + `,"use_sliding_window":true,"layer_types":["full_attention"]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := model.ParseHF(text)
		if err != nil {
			if code := fault.CodeOf(err); code != fault.DataLoss && code != fault.Unimplemented {
				t.Errorf("error without a code: %v", err)
			}
			return
		}
		if err := c.Validate(); err != nil {
			t.Errorf("accepted what is not valid: %v", err)
		}
		written, err := model.ConfigJSON(c)
		if err == nil && !json.Valid(written) {
			t.Errorf("wrote %s", written)
		}
	})
}
