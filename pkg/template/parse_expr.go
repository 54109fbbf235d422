package template

// tuple parses one expression or several separated by commas; withIf allows a conditional
// expression.
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

// chain refuses expressions with more operators than can be evaluated recursively.
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
		case t.kind == tokenOperator &&
			(t.text == "==" || t.text == "!=" || t.text == "<" || t.text == "<=" || t.text == ">" || t.text == ">="):
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
