package router

import (
	"fmt"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// contextLength returns how many positions a prompt and its answer may have together on this
// pipeline: the model's context length, or the capacity of the KV cache if that is less.
func (p *pipeline) contextLength() int {
	n := p.capacity()
	for _, h := range p.stages {
		if c := int(h.GetContext()); c > 0 { // 0 means that the model's files do not say
			n = min(n, c)
		}
	}
	return n
}

// contextLength returns the largest context length of a model's pipelines.
func (s *Service) contextLength(digest string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, p := range s.pipelines {
		if p.digest == digest && !p.dead() {
			n = max(n, p.contextLength())
		}
	}
	return n
}

// fitting returns how many sessions of the given length the KV caches of a model's pipelines hold
// at once.
func (s *Service) fitting(digest string, length int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, p := range s.pipelines {
		if p.digest == digest && !p.dead() && length <= p.capacity() {
			n += p.fitting(length)
		}
	}
	return n
}

// capacity returns the length of the longest log that the pipeline's KV cache can hold.
func (p *pipeline) capacity() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.sched.ContextLength()
}

// fitting returns how many logs of a length the pipeline's KV pages hold at once.
func (p *pipeline) fitting(length int) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	pageLen := int(p.stages[0].GetKvPageLen())
	return p.sched.Stats().Pages / max(1, (length+pageLen-1)/pageLen)
}

// modelContext returns the context length that the model was made for, or 0 if its files do not say.
func (p *pipeline) modelContext() int { return int(p.stages[0].GetContext()) }

// limit refuses a prompt that fills the context and bounds the tokens to generate. The generation
// ends at the context length with finish reason length, even if the request asks for more tokens. A
// request without max_tokens gets the model's default, or as many tokens as the context holds.
// limit also refuses choices that the KV caches cannot hold at once. A request with a context policy
// has the context length of the policy; one that slides may have more tokens.
func (q *request) limit(p *pipeline, info *modelInfo) error {
	if q.context.slide.On() {
		return q.limitSlide(p, info)
	}
	context, n := q.context.length, len(q.prompt)
	if n > context || n == context && !q.echo.only {
		return &fault.Error{
			Code: fault.OutOfRange, Field: q.field,
			Msg: fmt.Sprintf("%d tokens leave no room for an answer in the context length of %d tokens", n, context),
		}
	}
	room, asked := uint32(max(1, context-n)), q.wanted(info)
	switch {
	case q.echo.only:
		q.maxTokens = 1 // the token is not shown
	case asked == 0 || asked > room:
		q.maxTokens = room
	default:
		q.maxTokens = asked
	}
	if err := q.held(p); err != nil {
		return err
	}
	length := n + 1 // the minimum, if the request does not limit the tokens
	if asked != 0 {
		length = q.length()
	}
	return q.limitChoices(length)
}

// limitSlide bounds the tokens of a request that slides.
func (q *request) limitSlide(p *pipeline, info *modelInfo) error {
	n, asked := len(q.prompt), int(q.wanted(info))
	switch most := maxSlideLog - n; {
	case most < 1:
		return &fault.Error{Code: fault.OutOfRange, Field: q.field, Msg: fmt.Sprintf(
			"%d tokens leave no room for an answer: prompt and answer have at most %d tokens where the context slides",
			n, maxSlideLog)}
	case q.echo.only:
		asked = 1 // the token is not shown
	case asked == 0 || q.maxTokens == 0 && asked > most:
		asked = min(most, q.context.length)
	case asked > most:
		return fault.Field(
			"max_tokens",
			"%d tokens after a prompt of %d are more than %d, the limit where the context "+
				"slides",
			asked,
			n,
			maxSlideLog,
		)
	}
	q.maxTokens = uint32(asked)
	if err := q.held(p); err != nil {
		return err
	}
	return q.limitChoices(q.length())
}

// held refuses a request with a context policy that no KV cache holds. Without a policy the context
// length is what the caches hold.
func (q *request) held(p *pipeline) error {
	if need, have := q.length(), q.served(p); q.context.asked != nil && need > have {
		return &fault.Error{Code: fault.OutOfRange, Field: policyField + ".length", Msg: fmt.Sprintf(
			"the request needs %d positions of a context length of %d, and the KV cache holds %d: give a context length "+
				"of at most that",
			need,
			q.context.length,
			have,
		)}
	}
	return nil
}

// limitChoices refuses choices that the KV caches cannot hold at once.
func (q *request) limitChoices(length int) error {
	choices := int(q.sampling.GetChoices())
	if choices <= 1 {
		return nil
	}
	if fit := q.service.fitting(q.digest, length); choices > fit && fit > 0 {
		return fault.Field("n", "%d choices of %d tokens each do not fit the KV cache: at most %d do", choices, length,
			fit)
	}
	return nil
}

// length returns the largest number of positions that the request's log may have.
func (q *request) length() int {
	n := len(q.prompt)
	if !q.echo.only { // otherwise the token after the prompt is never run through the model
		n += int(q.maxTokens)
	}
	if q.context.slide.On() {
		n = min(n, q.context.length)
	}
	return n
}
