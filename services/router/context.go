package router

import (
	"context"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
	"github.com/lamina-mesh/lamina/pkg/sched"
	"github.com/lamina-mesh/lamina/pkg/session"
)

// lowest is the key of Lowest's mark in a context.
type lowest struct{}

// Lowest returns a context whose requests run at the lowest priority, whatever they ask for.
func Lowest(ctx context.Context) context.Context { return context.WithValue(ctx, lowest{}, true) }

func isLowest(ctx context.Context) bool { return ctx.Value(lowest{}) != nil }

// Defaults and bounds of context policies, priorities and waiting.
const (
	defaultSinks = 4
	maxSlideLog  = 1 << 19 // tokens of a prompt and its answer that slide: a sampler gets all of them in one message
	maxContext   = 1 << 24 // context_policy.length, sinks and window
	maxPriority  = 100
	maxWait      = 3600            // seconds
	defaultWait  = 4 * time.Second // so that a client is told within 5 s
	answerPart   = 4               // a shortened prompt leaves up to 1/4 of the context to the answer
	modeStop     = routerv1.ContextMode_CONTEXT_MODE_STOP
	modeSlide    = routerv1.ContextMode_CONTEXT_MODE_SLIDE
	modeTruncate = routerv1.ContextMode_CONTEXT_MODE_TRUNCATE_MIDDLE
	policyField  = "context_policy"
)

// contextPolicy is a request's context policy.
type contextPolicy struct {
	asked  *routerv1.ContextPolicy
	mode   routerv1.ContextMode
	use    *routerv1.ContextUse // what is reported; nil if the request names no policy
	length int                  // the context length; 0 until the model is known
	head   int                  // tokens of a chat's system messages
	slide  session.Slide        // on only in mode slide
}

// checkPolicy checks the parts of a request's context policy that do not depend on the model.
func (q *request) checkPolicy() error {
	a := q.context.asked
	q.context.mode = a.GetMode()
	if q.context.mode == routerv1.ContextMode_CONTEXT_MODE_UNSPECIFIED {
		q.context.mode = modeStop
	}
	if _, known := routerv1.ContextMode_name[int32(a.GetMode())]; !known {
		return fault.Field(policyField+".mode", "unknown mode %d", a.GetMode())
	}
	for _, f := range []struct {
		name  string
		value uint32
		given bool
	}{
		{"length", a.GetLength(), false}, {"sinks", a.GetSinks(), a != nil && a.Sinks != nil},
		{"window", a.GetWindow(), a.GetWindow() > 0},
	} {
		if f.value > maxContext {
			return fault.Field(policyField+"."+f.name, "%d is more than %d", f.value, maxContext)
		}
		if f.given && q.context.mode != modeSlide {
			return fault.Field(policyField+"."+f.name, "requires the mode slide")
		}
	}
	switch {
	case a.GetLength() == 1:
		return fault.Field(policyField+".length", "1 leaves no room for an answer")
	case q.priority < -maxPriority || q.priority > maxPriority:
		return fault.Field("priority", "%d is not within %d..%d", q.priority, -maxPriority, maxPriority)
	case q.wait != nil && *q.wait > maxWait:
		return fault.Field("wait_for_capacity", "%d seconds are more than %d", *q.wait, maxWait)
	}
	return nil
}

// patience returns how long the request waits while no pipeline can run it.
func (q *request) patience() time.Duration {
	if q.wait == nil {
		return defaultWait
	}
	return time.Duration(*q.wait) * time.Second
}

// readPolicy finds the context length of the request on a model. Without a policy it is what the
// pipelines serve. With one it does not depend on the pipelines, so that the answer does not either.
func (q *request) readPolicy(p *pipeline) error {
	c := &q.context
	c.use, c.length = nil, q.served(p)
	if c.asked == nil {
		return nil
	}
	own := p.modelContext()
	if own > 0 {
		c.length = own
	}
	if n := int(c.asked.GetLength()); n > 0 {
		if own > 0 && n > own {
			return fault.Field(policyField+".length", "%d is more than the model's context length of %d", n, own)
		}
		c.length = n
	}
	c.use = &routerv1.ContextUse{Mode: c.mode, Length: uint32(c.length)}
	return nil
}

