package pattern

import (
	"errors"
	"fmt"

	"github.com/lamina-mesh/lamina/pkg/grammar/ast"
	"github.com/lamina-mesh/lamina/pkg/grammar/charset"
	"github.com/lamina-mesh/lamina/pkg/grammar/regex"
)

type op uint8

const (
	opSet op = iota
	opSplit
	opAssert
	opLook
	opAtomic
	opRun
	opMatch
	opFail
)

// inst is one instruction. next is the following instruction. For a split, alt is the
// second choice and choice is the number of the split.
type inst struct {
	op     op
	assert regex.Op
	not    bool
	behind int // the width of a look-behind in characters, else 0
	next   int32
	alt    int32 // for a look-around or an atomic group: the start of its program
	choice int32
	set    *set
}

// Pattern is a compiled pattern. It is immutable and safe for concurrent use.
type Pattern struct {
	prog    []inst
	start   int32
	choices int
	runs    int
	first   [256]bool // bytes that a match may begin with
	empty   bool      // a match may be empty
}

// maxWidth is the maximum number of characters that an atomic group may match.
const maxWidth = 1000

// maxProgram is the maximum number of instructions of a pattern.
const maxProgram = 20_000

// Error reports a pattern that cannot be compiled.
type Error struct {
	Pattern string
	Reason  string
	cause   error
}

// Error names the pattern, the reason and, if it is known, the character.
func (e *Error) Error() string { return fmt.Sprintf("compile pattern %q: %s", e.Pattern, e.Reason) }

// Unwrap is the parser's error, if it is one.
func (e *Error) Unwrap() error { return e.cause }

// Compile compiles a pattern in the dialect of tokenizer files. The error is an *Error.
func Compile(src string) (*Pattern, error) {
	n, err := regex.Parse(src, regex.Oniguruma)
	if err != nil {
		reason := err.Error()
		var syntax *ast.SyntaxError
		if errors.As(err, &syntax) {
			reason = fmt.Sprintf("character %d: %s", syntax.Column, syntax.Msg)
		}
		return nil, &Error{Pattern: src, Reason: reason, cause: err}
	}
	c := &compiler{Pattern: &Pattern{}, src: src}
	match := c.emit(inst{op: opMatch})
	c.start = c.node(n, match)
	if c.err != nil {
		return nil, c.err
	}
	c.begin(n)
	return c.Pattern, nil
}

type compiler struct {
	*Pattern
	src string
	err error
}

func (c *compiler) emit(i inst) int32 {
	if len(c.prog) >= maxProgram {
		if c.err == nil {
			c.err = &Error{Pattern: c.src, Reason: "the pattern is too large"}
		}
		return 0
	}
	c.prog = append(c.prog, i)
	return int32(len(c.prog) - 1)
}

func (c *compiler) split(first, second int32) int32 {
	return c.emit(inst{op: opSplit, next: first, alt: second, choice: c.choice()})
}

func (c *compiler) choice() int32 {
	c.choices++
	return int32(c.choices - 1)
}

// node compiles n so that it continues at next, and returns its first instruction.
// Programs are built from the end backwards, which needs no patching of jumps except in
// loops.
func (c *compiler) node(n *regex.Node, next int32) int32 {
	if c.err != nil {
		return 0
	}
	switch n.Op {
	case regex.Char:
		if len(n.Set) == 0 {
			return c.emit(inst{op: opFail})
		}
		return c.emit(inst{op: opSet, set: newSet(n.Set), next: next})
	case regex.Seq:
		for i := len(n.Subs) - 1; i >= 0; i-- {
			next = c.node(n.Subs[i], next)
		}
	case regex.Alt:
		at := c.node(n.Subs[len(n.Subs)-1], next)
		for i := len(n.Subs) - 2; i >= 0; i-- {
			at = c.split(c.node(n.Subs[i], next), at)
		}
		return at
	case regex.Repeat:
		return c.repeat(n, next)
	case regex.Begin, regex.End, regex.FinalEnd, regex.LineBegin, regex.LineEnd, regex.WordBoundary,
		regex.NotWordBoundary:
		return c.emit(inst{op: opAssert, assert: n.Op, next: next})
	case regex.Look, regex.Atomic:
		if n.Op == regex.Atomic {
			r := n.Subs[0]
			for r.Op == regex.Seq && len(r.Subs) == 1 {
				r = r.Subs[0]
			}
			if r.Op == regex.Repeat && r.Max < 0 && !r.Lazy && r.Min <= 1 && r.Subs[0].Op == regex.Char {
				c.runs++
				run := c.emit(inst{op: opRun, set: newSet(r.Subs[0].Set), next: next, choice: int32(c.runs - 1)})
				if r.Min == 0 {
					return run
				}
				return c.emit(inst{op: opLook, alt: c.node(r.Subs[0], c.emit(inst{op: opMatch})), next: run, behind: 0,
					choice: c.choice()})
			}
			if _, hi := width(r); hi < 0 || hi > maxWidth {
				c.err = &Error{Pattern: c.src, Reason: "atomic group without a greatest width"}
			}
		}
		match := c.emit(inst{op: opMatch})
		i := inst{op: opAtomic, alt: c.node(n.Subs[0], match), next: next, not: n.Not, behind: 0}
		if n.Op == regex.Look {
			i.op = opLook
		}
		if n.Behind {
			lo, hi := width(n.Subs[0])
			if lo != hi {
				c.err = &Error{Pattern: c.src, Reason: "lookbehind of more than one width"}
			}
			i.behind = lo
		}
		i.choice = c.choice()
		return c.emit(i)
	}
	return next
}

