package app_test

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	trainerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/trainer/v1"
	"github.com/lamina-mesh/lamina/pkg/gradbus"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/ref"
	"github.com/lamina-mesh/lamina/services/trainer"
)

// deviceSet is a kernel set of a shard with a device of its own, which takes a fixed time for each slot. Without it
// the replicas of a test would share the processors, and be as fast together after one of them is lost.
type deviceSet struct {
	kernel.Set[float32]
	slot time.Duration
}

// CrossEntropy is called once for each slot.
func (s *deviceSet) CrossEntropy(loss []float64, dlogits, logits kernel.Buffer[float32], targets []int32, scale float64,
	t, v int) {
	<-time.After(s.slot)
	s.Set.CrossEntropy(loss, dlogits, logits, targets, scale, t, v)
}

// warm is the step from which on a pace counts.
const warm = 5

// MatMul takes time for large products, which a stage makes to measure how fast they are.
func (s *deviceSet) MatMul(y, x kernel.Buffer[float32], w *kernel.Matrix[float32], bias kernel.Buffer[float32], t int) {
	s.Set.MatMul(y, x, w, bias, t)
	if t*w.Rows*w.Cols >= 1<<18 {
		<-time.After(10 * time.Millisecond)
	}
}

// pace measures the speed of a run.
type pace struct {
	first, last uint64
	begin, end  time.Time
	took        map[uint32][]float64 // milliseconds of steps by the number of replicas
}

func (p *pace) saw(r *trainerv1.Run) {
	if r.GetState() != trainerv1.RunState_RUN_STATE_RUNNING || r.GetStep() < warm || r.GetStep() == p.last {
		return
	}
	if p.begin.IsZero() {
		p.first, p.begin, p.took = r.GetStep(), time.Now(), map[uint32][]float64{}
	}
	p.last, p.end = r.GetStep(), time.Now()
	p.took[r.GetMembers()] = append(p.took[r.GetMembers()], r.GetStepMs())
}

// speed returns steps a second.
func (p *pace) speed() float64 { return float64(p.last-p.first) / p.end.Sub(p.begin).Seconds() }

func (p *pace) String() string {
	text := fmt.Sprintf("%.1f steps/s", p.speed())
	for members := uint32(1); members <= 3; members++ {
		if took := slices.Sorted(slices.Values(p.took[members])); len(took) > 0 {
			text += fmt.Sprintf(", %d with %d replicas (median %.0f ms)", len(took), members, took[len(took)/2])
		}
	}
	return text
}

// T8: one of three replicas is killed every ten seconds, and another one joins. The run has 70 % of its calm speed at
// least. Time is virtual, so that a busy machine changes nothing: what counts is how many slots each replica has to
// wait for, what a repeated step costs, and how long a replacement takes to join.
func TestTrain_LostReplicasCostLittleSpeed(t *testing.T) {
	synctest.Test(t, lostReplicasCostLittleSpeed)
}

func lostReplicasCostLittleSpeed(t *testing.T) {
	const (
		slot  = 200 * time.Millisecond // 400 ms a step
		every = 10 * time.Second
		kills = 4
	)
	raw := manifest(t, "speed", map[string]any{"steps": 110, "slots": 6, "slot_sequences": 1, "checkpoint_every": 1000})
	f := &trainFleet{bus: gradbus.NewMemory(64 << 20), kernels: &deviceSet{ref.New[float32](), slot}}
	f.start(t, 3, trainer.Config{})
	calm, calmOut := &pace{}, t.TempDir()
	want := f.watch(&trainerv1.StartRunRequest{ManifestJson: raw, Replicas: 3, Out: calmOut}, calm.saw)
	lossy, out := &pace{}, t.TempDir()
	check, killed := forward(t), 0
	got := f.watch(&trainerv1.StartRunRequest{ManifestJson: raw, Replicas: 3, Out: out}, func(r *trainerv1.Run) {
		check(r)
		lossy.saw(r)
		// The first one is killed at once, so that the last one counts as long as the others.
		if killed < kills && r.GetStep() >= warm && time.Since(lossy.begin) >= time.Duration(killed)*every {
			f.kill[fmt.Sprintf("shard-%d", killed)]()
			f.shard(fmt.Sprintf("shard-%d", 3+killed))
			killed++
		}
	})
	same(t, "lost replicas", out, calmOut, got, want)
	ratio := lossy.speed() / calm.speed()
	t.Logf("calm: %v; %d killed: %v; %.0f %% of the calm speed", calm, killed, lossy, 100*ratio)
	if killed != kills || got.GetLost() != kills || got.GetAborted() > kills || ratio < 0.7 {
		t.Errorf("%d killed, %d lost, %d attempts repeated, %.0f %% of the calm speed", killed, got.GetLost(),
			got.GetAborted(), 100*ratio)
	}
}
