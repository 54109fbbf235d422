package responses

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/pkg/obs"
	"github.com/lamina-mesh/lamina/pkg/toolcall"
	"github.com/lamina-mesh/lamina/services/router/agent"
	"github.com/lamina-mesh/lamina/services/router/httpapi"
)

// Options are the settings of the API.
type Options struct {
	httpapi.Options
	// Fail writes an error in OpenAI's shape, and Error returns the error object.
	Fail  func(w http.ResponseWriter, err error)
	Error func(err error) any
	// MaxResponses, MaxBytes and MaxAge bound what is stored; 0 means 4096, 64 MiB and an hour.
	MaxResponses, MaxBytes int
	MaxAge                 time.Duration
	Now                    func() time.Time // nil is time.Now
}

type server struct {
	Options
	backend httpapi.Chatter
	store   *store
}

// Routes returns the routes of the API.
func Routes(b httpapi.Chatter, o Options) httpapi.API {
	for _, d := range []struct {
		p *int
		n int
	}{{&o.MaxResponses, defaultResponses}, {&o.MaxBytes, defaultBytes}} {
		if *d.p == 0 {
			*d.p = d.n
		}
	}
	if o.MaxAge == 0 {
		o.MaxAge = defaultAge
	}
	o.Options = o.WithDefaults()
	if o.Now == nil {
		o.Now = time.Now
	}
	s := &server{o, b, newStore(o.MaxResponses, o.MaxBytes, o.MaxAge, o.Now)}
	return httpapi.API{Name: "responses", Fail: s.fail, Log: o.Log, Routes: []httpapi.Route{
		{Method: http.MethodPost, Path: "/v1/responses", Handle: s.create,
			Summary: "Create a response.", Body: request{}, Stream: httpapi.EventStream},
		{Method: http.MethodGet, Path: "/v1/responses/{id}", Handle: s.get,
			Summary: "Read a stored response."},
		{Method: http.MethodDelete, Path: "/v1/responses/{id}", Handle: s.remove,
			Summary: "Delete a stored response."},
		{Method: http.MethodGet, Path: "/v1/responses/{id}/input_items", Handle: s.inputs,
			Summary: "List the input of a stored response."},
	}}
}

// rename gives the backend's fields in err the names that this API has for them.
func rename(err error) error {
	var f *fault.Error
	for cause := err; errors.As(cause, &f); cause = f.Err {
		for _, name := range [][2]string{
			{"sampling.grammar.source", "text.format.schema"}, {"sampling.grammar", "text.format"},
			{"messages", "input"}, {"max_tokens", "max_output_tokens"}, {"context_policy", "truncation"},
			{"tool_choice.function", "tool_choice.name"},
		} {
			if rest, ok := strings.CutPrefix(f.Field, name[0]); ok {
				renamed := *f
				renamed.Field = name[1] + rest
				return &renamed
			}
		}
	}
	return err
}

func (s *server) fail(w http.ResponseWriter, err error) { s.Fail(w, rename(err)) }

func (s *server) json(w http.ResponseWriter, status int, v any) {
	s.Reply(w, status, v, s.fail)
}

// run is one request with what has become of it.
type run struct {
	c       *request
	id      string
	root    string // the id of the first response of the conversation
	created int64
	model   string
	inputs  []json.RawMessage
	turns   []httpapi.Turn // without instructions and answer
	made    assembler
	thought uint32 // tokens of reasoning
	set     *agent.Set
	client  string                             // the definitions of the client's tools, if set is not nil
	loading func(*routerv1.ModelLoading) error // of a stream; nil for none
	running func(names []string) error         // the same
	tokens  httpapi.TokenLog                   // for log-probabilities
}

// prepare reads a request and finds the response that it continues.
func (s *server) prepare(w http.ResponseWriter, r *http.Request) (*run, *routerv1.ChatRequest, error) {
	c := &request{}
	if err := httpapi.Decode(w, r, c); err != nil {
		return nil, nil, err
	}
	req, err := c.chat()
	if err != nil {
		return nil, nil, err
	}
	id := obs.RequestID(r.Context())
	if id == "" {
		id = obs.NewRequestID()
	}
	out := &run{c: c, id: "resp_" + obs.NewRequestID(), created: s.Now().Unix(), model: c.Model}
	out.made.request = id
	if out.inputs, err = c.items(); err != nil {
		return nil, nil, err
	}
	var before []httpapi.Turn
	out.root = out.id
	if c.Previous != nil {
		previous := s.store.get(key{auth.Tenant(r.Context()), *c.Previous})
		if previous == nil {
			return nil, nil, fault.Field("previous_response_id", "%v", unknown(*c.Previous)).
				Because("PREVIOUS_RESPONSE_NOT_FOUND")
		}
		before, out.root = previous.turns, previous.root
	}
	if out.turns, err = readTurns(before, out.inputs); err != nil {
		return nil, nil, err
	}
	for _, t := range withInstructions(c.Instructions, out.turns) {
		m, err := t.Message()
		if err != nil {
			return nil, nil, err
		}
		req.Messages = append(req.Messages, m)
	}
	if err := s.chooseTools(r.Context(), out, req); err != nil {
		return nil, nil, err
	}
	return out, req, nil
}

