package sim_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestPlanted_BugsAreCaught runs the seeds on sources with a bug each (planted/*.patch) and makes sure that
// one of them fails. The sources are replaced by an overlay of the go command, so that nothing of this is
// in the program. LAMINA_SIM_PLANTED names a single bug.
func TestPlanted_BugsAreCaught(t *testing.T) {
	only := os.Getenv("LAMINA_SIM_PLANTED")
	if os.Getenv("LAMINA_SLOW") == "" && only == "" {
		t.Skip("set LAMINA_SLOW=1: every bug is a build of its own")
	}
	files, err := filepath.Glob("planted/*.patch")
	if err != nil || len(files) < 25 {
		t.Fatalf("%d planted bugs: %v", len(files), err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".patch")
		if only != "" && name != only {
			continue
		}
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command("go", "test", "-count=1", "-vet=off", "-overlay", overlay(t, file), ".", "-run",
				"^TestSim_(Seeds|Fairness)$")
			cmd.Env = append(os.Environ(), "LAMINA_SLOW=", "LAMINA_SIM_SEEDS=16000", "LAMINA_SIM_TRANSCRIPT=")
			out, err := cmd.CombinedOutput()
			_, violation, found := strings.Cut(string(out), ": seed ")
			if !found {
				violation = string(out)
			}
			violation, _, _ = strings.Cut(violation, "\n")
			switch {
			case err == nil:
				t.Error("the bug is not noticed")
			case !found && !strings.Contains(string(out), "panic: "):
				t.Errorf("the test fails for another reason: %s", out)
			default:
				t.Logf("seed %.200s", violation)
			}
		})
	}
}

// overlay applies a patch to copies of the sources and returns the file for the flag -overlay.
func overlay(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	replace := map[string]string{}
	for i, hunk := range strings.Split(string(text), "\n--- ")[1:] {
		name, lines, _ := strings.Cut(hunk, "\n")
		source := filepath.Join(root, filepath.FromSlash(name))
		from := source
		if patched := replace[source]; patched != "" { // by an earlier hunk
			from = patched
		}
		code, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		var old, changed strings.Builder
		for _, line := range strings.Split(strings.TrimSuffix(lines, "\n"), "\n") {
			part := &old
			if line[0] == '+' {
				part = &changed
			}
			part.WriteString(line[1:] + "\n")
		}
		before := string(code)
		if n := strings.Count(before, old.String()); n != 1 {
			t.Fatalf("%s: hunk %d occurs %d times in %s", file, i+1, n, name)
		}
		replace[source] = filepath.Join(dir, fmt.Sprintf("%d.go", i))
		after := strings.Replace(before, old.String(), changed.String(), 1)
		if err := os.WriteFile(replace[source], []byte(after), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	config, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(out, config, 0o600); err != nil {
		t.Fatal(err)
	}
	return out
}
