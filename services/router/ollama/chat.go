package ollama

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/pkg/toolcall"
	"github.com/lamina-mesh/lamina/services/router/agent"
	"github.com/lamina-mesh/lamina/services/router/httpapi"
)

type chatRequest struct {
	common
	Messages []inMessage       `json:"messages"`
	Tools    []json.RawMessage `json:"tools"`

	// What tools reads of Tools: the entries that the server runs, and the names of the client's functions.
	entries []agent.Entry
	names   []string
}

// inMessage is a message of a request.
type inMessage struct {
	Role      string            `json:"role"`
	Content   string            `json:"content"`
	Thinking  string            `json:"thinking"`
	Images    []json.RawMessage `json:"images"`
	ToolCalls []inCall          `json:"tool_calls"`
	ToolName  string            `json:"tool_name"`
	CallID    string            `json:"tool_call_id"`
}

type inCall struct {
	ID       string `json:"id"`
	Function struct {
		Name      string          `json:"name"`
		Arguments json.RawMessage `json:"arguments"`
	} `json:"function"`
}

// outMessage is the message of an answer, or what a line adds to it.
type outMessage struct {
	Role      string    `json:"role"`
	Content   string    `json:"content"`
	Thinking  string    `json:"thinking,omitempty"`
	ToolCalls []outCall `json:"tool_calls,omitempty"`
	// Executed are calls that the server has run, and Annotations citations. Ollama has neither.
	Executed    []any `json:"executed_tools,omitempty"`
	Annotations []any `json:"annotations,omitempty"`
}

type outCall struct {
	ID       string      `json:"id"`
	Function outFunction `json:"function"`
}

type outFunction struct {
	Index     int             `json:"index"`
	Name      string          `json:"name"`
	Arguments json.RawMessage `json:"arguments"`
}

// line is a line of a stream, or the whole answer.
type line struct {
	Model     string      `json:"model"`
	CreatedAt time.Time   `json:"created_at"`
	Message   *outMessage `json:"message,omitempty"`  // of a chat
	Response  *string     `json:"response,omitempty"` // of a generation
	Thinking  string      `json:"thinking,omitempty"` // of a generation
	Done      bool        `json:"done"`
	Reason    string      `json:"done_reason,omitempty"`
	Total     int64       `json:"total_duration,omitempty"` // nanoseconds, as the others
	Load      int64       `json:"load_duration,omitempty"`
	Prompt    uint32      `json:"prompt_eval_count,omitempty"`
	PromptNS  int64       `json:"prompt_eval_duration,omitempty"`
	Eval      uint32      `json:"eval_count,omitempty"`
	EvalNS    int64       `json:"eval_duration,omitempty"`
	Logprobs  []logprob   `json:"logprobs,omitempty"` // of the tokens since the last line
	// Of a line without text, while the model is being loaded: as in lines of /api/pull.
	Status    string `json:"status,omitempty"`
	Bytes     uint64 `json:"total,omitempty"`
	Completed uint64 `json:"completed,omitempty"`
}

// logprob is a token with its log-probability, and the likeliest ones at its place.
type logprob struct {
	httpapi.Candidate
	Top []httpapi.Candidate `json:"top_logprobs,omitempty"`
}

// finish fills in the end of an answer.
func (l *line) finish(f *routerv1.Finished) {
	const us = int64(time.Microsecond)
	t := f.GetTimings()
	l.Done, l.Reason = true, "stop"
	if httpapi.Truncated(f) {
		l.Reason = "length"
	}
	l.PromptNS, l.EvalNS = int64(t.GetPrefillUs())*us, int64(t.GetDecodeUs())*us
	l.Total = int64(t.GetQueueUs())*us + l.PromptNS + l.EvalNS
	l.Prompt, l.Eval = f.GetUsage().GetPromptTokens(), f.GetUsage().GetCompletionTokens()
}

// tools checks the tools. It returns the client's own, as JSON, and keeps the entries that the server runs.
func (c *chatRequest) tools() (string, error) {
	var tools []httpapi.Tool
	for i, raw := range c.Tools {
		field := func(rest string) string { return fmt.Sprintf("tools[%d]%s", i, rest) }
		var t struct {
			Type     string `json:"type"`
			Function struct {
				Name        string          `json:"name"`
				Description string          `json:"description"`
				Parameters  json.RawMessage `json:"parameters"`
			} `json:"function"`
		}
		switch {
		case json.Unmarshal(raw, &t) != nil:
			return "", fault.Field(field(""), "want a tool with type and function")
		case agent.Kind(t.Type) != "":
			c.entries = append(c.entries, agent.Entry{Field: field(""), Raw: raw})
			continue
		case t.Type != "" && t.Type != "function":
			return "", fault.Field(field(".type"), "%q is not supported, only function is", t.Type)
		case t.Function.Name == "":
			return "", fault.Field(field(".function.name"), "is missing")
		}
		c.names = append(c.names, t.Function.Name)
		tools = append(tools, httpapi.Tool{
			Name: t.Function.Name, Description: t.Function.Description, Parameters: t.Function.Parameters,
		})
	}
	return httpapi.ToolsJSON(tools)
}