// served returns the context length that the model's pipelines serve now.
func (q *request) served(p *pipeline) int {
	if n := q.service.contextLength(q.digest); n > 0 {
		return n
	}
	return p.contextLength() // all pipelines have just been lost, and others will take their place
}

// room returns how many tokens a shortened prompt leaves to the answer.
func (q *request) room(info *modelInfo) int {
	part := max(1, q.context.length/answerPart)
	if asked := q.wanted(info); asked > 0 {
		return min(int(asked), part)
	}
	return part
}

// wanted returns how many tokens the request asks for, or the model's default; 0 if neither says.
func (q *request) wanted(info *modelInfo) uint32 {
	if q.maxTokens > 0 {
		return q.maxTokens
	}
	return info.vocabulary.GetDefaults().GetMaxTokens()
}

// chatRender renders a chat's messages.
type chatRender = func([]*tokenizerv1.Message) (*tokenizerv1.ApplyChatTemplateResponse, error)

// fitChat renders a chat and applies the request's context policy to its messages.
func (q *request) fitChat(messages []*tokenizerv1.Message, render chatRender) (
	*tokenizerv1.ApplyChatTemplateResponse, error,
) {
	whole, err := render(messages)
	c := &q.context
	if err != nil || c.use == nil || c.mode == modeStop {
		return whole, err
	}
	roles := make([]string, len(messages))
	for i, m := range messages {
		roles[i] = m.GetRole()
	}
	turns := session.ReadTurns(roles)
	fits := func(ids []uint32) bool { return len(ids)+q.room(q.info) <= c.length }
	if c.mode == modeTruncate && fits(whole.GetIds()) {
		return whole, nil
	}
	if c.head, err = headTokens(messages[:turns.System], whole.GetIds(), render); err != nil {
		return nil, err
	}
	if c.mode == modeSlide || turns.Droppable() == 0 {
		return whole, nil
	}
	without := func(k int) (*tokenizerv1.ApplyChatTemplateResponse, error) {
		d := turns.Dropped(k)
		return render(slices.Concat(messages[:d.First], messages[d.First+d.Count:]))
	}
	k, err := session.Fewest(turns.Droppable(), func(k int) (bool, error) {
		shorter, err := without(k)
		return fits(shorter.GetIds()), err
	})
	if err != nil {
		return nil, err
	}
	shorter, err := without(k)
	if err != nil {
		return nil, err
	}
	d := turns.Dropped(k)
	c.use.DroppedMessages = dropped(d)
	// A template whose text depends on the number of messages may change more than that run.
	cut, _ := session.Cut(whole.GetIds(), shorter.GetIds())
	c.use.Dropped = []*routerv1.Dropped{dropped(cut)}
	return shorter, nil
}

