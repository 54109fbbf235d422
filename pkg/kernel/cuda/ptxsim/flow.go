package ptxsim

// flow sets where the sides of each conditional branch meet again: the immediate post-dominator of the branch, which is
// the first instruction that every path from it to the end of the kernel passes. The algorithm is that of Cooper,
// Harvey and Kennedy, "A Simple, Fast Dominance Algorithm", on the reversed graph of basic blocks.
func (k *kernel) flow() {
	n := len(k.code)
	leader := make([]bool, n+1)
	leader[0] = true
	for i := range k.code {
		switch in := &k.code[i]; in.kind {
		case kindBranch:
			leader[in.target], leader[i+1] = true, true
		case kindExit:
			leader[i+1] = true
		}
	}
	var starts []int
	blockOf := make([]int, n)
	for i := range k.code {
		if leader[i] {
			starts = append(starts, i)
		}
		blockOf[i] = len(starts) - 1
	}
	blocks := len(starts)
	exit := blocks // a block of its own, at which all paths end
	succ := make([][]int, blocks)
	pred := make([][]int, blocks+1)
	for b, start := range starts {
		end := n
		if b+1 < blocks {
			end = starts[b+1]
		}
		last := &k.code[end-1]
		var out []int
		if last.kind == kindExit {
			out = append(out, exit)
		}
		if last.kind == kindBranch {
			out = append(out, blockOf[last.target])
		}
		if always := last.pred < 0 && (last.kind == kindExit || last.kind == kindBranch); !always && start < n {
			if b+1 < blocks {
				out = append(out, b+1)
			} else {
				out = append(out, exit)
			}
		}
		succ[b] = out
		for _, s := range out {
			pred[s] = append(pred[s], b)
		}
	}
	ipdom := postDominators(succ, pred, exit)
	for b := range starts {
		end := n
		if b+1 < blocks {
			end = starts[b+1]
		}
		if last := &k.code[end-1]; last.kind == kindBranch {
			last.join = int32(n) // no instruction: the sides end apart
			if d := ipdom[b]; d >= 0 && d != exit {
				last.join = int32(starts[d])
			}
		}
	}
}

// postDominators returns the immediate post-dominator of every block, or -1 for a block from which no path ends.
func postDominators(succ, pred [][]int, exit int) []int {
	// order is the post-order of the reversed graph from the exit, without recursion.
	number := make([]int, exit+1)
	for i := range number {
		number[i] = -1
	}
	type visit struct{ b, next int }
	var order []int
	stack := []visit{{b: exit}}
	seen := make([]bool, exit+1)
	seen[exit] = true
	for len(stack) > 0 {
		v := &stack[len(stack)-1]
		if v.next < len(pred[v.b]) {
			p := pred[v.b][v.next]
			v.next++
			if !seen[p] {
				seen[p] = true
				stack = append(stack, visit{b: p})
			}
			continue
		}
		number[v.b] = len(order)
		order = append(order, v.b)
		stack = stack[:len(stack)-1]
	}
	idom := make([]int, exit+1)
	for i := range idom {
		idom[i] = -1
	}
	idom[exit] = exit
	for changed := true; changed; {
		changed = false
		for i := len(order) - 2; i >= 0; i-- {
			b := order[i]
			next := -1
			for _, s := range succ[b] {
				if idom[s] < 0 {
					continue
				}
				if next < 0 {
					next = s
					continue
				}
				for a := s; a != next; {
					for number[a] < number[next] {
						a = idom[a]
					}
					for number[next] < number[a] {
						next = idom[next]
					}
				}
			}
			if next != idom[b] {
				idom[b] = next
				changed = true
			}
		}
	}
	return idom[:exit]
}
