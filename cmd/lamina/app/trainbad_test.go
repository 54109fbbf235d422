package app_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	eventv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/event/v1"
	trainerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/trainer/v1"
	"github.com/lamina-mesh/lamina/pkg/gradbus"
	"github.com/lamina-mesh/lamina/pkg/wire"
)

// broken is a bus on which all events of one replica are damaged from a step on.
type broken struct {
	gradbus.Bus
	from   uint64
	damage func(*eventv1.Gradient)
}

func (b *broken) Publish(ctx context.Context, e gradbus.Event) error {
	var g eventv1.Gradient
	if err := proto.Unmarshal(e.Data, &g); err != nil {
		return err
	}
	if g.GetReplica() == 1 && g.GetStep() >= b.from {
		g.Data = bytes.Clone(g.GetData())
		b.damage(&g)
		g.Checksum = wire.Checksum(g.GetData())
		g.WholeChecksum = g.GetChecksum()
		var err error
		if e.Data, err = proto.Marshal(&g); err != nil {
			return err
		}
	}
	return b.Bus.Publish(ctx, e)
}

// T6 with the whole service: the replica is quarantined, the others go on, and the run has the weights of a calm one.
func TestTrain_AReplicaWithBadGradientsIsQuarantined(t *testing.T) {
	value := func(v float64) func(*eventv1.Gradient) {
		return func(g *eventv1.Gradient) {
			binary.LittleEndian.PutUint32(g.GetData()[8:], math.Float32bits(float32(v)))
		}
	}
	for want, c := range map[string]struct {
		damage func(*eventv1.Gradient)
		wire   string
	}{
		"not finite": {value(math.NaN()), "f32"}, "huge": {value(1e6), "f32"},
		"stale": {func(g *eventv1.Gradient) { g.Step-- }, "f32"}, "misshapen": {func(g *eventv1.Gradient) { g.Wire = "int8" }, "bf16"},
	} {
		t.Run(want, func(t *testing.T) {
			raw := manifest(t, "bad", map[string]any{"steps": 24, "slots": 8, "checkpoint_every": 1000,
				"gradients": wires()[c.wire]["gradients"]})
			bus := &broken{Bus: gradbus.NewMemory(64 << 20), from: 14, damage: c.damage}
			f := newTrainFleetOn(t, 3, bus, 0)
			calmOut, out := t.TempDir(), t.TempDir()
			calm := f.watch(&trainerv1.StartRunRequest{ManifestJson: raw, Out: calmOut}, nil)
			check := forward(t)
			got := f.watch(&trainerv1.StartRunRequest{ManifestJson: raw, Replicas: 3, Out: out}, check)
			same(t, want, out, calmOut, got, calm)
			if len(got.GetQuarantined()) != 1 || got.GetMembers() != 2 || got.GetJoined() > 0 {
				t.Fatalf("%d replicas at the end, %d have joined, quarantined: %v", got.GetMembers(), got.GetJoined(),
					got.GetQuarantined())
			}
			q := got.GetQuarantined()[0]
			if q.GetReason() != want || q.GetReplica() != 1 || q.GetAddress() != "mem:shard-1" || q.GetStep() != 14 {
				t.Errorf("quarantined %v", q)
			}
			text, err := os.ReadFile(filepath.Join(out, filepath.FromSlash(q.GetEvidence())))
			if err != nil {
				t.Fatal(err)
			}
			var e struct {
				Step          uint64
				Replica       uint32
				Address, Data string
				Reason, Part  string
				Bytes         int
			}
			if err := json.Unmarshal(text, &e); err != nil || e.Step != 14 || e.Reason != want || e.Bytes == 0 ||
				e.Data == "" ||
				e.Part == "" {
				t.Errorf("evidence is %+v, %v", e, err)
			}
		})
	}
}

// The rule about spikes decides by losses and norms, which are the same on every layout, through faults and resumes.
func TestTrain_SpikesAreHandledTheSameOnEveryLayout(t *testing.T) {
	for _, action := range []string{"skip", "rollback"} {
		t.Run(action, func(t *testing.T) {
			raw := manifest(t, "spikes-"+action, map[string]any{"steps": 40, "checkpoint_every": 4, "keep_last": 20,
				"learning_rate": map[string]any{"max": 0.05, "min": 0.05, "warmup": 2}, "clip": 0,
				"spikes": map[string]any{"action": action, "deviations": 1.2, "window": 20, "most": 60}})
			f := newTrainFleet(t, 4)
			calmOut := t.TempDir()
			calm := f.watch(&trainerv1.StartRunRequest{ManifestJson: raw, Out: calmOut}, nil)
			if len(calm.GetSpikes()) == 0 {
				t.Fatalf("the calm run ended %v (%s) with spikes %v", calm.GetState(), calm.GetError(), calm.GetSpikes())
			}
			t.Logf("%d spikes, the first one: %v", len(calm.GetSpikes()), calm.GetSpikes()[0])
			for _, l := range [][2]uint32{{2, 1}, {1, 3}} {
				out := t.TempDir()
				got := f.watch(&trainerv1.StartRunRequest{ManifestJson: raw, Stages: l[0], Replicas: l[1], Out: out},
					nil)
				same(t, fmt.Sprintf("%s over %v", action, l), out, calmOut, got, calm)
				if fmt.Sprint(got.GetSpikes()) != fmt.Sprint(calm.GetSpikes()) {
					t.Errorf("%s over %v: spikes %v, want %v", action, l, got.GetSpikes(), calm.GetSpikes())
				}
			}
			// Stopped in the middle, resumed on another layout, which loses a shard.
			out := t.TempDir()
			stopped, asked := make(chan error, 1), false
			f.watch(&trainerv1.StartRunRequest{ManifestJson: raw, Out: out}, func(r *trainerv1.Run) {
				if !asked && r.GetStep() >= 21 {
					asked = true
					go func() {
						_, err := f.client.StopRun(f.ctx, &trainerv1.StopRunRequest{Run: r.GetName()})
						stopped <- err
					}()
				}
			})
			if err := <-stopped; err != nil {
				t.Fatal(err)
			}
			killed := false
			got := f.watch(&trainerv1.StartRunRequest{ManifestJson: raw, Stages: 1, Replicas: 2, Out: out,
				Resume: true},
				func(r *trainerv1.Run) {
					if !killed && r.GetStep() >= 28 {
						killed = true
						f.kill["shard-1"]()
					}
				})
			same(t, action+" resumed", out, calmOut, got, calm)
			text, err := os.ReadFile(filepath.Join(out, "metrics.jsonl"))
			if err != nil {
				t.Fatal(err)
			}
			if skips := strings.Count(string(text), `"skipped":true`); (skips > 0) != (action == "skip") {
				t.Errorf("%d steps are skipped", skips)
			}
		})
	}
}
