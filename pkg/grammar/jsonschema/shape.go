package jsonschema

import (
	"cmp"
	"math/big"
	"slices"

	"github.com/lamina-mesh/lamina/pkg/grammar/language"
)

// A schema becomes a union of shapes: sets of values of one type with all constraints on them.
// The intersection of schemas is the union of the pairwise intersections of their shapes.

// term is a schema that a value must match (2 x the id of its place) or must not match (the
// same plus one).
type term int32

// terms is a constraint: the schemas that a value must match together, in ascending order
// without duplicates. The empty constraint allows any value.
type terms []term

func (t terms) with(more ...term) terms {
	out := slices.Concat(t, more)
	slices.Sort(out)
	return slices.Compact(out)
}

// shape is a set of values of one type.
type shape struct {
	kind   valueKind
	yes    bool // for booleans: which are in the set
	no     bool
	number numberSet
	text   textSet
	array  arraySet
	object objectSet
}

// bound is an end of a range of numbers.
type bound struct {
	at   *big.Rat
	open bool
}

// numberSet is a set of numbers.
type numberSet struct {
	low, high   *bound
	whole       bool // only integers
	fractional  bool // no integers
	multiple    []*big.Rat
	notMultiple []*big.Rat // excluded multiples
	not         []*big.Rat
}

// textSet is a set of strings.
type textSet struct {
	finite   bool
	texts    []string // if finite
	min, max int      // in characters; max < 0 means no bound
	in, out  []*language.Language
}

// arraySet is a set of arrays.
type arraySet struct {
	groups   []*itemGroup
	min, max int
	unique   bool
	contains []containing
	found    []*place // contains whose matching items count as evaluated
	path     string   // for errors
}

// itemGroup holds the constraints of one schema on items by their index.
type itemGroup struct {
	prefix    []terms
	rest      terms
	evaluates bool // what it names counts as evaluated
	all       bool // it names every item
}

// containing requires min to max items from an index on to match schemas.
type containing struct {
	from     int
	item     terms
	min, max int
	path     string
}

// objectSet is a set of objects.
type objectSet struct {
	groups   []*memberGroup
	required []string
	names    terms // constraint on names
	min, max int
	exists   []member
	path     string // of minProperties, for errors
}

// memberGroup holds the constraints of one schema on members by their name.
type memberGroup struct {
	declared  []declared
	patterns  []patterned
	rest      terms
	evaluates bool
	all       bool
	unordered bool // from a const, whose members may come in any order
}

type declared struct {
	name  string
	value terms
}

type patterned struct {
	name  *language.Language
	value terms
}

// member is a member that an object must have. Its name is outside a group, in a language, or
// matches schemas; its value matches schemas.
type member struct {
	outside *memberGroup
	in      *language.Language
	name    terms
	value   terms
}

// value returns the group's constraint on the value of the member of that name.
func (g *memberGroup) value(name string) terms {
	var out terms
	known := false
	for _, d := range g.declared {
		if d.name == name {
			out, known = out.with(d.value...), true
		}
	}
	for _, p := range g.patterns {
		if p.name.Accepts(name) {
			out, known = out.with(p.value...), true
		}
	}
	if !known {
		return g.rest
	}
	return out
}

// everything returns the shapes of all values.
func everything() []shape {
	return []shape{
		{kind: isObject, object: objectSet{max: -1}},
		{kind: isArray, array: arraySet{max: -1}},
		{kind: isString, text: textSet{max: -1}},
		{kind: isNumber},
		{kind: isBool, yes: true, no: true},
		{kind: isNull},
	}
}

// higher returns the stronger of two lower bounds, lower the stronger of two upper bounds.
func higher(a, b *bound) *bound { return stronger(a, b, 1) }
func lower(a, b *bound) *bound  { return stronger(a, b, -1) }

func stronger(a, b *bound, sign int) *bound {
	switch {
	case a == nil:
		return b
	case b == nil:
		return a
	}
	switch c := sign * a.at.Cmp(b.at); {
	case c > 0:
		return a
	case c < 0:
		return b
	}
	return &bound{a.at, a.open || b.open}
}

// least returns the smaller of two maximum counts. A negative count means no maximum.
func least(a, b int) int {
	if a < 0 || b >= 0 && b < a {
		return b
	}
	return a
}

