package samplerules

import (
	"github.com/lamina-mesh/lamina/pkg/fault"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	"github.com/lamina-mesh/lamina/pkg/grammar"
)

// Grammar parses the grammar that constrains a text. It returns nil if there is none. An error says
// what is not supported and names the field, after field.
func Grammar(field string, g *samplerv1.Grammar) (*grammar.Grammar, error) {
	if g == nil {
		return nil, nil
	}
	if len(g.GetSource()) > MaxGrammar {
		return nil, fault.Field(field+".source", "%d bytes are more than %d", len(g.GetSource()), MaxGrammar)
	}
	var out *grammar.Grammar
	var err error
	switch g.GetKind() {
	case samplerv1.GrammarKind_GRAMMAR_KIND_GBNF:
		out, err = grammar.GBNF(g.GetSource())
	case samplerv1.GrammarKind_GRAMMAR_KIND_JSON_SCHEMA:
		out, err = grammar.Schema([]byte(g.GetSource()))
	case samplerv1.GrammarKind_GRAMMAR_KIND_REGEX:
		out, err = grammar.Regex(g.GetSource())
	case samplerv1.GrammarKind_GRAMMAR_KIND_TAGS:
		out, err = grammar.Structure([]byte(g.GetSource()))
	default:
		return nil, fault.Field(field+".kind", "unknown kind of grammar %v", g.GetKind())
	}
	if err != nil {
		return nil, fault.Field(field+".source", "%v", err)
	}
	return out, nil
}

// Compile parses and compiles a grammar for the masks of a vocabulary. With a nil vocabulary it
// does the same work without the masks and finds the same errors, since whether a grammar compiles
// does not depend on the vocabulary.
func Compile(field string, g *samplerv1.Grammar, v *grammar.Vocabulary) (*grammar.Compiled, error) {
	parsed, err := Grammar(field, g)
	if err != nil {
		return nil, err
	}
	c, err := grammar.Compile(parsed, v)
	if err != nil {
		return nil, fault.Field(field+".source", "%v", err)
	}
	return c, nil
}
