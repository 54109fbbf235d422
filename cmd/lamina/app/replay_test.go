package app_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
	"github.com/lamina-mesh/lamina/pkg/rpc/memnet"
)

// lostStage is a request whose pipeline loses a stage of two while it is answered.
type lostStage struct {
	file   string
	prompt int
	vocab  uint32
	stage  int
	whole  bool // another pipeline takes over, instead of a shard
	delay  time.Duration
}

// run returns the ids of the answer and the longest time between two of them.
func (l lostStage) run(t *testing.T, set kernel.Set[float32]) (ids []uint32, stall time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	defer cancel()
	network := memnet.New()
	for _, name := range []string{"shard-0-0", "shard-0-1", "shard-1-0", "shard-1-1"} {
		network.Delay(name, l.delay)
	}
	m, router := startMesh(t, ctx, app.MeshConfig{
		HTTP: "127.0.0.1:0", Model: l.file, Stages: 2, Replicas: 2, KVPositions: l.prompt + 264,
		Kernels: app.Kernels{Set: set, Threads: 2},
	}.WithNetwork(network))
	pipelines := awaitPipelines(t, ctx, router, func(list []*routerv1.Pipeline) bool { return len(list) == 2 })
	cut := func(p *routerv1.Pipeline, stage int) {
		m.Cut(strings.TrimPrefix(p.GetStages()[stage].GetAddress(), "mem:"))
	}
	if !l.whole { // one pipeline is lost, and its other stage is free then
		cut(pipelines[1], 1-l.stage)
		awaitPipelines(t, ctx, router, func(list []*routerv1.Pipeline) bool {
			return len(list) == 1 && list[0].GetSpareShard()
		})
	}
	a := askedFor(2, l.vocab, 2, 1)[1]
	for i := range l.prompt {
		a.prompt = append(a.prompt, 3+uint32(i*i*31+i)%(l.vocab-3))
	}
	stream, err := router.Generate(ctx, &routerv1.GenerateRequest{
		Prompt:    &routerv1.GenerateRequest_TokenIds{TokenIds: &routerv1.TokenIds{Ids: a.prompt[:l.prompt]}},
		MaxTokens: 200, Sampling: a.sampling, IgnoreEnd: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	var last time.Time
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if r.GetToken() == nil {
			continue
		}
		now := time.Now()
		if !last.IsZero() {
			stall = max(stall, now.Sub(last))
		}
		last = now
		if ids = append(ids, r.GetToken().GetId()); len(ids) == 12 {
			list := awaitPipelines(t, ctx, router, func(list []*routerv1.Pipeline) bool {
				return slices.ContainsFunc(list, runs)
			})
			cut(list[slices.IndexFunc(list, runs)], l.stage)
		}
	}
	count := counters(t, m.HTTPAddr())
	moves, rebuilt := count("lamina_router_moves_total"), count("lamina_router_reopens_total", "rebuilt")
	if l.whole && (moves != 1 || rebuilt != 0) || !l.whole && (moves != 0 || rebuilt != 1) {
		t.Errorf("%d moves, %d pipelines rebuilt", moves, rebuilt)
	}
	return ids, stall
}

func runs(p *routerv1.Pipeline) bool { return p.GetRunning() > 0 }

// TestMesh_StallOfALostStage loses the first and the last stage of a pipeline of two. The answer is the same
// whether another pipeline replays the whole log or a shard only what the lost stage had. With LAMINA_SLOW it
// measures how long the stream stalls, for a chat model and two lengths of the context.
func TestMesh_StallOfALostStage(t *testing.T) {
	set := cpu.New(2)
	t.Cleanup(set.Close)
	// The rest of an answer takes a second at least, in which its stage is lost.
	c := lostStage{file: shared(t, "models/stories260K/stories260K-f32.gguf"), vocab: 512, delay: 2 * time.Millisecond}
	lengths := []int{100}
	if os.Getenv("LAMINA_SLOW") != "" {
		c.file, c.vocab = shared(t, "models/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf"), 49152
		lengths, c.delay = []int{1024, 4096}, 0
	}
	for _, c.prompt = range lengths {
		for c.stage = range 2 {
			t.Run(fmt.Sprintf("%d tokens, stage %d", c.prompt, c.stage), func(t *testing.T) {
				c.whole = true
				want, whole := c.run(t, set)
				c.whole = false
				got, part := c.run(t, set)
				if !slices.Equal(got, want) {
					t.Errorf("the answer is %v, want %v", got, want)
				}
				t.Logf("stall with a whole replay %v, with that of the lost stage %v: %.2f times", whole, part,
					part.Seconds()/whole.Seconds())
			})
		}
	}
}
