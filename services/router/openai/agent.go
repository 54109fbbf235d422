package openai

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/pkg/toolcall"
	"github.com/lamina-mesh/lamina/services/router/agent"
	"github.com/lamina-mesh/lamina/services/router/httpapi"
)

// splitTools separates the tools of a request into the client's own, as JSON, with their names, and those that the
// server runs. web_search_options stands for the tool web_search.
func (f *templateFields) splitTools() (client string, names []string, entries []agent.Entry, err error) {
	var list, own []json.RawMessage
	if given(f.Tools) && json.Unmarshal(f.Tools, &list) != nil {
		return "", nil, nil, fault.Field("tools", "want a list of tools")
	}
	for i, raw := range list {
		var head toolHead
		if json.Unmarshal(raw, &head) == nil && agent.Kind(head.Type) != "" {
			entries = append(entries, agent.Entry{Field: fmt.Sprintf("tools[%d]", i), Raw: raw})
			continue
		}
		own = append(own, raw)
		if head.Function != nil {
			names = append(names, head.Function.Name)
		}
	}
	if given(f.WebSearch) {
		options := map[string]json.RawMessage{}
		if json.Unmarshal(f.WebSearch, &options) != nil {
			return "", nil, nil, fault.Field("web_search_options", "want an object")
		}
		options["type"] = json.RawMessage(`"` + agent.KindSearch + `"`)
		raw, err := json.Marshal(options)
		if err != nil {
			return "", nil, nil, fault.Field("web_search_options", "%v", err)
		}
		entries = append(entries, agent.Entry{Field: "web_search_options", Raw: raw})
	}
	if len(own) == 0 || len(entries) == 0 {
		return "", names, entries, nil
	}
	text, err := json.Marshal(own)
	if err != nil {
		return "", nil, nil, fault.Field("tools", "%v", err)
	}
	return string(text), names, entries, nil
}

// serverTools returns the tools that the server runs for the request, or nil if it names none, and the definitions of
// the client's own. It replaces the request's tools by the definitions of both.
func (s *server) serverTools(ctx context.Context, c *chatRequest) (client string, set *agent.Set, err error) {
	client, names, entries, err := c.splitTools()
	if err != nil || len(entries) == 0 {
		return "", nil, err
	}
	for _, f := range []struct {
		name string
		set  bool
	}{
		{"n", c.N != nil && *c.N != 1}, {"resumable", c.Resumable}, {"logprobs", c.Logprobs},
		{"continue_final_message", c.ContinueFinal},
		{"add_generation_prompt", c.GenerationPrompt != nil && !*c.GenerationPrompt},
	} {
		if f.set {
			return "", nil, fault.Field(f.name, "cannot be combined with %s, which the server runs", entries[0].Field)
		}
	}
	if set, err = s.Tools.Choose(ctx, entries, names, c.texts()); err != nil {
		return "", nil, err
	}
	all, err := httpapi.AgentTools(client, set)
	c.Tools = json.RawMessage(all)
	if choice, err := c.toolChoice(); err != nil ||
		choice.GetMode() == routerv1.ToolChoiceMode_TOOL_CHOICE_MODE_NONE { // the model sees no tools
		return "", nil, err
	}
	return client, set, err
}

// texts returns the texts of the messages.
func (c *chatRequest) texts() (out []string) {
	for i, raw := range c.Messages {
		if m, err := message(i, raw); err == nil {
			out = append(out, m.GetContent())
		}
	}
	return out
}

// agentChat answers a chat whose tools the server runs.
func (s *server) agentChat(w http.ResponseWriter, r *http.Request, c *chatRequest, client string, set *agent.Set) {
	req, reads, err := s.agentRequest(c)
	if err != nil {
		s.fail(w, err)
		return
	}
	f := c.shape(reads, 1, c.created)
	if !c.Stream {
		end, err := httpapi.RunAgent(r.Context(), s.backend, req, *reads, client, set,
			httpapi.AgentHooks{Joined: true})
		if err != nil {
			s.fail(w, c.nameField(err))
			return
		}
		choice := endOf(map[string]any{"message": agentMessage(end), "logprobs": nil}, end)
		out := f.envelope(f.whole, end.Started, end.Started, []any{choice})
		var total usage
		total.add(end.Finished.GetUsage(), false)
		out["usage"] = total
		s.json(w, http.StatusOK, out)
		return
	}
	out := &agentStream{stream: newStream(w, s.WriteTimeout), f: f}
	reads.Loading = out.Loading
	end, err := httpapi.RunAgent(r.Context(), s.backend, req, *reads, client, set, httpapi.AgentHooks{
		Joined: true,
		Started: func(st *routerv1.Started) error {
			out.started = st
			return out.delta(map[string]any{"role": "assistant", "content": ""})
		},
		Delta: func(d toolcall.Delta) error {
			delta := map[string]any{}
			show(d, delta)
			return out.delta(delta)
		},
		Ran: func(ran httpapi.Ran) error {
			out.ran++
			return out.delta(map[string]any{"executed_tools": []any{httpapi.Executed(out.ran-1, ran)}})
		},
		Running: out.Running,
	})
	if err == nil {
		err = out.finish(end)
	}
	switch {
	case err == nil:
		return
	case !out.Begun():
		s.fail(w, c.nameField(err))
		return
	case out.Lost() == nil:
		_, body := toAPIError(c.nameField(err))
		err = out.fail(body, 0)
	}
	if err != nil {
		s.Log.DebugContext(r.Context(), "end stream", "error", err)
	}
}

