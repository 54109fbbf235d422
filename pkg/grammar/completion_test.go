package grammar_test

import (
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/grammar"
)

func TestMatcher_Completion(t *testing.T) {
	for _, c := range []struct {
		source, begun, want string
	}{
		{`true`, ``, `0`},
		{`{"type":"object","properties":{"a":{"type":"string","minLength":3},"b":{"type":"array","items":{"type":"null"},"minItems":2}},"required":["a","b"]}`, `{"a":"x`, `  ","b":[null,null]}`},
		{`{"type":"array","items":{"enum":["a","b"]},"uniqueItems":true,"minItems":2}`, `["a","`, `b"]`},
		{`{"type":"array","items":{"type":"boolean"},"uniqueItems":true,"minItems":2}`, `[true`, `,false]`},
		{`{"type":"integer","minimum":100}`, `1`, `00`},
		{`{"type":"array","items":{"type":"array","items":{"type":"integer"}}}`, `[[1`, `]]`},
		{`{"type":"string","pattern":"^(ab){3,5}c+$"}`, `"aba`, `babc"`},
	} {
		m := compileSchema(t, c.source).NewMatcher()
		if err := m.AcceptBytes([]byte(c.begun)); err != nil {
			t.Fatal(err)
		}
		got, err := m.Completion()
		if err != nil {
			t.Fatal(err)
		}
		if n := m.Shortest(); len(got) != len(c.want) || n > len(got) || n < len(got) &&
			!strings.Contains(c.source, "unique") {
			t.Errorf("%s after %s: completion %q, shortest %d, want as long as %q", c.source, c.begun, got, n, c.want)
		}
		if err := m.AcceptBytes(got); err != nil || !m.CanEnd() || m.Shortest() != 0 {
			t.Errorf("%s after %s: completion %q does not end it: %v", c.source, c.begun, got, err)
		}
	}
}

func TestMatcher_UniqueItemsLeaveAWayOut(t *testing.T) {
	for _, c := range []struct{ source, begun, not string }{
		{`{"type":"array","items":{"enum":["a","b"]},"uniqueItems":true}`, `["a","`, `a`},
		{`{"type":"array","items":{"type":"boolean"},"uniqueItems":true}`, `[true,false`, `,`},
		{`{"type":"array","items":{"type":"string","maxLength":1,"pattern":"^[ab]*$"},"uniqueItems":true}`, `["a","","`,
			`a`},
	} {
		m := compileSchema(t, c.source).NewMatcher()
		if err := m.AcceptBytes([]byte(c.begun)); err != nil {
			t.Fatal(err)
		}
		if err := m.AcceptBytes([]byte(c.not)); err == nil {
			t.Errorf("%s takes %s after %s, from which nothing ends it", c.source, c.not, c.begun)
		}
	}
	g, err := grammar.Schema([]byte(`{"type":"array","items":{"type":"boolean"},"uniqueItems":true,"minItems":3}`))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := grammar.Compile(g, nil); err == nil {
		t.Error("three different booleans are found")
	}
}
