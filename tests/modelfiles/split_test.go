//go:build unix

package modelfiles_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
	"github.com/lamina-mesh/lamina/pkg/kvcache"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/vocab"
	"github.com/lamina-mesh/lamina/pkg/weights/filetest"
	"github.com/lamina-mesh/lamina/services/tokenizer"
)

// logits runs the ids of a text through a model and returns the logits of the last row.
func logits(t *testing.T, path, text string) []float32 {
	t.Helper()
	m, err := tokenizer.Load(path, "", "")
	if err != nil {
		t.Fatal(err)
	}
	ids, err := m.Vocab.Encode(text, vocab.Options{BOS: true})
	if err != nil {
		t.Fatal(err)
	}
	f, err := model.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if digest, err := f.Digest(); err != nil || digest != m.Digest {
		t.Errorf("%s: the tokenizer's digest %s is not the model's %s: %v", path, m.Digest, digest, err)
	}
	set := cpu.New(1)
	defer set.Close()
	s, err := model.Load[float32](f, model.Range{Hi: len(f.Spec.Layers)}, set, model.LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	seq := kvcache.New(s.CacheConfig(8), s.Kernels()).NewSequence()
	if err := seq.Reserve(len(ids)); err != nil {
		t.Fatal(err)
	}
	entries := []model.Entry[float32]{{Seq: seq, Rows: len(ids), Logits: 1}}
	out, err := s.Forward(&model.Batch[float32]{IDs: ids, Entries: entries})
	if err != nil {
		t.Fatal(err)
	}
	return slices.Clone(out)
}

func TestSplitGGUF_SameLogitsByAnyPartAndByFolder(t *testing.T) {
	for _, parts := range [][]string{
		{"models", "stories260K", "stories260K-Q4_0.gguf"},
		{"models", "tiny", "gpt-oss-mxfp4", "model-bf16.gguf"},
	} {
		whole := shared(t, parts...)
		want := logits(t, whole, "Once upon a time")
		split, err := filetest.Split(read(t, whole), 3)
		if err != nil {
			t.Fatal(err)
		}
		dir := filepath.Join(t.TempDir(), "a-model")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		paths := []string{dir}
		for i, data := range split {
			path := filepath.Join(dir, fmt.Sprintf("model-%05d-of-%05d.gguf", i+1, len(split)))
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
			paths = append(paths, path)
		}
		for _, path := range paths {
			if got := logits(t, path, "Once upon a time"); !slices.Equal(got, want) {
				t.Errorf("%s: the logits differ from those of the whole file", path)
			}
		}
	}
}

func TestFolder_WithOneGGUFIsThatModel(t *testing.T) {
	whole := shared(t, "models", "stories260K", "stories260K-Q4_0.gguf")
	dir := t.TempDir()
	if err := os.Symlink(whole, filepath.Join(dir, "model.gguf")); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(logits(t, dir, "Once"), logits(t, whole, "Once")) {
		t.Error("the logits differ from those of the file")
	}
	if err := os.Symlink(whole, filepath.Join(dir, "other.gguf")); err != nil {
		t.Fatal(err)
	}
	for _, open := range []func() error{
		func() error { _, err := model.Open(dir); return err },
		func() error { _, err := tokenizer.Load(dir, "", ""); return err },
	} {
		if err := open(); err == nil || !strings.Contains(err.Error(), "model.gguf, other.gguf") {
			t.Errorf("two models in one folder: %v", err)
		}
	}
}
