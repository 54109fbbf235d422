package jsonschema

import (
	"errors"
	"slices"
	"strconv"

	"github.com/lamina-mesh/lamina/pkg/grammar/ast"
	"github.com/lamina-mesh/lamina/pkg/grammar/language"
)

// Bounds on taking a schema apart.
const (
	maxShapes = 300    // of one schema
	maxMeets  = 60_000 // intersections in total
)

// expander turns constraints into unions of shapes.
type expander struct {
	doc   *document
	memo  map[term][]shape
	open  map[term]bool // being expanded, to find schemas that refer to themselves
	none  *place        // the schema false
	langs map[string]*language.Language
	meets int
}

func newExpander(doc *document) (*expander, error) {
	x := &expander{doc: doc, memo: map[term][]shape{}, open: map[term]bool{}, langs: map[string]*language.Language{}}
	var err error
	x.none, err = doc.add(&value{kind: isBool}, "false", documentBase, draft2020)
	return x, err
}

func is(p *place) term    { return term(2 * p.id) }
func isNot(p *place) term { return term(2*p.id + 1) }

// terms returns the constraint to match one schema or, if not is set, not to match it. The
// schema true allows any value.
func (x *expander) terms(p *place, not bool) terms {
	if p.v.kind == isBool {
		if p.v.flag != not {
			return nil
		}
		return terms{is(x.none)}
	}
	if not {
		return terms{isNot(p)}
	}
	return terms{is(p)}
}

// never reports whether t contains the schema false.
func (x *expander) never(t terms) bool { return slices.Contains(t, is(x.none)) }

func (x *expander) fail(p *place, keyword, want string) error {
	return &ast.SyntaxError{Kind: "schema", Msg: "read " + keyword + " at " + strconv.Quote(p.path) + ": want " + want}
}

func (x *expander) refuse(p *place, feature, why string) error {
	return &ast.UnsupportedError{Kind: "schema", Feature: feature, Path: p.path, Why: why}
}

// child returns the subschema v of p.
func (x *expander) child(p *place, v *value, path string) (*place, error) {
	if v.kind != isObject && v.kind != isBool {
		return nil, &ast.SyntaxError{Kind: "schema",
			Msg: "read a schema at " + strconv.Quote(p.path+"/"+path) + ": want an object, true or false"}
	}
	sub, err := x.doc.add(v, p.path+"/"+path, p.base, p.draft)
	if err != nil {
		return nil, err
	}
	return x.doc.enter(sub, p.scope)
}

// meet intersects two unions, pair by pair.
func (x *expander) meet(a, b []shape) ([]shape, error) {
	var out []shape
	for i := range a {
		for j := range b {
			if a[i].kind != b[j].kind {
				continue
			}
			if x.meets++; x.meets > maxMeets {
				return nil, &ast.LimitError{What: "intersections of alternatives", Limit: maxMeets}
			}
			if s, ok := meetShapes(&a[i], &b[j]); ok {
				out = append(out, s)
			}
		}
	}
	if len(out) > maxShapes {
		return nil, &ast.LimitError{What: "alternatives of a schema", Limit: maxShapes}
	}
	return out, nil
}

