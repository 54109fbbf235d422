package app_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
)

// asked is a request of the metamorphic test.
type asked struct {
	prompt   []uint32
	tokens   uint32
	sampling *routerv1.Sampling
	adapter  string
}

// askedFor returns n requests. They come in families that share the beginning of their prompts, so
// that a prefix cache has something to find, and half of them are sampled.
func askedFor(n int, vocab uint32, longest, tokens int) []asked {
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
				prompt: slices.Concat(family, ids(1+r.IntN(longest/2))), tokens: 4 + r.Uint32N(uint32(tokens)),
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
// of the prompts came from the cache. It calls before with the index of a request that is about to be sent.
func answerAll(
	t *testing.T, ctx context.Context, router routerv1.RouterServiceClient, list []asked, atOnce int, before func(int),
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
		before(i)
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
		MaxTokens: a.tokens, Sampling: a.sampling, IgnoreEnd: true, Adapter: a.adapter,
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

// compared is a model whose answers are compared.
type compared struct {
	name, file, draft string
	vocab             uint32
	requests, longest int // number of requests, and the longest beginning that some of them share
	tokens            int // a request asks for at most 3 more than this
	pool              int // positions of a KV cache that is too small for all requests
	adapters          []app.Adapter
}

// sameModels returns the models of the metamorphic test: the small one, with LAMINA_SLOW a chat model as
// well, and with LAMINA_MODELS one of 1.5 billion parameters with its draft model.
func sameModels(t *testing.T) []compared {
	const small, chat = "models/stories260K/", "models/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf"
	models := []compared{
		{
			name:     "stories260K",
			file:     shared(t, small+"stories260K-f32.gguf"),
			draft:    shared(t, small+"stories260K-Q4_0.gguf"),
			vocab:    512,
			requests: 40,
			longest:  60,
			tokens:   28,
			pool:     160,
		},
	}
	if os.Getenv("LAMINA_SLOW") == "" {
		return models
	}
	models = append(models, compared{
		name: "SmolLM2-135M", file: shared(t, chat), draft: shared(t, chat),
		vocab: 49152, requests: 200, longest: 100, tokens: 28, pool: 320,
	})
	if dir := os.Getenv("LAMINA_MODELS"); dir != "" {
		models = append(models, compared{
			name: "Qwen2.5-Coder-1.5B", file: filepath.Join(dir, "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf"),
			draft: filepath.Join(dir, "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"),
			vocab: 151643, requests: 200, longest: 24, tokens: 8, pool: 128,
		})
	}
	return models
}

// layout is a mesh whose answers must not differ from those of any other.
type layout struct {
	stages, replicas, atOnce, chunk int
	cache                           time.Duration
	positions, speculate, inFlight  int
	draft                           bool
	chained                         bool   // draft tokens are sent behind those in flight
	lost                            string // the shard that is lost for good after a quarter of the requests, under one
	replaced                        string // the stage that is lost after two thirds, while a shard is free for it
	broken                          string // the shard whose links break again and again
}

// TestMesh_SameTokensHoweverTheyAreComputed sends the same requests to meshes that differ in stages,
// batches, chunks of prompts, cache, KV memory, draft tokens and faults. Every answer must be the same.
func TestMesh_SameTokensHoweverTheyAreComputed(t *testing.T) {
	set := cpu.New(2)
	t.Cleanup(set.Close)
	off := time.Duration(-1)
	for _, model := range sameModels(t) {
		list := askedFor(model.requests, model.vocab, model.longest, model.tokens)
		var want [][]uint32
		for _, c := range []layout{
			{stages: 1, replicas: 1, atOnce: 1, cache: off}, // the reference: one after another, nothing shared
			{stages: 1, replicas: 1, atOnce: 16, cache: off},
			{stages: 2, replicas: 1, atOnce: 8, chunk: 7, cache: off, inFlight: 3},
			{stages: 3, replicas: 1, atOnce: 16, chunk: 64, inFlight: 4},
			{stages: 4, replicas: 1, atOnce: 3, chunk: 1, inFlight: 5},
			{stages: 1, replicas: 1, atOnce: 1},
			{stages: 2, replicas: 2, atOnce: 8},
			{stages: 1, replicas: 1, atOnce: 16, positions: model.pool},
			{stages: 2, replicas: 1, atOnce: 16, positions: model.pool, inFlight: 3},
			{stages: 3, replicas: 1, atOnce: 12, positions: model.pool, chunk: 16, cache: off},
			{stages: 2, replicas: 1, atOnce: 4, speculate: 5},
			{stages: 1, replicas: 1, atOnce: 16, speculate: 3, positions: model.pool, chunk: 33},
			{stages: 2, replicas: 1, atOnce: 3, draft: true},
			{stages: 4, replicas: 1, atOnce: 3, draft: true, inFlight: 5, chained: true},
			{stages: 2, replicas: 1, atOnce: 2, draft: true, inFlight: 4, chained: true, broken: "shard-0-1"},
			{stages: 2, replicas: 2, atOnce: 8, lost: "shard-0-1", inFlight: 3},
			{stages: 2, replicas: 2, atOnce: 8, draft: true, lost: "shard-1-0", inFlight: 3},
			{stages: 2, replicas: 2, atOnce: 8, lost: "shard-1-1", replaced: "first", inFlight: 3},
			{stages: 3, replicas: 2, atOnce: 8, speculate: 3, lost: "shard-1-0", replaced: "last", inFlight: 4},
			{stages: 3, replicas: 1, atOnce: 6, speculate: 4, broken: "shard-0-2", inFlight: 4},
			{stages: 2, replicas: 1, atOnce: 16, positions: model.pool, broken: "shard-0-0", inFlight: 3},
		} {
			t.Run(fmt.Sprintf("%s/%+v", model.name, c), func(t *testing.T) {
				got := model.answers(t, c, list, set)
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
				t.Logf("%d of %d the same", len(list)-different, len(list))
				if different > 0 {
					t.Errorf("%d of %d answers differ", different, len(list))
				}
			})
		}
	}
}

// answers starts a mesh, sends it the requests, and returns the ids of their answers. It fails the test if
// the mesh did not do what the layout is about.
func (s compared) answers(t *testing.T, c layout, list []asked, set kernel.Set[float32]) [][]uint32 {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Hour)
	defer cancel()
	speculation := app.Speculation{IDs: c.speculate}
	if c.draft {
		speculation.Draft = s.draft
	}
	m, router := startMesh(t, ctx, app.MeshConfig{
		HTTP: "127.0.0.1:0", Model: s.file, Adapters: s.adapters, Stages: c.stages, Replicas: c.replicas,
		KVPositions: c.positions,
		Kernels:     app.Kernels{Set: set, Threads: 2},
		Speculation: speculation,
		Scheduling:  app.Scheduling{ChunkRows: c.chunk, CacheIdle: c.cache, MicroBatches: c.inFlight},
	})
	start := time.Now()
	cut := false
	got, cached := answerAll(t, ctx, router, list, c.atOnce, func(i int) {
		switch {
		case c.lost != "" && !cut && i >= len(list)/4:
			if cut = serves(t, ctx, router, c.lost); cut {
				m.Cut(c.lost)
			}
		case c.replaced != "" && i == len(list)*3/4: // a request that sees both without a token between is set aside
			stages := awaitPipelines(t, ctx, router, func(list []*routerv1.Pipeline) bool {
				return len(list) == 1 && list[0].GetSpareShard()
			})[0].GetStages()
			stage := map[string]*shardv1.Hop{"first": stages[0], "last": stages[len(stages)-1]}[c.replaced]
			m.Cut(strings.TrimPrefix(stage.GetAddress(), "mem:"))
		case c.broken != "" && i%7 == 6:
			m.Cut(c.broken)
			m.Mend(c.broken)
		}
	})
	took := time.Since(start).Round(time.Millisecond)
	count := counters(t, m.HTTPAddr())
	preempted, moves := count("lamina_router_preemptions_total"), count("lamina_router_moves_total")
	reopens := count("lamina_router_reopens_total", "resumed")
	drafted := count("lamina_router_draft_tokens_total", "draft")
	t.Logf("%d prompt tokens from the cache, %d preemptions, %d moves, %d pipelines opened again, %d draft tokens, %v",
		cached, preempted, moves, reopens, drafted, took)
	if (cached > 0) != (c.cache >= 0) {
		t.Errorf("%d tokens came from the cache", cached)
	}
	if preempted == 0 && c.positions > 0 || preempted > 0 && c.positions == 0 && c.broken == "" {
		t.Errorf("%d preemptions with %d positions", preempted, c.positions)
	}
	if rebuilt := count("lamina_router_reopens_total", "rebuilt"); rebuilt == 0 && c.replaced != "" {
		t.Error("no pipeline was rebuilt")
	}
	if moves == 0 && c.lost != "" || moves+reopens == 0 && c.broken != "" {
		t.Errorf("%d moves, %d pipelines opened again", moves, reopens)
	}
	if chained := count("lamina_router_chained_windows_total", "sent"); chained == 0 && c.chained {
		t.Error("no window was sent behind another one")
	}
	if drafted == 0 && c.draft {
		t.Error("the draft model was not asked")
	}
	return got
}

// serves reports whether requests run on the pipeline of a shard.
func serves(t *testing.T, ctx context.Context, router routerv1.RouterServiceClient, shard string) bool {
	t.Helper()
	resp, err := router.Topology(ctx, &routerv1.TopologyRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(resp.GetMesh().GetPipelines(), func(p *routerv1.Pipeline) bool {
		return runs(p) && slices.ContainsFunc(p.GetStages(), func(h *shardv1.Hop) bool {
			return h.GetAddress() == "mem:"+shard
		})
	})
}

// awaitPipelines waits until a condition holds for the pipelines of a router.
func awaitPipelines(
	t *testing.T, ctx context.Context, router routerv1.RouterServiceClient, ok func([]*routerv1.Pipeline) bool,
) []*routerv1.Pipeline {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	poll := time.NewTicker(10 * time.Millisecond) // the router does not announce changes
	defer poll.Stop()
	for {
		resp, err := router.Topology(ctx, &routerv1.TopologyRequest{})
		if err != nil {
			t.Fatal(err)
		}
		have := resp.GetMesh().GetPipelines()
		if ok(have) {
			return have
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
			t.Fatalf("the pipelines are %v", have)
		}
	}
}

// counters reads the metrics of a process. The function that it returns sums a metric over the lines that
// have the given values of labels.
func counters(t *testing.T, addr string) func(name string, values ...string) int {
	t.Helper()
	resp, err := http.Get("http://" + addr + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return func(name string, values ...string) int {
		sum := 0.0
		for _, m := range regexp.MustCompile(`(?m)^`+name+`(\{.*\})? (\S+)$`).FindAllStringSubmatch(string(text), -1) {
			fits := true
			for _, v := range values {
				fits = fits && strings.Contains(m[1], strconv.Quote(v))
			}
			if n, err := strconv.ParseFloat(m[2], 64); err == nil && fits {
				sum += n
			}
		}
		return int(sum)
	}
}
