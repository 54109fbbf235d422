package template

import (
	"context"
	"fmt"
	"time"
)

// Budget bounds what a template may use. Zero fields take the defaults, which
// end a hostile template within 50 ms on an idle machine.
type Budget struct {
	Steps  int           // expressions, statements and elements looked at; default 150,000, more in Chat for long chats
	Memory int           // bytes of strings and lists made; default 32 MiB
	Output int           // bytes of the result; default 4 MiB
	Time   time.Duration // a backstop for busy machines; default 1 s
}

func (b Budget) orDefault() Budget {
	if b.Steps == 0 {
		b.Steps = 150_000
	}
	if b.Memory == 0 {
		b.Memory = 32 << 20
	}
	if b.Output == 0 {
		b.Output = 4 << 20
	}
	if b.Time == 0 {
		b.Time = time.Second
	}
	return b
}

// BudgetError reports a template that used up its budget.
type BudgetError struct {
	What  string // "steps", "memory", "output", "time" or "nesting"
	Limit int    // in steps, bytes, nanoseconds or levels
}

// Error names the budget.
func (e *BudgetError) Error() string {
	return fmt.Sprintf("render template: %s used up (limit %d)", e.What, e.Limit)
}

// RaisedError is what a template says by raise_exception: that the messages do
// not suit it.
type RaisedError struct{ Message string }

// Error is the template's message.
func (e *RaisedError) Error() string { return "render template: template refuses: " + e.Message }

// RenderError reports an operation that the values do not allow.
type RenderError struct {
	Line   int
	Reason string
}

// Error names the line and the reason.
func (e *RenderError) Error() string {
	return fmt.Sprintf("render template: line %d: %s", e.Line, e.Reason)
}

// Options shapes a rendering.
type Options struct {
	Budget Budget
	// Now is the clock of strftime_now; the function is undefined without it.
	Now func() time.Time
}

// Result is a rendered template.
type Result struct {
	Text string
	// Data lists the byte ranges [start, end) of Text that came from data, in
	// order and apart.
	Data [][2]int
}

// Render renders the template with the variables. It returns a *RaisedError, a
// *RenderError, a *BudgetError or ctx's error. The variables are not changed
// unless the template changes lists or mappings among them.
func (t *Template) Render(ctx context.Context, vars *Map, o Options) (Result, error) {
	b := o.Budget.orDefault()
	ctx, cancel := context.WithTimeoutCause(ctx, b.Time, &BudgetError{"time", int(b.Time)})
	defer cancel()
	s := &state{ctx: ctx, limit: b, steps: b.Steps, memory: b.Memory, out: &marked{}}
	s.scope = &scope{}
	s.globals(o)
	s.push()
	if vars != nil {
		for i, k := range vars.keys {
			if name, ok := k.(str); ok {
				s.set(name.s, vars.vals[i])
			}
		}
	}
	if err := s.run(t.body); err != nil {
		return Result{}, err
	}
	out := s.out.str()
	return Result{Text: out.s, Data: out.data}, nil
}

// state is one rendering.
type state struct {
	ctx    context.Context
	limit  Budget
	steps  int
	memory int
	ticks  int
	out    *marked
	scope  *scope
	depth  int // of macro calls
	nested int // of values within values
	line   int
}

// scope holds names; those of the parents are seen too. Few names stand in a
// list, many in a map.
type scope struct {
	parent *scope
	few    []binding
	many   map[string]Value
}

type binding struct {
	name string
	v    Value
}

func (sc *scope) find(name string) (Value, bool) {
	if sc.many != nil {
		v, ok := sc.many[name]
		return v, ok
	}
	for i := range sc.few {
		if sc.few[i].name == name {
			return sc.few[i].v, true
		}
	}
	return nil, false
}

func (sc *scope) set(name string, v Value) {
	if sc.many != nil {
		sc.many[name] = v
		return
	}
	for i := range sc.few {
		if sc.few[i].name == name {
			sc.few[i].v = v
			return
		}
	}
	if len(sc.few) < 8 {
		sc.few = append(sc.few, binding{name, v})
		return
	}
	sc.many = map[string]Value{name: v}
	for _, b := range sc.few {
		sc.many[b.name] = b.v
	}
}

func (s *state) push() { s.scope = &scope{parent: s.scope} }
func (s *state) pop()  { s.scope = s.scope.parent }

func (s *state) set(name string, v Value) { s.scope.set(name, v) }

func (s *state) lookup(name string) Value {
	for sc := s.scope; sc != nil; sc = sc.parent {
		if v, ok := sc.find(name); ok {
			return v
		}
	}
	return undefined{name}
}

