package language

import (
	"fmt"
	"slices"

	"github.com/lamina-mesh/lamina/pkg/grammar/ast"
	"github.com/lamina-mesh/lamina/pkg/grammar/regex"
)

// Language is a set of strings given by a regular expression. Its automaton is made
// when it is first needed; a lang belongs to one goroutine.
type Language struct {
	Key   string // equal for equal languages
	Node  *regex.Node
	Whole bool // the expression matches the whole string
	Auto  *DFA
	Err   error
}

// Pattern is the strings in which a pattern is found.
func Pattern(pattern string) (*Language, error) {
	n, err := regex.Parse(pattern, regex.ECMA)
	return &Language{Key: "pattern " + pattern, Node: n}, err
}

// OfTexts is the given strings.
func OfTexts(texts []string) (*Language, error) {
	d, err := Texts(texts)
	return &Language{Key: fmt.Sprintf("texts %q", slices.Sorted(slices.Values(texts))), Auto: d}, err
}

// Expr is the language's strings in an encoding.
func (l *Language) Expr(enc ast.Encoding) (*ast.Expr, error) {
	if l.Node == nil {
		return l.Auto.Graph(enc), nil
	}
	return RegexExpr(l.Node, l.Whole, enc)
}

func (l *Language) DFA() (*DFA, error) {
	if l.Auto == nil && l.Err == nil {
		if l.Auto, l.Err = FromRegex(l.Node, l.Whole); l.Err == nil {
			l.Auto = l.Auto.Minimal()
		}
	}
	return l.Auto, l.Err
}

// Accepts says whether the language holds text. Where its automaton is too large
// it says no, and whoever needs the automaton itself gets the error.
func (l *Language) Accepts(text string) bool {
	d, err := l.DFA()
	return err == nil && d.accepts(text)
}
