package grammar_test

import (
	"errors"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/grammar"
)

// explore compiles a grammar and follows random texts, so that the fuzzers reach the whole
// package. It accepts typed errors. Otherwise the text of a completion must end the text, and
// cloning or going back must change nothing.
func explore(t *testing.T, v *grammar.Vocabulary, g *grammar.Grammar, err error) {
	t.Helper()
	typed := func(err error) {
		var coder fault.Coder
		if !errors.As(err, &coder) || coder.FaultCode() != fault.Invalid {
			t.Fatalf("untyped error: %v", err)
		}
	}
	if err != nil {
		typed(err)
		return
	}
	c, err := grammar.Compile(g, v)
	if err != nil {
		typed(err)
		return
	}
	m := c.NewMatcher()
	mask := make([]uint64, v.Words())
	for step := range 6 {
		if err := m.Mask(mask); err != nil {
			typed(err)
			return
		}
		id := int32(-1)
		for i := range int32(v.Size()) {
			at := (i*31 + int32(step)*7) % int32(v.Size())
			if has(mask, at) && at != 1 {
				id = at
				break
			}
		}
		if id < 0 {
			break
		}
		if err := m.Accept(id); err != nil {
			t.Fatalf("token %q is not masked: %v", v.Token(id), err)
		}
	}
	end, err := m.Completion()
	if err != nil {
		typed(err)
		return
	}
	other := m.Clone()
	if err := other.AcceptBytes(end); err != nil || !other.CanEnd() {
		t.Fatalf("completion %q: %v", end, err)
	}
	if err := m.Rollback(m.Steps()); err != nil {
		t.Fatal(err)
	}
	m.Forced()
}

func fuzzVocabulary(f *testing.F) *grammar.Vocabulary {
	f.Helper()
	tokens := [][]byte{nil, []byte("</s>")}
	for b := range 256 {
		tokens = append(tokens, []byte{byte(b)})
	}
	for _, text := range []string{"ab", `":`, `",`, `"}`, "true", "null", "12", " the", "é", "\n\n", "]]"} {
		tokens = append(tokens, []byte(text))
	}
	v, err := grammar.NewVocabulary(tokens, 1)
	if err != nil {
		f.Fatal(err)
	}
	return v
}

func FuzzGBNF(f *testing.F) {
	v := fuzzVocabulary(f)
	for _, source := range []string{
		"root ::= \"a\"", "root ::= a*\na ::= [^x-z\\]]{2,5} | \"(\" root \")\" # note",
		"root ::= . | \"\\u00e9\\x41\"\n", "root ::= (\"a\"? root?)*",
		"root ::= (\n\"a\" |\r\n \"b\"){0,3}", "root ::= x\nx ::= x \"a\" | \"\"",
	} {
		f.Add(source)
	}
	f.Fuzz(func(t *testing.T, source string) {
		g, err := grammar.GBNF(source)
		explore(t, v, g, err)
	})
}

func FuzzRegex(f *testing.F) {
	v := fuzzVocabulary(f)
	for _, source := range []string{`a(b|c)*[^d-f]{2,3}$`, `(?i)\bx\B|\p{Lu}`, `^(^a|b$)\d+\.?`,
		`\x41\u{1F600}(?P<n>z)`, `[[:alpha:]-]+?`, `(a*)*`} {
		f.Add(source)
	}
	f.Fuzz(func(t *testing.T, source string) {
		g, err := grammar.Regex(source)
		explore(t, v, g, err)
	})
}

func FuzzSchema(f *testing.F) {
	v := fuzzVocabulary(f)
	for _, source := range []string{
		`{"type":"object","properties":{"a":{"type":"integer","minimum":3}},"required":["a"],"additionalProperties":{"format":"date"}}`,
		`{"$defs":{"x":{"items":{"$ref":"#/$defs/x"},"type":"array"}},"$ref":"#/$defs/x"}`,
		`{"oneOf":[{"const":1},{"enum":["a",{"b":[null]}]},{"not":{"type":"string"}}]}`,
		`{"type":"array","prefixItems":[true],"contains":{"multipleOf":0.5},"uniqueItems":true,"maxItems":3}`,
		`{"patternProperties":{"^x":false},"propertyNames":{"maxLength":2},"if":{"required":["x"]},"then":{"minProperties":1}}`,
		`{"type":["string","null"],"pattern":"^[a-c]+$","minLength":2,"maxLength":9}`,
		`{"$schema":"http://json-schema.org/draft-07/schema#","items":[{}],"additionalItems":false,"dependencies":{"a":["b"]}}`,
	} {
		f.Add(source)
	}
	f.Fuzz(func(t *testing.T, source string) {
		g, err := grammar.Schema([]byte(source))
		explore(t, v, g, err)
	})
}

func FuzzTags(f *testing.F) {
	v := fuzzVocabulary(f)
	f.Add("<a", "<a>", "[0-9]+", "</a>", uint8(1))
	f.Add("ab", "abab", "x*", "", uint8(6))
	f.Fuzz(func(t *testing.T, trigger, begin, body, end string, flags uint8) {
		inner, err := grammar.Regex(body)
		if err != nil {
			return
		}
		o := grammar.TagOptions{Required: flags&1 != 0, Single: flags&2 != 0, Only: flags&4 != 0, Separator: end}
		if flags&8 != 0 {
			o.Triggers = []string{trigger}
		}
		g, err := grammar.Tags([]grammar.Tag{{Begin: begin, Body: inner, End: end},
			{Begin: trigger + "!", Body: inner, End: end}}, o)
		explore(t, v, g, err)
	})
}
