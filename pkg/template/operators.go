package template

import (
	"math"
	"strings"
)

func (e *unaryExpr) eval(s *state) (Value, error) {
	v, err := e.of.eval(s)
	if err != nil {
		return nil, err
	}
	if e.op == "not" {
		return !truth(v), s.step(1)
	}
	if !isNumber(v) {
		return nil, s.fail("cannot apply %q to %s", e.op, typeName(v))
	}
	f, i, exact := number(v)
	switch {
	case e.op == "+" && exact:
		return i, nil
	case e.op == "+":
		return f, nil
	case exact:
		return -i, nil
	default:
		return -f, nil
	}
}

func (e *condExpr) eval(s *state) (Value, error) {
	cond, err := e.cond.eval(s)
	if err != nil {
		return nil, err
	}
	if truth(cond) {
		return e.yes.eval(s)
	}
	if e.no == nil {
		return undefined{"the other branch"}, nil
	}
	return e.no.eval(s)
}

func (e *compareExpr) eval(s *state) (Value, error) {
	a, err := e.of.eval(s)
	if err != nil {
		return nil, err
	}
	s.line = e.line
	for i, op := range e.ops {
		b, err := e.with[i].eval(s)
		if err != nil {
			return nil, err
		}
		ok := false
		switch op {
		case "==", "!=":
			ok, err = s.equal(a, b)
			ok = ok == (op == "==")
		case "in", "not in":
			ok, err = s.contains(b, a)
			ok = ok == (op == "in")
		default:
			var c int
			c, err = s.compare(a, b)
			ok = op == "<" && c < 0 || op == "<=" && c <= 0 || op == ">" && c > 0 || op == ">=" && c >= 0
		}
		if err != nil || !ok {
			return false, err
		}
		a = b
	}
	return true, nil
}

func (e *binaryExpr) eval(s *state) (Value, error) {
	a, err := e.a.eval(s)
	if err != nil {
		return nil, err
	}
	if e.op == "and" && !truth(a) || e.op == "or" && truth(a) {
		return a, nil
	}
	b, err := e.b.eval(s)
	if err != nil {
		return nil, err
	}
	s.line = e.line
	switch e.op {
	case "and", "or":
		return b, s.step(1)
	case "~":
		out, err := s.concat(a, b)
		return out, err
	}
	return s.arithmetic(e.op, a, b)
}

func (s *state) concat(a, b Value) (str, error) {
	x, err := s.text(a)
	if err != nil {
		return str{}, err
	}
	y, err := s.text(b)
	if err != nil {
		return str{}, err
	}
	if err := s.alloc(len(x.s) + len(y.s) + 16*(len(x.data)+len(y.data))); err != nil {
		return str{}, err
	}
	var m marked
	m.addStr(x)
	m.addStr(y)
	return m.str(), nil
}

func (s *state) arithmetic(op string, a, b Value) (Value, error) {
	if err := s.step(1); err != nil {
		return nil, err
	}
	if isNumber(a) && isNumber(b) {
		return s.calculate(op, a, b)
	}
	switch x := a.(type) {
	case str:
		if y, ok := b.(str); ok && op == "+" {
			return s.add(x, y)
		}
		if op == "%" {
			return s.percent(x, b)
		}
		if n, ok := count(b); ok && op == "*" {
			return s.repeat(x, n)
		}
	case *list:
		if y, ok := b.(*list); ok && op == "+" && x.kind == y.kind && x.kind <= isTuple {
			items := make([]Value, 0, len(x.items)+len(y.items))
			return &list{items: append(append(items, x.items...), y.items...), kind: x.kind}, s.alloc(32 * cap(items))
		}
		if n, ok := count(b); ok && op == "*" && x.kind <= isTuple {
			if n > 0 && len(x.items) > s.memory/16/n {
				return nil, s.alloc(s.memory + 1)
			}
			var items []Value
			for range n {
				items = append(items, x.items...)
			}
			return &list{items: items, kind: x.kind}, s.alloc(16 * len(items))
		}
	}
	if n, ok := count(a); ok && op == "*" {
		switch b.(type) {
		case str, *list:
			return s.arithmetic(op, b, int64(n))
		}
	}
	return nil, s.fail("cannot apply %q to %s and %s", op, typeName(a), typeName(b))
}

func count(v Value) (int, bool) {
	_, i, exact := number(v)
	if !exact || !isNumber(v) {
		return 0, false
	}
	return int(max(0, min(i, 1<<40))), true
}

func (s *state) repeat(x str, n int) (Value, error) {
	if n == 0 || x.s == "" {
		return str{}, nil
	}
	if len(x.s) > s.memory/n {
		return nil, s.alloc(s.memory + 1)
	}
	if err := s.alloc(len(x.s)*n + 16*len(x.data)*n); err != nil {
		return nil, err
	}
	if len(x.data) == 0 {
		return str{s: strings.Repeat(x.s, n), safe: x.safe}, nil
	}
	var m marked
	for range n {
		m.addStr(x)
	}
	return m.str(), nil
}

func (s *state) calculate(op string, a, b Value) (Value, error) {
	f, i, exact := number(a)
	g, j, exact2 := number(b)
	if (op == "/" || op == "//" || op == "%") && g == 0 {
		return nil, s.fail("division by zero")
	}
	if op == "/" {
		return f / g, nil
	}
	if exact && exact2 && (op != "**" || j >= 0) {
		if r, ok := integers(op, i, j); ok {
			return r, nil
		}
		return nil, s.fail("%d %s %d does not fit 64 bits", i, op, j)
	}
	switch op {
	case "+":
		return f + g, nil
	case "-":
		return f - g, nil
	case "*":
		return f * g, nil
	case "//":
		return math.Floor(f / g), nil
	case "%":
		r := math.Mod(f, g)
		if r != 0 && (r < 0) != (g < 0) {
			r += g
		}
		return r, nil
	default:
		return math.Pow(f, g), nil
	}
}

// integers implements Python's integer operators; ok is false on overflow.
func integers(op string, i, j int64) (r int64, ok bool) {
	switch op {
	case "+":
		r = i + j
		return r, (r > i) == (j > 0)
	case "-":
		r = i - j
		return r, (r < i) == (j > 0)
	case "*":
		if i == 0 || j == 0 {
			return 0, true
		}
		r = i * j
		return r, r/j == i && (i != -1 || j != math.MinInt64) && (j != -1 || i != math.MinInt64)
	case "//":
		if i == math.MinInt64 && j == -1 {
			return 0, false
		}
		r = i / j
		if i%j != 0 && (i < 0) != (j < 0) {
			r--
		}
		return r, true
	case "%":
		if j == -1 {
			return 0, true
		}
		r = i % j
		if r != 0 && (r < 0) != (j < 0) {
			r += j
		}
		return r, true
	default: // **
		r = 1
		if i == 0 || i == 1 || i == -1 {
			switch {
			case j == 0 || i == 1:
				return 1, true
			case i == 0:
				return 0, true
			case j%2 == 0:
				return 1, true
			}
			return -1, true
		}
		for ; j > 0; j-- {
			next, ok := integers("*", r, i)
			if !ok {
				return 0, false
			}
			r = next
		}
		return r, true
	}
}
