package ast

import (
	"sync"

	"github.com/lamina-mesh/lamina/pkg/grammar/charset"
)

// Grammar is a language: rules, one of which is the root. A front end builds it; after that
// it never changes and any number of goroutines may compile it.
type Grammar struct {
	Rules []Rule
	Root  int
	Kind  string // the front end, for errors

	once sync.Once
	made any
	err  error
}

// Compiled returns the result of make, which is called once.
func (g *Grammar) Compiled(make func(*Grammar) (any, error)) (any, error) {
	g.once.Do(func() { g.made, g.err = make(g) })
	return g.made, g.err
}

// Rule is a named expression. Line is its line in the source, or 0.
type Rule struct {
	Name string
	Body *Expr
	Line int
	// Apart prevents inlining, so that all callers share the rule's states and masks.
	Apart bool
	Role  Role
}

// Op is the kind of an Expr. It says which of the fields of the Expr have a meaning.
type Op uint8

const (
	OpEmpty  Op = iota // the empty text
	OpFail             // nothing
	OpText             // Text, spelled as Enc says
	OpChar             // one character of Set, spelled as Enc says
	OpSeq              // Subs one after the other
	OpAlt              // one of Subs
	OpRepeat           // Subs[0] from Min to Max times; Max < 0 means no maximum
	OpRule             // the rule of the index Rule
	OpGraph            // a path through Graph, from state 0 to a final one
)

// Encoding says how a character is spelled in bytes.
type Encoding uint8

const (
	// PlainUTF8 is the character in UTF-8.
	PlainUTF8 Encoding = iota
	// JSONCanonical is the inside of a JSON string: plain where JSON allows it,
	// else the short escape or \u00XX; characters from U+0080 also as \uXXXX.
	JSONCanonical
	// JSONUnique is the inside of a JSON string with one spelling for each character: plain
	// where JSON allows it, else the short escape or \u00xx.
	JSONUnique
	// JSONAny is the inside of a JSON string with every spelling that JSON allows.
	JSONAny
	// SignOnly is the byte around a control token's spelling, whatever the character.
	SignOnly
)

// Expr is a node of a rule's body.
type Expr struct {
	Op       Op
	Enc      Encoding
	Facts    facts
	Min, Max int32
	Rule     int32
	Text     string
	Set      charset.Set
	Subs     []*Expr
	Graph    *Graph
}

// facts caches what the analysis of a grammar has found about an expression.
type facts uint8

const (
	KnownNullable   facts = 1 << iota // IsNullable has been found out
	IsNullable                        // it matches the empty text
	KnownProductive                   // IsProductive has been found out
	IsProductive                      // it matches some text
)

// Graph is an automaton whose edges read an expression that never matches the empty text, or
// nothing if On is nil. State 0 is the first.
type Graph struct {
	States []GraphState
}

// GraphState is a state of a Graph. A text may end in it if it is Final.
type GraphState struct {
	Edges []graphEdge
	Final bool
}

type graphEdge struct {
	On *Expr
	To int
}

// Add adds a state.
func (g *Graph) Add() int {
	g.States = append(g.States, GraphState{})
	return len(g.States) - 1
}

// Edge adds an edge; on is nil or never matches the empty text.
func (g *Graph) Edge(from int, on *Expr, to int) {
	g.States[from].Edges = append(g.States[from].Edges, graphEdge{on, to})
}

// Expr returns the texts of the graph as an expression.
func (g *Graph) Expr() *Expr { return &Expr{Op: OpGraph, Graph: g} }

// Silent lists the states that are reached from state 0 without reading.
func (g *Graph) Silent() []int {
	seen := make([]bool, len(g.States))
	seen[0] = true
	order := []int{0}
	for i := 0; i < len(order); i++ {
		for _, e := range g.States[order[i]].Edges {
			if e.On == nil && !seen[e.To] {
				seen[e.To] = true
				order = append(order, e.To)
			}
		}
	}
	return order
}

// WithoutEmpty returns the graph without the empty text.
func (g *Graph) WithoutEmpty() *Graph {
	out := &Graph{States: make([]GraphState, 1, len(g.States)+1)}
	for _, s := range g.States {
		edges := make([]graphEdge, len(s.Edges))
		for i, e := range s.Edges {
			edges[i] = graphEdge{e.On, e.To + 1}
		}
		out.States = append(out.States, GraphState{edges, s.Final})
	}
	for _, id := range g.Silent() {
		for _, e := range out.States[id+1].Edges {
			if e.On != nil {
				out.States[0].Edges = append(out.States[0].Edges, e)
			}
		}
	}
	return out
}

