package grammar

import "sync"

// Grammar is a language: rules of which one is the root. It is what the front
// ends make (GBNF, Schema, Regex, Choices, Tags) and what Compile takes. It never
// changes once made, and may be compiled by many goroutines.
type Grammar struct {
	rules []rule
	root  int
	kind  string // the front end, for errors

	once sync.Once
	prog *program
	err  error
}

// rule is a named expression. line is where it stands in the source, or 0.
type rule struct {
	name string
	body *expr
	line int
	// apart keeps the rule from being copied into its callers, so that all of
	// them share its states and their masks.
	apart bool
	role  role
}

type exprOp uint8

const (
	opEmpty  exprOp = iota // the empty text
	opFail                 // nothing
	opText                 // text, spelled as enc says
	opChar                 // one character of set, spelled as enc says
	opSeq                  // subs one after the other
	opAlt                  // one of subs
	opRepeat               // subs[0] from min to max times; max < 0 is no bound
	opRule                 // the rule of that index
	opGraph                // a way through a graph
)

// encoding is how a character is spelled in bytes.
type encoding uint8

const (
	plainUTF8 encoding = iota
	// jsonCanonical is the inside of a JSON string: plain where JSON allows it,
	// else the short escape or \u00XX; characters from U+0080 also as \uXXXX.
	jsonCanonical
	// jsonUnique is the inside of a JSON string with one spelling a character: plain
	// where JSON allows it, else the short escape or \u00xx.
	jsonUnique
	// jsonAny is the inside of a JSON string with every spelling JSON has.
	jsonAny
	// signOnly is the sign around a control token's spelling, whatever the character.
	signOnly
)

// expr is a node of a rule's body.
type expr struct {
	op       exprOp
	enc      encoding
	facts    facts
	min, max int32
	rule     int32
	text     string
	set      runeSet
	subs     []*expr
	graph    *graph
}

// facts are what is known of an expression once its grammar is analysed.
type facts uint8

const (
	knownNullable facts = 1 << iota
	isNullable
	knownProductive
	isProductive
)

// graph is an automaton whose edges read an expression that is never empty, or
// nothing where on is nil. State 0 is the first.
type graph struct {
	states []graphState
}

type graphState struct {
	edges []graphEdge
	final bool
}

type graphEdge struct {
	on *expr
	to int
}

// add makes a state.
func (g *graph) add() int {
	g.states = append(g.states, graphState{})
	return len(g.states) - 1
}

// edge leads from one state to another; on is nil or never empty.
func (g *graph) edge(from int, on *expr, to int) {
	g.states[from].edges = append(g.states[from].edges, graphEdge{on, to})
}

func (g *graph) expr() *expr { return &expr{op: opGraph, graph: g} }

// silent lists what is reached from state 0 without reading.
func (g *graph) silent() []int {
	seen := make([]bool, len(g.states))
	seen[0] = true
	order := []int{0}
	for i := 0; i < len(order); i++ {
		for _, e := range g.states[order[i]].edges {
			if e.on == nil && !seen[e.to] {
				seen[e.to] = true
				order = append(order, e.to)
			}
		}
	}
	return order
}

// withoutEmpty is the graph's texts but the empty one.
func (g *graph) withoutEmpty() *graph {
	out := &graph{states: make([]graphState, 1, len(g.states)+1)}
	for _, s := range g.states {
		edges := make([]graphEdge, len(s.edges))
		for i, e := range s.edges {
			edges[i] = graphEdge{e.on, e.to + 1}
		}
		out.states = append(out.states, graphState{edges, s.final})
	}
	for _, id := range g.silent() {
		for _, e := range out.states[id+1].edges {
			if e.on != nil {
				out.states[0].edges = append(out.states[0].edges, e)
			}
		}
	}
	return out
}

func empty() *expr { return &expr{op: opEmpty} }

func fail() *expr { return &expr{op: opFail} }

func char(set runeSet, enc encoding) *expr {
	if len(set) == 0 {
		return fail()
	}
	return &expr{op: opChar, set: set, enc: enc}
}

// literal is a text, each character spelled as enc says.
func literal(text string, enc encoding) *expr {
	if text == "" {
		return empty()
	}
	return &expr{op: opText, text: text, enc: enc}
}

// lit is a text as it stands.
func lit(text string) *expr { return literal(text, plainUTF8) }

func seq(subs ...*expr) *expr {
	var out []*expr
	for _, s := range subs {
		switch s.op {
		case opEmpty:
		case opFail:
			return fail()
		case opSeq:
			out = append(out, s.subs...)
		default:
			out = append(out, s)
		}
	}
	switch len(out) {
	case 0:
		return empty()
	case 1:
		return out[0]
	}
	return &expr{op: opSeq, subs: out}
}

func alt(subs ...*expr) *expr {
	var out []*expr
	for _, s := range subs {
		switch s.op {
		case opFail:
		case opAlt:
			out = append(out, s.subs...)
		default:
			out = append(out, s)
		}
	}
	switch len(out) {
	case 0:
		return fail()
	case 1:
		return out[0]
	}
	return &expr{op: opAlt, subs: out}
}

// repeat is e from least to most times; most < 0 is no bound.
func repeat(e *expr, least, most int) *expr {
	switch {
	case most == 0 || e.op == opEmpty:
		return empty()
	case e.op == opFail && least == 0:
		return empty()
	case e.op == opFail:
		return e
	case least == 1 && most == 1:
		return e
	}
	return &expr{op: opRepeat, subs: []*expr{e}, min: int32(least), max: int32(most)}
}

func optional(e *expr) *expr { return repeat(e, 0, 1) }

func star(e *expr) *expr { return repeat(e, 0, -1) }

func ref(rule int) *expr { return &expr{op: opRule, rule: int32(rule)} }