// nest counts values within values, which may hold themselves; unnest undoes
// it.
func (s *state) nest() error {
	if s.nested >= 2*maxDepth {
		return &BudgetError{"nesting", 2 * maxDepth}
	}
	s.nested++
	return s.step(1)
}

func (s *state) unnest() { s.nested-- }

// step spends n steps.
func (s *state) step(n int) error {
	s.steps -= n
	if s.steps < 0 {
		return &BudgetError{"steps", s.limit.Steps}
	}
	s.ticks += n
	if s.ticks >= 512 {
		s.ticks = 0
		if s.ctx.Err() != nil {
			if cause, ok := context.Cause(s.ctx).(*BudgetError); ok {
				return cause
			}
			return fmt.Errorf("render template: %w", s.ctx.Err())
		}
	}
	return nil
}

// alloc spends n bytes of memory and the steps that making them takes.
func (s *state) alloc(n int) error {
	if n < 0 || n > s.memory {
		return &BudgetError{"memory", s.limit.Memory}
	}
	s.memory -= n
	return s.step(n / 64)
}

func (s *state) fail(format string, args ...any) error {
	return &RenderError{Line: s.line, Reason: fmt.Sprintf(format, args...)}
}

// emit appends to the output.
func (s *state) emit(t str) error {
	if s.out.len()+len(t.s) > s.limit.Output {
		return &BudgetError{"output", s.limit.Output}
	}
	s.out.addStr(t)
	return s.alloc(len(t.s) + 16*len(t.data))
}

// capture runs statements and returns what they put out.
func (s *state) capture(body []stmt) (str, error) {
	out := s.out
	s.out = &marked{}
	err := s.run(body)
	text := s.out.str()
	s.out = out
	return text, err
}

func (s *state) run(body []stmt) error {
	for _, st := range body {
		if err := s.step(1); err != nil {
			return err
		}
		if err := st.exec(s); err != nil {
			return err
		}
	}
	return nil
}

// loopSignal carries break and continue to their loop.
type loopSignal struct{ stop bool }

func (loopSignal) Error() string { return "break or continue outside a loop" }

func (st *textStmt) exec(s *state) error { return s.emit(str{s: st.text}) }

func (st *printStmt) exec(s *state) error {
	s.line = st.line
	v, err := st.of.eval(s)
	if err != nil {
		return err
	}
	text, err := s.text(v)
	if err != nil {
		return err
	}
	return s.emit(text)
}

func (st *ifStmt) exec(s *state) error {
	for i, cond := range st.conds {
		v, err := cond.eval(s)
		if err != nil {
			return err
		}
		if truth(v) {
			return s.run(st.bodies[i])
		}
	}
	return s.run(st.other)
}

