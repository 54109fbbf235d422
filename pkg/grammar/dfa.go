package grammar

// dfa is a deterministic automaton over code points. State 0 is the first; next
// holds, for each state, the state after each class of part, or -1 for none.
type dfa struct {
	part  *partition
	next  []int32
	final []bool
}

const maxDFA = 20_000 // states of an automaton in the making

func (d *dfa) size() int { return len(d.final) }

func (d *dfa) row(s int) []int32 { return d.next[s*d.part.count : (s+1)*d.part.count] }

// isEmpty says whether d, trimmed, accepts nothing.
func (d *dfa) isEmpty() bool { return d.size() == 0 }

// buildDFA explores an automaton from its first state. step gives the state after a
// class, or false.
func buildDFA[S comparable](part *partition, first S, step func(S, int32) (S, bool), final func(S) bool) (*dfa, error) {
	d := &dfa{part: part}
	known := map[S]int32{first: 0}
	order := []S{first}
	for i := 0; i < len(order); i++ {
		if len(order) > maxDFA || len(d.next) > 40*maxDFA {
			return nil, &LimitError{What: "states of an automaton", Limit: maxDFA}
		}
		d.final = append(d.final, final(order[i]))
		for c := range int32(part.count) {
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

// trim drops states from which no end is reached; what is left of an automaton that
// accepts nothing has no state.
func (d *dfa) trim() *dfa {
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
		return &dfa{part: d.part}
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
	out := &dfa{part: d.part, next: make([]int32, 0, int(count)*d.part.count), final: make([]bool, 0, count)}
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

// combine is the automaton of the texts for which keep(in a, in b) holds; keep must
// not hold for texts in neither.
func combine(a, b *dfa, keep func(inA, inB bool) bool) (*dfa, error) {
	part, inA, inB := meet(a.part, b.part)
	type pair struct{ a, b int32 }
	first := pair{}
	if a.isEmpty() {
		first.a = -1
	}
	if b.isEmpty() {
		first.b = -1
	}
	return buildDFA(part, first, func(s pair, c int32) (pair, bool) {
		to := pair{-1, -1}
		if s.a >= 0 {
			to.a = a.row(int(s.a))[inA[c]]
		}
		if s.b >= 0 {
			to.b = b.row(int(s.b))[inB[c]]
		}
		hope := to.a >= 0 && keep(true, false) || to.b >= 0 && keep(false, true) || to.a >= 0 && to.b >= 0 && keep(true, true)
		return to, hope
	}, func(s pair) bool {
		return keep(s.a >= 0 && a.final[s.a], s.b >= 0 && b.final[s.b])
	})
}

func intersectDFA(a, b *dfa) (*dfa, error) {
	return combine(a, b, func(inA, inB bool) bool { return inA && inB })
}

func subtractDFA(a, b *dfa) (*dfa, error) {
	return combine(a, b, func(inA, inB bool) bool { return inA && !inB })
}

func uniteDFA(a, b *dfa) (*dfa, error) {
	return combine(a, b, func(inA, inB bool) bool { return inA || inB })
}

// anyText accepts every text.
func anyText() *dfa {
	return &dfa{part: partitionOf(nil), next: []int32{0}, final: []bool{true}}
}

// textsDFA accepts the given texts and no others.
func textsDFA(texts []string) (*dfa, error) {
	type node struct {
		next  map[rune]int32
		final bool
	}
	nodes := []node{{next: map[rune]int32{}}}
	var sets []runeSet
	used := map[rune]bool{}
	for _, text := range texts {
		at := int32(0)
		for _, r := range text {
			if !used[r] {
				used[r] = true
				sets = append(sets, oneRune(r))
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
	part := partitionOf(sets)
	if len(nodes) > maxDFA || len(nodes)*part.count > 40*maxDFA {
		return nil, &LimitError{What: "states of an automaton", Limit: maxDFA}
	}
	if len(texts) == 0 {
		return &dfa{part: part}, nil
	}
	d := &dfa{part: part, next: make([]int32, len(nodes)*part.count), final: make([]bool, len(nodes))}
	for i := range d.next {
		d.next[i] = -1
	}
	for i, n := range nodes {
		d.final[i] = n.final
		for r, to := range n.next {
			d.row(i)[part.of(r)] = to
		}
	}
	return d, nil
}

// withLength keeps the texts of least to most characters; most < 0 is no bound.
func (d *dfa) withLength(least, most int) (*dfa, error) {
	if d.isEmpty() || least <= 0 && most < 0 {
		return d, nil
	}
	type counted struct {
		s int32
		n int
	}
	cap := max(least, most+1)
	return buildDFA(d.part, counted{}, func(at counted, c int32) (counted, bool) {
		to := d.row(int(at.s))[c]
		n := min(at.n+1, cap)
		return counted{to, n}, to >= 0 && (most < 0 || n <= most)
	}, func(at counted) bool { return d.final[at.s] && at.n >= least })
}

// maxRounds bounds the rounds of minimal.
const maxRounds = 64

// minimal is d with the fewest states (Moore 1956), or d where that takes long.
func (d *dfa) minimal() *dfa {
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
	key := make([]byte, 0, 4*(d.part.count+1))
	for round := 0; ; round++ {
		if round == maxRounds {
			return d
		}
		known := make(map[string]int32, count)
		refined := make([]int32, n)
		for s := range n {
			key = appendInt32(key[:0], class[s])
			for _, to := range d.row(s) {
				if to >= 0 {
					to = class[to]
				}
				key = appendInt32(key, to)
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
	out := &dfa{part: d.part, next: make([]int32, count*d.part.count), final: make([]bool, count)}
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

func appendInt32(b []byte, n int32) []byte {
	return append(b, byte(n), byte(n>>8), byte(n>>16), byte(n>>24))
}

// graph is d's texts, each character spelled as enc says.
func (d *dfa) graph(enc encoding) *expr {
	if d.isEmpty() {
		return fail()
	}
	sets := d.part.sets()
	g := &graph{states: make([]graphState, d.size())}
	known := map[string]*expr{} // edges over the same classes share an expression
	for s := range d.size() {
		g.states[s].final = d.final[s]
		var targets []int32
		over := map[int32][]byte{}
		for c, to := range d.row(s) {
			if to < 0 {
				continue
			}
			if over[to] == nil {
				targets = append(targets, to)
			}
			over[to] = appendInt32(over[to], int32(c))
		}
		for _, to := range targets {
			key := string(over[to])
			on := known[key]
			if on == nil {
				var spans []span
				for i := 0; i < len(key); i += 4 {
					c := int32(key[i]) | int32(key[i+1])<<8 | int32(key[i+2])<<16 | int32(key[i+3])<<24
					spans = append(spans, sets[c]...)
				}
				on = char(newRuneSet(spans...), enc)
				known[key] = on
			}
			g.edge(s, on, int(to))
		}
	}
	return g.expr()
}

// accepts says whether text is one of d's.
func (d *dfa) accepts(text string) bool {
	if d.isEmpty() {
		return false
	}
	s := int32(0)
	for _, r := range text {
		if s = d.row(int(s))[d.part.of(r)]; s < 0 {
			return false
		}
	}
	return d.final[s]
}
