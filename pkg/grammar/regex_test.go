package grammar_test

import (
	"errors"
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/grammar"
)

func compileRegex(t testing.TB, source string) *grammar.Compiled {
	t.Helper()
	g, err := grammar.Regex(source)
	if err != nil {
		t.Fatalf("%s: %v", source, err)
	}
	c, err := grammar.Compile(g, nil)
	if err != nil {
		t.Fatalf("%s: %v", source, err)
	}
	return c
}

func TestRegex_Texts(t *testing.T) {
	for _, c := range []struct {
		source   string
		yes, not []string
	}{
		{`[A-Z]{3}-[0-9]{4}`, []string{"ABC-1234"}, []string{"ABC-123", "abc-1234", "ABC-12345"}},
		{`^a|b$`, []string{"a", "b"}, []string{"ab", ""}},
		{`(^a|x)b`, []string{"ab", "xb"}, []string{"b", "aab"}},
		{`a(^b)?c`, []string{"ac"}, []string{"abc"}},
		{`a$b|c`, []string{"c"}, []string{"ab", "a"}},
		{`\bfoo\b.*`, []string{"foo", "foo bar"}, []string{"foobar"}},
		{`a\Bb\B|x`, []string{"x"}, []string{"ab", "a"}},
		{`x*\B`, []string{""}, []string{"x"}},
		{`(?i)stra[sß]e`, []string{"STRASE", "straße"}, []string{"st"}},
		{`(?i:a)b`, []string{"Ab", "ab"}, []string{"AB"}},
		{`a.b`, []string{"a b", "aéb"}, []string{"a\nb", "ab", "a\u2028b"}},
		{`(?s)a.b`, []string{"a\nb"}, []string{"ab"}},
		{`\d+\.\d{2,}`, []string{"1.25"}, []string{"1.2", "٣.25"}},
		{`[^\s\d]+`, []string{"é-x"}, []string{"a b", "1", "\u00a0"}},
		{`[\w-]+@[\w.-]+`, []string{"a-b@c.d"}, []string{"@c"}},
		{`[a\]\-^]+`, []string{"a]-^"}, []string{"b"}},
		{`\p{Lu}\p{Greek}\P{L}`, []string{"Éα1"}, []string{"éα1", "Éa1"}},
		{`[[:alpha:]_]+`, []string{"ab_"}, []string{"a1"}},
		{`\x41\u00e9\u{1F600}\ud83d\ude00\cJ`, []string{"Aé😀😀\n"}, []string{"A"}},
		{`a{,2}b{x}`, []string{"a{,2}b{x}"}, []string{"aab"}},
		{`(?P<x>a)(?<y>b)(?:c)+?`, []string{"abc", "abcc"}, []string{"ab"}},
		{`(a|b)*?abb`, []string{"abb", "aababb"}, []string{"ab"}},
		{`[^\x00-\x{D7FF}\x{E000}-\x{10FFFF}]|a`, []string{"a"}, []string{"b", "\x00"}},
		{`(a{0,3}){0,70000}c`, []string{"c", strings.Repeat("a", 500) + "c"}, []string{"b"}},
	} {
		g := compileRegex(t, c.source)
		for _, text := range c.yes {
			if !accepts(g, text) {
				t.Errorf("%s refuses %.40q", c.source, text)
			}
		}
		for _, text := range c.not {
			if accepts(g, text) {
				t.Errorf("%s accepts %.40q", c.source, text)
			}
		}
	}
}

func TestRegex_Refuses(t *testing.T) {
	var unsupported *grammar.UnsupportedError
	for source, want := range map[string]string{
		`a(?=b)`: "lookahead", `(?!a)b`: "negative lookahead", `(?<=a)b`: "lookbehind",
		`(?<!a)b`: "negative lookbehind",
		`(a)\1`:   "backreference", `(?<n>a)\k<n>`: "backreference", `(?P<n>a)(?P=n)`: "backreference",
		`(?>a)`: "atomic",
		`a++`:   "possessive", `[]a]`: "class []", `(?m)^a$`: "flag (?m)", `\p{Klingon}`: "property", `a\Z`: `\Z`,
		`\012`: "octal",
	} {
		_, err := grammar.Regex(source)
		if !errors.As(err, &unsupported) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", source, err, want)
		}
	}
	var syntax *grammar.SyntaxError
	for _, source := range []string{`(a`, `a)`, `[a`, `*a`, `a**`, `a{3,2}`, `\q`, `\`, `[b-a]`, `(?z)a`, `\x4`,
		`\ud800`, `^*`, `(?<a`, "\xff", `\p{L`} {
		if _, err := grammar.Regex(source); !errors.As(err, &syntax) {
			t.Errorf("%s: %v, want a syntax error", source, err)
		}
	}
	var limit *grammar.LimitError
	for _, source := range []string{strings.Repeat("(", 300), `a{1048577}`, `(\b.*a.{40}\b){30}`, `(^|b)a{60000}`,
		strings.Repeat(`a|`, 60000)} {
		if _, err := grammar.Regex(source); !errors.As(err, &limit) {
			t.Errorf("%.30s: %v, want a limit", source, err)
		}
	}
}

// randomRegex writes an expression that means the same in Go's package regexp.
func randomRegex(r *rand.Rand, depth int) string {
	atoms := []string{"a", "b", "c", "[ab]", "[^a]", `\w`, `\d`, ".", "(?:)", "é", "^", "$", `\b`, `\B`}
	if depth == 0 {
		return atoms[r.IntN(len(atoms))]
	}
	switch r.IntN(6) {
	case 0, 1:
		return randomRegex(r, depth-1) + randomRegex(r, depth-1)
	case 2:
		return "(?:" + randomRegex(r, depth-1) + "|" + randomRegex(r, depth-1) + ")"
	case 3:
		return "(?:" + randomRegex(r, depth-1) + ")" + []string{"*", "+", "?", "{2}", "{1,3}", "{2,}"}[r.IntN(6)]
	}
	return randomRegex(r, depth-1)
}

func TestRegex_AgreesWithGo(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	letters := []rune("aabbc1 é")
	matched := 0
	for range 3000 {
		source := randomRegex(r, 4)
		want, err := regexp.Compile(`\A(?:` + source + `)\z`)
		if err != nil {
			t.Fatal(err)
		}
		g, err := grammar.Regex(source)
		if err != nil {
			t.Fatalf("%s: %v", source, err)
		}
		var unsupported *grammar.UnsupportedError
		c, err := grammar.Compile(g, nil)
		if err != nil && !errors.As(err, &unsupported) {
			t.Fatalf("%s: %v", source, err)
		}
		for range 20 {
			text := make([]rune, r.IntN(7))
			for i := range text {
				text[i] = letters[r.IntN(len(letters))]
			}
			is := want.MatchString(string(text))
			if is {
				matched++
			}
			if got := c != nil && accepts(c, string(text)); got != is {
				t.Errorf("%s on %q: %t, want %t", source, string(text), got, is)
			}
		}
	}
	if matched < 2000 {
		t.Errorf("only %d texts matched: the test says little", matched)
	}
}
