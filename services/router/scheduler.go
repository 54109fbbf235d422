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

// Step deadlines: max(floor, factor times a moving worst case); generous while
// weights are cold and for large batches.
const (
	stepFloor    = 2 * time.Second
	stepFactor   = 8
	coldSteps    = 8
	coldDeadline = 60 * time.Second
	rowFloor     = 20 * time.Millisecond
	outLen       = 64   // tokens waiting for a request's goroutine
	maxEntries   = 1024 // of a batch, as stages take them
)

// live is a session on a pipeline, as the request's goroutine submits it.
type live struct {
	id       []byte
	log      []int32 // prompt and emitted tokens
	emitted  int     // how many of the log are emitted
	epoch    uint64
	rules    *samplerv1.Rules
	logprobs []float32 // of those emitted
	picker   *sample.Picker
	tokens   [][]byte // of the vocabulary, where the rules have a grammar
	maxLen   int      // of the log, when the generation ends

	suspect bool // it was in flight on a pipeline that died, and had no token since

	out chan outcome // what came of it; the last one has lost or err set, or a finish reason

	// The scheduler's own.
	feed    *session.Session
	guesser guesser
	drawing *drawing // of a draft's session
	pages   int
	added   bool // the sampler knows it
	flying  uint64
	started time.Time // admitted
}

// outcome is what the scheduler tells a session: that it is admitted, a token, or the end.
type outcome struct {
	admitted bool // the sampler has accepted its rules
	token    *samplerv1.Token
	round    uint64 // of a draft's session
	lost     error  // why the session has to go on elsewhere, by its token log
	blamed   bool   // with lost: it was being computed when its pipeline died
	err      error  // the session cannot go on
}

// flight is a batch that the chain has and that is not done.
type flight struct {
	sent    time.Time
	rows    int
	prompts int // rows beyond one a session
	decode  bool
	guesses int
	waiting map[string]bool // sessions whose token is to come; nil: computed is to come
	members []string        // all of its sessions
	alone   bool            // a suspect's, beside which nothing else is in flight
}

// scheduler owns a pipeline's sessions and batches.
type scheduler struct {
	p          *pipeline
	live       map[string]*live
	queue      []*live // waiting for KV pages
	order      []*live // admitted, oldest first
	flights    map[uint64]*flight
	step       uint64
	pageLen    int
	pages      int // free
	total      int // pages in all
	steps      int
	worst      float64 // decaying worst seconds a step
	perRow     float64 // decaying worst seconds a row
	plain      float64 // moving mean seconds of a decode step without guesses
	tokens     int
	since      time.Time
	released   [][]byte
	toldTokens bool // the sampler has the vocabulary
	turn       bool // the next batch may be a suspect's
}

func newScheduler(p *pipeline) *scheduler {
	s := &scheduler{p: p, live: map[string]*live{}, flights: map[uint64]*flight{}, pages: math.MaxInt, since: time.Now()}
	for _, h := range p.stages {
		s.pages, s.pageLen = min(s.pages, int(h.GetKvPages())), int(h.GetKvPageLen())
	}
	s.total = s.pages
	return s
}

// capacity is the longest log that the pipeline can hold.
func (s *scheduler) capacity() int {
	n := math.MaxInt
	for _, h := range s.p.stages {
		n = min(n, int(h.GetPositions()), int(h.GetKvPages()*h.GetKvPageLen()))
	}
	return n
}

// schedule is the pipeline's loop: take events, send batches.
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
		// What has come together is taken together: fewer, fuller batches.
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
		s.p.running.Store(int64(len(s.order)))
		s.p.waiting.Store(int64(len(s.queue)))
	}
}

func (s *scheduler) take(e event) error {
	switch {
	case e.submit != nil:
		s.submit(e.submit)
	case e.drop != nil:
		return s.remove(e.drop)
	case e.added != nil:
		if l := s.live[string(e.added)]; l != nil && !l.added {
			l.added = true
			if l.drawing == nil {
				l.out <- outcome{admitted: true}
			}
		}
	case e.token != nil:
		return s.token(e.token)
	case e.failed != nil:
		if l := s.live[string(e.failed.GetSession())]; l == nil || e.failed.GetEpoch() < l.epoch {
			return nil
		}
		return s.fail(e.failed.GetSession(), e.failed.GetCode(), e.failed.GetField(), e.failed.GetMessage())
	case e.refused != nil:
		return s.fail(e.refused.GetSession(), e.refused.GetCode(), "", e.refused.GetMessage())
	case e.draw != nil:
		s.draw(e.draw)
	case e.guessed != nil:
		s.guessed(e.guessed)
	case e.computed != 0:
		delete(s.flights, e.computed)
	}
	return nil
}

func (s *scheduler) submit(l *live) {
	l.pages = (l.maxLen + s.pageLen - 1) / s.pageLen
	if l.pages > s.total { // it would wait for ever, and all behind it
		l.out <- outcome{err: fault.New(fault.Exhausted, "admit request: %d KV pages of the %d in all", l.pages, s.total)}
		return
	}
	if len(s.queue) >= s.p.service.cfg.Queue {
		l.out <- outcome{err: fault.New(fault.Exhausted, "admit request: %d are waiting", len(s.queue)).After(time.Second)}
		return
	}
	l.feed = session.New(l.log)
	s.live[string(l.id)] = l
	s.queue = append(s.queue, l)
}

