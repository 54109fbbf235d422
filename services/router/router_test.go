package router_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/lamina-mesh/lamina/internal/leak"
	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/services/router"
)

// TestMain fails if a goroutine outlives the tests.
func TestMain(m *testing.M) { leak.Main(m) }

// check fails the test if the router violated a shard's protocol.
func (m *mesh) check() {
	m.t.Helper()
	m.sampler.mu.Lock()
	for _, f := range m.sampler.faults {
		m.t.Errorf("sampler: %s", f)
	}
	m.sampler.mu.Unlock()
	for name, s := range m.shards {
		s.mu.Lock()
		for _, f := range s.faults {
			m.t.Errorf("%s: %s", name, f)
		}
		s.mu.Unlock()
	}
}

func TestService_AnyStagesAndChunks_GiveTheSameTokens(t *testing.T) {
	prompt := strings.Repeat("to be or not ", 5)
	for _, stages := range []int{1, 2} {
		for _, chunk := range []int{1, 7, 512} {
			t.Run(fmt.Sprintf("%d stages, chunks of %d", stages, chunk), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					m := newMesh(t, stages, 1, router.Config{ChunkRows: chunk})
					a, err := m.generate(t.Context(), greedy(prompt, 20), nil)
					if err != nil {
						t.Fatal(err)
					}
					if want := expect(prompt, 20); a.text != want {
						t.Errorf("text %q, want %q", a.text, want)
					}
					if r := a.finished.GetFinishReason(); r != samplerv1.FinishReason_FINISH_REASON_LENGTH {
						t.Errorf("finish reason %v", r)
					}
					if u := a.finished.GetUsage(); u.GetPromptTokens() != uint32(len(prompt)) ||
						u.GetCompletionTokens() != 20 {
						t.Errorf("usage %v", u)
					}
					if a.started.GetDigest() != digest || !strings.Contains(a.started.GetFingerprint(), "fake/1") {
						t.Errorf("started %v", a.started)
					}
					eventually(t, "the release of every session", func() bool { return m.used() == 0 })
					m.check()
				})
			})
		}
	}
}

func TestService_ConcurrentRequests_ShareBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, 2, 1, router.Config{})
		var wg sync.WaitGroup
		for i := range 32 {
			wg.Go(func() {
				prompt := fmt.Sprintf("request %d says", i)
				a, err := m.generate(t.Context(), greedy(prompt, 40), nil)
				if err != nil {
					t.Errorf("request %d: %v", i, err)
				} else if want := expect(prompt, 40); a.text != want {
					t.Errorf("request %d: %q, want %q", i, a.text, want)
				}
			})
		}
		wg.Wait()
		s := m.shards["shard-0-0"]
		s.mu.Lock()
		most := s.most
		s.mu.Unlock()
		if most < 4 {
			t.Errorf("at most %d sequences shared a batch of 32 concurrent ones", most)
		}
		eventually(t, "the release of every session", func() bool { return m.used() == 0 })
		m.check()
	})
}

func TestService_StopText_EndsTheAnswerBeforeIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, 1, 1, router.Config{})
		whole := expect("stop where", 30)
		r := greedy("stop where", 30)
		r.Stop = []string{whole[9:13]} // spans tokens
		a, err := m.generate(t.Context(), r, nil)
		if err != nil {
			t.Fatal(err)
		}
		if want := whole[:strings.Index(whole, r.GetStop()[0])]; a.text != want {
			t.Errorf("text %q, want %q", a.text, want)
		}
		if got := a.finished.GetFinishReason(); got != samplerv1.FinishReason_FINISH_REASON_STOP {
			t.Errorf("finish reason %v", got)
		}
		eventually(t, "the release of the session", func() bool { return m.used() == 0 })
	})
}

// streams runs requests concurrently. Each must have the text of a run without faults.
func (m *mesh) streams(n, tokens int) {
	m.t.Helper()
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			prompt := fmt.Sprintf("stream %d", i)
			a, err := m.generate(m.t.Context(), greedy(prompt, tokens), nil)
			if err != nil {
				m.t.Errorf("stream %d: %v", i, err)
			} else if want := expect(prompt, tokens); a.text != want {
				m.t.Errorf("stream %d: %q, want %q", i, a.text, want)
			}
		})
	}
	wg.Wait()
}

