package trainer

import (
	"testing"
	"time"

	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
)

// TestFleet_ExpectsTheFirstStepByItsOperations estimates the time of a step until one has been measured, since a stage
// that is busy for longer than a multiple of it is lost.
func TestFleet_ExpectsTheFirstStepByItsOperations(t *testing.T) {
	f := &fleet{}
	usual := func(want time.Duration) {
		t.Helper()
		f.expect(4e12)
		if got := time.Duration(f.usual.Load()); got != want {
			t.Errorf("a step is expected to take %v, want %v", got, want)
		}
	}
	usual(0) // no shard has said how fast it is
	f.addSpeed("127.0.0.1:1", &shardv1.TrainOpened{Host: "a", MatmulFlops: 5e9, Threads: 1, Processors: 2})
	usual(800 * time.Second)
	f.addSpeed("127.0.0.1:2", &shardv1.TrainOpened{Host: "a", MatmulFlops: 5e9, Threads: 1, Processors: 2})
	usual(400 * time.Second)
	f.took(3 * time.Second)
	usual(3 * time.Second)
}

// TestTraining_GivesTheNextFleetMoreTime doubles how long a stage may be without progress for each fleet that was lost
// before it completed a step, within limits.
func TestTraining_GivesTheNextFleetMoreTime(t *testing.T) {
	tr := &training{run: &run{service: &Service{}}}
	for fruitless, want := range map[int]time.Duration{0: defaultWedged, 1: 2 * defaultWedged, 3: 8 * defaultWedged,
		rebuilds: defaultWedged << rebuilds, 100: defaultWedged << rebuilds} {
		tr.fruitless = fruitless
		if got := tr.timing(); got.wedged != want || got.silence != defaultSilence {
			t.Errorf("after %d fleets a stage may take %v, want %v; %v of silence", fruitless, got.wedged, want, got.silence)
		}
	}
}
