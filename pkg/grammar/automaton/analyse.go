package automaton

import "github.com/lamina-mesh/lamina/pkg/grammar/ast"

// analysis is what the compiler knows of every rule before it emits the program.
type analysis struct {
	g          *ast.Grammar
	nullable   []bool // may match the empty text
	productive []bool // matches some text
	recursive  []bool // may call itself, directly or not
	uses       []int
	size       []int // nodes, including the rules that are inlined
	copied     []bool
	work       int
	settled    bool // nullable and productive are final
}

const maxAnalysis = 20_000_000 // nodes visited

// smallRule is the maximum size of a rule that is inlined into its callers.
const smallRule = 8

func analyse(g *ast.Grammar) (*analysis, error) {
	n := len(g.Rules)
	a := &analysis{g: g, nullable: make([]bool, n), productive: make([]bool, n), recursive: make([]bool, n),
		uses: make([]int, n), size: make([]int, n), copied: make([]bool, n)}
	order := a.order()
	for changed := true; changed; {
		changed = false
		for _, id := range order {
			body := g.Rules[id].Body
			if !a.nullable[id] && a.isNullable(body) {
				a.nullable[id], changed = true, true
			}
			if !a.productive[id] && a.isProductive(body) {
				a.productive[id], changed = true, true
			}
		}
		if a.work > maxAnalysis {
			return nil, &ast.LimitError{What: "steps to analyse the rules", Limit: maxAnalysis}
		}
	}
	a.settled = true
	for _, id := range order {
		a.size[id] = a.sizeOf(g.Rules[id].Body)
		a.copied[id] = !a.recursive[id] && !g.Rules[id].Apart && (a.size[id] <= smallRule || a.uses[id] == 1)
	}
	return a, nil
}

// calls calls yield with the index of every rule that e names.
func calls(e *ast.Expr, yield func(int)) {
	if e.Op == ast.OpRule {
		yield(int(e.Rule))
	}
	for _, s := range e.Subs {
		calls(s, yield)
	}
	if e.Op == ast.OpGraph {
		for _, s := range e.Graph.States {
			for _, edge := range s.Edges {
				if edge.On != nil {
					calls(edge.On, yield)
				}
			}
		}
	}
}

// order lists the rules that the root reaches, callees before callers except in recursion, and
// finds which rules are recursive (Tarjan 1972).
func (a *analysis) order() []int {
	n := len(a.g.Rules)
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
		calls(a.g.Rules[id].Body, func(c int) {
			callees[id] = append(callees[id], c)
			a.uses[c]++
		})
		return visit{rule: id}
	}
	work := []visit{enter(a.g.Root)}
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

// isNullable reports whether e matches the empty text.
func (a *analysis) isNullable(e *ast.Expr) bool {
	if e.Facts&ast.KnownNullable != 0 {
		return e.Facts&ast.IsNullable != 0
	}
	yes := a.findNullable(e)
	if a.settled {
		e.Facts |= ast.KnownNullable
		if yes {
			e.Facts |= ast.IsNullable
		}
	}
	return yes
}

func (a *analysis) findNullable(e *ast.Expr) bool {
	a.work++
	switch e.Op {
	case ast.OpEmpty:
		return true
	case ast.OpSeq:
		for _, s := range e.Subs {
			if !a.isNullable(s) {
				return false
			}
		}
		return true
	case ast.OpAlt:
		for _, s := range e.Subs {
			if a.isNullable(s) {
				return true
			}
		}
	case ast.OpRepeat:
		return e.Min == 0 || a.isNullable(e.Subs[0])
	case ast.OpRule:
		return a.nullable[e.Rule]
	case ast.OpGraph:
		for _, id := range e.Graph.Silent() {
			if e.Graph.States[id].Final {
				return true
			}
		}
	}
	return false
}

// isProductive reports whether e matches any text at all.
func (a *analysis) isProductive(e *ast.Expr) bool {
	if e.Facts&ast.KnownProductive != 0 {
		return e.Facts&ast.IsProductive != 0
	}
	yes := a.findProductive(e)
	if a.settled {
		e.Facts |= ast.KnownProductive
		if yes {
			e.Facts |= ast.IsProductive
		}
	}
	return yes
}

func (a *analysis) findProductive(e *ast.Expr) bool {
	a.work++
	switch e.Op {
	case ast.OpFail:
		return false
	case ast.OpSeq:
		for _, s := range e.Subs {
			if !a.isProductive(s) {
				return false
			}
		}
	case ast.OpAlt:
		for _, s := range e.Subs {
			if a.isProductive(s) {
				return true
			}
		}
		return false
	case ast.OpRepeat:
		return e.Min == 0 || a.isProductive(e.Subs[0])
	case ast.OpRule:
		return a.productive[e.Rule]
	case ast.OpGraph:
		return a.ends(e.Graph)[0]
	}
	return true
}

// ends reports which states of g reach a final state.
func (a *analysis) ends(g *ast.Graph) []bool {
	before := make([][]int, len(g.States))
	ends := make([]bool, len(g.States))
	var work []int
	for i, s := range g.States {
		if s.Final {
			ends[i] = true
			work = append(work, i)
		}
		for _, e := range s.Edges {
			if e.On == nil || a.isProductive(e.On) {
				before[e.To] = append(before[e.To], i)
			}
		}
		a.work += 1 + len(s.Edges)
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

// sizeOf counts the nodes of e, including those of the rules that are inlined into it.
func (a *analysis) sizeOf(e *ast.Expr) int {
	n := 1
	switch {
	case e.Op == ast.OpRule && a.copied[e.Rule]:
		n = a.size[e.Rule]
	case e.Op == ast.OpText:
		n = len(e.Text)
	case e.Op == ast.OpGraph:
		for _, s := range e.Graph.States {
			n++
			for _, edge := range s.Edges {
				if edge.On != nil {
					n += a.sizeOf(edge.On)
				}
			}
		}
	}
	for _, s := range e.Subs {
		n += a.sizeOf(s)
	}
	return min(n, ast.MaxInstructions)
}
