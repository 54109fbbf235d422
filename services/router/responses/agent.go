package responses

import (
	"context"
	"encoding/json"
	"unicode/utf8"

	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/pkg/toolcall"
	"github.com/lamina-mesh/lamina/pkg/toolloop"
	"github.com/lamina-mesh/lamina/services/router/agent"
	"github.com/lamina-mesh/lamina/services/router/httpapi"
)

// The types of items of tools that the server has run.
const (
	itemSearch = "web_search_call" // also of pages that were read
	itemMCP    = "mcp_call"
)

// ended is a response whose chat has ended.
type ended struct {
	finished  *routerv1.Finished
	turns     []httpapi.Turn // that the chat has added
	citations []toolloop.Citation
}

// chooseTools adds the tools of the server that the request names to req.
func (s *server) chooseTools(ctx context.Context, o *run, req *routerv1.ChatRequest) (err error) {
	if len(o.c.entries) == 0 || !o.c.offered {
		return nil
	}
	var texts []string
	for _, t := range o.turns {
		texts = append(texts, t.Content)
	}
	if o.set, err = s.Tools.Choose(ctx, o.c.entries, o.c.names, texts); err != nil {
		return err
	}
	if o.c.MaxToolCalls != nil {
		o.set.LimitCalls(int(*o.c.MaxToolCalls))
	}
	o.client = req.GetToolsJson()
	req.ToolsJson, err = httpapi.AgentTools(o.client, o.set)
	return err
}

// runChat runs the chat, with the tools of the server if the request names any. push gets what is added, and ran each
// call of a tool of the server.
func (s *server) runChat(
	ctx context.Context, o *run, req *routerv1.ChatRequest, start func(*routerv1.Started) error,
	push func(toolcall.Delta) error, ran func(httpapi.Ran) error,
) (*ended, error) {
	parsing := httpapi.Parsing{Tools: req.GetToolsJson(), Reasoning: true,
		Single: req.ParallelToolCalls != nil && !req.GetParallelToolCalls(), Loading: o.loading}
	if o.c.logprobs() {
		parsing.Token = o.tokens.Add
	}
	if o.set == nil {
		end, err := httpapi.Run(ctx, s.backend, req, parsing, start, push)
		if err != nil {
			return nil, err
		}
		return &ended{finished: end.Finished}, nil
	}
	end, err := httpapi.RunAgent(ctx, s.backend, req, parsing, o.client, o.set,
		httpapi.AgentHooks{Started: start, Delta: push, Ran: ran, Running: o.running})
	if err != nil {
		return nil, err
	}
	return &ended{end.Finished, append(end.Turns, end.Last), end.Citations}, nil
}

// ran adds the item of a call that the server has run, and returns the events that say so.
func (a *assembler) ran(r httpapi.Ran) []outEvent {
	out := a.end(completed)
	item := &outItem{kind: itemSearch, ran: &r}
	if r.Tool.Kind == agent.KindMCP {
		item.kind = itemMCP
	}
	out = append(out, a.begin(item)...)
	kind := "response." + item.kind + "." + completed
	if r.Result.Failed && item.kind == itemMCP {
		kind = "response." + item.kind + "." + failed
	}
	item.finished, item.status = true, completed
	if r.Result.Failed {
		item.status = failed
	}
	return append(out, a.event(kind, object{}), a.event("response.output_item.done", object{"item": item.object()}))
}

// ranObject adds what the item of a tool of the server has besides its type, id and status.
func (i *outItem) ranObject(out object) {
	r := i.ran
	if i.kind == itemMCP {
		out["server_label"], out["name"], out["arguments"] = r.Tool.Server, r.Tool.Remote, r.Call.Arguments
		out["output"], out["error"] = r.Result.Text, nil
		if r.Result.Failed {
			out["output"], out["error"] = nil, r.Result.Text
		}
		return
	}
	var given struct {
		Query string `json:"query"`
		URL   string `json:"url"`
	}
	_ = json.Unmarshal([]byte(r.Call.Arguments), &given) // wrong arguments have made the call fail
	action := object{"type": "search", "query": given.Query}
	if r.Tool.Kind == agent.KindPage {
		action = object{"type": "open_page", "url": given.URL}
	} else {
		sources := []any{}
		for _, s := range r.Result.Sources {
			sources = append(sources, object{"type": "url", "url": s.URL})
		}
		action["sources"] = sources
	}
	out["action"] = action
}

// cite adds citations to the messages that have them. The citations' places are those in all messages together. It
// returns the events about the open message.
func (a *assembler) cite(citations []toolloop.Citation) (out []outEvent) {
	before := 0 // characters of earlier messages
	for _, item := range a.items {
		if item.kind != itemMessage {
			continue
		}
		size := utf8.RuneCountInString(item.text.String())
		for _, c := range citations {
			if c.Start < before || c.End > before+size {
				continue
			}
			note := object{"type": "url_citation", "start_index": c.Start - before, "end_index": c.End - before,
				"url": c.Source.URL, "title": c.Source.Title}
			if item.annotations = append(item.annotations, note); item == a.open() {
				out = append(out, a.event("response.output_text.annotation.added", object{
					"content_index": 0, "annotation_index": len(item.annotations) - 1, "annotation": note}))
			}
		}
		before += size
	}
	return out
}
