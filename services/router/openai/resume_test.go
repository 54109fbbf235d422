package openai_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
	"github.com/lamina-mesh/lamina/services/router/openai"
)

// keeper is a backend that keeps the events of its last request, which is called r.
type keeper struct {
	*backend
	format   *tokenizerv1.ChatFormat
	kept     []*routerv1.ResumeResponse
	canceled bool
	fail     error // of Resume, after half of the events
}

const mostTokens = 40

func (k *keeper) keep(e proto.Message, state []byte) error {
	data, err := proto.Marshal(e)
	if err != nil {
		return err
	}
	r := &routerv1.ResumeResponse{}
	if err := proto.Unmarshal(data, r); err != nil { // the responses have the same fields
		return err
	}
	if s := r.GetStarted(); s != nil {
		s.ClientState = state
	}
	k.kept = append(k.kept, r)
	return nil
}

func (k *keeper) Generate(ctx context.Context, r *routerv1.GenerateRequest,
	send func(*routerv1.GenerateResponse) error) error {
	return k.backend.Generate(ctx, r, func(e *routerv1.GenerateResponse) error {
		if s := e.GetStarted(); s != nil {
			s.Resumable, s.MaxTokens = r.GetResumable(), mostTokens
		}
		if err := k.keep(e, r.GetClientState()); err != nil {
			return err
		}
		return send(e)
	})
}

func (k *keeper) Chat(ctx context.Context, r *routerv1.ChatRequest, send func(*routerv1.ChatResponse) error) error {
	return k.backend.Chat(ctx, r, func(e *routerv1.ChatResponse) error {
		if s := e.GetStarted(); s != nil {
			s.Resumable, s.MaxTokens, s.Format = r.GetResumable(), mostTokens, k.format
		}
		if err := k.keep(e, r.GetClientState()); err != nil {
			return err
		}
		return send(e)
	})
}

func (k *keeper) Resume(ctx context.Context, r *routerv1.ResumeRequest,
	send func(*routerv1.ResumeResponse) error) error {
	if r.GetRequestId() != "r" {
		return k.backend.Resume(ctx, r, send)
	}
	for i, e := range k.kept {
		if k.fail != nil && i > len(k.kept)/2 {
			return k.fail
		}
		if t := e.GetToken(); t != nil && t.GetIndex() < r.GetFrom() {
			continue
		}
		if err := send(e); err != nil {
			return err
		}
	}
	return nil
}

func (k *keeper) Cancel(ctx context.Context, id string) error {
	if id != "r" {
		return k.backend.Cancel(ctx, id)
	}
	k.canceled = true
	return nil
}

func keeping(t *testing.T, k *keeper) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(openai.New(k, openai.Options{}))
	t.Cleanup(s.Close)
	return s
}

// again reads a stream again.
func again(t *testing.T, url string, header ...string) (*http.Response, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
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
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(text)
}

// numbered returns the events of a stream from a number on, and the number after the last.
func numbered(t *testing.T, text string, from int) (string, int) {
	t.Helper()
	var out strings.Builder
	next := 0
	for _, e := range strings.SplitAfter(text, "\n\n") {
		number := -1
		if _, err := fmt.Sscanf(e, "id: %d\n", &number); err == nil {
			if number < next {
				t.Errorf("event %d comes after %d", number, next-1)
			}
			next = number + 1
		}
		if from == 0 || number >= from {
			out.WriteString(e)
		}
	}
	return out.String(), next
}

