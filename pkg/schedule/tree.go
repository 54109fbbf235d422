package schedule

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
