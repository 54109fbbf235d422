package main

import (
	"bytes"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"testing"
)

// TestEmbed_MiniLM compares the embeddings of all-MiniLM-L6-v2 with those of sentence-transformers.
// The model is in the folder LAMINA_MODELS.
func TestEmbed_MiniLM(t *testing.T) {
	dir := os.Getenv("LAMINA_MODELS")
	folder := filepath.Join(dir, "all-minilm-l6-v2")
	if _, err := os.Stat(folder); dir == "" || err != nil {
		t.Skip("all-minilm-l6-v2 is not in LAMINA_MODELS")
	}
	text, err := os.ReadFile(sharedPath(t, "vectors", "embeddings", "minilm.json"))
	if err != nil {
		t.Fatal(err)
	}
	var want struct {
		Cases []struct {
			Text      string
			Embedding []float64
		}
	}
	if err := json.Unmarshal(text, &want); err != nil {
		t.Fatal(err)
	}
	var in bytes.Buffer
	for _, c := range want.Cases {
		line, err := json.Marshal(c.Text)
		if err != nil {
			t.Fatal(err)
		}
		in.Write(append(line, '\n'))
	}
	var first string
	for _, flags := range [][]string{{"--stages", "1"}, {"--stages", "3", "--batch", "1"}} {
		var out, errs bytes.Buffer
		args := append([]string{"embed", "-m", folder, "--format", "json"}, flags...)
		if code := run(t.Context(), args, bytes.NewReader(in.Bytes()), &out, &errs); code != 0 {
			t.Fatalf("exit code %d: %s", code, errs.String())
		}
		if first == "" {
			first = out.String()
		}
		if out.String() != first {
			t.Errorf("%v: other bits", flags)
		}
	}
	var got struct{ Embeddings [][]float64 }
	if err := json.Unmarshal([]byte(first), &got); err != nil || len(got.Embeddings) != len(want.Cases) {
		t.Fatalf("%d embeddings of %d texts: %v", len(got.Embeddings), len(want.Cases), err)
	}
	for i, c := range want.Cases {
		var dot, a, b float64
		for j, v := range c.Embedding {
			w := got.Embeddings[i][j]
			dot, a, b = dot+v*w, a+v*v, b+w*w
		}
		if cosine := dot / math.Sqrt(a*b); cosine < 0.999999 {
			t.Errorf("%.40q: cosine %v", c.Text, cosine)
		}
	}
}
