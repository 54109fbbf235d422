package jsonschema

import (
	"slices"

	"github.com/lamina-mesh/lamina/pkg/grammar/ast"
	"github.com/lamina-mesh/lamina/pkg/grammar/charset"
	"github.com/lamina-mesh/lamina/pkg/grammar/language"
)

const (
	maxFree   = 5  // members of an object that may come in any order
	maxPieces = 32 // classes of member names
	maxExists = 6  // members that must exist under a name that is not fixed
)

// plannedMember is a member whose name the schema declares.
type plannedMember struct {
	name     string
	value    terms
	required bool
	free     bool // it may come anywhere, not only in the order of the schema
}

// extra is a class of undeclared members that share one constraint on their value.
type extra struct {
	names  *language.DFA // nil means every string
	value  terms
	exists uint8 // the entries of objectSet.exists that they can satisfy, as a bit set
}

// objectPlan is the input for the graph of an object's members.
type objectPlan struct {
	set     *objectSet
	members []plannedMember
	extras  []extra
	exists  [][]int // by member: the entries of set.exists that it can satisfy
}

// object returns the expression of an object: "{", members and "}". Declared members come in
// the order of the schema, other members anywhere.
func (b *schemaBuilder) object(o *objectSet) (*ast.Expr, error) {
	plan, ok, err := b.plan(o)
	if err != nil {
		return nil, err
	}
	if !ok {
		return ast.Fail(), nil
	}
	inside, err := b.memberGraph(plan)
	if err != nil {
		return nil, err
	}
	return ast.Seq(ast.Text("{"), b.gap(), inside, ast.Text("}")), nil
}

func (b *schemaBuilder) plan(o *objectSet) (*objectPlan, bool, error) {
	if len(o.exists) > maxExists {
		return nil, false, &ast.LimitError{What: "members that must exist under an unknown name", Limit: maxExists}
	}
	var names []string
	known := map[string]bool{}
	declaring := 0 // groups that declare members; an unordered group counts as two
	for _, g := range o.groups {
		if len(g.declared) > 0 {
			declaring++
		}
		if g.unordered {
			declaring += 2
		}
		for _, d := range g.declared {
			if !known[d.name] {
				known[d.name] = true
				names = append(names, d.name)
			}
		}
	}
	listed := len(names)
	for _, name := range o.required {
		if !known[name] {
			known[name] = true
			names = append(names, name)
		}
	}
	allowed, err := b.nameShapes(o)
	if err != nil {
		return nil, false, err
	}
	plan := &objectPlan{set: o}
	anyOrder := declaring > 1 && len(names) <= maxFree
	for i, name := range names {
		m := plannedMember{name: name, required: slices.Contains(o.required, name)}
		for _, g := range o.groups {
			m.value = m.value.with(g.value(name)...)
		}
		if !fitsAny(allowed, name) {
			m.value = terms{is(b.x.none)}
		}
		if b.x.never(m.value) {
			if m.required {
				return nil, false, nil
			}
			continue
		}
		m.free = !b.strict && (anyOrder || i >= listed && len(names)-listed <= maxFree)
		plan.members = append(plan.members, m)
	}
	if plan.extras, err = b.extras(o, names, allowed); err != nil {
		return nil, false, err
	}
	for _, m := range plan.members {
		var may []int
		for i, e := range o.exists {
			is, err := b.mayBe(e, m.name)
			if err != nil {
				return nil, false, err
			}
			if is {
				may = append(may, i)
			}
		}
		plan.exists = append(plan.exists, may)
	}
	if b.strict && len(plan.extras) > 0 {
		return nil, false, &ast.UnsupportedError{Kind: "schema", Feature: "uniqueItems", Path: b.unique,
			Why: "items may be objects with arbitrary members, and equal objects may list them in different orders"}
	}
	distinct := len(plan.members)
	if len(plan.extras) > 0 {
		distinct++
	}
	if o.min > distinct && len(plan.extras) > 0 {
		return nil, false, &ast.UnsupportedError{Kind: "schema", Feature: "minProperties", Path: o.path,
			Why: "it requires more members than have declared names, and other members might repeat a name"}
	}
	return plan, true, nil
}

// nameShapes returns the shapes of the allowed member names, or nil if any name is allowed.
func (b *schemaBuilder) nameShapes(o *objectSet) ([]shape, error) {
	if len(o.names) == 0 {
		return nil, nil
	}
	shapes, err := b.x.shapes(o.names)
	if err != nil {
		return nil, err
	}
	out := []shape{}
	for _, s := range shapes {
		if s.kind == isString {
			out = append(out, s)
		}
	}
	return out, nil
}

func fitsAny(allowed []shape, name string) bool {
	return allowed == nil || slices.ContainsFunc(allowed, func(s shape) bool {
		return s.text.fits(name) && (!s.text.finite || slices.Contains(s.text.texts, name))
	})
}

// mayBe reports whether a member of that name can be the one that e requires to exist.
func (b *schemaBuilder) mayBe(e member, name string) (bool, error) {
	switch {
	case e.in != nil:
		return e.in.Accepts(name), nil
	case e.outside != nil:
		return !slices.ContainsFunc(e.outside.declared, func(d declared) bool { return d.name == name }) &&
			!slices.ContainsFunc(e.outside.patterns, func(p patterned) bool { return p.name.Accepts(name) }), nil
	case e.name != nil:
		allowed, err := b.nameShapes(&objectSet{names: e.name})
		return fitsAny(allowed, name), err
	}
	return true, nil
}

