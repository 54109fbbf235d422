package template

import (
	"math"
	"strings"
	"unicode/utf8"
)

// function is something that can be called.
type function struct {
	name string
	do   func(s *state, a args) (Value, error)
}

// args are evaluated arguments.
type args struct {
	pos   []Value
	names []string
	named []Value
}

// get is the i-th argument, or the one so named, or other.
func (a *args) get(i int, name string, other Value) Value {
	if i >= 0 && i < len(a.pos) {
		return a.pos[i]
	}
	for k, n := range a.names {
		if n == name {
			return a.named[k]
		}
	}
	return other
}

// take removes a named argument.
func (a *args) take(name string) (Value, bool) {
	for k, n := range a.names {
		if n == name {
			v := a.named[k]
			a.names = append(a.names[:k:k], a.names[k+1:]...)
			a.named = append(a.named[:k:k], a.named[k+1:]...)
			return v, true
		}
	}
	return nil, false
}

func (s *state) arguments(c *callArgs) (a args, err error) {
	for _, e := range c.pos {
		v, err := e.eval(s)
		if err != nil {
			return a, err
		}
		a.pos = append(a.pos, v)
	}
	if c.spread != nil {
		v, err := c.spread.eval(s)
		if err != nil {
			return a, err
		}
		items, err := s.iterate(v)
		if err != nil {
			return a, err
		}
		a.pos = append(a.pos, items...)
	}
	for i, e := range c.named {
		v, err := e.eval(s)
		if err != nil {
			return a, err
		}
		a.names = append(a.names, c.names[i])
		a.named = append(a.named, v)
	}
	if c.merge != nil {
		v, err := c.merge.eval(s)
		if err != nil {
			return a, err
		}
		m, ok := v.(*Map)
		if !ok {
			return a, s.fail("cannot spread %s into named arguments", typeName(v))
		}
		for i, k := range m.keys {
			if name, ok := k.(str); ok {
				a.names = append(a.names, name.s)
				a.named = append(a.named, m.vals[i])
			}
		}
		return a, s.step(len(m.keys))
	}
	return a, nil
}

func (s *state) call(of Value, a args) (Value, error) {
	if err := s.step(1); err != nil {
		return nil, err
	}
	switch f := of.(type) {
	case *function:
		return f.do(s, a)
	case *macro:
		return s.callMacro(f, a)
	case undefined:
		return nil, s.fail("cannot call %q, which is undefined", f.name)
	}
	return nil, s.fail("cannot call %s", typeName(of))
}

// iterate lists what a loop goes through.
func (s *state) iterate(v Value) ([]Value, error) {
	switch x := v.(type) {
	case undefined:
		return nil, nil
	case *list:
		return x.items, s.step(len(x.items) / 8)
	case *Map:
		return x.keys, s.step(len(x.keys) / 8)
	case str:
		n := utf8.RuneCountInString(x.s)
		if err := s.alloc(n * 64); err != nil {
			return nil, err
		}
		out := make([]Value, 0, n)
		for i := 0; i < len(x.s); {
			_, w := utf8.DecodeRuneInString(x.s[i:])
			out = append(out, x.char(i, i+w))
			i += w
		}
		return out, nil
	}
	return nil, s.fail("cannot iterate over %s", typeName(v))
}

