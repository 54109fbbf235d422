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
	ToolChoice          json.RawMessage   `json:"tool_choice"`
}

// message reads one message. Content is a string or a list of text parts; what says
// more than role and content goes along whole.
func message(i int, raw json.RawMessage) (*tokenizerv1.Message, error) {
	field := func(rest string) string { return fmt.Sprintf("messages[%d]%s", i, rest) }
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(raw, &fields); err != nil || fields == nil {
		return nil, fault.Field(field(""), "want an object")
	}
	out := &tokenizerv1.Message{}
	if err := json.Unmarshal(fields["role"], &out.Role); err != nil || out.Role == "" {
		return nil, fault.Field(field(".role"), "want a string")
	}
	more := false
	for name, v := range fields {
		more = more || name != "role" && name != "content" && given(v)
	}
	content := fields["content"]
	switch {
	case !given(content):
		if !more { // a turn of tool calls needs no text
			return nil, fault.Field(field(".content"), "want a string or a list of text parts")
		}
	case json.Unmarshal(content, &out.Content) != nil:
		text, err := joinParts(field(".content"), content)
		if err != nil {
			return nil, err
		}
		out.Content = text
		if fields["content"], err = json.Marshal(text); err != nil {
			return nil, fault.Field(field(".content"), "%v", err)
		}
		if raw, err = json.Marshal(fields); err != nil {
			return nil, fault.Field(field(""), "%v", err)
		}
	}
	if more {
		out.Json = string(raw)
	}
	return out, nil
}

// joinParts puts the texts of content parts on lines of their own.
func joinParts(field string, raw json.RawMessage) (string, error) {
	var parts []struct {
		Type string  `json:"type"`
		Text *string `json:"text"`
	}
	if err := json.Unmarshal(raw, &parts); err != nil {
		return "", fault.Field(field, "want a string or a list of text parts")
	}
	texts := make([]string, len(parts))
	for j, p := range parts {
		if p.Type != "text" {
			return "", fault.Field(fmt.Sprintf("%s[%d].type", field, j), "%q is not supported: text is", p.Type)
		}
		if p.Text == nil {
			return "", fault.Field(fmt.Sprintf("%s[%d].text", field, j), "want a string")
		}
		texts[j] = *p.Text
	}
	return strings.Join(texts, "\n"), nil
}

// toolsJSON is what the template is told of tools. No choice can be forced.
func (c *chatRequest) toolsJSON() (string, error) {
	choice := "auto"
	if given(c.ToolChoice) {
		if json.Unmarshal(c.ToolChoice, &choice) != nil || choice != "auto" && choice != "none" {
			return "", fault.Field("tool_choice", "%s is not supported: auto and none are", c.ToolChoice)
		}
	}
	if !given(c.Tools) || choice == "none" {
		return "", nil
	}
	return string(c.Tools), nil
}

// request is what the choices share.
func (c *chatRequest) request() (*routerv1.ChatRequest, error) {
	out := &routerv1.ChatRequest{Model: c.Model, Stop: c.Stop}
	var err error
	field, most := "max_tokens", c.MaxTokens
	if c.MaxCompletionTokens != nil {
		field, most = "max_completion_tokens", c.MaxCompletionTokens
	}
	if out.MaxTokens, err = limit(field, most); err != nil {
		return nil, err
	}
	if c.IgnoreEnd {
		return nil, fault.Field("ignore_end", "is for completions: a chat's turn ends where the model ends it")
	}
	if top := c.TopLogprobs; top != nil && *top != 0 {
		if *top < 0 || *top > maxTop {
			return nil, fault.Field("top_logprobs", "%d is not within 0..%d", *top, maxTop)
		}
		if !c.Logprobs {
			return nil, fault.Field("top_logprobs", "set logprobs to have them")
		}
		out.TopLogprobs = uint32(*top)
	}
	if out.ToolsJson, err = c.toolsJSON(); err != nil {
		return nil, err
	}
	if len(c.Messages) == 0 {
		return nil, fault.Field("messages", "give at least one")
	}
	for i, raw := range c.Messages {
		m, err := message(i, raw)
		if err != nil {
			return nil, err
		}
		out.Messages = append(out.Messages, m)
	}
	return out, nil
}

