package app_test

import (
	"context"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
)

// TestMesh_APromptSentManyTimesTogetherIsComputedOnce sends 16 requests with one prompt at once. They compute
// it once, and their texts are the same as without the prefix cache.
func TestMesh_APromptSentManyTimesTogetherIsComputedOnce(t *testing.T) {
	const together, page = 16, 16
	file, vocab, length := "models/stories260K/stories260K-f32.gguf", uint32(512), 100
	if os.Getenv("LAMINA_SLOW") != "" {
		file, vocab, length = "models/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf", 49152, 1000
	}
	set := cpu.New(2)
	t.Cleanup(set.Close)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	t.Cleanup(cancel)
	asked := askedFor(1, vocab, 8, 8)[0]
	asked.tokens = 8
	for i := len(asked.prompt); i < length; i++ {
		asked.prompt = append(asked.prompt, 3+uint32(i*i)%(vocab-3))
	}
	var want []uint32
	for _, idle := range []time.Duration{-1, time.Minute} {
		_, router := startMesh(t, ctx, app.MeshConfig{
			Model: shared(t, file), Stages: 2, KVPositions: 4 * together * length,
			Kernels: app.Kernels{Set: set, Threads: 2}, Scheduling: app.Scheduling{CacheIdle: idle},
		})
		var mu sync.Mutex
		var group sync.WaitGroup
		var cached uint32
		var first, last time.Duration // times to the first token
		start := time.Now()
		for range together {
			group.Go(func() {
				ids, at, hits := firstToken(t, ctx, router, asked)
				mu.Lock()
				defer mu.Unlock()
				if want == nil {
					want = ids
				}
				if !slices.Equal(ids, want) {
					t.Errorf("got %v, want %v", ids, want)
				}
				if first == 0 {
					first = at.Sub(start)
				}
				first, last, cached = min(first, at.Sub(start)), max(last, at.Sub(start)), cached+hits
			})
		}
		group.Wait()
		t.Logf("prefix cache %v: %d of %d prompt tokens are reused, the first token of the first request comes after %v, "+
			"that of the last one after %v", idle > 0, cached, together*len(asked.prompt), first.Round(time.Millisecond),
			last.Round(time.Millisecond))
		// On a busy machine steps may be so slow that some requests rather compute a prompt of this length each.
		if pages := (len(asked.prompt) - 1) / page; idle > 0 && int(cached) < pages*page {
			t.Errorf("%d prompt tokens are reused, want the %d pages of one prompt at least", cached, pages)
		}
	}
}

// firstToken answers a request and returns when its first token came.
func firstToken(
	t *testing.T, ctx context.Context, router routerv1.RouterServiceClient, a asked,
) (ids []uint32, at time.Time, cached uint32) {
	stream, err := router.Generate(ctx, &routerv1.GenerateRequest{
		Prompt:    &routerv1.GenerateRequest_TokenIds{TokenIds: &routerv1.TokenIds{Ids: a.prompt}},
		MaxTokens: a.tokens, Sampling: a.sampling, IgnoreEnd: true,
	})
	if err != nil {
		t.Error(err)
		return nil, at, 0
	}
	for {
		r, err := stream.Recv()
		if err != nil {
			t.Error(err)
			return ids, at, 0
		}
		if token := r.GetToken(); token != nil {
			if len(ids) == 0 {
				at = time.Now()
			}
			ids = append(ids, token.GetId())
		}
		if f := r.GetFinished(); f != nil {
			return ids, at, f.GetUsage().GetCachedTokens()
		}
	}
}
