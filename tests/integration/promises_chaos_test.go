package integration_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// chaosResult is what `lamina chaos --format json` says of a run.
type chaosResult struct {
	Pass     bool `json:"pass"`
	Missed   int  `json:"missed"`
	Promises []struct {
		Promise   string   `json:"promise"`
		Faults    int      `json:"faults"`
		Pass      bool     `json:"pass"`
		Why       []string `json:"why"`
		Running   int      `json:"running"`
		Streams   int      `json:"streams"`
		Failed    int      `json:"failed"`
		Refused   int      `json:"refused"`
		Compared  int      `json:"compared"`
		Identical int      `json:"identical"`
		Stalls    struct {
			P99 float64 `json:"p99"`
			Max float64 `json:"max"`
		} `json:"stall_ms"`
		Detected struct {
			P50 float64 `json:"p50"`
			Max float64 `json:"max"`
		} `json:"detect_ms"`
	} `json:"promises"`
	Crashes []string `json:"crashes"`
}

// chaosRun runs a manifest and checks that all of its promises held.
func chaosRun(t *testing.T, manifest string) {
	t.Helper()
	if testing.Short() {
		t.Skip("starts a fleet of processes")
	}
	binary, err := build()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(
		t.Context(),
		binary,
		"chaos",
		"--manifest",
		manifest,
		"--format",
		"json",
		"-m",
		bundled(t),
		"--logs",
		t.TempDir(),
	)
	var out, transcript bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &transcript
	failed := cmd.Run()
	var got chaosResult
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatalf("%v, %v: %s\n%s", failed, err, &out, &transcript)
	}
	for _, p := range got.Promises {
		t.Logf(
			"%-4s %d faults, %d streams hit, %d ended, %d failed, %d of %d identical, stalls p99 %.0f ms, max %.0f ms, "+
				"detected p50 %.0f ms, max %.0f ms",
			p.Promise,
			p.Faults,
			p.Running,
			p.Streams,
			p.Failed+p.Refused,
			p.Identical,
			p.Compared,
			p.Stalls.P99,
			p.Stalls.Max,
			p.Detected.P50,
			p.Detected.Max,
		)
		for _, why := range p.Why {
			t.Errorf("%s: %s", p.Promise, why)
		}
	}
	if failed != nil || !got.Pass || got.Missed > 0 || len(got.Promises) == 0 {
		t.Errorf("%v, %d faults missed, crashes %v\n%s", failed, got.Missed, got.Crashes, &transcript)
	}
}

// S1, S2, S3, S11 and S12 in one run: shards are killed, frozen and cut off each way, a sampler is killed, a
// shard is restarted, and the registry comes back empty. The limits are wider than the promised
// ones, because the run shares the processors with other tests. The load goes on after the last fault: a slow machine
// takes longer to be whole again after each.
func TestPromise_S1_S2_S3_S11_S12_MembersFail(t *testing.T) {
	if slow() {
		t.Skip("the long runs do the same and more")
	}
	faults := []string{
		`{"kind": "kill", "target": "shard-*", "at": "500ms", "every": "2s", "times": 2, "restart_after": "200ms"}`,
		`{"kind": "pause", "target": "shard-*", "at": "4s", "for": "1s"}`,
		`{"kind": "partition", "target": "shard-*", "direction": "in", "at": "6s", "for": "1s"}`,
		`{"kind": "partition", "target": "shard-*", "direction": "out", "at": "8s", "for": "1s"}`,
		`{"kind": "kill", "target": "sampler-*", "at": "10s", "restart_after": "500ms"}`,
		`{"kind": "restart", "target": "shard-*", "at": "12s"}`,
		`{"kind": "kill", "target": "registry", "at": "14s", "restart_after": "1s"}`,
	}
	chaosRun(t, manifestFile(t, `"calm": "1s", "duration": "45s", "stall_limit": "45s", "least_tokens_per_second": 5,
		"load": {"timeout": "5m"}`, faults))
}

func manifestFile(t *testing.T, fields string, faults []string) string {
	t.Helper()
	text := fmt.Sprintf(`{"name": %q, "fleet": {"samplers": 2, "tokenizers": 2}, %s, "faults": [%s]}`, t.Name(), fields,
		strings.Join(faults, ",\n"))
	path := filepath.Join(t.TempDir(), "manifest.json")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// The long runs: a random shard is killed 30 times, then every manifest of the examples runs.
func TestPromise_S1_ThirtyKilledShards(t *testing.T) {
	if !slow() {
		t.Skip("takes three minutes; LAMINA_SLOW=1 runs it")
	}
	chaosRun(t, manifestFile(t, `"calm": "5s", "duration": "200s"`, []string{
		`{"kind": "kill", "target": "shard-*", "at": "2s", "every": "5s", "times": 30, "restart_after": "500ms"}`,
	}))
}

func TestPromise_S2_FifteenSecondsOfSilence(t *testing.T) {
	if !slow() {
		t.Skip("takes two minutes; LAMINA_SLOW=1 runs it")
	}
	chaosRun(t, manifestFile(t, `"calm": "5s", "duration": "140s"`, []string{
		`{"kind": "pause", "target": "shard-*", "at": "2s", "every": "20s", "times": 2, "for": "15s"}`,
		`{"kind": "partition", "target": "shard-*", "direction": "in", "at": "45s", "for": "15s"}`,
		`{"kind": "partition", "target": "shard-*", "direction": "out", "at": "65s", "for": "15s"}`,
		`{"kind": "partition", "target": "shard-*", "at": "85s", "for": "15s"}`,
	}))
}

func TestPromise_S3_SamplerDies(t *testing.T) {
	if !slow() {
		t.Skip("takes a minute; LAMINA_SLOW=1 runs it")
	}
	var prompts []string
	for i := range 12 {
		more := `"response_format": {"type": "json_schema", "json_schema": {"name": "person", "schema": ` + person + `}}`
		if i%2 == 0 {
			more = `"n": 2`
		}
		prompts = append(prompts,
			fmt.Sprintf(`{"prompt": "The prince (%d)", "temperature": 0.9, "seed": %d, %s}`, i, i, more))
	}
	chaosRun(t, manifestFile(t, fmt.Sprintf(`"calm": "5s", "duration": "60s", "load": {"prompts": [%s]}`,
		strings.Join(prompts, ", ")), []string{
		`{"kind": "kill", "target": "sampler-*", "at": "2s", "every": "6s", "times": 4, "restart_after": "1s"}`,
		`{"kind": "kill", "target": "shard-*", "at": "28s", "every": "5s", "times": 4, "restart_after": "500ms",
			"promise": "S3"}`,
	}))
}

func TestPromise_Examples(t *testing.T) {
	if !slow() {
		t.Skip("takes ten minutes; LAMINA_SLOW=1 runs it")
	}
	manifests, err := filepath.Glob(filepath.Join(root(t), "examples", "chaos", "*.json"))
	if err != nil || len(manifests) == 0 {
		t.Fatal(manifests, err)
	}
	slices.Sort(manifests)
	for _, manifest := range manifests {
		t.Run(strings.TrimSuffix(filepath.Base(manifest), ".json"), func(t *testing.T) { chaosRun(t, manifest) })
	}
}
