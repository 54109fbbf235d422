package vocab

import (
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/vocab/pattern"
)

// patternsByStyle are the patterns that styles stand for, as authors spell them.
func patternsByStyle() []string {
	const (
		fold  = `(?i:'s|'t|'re|'ve|'m|'ll|'d)`
		lead  = `[^\r\n\p{L}\p{N}]?`
		tails = `|\s*[\r\n]+|\s+(?!\S)|\s+`
	)
	cased := func(suffix, upper, lower string) string {
		return lead + upper + "*" + lower + "+" + suffix + "|" + lead + upper + "+" + lower + "*" + suffix
	}
	return []string{
		`'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`,
		`'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`,
		fold + `|` + lead + `\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*` + tails,
		fold + `|` + lead + `\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*` + tails,
		fold + `|` + lead + `[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*` + tails,
		`'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s`,
		cased(fold+"?", upperSet, lowerSet) + `|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*` + tails,
		cased("", upperSet, lowerSet) + `|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*` + tails,
		`[\p{Han}]+|` + cased(fold+"?", upperHan, lowerHan) + `|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*` + tails,
		asciiSet + `|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*` + tails,
		`\p{N}`,
		`\p{N}+`,
		`\p{N}{1,3}`,
		`\d{1,3}`,
		`[\r\n]`,
		`\s?\p{L}+`,
		`\s?\p{P}+`,
		`[0-9][0-9][0-9]`,
		`[一-龥぀-ゟ゠-ヿ]+`,
		`[一-龥ࠀ-一가-퟿]+`,
	}
}

// fragments are what pre-tokenizers tell apart.
func fragments() []string {
	return []string{" ", " ", "  ", "\n", "\r\n", "\r", "\t", "a", "b", "Z", "QX", "ß", "ʰ", "ǅ", "漢", "字", "ひ", "カ",
		"한", "\u0301", "\u093e",
		"1", "22", "333", "½", "٣", "'s", "'LL", "'ſ", "'", "'re", "'d", "!", "/", "//", "…", "€", "🦊", "\u00a0",
		"\u0000", "\u200d", "\u3000", "_", "-", "$", "é", "Ж", "ж"}
}

func randomText(r *rand.Rand) string {
	parts := fragments()
	var b strings.Builder
	for range r.IntN(24) {
		b.WriteString(parts[r.IntN(len(parts))])
	}
	return b.String()
}

func TestKnownPattern_ScannersAgreeWithTheEngine(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	for _, src := range patternsByStyle() {
		sc := knownPattern(src)
		if sc == nil {
			t.Errorf("no scanner for %s", src)
			continue
		}
		p, err := pattern.Compile(src)
		if err != nil {
			t.Fatal(err)
		}
		collect := func(s step, text string) (out []string) {
			if err := cutAll([]step{s}, piece{text: text}, func(p piece) error {
				out = append(out, p.text)
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			return out
		}
		for range 4000 {
			text := randomText(r)
			got := collect(scan{sc}, text)
			want := collect(&splitter{find: findPattern(p), behavior: isolated}, text)
			if !slices.Equal(got, want) {
				t.Errorf("%s on %q:\n%q, want\n%q", src, text, got, want)
				break
			}
			if strings.Join(got, "") != text {
				t.Fatalf("%q became %q", text, got)
			}
		}
	}
}

func TestKnownPattern_OthersAreLeftToTheEngine(t *testing.T) {
	for _, src := range []string{patternJais2, patternSeedCoder, patternExaoneMoe, patternBloom, `a|b`, `\s+`, ``,
		` ?\p{L}+|\s+`,
		`[^\r\n\p{L}\p{N}]?\p{L}+|(?i:'s|'t|'re|'ve|'m|'ll|'d)|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`} {
		if knownPattern(src) != nil {
			t.Errorf("%s has a scanner", src)
		}
	}
}

// preTokenizers are the names that llama.cpp reads in tokenizer.ggml.pre.
const preTokenizers = ` default minicpm5 llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano
	deepseek-llm deepseek-coder deepseek-v3 spark2_5 youtu falcon mpt starcoder gpt-2 phi-2 jina-es jina-de
	gigachat jina-v2-es jina-v2-de a.x-4.0 mellum modern-bert jais-2 gemma4 granite-embed-multi-311m
	sarvam-moe jina-v1-en jina-v2-code roberta-bpe refact command-r qwen2 deepseek-r1-qwen kormo f2llmv2
	qwen35 stablelm2 olmo dbrx smaug-bpe poro-chat glm4 chatglm-bpe viking jais tekken smollm codeshell bloom
	gpt3-finnish exaone exaone4 exaone-moe chameleon minerva-7b megrez gpt-4o llama4 kanana2 talkie
	granite-embed-multi-97m tiny_aya cohere2moe superbpe trillion granite-docling bailingmoe bailingmoe2
	llada-moe seed-coder hunyuan hunyuan-dense hy_v4 joyai-llm kimi-k2 ufakzeka grok-2 afmoe laguna
	minimax-m2 solar-open mellum2`

func TestGGUFPreTokenizer_EveryNameCovers(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 8))
	for _, name := range append(strings.Fields(preTokenizers), "") {
		c, err := ggufPreTokenizer(name)
		if err != nil {
			t.Errorf("%s is not known", name)
		}
		for range 100 {
			text := randomText(r)
			var got strings.Builder
			if err := cutAll(c.steps, piece{text: text}, func(p piece) error {
				if p.text == "" {
					t.Errorf("%s: empty piece of %q", name, text)
				}
				got.WriteString(p.text)
				return nil
			}); err != nil || got.String() != text {
				t.Fatalf("%s: %q came back as %q, %v", name, text, got.String(), err)
			}
		}
	}
	for _, name := range []string{"nope", "whitespace"} { // jina-embeddings-v2-base-zh's is refused by name
		var format *FormatError
		if _, err := ggufPreTokenizer(name); !errors.As(err, &format) || !format.Unsupported ||
			!strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
