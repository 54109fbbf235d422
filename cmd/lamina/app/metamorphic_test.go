package app_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
)

// asked is a request of the metamorphic test.
type asked struct {
	prompt   []uint32
	tokens   uint32
	sampling *routerv1.Sampling
}

// askedFor returns n requests. They come in families that share the beginning of their prompts, so
// that a prefix cache has something to find, and half of them are sampled.
func askedFor(n int, vocab uint32, longest int) []asked {
	r := rand.New(rand.NewPCG(20261129, 19))
	ids := func(k int) []uint32 {
		out := make([]uint32, k)
		for i := range out {
			out[i] = 3 + r.Uint32N(vocab-3)
		}
		return out
	}
	var out []asked
	for len(out) < n {
		family := ids(1 + r.IntN(longest))
		for range 4 {
			a := asked{
				prompt: slices.Concat(family, ids(1+r.IntN(longest/2))), tokens: 4 + r.Uint32N(28),
				sampling: &routerv1.Sampling{},
			}
			temperature, seed := float32(0), r.Uint64()
			if len(out)%2 == 1 {
				temperature = 0.9
				a.sampling.FrequencyPenalty = 0.3
			}
			a.sampling.Temperature, a.sampling.Seed = &temperature, &seed
			out = append(out, a)
		}
	}
	return out[:n]
}

// answerAll sends the requests, some at once, and returns the ids of the answers and how many tokens
// of the prompts came from the cache.
func answerAll(
	t *testing.T, ctx context.Context, router routerv1.RouterServiceClient, list []asked, atOnce int,
) (answers [][]uint32, cached uint32) {
	t.Helper()
	answers = make([][]uint32, len(list))
	var mu sync.Mutex
	var workers sync.WaitGroup
	next := make(chan int)
	for range atOnce {
		workers.Go(func() {
			for i := range next {
				ids, hits, err := answer(ctx, router, list[i])
				mu.Lock()
				answers[i], cached = ids, cached+hits
				mu.Unlock()
				if err != nil {
					t.Errorf("request %d: %v", i, err)
				}
			}
		})
	}
	for i := range list {
		next <- i
	}
	close(next)
	workers.Wait()
	return answers, cached
}

func answer(
	ctx context.Context, router routerv1.RouterServiceClient, a asked,
) (ids []uint32, cached uint32, err error) {
	stream, err := router.Generate(ctx, &routerv1.GenerateRequest{
		Prompt:    &routerv1.GenerateRequest_TokenIds{TokenIds: &routerv1.TokenIds{Ids: a.prompt}},
		MaxTokens: a.tokens, Sampling: a.sampling, IgnoreEnd: true,
	})
	if err != nil {
		return nil, 0, err
	}
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return ids, cached, nil
		}
		if err != nil {
			return ids, cached, err
		}
		if token := r.GetToken(); token != nil {
			ids = append(ids, token.GetId())
		}
		cached += r.GetFinished().GetUsage().GetCachedTokens()
	}
}

// TestMesh_SameTokensHoweverTheyAreComputed sends the same requests to meshes that differ in stages,
// batches, chunks of prompts, cache, KV memory and draft tokens. Every answer must be the same.
func TestMesh_SameTokensHoweverTheyAreComputed(t *testing.T) {
	file, vocab, requests, longest, pool := "models/stories260K/stories260K-f32.gguf", uint32(512), 40, 60, 160
	if os.Getenv("LAMINA_SLOW") != "" {
		file, vocab = "models/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf", 49152
		requests, longest, pool = 200, 300, 1024
	}
	set := cpu.New(2)
	t.Cleanup(set.Close)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Hour)
	t.Cleanup(cancel)
	list := askedFor(requests, vocab, longest)
	off := time.Duration(-1)
	var want [][]uint32
	for _, c := range []struct {
		stages, replicas, atOnce, chunk int
		cache                           time.Duration
		positions, speculate, inFlight  int
	}{
		{stages: 1, replicas: 1, atOnce: 1, cache: off}, // the reference: one after another, nothing shared
		{stages: 1, replicas: 1, atOnce: 16, cache: off},
		{stages: 2, replicas: 1, atOnce: 8, chunk: 7, cache: off, inFlight: 3},
		{stages: 3, replicas: 1, atOnce: 16, chunk: 64, inFlight: 4},
		{stages: 4, replicas: 1, atOnce: 3, chunk: 1, inFlight: 5},
		{stages: 1, replicas: 1, atOnce: 1},
		{stages: 2, replicas: 2, atOnce: 8},
		{stages: 1, replicas: 1, atOnce: 16, positions: pool},
		{stages: 2, replicas: 1, atOnce: 16, positions: pool, inFlight: 3},
		{stages: 3, replicas: 1, atOnce: 12, positions: pool, chunk: 16, cache: off},
		{stages: 2, replicas: 1, atOnce: 4, speculate: 5},
		{stages: 1, replicas: 1, atOnce: 16, speculate: 3, positions: pool, chunk: 33},
	} {
		t.Run(fmt.Sprintf("%+v", c), func(t *testing.T) {
			m, router := startMesh(t, ctx, app.MeshConfig{
				HTTP:        "127.0.0.1:0",
				Model:       shared(t, file),
				Stages:      c.stages,
				Replicas:    c.replicas,
				KVPositions: c.positions,
				Kernels:     app.Kernels{Set: set, Threads: 2},
				Speculation: app.Speculation{IDs: c.speculate},
				Scheduling:  app.Scheduling{ChunkRows: c.chunk, CacheIdle: c.cache, MicroBatches: c.inFlight},
			})
			start := time.Now()
			got, cached := answerAll(t, ctx, router, list, c.atOnce)
			if want == nil {
				want = got
			}
			different := 0
			for i := range got {
				if !slices.Equal(got[i], want[i]) {
					different++
					t.Logf("request %d: %v, want %v", i, got[i], want[i])
				}
			}
			if different > 0 {
				t.Errorf("%d of %d answers differ", different, len(list))
			}
			// Requests that arrive together are not yet in the cache.
			if cached > 0 && c.cache < 0 || cached == 0 && c.cache >= 0 && c.atOnce < 8 {
				t.Errorf("%d tokens came from the cache", cached)
			}
			preempted := metric(t, m.HTTPAddr(), "lamina_router_preemptions_total")
			if (preempted == "0") != (c.positions == 0) {
				t.Errorf("%s preemptions with %d positions", preempted, c.positions)
			}
			t.Logf("%d of %d the same, %d prompt tokens from the cache, %v", len(list)-different, len(list), cached,
				time.Since(start).Round(time.Millisecond))
		})
	}
}
