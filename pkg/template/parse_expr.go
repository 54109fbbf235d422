package template

import (
	"strconv"
	"strings"
)

// tuple parses an expression or several with commas between; withIf says
// whether a conditional may follow.
func (p *parser) tuple(withIf bool) (expr, error) {
	one := p.expression
	if !withIf {
		one = p.or
	}
	if err := p.enter(); err != nil {
		return nil, err
	}
	defer p.leave()
	first, err := one()
	if err != nil || !p.op(",") {
		return first, err
	}
	items := []expr{first}
	for p.skipOp(",") {
		if t := p.peek(); t.kind == tokenPrintEnd || t.kind == tokenBlockEnd || p.op(")") || p.word("if") && !withIf {
			break
		}
		e, err := one()
		if err != nil {
			return nil, err
		}
		items = append(items, e)
	}
	return &listExpr{items, true}, nil
}

// chain refuses expressions whose operators would nest too deep to evaluate.
func (p *parser) chain(n int) error {
	if n > maxChain {
		return p.errorf("more than %d operators in a row", maxChain)
	}
	return nil
}

func (p *parser) expression() (expr, error) {
	if err := p.enter(); err != nil {
		return nil, err
	}
	defer p.leave()
	known := len(p.unknown)
	e, err := p.or()
	if err != nil {
		return nil, err
	}
	for n := 0; p.skipWord("if"); n++ {
		if err := p.chain(n); err != nil {
			return nil, err
		}
		cond, err := p.or()
		if err != nil {
			return nil, err
		}
		var no expr
		if p.skipWord("else") {
			if no, err = p.expression(); err != nil {
				return nil, err
			}
		}
		p.unknown = p.unknown[:known]
		e = &condExpr{cond, e, no}
	}
	return e, nil
}

// binary parses a chain of left-associative operators.
func (p *parser) binary(operand func() (expr, error), kind tokenKind, ops ...string) (expr, error) {
	a, err := operand()
	if err != nil {
		return nil, err
	}
	for n := 0; ; n++ {
		t := p.peek()
		found := false
		for _, op := range ops {
			found = found || t.kind == kind && t.text == op
		}
		if !found {
			return a, nil
		}
		if err := p.chain(n); err != nil {
			return nil, err
		}
		p.at++
		b, err := operand()
		if err != nil {
			return nil, err
		}
		a = &binaryExpr{t.text, a, b, t.line}
	}
}

func (p *parser) or() (expr, error)  { return p.binary(p.and, tokenName, "or") }
func (p *parser) and() (expr, error) { return p.binary(p.not, tokenName, "and") }

func (p *parser) not() (expr, error) {
	if !p.word("not") {
		return p.compare()
	}
	if err := p.enter(); err != nil {
		return nil, err
	}
	defer p.leave()
	p.at++
	e, err := p.not()
	return &unaryExpr{"not", e}, err
}

func (p *parser) compare() (expr, error) {
	of, err := p.sum()
	if err != nil {
		return nil, err
	}
	c := &compareExpr{of: of, line: p.peek().line}
	for {
		t := p.peek()
		op := ""
		switch {
		case t.kind == tokenOperator && (t.text == "==" || t.text == "!=" || t.text == "<" || t.text == "<=" || t.text == ">" || t.text == ">="):
			op = t.text
			p.at++
		case p.skipWord("in"):
			op = "in"
		case p.word("not") && p.tokens[p.at+1].kind == tokenName && p.tokens[p.at+1].text == "in":
			op = "not in"
			p.at += 2
		}
		if op == "" {
			break
		}
		with, err := p.sum()
		if err != nil {
			return nil, err
		}
		c.ops = append(c.ops, op)
		c.with = append(c.with, with)
	}
	if len(c.ops) == 0 {
		return of, nil
	}
	return c, nil
}

func (p *parser) sum() (expr, error)  { return p.binary(p.join, tokenOperator, "+", "-") }
func (p *parser) join() (expr, error) { return p.binary(p.product, tokenOperator, "~") }
func (p *parser) product() (expr, error) {
	return p.binary(p.power, tokenOperator, "*", "/", "//", "%")
}
func (p *parser) power() (expr, error) {
	return p.binary(func() (expr, error) { return p.unary(true) }, tokenOperator, "**")
}

