package main

import (
	"context"
	"math"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
	"github.com/lamina-mesh/lamina/internal/agent"
	"github.com/lamina-mesh/lamina/pkg/discovery/consul"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
	"github.com/lamina-mesh/lamina/pkg/plan"
)

// A plan over a fleet predicts with what its placer has learned, and has written beside the plan.
func TestPlan_OfAFleetHasWhatThePlacerHasLearned(t *testing.T) {
	model := sharedPath(t, "models/stories260K/stories260K-f32.gguf")
	registry, err := agent.New()
	if err == nil {
		err = registry.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { registry.Close() })
	set := cpu.New(1)
	t.Cleanup(set.Close)
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	ended := make(chan error, 1)
	go func() {
		c := app.ServiceConfig{Listen: "127.0.0.1:0", Consul: registry.Addr()}
		ended <- app.Shard(ctx, c, app.ShardConfig{Model: model, Kernels: app.Kernels{Set: set, Threads: 1},
			Auto: &app.AutoShard{Memory: 64 << 20}})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	args := []string{"plan", "-m", model, "--consul", registry.Addr(), "--format", "json", "--kv-least", "64"}
	for { // the shard joins, and measures its speed
		if _, _, code := runVerb(t, "", args...); code == 0 {
			break
		}
		if ctx.Err() != nil {
			t.Fatal(verbOK(t, "", args...))
		}
	}
	// The times of the stages depend on how busy this machine is. What is left of a token's time is the router's.
	const router, first = 1000, 1e8
	rest := func(p planPipeline) float64 {
		ms := p.TokenMS
		for _, s := range p.Stages {
			ms -= s.MS + s.HopMS
		}
		return math.Round(ms)
	}
	before := verbJSON[planReport](t, "", args...).Pipelines[0]
	if rest(before) != 0 || before.TTFTMS >= first {
		t.Fatalf("without a placer: %+v", before)
	}
	catalog, err := consul.New(consul.Config{Addr: registry.Addr()})
	if err != nil {
		t.Fatal(err)
	}
	defer catalog.Close()
	text, err := (&plan.Document{Version: 1, Calibration: plan.Calibration{RouterMS: router, FirstMS: first, Tokens: 1,
		Firsts: 1, HopScale: 0.5}}).Encode()
	if err == nil {
		err = catalog.Swap(ctx, "plan", text, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	learned := verbJSON[planReport](t, "", args...).Pipelines[0]
	if rest(learned) != router || learned.TTFTMS < first+router {
		t.Errorf("with what the placer has learned: %+v, before it: %+v", learned, before)
	}
	told := verbJSON[planReport](t, "", append(args, "--router-ms", "3000")...).Pipelines[0]
	if rest(told) != 3*router {
		t.Errorf("with --router-ms: %+v", told)
	}
}
