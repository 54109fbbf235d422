package jsonschema

import (
	"errors"
	"math/big"
	"slices"
	"strconv"

	"github.com/lamina-mesh/lamina/pkg/grammar/ast"
	"github.com/lamina-mesh/lamina/pkg/grammar/language"
)

// own returns the shapes of the keywords that concern one type each.
func (x *expander) own(p *place) ([]shape, error) {
	types, err := x.types(p)
	if err != nil {
		return nil, err
	}
	var out []shape
	for _, s := range everything() {
		if types != nil && !slices.Contains(types, kindNames[s.kind]) &&
			(s.kind != isNumber || !slices.Contains(types, "integer")) {
			continue
		}
		ok := true
		switch s.kind {
		case isNumber:
			s.number.whole = types != nil && !slices.Contains(types, "number")
			err = x.number(p, &s.number)
			ok = !s.number.isEmpty()
		case isString:
			err = x.text(p, &s.text)
			ok = !s.text.isEmpty()
		case isArray:
			err = x.array(p, &s.array)
			ok = s.array.max < 0 || s.array.min <= s.array.max
		case isObject:
			err = x.object(p, &s.object)
			o := &s.object
			ok = o.max < 0 || o.min <= o.max && len(o.required) <= o.max
		}
		if err != nil {
			return nil, err
		}
		if ok {
			out = append(out, s)
		}
	}
	return out, nil
}

// types lists the types that a schema names, or nil for any.
func (x *expander) types(p *place) ([]string, error) {
	v := p.v.get("type")
	if v == nil {
		// By the specification every other type would pass, but a schema that bounds
		// the number of its items means an array.
		items := p.v.get("items") != nil || p.v.get("prefixItems") != nil
		bounded := p.v.get("minItems") != nil || p.v.get("maxItems") != nil
		if items && bounded && p.v.get("enum") == nil && p.v.get("const") == nil && p.v.get("$ref") == nil {
			return []string{"array"}, nil
		}
		return nil, nil
	}
	list := []*value{v}
	if v.kind == isArray {
		list = v.list
	}
	out := []string{}
	for _, t := range list {
		if t.kind != isString || t.text != "integer" && !slices.Contains(kindNames[:], t.text) {
			return nil, x.fail(p, "type", "null, boolean, integer, number, string, array or object, or a list of them")
		}
		out = append(out, t.text)
	}
	return out, nil
}

// count reads a keyword whose value is a whole number from 0, or returns absent.
func (x *expander) count(p *place, keyword string, absent int) (int, error) {
	v := p.v.get(keyword)
	if v == nil {
		return absent, nil
	}
	r, ok := v.rat()
	if !ok || !r.IsInt() || r.Sign() < 0 {
		return 0, x.fail(p, keyword, "a non-negative integer")
	}
	if !r.Num().IsInt64() || r.Num().Int64() > ast.MaxRepeat {
		if keyword[:3] == "max" {
			return -1, nil // no text is that long
		}
		return 0, &ast.LimitError{What: "in " + keyword, Limit: ast.MaxRepeat}
	}
	return int(r.Num().Int64()), nil
}

func (x *expander) rational(p *place, keyword string) (*big.Rat, error) {
	v := p.v.get(keyword)
	if v == nil {
		return nil, nil
	}
	if v.kind != isNumber {
		return nil, x.fail(p, keyword, "a number")
	}
	r, ok := v.rat()
	if !ok {
		return nil, x.refuse(p, keyword, "the number has too many digits to be represented exactly")
	}
	return r, nil
}

func (x *expander) number(p *place, n *numberSet) error {
	for _, end := range []struct {
		keyword, open string
		low           bool
	}{{"minimum", "exclusiveMinimum", true}, {"maximum", "exclusiveMaximum", false}} {
		at, err := x.rational(p, end.keyword)
		if err != nil {
			return err
		}
		var b *bound
		if at != nil {
			b = &bound{at: at}
		}
		if v := p.v.get(end.open); v != nil {
			if v.kind == isBool { // draft 4
				if b != nil {
					b.open = v.flag
				}
			} else {
				at, err := x.rational(p, end.open)
				if err != nil {
					return err
				}
				if end.low {
					b = higher(b, &bound{at, true})
				} else {
					b = lower(b, &bound{at, true})
				}
			}
		}
		if end.low {
			n.low = b
		} else {
			n.high = b
		}
	}
	m, err := x.rational(p, "multipleOf")
	if err != nil {
		return err
	}
	if m != nil {
		if m.Sign() <= 0 {
			return x.fail(p, "multipleOf", "a positive number")
		}
		n.multiple = []*big.Rat{m}
	}
	return x.numberFormat(p, n)
}

func (x *expander) text(p *place, t *textSet) error {
	var err error
	if t.min, err = x.count(p, "minLength", 0); err != nil {
		return err
	}
	if t.max, err = x.count(p, "maxLength", -1); err != nil {
		return err
	}
	if v := p.v.get("pattern"); v != nil {
		if v.kind != isString {
			return x.fail(p, "pattern", "a string")
		}
		l, err := x.pattern(p, "pattern", v.text)
		if err != nil {
			return err
		}
		t.in = append(t.in, l)
	}
	l, err := x.format(p)
	if err != nil {
		return err
	}
	if l != nil {
		t.in = append(t.in, l)
	}
	return nil
}

