package router_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/services/router"
)

// TestService_SamplerRefusesRules_EndsTheRequestByItsField lets the sampler refuse what the
// router did not find.
func TestService_SamplerRefusesRules_EndsTheRequestByItsField(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := prometheus.NewRegistry()
		m := newMesh(t, 1, 2, router.Config{Metrics: r})
		var adds atomic.Int64
		m.sampler.mu.Lock()
		m.sampler.refuse = func(a *samplerv1.AddSession) *samplerv1.SessionFailed {
			if a.GetRules().GetTopK() != 13 {
				return nil
			}
			adds.Add(1)
			return &samplerv1.SessionFailed{Code: uint32(codes.InvalidArgument), Field: "top_k",
				Message: "13 is not supported"}
		}
		m.sampler.mu.Unlock()
		var wg sync.WaitGroup
		wg.Go(func() { m.streams(4, 100) })
		for range 20 {
			q := greedy("unlucky", 5)
			q.Sampling.TopK = proto.Uint32(13)
			a, err := m.generate(t.Context(), q, nil)
			var f *fault.Error
			if !errors.As(rpc.FromStatus(err), &f) || f.Code != fault.Invalid || f.Field != "sampling.top_k" {
				t.Fatalf("refused by %v", err)
			}
			if a.started != nil {
				t.Error("a refused request was reported as admitted")
			}
		}
		wg.Wait()
		if moves := counts(t, r, "lamina_router_moves_total"); adds.Load() != 20 || moves != 0 {
			t.Errorf("%d sessions for 20 requests, %d moves", adds.Load(), moves)
		}
	})
}

// TestService_SamplerLostASession_ReplaysIt lets the sampler lose each session once.
func TestService_SamplerLostASession_ReplaysIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, 1, 1, router.Config{})
		m.sampler.mu.Lock()
		m.sampler.refuse = func(a *samplerv1.AddSession) *samplerv1.SessionFailed {
			if a.GetEpoch() > 1 {
				return nil
			}
			return &samplerv1.SessionFailed{Code: uint32(codes.Aborted), Message: "lost"}
		}
		m.sampler.mu.Unlock()
		m.streams(4, 50)
		m.check()
	})
}

// TestService_StageRefusesAPrompt_LosesNoPipeline refuses entries that want no logits. The batch
// must end nevertheless.
func TestService_StageRefusesAPrompt_LosesNoPipeline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, 1, 1, router.Config{ChunkRows: 2})
		s := m.shards["shard-0-0"]
		s.mu.Lock()
		s.refuse = true
		s.mu.Unlock()
		for range 4 { // more requests than batches that may be in flight
			if _, err := m.generate(t.Context(), greedy("refused", 5), nil); status.Code(err) != codes.Unavailable {
				t.Fatalf("refused by %v", err)
			}
		}
		s.mu.Lock()
		s.refuse = false
		s.mu.Unlock()
		m.streams(2, 20)
	})
}

// TestService_RequestThatEndsPipelines_IsSetAsideAlone sends requests that end every stream
// they come to, in their prompt or with a later token, beside others.
func TestService_RequestThatEndsPipelines_IsSetAsideAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := prometheus.NewRegistry()
		m := newMesh(t, 1, 2, router.Config{Metrics: r})
		m.takes(time.Millisecond, 0)
		for _, s := range m.shards {
			s.mu.Lock()
			s.poison = '!'
			s.mu.Unlock()
		}
		var wg sync.WaitGroup
		wg.Go(func() { m.streams(8, 900) })
		eventually(t, "the streams", func() bool { return m.used() == 8 })
		for i := range 3 {
			if err := m.service.AwaitPipelines(t.Context(), 2); err != nil { // lost pipelines are opened again
				t.Fatal(err)
			}
			_, err := m.generate(t.Context(), greedy(fmt.Sprintf("poison %d!", i), 5), nil)
			if status.Code(err) != codes.Aborted || !strings.Contains(err.Error(), "set aside") ||
				!strings.Contains(err.Error(), "poison") {
				t.Errorf("poison %d: %v", i, err)
			}
			var f *fault.Error
			if errors.As(rpc.FromStatus(err), &f) && f.RetryAfter != 0 {
				t.Errorf("poison %d carries a retry hint: %v", i, err)
			}
		}
		wg.Wait()
		if counts(t, r, "lamina_router_moves_total") == 0 {
			t.Error("no pipeline died")
		}
	})
}

// TestService_TokenizerCalls_DoNotGrowWithTheText counts the calls of tokenizers.
func TestService_TokenizerCalls_DoNotGrowWithTheText(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, 1, 1, router.Config{})
		for i, n := range []int{1, 10, 400} {
			r := greedy("hops", n)
			r.TopLogprobs = 3
			before := m.calls.Load()
			a, err := m.generate(t.Context(), r, nil)
			if err != nil || a.text != expect("hops", n) {
				t.Fatalf("%q, %v", a.text, err)
			}
			want := int64(1) // to encode the prompt
			if i == 0 {
				want = 2 // and once to list the vocabulary
			}
			if got := m.calls.Load() - before; got != want {
				t.Errorf("%d calls of tokenizers for %d tokens, want %d", got, n, want)
			}
		}
		if _, err := m.client.Topology(t.Context(), &routerv1.TopologyRequest{}); err != nil {
			t.Fatal(err)
		}
	})
}
