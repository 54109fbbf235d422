package router

import (
	"errors"
	"strings"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/pkg/sched"
)

// refusal decides what happens to a request when a sampler or a stage refuses its session or fails
// it later. It depends on the cause:
//
//   - The request itself (INVALID_ARGUMENT): it ends with that error, under the name that
//     the field has in the request. It is never retried.
//   - The pipeline has lost the session's state, or a newer epoch has replaced it (ABORTED,
//     FAILED_PRECONDITION, UNAVAILABLE, DEADLINE_EXCEEDED), or a stage does not hold the session's adapter
//     (NOT_FOUND): the session is replayed from its token log, as when the whole pipeline dies.
//   - The service has no room (RESOURCE_EXHAUSTED): the request ends with UNAVAILABLE and a retry
//     hint. RESOURCE_EXHAUSTED is left to requests whose tenant has used up its quota.
//   - Anything else, such as INTERNAL, ends the request with that code.
func refusal(id []byte, code uint32, field, message string) (err *fault.Error, replay bool) {
	switch c := rpc.FaultCode(codes.Code(code)); c {
	case fault.Invalid:
		return &fault.Error{Code: c, Field: field, Msg: message}, false
	case fault.Exhausted:
		return fault.New(fault.Unavailable, "run session %x: %s", id, message).After(time.Second), false
	case fault.Aborted, fault.FailedPrecondition, fault.Unavailable, fault.DeadlineExceeded, fault.NotFound:
		return fault.New(c, "run session %x: %s", id, message), true
	default:
		return fault.New(c, "run session %x: %s", id, message), false
	}
}

// Reasons of refusals, as clients see them.
const (
	reasonQuota    = "RATE_LIMIT_EXCEEDED" // as OpenAI names it
	reasonQueue    = "QUEUE_FULL"
	reasonCapacity = "NO_CAPACITY"
)

// refusedByQueue returns the error of a request that cannot be queued.
func refusedByQueue(c sched.TurnAway) *fault.Error {
	if c.Reason == sched.QuotaUsed {
		return fault.New(fault.Exhausted, "admit request: %d requests of the tenant wait, at most %d may", c.Have,
			c.Need).After(c.RetryAfter).Because(reasonQuota)
	}
	return fault.New(fault.Unavailable, "admit request: the queue is full with %d requests",
		c.Have).After(c.RetryAfter).Because(reasonQueue)
}

// queueFull returns the error of a request that no pipeline of the model can queue now, or nil. It is
// asked before a request costs anything, so that a refusal is fast under overload.
func (s *Service) queueFull(digest, tenant string) error {
	s.mu.Lock()
	var same []*pipeline
	for _, p := range s.pipelines {
		if p.digest == digest && !p.dead() {
			same = append(same, p)
		}
	}
	s.mu.Unlock()
	var first *fault.Error
	for _, p := range same {
		p.mu.Lock()
		c, full := p.sched.Full(tenant)
		p.mu.Unlock()
		if !full {
			return nil
		}
		if err := refusedByQueue(c); first == nil || err.Code == fault.Exhausted || first.Code == err.Code &&
			err.RetryAfter < first.RetryAfter {
			first = err
		}
	}
	if first == nil {
		return nil
	}
	return first
}

// renameField renames the field of a refusal from its path in the sampler's Rules to its path in
// the request. An error in a grammar that was made from the request's tools names the tools.
func (q *request) renameField(err error) error {
	var f *fault.Error
	if !errors.As(err, &f) || f.Code != fault.Invalid {
		return err
	}
	field := f.Field
	switch {
	case field == "max_tokens", field == "top_logprobs":
	case q.toolGrammar && strings.HasPrefix(field, "grammar"):
		field = "tools_json"
	case field == "":
		field = "prompt"
	default:
		field = "sampling." + field
	}
	return &fault.Error{Code: fault.Invalid, Field: field, Msg: f.Msg}
}

// maxStrikes is the number of strikes in a row after which a request is set aside, because it may be
// the cause of what it has seen: two pipelines whose stream broke, or four that missed a step deadline,
// while the request was in flight on them. A busy machine can miss deadlines too, so one counts half.
//
// A loss counts only if rows were in flight that no stage had computed before: the same rows do the same
// again. So a request is not blamed while its log is replayed, and the count starts again once the rows of
// the last strike have been computed elsewhere, be it without a token.
const (
	maxStrikes = 4
	brokenFor  = 2
	lateFor    = 1
)

// strikes counts the pipelines that died under a request.
type strikes struct {
	count  int
	tokens int // length of the log at the last strike
	upTo   int // the end of the rows in flight then; 0 if there were none
	causes []string
}

// add counts the death of a pipeline or of a stage of it, given the length of the request's log. If the
// request has had a token since the last one, or the rows that were in flight then have done no harm since,
// the count starts again.
func (s *strikes) add(tokens int, b sched.Blame, cause error) {
	if tokens > s.tokens || s.upTo > 0 && b.Proven >= s.upTo {
		*s = strikes{tokens: tokens}
	}
	s.upTo = b.UpTo
	s.count += brokenFor
	if fault.CodeOf(cause) == fault.DeadlineExceeded {
		s.count += lateFor - brokenFor
	}
	s.causes = append(s.causes, cause.Error())
}

// suspect reports whether the request is computed apart from all others until it has had a token. Suspects are
// computed one after another, which takes time for their clients, and one missed deadline is hardly ever the
// fault of a request. So that alone makes nobody a suspect: those that were in flight go on together, and only
// if the next pipeline misses a deadline too are they told apart. There are two more losses left for that.
func (s *strikes) suspect() bool { return s.count >= brokenFor }

// carried returns the strikes of a request that runs again on another version of its model. The version that it has
// failed on may be at fault, so it is not set aside yet. It may itself be, so it is a suspect and has one loss left.
func (s *strikes) carried() strikes {
	c := *s
	c.count = min(c.count, maxStrikes-brokenFor)
	return c
}

// verdict returns the error of a request that is set aside, or nil.
func (s *strikes) verdict(request string) error {
	if s.count < maxStrikes {
		return nil
	}
	return fault.New(fault.Aborted,
		"run request %s: set aside, since %d pipelines died one after another while computing it (%s)",
		request, len(s.causes), strings.Join(s.causes, "; "))
}
