package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/corpus"
	"github.com/lamina-mesh/lamina/pkg/vocab"
	"github.com/lamina-mesh/lamina/services/tokenizer"
)

func writeText(t *testing.T, path, text string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestDataBuild_HasTheIdsOfTokenize builds token data of short and long documents and compares them with what
// the vocabulary gives for each.
func TestDataBuild_HasTheIdsOfTokenize(t *testing.T) {
	book, err := os.ReadFile(sharedPath(t, "data", "war-and-peace.txt"))
	if err != nil {
		t.Fatal(err)
	}
	in, out := t.TempDir(), filepath.Join(t.TempDir(), "tokens")
	long := string(book[:1_500_000])
	writeText(t, filepath.Join(in, "a.txt"), long)
	documents := []string{long}
	var lines strings.Builder
	for i, line := range strings.Split(string(book[:40_000]), "\n") {
		if text := strings.TrimSpace(line); text != "" {
			fmt.Fprintf(&lines, "{\"n\": %d, \"body\": %q}\n", i, text)
			documents = append(documents, text)
		}
	}
	writeText(t, filepath.Join(in, "b.jsonl"), lines.String())
	model := "../../models/lamina-tolstoy"
	index := verbJSON[corpus.Index](t, "", "data", "build", "--tokenizer", model, "--out", out, "--field", "body",
		"--shard-tokens", "20000", "--format", "json", in)
	v, err := tokenizer.LoadVocab(model)
	if err != nil {
		t.Fatal(err)
	}
	d, err := corpus.Open(out)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := d.Verify(); err != nil {
		t.Error(err)
	}
	if index.Documents != int64(len(documents)) ||
		index.Vocabulary.SHA256 != corpus.DigestVocabulary(v.Size(), v.Piece) {
		t.Errorf("%d documents, want %d; vocabulary %s", index.Documents, len(documents), index.Vocabulary.SHA256)
	}
	eos, _ := v.EOS()
	for i, text := range documents {
		want, err := v.Encode(text, vocab.Options{})
		if err != nil {
			t.Fatal(err)
		}
		s, from, to := d.Document(int64(i))
		got, err := s.Read(nil, from, to)
		if err != nil {
			t.Fatal(err)
		}
		if fmt.Sprint(got) != fmt.Sprint(append(want, eos)) {
			t.Fatalf("document %d has %d ids, want %d", i, len(got), len(want)+1)
		}
	}
	text := verbOK(t, "", "inspect", out, "--digest")
	for _, want := range []string{"token data", index.Shards[0].File, fmt.Sprint(index.Tokens)} {
		if !strings.Contains(text, want) {
			t.Errorf("inspect lacks %q:\n%s", want, text)
		}
	}
	if got := verbJSON[corpus.Index](t, "", "inspect", out, "--format", "json"); got.Tokens != index.Tokens {
		t.Errorf("inspect says %d tokens, want %d", got.Tokens, index.Tokens)
	}
	damaged, err := os.ReadFile(filepath.Join(out, index.Shards[0].File))
	if err != nil {
		t.Fatal(err)
	}
	damaged[1000] ^= 1
	writeText(t, filepath.Join(out, index.Shards[0].File), string(damaged))
	verbFails(t, 1, "digest", "", "inspect", out, "--digest")
}

func TestDataBuild_Errors(t *testing.T) {
	model, dir := "../../models/lamina-tolstoy", t.TempDir()
	bad := writeText(t, filepath.Join(dir, "bad.jsonl"), "{\"text\": \"x\"}\n{\"x\": 1}\n")
	out := filepath.Join(dir, "out")
	verbFails(t, 2, "bad.jsonl line 2", "", "data", "build", "-t", model, "-o", out, bad)
	verbFails(t, 2, "no token", "", "data", "build", "-t", model, "-o", out, "--end", "<|nothing|>", bad)
	text := verbOK(t, "", "data", "build", "-t", model, "-o", out, "--skip-bad", bad)
	if !strings.Contains(text, "1 without field") {
		t.Errorf("the summary lacks what was skipped:\n%s", text)
	}
	verbFails(t, 1, "holds token data already", "", "data", "build", "-t", model, "-o", out, "--skip-bad", bad)
}
