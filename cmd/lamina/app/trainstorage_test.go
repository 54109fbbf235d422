package app_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestTrain_BFloat16StorageIsExactOverLayouts trains with matrices in bfloat16 and masters in float32.
func TestTrain_BFloat16StorageIsExactOverLayouts(t *testing.T) {
	sizes := func(storage string) map[string]any {
		return map[string]any{"model": map[string]any{"architecture": "llama", "layers": 4, "width": 16, "heads": 2,
			"ff": 24, "tied": true, "storage": storage}}
	}
	raw := manifest(t, "storage", sizes("bf16"))
	out := t.TempDir()
	first := train(t, raw, 1, 1, out, false)
	for _, l := range [][2]int{{2, 1}, {4, 1}, {1, 2}, {2, 4}} {
		got := train(t, raw, l[0], l[1], t.TempDir(), false)
		if got.GetWeightsDigest() != first.GetWeightsDigest() || got.GetLoss() != first.GetLoss() {
			t.Errorf("over %v: weights %s loss %v, over 1 x 1 %s %v", l, got.GetWeightsDigest(), got.GetLoss(),
				first.GetWeightsDigest(), first.GetLoss())
		}
	}
	for _, step := range []string{"step-00000006"} { // resume from the checkpoint before
		if err := os.RemoveAll(filepath.Join(out, "checkpoints", step)); err != nil {
			t.Fatal(err)
		}
	}
	if got := train(t, raw, 2, 2, out, true); got.GetWeightsDigest() != first.GetWeightsDigest() {
		t.Errorf("the resumed run has weights %s, the uninterrupted one %s", got.GetWeightsDigest(),
			first.GetWeightsDigest())
	}
	plain := train(t, manifest(t, "storage", sizes("f32")), 1, 1, t.TempDir(), false)
	if plain.GetWeightsDigest() == first.GetWeightsDigest() {
		t.Error("the storage changes nothing")
	}
	if diff := plain.GetLoss() - first.GetLoss(); diff > 0.02 || diff < -0.02 {
		t.Errorf("the loss is %v, in float32 %v", first.GetLoss(), plain.GetLoss())
	}
}

// TestTrain_ReplicasShareTheWritingOfCheckpoints looks at the files of a checkpoint of four replicas.
func TestTrain_ReplicasShareTheWritingOfCheckpoints(t *testing.T) {
	out := t.TempDir()
	train(t, manifest(t, "writers", nil), 1, 4, out, false)
	files, err := filepath.Glob(filepath.Join(out, "checkpoints", "step-00000006", "*.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	bytes := map[string]int64{}
	var all int64
	for _, f := range files {
		info, err := os.Stat(f)
		if err != nil {
			t.Fatal(err)
		}
		_, replica, _ := strings.Cut(filepath.Base(f), "-replica-")
		bytes[replica[:min(3, len(replica))]] += info.Size()
		all += info.Size()
	}
	if len(bytes) != 4 {
		t.Fatalf("%d replicas have written files: %v", len(bytes), files)
	}
	for replica, n := range bytes {
		if 10*n > 4*all {
			t.Errorf("replica %q has written %d of %d bytes", replica, n, all)
		}
	}
}
