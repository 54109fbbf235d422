package schedule

import "github.com/lamina-mesh/lamina/pkg/fault"

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

// Join lists the largest nodes below and including n that the given nodes, none of which is part of another one,
// cover: two children that are both there are their parent. It is in slot order.
func Join(n Node, has map[Node]bool) []Node {
	if has[n] || n.Leaf() {
		if has[n] {
			return []Node{n}
		}
		return nil
	}
	left, right := n.Children()
	l, r := Join(left, has), Join(right, has)
	if len(l) == 1 && l[0] == left && len(r) == 1 && r[0] == right {
		return []Node{n}
	}
	return append(l, r...)
}

// Slots returns the range of slots that a replica computes.
func Slots(slots, replica, replicas int) (lo, hi int) {
	return slots * replica / replicas, slots * (replica + 1) / replicas
}

// Level lists the nodes at the depth at which the tree over all slots has n nodes, in slot order. n is a
// power of two and at most the number of slots.
func Level(slots, n int) []Node {
	out := []Node{{0, slots}}
	for len(out) < n {
		var next []Node
		for _, node := range out {
			left, right := node.Children()
			next = append(next, left, right)
		}
		out = next
	}
	return out
}

// CheckLevel returns an error if the tree over all slots has no level of n nodes.
func CheckLevel(field string, slots, n int) error {
	if n < 1 || n > slots || n&(n-1) != 0 {
		return fault.Field(field, "%d is not a power of two from 1 to the number of slots, %d", n, slots)
	}
	return nil
}

// LevelSlots returns the range of slots that a replica computes, if it computes whole nodes of a level.
func LevelSlots(slots, n, replica, replicas int) (lo, hi int) {
	level := Level(slots, n)
	first, end := Slots(n, replica, replicas)
	if first == end {
		return 0, 0
	}
	return level[first].Lo, level[end-1].Hi
}
