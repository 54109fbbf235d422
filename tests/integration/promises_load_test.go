package integration_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
)

// leastFlow is how many tokens a second must flow before a fault, without which a run proves nothing. Other tests run
// beside the short ones.
func leastFlow() float64 { return float64(pickInt(5, 100)) }

const (
	// stallLeast is the shortest gap between two tokens that counts as a stall.
	stallLeast = 250 * time.Millisecond
	// patience is the limit for one request under faults.
	patience = 5 * time.Minute
)

const person = `{"type":"object","properties":{"name":{"type":"string","maxLength":24},` +
	`"age":{"type":"integer","minimum":0,"maximum":120}},"required":["name","age"],"additionalProperties":false}`

// constrained returns a request whose answer follows a JSON schema.
func constrained(prompt string, n uint32, seed uint64) *routerv1.GenerateRequest {
	r := seeded(prompt, n, seed)
	r.IgnoreEnd = false
	r.Sampling.Grammar = &samplerv1.Grammar{Kind: samplerv1.GrammarKind_GRAMMAR_KIND_JSON_SCHEMA, Source: person}
	return r
}

// mixed returns n requests: a third each is greedy, sampled by a seed, and held to a JSON schema, and one in
// four is the second of two choices.
func mixed(n int, tokens uint32) []*routerv1.GenerateRequest {
	var out []*routerv1.GenerateRequest
	for i := range n {
		prompt := fmt.Sprintf("%s (%d)", prompts[i%len(prompts)], i)
		r := greedy(prompt, tokens)
		switch i % 3 {
		case 1:
			r = seeded(prompt, tokens, uint64(i))
		case 2:
			r = constrained(prompt, tokens, uint64(i))
		}
		if i%4 == 1 {
			r.Sampling.Choices, r.Sampling.Choice = 2, 1
		}
		out = append(out, r)
	}
	return out
}

