package httpapi_test

import (
	"slices"
	"testing"

	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/services/router/httpapi"
)

// TestTokenLog_FindsTheTokensOfContent lists tokens, and after some of them what the parser adds to the content.
func TestTokenLog_FindsTheTokensOfContent(t *testing.T) {
	type step struct {
		token, content string
		want           []string
	}
	for what, steps := range map[string][]step{
		"plain":             {{"a", "a", []string{"a"}}, {" b", " b", []string{" b"}}},
		"a marker before":   {{"hm", "", nil}, {"</think>", "", nil}, {"I ", "I ", []string{"I "}}},
		"held back":         {{"<", "", nil}, {"to", "<to", []string{"<", "to"}}},
		"trimmed":           {{"</think>", "", nil}, {"\n\nHi", "Hi", []string{"\n\nHi"}}},
		"bytes of a letter": {{"x", "x", []string{"x"}}, {"", "", nil}, {"é", "é", []string{"", "é"}}},
		"text behind":       {{"I", "", nil}, {" look.", "", nil}, {"\n", "I look.", []string{"I", " look.", "\n"}}},
	} {
		var l httpapi.TokenLog
		for i, s := range steps {
			l.Add(&routerv1.TokenEvent{Text: s.token})
			var got []string
			for _, token := range l.Content(s.content) {
				got = append(got, token.GetText())
			}
			if !slices.Equal(got, s.want) {
				t.Errorf("%s: after token %d %q has the tokens %q, want %q", what, i, s.content, got, s.want)
			}
		}
	}
}
