package jsonschema

import (
	"math/big"
	"slices"

	"github.com/lamina-mesh/lamina/pkg/grammar/ast"
	"github.com/lamina-mesh/lamina/pkg/grammar/language"
)

// negative returns the shapes of the values that do not match the schema at p: by De Morgan,
// the union of the violations of each of its keywords.
func (x *expander) negative(p *place) ([]shape, error) {
	if ref := p.v.get("$ref"); ref != nil && p.draft == draft7 {
		return x.reference(p, "$ref", ref, true)
	}
	if v := p.v.get("format"); v != nil && isAsserted(v.text) {
		return nil, x.refuse(p, "the negation of format", "the complement of a format is not exact")
	}
	out, err := x.negateOwn(p)
	if err != nil {
		return nil, err
	}
	unevaluated, err := x.negateUnevaluated(p)
	if err != nil {
		return nil, err
	}
	out = append(out, unevaluated...)
	for _, key := range p.v.keys {
		s, err := x.negateApplied(p, key, p.v.fields[key])
		if err != nil {
			return nil, err
		}
		out = append(out, s...)
		if len(out) > maxShapes {
			return nil, &ast.LimitError{What: "alternatives of a schema", Limit: maxShapes}
		}
	}
	return out, nil
}

// negateUnevaluated returns the shapes of the values that violate unevaluatedProperties or
// unevaluatedItems and no other keyword of p: some member or item that p leaves unevaluated
// does not match the keyword. Which members those are must not depend on the alternative by
// which a value matches the rest.
func (x *expander) negateUnevaluated(p *place) ([]shape, error) {
	members, err := x.optionalChild(p, "unevaluatedProperties")
	if err != nil {
		return nil, err
	}
	items, err := x.optionalChild(p, "unevaluatedItems")
	if err != nil || members == nil && items == nil {
		return nil, err
	}
	if (members == nil || len(x.terms(members, false)) == 0) && (items == nil || len(x.terms(items, false)) == 0) {
		return nil, nil // they allow everything
	}
	if items != nil {
		return nil, x.refuse(p, "the negation of unevaluatedItems", "it depends on which items are evaluated")
	}
	rest, err := x.evaluated(p)
	if err != nil {
		return nil, err
	}
	var out []shape
	for i := range rest {
		s := &rest[i]
		if s.kind != isObject {
			continue
		}
		if len(out) > 0 {
			return nil, x.refuse(p, "the negation of unevaluatedProperties",
				"which members are evaluated depends on the alternative that matches")
		}
		g := unevaluatedMembers(s)
		if g == nil {
			continue
		}
		for _, not := range x.opposites(x.terms(members, false)) {
			violating := *s
			violating.object.exists = append(slices.Clone(s.object.exists), member{outside: g, value: not})
			out = append(out, violating)
		}
	}
	return out, nil
}

// negateOwn returns the shapes that violate a keyword about one type.
func (x *expander) negateOwn(p *place) ([]shape, error) {
	own, err := x.own(p)
	if err != nil {
		return nil, err
	}
	left := map[valueKind]*shape{}
	for i := range own {
		left[own[i].kind] = &own[i]
	}
	var out []shape
	for _, all := range everything() {
		s := left[all.kind]
		if s == nil {
			out = append(out, all) // the whole type is out
			continue
		}
		switch s.kind {
		case isNumber:
			out = append(out, s.number.opposite()...)
		case isString:
			out = append(out, s.text.opposite()...)
		case isArray:
			least, err := x.count(p, "minItems", 0) // which contains may have raised
			if err != nil {
				return nil, err
			}
			violating, err := x.negateArray(p, &s.array, least)
			if err != nil {
				return nil, err
			}
			out = append(out, violating...)
		case isObject:
			out = append(out, x.negateObject(&s.object)...)
		}
	}
	return out, nil
}

func numbers(n numberSet) shape { return shape{kind: isNumber, number: n} }

// opposite is the complement of n.
func (n *numberSet) opposite() []shape {
	var out []shape
	if n.low != nil {
		out = append(out, numbers(numberSet{high: &bound{n.low.at, !n.low.open}}))
	}
	if n.high != nil {
		out = append(out, numbers(numberSet{low: &bound{n.high.at, !n.high.open}}))
	}
	if n.whole {
		out = append(out, numbers(numberSet{fractional: true}))
	}
	if n.fractional {
		out = append(out, numbers(numberSet{whole: true}))
	}
	for _, m := range n.multiple {
		out = append(out, numbers(numberSet{notMultiple: []*big.Rat{m}}))
	}
	for _, m := range n.notMultiple {
		out = append(out, numbers(numberSet{multiple: []*big.Rat{m}}))
	}
	for _, r := range n.not {
		out = append(out, numbers(numberSet{low: &bound{at: r}, high: &bound{at: r}}))
	}
	return out
}

