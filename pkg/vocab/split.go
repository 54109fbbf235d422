package vocab

import "strings"

// pretokenizer cuts text into pieces. first says that the text stands at the
// very start of what is being encoded.
type pretokenizer func(text string, first bool, emit func(piece string, first bool) error) error

// whole leaves the text in one piece.
func whole(text string, first bool, emit func(string, bool) error) error {
	if text == "" {
		return nil
	}
	return emit(text, first)
}

// sequence applies pre-tokenizers one after the other, each to the pieces of
// the one before.
func sequence(steps ...pretokenizer) pretokenizer {
	switch len(steps) {
	case 0:
		return whole
	case 1:
		return steps[0]
	}
	head, tail := steps[0], sequence(steps[1:]...)
	return func(text string, first bool, emit func(string, bool) error) error {
		return head(text, first, func(piece string, first bool) error {
			return tail(piece, first, emit)
		})
	}
}

// styled cuts by a style.
func styled(st style) pretokenizer {
	return func(text string, first bool, emit func(string, bool) error) error {
		for i := 0; i < len(text); {
			e := st.next(text, i)
			if err := emit(text[i:e], first && i == 0); err != nil {
				return err
			}
			i = e
		}
		return nil
	}
}

// isolate makes each match, and each stretch between matches, a piece. match
// returns the end of a match that begins at s[i], or i.
func isolate(match func(s string, i int) int) pretokenizer {
	return func(text string, first bool, emit func(string, bool) error) error {
		gap := 0
		for i := 0; i < len(text); {
			e := match(text, i)
			if e == i {
				_, n := classAt(text, i)
				i += n
				continue
			}
			if gap < i {
				if err := emit(text[gap:i], first && gap == 0); err != nil {
					return err
				}
			}
			if err := emit(text[i:e], first && i == 0); err != nil {
				return err
			}
			i, gap = e, e
		}
		if gap < len(text) {
			return emit(text[gap:], first && gap == 0)
		}
		return nil
	}
}

// runs matches up to limit (0: any number of) characters of a class or among
// the given ones, after one optional character of the class lead.
func runs(set class, among string, lead class, limit int) func(string, int) int {
	return func(s string, i int) int {
		b := i
		if lead != 0 {
			if c, n := classAt(s, i); c&lead != 0 {
				b += n
			}
		}
		e := b
		for k := 0; limit == 0 || k < limit; k++ {
			c, n := classAt(s, e)
			if n == 0 || c&set == 0 && (among == "" || !strings.Contains(among, s[e:e+n])) {
				break
			}
			e += n
		}
		if e == b {
			return i
		}
		return e
	}
}

// between matches characters in the given ranges of code points.
func between(ranges ...[2]rune) func(string, int) int {
	return func(s string, i int) int {
		for e := i; ; {
			r, n := runeAt(s, e)
			in := false
			for _, g := range ranges {
				in = in || n > 0 && r >= g[0] && r <= g[1]
			}
			if !in {
				return e
			}
			e += n
		}
	}
}

// threeDigits matches exactly three ASCII digits.
func threeDigits(s string, i int) int {
	if i+3 > len(s) {
		return i
	}
	for k := i; k < i+3; k++ {
		if s[k] < '0' || s[k] > '9' {
			return i
		}
	}
	return i + 3
}

// ggufPretokenizer returns the pre-tokenizer that GGUF names for byte-level BPE.
func ggufPretokenizer(name string) (pretokenizer, bool) {
	digits := isolate(runs(classNumber, "", 0, 1))
	switch name {
	case "", "default":
		return sequence(isolate(runs(classPunct, "$+<=>^~|", 0, 0)), styled(styleGPT2()),
			isolate(runs(classNumber, "", 0, 0)), isolate(threeDigits)), true
	case "gpt-2", "gpt2", "phi-2", "mpt", "olmo", "jais", "trillion", "roberta-bpe", "jina-es", "jina-de", "jina-v2-es",
		"jina-v2-de", "gigachat", "a.x-4.0", "exaone4", "granite-docling":
		return styled(styleGPT2()), true
	case "smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b":
		return sequence(digits, styled(styleGPT2())), true
	case "llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "dbrx", "smaug-bpe",
		"chatglm-bpe", "glm4":
		return styled(styleLlama3()), true
	case "qwen2", "stablelm2", "deepseek-r1-qwen", "kormo", "megrez":
		return styled(styleQwen2()), true
	case "qwen35":
		return styled(styleQwen35()), true
	case "gpt-4o", "llama4", "kanana2", "o200k":
		return styled(styleO200k()), true
	case "tekken":
		return styled(styleTekken()), true
	case "falcon":
		return sequence(isolate(runs(classPunct, "$+<=>^~|`", 0, 0)), styled(styleGPT2()), isolate(threeDigits)), true
	case "deepseek-coder":
		return sequence(
			isolate(runs(classNewline, "", 0, 1)),
			isolate(runs(classLetter, "", classSpace, 0)),
			isolate(runs(classPunct, "", classSpace, 0)),
			isolate(between([2]rune{0x4e00, 0x9fa5}, [2]rune{0x0800, 0x4e00}, [2]rune{0xac00, 0xd7ff})),
			digits), true
	default:
		return nil, false
	}
}

// mergesWholeWords says that a pre-tokenizer's piece that is itself a token is
// that token, whatever the merges make of it.
func mergesWholeWords(name string) bool {
	switch name {
	case "llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "tekken":
		return true
	}
	return false
}
