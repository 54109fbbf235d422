package router

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"time"

	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/fault"
	journalv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/journal/v1"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
	"github.com/lamina-mesh/lamina/pkg/obs"
	"github.com/lamina-mesh/lamina/pkg/obs/trace"
	"github.com/lamina-mesh/lamina/pkg/sample"
	"github.com/lamina-mesh/lamina/pkg/samplerules"
	"github.com/lamina-mesh/lamina/pkg/sched"
)

// request is one generation, from admission to its end. The goroutine of the call runs it.
type request struct {
	service *Service
	model   string
	// adapterName is what the request calls its adapter; empty for none. adapter is what it was at the beginning.
	adapterName string
	adapter     *servedAdapter
	stable      bool // it stays away from canaries, since it has failed on one
	paid        bool // for the prompt, by another choice of the same call or by a try that has failed
	charged     bool // the budget has paid for the prompt, or it was paid
	maxTokens   uint32
	sampling    *routerv1.Sampling
	stop        []string
	top         uint32
	ignoreEnd   bool
	field       string // the name of the prompt's field in the request
	echo        echo
	sink        sink
	live        *live // of a resumable request; nil for others
	context     contextPolicy
	priority    int     // lower is served earlier
	wait        *uint32 // how many seconds to wait while no pipeline can run the request

	keepMarkers bool                    // keep control tokens such as those of tool calls in the text
	format      *tokenizerv1.ChatFormat // how to parse a chat's answer
	promptEnd   string                  // the end of a chat's prompt
	toolGrammar bool                    // the grammar was made from the tools
	// constrain adds the grammar of tool calls, once the prompt is known; nil for none.
	constrain func(context.Context, *modelInfo, []tokenizerv1.TokenizerServiceClient) error

	id       string
	name     string // of the model or its deployment, for the client
	digest   string
	info     *modelInfo
	rules    *samplerv1.Rules
	prompt   []uint32
	log      []int32
	logprobs []float32 // log-probabilities of the emitted tokens
	picker   *sample.Picker
	badWords []*samplerv1.Ids // ids of the bad words that were given as texts
	tokens   [][]byte         // of the vocabulary, if there is a grammar
	text     *textOut
	started  *routerv1.Started // sent when a pipeline has admitted the request; nil after
	canary   bool              // the version is a canary: started is held back until the first token
	answered bool              // its client has seen something of the answer
	proves   func()            // counts the failure on the canary before, once the live version answers; or nil
	lost     []string          // ids of pipelines that were lost while they computed the request
	strikes  strikes
	proven   int // positions of the log that some pipeline has computed
	cached   int // positions of the prompt that came from the prefix cache
	arrived  time.Time
	waits    time.Time // when it began to wait for a pipeline
	admitted time.Time
	first    time.Time
	last     time.Time
	meters   *modelMeters           // of the model; nil before it is known
	reason   samplerv1.FinishReason // set when it has ended
	taken    bool                   // another router has begun it
	caller   *journalv1.Caller      // whose it is; nil if nobody had to say
	span     *trace.Span            // nil if it is not traced
}

// run checks the request, finds the model, encodes the prompt and generates until the end.
func (q *request) run(
	ctx context.Context, encode func(context.Context, tokenizerv1.TokenizerServiceClient) ([]uint32, error),
) (err error) {
	q.arrived = time.Now()
	if q.id = obs.RequestID(ctx); q.id == "" {
		q.id = obs.NewRequestID()
		ctx = obs.WithRequestID(ctx, q.id)
	}
	ctx, q.caller = q.startSpan(ctx), callerOf(ctx)
	defer func() { q.endSpan(err) }()
	defer func() {
		q.service.log.DebugContext(ctx, "end request", "model", q.model, "choice", q.sampling.GetChoice(),
			"prompt_tokens", len(q.prompt),
			"tokens", max(0, len(q.log)-len(q.prompt)), "took", time.Since(q.arrived), "error", err)
	}()
	defer func() { q.service.m.requests.WithLabelValues(endLabel(err)).Inc() }()
	return q.runVersions(ctx, encode)
}

