package grammar_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/grammar"
	"github.com/lamina-mesh/lamina/pkg/vocab"
)

// qwenVocabulary loads the vocabulary of the shared vectors.
func qwenVocabulary(t testing.TB) (*grammar.Vocabulary, *vocab.Vocab) {
	t.Helper()
	v, err := vocab.FromHF(shared(t, "vectors/tokenizer/qwen3-hf"))
	if err != nil {
		t.Fatal(err)
	}
	tokens := make([][]byte, v.Size())
	for id := range tokens {
		text, kind, err := v.Token(int32(id))
		if err != nil {
			t.Fatal(err)
		}
		if kind == vocab.KindNormal {
			tokens[id] = text
		}
	}
	g, err := grammar.NewVocabulary(tokens, v.EOG()...)
	if err != nil {
		t.Fatal(err)
	}
	return g, v
}

type benchSchema struct {
	Name, Text string
	Schema     json.RawMessage
}

func TestMask_BenchSchemas(t *testing.T) {
	g, v := qwenVocabulary(t)
	for _, c := range readJSON[[]benchSchema](t, shared(t, "vectors/grammar/bench-schemas.json")) {
		made, err := grammar.Schema(c.Schema)
		if err != nil {
			t.Fatal(err)
		}
		compiled, err := grammar.Compile(made, g)
		if err != nil {
			t.Fatal(err)
		}
		ids, err := v.Encode(c.Text, vocab.Options{})
		if err != nil {
			t.Fatal(err)
		}
		m := compiled.NewMatcher()
		mask := make([]uint64, g.Words())
		for i, id := range ids {
			if err := m.Mask(mask); err != nil {
				t.Fatal(err)
			}
			if !has(mask, id) {
				t.Fatalf("%s: token %d of %d is masked", c.Name, i, len(ids))
			}
			if err := m.Accept(id); err != nil {
				t.Fatal(err)
			}
		}
		if err := m.Mask(mask); err != nil || !m.CanEnd() || !has(mask, v.EOG()[0]) {
			t.Errorf("%s: not at the end", c.Name)
		}
	}
}

func has(mask []uint64, id int32) bool { return mask[id>>6]>>(id&63)&1 == 1 }

// randomVocabulary returns tokens of bytes that the grammars of tests read, some of them parts
// of characters.
func randomVocabulary(t testing.TB, r *rand.Rand, size int) ([][]byte, *grammar.Vocabulary) {
	t.Helper()
	parts := []string{"a", "b", "0", "1", "é", "è", "\xc3", "\xa9", "\"", "\\", "u", "{", "}", "[", "]", ":", ",", " ",
		"-", ".", "e", "true", "null", "\n", "\u65e5", "\xe6", "\\u00", "@", "x"}
	tokens := [][]byte{nil, []byte("</s>")}
	for b := range 256 {
		tokens = append(tokens, []byte{byte(b)})
	}
	for _, p := range append(parts, "1x.", "1x.:", "1x.,", "1x.:a", "a-:", "a-:0", "a-,", "bx:", "bx,") {
		tokens = append(tokens, []byte(p))
	}
	for len(tokens) < size {
		text := ""
		for range 1 + r.IntN(6) {
			text += parts[r.IntN(len(parts))]
		}
		if r.IntN(2) == 0 {
			text = ""
			for range 1 + r.IntN(12) {
				text += string("abx01"[r.IntN(5)])
			}
			text += parts[r.IntN(len(parts))]
		}
		tokens = append(tokens, []byte(text))
	}
	v, err := grammar.NewVocabulary(tokens, 1)
	if err != nil {
		t.Fatal(err)
	}
	return tokens, v
}

