package openai

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
	"github.com/lamina-mesh/lamina/services/router/httpapi"
)

type chatRequest struct {
	common
	templateFields
	Messages            []json.RawMessage `json:"messages"`
	MaxCompletionTokens *int64            `json:"max_completion_tokens"`
	Logprobs            bool              `json:"logprobs"`
	TopLogprobs         *int              `json:"top_logprobs"`
}

// message reads one message. Content is a string or a list of text parts. If the message has other
// fields, it is also passed on as JSON.
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
	content, has := fields["content"]
	changed := false
	switch {
	case !given(content):
		if !more { // a message with tool calls needs no text
			return nil, fault.Field(field(".content"), "want a string or a list of text parts")
		}
		if !has { // templates test whether content is none
			fields["content"], changed = json.RawMessage("null"), true
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
		changed = true
	}
	if err := toolFields(field, out.GetRole(), fields); err != nil {
		return nil, err
	}
	if nameReasoning(fields) || changed {
		var err error
		if raw, err = json.Marshal(fields); err != nil {
			return nil, fault.Field(field(""), "%v", err)
		}
	}
	if more {
		out.Json = string(raw)
	}
	return out, nil
}

// toolFields checks the tool calls of an assistant message, or the tool_call_id of a tool message.
func toolFields(field func(string) string, role string, fields map[string]json.RawMessage) error {
	if raw := fields["tool_call_id"]; role == "tool" && given(raw) {
		var id string
		if json.Unmarshal(raw, &id) != nil {
			return fault.Field(field(".tool_call_id"), "want a string")
		}
	}
	raw := fields["tool_calls"]
	if !given(raw) {
		return nil
	}
	var calls []struct {
		Function *struct {
			Name      string          `json:"name"`
			Arguments json.RawMessage `json:"arguments"`
		} `json:"function"`
	}
	if json.Unmarshal(raw, &calls) != nil {
		return fault.Field(field(".tool_calls"), "want a list of calls")
	}
	for j, c := range calls {
		at := fmt.Sprintf(".tool_calls[%d].function", j)
		if c.Function == nil || c.Function.Name == "" {
			return fault.Field(field(at+".name"), "is missing")
		}
		if a := bytes.TrimSpace(c.Function.Arguments); len(a) > 0 && a[0] != '"' && a[0] != '{' && string(a) != "null" {
			return fault.Field(field(at+".arguments"), "want the text of a JSON object")
		}
	}
	return nil
}

// nameReasoning copies the reasoning of a message to every field name that templates use,
// unless the message has both text and calls, for which some templates refuse reasoning. It
// reports whether it changed the message.
func nameReasoning(fields map[string]json.RawMessage) bool {
	names := []string{"reasoning_content", "reasoning", "thinking"}
	var found json.RawMessage
	var text string
	for _, name := range names {
		if raw := fields[name]; found == nil && json.Unmarshal(raw, &text) == nil && text != "" {
			found = raw
		}
	}
	var calls []json.RawMessage
	if found == nil || json.Unmarshal(fields["tool_calls"], &calls) == nil && len(calls) > 0 &&
		given(fields["content"]) && string(fields["content"]) != `""` {
		return false
	}
	changed := false
	for _, name := range names {
		if !given(fields[name]) {
			fields[name], changed = found, true
		}
	}
	return changed
}

// joinParts joins the texts of content parts with line breaks.
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
			return "", fault.Field(fmt.Sprintf("%s[%d].type", field, j), "%q is not supported, only text is", p.Type)
		}
		if p.Text == nil {
			return "", fault.Field(fmt.Sprintf("%s[%d].text", field, j), "want a string")
		}
		texts[j] = *p.Text
	}
	return strings.Join(texts, "\n"), nil
}