// chatJobs is one job for each choice.
func (s *server) chatJobs(c *chatRequest) ([]job, error) {
	n, err := c.check()
	if err != nil {
		return nil, err
	}
	base, err := c.request()
	if err != nil {
		return nil, err
	}
	jobs := make([]job, n)
	for i := range jobs {
		rules, err := c.sampling(i)
		if err != nil {
			return nil, err
		}
		req := &routerv1.ChatRequest{
			Model: base.GetModel(), Messages: base.GetMessages(), MaxTokens: base.GetMaxTokens(), Sampling: rules,
			Stop: base.GetStop(), TopLogprobs: base.GetTopLogprobs(), ToolsJson: base.GetToolsJson(),
		}
		jobs[i] = job{again: i > 0, run: func(ctx context.Context, send func(event) error) error {
			return s.backend.Chat(ctx, req, func(e *routerv1.ChatResponse) error {
				return send(event{e.GetStarted(), e.GetToken(), e.GetFinished()})
			})
		}}
	}
	return jobs, nil
}

// candidate is a token with its log-probability and UTF-8 bytes.
type candidate struct {
	Token   string  `json:"token"`
	Logprob float32 `json:"logprob"`
	Bytes   []int   `json:"bytes"`
}

// tokenLogprob is an entry of a chat choice's logprobs.
type tokenLogprob struct {
	candidate
	Top []candidate `json:"top_logprobs"`
}

func toCandidate(text string, logprob float32) candidate {
	out := candidate{Token: text, Logprob: logprob, Bytes: make([]int, len(text))}
	for i, b := range []byte(text) {
		out.Bytes[i] = int(b)
	}
	return out
}

func (c *chatRequest) logprobs(tokens ...*routerv1.TokenEvent) any {
	if !c.Logprobs {
		return nil
	}
	content := make([]tokenLogprob, len(tokens))
	for i, t := range tokens {
		content[i] = tokenLogprob{toCandidate(t.GetText(), t.GetLogprob()), make([]candidate, len(t.GetTop()))}
		for j, top := range t.GetTop() {
			content[i].Top[j] = toCandidate(top.GetText(), top.GetLogprob())
		}
	}
	return map[string]any{"content": content, "refusal": nil}
}

func (s *server) chat(w http.ResponseWriter, r *http.Request) {
	var c chatRequest
	if err := decode(w, r, &c); err != nil {
		s.fail(w, err)
		return
	}
	jobs, err := s.chatJobs(&c)
	if err != nil {
		s.fail(w, err)
		return
	}
	f := &shape{
		prefix: "chatcmpl", whole: "chat.completion", part: "chat.completion.chunk", created: time.Now().Unix(), usage: c.usageWanted(),
		choice: func(_ int, a *answer) map[string]any {
			return map[string]any{
				"message":  map[string]any{"role": "assistant", "content": a.text.String(), "refusal": nil},
				"logprobs": c.logprobs(a.tokens...),
			}
		},
		piece: func(_ int, e event) map[string]any {
			delta, logprobs := map[string]any{}, any(nil)
			switch {
			case e.started != nil:
				delta["role"], delta["content"] = "assistant", ""
			case e.token != nil:
				if e.token.GetText() == "" && !c.Logprobs {
					return nil
				}
				delta["content"], logprobs = e.token.GetText(), c.logprobs(e.token)
			case e.finished.GetText() != "":
				delta["content"] = e.finished.GetText()
			}
			return map[string]any{"delta": delta, "logprobs": logprobs}
		},
	}
	if c.Stream {
		s.stream(w, r, jobs, f)
		return
	}
	s.gather(w, r, jobs, f)
}
