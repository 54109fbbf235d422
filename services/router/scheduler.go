package router

import (
	"context"
	"errors"
	"math"
	"slices"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/lamina-mesh/lamina/pkg/fault"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/plan"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/pkg/sample"
	"github.com/lamina-mesh/lamina/pkg/sched"
)

const (
	outLen     = 64   // results that may wait for a request's goroutine
	maxEntries = 1024 // entries of a batch; the stages have the same bound
	framesLen  = 1024 // frames that may wait to be sent on a stream
)

// sequence is a session on a pipeline, as the request's goroutine submits it.
type sequence struct {
	id       []byte
	epoch    uint64
	tenant   string
	priority int
	rules    *samplerv1.Rules
	picker   *sample.Picker
	tokens   [][]byte // the vocabulary, if the rules have a grammar
	maxLen   int      // length of the log at which the generation ends
	score    bool     // the request asks for the log-probabilities of the prompt's tokens
	suspect  bool     // blamed for the loss of a pipeline, and no token since
	proven   int      // positions of the log that were computed before
	private  bool     // uses no prefix cache
	drafts   int      // the maximum number of draft tokens after each token
	drafter  *drafter // proposes draft tokens; nil for none
	draft    bool     // a session that drafts
	adapter  *servedAdapter
	trace    string // traceparent of the request's span; empty if it is not traced

	out    chan result // its results; the last has lost or err set, or a finish reason
	paused atomic.Bool // the scheduler knows that out has no room

	// Used only by the pipeline's goroutine once it is submitted.
	log      []int32   // what the pipeline gets: prompt and emitted tokens, without those that were dropped
	whole    []int32   // prompt and emitted tokens with those that were dropped; nil if none were
	emitted  int       // how many tokens of the log were emitted
	logprobs []float32 // log-probabilities of the emitted tokens
	admitted time.Time
	cached   int
	scores   []*samplerv1.Score // of the prompt's tokens, so far
	traced   bool               // the stages know the trace
}

// newSequence gives a sequence a name and room for its results.
func newSequence(seq *sequence) *sequence {
	seq.id = randomID()
	// The scheduler learns that half of the room is used up before it forms the next batch but one, and
	// two entries of a sequence may give a token for each of their rows, and so may all chained windows.
	// Besides tokens there are its acceptance, its end, and stages that were lost.
	seq.out = make(chan result, outLen+2*(seq.drafts+1)+3+maxFruitless+min(seq.drafts, 1)*sched.MaxAhead)
	return seq
}

// dropped returns how many tokens a context policy has dropped from the log.
func (seq *sequence) dropped() int { return max(0, len(seq.whole)-len(seq.log)) }

// name is the sequence's name for the scheduler.
func (seq *sequence) name() sched.ID { return sched.ID(seq.id) }

// result is what the pipeline reports to a sequence: that it is accepted, a token, or its end.
type result struct {
	accepted bool // by the sampler
	token    *samplerv1.Token
	scores   []*samplerv1.Score // of the prompt's tokens, with the first token
	admitted time.Time          // with a token: when it first had KV pages
	cached   int                // with a token: positions of the prompt that came from the prefix cache
	round    uint64             // the round of a draft session
	lost     error              // why the sequence has to move and be replayed from its token log
	blamed   *sched.Blame       // with lost and struck: it may have been the cause
	proven   int                // with lost: positions of the log that were computed
	slid     bool               // the log fills the context and the window slides; only follow sets it
	struck   error              // a stage was lost, perhaps because of it; the session goes on
	err      error              // the session cannot go on
}

// event is something that the pipeline's scheduler has to handle. A Submit comes with its sequence.
type event struct {
	sched.Event
	seq *sequence
}

// runner carries out what a pipeline's scheduler decides. One goroutine runs it. Others may ask the
// scheduler questions under the pipeline's lock.
type runner struct {
	p              *pipeline
	start          time.Time
	sequences      map[sched.ID]*sequence
	events         []sched.Event // to be handled next
	vocabularySent bool          // the sampler has the vocabulary
	fruitless      int           // how often the chain was opened again since something was computed
	spare          bool          // as the scheduler knows it
	cause          error         // why the pipeline was last opened again
	due            time.Duration // when the first batch in flight misses its deadline
	awaits         bool          // a batch is in flight
	tokens         int
	since          time.Time
	chained        uint64 // windows that were counted in metrics
	discarded      uint64
	queried, hits  uint64 // positions that were counted in metrics
}