func (c *compiler) repeat(n *regex.Node, next int32) int32 {
	sub := n.Subs[0]
	at := next
	choose := func(more, done int32) int32 {
		if n.Lazy {
			return c.split(done, more)
		}
		return c.split(more, done)
	}
	if n.Max < 0 {
		loop := c.split(0, 0)
		body := c.node(sub, loop)
		if c.err != nil {
			return 0
		}
		l := &c.prog[loop]
		l.next, l.alt = body, next
		if n.Lazy {
			l.next, l.alt = next, body
		}
		at = loop
	} else {
		for range n.Max - n.Min {
			at = choose(c.node(sub, at), next)
			if c.err != nil {
				return 0
			}
		}
	}
	for range n.Min {
		at = c.node(sub, at)
		if c.err != nil {
			return 0
		}
	}
	return at
}

// width returns the minimum and maximum number of characters that n matches. The
// maximum is -1 if there is none.
func width(n *regex.Node) (lo, hi int) {
	switch n.Op {
	case regex.Char:
		return 1, 1
	case regex.Atomic:
		return width(n.Subs[0])
	case regex.Seq:
		for _, s := range n.Subs {
			a, b := width(s)
			lo += a
			if hi >= 0 && b >= 0 {
				hi += b
			} else {
				hi = -1
			}
		}
	case regex.Alt:
		lo, hi = width(n.Subs[0])
		for _, s := range n.Subs[1:] {
			a, b := width(s)
			lo = min(lo, a)
			if hi < 0 || b < 0 {
				hi = -1
			} else {
				hi = max(hi, b)
			}
		}
	case regex.Repeat:
		a, b := width(n.Subs[0])
		lo, hi = a*n.Min, -1
		if n.Max >= 0 && b >= 0 {
			hi = b * n.Max
		}
	}
	return lo, hi
}

// begin computes the bytes that a match may begin with.
func (c *compiler) begin(n *regex.Node) {
	set, maybe := firsts(n)
	c.empty = maybe
	for _, x := range set {
		for b := x.Lo; b <= min(x.Hi, 127); b++ {
			c.first[b] = true
		}
		if x.Hi > 127 {
			for b := 128; b < 256; b++ {
				c.first[b] = true
			}
		}
	}
}

// firsts returns the characters that n may begin with, and whether n may match the
// empty string.
func firsts(n *regex.Node) (set charset.Set, empty bool) {
	switch n.Op {
	case regex.Char:
		return n.Set, false
	case regex.Seq:
		for _, s := range n.Subs {
			x, e := firsts(s)
			set = set.Union(x)
			if !e {
				return set, false
			}
		}
		return set, true
	case regex.Alt:
		for _, s := range n.Subs {
			x, e := firsts(s)
			set, empty = set.Union(x), empty || e
		}
		return set, empty
	case regex.Repeat:
		set, empty = firsts(n.Subs[0])
		return set, empty || n.Min == 0
	case regex.Atomic:
		return firsts(n.Subs[0])
	case regex.Empty, regex.Look, regex.Begin, regex.End, regex.FinalEnd, regex.LineBegin, regex.LineEnd,
		regex.WordBoundary, regex.NotWordBoundary:
		return nil, true
	}
	return charset.Any(), true
}