// opposite is the complement of t, which is not finite.
func (t *textSet) opposite() []shape {
	var out []shape
	if t.min > 0 {
		out = append(out, shape{kind: isString, text: textSet{max: t.min - 1}})
	}
	if t.max >= 0 {
		out = append(out, shape{kind: isString, text: textSet{min: t.max + 1, max: -1}})
	}
	for _, l := range t.in {
		out = append(out, shape{kind: isString, text: textSet{max: -1, out: []*language.Language{l}}})
	}
	return out
}

func (x *expander) negateArray(p *place, a *arraySet, least int) ([]shape, error) {
	var out []shape
	arrays := func(a arraySet) { out = append(out, shape{kind: isArray, array: a}) }
	if least > 0 {
		arrays(arraySet{max: least - 1})
	}
	if a.max >= 0 {
		arrays(arraySet{min: a.max + 1, max: -1})
	}
	if a.unique {
		return nil, x.refuse(p, "the negation of uniqueItems", "a grammar cannot require a repeated item")
	}
	for _, g := range a.groups {
		for i, t := range g.prefix {
			for _, not := range x.opposites(t) {
				violating := &itemGroup{prefix: make([]terms, i+1)}
				violating.prefix[i] = not
				arrays(arraySet{groups: []*itemGroup{violating}, min: i + 1, max: -1})
			}
		}
		for _, not := range x.opposites(g.rest) {
			from := len(g.prefix)
			arrays(arraySet{min: from + 1, max: -1,
				contains: []containing{{from: from, item: not, min: 1, max: -1, path: p.path}}})
		}
	}
	for _, c := range a.contains {
		if c.min > 0 {
			arrays(arraySet{max: -1,
				contains: []containing{{from: c.from, item: c.item, max: c.min - 1, path: c.path}}})
		}
		if c.max >= 0 {
			arrays(arraySet{min: c.max + 1, max: -1,
				contains: []containing{{from: c.from, item: c.item, min: c.max + 1, max: -1, path: c.path}}})
		}
	}
	return out, nil
}

// opposites returns constraints of which a value satisfies at least one if and only if it
// violates t.
func (x *expander) opposites(t terms) []terms {
	var out []terms
	for _, one := range t {
		if one == is(x.none) {
			out = append(out, nil)
			continue
		}
		out = append(out, terms{one ^ 1})
	}
	return out
}

func (x *expander) negateObject(o *objectSet) []shape {
	var out []shape
	objects := func(o objectSet) { out = append(out, shape{kind: isObject, object: o}) }
	for _, name := range o.required {
		out = append(out, x.withMember(name, false))
	}
	if o.min > 0 {
		objects(objectSet{max: o.min - 1})
	}
	if o.max >= 0 {
		objects(objectSet{min: o.max + 1, max: -1, path: o.path})
	}
	for _, g := range o.groups {
		for _, d := range g.declared {
			for _, not := range x.opposites(d.value) {
				objects(objectSet{required: []string{d.name},
					groups: []*memberGroup{{declared: []declared{{d.name, not}}}}, max: -1})
			}
		}
		for _, n := range g.patterns {
			for _, not := range x.opposites(n.value) {
				objects(objectSet{exists: []member{{in: n.name, value: not}}, max: -1})
			}
		}
		for _, not := range x.opposites(g.rest) {
			objects(objectSet{exists: []member{{outside: g, value: not}}, max: -1})
		}
	}
	for _, not := range x.opposites(o.names) {
		objects(objectSet{exists: []member{{name: not}}, max: -1})
	}
	return out
}

// negateApplied returns the shapes that violate a keyword with subschemas or values.
func (x *expander) negateApplied(p *place, key string, v *value) ([]shape, error) {
	switch key {
	case "$ref", "$recursiveRef", "$dynamicRef":
		return x.reference(p, key, v, true)
	case "enum", "const":
		values := []*value{v}
		if key == "enum" {
			if v.kind != isArray {
				return nil, x.fail(p, key, "a list")
			}
			values = v.list
		}
		return x.notValues(p, values)
	case "allOf", "anyOf", "oneOf":
		subs, err := x.list(p, key, v)
		if err != nil {
			return nil, err
		}
		return x.negateCombined(key, subs)
	case "not":
		sub, err := x.child(p, v, key)
		if err != nil {
			return nil, err
		}
		return x.shapes(x.terms(sub, false))
	case "if":
		return x.negateConditional(p, v)
	case "dependentRequired", "dependentSchemas", "dependencies":
		return x.negateDependent(p, key, v)
	}
	return nil, nil
}

