package sim_test

import (
	"bytes"
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
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

// TestSim_Seeds runs LAMINA_SIM_SEEDS random scenarios from LAMINA_SIM_SEED on. The transcript of one that
// fails goes to the file LAMINA_SIM_TRANSCRIPT.
func TestSim_Seeds(t *testing.T) {
	count := 300
	if os.Getenv("LAMINA_SLOW") != "" {
		count = 10000
	}
	first, n := env(t, "LAMINA_SIM_SEED", 1), env(t, "LAMINA_SIM_SEEDS", count)
	var next, tokens, steps, moved, preempted, chained, discarded, reopened, rebuilt, innocent, hedged, won atomic.Int64
	var group sync.WaitGroup
	failed := make([]error, n)
	for range runtime.GOMAXPROCS(0) {
		group.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				report, err := sim.Run(sim.Random(uint64(first+i)), nil)
				tokens.Add(int64(report.Tokens))
				steps.Add(int64(report.Steps))
				moved.Add(int64(report.Moved))
				preempted.Add(int64(report.Preempted))
				chained.Add(int64(report.Chained))
				discarded.Add(int64(report.Discarded))
				reopened.Add(int64(report.Reopened))
				rebuilt.Add(int64(report.Rebuilt))
				innocent.Add(int64(report.Innocent))
				hedged.Add(int64(report.Hedged))
				won.Add(int64(report.HedgesWon))
				for _, why := range report.Blamed {
					t.Logf("in seed %d the harmless %s", first+i, why)
				}
				if failed[i] = err; err != nil {
					next.Store(int64(n)) // one is enough
				}
			}
		})
	}
	group.Wait()
	for i, err := range failed {
		if err != nil {
			fail(t, sim.Random(uint64(first+i)), err)
		}
	}
	t.Logf("%d seeds: %d tokens, %d steps, %d moves, %d preemptions, %d chained windows, %d of them discarded, "+
		"%d pipelines opened again, %d of them rebuilt, %d harmless requests set aside", n, tokens.Load(), steps.Load(),
		moved.Load(), preempted.Load(), chained.Load(), discarded.Load(), reopened.Load(), rebuilt.Load(),
		innocent.Load())
	t.Logf("%d first tokens were hedged, %d of the hedges have won", hedged.Load(), won.Load())
	if n >= 300 && (won.Load() < 20 || hedged.Load()-won.Load() < 20) {
		t.Error("the scenarios hardly try hedges")
	}
	if n >= 300 && (discarded.Load() < 50 || chained.Load()-discarded.Load() < 50) {
		t.Error("the scenarios hardly try chained windows")
	}
	if n >= 100 && (reopened.Load() == 0 || rebuilt.Load() == 0) {
		t.Error("no pipeline was opened again, or none was rebuilt")
	}
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

func TestSim_SameSeed_SameTranscript(t *testing.T) {
	for seed := range uint64(20) {
		var texts [2]bytes.Buffer
		for i := range texts {
			if _, err := sim.Run(sim.Random(seed), &texts[i]); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.Equal(texts[0].Bytes(), texts[1].Bytes()) {
			t.Fatalf("seed %d: two runs differ", seed)
		}
	}
}

func TestSim_Fairness(t *testing.T) {
	checked, worst := 0, 0.0
	for seed := range uint64(40) {
		report, err := sim.Run(sim.Fair(seed), nil)
		if err != nil {
			fail(t, sim.Fair(seed), err)
		}
		checked += report.FairChecks
		worst = max(worst, report.Unfair)
	}
	if checked < 1000 {
		t.Errorf("only %d comparisons of tenants with waiting requests", checked)
	}
	t.Logf("%d comparisons, the service differs by at most %.2f of the bound", checked, worst)
}

func TestSim_ThousandShards(t *testing.T) {
	if os.Getenv("LAMINA_SLOW") == "" {
		t.Skip("set LAMINA_SLOW=1: it takes about ten seconds")
	}
	sc := sim.Large(1)
	report, err := sim.Run(sc, nil)
	if err != nil {
		fail(t, sc, err)
	}
	if done := report.Ends["stop"] + report.Ends["length"]; done < sc.Load.Requests*9/10 {
		t.Errorf("only %d of %d requests have ended with their whole text: %v", done, sc.Load.Requests, report.Ends)
	}
	t.Logf("%d tokens in %v, %d steps, %d events, %d pipelines lost, %d moves, ends %v", report.Tokens, report.Virtual,
		report.Steps, report.Events, report.Failed, report.Moved, report.Ends)
}
