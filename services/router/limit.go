package router

import (
	"fmt"
	"math"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// contextLength is how many positions a prompt and its answer may have together on this
// pipeline: the model's context length, or what the KV cache holds if that is less.
func (p *pipeline) contextLength() int {
	n := p.capacity()
	for _, h := range p.stages {
		if c := int(h.GetContext()); c > 0 { // 0: the model's files do not say
			n = min(n, c)
		}
	}
	return n
}

// contextLength is that of the model's pipeline which takes the longest requests.
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

// fitting counts the sessions of the given length that the KV caches of a model's
// pipelines hold at once.
func (s *Service) fitting(digest string, length int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, p := range s.pipelines {
		if p.chain.Digest() == digest && !p.dead() && length <= p.capacity() {
			n += p.total / max(1, p.pagesFor(length))
		}
	}
	return n
}

// pagesFor is how many KV pages so many positions take.
func (s *scheduler) pagesFor(length int) int {
	return (length + s.pageLen - 1) / s.pageLen
}

// limit refuses a prompt that fills the context and bounds the tokens to generate: the
// generation ends at the context length, with finish reason length, however many
// tokens the request asks for. A request that does not say gets the model's default
// number, or as many as the context holds. It also refuses choices that the KV caches
// cannot hold at once.
func (q *request) limit(info *modelInfo) error {
	context, n := q.service.contextLength(q.digest), len(q.prompt)
	if context == 0 { // the pipelines were lost just now: assign waits for others
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
		q.maxTokens = 1 // which is not shown
	case asked == 0 || asked > room:
		q.maxTokens = room
	default:
		q.maxTokens = asked
	}
	choices := int(q.sampling.GetChoices())
	if choices <= 1 {
		return nil
	}
	length := n + 1 // least, where the request leaves the number of tokens open
	if asked != 0 {
		length = q.length()
	}
	if fit := q.service.fitting(q.digest, length); choices > fit && fit > 0 {
		return fault.Field("n", "%d choices of %d tokens each do not fit the KV cache: at most %d do", choices, length, fit)
	}
	return nil
}

// length is how many positions the request's log grows to at most.
func (q *request) length() int {
	if q.echo.only {
		return len(q.prompt) // the token after it is never computed with
	}
	return len(q.prompt) + int(q.maxTokens)
}
