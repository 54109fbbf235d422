package anthropic

import (
	"context"
	"net/http"

	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/services/router/httpapi"
)

// Backend runs chats and counts their prompts. Its errors are faults.
type Backend interface {
	httpapi.Chatter
	// Prompt returns the ids of a chat's prompt.
	Prompt(ctx context.Context, r *routerv1.ChatRequest) ([]uint32, error)
}

// Options are the settings of the API.
type Options = httpapi.Options

type server struct {
	Options
	backend Backend
}

// Routes returns the routes of the API.
func Routes(b Backend, o Options) httpapi.API {
	s := &server{o.WithDefaults(), b}
	return httpapi.API{Name: "anthropic", Fail: s.fail, Log: s.Log, Routes: []httpapi.Route{
		{Method: http.MethodPost, Path: "/v1/messages", Handle: s.messages,
			Summary: "Answer a chat.", Body: request{}, Stream: httpapi.EventStream},
		{Method: http.MethodPost, Path: "/v1/messages/count_tokens", Handle: s.count,
			Summary: "Count the tokens of a prompt.", Body: request{}},
	}}
}

// message is a response, or the beginning of one.
type message struct {
	ID           string  `json:"id"`
	Type         string  `json:"type"`
	Role         string  `json:"role"`
	Model        string  `json:"model"`
	Content      []block `json:"content"`
	StopReason   *string `json:"stop_reason"`
	StopSequence *string `json:"stop_sequence"`
	Usage        usage   `json:"usage"`
}

// usage counts tokens. Those that came from the prefix cache are not among the input tokens.
type usage struct {
	Input       uint32 `json:"input_tokens"`
	CacheRead   uint32 `json:"cache_read_input_tokens"`
	CacheCreate uint32 `json:"cache_creation_input_tokens"`
	Output      uint32 `json:"output_tokens"`

	Server *serverUsage `json:"server_tool_use,omitempty"`
}

func toUsage(u *routerv1.Usage) usage {
	return usage{
		Input:     u.GetPromptTokens() - min(u.GetCachedTokens(), u.GetPromptTokens()),
		CacheRead: u.GetCachedTokens(), Output: u.GetCompletionTokens(),
	}
}

func begin(s *routerv1.Started) message {
	return message{
		ID: "msg_" + s.GetRequestId(), Type: "message", Role: "assistant", Model: s.GetModel(), Content: []block{},
		Usage: usage{Input: uint32(len(s.GetPromptIds()))},
	}
}

// stop returns the stop reason and the stop sequence of an answer.
func stop(e *ended) (reason string, sequence *string) {
	text := e.finished.GetStopString()
	switch {
	case httpapi.Truncated(e.finished):
		return "max_tokens", nil
	case len(e.calls) > 0:
		return "tool_use", nil
	case text != "":
		return "stop_sequence", &text
	}
	return "end_turn", nil
}

func (s *server) messages(w http.ResponseWriter, r *http.Request) {
	var c request
	if err := httpapi.Decode(w, r, &c); err != nil {
		s.fail(w, err)
		return
	}
	req, parsing, err := c.chat(true)
	if err != nil {
		s.fail(w, err)
		return
	}
	if c.Stream {
		s.stream(w, r, &c, req, parsing)
		return
	}
	a := assembler{thinking: c.thinks()}
	out, err := s.run(r.Context(), &c, req, parsing, &a, nil, func([]event) error { return nil }, nil)
	if err != nil {
		s.fail(w, err)
		return
	}
	a.end()
	m := begin(out.started)
	reason, sequence := stop(out)
	m.Content, m.StopReason, m.StopSequence, m.Usage = a.content(), &reason, sequence, out.usage()
	s.json(w, http.StatusOK, m)
}

// stream sends the answer as it arrives.
func (s *server) stream(
	w http.ResponseWriter, r *http.Request, c *request, req *routerv1.ChatRequest, parsing httpapi.Parsing,
) {
	sse := httpapi.NewStream(w, httpapi.EventStream, s.WriteTimeout)
	send := func(events []event) error {
		for _, e := range events {
			if err := sse.Event(e.name(), e); err != nil {
				return err
			}
		}
		return nil
	}
	a := assembler{thinking: c.thinks()}
	parsing.Loading = sse.Loading
	out, err := s.run(r.Context(), c, req, parsing, &a, func(started *routerv1.Started) error {
		m := begin(started)
		return send([]event{{Type: "message_start", Message: &m}, {Type: "ping"}})
	}, send, func([]string) error { return send([]event{{Type: "ping"}}) })
	if err == nil {
		reason, sequence := stop(out)
		u := out.usage()
		err = send(append(a.end(),
			event{Type: "message_delta", Delta: &messageEnd{reason, sequence}, Usage: &u},
			event{Type: "message_stop"}))
	}
	switch {
	case err == nil:
		return
	case !sse.Begun():
		s.fail(w, err)
		return
	case sse.Lost() == nil:
		_, body := toError(err)
		err = sse.Event("error", errorBody{Type: "error", Error: body})
	}
	if err != nil {
		s.Log.DebugContext(r.Context(), "end stream", "error", err)
	}
}

// count answers how many tokens the prompt of a request has.
func (s *server) count(w http.ResponseWriter, r *http.Request) {
	var c request
	if err := httpapi.Decode(w, r, &c); err != nil {
		s.fail(w, err)
		return
	}
	req, _, err := c.chat(false)
	if err == nil {
		_, _, err = s.chooseTools(r.Context(), &c, req)
	}
	if err != nil {
		s.fail(w, err)
		return
	}
	ids, err := s.backend.Prompt(r.Context(), req)
	if err != nil {
		s.fail(w, err)
		return
	}
	s.json(w, http.StatusOK, map[string]int{"input_tokens": len(ids)})
}

// json writes one object.
func (s *server) json(w http.ResponseWriter, status int, v any) {
	s.Reply(w, status, v, s.fail)
}