func newRunner(p *pipeline) *runner {
	now := time.Now()
	r := &runner{p: p, start: now, since: now, sequences: map[sched.ID]*sequence{},
		fruitless: maxFruitless} // a pipeline that has computed nothing at all is not opened again
	for _, l := range leases(p.stages) {
		r.events = append(r.events, l)
	}
	return r
}

// leases returns the leases with which stages have opened.
func leases(stages []*shardv1.Held) (out []sched.Lease) {
	for _, h := range stages {
		if h.Lease != nil {
			out = append(out, sched.Lease{Lo: int(h.GetLo()), Pages: int(h.GetLease())})
		}
	}
	return out
}

// schedulerConfig describes the pipeline to its scheduler.
func (p *pipeline) schedulerConfig() sched.Config {
	c := p.service.cfg
	out := sched.Config{
		Stages: len(p.chain), Pages: math.MaxInt32, Positions: math.MaxInt32, Vocab: int(p.stages[0].GetVocab()),
		BatchRows: c.BatchRows, ChunkRows: c.ChunkRows, Entries: maxEntries, Queue: c.Queue,
		TenantQueue: c.TenantQueue, CacheIdle: c.CacheIdle, Floor: c.StepFloor, LoneFloor: c.LoneFloor,
	}
	if out.Depth = c.MicroBatches; out.Depth == 0 {
		out.Depth = depth(p.chain)
	}
	for _, h := range p.stages {
		out.Pages, out.PageLen = min(out.Pages, int(h.GetKvPages())), int(h.GetKvPageLen())
		out.Positions = min(out.Positions, int(h.GetPositions()))
	}
	return out
}

// depth returns how many batches should be in flight on a chain. Stages of one process share its
// processors, so together they compute one batch at a time: smaller batches would only read the
// weights more often. Stages of several processes each have one, and one more is on its way.
func depth(chain plan.Chain) int {
	processes, inProcess := 0, false
	for _, hop := range chain {
		if rpc.InProcess(hop.Addr) {
			inProcess = true
			continue
		}
		processes++
	}
	if inProcess {
		processes++
	}
	if processes == 1 {
		return 1
	}
	return processes + 1
}

// run handles events until the pipeline ends or one of its streams breaks.
func (r *runner) run(ctx context.Context) error {
	tick := time.NewTicker(sched.StepEvery)
	defer tick.Stop()
	due := time.NewTimer(sched.StepEvery)
	defer due.Stop()
	for {
		if err := r.p.broken(); err != nil {
			return err
		}
		if r.awaits {
			due.Reset(r.due - time.Since(r.start))
		}
		if len(r.events) == 0 {
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-r.p.chained.ctx.Done():
				continue
			case <-r.p.sampling.ctx.Done():
				continue
			case e := <-r.p.events:
				r.take(e)
			case <-tick.C:
			case <-due.C:
			}
		}
		// Handle all events that have arrived before batches are formed: the tokens of one batch arrive
		// one by one, and a batch formed after the first would hold one row.
		r.takeAll()
		if err := r.step(time.Now()); err != nil {
			return err
		}
	}
}

// takeAll takes all events that have arrived.
func (r *runner) takeAll() {
	for {
		select {
		case e := <-r.p.events:
			r.take(e)
		default:
			return
		}
	}
}

func (r *runner) take(e event) {
	if e.seq != nil {
		r.sequences[e.seq.name()] = e.seq
	}
	if _, computed := e.Event.(sched.Computed); computed {
		r.progress()
	}
	r.events = append(r.events, e.Event)
}

// progress records that something was computed.
func (r *runner) progress() {
	r.fruitless = 0
	r.p.doubtful.Store(false)
}