// struck fails the test if the fault hit no live session.
func (m *mesh) struck(name string) {
	m.t.Helper()
	s := m.shards[name]
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.struck == 0 {
		m.t.Errorf("the fault of %s hit no session in %d batches", name, s.batches)
	}
}

func TestService_LostShard_MovesSessionsAndKeepsTheirText(t *testing.T) {
	for _, name := range []string{"shard-0-0", "shard-0-1"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMesh(t, 2, 2, router.Config{})
				m.shards[name].strike(30, func() { m.network.Cut(name, true) })
				m.streams(8, 200)
				m.struck(name)
			})
		})
	}
}

func TestService_FrozenShard_SessionsMoveAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, 2, 2, router.Config{})
		m.shards["shard-1-1"].freeze(30) // after the steps by which the deadline is measured
		m.streams(8, 200)
		m.struck("shard-1-1")
		resp, err := m.client.Topology(t.Context(), &routerv1.TopologyRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if n := len(resp.GetMesh().GetPipelines()); n == 0 {
			t.Error("no pipeline is open")
		}
	})
}

func TestService_RestartedShard_ServesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, 1, 1, router.Config{})
		m.shards["shard-0-0"].strike(20, func() {
			m.network.Cut("shard-0-0", true)
			m.network.Cut("shard-0-0", false) // like a restart: its cache is lost
		})
		m.streams(1, 200) // requests are refused while there is no pipeline
		m.struck("shard-0-0")
	})
}

func TestService_LostTokenizer_StreamsContinue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, 1, 1, router.Config{})
		for _, lost := range []string{"tokenizer", "tokenizer-b"} {
			m.shards["shard-0-0"].strike(20, func() { m.network.Cut(lost, true) })
			m.streams(1, 200) // requests are refused while no tokenizer can encode
			m.struck("shard-0-0")
			m.network.Cut(lost, false)
		}
	})
}
func TestService_Cancel_FreesEveryStage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, 2, 1, router.Config{})
		for i := range 20 {
			ctx, cancel := context.WithCancel(t.Context())
			_, err := m.generate(ctx, greedy("never mind", 900), func(n int) {
				if n == 1+i%5 {
					cancel()
				}
			})
			cancel()
			if status.Code(err) != codes.Canceled {
				t.Fatalf("cancelled call: %v", err)
			}
		}
		eventually(t, "the release of every session", func() bool { return m.used() == 0 })
		m.check()
		if a, err := m.generate(t.Context(), greedy("after", 5), nil); err != nil || a.text != expect("after", 5) {
			t.Errorf("after the cancels: %q, %v", a.text, err)
		}
	})
}

func TestService_FullQueue_RefusesWithRetryHint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, 1, 1, router.Config{Queue: 1})
		m.shards["shard-0-0"].freeze(1) // no admitted request ends
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var wg sync.WaitGroup
		refused := make(chan error, 64)
		for i := range 64 { // the cache holds 16 prompts of the full context length and the queue one more
			wg.Go(func() {
				prompt := fmt.Sprintf("%02d", i) + strings.Repeat("x", contextLen-8)
				_, err := m.generate(ctx, greedy(prompt, 4), nil)
				refused <- err
			})
		}
		err := <-refused
		cancel()
		wg.Wait()
		if status.Code(err) != codes.Unavailable {
			t.Fatalf("refusal: %v", err)
		}
		var f *fault.Error
		if !errors.As(rpc.FromStatus(err), &f) || f.RetryAfter <= 0 || f.Reason != "QUEUE_FULL" {
			t.Errorf("refusal %v carries no retry hint or no reason", err)
		}
	})
}

// stalled is a client that never reads.
type stalled struct {
	grpc.ServerStream
	ctx context.Context
}

func (s stalled) Context() context.Context { return s.ctx }

func (s stalled) Send(*routerv1.GenerateResponse) error {
	<-s.ctx.Done() // blocks until the call ends, as gRPC's Send does
	return s.ctx.Err()
}

func TestService_StalledClient_IsDisconnected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, 1, 1, router.Config{ReadLimit: 50 * time.Millisecond})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		ended := make(chan error, 1)
		go func() { ended <- m.service.Generate(greedy("nobody reads", 500), stalled{ctx: ctx}) }()
		m.streams(4, 100)
		select {
		case err := <-ended:
			if fault.CodeOf(err) != fault.DeadlineExceeded {
				t.Errorf("disconnected with %v", err)
			}
		case <-time.After(patience):
			t.Fatal("a stalled client was not disconnected")
		}
		eventually(t, "the release of every session", func() bool { return m.used() == 0 })
	})
}

