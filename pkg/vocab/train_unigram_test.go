package vocab_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/vocab"
)

func TestTrainUnigram_IsDeterministicAndReadsBack(t *testing.T) {
	text, err := os.ReadFile(shared(t, "data/tinyshakespeare.txt"))
	if err != nil {
		t.Fatal(err)
	}
	lines := slices.Collect(strings.Lines(string(text[:200_000])))
	var first string
	for _, workers := range []int{1, 3} {
		v, err := vocab.TrainUnigram(t.Context(), slices.Values(lines), 600,
			vocab.TrainOptions{Workers: workers, Special: []string{"<s>"}, BOS: "<s>"})
		if err != nil {
			t.Fatal(err)
		}
		if v.Size() != 600 || v.Family() != vocab.FamilyUnigram {
			t.Fatalf("%d tokens of %s", v.Size(), v.Family())
		}
		dir := t.TempDir()
		if err := v.WriteHF(dir); err != nil {
			t.Fatal(err)
		}
		written, err := os.ReadFile(filepath.Join(dir, "tokenizer.json"))
		if err != nil {
			t.Fatal(err)
		}
		if first == "" {
			first = string(written)
		} else if first != string(written) {
			t.Errorf("%d workers learn another vocabulary", workers)
		}
		back, err := vocab.FromHF(dir)
		if err != nil {
			t.Fatal(err)
		}
		tokens := 0
		for _, line := range lines[:200] {
			ids, err := back.Encode(line, vocab.Options{})
			if err != nil {
				t.Fatal(err)
			}
			tokens += len(ids)
			if text, err := back.Decode(ids, vocab.DecodeOptions{}); err != nil || text != line {
				t.Fatalf("%q comes back as %q, %v", line, text, err)
			}
		}
		if size := len(strings.Join(lines[:200], "")); tokens*2 > size {
			t.Errorf("%d tokens for %d bytes", tokens, size)
		}
	}
}

func TestTrainUnigram_BadInput(t *testing.T) {
	texts := slices.Values([]string{"a quick brown fox", "a lazy dog"})
	for name, train := range map[string]func() error{
		"size": func() error { _, err := vocab.TrainUnigram(t.Context(), texts, 5, vocab.TrainOptions{}); return err },
		"special": func() error {
			_, err := vocab.TrainUnigram(t.Context(), texts, 50, vocab.TrainOptions{Special: []string{"x", "x"}})
			return err
		},
		"not a special token": func() error {
			_, err := vocab.TrainUnigram(t.Context(), texts, 50, vocab.TrainOptions{BOS: "<s>"})
			return err
		},
	} {
		if err := train(); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := vocab.TrainUnigram(ended, texts, 50, vocab.TrainOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("ended training: %v", err)
	}
}
