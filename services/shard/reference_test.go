package shard_test

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/lamina-mesh/lamina/internal/fixtures"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/gradbus"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/weights"
)

// reference is what transformers computes for a tiny model: the loss and gradients of one batch, and twelve
// steps of AdamW on it.
type reference struct {
	Cases []struct {
		IDs []uint32 `json:"ids"`
	} `json:"cases"`
	Training struct {
		Loss      float64 `json:"loss"`
		Gradients map[string]struct {
			L2 float64 `json:"l2"`
		} `json:"gradients"`
	} `json:"training"`
	AdamW struct {
		Loss     []float64 `json:"loss"`
		GradNorm []float64 `json:"grad_norm"`
	} `json:"adamw"`
}

// referenceLimit is the relative difference that is allowed.
const referenceLimit = 1e-3

// partings are the steps from which on a comparison of float32 with float32 makes no sense: a router chooses between
// experts by a margin of 1e-6 there, or rounding grows tenfold a step. pkg/model follows these to the twelfth step.
func partings() map[string]int { return map[string]int{"gpt-oss": 6, "gpt-oss-mxfp4": 5} }

// tinyModel returns the folder of a tiny model, or of all of them.
func tinyModel(t *testing.T, name string) string {
	t.Helper()
	return fixtures.Path(t, "models/tiny", name)
}

// twoStages opens the two stages of a run that starts from a model's files.
func twoStages(r *trainRig, dir string, open *shardv1.TrainOpen) (first, last *conversation) {
	r.t.Helper()
	files, err := model.Open(dir)
	if err != nil {
		r.t.Fatal(err)
	}
	defer files.Close()
	spec, err := files.Dense()
	if err != nil {
		r.t.Fatal(err)
	}
	if open.ConfigJson, err = model.ConfigJSON(spec); err != nil {
		r.t.Fatal(err)
	}
	digest, err := weights.Digest(dir)
	if err != nil {
		r.t.Fatal(err)
	}
	open.Initial = &shardv1.InitialWeights{Path: dir, Digest: digest}
	ranges := model.Split(len(spec.Layers), 2)
	var stages []*conversation
	for i := 1; i >= 0; i-- {
		open.Stages, open.Stage, open.Next = 2, uint32(i), ""
		if i == 0 {
			open.Next = "mem:shard"
		}
		open.Spans = []*shardv1.Span{{Lo: uint32(ranges[i].Lo), Hi: uint32(ranges[i].Hi)}}
		stages = append(stages, r.train(open))
	}
	return stages[1], stages[0]
}

// stepOf runs the slots of a step over both stages and returns the sum of the losses and the norms.
func stepOf(
	first, last *conversation,
	step, targets uint64,
	slots []*shardv1.Microbatch,
) (float64, map[string]float64) {
	first.t.Helper()
	s := &shardv1.Step{Step: step, Targets: targets}
	for i := range slots {
		s.Slots = append(s.Slots, uint32(i))
	}
	for _, c := range []*conversation{first, last} {
		c.send(&shardv1.TrainRequest{Frame: &shardv1.TrainRequest_Step{Step: s}})
	}
	for i, m := range slots {
		head := &shardv1.Microbatch{Step: step, Slot: uint32(i), Sequences: m.GetSequences(), Length: m.GetLength(),
			Ids: m.GetIds()}
		tail := &shardv1.Microbatch{Step: step, Slot: uint32(i), Sequences: m.GetSequences(), Length: m.GetLength(),
			Targets: m.GetTargets()}
		first.send(&shardv1.TrainRequest{Frame: &shardv1.TrainRequest_Microbatch{Microbatch: head}})
		last.send(&shardv1.TrainRequest{Frame: &shardv1.TrainRequest_Microbatch{Microbatch: tail}})
	}
	var sum float64
	squares := map[string]float64{}
	for _, c := range []*conversation{first, last} {
		losses, norms := c.folded()
		for _, l := range losses {
			sum += l
		}
		for _, n := range norms {
			squares[n.GetName()] = n.GetSumSquares()
		}
	}
	return sum, squares
}

// TestTrain_TinyModelsMatchTheReferenceOverTwoStages runs every architecture as a run does: stages read
// the weights from the files, and exchange activations and gradients over streams.
func TestTrain_TinyModelsMatchTheReferenceOverTwoStages(t *testing.T) {
	entries, err := os.ReadDir(tinyModel(t, ""))
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) < 16 {
		t.Fatalf("%d tiny models", len(entries))
	}
	set := cpu.New(2)
	t.Cleanup(set.Close)
	for _, e := range entries {
		t.Run(e.Name(), func(t *testing.T) {
			dir := tinyModel(t, e.Name())
			text, err := os.ReadFile(filepath.Join(dir, "expected.json"))
			if err != nil {
				t.Fatal(err)
			}
			var want reference
			if err := json.Unmarshal(text, &want); err != nil {
				t.Fatal(err)
			}
			ids := want.Cases[0].IDs
			count := uint64(len(ids) - 1)
			open := trainOpening(0, 1)
			open.Slots, open.SequenceLen = 1, uint32(len(ids))
			first, last := twoStages(newTrainRigOn(t, gradbus.NewMemory(busLimit), set), dir, open)
			var worst float64
			near := func(what string, got, want float64) {
				t.Helper()
				worst = max(worst, math.Abs(got/want-1))
				if !(math.Abs(got/want-1) <= referenceLimit) {
					t.Errorf("%s is %.6g, want %.6g", what, got, want)
				}
			}
			data := &shardv1.Microbatch{Sequences: 1, Length: uint32(len(ids)), Ids: ids}
			for _, id := range ids[1:] {
				data.Targets = append(data.Targets, int32(id))
			}
			data.Targets = append(data.Targets, -1) // what follows the last id is not known
			for i, wantLoss := range want.AdamW.Loss {
				step := uint64(i + 1)
				if int(step) == partings()[e.Name()] {
					break
				}
				sum, squares := stepOf(first, last, step, count, []*shardv1.Microbatch{data})
				near("loss before a step", sum/float64(count), wantLoss)
				var total float64
				for _, s := range squares {
					total += s
				}
				near("gradient norm before a step", math.Sqrt(total), want.AdamW.GradNorm[i])
				if i == 0 {
					if len(squares) != len(want.Training.Gradients) {
						t.Errorf("%d gradients, want %d", len(squares), len(want.Training.Gradients))
					}
					for name, g := range want.Training.Gradients {
						near("gradient norm of "+name, math.Sqrt(squares[name]), g.L2)
					}
				}
				for _, c := range []*conversation{first, last} {
					c.send(&shardv1.TrainRequest{Frame: &shardv1.TrainRequest_Apply{Apply: &shardv1.Apply{Step: step,
						LearningRate: 1e-3, GradientScale: min(1, 1/math.Sqrt(total))}}})
				}
				for _, c := range []*conversation{first, last} {
					if a := c.next().GetApplied(); a.GetStep() != step {
						t.Fatalf("reply to apply is %v", a)
					}
				}
			}
			t.Logf("the largest relative difference is %.2g", worst)
		})
	}
}
