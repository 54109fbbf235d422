package router_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	"github.com/lamina-mesh/lamina/pkg/journal"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/services/router"
)

const (
	slide    = routerv1.ContextMode_CONTEXT_MODE_SLIDE
	truncate = routerv1.ContextMode_CONTEXT_MODE_TRUNCATE_MIDDLE
)

// slid returns a request that slides.
func slid(prompt string, n int, length, sinks, window uint32) *routerv1.GenerateRequest {
	r := greedy(prompt, n)
	r.ContextPolicy = &routerv1.ContextPolicy{Mode: slide, Length: length, Sinks: &sinks, Window: window}
	return r
}

// expectSlid returns the text of a model that sees a list of tokens which is cut down whenever it is
// full, and how many tokens were dropped when each token was picked.
func expectSlid(prompt string, n int, length, sinks, window int) (text string, dropped []int) {
	var seen []uint32
	gone := 0
	push := func(id uint32) {
		if seen = append(seen, id); len(seen) == length {
			gone += length - sinks - window
			seen = slices.Concat(seen[:sinks], seen[length-window:])
		}
	}
	for _, b := range []byte(prompt) {
		push(uint32(b))
	}
	for i := range n {
		id := picked(next(seen), i)
		text += string(rune(id))
		dropped = append(dropped, gone)
		push(id)
	}
	return text, dropped
}

// checkSlid runs a request that slides and compares everything that it reports.
func (m *mesh) checkSlid(r *routerv1.GenerateRequest, each func(n int)) {
	m.t.Helper()
	p, prompt, n := r.GetContextPolicy(), r.GetText(), int(r.GetMaxTokens())
	want, dropped := expectSlid(prompt, n, int(p.GetLength()), int(p.GetSinks()), int(p.GetWindow()))
	a, err := m.generate(m.t.Context(), r, each)
	if err != nil {
		m.t.Errorf("%d tokens after %d: %v", n, len(prompt), err)
		return
	}
	if a.text != want {
		at := 0
		for at < min(len(want), len(a.text)) && want[at] == a.text[at] {
			at++
		}
		m.t.Errorf("%v: the text of %d tokens differs from token %d on, after %d prompt tokens", p, len(a.text), at,
			len(prompt))
	}
	use, end := a.started.GetContext(), a.finished.GetContext()
	if use.GetMode() != slide || use.GetLength() != p.GetLength() || use.GetSinks() != p.GetSinks() ||
		use.GetWindow() != p.GetWindow() || !use.GetRecomputed() || count(use) != dropped[0] ||
		count(end) != dropped[n-1] {
		m.t.Errorf(
			"%v: started with %v, finished with %v, want %d and %d dropped",
			p,
			use,
			end,
			dropped[0],
			dropped[n-1],
		)
	}
	if len(a.started.GetPromptIds()) != len(prompt) || int(a.finished.GetUsage().GetCompletionTokens()) != n ||
		a.finished.GetFinishReason() != samplerv1.FinishReason_FINISH_REASON_LENGTH {
		m.t.Errorf("%d prompt ids, finished with %v", len(a.started.GetPromptIds()), a.finished)
	}
	for i, got := range a.dropped {
		if i == 0 || dropped[i] == dropped[i-1] {
			if got != nil {
				m.t.Errorf("token %d reports %v", i, got)
			}
		} else if int(got.GetCount()) != dropped[i] || got.GetFirst() != p.GetSinks() {
			m.t.Errorf("token %d reports %v, want %d dropped", i, got, dropped[i])
		}
	}
}

func count(u *routerv1.ContextUse) int {
	n := 0
	for _, d := range u.GetDropped() {
		n += int(d.GetCount())
	}
	return n
}

func TestService_Slide_IsTheModelOverTheKeptTokens(t *testing.T) {
	for _, c := range []struct{ stages, chunk, draft int }{{1, 512, 0}, {2, 7, 0}, {2, 64, 4}} {
		t.Run(fmt.Sprint(c), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMesh(t, c.stages, 1, router.Config{ChunkRows: c.chunk, Speculate: c.draft})
				for _, r := range []*routerv1.GenerateRequest{
					slid("short", 300, 64, 4, 30), slid("short", 100, 64, 0, 1), slid("short", 100, 64, 20, 43),
					slid(strings.Repeat("x", 63), 5, 64, 4, 30), slid(strings.Repeat("x", 64), 5, 64, 4, 30),
					slid(strings.Repeat("a long one ", 300), 40, 64, 4, 30), slid("no slide", 20, 1024, 4, 510),
				} {
					m.checkSlid(r, nil)
				}
				eventually(t, "the release of every session", func() bool { return m.used() == 0 })
				m.check()
			})
		})
	}
}

