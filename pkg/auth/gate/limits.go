package gate

import (
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/fault"
)

// retryAfter is the outermost hint in err's chain, or 0.
func retryAfter(err error) time.Duration {
	for f := (*fault.Error)(nil); errors.As(err, &f); err = f.Err {
		if f.RetryAfter > 0 {
			return f.RetryAfter
		}
	}
	return 0
}

// limits sets OpenAI's headers of rate limits. Budgets without a limit have none.
func limits(h http.Header, m *auth.Meter) {
	requests, tokens := m.State()
	for what, b := range map[string]auth.Budget{"Requests": requests, "Tokens": tokens} {
		if b.Limit == 0 {
			continue
		}
		h.Set("X-Ratelimit-Limit-"+what, strconv.FormatInt(b.Limit, 10))
		h.Set("X-Ratelimit-Remaining-"+what, strconv.FormatInt(b.Remaining, 10))
		h.Set("X-Ratelimit-Reset-"+what, roundUp(b.Reset).String())
	}
}

func roundUp(d time.Duration) time.Duration {
	return (d + time.Millisecond - 1) / time.Millisecond * time.Millisecond
}

// metered sets the headers of rate limits when an answer begins. By then the request has reserved its tokens.
type metered struct {
	http.ResponseWriter
	meter *auth.Meter
	begun bool
}

func (w *metered) begin() {
	if !w.begun {
		w.begun = true
		limits(w.Header(), w.meter)
	}
}

// WriteHeader sets the headers first.
func (w *metered) WriteHeader(status int) {
	w.begin()
	w.ResponseWriter.WriteHeader(status)
}

// Write sets the headers first.
func (w *metered) Write(b []byte) (int, error) {
	w.begin()
	return w.ResponseWriter.Write(b)
}

// FlushError sets the headers first.
func (w *metered) FlushError() error {
	w.begin()
	return http.NewResponseController(w.ResponseWriter).Flush()
}

// Unwrap lets http.ResponseController reach the connection.
func (w *metered) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// status remembers the status of an answer.
type status struct {
	http.ResponseWriter
	code int
}

// WriteHeader remembers the status.
func (w *status) WriteHeader(code int) {
	if w.code == 0 {
		w.code = code
	}
	w.ResponseWriter.WriteHeader(code)
}

// Unwrap lets http.ResponseController reach the connection.
func (w *status) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// err returns an error with the code that comes next to the status, or nil for success.
func (w *status) err() error {
	switch {
	case w.code < 400:
		return nil
	case w.code == http.StatusNotFound:
		return fault.New(fault.NotFound, "answer %d", w.code)
	case w.code == http.StatusTooManyRequests:
		return fault.New(fault.Exhausted, "answer %d", w.code)
	case w.code < 500:
		return fault.New(fault.Invalid, "answer %d", w.code)
	case w.code == http.StatusServiceUnavailable:
		return fault.New(fault.Unavailable, "answer %d", w.code)
	}
	return fault.New(fault.Internal, "answer %d", w.code)
}
