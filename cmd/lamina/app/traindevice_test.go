package app_test

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	trainerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/trainer/v1"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
	"github.com/lamina-mesh/lamina/pkg/kernel/ref"
)

// deviceManifest returns the manifest of a run that an interpreter can compute.
func deviceManifest(t *testing.T, name string, change map[string]any) []byte {
	t.Helper()
	text := filepath.Join(t.TempDir(), "text.txt")
	if err := os.WriteFile(text, []byte(strings.Repeat("abc bca cab ", 10)), 0o600); err != nil {
		t.Fatal(err)
	}
	m := map[string]any{
		"name": name, "data": map[string]any{"text": text, "validation_fraction": 0.1},
		"vocabulary": map[string]any{"type": "char"},
		"model": map[string]any{"architecture": "llama", "layers": 2, "width": 8, "heads": 2, "ff": 12,
			"tied": true},
		"slots": 2, "slot_sequences": 1, "sequence_len": 4, "steps": 2,
		"learning_rate": map[string]any{"type": "constant", "max": 0.01},
		"decay":         0.1, "clip": 1, "seed": 3, "checkpoint_every": 1,
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

// done checks that a run has ended well.
func done(t *testing.T, what string, run *trainerv1.Run) {
	t.Helper()
	if run.GetState() != trainerv1.RunState_RUN_STATE_DONE || run.GetWeightsDigest() == "" {
		t.Fatalf("%s: the run has ended as %v: %s", what, run.GetState(), run.GetError())
	}
}

// A run on GPUs has the same weights on one stage, two stages and two replicas, and when it is resumed on another
// layout, and the losses of the reference.
func TestTrain_OnGPUs(t *testing.T) {
	set := kernel.Set[float32](onGPU(t, 0, nil))
	raw := deviceManifest(t, "gpus", nil)
	want := train(t, raw, 1, 1, t.TempDir(), false)
	out := t.TempDir()
	first := trainOn(t, raw, 1, 1, out, false, set)
	done(t, "one stage", first)
	for _, f := range [][2]float64{{first.GetLoss(), want.GetLoss()},
		{first.GetValidationLoss(), want.GetValidationLoss()}} {
		if !(math.Abs(f[0]-f[1]) <= 1e-4*f[1]) {
			t.Errorf("a loss is %v, that of the reference %v", f[0], f[1])
		}
	}
	same := func(what string, got *trainerv1.Run) {
		t.Helper()
		done(t, what, got)
		if got.GetWeightsDigest() != first.GetWeightsDigest() || got.GetLoss() != first.GetLoss() ||
			got.GetValidationLoss() != first.GetValidationLoss() {
			t.Errorf("%s: weights %s loss %v, on one stage %s %v", what, got.GetWeightsDigest(), got.GetLoss(),
				first.GetWeightsDigest(), first.GetLoss())
		}
	}
	same("two stages", trainOn(t, raw, 2, 1, t.TempDir(), false, set, set))
	same("two replicas", trainOn(t, raw, 1, 2, t.TempDir(), false, set, set))
	if err := os.RemoveAll(filepath.Join(out, "checkpoints", "step-00000002")); err != nil {
		t.Fatal(err)
	}
	same("a resume on two stages", trainOn(t, raw, 2, 1, out, true, set, set))
}

// An adapter that is trained on a GPU has the same weights on one stage and on two, over the weights as they lie and
// over decoded ones.
func TestTrain_AdapterOnGPUs(t *testing.T) {
	set := kernel.Set[float32](onGPU(t, 0, nil))
	rows := []string{`{"ids": [5, 9, 2, 7, 3], "trained_from": 2}`, `{"ids": [8, 1, 6, 4], "trained_from": 1}`}
	raw := adapterManifest(t, "llama", rows, map[string]any{
		"adapter": map[string]any{"rank": 2, "dropout": 0.1, "target_modules": []string{"q_proj", "down_proj"}},
		"slots":   1, "sequence_len": 6, "steps": 1,
	})
	want := train(t, raw, 1, 1, t.TempDir(), false)
	one := trainOn(t, raw, 1, 1, t.TempDir(), false, set)
	done(t, "one stage", one)
	if !(math.Abs(one.GetLoss()-want.GetLoss()) <= 1e-3*want.GetLoss()) {
		t.Errorf("the loss is %v, that of the reference %v", one.GetLoss(), want.GetLoss())
	}
	two := trainOn(t, raw, 2, 1, t.TempDir(), false, set, set)
	done(t, "two stages", two)
	if one.GetWeightsDigest() != two.GetWeightsDigest() {
		t.Errorf("two stages give weights %s, one %s", two.GetWeightsDigest(), one.GetWeightsDigest())
	}
}

// A run over a GPU and a processor has to allow it, and then repeats itself bit for bit.
func TestTrain_OnAGPUAndAProcessor(t *testing.T) {
	gpu, processor := kernel.Set[float32](onGPU(t, 0, nil)), cpu.New(1)
	t.Cleanup(processor.Close)
	refused := trainOn(t, deviceManifest(t, "mixed", nil), 2, 1, t.TempDir(), false, gpu, processor)
	if refused.GetState() != trainerv1.RunState_RUN_STATE_FAILED ||
		!strings.Contains(refused.GetError(), "kernel class cuda/2/sm_80 differs from "+processor.Class()) {
		t.Errorf("a run that does not allow it ends as %v: %s", refused.GetState(), refused.GetError())
	}
	raw := deviceManifest(t, "mixed", map[string]any{"mix_classes": true})
	want := trainOn(t, raw, 2, 1, t.TempDir(), false, ref.New[float32](), ref.New[float32]())
	first := trainOn(t, raw, 2, 1, t.TempDir(), false, gpu, processor)
	done(t, "a GPU and a processor", first)
	if !(math.Abs(first.GetLoss()-want.GetLoss()) <= 1e-4*want.GetLoss()) {
		t.Errorf("the loss is %v, that of the reference %v", first.GetLoss(), want.GetLoss())
	}
	again := trainOn(t, raw, 2, 1, t.TempDir(), false, gpu, processor)
	if again.GetWeightsDigest() != first.GetWeightsDigest() || again.GetLoss() != first.GetLoss() {
		t.Errorf("a second run has weights %s, the first one %s", again.GetWeightsDigest(), first.GetWeightsDigest())
	}
}
