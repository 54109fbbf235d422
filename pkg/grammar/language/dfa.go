package language

import (
	"github.com/lamina-mesh/lamina/pkg/grammar/ast"
	"github.com/lamina-mesh/lamina/pkg/grammar/charset"
)

// DFA is a deterministic automaton over code points. State 0 is the first. next holds, for
// each state and each class of part, the next state or -1.
type DFA struct {
	Part  *charset.Partition
	next  []int32
	final []bool
}

const maxDFA = 20_000 // states of an automaton under construction

func (d *DFA) size() int { return len(d.final) }

func (d *DFA) row(s int) []int32 { return d.next[s*d.Part.Count : (s+1)*d.Part.Count] }

// IsEmpty reports whether d, which is trimmed, accepts nothing.
func (d *DFA) IsEmpty() bool { return d.size() == 0 }

// Build explores an automaton breadth first from its first state. step returns the state after
// a class of characters, or false.
func Build[S comparable](part *charset.Partition, first S, step func(S, int32) (S, bool),
	final func(S) bool) (*DFA, error) {
	d := &DFA{Part: part}
	known := map[S]int32{first: 0}
	order := []S{first}
	for i := 0; i < len(order); i++ {
		if len(order) > maxDFA || len(d.next) > 40*maxDFA {
			return nil, &ast.LimitError{What: "states of an automaton", Limit: maxDFA}
		}
		d.final = append(d.final, final(order[i]))
		for c := range int32(part.Count) {
			to, ok := step(order[i], c)
			if !ok {
				d.next = append(d.next, -1)
				continue
			}
			id, seen := known[to]
			if !seen {
				id = int32(len(order))
				known[to] = id
				order = append(order, to)
			}
			d.next = append(d.next, id)
		}
	}
	return d.trim(), nil
}

// trim drops the states from which no final state is reachable. An automaton that accepts
// nothing has no states.
func (d *DFA) trim() *DFA {
	n := d.size()
	before := make([][]int32, n)
	live := make([]bool, n)
	var work []int32
	for s := range n {
		for _, to := range d.row(s) {
			if to >= 0 {
				if b := before[to]; len(b) == 0 || b[len(b)-1] != int32(s) {
					before[to] = append(b, int32(s))
				}
			}
		}
		if d.final[s] {
			live[s] = true
			work = append(work, int32(s))
		}
	}
	for len(work) > 0 {
		s := work[len(work)-1]
		work = work[:len(work)-1]
		for _, b := range before[s] {
			if !live[b] {
				live[b] = true
				work = append(work, b)
			}
		}
	}
	if n == 0 || !live[0] {
		return &DFA{Part: d.Part}
	}
	number := make([]int32, n)
	count := int32(0)
	for s := range n {
		number[s] = -1
		if live[s] {
			number[s] = count
			count++
		}
	}
	out := &DFA{Part: d.Part, next: make([]int32, 0, int(count)*d.Part.Count), final: make([]bool, 0, count)}
	for s := range n {
		if !live[s] {
			continue
		}
		for _, to := range d.row(s) {
			if to >= 0 {
				to = number[to]
			}
			out.next = append(out.next, to)
		}
		out.final = append(out.final, d.final[s])
	}
	return out
}

// combine returns the product automaton of the texts for which keep(in a, in b) holds. keep
// must not hold for texts in neither.
func combine(a, b *DFA, keep func(inA, inB bool) bool) (*DFA, error) {
	part, inA, inB := charset.Meet(a.Part, b.Part)
	type pair struct{ a, b int32 }
	first := pair{}
	if a.IsEmpty() {
		first.a = -1
	}
	if b.IsEmpty() {
		first.b = -1
	}
	return Build(part, first, func(s pair, c int32) (pair, bool) {
		to := pair{-1, -1}
		if s.a >= 0 {
			to.a = a.row(int(s.a))[inA[c]]
		}
		if s.b >= 0 {
			to.b = b.row(int(s.b))[inB[c]]
		}
		hope := to.a >= 0 && keep(true, false) || to.b >= 0 && keep(false, true) ||
			to.a >= 0 && to.b >= 0 && keep(true, true)
		return to, hope
	}, func(s pair) bool {
		return keep(s.a >= 0 && a.final[s.a], s.b >= 0 && b.final[s.b])
	})
}

// Intersect accepts the texts that both a and b accept.
func Intersect(a, b *DFA) (*DFA, error) {
	return combine(a, b, func(inA, inB bool) bool { return inA && inB })
}

// Subtract accepts the texts of a that b does not accept.
func Subtract(a, b *DFA) (*DFA, error) {
	return combine(a, b, func(inA, inB bool) bool { return inA && !inB })
}

// Union accepts the texts that a or b accepts.
func Union(a, b *DFA) (*DFA, error) {
	return combine(a, b, func(inA, inB bool) bool { return inA || inB })
}

// Any accepts every text.
func Any() *DFA {
	return &DFA{Part: charset.NewPartition(nil), next: []int32{0}, final: []bool{true}}
}

