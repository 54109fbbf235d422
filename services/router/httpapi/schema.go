package httpapi

import (
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	"github.com/lamina-mesh/lamina/pkg/samplerules"
)

// Schema returns the grammar of answers that follow a JSON schema. An error names the field that has the schema.
func Schema(field, source string) (*samplerv1.Grammar, error) {
	g := &samplerv1.Grammar{Kind: samplerv1.GrammarKind_GRAMMAR_KIND_JSON_SCHEMA, Source: source}
	_, err := samplerules.Grammar(field, g)
	return g, err
}
