package main

import (
	"strings"
	"testing"
)

func TestInspect_Forms(t *testing.T) {
	for path, format := range map[string]string{
		"models/tiny/llama":                           "huggingface",
		"models/tiny/llama/model.safetensors":         "safetensors",
		"models/tiny/llama/model-bf16.gguf":           "gguf",
		"models/stories260K/stories260K-Q4_0.gguf":    "gguf",
		"models/tiny/gemma2":                          "huggingface",
		"vectors/tokenizer/ggml-vocab-llama-spm.gguf": "gguf",
		"models/quant-types/q-Q4_K_M.gguf":            "gguf",
		"models/tiny/gpt-oss-mxfp4":                   "huggingface",
		"models/tiny/llama3-rope":                     "huggingface",
		"models/stories260K":                          "huggingface",
	} {
		t.Run(path, func(t *testing.T) {
			path := sharedPath(t, path)
			got := verbJSON[inspection](t, "", "inspect", path, "--format", "json")
			if got.Format != format {
				t.Errorf("format %q, want %q", got.Format, format)
			}
			var bytes int64
			for _, tensor := range got.Tensors {
				bytes += tensor.Bytes
			}
			if bytes != got.Bytes {
				t.Errorf("%d bytes, the tensors have %d", got.Bytes, bytes)
			}
			text := verbOK(t, "", "inspect", path)
			for _, tensor := range got.Tensors {
				if !strings.Contains(text, tensor.Name) {
					t.Errorf("the text lacks tensor %s", tensor.Name)
				}
			}
		})
	}
}

func TestInspect_Content(t *testing.T) {
	hf := verbJSON[inspection](t, "", "inspect", sharedPath(t, "models/tiny/llama"), "--format", "json", "--digest")
	gguf := verbJSON[inspection](t, "", "inspect", sharedPath(t, "models/tiny/llama/model-bf16.gguf"), "--format",
		"json")
	if hf.Config == nil || gguf.Config == nil || hf.Config.Layers != gguf.Config.Layers || hf.Config.Vocab != 320 {
		t.Errorf("configs %+v and %+v", hf.Config, gguf.Config)
	}
	if hf.Parameters != gguf.Parameters || hf.Parameters == 0 {
		t.Errorf("%d and %d parameters", hf.Parameters, gguf.Parameters)
	}
	if hf.Vocabulary == nil || hf.Vocabulary.Size != 320 || !strings.HasPrefix(hf.Digest, "sha256:") {
		t.Errorf("vocabulary %+v, digest %q", hf.Vocabulary, hf.Digest)
	}
	if gguf.Metadata["general.architecture"] != "llama" {
		t.Errorf("metadata %v", gguf.Metadata)
	}
	strange := verbJSON[inspection](t, "", "inspect", sharedPath(t, "models/tiny/gemma2"), "--format", "json")
	if strange.Config == nil == (strange.ConfigError == "") || len(strange.Tensors) == 0 {
		t.Errorf("config %+v, error %q, %d tensors", strange.Config, strange.ConfigError, len(strange.Tensors))
	}
}

func TestInspect_BadFiles(t *testing.T) {
	dir := t.TempDir()
	verbFails(t, 1, "nowhere", "", "inspect", "nowhere")
	verbFails(t, 1, "short", "", "inspect", writeFile(t, dir, "short", "GGUF\x03"))
	verbFails(t, 1, "other", "", "inspect", writeFile(t, dir, "other", "not a model at all"))
	verbFails(t, 1, "", "", "inspect", t.TempDir())
	verbFails(t, 2, "", "", "inspect")
}

func TestInspect_StrangersText(t *testing.T) {
	if got := shortened("a\x1b[2J\n" + strings.Repeat("b", 100)); strings.ContainsAny(got, "\x1b\n") || len(got) > 90 {
		t.Errorf("shortened to %q", got)
	}
}

func TestVersion_Prints(t *testing.T) {
	if got := verbOK(t, "", "version"); !strings.HasPrefix(got, "lamina ") || !strings.Contains(got, "go1.") {
		t.Errorf("printed %q", got)
	}
	if got := verbJSON[versionResult](t, "", "version", "--format", "json"); got.Go == "" || got.Version == "" {
		t.Errorf("printed %+v", got)
	}
}