// char is cut for one character: data where any range holds it.
func (t str) char(from, to int) str {
	lo, hi := 0, len(t.data)
	for lo < hi {
		mid := (lo + hi) / 2
		if t.data[mid][1] <= from {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo < len(t.data) && t.data[lo][0] < to {
		return userText(t.s[from:to])
	}
	return str{s: t.s[from:to]}
}

func (e *literal) eval(s *state) (Value, error)  { return e.v, s.step(1) }
func (e *nameExpr) eval(s *state) (Value, error) { return s.lookup(e.name), s.step(1) }

func (e *listExpr) eval(s *state) (Value, error) {
	l := &list{items: make([]Value, len(e.items)), tuple: e.tuple}
	for i, item := range e.items {
		var err error
		if l.items[i], err = item.eval(s); err != nil {
			return nil, err
		}
	}
	return l, s.alloc(32 + 16*len(l.items))
}

func (e *mapExpr) eval(s *state) (Value, error) {
	m := NewMap()
	for i := range e.keys {
		k, err := e.keys[i].eval(s)
		if err != nil {
			return nil, err
		}
		v, err := e.vals[i].eval(s)
		if err != nil {
			return nil, err
		}
		if !m.put(k, v) {
			return nil, s.fail("%s cannot be a key", typeName(k))
		}
	}
	return m, s.alloc(64 + 64*len(m.keys))
}

func (e *attrExpr) eval(s *state) (Value, error) {
	of, err := e.of.eval(s)
	if err != nil {
		return nil, err
	}
	return s.attr(of, e.name)
}

// attr is of.name: a method first, then a key.
func (s *state) attr(of Value, name string) (Value, error) {
	if err := s.step(1); err != nil {
		return nil, err
	}
	switch x := of.(type) {
	case undefined:
		return nil, s.fail("cannot read %q of %q, which is undefined", name, x.name)
	case *loop:
		return x.attr(name), nil
	case *Map:
		if !x.namespace {
			if m := mapMethod(x, name); m != nil {
				return m, nil
			}
		}
		if v, ok := x.Get(name); ok {
			return v, nil
		}
	case str:
		if m := strMethod(x, name); m != nil {
			return m, nil
		}
	case *list:
		if m := listMethod(x, name); m != nil {
			return m, nil
		}
	case *macro:
		if name == "name" {
			return str{s: x.name}, nil
		}
	}
	return undefined{name}, nil
}

func (e *itemExpr) eval(s *state) (Value, error) {
	of, err := e.of.eval(s)
	if err != nil {
		return nil, err
	}
	key, err := e.key.eval(s)
	if err != nil {
		return nil, err
	}
	return s.item(of, key)
}

// item is of[key]: an element or a key first, then an attribute.
func (s *state) item(of, key Value) (Value, error) {
	if err := s.step(1); err != nil {
		return nil, err
	}
	name, isName := key.(str)
	switch x := of.(type) {
	case undefined:
		return nil, s.fail("cannot read an element of %q, which is undefined", x.name)
	case *Map:
		if v, ok := x.get(key); ok {
			return v, nil
		}
	case *list:
		if i, ok := index(key, len(x.items)); ok {
			return x.items[i], nil
		}
	case str:
		if _, i, exact := number(key); exact && isNumber(key) {
			n := utf8.RuneCountInString(x.s)
			if err := s.step(n / 64); err != nil {
				return nil, err
			}
			if i < 0 {
				i += int64(n)
			}
			if i < 0 || i >= int64(n) {
				return undefined{"index"}, nil
			}
			at := offset(x.s, int(i))
			_, w := utf8.DecodeRuneInString(x.s[at:])
			return x.char(at, at+w), nil
		}
	}
	if isName {
		return s.attr(of, name.s)
	}
	return undefined{"element"}, nil
}

// index reads a list index, which may count from the end.
func index(key Value, n int) (int, bool) {
	_, i, exact := number(key)
	if !exact || !isNumber(key) {
		return 0, false
	}
	if i < 0 {
		i += int64(n)
	}
	return int(i), i >= 0 && i < int64(n)
}

// offset is where the i-th character begins.
func offset(s string, i int) int {
	at := 0
	for ; i > 0 && at < len(s); i-- {
		_, w := utf8.DecodeRuneInString(s[at:])
		at += w
	}
	return at
}

func (e *sliceExpr) eval(s *state) (Value, error) {
	of, err := e.of.eval(s)
	if err != nil {
		return nil, err
	}
	var bounds [3]*int64
	for i, b := range []expr{e.from, e.to, e.step} {
		if b == nil {
			continue
		}
		v, err := b.eval(s)
		if err != nil {
			return nil, err
		}
		if v == nil {
			continue
		}
		_, n, exact := number(v)
		if !exact || !isNumber(v) {
			return nil, s.fail("a slice needs integers, not %s", typeName(v))
		}
		bounds[i] = &n
	}
	switch x := of.(type) {
	case undefined:
		return nil, s.fail("cannot slice %q, which is undefined", x.name)
	case *list:
		var out []Value
		err := s.slice(len(x.items), bounds, func(i int) { out = append(out, x.items[i]) })
		return &list{items: out, tuple: x.tuple}, err
	case str:
		return s.sliceStr(x, bounds)
	}
	return nil, s.fail("cannot slice %s", typeName(of))
}

func (s *state) sliceStr(x str, bounds [3]*int64) (Value, error) {
	n := utf8.RuneCountInString(x.s)
	if err := s.step(n / 64); err != nil {
		return nil, err
	}
	if bounds[2] == nil || *bounds[2] == 1 { // a stretch
		first, last := -1, -1
		from, to, _ := sliceBounds(n, bounds)
		if from < to {
			first, last = from, to
		}
		if first < 0 {
			return str{}, nil
		}
		a := offset(x.s, first)
		b := a + offset(x.s[a:], last-first)
		return x.cut(a, b), s.alloc(16)
	}
	chars, err := s.iterate(x)
	if err != nil {
		return nil, err
	}
	var m marked
	err = s.slice(n, bounds, func(i int) { m.addStr(chars[i].(str)) })
	return m.str(), err
}

// sliceBounds is Python's slice.indices.
func sliceBounds(n int, b [3]*int64) (from, to, step int) {
	step = 1
	if b[2] != nil {
		step = int(max(-1<<40, min(1<<40, *b[2])))
	}
	low, high := 0, n
	if step < 0 {
		low, high = -1, n-1
	}
	clamp := func(p *int64, other int) int {
		if p == nil {
			return other
		}
		i := *p
		if i < 0 {
			i = max(i, -1<<40) + int64(n)
			return int(max(i, int64(low)))
		}
		return int(min(i, int64(high)))
	}
	if step > 0 {
		return clamp(b[0], low), clamp(b[1], high), step
	}
	return clamp(b[0], high), clamp(b[1], low), step
}

func (s *state) slice(n int, b [3]*int64, take func(int)) error {
	from, to, step := sliceBounds(n, b)
	if step == 0 {
		return s.fail("a slice cannot step by zero")
	}
	count := 0
	for i := from; step > 0 && i < to || step < 0 && i > to; i += step {
		take(i)
		count++
	}
	return s.alloc(32 + 16*count)
}

func (e *callExpr) eval(s *state) (Value, error) {
	of, err := e.of.eval(s)
	if err != nil {
		return nil, err
	}
	a, err := s.arguments(&e.args)
	if err != nil {
		return nil, err
	}
	s.line = e.line
	return s.call(of, a)
}

func (e *filterExpr) eval(s *state) (Value, error) {
	if e.of == nil {
		return nil, s.fail("filter %q has nothing to work on", e.name)
	}
	of, err := e.of.eval(s)
	if err != nil {
		return nil, err
	}
	return s.filterWith(e, of)
}

func (s *state) filterWith(e *filterExpr, of Value) (Value, error) {
	a, err := s.arguments(&e.args)
	if err != nil {
		return nil, err
	}
	s.line = e.line
	return s.filter(e.name, of, a)
}

// filtered applies a chain of filters to a block's text.
func (s *state) filtered(chain expr, text str) (Value, error) {
	e, ok := chain.(*filterExpr)
	if !ok {
		return nil, s.fail("no filter")
	}
	of := Value(text)
	if e.of != nil {
		var err error
		if of, err = s.filtered(e.of, text); err != nil {
			return nil, err
		}
	}
	return s.filterWith(e, of)
}

func (e *testExpr) eval(s *state) (Value, error) {
	of, err := e.of.eval(s)
	if err != nil {
		return nil, err
	}
	a, err := s.arguments(&e.args)
	if err != nil {
		return nil, err
	}
	s.line = e.line
	ok, err := s.test(e.name, of, a)
	return ok != e.not, err
}

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
		return s.concat(a, b)
	}
	return s.arithmetic(e.op, a, b)
}

