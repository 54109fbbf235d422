package app_test

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lamina-mesh/lamina/internal/leak"
	trainerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/trainer/v1"
	"github.com/lamina-mesh/lamina/pkg/gradbus"
	"github.com/lamina-mesh/lamina/pkg/kernel/ref"
	"github.com/lamina-mesh/lamina/services/trainer"
)

// forward fails the test if a run goes back to an earlier step.
func forward(t *testing.T) func(*trainerv1.Run) {
	t.Helper()
	last := uint64(0)
	return func(r *trainerv1.Run) {
		if r.GetStep() < last {
			t.Errorf("the run went back from step %d to %d", last, r.GetStep())
		}
		last = r.GetStep()
	}
}

// T8: of three replicas one is killed again and again, and another one takes its place. The run never goes back to a
// checkpoint, repeats at most one step for each that is lost, and ends with the same weights.
func TestTrain_ALostReplicaCostsOneStep(t *testing.T) {
	defer leak.Check(t)
	for _, c := range []struct {
		name   string
		stages uint32
		change map[string]any
		host   func(string) string
	}{
		{"f32", 1, nil, nil}, {"two stages", 2, nil, nil},
		{"bf16", 1, map[string]any{"gradients": map[string]any{"wire": "bf16", "nodes": 4}}, nil},
		{"direct", 2, nil, placements()["one machine"]},
	} {
		t.Run(c.name, func(t *testing.T) {
			change := map[string]any{"steps": 60, "slots": 6, "checkpoint_every": 1000, "evaluate_every": 9}
			for k, v := range c.change {
				change[k] = v
			}
			raw := manifest(t, "lost-"+strings.ReplaceAll(c.name, " ", "-"), change)
			calmOut, out := t.TempDir(), t.TempDir()
			f := &trainFleet{bus: gradbus.NewMemory(64 << 20), host: c.host}
			f.start(t, int(3*c.stages), trainer.Config{})
			calm := f.watch(&trainerv1.StartRunRequest{ManifestJson: raw, Out: calmOut}, nil)
			alone, kills := uint64(0), 0
			check := forward(t)
			got := f.watch(&trainerv1.StartRunRequest{ManifestJson: raw, Stages: c.stages, Replicas: 3, Out: out},
				func(r *trainerv1.Run) {
					check(r)
					if r.GetState() != trainerv1.RunState_RUN_STATE_RUNNING {
						return
					}
					if r.GetMembers() == 2 {
						alone++
						linger(f.ctx) // until another one joins
					}
					// The next one is killed when the one before has been replaced.
					if kills < 4 && r.GetJoined() == uint64(kills) && r.GetMembers() == 3 &&
						r.GetStep() >= uint64(4*kills+3) {
						f.kill[fmt.Sprintf("shard-%d", kills)]()
						f.shard(fmt.Sprintf("shard-%d", int(3*c.stages)+kills))
						kills++
					}
				})
			same(t, c.name, out, calmOut, got, calm)
			if kills != 4 || got.GetLost() != 4 || got.GetJoined() < 3 || got.GetAborted() > got.GetLost() ||
				alone == 0 {
				t.Errorf("%d kills: %d replicas lost, %d joined, %d attempts repeated, %d steps with two", kills,
					got.GetLost(), got.GetJoined(), got.GetAborted(), alone)
			}
			for i, line := range readLedger(t, out) {
				for k, s := range line.Slots {
					if line.Step != uint64(i+1) || s.Slot != k || s.Replica < 0 || len(line.Slots) != 6 {
						t.Errorf("line %d of the ledger is %+v", i, line)
					}
				}
			}
			t.Logf("%d kills, %d joined, %d attempts repeated", kills, got.GetJoined(), got.GetAborted())
		})
	}
}

// A stage that is frozen has healthy connections. It counts as lost when it says nothing for a while. Time is virtual,
// so that the other one is never silent, however busy the machine is.
func TestTrain_AFrozenReplicaIsLeft(t *testing.T) { synctest.Test(t, frozenReplicaIsLeft) }

func frozenReplicaIsLeft(t *testing.T) {
	raw := manifest(t, "frozen", map[string]any{"steps": 30, "checkpoint_every": 1000})
	calmOut, out := t.TempDir(), t.TempDir()
	f := &trainFleet{bus: gradbus.NewMemory(64 << 20), kernels: &deviceSet{ref.New[float32](), time.Millisecond}}
	f.start(t, 2, trainer.Config{Heartbeat: 500 * time.Millisecond, Silence: 5 * time.Second})
	calm := f.watch(&trainerv1.StartRunRequest{ManifestJson: raw, Out: calmOut}, nil)
	check, frozen := forward(t), false
	got := f.watch(&trainerv1.StartRunRequest{ManifestJson: raw, Replicas: 2, Out: out}, func(r *trainerv1.Run) {
		check(r)
		if !frozen && r.GetStep() >= 5 {
			frozen = true
			f.network.Silence("shard-1", true)
		}
	})
	f.network.Silence("shard-1", false) // its connections close with those of the others
	same(t, "a frozen replica", out, calmOut, got, calm)
	if got.GetLost() != 1 || got.GetMembers() != 1 {
		t.Errorf("%d replicas lost, %d left", got.GetLost(), got.GetMembers())
	}
}

// A shard that is stopped leaves after the current step: no step is repeated, and none is lost, whether the others go
// on or others take its place.
func TestTrain_AShardThatIsStoppedLeavesAfterItsStep(t *testing.T) {
	for _, c := range []struct {
		name     string
		replicas uint32
		spare    int
		change   map[string]any
		host     func(string) string
	}{
		{"three replicas", 3, 0, nil, nil},
		{"three replicas of one machine", 3, 0, nil, placements()["one machine"]},
		{"the only replica", 1, 1, nil, nil},
		{"residuals", 2, 1, map[string]any{"gradients": wires()["int8"]["gradients"]}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			change := map[string]any{"steps": 20, "slots": 4, "checkpoint_every": 1000}
			for k, v := range c.change {
				change[k] = v
			}
			raw := manifest(t, "leaves-"+strings.ReplaceAll(c.name, " ", "-"), change)
			calmOut, out := t.TempDir(), t.TempDir()
			f := (&trainFleet{bus: gradbus.NewMemory(64 << 20), host: c.host}).start(t, int(c.replicas)+c.spare,
				trainer.Config{})
			calm := f.watch(&trainerv1.StartRunRequest{ManifestJson: raw, Out: calmOut}, nil)
			check, gone := forward(t), make(chan struct{})
			begun := false
			got := f.watch(&trainerv1.StartRunRequest{ManifestJson: raw, Replicas: c.replicas, Out: out},
				func(r *trainerv1.Run) {
					check(r)
					if !begun && r.GetStep() >= 5 {
						begun = true
						go func() {
							defer close(gone)
							f.leave["shard-0"]()
						}()
					}
				})
			if !begun {
				t.Fatal("the run has ended before the shard was stopped")
			}
			<-gone
			same(t, c.name, out, calmOut, got, calm)
			if got.GetLost() != 0 || got.GetAborted() != 0 || got.GetLeft() != 1 {
				t.Errorf("%d replicas lost, %d have left, %d attempts repeated", got.GetLost(), got.GetLeft(),
					got.GetAborted())
			}
		})
	}
}
