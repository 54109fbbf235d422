package app_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/internal/fixtures"

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
	"github.com/lamina-mesh/lamina/internal/leak"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
	"github.com/lamina-mesh/lamina/pkg/kernel/ref"
)

// shared returns the path of a fixture, or skips the test.
func shared(t testing.TB, parts ...string) string {
	t.Helper()
	return fixtures.Path(t, parts...)
}

// startMesh starts a mesh and returns it with a client of its router. The test closes it.
func startMesh(t *testing.T, ctx context.Context, c app.MeshConfig) (*app.Mesh, routerv1.RouterServiceClient) {
	t.Helper()
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
	return m, routerv1.NewRouterServiceClient(conn)
}

func mesh(t *testing.T, c app.MeshConfig) routerv1.RouterServiceClient {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	t.Cleanup(cancel)
	c.Kernels = app.Kernels{Set: ref.New[float32](), Threads: 2}
	_, router := startMesh(t, ctx, c)
	return router
}

func TestMesh_TokensOfTheReferenceOverAnySplit(t *testing.T) {
	defer leak.Check(t)
	const want = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
	for _, stages := range []int{1, 2, 5} {
		t.Run(fmt.Sprint(stages), func(t *testing.T) {
			router := mesh(t, app.MeshConfig{Model: shared(t, "models/stories260K/stories260K-f32.gguf"),
				Stages: stages})
			zero := float32(0)
			stream, err := router.Generate(t.Context(), &routerv1.GenerateRequest{
				Prompt:    &routerv1.GenerateRequest_TokenIds{TokenIds: &routerv1.TokenIds{Ids: []uint32{1}}},
				MaxTokens: 80,
				Sampling:  &routerv1.Sampling{Temperature: &zero}, Stop: []string{" One day"},
			})
			if err != nil {
				t.Fatal(err)
			}
			var text string
			for {
				r, err := stream.Recv()
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				text += r.GetToken().GetText() + r.GetFinished().GetText()
			}
			if text != want {
				t.Errorf("over %d stages the text is %q", stages, text)
			}
		})
	}
}

func TestMesh_ChatsUnderTheModelsTemplate(t *testing.T) {
	router := mesh(t, app.MeshConfig{Model: shared(t, "models/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf"),
		Stages: 3})
	zero := float32(0)
	stream, err := router.Chat(t.Context(), &routerv1.ChatRequest{
		Messages: []*tokenizerv1.Message{{Role: "user", Content: "What is the capital of France?"}}, MaxTokens: 16,
		Sampling: &routerv1.Sampling{Temperature: &zero},
	})
	if err != nil {
		t.Fatal(err)
	}
	var text string
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		text += r.GetToken().GetText() + r.GetFinished().GetText()
	}
	if text != "The capital of France is Paris." {
		t.Errorf("the answer is %q", text)
	}
}

// generateText continues a text greedily.
func generateText(t *testing.T, router routerv1.RouterServiceClient, prompt string, n uint32) string {
	t.Helper()
	zero := float32(0)
	stream, err := router.Generate(t.Context(), &routerv1.GenerateRequest{
		Prompt: &routerv1.GenerateRequest_Text{Text: prompt}, MaxTokens: n,
		Sampling: &routerv1.Sampling{Temperature: &zero},
	})
	if err != nil {
		t.Fatal(err)
	}
	var text string
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return text
		}
		if err != nil {
			t.Fatal(err)
		}
		text += r.GetToken().GetText() + r.GetFinished().GetText()
	}
}
