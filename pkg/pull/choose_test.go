package pull_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/pull"
)

func listed(paths ...string) []pull.File {
	var out []pull.File
	for _, p := range paths {
		out = append(out, pull.File{Path: p, Size: 1})
	}
	return out
}

func TestChoose_PicksTheFilesOfOneModel(t *testing.T) {
	for name, c := range map[string]struct{ files, include, want []string }{
		"safetensors come before GGUF": {
			[]string{".gitattributes", "README.md", "config.json", "model.gguf", "model.safetensors", "tokenizer.json"},
			nil, []string{"config.json", "model.safetensors", "tokenizer.json"},
		},
		"Mistral's second copy stays": {
			[]string{"config.json", "consolidated.safetensors", "model-00001-of-00002.safetensors",
				"model-00002-of-00002.safetensors", "model.safetensors.index.json"},
			nil, []string{"config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
				"model.safetensors.index.json"},
		},
		"other formats stay": {
			[]string{"config.json", "model.safetensors", "onnx/model.onnx", "onnx/model.safetensors",
				"pytorch_model.bin", "1_Pooling/config.json", "flax_model.msgpack"},
			nil, []string{"1_Pooling/config.json", "config.json", "model.safetensors"},
		},
		"one GGUF file": {[]string{"README.md", "a.gguf", "mmproj-a.gguf"}, nil, []string{"a.gguf"}},
		"a pattern picks one of several": {
			[]string{"a-Q4_K_M.gguf", "a-Q8_0.gguf"}, []string{"*Q8*"}, []string{"a-Q8_0.gguf"},
		},
		"a split one in a folder": {
			[]string{"Q4/a-00001-of-00002.gguf", "Q4/a-00002-of-00002.gguf", "Q8/a-00001-of-00002.gguf"},
			[]string{"Q4/*"}, []string{"a-00001-of-00002.gguf", "a-00002-of-00002.gguf"},
		},
	} {
		chosen, err := pull.Choose("x", listed(c.files...), c.include)
		var got []string
		for _, f := range chosen {
			got = append(got, f.Path)
		}
		slices.Sort(got)
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%s: got %v (%v), want %v", name, got, err, c.want)
		}
	}
}

func TestChoose_ReportsWhatItCannotDecide(t *testing.T) {
	var several *pull.AmbiguousError
	if _, err := pull.Choose("x", listed("a-Q4.gguf", "a-Q8.gguf"), nil); !errors.As(err, &several) ||
		!slices.Equal(several.Models, []string{"a-Q4.gguf", "a-Q8.gguf"}) {
		t.Errorf("two models: %v", err)
	}
	if _, err := pull.Choose("x", listed("README.md", "config.json"), nil); fault.CodeOf(err) != fault.NotFound {
		t.Errorf("no model: %v", err)
	}
	if _, err := pull.Choose("x", listed("a.gguf"), []string{"["}); fault.CodeOf(err) != fault.Invalid {
		t.Errorf("no pattern: %v", err)
	}
}

func TestNameOf_MakesNamesOfModels(t *testing.T) {
	for text, want := range map[string]string{
		"/models/SmolLM2.Q4_1.gguf":        "SmolLM2.Q4_1",
		"/models/big-00001-of-00003.gguf":  "big",
		"owner/Llama-3":                    "Llama-3",
		`C:\models\tiny model.gguf`:        "tiny-model",
		"https://example.org/a/b/":         "b",
		"/models/.hidden":                  "hidden",
		"/models/llama-2-7b-chat-q4 (1)":   "llama-2-7b-chat-q4--1-",
		"https://example.org/model.gguf":   "model",
		"https://example.org/x%20y/a.gguf": "a",
	} {
		if got := pull.NameOf(text); got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
}
