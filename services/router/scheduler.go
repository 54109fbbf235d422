package router

import (
	"context"
	"math"
	"slices"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/sample"
	"github.com/lamina-mesh/lamina/pkg/session"
)

// The step deadline is max(stepFloor, stepFactor times a decaying maximum of step times). It is
// longer for large batches and while weights are still being paged in.
const (
	stepFloor    = 2 * time.Second
	stepFactor   = 8
	coldSteps    = 8
	coldDeadline = 60 * time.Second
	rowFloor     = 20 * time.Millisecond
	outLen       = 64   // results that may wait for a request's goroutine
	maxEntries   = 1024 // entries of a batch; the stages have the same bound
)

// sequence is a session on a pipeline, as the request's goroutine submits it.
type sequence struct {
	id       []byte
	log      []int32 // prompt and emitted tokens
	emitted  int     // how many tokens of the log were emitted
	epoch    uint64
	rules    *samplerv1.Rules
	logprobs []float32 // log-probabilities of the emitted tokens
	picker   *sample.Picker
	tokens   [][]byte // the vocabulary, if the rules have a grammar
	maxLen   int      // length of the log at which the generation ends
	score    bool     // the request asks for the log-probabilities of the prompt's tokens

	suspect bool // in flight when a pipeline died, and no token since

	out chan result // its results; the last has lost or err set, or a finish reason

	// Used only by the scheduler.
	feed        *session.Session
	speculation speculation
	draft       *draftState // set for a draft session
	pages       int
	added       bool // the sampler knows it
	flying      uint64
	started     time.Time          // admitted
	scores      []*samplerv1.Score // of the prompt's tokens, so far
	scoring     uint32             // position of the last score that is still to come; 0 for none
}

// result is what the scheduler reports to a sequence: its admission, a token, or its end.
type result struct {
	admitted bool // the sampler has accepted its rules
	token    *samplerv1.Token
	scores   []*samplerv1.Score // of the prompt's tokens, with the first token
	round    uint64             // the round of a draft session
	lost     error              // why the sequence has to move and be replayed from its token log
	blamed   bool               // with lost: it was in flight when its pipeline died
	err      error              // the session cannot go on
}

// inFlightBatch is a batch that the chain is computing.
type inFlightBatch struct {
	sent    time.Time
	rows    int
	prompts int // rows beyond the first of each session
	decode  bool
	drafts  int
	awaited map[string]bool // sessions whose token has not arrived; nil if the batch ends with computed
	members []string        // all sessions of the batch
	alone   bool            // the batch belongs to a suspect, and nothing else may be in flight
}

// scheduler implements a pipeline's continuous batching. It owns the pipeline's sequences and
// batches. A sequence waits until there are KV pages for its maximum length, and then runs until
// its end. One goroutine calls every method, so there are no locks.
type scheduler struct {
	p              *pipeline
	sequences      map[string]*sequence
	waiting        []*sequence // waiting for KV pages
	running        []*sequence // admitted, oldest first
	inFlight       map[uint64]*inFlightBatch
	step           uint64
	pageLen        int
	pages          int // free
	total          int // pages in all
	steps          int
	worst          float64 // decaying maximum of seconds per step
	perRow         float64 // decaying maximum of seconds per row
	plain          float64 // moving average of seconds per decode step without draft tokens
	tokens         int
	since          time.Time
	released       [][]byte
	vocabularySent bool // the sampler has the vocabulary
	turn           bool // it is a suspect's turn to be the next batch
}

func newScheduler(p *pipeline) *scheduler {
	s := &scheduler{
		p: p, sequences: map[string]*sequence{}, inFlight: map[uint64]*inFlightBatch{}, pages: math.MaxInt,
		since: time.Now(),
	}
	for _, h := range p.stages {
		s.pages, s.pageLen = min(s.pages, int(h.GetKvPages())), int(h.GetKvPageLen())
	}
	s.total = s.pages
	return s
}

// capacity returns the length of the longest log that the pipeline can hold.
func (s *scheduler) capacity() int {
	n := math.MaxInt
	for _, h := range s.p.stages {
		n = min(n, int(h.GetPositions()), int(h.GetKvPages()*h.GetKvPageLen()))
	}
	return n
}

// schedule is the pipeline's loop. It handles events, admits sequences and sends batches.
func (s *scheduler) schedule(ctx context.Context) error {
	tick := time.NewTicker(probeTick)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case e := <-s.p.events:
			if err := s.take(e); err != nil {
				return err
			}
		case now := <-tick.C:
			if err := s.overdue(now); err != nil {
				return err
			}
			s.measure(now)
		}
		// Handle all events that have arrived before forming a batch: the tokens of one
		// batch arrive one by one, and a batch formed after the first would hold one row.
		for more := true; more; {
			select {
			case e := <-s.p.events:
				if err := s.take(e); err != nil {
					return err
				}
			default:
				more = false
			}
		}
		s.admit()
		if err := s.send(); err != nil {
			return err
		}
		s.p.runningCount.Store(int64(len(s.running)))
		s.p.waitingCount.Store(int64(len(s.waiting)))
	}
}