func TestService_Slide_DefaultsAreReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, 1, 1, router.Config{})
		r := greedy(strings.Repeat("nine thousand ", 643), 30) // 9,002 tokens in a context of 1,024
		r.ContextPolicy = &routerv1.ContextPolicy{Mode: slide}
		a, err := m.generate(t.Context(), r, nil)
		if err != nil {
			t.Fatal(err)
		}
		use := a.started.GetContext()
		want, _ := expectSlid(r.GetText(), 30, contextLen, 4, 510)
		if use.GetLength() != contextLen || use.GetSinks() != 4 || use.GetWindow() != 510 || a.text != want {
			t.Errorf("%v, %q, want %q", use, a.text, want)
		}
		r = greedy("no limit", 0)
		r.ContextPolicy = &routerv1.ContextPolicy{Mode: slide, Length: 64}
		if a, err = m.generate(t.Context(), r, nil); err != nil || len(a.text) != 64 {
			t.Errorf("without max_tokens: %d tokens, %v", len(a.text), err)
		}
	})
}

// cutOneByOne cuts the first shard that gets its batch of the first number, and then one that gets its
// batch of the second number after that.
func (m *mesh) cutOneByOne(first, second int) {
	var cuts atomic.Int32
	for name, s := range m.shards {
		s.strike(first, func() {
			if cuts.Add(1) > 1 {
				return
			}
			for other, s := range m.shards {
				if other != name {
					s.strike(second, func() {
						if cuts.Add(1) == 2 {
							m.network.Cut(other, true)
						}
					})
				}
			}
			m.network.Cut(name, true)
		})
	}
}

// TestService_Slide_SurvivesLostPipelines loses a pipeline at every phase of a slide: before it, while
// the kept tokens are computed, and after it.
func TestService_Slide_SurvivesLostPipelines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for at := 1; at < 40; at += 3 {
			m := newMesh(t, 2, 3, router.Config{ChunkRows: 5, CacheIdle: -1})
			var started atomic.Bool
			m.checkSlid(slid("moved", 90, 64, 4, 30), func(n int) {
				if n == 45 && started.CompareAndSwap(false, true) { // the log of 64 tokens is full after 59
					m.cutOneByOne(at, 30)
				}
			})
			m.check()
		}
	})
}

func TestService_TruncateMiddle_IsTheRequestWithTheShortenedPrompt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, 2, 1, router.Config{})
		for _, c := range []struct{ prompt, most, length, kept int }{
			{9002, 30, 0, contextLen - 30}, {contextLen, 30, 0, contextLen - 30},
			{contextLen - 30, 30, 0, contextLen - 30},
			{contextLen - 29, 30, 0, contextLen - 30}, {9002, 0, 0, contextLen * 3 / 4},
			{9002, 900, 0, contextLen * 3 / 4},
			{10, 30, 16, 10}, {13, 30, 16, 12}, {100, 30, 2, 1}, {100, 30, 5, 4},
		} {
			text := ""
			for i := range c.prompt {
				text += string(rune('a' + i*i%23))
			}
			r := greedy(text, c.most)
			r.ContextPolicy = &routerv1.ContextPolicy{Mode: truncate, Length: uint32(c.length)}
			a, err := m.generate(t.Context(), r, nil)
			if err != nil {
				t.Errorf("%v: %v", c, err)
				continue
			}
			use := a.started.GetContext()
			if len(a.started.GetPromptIds()) != c.kept || count(use) != c.prompt-c.kept {
				t.Errorf("%v: %d tokens are kept, %v", c, len(a.started.GetPromptIds()), use)
				continue
			}
			if d := use.GetDropped(); len(d) > 0 {
				text = text[:d[0].GetFirst()] + text[d[0].GetFirst()+d[0].GetCount():]
			}
			most := c.most
			if room := max(2, cmp.Or(c.length, contextLen)) - c.kept; most == 0 || most > room {
				most = room
			}
			if a.text != expect(text, most) || a.started.GetContext().GetRecomputed() ||
				!proto.Equal(a.finished.GetContext(), use) {
				t.Errorf("%v: %q, want %q; %v", c, a.text, expect(text, most), a.finished)
			}
		}
	})
}