func TestResume_EventsFromAnyNumberOn(t *testing.T) {
	tools := `,"tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}]`
	call := []string{"<tool_call>", `{"name": "f", `, `"arguments": {"x"`, ": 1}}", "</tool_call>"}
	for name, c := range map[string]struct {
		path, body string
		words      []string
	}{
		"completion":   {"completions", `{"prompt":"x"`, []string{"a", "", "b", "c"}},
		"with usage":   {"completions", `{"prompt":"x","stream_options":{"include_usage":true}`, []string{"a", "b"}},
		"with echo":    {"completions", `{"prompt":"xyz","echo":true`, []string{"a", "b"}},
		"logprobs":     {"completions", `{"prompt":"x","logprobs":2`, []string{"a", "b\u00e9", "c"}},
		"chat":         {"chat/completions", hello, []string{"a", "", "b"}},
		"chat, usage":  {"chat/completions", hello + `,"logprobs":true,"stream_options":{"include_usage":true}`, []string{"a", "b"}},
		"a call":       {"chat/completions", hello + tools, call},
		"no reasoning": {"chat/completions", hello + `,"reasoning_format":"none"`, []string{"<think>", "a", "</think>", "b"}},
		"reasoning":    {"chat/completions", hello, []string{"<think>", "a", "</think>", "b"}},
	} {
		t.Run(name, func(t *testing.T) {
			k := &keeper{backend: &backend{words: c.words, failAt: -1},
				format: &tokenizerv1.ChatFormat{Calls: "hermes", Reasoning: "think"}}
			s := keeping(t, k)
			resp, whole := post(t, s.URL+"/v1/"+c.path, c.body+`,"stream":true,"resumable":true}`)
			if resp.StatusCode != http.StatusOK {
				t.Fatal(whole)
			}
			_, end := numbered(t, whole, 0)
			if end < len(c.words)+2 {
				t.Fatalf("%d numbers: %s", end, whole)
			}
			for from := range end {
				want, _ := numbered(t, whole, from)
				url := s.URL + "/v1/requests/r/stream"
				if resp, got := again(t, fmt.Sprintf("%s?from=%d", url, from)); got != want ||
					resp.Header.Get("Content-Type") != "text/event-stream" {
					t.Errorf("from %d: %s\nwant %s", from, got, want)
				}
				if from > 0 { // an EventSource that connects again to the URL of its first connection
					last := fmt.Sprint(from - 1)
					if _, got := again(t, url+"?from=0", "Last-Event-ID", last); got != want {
						t.Errorf("after event %s: %s\nwant %s", last, got, want)
					}
				}
			}
			for from, status := range map[int]int{
				end: http.StatusNoContent, end + 1: http.StatusBadRequest, mostTokens + 4: http.StatusBadRequest,
				1 << 24: http.StatusBadRequest, 1 << 40: http.StatusBadRequest, -1: http.StatusBadRequest,
			} {
				resp, text := again(t, fmt.Sprintf("%s/v1/requests/r/stream?from=%d", s.URL, from))
				if resp.StatusCode != status ||
					status != http.StatusNoContent && !strings.Contains(text, `"param":"from"`) {
					t.Errorf("from %d of %d: %s %s", from, end, resp.Status, text)
				}
			}
		})
	}
}

func TestResume_WithoutIt_StreamsHaveNoNumbers(t *testing.T) {
	s := keeping(t, &keeper{backend: &backend{words: []string{"a"}, failAt: -1}})
	if _, text := post(t, s.URL+"/v1/completions", `{"prompt":"x","stream":true}`); strings.Contains(text, "id: ") {
		t.Errorf("numbers: %s", text)
	}
}

func TestResume_ErrorsSayHowToGoOn(t *testing.T) {
	k := &keeper{backend: &backend{words: []string{"a", "b", "c"}, failAt: -1}}
	s := keeping(t, k)
	post(t, s.URL+"/v1/completions", `{"prompt":"x","stream":true,"resumable":true}`)
	k.fail = fault.New(fault.Unavailable, "stop").After(1500 * time.Millisecond)
	_, text := again(t, s.URL+"/v1/requests/r/stream")
	if !strings.Contains(text, "retry: 1500\ndata: ") || !strings.Contains(text, `"resume_id":"r"`) ||
		!strings.Contains(text, `"retry_after":1.5`) || strings.Contains(text, "[DONE]") {
		t.Errorf("the stream ended with %s", text)
	}
	k.fail = fault.New(fault.DataLoss, "gone")
	if _, text := again(t, s.URL+"/v1/requests/r/stream"); strings.Contains(text, "resume_id") {
		t.Errorf("an error for good: %s", text)
	}
}

func TestResume_UnknownRequest(t *testing.T) {
	k := &keeper{backend: &backend{words: []string{"a"}, failAt: -1}}
	s := keeping(t, k)
	resp, text := again(t, s.URL+"/v1/requests/other/stream?from=3")
	if resp.StatusCode != http.StatusNotFound || !strings.Contains(text, `"code":"request_not_found"`) {
		t.Errorf("%s %s", resp.Status, text)
	}
	for id, want := range map[string]int{"r": http.StatusNoContent, "other": http.StatusNotFound} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodDelete, s.URL+"/v1/requests/"+id, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want || k.canceled != true && id == "r" {
			t.Errorf("delete %s: %s", id, resp.Status)
		}
	}
}

func TestResume_SeveralChoices_AreRefused(t *testing.T) {
	s := keeping(t, &keeper{backend: &backend{words: []string{"a"}, failAt: -1}})
	for path, body := range map[string]string{
		"completions": `{"prompt":["x","y"],"resumable":true}`, "chat/completions": hello + `,"n":2,"resumable":true}`,
	} {
		resp, text := post(t, s.URL+"/v1/"+path, body)
		if resp.StatusCode != http.StatusBadRequest || !strings.Contains(text, `"param":"resumable"`) {
			t.Errorf("%s: %s %s", path, resp.Status, text)
		}
	}
}