// step lets the scheduler decide and carries out all of its commands, even if a link breaks meanwhile: the
// scheduler does not repeat what it has told a request.
func (r *runner) step(now time.Time) error {
	if spare := r.p.spare.Load() || r.p.spareShard.Load(); spare != r.spare {
		r.spare = spare
		r.events = append(r.events, sched.Spare{Available: spare})
	}
	r.p.mu.Lock()
	commands := r.p.sched.Step(now.Sub(r.start), r.events)
	stats := r.p.sched.Stats()
	r.due, r.awaits = r.p.sched.Due()
	r.p.mu.Unlock()
	r.events = r.events[:0]
	var failed error
	for _, c := range commands {
		if err := r.carryOut(c); err != nil {
			failed = err
		}
	}
	r.p.stepped.Store(now.UnixNano())
	r.p.runningCount.Store(int64(stats.Running))
	r.p.waitingCount.Store(int64(stats.Waiting))
	r.p.stepUS.Store(stats.Step.Microseconds())
	r.p.service.m.windows.WithLabelValues("sent").Add(float64(stats.Chained - r.chained))
	r.p.service.m.windows.WithLabelValues("discarded").Add(float64(stats.Discarded - r.discarded))
	r.chained, r.discarded = stats.Chained, stats.Discarded
	if !r.p.draft {
		r.p.meters.queried.Add(float64(stats.Queried - r.queried))
		r.p.meters.hits.Add(float64(stats.Hits - r.hits))
		r.queried, r.hits = stats.Queried, stats.Hits
	}
	if span := now.Sub(r.since); span >= time.Second {
		r.p.rate.Store(uint64(float64(r.tokens) / span.Seconds() * 1000))
		r.tokens, r.since = 0, now
	}
	return failed
}

// carryOut carries out a command. An error means that the pipeline makes no progress.
func (r *runner) carryOut(c sched.Command) error {
	switch c := c.(type) {
	case sched.Add:
		r.add(c)
	case sched.Remove:
		delete(r.sequences, c.ID)
		r.p.sampling.send(&samplerv1.SampleRequest{
			Frame: &samplerv1.SampleRequest_Remove{Remove: &samplerv1.RemoveSession{Session: []byte(c.ID)}},
		})
	case sched.Release:
		r.release(c)
	case sched.Batch:
		r.batch(c)
	case sched.Admit:
		if seq := r.sequences[c.ID]; seq != nil && !c.Again {
			seq.admitted, seq.cached = time.Now(), c.Cached
		}
	case sched.Share:
		if seq := r.sequences[c.ID]; seq != nil {
			seq.cached = c.Cached
		}
	case sched.Started:
		if seq := r.sequences[c.ID]; seq != nil && !seq.draft {
			seq.out <- result{accepted: true}
		}
	case sched.Emit:
		r.emit(c)
	case sched.Score:
		r.progress()
		if seq := r.sequences[c.ID]; seq != nil {
			seq.scores = append(seq.scores, c.Data.(*samplerv1.Score))
		}
	case sched.End:
		if seq := r.sequences[c.ID]; seq != nil {
			seq.out <- endOfSession(c)
		}
	case sched.TurnAway:
		if seq := r.sequences[c.ID]; seq != nil {
			seq.out <- turnedAway(c)
			delete(r.sequences, c.ID)
		}
	case sched.Blame:
		if seq := r.sequences[c.ID]; seq != nil {
			select {
			case seq.out <- result{struck: r.cause, blamed: &c}:
			default: // its reader has not even read the tokens before, which clear it
				r.events = append(r.events, sched.Proceed{ID: c.ID, Suspect: true})
			}
		}
	case sched.Preempt:
		r.p.service.m.preemptions.Inc()
		r.p.meters.preempted.Inc()
	case sched.Propose:
		r.propose(c)
	case sched.Fail:
		if c.Step > 0 {
			return late{fault.New(fault.DeadlineExceeded, "run step %d: no result within %v, its deadline was %v", c.Step,
				c.Late.Round(time.Millisecond), c.Limit.Round(time.Millisecond))}
		}
		return late{
			fault.New(fault.DeadlineExceeded, "add session %x: no answer from the sampler within %v", string(c.ID),
				c.Late.Round(time.Millisecond)),
		}
	}
	return nil
}

