package jsonschema

import (
	"github.com/lamina-mesh/lamina/pkg/grammar/ast"
	"github.com/lamina-mesh/lamina/pkg/grammar/automaton"
	"github.com/lamina-mesh/lamina/pkg/grammar/language"
	"github.com/lamina-mesh/lamina/pkg/grammar/regex"
)

// itemCount is an array whose items must differ. No such array exists unless its items have
// enough distinct values.
type itemCount struct {
	array int   // its rule
	items []int // rules of items
	want  int
	path  string
}

// differing returns an array whose items must differ. Its rules have the roles that the
// automaton tracks (ast.UniqueArray, ast.UniqueItem), and its items have one spelling for each
// value, so that equal values are equal texts.
func (b *schemaBuilder) differing(a *arraySet) (*ast.Expr, error) {
	if b.strict {
		return nil, &ast.UnsupportedError{Kind: "schema", Feature: "uniqueItems", Path: a.path,
			Why: "it is nested in the items of another uniqueItems array"}
	}
	if a.min > automaton.MaxDifferent {
		return nil, &ast.LimitError{What: "items that must differ", Limit: automaton.MaxDifferent}
	}
	known := map[string]*ast.Expr{}
	count := itemCount{want: a.min, path: a.path}
	body, err := b.items(a, func(t terms) (*ast.Expr, error) {
		key := string(termBytes(t))
		if e := known[key]; e != nil {
			return e, nil
		}
		b.strict, b.unique = true, a.path
		v, err := b.value(t)
		b.strict = false
		if err != nil || v.Op == ast.OpFail {
			return v, err
		}
		id, err := b.add("item", v, true)
		if err != nil {
			return nil, err
		}
		b.rules[id].Role = ast.UniqueItem
		known[key] = ast.Ref(id)
		count.items = append(count.items, id)
		return known[key], nil
	})
	if err != nil {
		return nil, err
	}
	if count.array, err = b.add("array", body, true); err != nil {
		return nil, err
	}
	b.rules[count.array].Role = ast.UniqueArray
	if a.min > 1 {
		b.counts = append(b.counts, count)
	}
	return ast.Ref(count.array), nil
}

// countItems finds arrays that require more distinct items than exist, and makes them fail.
func (b *schemaBuilder) countItems() error {
	for _, c := range b.counts {
		subs := make([]*ast.Expr, len(c.items))
		for i, id := range c.items {
			subs[i] = b.rules[id].Body
		}
		g := &ast.Grammar{Rules: append(b.rules[:len(b.rules):len(b.rules)],
			ast.Rule{Name: "items", Body: ast.Alt(subs...)}), Root: len(b.rules), Kind: "schema"}
		prog, err := automaton.Compile(g)
		if err != nil {
			b.rules[c.array].Body = ast.Fail()
			continue
		}
		n, all, err := automaton.New(prog).Different(int32(g.Root), c.want)
		switch {
		case err != nil:
			return err
		case n < c.want && all:
			b.rules[c.array].Body = ast.Fail()
		case n < c.want:
			return &ast.UnsupportedError{Kind: "schema", Feature: "uniqueItems", Path: c.path,
				Why: "it is not known whether minItems distinct items exist"}
		}
	}
	return nil
}

// strictNumber returns the numbers of n, each in its shortest spelling.
func (b *schemaBuilder) strictNumber(n *numberSet) (*ast.Expr, error) {
	key := "strict number " + n.key()
	return b.shared(key, false, func() (*ast.Expr, error) {
		l := b.x.langs[shortNumber]
		if l == nil {
			node, err := regex.Parse(shortNumber, regex.Common)
			if err != nil {
				return nil, err
			}
			l = &language.Language{Key: shortNumber, Node: node, Whole: true}
			b.x.langs[shortNumber] = l
		}
		short, err := l.DFA()
		if err != nil {
			return nil, err
		}
		d, err := numberDFA(n, b.wholeCap, b.fractionCap)
		if err != nil {
			return nil, err
		}
		if d, err = language.Intersect(d, short); err != nil {
			return nil, err
		}
		return d.Minimal().Graph(ast.PlainUTF8), nil
	})
}

const shortNumber = `0|-?[1-9][0-9]*(?:\.[0-9]*[1-9])?|-?0\.[0-9]*[1-9]`