// runVersion runs the request on one version of its model.
func (q *request) runVersion(
	ctx context.Context, encode func(context.Context, tokenizerv1.TokenizerServiceClient) ([]uint32, error),
) (err error) {
	q.waits = time.Now()
	if err := q.bounds(); err != nil {
		return err
	}
	if isLowest(ctx) {
		q.priority = maxPriority
	}
	if err := q.service.grammars.check(ctx, "sampling.grammar", q.sampling.GetGrammar()); err != nil {
		return err
	}
	if q.model, q.adapterName, err = q.service.splitModel(q.model, q.adapterName); err != nil {
		return err
	}
	p, err := q.awaitModel(ctx)
	if err != nil {
		return err
	}
	q.digest, q.meters, q.canary = p.digest, p.meters, q.service.isCanary(q.model, p.digest)
	q.name = q.service.nameFor(q.model, p)
	if err := auth.CheckModel(ctx, q.name, p.digest, p.model(), adapted(q.name, q.adapterName),
		adapted(p.model(), q.adapterName)); err != nil {
		return err
	}
	if q.adapter, err = q.service.acquire(ctx, q.digest, p.model(), q.adapterName); err != nil {
		return err
	}
	defer q.service.release(q.adapter)
	if err := q.service.queueFull(q.digest, auth.Tenant(ctx)); err != nil {
		return err
	}
	if err := q.readPolicy(p); err != nil {
		return err
	}
	q.service.mu.Lock()
	info := q.service.models[q.digest]
	q.service.mu.Unlock()
	if q.info = info; info == nil {
		return fault.New(fault.Unavailable, "find the tokenizer of model %s: none is known",
			q.digest).After(time.Second)
	}
	tokenizers, err := q.service.tokenizers(q.digest)
	if err != nil {
		return err
	}
	for _, t := range tokenizers { // another may be reachable
		if q.prompt, err = encode(ctx, t); err == nil {
			err = q.encodeBadWords(ctx, t)
		}
		if fault.CodeOf(err) != fault.Unavailable {
			break
		}
	}
	if err != nil {
		return err
	}
	if q.constrain != nil {
		if err := q.constrain(ctx, info, tokenizers); err != nil {
			return err
		}
	}
	limited := q.wanted(info) > 0
	if err := q.admit(p, info); err != nil {
		return err
	}
	settle, err := q.reserve(ctx, limited)
	if err != nil {
		return err
	}
	defer func() { settle(err) }()
	v, err := q.service.vocabulary(ctx, q.digest, tokenizers)
	if err != nil {
		return err
	}
	if q.rules.GetGrammar() != nil {
		q.tokens = v.tokens
	}
	q.text = newTextOut(v, q.prompt, q.stop, q.keepMarkers)
	q.started = &routerv1.Started{
		RequestId: q.id, Model: q.name, Digest: q.digest, PromptIds: q.prompt, Seed: q.rules.GetSeed(),
		Fingerprint: fingerprint(p, q.adapter), Adapter: q.adapter.namespace(),
		Format: q.format, PromptEnd: q.promptEnd, Context: q.context.use,
	}
	if q.adapter != nil {
		q.started.Model += ":" + q.adapterName
	}
	q.opened()
	return q.generate(ctx)
}

// reserve takes the tokens of the request from the caller's budget: the prompt unless it is paid for, and the answer if
// the request limits it. The returned function is called when the request has ended, with its error. What the fleet
// refuses, or loses before its first token, costs nothing: whoever tries again must not pay for each try.
func (q *request) reserve(ctx context.Context, limited bool) (settle func(error), err error) {
	prompt, answer := int64(len(q.prompt)), int64(0)
	if q.paid {
		prompt = 0
	}
	if limited {
		answer = int64(q.maxTokens)
	}
	give, err := auth.From(ctx).Meter().Reserve(prompt + answer)
	if err != nil {
		return nil, err
	}
	q.charged = true
	return func(err error) {
		used := int64(max(0, len(q.log)-len(q.prompt)))
		if used == 0 && refusedByFleet(ctx, err) {
			q.charged = false
			give(0)
			return
		}
		give(prompt + used)
	}, nil
}

