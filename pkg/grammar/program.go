package grammar

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

type instrOp uint8

const (
	doFail  instrOp = iota
	doChar          // a character of class, then x
	doSplit         // x and y
	doCall          // rule, then x
	doEnter         // begin to count, then x, a doLoop
	doLoop          // x while the count is below most; y once it is least
	doDone          // the end of the rule
)

// instr is an instruction of the program that the rules become.
type instr struct {
	op          instrOp
	class, rule int32
	x, y        int32
	least, most int32
	loop        int32 // the doLoop around it, or -1
}

// program is a grammar as instructions. Every instruction but doFail reaches the
// end of its rule.
type program struct {
	code    []instr
	classes []*class
	starts  []int32 // of each rule, or -1 while it is not called
	roles   []role  // of each rule
	unique  bool    // some rule has a role
	leaves  []bool  // where the end of the rule is reached without a uniqueItem
}

type spelledRune struct {
	r   rune
	enc encoding
}

type classKey struct {
	set string
	enc encoding
}

// emitter writes a program, each expression before what follows it.
type emitter struct {
	*analysis
	program
	known    map[classKey]int32
	single   map[spelledRune]int32
	nonEmpty map[int]int // rule -> the rule that is its texts but the empty one
	todo     []int
	failPC   int32
	loop     int32 // the doLoop that is being written, or -1
	err      error
}

// program is g as instructions, made once.
func (g *Grammar) program() (*program, error) {
	g.once.Do(func() { g.prog, g.err = compileProgram(g) })
	return g.prog, g.err
}

// compileProgram turns a grammar into a program, or says why it cannot be one.
func compileProgram(g *Grammar) (*program, error) {
	local := &Grammar{rules: slices.Clone(g.rules), root: g.root, kind: g.kind}
	a, err := analyse(local)
	if err != nil {
		return nil, err
	}
	if !a.productive[g.root] {
		return nil, &UnsupportedError{Kind: g.kind, Feature: "a language without texts", Why: "nothing would ever be accepted"}
	}
	e := &emitter{analysis: a, known: map[classKey]int32{}, single: map[spelledRune]int32{}, nonEmpty: map[int]int{}, loop: -1}
	e.starts = make([]int32, len(local.rules))
	for i := range e.starts {
		e.starts[i] = -1
	}
	e.failPC = e.add(instr{op: doFail})
	e.call(g.root)
	for len(e.todo) > 0 && e.err == nil {
		id := e.todo[len(e.todo)-1]
		e.todo = e.todo[:len(e.todo)-1]
		e.starts[id] = e.emit(e.g.rules[id].body, e.add(instr{op: doDone}))
	}
	if e.err != nil {
		return nil, e.err
	}
	if err := e.leftRecursion(); err != nil {
		return nil, err
	}
	for _, r := range e.g.rules {
		e.roles = append(e.roles, r.role)
		e.unique = e.unique || r.role != noRole
	}
	if e.unique {
		e.leave()
	}
	return &e.program, nil
}

func (e *emitter) add(i instr) int32 {
	if len(e.code) >= maxInstructions {
		e.err = &LimitError{What: "instructions", Limit: maxInstructions}
		return 0
	}
	i.loop = e.loop
	e.code = append(e.code, i)
	return int32(len(e.code) - 1)
}

// call has the rule's program made.
func (e *emitter) call(id int) {
	if e.starts[id] == -1 {
		e.starts[id] = -2
		e.todo = append(e.todo, id)
	}
}

