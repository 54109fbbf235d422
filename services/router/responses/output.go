package responses

import (
	"encoding/json"
	"strconv"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/toolcall"
	"github.com/lamina-mesh/lamina/services/router/httpapi"
)

// The types of items.
const (
	itemMessage   = "message"
	itemReasoning = "reasoning"
	itemCall      = "function_call"
)

// The states of items and of responses.
const (
	inProgress = "in_progress"
	completed  = "completed"
	incomplete = "incomplete"
	failed     = "failed"
)

type object = map[string]any

// outItem is an item of the answer, which grows.
type outItem struct {
	kind     string
	id       string
	callID   string
	name     string
	text     strings.Builder
	status   string
	finished bool

	annotations []any             // of a message
	logprobs    []httpapi.Logprob // of a message, if they are asked for
	ran         *httpapi.Ran      // of a tool that the server has run
}

// object returns the item as it is now.
func (i *outItem) object() object {
	out := object{"type": i.kind, "id": i.id, "status": i.status}
	switch i.kind {
	case itemMessage:
		out["role"], out["content"] = "assistant", []any{}
		if i.finished || i.text.Len() > 0 {
			out["content"] = []any{i.part()}
		}
	case itemReasoning:
		out["summary"], out["content"] = []any{}, []any{}
		if i.finished || i.text.Len() > 0 {
			out["content"] = []any{i.part()}
		}
	case itemCall:
		out["call_id"], out["name"], out["arguments"] = i.callID, i.name, i.text.String()
	case itemSearch, itemMCP:
		i.ranObject(out)
	}
	return out
}

// part returns the only content part of a message or of reasoning.
func (i *outItem) part() object {
	if i.kind == itemReasoning {
		return object{"type": "reasoning_text", "text": i.text.String()}
	}
	return object{"type": "output_text", "text": i.text.String(), "annotations": append([]any{}, i.annotations...),
		"logprobs": shown(i.logprobs)}
}

// shown returns a list that is never null.
func shown(logprobs []httpapi.Logprob) []httpapi.Logprob {
	return append([]httpapi.Logprob{}, logprobs...)
}

// outEvent is an event of a stream, before it has a number.
type outEvent struct {
	kind   string
	fields object
}

// assembler turns what was added to an answer into items and events. An item ends when another one begins.
type assembler struct {
	request string // id of the request, from which the ids of items are made
	items   []*outItem
	call    int // index of the call in the last item
}

// push adds a delta and returns the events that say so. logprobs are those of the content, if they are asked for.
func (a *assembler) push(d toolcall.Delta, logprobs ...httpapi.Logprob) (out []outEvent) {
	if d.Reasoning != "" {
		out = append(out, a.grow(itemReasoning, d.Reasoning, nil)...)
	}
	if d.Content != "" {
		out = append(out, a.grow(itemMessage, d.Content, logprobs)...)
	}
	for _, c := range d.Calls {
		if c.Name != "" {
			out = append(out, a.end(completed)...)
			out = append(out, a.begin(&outItem{kind: itemCall, callID: c.ID, name: c.Name})...)
			a.call = c.Index
		}
		if last := a.open(); c.Arguments != "" && last != nil && last.kind == itemCall && a.call == c.Index {
			last.text.WriteString(c.Arguments)
			out = append(out, a.event("response.function_call_arguments.delta", object{"delta": c.Arguments}))
		}
	}
	return out
}

// open returns the last item unless it has ended.
func (a *assembler) open() *outItem {
	if n := len(a.items); n > 0 && !a.items[n-1].finished {
		return a.items[n-1]
	}
	return nil
}

// event returns an event about the last item.
func (a *assembler) event(kind string, fields object) outEvent {
	fields["output_index"] = len(a.items) - 1
	if kind != "response.output_item.added" && kind != "response.output_item.done" {
		fields["item_id"] = a.items[len(a.items)-1].id
	}
	return outEvent{kind, fields}
}

func (a *assembler) begin(i *outItem) []outEvent {
	prefix := map[string]string{itemMessage: "msg_", itemReasoning: "rs_", itemCall: "fc_",
		itemSearch: "ws_", itemMCP: "mcp_"}[i.kind]
	i.id, i.status = prefix+a.request+"_"+strconv.Itoa(len(a.items)), inProgress
	a.items = append(a.items, i)
	out := []outEvent{a.event("response.output_item.added", object{"item": i.object()})}
	if i.kind == itemMessage || i.kind == itemReasoning {
		out = append(out, a.event("response.content_part.added", object{"content_index": 0, "part": i.part()}))
	}
	return out
}

// grow adds text to an item of the given type, which it begins unless one is open.
func (a *assembler) grow(kind, text string, logprobs []httpapi.Logprob) (out []outEvent) {
	if last := a.open(); last == nil || last.kind != kind {
		out = append(a.end(completed), a.begin(&outItem{kind: kind})...)
	}
	a.open().text.WriteString(text)
	a.open().logprobs = append(a.open().logprobs, logprobs...)
	name, fields := "response.reasoning_text.delta", object{"content_index": 0, "delta": text}
	if kind == itemMessage {
		name, fields["logprobs"] = "response.output_text.delta", shown(logprobs)
	}
	return append(out, a.event(name, fields))
}

// end ends the last item.
func (a *assembler) end(status string) []outEvent {
	last := a.open()
	if last == nil {
		return nil
	}
	last.finished, last.status = true, status
	text := last.text.String()
	done := a.event("response.output_item.done", object{"item": last.object()})
	switch last.kind {
	case itemCall:
		return []outEvent{
			a.event("response.function_call_arguments.done", object{"arguments": text, "name": last.name}), done,
		}
	case itemReasoning:
		return []outEvent{
			a.event("response.reasoning_text.done", object{"content_index": 0, "text": text}),
			a.event("response.content_part.done", object{"content_index": 0, "part": last.part()}), done,
		}
	}
	return []outEvent{
		a.event("response.output_text.done",
			object{"content_index": 0, "text": text, "logprobs": shown(last.logprobs)}),
		a.event("response.content_part.done", object{"content_index": 0, "part": last.part()}), done,
	}
}

// output returns all items.
func (a *assembler) output() []any {
	out := make([]any, len(a.items))
	for i, item := range a.items {
		out[i] = item.object()
	}
	return out
}

// turn returns the answer as a turn. Calls whose arguments are not complete are left out.
func (a *assembler) turn() httpapi.Turn {
	t := httpapi.Turn{Role: "assistant"}
	for _, i := range a.items {
		text := i.text.String()
		switch i.kind {
		case itemMessage:
			t.Content += text
		case itemReasoning:
			t.Reasoning += text
		case itemCall:
			if json.Valid([]byte(text)) {
				t.Calls = append(t.Calls, toolcall.Call{ID: i.callID, Name: i.name, Arguments: text})
			}
		}
	}
	return t
}
