package template

import (
	"strconv"
	"strings"
)

func (p *parser) primary() (expr, error) {
	if err := p.enter(); err != nil {
		return nil, err
	}
	defer p.leave()
	t := p.next()
	switch t.kind {
	case tokenName:
		switch t.text {
		case "true", "True":
			return &literal{true}, nil
		case "false", "False":
			return &literal{false}, nil
		case "none", "None":
			return &literal{nil}, nil
		}
		switch t.text {
		case "varargs":
			p.takes.varargs = true
		case "kwargs":
			p.takes.kwargs = true
		case "caller":
			p.takes.caller = true
		}
		return &nameExpr{t.text}, nil
	case tokenString:
		var b strings.Builder
		b.WriteString(t.text)
		for p.peek().kind == tokenString {
			b.WriteString(p.next().text)
		}
		return &literal{str{s: b.String()}}, nil
	case tokenNumber:
		return p.numeral(t)
	case tokenOperator:
		switch t.text {
		case "(":
			if p.skipOp(")") {
				return &listExpr{tuple: true}, nil
			}
			e, err := p.tuple(true)
			if err != nil {
				return nil, err
			}
			return e, p.expectOp(")")
		case "[":
			items, err := p.items("]")
			return &listExpr{items: items}, err
		case "{":
			return p.mapping()
		}
	}
	return nil, &SyntaxError{Line: t.line, Reason: "unexpected " + strconv.Quote(t.text)}
}

func (p *parser) numeral(t token) (expr, error) {
	text := strings.ReplaceAll(t.text, "_", "")
	base := 10
	if len(text) > 1 && text[0] == '0' && strings.IndexByte("xXoObB", text[1]) >= 0 {
		base = 0
	}
	if i, err := strconv.ParseInt(text, base, 64); err == nil {
		return &literal{i}, nil
	}
	if base == 10 && strings.Trim(text, "0123456789") == "" {
		return &literal{bigInt(strings.TrimLeft(text, "0"))}, nil
	}
	f, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return nil, &SyntaxError{Line: t.line, Reason: "bad number " + strconv.Quote(t.text)}
	}
	return &literal{f}, nil
}

func (p *parser) items(end string) ([]expr, error) {
	var items []expr
	for !p.skipOp(end) {
		if len(items) > 0 {
			if err := p.expectOp(","); err != nil {
				return nil, err
			}
			if p.skipOp(end) {
				break
			}
		}
		e, err := p.expression()
		if err != nil {
			return nil, err
		}
		items = append(items, e)
	}
	return items, nil
}

func (p *parser) mapping() (expr, error) {
	m := &mapExpr{}
	for !p.skipOp("}") {
		if len(m.keys) > 0 {
			if err := p.expectOp(","); err != nil {
				return nil, err
			}
			if p.skipOp("}") {
				break
			}
		}
		k, err := p.expression()
		if err != nil {
			return nil, err
		}
		if err := p.expectOp(":"); err != nil {
			return nil, err
		}
		v, err := p.expression()
		if err != nil {
			return nil, err
		}
		m.keys = append(m.keys, k)
		m.vals = append(m.vals, v)
	}
	return m, nil
}
