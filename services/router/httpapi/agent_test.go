package httpapi_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/internal/leak"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
	"github.com/lamina-mesh/lamina/pkg/toolloop"
	"github.com/lamina-mesh/lamina/pkg/webtools"
	"github.com/lamina-mesh/lamina/services/router/agent"
	"github.com/lamina-mesh/lamina/services/router/httpapi"
)

// searching is a model that searches once, and then answers.
type searching struct{ turns []*routerv1.ChatRequest }

func (s *searching) Chat(
	_ context.Context, r *routerv1.ChatRequest, send func(*routerv1.ChatResponse) error,
) error {
	s.turns = append(s.turns, r)
	text := "done"
	if len(s.turns) == 1 {
		text = "<tool_call>\n{\"name\": \"web_search\", \"arguments\": {\"query\": \"x\"}}\n</tool_call>"
	}
	return errors.Join(
		send(&routerv1.ChatResponse{Event: &routerv1.ChatResponse_Started{Started: &routerv1.Started{RequestId: "r",
			Format: &tokenizerv1.ChatFormat{Calls: "hermes"}}}}),
		send(&routerv1.ChatResponse{Event: &routerv1.ChatResponse_Finished{Finished: &routerv1.Finished{Text: text,
			FinishReason: samplerv1.FinishReason_FINISH_REASON_STOP}}}))
}

// search is a search engine.
type search func(ctx context.Context) ([]webtools.Result, error)

func (s search) Do(ctx context.Context, _ string, _ int) ([]webtools.Result, string, error) {
	found, err := s(ctx)
	return found, "", err
}

// run runs a chat that searches once.
func run(t *testing.T, m *searching, s search, hooks httpapi.AgentHooks) (*httpapi.AgentOutcome, error) {
	t.Helper()
	t.Cleanup(func() { leak.Check(t) })
	box := agent.New(agent.Config{Search: s, CallTime: time.Minute})
	set, err := box.Choose(t.Context(), []agent.Entry{{Raw: json.RawMessage(`{"type":"web_search"}`)}}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	tools, err := httpapi.AgentTools("", set)
	if err != nil {
		t.Fatal(err)
	}
	r := &routerv1.ChatRequest{ToolsJson: tools}
	return httpapi.RunAgent(t.Context(), m, r, httpapi.Parsing{Tools: tools}, "", set, hooks)
}

func TestRunAgent_KeepsNoMoreOfResultsThanTheModelSees(t *testing.T) {
	m := &searching{}
	long := strings.Repeat("é", 1<<20)
	out, err := run(t, m, func(context.Context) ([]webtools.Result, error) {
		return []webtools.Result{{URL: "http://a.test/", Title: "A", Text: long},
			{URL: "http://b.test/", Text: long}}, nil
	}, httpapi.AgentHooks{})
	if err != nil || len(out.Ran) != 1 || len(m.turns) != 2 {
		t.Fatalf("got %+v, %v", out, err)
	}
	kept := len(out.Ran[0].Result.Text)
	for _, s := range out.Ran[0].Result.Sources {
		kept += len(s.Text)
	}
	if kept > toolloop.DefaultResultBytes || len(out.Ran[0].Result.Sources) != 2 {
		t.Errorf("%d bytes are kept of a result", kept)
	}
	seen := m.turns[1].GetMessages()
	text := seen[len(seen)-1].GetContent()
	if len(text) > toolloop.DefaultResultBytes+1000 || !strings.Contains(text, "[1] A\nhttp://a.test/\néé") ||
		!strings.Contains(text, "(cut off: these are 16383 of 4194") {
		t.Errorf("the model sees %d bytes, which end with %q", len(text), text[max(0, len(text)-200):])
	}
}

func TestRunAgent_TellsThatToolsRun(t *testing.T) {
	httpapi.SetRunningEvery(t, time.Millisecond)
	told, enough := 0, make(chan struct{})
	out, err := run(t, &searching{}, func(ctx context.Context) ([]webtools.Result, error) {
		select {
		case <-enough:
			return nil, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}, httpapi.AgentHooks{Running: func(names []string) error {
		if told++; told == 3 {
			close(enough)
		}
		if len(names) != 1 || names[0] != "web_search" {
			t.Errorf("it says that %q run", names)
		}
		return nil
	}})
	if err != nil || told < 3 || out.Ran[0].Result.Failed {
		t.Errorf("it has told %d times: %+v, %v", told, out, err)
	}
	gone := errors.New("the client has gone")
	var ended error
	_, err = run(t, &searching{}, func(ctx context.Context) ([]webtools.Result, error) {
		<-ctx.Done()
		ended = ctx.Err()
		return nil, ended
	}, httpapi.AgentHooks{Running: func([]string) error { return gone }})
	if !errors.Is(err, gone) || !errors.Is(ended, context.Canceled) {
		t.Errorf("a client that has gone: got %v, and the tool's context ended with %v", err, ended)
	}
}
