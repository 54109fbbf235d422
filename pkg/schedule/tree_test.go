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
