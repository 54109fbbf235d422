package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const planHosts = `{"hosts": [
	{"id": "big", "memory_bytes": 3000000, "layer_ms": 1, "hop_ms": 0.1, "class": "cpu/7"},
	{"id": "small", "memory_bytes": 400000, "layer_ms": 0.5, "hop_ms": 0.1, "class": "cpu/7", "bandwidth_mbps": 1000},
	{"id": "slow", "memory_bytes": 9000000, "layer_ms": 90, "hop_ms": 9, "class": "cpu/7", "zone": "far"},
	{"id": "other", "memory_bytes": 300000, "layer_ms": 0.01, "hop_ms": 0.1, "class": "cuda/1"}
]}`

// planArgs returns arguments with a model and the hosts on standard input.
func planArgs(model string, more ...string) []string {
	return append([]string{"plan", "-m", model, "--hosts", "-", "--format", "json", "--kv-least", "64"}, more...)
}

// checkPlan checks that every pipeline covers the layers once and that no host holds too much.
func checkPlan(t *testing.T, p planReport, layers int) {
	t.Helper()
	most := map[string]int64{"big": 3000000, "small": 400000, "slow": 9000000, "other": 300000}
	if len(p.Pipelines) == 0 {
		t.Fatalf("no pipeline: %+v", p)
	}
	for _, l := range p.Pipelines {
		at := 0
		for _, s := range l.Stages {
			if s.Lo != at || s.Hi <= s.Lo || s.MemoryBytes <= 0 || float64(s.MemoryBytes) > 0.8*float64(most[s.Host]) {
				t.Errorf("stage %+v begins at %d", s, at)
			}
			at = s.Hi
		}
		if at != layers || !(l.TokensPerSecond > 0 && l.TTFTMS > 0) {
			t.Errorf("pipeline %+v ends at %d, want %d", l, at, layers)
		}
	}
}

func TestPlan_UnequalHostsAndReasons(t *testing.T) {
	model := sharedPath(t, "models/stories260K/stories260K-f32.gguf")
	p := verbJSON[planReport](t, planHosts, planArgs(model)...)
	checkPlan(t, p, 5)
	reasons := map[string]string{}
	for _, l := range p.LeftOut {
		reasons[l.Host] = l.Reason
	}
	if !strings.Contains(reasons["slow"], "slow the chain") || !strings.Contains(reasons["other"], "cuda/1") {
		t.Errorf("left out: %v", reasons)
	}
	text := verbOK(t, planHosts, "plan", "-m", model, "--hosts", "-", "--kv-least", "64")
	for _, words := range []string{"big", "small", "tokens/s for one stream", "slow the chain", "load"} {
		if !strings.Contains(text, words) {
			t.Errorf("the text lacks %q:\n%s", words, text)
		}
	}
	// The other goals, and constraints.
	for _, more := range [][]string{
		{"--goal", "throughput"}, {"--goal", "fewest-hosts"}, {"--mix-classes"}, {"--pin", "slow"},
		{"--avoid", "small"}, {"--at-most", "1"}, {"--zone", "far"}, {"--replicas", "2"},
	} {
		got := verbJSON[planReport](t, planHosts, planArgs(model, more...)...)
		checkPlan(t, got, 5)
		used := map[string]bool{}
		for _, l := range got.Pipelines {
			for _, s := range l.Stages {
				used[s.Host] = true
			}
		}
		switch more[len(more)-1] {
		case "slow", "far":
			if !used["slow"] {
				t.Errorf("%v: %+v", more, got.Pipelines)
			}
		case "small":
			if used["small"] {
				t.Errorf("%v: %+v", more, got.Pipelines)
			}
		case "1", "fewest-hosts":
			if len(got.Pipelines[0].Stages) != 1 {
				t.Errorf("%v: %+v", more, got.Pipelines)
			}
		case "2", "throughput":
			if len(got.Pipelines) < 2 {
				t.Errorf("%v: %+v", more, got.Pipelines)
			}
		}
	}
}