// agentRequest returns the request of the first turn, and how to parse what the model writes.
func (s *server) agentRequest(c *chatRequest) (*routerv1.ChatRequest, *httpapi.Parsing, error) {
	if _, err := c.check(); err != nil {
		return nil, nil, err
	}
	req, err := c.request()
	if err != nil {
		return nil, nil, err
	}
	if req.Sampling, err = c.sampling(0, 1); err != nil {
		return nil, nil, err
	}
	reasoning, err := c.parsesReasoning()
	return req, &httpapi.Parsing{
		Tools: req.GetToolsJson(), Reasoning: reasoning, Single: c.ParallelToolCalls != nil && !*c.ParallelToolCalls,
	}, err
}

// endOf adds what a choice ends with.
func endOf(choice map[string]any, end *httpapi.AgentOutcome) map[string]any {
	why := reason(end.Finished.GetFinishReason())
	if len(end.Calls) > 0 && why != "length" {
		why = "tool_calls"
	}
	choice["index"], choice["finish_reason"] = 0, why
	if use := end.Finished.GetContext(); use != nil {
		choice["context"] = toContext(use)
	}
	return choice
}

// agentMessage returns a complete answer as a message object.
func agentMessage(end *httpapi.AgentOutcome) map[string]any {
	out := map[string]any{"role": "assistant", "content": end.Content, "refusal": nil}
	if end.Reasoning != "" {
		out["reasoning_content"] = end.Reasoning
	}
	if len(end.Calls) > 0 {
		calls := make([]toolCall, len(end.Calls))
		for i, c := range end.Calls {
			calls[i] = toolCall{ID: c.ID, Type: "function", Function: toolFunction{c.Name, c.Arguments}}
		}
		if out["tool_calls"] = calls; end.Content == "" {
			out["content"] = nil
		}
	}
	out["annotations"] = httpapi.Annotations(end.Citations)
	ran := make([]any, len(end.Ran))
	for i, r := range end.Ran {
		ran[i] = httpapi.Executed(i, r)
	}
	out["executed_tools"] = ran
	return out
}

// agentStream is a streamed answer to a chat whose tools the server runs.
type agentStream struct {
	stream
	f       *shape
	started *routerv1.Started
	ran     int // calls of tools so far
}

// choice sends an event with a choice.
func (s *agentStream) choice(choice map[string]any) error {
	return s.event(s.f.envelope(s.f.part, s.started, s.started, []any{choice}))
}

func (s *agentStream) event(v map[string]any) error {
	if _, known := v["usage"]; !known && s.f.usage {
		v["usage"] = nil
	}
	return s.send(unnumbered, v)
}

func (s *agentStream) delta(delta map[string]any) error {
	return s.choice(map[string]any{"delta": delta, "logprobs": nil, "index": 0, "finish_reason": nil})
}

// finish sends the events after the last delta.
func (s *agentStream) finish(end *httpapi.AgentOutcome) error {
	delta := map[string]any{}
	if len(end.Citations) > 0 {
		delta["annotations"] = httpapi.Annotations(end.Citations)
	}
	if err := s.choice(endOf(map[string]any{"delta": delta, "logprobs": nil}, end)); err != nil {
		return err
	}
	if s.f.usage {
		var total usage
		total.add(end.Finished.GetUsage(), false)
		v := s.f.envelope(s.f.part, s.started, s.started, []any{})
		v["usage"] = total
		if err := s.event(v); err != nil {
			return err
		}
	}
	return s.end(unnumbered)
}