// headTokens returns how many tokens at the beginning of a chat's prompt come before the first turn's
// text: the system messages, and what the template puts around them. It is found by rendering the
// system messages before an empty turn. A template that cannot render that has no known head.
func headTokens(system []*tokenizerv1.Message, prompt []uint32, render chatRender) (int, error) {
	other, err := render(append(slices.Clone(system), &tokenizerv1.Message{Role: "user"}))
	if fault.CodeOf(err) == fault.Invalid {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	n := 0
	for n < min(len(prompt), len(other.GetIds())) && prompt[n] == other.GetIds()[n] {
		n++
	}
	return n, nil
}

// shorten applies the context policy to the prompt's tokens.
func (q *request) shorten(info *modelInfo) error {
	c := &q.context
	switch {
	case c.use == nil:
		return nil
	case c.mode == modeSlide:
		return q.startSlide()
	case c.mode != modeTruncate || len(q.prompt)+q.room(info) <= c.length:
		return nil
	}
	if q.echo.only && len(q.prompt) <= c.length {
		return nil
	}
	cut, ok := session.Middle(len(q.prompt), c.length-q.room(info), c.head)
	if !ok {
		return q.headTooLong()
	}
	q.prompt = slices.Concat(q.prompt[:cut.First], q.prompt[cut.First+cut.Count:])
	var before session.Span
	if d := c.use.GetDropped(); len(d) > 0 {
		before = session.Span{First: int(d[0].GetFirst()), Count: int(d[0].GetCount())}
	}
	c.use.Dropped = nil
	for _, d := range session.Compose(before, cut) {
		c.use.Dropped = append(c.use.Dropped, dropped(d))
	}
	return nil
}

func dropped(s session.Span) *routerv1.Dropped {
	return &routerv1.Dropped{First: uint32(s.First), Count: uint32(s.Count)}
}

func (q *request) headTooLong() error {
	return &fault.Error{Code: fault.OutOfRange, Field: q.field, Msg: fmt.Sprintf(
		"system messages of %d tokens leave no room in the context length of %d tokens", q.context.head,
		q.context.length)}
}

// startSlide completes the parameters of a slide, and reports what it drops of the prompt.
func (q *request) startSlide() error {
	c := &q.context
	sinks := max(c.head, min(defaultSinks, (c.length-1)/2))
	if c.asked.Sinks != nil {
		sinks = int(c.asked.GetSinks())
	} else if sinks > c.length-2 {
		return q.headTooLong()
	}
	window := int(c.asked.GetWindow())
	if window == 0 {
		window = max(1, (c.length-sinks)/2)
	}
	c.slide = session.Slide{Length: c.length, Sinks: sinks, Window: window}
	if err := c.slide.Check(); err != nil {
		return fault.Field(policyField, "%v", err)
	}
	c.use.Sinks, c.use.Window, c.use.Recomputed = uint32(sinks), uint32(window), true
	c.use.Dropped = nil
	if d := c.slide.Dropped(len(q.prompt)); d.Count > 0 {
		if q.echo.logprobs {
			return fault.Field("prompt_logprobs", "cannot be combined with a context policy that drops %d tokens of "+
				"the prompt", d.Count)
		}
		c.use.Dropped = []*routerv1.Dropped{dropped(d)}
	}
	return nil
}

// goesOn reports whether a request whose log fills the context slides.
func (q *request) goesOn() bool {
	return q.context.slide.On() && len(q.log)-len(q.prompt) < int(q.maxTokens)
}

// slid returns what the model no longer sees if the window slides before the log's next token is
// picked, or nil. For the first token it is reported in started.
func (q *request) slid() *routerv1.Dropped {
	if len(q.log) == len(q.prompt) {
		return nil
	}
	if d, ok := q.context.slide.Slid(len(q.log)); ok {
		return dropped(d)
	}
	return nil
}

// usedContext returns what the context policy has dropped by the end of the request.
func (q *request) usedContext() *routerv1.ContextUse {
	c := q.context
	if c.use == nil || !c.slide.On() {
		return c.use
	}
	use := proto.CloneOf(c.use)
	if d := c.slide.Dropped(max(len(q.prompt), len(q.log)-1)); d.Count > 0 {
		use.Dropped = []*routerv1.Dropped{dropped(d)}
	}
	return use
}

// resumePolicy restores the context policy of a request from its journal.
func (q *request) resumePolicy(use *routerv1.ContextUse) error {
	c := &q.context
	c.use, c.mode, c.length = use, use.GetMode(), int(use.GetLength())
	if c.mode == modeSlide {
		c.slide = session.Slide{Length: c.length, Sinks: int(use.GetSinks()), Window: int(use.GetWindow())}
		return c.slide.Check()
	}
	return nil
}

// view returns what the pipeline gets of the request's log, and the length at which it ends there: at
// the end of the answer, or where the window slides.
func (q *request) view() (log []int32, maxLen int) {
	c, n := q.context, len(q.log)
	log = c.slide.View(q.log)
	if q.echo.only {
		return log, len(log) // the token after it is never run through the model
	}
	maxLen = len(log) + int(q.maxTokens) - (n - len(q.prompt))
	if c.slide.On() {
		maxLen = min(maxLen, c.length)
	}
	return log, maxLen
}

// shifted says how many candidates decide a token whose log is longer than what the pipeline has.
type shifted struct {
	sched.Candidates
	dropped int
}

// Need returns the number of candidates to ask for.
func (f shifted) Need(vocab, ids int) int { return f.Candidates.Need(vocab, ids+f.dropped) }

// Decides reports whether that number always decides the token.
func (f shifted) Decides(vocab, ids int) bool { return f.Candidates.Decides(vocab, ids+f.dropped) }
