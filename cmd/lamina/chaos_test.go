package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/chaos"
)

// bundled is the path of the bundled model.
var bundled = filepath.Join("..", "..", "models", "lamina-tolstoy")

// asMember makes the test binary behave as the lamina binary, so that a fleet of processes needs no
// build.
const asMember = "LAMINA_TEST_AS_MEMBER"

func TestMain(m *testing.M) {
	if os.Getenv(asMember) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// TestChaos_StreamsOutliveKilledAndFrozenShards runs a fleet of processes. It is about texts and not about time, since
// the machine of a test may be busy: the limit for stalls is wide, and the load lasts until a fleet that is whole again
// late has had its second fault.
func TestChaos_StreamsOutliveKilledAndFrozenShards(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a fleet of processes")
	}
	t.Setenv(asMember, "1")
	manifest := filepath.Join(t.TempDir(), "manifest.json")
	text := `{
		"name": "test", "calm": "1s", "duration": "20s", "least_tokens_per_second": 10, "stall_limit": "45s",
		"load": {"streams": 4, "max_tokens": 32},
		"faults": [
			{"kind": "kill", "target": "shard-0-1", "at": "1s", "restart_after": "200ms"},
			{"kind": "pause", "target": "shard-1-0", "at": "4s", "for": "1s"}
		]}`
	if err := os.WriteFile(manifest, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"chaos", "--manifest", manifest, "--format", "json", "-m", bundled, "--logs", t.TempDir()}
	out, transcript, code := runVerb(t, "", args...)
	var got chaos.Result
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatalf("exit %d, %v: %s\n%s", code, err, out, transcript)
	}
	if code != 0 || !got.Pass || len(got.Verdicts) == 0 || got.Verdicts[0].Promise != "S1" {
		t.Fatalf("exit %d, verdicts %+v, crashes %v\n%s", code, got.Verdicts, got.Crashes, transcript)
	}
	if len(got.Faults) != 2 {
		t.Errorf("%d faults were injected, want 2\n%s", len(got.Faults), transcript)
	}
	for _, v := range got.Verdicts {
		if v.Failed+v.Refused > 0 || v.Identical != v.Compared || v.Compared == 0 {
			t.Errorf("got %+v\n%s", v, transcript)
		}
	}
	for _, want := range []string{"calm for", "kill shard-0-1 (pid", "pause shard-1-0"} {
		if !strings.Contains(transcript, want) {
			t.Errorf("the transcript lacks %q:\n%s", want, transcript)
		}
	}
}

func TestChaos_RefusesAManifestByFieldAndLine(t *testing.T) {
	manifest := filepath.Join(t.TempDir(), "manifest.json")
	if err := os.WriteFile(manifest, []byte("{\n\"calm\": 5}"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, stderr, code := runVerb(t, "", "chaos", "--manifest", manifest)
	if code != 2 || !strings.Contains(stderr, "calm: line 2: want a string") &&
		!strings.Contains(stderr, "calm: line 2: want a duration") {
		t.Errorf("exit %d: %s", code, stderr)
	}
}
