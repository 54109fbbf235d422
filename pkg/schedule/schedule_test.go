package schedule_test

import (
	"fmt"
	"math"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/schedule"
)

func lists(t *testing.T, name string, stages, micro int) [][]schedule.Action {
	t.Helper()
	var out [][]schedule.Action
	for s := range stages {
		l, err := schedule.New(name, s, stages, micro)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, l)
	}
	return out
}

func TestSimulate_BothSchedulesHaveTheKnownBubble(t *testing.T) {
	for _, name := range []string{"1f1b", "gpipe"} {
		for stages := 1; stages <= 6; stages++ {
			for micro := 1; micro <= 9; micro++ {
				r, err := schedule.Simulate(lists(t, name, stages, micro), 1, 2)
				if err != nil {
					t.Fatalf("%s over %d stages, %d micro-batches: %v", name, stages, micro, err)
				}
				want := float64(stages-1) / float64(micro+stages-1)
				if math.Abs(r.Bubble-want) > 1e-9 {
					t.Errorf("%s over %d stages, %d micro-batches: bubble %.3f, want %.3f", name, stages, micro,
						r.Bubble, want)
				}
				for s, held := range r.Held {
					if name == "1f1b" && held > stages-s {
						t.Errorf("1f1b stage %d of %d holds %d micro-batches", s, stages, held)
					}
				}
			}
		}
	}
}

func TestSimulate_FindsDeadlock(t *testing.T) {
	f, b := schedule.Forward, schedule.Backward
	_, err := schedule.Simulate([][]schedule.Action{{{f, 0}, {b, 0}, {f, 1}, {b, 1}}, {{f, 0}, {f, 1}, {b, 0}, {b, 1}}},
		1, 1)
	if err == nil {
		t.Error("stages that wait for each other are not found")
	}
}

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
