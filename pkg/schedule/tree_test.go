package schedule_test

import (
	"fmt"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/schedule"
)

func TestCover_ReplicasTileTheTree(t *testing.T) {
	for slots := 1; slots <= 17; slots++ {
		for replicas := 1; replicas <= slots; replicas++ {
			next := 0
			for r := range replicas {
				lo, hi := schedule.Slots(slots, r, replicas)
				for _, n := range schedule.Cover(slots, lo, hi) {
					if n.Lo != next {
						t.Fatalf("%d slots, replica %d of %d: node %v after slot %d", slots, r, replicas, n, next)
					}
					next = n.Hi
				}
			}
			if next != slots {
				t.Fatalf("%d slots, %d replicas cover %d", slots, replicas, next)
			}
		}
	}
	if got := fmt.Sprint(schedule.Cover(8, 4, 8)); got != "[{4 8}]" {
		t.Errorf("half of the tree is %s", got)
	}
}

func TestLevel_CoversAllSlotsWithNodesOfTheTree(t *testing.T) {
	for slots := 1; slots <= 40; slots++ {
		for n := 1; n <= slots; n *= 2 {
			if err := schedule.CheckLevel("nodes", slots, n); err != nil {
				t.Fatal(err)
			}
			level := schedule.Level(slots, n)
			at := 0
			for _, node := range level {
				cover := schedule.Cover(slots, node.Lo, node.Hi)
				if node.Lo != at || node.Hi <= node.Lo || len(cover) != 1 || cover[0] != node {
					t.Fatalf("%d of %d slots: %v is not a node at %d", n, slots, node, at)
				}
				at = node.Hi
			}
			if at != slots || len(level) != n {
				t.Fatalf("%d of %d slots: level %v", n, slots, level)
			}
			for replicas := 1; replicas <= n; replicas++ {
				at := 0
				for r := range replicas {
					lo, hi := schedule.LevelSlots(slots, n, r, replicas)
					if lo != at || hi <= lo {
						t.Fatalf("%d nodes of %d slots, replica %d of %d: slots %d-%d", n, slots, r, replicas, lo, hi)
					}
					at = hi
				}
				if at != slots {
					t.Fatalf("%d nodes of %d slots over %d replicas end at %d", n, slots, replicas, at)
				}
			}
		}
	}
	for _, n := range []int{0, 3, 8, -1} {
		if schedule.CheckLevel("nodes", 7, n) == nil {
			t.Errorf("%d nodes of 7 slots are accepted", n)
		}
	}
}

// Whatever units replicas have, the nodes that Join makes of them cover the same slots, and none could be joined again.
func TestJoin_LargestNodesOfTheUnits(t *testing.T) {
	for slots := 1; slots <= 20; slots++ {
		for set := range 1 << 6 { // which of up to six replicas share a machine
			replicas := min(slots, 6)
			has, here := map[schedule.Node]bool{}, make([]bool, slots)
			for r := range replicas {
				if set>>r&1 == 0 {
					continue
				}
				lo, hi := schedule.Slots(slots, r, replicas)
				for _, n := range schedule.Cover(slots, lo, hi) {
					has[n] = true
				}
				for i := lo; i < hi; i++ {
					here[i] = true
				}
			}
			at := 0
			joined := map[schedule.Node]bool{}
			for _, n := range schedule.Join(schedule.Node{Hi: slots}, has) {
				for ; at < n.Lo; at++ {
					if here[at] {
						t.Fatalf("%d slots, replicas %b: slot %d is in no node", slots, set, at)
					}
				}
				for ; at < n.Hi; at++ {
					if !here[at] {
						t.Fatalf("%d slots, replicas %b: node %v has slot %d of another machine", slots, set, n, at)
					}
				}
				joined[n] = true
			}
			for ; at < slots; at++ {
				if here[at] {
					t.Fatalf("%d slots, replicas %b: slot %d is in no node", slots, set, at)
				}
			}
			var check func(n schedule.Node)
			check = func(n schedule.Node) {
				if n.Leaf() || joined[n] {
					return
				}
				left, right := n.Children()
				if joined[left] && joined[right] {
					t.Fatalf("%d slots, replicas %b: %v and %v are apart", slots, set, left, right)
				}
				check(left)
				check(right)
			}
			check(schedule.Node{Hi: slots})
		}
	}
}