// request returns the part of the request that all choices share.
func (c *chatRequest) request() (*routerv1.ChatRequest, error) {
	out := &routerv1.ChatRequest{
		Model: c.Model, Stop: c.Stop, KeepMarkers: true, ContinueFinalMessage: c.ContinueFinal,
		NoGenerationPrompt: c.GenerationPrompt != nil && !*c.GenerationPrompt || c.GenerationPrompt == nil &&
			c.ContinueFinal,
	}
	var err error
	field, most := "max_tokens", c.MaxTokens
	if c.MaxCompletionTokens != nil {
		field, most = "max_completion_tokens", c.MaxCompletionTokens
	}
	if out.MaxTokens, err = limit(field, most); err != nil {
		return nil, err
	}
	if c.IgnoreEnd {
		return nil, fault.Field("ignore_end", "is supported for completions only")
	}
	if top := c.TopLogprobs; top != nil && *top != 0 {
		if *top < 0 || *top > httpapi.MaxTop {
			return nil, fault.Field("top_logprobs", "%d is not within 0..%d", *top, httpapi.MaxTop)
		}
		if !c.Logprobs {
			return nil, fault.Field("top_logprobs", "requires logprobs to be true")
		}
		out.TopLogprobs = uint32(*top)
	}
	if err = c.serve(&out.ContextPolicy, &out.Priority, &out.WaitForCapacity); err != nil {
		return nil, err
	}
	if err = c.readTools(out); err != nil {
		return nil, err
	}
	if out.DocumentsJson, err = c.documentsJSON(); err != nil {
		return nil, err
	}
	if out.VariablesJson, err = c.variablesJSON(); err != nil {
		return nil, err
	}
	if c.ContinueFinal && !out.GetNoGenerationPrompt() {
		return nil, fault.Field("continue_final_message", "cannot be combined with add_generation_prompt")
	}
	if len(c.Messages) == 0 {
		return nil, fault.Field("messages", "want at least one message")
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

// chatJobs returns one job for each choice, and how to parse their text.
func (s *server) chatJobs(c *chatRequest) ([]job, *httpapi.Parsing, error) {
	n, err := c.check()
	if err != nil {
		return nil, nil, err
	}
	base, err := c.request()
	if err != nil {
		return nil, nil, err
	}
	reasoning, err := c.parsesReasoning()
	if err != nil {
		return nil, nil, err
	}
	p := httpapi.Parsing{
		Tools: base.GetToolsJson(), Reasoning: reasoning, Single: c.ParallelToolCalls != nil && !*c.ParallelToolCalls,
	}
	if err := checkSize(proto.Size(base), n); err != nil {
		return nil, nil, err
	}
	jobs := make([]job, n)
	for i := range jobs {
		rules, err := c.sampling(i, n)
		if err != nil {
			return nil, nil, err
		}
		req := shallow(base)
		req.Sampling = rules
		if req.Resumable = c.Resumable; c.Resumable {
			if req.ClientState, err = c.state(&p).encode(n); err != nil {
				return nil, nil, err
			}
		}
		jobs[i] = job{again: i > 0, run: func(ctx context.Context, send func(event) error) error {
			return c.nameField(s.backend.Chat(ctx, req, func(e *routerv1.ChatResponse) error {
				return send(event{started: e.GetStarted(), token: e.GetToken(), finished: e.GetFinished(),
					loading: e.GetLoading()})
			}))
		}}
	}
	return jobs, &p, nil
}

// state returns what is needed to format the answer once more.
func (c *chatRequest) state(p *httpapi.Parsing) *resumeState {
	s := c.baseState(c.created)
	s.Chat, s.Tools, s.Reasoning, s.SingleCall = true, p.Tools, p.Reasoning, p.Single
	if c.Logprobs {
		s.Logprobs = new(int)
	}
	return s
}

func (c *chatRequest) logprobs(tokens ...*routerv1.TokenEvent) any {
	if !c.Logprobs {
		return nil
	}
	return map[string]any{"content": httpapi.Logprobs(tokens...), "refusal": nil}
}

func (s *server) chat(w http.ResponseWriter, r *http.Request) {
	var c chatRequest
	if err := decode(w, r, &c); err != nil {
		s.fail(w, err)
		return
	}
	c.created = time.Now().Unix()
	client, set, err := s.serverTools(r.Context(), &c)
	if err != nil {
		s.fail(w, err)
		return
	}
	if set != nil {
		s.agentChat(w, r, &c, client, set)
		return
	}
	jobs, reads, err := s.chatJobs(&c)
	if err != nil {
		s.fail(w, err)
		return
	}
	f := c.shape(reads, len(jobs), c.created)
	if c.Stream {
		s.stream(w, r, jobs, f, 0)
		return
	}
	s.gather(w, r, jobs, f)
}

// shape returns the format of a chat's responses.
func (c *chatRequest) shape(reads *httpapi.Parsing, jobs int, created int64) *shape {
	readers := make([]*reader, jobs)
	return &shape{
		prefix: "chatcmpl", whole: "chat.completion", part: "chat.completion.chunk", created: created,
		usage: c.usageWanted(),
		choice: func(i int, a *answer) map[string]any {
			r := newReader(reads, i, a.started)
			for _, t := range a.tokens {
				r.Push(t.GetText())
			}
			r.End(a.finished)
			readers[i] = r
			return map[string]any{"message": r.message(), "logprobs": c.logprobs(a.tokens...)}
		},
		piece: func(i int, e event) map[string]any {
			delta, logprobs := map[string]any{}, any(nil)
			if readers[i] == nil {
				readers[i] = newReader(reads, i, e.started)
			}
			switch {
			case e.started != nil:
				delta["role"], delta["content"] = "assistant", ""
			case e.token != nil:
				d := readers[i].Push(e.token.GetText())
				if d.Empty() && !c.Logprobs {
					return nil
				}
				show(d, delta)
				if logprobs = c.logprobs(e.token); len(delta) == 0 {
					delta["content"] = ""
				}
			default:
				show(readers[i].End(e.finished), delta)
			}
			return map[string]any{"delta": delta, "logprobs": logprobs}
		},
		empty:  func() map[string]any { return map[string]any{"delta": map[string]any{}, "logprobs": nil} },
		reason: func(i int, f *routerv1.Finished) string { return readers[i].reason(f.GetFinishReason()) },
	}
}
