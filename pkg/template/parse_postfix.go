package template

import "strconv"

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
		return nil, p.errorf("a test follows a test: add parentheses")
	}
	next := p.peek()
	word := next.kind == tokenName && next.text != "else" && next.text != "or" && next.text != "and" &&
		next.text != "is" && next.text != "if" && next.text != "in" && next.text != "not"
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
