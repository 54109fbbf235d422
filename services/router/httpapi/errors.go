package httpapi

import (
	"errors"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/rpc"
)

// Problem is what an API says about an error.
type Problem struct {
	Status     int    // of HTTP
	Field      string // of the request, as the backend names it; empty if none is at fault
	Reason     string // a machine-readable reason in upper case; usually empty
	Message    string
	RetryAfter time.Duration // 0 if unknown
}

// Explain returns what err means to the client.
func Explain(err error) Problem {
	p := Problem{Status: rpc.HTTPStatus(fault.CodeOf(err)), Message: err.Error()}
	var large *http.MaxBytesError
	var method *MethodError
	switch {
	case errors.As(err, &large):
		p.Status = http.StatusRequestEntityTooLarge
	case errors.As(err, &method):
		p.Status = http.StatusMethodNotAllowed
	}
	var f *fault.Error
	for e := err; errors.As(e, &f); e = f.Err { // the outermost error counts
		if p.Field == "" {
			p.Field = f.Field
		}
		if p.Reason == "" {
			p.Reason = f.Reason
		}
		if p.RetryAfter == 0 {
			p.RetryAfter = f.RetryAfter
		}
	}
	return p
}

// SetRetryAfter sets the header Retry-After, in whole seconds, if the problem says how long to wait.
func (p Problem) SetRetryAfter(w http.ResponseWriter) {
	if p.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(p.RetryAfter.Seconds()))))
	}
}
