package openai

import (
	"context"
	"net/http"
	"strings"
	"sync"

	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
)

// event is one thing that happened to one choice: one of the fields is set.
type event struct {
	started  *routerv1.Started
	prompt   *routerv1.PromptTokens
	token    *routerv1.TokenEvent
	finished *routerv1.Finished
}

// job runs one choice.
type job struct {
	run func(ctx context.Context, send func(event) error) error
	// again says that an earlier job has the same prompt, which is counted once.
	again bool
}

// runAll runs the jobs at once and hands each its events, one goroutine a job. The
// first error ends the others and is returned.
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
				err = fault.New(fault.Internal, "end choice %d: it has no finish reason", i)
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

// promptDetails says where prompt tokens came from.
type promptDetails struct {
	Cached uint32 `json:"cached_tokens"`
}

// add counts a choice; the prompt that an earlier choice has too is counted once.
func (u *usage) add(f *routerv1.Usage, again bool) {
	if !again {
		u.Prompt += f.GetPromptTokens()
		u.Details.Cached += f.GetCachedTokens()
	}
	u.Completion += f.GetCompletionTokens()
	u.Total = u.Prompt + u.Completion
}

// answer gathers a choice that is not streamed.
type answer struct {
	started  *routerv1.Started
	prompt   []*routerv1.PromptToken
	text     strings.Builder
	tokens   []*routerv1.TokenEvent
	finished *routerv1.Finished
}

// shape is how an endpoint shows its answers.
type shape struct {
	prefix, whole, part string // of ids, and the names of a whole answer and of a part
	created             int64  // seconds since 1970
	usage               bool   // whether a stream ends with usage
	// choice shows a whole choice, less its index and finish reason.
	choice func(i int, a *answer) map[string]any
	// piece shows an event of choice i, less its index and finish reason; nil shows
	// nothing. It is called for one event of a choice at a time.
	piece func(i int, e event) map[string]any
	// keep is the places of the answers that are shown; nil shows all.
	keep func(answers []answer) []int
	// reason is why choice i ended; nil for what the backend says.
	reason func(i int, f *routerv1.Finished) string
}

// why is a choice's finish reason.
func (f *shape) why(i int, finished *routerv1.Finished) string {
	if f.reason != nil {
		return f.reason(i, finished)
	}
	return reason(finished.GetFinishReason())
}

// envelope is what choices travel in; first names the whole, own made these.
func (f *shape) envelope(object string, first, own *routerv1.Started, choices []any) map[string]any {
	return map[string]any{
		"id": f.prefix + "-" + first.GetRequestId(), "object": object, "created": f.created, "model": own.GetModel(),
		"system_fingerprint": own.GetFingerprint(), "choices": choices,
	}
}

// gather answers with whole choices.
func (s *server) gather(w http.ResponseWriter, r *http.Request, jobs []job, f *shape) {
	answers := make([]answer, len(jobs))
	err := runAll(r.Context(), jobs, func(i int, e event) error {
		a := &answers[i]
		switch {
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
		choices[at] = choice
	}
	out := f.envelope(f.whole, answers[0].started, answers[0].started, choices)
	out["usage"] = total
	s.json(w, http.StatusOK, out)
}

// stream answers with events as they come.
func (s *server) stream(w http.ResponseWriter, r *http.Request, jobs []job, f *shape) {
	out := newStream(w, s.timeout)
	var mu sync.Mutex // of what follows
	var first *routerv1.Started
	var total usage
	own := make([]*routerv1.Started, len(jobs))
	err := runAll(r.Context(), jobs, func(i int, e event) error {
		mu.Lock()
		if e.started != nil {
			own[i] = e.started
			if first == nil {
				first = e.started
			}
		}
		if e.finished != nil {
			total.add(e.finished.GetUsage(), jobs[i].again)
		}
		head := first
		mu.Unlock()
		choice := f.piece(i, e)
		if choice == nil {
			return nil
		}
		choice["index"], choice["finish_reason"] = i, nil
		if e.finished != nil {
			choice["finish_reason"] = f.why(i, e.finished)
		}
		v := f.envelope(f.part, head, own[i], []any{choice})
		if f.usage {
			v["usage"] = nil
		}
		return out.send(v)
	})
	switch {
	case err != nil && !out.begun:
		s.fail(w, err)
		return
	case err != nil:
		_, body := toAPIError(err)
		err = out.send(map[string]any{"error": body})
	case f.usage:
		v := f.envelope(f.part, first, first, []any{})
		v["usage"] = total
		if err = out.send(v); err == nil {
			err = out.end()
		}
	default:
		err = out.end()
	}
	if err != nil {
		s.log.DebugContext(r.Context(), "end stream", "error", err)
	}
}
