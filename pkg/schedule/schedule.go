// Package schedule orders the work of a training step over pipeline stages: it lists the
// forward and backward passes of each stage, in order. It is pure. Simulate finds deadlocks
// and measures the bubble.
package schedule

import "fmt"

// Kind is the kind of an action.
type Kind uint8

// The kinds of actions.
const (
	Forward  Kind = iota + 1 // run a micro-batch forward
	Backward                 // run it backward
)

// Action is a forward or backward pass of a micro-batch.
type Action struct {
	Kind  Kind
	Micro int
}

// String returns a text like "F3" or "B3".
func (a Action) String() string {
	if a.Kind == Forward {
		return fmt.Sprintf("F%d", a.Micro)
	}
	return fmt.Sprintf("B%d", a.Micro)
}

// New returns a stage's actions under a schedule: "1f1b" or "gpipe".
func New(name string, stage, stages, micro int) ([]Action, error) {
	if stage < 0 || stage >= stages || micro < 0 {
		return nil, fmt.Errorf("schedule stage %d of %d with %d micro-batches: numbers out of range", stage, stages,
			micro)
	}
	switch name {
	case "1f1b":
		return OneFOneB(stage, stages, micro), nil
	case "gpipe":
		return GPipe(micro), nil
	}
	return nil, fmt.Errorf("unknown schedule %q (want 1f1b or gpipe)", name)
}

// OneFOneB is PipeDream-Flush (Narayanan et al.). A stage first runs one forward pass for
// each stage behind it, then alternates forward and backward passes, then runs the remaining
// backward passes. It holds the activations of at most stages-stage micro-batches.
func OneFOneB(stage, stages, micro int) []Action {
	warm := min(stages-stage-1, micro)
	var out []Action
	for i := range warm {
		out = append(out, Action{Forward, i})
	}
	for i := warm; i < micro; i++ {
		out = append(out, Action{Forward, i}, Action{Backward, i - warm})
	}
	for i := micro - warm; i < micro; i++ {
		out = append(out, Action{Backward, i})
	}
	return out
}

// GPipe (Huang et al.) runs all forward passes, then all backward passes.
func GPipe(micro int) []Action {
	var out []Action
	for i := range micro {
		out = append(out, Action{Forward, i})
	}
	for i := range micro {
		out = append(out, Action{Backward, i})
	}
	return out
}

// Result is the result of a simulation.
type Result struct {
	Makespan float64 // time at which the last action ends
	Bubble   float64 // share of the stages' time that is spent waiting
	Held     []int   // for each stage, the maximum number of micro-batches between forward and backward
}

// Simulate runs the lists of all stages, with the given costs of a forward and a backward pass. A
// forward pass waits for the forward pass of the previous stage, and a backward pass for the
// backward pass of the next stage. A deadlock is an error.
func Simulate(lists [][]Action, forward, backward float64) (Result, error) {
	type key struct {
		stage int
		Action
	}
	ended := map[key]float64{}
	at, clock, held := make([]int, len(lists)), make([]float64, len(lists)), make([]int, len(lists))
	r := Result{Held: make([]int, len(lists))}
	var busy float64
	for left := true; left; {
		moved := false
		left = false
		for s, list := range lists {
			for at[s] < len(list) {
				a := list[at[s]]
				start, ok := clock[s], true
				switch {
				case a.Kind == Forward && s > 0:
					start, ok = ended[key{s - 1, a}], has(ended, key{s - 1, a})
				case a.Kind == Backward && s < len(lists)-1:
					start, ok = ended[key{s + 1, a}], has(ended, key{s + 1, a})
				case a.Kind == Backward:
					start, ok = ended[key{s, Action{Forward, a.Micro}}], has(ended, key{s, Action{Forward, a.Micro}})
				}
				if !ok {
					left = true
					break
				}
				cost := forward
				if a.Kind == Backward {
					cost = backward
					held[s]--
				} else {
					held[s]++
					r.Held[s] = max(r.Held[s], held[s])
				}
				clock[s] = max(clock[s], start) + cost
				ended[key{s, a}] = clock[s]
				busy += cost
				at[s]++
				moved = true
			}
		}
		if left && !moved {
			for s, list := range lists {
				if at[s] < len(list) {
					return r, fmt.Errorf("simulate schedule: deadlock: stage %d waits before %v", s, list[at[s]])
				}
			}
		}
	}
	for _, c := range clock {
		r.Makespan = max(r.Makespan, c)
	}
	if r.Makespan > 0 {
		r.Bubble = 1 - busy/(r.Makespan*float64(len(lists)))
	}
	return r, nil
}

func has[K comparable](m map[K]float64, k K) bool {
	_, ok := m[k]
	return ok
}

// Node is a node of the fixed tree over slots. It covers the slots [Lo, Hi).
type Node struct{ Lo, Hi int }

// Leaf reports whether the node is one slot.
func (n Node) Leaf() bool { return n.Hi-n.Lo == 1 }

// Children splits a node as lamina.event.v1 defines. If the number of slots is odd, the left child
// has one more.
func (n Node) Children() (Node, Node) {
	mid := n.Lo + (n.Hi-n.Lo+1)/2
	return Node{n.Lo, mid}, Node{mid, n.Hi}
}

// Cover lists the largest nodes of the tree over all slots that lie within [lo, hi),
// in slot order.
func Cover(slots, lo, hi int) []Node {
	var out []Node
	var walk func(n Node)
	walk = func(n Node) {
		switch {
		case n.Hi <= lo || n.Lo >= hi:
		case n.Lo >= lo && n.Hi <= hi:
			out = append(out, n)
		default:
			left, right := n.Children()
			walk(left)
			walk(right)
		}
	}
	if slots > 0 {
		walk(Node{0, slots})
	}
	return out
}

// Slots returns the range of slots that a replica computes.
func Slots(slots, replica, replicas int) (lo, hi int) {
	return slots * replica / replicas, slots * (replica + 1) / replicas
}
