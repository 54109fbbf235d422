package grammar

// analysis is what is known of every rule before the program is made.
type analysis struct {
	g          *Grammar
	nullable   []bool // may be the empty text
	productive []bool // is some text
	recursive  []bool // may call itself, however far away
	uses       []int
	size       []int // nodes, with the rules that are copied in
	copied     []bool
	work       int
	settled    bool // nullable and productive will not change
}

const maxAnalysis = 20_000_000 // nodes looked at

// smallRule is the size up to which a rule is copied into its callers.
const smallRule = 8

func analyse(g *Grammar) (*analysis, error) {
	n := len(g.rules)
	a := &analysis{g: g, nullable: make([]bool, n), productive: make([]bool, n), recursive: make([]bool, n),
		uses: make([]int, n), size: make([]int, n), copied: make([]bool, n)}
	order := a.order()
	for changed := true; changed; {
		changed = false
		for _, id := range order {
			body := g.rules[id].body
			if !a.nullable[id] && a.isNullable(body) {
				a.nullable[id], changed = true, true
			}
			if !a.productive[id] && a.isProductive(body) {
				a.productive[id], changed = true, true
			}
		}
		if a.work > maxAnalysis {
			return nil, &LimitError{What: "steps to analyse the rules", Limit: maxAnalysis}
		}
	}
	a.settled = true
	for _, id := range order {
		a.size[id] = a.sizeOf(g.rules[id].body)
		a.copied[id] = !a.recursive[id] && !g.rules[id].apart && (a.size[id] <= smallRule || a.uses[id] == 1)
	}
	return a, nil
}

// calls calls yield with the index of every rule that e names.
func calls(e *expr, yield func(int)) {
	if e.op == opRule {
		yield(int(e.rule))
	}
	for _, s := range e.subs {
		calls(s, yield)
	}
	if e.op == opGraph {
		for _, s := range e.graph.states {
			for _, edge := range s.edges {
				if edge.on != nil {
					calls(edge.on, yield)
				}
			}
		}
	}
}

// order lists the rules that the root reaches, callees first where there is no
// recursion, and finds which are recursive (Tarjan 1972).
func (a *analysis) order() []int {
	n := len(a.g.rules)
	callees := make([][]int, n)
	index, low := make([]int, n), make([]int, n)
	onStack := make([]bool, n)
	var order, stack []int
	next := 1
	type visit struct{ rule, at int }
	enter := func(id int) visit {
		index[id], low[id] = next, next
		next++
		stack = append(stack, id)
		onStack[id] = true
		calls(a.g.rules[id].body, func(c int) {
			callees[id] = append(callees[id], c)
			a.uses[c]++
		})
		return visit{rule: id}
	}
	work := []visit{enter(a.g.root)}
	for len(work) > 0 {
		v := &work[len(work)-1]
		if v.at < len(callees[v.rule]) {
			c := callees[v.rule][v.at]
			v.at++
			switch {
			case index[c] == 0:
				work = append(work, enter(c))
			case onStack[c]:
				low[v.rule] = min(low[v.rule], index[c])
			}
			if c == v.rule {
				a.recursive[c] = true
			}
			continue
		}
		id := v.rule
		work = work[:len(work)-1]
		if len(work) > 0 {
			up := work[len(work)-1].rule
			low[up] = min(low[up], low[id])
		}
		if low[id] == index[id] {
			for {
				top := stack[len(stack)-1]
				stack = stack[:len(stack)-1]
				onStack[top] = false
				order = append(order, top)
				if top == id {
					break
				}
				a.recursive[top], a.recursive[id] = true, true
			}
		}
	}
	return order
}

// isNullable says whether e may be the empty text.
func (a *analysis) isNullable(e *expr) bool {
	if e.facts&knownNullable != 0 {
		return e.facts&isNullable != 0
	}
	yes := a.findNullable(e)
	if a.settled {
		e.facts |= knownNullable
		if yes {
			e.facts |= isNullable
		}
	}
	return yes
}

func (a *analysis) findNullable(e *expr) bool {
	a.work++
	switch e.op {
	case opEmpty:
		return true
	case opSeq:
		for _, s := range e.subs {
			if !a.isNullable(s) {
				return false
			}
		}
		return true
	case opAlt:
		for _, s := range e.subs {
			if a.isNullable(s) {
				return true
			}
		}
	case opRepeat:
		return e.min == 0 || a.isNullable(e.subs[0])
	case opRule:
		return a.nullable[e.rule]
	case opGraph:
		for _, id := range e.graph.silent() {
			if e.graph.states[id].final {
				return true
			}
		}
	}
	return false
}

// isProductive says whether e is some text.
func (a *analysis) isProductive(e *expr) bool {
	if e.facts&knownProductive != 0 {
		return e.facts&isProductive != 0
	}
	yes := a.findProductive(e)
	if a.settled {
		e.facts |= knownProductive
		if yes {
			e.facts |= isProductive
		}
	}
	return yes
}

func (a *analysis) findProductive(e *expr) bool {
	a.work++
	switch e.op {
	case opFail:
		return false
	case opSeq:
		for _, s := range e.subs {
			if !a.isProductive(s) {
				return false
			}
		}
	case opAlt:
		for _, s := range e.subs {
			if a.isProductive(s) {
				return true
			}
		}
		return false
	case opRepeat:
		return e.min == 0 || a.isProductive(e.subs[0])
	case opRule:
		return a.productive[e.rule]
	case opGraph:
		return a.ends(e.graph)[0]
	}
	return true
}

// ends says which states of g reach a final one.
func (a *analysis) ends(g *graph) []bool {
	before := make([][]int, len(g.states))
	ends := make([]bool, len(g.states))
	var work []int
	for i, s := range g.states {
		if s.final {
			ends[i] = true
			work = append(work, i)
		}
		for _, e := range s.edges {
			if e.on == nil || a.isProductive(e.on) {
				before[e.to] = append(before[e.to], i)
			}
		}
		a.work += 1 + len(s.edges)
	}
	for len(work) > 0 {
		i := work[len(work)-1]
		work = work[:len(work)-1]
		for _, b := range before[i] {
			if !ends[b] {
				ends[b] = true
				work = append(work, b)
			}
		}
	}
	return ends
}

// sizeOf counts the nodes of e, the rules copied into it with all of theirs.
func (a *analysis) sizeOf(e *expr) int {
	n := 1
	switch {
	case e.op == opRule && a.copied[e.rule]:
		n = a.size[e.rule]
	case e.op == opText:
		n = len(e.text)
	case e.op == opGraph:
		for _, s := range e.graph.states {
			n++
			for _, edge := range s.edges {
				if edge.on != nil {
					n += a.sizeOf(edge.on)
				}
			}
		}
	}
	for _, s := range e.subs {
		n += a.sizeOf(s)
	}
	return min(n, maxInstructions)
}
