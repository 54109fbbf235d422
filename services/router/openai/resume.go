package openai

import (
	"context"
	"encoding/json"
	"net/http"
	"strconv"

	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/services/router/httpapi"
)

const (
	// extraEvents is the number of events after the last token: the end of the choice, the usage and
	// [DONE]. A client that has all of them asks for the one after.
	extraEvents = 3
	maxState    = 256 << 10 // as in the backend
	stateFormat = "openai/1"
)

// resumeState is what is needed to format the events of a resumable request once more, at any router. It
// travels as the client_state of the request.
type resumeState struct {
	Format     string `json:"format"` // stateFormat
	Chat       bool   `json:"chat,omitempty"`
	Created    int64  `json:"created"`
	Usage      bool   `json:"usage,omitempty"`
	Logprobs   *int   `json:"logprobs,omitempty"` // nil for none
	Tools      string `json:"tools,omitempty"`
	Reasoning  bool   `json:"reasoning,omitempty"`
	SingleCall bool   `json:"single_call,omitempty"`
}

func (c *common) baseState(created int64) *resumeState {
	return &resumeState{Format: stateFormat, Created: created, Usage: c.usageWanted()}
}

// encode returns the state of a request with the given number of choices.
func (s *resumeState) encode(choices int) ([]byte, error) {
	if choices > 1 {
		return nil, fault.Field("resumable", "cannot be combined with %d choices", choices)
	}
	text, err := json.Marshal(s)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "write state as JSON")
	}
	if len(text) > maxState {
		return nil, fault.Field("resumable", "cannot be combined with tools of %d bytes", len(s.Tools))
	}
	return text, nil
}

// shape returns the format of the events of a resumed request. A request that was not made here is
// shown as a completion.
func (s *resumeState) shape() *shape {
	base := common{StreamOptions: &streamOptions{IncludeUsage: s.Usage}}
	if !s.Chat {
		return (&completionRequest{common: base, Logprobs: s.Logprobs}).shape(1, s.Created)
	}
	c := &chatRequest{common: base, Logprobs: s.Logprobs != nil}
	return c.shape(&httpapi.Parsing{Tools: s.Tools, Reasoning: s.Reasoning, Single: s.SingleCall}, 1, s.Created)
}

func beyond(from int) error {
	return &fault.Error{
		Code:  fault.Invalid,
		Field: "from",
		Msg:   strconv.Itoa(from) + " is beyond the end of the answer",
	}
}

// firstEvent returns the number of the first event that a client asks for. An EventSource that connects
// again says which event it has seen last; that counts, since its URL is still the first one.
func firstEvent(r *http.Request) (int, error) {
	const limit = httpapi.MaxInteger + extraEvents
	read := func(field, text string, most int) (int, error) {
		n, err := strconv.Atoi(text)
		if err != nil || n < 0 || n > most {
			return 0, fault.Field(field, "want a number within 0..%d", most)
		}
		return n, nil
	}
	if last := r.Header.Get("Last-Event-ID"); last != "" {
		n, err := read("Last-Event-ID", last, limit-1)
		return n + 1, err
	}
	if !r.URL.Query().Has("from") {
		return 0, nil
	}
	return read("from", r.URL.Query().Get("from"), limit)
}

// resume streams a resumable request, from an event on.
func (s *server) resume(w http.ResponseWriter, r *http.Request) {
	from, err := firstEvent(r)
	if err != nil {
		s.fail(w, err)
		return
	}
	// All tokens are asked for: the format of an event may depend on those before it.
	req := &routerv1.ResumeRequest{RequestId: r.PathValue("id")}
	f := &shape{}
	run := func(ctx context.Context, send func(event) error) error {
		err := s.backend.Resume(ctx, req, func(e *routerv1.ResumeResponse) error {
			if started := e.GetStarted(); started != nil {
				state := &resumeState{}
				if json.Unmarshal(started.GetClientState(), state) != nil || state.Format != stateFormat {
					state = &resumeState{}
				}
				*f = *state.shape()
			}
			return send(event{e.GetStarted(), e.GetPrompt(), e.GetToken(), e.GetFinished(), e.GetLoading()})
		})
		return unknown(err)
	}
	s.stream(w, r, []job{{run: run}}, f, from)
}

// cancel ends a resumable request.
func (s *server) cancel(w http.ResponseWriter, r *http.Request) {
	if err := s.backend.Cancel(r.Context(), r.PathValue("id")); err != nil {
		s.fail(w, unknown(err))
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// unknownRequest is the error of a request that does not exist.
type unknownRequest struct{ error }

// FaultCode returns NotFound.
func (unknownRequest) FaultCode() fault.Code { return fault.NotFound }

func unknown(err error) error {
	if fault.CodeOf(err) == fault.NotFound {
		return unknownRequest{err}
	}
	return err
}
