package integration_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
)

// answer is a complete generation.
type answer struct {
	text   string
	ids    []uint32
	reason samplerv1.FinishReason
}

// generate runs one request to its end.
func generate(ctx context.Context, mesh *Mesh, req *routerv1.GenerateRequest) (answer, error) {
	var a answer
	stream, err := mesh.Router.Generate(ctx, req)
	if err != nil {
		return a, err
	}
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			if a.reason == samplerv1.FinishReason_FINISH_REASON_UNSPECIFIED {
				return a, errors.New("stream ended without a finish reason")
			}
			return a, nil
		}
		if err != nil {
			return a, err
		}
		switch event := resp.GetEvent().(type) {
		case *routerv1.GenerateResponse_Token:
			a.text += event.Token.GetText()
			a.ids = append(a.ids, event.Token.GetId())
		case *routerv1.GenerateResponse_Finished:
			a.text += event.Finished.GetText()
			a.reason = event.Finished.GetFinishReason()
		}
	}
}

func greedy(prompt string, n uint32) *routerv1.GenerateRequest {
	zero := float32(0)
	return &routerv1.GenerateRequest{
		Prompt: &routerv1.GenerateRequest_Text{Text: prompt}, MaxTokens: n, IgnoreEnd: true,
		Sampling: &routerv1.Sampling{Temperature: &zero},
	}
}

func seeded(prompt string, n uint32, seed uint64) *routerv1.GenerateRequest {
	one, top := float32(0.9), float32(0.95)
	return &routerv1.GenerateRequest{
		Prompt: &routerv1.GenerateRequest_Text{Text: prompt}, MaxTokens: n, IgnoreEnd: true,
		Sampling: &routerv1.Sampling{Temperature: &one, TopP: &top, Seed: &seed},
	}
}

var prompts = []string{
	"The prince looked at her and",
	"“Well, Pierre,” said",
	"In the evening the whole army",
	"It was impossible to",
}

func TestGenerate_AnySplitGivesTheSameBytes(t *testing.T) {
	var first []answer
	for _, l := range []Layout{{1, 1}, {2, 1}, {2, 2}, {4, 1}} {
		mesh := start(t, l)
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
		defer cancel()
		var got []answer
		for i, prompt := range prompts {
			for _, req := range []*routerv1.GenerateRequest{greedy(prompt, 48), seeded(prompt, 48, uint64(i))} {
				a, err := generate(ctx, mesh, req)
				if err != nil {
					t.Fatalf("%+v: generate after %q: %v", l, prompt, err)
				}
				if len(a.ids) != 48 || a.text == "" {
					t.Fatalf("%+v: got %d ids and %q, want 48 ids and text", l, len(a.ids), a.text)
				}
				got = append(got, a)
			}
		}
		if first == nil {
			first = got
		}
		for i := range got {
			if fmt.Sprint(got[i]) != fmt.Sprint(first[i]) {
				t.Errorf("%+v: answer %d is %q, over one stage it was %q", l, i, got[i].text, first[i].text)
			}
		}
	}
}

func TestGenerate_ManyStreamsShareTheBatch(t *testing.T) {
	const streams = 32
	mesh := start(t, Layout{2, 2})
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	request := func(i int) *routerv1.GenerateRequest {
		if i%2 == 0 {
			return greedy(prompts[i%len(prompts)], uint32(16+i))
		}
		return seeded(prompts[i%len(prompts)], uint32(16+i), uint64(i))
	}
	alone := make([]answer, streams)
	for i := range alone {
		var err error
		if alone[i], err = generate(ctx, mesh, request(i)); err != nil {
			t.Fatalf("generate %d alone: %v", i, err)
		}
	}
	together := make([]answer, streams)
	errs := make([]error, streams)
	var wg sync.WaitGroup
	for i := range together {
		wg.Go(func() { together[i], errs[i] = generate(ctx, mesh, request(i)) })
	}
	wg.Wait()
	for i := range together {
		if errs[i] != nil {
			t.Errorf("stream %d: %v", i, errs[i])
		} else if fmt.Sprint(together[i]) != fmt.Sprint(alone[i]) {
			t.Errorf("stream %d is %q in a batch, %q alone", i, together[i].text, alone[i].text)
		}
	}
}

func TestGenerate_CancelFreesEveryStage(t *testing.T) {
	mesh := start(t, Layout{2, 1})
	ctx, cancelAll := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancelAll()
	const streams = 20
	cancelled := 0
	for i := range streams {
		ctx, cancel := context.WithCancel(ctx)
		stream, err := mesh.Router.Generate(ctx, greedy(prompts[i%len(prompts)], 0))
		if err != nil {
			t.Fatal(err)
		}
		for range 2 + i {
			if _, err := stream.Recv(); err != nil {
				t.Fatalf("cancel %d: stream ended too soon: %v", i, err)
			}
		}
		cancel()
		for err == nil {
			_, err = stream.Recv()
		}
		switch {
		case status.Code(err) == codes.Canceled:
			cancelled++
		case !errors.Is(err, io.EOF): // while this process has no processor, a whole answer may come before its cancel
			t.Fatalf("cancel %d ended with %v", i, err)
		}
	}
	if cancelled < streams/2 {
		t.Fatalf("%d of %d streams ended by their cancel: the test proves nothing", cancelled, streams)
	}
	for {
		resp, err := mesh.Router.Topology(ctx, &routerv1.TopologyRequest{})
		if err != nil {
			t.Fatal(err)
		}
		var pages, sessions uint32
		for _, member := range resp.GetMesh().GetMembers() {
			for _, held := range member.GetHeld() {
				sessions += held.GetSessions()
			}
		}
		for _, p := range resp.GetMesh().GetPipelines() { // the prefix cache may hold pages
			pages += p.GetKvPagesHeld() - p.GetKvPagesCached()
		}
		if pages == 0 && sessions == 0 {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%d KV pages and %d sessions are still held", pages, sessions)
		case <-time.After(100 * time.Millisecond):
		}
	}
}
