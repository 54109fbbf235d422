package main

import (
	"math"
	"os"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/verb"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/model"
)

func TestPerplexity_Stories(t *testing.T) {
	text := sharedPath(t, "data/tinystories_sample.txt")
	for file, want := range map[string]float64{"f32": 6.8457, "F16": 6.8457, "Q8_0": 6.8618, "Q4_0": 7.2004} {
		for _, kernels := range kernelSets() {
			path := sharedPath(t, "models/stories260K/stories260K-"+file+".gguf")
			got := verbJSON[perplexityResult](t, "", "perplexity", "-m", path, "-f", text, "--ctx", "128", "--kernels",
				kernels, "--format", "json")
			if !(math.Abs(got.Perplexity-want) <= 0.01*want) || got.Chunks != got.Tokens/128 ||
				got.Scored != got.Chunks*63 {
				t.Errorf("%s with %s: %+v, want %g", file, kernels, got, want)
			}
		}
	}
}

// Over the whole text, float32 arithmetic gives 14.856 and llama.cpp gives 14.884.
func TestPerplexity_ChatModel(t *testing.T) {
	if os.Getenv("LAMINA_SLOW") == "" {
		t.Skip("it takes half a minute on two cores: set LAMINA_SLOW")
	}
	path, text := sharedPath(t, "models/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf"),
		sharedPath(t, "data/wikitext2-valid-64k.txt")
	got := verbJSON[perplexityResult](t, "", "perplexity", "-m", path, "-f", text, "--ctx", "512", "--format", "json")
	if !(got.Perplexity >= 14.78 && got.Perplexity <= 14.96) || got.Chunks != 32 || got.Tokens != 16873 {
		t.Errorf("%+v", got)
	}
}

func TestPerplexity_StagesAndChunks(t *testing.T) {
	path, text := sharedPath(t, "models/stories260K/stories260K-f32.gguf"), sharedPath(t, "data/tinystories_sample.txt")
	args := []string{"perplexity", "-m", path, "-f", text, "--kernels", "ref", "--chunks", "2"}
	one := verbJSON[perplexityResult](t, "", append(args, "--ctx", "128", "--format", "json")...)
	three := verbJSON[perplexityResult](t, "", append(args, "--ctx", "128", "--stages", "3", "--format", "json")...)
	if one.Perplexity != three.Perplexity || one.Chunks != 2 {
		t.Errorf("over one stage %+v, over three %+v", one, three)
	}
	odd := verbJSON[perplexityResult](t, "", append(args, "--ctx", "7", "--format", "json")...)
	if odd.Scored != 2*(7-1-3) {
		t.Errorf("windows of 7 score %d ids", odd.Scored)
	}
	if got := verbOK(t, "", append(args, "--ctx", "128")...); !strings.Contains(got, "perplexity") {
		t.Errorf("printed %q", got)
	}
}

func TestPerplexity_WindowsInSeveralBatches(t *testing.T) {
	path := sharedPath(t, "models/stories260K/stories260K-f32.gguf")
	window := make([]int32, 90)
	for i := range window {
		window[i] = int32(1 + i*i*31%500)
	}
	err := verb.WithModel(path, verb.KernelFlags{Kernels: "ref"}, func(f *model.Files, set kernel.Set[float32]) error {
		chain, err := verb.LoadChain(f, 2, 1, len(window), set, model.LoadOptions{})
		if err != nil {
			return err
		}
		want, err := score(chain, set, window, 45, 512)
		if err != nil {
			return err
		}
		for _, batch := range []int{1, 7, 45, 60, 89} {
			got, err := score(chain, set, window, 45, batch)
			if err != nil {
				return err
			}
			if math.Abs(got-want) > 1e-6 {
				t.Errorf("in batches of %d: %g, in one: %g", batch, got, want)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestPerplexity_BadInput(t *testing.T) {
	path, text := sharedPath(t, "models/stories260K/stories260K-f32.gguf"), sharedPath(t, "data/tinystories_sample.txt")
	verbFails(t, 2, "ctx", "", "perplexity", "-m", path, "-f", text, "--ctx", "1", "--kernels", "ref")
	verbFails(t, 2, "the context length of", "", "perplexity", "-m", path, "-f", text, "--ctx", "1800", "--kernels",
		"ref")
	verbFails(t, 2, "fewer than a window", "once", "perplexity", "-m", path, "-f", "-", "--ctx", "128", "--kernels",
		"ref")
	verbFails(t, 1, "nowhere", "", "perplexity", "-m", path, "-f", "nowhere", "--kernels", "ref")
	dir := sharedPath(t, "models/stories260K") // weights without a tokenizer
	verbFails(t, 1, "vocabulary", "", "perplexity", "-m", dir, "-f", text, "--kernels", "ref")
}
