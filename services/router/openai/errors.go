package openai

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/rpc"
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
	status := rpc.HTTPStatus(code)
	name := strings.ReplaceAll(code.String(), " ", "_")
	var param string
	var large *http.MaxBytesError
	var f *fault.Error
	for e := err; errors.As(e, &f); e = f.Err { // the outermost error with a field
		if param == "" {
			param = apiField(f.Field)
		}
	}
	switch {
	case errors.As(err, &large):
		status = http.StatusRequestEntityTooLarge
	case errors.As(err, &unknownRequest{}):
		name = "request_not_found"
	case code == fault.NotFound:
		name, param = "model_not_found", "model"
	case code == fault.OutOfRange:
		name = "context_length_exceeded"
	}
	if reason := reasonOf(err); reason != "" {
		name = strings.ToLower(reason)
	}
	out := apiError{Message: err.Error(), Type: errorType(status), Code: &name, RetryAfter: retryAfter(err).Seconds()}
	if param != "" {
		out.Param = &param
	}
	return status, out
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

// retryAfter is the outermost hint in err's chain, or 0.
func retryAfter(err error) time.Duration {
	for f := (*fault.Error)(nil); errors.As(err, &f); err = f.Err {
		if f.RetryAfter > 0 {
			return f.RetryAfter
		}
	}
	return 0
}

// reasonOf is the outermost reason in err's chain, or "".
func reasonOf(err error) string {
	for f := (*fault.Error)(nil); errors.As(err, &f); err = f.Err {
		if f.Reason != "" {
			return f.Reason
		}
	}
	return ""
}

// fail writes err as the response.
func (s *server) fail(w http.ResponseWriter, err error) {
	status, body := toAPIError(err)
	if wait := retryAfter(err); wait > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(wait.Seconds()))))
	}
	s.json(w, status, map[string]any{"error": body})
}

// refuse writes an error that has not reached the backend.
func (s *server) refuse(w http.ResponseWriter, status int, code, message string) {
	s.json(w, status, map[string]any{"error": apiError{Message: message, Type: errorType(status), Code: &code}})
}

// json writes one object. The client must read it within the write timeout.
func (s *server) json(w http.ResponseWriter, status int, v any) {
	text, err := json.Marshal(v)
	if err != nil { // a log-probability that is not finite
		s.fail(w, fault.Wrap(fault.Internal, err, "write answer as JSON"))
		return
	}
	if err := http.NewResponseController(w).SetWriteDeadline(time.Now().Add(s.timeout)); err != nil &&
		!errors.Is(err, http.ErrNotSupported) {
		s.log.Debug("limit write", "error", err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if _, err := w.Write(append(text, '\n')); err != nil {
		s.log.Debug("write answer", "error", err)
	}
}
