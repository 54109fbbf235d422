package openai

import (
	"context"
	"encoding/json"
	"net/http"
	"time"
	"unicode/utf8"

	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
)

type completionRequest struct {
	common
	Prompt    json.RawMessage `json:"prompt"`
	Echo      bool            `json:"echo"`
	Logprobs  *int            `json:"logprobs"`
	IgnoreEnd bool            `json:"ignore_end"`
}

// prompts reads a text, a list of ids, or a list of either.
func (c *completionRequest) prompts() ([]*routerv1.GenerateRequest, []string, error) {
	var text string
	var list []string
	var ids []uint32
	var lists [][]uint32
	switch {
	case json.Unmarshal(c.Prompt, &text) == nil:
		list = []string{text}
	case json.Unmarshal(c.Prompt, &list) == nil:
	case json.Unmarshal(c.Prompt, &ids) == nil:
		lists = [][]uint32{ids}
	case json.Unmarshal(c.Prompt, &lists) == nil:
	default:
		return nil, nil, fault.Field("prompt", "want a text, a list of texts, a list of ids, or a list of those")
	}
	var out []*routerv1.GenerateRequest
	for _, t := range list {
		out = append(out, &routerv1.GenerateRequest{Prompt: &routerv1.GenerateRequest_Text{Text: t}})
	}
	for _, l := range lists {
		out = append(out, &routerv1.GenerateRequest{Prompt: &routerv1.GenerateRequest_TokenIds{TokenIds: &routerv1.TokenIds{Ids: l}}})
		list = append(list, "")
	}
	if len(out) == 0 || len(out) > maxChoices {
		return nil, nil, fault.Field("prompt", "%d prompts are not within 1..%d", len(out), maxChoices)
	}
	return out, list, nil
}

// logprobs is the older shape: parallel lists, offsets in characters.
func (c *completionRequest) logprobs(offset int, events ...*routerv1.TokenEvent) any {
	if c.Logprobs == nil {
		return nil
	}
	texts, values, offsets, top := []string{}, []float32{}, []int{}, []map[string]float32{}
	for _, e := range events {
		texts, values, offsets = append(texts, e.GetText()), append(values, e.GetLogprob()), append(offsets, offset)
		offset += utf8.RuneCountInString(e.GetText())
		best := map[string]float32{}
		for _, t := range e.GetTop() {
			best[t.GetText()] = t.GetLogprob()
		}
		top = append(top, best)
	}
	return map[string]any{"tokens": texts, "token_logprobs": values, "text_offset": offsets, "top_logprobs": top}
}

func (s *server) completions(w http.ResponseWriter, r *http.Request) {
	var c completionRequest
	if err := decode(w, r, &c); err != nil {
		s.fail(w, err)
		return
	}
	jobs, echoes, err := s.completionJobs(&c)
	if err != nil {
		s.fail(w, err)
		return
	}
	created := time.Now().Unix()
	if c.Stream {
		s.streamCompletion(w, r, &c, jobs, echoes, created)
		return
	}
	answers, started, err := gather(r.Context(), jobs)
	if err != nil {
		s.fail(w, err)
		return
	}
	n, _ := c.choices()
	var total usage
	choices := []any{}
	for i, a := range answers {
		total.Completion += a.usage.GetCompletionTokens()
		if i%n == 0 { // a prompt counts once, however many its choices
			total.Prompt += a.usage.GetPromptTokens()
		}
		choices = append(choices, map[string]any{
			"index": i, "text": echoes[i] + a.text.String(), "finish_reason": a.reason,
			"logprobs": c.logprobs(utf8.RuneCountInString(echoes[i]), a.tokens...),
		})
	}
	total.Total = total.Prompt + total.Completion
	s.json(w, http.StatusOK, map[string]any{
		"id": newID("cmpl", started.GetRequestId()), "object": "text_completion", "created": created, "model": started.GetModel(),
		"system_fingerprint": started.GetFingerprint(), "choices": choices, "usage": total,
	})
}

// completionJobs makes a job a choice, and what to show before each.
func (s *server) completionJobs(c *completionRequest) ([]job, []string, error) {
	n, err := c.choices()
	if err != nil {
		return nil, nil, err
	}
	prompts, prefixes, err := c.prompts()
	if err != nil {
		return nil, nil, err
	}
	limit, err := tokens(c.MaxTokens)
	if err != nil {
		return nil, nil, err
	}
	if c.MaxTokens == nil {
		limit = 16 // OpenAI's default of this endpoint
	}
	top := 0
	if c.Logprobs != nil {
		if top = *c.Logprobs; top < 0 || top > 20 {
			return nil, nil, fault.Field("logprobs", "%d is not within 0..20", top)
		}
	}
	if len(prompts)*n > 4*maxChoices {
		return nil, nil, fault.Field("n", "%d prompts with %d choices each are too many", len(prompts), n)
	}
	var jobs []job
	var echoes []string
	for p, prompt := range prompts {
		for i := range n {
			rules, err := c.sampling(i)
			if err != nil {
				return nil, nil, err
			}
			req := &routerv1.GenerateRequest{
				Model: c.Model, Prompt: prompt.GetPrompt(), MaxTokens: limit, Sampling: rules, Stop: c.Stop, TopLogprobs: uint32(top), IgnoreEnd: c.IgnoreEnd,
			}
			jobs = append(jobs, func(ctx context.Context, send func(event) error) error {
				return s.backend.Generate(ctx, req, func(e *routerv1.GenerateResponse) error {
					return send(event{e.GetStarted(), e.GetToken(), e.GetFinished()})
				})
			})
			echo := ""
			if c.Echo {
				echo = prefixes[p]
			}
			echoes = append(echoes, echo)
		}
	}
	return jobs, echoes, nil
}

func (s *server) streamCompletion(w http.ResponseWriter, r *http.Request, c *completionRequest, jobs []job, echoes []string, created int64) {
	offsets := make([]int, len(jobs))
	chunk := func(i int, started *routerv1.Started, e event) any {
		choice := map[string]any{"index": i, "text": "", "finish_reason": nil, "logprobs": nil}
		switch {
		case e.started != nil:
			if echoes[i] == "" {
				return nil
			}
			choice["text"] = echoes[i]
			offsets[i] = utf8.RuneCountInString(echoes[i])
		case e.token != nil:
			if e.token.GetText() == "" && c.Logprobs == nil {
				return nil
			}
			choice["text"], choice["logprobs"] = e.token.GetText(), c.logprobs(offsets[i], e.token)
			offsets[i] += utf8.RuneCountInString(e.token.GetText())
		case e.finished != nil:
			choice["text"], choice["finish_reason"] = e.finished.GetText(), reason(e.finished.GetFinishReason())
		}
		return map[string]any{
			"id": newID("cmpl", started.GetRequestId()), "object": "text_completion", "created": created, "model": started.GetModel(),
			"system_fingerprint": started.GetFingerprint(), "choices": []any{choice},
		}
	}
	s.play(w, r, jobs, chunk, func(u usage) any {
		if !c.usageWanted() {
			return nil
		}
		return map[string]any{"id": "cmpl", "object": "text_completion", "created": created, "model": c.Model, "choices": []any{}, "usage": u}
	})
}
