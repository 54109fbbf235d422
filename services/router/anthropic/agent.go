package anthropic

import (
	"context"
	"encoding/json"
	"strings"
	"unicode/utf8"

	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/pkg/toolcall"
	"github.com/lamina-mesh/lamina/pkg/toolloop"
	"github.com/lamina-mesh/lamina/services/router/agent"
	"github.com/lamina-mesh/lamina/services/router/httpapi"
)

// The names of tools of the server, as blocks have them.
const (
	searchName = "web_search"
	fetchName  = "web_fetch"
)

// kindOf returns the kind of an entry of tools that the server runs, or "" for a tool of the client. Anthropic's types
// have dates.
func kindOf(kind string) string {
	switch {
	case strings.HasPrefix(kind, searchName+"_20"):
		return agent.KindSearch
	case strings.HasPrefix(kind, fetchName+"_20"):
		return agent.KindPage
	}
	return agent.Kind(kind)
}

// hosted reads an entry of tools that the server runs.
func (c *request) hosted(field, kind string, raw json.RawMessage) error {
	fields := map[string]json.RawMessage{}
	if json.Unmarshal(raw, &fields) != nil {
		return fault.Field(field, "want an object")
	}
	for _, name := range []string{"allowed_domains", "blocked_domains", "max_content_tokens"} {
		if httpapi.Given(fields[name]) {
			return fault.Field(field+"."+name, "is not supported")
		}
	}
	if httpapi.Given(fields["max_uses"]) {
		var uses int
		if json.Unmarshal(fields["max_uses"], &uses) != nil || uses < 1 || uses > httpapi.MaxInteger {
			return fault.Field(field+".max_uses", "want 1..%d", httpapi.MaxInteger)
		}
		c.uses += uses
	} else {
		c.unlimited = true
	}
	text, err := json.Marshal(kind)
	if err != nil {
		return fault.Field(field+".type", "%v", err)
	}
	fields["type"] = text
	if raw, err = json.Marshal(fields); err != nil {
		return fault.Field(field, "%v", err)
	}
	c.entries, c.kinds[kind] = append(c.entries, agent.Entry{Field: field, Raw: raw}), true
	return nil
}

// chooseTools adds the tools of the server that the request names to out, and returns them with the definitions of the
// client's own; nil if it names none.
func (s *server) chooseTools(
	ctx context.Context, c *request, out *routerv1.ChatRequest,
) (client string, set *agent.Set, err error) {
	if len(c.entries) == 0 || c.ToolChoice != nil && c.ToolChoice.Type == "none" {
		return "", nil, nil
	}
	if out.GetContinueFinalMessage() {
		return "", nil, fault.Field("messages", "the last one is the assistant's, and cannot be continued with %s, "+
			"which the server runs", c.entries[0].Field)
	}
	var texts, names []string
	for _, m := range out.GetMessages() {
		texts = append(texts, m.GetContent())
	}
	for name := range c.names {
		names = append(names, name)
	}
	if set, err = s.Tools.Choose(ctx, c.entries, names, texts); err != nil {
		return "", nil, err
	}
	if !c.unlimited {
		set.LimitCalls(c.uses)
	}
	client = out.GetToolsJson()
	out.ToolsJson, err = httpapi.AgentTools(client, set)
	return client, set, err
}

// ended is an answer that has ended.
type ended struct {
	started  *routerv1.Started
	finished *routerv1.Finished
	calls    []toolcall.Call // of the client's tools
	ran      []httpapi.Ran
}

// serverUsage counts calls that the server has run.
type serverUsage struct {
	Searches int `json:"web_search_requests"`
	Fetches  int `json:"web_fetch_requests"`
}

// usage returns what the answer has used.
func (e *ended) usage() usage {
	u := toUsage(e.finished.GetUsage())
	if len(e.ran) > 0 {
		u.Server = &serverUsage{}
	}
	for _, r := range e.ran {
		switch r.Tool.Kind {
		case agent.KindSearch:
			u.Server.Searches++
		case agent.KindPage:
			u.Server.Fetches++
		}
	}
	return u
}