func (s *state) concat(a, b Value) (Value, error) {
	x, err := s.text(a)
	if err != nil {
		return nil, err
	}
	y, err := s.text(b)
	if err != nil {
		return nil, err
	}
	if err := s.alloc(len(x.s) + len(y.s) + 16*(len(x.data)+len(y.data))); err != nil {
		return nil, err
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
			return s.concat(x, y)
		}
		if op == "%" {
			values := []Value{b}
			if l, ok := b.(*list); ok && l.tuple {
				values = l.items
			}
			return s.percent(x, values)
		}
		if n, ok := count(b); ok && op == "*" {
			return s.repeat(x, n)
		}
	case *list:
		if y, ok := b.(*list); ok && op == "+" && x.tuple == y.tuple {
			items := make([]Value, 0, len(x.items)+len(y.items))
			return &list{items: append(append(items, x.items...), y.items...), tuple: x.tuple}, s.alloc(32 * cap(items))
		}
		if n, ok := count(b); ok && op == "*" {
			if n > 0 && len(x.items) > s.memory/16/n {
				return nil, s.alloc(s.memory + 1)
			}
			var items []Value
			for range n {
				items = append(items, x.items...)
			}
			return &list{items: items, tuple: x.tuple}, s.alloc(16 * len(items))
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
		return str{s: strings.Repeat(x.s, n)}, nil
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

// integers calculates as Python does; ok is false where the result overflows.
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
		return r, r/j == i && !(i == -1 && j == math.MinInt64) && !(j == -1 && i == math.MinInt64)
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
