package language

import (
	"encoding/binary"
	"slices"

	"github.com/lamina-mesh/lamina/pkg/grammar/ast"
	"github.com/lamina-mesh/lamina/pkg/grammar/charset"
	"github.com/lamina-mesh/lamina/pkg/grammar/regex"
)

// Regex returns the grammar of the texts that the regular expression matches as a whole. It
// reads what ECMA-262 (with its u flag) and RE2 have in common: literals, ., classes, \d \w \s
// and \p, escapes, groups, alternation, quantifiers, the anchors ^ $ \A \z \b \B and the flags
// i and s. Where the two differ (. and line ends, \s and spaces beyond ASCII) it takes what
// both match. Look-around, backreferences and the like are an *UnsupportedError; malformed text
// is a *SyntaxError.
func Regex(source string) (*ast.Grammar, error) {
	n, err := regex.Parse(source, regex.Common)
	if err != nil {
		return nil, err
	}
	e, err := RegexExpr(n, true, ast.PlainUTF8)
	if err != nil {
		return nil, err
	}
	return &ast.Grammar{Rules: []ast.Rule{{Name: "root", Body: e}}, Kind: "regex"}, nil
}

// RegexExpr returns the texts that n matches as a whole or, if whole is false, somewhere.
func RegexExpr(n *regex.Node, whole bool, enc ast.Encoding) (*ast.Expr, error) {
	if e, ok := plainRegex(n, whole, enc); ok {
		return e, nil
	}
	d, err := FromRegex(n, whole)
	if err != nil {
		return nil, err
	}
	return d.Minimal().Graph(enc), nil
}

// plainRegex is like RegexExpr, for an expression with assertions only at its ends, which needs
// no DFA.
func plainRegex(n *regex.Node, whole bool, enc ast.Encoding) (*ast.Expr, bool) {
	if n.Op == regex.Alt {
		subs := make([]*ast.Expr, len(n.Subs))
		for i, s := range n.Subs {
			var ok bool
			if subs[i], ok = plainRegex(s, whole, enc); !ok {
				return nil, false
			}
		}
		return ast.Alt(subs...), true
	}
	parts := []*regex.Node{n}
	if n.Op == regex.Seq {
		parts = n.Subs
	}
	anything := ast.Star(ast.Char(charset.Any(), enc))
	before, after := anything, anything
	if whole {
		before, after = ast.Empty(), ast.Empty()
	}
	for len(parts) > 0 && parts[0].Op == regex.Begin {
		before, parts = ast.Empty(), parts[1:]
	}
	for len(parts) > 0 && parts[len(parts)-1].Op == regex.End {
		after, parts = ast.Empty(), parts[:len(parts)-1]
	}
	subs := []*ast.Expr{before}
	for _, p := range parts {
		if p.Anchored {
			return nil, false
		}
		subs = append(subs, nodeExpr(p, enc))
	}
	return ast.Seq(append(subs, after)...), true
}

// nodeExpr converts n, which contains no assertion.
func nodeExpr(n *regex.Node, enc ast.Encoding) *ast.Expr {
	switch n.Op {
	case regex.Char:
		return ast.Char(n.Set, enc)
	case regex.Seq, regex.Alt:
		subs := make([]*ast.Expr, len(n.Subs))
		for i, s := range n.Subs {
			subs[i] = nodeExpr(s, enc)
		}
		if n.Op == regex.Alt {
			return ast.Alt(subs...)
		}
		return ast.Seq(subs...)
	case regex.Repeat:
		return ast.Repeat(nodeExpr(n.Subs[0], enc), n.Min, n.Max)
	}
	return ast.Empty()
}

// nfa is a nondeterministic automaton with empty edges and assertions (Thompson 1968).
type nfa struct {
	edges [][]nfaEdge
	sets  []charset.Set
	known map[string]int32
	err   error
}

type nfaEdge struct {
	op  regex.Op // Char, Empty or an assertion
	set int32    // for Char
	to  int32
}

const (
	maxNFA       = 20_000    // states of an NFA
	maxDetermine = 2_000_000 // NFA states visited to make it deterministic
)

func (a *nfa) add() int32 {
	if len(a.edges) >= maxNFA {
		a.err = &ast.LimitError{What: "states of a regular expression", Limit: maxNFA}
		return 0
	}
	a.edges = append(a.edges, nil)
	return int32(len(a.edges) - 1)
}

func (a *nfa) edge(from int32, op regex.Op, set charset.Set, to int32) {
	e := nfaEdge{op: op, to: to}
	if op == regex.Char {
		id, ok := a.known[set.Key()]
		if !ok {
			id = int32(len(a.sets))
			a.sets = append(a.sets, set)
			a.known[set.Key()] = id
		}
		e.set = id
	}
	a.edges[from] = append(a.edges[from], e)
}

// build adds n after a state and returns the state after n.
func (a *nfa) build(n *regex.Node, from int32) int32 {
	if a.err != nil {
		return from
	}
	switch n.Op {
	case regex.Seq:
		for _, s := range n.Subs {
			from = a.build(s, from)
		}
		return from
	case regex.Alt:
		end := a.add()
		for _, s := range n.Subs {
			a.edge(a.build(s, from), regex.Empty, nil, end)
		}
		return end
	case regex.Repeat:
		for range n.Min {
			if from = a.build(n.Subs[0], from); a.err != nil {
				return from
			}
		}
		if n.Max < 0 {
			loop := a.add()
			a.edge(from, regex.Empty, nil, loop)
			a.edge(a.build(n.Subs[0], loop), regex.Empty, nil, loop)
			end := a.add()
			a.edge(loop, regex.Empty, nil, end)
			return end
		}
		end := a.add()
		a.edge(from, regex.Empty, nil, end)
		for range n.Max - n.Min {
			next := a.add()
			a.edge(from, regex.Empty, nil, next) // a loop that leads back here must not leave
			if from = a.build(n.Subs[0], next); a.err != nil {
				return from
			}
			a.edge(from, regex.Empty, nil, end)
		}
		return end
	case regex.Empty:
		return from
	}
	end := a.add()
	a.edge(from, n.Op, n.Set, end)
	return end
}