// shapes returns the union of shapes that meets all of t.
func (x *expander) shapes(t terms) ([]shape, error) {
	out := everything()
	for i, one := range t {
		s, err := x.shapesOf(one)
		if err != nil {
			return nil, err
		}
		if i == 0 {
			out = s
			continue
		}
		if out, err = x.meet(out, s); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (x *expander) shapesOf(t term) ([]shape, error) {
	if s, ok := x.memo[t]; ok {
		return s, nil
	}
	p := x.doc.places[t>>1]
	if x.open[t] || len(x.open) > ast.MaxNesting {
		return nil, x.refuse(p, "$ref", "it refers to itself without a member or item in between")
	}
	x.open[t] = true
	defer delete(x.open, t)
	var out []shape
	var err error
	switch {
	case p.v.kind == isBool:
		if p.v.flag == (t&1 == 0) {
			out = everything()
		}
	case p.v.kind != isObject:
		err = x.fail(p, "a schema", "an object, true or false")
	case t&1 == 0:
		out, err = x.positive(p)
	default:
		out, err = x.negative(p)
	}
	if err == nil {
		x.memo[t] = out
	}
	return out, err
}

// positive returns the shapes of the values that meet the schema at p.
func (x *expander) positive(p *place) ([]shape, error) {
	if ref := p.v.get("$ref"); ref != nil && p.draft == draft7 {
		return x.reference(p, "$ref", ref, false)
	}
	out, err := x.evaluated(p)
	if err != nil {
		return nil, err
	}
	return x.unevaluated(p, out)
}

// evaluated returns the shapes of the values that match every keyword of p except
// unevaluatedProperties and unevaluatedItems.
func (x *expander) evaluated(p *place) ([]shape, error) {
	out := everything()
	own, err := x.own(p)
	if err != nil {
		return nil, err
	}
	if out, err = x.meet(out, own); err != nil {
		return nil, err
	}
	for _, key := range p.v.keys {
		s, ok, err := x.applied(p, key, p.v.fields[key])
		if err != nil {
			return nil, err
		}
		if ok {
			if out, err = x.meet(out, s); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

// applied returns what a keyword with subschemas or values allows.
func (x *expander) applied(p *place, key string, v *value) ([]shape, bool, error) {
	var out []shape
	var err error
	switch key {
	case "$ref", "$dynamicRef", "$recursiveRef":
		out, err = x.reference(p, key, v, false)
	case "enum":
		if v.kind != isArray {
			return nil, false, x.fail(p, key, "a list")
		}
		out, err = x.oneOfValues(p, v.list)
	case "const":
		out, err = x.oneOfValues(p, []*value{v})
	case "allOf", "anyOf", "oneOf":
		var subs []*place
		if subs, err = x.list(p, key, v); err == nil {
			out, err = x.combined(p, key, subs)
		}
	case "not":
		var sub *place
		if sub, err = x.child(p, v, key); err == nil {
			out, err = x.shapes(x.terms(sub, true))
			out = unseen(out)
		}
	case "if":
		out, err = x.conditional(p, v)
	case "dependentRequired", "dependentSchemas", "dependencies":
		out, err = x.dependent(p, key, v)
	default:
		return nil, false, nil
	}
	return out, true, err
}

// reference returns the shapes of the schema that a reference names, or of its negation.
func (x *expander) reference(p *place, keyword string, v *value, not bool) ([]shape, error) {
	if v.kind != isString {
		return nil, x.fail(p, keyword, "a string")
	}
	var to *place
	var err error
	if keyword == "$dynamicRef" {
		to, err = x.doc.resolveDynamic(p, v.text)
	} else {
		to, err = x.doc.resolve(p, keyword, v.text)
	}
	if err != nil {
		return nil, err
	}
	if to, err = x.doc.enter(to, p.scope); err != nil {
		return nil, err
	}
	if not {
		return x.shapesOf(isNot(to))
	}
	return x.shapesOf(is(to))
}

func (x *expander) list(p *place, keyword string, v *value) ([]*place, error) {
	if v.kind != isArray || len(v.list) == 0 {
		return nil, x.fail(p, keyword, "a list of schemas")
	}
	out := make([]*place, len(v.list))
	for i, s := range v.list {
		var err error
		if out[i], err = x.child(p, s, keyword+"/"+strconv.Itoa(i)); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (x *expander) combined(p *place, keyword string, subs []*place) ([]shape, error) {
	if keyword == "allOf" {
		var all terms
		for _, s := range subs {
			all = append(all, x.terms(s, false)...) // in the schema's order: members follow it
		}
		return x.shapes(slices.CompactFunc(all, func(a, b term) bool { return a == b }))
	}
	union := make([][]shape, len(subs))
	for i, s := range subs {
		var err error
		if union[i], err = x.shapes(x.terms(s, false)); err != nil {
			return nil, err
		}
	}
	if keyword == "oneOf" {
		return x.exactlyOne(p, subs, union)
	}
	if x.doc.unevaluated {
		return x.together(union)
	}
	out := slices.Concat(union...)
	if len(out) > maxShapes {
		return nil, &ast.LimitError{What: "alternatives of a schema", Limit: maxShapes}
	}
	return out, nil
}

// together returns the union of the alternatives. Where alternatives evaluate members or items
// it adds their intersections: unevaluatedProperties counts what all matching alternatives
// evaluate, so that a value that matches two of them may pass although neither alone evaluates
// everything.
func (x *expander) together(union [][]shape) ([]shape, error) {
	var out []shape
	for _, shapes := range union {
		for _, s := range shapes {
			before := len(out)
			out = append(out, s)
			if !s.evaluates() {
				continue
			}
			for i := range before {
				if out[i].kind != s.kind || !out[i].evaluates() {
					continue
				}
				if x.meets++; x.meets > maxMeets {
					return nil, &ast.LimitError{What: "intersections of alternatives", Limit: maxMeets}
				}
				if both, ok := meetShapes(&out[i], &s); ok {
					out = append(out, both)
				}
			}
			if len(out) > maxShapes {
				return nil, &ast.LimitError{What: "alternatives of a schema", Limit: maxShapes}
			}
		}
	}
	return out, nil
}

// evaluates reports whether s marks members or items as evaluated.
func (s *shape) evaluates() bool {
	return slices.ContainsFunc(s.object.groups, func(g *memberGroup) bool { return g.evaluates }) ||
		slices.ContainsFunc(s.array.groups, func(g *itemGroup) bool { return g.evaluates }) || len(s.array.found) > 0
}

// exactlyOne returns what one schema allows and no other does. Shapes that no other schema can
// overlap need no negation.
func (x *expander) exactlyOne(p *place, subs []*place, union [][]shape) ([]shape, error) {
	var out []shape
	for i := range union {
		for k := range union[i] {
			left := union[i][k : k+1]
			for j := range union {
				if i == j {
					continue
				}
				apart, err := x.apart(left, union[j])
				if err != nil {
					return nil, err
				}
				if apart {
					continue
				}
				not, err := x.shapes(x.terms(subs[j], true))
				if err != nil {
					return nil, inOneOf(err, p)
				}
				if left, err = x.meet(left, unseen(not)); err != nil {
					return nil, err
				}
			}
			out = append(out, left...)
		}
	}
	if len(out) > maxShapes {
		return nil, &ast.LimitError{What: "alternatives of a schema", Limit: maxShapes}
	}
	return out, nil
}

// inOneOf adds to an error that it arose because alternatives of oneOf may overlap.
func inOneOf(err error, p *place) error {
	var u *ast.UnsupportedError
	if errors.As(err, &u) {
		return &ast.UnsupportedError{Kind: u.Kind, Feature: "oneOf", Path: p.path,
			Why: "its alternatives overlap, and one cannot be negated: " + u.Error()}
	}
	return err
}

// apart reports whether the unions certainly have no value in common.
func (x *expander) apart(a, b []shape) (bool, error) {
	for i := range a {
		for j := range b {
			if x.meets++; x.meets > maxMeets {
				return false, &ast.LimitError{What: "intersections of alternatives", Limit: maxMeets}
			}
			s, ok := meetShapes(&a[i], &b[j])
			if !ok {
				continue
			}
			none, err := x.isEmpty(&s, 4)
			if err != nil || !none {
				return false, err
			}
		}
	}
	return true, nil
}

// isEmpty reports whether the shape certainly contains no value.
func (x *expander) isEmpty(s *shape, depth int) (bool, error) {
	below := func(t terms) (bool, error) {
		if x.never(t) {
			return true, nil
		}
		if depth == 0 || len(t) < 2 {
			return false, nil
		}
		shapes, err := x.shapes(t)
		if err != nil {
			return false, err
		}
		for i := range shapes {
			if none, err := x.isEmpty(&shapes[i], depth-1); err != nil || !none {
				return false, err
			}
		}
		return true, nil
	}
	switch s.kind {
	case isObject:
		for _, name := range s.object.required {
			var t terms
			for _, g := range s.object.groups {
				t = t.with(g.value(name)...)
			}
			if none, err := below(t); none || err != nil {
				return none, err
			}
		}
	case isArray:
		for i := range min(s.array.min, 8) {
			if none, err := below(s.array.item(i)); none || err != nil {
				return none, err
			}
		}
	case isString:
		return x.emptyText(&s.text)
	case isNumber:
		return x.emptyNumber(&s.number)
	}
	return false, nil
}

// item returns the constraint on the item at index i.
func (a *arraySet) item(i int) terms {
	var t terms
	for _, g := range a.groups {
		if i < len(g.prefix) {
			t = t.with(g.prefix[i]...)
		} else {
			t = t.with(g.rest...)
		}
	}
	return t
}
