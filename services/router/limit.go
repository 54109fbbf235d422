package router

import (
	"fmt"
	"math"

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
		if p.chain.Digest() == digest && !p.dead() {
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
		if p.chain.Digest() == digest && !p.dead() && length <= p.capacity() {
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

// limit refuses a prompt that fills the context and bounds the tokens to generate. The generation
// ends at the context length with finish reason length, even if the request asks for more tokens. A
// request without max_tokens gets the model's default, or as many tokens as the context holds.
// limit also refuses choices that the KV caches cannot hold at once.
func (q *request) limit(info *modelInfo) error {
	context, n := q.service.contextLength(q.digest), len(q.prompt)
	if context == 0 { // all pipelines have just been lost; assign waits for others
		context = math.MaxInt32
	}
	if n > context || n == context && !q.echo.only {
		return &fault.Error{
			Code: fault.OutOfRange, Field: q.field,
			Msg: fmt.Sprintf("%d tokens leave no room for an answer in the context length of %d tokens", n, context),
		}
	}
	room, asked := uint32(max(1, context-n)), q.maxTokens
	if asked == 0 {
		asked = info.vocabulary.GetDefaults().GetMaxTokens()
	}
	switch {
	case q.echo.only:
		q.maxTokens = 1 // the token is not shown
	case asked == 0 || asked > room:
		q.maxTokens = room
	default:
		q.maxTokens = asked
	}
	choices := int(q.sampling.GetChoices())
	if choices <= 1 {
		return nil
	}
	length := n + 1 // the minimum, if the request does not limit the tokens
	if asked != 0 {
		length = q.length()
	}
	if fit := q.service.fitting(q.digest, length); choices > fit && fit > 0 {
		return fault.Field("n", "%d choices of %d tokens each do not fit the KV cache: at most %d do", choices, length,
			fit)
	}
	return nil
}

// length returns the largest number of positions that the request's log may have.
func (q *request) length() int {
	if q.echo.only {
		return len(q.prompt) // the token after it is never run through the model
	}
	return len(q.prompt) + int(q.maxTokens)
}
