package grammar

import (
	"encoding/binary"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"strings"
)

// schemaBuilder writes the rules of a schema: one for every demand on a value.
type schemaBuilder struct {
	x       *expander
	space   *expr // between tokens of JSON
	rules   []rule
	byTerms map[string]int
	byKey   map[string]int // rules shared by their text: numbers, strings
	todo    []pending
	// strict spells every value in one way alone, as items that must differ are.
	strict bool
	unique string // where it says that they must differ
	counts []itemCount
}

type pending struct {
	rule   int
	want   terms
	strict bool
	unique string
}

func (b *schemaBuilder) add(name string, body *expr, apart bool) (int, error) {
	if len(b.rules) >= maxRules {
		return 0, &LimitError{What: "rules", Limit: maxRules}
	}
	b.rules = append(b.rules, rule{name: name, body: body, apart: apart})
	return len(b.rules) - 1, nil
}

// value is a value that meets t.
func (b *schemaBuilder) value(t terms) (*expr, error) {
	if b.x.never(t) {
		return fail(), nil
	}
	key := make([]byte, 0, 4*len(t)+1)
	if b.strict {
		key = append(key, 1)
	}
	for _, one := range t {
		key = binary.LittleEndian.AppendUint32(key, uint32(one))
	}
	if id, ok := b.byTerms[string(key)]; ok {
		return ref(id), nil
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
	return ref(id), nil
}

// finish writes the rules that are still to be written.
func (b *schemaBuilder) finish() error {
	for len(b.todo) > 0 {
		next := b.todo[len(b.todo)-1]
		b.todo = b.todo[:len(b.todo)-1]
		b.strict, b.unique = next.strict, next.unique
		shapes, err := b.x.shapes(next.want)
		if err != nil {
			return err
		}
		subs := make([]*expr, len(shapes))
		for i := range shapes {
			if subs[i], err = b.shape(&shapes[i]); err != nil {
				return err
			}
		}
		b.rules[next.rule].body = alt(subs...)
	}
	for _, key := range slices.Sorted(maps.Keys(b.x.langs)) {
		if err := b.x.langs[key].err; err != nil {
			return err
		}
	}
	return nil
}

func (b *schemaBuilder) shape(s *shape) (*expr, error) {
	switch s.kind {
	case isNull:
		return lit("null"), nil
	case isBool:
		out := fail()
		if s.no {
			out = lit("false")
		}
		if s.yes {
			out = alt(lit("true"), out)
		}
		return out, nil
	case isNumber:
		return b.number(&s.number)
	case isString:
		inner, err := b.text(&s.text)
		if err != nil {
			return nil, err
		}
		if inner.op == opRule {
			return inner, nil // quotes and all
		}
		return seq(lit(`"`), inner, lit(`"`)), nil
	case isArray:
		return b.array(&s.array)
	}
	return b.object(&s.object)
}

// shared is the rule of that key, made where it is not there yet.
func (b *schemaBuilder) shared(key string, apart bool, body func() (*expr, error)) (*expr, error) {
	if id, ok := b.byKey[key]; ok {
		return ref(id), nil
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
	return ref(id), nil
}

func digit(lo, hi rune) *expr { return char(runeSet{{lo, hi}}, plainUTF8) }

func (b *schemaBuilder) number(n *numberSet) (*expr, error) {
	plain := n.low == nil && n.high == nil && len(n.multiple)+len(n.unlike)+len(n.not) == 0 && !n.broken
	if b.strict {
		return b.strictNumber(n)
	}
	integer := seq(optional(lit("-")), alt(lit("0"), seq(digit('1', '9'), repeat(digit('0', '9'), 0, wholeDigits-1))))
	switch {
	case plain && n.whole:
		return b.shared("integer", false, func() (*expr, error) { return seq(integer, optional(lit(".0"))), nil })
	case plain:
		return b.shared("number", false, func() (*expr, error) {
			// As far as every number is one of a double's.
			exponent := alt(repeat(digit('0', '9'), 1, 2), seq(lit("1"), repeat(digit('0', '9'), 2, 2)), seq(lit("2"), digit('0', '8'), digit('0', '9')))
			return seq(integer, optional(seq(lit("."), repeat(digit('0', '9'), 1, fractionDigits))),
				optional(seq(char(runesOf("eE"), plainUTF8), optional(char(runesOf("+-"), plainUTF8)), exponent))), nil
		})
	}
	if n.isEmpty() {
		return fail(), nil
	}
	if n.low != nil && n.high != nil && n.low.at.Cmp(n.high.at) == 0 {
		text, ok := decimal(n.low.at)
		if !ok || len(text) > 2*maxExponent {
			return nil, &LimitError{What: "digits of a number", Limit: 2 * maxExponent}
		}
		if n.low.at.IsInt() {
			return seq(lit(text), optional(lit(".0"))), nil
		}
		return lit(text), nil
	}
	return b.shared("number "+n.key(), false, func() (*expr, error) {
		d, err := numberDFA(n, wholeDigits, fractionDigits)
		if err != nil {
			return nil, err
		}
		return d.graph(plainUTF8), nil
	})
}

// key is equal for equal sets.
func (n *numberSet) key() string {
	var b strings.Builder
	for _, end := range []*bound{n.low, n.high} {
		if end == nil {
			b.WriteString("_ ")
			continue
		}
		fmt.Fprintf(&b, "%s,%t ", end.at.RatString(), end.open)
	}
	fmt.Fprint(&b, n.whole, n.broken)
	for _, list := range [][]*big.Rat{n.multiple, n.unlike, n.not} {
		b.WriteString(";")
		for _, r := range list {
			b.WriteString(r.RatString() + ",")
		}
	}
	return b.String()
}

// anyString is the rule of every string, with its quotes.
func (b *schemaBuilder) anyString() (*expr, error) {
	return b.shared("string", false, func() (*expr, error) {
		return seq(lit(`"`), star(char(anyRune(), jsonAny)), lit(`"`)), nil
	})
}

// text is the inside of a string, or a rule with the quotes.
func (b *schemaBuilder) text(t *textSet) (*expr, error) {
	if t.isEmpty() {
		return fail(), nil
	}
	anyWay, canonical := jsonAny, jsonCanonical
	if b.strict {
		anyWay, canonical = jsonUnique, jsonUnique
	}
	switch {
	case t.finite && len(t.texts) <= 8:
		subs := make([]*expr, len(t.texts))
		for i, text := range t.texts {
			subs[i] = literal(text, canonical)
		}
		return alt(subs...), nil
	case t.finite:
		d, err := textsDFA(t.texts)
		if err != nil {
			return nil, err
		}
		return d.graph(canonical), nil
	case len(t.in)+len(t.out) == 0 && t.min == 0 && t.max < 0 && !b.strict:
		return b.anyString()
	case len(t.in)+len(t.out) == 0:
		return repeat(char(anyRune(), anyWay), t.min, t.max), nil
	case len(t.in) == 1 && len(t.out) == 0 && t.min == 0 && t.max < 0:
		return t.in[0].expr(canonical)
	}
	d, err := t.dfa()
	if err != nil {
		return nil, err
	}
	return d.graph(canonical), nil
}

// dfa is the strings of t.
func (t *textSet) dfa() (*dfa, error) {
	if t.finite {
		return textsDFA(t.texts)
	}
	d := anyText()
	for _, l := range t.in {
		in, err := l.dfa()
		if err != nil {
			return nil, err
		}
		if d, err = intersectDFA(d, in); err != nil {
			return nil, err
		}
	}
	for _, l := range t.out {
		out, err := l.dfa()
		if err != nil {
			return nil, err
		}
		if d, err = subtractDFA(d, out); err != nil {
			return nil, err
		}
	}
	d, err := d.withLength(t.min, t.max)
	if err != nil {
		return nil, err
	}
	return d.minimal(), nil
}

// emptyText says that no string is in the set, as far as can be told.
func (x *expander) emptyText(t *textSet) (bool, error) {
	if t.isEmpty() {
		return true, nil
	}
	if t.finite || len(t.in)+len(t.out) < 2 {
		return false, nil
	}
	d, err := t.dfa()
	if err != nil {
		return false, nil // not known
	}
	return d.isEmpty(), nil
}

func (b *schemaBuilder) comma() *expr {
	if b.strict {
		return lit(", ")
	}
	return seq(lit(","), b.space)
}

// gap is what may be around the tokens of JSON but after a comma or a colon.
func (b *schemaBuilder) gap() *expr {
	if b.strict {
		return empty()
	}
	return b.space
}

// array is "[", items and "]".
func (b *schemaBuilder) array(a *arraySet) (*expr, error) {
	if a.unique && (a.max < 0 || a.max > 1) {
		return b.differing(a)
	}
	return b.items(a, b.value)
}

// items is an array whose items are written by value.
func (b *schemaBuilder) items(a *arraySet, value func(terms) (*expr, error)) (*expr, error) {
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
	item := func(i int) (*expr, error) {
		v, err := value(a.item(i))
		return seq(v, b.gap()), err
	}
	rest, err := item(prefix)
	if err != nil {
		return nil, err
	}
	most := a.max
	if rest.op == opFail {
		most = prefix
	}
	if most >= 0 && a.min > most {
		return fail(), nil
	}
	// Written from the end: what follows prefix items, then one item fewer.
	var tail *expr
	if prefix == 0 {
		more := -1
		if most >= 0 {
			more = most - 1
		}
		if most == 0 {
			tail = empty()
		} else {
			tail = seq(rest, repeat(seq(b.comma(), rest), max(0, a.min-1), more))
			if a.min == 0 {
				tail = optional(tail)
			}
		}
	} else {
		more := -1
		if most >= 0 {
			more = most - prefix
		}
		tail = empty()
		if most != prefix {
			tail = repeat(seq(b.comma(), rest), max(0, a.min-prefix), more)
		}
	}
	for i := prefix - 1; i >= 0; i-- {
		one, err := item(i)
		if err != nil {
			return nil, err
		}
		if one.op == opFail {
			tail = fail()
		} else if i > 0 {
			tail = seq(b.comma(), one, tail)
		} else {
			tail = seq(one, tail)
		}
		if i >= a.min {
			tail = alt(tail, empty())
		}
	}
	return seq(lit("["), b.gap(), tail, lit("]")), nil
}

// containing is an array in which some items meet further schemas.
func (b *schemaBuilder) containing(a *arraySet, prefix int, value func(terms) (*expr, error)) (*expr, error) {
	if len(a.contains) > 3 {
		return nil, &LimitError{What: "contains that hold together", Limit: 3}
	}
	last := max(prefix, a.min) // from here on items are alike, unless they are counted
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
	g := &graph{}
	known := map[at]int{}
	var order []at
	state := func(s at) int {
		id, ok := known[s]
		if !ok {
			id = g.add()
			known[s] = id
			order = append(order, s)
		}
		return id
	}
	state(at{})
	for i := 0; i < len(order); i++ {
		if len(order) > maxGraph {
			return nil, &LimitError{What: "states of an array", Limit: maxGraph}
		}
		s, from := order[i], known[order[i]]
		full := s.items >= a.min
		for j, c := range a.contains {
			full = full && s.found[j] >= c.min
		}
		g.states[from].final = full
		if a.max >= 0 && s.items >= a.max {
			continue
		}
		for choice := range 1 << len(a.contains) { // which of contains the item is to meet
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
				case c.max >= 0: // counted: what is not meant to meet it must not
					not := b.x.opposites(c.item)
					if len(not) != 1 {
						ok = false
						continue
					}
					want = want.with(not[0]...)
				default: // once enough are found, the rest may be anything
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
			v = seq(v, b.gap())
			if s.items > 0 {
				v = seq(b.comma(), v)
			}
			g.edge(from, v, state(next))
		}
	}
	return seq(lit("["), b.gap(), g.expr(), lit("]")), nil
}

const maxGraph = 5000 // states of an array or an object
