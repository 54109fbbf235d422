package batches

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/batch"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/obs"
	"github.com/lamina-mesh/lamina/services/router/httpapi"
)

const (
	retryLeast = time.Second      // before the first new try of a request that was refused for now
	retryMost  = 30 * time.Second // before a later one, unless the refusal names more
	// settle is how long after the start of the router a model that is not known may still be found.
	settle = time.Minute
	// maxAnswer is the maximum length of an answer, which leaves room for the rest of its result.
	maxAnswer = batch.MaxResult - 1<<20
)

// request runs a request once, and stores its result. It returns when to try it again if it was refused for now, and
// nil if it has a result or was ended. An error ends the batch.
func (s *Service) request(
	ctx context.Context, j *job, results *results, line batch.Line, a attempt,
) (again *attempt, err error) {
	result, wait, err := s.try(ctx, j, line, &a.counted)
	switch {
	case err != nil:
		return nil, err
	case ctx.Err() != nil && !result.OK():
		return nil, nil // it was ended
	case wait == 0:
		if err := results.add(result, true); err != nil {
			return nil, err
		}
		end := endFailed
		if result.OK() {
			end = endOK
		}
		s.lines.WithLabelValues(end).Inc()
		return nil, nil
	}
	s.retries.Inc()
	a.due = time.Now().Add(max(wait, a.backoff))
	a.backoff = min(2*a.backoff, retryMost)
	return &a, nil
}

// try runs a request. A wait above 0 says that it was refused for now, and when to try again. counted says whether the
// owner's budget of requests has paid for the request, which it does once, however often it is tried.
func (s *Service) try(
	ctx context.Context, j *job, line batch.Line, counted *bool,
) (result *batch.Result, wait time.Duration, err error) {
	r, id := j.now(), obs.NewRequestID()
	owner, err := s.Guard.Renew(r.Owner)
	switch fault.CodeOf(err) {
	case fault.Unspecified:
	case fault.Exhausted:
		return &batch.Result{}, retryLeast, nil
	default:
		return nil, 0, fault.Wrap(fault.Unauthenticated, err, "go on with the batch as its owner")
	}
	if _, err := owner.TenantOf(r.Tenant); err != nil { // the key was given to another tenant
		return nil, 0, fault.Wrap(fault.Unauthenticated, err, "go on with the batch as its owner")
	}
	a := &answer{header: http.Header{}}
	err = s.mayUse(owner, r.Batch.Endpoint)
	if err == nil {
		if !*counted {
			if err := owner.Meter().Begin(); err != nil {
				return &batch.Result{}, max(httpapi.Explain(err).RetryAfter, time.Millisecond), nil
			}
			*counted = true
		}
		ctx = auth.WithPrincipal(auth.WithTenant(obs.WithRequestID(s.Lowest(ctx), id), r.Tenant), owner)
		err = s.serve(ctx, a, r.Batch.Endpoint, line.Body)
	}
	if err != nil {
		a = &answer{header: http.Header{}}
		s.Fail(a, err)
	}
	result = &batch.Result{ID: newID("batch_req_"), CustomID: line.CustomID,
		Response: &batch.Response{StatusCode: a.status, RequestID: id, Body: a.body.Bytes()}}
	return result, s.again(a), nil
}

// serve passes a request to the handler of its path.
func (s *Service) serve(ctx context.Context, a *answer, path string, body []byte) (err error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, path, bytes.NewReader(body))
	if err != nil {
		return fault.Wrap(fault.Internal, err, "make request")
	}
	r.Header.Set("Content-Type", "application/json")
	r.RequestURI = path
	defer func() {
		if p := recover(); p != nil { // as the server of the listener does
			s.Log.ErrorContext(ctx, "a handler of a request of a batch has panicked", "path", path, "panic", p)
			err = fault.New(fault.Internal, "run request: its handler has failed")
		}
	}()
	s.Handler.ServeHTTP(a, r)
	switch {
	case a.full:
		return fault.New(fault.OutOfRange, "run request: the answer has more than %d bytes", maxAnswer)
	case !json.Valid(a.body.Bytes()):
		return fault.New(fault.Internal, "run request: the answer is no JSON")
	}
	return nil
}

// again returns when a request with an answer is tried again; 0 for never.
func (s *Service) again(a *answer) time.Duration {
	switch a.status {
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		seconds, err := strconv.Atoi(a.header.Get("Retry-After"))
		if err != nil || seconds < 1 || seconds > math.MaxInt32 {
			return retryLeast
		}
		return time.Duration(seconds) * time.Second
	case http.StatusNotFound: // the services of a model may not have been found yet
		s.mu.Lock()
		defer s.mu.Unlock()
		if time.Since(s.begun) < settle && bytes.Contains(a.body.Bytes(), []byte(`"code":"model_not_found"`)) {
			return retryLeast
		}
	}
	return 0
}

// answer is a response in memory.
type answer struct {
	header http.Header
	status int
	body   bytes.Buffer
	full   bool // there was more
}

// Header returns the headers.
func (a *answer) Header() http.Header { return a.header }

// WriteHeader keeps the status.
func (a *answer) WriteHeader(status int) {
	if a.status == 0 {
		a.status = status
	}
}

var errFull = errors.New("the answer of a request of a batch is too long")

// Write keeps the body.
func (a *answer) Write(p []byte) (int, error) {
	a.WriteHeader(http.StatusOK)
	if a.full = a.full || a.body.Len()+len(p) > maxAnswer; a.full {
		return 0, errFull
	}
	return a.body.Write(p)
}
