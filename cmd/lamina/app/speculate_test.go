package app_test

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
	"github.com/lamina-mesh/lamina/internal/leak"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
)

// TestMesh_SpeculationChangesNoToken generates with and without speculation. Several requests run at
// once: greedy, with a temperature, with penalties, and constrained by a grammar.
func TestMesh_SpeculationChangesNoToken(t *testing.T) {
	defer leak.Check(t)
	zero, warm := float32(0), float32(0.8)
	rules := []*routerv1.Sampling{
		{Temperature: &zero},
		{Temperature: &warm, TopK: proto.Uint32(8), Seed: new(uint64)},
		{Temperature: &zero, FrequencyPenalty: 0.3},
		{Temperature: &warm, Seed: new(uint64)},
		{Temperature: &zero, Grammar: &samplerv1.Grammar{Kind: samplerv1.GrammarKind_GRAMMAR_KIND_REGEX,
			Source: `( ?[a-z]+){20}`}},
	}
	var want [][]uint32
	for _, c := range []app.MeshConfig{{Stages: 1}, {Stages: 1, Speculation: app.Speculation{IDs: 4}},
		{Stages: 3, Speculation: app.Speculation{IDs: 7}}} {
		c.Model = shared(t, "models/stories260K/stories260K-f32.gguf")
		got := make([][]uint32, len(rules))
		t.Run(fmt.Sprintf("%d stages, %d draft tokens", c.Stages, c.Speculation.IDs),
			func(t *testing.T) { generateAll(t, mesh(t, c), rules, got) })
		if want == nil {
			want = got
		}
		for i := range rules {
			if len(got[i]) == 0 || !slices.Equal(got[i], want[i]) {
				t.Errorf("%d stages, %d draft tokens, request %d: %v, want %v", c.Stages, c.Speculation.IDs, i, got[i],
					want[i])
			}
		}
	}
}

// generateAll runs requests with the given sampling parameters at once and returns their token ids.
func generateAll(t *testing.T, router routerv1.RouterServiceClient, rules []*routerv1.Sampling, got [][]uint32) {
	var wg sync.WaitGroup
	for i, r := range rules {
		wg.Go(func() {
			stream, err := router.Generate(t.Context(), &routerv1.GenerateRequest{
				Prompt: &routerv1.GenerateRequest_Text{
					Text: "Lily had a cat. The cat had a hat. Lily had a cat. The cat had a",
				},
				MaxTokens: 60,
				Sampling:  r,
				IgnoreEnd: true,
			})
			for err == nil {
				var event *routerv1.GenerateResponse
				if event, err = stream.Recv(); err == nil && event.GetToken() != nil {
					got[i] = append(got[i], event.GetToken().GetId())
				}
			}
			if !errors.Is(err, io.EOF) {
				t.Errorf("request %d: %v", i, err)
			}
		})
	}
	wg.Wait()
}
