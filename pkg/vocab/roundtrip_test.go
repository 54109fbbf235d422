package vocab_test

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"unicode/utf8"

	"github.com/lamina-mesh/lamina/pkg/vocab"
)

// TestVocab_ByteLevelRoundTrip encodes and decodes texts and random strings, a million of them
// if LAMINA_SLOW is set.
func TestVocab_ByteLevelRoundTrip(t *testing.T) {
	vocabs := map[string]*vocab.Vocab{}
	for _, name := range []string{"gpt-2", "qwen2", "starcoder", "deepseek-coder"} {
		v, err := vocab.FromGGUF(readMeta(t, shared(t, "vectors/tokenizer", "ggml-vocab-"+name+".gguf")))
		if err != nil {
			t.Fatal(err)
		}
		vocabs[name] = v
	}
	var err error
	if vocabs["qwen3"], err = vocab.FromHF(shared(t, "vectors/tokenizer/qwen3-hf")); err != nil {
		t.Fatal(err)
	}
	texts, err := filepath.Glob(filepath.Join(shared(t, "data"), "*.txt"))
	if err != nil || len(texts) == 0 {
		t.Fatalf("%d texts, %v", len(texts), err)
	}
	// StarCoder's lacks bytes that only unassigned characters have.
	lacks := map[string]bool{"qwen3": true, "starcoder": true}
	slow, strings := os.Getenv("LAMINA_SLOW") != "", 2_000
	if slow {
		strings = 1_000_000 / len(vocabs)
	}
	for name, v := range vocabs {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			check := func(text string) {
				t.Helper()
				ids, err := v.Encode(text, vocab.Options{})
				if err != nil {
					t.Fatal(err)
				}
				if back, err := v.Decode(ids, vocab.DecodeOptions{}); err != nil || back != text {
					t.Fatalf("%.60q comes back as %.60q, %v", text, back, err)
				}
			}
			for _, path := range texts {
				text, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				if !slow {
					text = text[:min(len(text), 300_000)]
				}
				for len(text) > 0 && !utf8.Valid(text) {
					text = text[:len(text)-1]
				}
				// Some tokenizers compose characters first: a text in that form comes back.
				if name == "qwen3" {
					continue
				}
				check(string(text))
			}
			r := rand.New(rand.NewPCG(8, uint64(len(name))))
			for range strings {
				check(randomText(r, !lacks[name]))
			}
		})
	}
}

// randomText returns random characters of a few scripts, or of all of Unicode.
func randomText(r *rand.Rand, any bool) string {
	var out []rune
	for range r.IntN(40) {
		var c rune
		switch r.IntN(7) {
		case 0, 1:
			c = rune(r.IntN(128))
		case 2:
			c = []rune(" \n\t\r'’s1漢")[r.IntN(9)]
		case 3:
			c = 0x4e00 + rune(r.IntN(0x200))
		case 4:
			c = 0x400 + rune(r.IntN(0x100))
		case 5:
			c = 0x1f300 + rune(r.IntN(0x300))
		default:
			if c = rune(r.IntN(0x110000)); !any || c >= 0xd800 && c < 0xe000 {
				c = 'x'
			}
		}
		out = append(out, c)
	}
	return string(out)
}
