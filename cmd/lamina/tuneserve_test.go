package main

import (
	"context"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
)

// answered is the answer to a chat.
type answered struct {
	ids      []uint32
	logprobs []float64
}

// chatAll asks for greedy answers to prompts, all at once, with each of the adapters.
func chatAll(t *testing.T, router routerv1.RouterServiceClient, prompts []string,
	adapters ...string) map[string][]answered {
	t.Helper()
	out := map[string][]answered{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, name := range adapters {
		out[name] = make([]answered, len(prompts))
		for i, text := range prompts {
			wg.Go(func() {
				a, err := chatOnce(t.Context(), router, text, name)
				if err != nil {
					t.Errorf("adapter %q: %v", name, err)
				}
				mu.Lock()
				out[name][i] = a
				mu.Unlock()
			})
		}
	}
	wg.Wait()
	return out
}

func chatOnce(ctx context.Context, router routerv1.RouterServiceClient, text, adapter string) (answered, error) {
	stream, err := router.Chat(ctx, &routerv1.ChatRequest{
		Messages: []*tokenizerv1.Message{{Role: "user", Content: text}}, MaxTokens: 24, Adapter: adapter,
		Sampling: &routerv1.Sampling{Temperature: new(float32)},
	})
	if err != nil {
		return answered{}, err
	}
	var a answered
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return a, nil
		}
		if err != nil {
			return a, err
		}
		if token := r.GetToken(); token != nil {
			a.ids, a.logprobs = append(a.ids, token.GetId()), append(a.logprobs, float64(token.GetLogprob()))
		}
	}
}

// TestTune_ChatModelServedAndMerged trains an adapter of the chat model over two stages for a few steps, by the
// command. It is served beside the base on two stages, and gives what the merged model gives, up to rounding. Caches
// hold float32 here: float16 rounds keys and values that hardly differ to different ones.
func TestTune_ChatModelServedAndMerged(t *testing.T) {
	if os.Getenv("LAMINA_SLOW") == "" {
		t.Skip("it takes minutes on two cores: set LAMINA_SLOW")
	}
	gguf := sharedPath(t, "models/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf")
	data := sharedPath(t, "data/instructions.json")
	dir := t.TempDir()
	base, runs, merged := filepath.Join(dir, "base"), filepath.Join(dir, "tuned"), filepath.Join(dir, "merged")
	verbOK(t, "", "export", gguf, base, "--type", "F32")
	out := verbOK(t, "", "tune", "--model", base, "--data", data, "--out", runs, "--stages", "2", "--rank", "8",
		"--steps", "4", "--batch", "2", "--sequence-len", "128", "--learning-rate", "0.003", "--show", "0",
		"--validation", "0.002") // what is held out is evaluated after every step
	trained := filepath.Join(runs, "adapter")
	want := "serve it with: lamina up --model " + base + " --adapter tune-tuned=" + trained
	if !strings.Contains(out, want) {
		t.Errorf("the output lacks %q:\n%s", want, out)
	}
	verbOK(t, "", "merge", "-m", base, "--adapter", trained, merged, "--type", "F32")

	set := cpu.New(2).StoringKV(kernel.KVFull)
	t.Cleanup(set.Close)
	serve := func(c app.MeshConfig) routerv1.RouterServiceClient {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		t.Cleanup(cancel)
		c.Stages, c.Kernels = 2, app.Kernels{Set: set, Threads: 2}
		m, err := app.Start(ctx, c)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := m.Close(); err != nil {
				t.Error(err)
			}
		})
		conn, err := m.Router()
		if err != nil {
			t.Fatal(err)
		}
		return routerv1.NewRouterServiceClient(conn)
	}
	prompts := []string{"What is the capital of France?", "Convert 45 kilometers to meters.",
		"Name three primary colors.", "Rewrite in passive voice: The chef cooks the meal.", "What is 7 times 8?", "Give a synonym of fast."}
	tuned := []app.Adapter{{Name: "tuned", Dir: trained}}
	beside := chatAll(t, serve(app.MeshConfig{Model: base, Adapters: tuned}), prompts, "", "tuned")
	alone := chatAll(t, serve(app.MeshConfig{Model: merged}), prompts, "")[""]
	plain := chatAll(t, serve(app.MeshConfig{Model: base}), prompts, "")[""]
	changed, worst := 0, 0.0
	for i := range prompts {
		got := beside["tuned"][i]
		if !slices.Equal(got.ids, alone[i].ids) {
			t.Errorf("%q: with the adapter %v, merged %v", prompts[i], got.ids, alone[i].ids)
			continue
		}
		for j := range got.logprobs {
			worst = max(worst, math.Abs(got.logprobs[j]-alone[i].logprobs[j]))
		}
		if !slices.Equal(beside[""][i].ids, plain[i].ids) || !slices.Equal(beside[""][i].logprobs, plain[i].logprobs) {
			t.Errorf("%q: beside the adapter the base gives %v, alone %v", prompts[i], beside[""][i].ids, plain[i].ids)
		}
		if !slices.Equal(got.ids, plain[i].ids) {
			changed++
		}
	}
	if worst > 1e-3 || changed == 0 {
		t.Errorf("log-probabilities differ by %v from those of the merged model; the adapter changes %d answers", worst,
			changed)
	}
	t.Logf("largest difference to the merged model %.2g; %d of %d answers differ from those of the base", worst, changed,
		len(prompts))
}
