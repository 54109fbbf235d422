package integration_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"testing"
	"time"

	trainerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/trainer/v1"
)

func TestTrain_TwoStagesByTwoReplicasEqualsOneByOne(t *testing.T) {
	mesh := start(t, Layout{2, 2})
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	seen := map[string]string{}
	for _, precision := range []string{"F32", "BF16"} {
		split := train(ctx, t, mesh, "count-2x2-"+precision, precision, 2, 2)
		whole := train(ctx, t, mesh, "count-1x1-"+precision, precision, 1, 1)
		digest := split.GetWeightsDigest()
		if digest == "" || digest != whole.GetWeightsDigest() {
			t.Errorf("%s: weights over 2 stages x 2 replicas are %q, over 1 x 1 %q", precision, digest,
				whole.GetWeightsDigest())
		}
		if split.GetLoss() > 2 {
			t.Errorf("%s: training loss ended at %.3f, want it well below ln(vocabulary)", precision, split.GetLoss())
		}
		if seen[digest] != "" {
			t.Errorf("%s and %s give the same weights", precision, seen[digest])
		}
		seen[digest] = precision
	}
}

// train runs a small run to its end.
func train(ctx context.Context, t *testing.T, mesh *Mesh, name, precision string,
	stages, replicas uint32) *trainerv1.Run {
	t.Helper()
	manifest, err := json.Marshal(map[string]any{
		"name":       name,
		"data":       map[string]any{"text": mesh.TextDir + "/count.txt", "validation_fraction": 0.1},
		"vocabulary": map[string]any{"type": "char"},
		"model": map[string]any{
			"architecture": "llama", "layers": 4, "width": 32, "heads": 4, "kv_heads": 2, "ff": 64, "context": 32,
			"tied": true,
		},
		"slots": 4, "slot_sequences": 2, "sequence_len": 32, "steps": 40,
		"learning_rate": map[string]any{"max": 0.01, "min": 0.001, "warmup": 4},
		"betas":         []float64{0.9, 0.99}, "decay": 0.1, "clip": 1, "seed": 7, "precision": precision,
	})
	if err != nil {
		t.Fatal(err)
	}
	_, err = mesh.Trainer.StartRun(ctx,
		&trainerv1.StartRunRequest{ManifestJson: manifest, Stages: stages, Replicas: replicas})
	if err != nil {
		t.Fatalf("start %s: %v", name, err)
	}
	return follow(ctx, t, mesh.Trainer, name)
}

// follow waits until a run is done.
func follow(ctx context.Context, t *testing.T, trainer trainerv1.TrainerServiceClient, name string) *trainerv1.Run {
	t.Helper()
	watch, err := trainer.WatchRun(ctx, &trainerv1.WatchRunRequest{Run: name})
	if err != nil {
		t.Fatalf("watch %s: %v", name, err)
	}
	var last *trainerv1.Run
	for {
		resp, err := watch.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("watch %s: %v", name, err)
		}
		last = resp.GetRun()
	}
	if last.GetState() != trainerv1.RunState_RUN_STATE_DONE {
		t.Fatalf("%s ended as %v after %d steps: %s", name, last.GetState(), last.GetStep(), last.GetError())
	}
	return last
}
