package grammar_test

import (
	"errors"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/grammar"
)

func compiled(t testing.TB, g *grammar.Grammar, err error) *grammar.Compiled {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	c, err := grammar.Compile(g, nil)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func check(t *testing.T, name string, c *grammar.Compiled, yes, not []string) {
	t.Helper()
	for _, text := range yes {
		if !accepts(c, text) {
			t.Errorf("%s refuses %q", name, text)
		}
	}
	for _, text := range not {
		if accepts(c, text) {
			t.Errorf("%s accepts %q", name, text)
		}
	}
}

func TestChoices(t *testing.T) {
	g, err := grammar.Choices([]string{"yes", "no", "not at all", "日本", ""})
	check(t, "choices", compiled(t, g, err), []string{"yes", "no", "not at all", "日本", ""},
		[]string{"not", "y", "日", "yesno"})
	var syntax *grammar.SyntaxError
	for _, texts := range [][]string{nil, {"\xff"}} {
		if _, err := grammar.Choices(texts); !errors.As(err, &syntax) {
			t.Errorf("%q: %v", texts, err)
		}
	}
}

func TestTags(t *testing.T) {
	body, err := grammar.Schema(
		[]byte(`{"type":"object","properties":{"x":{"type":"integer"}},"required":["x"],"additionalProperties":false}`))
	if err != nil {
		t.Fatal(err)
	}
	word, err := grammar.Regex(`[a-z]*`)
	if err != nil {
		t.Fatal(err)
	}
	tags := []grammar.Tag{
		{Begin: "<call name=f>", Body: body, End: "</call>"},
		{Begin: "<call name=g>", Body: word, End: "</call>"},
		{Begin: "[[", Body: body, End: "]]"},
	}
	for _, c := range []struct {
		name     string
		options  grammar.TagOptions
		yes, not []string
	}{
		{"by triggers", grammar.TagOptions{Triggers: []string{"<call", "[["}},
			[]string{"", "free < text [ <cal", `a<call name=f>{"x":1}</call>b`,
				`<call name=g></call><call name=g>x</call>`, `<<call name=f>{"x": 2}</call>`, `[[{"x":1}]] [`},
			[]string{"<call", "free <call name=h>", `<call name=f>{"y":1}</call>`, `<call name=f>{"x":1}`,
				`[[[{"x":1}]]`}},
		{"by beginnings", grammar.TagOptions{},
			[]string{"<call name=h>", `<call name=f>{"x":1}</call>`}, []string{"<call name=f>", "a[["}},
		{"required", grammar.TagOptions{Required: true},
			[]string{`so: [[{"x":1}]]`, `[[{"x":1}]] and [[{"x":2}]] .`}, []string{"", "so:"}},
		{"single", grammar.TagOptions{Single: true, Required: true},
			[]string{`so: [[{"x":1}]]`}, []string{`[[{"x":1}]] and`, `[[{"x":1}]][[{"x":1}]]`}},
		{"only", grammar.TagOptions{Only: true, Required: true, Separator: "\n"},
			[]string{`[[{"x":1}]]`, "[[{\"x\":1}]]\n<call name=g>a</call>"},
			[]string{``, `a[[{"x":1}]]`, `[[{"x":1}]][[{"x":1}]]`}},
	} {
		g, err := grammar.Tags(tags, c.options)
		check(t, c.name, compiled(t, g, err), c.yes, c.not)
	}
	g, err := grammar.Tags([]grammar.Tag{{Begin: "abab", Body: word, End: "."}, {Begin: "bb", Body: word, End: "."}},
		grammar.TagOptions{})
	check(t, "overlaps", compiled(t, g, err), []string{"ab", "aabab.", "aba", "abbc.a", "ababx.", "acbabab."},
		[]string{"abab", "abb", "xbb"})
	var syntax *grammar.SyntaxError
	if _, err := grammar.Tags(tags, grammar.TagOptions{Triggers: []string{"<call"}}); !errors.As(err, &syntax) {
		t.Errorf("a tag without a trigger: %v", err)
	}
	if _, err := grammar.Tags(nil, grammar.TagOptions{}); !errors.As(err, &syntax) {
		t.Errorf("no tags: %v", err)
	}
}
