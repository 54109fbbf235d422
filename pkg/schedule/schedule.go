// Package schedule orders the work of a training step over pipeline stages: for
// each stage the list of forward and backward passes it makes, in order. It is pure;
// Simulate finds deadlock and counts the bubble.
package schedule

import "fmt"

// Kind is what an action does.
type Kind uint8

// The kinds of actions.
const (
	Forward  Kind = iota + 1 // run a micro-batch forward
	Backward                 // run it backward
)

// Action is one pass of one micro-batch.
type Action struct {
	Kind  Kind
	Micro int
}

// String is "F3" or "B3".
func (a Action) String() string {
	if a.Kind == Forward {
		return fmt.Sprintf("F%d", a.Micro)
	}
	return fmt.Sprintf("B%d", a.Micro)
}

// New returns a stage's actions under a schedule: "1f1b" or "gpipe".
func New(name string, stage, stages, micro int) ([]Action, error) {
	if stage < 0 || stage >= stages || micro < 0 {
		return nil, fmt.Errorf("schedule stage %d of %d with %d micro-batches", stage, stages, micro)
	}
	switch name {
	case "1f1b":
		return OneFOneB(stage, stages, micro), nil
	case "gpipe":
		return GPipe(micro), nil
	}
	return nil, fmt.Errorf("schedule %q is unknown (1f1b and gpipe are known)", name)
}

// OneFOneB (Narayanan et al., PipeDream-Flush): a warm-up of forwards as long as the
// way to the last stage, then one forward and one backward in turn, then the rest of
// the backwards. A stage holds at most stages-stage micro-batches' activations.
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

// GPipe (Huang et al.) makes all forwards, then all backwards.
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

// Result is what a simulation found.
type Result struct {
	Makespan float64 // until the last action has ended
	Bubble   float64 // share of the stages' time spent waiting
	Held     []int   // most micro-batches held between forward and backward, by stage
}

// Simulate plays the stages' lists with the given costs of a forward and a backward.
// An action waits for its neighbour's: a forward for the previous stage's, a backward
// for the next one's. Lists that wait for each other are an error.
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
					return r, fmt.Errorf("simulate schedule: stage %d waits for ever before %v", s, list[at[s]])
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

// Node is a node of the fixed tree over slots: those of [Lo, Hi).
type Node struct{ Lo, Hi int }

// Leaf reports whether the node is one slot.
func (n Node) Leaf() bool { return n.Hi-n.Lo == 1 }

// Children cuts a node where lamina.event.v1 says: the left one is not the smaller.
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

// Slots is the range of slots that a replica computes.
func Slots(slots, replica, replicas int) (lo, hi int) {
	return slots * replica / replicas, slots * (replica + 1) / replicas
}
