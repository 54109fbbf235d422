package openai_test

import (
	"context"
	"encoding/json"
	"net/http/httptest"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	"github.com/lamina-mesh/lamina/services/router/openai"
)

// sliding is a backend whose answers slide once.
type sliding struct {
	*backend
	got *routerv1.GenerateRequest
}

func use(dropped uint32) *routerv1.ContextUse {
	return &routerv1.ContextUse{Mode: routerv1.ContextMode_CONTEXT_MODE_SLIDE, Length: 64, Sinks: 4, Window: 30,
		Recomputed: true, Dropped: []*routerv1.Dropped{{First: 4, Count: dropped}}}
}

func (s *sliding) Generate(_ context.Context, r *routerv1.GenerateRequest,
	send func(*routerv1.GenerateResponse) error) error {
	s.got = r
	for _, e := range []*routerv1.GenerateResponse{
		{Event: &routerv1.GenerateResponse_Started{Started: &routerv1.Started{RequestId: "r", Model: "m",
			Context: use(30)}}},
		{Event: &routerv1.GenerateResponse_Token{Token: &routerv1.TokenEvent{Text: "a"}}},
		{Event: &routerv1.GenerateResponse_Token{Token: &routerv1.TokenEvent{Index: 1,
			Dropped: &routerv1.Dropped{First: 4, Count: 60}}}},
		{Event: &routerv1.GenerateResponse_Finished{Finished: &routerv1.Finished{Context: use(60),
			FinishReason: samplerv1.FinishReason_FINISH_REASON_LENGTH}}},
	} {
		if err := send(e); err != nil {
			return err
		}
	}
	return nil
}

func TestContextPolicy_IsPassedOnAndReported(t *testing.T) {
	b := &sliding{backend: &backend{}}
	s := httptest.NewServer(openai.New(b, openai.Options{}))
	defer s.Close()
	body := `{"prompt":"x","context_policy":{"type":"slide","length":64,"sinks":4,"window":30},"priority":-3,` +
		`"wait_for_capacity":0`
	_, text := post(t, s.URL+"/v1/completions", body+`}`)
	var whole struct{ Choices []json.RawMessage }
	if err := json.Unmarshal([]byte(text), &whole); err != nil || len(whole.Choices) != 1 {
		t.Fatalf("%v: %s", err, text)
	}
	same(t, "the choice", string(whole.Choices[0]), `{"index":0,"text":"a","finish_reason":"length","logprobs":null,
		"context":{"policy":"slide","length":64,"sinks":4,"window":30,"recomputed":true,"dropped_tokens":60,
		"dropped":[{"first":4,"count":60}]}}`)
	want := &routerv1.ContextPolicy{Mode: routerv1.ContextMode_CONTEXT_MODE_SLIDE, Length: 64, Sinks: proto.Uint32(4),
		Window: 30}
	if !proto.Equal(b.got.GetContextPolicy(), want) || b.got.GetPriority() != -3 || b.got.WaitForCapacity == nil ||
		b.got.GetWaitForCapacity() != 0 {
		t.Errorf("the backend gets %v", b.got)
	}
	_, text = post(t, s.URL+"/v1/completions", body+`,"stream":true}`)
	var contexts []string
	for _, e := range events(t, text) {
		if _, context, ok := strings.Cut(e, `"context":`); ok {
			context, _, _ = strings.Cut(context, `"finish_reason"`)
			contexts = append(contexts, context)
		}
	}
	if len(contexts) != 3 || !strings.Contains(contexts[0], `"dropped_tokens":30`) ||
		!strings.Contains(contexts[1], `"dropped_tokens":60`) || !strings.Contains(contexts[2], `"policy":"slide"`) {
		t.Errorf("the stream reports %q:\n%s", contexts, text)
	}
	for _, c := range []struct {
		text string
		want *routerv1.ContextPolicy
	}{
		{`"stop"`, &routerv1.ContextPolicy{Mode: routerv1.ContextMode_CONTEXT_MODE_STOP}},
		{`"truncate_middle"`, &routerv1.ContextPolicy{Mode: routerv1.ContextMode_CONTEXT_MODE_TRUNCATE_MIDDLE}},
		{`null`, nil},
	} {
		post(t, s.URL+"/v1/completions", `{"prompt":"x","context_policy":`+c.text+`}`)
		if !proto.Equal(b.got.GetContextPolicy(), c.want) {
			t.Errorf("%s: the backend gets %v", c.text, b.got.GetContextPolicy())
		}
	}
}