func (s *scheduler) take(e event) error {
	switch {
	case e.submit != nil:
		s.submit(e.submit)
	case e.drop != nil:
		return s.remove(e.drop)
	case e.added != nil:
		if seq := s.sequences[string(e.added)]; seq != nil && !seq.added {
			seq.added = true
			if seq.draft == nil {
				seq.out <- result{admitted: true}
			}
		}
	case e.token != nil:
		return s.token(e.token)
	case e.score != nil:
		s.scored(e.score)
	case e.failed != nil:
		if seq := s.sequences[string(e.failed.GetSession())]; seq == nil || e.failed.GetEpoch() < seq.epoch {
			return nil
		}
		return s.fail(e.failed.GetSession(), e.failed.GetCode(), e.failed.GetField(), e.failed.GetMessage())
	case e.refused != nil:
		return s.fail(e.refused.GetSession(), e.refused.GetCode(), "", e.refused.GetMessage())
	case e.round != nil:
		s.startRound(e.round)
	case e.drafted != nil:
		s.drafted(e.drafted)
	case e.computed != 0:
		delete(s.inFlight, e.computed)
	}
	return nil
}

func (s *scheduler) submit(seq *sequence) {
	seq.pages = s.pagesFor(seq.maxLen)
	if seq.pages > s.total { // it would wait forever and block all that come after it
		seq.out <- result{
			err: fault.New(fault.Exhausted, "admit request: need %d KV pages, the cache has %d", seq.pages, s.total),
		}
		return
	}
	if len(s.waiting) >= s.p.service.cfg.Queue {
		err := fault.New(fault.Exhausted, "admit request: the queue is full with %d requests", len(s.waiting))
		seq.out <- result{err: err.After(time.Second)}
		return
	}
	seq.feed = session.New(seq.log)
	s.sequences[string(seq.id)] = seq
	s.waiting = append(s.waiting, seq)
}

// admit admits waiting sequences in order of arrival while there are KV pages for the maximum
// length of the first one. None overtakes another, so a long sequence is never starved.
func (s *scheduler) admit() {
	for len(s.waiting) > 0 && s.waiting[0].pages <= s.pages {
		seq := s.waiting[0]
		s.waiting = s.waiting[1:]
		s.pages -= seq.pages
		s.running = append(s.running, seq)
		seq.started = time.Now()
		s.sendVocabulary(s.p.chain.Digest(), seq.tokens)
		s.add(seq)
	}
}

// add adds a sequence to the sampler. A draft session is greedy and needs no history.
func (s *scheduler) add(seq *sequence) {
	a := &samplerv1.AddSession{
		Session: seq.id, Epoch: seq.epoch, Rules: seq.rules, EmittedLogprobs: seq.logprobs,
		Vocabulary: s.p.chain.Digest(),
	}
	if seq.draft == nil {
		ids := make([]uint32, len(seq.log))
		for i, id := range seq.log {
			ids[i] = uint32(id)
		}
		prompt := len(ids) - seq.emitted
		a.Prompt, a.Emitted = ids[:prompt], ids[prompt:]
	}
	// Recv reports a broken stream.
	_ = s.p.sample.Send(&samplerv1.SampleRequest{Frame: &samplerv1.SampleRequest_Add{Add: a}})
}

// send forms batches while there are fewer in flight than stages: one batch per stage keeps all
// stages busy, and more would only wait in queues.
func (s *scheduler) send() error {
	for len(s.inFlight) < len(s.p.chain) {
		batch := s.batch()
		if batch == nil {
			break
		}
		if err := s.release(); err != nil { // before positions are reused
			return err
		}
		if err := s.p.infer.Send(&shardv1.InferRequest{Frame: &shardv1.InferRequest_Batch{Batch: batch}}); err != nil {
			return streamEnd("chain", err)
		}
		s.p.steps.Inc()
	}
	return s.release()
}

func (s *scheduler) release() error {
	if len(s.released) == 0 {
		return nil
	}
	r := &shardv1.Release{Sessions: s.released}
	s.released = nil
	if err := s.p.infer.Send(&shardv1.InferRequest{Frame: &shardv1.InferRequest_Release{Release: r}}); err != nil {
		return streamEnd("chain", err)
	}
	return nil
}