// admit takes waiting sessions, in order, while there are KV pages for all they may
// grow to.
func (s *scheduler) admit() {
	for len(s.queue) > 0 && s.queue[0].pages <= s.pages {
		l := s.queue[0]
		s.queue = s.queue[1:]
		s.pages -= l.pages
		s.order = append(s.order, l)
		l.started = time.Now()
		s.tellTokens(s.p.chain.Digest(), l.tokens)
		s.add(l)
	}
}

// add makes a session known to the sampler. A draft's is picked for by no history.
func (s *scheduler) add(l *live) {
	a := &samplerv1.AddSession{Session: l.id, Epoch: l.epoch, Rules: l.rules, EmittedLogprobs: l.logprobs, Vocabulary: s.p.chain.Digest()}
	if l.drawing == nil {
		ids := make([]uint32, len(l.log))
		for i, id := range l.log {
			ids[i] = uint32(id)
		}
		prompt := len(ids) - l.emitted
		a.Prompt, a.Emitted = ids[:prompt], ids[prompt:]
	}
	// A broken stream shows at Recv.
	_ = s.p.sample.Send(&samplerv1.SampleRequest{Frame: &samplerv1.SampleRequest_Add{Add: a}})
}

// send forms batches while the chain has room: one batch in flight a stage.
func (s *scheduler) send() error {
	for len(s.flights) < len(s.p.chain) {
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

// batch takes a row of every session that decodes, then chunks of prompts, oldest
// first, up to the row budget.
func (s *scheduler) batch() *shardv1.Batch {
	b := &shardv1.Batch{}
	f := &flight{sent: time.Now(), decode: true}
	budget := s.p.service.cfg.BatchRows
	suspect, wait := s.probation()
	if wait {
		return nil
	}
	f.alone = suspect != nil
	add := func(l *live, n int) {
		ids, decides, wait := s.guess(l, min(n, budget)-1)
		if wait {
			return
		}
		rows, ok := l.feed.NextAhead(n, ids)
		if !ok {
			return
		}
		e := &shardv1.Entry{Session: l.id, Epoch: l.epoch, Position: uint32(rows.Pos), Rows: uint32(len(rows.IDs))}
		if rows.Logits {
			e.Logits = uint32(1 + rows.Ahead)
			for _, id := range rows.IDs[len(rows.IDs)-rows.Ahead:] {
				e.Guesses = append(e.Guesses, uint32(id))
			}
			s.sentGuesses(l, rows.IDs[len(rows.IDs)-rows.Ahead:])
			if rows.Ahead == 0 || decides {
				e.Candidates = uint32(l.picker.Need(int(s.p.stages[0].GetVocab()), rows.Pos+len(rows.IDs)))
			}
			if f.waiting == nil {
				f.waiting = map[string]bool{}
			}
			f.waiting[string(l.id)] = true
			l.flying = s.step + 1
			if l.drawing != nil {
				l.drawing.picked = rows.Pos + len(rows.IDs) - 1
			}
		}
		b.Entries = append(b.Entries, e)
		f.members = append(f.members, string(l.id))
		for _, id := range rows.IDs {
			b.Ids = append(b.Ids, uint32(id))
		}
		budget -= len(rows.IDs)
		f.rows += len(rows.IDs)
		f.prompts += len(rows.IDs) - 1
		f.guesses += rows.Ahead
	}
	for _, prefill := range []bool{false, true} {
		for _, l := range s.order {
			// A request that is slow to read gets no further token until it has read.
			if budget <= 0 || len(b.GetEntries()) == maxEntries || !l.ready() || l.feed.Prefilling() != prefill || l.suspect && l != suspect || suspect != nil && l != suspect {
				continue
			}
			f.decode = f.decode && !prefill
			add(l, min(budget, s.p.service.cfg.ChunkRows))
		}
	}
	if len(b.GetEntries()) == 0 {
		return nil
	}
	s.step++
	b.Step, b.DeadlineMs = s.step, uint32(s.limit(f).Milliseconds())
	s.flights[s.step] = f
	s.turn = !f.alone
	return b
}

// ready reports whether a session has rows to send and a reader for what comes of them: one
// that is slow to read gets no further token until it has read.
func (l *live) ready() bool {
	return l.added && l.feed.Ready() && len(l.out) <= outLen/2 && (l.drawing == nil || !l.drawing.paused)
}

// probation chooses a suspect whose rows are to be the next batch, all by themselves. A
// suspect was in flight on a pipeline that died. Until it has had a token, nothing else is
// in flight beside it, so that if this pipeline dies as well nobody else is blamed. Batches
// of the others take turns with those of suspects. It reports that the next batch has to
// wait until what is in flight is done.
func (s *scheduler) probation() (suspect *live, wait bool) {
	for _, f := range s.flights {
		if f.alone {
			return nil, true
		}
	}
	others := false
	for _, l := range s.order {
		switch {
		case !l.ready():
		case !l.suspect:
			others = true
		case suspect == nil:
			suspect = l
		}
	}
	if suspect == nil || others && !s.turn {
		return nil, false
	}
	return suspect, len(s.flights) > 0
}

// landed notes that a session's part of a batch is done.
func (s *scheduler) landed(l *live) {
	f := s.flights[l.flying]
	if f == nil {
		return
	}
	delete(f.waiting, string(l.id))
	if len(f.waiting) > 0 {
		return
	}
	delete(s.flights, l.flying)
	took := time.Since(f.sent).Seconds()
	s.steps++
	s.worst = max(took, s.worst*0.999)
	s.perRow = max(took/float64(f.rows), s.perRow*0.999)
	if f.decode {
		s.p.stepUS.Store(int64(took * 1e6))
		s.stepped(took, f.guesses)
	}
}

func (s *scheduler) token(t *samplerv1.Token) error {
	l := s.live[string(t.GetSession())]
	if l == nil || t.GetEpoch() != l.epoch || !l.feed.Token(int(t.GetPosition()), int32(t.GetId())) {
		return nil
	}
	if l.feed.Waiting() {
		s.rightGuess(l)
	} else {
		s.landed(l)
		l.guesser.verified(l.feed.Len(), s.stepTime())
	}
	s.tokens++
	l.suspect = false
	if l.drawing != nil {
		s.drawn(l, t)
		return nil
	}
	if t.GetFinishReason() == samplerv1.FinishReason_FINISH_REASON_UNSPECIFIED && l.feed.Len() >= l.maxLen {
		t.FinishReason = samplerv1.FinishReason_FINISH_REASON_LENGTH
	}
	l.out <- outcome{token: t} // never blocks: few tokens are asked for at a time
	if t.GetFinishReason() != samplerv1.FinishReason_FINISH_REASON_UNSPECIFIED {
		return s.remove(l)
	}
	return nil
}

// fail ends a session that the sampler or a stage refused.
func (s *scheduler) fail(id []byte, code uint32, field, message string) error {
	l := s.live[string(id)]
	if l == nil {
		return nil
	}
	s.landed(l)
	if err, replay := refusal(id, code, field, message); replay {
		l.out <- outcome{lost: err, blamed: true}
	} else {
		l.out <- outcome{err: err}
	}
	return s.remove(l)
}

// remove ends a session here and on every stage.
func (s *scheduler) remove(l *live) error {
	if s.live[string(l.id)] != l {
		return nil
	}
	delete(s.live, string(l.id))
	l.feed.End()
	s.landed(l)
	if i := slices.Index(s.queue, l); i >= 0 {
		s.queue = slices.Delete(s.queue, i, i+1)
		return nil
	}
	s.order = slices.DeleteFunc(s.order, func(o *live) bool { return o == l })
	s.pages += l.pages
	s.released = append(s.released, l.id)
	err := s.p.sample.Send(&samplerv1.SampleRequest{Frame: &samplerv1.SampleRequest_Remove{Remove: &samplerv1.RemoveSession{Session: l.id}}})
	if err != nil {
		return streamEnd("sampler", err)
	}
	return nil
}

// limit is the step deadline of a batch: several times the slowest step lately, and more
// for rows of prompts, which take their time on a slow machine.
func (s *scheduler) limit(f *flight) time.Duration {
	limit := coldDeadline
	if s.steps >= coldSteps {
		limit = max(stepFloor, time.Duration(stepFactor*s.worst*float64(time.Second)))
	}
	return limit + time.Duration(f.prompts)*max(rowFloor, time.Duration(2*s.perRow*float64(time.Second)))
}

// overdue finds a batch that nobody may wait for any longer.
func (s *scheduler) overdue(now time.Time) error {
	for step, f := range s.flights {
		if late := now.Sub(f.sent); late > s.limit(f) {
			return fault.New(fault.Unavailable, "run step %d: no answer in %v", step, late.Round(time.Millisecond))
		}
	}
	for _, l := range s.order {
		if late := now.Sub(l.started); !l.added && late > coldDeadline {
			return fault.New(fault.Unavailable, "add session %x: the sampler did not answer in %v", l.id, late.Round(time.Millisecond))
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

// lose tells every session that the pipeline is gone, including those whose submit was
// still on its way. Sessions that were being computed, or added to the sampler, are blamed:
// one of them may be the cause.
func (p *pipeline) lose() {
	cause := context.Cause(p.ctx)
	blamed := map[string]bool{}
	for _, f := range p.flights {
		for _, name := range f.members {
			blamed[name] = f.waiting == nil || f.waiting[name] || blamed[name]
		}
	}
	for _, l := range p.order {
		blamed[string(l.id)] = blamed[string(l.id)] || !l.added
	}
	for _, l := range p.live {
		l.out <- outcome{lost: cause, blamed: blamed[string(l.id)]}
	}
	for {
		select {
		case e := <-p.events:
			if e.submit != nil {
				e.submit.out <- outcome{lost: cause}
			}
		default:
			return
		}
	}
}