// chat runs the request and passes the events to send.
func (s *server) chat(
	ctx context.Context,
	o *run,
	req *routerv1.ChatRequest,
	send func(...outEvent) error,
) (object, error) {
	if obs.SessionID(ctx) == "" { // all responses of a conversation come from one version of a model
		ctx = obs.WithSessionID(ctx, o.root)
	}
	end, err := s.runChat(ctx, o, req, func(st *routerv1.Started) error {
		o.model = st.GetModel()
		return send(outEvent{"response.created", object{"response": o.object(inProgress, nil)}},
			outEvent{"response.in_progress", object{"response": o.object(inProgress, nil)}})
	}, func(d toolcall.Delta) error {
		if d.Reasoning != "" && d.Content == "" && len(d.Calls) == 0 {
			o.thought++
		}
		return send(o.made.push(d, httpapi.Logprobs(o.tokens.Content(d.Content)...)...)...)
	}, func(r httpapi.Ran) error { return send(o.made.ran(r)...) })
	if err != nil {
		return nil, rename(err)
	}
	status := completed
	if httpapi.Truncated(end.finished) {
		status = incomplete
	}
	events := append(o.made.cite(end.citations), o.made.end(status)...)
	whole := o.object(status, end.finished.GetUsage())
	if status == completed {
		whole["completed_at"] = s.Now().Unix()
	}
	if o.c.stores() {
		body, err := json.Marshal(whole)
		if err != nil {
			return nil, fault.Wrap(fault.Internal, err, "write response as JSON")
		}
		added := end.turns
		if added == nil {
			added = []httpapi.Turn{o.made.turn()}
		}
		s.store.put(key{auth.Tenant(ctx), o.id}, &stored{body: body, input: o.inputs, root: o.root,
			turns: append(o.turns[:len(o.turns):len(o.turns)], added...)})
	}
	return whole, send(append(events, outEvent{"response." + status, object{"response": whole}})...)
}

func (s *server) create(w http.ResponseWriter, r *http.Request) {
	o, req, err := s.prepare(w, r)
	if err != nil {
		s.fail(w, err)
		return
	}
	if !o.c.Stream {
		whole, err := s.chat(r.Context(), o, req, func(...outEvent) error { return nil })
		if err != nil {
			s.fail(w, err)
			return
		}
		s.json(w, http.StatusOK, whole)
		return
	}
	sse := httpapi.NewStream(w, httpapi.EventStream, s.WriteTimeout)
	number := 0
	send := func(events ...outEvent) error {
		for _, e := range events {
			e.fields["type"], e.fields["sequence_number"] = e.kind, number
			number++
			if err := sse.Event(e.kind, e.fields); err != nil {
				return err
			}
		}
		return nil
	}
	o.loading, o.running = sse.Loading, sse.Running
	_, err = s.chat(r.Context(), o, req, send)
	switch {
	case err == nil:
		err = sse.Write([]byte("data: [DONE]\n\n"))
	case !sse.Begun():
		s.fail(w, err)
		return
	case sse.Lost() == nil:
		o.made.end(incomplete)
		whole := o.object(failed, nil)
		whole["error"] = s.Error(err)
		err = send(outEvent{"response.failed", object{"response": whole}})
	}
	if err != nil {
		s.Log.DebugContext(r.Context(), "end stream", "error", err)
	}
}

// find returns the stored response that a path names.
func (s *server) find(w http.ResponseWriter, r *http.Request) (*stored, bool) {
	found := s.store.get(key{auth.Tenant(r.Context()), r.PathValue("id")})
	if found == nil {
		s.fail(w, unknown(r.PathValue("id")))
	}
	return found, found != nil
}

func (s *server) get(w http.ResponseWriter, r *http.Request) {
	if r.URL.Query().Get("stream") == "true" {
		s.fail(w, fault.Field("stream", "is not supported for stored responses"))
		return
	}
	if found, ok := s.find(w, r); ok {
		s.json(w, http.StatusOK, found.body)
	}
}

func (s *server) remove(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	if !s.store.remove(key{auth.Tenant(r.Context()), id}) {
		s.fail(w, unknown(id))
		return
	}
	s.json(w, http.StatusOK, object{"id": id, "object": "response.deleted", "deleted": true})
}