// batch forms the next batch: one row, and draft tokens, for every sequence that decodes, then
// chunks of prompts, oldest first, up to the row budget. Decoding comes first, so that a long
// prompt delays the other sequences by at most one chunk per step.
func (s *scheduler) batch() *shardv1.Batch {
	b := &shardv1.Batch{}
	f := &inFlightBatch{sent: time.Now(), decode: true}
	budget := s.p.service.cfg.BatchRows
	suspect, wait := s.probation()
	if wait {
		return nil
	}
	f.alone = suspect != nil
	add := func(seq *sequence, n int) {
		n = s.scoreRows(seq, n)
		ids, decides, wait := s.speculate(seq, min(n, budget)-1)
		if wait {
			return
		}
		rows, ok := seq.feed.NextWithDrafts(n, ids)
		if !ok {
			return
		}
		e := &shardv1.Entry{Session: seq.id, Epoch: seq.epoch, Position: uint32(rows.Pos), Rows: uint32(len(rows.IDs))}
		if seq.score && !rows.Logits {
			s.askScores(seq, e, f)
		}
		if rows.Logits {
			e.Logits = uint32(1 + rows.Drafts)
			for _, id := range rows.IDs[len(rows.IDs)-rows.Drafts:] {
				e.DraftIds = append(e.DraftIds, uint32(id))
			}
			s.draftSent(seq, rows.IDs[len(rows.IDs)-rows.Drafts:])
			if rows.Drafts == 0 || decides {
				e.Candidates = uint32(seq.picker.Need(int(s.p.stages[0].GetVocab()), rows.Pos+len(rows.IDs)))
			}
			if f.awaited == nil {
				f.awaited = map[string]bool{}
			}
			f.awaited[string(seq.id)] = true
			seq.flying = s.step + 1
			if seq.draft != nil {
				seq.draft.picked = rows.Pos + len(rows.IDs) - 1
			}
		}
		b.Entries = append(b.Entries, e)
		f.members = append(f.members, string(seq.id))
		for _, id := range rows.IDs {
			b.Ids = append(b.Ids, uint32(id))
		}
		budget -= len(rows.IDs)
		f.rows += len(rows.IDs)
		f.prompts += len(rows.IDs) - 1
		f.drafts += rows.Drafts
	}
	for _, prefill := range []bool{false, true} {
		for _, seq := range s.running {
			// A request that reads slowly gets no further token until it has read.
			if budget <= 0 || len(b.GetEntries()) == maxEntries || !seq.ready() || seq.feed.Prefilling() != prefill ||
				seq.suspect && seq != suspect || suspect != nil && seq != suspect {
				continue
			}
			f.decode = f.decode && !prefill
			add(seq, min(budget, s.p.service.cfg.ChunkRows))
		}
	}
	if len(b.GetEntries()) == 0 {
		return nil
	}
	s.step++
	b.Step, b.DeadlineMs = s.step, uint32(s.limit(f).Milliseconds())
	s.inFlight[s.step] = f
	s.turn = !f.alone
	return b
}

// ready reports whether a session has rows to send and room in its channel for their results. A
// request that reads slowly gets no further token until it has read.
func (seq *sequence) ready() bool {
	return seq.added && seq.scoring == 0 && seq.feed.Ready() && len(seq.out) <= outLen/2 &&
		(seq.draft == nil || !seq.draft.paused)
}

// probation chooses a suspect whose rows are the next batch on their own. A suspect was in flight
// on a pipeline that died. Until it has had a token, nothing else is in flight beside it, so that
// no other sequence is blamed if this pipeline dies as well. Batches of suspects and of the others
// take turns. wait says that the next batch has to wait until the batches in flight are done.
func (s *scheduler) probation() (suspect *sequence, wait bool) {
	for _, f := range s.inFlight {
		if f.alone {
			return nil, true
		}
	}
	others := false
	for _, seq := range s.running {
		switch {
		case !seq.ready():
		case !seq.suspect:
			others = true
		case suspect == nil:
			suspect = seq
		}
	}
	if suspect == nil || others && !s.turn {
		return nil, false
	}
	return suspect, len(s.inFlight) > 0
}

// entryDone records that a sequence's entry of a batch is done. When the last entry is done, so is
// the batch, and its time is measured.
func (s *scheduler) entryDone(seq *sequence) {
	f := s.inFlight[seq.flying]
	if f == nil {
		return
	}
	delete(f.awaited, string(seq.id))
	if len(f.awaited) > 0 {
		return
	}
	delete(s.inFlight, seq.flying)
	took := time.Since(f.sent).Seconds()
	s.steps++
	s.worst = max(took, s.worst*0.999)
	s.perRow = max(took/float64(f.rows), s.perRow*0.999)
	if f.decode {
		s.p.stepUS.Store(int64(took * 1e6))
		s.stepped(took, f.drafts)
	}
}