// ran adds the blocks of a call that the server has run, and of its result.
func (a *assembler) ran(r httpapi.Ran) []event {
	use := part{kind: serverBlock, id: "srvtoolu_" + r.Call.ID}
	result := block{ToolUseID: use.id}
	problem := func(kind string) any { return map[string]string{"type": kind + "_error", "error_code": "unavailable"} }
	switch r.Tool.Kind {
	case agent.KindSearch:
		use.name, result.Type = searchName, searchName+"_tool_result"
		found := make([]any, len(r.Result.Sources))
		for i, s := range r.Result.Sources {
			found[i] = map[string]any{"type": searchName + "_result", "url": s.URL, "title": s.Title,
				"encrypted_content": "", "page_age": nil}
		}
		if result.Content = found; r.Result.Failed {
			result.Content = problem(result.Type)
		}
	case agent.KindPage:
		use.name, result.Type = fetchName, fetchName+"_tool_result"
		var url, title string
		if len(r.Result.Sources) > 0 {
			url, title = r.Result.Sources[0].URL, r.Result.Sources[0].Title
		}
		result.Content = map[string]any{"type": fetchName + "_result", "url": url, "retrieved_at": nil,
			"content": map[string]any{"type": "document", "title": title,
				"source": map[string]string{"type": "text", "media_type": "text/plain", "data": r.Result.Text}}}
		if r.Result.Failed {
			result.Content = problem(result.Type)
		}
	default:
		use.kind, use.name, use.server, result.Type = mcpBlock, r.Tool.Remote, r.Tool.Server, "mcp_tool_result"
		result.IsError = &r.Result.Failed
		result.Content = []any{map[string]string{"type": textBlock, "text": r.Result.Text}}
	}
	input := r.Call.Arguments
	if !json.Valid([]byte(input)) {
		input = "{}"
	}
	out := append(a.end(), a.begin(use), a.grow(delta{Type: "input_json_delta", JSON: &input}, input))
	out = append(out, a.end()...)
	return append(append(out, a.begin(part{kind: result.Type, whole: &result})), a.end()...)
}

// cite adds citations to the open block of text. Their places are those in all blocks of text together; those of blocks
// that have ended are left out, since a stream can add nothing to them.
func (a *assembler) cite(citations []toolloop.Citation) (out []event) {
	if !a.open || a.last().kind != textBlock {
		return nil
	}
	before := 0
	for _, p := range a.blocks[:len(a.blocks)-1] {
		if p.kind == textBlock {
			before += utf8.RuneCount(p.text)
		}
	}
	for _, c := range citations {
		if c.Start < before {
			continue
		}
		note := map[string]any{"type": "web_search_result_location", "url": c.Source.URL, "title": c.Source.Title,
			"encrypted_index": "", "cited_text": ""}
		a.last().citations = append(a.last().citations, note)
		out = append(out, event{Type: "content_block_delta", Index: a.index(),
			Delta: delta{Type: "citations_delta", Citation: note}})
	}
	return out
}

// run runs a chat, with the tools of the server if there are any. send gets the events of blocks, and running is told
// while tools run; it may be nil.
func (s *server) run(
	ctx context.Context, c *request, req *routerv1.ChatRequest, parsing httpapi.Parsing, a *assembler,
	start func(*routerv1.Started) error, send func([]event) error, running func([]string) error,
) (*ended, error) {
	push := func(d toolcall.Delta) error { return send(a.push(d)) }
	client, set, err := s.chooseTools(ctx, c, req)
	if err != nil {
		return nil, err
	}
	if set == nil {
		end, err := httpapi.Run(ctx, s.backend, req, parsing, start, push)
		if err != nil {
			return nil, err
		}
		return &ended{started: end.Started, finished: end.Finished, calls: end.Answer.Calls}, nil
	}
	parsing.Tools = req.GetToolsJson()
	end, err := httpapi.RunAgent(ctx, s.backend, req, parsing, client, set, httpapi.AgentHooks{
		Started: start, Delta: push, Running: running, Ran: func(r httpapi.Ran) error { return send(a.ran(r)) },
	})
	if err != nil {
		return nil, err
	}
	if err := send(a.cite(end.Citations)); err != nil {
		return nil, err
	}
	return &ended{started: end.Started, finished: end.Finished, calls: end.Calls, ran: end.Ran}, nil
}
