package vocab_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/vocab"
	"github.com/lamina-mesh/lamina/pkg/weights"
)

// sameIDs compares what two vocabularies make of the cases of a vector file.
func sameIDs(t *testing.T, name, cases string, got, want *vocab.Vocab) {
	t.Helper()
	compared := 0
	for _, text := range strings.Split(cases, "\n__ggml_vocab_test__\n") {
		a, errA := got.Encode(text, vocab.Options{BOS: true, Special: true})
		b, errB := want.Encode(text, vocab.Options{BOS: true, Special: true})
		if (errA == nil) != (errB == nil) || !slices.Equal(a, b) {
			t.Errorf("%s: %q is %v (%v), want %v (%v)", name, text, a, errA, b, errB)
			return
		}
		compared++
	}
	if compared < 20 {
		t.Errorf("%s: only %d texts were compared", name, compared)
	}
}

// TestWriteGGUFAsHF_EncodesAlike writes the vocabularies of GGUF files as tokenizer.json and compares ids.
func TestWriteGGUFAsHF_EncodesAlike(t *testing.T) {
	for _, name := range []string{"gpt-2", "llama-spm", "qwen2", "starcoder"} {
		base := shared(t, "vectors", "tokenizer", "ggml-vocab-"+name+".gguf")
		g, err := weights.OpenGGUF(base)
		if err != nil {
			t.Fatal(err)
		}
		defer g.Close()
		want, err := vocab.FromGGUF(g.Meta())
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		if err := vocab.WriteGGUFAsHF(g.Meta(), dir); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got, err := vocab.FromHF(dir)
		if err != nil {
			t.Fatal(err)
		}
		cases, err := os.ReadFile(base + ".inp")
		if err != nil {
			t.Fatal(err)
		}
		sameIDs(t, name, string(cases), got, want)
		a, okA := got.EOS()
		b, okB := want.EOS()
		if a != b || okA != okB || got.AddBOS() != want.AddBOS() {
			t.Errorf("%s: end id %d, add BOS %v, want %d, %v", name, a, got.AddBOS(), b, want.AddBOS())
		}
	}
}

// TestVocab_GGUFEncodesAlike describes tokenizer.json files as GGUF metadata and compares ids.
func TestVocab_GGUFEncodesAlike(t *testing.T) {
	cases, err := os.ReadFile(shared(t, "vectors", "tokenizer", "ggml-vocab-gpt-2.gguf.inp"))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		dir, pre string
		size     int
	}{
		"qwen3": {shared(t, "vectors", "tokenizer", "qwen3-hf"), "qwen2", 151936},
		"tiny":  {shared(t, "models", "tiny", "qwen2"), "gpt-2", 320},
	} {
		want, err := vocab.FromHF(c.dir)
		if err != nil {
			t.Fatal(err)
		}
		fields, err := want.GGUF(c.size)
		if err != nil {
			t.Fatal(err)
		}
		got, err := vocab.FromGGUF(encoded(t, fields))
		if err != nil {
			t.Fatal(err)
		}
		if got.Size() != c.size {
			t.Errorf("%s: %d tokens, want %d", name, got.Size(), c.size)
		}
		for _, f := range fields {
			if f.Key == "tokenizer.ggml.pre" && f.Value != c.pre {
				t.Errorf("%s: pre-tokenizer %v, want %s", name, f.Value, c.pre)
			}
		}
		if name == "qwen3" {
			sameIDs(t, name, string(cases), got, want)
		}
		missing := slices.ContainsFunc(want.EOG(), func(id int32) bool { return !slices.Contains(got.EOG(), id) })
		if got.ChatTemplate() != want.ChatTemplate() || missing { // GGUF adds ids that llama.cpp ends at, too
			t.Errorf("%s: ends %v, want %v", name, got.EOG(), want.EOG())
		}
	}
}

// encoded writes metadata to a GGUF file and returns what is read back.
func encoded(t *testing.T, fields []vocab.GGUFField) weights.Meta {
	t.Helper()
	var all []weights.Field
	for _, f := range fields {
		all = append(all, weights.Field{Key: f.Key, Value: f.Value})
	}
	var b strings.Builder
	if err := weights.StreamGGUF(&b, all, nil); err != nil {
		t.Fatal(err)
	}
	g, err := weights.ParseGGUF("test", []byte(b.String()))
	if err != nil {
		t.Fatal(err)
	}
	return g.Meta()
}

func TestVocab_GGUFRefusesWhatItCannotExpress(t *testing.T) {
	g, err := weights.OpenGGUF(shared(t, "vectors", "tokenizer", "ggml-vocab-gpt-2.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	v, err := vocab.FromGGUF(g.Meta())
	if err != nil {
		t.Fatal(err)
	}
	var format *vocab.FormatError
	if _, err := v.GGUF(v.Size()); !errors.As(err, &format) || !format.Unsupported {
		t.Errorf("a vocabulary from GGUF: %v", err)
	}
	tiny, err := vocab.FromHF(shared(t, "models", "tiny", "llama"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tiny.GGUF(tiny.Size() - 1); !errors.As(err, &format) {
		t.Errorf("a model of fewer ids: %v", err)
	}
	dir := t.TempDir()
	words := `{"model":{"type":"WordPiece","unk_token":"[UNK]","vocab":{"[UNK]":0,"a":1}}}`
	if err := os.WriteFile(filepath.Join(dir, "tokenizer.json"), []byte(words), 0o600); err != nil {
		t.Fatal(err)
	}
	if v, err = vocab.FromHF(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := v.GGUF(2); !errors.As(err, &format) || !format.Unsupported {
		t.Errorf("WordPiece: %v", err)
	}
}
