package automaton

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/lamina-mesh/lamina/pkg/grammar/ast"
	"github.com/lamina-mesh/lamina/pkg/grammar/charset"
	"github.com/lamina-mesh/lamina/pkg/grammar/spelling"
)

// OpCode is what an instruction does. It says which of the fields of an Instr have a meaning.
type OpCode uint8

const (
	OpFail  OpCode = iota // nothing fits
	OpChar                // a character of class, then x
	OpSplit               // x and y
	OpCall                // rule, then x
	OpEnter               // push a counter, then x, an OpLoop
	OpLoop                // x while the count is below most; y if it is at least least
	OpDone                // the end of the rule
)

// Instr is an instruction of a program.
type Instr struct {
	Op          OpCode
	Class, Rule int32
	X, Y        int32
	Least, Most int32
	Loop        int32 // the OpLoop around it, or -1
}

// Program is a compiled grammar. Every instruction except OpFail reaches the end of its rule.
type Program struct {
	Code    []Instr
	Classes []*spelling.Class
	Starts  []int32    // entry of each rule, or -1 if it is never called
	roles   []ast.Role // of each rule
	Unique  bool       // the grammar has uniqueItems
	leaves  []bool     // by pc: the end of the rule is reachable without an item
}

type spelledRune struct {
	r   rune
	enc ast.Encoding
}

type classKey struct {
	set string
	enc ast.Encoding
}

// emitter emits a program backwards: the continuation of an expression before the
// expression, so that jump targets are known and only loops need patching.
type emitter struct {
	*analysis
	Program
	known    map[classKey]int32
	single   map[spelledRune]int32
	nonEmpty map[int]int // rule -> the same rule without the empty text
	todo     []int
	failPC   int32
	loop     int32 // the innermost OpLoop, or -1
	err      error
}

// Compile returns the program of g, compiled once.
func Compile(g *ast.Grammar) (*Program, error) {
	made, err := g.Compiled(func(g *ast.Grammar) (any, error) { return compileProgram(g) })
	if err != nil {
		return nil, err
	}
	return made.(*Program), nil
}

// compileProgram compiles a grammar.
func compileProgram(g *ast.Grammar) (*Program, error) {
	local := &ast.Grammar{Rules: slices.Clone(g.Rules), Root: g.Root, Kind: g.Kind}
	a, err := analyse(local)
	if err != nil {
		return nil, err
	}
	if !a.productive[g.Root] {
		return nil, &ast.UnsupportedError{Kind: g.Kind, Feature: "an empty language", Why: "no text would ever match"}
	}
	e := &emitter{analysis: a, known: map[classKey]int32{}, single: map[spelledRune]int32{}, nonEmpty: map[int]int{},
		loop: -1}
	e.Starts = make([]int32, len(local.Rules))
	for i := range e.Starts {
		e.Starts[i] = -1
	}
	e.failPC = e.add(Instr{Op: OpFail})
	e.call(g.Root)
	for len(e.todo) > 0 && e.err == nil {
		id := e.todo[len(e.todo)-1]
		e.todo = e.todo[:len(e.todo)-1]
		e.Starts[id] = e.emit(e.g.Rules[id].Body, e.add(Instr{Op: OpDone}))
	}
	if e.err != nil {
		return nil, e.err
	}
	if err := e.leftRecursion(); err != nil {
		return nil, err
	}
	for _, r := range e.g.Rules {
		e.roles = append(e.roles, r.Role)
		e.Unique = e.Unique || r.Role != ast.NoRole
	}
	if e.Unique {
		e.leave()
	}
	return &e.Program, nil
}

func (e *emitter) add(i Instr) int32 {
	if len(e.Code) >= ast.MaxInstructions {
		e.err = &ast.LimitError{What: "instructions", Limit: ast.MaxInstructions}
		return 0
	}
	i.Loop = e.loop
	e.Code = append(e.Code, i)
	return int32(len(e.Code) - 1)
}

// call queues a rule for emission.
func (e *emitter) call(id int) {
	if e.Starts[id] == -1 {
		e.Starts[id] = -2
		e.todo = append(e.todo, id)
	}
}

