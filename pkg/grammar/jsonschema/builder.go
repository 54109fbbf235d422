package jsonschema

import (
	"encoding/binary"
	"maps"
	"slices"

	"github.com/lamina-mesh/lamina/pkg/grammar/ast"
)

// schemaBuilder writes the rules of a schema: one for every distinct constraint on a value.
type schemaBuilder struct {
	x       *expander
	space   *ast.Expr // between tokens of JSON
	rules   []ast.Rule
	byTerms map[string]int
	byKey   map[string]int // rules shared by their text: numbers, strings
	todo    []pending
	// strict allows one spelling of every value, for uniqueItems.
	strict bool
	unique string // JSON pointer of the uniqueItems
	counts []itemCount
	// wholeCap and fractionCap are the maximum numbers of digits before and after the point
	// of a number; 0 means no limit.
	wholeCap, fractionCap int
}

type pending struct {
	rule   int
	want   terms
	strict bool
	unique string
}

func (b *schemaBuilder) add(name string, body *ast.Expr, apart bool) (int, error) {
	if len(b.rules) >= ast.MaxRules {
		return 0, &ast.LimitError{What: "rules", Limit: ast.MaxRules}
	}
	b.rules = append(b.rules, ast.Rule{Name: name, Body: body, Apart: apart})
	return len(b.rules) - 1, nil
}

// value returns a reference to the rule of the values that meet t.
func (b *schemaBuilder) value(t terms) (*ast.Expr, error) {
	if b.x.never(t) {
		return ast.Fail(), nil
	}
	key := make([]byte, 0, 4*len(t)+1)
	if b.strict {
		key = append(key, 1)
	}
	for _, one := range t {
		key = binary.LittleEndian.AppendUint32(key, uint32(one))
	}
	if id, ok := b.byTerms[string(key)]; ok {
		return ast.Ref(id), nil
	}
	name := "value"
	if len(t) > 0 {
		name = "#" + b.x.doc.places[t[0]>>1].path
	}
	id, err := b.add(name, nil, false)
	if err != nil {
		return nil, err
	}
	b.byTerms[string(key)] = id
	b.todo = append(b.todo, pending{id, t, b.strict, b.unique})
	return ast.Ref(id), nil
}

// finish writes the rules that are referred to but not written yet.
func (b *schemaBuilder) finish() error {
	for len(b.todo) > 0 {
		next := b.todo[len(b.todo)-1]
		b.todo = b.todo[:len(b.todo)-1]
		b.strict, b.unique = next.strict, next.unique
		shapes, err := b.x.shapes(next.want)
		if err != nil {
			return err
		}
		subs := make([]*ast.Expr, len(shapes))
		for i := range shapes {
			if subs[i], err = b.shape(&shapes[i]); err != nil {
				return err
			}
		}
		b.rules[next.rule].Body = ast.Alt(subs...)
	}
	for _, key := range slices.Sorted(maps.Keys(b.x.langs)) {
		if err := b.x.langs[key].Err; err != nil {
			return err
		}
	}
	return nil
}

func (b *schemaBuilder) shape(s *shape) (*ast.Expr, error) {
	switch s.kind {
	case isNull:
		return ast.Text("null"), nil
	case isBool:
		out := ast.Fail()
		if s.no {
			out = ast.Text("false")
		}
		if s.yes {
			out = ast.Alt(ast.Text("true"), out)
		}
		return out, nil
	case isNumber:
		return b.number(&s.number)
	case isString:
		return b.text(&s.text)
	case isArray:
		return b.array(&s.array)
	}
	return b.object(&s.object)
}

// shared returns a reference to the rule of that key, and writes it on first use.
func (b *schemaBuilder) shared(key string, apart bool, body func() (*ast.Expr, error)) (*ast.Expr, error) {
	if id, ok := b.byKey[key]; ok {
		return ast.Ref(id), nil
	}
	e, err := body()
	if err != nil {
		return nil, err
	}
	id, err := b.add(key, e, apart)
	if err != nil {
		return nil, err
	}
	b.byKey[key] = id
	return ast.Ref(id), nil
}