// TestMask_AgreesWithBytes follows random tokens and compares every mask with a matcher without
// a vocabulary that tries each token byte by byte.
func TestMask_AgreesWithBytes(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	tokens, v := randomVocabulary(t, r, 12000)
	mask := make([]uint64, v.Words())
	for _, c := range []struct{ kind, source string }{
		{"unique", `{"type":"array","items":{"type":"string"},"uniqueItems":true}`},
		{"unique", `{"type":"array","items":{"type":"integer","maximum":111},"uniqueItems":true,"maxItems":6}`},
		{"unique", `{"type":"array","items":{"enum":["a","ab","abx",1,10]},"uniqueItems":true,"minItems":2}`},
		{"unique", `{"type":"array","items":{"type":"string","pattern":"^[ab]{0,2}$"},"uniqueItems":true,"minItems":6}`},
		{"unique", `{"type":"object","properties":{"a":{"type":"array","items":{"type":"boolean"},"uniqueItems":true,"minItems":2}},"required":["a"],"additionalProperties":false}`},
		{"schema", `true`},
		{"schema", `{"type":"object"}`},
		{"schema", `{"type":"string","maxLength":20}`},
		{"schema", `{"type":"string","minLength":3,"maxLength":5}`},
		{"schema", `{"type":"array","items":{"type":"string","pattern":"^[abx]{2,9}(-[ab01]+)?$"}}`},
		{"schema", `{"type":"object","properties":{"a":{"type":"string","format":"email"},"abx":{"type":"string","minLength":2}},"required":["a"]}`},
		{"schema", `{"type":"array","items":{"type":"object","properties":{"abx":{"type":"null"},"b0":{},"":{"type":"string","maxLength":2}}}}`},
		{"gbnf", "root ::= (key \":\" key \",\")*\nkey ::= \"0\" (\"abx.\" | \"a-\" | \"bx\" | \"1x.:\" | [^ab1] [^.]* \".\")"},
		{"schema", `{"type":"object","patternProperties":{"^a":{"type":"number"}},"additionalProperties":{"type":"string","maxLength":3}}`},
		{"schema", `{"$defs":{"n":{"type":"object","properties":{"a":{"type":"string"},"b":{"type":"array","items":{"$ref":"#/$defs/n"}}},"required":["a","b"],"additionalProperties":false}},"$ref":"#/$defs/n"}`},
		{"schema", `{"type":"array","items":{"enum":["a","ab","abx",1,10,100]},"minItems":2,"maxItems":4}`},
		{"gbnf", "root ::= word (\",\" word)*\nword ::= [a-zé日]+ | \"\\\"\" any \"\\\"\"\nany ::= [^\"]*"},
		{"gbnf", "root ::= (x \" \")* [0-9]+\nx ::= w | w \"-\" x\nw ::= [ab]+ | \"(\" x \")\""},
		{"gbnf", "root ::= line+\nline ::= [^\\n]{0,7} \"\\n\""},
		{"regex", `[ab]{1,30}x|[^x]+1`},
		{"regex", `(a|ab|abx)*0?`},
		{"regex", `.*`},
		{"regex", `[abxé]*è[abè]*`},
	} {
		var g *grammar.Grammar
		var err error
		switch c.kind {
		case "schema", "unique":
			g, err = grammar.Schema([]byte(c.source))
		case "gbnf":
			g, err = grammar.GBNF(c.source)
		default:
			g, err = grammar.Regex(c.source)
		}
		if err != nil {
			t.Fatal(err)
		}
		fast, err := grammar.Compile(g, v)
		if err != nil {
			t.Fatal(err)
		}
		slow, err := grammar.Compile(g, nil)
		if err != nil {
			t.Fatal(err)
		}
		walks := 6
		if testing.Short() {
			walks = 2
		}
		for range walks {
			m, plain := fast.NewMatcher(), slow.NewMatcher()
			for step := range 12 {
				if err := m.Mask(mask); err != nil {
					t.Fatal(err)
				}
				var can []int32
				for id, text := range tokens {
					want := len(text) > 0 && id != 1 && plain.AcceptBytes(text) == nil
					if want {
						can = append(can, int32(id))
						if err := plain.Rollback(1); err != nil {
							t.Fatal(err)
						}
					}
					if id == 1 {
						want = plain.CanEnd()
					}
					got := has(mask, int32(id))
					if c.kind == "unique" && want && !got && bytes.ContainsRune(text, ',') {
						continue // two items in a token are not compared, and not allowed
					}
					if got != want {
						t.Fatalf("%s %s, step %d, token %q: %t, want %t", c.kind, c.source, step, text, got, want)
					}
				}
				if len(can) == 0 {
					break
				}
				id := can[r.IntN(len(can))]
				if err := errors.Join(m.Accept(id), plain.AcceptBytes(tokens[id])); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}
