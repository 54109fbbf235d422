package openai_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
	"github.com/lamina-mesh/lamina/services/router/openai"
)

// backend is a fake that answers with fixed words, or fails after some of them.
type backend struct {
	words    []string
	failAt   int // fails after this many words; -1 means never
	failWith error
	canceled chan struct{}
	drawn    chan [2]uint64 // seed and choice
	top      []*routerv1.TopCandidate
	endless  bool // omits the finished event

	mu          sync.Mutex
	started     int
	generations []*routerv1.GenerateRequest
	chats       []*routerv1.ChatRequest
}

func (b *backend) play(ctx context.Context, s *routerv1.Sampling,
	send func(*routerv1.Started, *routerv1.TokenEvent, *routerv1.Finished) error) error {
	if b.drawn != nil {
		b.drawn <- [2]uint64{s.GetSeed(), uint64(s.GetChoice())}
	}
	if b.failAt == 0 {
		return b.failWith
	}
	b.mu.Lock()
	id := "r" + strings.Repeat("+", b.started) // the first is r, the next r+
	b.started++
	b.mu.Unlock()
	if err := send(&routerv1.Started{RequestId: id, Model: "m", Fingerprint: "f"}, nil, nil); err != nil {
		return err
	}
	for i, w := range b.words {
		if i+1 == b.failAt {
			return b.failWith
		}
		if err := send(nil, &routerv1.TokenEvent{Text: w, Id: uint32(i), Logprob: -1, Index: uint32(i), Top: b.top},
			nil); err != nil {
			return err
		}
	}
	if b.endless {
		return nil
	}
	if b.canceled != nil {
		<-ctx.Done()
		close(b.canceled)
		return ctx.Err()
	}
	return send(nil, nil, &routerv1.Finished{
		FinishReason: samplerv1.FinishReason_FINISH_REASON_STOP, Text: "!",
		Usage: &routerv1.Usage{PromptTokens: 3, CompletionTokens: uint32(len(b.words))},
	})
}

func (b *backend) Generate(ctx context.Context, r *routerv1.GenerateRequest,
	send func(*routerv1.GenerateResponse) error) error {
	b.mu.Lock()
	b.generations = append(b.generations, r)
	b.mu.Unlock()
	return b.play(ctx, r.GetSampling(), func(s *routerv1.Started, t *routerv1.TokenEvent, f *routerv1.Finished) error {
		switch {
		case s != nil:
			if err := send(
				&routerv1.GenerateResponse{Event: &routerv1.GenerateResponse_Started{Started: s}},
			); err != nil ||
				!r.GetEcho() {
				return err
			}
			return echo(r, send)
		case t != nil:
			return send(&routerv1.GenerateResponse{Event: &routerv1.GenerateResponse_Token{Token: t}})
		}
		return send(&routerv1.GenerateResponse{Event: &routerv1.GenerateResponse_Finished{Finished: f}})
	})
}

// echo reports the prompt in two parts, with one token per character or id.
func echo(r *routerv1.GenerateRequest, send func(*routerv1.GenerateResponse) error) error {
	var tokens []*routerv1.PromptToken
	for i, c := range []rune(r.GetText()) {
		tokens = append(tokens, &routerv1.PromptToken{Id: uint32(i), Text: string(c)})
	}
	for _, id := range r.GetTokenIds().GetIds() {
		tokens = append(tokens, &routerv1.PromptToken{Id: id, Text: fmt.Sprintf("<%d>", id)})
	}
	for i, token := range tokens {
		if i > 0 && r.GetPromptLogprobs() {
			token.Logprob = proto.Float32(-float32(i))
			token.Top = []*routerv1.TopCandidate{{Id: 9, Text: "z", Logprob: -0.5}}[:r.GetTopLogprobs()]
		}
	}
	for _, part := range [][]*routerv1.PromptToken{tokens[:1], tokens[1:]} {
		if err := send(
			&routerv1.GenerateResponse{
				Event: &routerv1.GenerateResponse_Prompt{Prompt: &routerv1.PromptTokens{Tokens: part}},
			},
		); err != nil {
			return err
		}
	}
	return nil
}

