package template

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Budget bounds the resources of a rendering. Zero fields take the defaults, which stop a
// hostile template within 50 ms on an idle machine.
type Budget struct {
	Steps  int           // expressions, statements and elements visited; default 100,000, more in Chat for long chats
	Memory int           // bytes of strings and lists created; default 32 MiB
	Output int           // bytes of the result; default 4 MiB
	Time   time.Duration // a second limit for busy machines; default 1 s
}

// BudgetFor returns the default budget for variables of n bytes of JSON: long chats get more
// steps.
func BudgetFor(n int) Budget {
	b := Budget{}.orDefault()
	b.Steps += 4 * n
	return b
}

func (b Budget) orDefault() Budget {
	if b.Steps == 0 {
		b.Steps = 100_000
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

// BudgetError reports a template that exceeded its budget.
type BudgetError struct {
	What  string // "steps", "memory", "output", "time" or "nesting"
	Limit int    // in steps, bytes, nanoseconds or levels
}

// Error names the budget.
func (e *BudgetError) Error() string {
	return fmt.Sprintf("render template: %s used up (limit %d)", e.What, e.Limit)
}

// RaisedError is a message of the template's raise_exception: the template refuses the
// messages.
type RaisedError struct{ Message string }

// Error returns the template's message.
func (e *RaisedError) Error() string { return "render template: template refuses: " + e.Message }

// RenderError reports an operation that its operands do not support.
type RenderError struct {
	Line   int
	Reason string
}

// Error names the line and the reason.
func (e *RenderError) Error() string {
	return fmt.Sprintf("render template: line %d: %s", e.Line, e.Reason)
}

// Options configures a rendering.
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
	// Generated lists the byte ranges of Text that the generation blocks of the template wrote, in order:
	// what a model is trained to write. A block in a macro or in a captured text is not listed.
	Generated [][2]int
}

// Render renders the template with the variables. It returns a *RaisedError, a
// *RenderError, a *BudgetError or ctx's error. The variables are not changed
// unless the template changes lists or mappings among them.
func (t *Template) Render(ctx context.Context, vars *Map, o Options) (Result, error) {
	b := o.Budget.orDefault()
	ctx, cancel := context.WithTimeoutCause(ctx, b.Time, &BudgetError{"time", int(b.Time)})
	defer cancel()
	s := &state{ctx: ctx, limit: b, steps: b.Steps, memory: b.Memory, out: &marked{}}
	s.page = s.out
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
	s.top = s.scope
	s.self(t.blocks)
	if err := s.run(t.body); err != nil {
		return Result{}, err
	}
	out := s.out.str()
	return Result{Text: out.s, Data: out.data, Generated: s.generated}, nil
}

// state is one rendering.
type state struct {
	ctx    context.Context
	limit  Budget
	steps  int
	memory int
	ticks  int
	out    *marked
	page   *marked // the text of the whole rendering; out is another one while text is captured
	scope  *scope
	top    *scope // of the template
	depth  int    // of macro calls
	nested int    // of values within values
	line   int

	generated [][2]int // see Result.Generated
}

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
			var budget *BudgetError
			if errors.As(context.Cause(s.ctx), &budget) {
				return budget
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
	return s.step(n / 32)
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

// capture runs statements and returns their output.
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