// Constraints on what must follow a place, from the assertions passed since the last character.
const (
	needNothing = iota
	needEnd
	needWord
	needNoWord
)

// Kinds of what precedes a place.
const (
	afterStart = iota
	afterOther
	afterWord
)

// determiner makes an NFA deterministic by the subset construction. Assertions look one
// character back and one ahead: a subset knows which kind of character came before, and each
// of its places what must come next.
type determiner struct {
	nfa    *nfa
	accept int32
	words  bool
	has    [][]bool // set, class
	word   []bool   // class
	sets   []subset
	known  map[string]int32
	work   int
}

type subset struct {
	places []uint32 // NFA state and, in the low two bits, what must follow
	after  uint8
	final  bool
}

// FromRegex returns the DFA of what n matches, as a whole or somewhere in a text.
func FromRegex(n *regex.Node, whole bool) (*DFA, error) {
	a := &nfa{known: map[string]int32{}}
	from := a.add()
	if !whole {
		a.edge(from, regex.Char, charset.Any(), from)
	}
	start := a.add()
	a.edge(from, regex.Empty, nil, start)
	end := a.build(n, start)
	accept := a.add()
	a.edge(end, regex.Empty, nil, accept)
	if !whole {
		a.edge(accept, regex.Char, charset.Any(), accept)
	}
	if a.err != nil {
		return nil, a.err
	}
	d := &determiner{nfa: a, accept: accept, known: map[string]int32{}}
	for _, edges := range a.edges {
		for _, e := range edges {
			d.words = d.words || e.op == regex.WordBoundary || e.op == regex.NotWordBoundary
		}
	}
	sets := a.sets
	if d.words {
		sets = append(slices.Clone(sets), regex.Word)
	}
	part := charset.NewPartition(sets)
	d.has = make([][]bool, len(sets))
	for i, s := range sets {
		d.has[i] = make([]bool, part.Count)
		for _, c := range part.ClassesOf(s) {
			d.has[i][c] = true
		}
	}
	if d.words {
		d.word = d.has[len(sets)-1]
	}
	first := d.subset([]uint32{uint32(from) << 2}, afterStart)
	out, err := Build(part, first, d.step, func(s int32) bool { return d.sets[s].final })
	if d.work > maxDetermine {
		return nil, &ast.LimitError{What: "steps to make a regular expression deterministic", Limit: maxDetermine}
	}
	return out, err
}

func (d *determiner) step(s int32, class int32) (int32, bool) {
	var out []uint32
	if d.work > maxDetermine {
		return 0, false
	}
	for _, place := range d.sets[s].places {
		d.work += 1 + len(d.nfa.edges[place>>2])
		switch place & 3 {
		case needEnd:
			continue
		case needWord:
			if !d.word[class] {
				continue
			}
		case needNoWord:
			if d.word[class] {
				continue
			}
		}
		for _, e := range d.nfa.edges[place>>2] {
			if e.op == regex.Char && d.has[e.set][class] {
				out = append(out, uint32(e.to)<<2)
			}
		}
	}
	after := uint8(afterOther)
	if d.words && d.word[class] {
		after = afterWord
	}
	if len(out) == 0 {
		return 0, false
	}
	return d.subset(out, after), true
}

// subset returns the number of the set of places that are reached without reading.
func (d *determiner) subset(work []uint32, after uint8) int32 {
	seen := map[uint32]bool{}
	s := subset{after: after}
	for _, w := range work {
		seen[w] = true
	}
	for len(work) > 0 {
		place := work[len(work)-1]
		work = work[:len(work)-1]
		at, need := int32(place>>2), place&3
		d.work += 1 + len(d.nfa.edges[at])
		reads := false
		for _, e := range d.nfa.edges[at] {
			to, ok := need, true
			switch e.op {
			case regex.Char:
				reads = true
				continue
			case regex.Begin:
				ok = after == afterStart
			case regex.End:
				to, ok = both(need, needEnd)
			case regex.WordBoundary, regex.NotWordBoundary:
				want := uint32(needNoWord)
				if (e.op == regex.WordBoundary) != (after == afterWord) {
					want = needWord
				}
				to, ok = both(need, want)
			}
			if next := uint32(e.to)<<2 | to; ok && !seen[next] {
				seen[next] = true
				work = append(work, next)
			}
		}
		if at == d.accept && need != needWord {
			s.final = true
		}
		if reads {
			s.places = append(s.places, place)
		}
	}
	slices.Sort(s.places)
	s.places = slices.Compact(s.places)
	key := []byte{after, 0}
	if s.final {
		key[1] = 1
	}
	for _, p := range s.places {
		key = binary.LittleEndian.AppendUint32(key, p)
	}
	id, ok := d.known[string(key)]
	if !ok {
		id = int32(len(d.sets))
		d.sets = append(d.sets, s)
		d.known[string(key)] = id
	}
	return id
}

// both combines two requirements on what follows; ok is false if they contradict.
func both(a, b uint32) (uint32, bool) {
	switch {
	case a == b || b == needNothing:
		return a, true
	case a == needNothing:
		return b, true
	case a != needWord && b != needWord:
		return needEnd, true
	}
	return 0, false
}
