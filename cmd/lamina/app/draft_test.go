package app_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
	"github.com/lamina-mesh/lamina/internal/leak"
	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
	"github.com/lamina-mesh/lamina/pkg/kernel/ref"
)

// measured is a mesh with metrics that a test can read.
type measured struct {
	t      *testing.T
	mesh   *app.Mesh
	router routerv1.RouterServiceClient
}

func measure(t *testing.T, c app.MeshConfig) *measured {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	t.Cleanup(cancel)
	set := cpu.New(2)
	t.Cleanup(set.Close)
	c.Kernels, c.HTTP = app.Kernels{Set: set, Threads: 2}, "127.0.0.1:0"
	m, router := startMesh(t, ctx, c)
	return &measured{t, m, router}
}

// metric returns the value of a metric. Its name has the form that /metrics shows.
func (m *measured) metric(name string) float64 {
	m.t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + m.mesh.HTTPAddr() + "/metrics")
	if err != nil {
		m.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		m.t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			v, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil {
				m.t.Fatal(err)
			}
			return v
		}
	}
	return 0
}

// ids generates text and returns its token ids.
func (m *measured) ids(r *routerv1.GenerateRequest) []uint32 {
	m.t.Helper()
	stream, err := m.router.Generate(m.t.Context(), r)
	var out []uint32
	for err == nil {
		var event *routerv1.GenerateResponse
		if event, err = stream.Recv(); err == nil && event.GetToken() != nil {
			out = append(out, event.GetToken().GetId())
		}
	}
	if err != io.EOF {
		m.t.Errorf("generate: %v", err)
	}
	return out
}

func prompt(text string, n int, s *routerv1.Sampling) *routerv1.GenerateRequest {
	return &routerv1.GenerateRequest{Prompt: &routerv1.GenerateRequest_Text{Text: text}, MaxTokens: uint32(n),
		Sampling: s, IgnoreEnd: true}
}

// TestMesh_ModelAsItsOwnDraft_TakesFewerSteps uses a model as its own draft model. Nearly every draft
// token is accepted, and each of them saves a step. A draft model of that size costs about as much as it
// saves, so it may rest after a few rounds.
func TestMesh_ModelAsItsOwnDraft_TakesFewerSteps(t *testing.T) {
	defer leak.Check(t)
	zero := float32(0)
	for _, c := range []struct {
		model, text string
		n           int
	}{
		{"models/stories260K/stories260K-f32.gguf", "Once upon a time", 120},
		{"models/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf", "The history of Paris", 96},
	} {
		t.Run(c.model, func(t *testing.T) {
			path := shared(t, c.model)
			want := measure(t, app.MeshConfig{Model: path, Stages: 2}).ids(
				prompt(c.text, c.n, &routerv1.Sampling{Temperature: &zero}))
			m := measure(t, app.MeshConfig{Model: path, Stages: 2, Speculation: app.Speculation{IDs: 4, Draft: path}})
			if got := m.ids(prompt(c.text, c.n, &routerv1.Sampling{Temperature: &zero})); !slices.Equal(got, want) {
				t.Errorf("with a draft %v, want %v", got, want)
			}
			steps := m.metric(`lamina_router_steps_total{pipeline="answer"}`)
			drafted, accepted := m.metric(`lamina_router_draft_tokens_total{proposer="draft"}`),
				m.metric(`lamina_router_accepted_tokens_total{proposer="draft"}`)
			t.Logf("%v steps, %v of %v draft tokens accepted; draft steps %v", steps, accepted, drafted,
				m.metric(`lamina_router_steps_total{pipeline="draft"}`))
			if rest := float64(c.n) - accepted; steps > rest+16 { // and the steps of the two probes
				t.Errorf("%v steps for %d tokens of which %v were accepted draft tokens", steps, c.n, accepted)
			}
			if drafted == 0 || accepted < 0.9*drafted {
				t.Errorf("%v of %v draft tokens were accepted", accepted, drafted)
			}
		})
	}
}

// TestMesh_DraftChangesNoToken runs requests of every kind at once, with a good and with a bad draft
// model.
func TestMesh_DraftChangesNoToken(t *testing.T) {
	defer leak.Check(t)
	zero, warm := float32(0), float32(0.8)
	most, more, seed := float32(0.9), float32(1.3), uint64(7)
	rules := []*routerv1.Sampling{
		{Temperature: &zero},
		{Temperature: &warm, TopK: proto.Uint32(8), Seed: &seed},
		{Temperature: &warm, TopP: &most, Seed: &seed},
		{Temperature: &warm, Seed: &seed},
		{Temperature: &zero, FrequencyPenalty: 0.3, PresencePenalty: 0.2},
		{Temperature: &warm, RepetitionPenalty: &more, Seed: &seed},
		{Temperature: &zero, Grammar: &samplerv1.Grammar{Kind: samplerv1.GrammarKind_GRAMMAR_KIND_REGEX,
			Source: `( ?[a-z]+){20}`}},
		{Temperature: &warm, Seed: &seed,
			Grammar: &samplerv1.Grammar{Kind: samplerv1.GrammarKind_GRAMMAR_KIND_REGEX, Source: `( ?[a-z]+){20}`}},
	}
	for _, c := range []struct{ model, draft string }{
		{"models/stories260K/stories260K-f32.gguf", "models/stories260K/stories260K-f32.gguf"},
		{"models/stories260K/stories260K-f32.gguf", "models/stories260K/stories260K-Q4_0.gguf"},
		{"models/tiny/llama", "models/tiny/qwen3"},
		{"models/tiny/qwen3", "models/tiny/gpt2/model-bf16.gguf"},
	} {
		t.Run(c.model+" by "+c.draft, func(t *testing.T) {
			path, draft := shared(t, c.model), shared(t, c.draft)
			want := make([][]uint32, len(rules))
			generateAll(t, measure(t, app.MeshConfig{Model: path}).router, rules, want)
			for _, least := range []float64{0, 0.4} {
				m := measure(t, app.MeshConfig{Model: path, Stages: 2,
					Speculation: app.Speculation{IDs: 5, Draft: draft, MinProbability: least}})
				got := make([][]uint32, len(rules))
				generateAll(t, m.router, rules, got)
				for i := range rules {
					if len(got[i]) == 0 || !slices.Equal(got[i], want[i]) {
						t.Errorf("least %v, request %d: %v, want %v", least, i, got[i], want[i])
					}
				}
				drafted := m.metric(`lamina_router_draft_tokens_total{proposer="draft"}`)
				t.Logf("least %v: %v steps, %v of %v draft tokens accepted", least,
					m.metric(`lamina_router_steps_total{pipeline="answer"}`),
					m.metric(`lamina_router_accepted_tokens_total{proposer="draft"}`), drafted)
				if least == 0 && drafted == 0 {
					t.Error("the draft model proposed nothing")
				}
			}
		})
	}
}

func TestMesh_DraftOfAnotherVocabulary_IsRefusedByBothNames(t *testing.T) {
	_, err := app.Start(t.Context(), app.MeshConfig{
		Kernels:     app.Kernels{Set: ref.New[float32](), Threads: 1},
		Model:       shared(t, "models/stories260K/stories260K-f32.gguf"),
		Speculation: app.Speculation{Draft: shared(t, "models/tiny/llama")},
	})
	if fault.CodeOf(err) != fault.FailedPrecondition || !strings.Contains(fmt.Sprint(err), `"stories260K-f32"`) ||
		!strings.Contains(fmt.Sprint(err), `"llama"`) {
		t.Errorf("the error is %v", err)
	}
}
