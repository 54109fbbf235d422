package openai

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
)

type chatRequest struct {
	common
	Messages            []json.RawMessage `json:"messages"`
	MaxCompletionTokens *int64            `json:"max_completion_tokens"`
	Logprobs            bool              `json:"logprobs"`
	TopLogprobs         *int              `json:"top_logprobs"`
	Tools               json.RawMessage   `json:"tools"`
}

// message reads one message: content is a string or a list of text parts.
func message(i int, raw json.RawMessage) (*tokenizerv1.Message, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(raw, &fields); err != nil {
		return nil, fault.Field(fmt.Sprintf("messages[%d]", i), "want an object: %v", err)
	}
	out := &tokenizerv1.Message{}
	if err := json.Unmarshal(fields["role"], &out.Role); err != nil || out.Role == "" {
		return nil, fault.Field(fmt.Sprintf("messages[%d].role", i), "want a string")
	}
	plain := len(fields) == 2
	content := fields["content"]
	if json.Unmarshal(content, &out.Content) != nil {
		var parts []struct {
			Type string `json:"type"`
			Text string `json:"text"`
		}
		if err := json.Unmarshal(content, &parts); err != nil {
			return nil, fault.Field(fmt.Sprintf("messages[%d].content", i), "want a string or a list of parts")
		}
		var text []string
		for j, p := range parts {
			if p.Type != "text" {
				return nil, fault.Field(fmt.Sprintf("messages[%d].content[%d].type", i, j), "%q is not supported: text is", p.Type)
			}
			text = append(text, p.Text)
		}
		out.Content = strings.Join(text, "\n")
	}
	if !plain {
		out.Json = string(raw)
	}
	return out, nil
}

// backendRequest is choice i's.
func (c *chatRequest) backendRequest(i int) (*routerv1.ChatRequest, error) {
	out := &routerv1.ChatRequest{Model: c.Model, Stop: c.Stop}
	var err error
	limit := c.MaxTokens
	if c.MaxCompletionTokens != nil {
		limit = c.MaxCompletionTokens
	}
	if out.MaxTokens, err = tokens(limit); err != nil {
		return nil, err
	}
	if out.Sampling, err = c.sampling(i); err != nil {
		return nil, err
	}
	if len(c.Messages) == 0 {
		return nil, fault.Field("messages", "give at least one")
	}
	for n, raw := range c.Messages {
		m, err := message(n, raw)
		if err != nil {
			return nil, err
		}
		out.Messages = append(out.Messages, m)
	}
	if c.TopLogprobs != nil {
		if *c.TopLogprobs < 0 || *c.TopLogprobs > 20 {
			return nil, fault.Field("top_logprobs", "%d is not within 0..20", *c.TopLogprobs)
		}
		out.TopLogprobs = uint32(*c.TopLogprobs)
	}
	if len(c.Tools) > 0 && string(c.Tools) != "null" {
		out.ToolsJson = string(c.Tools)
	}
	return out, nil
}

// tokenLogprob is an entry of a chat choice's logprobs.
type tokenLogprob struct {
	Token   string         `json:"token"`
	Logprob float32        `json:"logprob"`
	Bytes   []int          `json:"bytes"`
	Top     []tokenLogprob `json:"top_logprobs,omitempty"`
}

func toLogprob(text string, logprob float32) tokenLogprob {
	out := tokenLogprob{Token: text, Logprob: logprob, Bytes: []int{}}
	for _, b := range []byte(text) {
		out.Bytes = append(out.Bytes, int(b))
	}
	return out
}

func (c *chatRequest) logprobs(events ...*routerv1.TokenEvent) any {
	if !c.Logprobs {
		return nil
	}
	content := []tokenLogprob{}
	for _, e := range events {
		entry := toLogprob(e.GetText(), e.GetLogprob())
		for _, t := range e.GetTop() {
			entry.Top = append(entry.Top, toLogprob(t.GetText(), t.GetLogprob()))
		}
		content = append(content, entry)
	}
	return map[string]any{"content": content}
}

func (s *server) chat(w http.ResponseWriter, r *http.Request) {
	var c chatRequest
	if err := decode(w, r, &c); err != nil {
		s.fail(w, err)
		return
	}
	n, err := c.choices()
	if err != nil {
		s.fail(w, err)
		return
	}
	var jobs []job
	for i := range n {
		req, err := c.backendRequest(i)
		if err != nil {
			s.fail(w, err)
			return
		}
		jobs = append(jobs, func(ctx context.Context, send func(event) error) error {
			return s.backend.Chat(ctx, req, func(e *routerv1.ChatResponse) error {
				return send(event{e.GetStarted(), e.GetToken(), e.GetFinished()})
			})
		})
	}
	created := time.Now().Unix()
	if c.Stream {
		s.streamChat(w, r, &c, jobs, created)
		return
	}
	answers, started, err := gather(r.Context(), jobs)
	if err != nil {
		s.fail(w, err)
		return
	}
	var total usage
	choices := []any{}
	for i, a := range answers {
		total.add(a.usage)
		choices = append(choices, map[string]any{
			"index": i, "finish_reason": a.reason, "logprobs": c.logprobs(a.tokens...),
			"message": map[string]any{"role": "assistant", "content": a.text.String(), "refusal": nil},
		})
	}
	s.json(w, http.StatusOK, map[string]any{
		"id": newID("chatcmpl", started.GetRequestId()), "object": "chat.completion", "created": created, "model": started.GetModel(),
		"system_fingerprint": started.GetFingerprint(), "choices": choices, "usage": total,
	})
}

func (s *server) streamChat(w http.ResponseWriter, r *http.Request, c *chatRequest, jobs []job, created int64) {
	object := func(choices []any) map[string]any {
		out := map[string]any{"id": "chatcmpl", "object": "chat.completion.chunk", "created": created, "model": c.Model, "choices": choices}
		if c.usageWanted() {
			out["usage"] = nil
		}
		return out
	}
	chunk := func(i int, started *routerv1.Started, e event) any {
		choice := map[string]any{"index": i, "finish_reason": nil, "logprobs": nil, "delta": map[string]any{}}
		out := func() any {
			o := object([]any{choice})
			o["id"], o["model"], o["system_fingerprint"] = newID("chatcmpl", started.GetRequestId()), started.GetModel(), started.GetFingerprint()
			return o
		}
		switch {
		case e.started != nil:
			choice["delta"] = map[string]any{"role": "assistant", "content": ""}
		case e.token != nil:
			if e.token.GetText() == "" && !c.Logprobs {
				return nil
			}
			choice["delta"] = map[string]any{"content": e.token.GetText()}
			choice["logprobs"] = c.logprobs(e.token)
		case e.finished != nil:
			if rest := e.finished.GetText(); rest != "" {
				choice["delta"] = map[string]any{"content": rest}
			}
			choice["finish_reason"] = reason(e.finished.GetFinishReason())
		}
		return out()
	}
	s.play(w, r, jobs, chunk, func(u usage) any {
		if !c.usageWanted() {
			return nil
		}
		o := object([]any{})
		o["usage"] = u
		return o
	})
}