// unionDFA returns the DFA of the strings of all shapes.
func unionDFA(shapes []shape) (*language.DFA, error) {
	d := &language.DFA{Part: charset.NewPartition(nil)}
	for i := range shapes {
		one, err := shapes[i].text.dfa()
		if err != nil {
			return nil, err
		}
		if d, err = language.Union(d, one); err != nil {
			return nil, err
		}
	}
	return d, nil
}

// extras divides the undeclared names into classes, by the patterns that they match and by the
// members that must exist.
func (b *schemaBuilder) extras(o *objectSet, names []string, allowed []shape) ([]extra, error) {
	type piece struct {
		names *language.DFA
		in    map[string]bool
	}
	pieces := []piece{{in: map[string]bool{}}}
	if allowed != nil {
		d, err := unionDFA(allowed)
		if err != nil {
			return nil, err
		}
		pieces[0].names = d
	}
	if len(names) > 0 {
		known, err := language.Texts(names)
		if err != nil {
			return nil, err
		}
		from := pieces[0].names
		if from == nil {
			from = language.Any()
		}
		if pieces[0].names, err = language.Subtract(from, known); err != nil {
			return nil, err
		}
	}
	criteria, err := b.criteria(o)
	if err != nil {
		return nil, err
	}
	for _, c := range criteria {
		match, err := c.DFA()
		if err != nil {
			return nil, err
		}
		var split []piece
		for _, p := range pieces {
			from := p.names
			if from == nil {
				from = language.Any()
			}
			in, err := language.Intersect(from, match)
			if err != nil {
				return nil, err
			}
			out, err := language.Subtract(from, match)
			if err != nil {
				return nil, err
			}
			if !in.IsEmpty() {
				matched := map[string]bool{c.Key: true}
				for k := range p.in {
					matched[k] = true
				}
				split = append(split, piece{in, matched})
			}
			if !out.IsEmpty() {
				split = append(split, piece{out, p.in})
			}
		}
		if pieces = split; len(pieces) > maxPieces {
			return nil, &ast.LimitError{What: "classes of member names", Limit: maxPieces}
		}
	}
	var out []extra
	for _, p := range pieces {
		if p.names != nil && p.names.IsEmpty() {
			continue
		}
		e := extra{names: p.names}
		for _, g := range o.groups {
			known := false
			for _, q := range g.patterns {
				if p.in[q.name.Key] {
					e.value, known = e.value.with(q.value...), true
				}
			}
			if !known {
				e.value = e.value.with(g.rest...)
			}
		}
		for i, want := range o.exists {
			if b.pieceMayBe(want, p.in) {
				e.exists |= 1 << i
			}
		}
		if !b.x.never(e.value) {
			out = append(out, e)
		}
	}
	return out, nil
}

func (b *schemaBuilder) pieceMayBe(e member, in map[string]bool) bool {
	switch {
	case e.in != nil:
		return in[e.in.Key]
	case e.outside != nil:
		if l, err := outsideLang(e.outside); err == nil && l != nil && in[l.Key] {
			return false
		}
		return !slices.ContainsFunc(e.outside.patterns, func(p patterned) bool { return in[p.name.Key] })
	case e.name != nil:
		return in[namesKey(e.name)]
	}
	return true
}

func namesKey(t terms) string { return "names " + string(termBytes(t)) }

func termBytes(t terms) []byte {
	var out []byte
	for _, one := range t {
		out = language.AppendInt32(out, int32(one))
	}
	return out
}

// outsideLang returns the names that a group declares, or nil if it declares none.
func outsideLang(g *memberGroup) (*language.Language, error) {
	if len(g.declared) == 0 {
		return nil, nil
	}
	names := make([]string, len(g.declared))
	for i, d := range g.declared {
		names[i] = d.name
	}
	return language.OfTexts(names)
}

// criteria lists the languages that divide names into classes.
func (b *schemaBuilder) criteria(o *objectSet) ([]*language.Language, error) {
	var out []*language.Language
	add := func(l *language.Language) {
		if l != nil && !slices.ContainsFunc(out, func(o *language.Language) bool { return o.Key == l.Key }) {
			out = append(out, l)
		}
	}
	for _, g := range o.groups {
		for _, p := range g.patterns {
			add(p.name)
		}
	}
	for _, e := range o.exists {
		switch {
		case e.in != nil:
			add(e.in)
		case e.outside != nil:
			l, err := outsideLang(e.outside)
			if err != nil {
				return nil, err
			}
			add(l)
			for _, p := range e.outside.patterns {
				add(p.name)
			}
		case e.name != nil:
			allowed, err := b.nameShapes(&objectSet{names: e.name})
			if err != nil {
				return nil, err
			}
			d, err := unionDFA(allowed)
			if err != nil {
				return nil, err
			}
			add(&language.Language{Key: namesKey(e.name), Auto: d})
		}
	}
	return out, nil
}
