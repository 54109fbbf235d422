package integration_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/internal/planted"
)

// TestPlanted_PromisesAreSeenToBreak runs tests of promises on sources with a bug each (planted/*.patch). The test
// that the bug is for has to fail, and for its own reason. LAMINA_PLANTED names a single bug.
func TestPlanted_PromisesAreSeenToBreak(t *testing.T) {
	only := os.Getenv("LAMINA_PLANTED")
	if only == "" && !slow() {
		t.Skip("set LAMINA_SLOW=1: every bug is a build of its own")
	}
	const here, app, shards, checkpoints = "tests/integration", "cmd/lamina/app", "services/shard", "pkg/checkpoint"
	for _, bug := range []struct{ name, folder, test, why string }{
		{"s3-history-as-prompt", here, "TestPromise_S3_SamplerDies", "differ from the undisturbed ones"},
		{"s4-cut-looks-finished", here, "TestPromise_S4_LostStageIsTold", "looks finished"},
		{"s10-never-cut", here, "TestPromise_S10_BurstOfStalledReadersIsCut", "stalled readers still hold sessions"},
		{"s10-patient-outbox", here, "TestPromise_S10_StalledStreamsAreCut", "stalled streams still hold sessions"},
		{"t1-residuals-of-the-aborted", shards, "TestTrain_AbortedAttemptLeavesNoTrace", "undisturbed"},
		{"t2-damaged-kept", app, "TestTrain_DamagedBlocksCostNoBit/^f32$", "DeadlineExceeded"},
		{"t2-forgotten-once-stored", app, "TestTrain_DamagedBlocksCostNoBit/^f32$", "DeadlineExceeded"},
		{"t2-flipped-bits-used", shards, "TestTrain_BadGradientsAreRejectedAndNeverApplied", "the gradient is used"},
		{"t3-history-forgotten", app, "TestTrain_SpikesAreHandledTheSameOnEveryLayout", "resumed"},
		{"t4-unsynced", checkpoints, "TestStore_PowerLossLeavesAWholeCheckpoint", "was durable"},
		{"t4-digests-unread", checkpoints, "TestStore_FlippedBitsAreDetected", "is torn"},
		{"t5-ledger-not-cut", app, "TestTrain_EverySampleCountsOnce", "the ledger has"},
		{"t6-unchecked", shards, "TestTrain_BadGradientsAreRejectedAndNeverApplied", "the gradient is used"},
		{"t8-nobody-joins", app, "TestTrain_LostReplicasCostLittleSpeed", "attempts repeated,"},
		{"t8-not-repeated", app, "TestTrain_ALostReplicaCostsOneStep", "the run went back"},
		{"t9-claim-stays", checkpoints, "TestStore_ADeposedHolderChangesNothing", "suspended at operation"},
	} {
		if only != "" && bug.name != only {
			continue
		}
		t.Run(bug.name, func(t *testing.T) {
			file, err := filepath.Abs(filepath.Join("planted", bug.name+".patch"))
			if err != nil {
				t.Fatal(err)
			}
			overlay := planted.Overlay(t, root(t), file)
			cmd := exec.Command("go", "test", "-count=1", "-vet=off", "-timeout=20m", ".", "-run",
				"^"+strings.TrimSuffix(bug.test, "$")+"$")
			cmd.Dir = filepath.Join(root(t), filepath.FromSlash(bug.folder))
			// The test builds the program, which is to have the bug as well.
			flags := strings.TrimSpace(os.Getenv("GOFLAGS") + " -overlay=" + overlay)
			cmd.Env = append(os.Environ(), "GOFLAGS="+flags, "LAMINA_BINARY=", "LAMINA_PLANTED=", "LAMINA_SLOW=")
			if bug.name[:2] == "s3" { // it has no short version
				cmd.Env = append(cmd.Env, "LAMINA_SLOW=1")
			}
			out, err := cmd.CombinedOutput()
			switch {
			case err == nil:
				t.Error("the bug is not noticed")
			case !strings.Contains(string(out), bug.why):
				t.Errorf("the test fails for another reason: %s", out)
			}
			for line := range strings.Lines(string(out)) {
				if strings.Contains(line, bug.why) {
					t.Logf("%.200s", strings.TrimSpace(line))
					break
				}
			}
		})
	}
}