func (b *backend) Chat(ctx context.Context, r *routerv1.ChatRequest, send func(*routerv1.ChatResponse) error) error {
	b.mu.Lock()
	b.chats = append(b.chats, r)
	b.mu.Unlock()
	return b.play(ctx, r.GetSampling(), func(s *routerv1.Started, t *routerv1.TokenEvent, f *routerv1.Finished) error {
		switch {
		case s != nil:
			return send(&routerv1.ChatResponse{Event: &routerv1.ChatResponse_Started{Started: s}})
		case t != nil:
			return send(&routerv1.ChatResponse{Event: &routerv1.ChatResponse_Token{Token: t}})
		}
		return send(&routerv1.ChatResponse{Event: &routerv1.ChatResponse_Finished{Finished: f}})
	})
}

// Resume and Cancel know no request; keeper does.
func (b *backend) Resume(_ context.Context, r *routerv1.ResumeRequest, _ func(*routerv1.ResumeResponse) error) error {
	return fault.New(fault.NotFound, "find request %s", r.GetRequestId())
}

func (b *backend) Cancel(_ context.Context, id string) error {
	return fault.New(fault.NotFound, "find request %s", id)
}

// Embed returns for each input its length and the number of the input.
func (b *backend) Embed(_ context.Context, r *routerv1.EmbedRequest) (*routerv1.EmbedResponse, error) {
	if b.failAt == 0 {
		return nil, b.failWith
	}
	out := &routerv1.EmbedResponse{Model: "m", Fingerprint: "f"}
	for i, in := range r.GetInputs() {
		n := len(in.GetText()) + len(in.GetTokenIds().GetIds())
		out.Embeddings = append(out.Embeddings,
			&routerv1.Embedding{Values: []float32{float32(n), float32(i)}, Tokens: uint32(n)})
	}
	return out, nil
}

func (b *backend) Models(context.Context) ([]*routerv1.Model, error) {
	return []*routerv1.Model{{Name: "m", Digest: "sha256:1", Context: 64, Chat: true, MaxContext: 60,
		EndIds:   []uint32{2, 7},
		Defaults: &tokenizerv1.GenerationDefaults{Temperature: proto.Float32(0.5), TopK: proto.Uint32(20)}}}, nil
}

func serve(t *testing.T, b *backend) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(openai.New(b, openai.Options{}))
	t.Cleanup(s.Close)
	return s
}