func (p *parser) unary(withFilter bool) (expr, error) {
	var e expr
	t := p.peek()
	if t.kind == tokenOperator && (t.text == "-" || t.text == "+") {
		if err := p.enter(); err != nil {
			return nil, err
		}
		p.at++
		of, err := p.unary(false)
		p.leave()
		if err != nil {
			return nil, err
		}
		e = &unaryExpr{t.text, of}
	} else {
		var err error
		if e, err = p.primary(); err != nil {
			return nil, err
		}
	}
	e, err := p.postfix(e)
	if err != nil || !withFilter {
		return e, err
	}
	for n := 0; ; n++ {
		if err := p.chain(n); err != nil {
			return nil, err
		}
		switch {
		case p.op("|"):
			e, err = p.filter(e)
		case p.word("is"):
			e, err = p.test(e)
		case p.op("("):
			e, err = p.call(e)
		default:
			return e, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

func (p *parser) postfix(e expr) (expr, error) {
	for n := 0; ; n++ {
		if err := p.chain(n); err != nil {
			return nil, err
		}
		var err error
		switch {
		case p.skipOp("."):
			t := p.next()
			switch t.kind {
			case tokenName:
				e = &attrExpr{e, t.text}
			case tokenNumber:
				i, err := strconv.ParseInt(t.text, 10, 64)
				if err != nil {
					return nil, p.errorf("bad index %q", t.text)
				}
				e = &itemExpr{e, &literal{i}}
			default:
				return nil, &SyntaxError{Line: t.line, Reason: "expected a name after a point"}
			}
		case p.op("["):
			e, err = p.subscript(e)
		case p.op("("):
			e, err = p.call(e)
		default:
			return e, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

func (p *parser) subscript(of expr) (expr, error) {
	if err := p.enter(); err != nil {
		return nil, err
	}
	defer p.leave()
	p.at++
	var parts []expr
	var colons int
	for !p.op("]") {
		if p.skipOp(":") {
			colons++
			for len(parts) < colons {
				parts = append(parts, nil)
			}
			continue
		}
		if len(parts) != colons || colons > 2 {
			return nil, p.errorf("bad subscript")
		}
		e, err := p.tuple(true)
		if err != nil {
			return nil, err
		}
		parts = append(parts, e)
	}
	p.at++
	if colons == 0 {
		if len(parts) == 0 {
			return &itemExpr{of, &listExpr{tuple: true}}, nil
		}
		return &itemExpr{of, parts[0]}, nil
	}
	if colons > 2 {
		return nil, p.errorf("bad subscript")
	}
	for len(parts) < 3 {
		parts = append(parts, nil)
	}
	return &sliceExpr{of, parts[0], parts[1], parts[2]}, nil
}

func (p *parser) call(of expr) (expr, error) {
	line := p.peek().line
	args, err := p.arguments()
	return &callExpr{of, args, line}, err
}

func (p *parser) arguments() (a callArgs, err error) {
	if err := p.expectOp("("); err != nil {
		return a, err
	}
	for first := true; !p.skipOp(")"); first = false {
		if !first {
			if err := p.expectOp(","); err != nil {
				return a, err
			}
			if p.skipOp(")") {
				break
			}
		}
		switch {
		case p.skipOp("*"):
			a.spread, err = p.expression()
		case p.skipOp("**"):
			a.merge, err = p.expression()
		case p.peek().kind == tokenName && p.tokens[p.at+1].kind == tokenOperator && p.tokens[p.at+1].text == "=":
			name := p.next().text
			p.at++
			var e expr
			e, err = p.expression()
			a.names = append(a.names, name)
			a.named = append(a.named, e)
		default:
			var e expr
			e, err = p.expression()
			a.pos = append(a.pos, e)
		}
		if err != nil {
			return a, err
		}
	}
	return a, nil
}

// filters parses a chain of filters; of is nil for the text of a block.
func (p *parser) filters(of expr) (expr, error) {
	for n := 0; p.op("|"); n++ {
		if err := p.chain(n); err != nil {
			return nil, err
		}
		var err error
		if of, err = p.filter(of); err != nil {
			return nil, err
		}
	}
	return of, nil
}

func (p *parser) filter(of expr) (expr, error) {
	line := p.next().line
	name, err := p.name()
	if err != nil {
		return nil, err
	}
	if !isFilter(name) {
		p.unknown = append(p.unknown, p.errorf("unknown filter %q", name))
	}
	f := &filterExpr{of: of, name: name, line: line}
	if p.op("(") {
		f.args, err = p.arguments()
	}
	return f, err
}

func (p *parser) test(of expr) (expr, error) {
	t := &testExpr{of: of, line: p.next().line}
	t.not = p.skipWord("not")
	var err error
	if t.name, err = p.name(); err != nil {
		return nil, err
	}
	if !isTest(t.name) {
		p.unknown = append(p.unknown, p.errorf("unknown test %q", t.name))
	}
	if p.op("(") {
		t.args, err = p.arguments()
		return t, err
	}
	if p.word("is") {
		return nil, p.errorf("a test of a test: give brackets")
	}
	next := p.peek()
	word := next.kind == tokenName && next.text != "else" && next.text != "or" && next.text != "and" && next.text != "is" &&
		next.text != "if" && next.text != "in" && next.text != "not"
	if word || next.kind == tokenString || next.kind == tokenNumber || p.op("[") || p.op("{") {
		e, err := p.primary()
		if err != nil {
			return nil, err
		}
		if e, err = p.postfix(e); err != nil {
			return nil, err
		}
		t.args.pos = []expr{e}
	}
	return t, nil
}

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