// admit checks the prompt and completes the sampling parameters.
func (q *request) admit(p *pipeline, info *modelInfo) error {
	vocab := info.vocabulary.GetSize()
	if len(q.prompt) == 0 {
		return fault.Field("prompt", "is empty, and the model has no begin token to start from")
	}
	for i, id := range q.prompt {
		if id >= vocab || id >= p.stages[0].GetVocab() {
			return fault.Field("prompt", "id %d at %d is outside the vocabulary of %d", id, i, vocab)
		}
	}
	if err := q.shorten(info); err != nil {
		return err
	}
	for _, id := range q.prompt {
		q.log = append(q.log, int32(id))
	}
	if err := q.limit(p, info); err != nil {
		return err
	}
	q.rules = q.samplerRules(info)
	if err := samplerules.CheckIDs("sampling.", q.rules, int(max(vocab, p.stages[0].GetVocab()))); err != nil {
		return err
	}
	var err error
	q.picker, err = picker(q.rules)
	return err
}

// generate submits the session to a pipeline, and to another one when that dies or loses
// the session. A request of which the same new rows are in flight on two pipelines in a row
// when they die is set aside, since it may be the cause.
func (q *request) generate(ctx context.Context) (err error) {
	defer func() { q.meterEnd(ctx, err) }()
	moves := 0 // since the last token
	since := q.waits
	first := uint64(1)
	if q.started == nil { // it goes on from a journal, so it has been admitted before
		first++
		q.taken = true
	}
	moved := false
	for epoch := first; ; epoch++ {
		had := len(q.log)
		log, maxLen := q.view()
		p, err := q.place(ctx, log, maxLen, moved, q.patience()-time.Since(since))
		if err != nil {
			return err
		}
		var end result
		a, err := q.submit(ctx, p, epoch, log, maxLen)
		if err != nil {
			end.lost = err
		} else {
			end, a, err = q.follow(ctx, a)
			if end.lost == nil && !end.slid || err != nil {
				a.end()
				return q.renameField(err)
			}
		}
		a.end()
		if since = time.Now(); end.slid { // the next sequence has the tokens that the window keeps
			moves, moved, q.strikes, q.proven = 0, false, strikes{}, 0
			continue
		}
		moved = true
		q.proven = max(q.proven, end.proven)
		if end.blamed != nil {
			q.lost = append(q.lost, a.p.id)
			q.blame(*end.blamed, end.lost)
		}
		if err := q.strikes.verdict(q.id); err != nil {
			return err
		}
		if moves++; len(q.log) > had {
			moves = 0
		}
		if moves > maxMoves {
			return fault.New(
				fault.Unavailable, "run request %s: %d pipelines were lost before it had a token", q.id, moves,
			).After(time.Second)
		}
		q.service.m.moves.Inc()
		q.span.Event("move to another pipeline")
		q.service.log.InfoContext(ctx, "move session", "choice", q.sampling.GetChoice(), "tokens", len(q.log), "epoch",
			epoch+1, "error", end.lost)
	}
}

// place waits for a pipeline for the log, and first for the budget if the log was computed elsewhere before.
func (q *request) place(
	ctx context.Context, log []int32, maxLen int, moved bool, wait time.Duration,
) (*pipeline, error) {
	defer q.meters.waits()()
	start := time.Now()
	if moved {
		if err := q.service.replays.take(ctx, len(log), wait, againMoved); err != nil {
			return nil, err
		}
	}
	p, err := q.service.assign(ctx, q.digest, work{tenant: auth.Tenant(ctx), log: log, maxLen: maxLen,
		adapter: q.adapter}, wait-time.Since(start))
	if err == nil && q.meters == nil {
		q.meters = p.meters
	}
	return p, err
}

// blame counts that the request may have been the cause of a loss, unless another attempt of it has computed the
// rows that were in flight.
func (q *request) blame(b sched.Blame, cause error) {
	if b.UpTo == 0 || b.UpTo > q.proven {
		q.strikes.add(len(q.log), b, cause)
	}
}

// drawSeed draws a seed for a request without one.
func drawSeed() uint64 {
	var b [8]byte
	rand.Read(b[:])
	return binary.LittleEndian.Uint64(b[:]) >> 11 // 53 bits, so that clients whose numbers are float64 can send it back
}