// undisturbed returns the answer to each request while nothing is wrong.
func undisturbed(t *testing.T, router routerv1.RouterServiceClient, requests []*routerv1.GenerateRequest) []answer {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	out, errs := make([]answer, len(requests)), make([]error, len(requests))
	slots := make(chan bool, 8)
	var wg sync.WaitGroup
	for i, r := range requests {
		slots <- true
		wg.Go(func() {
			out[i], errs[i] = generate(ctx, &Mesh{Router: router}, r)
			<-slots
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatalf("without a fault: %v", err)
	}
	return out
}

func (a answer) equal(b answer) bool {
	return a.text == b.text && a.reason == b.reason && slices.Equal(a.ids, b.ids)
}

// outcome is how a request ended.
type outcome struct {
	request  int
	err      error
	same     bool
	sent     time.Time
	end      time.Time
	gap      time.Duration // the longest between two tokens, or before the first
	gapFrom  time.Time
	resumes  int
	finished bool
}

// client reads one request and keeps what it has read, over several streams if it must.
type client struct {
	outcome
	answer
	id    string
	model string    // digest of the model that answers
	last  time.Time // when something was received last
	token func()    // called for each token
}

func (c *client) received() {
	now := time.Now()
	if gap := now.Sub(c.last); gap > c.gap {
		c.gap, c.gapFrom = gap, c.last
	}
	c.last = now
}

// event takes an event of Generate or Resume.
func (c *client) event(started *routerv1.Started, token *routerv1.TokenEvent, end *routerv1.Finished) error {
	switch {
	case started != nil:
		c.id, c.model = started.GetRequestId(), started.GetDigest()
	case token != nil:
		if int(token.GetIndex()) != len(c.ids) {
			return fmt.Errorf("token %d comes where %d is due", token.GetIndex(), len(c.ids))
		}
		c.received()
		c.text += token.GetText()
		c.ids = append(c.ids, token.GetId())
		c.token()
	case end != nil:
		c.text += end.GetText()
		c.reason, c.finished = end.GetFinishReason(), true
	}
	return nil
}

// run sends a request to the first router. If the request is resumable, the client goes on at the next
// router whenever its stream breaks.
func (c *client) run(ctx context.Context, routers []routerv1.RouterServiceClient, r *routerv1.GenerateRequest) error {
	c.last = time.Now()
	err := c.generate(ctx, routers[0], r)
	for n := 1; err != nil && r.GetResumable() && ctx.Err() == nil && retryable(err); n++ {
		c.resumes++
		if c.id == "" { // nobody has promised anything yet
			err = c.generate(ctx, routers[n%len(routers)], r)
		} else {
			err = c.resume(ctx, routers[n%len(routers)])
		}
		if err != nil {
			select {
			case <-time.After(20 * time.Millisecond):
			case <-ctx.Done():
			}
		}
	}
	if err == nil && !c.finished {
		err = errors.New("the stream ended without a finish reason")
	}
	return err
}

func retryable(err error) bool {
	switch status.Code(err) {
	case codes.Unavailable, codes.Aborted, codes.Canceled:
		return true
	}
	return false
}

func (c *client) generate(ctx context.Context, router routerv1.RouterServiceClient, r *routerv1.GenerateRequest) error {
	stream, err := router.Generate(ctx, r)
	for err == nil {
		var e *routerv1.GenerateResponse
		if e, err = stream.Recv(); err == nil {
			err = c.event(e.GetStarted(), e.GetToken(), e.GetFinished())
		}
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return err
}

func (c *client) resume(ctx context.Context, router routerv1.RouterServiceClient) error {
	stream, err := router.Resume(ctx, &routerv1.ResumeRequest{RequestId: c.id, From: uint32(len(c.ids))})
	for err == nil {
		var e *routerv1.ResumeResponse
		if e, err = stream.Recv(); err == nil {
			err = c.event(e.GetStarted(), e.GetToken(), e.GetFinished())
		}
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return err
}

// judge says whether the answer to a request, by the model with a digest, is the right one. Several requests may ask at
// the same time.
type judge func(request int, digest string, a answer) bool

// flow is a load whose answers are judged. Each of its streams sends one request after another, until one fails or the
// load is stopped.
type flow struct {
	t     *testing.T
	right judge
	quit  chan struct{}
	work  sync.WaitGroup

	mu     sync.Mutex
	tokens int
	done   []outcome
}

// startFlow puts load on routers, whose answers are compared with the undisturbed ones. resumable lets streams go on at
// another router.
func startFlow(t *testing.T, routers []routerv1.RouterServiceClient, requests []*routerv1.GenerateRequest,
	want []answer, streams int, resumable bool) *flow {
	t.Helper()
	return startJudged(t, routers, requests, asBefore(want), streams, resumable)
}

// asBefore finds an answer right that equals the undisturbed one.
func asBefore(want []answer) judge {
	return func(i int, _ string, a answer) bool { return a.equal(want[i]) }
}

// startJudged puts load on routers, whose answers are judged.
func startJudged(t *testing.T, routers []routerv1.RouterServiceClient, requests []*routerv1.GenerateRequest,
	right judge, streams int, resumable bool) *flow {
	t.Helper()
	f := &flow{t: t, right: right, quit: make(chan struct{})}
	t.Cleanup(f.stop)
	for s := range streams {
		turned := append(slices.Clone(routers[s%len(routers):]), routers[:s%len(routers)]...)
		f.work.Go(func() {
			for i := s; ; i += streams {
				select {
				case <-f.quit:
					return
				default:
				}
				if !f.one(turned, i%len(requests), requests[i%len(requests)], resumable) {
					return
				}
			}
		})
	}
	return f
}

// one runs one request and reports whether it ended well.
func (f *flow) one(routers []routerv1.RouterServiceClient, i int, r *routerv1.GenerateRequest, resumable bool) bool {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(f.t.Context()), patience)
	defer cancel()
	if resumable {
		r = proto.CloneOf(r)
		r.Resumable = true
	}
	c := client{token: func() {
		f.mu.Lock()
		f.tokens++
		f.mu.Unlock()
	}}
	c.request, c.sent = i, time.Now()
	c.err = c.run(ctx, routers, r)
	c.end = time.Now()
	c.same = c.err == nil && f.right(i, c.model, c.answer)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.done = append(f.done, c.outcome)
	return c.err == nil
}

// count returns the number of tokens that were received so far.
func (f *flow) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.tokens
}

// prove fails the test unless traffic flows before a fault. It returns the tokens per second. A machine that
// is busy for a while gets further chances.
func (f *flow) prove() float64 {
	f.t.Helper()
	rate, before, begin := 0., f.count(), time.Now()
	if !poll(time.Second, 2*time.Minute, func() bool {
		now, passed := f.count(), time.Since(begin)
		if passed < time.Second/2 {
			return false
		}
		rate = float64(now-before) / passed.Seconds()
		before, begin = now, begin.Add(passed)
		return rate >= leastFlow()
	}) {
		f.t.Fatalf("the run is invalid: %.0f tokens/s flow before the fault, want at least %.0f", rate, leastFlow())
	}
	return rate
}

// stop stops the load and waits until the requests that run have ended.
func (f *flow) stop() {
	select {
	case <-f.quit:
	default:
		close(f.quit)
	}
	f.work.Wait()
}

// verdict is what a load with faults found.
type verdict struct {
	streams, failed, differ, resumes int
	stalls                           []time.Duration // sorted
	first                            string          // what went wrong first
}

func (v verdict) String() string {
	return fmt.Sprintf("%d streams, %d failed, %d differ, %d resumes, %d stalls of %v at p99 and %v at most", v.streams,
		v.failed, v.differ, v.resumes, len(v.stalls), quantile(v.stalls, 0.99), quantile(v.stalls, 1))
}

// quantile returns a quantile of sorted durations by nearest rank.
func quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[max(int(math.Ceil(q*float64(len(sorted)))), 1)-1].Round(time.Millisecond)
}

// sum sums up all requests that ended so far.
func (f *flow) sum() verdict {
	f.mu.Lock()
	defer f.mu.Unlock()
	v := verdict{streams: len(f.done)}
	for _, o := range f.done {
		switch {
		case o.err != nil:
			v.failed++
			if v.first == "" {
				v.first = fmt.Sprintf("request %d: %v", o.request, o.err)
			}
		case !o.same:
			v.differ++
		}
		v.resumes += o.resumes
		if o.gap > stallLeast {
			v.stalls = append(v.stalls, o.gap)
		}
	}
	slices.Sort(v.stalls)
	return v
}

// hold stops the load and checks that every stream ended well, with the undisturbed answer, and that the
// p99 of stalls is within a limit.
func (f *flow) hold(stall time.Duration) verdict {
	f.t.Helper()
	f.stop()
	v := f.sum()
	f.t.Log(v)
	if v.failed+v.differ > 0 || v.streams == 0 {
		f.t.Errorf("%v: %s", v, v.first)
	}
	if p99 := quantile(v.stalls, 0.99); p99 > stall {
		f.t.Errorf("the p99 of stalls is %v, want at most %v", p99, stall)
	}
	return v
}