// Empty returns the expression that matches the empty text alone.
func Empty() *Expr { return &Expr{Op: OpEmpty} }

// Fail returns the expression that matches no text.
func Fail() *Expr { return &Expr{Op: OpFail} }

// Char returns one character of a set, in an encoding. An empty set matches nothing.
func Char(set charset.Set, enc Encoding) *Expr {
	if len(set) == 0 {
		return Fail()
	}
	return &Expr{Op: OpChar, Set: set, Enc: enc}
}

// Literal returns a text in an encoding.
func Literal(text string, enc Encoding) *Expr {
	if text == "" {
		return Empty()
	}
	return &Expr{Op: OpText, Text: text, Enc: enc}
}

// Text returns a text in UTF-8.
func Text(text string) *Expr { return Literal(text, PlainUTF8) }

// Seq returns expressions one after the other. None of them means the empty text.
func Seq(subs ...*Expr) *Expr {
	var out []*Expr
	for _, s := range subs {
		switch s.Op {
		case OpEmpty:
		case OpFail:
			return Fail()
		case OpSeq:
			out = append(out, s.Subs...)
		default:
			out = append(out, s)
		}
	}
	switch len(out) {
	case 0:
		return Empty()
	case 1:
		return out[0]
	}
	return &Expr{Op: OpSeq, Subs: out}
}

// Alt returns the choice of one of several expressions. None of them matches nothing.
func Alt(subs ...*Expr) *Expr {
	var out []*Expr
	for _, s := range subs {
		switch s.Op {
		case OpFail:
		case OpAlt:
			out = append(out, s.Subs...)
		default:
			out = append(out, s)
		}
	}
	switch len(out) {
	case 0:
		return Fail()
	case 1:
		return out[0]
	}
	return &Expr{Op: OpAlt, Subs: out}
}

// Repeat returns e repeated least to most times; most < 0 means no maximum.
func Repeat(e *Expr, least, most int) *Expr {
	switch {
	case most == 0 || e.Op == OpEmpty:
		return Empty()
	case e.Op == OpFail && least == 0:
		return Empty()
	case e.Op == OpFail:
		return e
	case least == 1 && most == 1:
		return e
	}
	return &Expr{Op: OpRepeat, Subs: []*Expr{e}, Min: int32(least), Max: int32(most)}
}

// Optional returns e or the empty text.
func Optional(e *Expr) *Expr { return Repeat(e, 0, 1) }

// Star returns e any number of times.
func Star(e *Expr) *Expr { return Repeat(e, 0, -1) }

// Ref returns the rule of an index.
func Ref(rule int) *Expr { return &Expr{Op: OpRule, Rule: int32(rule)} }

// Embed appends the rules of body to those of g and returns a reference to its root.
func (g *Grammar) Embed(body *Grammar) (*Expr, error) {
	base := len(g.Rules)
	if base+len(body.Rules) > MaxRules {
		return nil, &LimitError{What: "rules", Limit: MaxRules}
	}
	for _, r := range body.Rules {
		r.Body = shifted(r.Body, base)
		g.Rules = append(g.Rules, r)
	}
	return Ref(base + body.Root), nil
}

// shifted returns a copy of e in which rule indices are increased by base.
func shifted(e *Expr, base int) *Expr {
	if e == nil {
		return nil
	}
	// Facts are left out: another goroutine that compiles e may be writing them.
	out := &Expr{Op: e.Op, Enc: e.Enc, Min: e.Min, Max: e.Max, Rule: e.Rule, Text: e.Text, Set: e.Set}
	switch e.Op {
	case OpRule:
		out.Rule += int32(base)
	case OpSeq, OpAlt, OpRepeat:
		out.Subs = make([]*Expr, len(e.Subs))
		for i, s := range e.Subs {
			out.Subs[i] = shifted(s, base)
		}
	case OpGraph:
		g := &Graph{States: make([]GraphState, len(e.Graph.States))}
		for i, s := range e.Graph.States {
			g.States[i].Final = s.Final
			g.States[i].Edges = make([]graphEdge, len(s.Edges))
			for j, edge := range s.Edges {
				g.States[i].Edges[j] = graphEdge{shifted(edge.On, base), edge.To}
			}
		}
		out.Graph = g
	}
	return out
}

// Role is the role of a rule in an array with uniqueItems.
type Role uint8

const (
	NoRole      Role = iota
	UniqueArray      // the array, whose items must differ
	UniqueItem       // one of its items
)
