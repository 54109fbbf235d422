package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestVocabTrain_WritesWhatTokenizeReads(t *testing.T) {
	dir := t.TempDir()
	text := filepath.Join(dir, "text")
	if err := os.WriteFile(text, []byte(strings.Repeat("the quick brown fox jumps over the lazy dog\n", 20)),
		0o600); err != nil {
		t.Fatal(err)
	}
	for kind, size := range map[string]string{"bpe": "300", "unigram": "60"} {
		out := filepath.Join(dir, kind)
		verbOK(t, "", "vocab", "train", "--type", kind, "--size", size, "-f", text, "--out", out, "--special=<s>",
			"--bos=<s>")
		ids := verbOK(t, "the lazy fox", "tokenize", "-m", out, "--no-special")
		if n := strings.Count(ids, ","); n < 2 || n > 8 {
			t.Errorf("%s: %s", kind, ids)
		}
		if back := verbOK(t, ids, "tokenize", "-m", out, "--decode"); back != "the lazy fox" {
			t.Errorf("%s: comes back as %q", kind, back)
		}
	}
	verbFails(t, 2, "size 3", "", "vocab", "train", "--size", "3", "-f", text, "--out", dir)
	verbFails(t, 1, "read text", "", "vocab", "train", "--size", "300", "-f", filepath.Join(dir, "none"), "--out", dir)
}
