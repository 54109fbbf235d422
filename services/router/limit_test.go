package router_test

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	"github.com/lamina-mesh/lamina/services/router"
)

func TestService_PromptBeyondTheContext_IsOutOfRangeAndNamesBothNumbers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, 2, 2, router.Config{})
		for _, n := range []int{contextLen, contextLen + 1, 9031} {
			_, err := m.generate(t.Context(), greedy(strings.Repeat("x", n), 1), nil)
			if text := status.Convert(err).Message(); status.Code(err) != codes.OutOfRange ||
				!strings.Contains(text, fmt.Sprint(n)) || !strings.Contains(text, fmt.Sprint(contextLen)) ||
				!strings.HasPrefix(text, "prompt: ") {
				t.Errorf("%d tokens: %v", n, err)
			}
		}
		eventually(t, "the release of every session", func() bool { return m.used() == 0 }) // of probes
	})
}

func TestService_GenerationEndsAtTheContextLength(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, 1, 1, router.Config{})
		prompt := strings.Repeat("y", contextLen-7)
		for _, most := range []uint32{0, 7, 8, 900} {
			a, err := m.generate(t.Context(), greedy(prompt, int(most)), nil)
			if err != nil {
				t.Fatalf("at most %d: %v", most, err)
			}
			if a.text != expect(prompt, 7) ||
				a.finished.GetFinishReason() != samplerv1.FinishReason_FINISH_REASON_LENGTH {
				t.Errorf("at most %d: %d tokens, %v", most, len(a.text), a.finished.GetFinishReason())
			}
		}
	})
}

func TestService_ListModels_ReportsContextLengthAndEndIDs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, 1, 1, router.Config{})
		models, err := m.client.ListModels(t.Context(), &routerv1.ListModelsRequest{})
		if err != nil || len(models.GetModels()) != 1 || models.GetModels()[0].GetMaxContext() != contextLen ||
			len(models.GetModels()[0].GetEndIds()) != 1 {
			t.Errorf("models %v, %v", models, err)
		}
	})
}

func TestService_ChoicesBeyondTheKVCache_ErrorNamesTheLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, 1, 2, router.Config{}) // 2 caches of 1024 pages of 16 positions
		r := greedy("four", 1000)              // 63 pages per choice, so 16 choices per cache
		r.Sampling.Choices = 33
		_, err := m.generate(t.Context(), r, nil)
		if text := status.Convert(err).Message(); status.Code(err) != codes.InvalidArgument ||
			!strings.HasPrefix(text, "n: 33 choices") || !strings.Contains(text, "at most 32") {
			t.Errorf("33 choices: %v", err)
		}
		r.MaxTokens, r.Sampling.Choices = 12, 128
		if _, err := m.generate(t.Context(), r, nil); err != nil {
			t.Errorf("128 choices of a page: %v", err)
		}
	})
}

func TestService_Suffix_IsRefusedByName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, 1, 1, router.Config{})
		r, suffix := greedy("def f(", 4), "return"
		r.Suffix = &suffix
		if _, err := m.generate(t.Context(), r, nil); status.Code(err) != codes.InvalidArgument ||
			!strings.HasPrefix(status.Convert(err).Message(), "suffix: ") {
			t.Errorf("a model without the tokens: %v", err)
		}
	})
}

// echoed runs a request and joins the parts of the prompt that it reports.
func (m *mesh) echoed(r *routerv1.GenerateRequest) (prompt []*routerv1.PromptToken, text string,
	finished *routerv1.Finished) {
	m.t.Helper()
	stream, err := m.client.Generate(m.t.Context(), r)
	if err != nil {
		m.t.Fatal(err)
	}
	for {
		e, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return prompt, text, finished
		}
		if err != nil {
			m.t.Fatal(err)
		}
		if p := e.GetPrompt(); p != nil {
			if int(p.GetFirst()) != len(prompt) || text != "" {
				m.t.Errorf("part at %d after %d tokens and text %q", p.GetFirst(), len(prompt), text)
			}
			prompt = append(prompt, p.GetTokens()...)
		}
		text += e.GetToken().GetText() + e.GetFinished().GetText()
		if f := e.GetFinished(); f != nil {
			finished = f
		}
	}
}

func TestService_Echo_ReportsThePromptWithItsLogprobs(t *testing.T) {
	for _, c := range []struct{ stages, chunk, prompt int }{{1, 512, 40}, {2, 7, 40}, {2, 1, 9}, {2, 64, 700},
		{1, 64, 1}} {
		t.Run(fmt.Sprint(c), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMesh(t, c.stages, 1, router.Config{ChunkRows: c.chunk, Speculate: 4})
				prompt := strings.Repeat("echo this ", 70)[:c.prompt]
				r := greedy(prompt, 20)
				r.Echo, r.PromptLogprobs, r.TopLogprobs = true, true, 1
				tokens, text, finished := m.echoed(r)
				if len(tokens) != c.prompt || text != expect(prompt, 20) ||
					finished.GetUsage().GetCompletionTokens() != 20 {
					t.Fatalf("%d prompt tokens, text %q, %v", len(tokens), text, finished)
				}
				for i, token := range tokens {
					// The fake sampler makes the row's position the log-probability.
					if token.GetText() != prompt[i:i+1] || (token.Logprob == nil) != (i == 0) || i > 0 &&
						(token.GetLogprob() != -float32(i-1) || len(token.GetTop()) != 1) {
						t.Errorf("token %d is %v", i, token)
					}
				}
				r.PromptOnly, r.MaxTokens = true, 0
				if tokens, text, finished = m.echoed(r); len(tokens) != c.prompt || text != "" ||
					finished.GetUsage().GetCompletionTokens() != 0 {
					t.Errorf("prompt only: %d tokens, text %q, %v", len(tokens), text, finished)
				}
				r = greedy(prompt, 3)
				r.Echo = true
				if tokens, _, _ = m.echoed(r); len(tokens) != c.prompt || tokens[c.prompt-1].Logprob != nil {
					t.Errorf("echo alone: %v", tokens)
				}
				eventually(t, "the release of every session", func() bool { return m.used() == 0 })
				m.check()
			})
		})
	}
}

func TestService_EchoOverALostPipeline_IsWhole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, 2, 2, router.Config{ChunkRows: 4})
		m.shards["shard-0-1"].strike(5, func() { m.network.Cut("shard-0-1", true) })
		m.shards["shard-1-1"].strike(200, func() {})
		prompt := strings.Repeat("whole ", 20)
		for range 2 { // one of them hits the fault
			r := greedy(prompt, 4)
			r.Echo, r.PromptLogprobs = true, true
			if tokens, text, _ := m.echoed(r); len(tokens) != len(prompt) || text != expect(prompt, 4) {
				t.Errorf("%d tokens, text %q", len(tokens), text)
			}
		}
	})
}
