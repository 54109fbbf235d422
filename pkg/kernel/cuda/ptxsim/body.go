package ptxsim

import (
	"errors"
	"strconv"
	"strings"
)

// body reads the statements of a kernel up to its closing brace.
func (p *parser) body() error {
	depth := 1
	for {
		switch {
		case p.tok.kind == tokenEnd:
			return p.errorf("kernel %s does not end", p.fn.name)
		case p.punct("{"):
			if depth++; depth > maxNesting {
				return p.errorf("braces are nested deeper than %d", maxNesting)
			}
			p.scopes = append(p.scopes, newScope())
			if err := p.advance(); err != nil {
				return err
			}
		case p.punct("}"):
			depth--
			if depth > 0 {
				p.scopes = p.scopes[:len(p.scopes)-1]
			}
			if err := p.advance(); err != nil || depth == 0 {
				return err
			}
		case p.tok.kind == tokenDirective:
			if err := p.declaration(); err != nil {
				return err
			}
		case p.punct(";"):
			if err := p.advance(); err != nil {
				return err
			}
		default:
			if err := p.statement(); err != nil {
				return err
			}
		}
	}
}

func (p *parser) declaration() error {
	switch d := p.tok.text; d {
	case ".reg":
		return p.registers()
	case ".shared", ".local", ".extern":
		return p.variables()
	case ".pragma":
		for !p.punct(";") && p.tok.kind != tokenEnd {
			if err := p.advance(); err != nil {
				return err
			}
		}
		return nil
	case ".loc":
		return p.skipLine()
	default:
		return p.errorf("directive %s is not supported", d)
	}
}

// registers reads a declaration such as .reg .b32 %r<10>, %x;
func (p *parser) registers() error {
	if err := p.advance(); err != nil {
		return err
	}
	t, ok := typeNames[strings.TrimPrefix(p.tok.text, ".")]
	if p.tok.kind != tokenDirective || !ok || t == TF32 {
		return p.errorf("registers of type %s are not supported", p.tok.text)
	}
	if err := p.advance(); err != nil {
		return err
	}
	top := p.scopes[len(p.scopes)-1]
	for {
		name, err := p.name()
		if err != nil {
			return err
		}
		if strings.Contains(name, ".") {
			return p.errorf("register %s has a dot in its name", name)
		}
		if _, ok := top.regs[name]; ok || top.ranges[name] != nil {
			return p.errorf("register %s is declared twice", name)
		}
		if ok, err := p.eat("<"); err != nil {
			return err
		} else if ok {
			n, err := p.integer()
			if err != nil {
				return err
			}
			top.ranges[name] = &registers{typ: t, count: n, used: map[uint64]*register{}}
			if err := p.expect(">"); err != nil {
				return err
			}
		} else {
			top.regs[name] = &register{name: name, typ: t, slot: -1}
		}
		if ok, err := p.eat(","); err != nil {
			return err
		} else if !ok {
			return p.expect(";")
		}
	}
}

// register returns the declared register of a name, or nil.
func (p *parser) register(name string) *register {
	digits := len(name)
	for digits > 0 && digit(name[digits-1]) {
		digits--
	}
	for i := len(p.scopes) - 1; i >= 0; i-- {
		s := p.scopes[i]
		if r := s.regs[name]; r != nil {
			return r
		}
		// The number has no leading zero, but the prefix may end in digits: %r1<10> declares %r10 to %r19.
		for j := digits; j < len(name); j++ {
			rs := s.ranges[name[:j]]
			if rs == nil || name[j] == '0' && j+1 < len(name) {
				continue
			}
			n, err := strconv.ParseUint(name[j:], 10, 64)
			if err != nil || n >= rs.count {
				continue
			}
			r := rs.used[n]
			if r == nil {
				r = &register{name: name, typ: rs.typ, slot: -1}
				rs.used[n] = r
			}
			return r
		}
	}
	return nil
}

func (p *parser) lookup(name string) *variable {
	for i := len(p.scopes) - 1; i >= 0; i-- {
		if v := p.scopes[i].vars[name]; v != nil {
			return v
		}
	}
	return nil
}

// statement reads a label or an instruction.
func (p *parser) statement() error {
	s := &statement{line: p.tok.line}
	begin := p.tok.begin
	if ok, err := p.eat("@"); err != nil {
		return err
	} else if ok {
		if s.neg, err = p.eat("!"); err != nil {
			return err
		}
		name, err := p.name()
		if err != nil {
			return err
		}
		if s.pred = p.register(name); s.pred == nil || s.pred.typ != Pred {
			return p.errorf("%s is not a predicate register", name)
		}
	}
	name, err := p.name()
	if err != nil {
		return err
	}
	if s.pred == nil && p.punct(":") {
		if _, ok := p.fn.labels[name]; ok {
			return p.errorf("label %s is declared twice", name)
		}
		p.fn.labels[name] = len(p.fn.body)
		return p.advance()
	}
	parts := strings.Split(name, ".")
	s.op, s.mods = parts[0], parts[1:]
	if !p.punct(";") {
		if s.args, err = p.list(";"); err != nil {
			return p.within(s, begin, err)
		}
	}
	s.text = p.excerpt(begin, p.tok.begin)
	if len(p.fn.body) == maxStatements {
		return p.errorf("kernel %s has more than %d instructions", p.fn.name, maxStatements)
	}
	p.fn.body = append(p.fn.body, s)
	return p.expect(";")
}