func (s *scheduler) token(t *samplerv1.Token) error {
	seq := s.sequences[string(t.GetSession())]
	if seq == nil || t.GetEpoch() != seq.epoch || !seq.feed.Token(int(t.GetPosition()), int32(t.GetId())) {
		return nil
	}
	if seq.feed.Waiting() {
		s.draftAccepted(seq)
	} else {
		s.entryDone(seq)
		seq.speculation.verified(seq.feed.Len(), s.stepTime())
	}
	s.tokens++
	seq.suspect = false
	if seq.draft != nil {
		s.draftToken(seq, t)
		return nil
	}
	if t.GetFinishReason() == samplerv1.FinishReason_FINISH_REASON_UNSPECIFIED && seq.feed.Len() >= seq.maxLen {
		t.FinishReason = samplerv1.FinishReason_FINISH_REASON_LENGTH
	}
	seq.out <- result{token: t, scores: seq.scores} // never blocks: see ready
	seq.scores = nil
	if t.GetFinishReason() != samplerv1.FinishReason_FINISH_REASON_UNSPECIFIED {
		return s.remove(seq)
	}
	return nil
}

// fail ends a session that the sampler or a stage refused.
func (s *scheduler) fail(id []byte, code uint32, field, message string) error {
	seq := s.sequences[string(id)]
	if seq == nil {
		return nil
	}
	s.entryDone(seq)
	if err, replay := refusal(id, code, field, message); replay {
		seq.out <- result{lost: err, blamed: true}
	} else {
		seq.out <- result{err: err}
	}
	return s.remove(seq)
}

// remove ends a sequence here, at the sampler and on every stage.
func (s *scheduler) remove(seq *sequence) error {
	if s.sequences[string(seq.id)] != seq {
		return nil
	}
	delete(s.sequences, string(seq.id))
	seq.feed.End()
	s.entryDone(seq)
	if i := slices.Index(s.waiting, seq); i >= 0 {
		s.waiting = slices.Delete(s.waiting, i, i+1)
		return nil
	}
	s.running = slices.DeleteFunc(s.running, func(o *sequence) bool { return o == seq })
	s.pages += seq.pages
	s.released = append(s.released, seq.id)
	err := s.p.sample.Send(
		&samplerv1.SampleRequest{
			Frame: &samplerv1.SampleRequest_Remove{Remove: &samplerv1.RemoveSession{Session: seq.id}},
		},
	)
	if err != nil {
		return streamEnd("sampler", err)
	}
	return nil
}

// limit returns the step deadline of a batch: several times the slowest recent step, plus time for
// the rows of prompts.
func (s *scheduler) limit(f *inFlightBatch) time.Duration {
	limit := coldDeadline
	if s.steps >= coldSteps {
		limit = max(stepFloor, time.Duration(stepFactor*s.worst*float64(time.Second)))
	}
	return limit + time.Duration(f.prompts)*max(rowFloor, time.Duration(2*s.perRow*float64(time.Second)))
}

// overdue returns an error if a batch has missed its step deadline. The error ends the pipeline.
// There is no other way to notice a frozen stage.
func (s *scheduler) overdue(now time.Time) error {
	for step, f := range s.inFlight {
		if late := now.Sub(f.sent); late > s.limit(f) {
			return fault.New(fault.Unavailable, "run step %d: no result within %v", step, late.Round(time.Millisecond))
		}
	}
	for _, seq := range s.running {
		if late := now.Sub(seq.started); !seq.added && late > coldDeadline {
			return fault.New(
				fault.Unavailable, "add session %x: no answer from the sampler within %v", seq.id,
				late.Round(time.Millisecond),
			)
		}
	}
	return nil
}

func (s *scheduler) measure(now time.Time) {
	if span := now.Sub(s.since); span >= time.Second {
		s.p.rate.Store(uint64(float64(s.tokens) / span.Seconds() * 1000))
		s.tokens, s.since = 0, now
	}
}

// failAll tells every sequence that the pipeline is lost, including those whose submit event was
// not handled yet. Sequences that were in flight, or being added to the sampler, are blamed: one of
// them may be the cause.
func (p *pipeline) failAll() {
	cause := context.Cause(p.ctx)
	blamed := map[string]bool{}
	for _, f := range p.inFlight {
		for _, name := range f.members {
			blamed[name] = f.awaited == nil || f.awaited[name] || blamed[name]
		}
	}
	for _, seq := range p.running {
		blamed[string(seq.id)] = blamed[string(seq.id)] || !seq.added
	}
	for _, seq := range p.sequences {
		seq.out <- result{lost: cause, blamed: blamed[string(seq.id)]}
	}
	for {
		select {
		case e := <-p.events:
			if e.submit != nil {
				e.submit.out <- result{lost: cause}
			}
		default:
			return
		}
	}
}