// Texts accepts the given texts and no others.
func Texts(texts []string) (*DFA, error) {
	type node struct {
		next  map[rune]int32
		final bool
	}
	nodes := []node{{next: map[rune]int32{}}}
	var sets []charset.Set
	used := map[rune]bool{}
	for _, text := range texts {
		at := int32(0)
		for _, r := range text {
			if !used[r] {
				used[r] = true
				sets = append(sets, charset.Single(r))
			}
			to, ok := nodes[at].next[r]
			if !ok {
				to = int32(len(nodes))
				nodes = append(nodes, node{next: map[rune]int32{}})
				nodes[at].next[r] = to
			}
			at = to
		}
		nodes[at].final = true
	}
	part := charset.NewPartition(sets)
	if len(nodes) > maxDFA || len(nodes)*part.Count > 40*maxDFA {
		return nil, &ast.LimitError{What: "states of an automaton", Limit: maxDFA}
	}
	if len(texts) == 0 {
		return &DFA{Part: part}, nil
	}
	d := &DFA{Part: part, next: make([]int32, len(nodes)*part.Count), final: make([]bool, len(nodes))}
	for i := range d.next {
		d.next[i] = -1
	}
	for i, n := range nodes {
		d.final[i] = n.final
		for r, to := range n.next {
			d.row(i)[part.Of(r)] = to
		}
	}
	return d, nil
}

// WithLength keeps the texts of least to most characters; most < 0 is unbounded.
func (d *DFA) WithLength(least, most int) (*DFA, error) {
	if d.IsEmpty() || least <= 0 && most < 0 {
		return d, nil
	}
	type counted struct {
		s int32
		n int
	}
	cap := max(least, most+1)
	return Build(d.Part, counted{}, func(at counted, c int32) (counted, bool) {
		to := d.row(int(at.s))[c]
		n := min(at.n+1, cap)
		return counted{to, n}, to >= 0 && (most < 0 || n <= most)
	}, func(at counted) bool { return d.final[at.s] && at.n >= least })
}

// maxRounds bounds the rounds of minimal.
const maxRounds = 64

// Minimal returns an equivalent automaton with the fewest states (Moore 1956), or d itself if
// that takes too many rounds.
func (d *DFA) Minimal() *DFA {
	n := d.size()
	if n < 2 || n > 4000 {
		return d
	}
	class := make([]int32, n)
	count := 1
	for s := range n {
		if d.final[s] != d.final[0] {
			class[s], count = 1, 2
		}
	}
	key := make([]byte, 0, 4*(d.Part.Count+1))
	for round := 0; ; round++ {
		if round == maxRounds {
			return d
		}
		known := make(map[string]int32, count)
		refined := make([]int32, n)
		for s := range n {
			key = AppendInt32(key[:0], class[s])
			for _, to := range d.row(s) {
				if to >= 0 {
					to = class[to]
				}
				key = AppendInt32(key, to)
			}
			id, ok := known[string(key)]
			if !ok {
				id = int32(len(known))
				known[string(key)] = id
			}
			refined[s] = id
		}
		class = refined
		if len(known) == count {
			break
		}
		count = len(known)
	}
	out := &DFA{Part: d.Part, next: make([]int32, count*d.Part.Count), final: make([]bool, count)}
	for s := range n {
		out.final[class[s]] = d.final[s]
		for c, to := range d.row(s) {
			if to >= 0 {
				to = class[to]
			}
			out.row(int(class[s]))[c] = to
		}
	}
	return out
}

// AppendInt32 appends n, as little-endian bytes, to the key of a state.
func AppendInt32(b []byte, n int32) []byte {
	return append(b, byte(n), byte(n>>8), byte(n>>16), byte(n>>24))
}

// Graph returns the texts of d as an expression in an encoding.
func (d *DFA) Graph(enc ast.Encoding) *ast.Expr {
	if d.IsEmpty() {
		return ast.Fail()
	}
	sets := d.Part.Sets()
	g := &ast.Graph{States: make([]ast.GraphState, d.size())}
	known := map[string]*ast.Expr{} // edges over the same classes share an expression
	for s := range d.size() {
		g.States[s].Final = d.final[s]
		var targets []int32
		over := map[int32][]byte{}
		for c, to := range d.row(s) {
			if to < 0 {
				continue
			}
			if over[to] == nil {
				targets = append(targets, to)
			}
			over[to] = AppendInt32(over[to], int32(c))
		}
		for _, to := range targets {
			key := string(over[to])
			on := known[key]
			if on == nil {
				var spans []charset.Span
				for i := 0; i < len(key); i += 4 {
					c := int32(key[i]) | int32(key[i+1])<<8 | int32(key[i+2])<<16 | int32(key[i+3])<<24
					spans = append(spans, sets[c]...)
				}
				on = ast.Char(charset.New(spans...), enc)
				known[key] = on
			}
			g.Edge(s, on, int(to))
		}
	}
	return g.Expr()
}

// accepts reports whether d accepts text.
func (d *DFA) accepts(text string) bool {
	if d.IsEmpty() {
		return false
	}
	s := int32(0)
	for _, r := range text {
		if s = d.row(int(s))[d.Part.Of(r)]; s < 0 {
			return false
		}
	}
	return d.final[s]
}
