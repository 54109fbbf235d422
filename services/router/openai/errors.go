package openai

import (
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/services/router/httpapi"
)

// apiError is OpenAI's error object. RetryAfter, in seconds, is an extension: an error in the
// middle of a stream has no header for it. So is ResumeID, the id under which a stream that
// was cut off can be resumed.
type apiError struct {
	Message    string  `json:"message"`
	Type       string  `json:"type"`
	Param      *string `json:"param"`
	Code       *string `json:"code"`
	RetryAfter float64 `json:"retry_after,omitempty"`
	ResumeID   string  `json:"resume_id,omitempty"`
}

// toAPIError returns the HTTP status and the error object of err.
func toAPIError(err error) (int, apiError) {
	code := fault.CodeOf(err)
	p := httpapi.Explain(err)
	name, param := strings.ReplaceAll(code.String(), " ", "_"), apiField(p.Field)
	if param != p.Field { // the message has the backend's name of the field
		p.Message = strings.Replace(p.Message, p.Field, param, 1)
	}
	var method *httpapi.MethodError
	switch {
	case p.Reason != "":
		name = strings.ToLower(p.Reason)
	case errors.As(err, &method):
		name = "method_not_allowed"
	case errors.As(err, &unknownRequest{}):
		name = "request_not_found"
	case code == fault.NotFound:
		name, param = "model_not_found", "model"
	case code == fault.OutOfRange:
		name = "context_length_exceeded"
	}
	out := apiError{Message: p.Message, Type: errorType(p.Status), Code: &name, RetryAfter: p.RetryAfter.Seconds()}
	if param != "" {
		out.Param = &param
	}
	return p.Status, out
}

// nameField gives the backend's field in err the name that the request used, where the API has
// several names for it.
func (c *common) nameField(err error) error {
	for cause, f := err, (*fault.Error)(nil); errors.As(cause, &f); cause = f.Err {
		if name := c.ownName(f.Field); name != "" {
			renamed := *f
			renamed.Field = name
			return &renamed
		}
	}
	return err
}

// ownName returns the request's name of the backend's field, or "" if the API has but one name.
func (c *common) ownName(field string) string {
	if rest, ok := strings.CutPrefix(field, "sampling.grammar"); ok {
		if _, name, _ := c.grammar(); name != "" {
			return name + strings.TrimPrefix(rest, ".source")
		}
	}
	if field == "sampling.repetition_penalty" && c.RepetitionPenalty == nil {
		return "repeat_penalty"
	}
	var i int
	if n, _ := fmt.Sscanf(field, "sampling.advanced.bad_words[%d]", &i); n == 1 {
		return c.badWordsName(i)
	}
	return ""
}

func errorType(status int) string {
	switch {
	case status >= 500:
		return "server_error"
	case status == http.StatusTooManyRequests:
		return "rate_limit_error"
	case status == http.StatusUnauthorized:
		return "authentication_error"
	case status == http.StatusForbidden:
		return "permission_error"
	}
	return "invalid_request_error"
}

// fail writes err as the response.
func (s *server) fail(w http.ResponseWriter, err error) {
	status, body := toAPIError(err)
	httpapi.Explain(err).SetRetryAfter(w)
	s.json(w, status, map[string]any{"error": body})
}

// json writes one object. The client must read it within the write timeout.
func (s *server) json(w http.ResponseWriter, status int, v any) {
	s.Reply(w, status, v, s.fail)
}
