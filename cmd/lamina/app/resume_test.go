package app_test

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
	"github.com/lamina-mesh/lamina/internal/leak"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	"github.com/lamina-mesh/lamina/pkg/kernel/ref"
	"github.com/lamina-mesh/lamina/services/router"
)

// runPeer runs a further router. The returned function stops it at once.
func runPeer(t *testing.T, ctx context.Context, s *router.Service) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	stop = func() {
		cancel()
		wg.Wait()
	}
	t.Cleanup(stop)
	if err := s.AwaitPipelines(ctx, 1); err != nil {
		t.Fatal(err)
	}
	return stop
}

// resumed collects the tokens of a request.
type resumed struct {
	id       string
	text     string
	ids      []uint32
	logprobs []float32
	reason   samplerv1.FinishReason
}

func (h *resumed) token(t *testing.T, e *routerv1.TokenEvent) {
	if int(e.GetIndex()) != len(h.ids) {
		t.Errorf("token %d comes where %d is due", e.GetIndex(), len(h.ids))
	}
	h.text += e.GetText()
	h.ids, h.logprobs = append(h.ids, e.GetId()), append(h.logprobs, e.GetLogprob())
}

func (h *resumed) finish(f *routerv1.Finished) {
	h.text += f.GetText()
	h.reason = f.GetFinishReason()
}

func (h *resumed) generate(t *testing.T, ctx context.Context, s *router.Service, r *routerv1.GenerateRequest,
	each func(n int)) error {
	return s.Backend().Generate(ctx, r, func(e *routerv1.GenerateResponse) error {
		switch {
		case e.GetStarted() != nil:
			h.id = e.GetStarted().GetRequestId()
		case e.GetToken() != nil:
			h.token(t, e.GetToken())
			each(len(h.ids))
		case e.GetFinished() != nil:
			h.finish(e.GetFinished())
		}
		return nil
	})
}

func (h *resumed) resume(t *testing.T, ctx context.Context, s *router.Service) error {
	r := &routerv1.ResumeRequest{RequestId: h.id, From: uint32(len(h.ids))}
	return s.Backend().Resume(ctx, r, func(e *routerv1.ResumeResponse) error {
		if e.GetToken() != nil {
			h.token(t, e.GetToken())
		}
		if e.GetFinished() != nil {
			h.finish(e.GetFinished())
		}
		return nil
	})
}

func TestResume_LostRouter_TheSameBytesWithRealSampling(t *testing.T) {
	defer leak.Check(t)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	m, _ := startMesh(t, ctx, app.MeshConfig{
		Model: shared(
			t,
			"models/stories260K/stories260K-f32.gguf",
		),
		Stages:  2,
		Train:   true,
		Runs:    app.TrainerConfig{Dir: t.TempDir()},
		Kernels: app.Kernels{Set: ref.New[float32](), Threads: 2},
	})
	zero, seed := float32(0), uint64(7)
	schema := `{"type":"object","properties":{"name":{"type":"string"},"tags":{"type":"array","items":` +
		`{"enum":["a","b","long tag"]},"minItems":30},"n":{"type":"integer"}},"required":["name","tags","n"]}`
	kinds := map[string]*routerv1.Sampling{
		"greedy":  {Temperature: &zero},
		"seeded":  {Seed: &seed, TopP: proto.Float32(0.95), RepetitionPenalty: proto.Float32(1.1)},
		"penalty": {Seed: &seed, FrequencyPenalty: 0.5, PresencePenalty: 0.25},
		"mirostat": {Seed: &seed, Advanced: &samplerv1.Advanced{Mirostat: 2,
			MirostatTau: 4}},
		"schema": {Seed: &seed, Grammar: &samplerv1.Grammar{
			Kind: samplerv1.GrammarKind_GRAMMAR_KIND_JSON_SCHEMA, Source: schema}},
	}
	request := func(s *routerv1.Sampling) *routerv1.GenerateRequest {
		return &routerv1.GenerateRequest{
			Prompt:    &routerv1.GenerateRequest_Text{Text: "Once upon a time"},
			MaxTokens: 200, Sampling: s, IgnoreEnd: s.GetGrammar() == nil, TopLogprobs: 2,
		}
	}
	first, second := m.Peer(), m.Peer()
	kill := runPeer(t, ctx, first)
	runPeer(t, ctx, second)
	var ready, wg sync.WaitGroup
	ready.Add(len(kinds))
	go func() { // ends with the streams
		ready.Wait()
		kill()
	}()
	var cut atomic.Int32 // of the streams; a fast one may end before the slowest has begun
	for name, sampling := range kinds {
		wg.Go(func() {
			var want, got resumed
			r := request(sampling)
			r.Resumable = true
			err := got.generate(t, ctx, first, r, func(n int) {
				if n == 12 {
					ready.Done()
				}
			})
			if err != nil {
				cut.Add(1)
			}
			had := len(got.ids)
			got.reason = samplerv1.FinishReason_FINISH_REASON_UNSPECIFIED // the end may be lost too
			if err := got.resume(t, ctx, second); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if err := want.generate(t, ctx, second, request(sampling), func(int) {}); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			t.Logf("%s: %d of %d tokens before the loss", name, had, len(want.ids))
			if got.text != want.text || !slices.Equal(got.ids, want.ids) ||
				!slices.Equal(got.logprobs, want.logprobs) ||
				got.reason != want.reason {
				t.Errorf("%s:\n%q (%v), want\n%q (%v)", name, got.text, got.reason, want.text, want.reason)
			}
		})
	}
	wg.Wait()
	if cut.Load() == 0 {
		t.Error("every request ended before its router was lost")
	}
}

