package samplerules_test

import (
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/fault"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	"github.com/lamina-mesh/lamina/pkg/samplerules"
)

func TestGrammar_Kinds(t *testing.T) {
	for source, kind := range map[string]samplerv1.GrammarKind{
		`root ::= "a"`:                         samplerv1.GrammarKind_GRAMMAR_KIND_GBNF,
		`{"type":"null"}`:                      samplerv1.GrammarKind_GRAMMAR_KIND_JSON_SCHEMA,
		`a+`:                                   samplerv1.GrammarKind_GRAMMAR_KIND_REGEX,
		`{"tags":[{"begin":"<","schema":{}}]}`: samplerv1.GrammarKind_GRAMMAR_KIND_TAGS,
	} {
		if g, err := samplerules.Grammar("g", &samplerv1.Grammar{Kind: kind, Source: source}); g == nil || err != nil {
			t.Errorf("%s: %v", source, err)
		}
	}
}

func TestGrammar_RefusesByName(t *testing.T) {
	for _, c := range []struct {
		kind          samplerv1.GrammarKind
		source, names string
	}{
		{samplerv1.GrammarKind_GRAMMAR_KIND_TAGS, `{"tags":[{"begin":"<","schema":{},"until":1}]}`, "until"},
		{samplerv1.GrammarKind_GRAMMAR_KIND_TAGS, `{"tags":[{"begin":"<","schema":{"$dynamicRef":"#a"}}]}`,
			"tags[0].schema"},
		{samplerv1.GrammarKind_GRAMMAR_KIND_TAGS, strings.Repeat(" ", 1<<20+1), "g.source"},
		{99, "", "g.kind"},
	} {
		_, err := samplerules.Grammar("g", &samplerv1.Grammar{Kind: c.kind, Source: c.source})
		if fault.CodeOf(err) != fault.Invalid || !strings.Contains(err.Error(), c.names) {
			t.Errorf("%.60s: %v, want %q in it", c.source, err, c.names)
		}
	}
	if g, err := samplerules.Grammar("g", nil); g != nil || err != nil {
		t.Errorf("none: %v %v", g, err)
	}
}
