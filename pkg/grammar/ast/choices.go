package ast

import (
	"fmt"
	"unicode/utf8"

	"github.com/lamina-mesh/lamina/pkg/grammar/charset"
)

// Choices returns the grammar of the given texts and no others. It returns a *SyntaxError if
// there are none or one is not UTF-8, and a *LimitError if they are too long together.
func Choices(texts []string) (*Grammar, error) {
	if len(texts) == 0 {
		return nil, &SyntaxError{Kind: "choices", Msg: "list choices: want at least one"}
	}
	total := 0
	for i, text := range texts {
		if !utf8.ValidString(text) {
			return nil, &SyntaxError{Kind: "choices", Msg: fmt.Sprintf("read choice %d: it is not valid UTF-8", i)}
		}
		if total += len(text); total > MaxSource {
			return nil, &LimitError{What: "source bytes", Limit: MaxSource}
		}
	}
	return &Grammar{Rules: []Rule{{Name: "root", Body: choices(texts)}}, Kind: "choices"}, nil
}

// choices returns an expression of the texts that writes shared prefixes once.
func choices(texts []string) *Expr {
	type node struct {
		next map[rune]int
	}
	g := &Graph{}
	g.Add()
	nodes := []node{{}}
	for _, text := range texts {
		at := 0
		for _, r := range text {
			to, ok := nodes[at].next[r]
			if !ok {
				if nodes[at].next == nil {
					nodes[at].next = map[rune]int{}
				}
				to = g.Add()
				nodes = append(nodes, node{})
				nodes[at].next[r] = to
				g.Edge(at, Char(charset.Single(r), PlainUTF8), to)
			}
			at = to
		}
		g.States[at].Final = true
	}
	return g.Expr()
}
