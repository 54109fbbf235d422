package sim_test

import (
	"bytes"
	"os"
	"strconv"
	"testing"

	"github.com/lamina-mesh/lamina/tests/sim"
)

// env returns a number from the environment.
func env(t *testing.T, name string, otherwise int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

func TestSim_Seeds(t *testing.T) {
	first, n := env(t, "LAMINA_SIM_SEED", 1), env(t, "LAMINA_SIM_SEEDS", 300)
	var tokens, steps int
	for seed := first; seed < first+n; seed++ {
		report, err := sim.Run(sim.Random(uint64(seed)), nil)
		tokens, steps = tokens+report.Tokens, steps+report.Steps
		if err != nil {
			fail(t, sim.Random(uint64(seed)), err)
		}
	}
	t.Logf("%d seeds: %d tokens, %d steps", n, tokens, steps)
}

// fail runs a scenario again and shows the end of its transcript.
func fail(t *testing.T, sc sim.Scenario, err error) {
	t.Helper()
	var transcript bytes.Buffer
	_, again := sim.Run(sc, &transcript)
	if again == nil || again.Error() != err.Error() {
		t.Errorf("seed %d: the second run differs: %v", sc.Seed, again)
	}
	text := transcript.Bytes()
	if file := os.Getenv("LAMINA_SIM_TRANSCRIPT"); file != "" {
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Fatalf("seed %d: %v\n%+v\n%s", sc.Seed, err, sc, text[max(0, len(text)-8000):])
}
