package grammar_test

import (
	"testing"

	"github.com/lamina-mesh/lamina/pkg/grammar"
)

// vector is a test case of llama.cpp.
type vector struct {
	Kind, Desc, Grammar, Schema string
	Passing, Failing            []string
}

func TestVectors_LlamaCpp(t *testing.T) {
	for _, v := range readJSON[[]vector](t, shared(t, "vectors/grammar/llama.cpp-cases.json")) {
		var c *grammar.Compiled
		if v.Kind == "schema" {
			c = compileSchema(t, v.Schema)
		} else {
			c = compileGBNF(t, v.Grammar)
		}
		for _, text := range v.Passing {
			if !accepts(c, text) {
				t.Errorf("%s refuses %s", v.Desc, text)
			}
		}
		for _, text := range v.Failing {
			if accepts(c, text) {
				t.Errorf("%s accepts %s", v.Desc, text)
			}
		}
	}
}
