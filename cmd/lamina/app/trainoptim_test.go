package app_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	trainerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/trainer/v1"
	"github.com/lamina-mesh/lamina/pkg/weights"
)

// optimizers lists settings of optimizers, learning rates and parameters as parts of manifests.
func optimizers() map[string]map[string]any {
	rule := func(match string, kv ...any) map[string]any {
		out := map[string]any{"match": match}
		for i := 0; i < len(kv); i += 2 {
			out[kv[i].(string)] = kv[i+1]
		}
		return out
	}
	return map[string]map[string]any{
		"muon": {"optimizer": map[string]any{"type": "muon"},
			"learning_rate": map[string]any{"type": "wsd", "max": 0.01, "warmup": 2, "decay": 2}},
		"sgd": {"optimizer": map[string]any{"type": "sgd", "nesterov": true},
			"learning_rate": map[string]any{"type": "linear", "max": 0.1, "min": 0.01}},
		"sgd without momentum": {"optimizer": map[string]any{"type": "sgd", "momentum": 0},
			"learning_rate": map[string]any{"type": "constant", "max": 0.1}},
		"rules": {"optimizer": map[string]any{"type": "muon", "scale": "original"}, "decay_matrices_only": true,
			"parameters": []any{
				rule("model.layers.*.mlp.*", "learning_rate", 0.5, "decay", 0.3), rule("*norm*", "decay", 0.05),
				rule("model.layers.1.*", "optimizer", "adamw"), rule("*.q_proj.*", "optimizer", "sgd"),
			}},
		"z-loss": {"z_loss": 0.01},
		"dropout": {"dropout": map[string]any{"attention": 0.1, "residual": 0.2, "embedding": 0.1},
			"recompute": "layers"},
		"frozen embedding": {"parameters": []any{rule("model.embed_tokens.*", "trainable", false)}},
		"frozen stage": {"schedule": "zero-bubble", "parameters": []any{rule("*", "trainable", false),
			rule("model.layers.0.*", "trainable", true), rule("model.layers.1.mlp.*", "trainable", true)}},
	}
}

// TestTrain_AnyOptimizerGivesTheSameWeights runs over layouts and resumes on another one, from a
// checkpoint in the middle.
func TestTrain_AnyOptimizerGivesTheSameWeights(t *testing.T) {
	seen := map[string]string{}
	for name, with := range optimizers() {
		raw := manifest(t, "optim", with)
		f := newTrainFleet(t, 4)
		calmOut := t.TempDir()
		calm := f.watch(&trainerv1.StartRunRequest{ManifestJson: raw, Out: calmOut}, nil)
		for _, l := range [][2]uint32{{2, 2}, {4, 1}} {
			out := t.TempDir()
			got := f.watch(&trainerv1.StartRunRequest{ManifestJson: raw, Stages: l[0], Replicas: l[1], Out: out}, nil)
			same(t, fmt.Sprintf("%s over %v", name, l), out, calmOut, got, calm)
			last := filepath.Join(out, "checkpoints", "step-00000006")
			if err := os.RemoveAll(last); err != nil {
				t.Fatal(err)
			}
			got = f.watch(&trainerv1.StartRunRequest{ManifestJson: raw, Stages: 2, Out: out, Resume: true}, nil)
			same(t, fmt.Sprintf("%s over %v, resumed", name, l), out, calmOut, got, calm)
		}
		if other := seen[calm.GetWeightsDigest()]; other != "" {
			t.Errorf("%s and %s give the same weights", name, other)
		}
		seen[calm.GetWeightsDigest()] = name
	}
}

// The weights of AdamW under a cosine are those of the first releases, bit for bit.
func TestTrain_AdamWWeightsStayTheSame(t *testing.T) {
	for want, with := range map[string]map[string]any{
		"abd3fe7aed6e6f76c40104f869265b51f5c0c059877e31bf5d3892e6f2ccd382": nil,
		"42d3aff5c6673186a47906fc43ce1e296251769e3624a9a3d3e157149a8bb052": {"decay_matrices_only": true,
			"betas": []float64{0.8, 0.99}, "epsilon": 1e-6},
	} {
		run := train(t, manifest(t, "adamw", with), 2, 1, t.TempDir(), false)
		if got := digestOfModel(t, run.GetModelPath()); got != want {
			t.Errorf("%v: weights are %s, want %s", with, got, want)
		}
	}
}

// digestOfModel returns the SHA-256 over the names and bytes of the weights, in name order.
func digestOfModel(t *testing.T, dir string) string {
	t.Helper()
	source, err := weights.OpenSafetensors(dir)
	if err != nil {
		t.Fatal(err)
	}
	h := sha256.New()
	for _, name := range source.Names() {
		data, err := source.Data(name)
		if err != nil {
			t.Fatal(err)
		}
		h.Write(append([]byte(name), 0))
		h.Write(data)
	}
	if err := source.Close(); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(h.Sum(nil))
}

func TestTrain_FrozenParametersKeepTheirWeights(t *testing.T) {
	rules := []any{
		map[string]any{"match": "*", "trainable": false},
		map[string]any{"match": "*.mlp.*", "trainable": true},
	}
	read := func(steps int) map[string][]byte {
		run := train(t, manifest(t, "frozen", map[string]any{"steps": steps, "parameters": rules}), 2, 2, t.TempDir(),
			false)
		raw, err := os.ReadFile(filepath.Join(run.GetModelPath(), "model.safetensors"))
		if err != nil {
			t.Fatal(err)
		}
		source, err := weights.ParseSafetensors("model.safetensors", raw)
		if err != nil {
			t.Fatal(err)
		}
		out := map[string][]byte{}
		for _, name := range source.Names() {
			if out[name], err = source.Data(name); err != nil {
				t.Fatal(err)
			}
		}
		if want := uint64(4 * 3 * 16 * 24); run.GetParameters() != want {
			t.Errorf("%d trainable parameters, want %d", run.GetParameters(), want)
		}
		return out
	}
	early, late := read(1), read(6)
	if len(early) < 30 {
		t.Fatalf("%d tensors", len(early))
	}
	for name, data := range early {
		if trained := !bytes.Equal(data, late[name]); trained != strings.Contains(name, ".mlp.") {
			t.Errorf("%s has changed: %v", name, trained)
		}
	}
}