func TestService_Stop_IsReportedIfItIsAskedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, 1, 1, router.Config{})
		r := greedy("stop", 90)
		r.ContextPolicy = &routerv1.ContextPolicy{Length: 40}
		a, err := m.generate(t.Context(), r, nil)
		if err != nil || a.text != expect("stop", 36) || a.finished.GetContext().GetLength() != 40 ||
			a.finished.GetContext().GetMode() != routerv1.ContextMode_CONTEXT_MODE_STOP {
			t.Errorf("%d tokens, %v, %v", len(a.text), a.finished, err)
		}
		if a, err = m.generate(t.Context(), greedy("stop", 9), nil); err != nil || a.started.Context != nil ||
			a.finished.Context != nil {
			t.Errorf("without a policy: %v, %v, %v", a.started, a.finished, err)
		}
	})
}

func TestService_ContextFields_HaveBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, 1, 1, router.Config{})
		for _, c := range []struct {
			field string
			code  codes.Code
			set   func(r *routerv1.GenerateRequest)
		}{
			{"context_policy.mode", codes.InvalidArgument, func(r *routerv1.GenerateRequest) {
				r.ContextPolicy = &routerv1.ContextPolicy{Mode: 99}
			}},
			{"context_policy.length", codes.InvalidArgument, func(r *routerv1.GenerateRequest) {
				r.ContextPolicy = &routerv1.ContextPolicy{Mode: slide, Length: 1 << 30}
			}},
			{"context_policy.length", codes.InvalidArgument, func(r *routerv1.GenerateRequest) {
				r.ContextPolicy = &routerv1.ContextPolicy{Mode: slide, Length: contextLen + 1}
			}},
			{"context_policy.length", codes.InvalidArgument, func(r *routerv1.GenerateRequest) {
				r.ContextPolicy = &routerv1.ContextPolicy{Mode: truncate, Length: 1}
			}},
			{"context_policy.sinks", codes.InvalidArgument, func(r *routerv1.GenerateRequest) {
				r.ContextPolicy = &routerv1.ContextPolicy{Mode: truncate, Sinks: proto.Uint32(0)}
			}},
			{"context_policy.window", codes.InvalidArgument, func(r *routerv1.GenerateRequest) {
				r.ContextPolicy = &routerv1.ContextPolicy{Window: 9}
			}},
			{"context_policy.window", codes.InvalidArgument, func(r *routerv1.GenerateRequest) {
				r.ContextPolicy = &routerv1.ContextPolicy{Mode: slide, Window: 1<<32 - 1}
			}},
			{"context_policy", codes.InvalidArgument, func(r *routerv1.GenerateRequest) {
				r.ContextPolicy = &routerv1.ContextPolicy{Mode: slide, Length: 8, Window: 4, Sinks: proto.Uint32(4)}
			}},
			{"max_tokens", codes.InvalidArgument, func(r *routerv1.GenerateRequest) {
				r.ContextPolicy = &routerv1.ContextPolicy{Mode: slide, Length: 64}
				r.MaxTokens = 1 << 20
			}},
			{"prompt_logprobs", codes.InvalidArgument, func(r *routerv1.GenerateRequest) {
				r.ContextPolicy = &routerv1.ContextPolicy{Mode: slide, Length: 8}
				r.Echo, r.PromptLogprobs = true, true
			}},
			{"priority", codes.InvalidArgument, func(r *routerv1.GenerateRequest) { r.Priority = 101 }},
			{"priority", codes.InvalidArgument, func(r *routerv1.GenerateRequest) { r.Priority = -1 << 31 }},
			{"wait_for_capacity", codes.InvalidArgument, func(r *routerv1.GenerateRequest) {
				r.WaitForCapacity = proto.Uint32(3601)
			}},
		} {
			r := greedy("a prompt of 21 tokens", 5)
			c.set(r)
			_, err := m.generate(t.Context(), r, nil)
			if status.Code(err) != c.code || !strings.HasPrefix(status.Convert(err).Message(), c.field+": ") {
				t.Errorf("%v: %v", c.field, err)
			}
		}
		eventually(t, "the end of the probe's session", func() bool { return m.used() == 0 })
	})
}

// TestService_PolicyBeyondTheKVCache_IsOutOfRange: the answer under a policy never depends on how much
// the KV cache holds.
func TestService_PolicyBeyondTheKVCache_IsOutOfRange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, 1, 1, router.Config{}, 20) // pages, for 320 positions
		for _, mode := range []routerv1.ContextMode{slide, truncate} {
			r := greedy("too much", 1000)
			r.ContextPolicy = &routerv1.ContextPolicy{Mode: mode}
			_, err := m.generate(t.Context(), r, nil)
			if text := status.Convert(err).Message(); status.Code(err) != codes.OutOfRange ||
				!strings.HasPrefix(text, "context_policy.length: ") || !strings.Contains(text, "320") {
				t.Errorf("%v: %v", mode, err)
			}
			r.ContextPolicy.Length = 320
			if _, err := m.generate(t.Context(), r, nil); err != nil {
				t.Errorf("%v within the cache: %v", mode, err)
			}
		}
	})
}