// The file may end behind its header: the plan is the same.
func TestPlan_HeaderOnly(t *testing.T) {
	model := sharedPath(t, "models/stories260K/stories260K-Q8_0.gguf")
	whole := verbJSON[planReport](t, planHosts, planArgs(model)...)
	text, err := os.ReadFile(model)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "stories260K-Q8_0.gguf")
	if err := os.WriteFile(path, text[:len(text)-len(text)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	verbFails(t, 1, "outside the file", "", "logits", "-m", path, "--ids", "1")
	cut := verbJSON[planReport](t, planHosts, planArgs(path)...)
	if len(cut.Pipelines) != 1 || len(whole.Pipelines) != 1 || cut.WeightBytes != whole.WeightBytes ||
		cut.Pipelines[0].TokenMS != whole.Pipelines[0].TokenMS {
		t.Errorf("of the header %+v, of the file %+v", cut, whole)
	}
	if err := os.WriteFile(path, text[:100], 0o600); err != nil {
		t.Fatal(err)
	}
	verbFails(t, 1, "at byte", planHosts, planArgs(path)...)
}

// A plan that was printed is repaired: only the layers of the lost host move.
func TestPlan_CurrentIsRepaired(t *testing.T) {
	model := sharedPath(t, "models/stories260K/stories260K-f32.gguf")
	path := filepath.Join(t.TempDir(), "plan.json")
	text := verbOK(t, planHosts, planArgs(model, "--pin", "big", "--pin", "small")...)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	was := readJSON[planReport](t, path)
	lost := 0
	for _, s := range was.Pipelines[0].Stages {
		if s.Host == "small" {
			lost = s.Hi - s.Lo
		}
	}
	same := verbJSON[planReport](t, planHosts, planArgs(model, "--current", path)...)
	if len(same.Moves) != 0 {
		t.Errorf("without a loss: %+v", same.Moves)
	}
	hosts := strings.Replace(planHosts, `"small"`, `"new"`, 1)
	hosts = strings.Replace(hosts, `400000`, `399000`, 1)
	now := verbJSON[planReport](t, hosts, planArgs(model, "--current", path)...)
	if lost == 0 || now.LayersToLoad != lost {
		t.Errorf("%d layers are lost, and the moves are %+v", lost, now.Moves)
	}
	for _, bad := range []string{"[]", `{"pipelines": [{"stages": [{"host": "big", "lo": 0, "hi": 4}]}]}`,
		`{"pipelines": [{"stages": [{"host": "big", "lo": -1, "hi": 5}]}]}`} {
		if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		verbFails(t, 2, "current", planHosts, planArgs(model, "--current", path)...)
	}
}

func TestPlan_ErrorsNameTheField(t *testing.T) {
	model := sharedPath(t, "models/stories260K/stories260K-f32.gguf")
	for _, c := range []struct{ words, stdin, more string }{
		{"hosts[0].layer_ms", `{"hosts": [{"id": "a", "memory_bytes": 1, "layer_ms": -1, "hop_ms": 1}]}`, ""},
		{"hosts", `{"hosts": [`, ""},
		{"goal", planHosts, "--goal=fast"},
		{"pin", planHosts, "--pin=nobody"},
		{"headroom", planHosts, "--headroom=1.5"},
		{"kv-least", planHosts, "--kv-positions=1"},
		{"prompt", planHosts, "--prompt-tokens=-1"},
	} {
		args := planArgs(model)
		if c.more != "" {
			args = append(args, c.more)
		}
		verbFails(t, 2, c.words, c.stdin, args...)
	}
	// Too little memory is no error of the request.
	verbFails(t, 1, "not enough memory",
		`{"hosts": [{"id": "a", "memory_bytes": 1, "layer_ms": 1, "hop_ms": 1}]}`, planArgs(model)...)
}
