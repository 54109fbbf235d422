package grammar_test

import (
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/internal/fixtures"
	"github.com/lamina-mesh/lamina/pkg/grammar"
)

// shared returns the path of a fixture, or skips the test.
func shared(t testing.TB, parts ...string) string {
	t.Helper()
	return fixtures.Path(t, parts...)
}

func readJSON[T any](t testing.TB, path string) T {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var v T
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// accepts reports whether the whole text is in the language.
func accepts(c *grammar.Compiled, text string) bool {
	m := c.NewMatcher()
	return m.AcceptBytes([]byte(text)) == nil && m.CanEnd()
}

func compileGBNF(t testing.TB, source string) *grammar.Compiled {
	t.Helper()
	g, err := grammar.GBNF(source)
	if err != nil {
		t.Fatalf("%s: %v", source, err)
	}
	c, err := grammar.Compile(g, nil)
	if err != nil {
		t.Fatalf("%s: %v", source, err)
	}
	return c
}

func TestGBNF_Texts(t *testing.T) {
	for _, c := range []struct {
		source   string
		yes, not []string
	}{
		{`root ::= "a" | "b" root`, []string{"a", "ba", "bbbba"}, []string{"", "b", "aa", "ab"}},
		{`root ::= "(" root ")" root | ""`,
			[]string{"", "()", "(())()", strings.Repeat("(", 500) + strings.Repeat(")", 500)},
			[]string{"(", ")(", "(()"}},
		{"root ::= a b # rest\na ::= [^b-d\\]\\x41]+ # more\n\nb ::= (\n \"b\" |\n \"c\"\n){2,3}",
			[]string{"xxbb", "zébcb"}, []string{"bb", "xb", "xbbbb", "Abb", "]bb"}},
		{`root ::= "\u00e9" . "\U0001F600" "\x41\n\t\\\""`, []string{"é\n😀A\n\t\\\"", "é語😀A\n\t\\\""},
			[]string{"éab😀A\n\t\\\"", "é\xff😀A\n\t\\\""}},
		{`root ::= x{0} x{2} x{0,1} y{3,}` + "\nx ::= \"x\"\ny ::= \"y\"", []string{"xxyyy", "xxxyyyyyy"},
			[]string{"xyyy", "xxxxyyy", "xxyy"}},
		{`root ::= ("a"? "b"?){3,5} "c"`, []string{"c", "abababababc", "aaac", "bac"}, []string{"aaaaaac", "ab"}},
		{`root ::= (o){2,4}` + "\no ::= \"a\" | \"\"", []string{"", "a", "aaaa"}, []string{"aaaaa"}},
		{"root ::= ( ( \"ab\" ){2} \"c\" ){2,70000}", []string{"ababcababc", strings.Repeat("ababc", 3000)},
			[]string{"ababc", "ababcabc"}},
		{"root ::=\n  \"a\" \n  | \"b\"\n", []string{"a", "b"}, []string{"ab"}},
		{"root ::= e\ne ::= t (\"+\" t)*\nt ::= f (\"*\" f)*\nf ::= [0-9]+ | \"(\" e \")\"",
			[]string{"1+2*(3+4)*5", "((7))"}, []string{"1+", "(1", "1)"}},
		{"root ::= \"x\" tail\r\ntail ::= \"y\" | \"z\"\r\n", []string{"xy"}, []string{"x"}},
	} {
		g := compileGBNF(t, c.source)
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

func TestGBNF_Errors(t *testing.T) {
	for _, c := range []struct{ source, want string }{
		{"", "root"},
		{"a ::= \"b\"", "root"},
		{"root ::= a\n\n", "line 1: find rule a"},
		{"root ::= \"a\"\nb ::= \"c\n", "line"},
		{"root ::= (\"a\"\n\n", "want )"},
		{"root ::= \"a\"\nb := \"c\"", "line 2: want ::="},
		{"root ::= [b-a]", "reversed"},
		{"root ::= []", "contains no character"},
		{"root ::= \"a\"{3,2}", "exceeds the maximum"},
		{"root ::= \"a\"{,2}", "want a number"},
		{"root ::= *", "something before"},
		{"root ::= \"\\q\"", "unknown escape \\q"},
		{"root ::= \"\\ud800\"", "not a character"},
		{"root ::= \"a\"\nroot ::= \"b\"", "line 2: define rule root"},
		{"root ::= <think>", "token reference on line 1"},
		{"root ::= \"a\"{9999999}", "repetitions"},
		{strings.Repeat("(", 1000), "want"},
		{"root ::= " + strings.Repeat("(", 1000), "nested"},
	} {
		if _, err := grammar.GBNF(c.source); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.40q: %v, want %q", c.source, err, c.want)
		}
	}
}

func TestCompile_Refuses(t *testing.T) {
	for _, c := range []struct{ source, want string }{
		{"root ::= root \"a\" | \"b\"", "left recursion of rule root on line 1"},
		{"root ::= a\na ::= b \"x\" | \"y\"\nb ::= \"\" c\nc ::= n a\nn ::= \"n\"?",
			"left recursion of rule a on line 2: a rule"},
		{"root ::= root", "empty language"},
		{"root ::= \"a\" root", "empty language"},
	} {
		g, err := grammar.GBNF(c.source)
		if err != nil {
			t.Fatal(err)
		}
		_, err = grammar.Compile(g, nil)
		var unsupported *grammar.UnsupportedError
		if !errors.As(err, &unsupported) ||
			!strings.Contains(strings.Replace(err.Error(), ": a rule", ": a rule", 1), c.want[:min(len(c.want), 30)]) {
			t.Errorf("%q: %v, want %q", c.source, err, c.want)
		}
	}
}

func TestMatcher_RollsBackAndForces(t *testing.T) {
	m := compileGBNF(t, `root ::= "value: " ("true" | "trust") "."`).NewMatcher()
	if got := string(m.Forced()); got != "value: tru" {
		t.Fatalf("forced %q", got)
	}
	for _, text := range []string{"value", ": t", "rue"} {
		if err := m.AcceptBytes([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	if got := string(m.Forced()); got != "." {
		t.Fatalf("forced %q", got)
	}
	var reject *grammar.RejectError
	if err := m.AcceptBytes([]byte("..")); !errors.As(err, &reject) || reject.Offset != 1 {
		t.Fatalf("two stops: %v", err)
	}
	if err := m.Rollback(1); err != nil || string(m.Forced()) != "ru" {
		t.Fatalf("after a step back: %v, forced %q", err, m.Forced())
	}
	if err := m.AcceptBytes([]byte("rust.")); err != nil || !m.CanEnd() || !m.Done() {
		t.Fatalf("%v, can end %t, done %t", err, m.CanEnd(), m.Done())
	}
	if err := m.Rollback(4); err == nil {
		t.Error("rolled back more than there was")
	}
}