func post(t *testing.T, url, body string) (*http.Response, string) {
	t.Helper()
	resp, err := http.Post(url, "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(text)
}

const hello = `{"messages":[{"role":"user","content":"hi"}]`

func TestChat_CompleteAnswer(t *testing.T) {
	s := serve(t, &backend{words: []string{"a", "b"}, failAt: -1})
	resp, text := post(t, s.URL+"/v1/chat/completions", hello+`}`)
	var got struct {
		Object, Model string
		Fingerprint   string `json:"system_fingerprint"`
		Choices       []struct {
			Message struct{ Role, Content string }
			Reason  string `json:"finish_reason"`
		}
		Usage struct {
			Total int `json:"total_tokens"`
		}
	}
	if err := json.Unmarshal([]byte(text), &got); err != nil {
		t.Fatalf("%d %s: %v", resp.StatusCode, text, err)
	}
	if got.Object != "chat.completion" || got.Model != "m" || got.Fingerprint != "f" || len(got.Choices) != 1 ||
		got.Choices[0].Message.Content != "ab!" ||
		got.Choices[0].Message.Role != "assistant" || got.Choices[0].Reason != "stop" || got.Usage.Total != 5 {
		t.Errorf("the answer is %s", text)
	}
}

func TestChat_StreamEndsWithReasonUsageAndDone(t *testing.T) {
	s := serve(t, &backend{words: []string{"a", "b"}, failAt: -1})
	resp, text := post(t, s.URL+"/v1/chat/completions", hello+`,"stream":true,"stream_options":{"include_usage":true}}`)
	if kind := resp.Header.Get("Content-Type"); kind != "text/event-stream" {
		t.Errorf("content type is %q", kind)
	}
	events := strings.Split(strings.TrimSuffix(text, "\n\n"), "\n\n")
	if len(events) != 6 || events[5] != "data: [DONE]" || !strings.Contains(events[3], `"finish_reason":"stop"`) ||
		!strings.Contains(events[3], `"content":"!"`) || !strings.Contains(events[4], `"total_tokens":5`) {
		t.Errorf("the stream is\n%s", text)
	}
}

func TestStream_InterruptedAnswerNeverLooksFinished(t *testing.T) {
	s := serve(t, &backend{words: []string{"a", "b", "c"}, failAt: 2, failWith: fault.New(fault.Unavailable, "lost")})
	for _, path := range []string{"/v1/chat/completions", "/v1/completions"} {
		_, text := post(t, s.URL+path, hello+`,"prompt":"x","stream":true}`)
		if !strings.Contains(text, `"error":`) || strings.Contains(text, "[DONE]") ||
			strings.Contains(text, `"finish_reason":"stop"`) {
			t.Errorf("%s: a cut stream is\n%s", path, text)
		}
	}
}

func TestErrors_HaveOpenAIsFormatStatusAndParam(t *testing.T) {
	full := fault.New(fault.Exhausted, "full").After(1500 * time.Millisecond)
	for _, c := range []struct {
		name, path, body string
		fail             error
		status           int
		want             string
	}{
		{"full", "/v1/completions", `{"prompt":"x","stream":true}`, full, 429, `"type":"rate_limit_error"`},
		{"quota", "/v1/chat/completions", hello + `}`, fault.New(fault.Exhausted, "x").Because("RATE_LIMIT_EXCEEDED"), 429,
			`"code":"rate_limit_exceeded"`},
		{"queue", "/v1/completions", `{"prompt":"x"}`, fault.New(fault.Unavailable, "x").Because("QUEUE_FULL"), 503,
			`"type":"server_error","param":null,"code":"queue_full"`},
		{"policy", "/v1/completions", `{"prompt":"x","context_policy":"sliding"}`, nil, 400, `"param":"context_policy"`},
		{"policy's part", "/v1/completions", `{"prompt":"x","context_policy":{"type":"slide","size":3}}`, nil, 400,
			`"param":"context_policy"`},
		{"policy's number", "/v1/chat/completions", hello + `,"context_policy":{"type":"slide","window":-3}}`, nil, 400,
			`"param":"context_policy"`},
		{"priority", "/v1/completions", `{"prompt":"x","priority":9999999999}`, nil, 400, `"param":"priority"`},
		{"wait", "/v1/completions", `{"prompt":"x","wait_for_capacity":-1}`, nil, 400, `"param":"wait_for_capacity"`},
		{"field", "/v1/completions", `{"prompt":"x"}`, fault.Field("sampling.top_p", "bad"), 400,
			`{"error":{"message":"top_p: bad","type":"invalid_request_error","param":"top_p"`},
		{"grammar", "/v1/completions", `{"prompt":"x","guided_regex":"a"}`,
			fault.Field("sampling.grammar.source", "bad"), 400, `{"error":{"message":"guided_regex: bad",` +
				`"type":"invalid_request_error","param":"guided_regex"`},
		{"penalty", "/v1/completions", `{"prompt":"x","repeat_penalty":-1}`,
			fault.Field("sampling.repetition_penalty", "bad"), 400, `"param":"repeat_penalty"`},
		{"bad words", "/v1/completions", `{"prompt":"x","bad_words_ids":[[1]],"bad_words":["a",[2],"b",[3]]}`,
			fault.Field("sampling.advanced.bad_words[2]", "bad"), 400, `"param":"bad_words[3]"`},
		{"bad ids", "/v1/completions", `{"prompt":"x","bad_words_ids":[[1]],"bad_words":["a",[2]]}`,
			fault.Field("sampling.advanced.bad_words[0]", "bad"), 400, `"param":"bad_words_ids[0]"`},
		{"tools", "/v1/chat/completions", hello + `,"tools":[]}`,
			fault.Field("tools_json", "bad"), 400, `"param":"tools"`},
		{"grammar in a format", "/v1/chat/completions", hello + `,"response_format":{"type":"json_object"}}`,
			fault.Field("sampling.grammar.source", "bad"), 400, `"param":"response_format"`},
		{"model", "/v1/chat/completions", hello + `}`, fault.New(fault.NotFound, "who"), 404,
			`"code":"model_not_found"`},
		{"syntax", "/v1/completions", `{"prompt":`, nil, 400, `"param":"body"`},
		{"type", "/v1/completions", `{"prompt":"x","top_p":"y"}`, nil, 400, `"param":"top_p"`},
		{"n", "/v1/completions", `{"prompt":"x","n":999}`, nil, 400, `"param":"n"`},
		{"tokens", "/v1/completions", `{"prompt":"x","max_tokens":0}`, nil, 400, `"param":"max_tokens"`},
		{"messages", "/v1/chat/completions", `{}`, nil, 400, `"param":"messages"`},
		{"role", "/v1/chat/completions", `{"messages":[{"content":"x"}]}`, nil, 400, `"param":"messages[0].role"`},
		{"path", "/v1/nothing", `{}`, nil, 404, `"error"`},
	} {
		b := &backend{failAt: -1}
		if c.fail != nil {
			b.failAt, b.failWith = 0, c.fail
		}
		resp, text := post(t, serve(t, b).URL+c.path, c.body)
		if resp.StatusCode != c.status || !strings.Contains(text, c.want) {
			t.Errorf("%s: %d %s, want %d and %s", c.name, resp.StatusCode, text, c.status, c.want)
		}
		if c.name == "full" && resp.Header.Get("Retry-After") != "2" {
			t.Errorf("a full router says Retry-After %q", resp.Header.Get("Retry-After"))
		}
	}
}

func TestChoices_DrawIndependentlyWithOneSeed(t *testing.T) {
	b := &backend{words: []string{"a"}, failAt: -1, drawn: make(chan [2]uint64, 3)}
	_, text := post(t, serve(t, b).URL+"/v1/completions", `{"prompt":"x","n":3,"seed":10,"echo":true}`)
	seen := map[[2]uint64]bool{}
	for range 3 {
		seen[<-b.drawn] = true
	}
	if !seen[[2]uint64{10, 0}] || !seen[[2]uint64{10, 1}] || !seen[[2]uint64{10, 2}] ||
		strings.Count(text, `"text":"xa!"`) != 3 {
		t.Errorf("seeds and choices %v, answer %s", seen, text)
	}
}

func TestStream_DisconnectedReaderCancelsTheRequest(t *testing.T) {
	b := &backend{words: []string{"a"}, failAt: -1, canceled: make(chan struct{})}
	s := serve(t, b)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.URL+"/v1/completions",
		strings.NewReader(`{"prompt":"x","stream":true}`))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if line, err := bufio.NewReader(resp.Body).ReadString('\n'); err != nil || !strings.Contains(line, `"text":"a"`) {
		t.Fatalf("the first event is %q, %v", line, err)
	}
	cancel()
	select {
	case <-b.canceled:
	case <-time.After(time.Minute):
		t.Error("the backend's context goes on after its reader has gone")
	}
}

func TestModels_ListAndGet(t *testing.T) {
	s := serve(t, &backend{})
	for path, want := range map[string]string{"/v1/models": `"object":"list"`, "/v1/models/m": `"id":"m"`,
		"/v1/models/other": `"model_not_found"`} {
		resp, err := http.Get(s.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if !strings.Contains(string(text), want) {
			t.Errorf("%s is %s, want %s", path, text, want)
		}
	}
}
