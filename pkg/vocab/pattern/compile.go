package pattern

import "unicode"

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
	assert byte
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

// maxProgram is the maximum number of instructions of a pattern.
const maxProgram = 20_000

// Compile compiles a pattern. The error is an *Error.
func Compile(src string) (*Pattern, error) {
	p := &parser{src: src}
	n, err := p.alternatives()
	if err != nil {
		return nil, err
	}
	if p.more() {
		return nil, p.fail("unexpected %q", p.peek())
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
func (c *compiler) node(n *node, next int32) int32 {
	if c.err != nil {
		return 0
	}
	switch n.kind {
	case kindSet:
		if len(n.set) == 0 {
			return c.emit(inst{op: opFail})
		}
		return c.emit(inst{op: opSet, set: newSet(n.set), next: next})
	case kindCat:
		for i := len(n.subs) - 1; i >= 0; i-- {
			next = c.node(n.subs[i], next)
		}
	case kindAlt:
		at := c.node(n.subs[len(n.subs)-1], next)
		for i := len(n.subs) - 2; i >= 0; i-- {
			at = c.split(c.node(n.subs[i], next), at)
		}
		return at
	case kindRepeat:
		return c.repeat(n, next)
	case kindAssert:
		return c.emit(inst{op: opAssert, assert: n.assert, next: next})
	case kindLook, kindAtomic:
		if n.kind == kindAtomic {
			r := n.subs[0]
			for r.kind == kindCat && len(r.subs) == 1 {
				r = r.subs[0]
			}
			if r.kind == kindRepeat && r.max < 0 && !r.lazy && r.min <= 1 && r.subs[0].kind == kindSet {
				c.runs++
				run := c.emit(inst{op: opRun, set: newSet(r.subs[0].set), next: next, choice: int32(c.runs - 1)})
				if r.min == 0 {
					return run
				}
				return c.emit(inst{op: opLook, alt: c.node(r.subs[0], c.emit(inst{op: opMatch})), next: run, behind: 0, choice: c.choice()})
			}
			if _, hi := width(r); hi < 0 || hi > maxCount {
				c.err = &Error{Pattern: c.src, Reason: "atomic group without a greatest width"}
			}
		}
		match := c.emit(inst{op: opMatch})
		i := inst{op: opAtomic, alt: c.node(n.subs[0], match), next: next, not: n.not, behind: 0}
		if n.kind == kindLook {
			i.op = opLook
		}
		if n.behind {
			lo, hi := width(n.subs[0])
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

func (c *compiler) repeat(n *node, next int32) int32 {
	sub := n.subs[0]
	at := next
	choose := func(more, done int32) int32 {
		if n.lazy {
			return c.split(done, more)
		}
		return c.split(more, done)
	}
	if n.max < 0 {
		loop := c.split(0, 0)
		body := c.node(sub, loop)
		if c.err != nil {
			return 0
		}
		l := &c.prog[loop]
		l.next, l.alt = body, next
		if n.lazy {
			l.next, l.alt = next, body
		}
		at = loop
	} else {
		for range n.max - n.min {
			at = choose(c.node(sub, at), next)
			if c.err != nil {
				return 0
			}
		}
	}
	for range n.min {
		at = c.node(sub, at)
		if c.err != nil {
			return 0
		}
	}
	return at
}

// width returns the minimum and maximum number of characters that n matches. The
// maximum is -1 if there is none.
func width(n *node) (lo, hi int) {
	switch n.kind {
	case kindSet:
		return 1, 1
	case kindAtomic:
		return width(n.subs[0])
	case kindCat:
		for _, s := range n.subs {
			a, b := width(s)
			lo += a
			if hi >= 0 && b >= 0 {
				hi += b
			} else {
				hi = -1
			}
		}
	case kindAlt:
		lo, hi = width(n.subs[0])
		for _, s := range n.subs[1:] {
			a, b := width(s)
			lo = min(lo, a)
			if hi < 0 || b < 0 {
				hi = -1
			} else {
				hi = max(hi, b)
			}
		}
	case kindRepeat:
		a, b := width(n.subs[0])
		lo, hi = a*n.min, -1
		if n.max >= 0 && b >= 0 {
			hi = b * n.max
		}
	}
	return lo, hi
}

// begin computes the bytes that a match may begin with.
func (c *compiler) begin(n *node) {
	r, maybe := firsts(n)
	c.empty = maybe
	for _, x := range r.normal() {
		for b := x[0]; b <= min(x[1], 127); b++ {
			c.first[b] = true
		}
		if x[1] > 127 {
			for b := 128; b < 256; b++ {
				c.first[b] = true
			}
		}
	}
}

// firsts returns the characters that n may begin with, and whether n may match the
// empty string.
func firsts(n *node) (r ranges, empty bool) {
	switch n.kind {
	case kindSet:
		return append(ranges(nil), n.set...), false
	case kindCat:
		for _, s := range n.subs {
			x, e := firsts(s)
			r = append(r, x...)
			if !e {
				return r, false
			}
		}
		return r, true
	case kindAlt:
		for _, s := range n.subs {
			x, e := firsts(s)
			r, empty = append(r, x...), empty || e
		}
		return r, empty
	case kindRepeat:
		r, empty = firsts(n.subs[0])
		return r, empty || n.min == 0
	case kindAtomic:
		return firsts(n.subs[0])
	case kindLook, kindAssert:
		return nil, true
	}
	return ranges{{0, unicode.MaxRune}}, true
}
