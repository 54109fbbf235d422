package tokenizer

import (
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/lamina-mesh/lamina/internal/fixtures"
	"github.com/lamina-mesh/lamina/pkg/vocab"
)

// vocabularies returns splitters for the vocabularies in the folder of test models.
func vocabularies(t testing.TB) map[string]*splitter {
	t.Helper()
	out := map[string]*splitter{}
	dir := fixtures.Path(t, "vectors/tokenizer")
	paths, err := filepath.Glob(filepath.Join(dir, "*.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range append(paths, filepath.Join(dir, "qwen3-hf")) {
		v, err := LoadVocab(path)
		if err != nil {
			t.Skipf("%s does not exist", path)
		}
		out[filepath.Base(path)] = newSplitter(v)
	}
	return out
}

// everySplit splits a text at every split point and compares the ids with those of the whole text.
func everySplit(t *testing.T, name string, c *splitter, text string, o vocab.Options) (splits int) {
	t.Helper()
	whole, err := c.v.EncodeSpans(text, o)
	if err != nil {
		return 0
	}
	for at := 1; at < len(text); at++ {
		if !utf8.RuneStart(text[at]) {
			continue
		}
		place, ok := c.here(text, at)
		if !ok {
			continue
		}
		left, ok, err := c.part(text[:at], split{}, place, o, true)
		if err != nil {
			t.Fatal(err)
		}
		if !ok || !c.joins(text[at:], place, o) {
			continue
		}
		splits++
		right, ok, err := c.part(text[at:], place, split{}, o, true)
		if err != nil || !ok {
			t.Fatalf("%s: %q does not join the text before %d: %v", name, text, at, err)
		}
		for i := range right.Spans {
			right.Spans[i][0], right.Spans[i][1] = right.Spans[i][0]+at, right.Spans[i][1]+at
		}
		if !slices.Equal(slices.Concat(left.IDs, right.IDs), whole.IDs) ||
			!slices.Equal(slices.Concat(left.Spans, right.Spans), whole.Spans) {
			t.Fatalf("%s: %q cut at %d is\n%v %v, whole\n%v", name, text, at, left, right, whole)
		}
	}
	return splits
}

func TestSplitter_EverySplitGivesTheSameIDs(t *testing.T) {
	words := []string{"the", " quick", " fox,", "\n", "\n\nBut", "\n\n  it's", " 12345", " é", "漢字", "한국", "\r\n", "  ",
		"'s", "\tx", "🦊", "e\u0301", "\u00a0", " \u3000a", "<|im_end|>", "<s>",
		"_a", "X", "camelCase", " //", "();\n", " --", "…", "ﬁ", "\u200d", "İ", "ა", " \u00ad", "7.5", "\n\u0301a",
		"A\n", "\nz ", " \u0301"}
	r := rand.New(rand.NewPCG(3, 4))
	for name, c := range vocabularies(t) {
		if !c.lines || !c.spaces {
			t.Errorf("%s: lines %v, spaces %v", name, c.lines, c.spaces)
		}
		splits := 0
		for range 60 {
			var b strings.Builder
			for range 1 + r.IntN(14) {
				b.WriteString(words[r.IntN(len(words))])
			}
			splits += everySplit(t, name, c, b.String(), vocab.Options{Special: r.IntN(2) == 0})
		}
		if splits < 20 {
			t.Errorf("%s: %d splits", name, splits)
		}
	}
}

func FuzzSplitter(f *testing.F) {
	f.Add("the quick\nbrown fox", false)
	f.Add("a b <|im_end|>\nc", true)
	all := vocabularies(f)
	f.Fuzz(func(t *testing.T, text string, special bool) {
		if len(text) > 300 || !utf8.ValidString(text) {
			return
		}
		for name, c := range all {
			everySplit(t, name, c, text, vocab.Options{Special: special})
		}
	})
}
