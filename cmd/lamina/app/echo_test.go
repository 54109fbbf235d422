package app_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
)

// heard is a complete answer.
type heard struct {
	prompt   []*routerv1.PromptToken
	tokens   []*routerv1.TokenEvent
	started  *routerv1.Started
	finished *routerv1.Finished
}

func (h heard) text() string {
	var b strings.Builder
	for _, t := range h.tokens {
		b.WriteString(t.GetText())
	}
	return b.String() + h.finished.GetText()
}

func hear(ctx context.Context, router routerv1.RouterServiceClient, r *routerv1.GenerateRequest) (heard, error) {
	var h heard
	stream, err := router.Generate(ctx, r)
	if err != nil {
		return h, err
	}
	for {
		e, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return h, nil
		}
		if err != nil {
			return h, err
		}
		h.prompt = append(h.prompt, e.GetPrompt().GetTokens()...)
		switch {
		case e.GetStarted() != nil:
			h.started = e.GetStarted()
		case e.GetToken() != nil:
			h.tokens = append(h.tokens, e.GetToken())
		case e.GetFinished() != nil:
			h.finished = e.GetFinished()
		}
	}
}

func ids(list ...uint32) *routerv1.GenerateRequest_TokenIds {
	return &routerv1.GenerateRequest_TokenIds{TokenIds: &routerv1.TokenIds{Ids: list}}
}

// The log-probabilities of a text are bit-identical when the model generates it and when it is the
// prompt, for any number of stages.
func TestMesh_PromptLogprobsAreThoseOfGeneration(t *testing.T) {
	for _, stages := range []int{1, 3} {
		router := mesh(t, app.MeshConfig{Model: shared(t, "models/stories260K/stories260K-f32.gguf"), Stages: stages})
		written, err := hear(t.Context(), router, &routerv1.GenerateRequest{
			Prompt: ids(1), MaxTokens: 60, TopLogprobs: 3, IgnoreEnd: true,
			Sampling: &routerv1.Sampling{Temperature: proto.Float32(1), Seed: proto.Uint64(7)},
		})
		if err != nil {
			t.Fatal(err)
		}
		all := []uint32{1}
		for _, token := range written.tokens {
			all = append(all, token.GetId())
		}
		given, err := hear(t.Context(), router,
			&routerv1.GenerateRequest{Prompt: ids(all...), TopLogprobs: 3, Echo: true, PromptLogprobs: true,
				PromptOnly: true})
		if err != nil {
			t.Fatal(err)
		}
		if len(given.prompt) != 61 || len(given.tokens) != 0 || given.finished.GetUsage().GetCompletionTokens() != 0 ||
			given.prompt[0].Logprob != nil {
			t.Fatalf("%d stages: %d prompt tokens, %d tokens, %v", stages, len(given.prompt), len(given.tokens),
				given.finished)
		}
		text := ""
		for i, token := range written.tokens {
			p := given.prompt[i+1]
			text += p.GetText()
			if p.GetId() != token.GetId() || math.Float32bits(p.GetLogprob()) != math.Float32bits(token.GetLogprob()) ||
				!proto.Equal(top(p.GetTop()), top(token.GetTop())) {
				t.Errorf("%d stages, token %d: as prompt %v, written %v", stages, i, p, token)
			}
		}
		if !strings.Contains(text, strings.TrimSpace(written.text())) {
			t.Errorf("the prompt reads %q, the answer %q", text, written.text())
		}
	}
}

func top(list []*routerv1.TopCandidate) *routerv1.TokenEvent {
	return &routerv1.TokenEvent{Top: list}
}

// An echo does not change the tokens of the answer.
func TestMesh_EchoChangesNoToken(t *testing.T) {
	router := mesh(t, app.MeshConfig{Model: shared(t, "models/stories260K/stories260K-f32.gguf"), Stages: 2})
	r := &routerv1.GenerateRequest{
		Prompt: &routerv1.GenerateRequest_Text{Text: "Once upon a time, there was a"}, MaxTokens: 30,
		Sampling: &routerv1.Sampling{Temperature: proto.Float32(0)},
	}
	plain, err := hear(t.Context(), router, r)
	if err != nil {
		t.Fatal(err)
	}
	r.Echo, r.PromptLogprobs = true, true
	echoed, err := hear(t.Context(), router, r)
	if err != nil || echoed.text() != plain.text() || len(echoed.prompt) != len(plain.started.GetPromptIds()) {
		t.Fatalf("%v: %q after an echo of %d, %q without", err, echoed.text(), len(echoed.prompt), plain.text())
	}
	text := ""
	for _, token := range echoed.prompt {
		text += token.GetText()
	}
	if text != r.GetText() {
		t.Errorf("the echo reads %q", text)
	}
}

