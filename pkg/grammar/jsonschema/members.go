package jsonschema

import (
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/lamina-mesh/lamina/pkg/grammar/ast"
	"github.com/lamina-mesh/lamina/pkg/grammar/language"
)

// plainName reports whether a name has only one spelling as a JSON string.
func plainName(name string) bool {
	return !strings.ContainsFunc(name,
		func(r rune) bool { return r < 0x20 || r >= utf8.RuneSelf || r == '"' || r == '\\' })
}

// member returns the expression of a name, a colon and a value.
func (b *schemaBuilder) member(name *ast.Expr, value terms) (*ast.Expr, error) {
	v, err := b.value(value)
	if err != nil || v.Op == ast.OpFail {
		return v, err
	}
	if b.strict {
		return ast.Seq(name, ast.Text(": "), v), nil
	}
	return ast.Seq(name, b.space, ast.Text(":"), b.space, v, b.space), nil
}

func (b *schemaBuilder) knownName(name string) *ast.Expr {
	if plainName(name) {
		return ast.Text(`"` + name + `"`)
	}
	if b.strict {
		return ast.Seq(ast.Text(`"`), ast.Literal(name, ast.JSONUnique), ast.Text(`"`))
	}
	return ast.Seq(ast.Text(`"`), ast.Literal(name, ast.JSONCanonical), ast.Text(`"`))
}

func (b *schemaBuilder) extraName(names *language.DFA) (*ast.Expr, error) {
	if names == nil {
		return b.anyString()
	}
	return ast.Seq(ast.Text(`"`), names.Minimal().Graph(ast.JSONCanonical), ast.Text(`"`)), nil
}

// memberState is a state between the members of an object.
type memberState struct {
	next     int   // index in ordered of the first member that may still come
	free     uint8 // members of any order that have come, as a bit set
	exists   uint8 // members that must exist and have come, as a bit set
	count    int   // number of members, if it is bounded
	distinct int   // number of members with certainly distinct names, if a minimum is set
	extra    bool  // an undeclared member is counted in distinct
}

// memberGraph builds the graph of an object's members. For every memberState it has a state
// after a member and, before the next member, up to one more for each member of fixed order
// that may be skipped.
type memberGraph struct {
	b              *schemaBuilder
	plan           *objectPlan
	g              *ast.Graph
	known          map[memberState]int // states after a member
	turns          map[memberState]int // states at which member next, or a later one, may come
	order          []memberState
	pairs          map[string]*ast.Expr
	ordered        []int // members that come in the order of the schema
	free           []int // members that come in any order
	countsMembers  bool  // count is tracked
	countsDistinct bool  // distinct is tracked
}

// memberGraph returns the members of an object, with the commas between them.
func (b *schemaBuilder) memberGraph(plan *objectPlan) (*ast.Expr, error) {
	d := &memberGraph{b: b, plan: plan, g: &ast.Graph{}, known: map[memberState]int{}, turns: map[memberState]int{},
		pairs: map[string]*ast.Expr{}}
	required := 0
	for i, m := range plan.members {
		if m.free {
			d.free = append(d.free, i)
		} else {
			d.ordered = append(d.ordered, i)
		}
		if m.required {
			required++
		}
	}
	d.countsMembers = plan.set.max >= 0 && (len(plan.extras) > 0 || plan.set.max < len(plan.members))
	d.countsDistinct = plan.set.min > required
	start := d.g.Add()
	if plan.set.max != 0 {
		if err := d.before(start, memberState{}); err != nil {
			return nil, err
		}
	}
	if d.mayEnd(memberState{}) {
		d.g.States[start].Final = true
	}
	for i := 0; i < len(d.order); i++ {
		s := d.order[i]
		at := d.known[s]
		d.g.States[at].Final = d.mayEnd(s)
		if d.countsMembers && s.count >= plan.set.max {
			continue
		}
		more := d.g.Add()
		d.g.Edge(at, b.comma(), more)
		if err := d.before(more, s); err != nil {
			return nil, err
		}
		if len(d.g.States) > maxGraph {
			return nil, &ast.LimitError{What: "states of an object", Limit: maxGraph}
		}
	}
	return d.g.Expr(), nil
}

