package jsonschema

import (
	"errors"
	"math/big"
	"slices"
	"strconv"

	"github.com/lamina-mesh/lamina/pkg/grammar/ast"
)

// oneOfValues returns the shapes of the values of enum or const.
func (x *expander) oneOfValues(p *place, values []*value) ([]shape, error) {
	var out []shape
	text := shape{kind: isString, text: textSet{finite: true, max: -1}}
	flag := shape{kind: isBool}
	seen := map[string]bool{}
	for _, v := range values {
		if key := v.canonical(); seen[key] {
			continue
		} else {
			seen[key] = true
		}
		switch v.kind {
		case isString:
			text.text.texts = append(text.text.texts, v.text)
		case isBool:
			flag.yes, flag.no = flag.yes || v.flag, flag.no || !v.flag
		case isNull:
			out = append(out, shape{kind: isNull})
		case isNumber:
			r, ok := v.rat()
			if !ok {
				return nil, x.refuse(p, "number "+v.text, "it has too many digits to be represented exactly")
			}
			out = append(out, shape{kind: isNumber, number: numberSet{low: &bound{at: r}, high: &bound{at: r}}})
		case isArray:
			g := &itemGroup{rest: terms{is(x.none)}}
			for _, item := range v.list {
				t, err := x.constant(p, item)
				if err != nil {
					return nil, err
				}
				g.prefix = append(g.prefix, t)
			}
			out = append(out, shape{kind: isArray,
				array: arraySet{groups: []*itemGroup{g}, min: len(v.list), max: len(v.list)}})
		case isObject:
			g := &memberGroup{rest: terms{is(x.none)}, unordered: true}
			for _, name := range v.keys {
				t, err := x.constant(p, v.fields[name])
				if err != nil {
					return nil, err
				}
				g.declared = append(g.declared, declared{name, t})
			}
			out = append(out, shape{kind: isObject,
				object: objectSet{groups: []*memberGroup{g}, required: v.keys, max: -1}})
		}
		if len(out) > maxShapes {
			return nil, &ast.LimitError{What: "enum values that are not strings", Limit: maxShapes}
		}
	}
	if flag.yes || flag.no {
		out = append(out, flag)
	}
	if len(text.text.texts) > 0 {
		out = append(out, text)
	}
	return out, nil
}

// constant returns the constraint that a value equals v.
func (x *expander) constant(p *place, v *value) (terms, error) {
	made := &value{kind: isObject, keys: []string{"const"}, fields: map[string]*value{"const": v}}
	sub, err := x.doc.add(made, p.path, p.base, draft2020)
	if err != nil {
		return nil, err
	}
	return x.terms(sub, false), nil
}

// optionalChild returns the subschema under a keyword, or nil if the keyword is absent.
func (x *expander) optionalChild(p *place, keyword string) (*place, error) {
	v := p.v.get(keyword)
	if v == nil {
		return nil, nil
	}
	return x.child(p, v, keyword)
}

func (x *expander) conditional(p *place, v *value) ([]shape, error) {
	when, err := x.child(p, v, "if")
	if err != nil {
		return nil, err
	}
	yes, err := x.optionalChild(p, "then")
	if err != nil {
		return nil, err
	}
	no, err := x.optionalChild(p, "else")
	if err != nil {
		return nil, err
	}
	if yes == nil && no == nil && !x.doc.unevaluated {
		return everything(), nil
	}
	branch := func(not bool, then *place) ([]shape, error) {
		t := x.terms(when, not)
		if then != nil {
			t = t.with(x.terms(then, false)...)
		}
		return x.shapes(t)
	}
	met, err := branch(false, yes)
	if err != nil {
		return nil, err
	}
	unmet, err := branch(true, no)
	if err != nil {
		var u *ast.UnsupportedError
		if errors.As(err, &u) {
			return nil, x.refuse(p, "if", "its negation is needed for else: "+u.Error())
		}
		return nil, err
	}
	if no == nil {
		unmet = unseen(unmet)
	}
	return slices.Concat(met, unmet), nil
}

// unseen returns the shapes of a schema under not: what it names does not count as evaluated.
func unseen(in []shape) []shape {
	out := slices.Clone(in)
	for i := range out {
		s := &out[i]
		for j, g := range s.object.groups {
			if g.evaluates {
				if &s.object.groups[0] == &in[i].object.groups[0] {
					s.object.groups = slices.Clone(s.object.groups)
				}
				hidden := *g
				hidden.evaluates = false
				s.object.groups[j] = &hidden
			}
		}
		for j, g := range s.array.groups {
			if g.evaluates {
				if &s.array.groups[0] == &in[i].array.groups[0] {
					s.array.groups = slices.Clone(s.array.groups)
				}
				hidden := *g
				hidden.evaluates = false
				s.array.groups[j] = &hidden
			}
		}
		s.array.found = nil
	}
	return out
}

// withMember returns the shape of the objects with a member of that name or, if has is false,
// without one.
func (x *expander) withMember(name string, has bool) shape {
	s := shape{kind: isObject, object: objectSet{max: -1}}
	if has {
		s.object.required = []string{name}
	} else {
		s.object.groups = []*memberGroup{{declared: []declared{{name, terms{is(x.none)}}}}}
	}
	return s
}

