package jsonschema

import "github.com/lamina-mesh/lamina/pkg/grammar/ast"

func (b *schemaBuilder) comma() *ast.Expr {
	if b.strict {
		return ast.Text(", ")
	}
	return ast.Seq(ast.Text(","), b.space)
}

// gap returns the white space that may surround a JSON token, except after a comma or a colon.
func (b *schemaBuilder) gap() *ast.Expr {
	if b.strict {
		return ast.Empty()
	}
	return b.space
}

// array returns the expression of an array: "[", items and "]".
func (b *schemaBuilder) array(a *arraySet) (*ast.Expr, error) {
	if a.unique && (a.max < 0 || a.max > 1) {
		return b.differing(a)
	}
	return b.items(a, b.value)
}

// items returns an array whose items are built by value.
func (b *schemaBuilder) items(a *arraySet, value func(terms) (*ast.Expr, error)) (*ast.Expr, error) {
	prefix := 0
	for _, g := range a.groups {
		prefix = max(prefix, len(g.prefix))
	}
	if a.max >= 0 {
		prefix = min(prefix, a.max)
	}
	if len(a.contains) > 0 {
		return b.containing(a, prefix, value)
	}
	item := func(i int) (*ast.Expr, error) {
		v, err := value(a.item(i))
		return ast.Seq(v, b.gap()), err
	}
	rest, err := item(prefix)
	if err != nil {
		return nil, err
	}
	most := a.max
	if rest.Op == ast.OpFail {
		most = prefix
	}
	if most >= 0 && a.min > most {
		return ast.Fail(), nil
	}
	// Built from the end: what follows the prefix items, then one item fewer each time.
	var tail *ast.Expr
	if prefix == 0 {
		more := -1
		if most >= 0 {
			more = most - 1
		}
		if most == 0 {
			tail = ast.Empty()
		} else {
			tail = ast.Seq(rest, ast.Repeat(ast.Seq(b.comma(), rest), max(0, a.min-1), more))
			if a.min == 0 {
				tail = ast.Optional(tail)
			}
		}
	} else {
		more := -1
		if most >= 0 {
			more = most - prefix
		}
		tail = ast.Empty()
		if most != prefix {
			tail = ast.Repeat(ast.Seq(b.comma(), rest), max(0, a.min-prefix), more)
		}
	}
	for i := prefix - 1; i >= 0; i-- {
		one, err := item(i)
		if err != nil {
			return nil, err
		}
		if one.Op == ast.OpFail {
			tail = ast.Fail()
		} else if i > 0 {
			tail = ast.Seq(b.comma(), one, tail)
		} else {
			tail = ast.Seq(one, tail)
		}
		if i >= a.min {
			tail = ast.Alt(tail, ast.Empty())
		}
	}
	return ast.Seq(ast.Text("["), b.gap(), tail, ast.Text("]")), nil
}

// containing returns an array with contains keywords. It is a graph: a state holds how many
// items were written (up to a count from which on all items are alike) and how many of them
// matched each contains. An edge decides for the next item which contains it matches; if
// matches are limited by maxContains, an item that is not counted must match the negation, so
// that the count is exact.
func (b *schemaBuilder) containing(a *arraySet, prefix int, value func(terms) (*ast.Expr, error)) (*ast.Expr, error) {
	if len(a.contains) > 3 {
		return nil, &ast.LimitError{What: "contains keywords on one array", Limit: 3}
	}
	last := max(1, prefix, a.min) // the count from which on all items are alike
	if a.max >= 0 {
		last = max(last, a.max)
	}
	for _, c := range a.contains {
		last = max(last, c.from)
	}
	type at struct {
		items int
		found [3]int
	}
	g := &ast.Graph{}
	known := map[at]int{}
	var order []at
	state := func(s at) int {
		id, ok := known[s]
		if !ok {
			id = g.Add()
			known[s] = id
			order = append(order, s)
		}
		return id
	}
	state(at{})
	for i := 0; i < len(order); i++ {
		if len(order) > maxGraph {
			return nil, &ast.LimitError{What: "states of an array", Limit: maxGraph}
		}
		s, from := order[i], known[order[i]]
		full := s.items >= a.min
		for j, c := range a.contains {
			full = full && s.found[j] >= c.min
		}
		g.States[from].Final = full
		if a.max >= 0 && s.items >= a.max {
			continue
		}
		for choice := range 1 << len(a.contains) { // choice is the set of contains that the item matches
			next := s
			want := a.item(s.items)
			ok := true
			for j, c := range a.contains {
				switch {
				case s.items < c.from:
					ok = ok && choice>>j&1 == 0
				case choice>>j&1 == 1:
					want = want.with(c.item...)
					next.found[j] = min(s.found[j]+1, max(c.min, c.max+1))
					ok = ok && (c.max < 0 || next.found[j] <= c.max)
				case c.max >= 0: // limited by maxContains: an item that is not counted must not match
					not := b.x.opposites(c.item)
					if len(not) != 1 {
						ok = false
						continue
					}
					want = want.with(not[0]...)
				default: // once minContains items were found, the others are unconstrained
				}
				if choice>>j&1 == 1 && c.max < 0 && s.found[j] >= c.min {
					ok = false
				}
			}
			next.items = min(s.items+1, last)
			if a.max >= 0 {
				next.items = s.items + 1
			}
			if !ok || b.x.never(want) {
				continue
			}
			v, err := value(want)
			if err != nil {
				return nil, err
			}
			v = ast.Seq(v, b.gap())
			if s.items > 0 {
				v = ast.Seq(b.comma(), v)
			}
			g.Edge(from, v, state(next))
		}
	}
	return ast.Seq(ast.Text("["), b.gap(), g.Expr(), ast.Text("]")), nil
}

const maxGraph = 5000 // states of an array or an object
