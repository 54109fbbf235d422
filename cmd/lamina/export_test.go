package main

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestExport_WritesFilesThatOtherCommandsRead exports a folder to GGUF, quantises that, and exports it to a folder. A
// finished run is found by the name of its folder.
func TestExport_WritesFilesThatOtherCommandsRead(t *testing.T) {
	run := t.TempDir()
	if err := os.CopyFS(filepath.Join(run, "model"), os.DirFS(sharedPath(t, "models", "tiny", "llama"))); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(run, "manifest.json"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	text := sharedPath(t, "data", "tinystories_sample.txt")
	dir := t.TempDir()
	first, second, folder := filepath.Join(dir, "f.gguf"), filepath.Join(dir, "q.gguf"), filepath.Join(dir, "hf")
	measure := []string{"--perplexity", text, "--chunks", "4", "--ctx", "64", "--format", "json"}
	var before float64
	for i, args := range [][]string{
		{"export", run, first, "--type", "F32"}, {"quantize", first, second, "q8_0"},
		{"export", second, folder, "--type", "F32"},
	} {
		out, errText, code := runVerb(t, "", append(args, measure...)...)
		if code != 0 {
			t.Fatalf("%v: exit code %d: %s", args, code, errText)
		}
		var r exported
		if err := json.Unmarshal([]byte(out), &r); err != nil {
			t.Fatal(err)
		}
		if r.Bytes == 0 || r.PerplexityBefore == nil || r.PerplexityAfter == nil {
			t.Fatalf("%v: %s", args, out)
		}
		after := *r.PerplexityAfter
		if i == 0 {
			before = *r.PerplexityBefore
		}
		if off := math.Abs(after/before - 1); off > 0.03 || i == 0 && off > 1e-5 {
			t.Errorf("%v: perplexity %g, want %g", args, after, before)
		}
		switch {
		case i == 0 && (r.Total == nil || r.Total.RMSE != 0):
			t.Errorf("F32 differs from its source: %s", out)
		case i == 1 && (r.Total.Types["Q8_0"] < 29 || r.Total.RMSE == 0 || r.Total.Relative > 0.01):
			t.Errorf("Q8_0: %s", out)
		}
	}
}

func TestQuantize_Errors(t *testing.T) {
	model := sharedPath(t, "models", "tiny", "llama", "model-bf16.gguf")
	out := filepath.Join(t.TempDir(), "out.gguf")
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"quantize", model, out, "Q3_K"}, "unknown type"},
		{[]string{"quantize", model, model, "Q8_0"}, "is the source"},
		{[]string{"quantize", model, out, "Q8_0", "--imatrix", model}, "importance matrix"},
		{[]string{"export", model, filepath.Dir(out) + "/hf", "--type", "Q8_0"}, "F32 or BF16"},
		{[]string{"export", filepath.Join(filepath.Dir(out), "none"), out}, "no such file"},
	} {
		_, errText, code := runVerb(t, "", c.args...)
		if code == 0 || !strings.Contains(errText, c.want) {
			t.Errorf("%v: exit code %d, %s", c.args, code, errText)
		}
	}
}