func TestResume_OverHTTP_TheStreamGoesOn(t *testing.T) {
	defer leak.Check(t)
	defer http.DefaultClient.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	m, _ := startMesh(t, ctx, app.MeshConfig{
		Model: shared(t, "models/stories260K/stories260K-f32.gguf"), HTTP: "127.0.0.1:0",
		Kernels: app.Kernels{Set: ref.New[float32](), Threads: 2},
	})
	url := "http://" + m.HTTPAddr() + "/v1/"
	call := func(ctx context.Context, method, path, body string, header ...string) *http.Response {
		t.Helper()
		r, err := http.NewRequestWithContext(ctx, method, url+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(header); i += 2 {
			r.Header.Set(header[i], header[i+1])
		}
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
	const body = `{"prompt":"Once upon a time","max_tokens":150,"temperature":0,"stream":true,"resumable":true}`
	cut, disconnect := context.WithCancel(ctx)
	resp := call(cut, http.MethodPost, "completions", body)
	id := resp.Header.Get("X-Request-Id")
	var text strings.Builder
	last := ""
	lines := bufio.NewScanner(resp.Body)
	for n := 0; n < 40 && lines.Scan(); n++ {
		text.WriteString(lines.Text() + "\n")
		if number, ok := strings.CutPrefix(lines.Text(), "id: "); ok {
			last = number
		}
		if lines.Text() == "" && strings.Count(text.String(), "\n\n") == 10 {
			break
		}
	}
	disconnect()
	resp.Body.Close()
	if last == "" || len(id) != 32 {
		t.Fatalf("id %q, last event %q: %s", id, last, text.String())
	}
	stream := "requests/" + id + "/stream"
	rest, err := io.ReadAll(call(ctx, http.MethodGet, stream, "", "Last-Event-ID", last).Body)
	if err != nil {
		t.Fatal(err)
	}
	whole, err := io.ReadAll(call(ctx, http.MethodGet, stream+"?from=0", "").Body)
	if err != nil {
		t.Fatal(err)
	}
	if got := text.String() + string(rest); got != string(whole) || !strings.HasSuffix(got, "data: [DONE]\n\n") {
		t.Errorf("in two parts:\n%s\nwhole:\n%s", got, whole)
	}
	resp = call(ctx, http.MethodGet, stream, "", "Lamina-Tenant", "other")
	resp.Body.Close()
	if resp.StatusCode != http.StatusNotFound {
		t.Errorf("another tenant: %s", resp.Status)
	}
}
