package sim_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/internal/planted"
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
			cmd := exec.Command("go", "test", "-count=1", "-vet=off", "-overlay", planted.Overlay(t, "../..", file),
				".", "-run", "^TestSim_(Seeds|Fairness)$")
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