// meetShapes returns the intersection of two shapes, or false if it is certainly empty.
func meetShapes(a, b *shape) (shape, bool) {
	if a.kind != b.kind {
		return shape{}, false
	}
	out := shape{kind: a.kind}
	switch a.kind {
	case isBool:
		out.yes, out.no = a.yes && b.yes, a.no && b.no
		return out, out.yes || out.no
	case isNumber:
		x, y := &a.number, &b.number
		out.number = numberSet{
			low: higher(x.low, y.low), high: lower(x.high, y.high), whole: x.whole || y.whole,
			fractional: x.fractional || y.fractional,
			multiple:   slices.Concat(x.multiple, y.multiple), notMultiple: slices.Concat(x.notMultiple, y.notMultiple),
			not: slices.Concat(x.not, y.not),
		}
		return out, !out.number.isEmpty()
	case isString:
		x, y := &a.text, &b.text
		out.text = textSet{
			min: max(x.min, y.min), max: least(x.max, y.max), in: joinLangs(x.in, y.in), out: joinLangs(x.out, y.out),
			finite: x.finite || y.finite, texts: x.texts,
		}
		switch {
		case !x.finite:
			out.text.texts = y.texts
		case y.finite:
			in := make(map[string]bool, len(y.texts))
			for _, t := range y.texts {
				in[t] = true
			}
			out.text.texts = slices.DeleteFunc(slices.Clone(x.texts), func(t string) bool { return !in[t] })
		}
		return out, !out.text.isEmpty()
	case isArray:
		x, y := &a.array, &b.array
		out.array = arraySet{
			groups: slices.Concat(x.groups, y.groups), min: max(x.min, y.min), max: least(x.max, y.max),
			unique: x.unique || y.unique, contains: slices.Concat(x.contains, y.contains),
			found: slices.Concat(x.found, y.found), path: cmp.Or(x.path, y.path),
		}
		return out, out.array.max < 0 || out.array.min <= out.array.max
	case isObject:
		x, y := &a.object, &b.object
		out.object = objectSet{
			groups: slices.Concat(x.groups, y.groups), required: slices.Clone(x.required),
			names: x.names.with(y.names...),
			min:   max(x.min, y.min), max: least(x.max, y.max), exists: slices.Concat(x.exists, y.exists),
			path: cmp.Or(x.path, y.path),
		}
		for _, name := range y.required {
			if !slices.Contains(out.object.required, name) {
				out.object.required = append(out.object.required, name)
			}
		}
		o := &out.object
		return out, o.max < 0 || o.min <= o.max && len(o.required) <= o.max
	}
	return out, true
}

func joinLangs(a, b []*language.Language) []*language.Language {
	out := slices.Clone(a)
	for _, l := range b {
		if !slices.ContainsFunc(out, func(o *language.Language) bool { return o.Key == l.Key }) {
			out = append(out, l)
		}
	}
	return out
}

func (n *numberSet) isEmpty() bool {
	if n.whole && n.fractional {
		return true
	}
	if n.low == nil || n.high == nil {
		return false
	}
	c := n.low.at.Cmp(n.high.at)
	if c > 0 || c == 0 && (n.low.open || n.high.open) {
		return true
	}
	if c == 0 {
		at := n.low.at
		return n.whole && !at.IsInt() || n.fractional && at.IsInt() ||
			slices.ContainsFunc(n.not, func(r *big.Rat) bool { return r.Cmp(at) == 0 }) ||
			slices.ContainsFunc(n.multiple, func(r *big.Rat) bool { return !isMultiple(at, r) }) ||
			slices.ContainsFunc(n.notMultiple, func(r *big.Rat) bool { return isMultiple(at, r) })
	}
	return false
}

func isMultiple(n, of *big.Rat) bool { return new(big.Rat).Quo(n, of).IsInt() }

func (t *textSet) isEmpty() bool {
	if t.max >= 0 && t.min > t.max {
		return true
	}
	if !t.finite {
		return false
	}
	t.texts = slices.DeleteFunc(slices.Clone(t.texts), func(text string) bool { return !t.fits(text) })
	return len(t.texts) == 0
}

// fits reports whether text keeps to the bounds and languages.
func (t *textSet) fits(text string) bool {
	n := len([]rune(text))
	if n < t.min || t.max >= 0 && n > t.max {
		return false
	}
	return !slices.ContainsFunc(t.in, func(l *language.Language) bool { return !l.Accepts(text) }) &&
		!slices.ContainsFunc(t.out, func(l *language.Language) bool { return l.Accepts(text) })
}
