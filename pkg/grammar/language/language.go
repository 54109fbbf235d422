package language

import (
	"fmt"
	"slices"

	"github.com/lamina-mesh/lamina/pkg/grammar/ast"
	"github.com/lamina-mesh/lamina/pkg/grammar/regex"
)

// Language is a set of strings. Its DFA is built on first use; a Language belongs to one
// goroutine.
type Language struct {
	Key   string // equal for equal languages
	Node  *regex.Node
	Whole bool // the expression matches the whole string
	Auto  *DFA
	Err   error
}

// Pattern returns the language of the strings in which a pattern of JSON Schema matches
// somewhere.
func Pattern(pattern string) (*Language, error) {
	n, err := regex.Parse(pattern, regex.ECMA)
	return &Language{Key: "pattern " + pattern, Node: n}, err
}

// OfTexts returns the language of the given strings.
func OfTexts(texts []string) (*Language, error) {
	d, err := Texts(texts)
	return &Language{Key: fmt.Sprintf("texts %q", slices.Sorted(slices.Values(texts))), Auto: d}, err
}

// Expr returns the strings as an expression in an encoding.
func (l *Language) Expr(enc ast.Encoding) (*ast.Expr, error) {
	if l.Node == nil {
		return l.Auto.Graph(enc), nil
	}
	return RegexExpr(l.Node, l.Whole, enc)
}

// DFA returns the minimal automaton of the language. It is made at the first call, and kept.
func (l *Language) DFA() (*DFA, error) {
	if l.Auto == nil && l.Err == nil {
		if l.Auto, l.Err = FromRegex(l.Node, l.Whole); l.Err == nil {
			l.Auto = l.Auto.Minimal()
		}
	}
	return l.Auto, l.Err
}

// Accepts reports whether text is in the language. If its DFA is too large the answer is false,
// and DFA returns the error.
func (l *Language) Accepts(text string) bool {
	d, err := l.DFA()
	return err == nil && d.accepts(text)
}