// emit writes x so that next follows it, and returns where it begins.
func (e *emitter) emit(x *expr, next int32) int32 {
	if e.err != nil || !e.isProductive(x) {
		return e.failPC
	}
	switch x.op {
	case opText:
		for text := x.text; text != ""; {
			r, n := utf8.DecodeLastRuneInString(text)
			next = e.add(instr{op: doChar, class: e.one(r, x.enc), x: next})
			text = text[:len(text)-n]
		}
		return next
	case opChar:
		return e.add(instr{op: doChar, class: e.class(x.set, x.enc), x: next})
	case opSeq:
		for i := len(x.subs) - 1; i >= 0; i-- {
			next = e.emit(x.subs[i], next)
		}
	case opAlt:
		at := e.failPC
		for i := len(x.subs) - 1; i >= 0; i-- {
			at = e.split(e.emit(x.subs[i], next), at)
		}
		return at
	case opRepeat:
		return e.repeat(x, next)
	case opRule:
		if e.copied[x.rule] {
			return e.emit(e.g.rules[x.rule].body, next)
		}
		e.call(int(x.rule))
		return e.add(instr{op: doCall, rule: x.rule, x: next})
	case opGraph:
		return e.graph(x, next)
	}
	return next
}

func (e *emitter) split(x, y int32) int32 {
	if x == e.failPC || x == y {
		return y
	}
	if y == e.failPC {
		return x
	}
	return e.add(instr{op: doSplit, x: x, y: y})
}

func (e *emitter) repeat(x *expr, next int32) int32 {
	body, least := x.subs[0], x.min
	if e.isNullable(body) {
		// Going round without a character changes nothing: leave it out, and
		// with it every loop that would not end.
		body, least = e.withoutEmpty(body), 0
	}
	if !e.isProductive(body) {
		return next
	}
	switch {
	case least == 0 && x.max == 1:
		return e.split(e.emit(body, next), next)
	case least <= 1 && x.max < 0:
		loop := e.add(instr{op: doSplit, y: next})
		first := e.emit(body, loop)
		e.code[loop].x = first
		if least == 1 {
			return first
		}
		return loop
	}
	loop := e.add(instr{op: doLoop, y: next, least: least, most: x.max})
	outer := e.loop
	e.loop = loop
	first := e.emit(body, loop)
	e.loop = outer
	e.code[loop].x = first
	return e.add(instr{op: doEnter, x: loop})
}

func (e *emitter) graph(x *expr, next int32) int32 {
	ends := e.ends(x.graph)
	base := int32(len(e.code))
	for range x.graph.states {
		e.add(instr{op: doFail})
	}
	for i, s := range x.graph.states {
		at := e.failPC
		if s.final {
			at = next
		}
		for _, edge := range slices.Backward(s.edges) {
			if e.err != nil {
				return e.failPC
			}
			if !ends[edge.to] {
				continue
			}
			to := base + int32(edge.to)
			if edge.on != nil {
				to = e.emit(edge.on, to)
			}
			at = e.split(to, at)
		}
		e.code[base+int32(i)] = instr{op: doSplit, x: at, y: e.failPC, loop: e.loop}
	}
	return base
}

// withoutEmpty is x's texts but the empty one.
func (e *emitter) withoutEmpty(x *expr) *expr {
	if !e.isNullable(x) {
		return x
	}
	switch x.op {
	case opSeq:
		out := fail()
		for i := len(x.subs) - 1; i >= 0; i-- {
			out = alt(seq(append([]*expr{e.withoutEmpty(x.subs[i])}, x.subs[i+1:]...)...), out)
		}
		return out
	case opAlt:
		var subs []*expr
		for _, s := range x.subs {
			subs = append(subs, e.withoutEmpty(s))
		}
		return alt(subs...)
	case opRepeat:
		return repeat(e.withoutEmpty(x.subs[0]), 1, int(x.max))
	case opRule:
		id, ok := e.nonEmpty[int(x.rule)]
		if !ok {
			id = len(e.g.rules)
			e.nonEmpty[int(x.rule)] = id
			from := e.g.rules[x.rule]
			e.g.rules = append(e.g.rules, rule{name: from.name, line: from.line})
			e.starts = append(e.starts, -1)
			e.nullable, e.copied, e.size = append(e.nullable, false), append(e.copied, false), append(e.size, 0)
			e.productive = append(e.productive, true)
			e.g.rules[id].body = e.withoutEmpty(from.body)
			e.productive[id] = e.isProductive(e.g.rules[id].body)
		}
		return ref(id)
	case opText, opChar:
		return x
	case opGraph:
		return x.graph.withoutEmpty().expr()
	}
	return fail()
}

