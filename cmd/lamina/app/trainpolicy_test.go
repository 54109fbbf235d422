package app_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
	trainerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/trainer/v1"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
)

// policyManifest returns the manifest of a run that samples answers from a tiny model and rewards them.
func policyManifest(t *testing.T, name string, grpo, change map[string]any) []byte {
	t.Helper()
	var rows []string
	for i := range 8 {
		rows = append(rows, fmt.Sprintf(`{"prompt_ids": [%d, %d, 7], "prompt": "p", "answer": "a"}`, 20+i, 60+i%3))
	}
	data := filepath.Join(t.TempDir(), "prompts.jsonl")
	if err := os.WriteFile(data, []byte(strings.Join(rows, "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	set := map[string]any{"objective": "grpo", "grpo": grpo, "data": map[string]any{"prompts": data}, "slots": 4,
		"sequence_len": 64, "adapter": map[string]any{"rank": 4}}
	for k, v := range change {
		set[k] = v
	}
	return adapterManifest(t, name, nil, set)
}

// trainPolicy trains on a mesh that serves the base of a run.
func trainPolicy(t *testing.T, base string, set kernel.Set[float32], raw []byte, serving, stages, replicas int,
	out string) *trainerv1.Run {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	m, _ := startMesh(t, ctx, app.MeshConfig{Model: base, Stages: serving, AdapterDir: t.TempDir(), Train: true,
		Trainers: stages * replicas, Kernels: app.Kernels{Set: set, Threads: 2},
		Runs: app.TrainerConfig{Dir: filepath.Dir(out), AllowPaths: []string{"/"}, AllowWrite: []string{"/"}}})
	conn, err := m.Trainer()
	if err != nil {
		t.Fatal(err)
	}
	client := trainerv1.NewTrainerServiceClient(conn)
	resp, err := client.StartRun(ctx, &trainerv1.StartRunRequest{ManifestJson: raw, Stages: uint32(stages),
		Replicas: uint32(replicas), Out: out})
	if err != nil {
		t.Fatal(err)
	}
	watch, err := client.WatchRun(ctx, &trainerv1.WatchRunRequest{Run: resp.GetRun()})
	if err != nil {
		t.Fatal(err)
	}
	for {
		r, err := watch.Recv()
		if err != nil {
			t.Fatal(err)
		}
		switch r.GetRun().GetState() {
		case trainerv1.RunState_RUN_STATE_DONE:
			return r.GetRun()
		case trainerv1.RunState_RUN_STATE_FAILED:
			t.Fatal(r.GetRun().GetError())
		default:
		}
	}
}

type policyMetrics struct {
	Loss       float64  `json:"loss"`
	Norm       float64  `json:"gradient_norm"`
	Reward     *float64 `json:"reward"`
	Tokens     float64  `json:"answer_tokens"`
	Mismatched *uint64  `json:"mismatched"`
	Difference float64  `json:"difference"`
	KL         float64  `json:"kl"`
}

// The log-probabilities that samplers report and those of training are the same bits, for every token of every step,
// whatever the architecture, the type of the KV cache and the layouts of serving and training. The weights do not
// depend on these layouts.
func TestTrain_PolicyIsExactlyOnPolicy(t *testing.T) {
	for i, name := range []string{"qwen2", "gemma2", "gpt-oss"} {
		kind := []kernel.KVType{kernel.KVFull, kernel.KVF16, kernel.KVQ8}[i]
		t.Run(fmt.Sprintf("%s, %v", name, kind), func(t *testing.T) {
			set := cpu.New(2)
			t.Cleanup(set.Close)
			raw := policyManifest(t, name, map[string]any{"group": 4, "max_tokens": 8, "kl": 0.01,
				"reward": []any{map[string]any{"regex": "[a-m]"}}}, map[string]any{"steps": 2})
			digest := ""
			for _, l := range [][3]int{{1, 1, 1}, {2, 2, 2}} {
				out := filepath.Join(t.TempDir(), "run")
				got := trainPolicy(t, sharedModel(t, "tiny", name), set.StoringKV(kind), raw, l[0], l[1], l[2], out)
				if digest == "" {
					digest = got.GetWeightsDigest()
				}
				if got.GetWeightsDigest() == "" || got.GetWeightsDigest() != digest {
					t.Errorf("layout %v: weights %s, want %s", l, got.GetWeightsDigest(), digest)
				}
				lines := metricsOf[policyMetrics](t, out)
				if len(lines) != 2 {
					t.Fatalf("%d steps", len(lines))
				}
				for step, m := range lines {
					if m.Mismatched == nil || *m.Mismatched != 0 || m.Difference != 0 {
						t.Errorf("layout %v, step %d: %v tokens have other bits, difference %v", l, step+1, *m.Mismatched,
							m.Difference)
					}
					if m.Tokens < 1 || step > 0 && !(m.KL > 0) {
						t.Errorf("layout %v, step %d: %+v", l, step+1, m)
					}
				}
			}
		})
	}
}

// The reward rises to nine tenths of its maximum.
func TestTrain_PolicyLearnsFromRewards(t *testing.T) {
	set := cpu.New(2)
	t.Cleanup(set.Close)
	raw := policyManifest(t, "qwen2", map[string]any{"group": 8, "max_tokens": 3,
		"reward": []any{map[string]any{"regex": "[a-m]"}}}, map[string]any{"steps": 14,
		"learning_rate": map[string]any{"type": "constant", "max": 0.03}})
	out := filepath.Join(t.TempDir(), "run")
	last := trainPolicy(t, sharedModel(t, "tiny", "qwen2"), set, raw, 1, 1, 1, out)
	lines := metricsOf[policyMetrics](t, out)
	first := *lines[0].Reward
	if !(first < 0.7) || !(last.GetReward() >= 0.9) || last.GetMismatched() != 0 {
		t.Errorf("reward %v at first, %v at the end, %d tokens mismatch", first, last.GetReward(), last.GetMismatched())
	}
	for step, m := range lines {
		t.Logf("step %d: reward %.3f, loss %.4f, norm %.3f", step+1, *m.Reward, m.Loss, m.Norm)
	}
	f, err := os.Open(filepath.Join(out, "rollouts.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	n := 0
	for rows := bufio.NewScanner(f); rows.Scan(); n++ {
		var row struct {
			IDs      []int32   `json:"ids"`
			Logprobs []float32 `json:"logprobs"`
		}
		err := json.Unmarshal(rows.Bytes(), &row)
		if err != nil || len(row.IDs) == 0 || len(row.IDs) != len(row.Logprobs) {
			t.Fatalf("row %d: %v, %+v", n, err, row)
		}
	}
	if n != 14*4*8 {
		t.Errorf("%d rollouts, want %d", n, 14*4*8)
	}
}
