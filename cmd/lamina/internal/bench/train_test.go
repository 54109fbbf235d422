package bench

import (
	"math"
	"testing"
)

func TestBenchTrain_CountsWhatItMeasures(t *testing.T) {
	for _, kernels := range kernelSets() {
		got := verbJSON[trainResult](t, "", "bench", "train", "--kernels", kernels, "--threads", "1", "--batch", "2",
			"--slots", "2",
			"--repeat", "2", "--profile", "--format", "json")
		// Four layers of 12·128² weights, the head's 65·128 weights, and 4·128·64 for attention per token.
		want := 128 * (6*(4*12*128*128+65*128) + 12*4*128*64) / 1e9
		if math.Abs(got.StepGflop-want) > 1e-9 {
			t.Errorf("%s: %g GFLOP a step, want %g", kernels, got.StepGflop, want)
		}
		if !(got.StepMillis > 0) || math.Abs(got.Gflops*got.StepMillis/1e3-want) > 1e-6 {
			t.Errorf("%s: %g GFLOP/s over %g ms", kernels, got.Gflops, got.StepMillis)
		}
		if !(got.Loss > 0 && got.Loss < 5) || got.Parameters != 809856 {
			t.Errorf("%s: loss %g of %d parameters", kernels, got.Loss, got.Parameters)
		}
		phases := map[string]float64{}
		for _, o := range got.Profile {
			phases[o.Phase] += o.Share
		}
		for _, name := range []string{"forward", "backward", "update"} {
			if math.Abs(phases[name]-1) > 1e-9 {
				t.Errorf("%s: shares of %s add to %g", kernels, name, phases[name])
			}
		}
	}
}

func TestBenchTrain_BadInput(t *testing.T) {
	for words, args := range map[string][]string{
		"batch":    {"--batch", "-1"},
		"tokens":   {"--tokens", "-1"},
		"slots: 5": {"--slots", "5"},
		"repeat":   {"--repeat", "0"},
		"threads":  {"--threads", "-2"},
		"shape":    {"--shape", "gpt5"},
	} {
		verbFails(t, 2, words, "", append([]string{"bench", "train"}, args...)...)
	}
}