func TestService_Requests_SpreadOverPipelines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, 1, 2, router.Config{})
		m.streams(8, 50)
		for name, s := range m.shards {
			s.mu.Lock()
			if s.batches == 0 {
				t.Errorf("%s had no work", name)
			}
			s.mu.Unlock()
		}
	})
}

func TestService_LastPipelineLost_EndsWithAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, 1, 1, router.Config{})
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		m.shards["shard-0-0"].strike(20, func() { m.network.Cut("shard-0-0", true) })
		a, err := m.generate(ctx, greedy("cut short", 100), nil)
		if err == nil || a.finished != nil {
			t.Errorf("an interrupted answer looks finished: %v, %v", a.finished, err)
		}
		if len(a.ids) == 0 {
			t.Error("no token arrived before the interruption")
		}
	})
}

func TestService_NumbersOutOfBounds_NameTheField(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, 1, 1, router.Config{})
		f := func(v float32) *float32 { return &v }
		for field, change := range map[string]func(*routerv1.GenerateRequest){
			"sampling.temperature": func(r *routerv1.GenerateRequest) { r.Sampling.Temperature = f(101) },
			"sampling.top_p":       func(r *routerv1.GenerateRequest) { r.Sampling.TopP = f(1.5) },
			"sampling.min_p":       func(r *routerv1.GenerateRequest) { r.Sampling.MinP = f(-1) },
			"sampling.top_k": func(
				r *routerv1.GenerateRequest) {
				r.Sampling.TopK = proto.Uint32(math.MaxUint32)
			},
			"sampling.repetition_penalty": func(r *routerv1.GenerateRequest) { r.Sampling.RepetitionPenalty = f(0) },
			"sampling.frequency_penalty": func(
				r *routerv1.GenerateRequest) {
				r.Sampling.FrequencyPenalty = float32(math.NaN())
			},
			"sampling.presence_penalty": func(r *routerv1.GenerateRequest) { r.Sampling.PresencePenalty = 3 },
			"sampling.logit_bias": func(
				r *routerv1.GenerateRequest) {
				r.Sampling.LogitBias = map[uint32]float32{1: 200}
			},
			"max_tokens":   func(r *routerv1.GenerateRequest) { r.MaxTokens = math.MaxUint32 },
			"top_logprobs": func(r *routerv1.GenerateRequest) { r.TopLogprobs = 21 },
			"stop":         func(r *routerv1.GenerateRequest) { r.Stop = make([]string, 17) },
			"stop[0]":      func(r *routerv1.GenerateRequest) { r.Stop = []string{""} },
			"echo":         func(r *routerv1.GenerateRequest) { r.PromptLogprobs = true },
		} {
			r := greedy("bounds", 4)
			change(r)
			_, err := m.generate(t.Context(), r, nil)
			var got *fault.Error
			if !errors.As(rpc.FromStatus(err), &got) || got.Code != fault.Invalid || got.Field != field {
				t.Errorf("%s out of bounds: %v", field, err)
			}
		}
		r := greedy("who", 4)
		r.Model = "nobody"
		if _, err := m.generate(t.Context(), r, nil); status.Code(err) != codes.NotFound {
			t.Errorf("unknown model: %v", err)
		}
	})
}

func TestService_Topology_NamesMembersAndStages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, 2, 2, router.Config{})
		var resp *routerv1.TopologyResponse
		eventually(t, "8 members", func() (ok bool) { // 4 shards, 2 tokenizers, sampler, router
			var err error
			if resp, err = m.client.Topology(t.Context(), &routerv1.TopologyRequest{}); err != nil {
				t.Fatal(err)
			}
			return len(resp.GetMesh().GetMembers()) == 8
		})
		for _, p := range resp.GetMesh().GetPipelines() {
			if s := p.GetStages(); len(s) != 2 || s[0].GetLo() != 0 || s[0].GetHi() != s[1].GetLo() ||
				s[1].GetHi() != 2 {
				t.Errorf("pipeline %s: stages %v", p.GetId(), s)
			}
		}
		models, err := m.client.ListModels(t.Context(), &routerv1.ListModelsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if l := models.GetModels(); len(l) != 1 || l[0].GetName() != "fake" || l[0].GetPipelines() != 2 ||
			l[0].GetContext() != contextLen {
			t.Errorf("models %v", l)
		}
	})
}