// late is the error of a pipeline that has missed a deadline, although its streams are not broken.
type late struct{ error }

func (l late) Unwrap() error { return l.error }

// endOfSession returns the last result of a session that was refused, or of a draft session whose
// pages others need.
func endOfSession(c sched.End) result {
	if o, ok := c.Data.(result); ok {
		return o
	}
	return result{err: fault.New(fault.Exhausted, "run session %x: other sessions need its KV pages", string(c.ID))}
}

// turnedAway returns the result of a sequence that the scheduler turns away. One that is too long has
// outgrown the pipeline's lease; another pipeline may hold it.
func turnedAway(c sched.TurnAway) result {
	if c.Reason == sched.TooLong {
		return result{lost: fault.New(fault.Unavailable, "run session %x: it needs %d KV pages, the lease has %d",
			string(c.ID), c.Need, c.Have), proven: c.Proven}
	}
	return result{err: refusedByQueue(c)}
}

// add adds a sequence to the sampler. A draft session is greedy and needs no history.
func (r *runner) add(c sched.Add) {
	seq := r.sequences[c.ID]
	if seq == nil {
		return
	}
	r.sendVocabulary(r.p.digest, seq.tokens)
	a := &samplerv1.AddSession{
		Session: seq.id, Epoch: c.Epoch, Rules: seq.rules, EmittedLogprobs: slices.Clone(seq.logprobs),
		Vocabulary: r.p.digest, Traceparent: seq.trace,
	}
	if !seq.draft {
		ids := toUint32(seq.log)
		if seq.whole != nil {
			ids = toUint32(seq.whole)
		}
		prompt := len(ids) - seq.emitted
		a.Prompt, a.Emitted, a.Dropped = ids[:prompt], ids[prompt:], uint32(seq.dropped())
	}
	r.p.sampling.send(&samplerv1.SampleRequest{Frame: &samplerv1.SampleRequest_Add{Add: a}})
}

func toUint32(ids []int32) []uint32 {
	out := make([]uint32, len(ids))
	for i, id := range ids {
		out[i] = uint32(id)
	}
	return out
}

func (r *runner) release(c sched.Release) {
	out := &shardv1.Release{Pages: c.Pages}
	for _, id := range c.Sessions {
		out.Sessions = append(out.Sessions, []byte(id))
	}
	for _, l := range c.Leases {
		out.Leases = append(out.Leases, &shardv1.Lease{Lo: uint32(l.Lo), Pages: uint32(l.Pages)})
	}
	r.p.chained.send(&shardv1.InferRequest{Frame: &shardv1.InferRequest_Release{Release: out}})
}

func (r *runner) batch(c sched.Batch) {
	out := &shardv1.Batch{Step: c.Step, DeadlineMs: uint32(c.Deadline.Milliseconds()), Ids: toUint32(c.Tokens),
		ReplayUntil: uint32(c.ReplayUntil)}
	for _, e := range c.Entries {
		entry := &shardv1.Entry{
			Session: []byte(e.ID), Epoch: e.Epoch, Position: uint32(e.Position), Rows: uint32(e.Rows),
			Logits: uint32(e.Logits), Candidates: uint32(e.Candidates), DraftIds: toUint32(e.Drafts),
			Targets: toUint32(e.Targets), PageFrom: uint32(e.PageFrom), Pages: e.Pages,
		}
		if seq := r.sequences[e.ID]; seq != nil {
			entry.Adapter = seq.adapter.wire()
			if !seq.traced {
				entry.Traceparent, seq.traced = seq.trace, true
			}
		}
		if len(e.Targets) > 0 {
			entry.Candidates = max(1, r.sequences[e.ID].rules.GetTopLogprobs())
		}
		if len(e.Drafts) > 0 {
			r.p.service.m.drafted.WithLabelValues(e.Drafter).Add(float64(len(e.Drafts)))
		}
		out.Entries = append(out.Entries, entry)
	}
	r.p.steps.Inc()
	r.p.chained.send(&shardv1.InferRequest{Frame: &shardv1.InferRequest_Batch{Batch: out}})
}