func (x *expander) negateCombined(keyword string, subs []*place) ([]shape, error) {
	var none terms
	for _, s := range subs {
		none = none.with(x.terms(s, true)...)
	}
	var out []shape
	if keyword != "allOf" {
		var err error
		if out, err = x.shapes(none); err != nil || keyword == "anyOf" {
			return out, err
		}
	}
	for i, s := range subs {
		if keyword == "allOf" {
			not, err := x.shapes(x.terms(s, true))
			if err != nil {
				return nil, err
			}
			out = append(out, not...)
			continue
		}
		for _, other := range subs[i+1:] { // meeting two alternatives of oneOf breaks it
			both, err := x.shapes(x.terms(s, false).with(x.terms(other, false)...))
			if err != nil {
				return nil, err
			}
			out = append(out, both...)
		}
	}
	return out, nil
}

func (x *expander) negateConditional(p *place, v *value) ([]shape, error) {
	when, err := x.child(p, v, "if")
	if err != nil {
		return nil, err
	}
	var out []shape
	for _, branch := range []struct {
		keyword string
		not     bool
	}{{"then", false}, {"else", true}} {
		sub, err := x.optionalChild(p, branch.keyword)
		if err != nil {
			return nil, err
		}
		if sub == nil {
			continue
		}
		s, err := x.shapes(x.terms(when, branch.not).with(x.terms(sub, true)...))
		if err != nil {
			return nil, err
		}
		out = append(out, s...)
	}
	return out, nil
}

func (x *expander) negateDependent(p *place, keyword string, v *value) ([]shape, error) {
	if v.kind != isObject {
		return nil, x.fail(p, keyword, "an object")
	}
	var out []shape
	for _, name := range v.keys {
		has := []shape{x.withMember(name, true)}
		var violating []shape
		if want := v.fields[name]; want.kind == isArray {
			names, err := x.names(p, keyword, want)
			if err != nil {
				return nil, err
			}
			for _, n := range names {
				violating = append(violating, x.withMember(n, false))
			}
		} else {
			sub, err := x.child(p, want, keyword+"/"+escapePointer(name))
			if err != nil {
				return nil, err
			}
			if violating, err = x.shapes(x.terms(sub, true)); err != nil {
				return nil, err
			}
		}
		s, err := x.meet(has, violating)
		if err != nil {
			return nil, err
		}
		out = append(out, s...)
	}
	return out, nil
}

// notValues returns all values except those of enum or const.
func (x *expander) notValues(p *place, values []*value) ([]shape, error) {
	out := everything()
	var texts []string
	for _, v := range values {
		switch v.kind {
		case isNull:
			out = slices.DeleteFunc(out, func(s shape) bool { return s.kind == isNull })
		case isString:
			texts = append(texts, v.text)
		case isArray, isObject:
			same, err := x.oneOfValues(p, []*value{v})
			if err != nil {
				return nil, err
			}
			not := slices.DeleteFunc(everything(), func(s shape) bool { return s.kind == v.kind })
			if v.kind == isObject {
				not = append(not, x.negateObject(&same[0].object)...)
			} else {
				violating, err := x.negateArray(p, &same[0].array, len(v.list))
				if err != nil {
					return nil, err
				}
				not = append(not, violating...)
			}
			if out, err = x.meet(out, not); err != nil {
				return nil, err
			}
		}
		for i := range out {
			s := &out[i]
			if s.kind != v.kind {
				continue
			}
			switch v.kind {
			case isBool:
				s.yes, s.no = s.yes && !v.flag, s.no && v.flag
			case isNumber:
				r, ok := v.rat()
				if !ok {
					return nil, x.refuse(p, "number "+v.text, "it has too many digits to be represented exactly")
				}
				s.number.not = append(slices.Clone(s.number.not), r)
			}
		}
	}
	out = slices.DeleteFunc(out, func(s shape) bool { return s.kind == isBool && !s.yes && !s.no })
	if len(texts) == 0 {
		return out, nil
	}
	l, err := language.OfTexts(texts)
	if err != nil {
		return nil, err
	}
	for i := range out {
		if out[i].kind == isString {
			out[i].text.out = append(slices.Clone(out[i].text.out), l)
		}
	}
	return out, nil
}