// within adds the text of the statement to an error.
func (p *parser) within(s *statement, begin int, err error) error {
	if e := (*SourceError)(nil); errors.As(err, &e) && e.Instr == "" {
		e.Line, e.Instr = s.line, p.excerpt(begin, p.tok.end)
	}
	return err
}

// excerpt returns a part of the source as one line of bounded length.
func (p *parser) excerpt(begin, end int) string {
	if end-begin > 200 {
		end = begin + 200
	}
	return strings.Join(strings.Fields(p.lex.src[begin:max(begin, end)]), " ")
}

// list reads operands with commas up to a closing mark, which it leaves.
func (p *parser) list(end string) ([]operand, error) {
	var out []operand
	for {
		o, err := p.operand(end == ";")
		if err != nil {
			return nil, err
		}
		if out = append(out, o); len(out) > maxArgs {
			return nil, p.errorf("more than %d operands", maxArgs)
		}
		if p.punct(end) {
			return out, nil
		}
		if err := p.expect(","); err != nil {
			return nil, err
		}
	}
}

// operand reads an operand. Vectors, memory and pairs are allowed at the top only.
func (p *parser) operand(top bool) (operand, error) {
	switch {
	case top && p.punct("{"):
		if err := p.advance(); err != nil {
			return operand{}, err
		}
		vec, err := p.list("}")
		if err != nil {
			return operand{}, err
		}
		return operand{kind: operandVector, vec: vec}, p.advance()
	case top && p.punct("["):
		return p.memory()
	case p.punct("!"):
		if err := p.advance(); err != nil {
			return operand{}, err
		}
		o, err := p.operand(false)
		if err == nil && (o.kind != operandRegister || o.reg.typ != Pred) {
			return operand{}, p.errorf("! stands before a predicate register only")
		}
		o.not = true
		return o, err
	case p.tok.kind != tokenName:
		return p.number()
	}
	o, err := p.reference()
	if err != nil || !top {
		return o, err
	}
	if ok, err := p.eat("|"); err != nil || !ok {
		return o, err
	}
	q, err := p.operand(false)
	o.pair = &q
	return o, err
}

// reference reads a name: a register, a variable with an optional offset, a label or a special register.
func (p *parser) reference() (operand, error) {
	name, err := p.name()
	if err != nil {
		return operand{}, err
	}
	if name == "_" {
		return operand{kind: operandSink}, nil
	}
	if name == "WARP_SZ" {
		return operand{kind: operandInt, int: 32}, nil
	}
	if r := p.register(name); r != nil {
		return operand{kind: operandRegister, reg: r, name: name}, nil
	}
	if v := p.lookup(name); v != nil {
		o := operand{kind: operandSymbol, v: v, name: name}
		o.off, err = p.offset()
		return o, err
	}
	if strings.HasPrefix(name, "%") {
		if !special(name) {
			return operand{}, p.errorf("register %s is not declared", name)
		}
		return operand{kind: operandSpecial, name: name}, nil
	}
	return operand{kind: operandLabel, name: name}, nil
}

// offset reads +n or +-n after the base of an address. The assembler of CUDA takes no -n.
func (p *parser) offset() (int64, error) {
	if plus, err := p.eat("+"); err != nil || !plus {
		return 0, err
	}
	minus, err := p.eat("-")
	if err != nil {
		return 0, err
	}
	n, err := p.integer()
	if err == nil && n > 1<<31 {
		err = p.errorf("offset %d is out of range", n)
	}
	if minus {
		return -int64(n), err
	}
	return int64(n), err
}

// memory reads an address in brackets.
func (p *parser) memory() (operand, error) {
	if err := p.advance(); err != nil {
		return operand{}, err
	}
	o := operand{kind: operandMemory}
	var err error
	if p.tok.kind == tokenInt {
		o.int, err = p.integer()
		if err != nil {
			return o, err
		}
		return o, p.expect("]")
	}
	base, err := p.reference()
	if err != nil {
		return o, err
	}
	switch base.kind {
	case operandRegister:
		o.reg = base.reg
		o.off, err = p.offset()
		if err != nil {
			return o, err
		}
	case operandSymbol:
		o.v, o.off = base.v, base.off
	default:
		return o, p.errorf("%s is not a register or a variable", base.name)
	}
	return o, p.expect("]")
}