// emit passes a token on to its request. It never blocks: a sequence whose reader is slow is paused
// long before its channel is full.
func (r *runner) emit(c sched.Emit) {
	seq := r.sequences[c.ID]
	if seq == nil {
		return
	}
	token := c.Data.(*samplerv1.Token)
	if c.Length {
		token.FinishReason = samplerv1.FinishReason_FINISH_REASON_LENGTH
	}
	if c.Drafter != "" {
		r.p.service.m.accepted.WithLabelValues(c.Drafter).Inc()
	}
	r.tokens++
	r.progress()
	if !seq.draft { // the sampler may have to be told again
		seq.log, seq.logprobs = append(seq.log, int32(token.GetId())), append(seq.logprobs, token.GetLogprob())
		if seq.whole != nil {
			seq.whole = append(seq.whole, int32(token.GetId()))
		}
		seq.emitted++
	}
	seq.out <- result{token: token, scores: seq.scores, admitted: seq.admitted, cached: seq.cached, round: c.Round}
	seq.scores = nil
	if len(seq.out) > outLen/2 && !seq.paused.Swap(true) {
		r.events = append(r.events, sched.Pause{ID: c.ID})
	}
}

// took is called by a sequence's reader after it has taken a result.
func (seq *sequence) took(p *pipeline) {
	if seq.paused.Load() && len(seq.out) <= outLen/4 && seq.paused.Swap(false) {
		_ = p.tell(event{Event: sched.Resume{ID: seq.name()}}) // a lost pipeline has nothing to resume
	}
}

func (r *runner) propose(c sched.Propose) {
	seq := r.sequences[c.ID]
	if seq == nil || seq.drafter == nil || !seq.drafter.ask(c) {
		r.events = append(r.events, sched.Drafted{ID: c.ID, Round: c.Round})
	}
}

// refusedBySampler returns the event of a sampler's refusal.
func refusedBySampler(f *samplerv1.SessionFailed) sched.Event {
	return sched.Refused{
		ID: sched.ID(f.GetSession()), Epoch: f.GetEpoch(), Data: refused(f.GetSession(), f.GetCode(), f.GetField(),
			f.GetMessage()),
	}
}

// refusedByStage returns the event of a stage's refusal. A stage that lacks KV pages has less than the
// lease says, so the sequence waits.
func refusedByStage(f *shardv1.Refused) sched.Event {
	return sched.Refused{
		ID: sched.ID(f.GetSession()), Step: f.GetStep(), Retry: codes.Code(f.GetCode()) == codes.ResourceExhausted,
		Data: refused(f.GetSession(), f.GetCode(), "", f.GetMessage()),
	}
}

// refused returns the result of a session that was refused.
func refused(id []byte, code uint32, field, message string) result {
	err, replay := refusal(id, code, field, message)
	if replay { // no process has ended because of it, so the request is not blamed; its moves are bounded
		return result{lost: err}
	}
	return result{err: err}
}

// failAll tells every sequence that the pipeline is lost, including those whose Submit was not handled
// yet.
func (r *runner) failAll() {
	cause := context.Cause(r.p.ctx)
	r.p.mu.Lock()
	blamed, others := r.p.sched.Lost(r.p.sampling.broken() != nil)
	proven := map[sched.ID]int{}
	for _, id := range others {
		proven[id] = r.p.sched.Proven(id)
	}
	r.p.mu.Unlock()
	for _, b := range blamed {
		if proven[b.ID] = b.Proven; errors.Is(cause, errLeaving) {
			continue
		}
		if seq := r.sequences[b.ID]; seq != nil {
			seq.out <- result{lost: cause, blamed: &b, proven: b.Proven}
			delete(r.sequences, b.ID)
		}
	}
	for id, seq := range r.sequences {
		seq.out <- result{lost: cause, proven: proven[id]}
	}
	for {
		select {
		case e := <-r.p.events:
			if e.seq != nil {
				e.seq.out <- result{lost: cause}
			}
		default:
			return
		}
	}
}
