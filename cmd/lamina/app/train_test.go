package app_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
	trainerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/trainer/v1"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/ref"
)

// manifest returns the manifest of a small run on a text that the test writes.
func manifest(t *testing.T, name string, change map[string]any) []byte {
	t.Helper()
	text := filepath.Join(t.TempDir(), "text.txt")
	if err := os.WriteFile(text, []byte(strings.Repeat("one two three four five six seven eight nine ten\n", 60)),
		0o600); err != nil {
		t.Fatal(err)
	}
	m := map[string]any{
		"name": name, "data": map[string]any{"text": text, "validation_fraction": 0.1},
		"vocabulary": map[string]any{"type": "char"},
		"model": map[string]any{"architecture": "llama", "layers": 4, "width": 16, "heads": 2, "ff": 24,
			"tied": true},
		"slots": 4, "slot_sequences": 2, "sequence_len": 16, "steps": 6,
		"learning_rate": map[string]any{"max": 0.01, "min": 0.001, "warmup": 2},
		"decay":         0.1, "clip": 1, "seed": 3, "checkpoint_every": 2,
	}
	for k, v := range change {
		m[k] = v
	}
	raw, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// train runs a manifest to its end on a new mesh.
func train(t *testing.T, raw []byte, stages, replicas int, out string, resume bool) *trainerv1.Run {
	t.Helper()
	run := trainOn(t, raw, stages, replicas, out, resume)
	if run.GetState() == trainerv1.RunState_RUN_STATE_FAILED {
		t.Fatalf("run failed: %s", run.GetError())
	}
	return run
}

// trainOn is train on shards with kernel sets of their own, in order. The run may fail.
func trainOn(
	t *testing.T, raw []byte, stages, replicas int, out string, resume bool, sets ...kernel.Set[float32],
) *trainerv1.Run {
	t.Helper()
	limit := 5 * time.Minute
	var kernels []app.Kernels
	for _, set := range sets {
		kernels, limit = append(kernels, app.Kernels{Set: set}), time.Hour // an interpreter may compute
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	m, err := app.Start(ctx,
		app.MeshConfig{Kernels: app.Kernels{Set: ref.New[float32]()}, Train: true, Trainers: stages * replicas,
			StageKernels: kernels,
			Runs: app.TrainerConfig{Dir: filepath.Dir(out), AllowPaths: []string{"/"}, AllowWrite: []string{"/"},
				Transient: true}})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	conn, err := m.Trainer()
	if err != nil {
		t.Fatal(err)
	}
	client := trainerv1.NewTrainerServiceClient(conn)
	resp, err := client.StartRun(ctx,
		&trainerv1.StartRunRequest{ManifestJson: raw, Stages: uint32(stages), Replicas: uint32(replicas), Out: out,
			Resume: resume})
	if err != nil {
		t.Fatal(err)
	}
	watch, err := client.WatchRun(ctx, &trainerv1.WatchRunRequest{Run: resp.GetRun()})
	if err != nil {
		t.Fatal(err)
	}
	var last *trainerv1.Run
	for {
		r, err := watch.Recv()
		if errors.Is(err, io.EOF) {
			return last
		}
		if err != nil {
			t.Fatal(err)
		}
		last = r.GetRun()
	}
}

func TestTrain_AnyLayoutGivesTheSameWeights(t *testing.T) {
	for _, architecture := range []string{"llama", "gpt2"} {
		raw := manifest(t, "layouts-"+architecture, map[string]any{
			"model": map[string]any{"architecture": architecture, "layers": 4, "width": 16, "heads": 2, "ff": 24,
				"tied": true},
		})
		var first *trainerv1.Run
		for _, l := range [][2]int{{1, 1}, {2, 1}, {4, 1}, {1, 2}, {2, 2}, {1, 4}, {4, 4}} {
			got := train(t, raw, l[0], l[1], t.TempDir(), false)
			if first == nil {
				first = got
			}
			if got.GetWeightsDigest() == "" || got.GetWeightsDigest() != first.GetWeightsDigest() ||
				got.GetLoss() != first.GetLoss() || got.GetValidationLoss() != first.GetValidationLoss() {
				t.Errorf("%s over %d stages x %d replicas: weights %s loss %v, over 1 x 1 %s %v", architecture, l[0],
					l[1], got.GetWeightsDigest(), got.GetLoss(), first.GetWeightsDigest(), first.GetLoss())
			}
		}
	}
}

func TestTrain_ResumeOnAnotherLayoutIsExact(t *testing.T) {
	raw := manifest(t, "resume", nil)
	calm := train(t, raw, 1, 1, t.TempDir(), false)
	out := t.TempDir()
	train(t, raw, 1, 1, out, false)
	// Remove the last checkpoint and leave damaged files, as a crash may.
	last := filepath.Join(out, "checkpoints", "step-00000006")
	if err := os.Truncate(filepath.Join(last, "moment1-001-of-001.safetensors"), 100); err != nil {
		t.Fatal(err)
	}
	resumed := train(t, raw, 2, 2, out, true)
	if resumed.GetWeightsDigest() != calm.GetWeightsDigest() {
		t.Errorf("the resumed run has weights %s, the uninterrupted one %s", resumed.GetWeightsDigest(),
			calm.GetWeightsDigest())
	}
	text, err := os.ReadFile(filepath.Join(out, "metrics.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	if lines := strings.Count(string(text), "\n"); lines != 6 {
		t.Errorf("metrics.jsonl has %d lines after a resume, want 6:\n%s", lines, text)
	}
}

func TestTrain_ModelIsServed(t *testing.T) {
	out := t.TempDir()
	run := train(t, manifest(t, "served", map[string]any{"dtype": "BF16", "steps": 60}), 2, 1, out, false)
	if run.GetLoss() > 1.5 {
		t.Errorf("loss after 60 steps is %.3f", run.GetLoss())
	}
	router := mesh(t, app.MeshConfig{Model: run.GetModelPath(), Stages: 2})
	if got := generateText(t, router, "one two three", 12); got == "" {
		t.Error("the trained model generates no text")
	}
}