func TestMesh_ContextLengthBoundsPromptAndAnswer(t *testing.T) {
	router := mesh(t, app.MeshConfig{Model: shared(t, "models/stories260K/stories260K-f32.gguf"), Stages: 2})
	models, err := router.ListModels(t.Context(), &routerv1.ListModelsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	n := models.GetModels()[0].GetContext()
	long := make([]uint32, n+3)
	for i := range long {
		long[i] = 1 + uint32(i%200)
	}
	_, err = hear(t.Context(), router, &routerv1.GenerateRequest{Prompt: ids(long...), MaxTokens: 1})
	if text := status.Convert(err).Message(); status.Code(err) != codes.OutOfRange ||
		!strings.Contains(text, fmt.Sprint(n)) || !strings.Contains(text, fmt.Sprint(n+3)) {
		t.Errorf("%d tokens: %v", n+3, err)
	}
	for _, most := range []uint32{0, 500} {
		h, err := hear(t.Context(), router, &routerv1.GenerateRequest{
			Prompt: ids(long[:n-5]...), MaxTokens: most, IgnoreEnd: true,
			Sampling: &routerv1.Sampling{Temperature: proto.Float32(0)},
		})
		if err != nil || len(h.tokens) != 5 ||
			h.finished.GetFinishReason() != samplerv1.FinishReason_FINISH_REASON_LENGTH {
			t.Errorf("at most %d: %d tokens, %v, %v", most, len(h.tokens), h.finished, err)
		}
	}
}

// generation_config.json gives the sampling parameters of requests that do not set them.
func TestMesh_GenerationConfigGivesDefaults(t *testing.T) {
	from := shared(t, "models/tiny/llama")
	dir := filepath.Join(t.TempDir(), "m")
	if err := os.CopyFS(dir, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	config, err := json.Marshal(map[string]any{"do_sample": false, "max_new_tokens": 9, "eos_token_id": []int{7, 9}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "generation_config.json"), config, 0o600); err != nil {
		t.Fatal(err)
	}
	router := mesh(t, app.MeshConfig{Model: dir})
	plain, err := hear(t.Context(), router, &routerv1.GenerateRequest{Prompt: ids(3, 4), IgnoreEnd: true})
	if err != nil {
		t.Fatal(err)
	}
	greedy, err := hear(t.Context(), router,
		&routerv1.GenerateRequest{Prompt: ids(3, 4), IgnoreEnd: true, MaxTokens: 9,
			Sampling: &routerv1.Sampling{Temperature: proto.Float32(0)}})
	if err != nil {
		t.Fatal(err)
	}
	if len(plain.tokens) != 9 {
		t.Fatalf("%d tokens, want max_new_tokens", len(plain.tokens))
	}
	for i := range plain.tokens {
		if plain.tokens[i].GetId() != greedy.tokens[i].GetId() {
			t.Errorf("token %d is not greedy", i)
		}
	}
	models, err := router.ListModels(t.Context(), &routerv1.ListModelsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	m := models.GetModels()[0]
	// The end-of-text id of the tokenizer still ends a generation, as in vLLM.
	if fmt.Sprint(m.GetEndIds()) != "[2 7 9]" || m.GetDefaults().GetMaxTokens() != 9 ||
		m.GetDefaults().Temperature == nil {
		t.Errorf("the description of the model is %v", m)
	}
	warm, err := hear(t.Context(), router, &routerv1.GenerateRequest{
		Prompt: ids(3, 4), IgnoreEnd: true, MaxTokens: 30,
		Sampling: &routerv1.Sampling{Temperature: proto.Float32(5), Seed: proto.Uint64(1)},
	})
	if err != nil || len(warm.tokens) != 30 {
		t.Fatalf("%d tokens, %v: the fields of the request take precedence", len(warm.tokens), err)
	}
}