// pattern returns the language of a regular expression in a schema.
func (x *expander) pattern(p *place, keyword, source string) (*language.Language, error) {
	if l := x.langs["pattern "+source]; l != nil {
		return l, nil
	}
	l, err := language.Pattern(source)
	if err != nil {
		var refused *ast.UnsupportedError
		var malformed *ast.SyntaxError
		switch {
		case errors.As(err, &refused):
			return nil, x.refuse(p, keyword+" "+strconv.Quote(source), refused.Feature+": "+refused.Why)
		case errors.As(err, &malformed):
			return nil, x.fail(p, keyword, "a regular expression: "+malformed.Error())
		}
		return nil, err
	}
	x.langs[l.Key] = l
	return l, nil
}

func (x *expander) array(p *place, a *arraySet) error {
	var err error
	a.path = p.path
	if a.min, err = x.count(p, "minItems", 0); err != nil {
		return err
	}
	if a.max, err = x.count(p, "maxItems", -1); err != nil {
		return err
	}
	if v := p.v.get("uniqueItems"); v != nil {
		if v.kind != isBool {
			return x.fail(p, "uniqueItems", "true or false")
		}
		a.unique = v.flag
	}
	g := &itemGroup{evaluates: true}
	prefix, rest, restName := p.v.get("prefixItems"), p.v.get("items"), "items"
	prefixName := "prefixItems"
	if p.draft != draft2020 {
		prefix = nil // it came with 2020-12
	}
	if rest != nil && rest.kind == isArray { // draft 7
		prefix, prefixName = rest, "items"
		rest, restName = p.v.get("additionalItems"), "additionalItems"
	}
	if prefix != nil {
		if prefix.kind != isArray {
			return x.fail(p, prefixName, "a list of schemas")
		}
		for i, s := range prefix.list {
			sub, err := x.child(p, s, prefixName+"/"+strconv.Itoa(i))
			if err != nil {
				return err
			}
			g.prefix = append(g.prefix, x.terms(sub, false))
		}
	}
	if rest != nil {
		sub, err := x.child(p, rest, restName)
		if err != nil {
			return err
		}
		g.rest, g.all = x.terms(sub, false), true
	}
	if prefix != nil || rest != nil {
		a.groups = append(a.groups, g)
	}
	return x.contains(p, a)
}

func (x *expander) contains(p *place, a *arraySet) error {
	v := p.v.get("contains")
	if v == nil {
		return nil
	}
	sub, err := x.child(p, v, "contains")
	if err != nil {
		return err
	}
	c := containing{item: x.terms(sub, false), path: p.path}
	if c.min, err = x.count(p, "minContains", 1); err != nil {
		return err
	}
	if c.max, err = x.count(p, "maxContains", -1); err != nil {
		return err
	}
	if c.min > 0 || c.max >= 0 {
		a.contains = append(a.contains, c)
		a.min = max(a.min, c.min)
	}
	if x.doc.unevaluated && p.draft == draft2020 {
		a.found = append(a.found, sub)
	}
	return nil
}

func (x *expander) object(p *place, o *objectSet) error {
	var err error
	if o.min, err = x.count(p, "minProperties", 0); err != nil {
		return err
	}
	if o.max, err = x.count(p, "maxProperties", -1); err != nil {
		return err
	}
	o.path = p.path
	if v := p.v.get("required"); v != nil && v.kind != isBool { // draft 3 has a flag there
		if o.required, err = x.names(p, "required", v); err != nil {
			return err
		}
	}
	g, err := x.members(p)
	if err != nil {
		return err
	}
	if g != nil {
		o.groups = append(o.groups, g)
	}
	if v := p.v.get("propertyNames"); v != nil {
		sub, err := x.child(p, v, "propertyNames")
		if err != nil {
			return err
		}
		o.names = x.terms(sub, false)
	}
	return nil
}

// names reads a list of strings, each once.
func (x *expander) names(p *place, keyword string, v *value) ([]string, error) {
	if v.kind != isArray {
		return nil, x.fail(p, keyword, "a list of strings")
	}
	var out []string
	seen := map[string]bool{}
	for _, n := range v.list {
		if n.kind != isString {
			return nil, x.fail(p, keyword, "a list of strings")
		}
		if !seen[n.text] {
			seen[n.text] = true
			out = append(out, n.text)
		}
	}
	return out, nil
}

// members reads properties, patternProperties and additionalProperties. It returns nil if the
// schema has none of them.
func (x *expander) members(p *place) (*memberGroup, error) {
	g := &memberGroup{evaluates: true}
	some := false
	if v := p.v.get("properties"); v != nil {
		if v.kind != isObject {
			return nil, x.fail(p, "properties", "an object of schemas")
		}
		some = true
		for _, name := range v.keys {
			sub, err := x.child(p, v.fields[name], "properties/"+escapePointer(name))
			if err != nil {
				return nil, err
			}
			g.declared = append(g.declared, declared{name, x.terms(sub, false)})
		}
	}
	if v := p.v.get("patternProperties"); v != nil {
		if v.kind != isObject {
			return nil, x.fail(p, "patternProperties", "an object of schemas")
		}
		some = true
		for _, source := range v.keys {
			sub, err := x.child(p, v.fields[source], "patternProperties/"+escapePointer(source))
			if err != nil {
				return nil, err
			}
			l, err := x.pattern(p, "patternProperties", source)
			if err != nil {
				return nil, err
			}
			g.patterns = append(g.patterns, patterned{l, x.terms(sub, false)})
		}
	}
	if v := p.v.get("additionalProperties"); v != nil {
		sub, err := x.child(p, v, "additionalProperties")
		if err != nil {
			return nil, err
		}
		some = true
		g.rest, g.all = x.terms(sub, false), true
	}
	if !some {
		return nil, nil
	}
	return g, nil
}
