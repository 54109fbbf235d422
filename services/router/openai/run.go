package openai

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	"github.com/lamina-mesh/lamina/services/router/httpapi"
)

// event is one event of one choice: exactly one field is set.
type event struct {
	started  *routerv1.Started
	prompt   *routerv1.PromptTokens
	token    *routerv1.TokenEvent
	finished *routerv1.Finished
	loading  *routerv1.ModelLoading // before started
}

// job generates one choice.
type job struct {
	run func(ctx context.Context, send func(event) error) error
	// again says that an earlier job has the same prompt. Its tokens are counted once.
	again bool
}

// runAll runs the jobs concurrently and passes their events to take, one goroutine for each
// job. The first error cancels the other jobs and is returned.
func runAll(ctx context.Context, jobs []job, take func(i int, e event) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var first error
	for i, j := range jobs {
		wg.Go(func() {
			finished := false
			err := j.run(ctx, func(e event) error {
				finished = finished || e.finished != nil
				return take(i, e)
			})
			if err == nil && !finished {
				err = fault.New(fault.Internal, "run choice %d: it ended without a finish reason", i)
			}
			if err == nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if first == nil {
				first = err
				cancel(err)
			}
		})
	}
	wg.Wait()
	return first
}

func reason(r samplerv1.FinishReason) string {
	if r == samplerv1.FinishReason_FINISH_REASON_LENGTH {
		return "length"
	}
	return "stop"
}

// usage is OpenAI's usage object.
type usage struct {
	Prompt     uint32        `json:"prompt_tokens"`
	Completion uint32        `json:"completion_tokens"`
	Total      uint32        `json:"total_tokens"`
	Details    promptDetails `json:"prompt_tokens_details"`
}

// promptDetails breaks down the prompt tokens.
type promptDetails struct {
	Cached uint32 `json:"cached_tokens"`
}

// add counts the usage of a choice; a prompt shared by several choices counts once.
func (u *usage) add(f *routerv1.Usage, again bool) {
	if !again {
		u.Prompt += f.GetPromptTokens()
		u.Details.Cached += f.GetCachedTokens()
	}
	u.Completion += f.GetCompletionTokens()
	u.Total = u.Prompt + u.Completion
}

// answer collects a choice that is not streamed.
type answer struct {
	started  *routerv1.Started
	prompt   []*routerv1.PromptToken
	text     strings.Builder
	tokens   []*routerv1.TokenEvent
	finished *routerv1.Finished
}

// shape is how an endpoint formats its responses.
type shape struct {
	prefix, whole, part string // prefix of ids; object names of a complete response and of a streamed part
	created             int64  // seconds since 1970
	usage               bool   // whether a stream ends with usage
	// choice formats a complete choice, without its index and finish reason.
	choice func(i int, a *answer) map[string]any
	// piece formats an event of choice i, without its index and finish reason. For nil nothing is
	// sent. It is never called concurrently for one choice.
	piece func(i int, e event) map[string]any
	// empty formats a choice of a stream without text.
	empty func() map[string]any
	// keep returns the indices of the answers to return; a nil function keeps all.
	keep func(answers []answer) []int
	// reason returns the finish reason of choice i; nil uses the backend's.
	reason func(i int, f *routerv1.Finished) string
}

// why returns the finish reason of choice i.
func (f *shape) why(i int, finished *routerv1.Finished) string {
	if f.reason != nil {
		return f.reason(i, finished)
	}
	return reason(finished.GetFinishReason())
}

// envelope returns the response object that contains the choices. The id of the response comes from
// first, and the model from own.
func (f *shape) envelope(object string, first, own *routerv1.Started, choices []any) map[string]any {
	return map[string]any{
		"id": f.prefix + "-" + first.GetRequestId(), "object": object, "created": f.created, "model": own.GetModel(),
		"system_fingerprint": own.GetFingerprint(), "choices": choices,
	}
}

