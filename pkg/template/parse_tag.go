package template

// targets parses the targets of an assignment.
func (p *parser) targets() (target, error) {
	var all []target
	tuple := false
	for {
		var t target
		var err error
		if p.skipOp("(") {
			if err = p.enter(); err != nil {
				return t, err
			}
			t, err = p.targets()
			p.leave()
			if err == nil {
				err = p.expectOp(")")
			}
		} else if t.name, err = p.name(); err == nil && p.skipOp(".") {
			t.attr, err = p.name()
		}
		if err != nil {
			return t, err
		}
		all = append(all, t)
		if !p.skipOp(",") {
			break
		}
		tuple = true
		if p.peek().kind != tokenName && !p.op("(") {
			break
		}
	}
	if !tuple {
		return all[0], nil
	}
	return target{items: all}, nil
}

func (p *parser) setStatement(line int) (stmt, error) {
	s := &setStmt{line: line}
	var err error
	if s.target, err = p.targets(); err != nil {
		return nil, err
	}
	if p.skipOp("=") {
		if s.to, err = p.tuple(true); err != nil {
			return nil, err
		}
		return s, p.endBlock()
	}
	if p.op("|") {
		if s.filter, err = p.filters(nil); err != nil {
			return nil, err
		}
	}
	if err := p.endBlock(); err != nil {
		return nil, err
	}
	s.body, err = p.body("endset")
	return s, err
}

// params parses (a, b=1).
func (p *parser) params() (names []string, defaults []expr, err error) {
	if err := p.expectOp("("); err != nil {
		return nil, nil, err
	}
	for !p.skipOp(")") {
		if len(names) > 0 {
			if err := p.expectOp(","); err != nil {
				return nil, nil, err
			}
			if p.skipOp(")") {
				break
			}
		}
		name, err := p.name()
		if err != nil {
			return nil, nil, err
		}
		var value expr
		if p.skipOp("=") {
			if value, err = p.expression(); err != nil {
				return nil, nil, err
			}
		}
		names = append(names, name)
		defaults = append(defaults, value)
	}
	return names, defaults, nil
}

func (p *parser) macroStatement() (stmt, error) {
	s := &macroStmt{}
	var err error
	if s.name, err = p.name(); err != nil {
		return nil, err
	}
	if s.params, s.defaults, err = p.params(); err != nil {
		return nil, err
	}
	if err := p.endBlock(); err != nil {
		return nil, err
	}
	loops, outer := p.loops, p.takes
	p.loops, p.takes = 0, uses{}
	s.body, err = p.body("endmacro")
	s.takes = p.takes
	p.loops, p.takes = loops, outer.and(s.takes)
	return s, err
}

func (p *parser) callStatement(line int) (stmt, error) {
	s := &callStmt{line: line}
	var err error
	if p.op("(") {
		if s.params, s.defaults, err = p.params(); err != nil {
			return nil, err
		}
	}
	e, err := p.expression()
	if err != nil {
		return nil, err
	}
	call, ok := e.(*callExpr)
	if !ok {
		return nil, p.errorf("the tag call needs a call expression")
	}
	s.call = call
	if err := p.endBlock(); err != nil {
		return nil, err
	}
	loops, outer := p.loops, p.takes
	p.loops, p.takes = 0, uses{}
	s.body, err = p.body("endcall")
	s.takes = p.takes
	p.loops, p.takes = loops, outer.and(s.takes)
	return s, err
}

func (p *parser) filterStatement(line int) (stmt, error) {
	p.tokens[p.at-1] = token{tokenOperator, "|", line} // the tag's name takes the place of a pipe
	p.at--
	f, err := p.filters(nil)
	if err != nil {
		return nil, err
	}
	if err := p.endBlock(); err != nil {
		return nil, err
	}
	body, err := p.body("endfilter")
	return &filterStmt{f, body, line}, err
}

func (p *parser) blockStatement() (stmt, error) {
	name, err := p.name()
	if err != nil {
		return nil, err
	}
	for p.skipWord("scoped") || p.skipWord("required") {
	}
	if err := p.endBlock(); err != nil {
		return nil, err
	}
	if _, ok := p.blocks[name]; ok {
		return nil, p.errorf("block %q is defined twice", name)
	}
	loops := p.loops
	p.loops = 0
	body, _, err := p.block("endblock")
	p.loops = loops
	if err != nil {
		return nil, err
	}
	p.skipWord(name)
	if p.blocks == nil {
		p.blocks = map[string][]stmt{}
	}
	p.blocks[name] = body
	return &blockStmt{name, body}, p.endBlock()
}

// autoescapeStatement accepts only settings that change nothing: chat templates do not escape.
func (p *parser) autoescapeStatement() (stmt, error) {
	if !p.skipWord("false") && !p.skipWord("False") {
		return nil, p.errorf("autoescape supports only false")
	}
	if err := p.endBlock(); err != nil {
		return nil, err
	}
	body, err := p.body("endautoescape")
	return &withStmt{body: body}, err
}

// and merges the variables that two bodies read.
func (u uses) and(v uses) uses {
	return uses{u.varargs || v.varargs, u.kwargs || v.kwargs, u.caller || v.caller}
}

func (p *parser) withStatement() (stmt, error) {
	s := &withStmt{}
	for p.peek().kind != tokenBlockEnd {
		if len(s.names) > 0 {
			if err := p.expectOp(","); err != nil {
				return nil, err
			}
		}
		name, err := p.name()
		if err != nil {
			return nil, err
		}
		if err := p.expectOp("="); err != nil {
			return nil, err
		}
		value, err := p.expression()
		if err != nil {
			return nil, err
		}
		s.names = append(s.names, name)
		s.values = append(s.values, value)
	}
	if err := p.endBlock(); err != nil {
		return nil, err
	}
	var err error
	s.body, err = p.body("endwith")
	return s, err
}
