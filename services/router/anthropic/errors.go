package anthropic

import (
	"net/http"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/services/router/httpapi"
)

// statusOverloaded is Anthropic's status for a service without capacity.
const statusOverloaded = 529

// apiError is Anthropic's error object.
type apiError struct {
	Type    string `json:"type"`
	Message string `json:"message"`
}

// errorBody is an error as a response, and as the data of an event.
type errorBody struct {
	Type      string   `json:"type"` // "error"
	Error     apiError `json:"error"`
	RequestID string   `json:"request_id,omitempty"`
}

// toError returns the HTTP status and the error object of err.
func toError(err error) (int, apiError) {
	p := httpapi.Explain(err)
	if p.Field != "" { // the message begins with the backend's name of the field, where the API has another one
		if name := apiField(p.Field); name != p.Field {
			p.Message = strings.Replace(p.Message, p.Field, name, 1)
		}
	}
	kind := "invalid_request_error"
	switch {
	case fault.CodeOf(err) == fault.Unavailable:
		p.Status, kind = statusOverloaded, "overloaded_error"
	case p.Status >= http.StatusInternalServerError:
		kind = "api_error"
	case p.Status == http.StatusTooManyRequests:
		kind = "rate_limit_error"
	case p.Status == http.StatusUnauthorized:
		kind = "authentication_error"
	case p.Status == http.StatusForbidden:
		kind = "permission_error"
	case p.Status == http.StatusNotFound:
		kind = "not_found_error"
	case p.Status == http.StatusRequestEntityTooLarge:
		kind = "request_too_large"
	}
	return p.Status, apiError{Type: kind, Message: p.Message}
}

// apiField returns this API's name of a field of the backend.
func apiField(field string) string {
	for _, name := range [][2]string{
		{"sampling.grammar.source", "output_config.format.schema"}, {"sampling.grammar", "output_config.format"},
		{"sampling.", ""}, {"tools_json", "tools"}, {"tool_choice.function", "tool_choice.name"},
	} {
		if rest, ok := strings.CutPrefix(field, name[0]); ok {
			return name[1] + rest
		}
	}
	if field == "stop" || strings.HasPrefix(field, "stop[") {
		return "stop_sequences" + strings.TrimPrefix(field, "stop")
	}
	return field
}

// fail writes err as the response.
func (s *server) fail(w http.ResponseWriter, err error) {
	status, body := toError(err)
	httpapi.Explain(err).SetRetryAfter(w)
	id := w.Header().Get("X-Request-Id")
	s.json(w, status, errorBody{Type: "error", Error: body, RequestID: id})
}