// dependent returns what dependentRequired, dependentSchemas or dependencies allow: objects
// that, for each name, either lack it or meet what depends on it.
func (x *expander) dependent(p *place, keyword string, v *value) ([]shape, error) {
	if v.kind != isObject {
		return nil, x.fail(p, keyword, "an object")
	}
	out := everything()
	for _, name := range v.keys {
		want, err := x.dependency(p, keyword, name, v.fields[name])
		if err != nil {
			return nil, err
		}
		free := append([]shape{x.withMember(name, false)}, everything()[1:]...)
		if want, err = x.meet(want, []shape{x.withMember(name, true)}); err != nil {
			return nil, err
		}
		if out, err = x.meet(out, append(free, want...)); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// dependency returns the shapes of the objects that meet what depends on a name.
func (x *expander) dependency(p *place, keyword, name string, v *value) ([]shape, error) {
	if v.kind == isArray && keyword != "dependentSchemas" {
		names, err := x.names(p, keyword, v)
		return []shape{{kind: isObject, object: objectSet{required: names, max: -1}}}, err
	}
	if keyword == "dependentRequired" {
		return nil, x.fail(p, keyword, "lists of member names")
	}
	sub, err := x.child(p, v, keyword+"/"+escapePointer(name))
	if err != nil {
		return nil, err
	}
	return x.shapes(x.terms(sub, false))
}

// unevaluated applies unevaluatedProperties and unevaluatedItems to what the rest of the schema
// at p allows. Each shape knows which members and items its schemas evaluate.
func (x *expander) unevaluated(p *place, in []shape) ([]shape, error) {
	members, err := x.optionalChild(p, "unevaluatedProperties")
	if err != nil {
		return nil, err
	}
	items, err := x.optionalChild(p, "unevaluatedItems")
	if err != nil || members == nil && items == nil {
		return in, err
	}
	out := slices.Clone(in)
	for i := range out {
		switch s := &out[i]; {
		case s.kind == isObject && members != nil:
			if g := unevaluatedMembers(s); g != nil {
				g.rest = x.terms(members, false)
				s.object.groups = append(slices.Clone(s.object.groups), g)
			}
		case s.kind == isArray && items != nil:
			rest, err := x.unfound(p, s.array.found, items)
			if err != nil {
				return nil, err
			}
			g := &itemGroup{rest: rest, evaluates: true, all: true}
			skip, n := false, 0
			for _, o := range s.array.groups {
				if o.evaluates {
					skip = skip || o.all
					n = max(n, len(o.prefix))
				}
			}
			if !skip {
				g.prefix = make([]terms, n)
				s.array.groups = append(slices.Clone(s.array.groups), g)
			}
		}
	}
	return out, nil
}

// unevaluatedMembers returns a group that names the members that s evaluates and allows any
// value for them. It returns nil if s evaluates all members.
func unevaluatedMembers(s *shape) *memberGroup {
	g := &memberGroup{evaluates: true, all: true}
	for _, o := range s.object.groups {
		if !o.evaluates {
			continue
		}
		if o.all {
			return nil
		}
		for _, d := range o.declared {
			g.declared = append(g.declared, declared{name: d.name})
		}
		for _, n := range o.patterns {
			g.patterns = append(g.patterns, patterned{name: n.name})
		}
	}
	return g
}

// unfound returns the constraint on an item that no keyword has evaluated by its index: it must
// match one of the contains subschemas that mark matching items as evaluated, or
// unevaluatedItems.
func (x *expander) unfound(p *place, found []*place, items *place) (terms, error) {
	if len(found) == 0 {
		return x.terms(items, false), nil
	}
	either := &value{kind: isArray}
	for _, f := range append(slices.Clone(found), items) {
		if f.scope != p.scope {
			return nil, x.refuse(p, "unevaluatedItems", "a contains beside it is in another dynamic scope")
		}
		either.list = append(either.list, f.v)
	}
	made := &value{kind: isObject, keys: []string{"anyOf"}, fields: map[string]*value{"anyOf": either}}
	sub, err := x.doc.add(made, p.path+"/unevaluatedItems", p.base, p.draft)
	if err != nil {
		return nil, err
	}
	if sub, err = x.doc.enter(sub, p.scope); err != nil {
		return nil, err
	}
	return x.terms(sub, false), nil
}

// numberFormat applies the formats of numbers.
func (x *expander) numberFormat(p *place, n *numberSet) error {
	v := p.v.get("format")
	if v == nil || v.kind != isString {
		return nil
	}
	bits, signed := 0, true
	switch v.text {
	case "int8", "int16", "int32", "int64":
		bits, _ = strconv.Atoi(v.text[3:])
	case "uint8", "uint16", "uint32", "uint64":
		bits, _ = strconv.Atoi(v.text[4:])
		signed = false
	default:
		return nil
	}
	low, high := new(big.Int), new(big.Int).Lsh(big.NewInt(1), uint(bits))
	if signed {
		high.Rsh(high, 1)
		low.Neg(high)
	}
	n.whole = true
	n.low = higher(n.low, &bound{at: new(big.Rat).SetInt(low)})
	n.high = lower(n.high, &bound{at: new(big.Rat).SetInt(high), open: true})
	return nil
}