// gather sends one response with all complete choices.
func (s *server) gather(w http.ResponseWriter, r *http.Request, jobs []job, f *shape) {
	answers := make([]answer, len(jobs))
	var silent httpapi.SilentWait
	err := runAll(r.Context(), jobs, func(i int, e event) error {
		a := &answers[i]
		switch {
		case e.loading != nil:
			return silent.Loading(e.loading)
		case e.started != nil:
			a.started = e.started
		case e.prompt != nil:
			a.prompt = append(a.prompt, e.prompt.GetTokens()...)
		case e.token != nil:
			a.text.WriteString(e.token.GetText())
			a.tokens = append(a.tokens, e.token)
		case e.finished != nil:
			a.text.WriteString(e.finished.GetText())
			a.finished = e.finished
		}
		return nil
	})
	if err != nil {
		s.fail(w, err)
		return
	}
	var total usage
	var shown []int
	for i := range answers {
		total.add(answers[i].finished.GetUsage(), jobs[i].again)
		shown = append(shown, i)
	}
	if f.keep != nil {
		shown = f.keep(answers)
	}
	choices := make([]any, len(shown))
	for at, i := range shown {
		choice := f.choice(i, &answers[i])
		choice["index"], choice["finish_reason"] = at, f.why(i, answers[i].finished)
		if use := answers[i].finished.GetContext(); use != nil {
			choice["context"] = toContext(use)
		}
		choices[at] = choice
	}
	out := f.envelope(f.whole, answers[0].started, answers[0].started, choices)
	out["usage"] = total
	s.json(w, http.StatusOK, out)
}

// stream sends events as they arrive. The events of a resumable request have numbers as their ids: tokens
// their index, and those after the last token go on counting. from is the number of the first event
// to send; earlier ones are formatted and dropped, since the later ones depend on them.
func (s *server) stream(w http.ResponseWriter, r *http.Request, jobs []job, f *shape, from int) {
	out := newStream(w, s.WriteTimeout)
	var mu sync.Mutex // guards the variables below
	var first *routerv1.Started
	var total usage
	own := make([]*routerv1.Started, len(jobs))
	next := 0 // number of the next event of a resumable request, which has one choice
	err := runAll(r.Context(), jobs, func(i int, e event) error {
		if e.loading != nil {
			return out.Loading(e.loading)
		}
		mu.Lock()
		number := unnumbered
		switch {
		case e.started != nil:
			own[i] = e.started
			if first == nil {
				first = e.started
			}
			if from > int(first.GetMaxTokens())+extraEvents {
				mu.Unlock()
				return beyond(from)
			}
		case e.token != nil && first.GetResumable():
			number, next = int(e.token.GetIndex()), int(e.token.GetIndex())+1
		case e.finished != nil:
			total.add(e.finished.GetUsage(), jobs[i].again)
			if first.GetResumable() {
				number, next = next, next+1
			}
		}
		head := first
		mu.Unlock()
		choice, context := f.piece(i, e), contextOf(e)
		switch {
		case choice == nil && context == nil, max(number, 0) < from:
			return nil
		case choice == nil:
			choice = f.empty()
		}
		if context != nil {
			choice["context"] = context
		}
		choice["index"], choice["finish_reason"] = i, nil
		if e.finished != nil {
			choice["finish_reason"] = f.why(i, e.finished)
		}
		v := f.envelope(f.part, head, own[i], []any{choice})
		if f.usage {
			v["usage"] = nil
		}
		return out.send(number, v)
	})
	// trailer returns the number of the next event after the last token, and whether to send it.
	trailer := func() (int, bool) {
		if !first.GetResumable() {
			return unnumbered, true
		}
		next++
		return next - 1, next-1 >= from
	}
	if err == nil && f.usage {
		if number, send := trailer(); send {
			v := f.envelope(f.part, first, first, []any{})
			v["usage"] = total
			err = out.send(number, v)
		}
	}
	if err == nil {
		switch number, send := trailer(); {
		case send:
			err = out.end(number)
		case from > number+1:
			err = beyond(from)
		default: // the client has everything; an EventSource does not connect again after this
			w.WriteHeader(http.StatusNoContent)
			return
		}
	}
	switch {
	case err == nil:
		return
	case !out.Begun():
		s.fail(w, err)
		return
	case out.Lost() == nil:
		_, body := toAPIError(err)
		var wait time.Duration
		if first.GetResumable() && fault.Retryable(err) {
			body.ResumeID, wait = first.GetRequestId(), httpapi.Explain(err).RetryAfter
		}
		err = out.fail(body, wait)
	}
	if err != nil {
		s.Log.DebugContext(r.Context(), "end stream", "error", err)
	}
}
