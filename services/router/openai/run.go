package openai

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
)

// event is one thing that happened to one choice.
type event struct {
	started  *routerv1.Started
	token    *routerv1.TokenEvent
	finished *routerv1.Finished
}

// job runs one choice.
type job func(ctx context.Context, send func(event) error) error

// answer gathers a choice that is not streamed.
type answer struct {
	text   strings.Builder
	tokens []*routerv1.TokenEvent
	reason string
	usage  *routerv1.Usage
}

func reason(r samplerv1.FinishReason) string {
	if r == samplerv1.FinishReason_FINISH_REASON_LENGTH {
		return "length"
	}
	return "stop"
}

// gather runs the jobs at once and returns their whole answers and how the first
// was started.
func gather(ctx context.Context, jobs []job) ([]*answer, *routerv1.Started, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	answers := make([]*answer, len(jobs))
	var mu sync.Mutex
	var first *routerv1.Started
	var firstErr error
	var wg sync.WaitGroup
	for i, run := range jobs {
		answers[i] = &answer{}
		wg.Go(func() {
			a := answers[i]
			err := run(ctx, func(e event) error {
				switch {
				case e.started != nil:
					mu.Lock()
					if first == nil {
						first = e.started
					}
					mu.Unlock()
				case e.token != nil:
					a.text.WriteString(e.token.GetText())
					a.tokens = append(a.tokens, e.token)
				case e.finished != nil:
					a.text.WriteString(e.finished.GetText())
					a.reason, a.usage = reason(e.finished.GetFinishReason()), e.finished.GetUsage()
				}
				return nil
			})
			if err != nil {
				mu.Lock()
				if firstErr == nil {
					firstErr = err
				}
				mu.Unlock()
				cancel()
			}
		})
	}
	wg.Wait()
	return answers, first, firstErr
}

// stream writes server-sent events, one writer at a time.
type stream struct {
	mu      sync.Mutex
	w       http.ResponseWriter
	control *http.ResponseController
	begun   bool
}

func newStream(w http.ResponseWriter) *stream {
	return &stream{w: w, control: http.NewResponseController(w)}
}

// send writes one event and flushes it. A reader that does not take it in time is
// cut.
func (s *stream) send(v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return s.write("data: " + string(text) + "\n\n")
}

func (s *stream) write(text string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.begun {
		s.begun = true
		h := s.w.Header()
		h.Set("Content-Type", "text/event-stream")
		h.Set("Cache-Control", "no-store")
		h.Set("X-Accel-Buffering", "no")
		s.w.WriteHeader(http.StatusOK)
	}
	if err := s.control.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return fmt.Errorf("limit write: %w", err)
	}
	if _, err := s.w.Write([]byte(text)); err != nil {
		return err
	}
	return s.control.Flush()
}

// play runs the jobs at once into a stream. chunk makes an event's object, or nil;
// tail makes the last one, or nil.
func (s *server) play(w http.ResponseWriter, r *http.Request, jobs []job, chunk func(choice int, started *routerv1.Started, e event) any, tail func(u usage) any) {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	out := newStream(w)
	var mu sync.Mutex
	var total usage
	var failed error
	var wg sync.WaitGroup
	for i, run := range jobs {
		wg.Go(func() {
			var started *routerv1.Started
			err := run(ctx, func(e event) error {
				if e.started != nil {
					started = e.started
				}
				if e.finished != nil {
					mu.Lock()
					total.add(e.finished.GetUsage())
					mu.Unlock()
				}
				if v := chunk(i, started, e); v != nil {
					return out.send(v)
				}
				return nil
			})
			if err != nil {
				mu.Lock()
				if failed == nil {
					failed = err
				}
				mu.Unlock()
				cancel()
			}
		})
	}
	wg.Wait()
	switch {
	case failed != nil && !out.begun:
		s.fail(w, failed)
		return
	case failed != nil:
		_, body := toAPIError(failed)
		if err := out.send(map[string]any{"error": body}); err != nil {
			s.log.Debug("write error event", "error", err)
		}
		return
	}
	if v := tail(total); v != nil {
		if out.send(v) != nil {
			return
		}
	}
	if err := out.write("data: [DONE]\n\n"); err != nil {
		s.log.Debug("write end of stream", "error", err)
	}
}