func (d *memberGraph) mayEnd(s memberState) bool {
	for _, i := range d.ordered[s.next:] {
		if d.plan.members[i].required {
			return false
		}
	}
	for j, i := range d.free {
		if d.plan.members[i].required && s.free>>j&1 == 0 {
			return false
		}
	}
	return (!d.countsDistinct || s.distinct >= d.plan.set.min) && s.exists == 1<<len(d.plan.set.exists)-1
}

// after returns the state after a member that leads to s.
func (d *memberGraph) after(s memberState) int {
	id, ok := d.known[s]
	if !ok {
		id = d.g.Add()
		d.known[s] = id
		d.order = append(d.order, s)
	}
	return id
}

func (d *memberGraph) counted(s memberState, extra bool) memberState {
	if d.countsMembers {
		s.count++
	}
	if d.countsDistinct && (!extra || !s.extra) {
		s.distinct = min(s.distinct+1, d.plan.set.min)
		s.extra = s.extra || extra
	}
	return s
}

// before adds the members that may come at s.
func (d *memberGraph) before(from int, s memberState) error {
	for i := range d.plan.extras {
		if err := d.extra(from, s, i); err != nil {
			return err
		}
	}
	for j, i := range d.free {
		if s.free>>j&1 == 0 {
			next := s
			next.free |= 1 << j
			if err := d.named(from, next, i); err != nil {
				return err
			}
		}
	}
	for s.next < len(d.ordered) {
		here, made := d.turn(s)
		d.g.Edge(from, nil, here)
		if !made {
			return nil
		}
		i, next := d.ordered[s.next], s
		next.next++
		if err := d.named(here, next, i); err != nil {
			return err
		}
		if d.plan.members[i].required {
			return nil
		}
		from, s = here, next
	}
	return nil
}

// turn returns the state at which the members of fixed order from s.next on may come.
func (d *memberGraph) turn(s memberState) (id int, made bool) {
	id, ok := d.turns[s]
	if !ok {
		id = d.g.Add()
		d.turns[s] = id
	}
	return id, !ok
}

// named adds a member with a declared name: once without credit for the members that must
// exist, and once for each of them that it can be.
func (d *memberGraph) named(from int, next memberState, i int) error {
	m := d.plan.members[i]
	next = d.counted(next, false)
	add := func(value terms, next memberState) error {
		pair, err := d.pair("="+m.name, func() (*ast.Expr, error) { return d.b.knownName(m.name), nil }, value)
		if err == nil && pair.Op != ast.OpFail {
			d.g.Edge(from, pair, d.after(next))
		}
		return err
	}
	if err := add(m.value, next); err != nil {
		return err
	}
	for _, e := range d.plan.exists[i] {
		if next.exists>>e&1 == 0 {
			met := next
			met.exists |= 1 << e
			if err := add(m.value.with(d.plan.set.exists[e].value...), met); err != nil {
				return err
			}
		}
	}
	return nil
}

func (d *memberGraph) extra(from int, s memberState, index int) error {
	e := d.plan.extras[index]
	next := d.counted(s, true)
	add := func(value terms, next memberState) error {
		pair, err := d.pair(strconv.Itoa(index), func() (*ast.Expr, error) { return d.b.extraName(e.names) }, value)
		if err == nil && pair.Op != ast.OpFail {
			d.g.Edge(from, pair, d.after(next))
		}
		return err
	}
	if err := add(e.value, next); err != nil {
		return err
	}
	for i, want := range d.plan.set.exists {
		if e.exists>>i&1 == 1 && next.exists>>i&1 == 0 {
			met := next
			met.exists |= 1 << i
			if err := add(e.value.with(want.value...), met); err != nil {
				return err
			}
		}
	}
	return nil
}

// pair returns a rule for a member. Equal members share one rule.
func (d *memberGraph) pair(name string, write func() (*ast.Expr, error), value terms) (*ast.Expr, error) {
	key := name + "\x00" + string(termBytes(value))
	if e, ok := d.pairs[key]; ok {
		return e, nil
	}
	n, err := write()
	if err != nil {
		return nil, err
	}
	e, err := d.b.member(n, value)
	if err != nil {
		return nil, err
	}
	if e.Op != ast.OpFail {
		id, err := d.b.add("member "+name, e, false)
		if err != nil {
			return nil, err
		}
		e = ast.Ref(id)
	}
	d.pairs[key] = e
	return e, nil
}