// one is the class of one character.
func (e *emitter) one(r rune, enc encoding) int32 {
	key := spelledRune{r, enc}
	id, ok := e.single[key]
	if !ok {
		id = e.class(oneRune(r), enc)
		e.single[key] = id
	}
	return id
}

func (e *emitter) class(set runeSet, enc encoding) int32 {
	key := classKey{set.key(), enc}
	if id, ok := e.known[key]; ok {
		return id
	}
	if len(e.classes) >= maxClasses {
		e.err = &LimitError{What: "character classes", Limit: maxClasses}
		return 0
	}
	c, err := newClass(set, enc, maxClassStates)
	if err != nil {
		e.err = err
		return 0
	}
	id := int32(len(e.classes))
	e.classes = append(e.classes, c)
	e.known[key] = id
	return id
}

// leftRecursion refuses a rule that may call itself before any character.
func (e *emitter) leftRecursion() error {
	left := make([][]int32, len(e.starts)) // what a rule may call first
	mark := make([]int, len(e.code))
	for id, start := range e.starts {
		if start < 0 {
			continue
		}
		for work := []int32{start}; len(work) > 0; {
			pc := work[len(work)-1]
			work = work[:len(work)-1]
			if mark[pc] == id+1 {
				continue
			}
			mark[pc] = id + 1
			switch in := e.code[pc]; in.op {
			case doSplit:
				work = append(work, in.x, in.y)
			case doEnter:
				work = append(work, in.x)
			case doLoop:
				work = append(work, in.x)
				if in.least == 0 {
					work = append(work, in.y)
				}
			case doCall:
				left[id] = append(left[id], in.rule)
				if e.nullable[in.rule] {
					work = append(work, in.x)
				}
			}
		}
	}
	state := make([]uint8, len(left)) // 1 while open, 2 when done
	var path []string
	var visit func(id int32) *rule
	visit = func(id int32) *rule {
		state[id] = 1
		path = append(path, e.g.rules[id].name)
		for _, c := range left[id] {
			if state[c] == 1 {
				path = append(path, e.g.rules[c].name)
				return &e.g.rules[c]
			}
			if state[c] == 0 {
				if r := visit(c); r != nil {
					return r
				}
			}
		}
		path = path[:len(path)-1]
		state[id] = 2
		return nil
	}
	for id := range left {
		if state[id] != 0 {
			continue
		}
		if r := visit(int32(id)); r != nil {
			from := max(0, len(path)-6)
			return &UnsupportedError{Kind: e.g.kind, Feature: leftRecursionAt(*r), Why: "a rule may not begin with itself: " + strings.Join(path[from:], " -> ")}
		}
	}
	return nil
}

// leave finds from where rules may end without calling one for a uniqueItem.
func (e *emitter) leave() {
	e.leaves = make([]bool, len(e.code))
	for changed := true; changed; {
		changed = false
		for pc := range e.code {
			if e.leaves[pc] {
				continue
			}
			yes := false
			switch in := &e.code[pc]; in.op {
			case doDone:
				yes = true
			case doChar, doEnter:
				yes = e.leaves[in.x]
			case doCall:
				yes = e.roles[in.rule] != uniqueItem && e.leaves[in.x]
			case doSplit:
				yes = e.leaves[in.x] || e.leaves[in.y]
			case doLoop:
				yes = e.leaves[in.y]
			}
			if yes {
				e.leaves[pc], changed = true, true
			}
		}
	}
}

func leftRecursionAt(r rule) string {
	if r.line > 0 {
		return fmt.Sprintf("left recursion of rule %s on line %d", r.name, r.line)
	}
	return "left recursion of rule " + r.name
}