func (st *forStmt) exec(s *state) error {
	s.line = st.line
	in, err := st.in.eval(s)
	if err != nil {
		return err
	}
	items, err := s.iterate(in)
	if err != nil {
		return err
	}
	if st.cond != nil {
		var kept []Value
		for _, item := range items {
			s.push()
			err := s.assign(&st.target, item)
			var v Value
			if err == nil {
				v, err = st.cond.eval(s)
			}
			s.pop()
			if err != nil {
				return err
			}
			if truth(v) {
				kept = append(kept, item)
			}
		}
		items = kept
	}
	if len(items) == 0 {
		return s.run(st.other)
	}
	l := &loop{items: items}
	for l.at = range items {
		if err := s.step(1); err != nil {
			return err
		}
		s.push()
		s.set("loop", l)
		err := s.assign(&st.target, items[l.at])
		if err == nil {
			err = s.run(st.body)
		}
		s.pop()
		if signal, ok := err.(loopSignal); ok {
			if signal.stop {
				return nil
			}
			err = nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (st *setStmt) exec(s *state) error {
	s.line = st.line
	if st.to != nil {
		v, err := st.to.eval(s)
		if err != nil {
			return err
		}
		return s.assign(&st.target, v)
	}
	s.push()
	text, err := s.capture(st.body)
	s.pop()
	if err != nil {
		return err
	}
	v := Value(text)
	if st.filter != nil {
		if v, err = s.filtered(st.filter, text); err != nil {
			return err
		}
	}
	return s.assign(&st.target, v)
}

// assign gives a target a value.
func (s *state) assign(t *target, v Value) error {
	switch {
	case t.items != nil:
		items, err := s.iterate(v)
		if err != nil {
			return err
		}
		if len(items) != len(t.items) {
			return s.fail("cannot unpack %d values into %d names", len(items), len(t.items))
		}
		for i := range items {
			if err := s.assign(&t.items[i], items[i]); err != nil {
				return err
			}
		}
	case t.attr != "":
		m, ok := s.lookup(t.name).(*Map)
		if !ok || !m.namespace {
			return s.fail("cannot set an attribute of %q, which is no namespace", t.name)
		}
		m.put(str{s: t.attr}, v)
	default:
		s.set(t.name, v)
	}
	return s.step(1)
}

func (st *macroStmt) exec(s *state) error {
	s.set(st.name, &macro{st.name, st.params, st.defaults, st.body, s.scope})
	return nil
}

func (st *callStmt) exec(s *state) error {
	s.line = st.line
	caller := &macro{"caller", st.params, st.defaults, st.body, s.scope}
	of, err := st.call.of.eval(s)
	if err != nil {
		return err
	}
	args, err := s.arguments(&st.call.args)
	if err != nil {
		return err
	}
	args.names = append(args.names, "caller")
	args.named = append(args.named, caller)
	v, err := s.call(of, args)
	if err != nil {
		return err
	}
	text, err := s.text(v)
	if err != nil {
		return err
	}
	return s.emit(text)
}

func (st *filterStmt) exec(s *state) error {
	s.line = st.line
	s.push()
	text, err := s.capture(st.body)
	s.pop()
	if err != nil {
		return err
	}
	v, err := s.filtered(st.filter, text)
	if err != nil {
		return err
	}
	if text, err = s.text(v); err != nil {
		return err
	}
	return s.emit(text)
}

func (st *withStmt) exec(s *state) error {
	values := make([]Value, len(st.values))
	for i, e := range st.values {
		var err error
		if values[i], err = e.eval(s); err != nil {
			return err
		}
	}
	s.push()
	defer s.pop()
	for i, name := range st.names {
		s.set(name, values[i])
	}
	return s.run(st.body)
}

func (st *blockStmt) exec(s *state) error { return s.run(st.body) }
func (breakStmt) exec(*state) error       { return loopSignal{stop: true} }
func (continueStmt) exec(*state) error    { return loopSignal{} }

// macro is a function that the template defines; what it puts out is its
// result.
type macro struct {
	name     string
	params   []string
	defaults []expr
	body     []stmt
	scope    *scope
}

const maxCalls = 100 // of macros within macros

func (s *state) callMacro(m *macro, a args) (Value, error) {
	if s.depth >= maxCalls {
		return nil, &BudgetError{"nesting", maxCalls}
	}
	s.depth++
	scope := s.scope
	defer func() { s.depth--; s.scope = scope }()
	s.scope = m.scope
	s.push()
	for i, name := range m.params {
		v, ok := Value(nil), i < len(a.pos)
		if ok {
			v = a.pos[i]
		} else if v, ok = a.take(name); !ok {
			v = undefined{name}
			if m.defaults[i] != nil {
				var err error
				if v, err = m.defaults[i].eval(s); err != nil {
					return nil, err
				}
			}
		}
		s.set(name, v)
	}
	if caller, ok := a.take("caller"); ok {
		s.set("caller", caller)
	}
	if n := len(m.params); len(a.pos) > n {
		s.set("varargs", &list{items: a.pos[n:], tuple: true})
	} else {
		s.set("varargs", &list{tuple: true})
	}
	rest := NewMap()
	for i, name := range a.names {
		rest.put(str{s: name}, a.named[i])
	}
	s.set("kwargs", rest)
	text, err := s.capture(m.body)
	return text, err
}

// loop is the loop variable.
type loop struct {
	items   []Value
	at      int
	changed Value
	asked   bool
}

func (l *loop) attr(name string) Value {
	n := len(l.items)
	switch name {
	case "index":
		return int64(l.at + 1)
	case "index0":
		return int64(l.at)
	case "revindex":
		return int64(n - l.at)
	case "revindex0":
		return int64(n - l.at - 1)
	case "first":
		return l.at == 0
	case "last":
		return l.at == n-1
	case "length":
		return int64(n)
	case "depth":
		return int64(1)
	case "depth0":
		return int64(0)
	case "previtem":
		if l.at > 0 {
			return l.items[l.at-1]
		}
	case "nextitem":
		if l.at+1 < n {
			return l.items[l.at+1]
		}
	case "cycle":
		return &function{"cycle", func(s *state, a args) (Value, error) {
			if len(a.pos) == 0 {
				return nil, s.fail("cycle needs a value")
			}
			return a.pos[l.at%len(a.pos)], nil
		}}
	case "changed":
		return &function{"changed", func(s *state, a args) (Value, error) {
			now := &list{items: a.pos, tuple: true}
			same := false
			if l.asked {
				var err error
				if same, err = s.equal(l.changed, now); err != nil {
					return nil, err
				}
			}
			l.changed, l.asked = now, true
			return !same, nil
		}}
	}
	return undefined{"loop." + name}
}
