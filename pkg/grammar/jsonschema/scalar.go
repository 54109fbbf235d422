package jsonschema

import (
	"fmt"
	"math/big"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/grammar/ast"
	"github.com/lamina-mesh/lamina/pkg/grammar/charset"
	"github.com/lamina-mesh/lamina/pkg/grammar/language"
)

func digit(lo, hi rune) *ast.Expr { return ast.Char(charset.Set{{Lo: lo, Hi: hi}}, ast.PlainUTF8) }

func (b *schemaBuilder) number(n *numberSet) (*ast.Expr, error) {
	plain := n.low == nil && n.high == nil && len(n.multiple)+len(n.notMultiple)+len(n.not) == 0 && !n.fractional
	if b.strict {
		return b.strictNumber(n)
	}
	integer := ast.Seq(ast.Optional(ast.Text("-")),
		ast.Alt(ast.Text("0"), ast.Seq(digit('1', '9'), ast.Repeat(digit('0', '9'), 0, b.wholeCap-1))))
	switch {
	case plain && n.whole:
		return b.shared("integer", false,
			func() (*ast.Expr, error) { return ast.Seq(integer, ast.Optional(ast.Text(".0"))), nil })
	case plain:
		return b.shared("number", false, func() (*ast.Expr, error) {
			// Exponents of numbers that a float64 can represent.
			exponent := ast.Alt(ast.Repeat(digit('0', '9'), 1, 2),
				ast.Seq(ast.Text("1"), ast.Repeat(digit('0', '9'), 2, 2)),
				ast.Seq(ast.Text("2"), digit('0', '8'), digit('0', '9')))
			fraction := ast.Repeat(digit('0', '9'), 1, -1)
			if b.fractionCap > 0 {
				fraction = ast.Repeat(digit('0', '9'), 1, b.fractionCap)
			}
			return ast.Seq(integer, ast.Optional(ast.Seq(ast.Text("."), fraction)),
				ast.Optional(ast.Seq(ast.Char(charset.Of("eE"), ast.PlainUTF8),
					ast.Optional(ast.Char(charset.Of("+-"), ast.PlainUTF8)), exponent))), nil
		})
	}
	if n.isEmpty() {
		return ast.Fail(), nil
	}
	if n.low != nil && n.high != nil && n.low.at.Cmp(n.high.at) == 0 {
		text, ok := decimal(n.low.at)
		if !ok || len(text) > 2*maxExponent {
			return nil, &ast.LimitError{What: "digits of a number", Limit: 2 * maxExponent}
		}
		if n.low.at.IsInt() {
			return ast.Seq(ast.Text(text), ast.Optional(ast.Text(".0"))), nil
		}
		return ast.Text(text), nil
	}
	return b.shared("number "+n.key(), false, func() (*ast.Expr, error) {
		d, err := numberDFA(n, b.wholeCap, b.fractionCap)
		if err != nil {
			return nil, err
		}
		return d.Graph(ast.PlainUTF8), nil
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
	fmt.Fprint(&b, n.whole, n.fractional)
	for _, list := range [][]*big.Rat{n.multiple, n.notMultiple, n.not} {
		b.WriteString(";")
		for _, r := range list {
			b.WriteString(r.RatString() + ",")
		}
	}
	return b.String()
}

// anyString returns the rule of every string, with its quotes.
func (b *schemaBuilder) anyString() (*ast.Expr, error) {
	return b.shared("string", false, func() (*ast.Expr, error) {
		return ast.Seq(ast.Text(`"`), ast.Star(ast.Char(charset.Any(), ast.JSONAny)), ast.Text(`"`)), nil
	})
}

func quoted(inner *ast.Expr) *ast.Expr { return ast.Seq(ast.Text(`"`), inner, ast.Text(`"`)) }

// text returns the expression of a string with its quotes.
func (b *schemaBuilder) text(t *textSet) (*ast.Expr, error) {
	if t.isEmpty() {
		return ast.Fail(), nil
	}
	anyWay, canonical := ast.JSONAny, ast.JSONCanonical
	if b.strict {
		anyWay, canonical = ast.JSONUnique, ast.JSONUnique
	}
	switch {
	case t.finite && len(t.texts) <= 8:
		subs := make([]*ast.Expr, len(t.texts))
		for i, text := range t.texts {
			subs[i] = ast.Literal(text, canonical)
		}
		return quoted(ast.Alt(subs...)), nil
	case t.finite:
		d, err := language.Texts(t.texts)
		if err != nil {
			return nil, err
		}
		return quoted(d.Graph(canonical)), nil
	case len(t.in)+len(t.out) == 0 && t.min == 0 && t.max < 0 && !b.strict:
		return b.anyString()
	case len(t.in)+len(t.out) == 0:
		return quoted(ast.Repeat(ast.Char(charset.Any(), anyWay), t.min, t.max)), nil
	}
	return b.shared(fmt.Sprintf("%s, spelled %d", t.key(), canonical), false, func() (*ast.Expr, error) {
		if len(t.in) == 1 && len(t.out) == 0 && t.min == 0 && t.max < 0 {
			inner, err := t.in[0].Expr(canonical)
			return quoted(inner), err
		}
		d, err := t.dfa()
		if err != nil {
			return nil, err
		}
		return quoted(d.Graph(canonical)), nil
	})
}

// key is equal for equal sets that are not finite.
func (t *textSet) key() string {
	var b strings.Builder
	fmt.Fprintf(&b, "string of %d to %d", t.min, t.max)
	for _, l := range t.in {
		b.WriteString(", " + l.Key)
	}
	for _, l := range t.out {
		b.WriteString(", no " + l.Key)
	}
	return b.String()
}

// dfa returns the automaton of the strings of t.
func (t *textSet) dfa() (*language.DFA, error) {
	if t.finite {
		return language.Texts(t.texts)
	}
	d := language.Any()
	for _, l := range t.in {
		in, err := l.DFA()
		if err != nil {
			return nil, err
		}
		if d, err = language.Intersect(d, in); err != nil {
			return nil, err
		}
	}
	for _, l := range t.out {
		out, err := l.DFA()
		if err != nil {
			return nil, err
		}
		if d, err = language.Subtract(d, out); err != nil {
			return nil, err
		}
	}
	d, err := d.WithLength(t.min, t.max)
	if err != nil {
		return nil, err
	}
	return d.Minimal(), nil
}

// emptyText reports whether the set certainly contains no string.
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
	return d.IsEmpty(), nil
}