// hasRetry reports whether an error says when to try again, and why it was refused.
func hasRetry(err error, reason string) bool {
	var f *fault.Error
	return errors.As(rpc.FromStatus(err), &f) && f.RetryAfter > 0 && f.Reason == reason
}

func TestService_NoPipeline_IsToldInTimeOrWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, 1, 1, router.Config{})
		m.network.Cut("shard-0-0", true)
		eventually(t, "the loss of the pipeline", func() bool {
			topology, err := m.client.Topology(t.Context(), &routerv1.TopologyRequest{})
			return err == nil && len(topology.GetMesh().GetPipelines()) == 0
		})
		for _, c := range []struct {
			wait      *uint32
			least, at time.Duration
		}{{proto.Uint32(0), 0, time.Second}, {proto.Uint32(1), time.Second, 2 * time.Second}, {nil, 3 * time.Second,
			5 * time.Second}} {
			r := greedy("waits", 3)
			r.WaitForCapacity = c.wait
			start := time.Now()
			_, err := m.generate(t.Context(), r, nil)
			took := time.Since(start)
			if status.Code(err) != codes.Unavailable || took < c.least || took > c.at || !hasRetry(err, "NO_CAPACITY") {
				t.Errorf("wait %v: %v after %v", c.wait, err, took)
			}
		}
		r := greedy("waits long enough", 30)
		r.WaitForCapacity = proto.Uint32(15)
		heal := time.AfterFunc(300*time.Millisecond, func() { m.network.Cut("shard-0-0", false) })
		defer heal.Stop()
		if a, err := m.generate(t.Context(), r, nil); err != nil || a.text != expect("waits long enough", 30) {
			t.Errorf("%q, %v", a.text, err)
		}
		// A request in flight is told as well.
		start := time.Time{}
		_, err := m.generate(t.Context(), greedy("in flight", 900), func(n int) {
			if n == 20 {
				start = time.Now()
				m.network.Cut("shard-0-0", true)
			}
		})
		if took := time.Since(
			start,
		); status.Code(err) != codes.Unavailable || took > 5*time.Second ||
			!hasRetry(err, "NO_CAPACITY") {
			t.Errorf("in flight: %v after %v", err, took)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := m.generate(ctx, greedy("gone", 3), nil); status.Code(err) != codes.Canceled {
			t.Errorf("a client that is gone: %v", err)
		}
	})
}

// TestService_Slide_ResumesOnAnotherRouter loses the router around a slide. What was dropped is reported
// again as it was.
func TestService_Slide_ResumesOnAnotherRouter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const tokens = 140
		for _, lost := range []int{20, 58, 59, 60, 61, 90, 130} { // the log of 64 tokens is full after 59
			j := journal.NewMemory(journal.Limits{Bytes: 1 << 24})
			m := newMesh(t, 2, 1, router.Config{})
			b := m.peer("router-b", router.Config{Journal: j})
			a := m.peer("router-a", router.Config{Journal: j})
			r := slid("moved", tokens, 64, 4, 30)
			r.Resumable = true
			r.Priority = -7
			var p part
			err := p.generate(patient(t), a.client, r, func(n int) bool { return n < lost })
			if err != nil {
				t.Fatalf("lost at %d: %v", lost, err)
			}
			a.kill()
			p.tokens = p.tokens[:lost-1] // a client may lose a token too
			if err := p.resume(patient(t), b.client, nil); err != nil {
				t.Fatalf("lost at %d: resume: %v", lost, err)
			}
			want, dropped := expectSlid("moved", tokens, 64, 4, 30)
			if p.text() != want || count(p.finished.GetContext()) != dropped[tokens-1] ||
				p.started.GetContext().GetWindow() != 30 {
				t.Errorf("lost at %d: %q, want %q; %v", lost, p.text(), want, p.finished.GetContext())
			}
			for i, e := range p.tokens {
				if slides := i > 0 && dropped[i] > dropped[i-1]; slides != (e.GetDropped() != nil) ||
					slides && int(e.GetDropped().GetCount()) != dropped[i] {
					t.Errorf("lost at %d: token %d reports %v, want %d", lost, i, e.GetDropped(), dropped[i])
				}
			}
			m.check()
		}
	})
}
