package grammar

import (
	"fmt"
	"math/big"
	"strings"
)

func digit(lo, hi rune) *expr { return char(runeSet{{lo, hi}}, plainUTF8) }

func (b *schemaBuilder) number(n *numberSet) (*expr, error) {
	plain := n.low == nil && n.high == nil && len(n.multiple)+len(n.unlike)+len(n.not) == 0 && !n.broken
	if b.strict {
		return b.strictNumber(n)
	}
	integer := seq(optional(lit("-")), alt(lit("0"), seq(digit('1', '9'), repeat(digit('0', '9'), 0, b.wholeCap-1))))
	switch {
	case plain && n.whole:
		return b.shared("integer", false, func() (*expr, error) { return seq(integer, optional(lit(".0"))), nil })
	case plain:
		return b.shared("number", false, func() (*expr, error) {
			// As far as every number is one of a double's.
			exponent := alt(repeat(digit('0', '9'), 1, 2), seq(lit("1"), repeat(digit('0', '9'), 2, 2)), seq(lit("2"), digit('0', '8'), digit('0', '9')))
			fraction := repeat(digit('0', '9'), 1, -1)
			if b.fractionCap > 0 {
				fraction = repeat(digit('0', '9'), 1, b.fractionCap)
			}
			return seq(integer, optional(seq(lit("."), fraction)),
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
		d, err := numberDFA(n, b.wholeCap, b.fractionCap)
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

func quoted(inner *expr) *expr { return seq(lit(`"`), inner, lit(`"`)) }

// text is a string with its quotes.
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
		return quoted(alt(subs...)), nil
	case t.finite:
		d, err := textsDFA(t.texts)
		if err != nil {
			return nil, err
		}
		return quoted(d.graph(canonical)), nil
	case len(t.in)+len(t.out) == 0 && t.min == 0 && t.max < 0 && !b.strict:
		return b.anyString()
	case len(t.in)+len(t.out) == 0:
		return quoted(repeat(char(anyRune(), anyWay), t.min, t.max)), nil
	}
	return b.shared(fmt.Sprintf("%s, spelled %d", t.key(), canonical), false, func() (*expr, error) {
		if len(t.in) == 1 && len(t.out) == 0 && t.min == 0 && t.max < 0 {
			inner, err := t.in[0].expr(canonical)
			return quoted(inner), err
		}
		d, err := t.dfa()
		if err != nil {
			return nil, err
		}
		return quoted(d.graph(canonical)), nil
	})
}

// key is equal for equal sets that are not finite.
func (t *textSet) key() string {
	var b strings.Builder
	fmt.Fprintf(&b, "string of %d to %d", t.min, t.max)
	for _, l := range t.in {
		b.WriteString(", " + l.key)
	}
	for _, l := range t.out {
		b.WriteString(", no " + l.key)
	}
	return b.String()
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