// emit emits x so that it continues at next, and returns its first instruction.
func (e *emitter) emit(x *ast.Expr, next int32) int32 {
	if e.err != nil || !e.isProductive(x) {
		return e.failPC
	}
	switch x.Op {
	case ast.OpText:
		for text := x.Text; text != ""; {
			r, n := utf8.DecodeLastRuneInString(text)
			next = e.add(Instr{Op: OpChar, Class: e.one(r, x.Enc), X: next})
			text = text[:len(text)-n]
		}
		return next
	case ast.OpChar:
		return e.add(Instr{Op: OpChar, Class: e.class(x.Set, x.Enc), X: next})
	case ast.OpSeq:
		for i := len(x.Subs) - 1; i >= 0; i-- {
			next = e.emit(x.Subs[i], next)
		}
	case ast.OpAlt:
		at := e.failPC
		for i := len(x.Subs) - 1; i >= 0; i-- {
			at = e.split(e.emit(x.Subs[i], next), at)
		}
		return at
	case ast.OpRepeat:
		return e.repeat(x, next)
	case ast.OpRule:
		if e.copied[x.Rule] {
			return e.emit(e.g.Rules[x.Rule].Body, next)
		}
		e.call(int(x.Rule))
		return e.add(Instr{Op: OpCall, Rule: x.Rule, X: next})
	case ast.OpGraph:
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
	return e.add(Instr{Op: OpSplit, X: x, Y: y})
}

func (e *emitter) repeat(x *ast.Expr, next int32) int32 {
	body, least := x.Subs[0], x.Min
	if e.isNullable(body) {
		// An iteration that reads nothing changes nothing. Leaving it out also removes
		// every infinite loop.
		body, least = e.withoutEmpty(body), 0
	}
	if !e.isProductive(body) {
		return next
	}
	switch {
	case least == 0 && x.Max == 1:
		return e.split(e.emit(body, next), next)
	case least <= 1 && x.Max < 0:
		loop := e.add(Instr{Op: OpSplit, Y: next})
		first := e.emit(body, loop)
		e.Code[loop].X = first
		if least == 1 {
			return first
		}
		return loop
	}
	loop := e.add(Instr{Op: OpLoop, Y: next, Least: least, Most: x.Max})
	outer := e.loop
	e.loop = loop
	first := e.emit(body, loop)
	e.loop = outer
	e.Code[loop].X = first
	return e.add(Instr{Op: OpEnter, X: loop})
}

func (e *emitter) graph(x *ast.Expr, next int32) int32 {
	ends := e.ends(x.Graph)
	base := int32(len(e.Code))
	for range x.Graph.States {
		e.add(Instr{Op: OpFail})
	}
	for i, s := range x.Graph.States {
		at := e.failPC
		if s.Final {
			at = next
		}
		for _, edge := range slices.Backward(s.Edges) {
			if e.err != nil {
				return e.failPC
			}
			if !ends[edge.To] {
				continue
			}
			to := base + int32(edge.To)
			if edge.On != nil {
				to = e.emit(edge.On, to)
			}
			at = e.split(to, at)
		}
		e.Code[base+int32(i)] = Instr{Op: OpSplit, X: at, Y: e.failPC, Loop: e.loop}
	}
	return base
}

// withoutEmpty returns x without the empty text.
func (e *emitter) withoutEmpty(x *ast.Expr) *ast.Expr {
	if !e.isNullable(x) {
		return x
	}
	switch x.Op {
	case ast.OpSeq:
		out := ast.Fail()
		for i := len(x.Subs) - 1; i >= 0; i-- {
			out = ast.Alt(ast.Seq(append([]*ast.Expr{e.withoutEmpty(x.Subs[i])}, x.Subs[i+1:]...)...), out)
		}
		return out
	case ast.OpAlt:
		var subs []*ast.Expr
		for _, s := range x.Subs {
			subs = append(subs, e.withoutEmpty(s))
		}
		return ast.Alt(subs...)
	case ast.OpRepeat:
		return ast.Repeat(e.withoutEmpty(x.Subs[0]), 1, int(x.Max))
	case ast.OpRule:
		id, ok := e.nonEmpty[int(x.Rule)]
		if !ok {
			id = len(e.g.Rules)
			e.nonEmpty[int(x.Rule)] = id
			from := e.g.Rules[x.Rule]
			e.g.Rules = append(e.g.Rules, ast.Rule{Name: from.Name, Line: from.Line})
			e.Starts = append(e.Starts, -1)
			e.nullable, e.copied, e.size = append(e.nullable, false), append(e.copied, false), append(e.size, 0)
			e.productive = append(e.productive, true)
			e.g.Rules[id].Body = e.withoutEmpty(from.Body)
			e.productive[id] = e.isProductive(e.g.Rules[id].Body)
		}
		return ast.Ref(id)
	case ast.OpText, ast.OpChar:
		return x
	case ast.OpGraph:
		return x.Graph.WithoutEmpty().Expr()
	}
	return ast.Fail()
}

// one returns the class of one character.
func (e *emitter) one(r rune, enc ast.Encoding) int32 {
	key := spelledRune{r, enc}
	id, ok := e.single[key]
	if !ok {
		id = e.class(charset.Single(r), enc)
		e.single[key] = id
	}
	return id
}

func (e *emitter) class(set charset.Set, enc ast.Encoding) int32 {
	key := classKey{set.Key(), enc}
	if id, ok := e.known[key]; ok {
		return id
	}
	if len(e.Classes) >= maxClasses {
		e.err = &ast.LimitError{What: "character classes", Limit: maxClasses}
		return 0
	}
	c, err := spelling.New(set, enc, maxClassStates)
	if err != nil {
		e.err = err
		return 0
	}
	id := int32(len(e.Classes))
	e.Classes = append(e.Classes, c)
	e.known[key] = id
	return id
}

// leftRecursion refuses a rule that may call itself before it reads a character: expand would
// push onto the stack for ever.
func (e *emitter) leftRecursion() error {
	left := make([][]int32, len(e.Starts)) // rules that may be called first
	mark := make([]int, len(e.Code))
	for id, start := range e.Starts {
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
			switch in := e.Code[pc]; in.Op {
			case OpSplit:
				work = append(work, in.X, in.Y)
			case OpEnter:
				work = append(work, in.X)
			case OpLoop:
				work = append(work, in.X)
				if in.Least == 0 {
					work = append(work, in.Y)
				}
			case OpCall:
				left[id] = append(left[id], in.Rule)
				if e.nullable[in.Rule] {
					work = append(work, in.X)
				}
			}
		}
	}
	state := make([]uint8, len(left)) // 1 while open, 2 when done
	var path []string
	var visit func(id int32) *ast.Rule
	visit = func(id int32) *ast.Rule {
		state[id] = 1
		path = append(path, e.g.Rules[id].Name)
		for _, c := range left[id] {
			if state[c] == 1 {
				path = append(path, e.g.Rules[c].Name)
				return &e.g.Rules[c]
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
			return &ast.UnsupportedError{Kind: e.g.Kind, Feature: leftRecursionAt(*r),
				Why: "a rule must not begin with itself: " + strings.Join(path[from:], " -> ")}
		}
	}
	return nil
}

// leave computes Program.leaves.
func (e *emitter) leave() {
	e.leaves = make([]bool, len(e.Code))
	for changed := true; changed; {
		changed = false
		for pc := range e.Code {
			if e.leaves[pc] {
				continue
			}
			yes := false
			switch in := &e.Code[pc]; in.Op {
			case OpDone:
				yes = true
			case OpChar, OpEnter:
				yes = e.leaves[in.X]
			case OpCall:
				yes = e.roles[in.Rule] != ast.UniqueItem && e.leaves[in.X]
			case OpSplit:
				yes = e.leaves[in.X] || e.leaves[in.Y]
			case OpLoop:
				yes = e.leaves[in.Y]
			}
			if yes {
				e.leaves[pc], changed = true, true
			}
		}
	}
}

func leftRecursionAt(r ast.Rule) string {
	if r.Line > 0 {
		return fmt.Sprintf("left recursion of rule %s on line %d", r.Name, r.Line)
	}
	return "left recursion of rule " + r.Name
}