// request returns the request for the backend, and whether the answer has the reasoning.
func (c *chatRequest) request() (out *routerv1.ChatRequest, shown bool, err error) {
	out = &routerv1.ChatRequest{Model: modelName(c.Model), KeepMarkers: true}
	if out.Sampling, out.Stop, out.MaxTokens, err = c.sampling(); err != nil {
		return nil, false, err
	}
	out.TopLogprobs = c.top()
	if out.VariablesJson, shown, err = c.thinking(); err != nil {
		return nil, false, err
	}
	if out.ToolsJson, err = c.tools(); err != nil {
		return nil, false, err
	}
	var open []toolcall.Call // calls without a result
	for i, m := range c.Messages {
		t, err := m.turn(fmt.Sprintf("messages[%d]", i), i, &open)
		if err != nil {
			return nil, false, err
		}
		message, err := t.Message()
		if err != nil {
			return nil, false, err
		}
		out.Messages = append(out.Messages, message)
	}
	return out, shown, nil
}

// turn reads a message. open holds the calls that wait for their results.
func (m *inMessage) turn(field string, at int, open *[]toolcall.Call) (t httpapi.Turn, err error) {
	t = httpapi.Turn{Role: m.Role, Content: m.Content}
	if m.Role == "" {
		return t, fault.Field(field+".role", "is missing")
	}
	if len(m.Images) > 0 {
		return t, fault.Field(field+".images", "are not supported")
	}
	switch m.Role {
	case "assistant":
		t.Reasoning = m.Thinking
		for j, c := range m.ToolCalls {
			arguments := strings.TrimSpace(string(c.Function.Arguments))
			switch {
			case c.Function.Name == "":
				return t, fault.Field(fmt.Sprintf("%s.tool_calls[%d].function.name", field, j), "is missing")
			case !strings.HasPrefix(arguments, "{"):
				return t, fault.Field(fmt.Sprintf("%s.tool_calls[%d].function.arguments", field, j), "want an object")
			}
			if c.ID == "" {
				c.ID = httpapi.CallID("", at, j)
			}
			t.Calls = append(t.Calls, toolcall.Call{ID: c.ID, Name: c.Function.Name, Arguments: arguments})
		}
		*open = append([]toolcall.Call(nil), t.Calls...)
	case "tool":
		t.CallID, t.Name = m.CallID, m.ToolName
		for j, c := range *open {
			if m.CallID == c.ID || m.CallID == "" && (m.ToolName == c.Name || m.ToolName == "") {
				t.CallID, t.Name = c.ID, c.Name
				*open = append((*open)[:j:j], (*open)[j+1:]...)
				break
			}
		}
	}
	return t, nil
}

// calls collects calls until their arguments are complete.
type calls struct {
	open *toolcall.Call
	made int
}

// push returns the calls that are complete: a call is when the next one begins.
func (c *calls) push(d toolcall.Delta) (out []outCall) {
	for _, part := range d.Calls {
		if part.Name != "" {
			out = append(out, c.end()...)
			c.open = &toolcall.Call{ID: part.ID, Name: part.Name}
		}
		if c.open != nil {
			c.open.Arguments += part.Arguments
		}
	}
	return out
}

// end returns the last call. One that was cut off is dropped, since nobody can make it.
func (c *calls) end() (out []outCall) {
	if c.open != nil && json.Valid([]byte(c.open.Arguments)) {
		out = []outCall{{c.open.ID, outFunction{c.made, c.open.Name, json.RawMessage(c.open.Arguments)}}}
		c.made++
	}
	c.open = nil
	return out
}

func (s *server) chat(w http.ResponseWriter, r *http.Request) {
	var c chatRequest
	if err := httpapi.Decode(w, r, &c, "common"); err != nil {
		s.fail(w, err)
		return
	}
	req, shown, err := c.request()
	if err != nil {
		s.fail(w, err)
		return
	}
	if len(c.Messages) == 0 { // asks for the model to be loaded
		m, err := s.find(r.Context(), c.Model)
		if err != nil {
			s.fail(w, err)
			return
		}
		s.json(w, http.StatusOK, line{Model: m.GetName(), CreatedAt: time.Now().UTC(), Done: true, Reason: "load",
			Message: &outMessage{Role: "assistant"}})
		return
	}
	out := s.newWriter(w, &c.common)
	var all outMessage
	var made calls
	end, err := s.runChat(r.Context(), &c, req, out, &all, func(d toolcall.Delta) error {
		if !shown {
			d.Reasoning = ""
		}
		return out.chat(&all, outMessage{Content: d.Content, Thinking: d.Reasoning, ToolCalls: made.push(d)})
	})
	if err == nil {
		err = out.chat(&all, outMessage{ToolCalls: made.end()})
	}
	if err != nil {
		out.fail(r, err)
		return
	}
	last := outMessage{Role: "assistant"}
	if !out.streamed {
		last = all
		last.Role = "assistant"
	}
	last.Annotations = httpapi.Annotations(end.citations)
	l := line{Message: &last}
	l.finish(end.finished)
	out.end(r, l)
}
