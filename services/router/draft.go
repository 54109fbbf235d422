package router

import (
	"context"
	"errors"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	"github.com/lamina-mesh/lamina/pkg/sample"
	"github.com/lamina-mesh/lamina/pkg/sched"
)

// drafter proposes draft tokens by the greedy choice of a smaller model. For one request it
// keeps a draft session on a draft pipeline. Each round rewinds the session to the log it is asked
// about, which drops rejected tokens from its cache, and generates until an unlikely token or until
// there are enough. A new request replaces one that is not answered yet. A failure ends the drafter and
// not the request. Its goroutine belongs to the draft pipeline.
type drafter struct {
	service *Service
	request string
	target  *pipeline
	vocab   uint32 // ids that the request's model has
	ends    []uint32

	seq       *sequence     // the sequence that it drafts for
	submitted chan struct{} // closed once the target's scheduler knows the sequence

	mu       sync.Mutex
	open     bool // it may be asked
	requests chan draftRequest
}

// draftMinTokens is how many tokens a request must have left for a draft to pay for
// reading its prompt.
const draftMinTokens = 4

// lateDraftFactor is the late-draft timeout, as a multiple of the round limit: a draft that
// has missed its limit is dropped if it has no token by then.
const lateDraftFactor = 8

// draftRequest asks a drafter for at most n tokens after a log.
type draftRequest struct {
	log        []int32
	n          int
	round      uint64
	minLogprob float64 // a token below it is the last of the round
	limit      time.Duration
}

// ask passes a question of the target's scheduler on. It returns false if the drafter cannot answer
// now.
func (d *drafter) ask(c sched.Propose) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.open {
		return false
	}
	r := draftRequest{
		log: slices.Clone(c.Log), n: c.N, round: c.Round, minLogprob: d.service.draftMinLogprob(), limit: c.Limit,
	}
	if c.Any {
		r.minLogprob = math.Inf(-1)
	}
	select { // a sequence asks again if what it asked for is of no use any more
	case <-d.requests:
	default:
	}
	d.requests <- r // it has room for one, and nobody else sends
	return true
}

// startDraft gives a request a drafter, if there is a draft pipeline. It ends with ctx.
func (q *request) startDraft(ctx context.Context, target *pipeline, seq *sequence) *drafter {
	s := q.service
	if s.cfg.Draft == "" || len(q.prompt)+int(q.maxTokens)-len(q.log) < draftMinTokens {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.bestDraft(target)
	if p == nil || s.draftVocabs[vocabKey(target, p)] != nil {
		return nil
	}
	d := &drafter{
		service: s, request: q.id, target: target, vocab: target.stages[0].GetVocab(), ends: q.rules.GetEndIds(),
		requests: make(chan draftRequest, 1), seq: seq, submitted: make(chan struct{}),
	}
	if info := s.models[q.digest]; info != nil {
		d.vocab, d.ends = min(d.vocab, info.vocabulary.GetSize()), info.vocabulary.GetEndIds()
	}
	log, maxLen := slices.Clone(seq.log), min(seq.maxLen, p.contextLength())
	if len(log) >= maxLen { // longer than the draft model's context
		return nil
	}
	p.assigned.Add(1)
	p.drafters.Go(func() { // the pipeline is still listed, so nobody waits for its drafters yet
		defer p.assigned.Add(-1)
		d.run(ctx, p, log, maxLen)
	})
	return d
}

// bestDraft returns the least loaded draft pipeline other than the given one. The caller holds mu.
func (s *Service) bestDraft(other *pipeline) *pipeline {
	var best *pipeline
	for _, p := range s.pipelines {
		if p == other || !p.draft || p.dead() {
			continue
		}
		if best == nil || p.load() < best.load() || p.load() == best.load() && p.id < best.id {
			best = p
		}
	}
	return best
}

// accept opens the drafter to questions, or closes it.
func (d *drafter) accept(open bool) {
	d.mu.Lock()
	d.open = open
	d.mu.Unlock()
	// A pipeline that is lost asks nothing.
	_ = d.target.tell(event{Event: sched.DraftReady{ID: d.seq.name(), Ready: open}})
}

// run answers requests until ctx ends or something fails.
func (d *drafter) run(ctx context.Context, p *pipeline, log []int32, maxLen int) {
	err := d.draft(ctx, p, log, maxLen)
	d.accept(false)
	select {
	case r := <-d.requests:
		d.answer(r, nil, false)
	default:
	}
	code := fault.CodeOf(err)
	if err == nil || ctx.Err() != nil && code != fault.DeadlineExceeded || code == fault.Canceled {
		return
	}
	d.service.m.dropped.WithLabelValues(code.String()).Inc()
	d.service.log.WarnContext(ctx, "drop draft session", "model", d.target.model(), "draft", p.model(), "error", err)
}

// draft runs the session on the draft pipeline.
func (d *drafter) draft(ctx context.Context, p *pipeline, log []int32, maxLen int) error {
	if err := d.service.checkDraftVocab(ctx, d.target, p); err != nil {
		return err
	}
	if len(log) >= maxLen {
		return fault.New(
			fault.Exhausted, "draft for request %s: %d tokens leave no room in the draft model's context length of %d",
			d.request, len(log), maxLen,
		)
	}
	picker, err := sample.NewPicker(sample.Rules{})
	if err != nil {
		return err
	}
	seq := newSequence(&sequence{
		log: log, epoch: 1, tenant: d.seq.tenant, rules: &samplerv1.Rules{}, picker: picker, maxLen: maxLen,
		draft: true,
	})
	if err := p.submit(seq); err != nil {
		return err
	}
	defer func() { _ = p.tell(seq.cancel()) }() // a lost pipeline has no session to cancel
	// The draft pipeline prefills the prompt while the target does. Nobody waits for it.
	if _, _, err := d.collect(ctx, p, draftRequest{n: 1}, seq, nil); err != nil || ctx.Err() != nil {
		return err
	}
	select { // the scheduler ignores a drafter of a sequence that it does not know yet
	case <-d.submitted:
	case <-ctx.Done():
		return nil
	}
	d.accept(true)
	for {
		select {
		case r := <-d.requests:
			for next := &r; next != nil; {
				var err error
				if next, err = d.round(ctx, p, *next, seq); err != nil {
					return err
				}
			}
		case o := <-seq.out: // a late token of a round that missed its limit
			if o.lost != nil || o.err != nil {
				return d.lost(o)
			}
		case <-p.ctx.Done():
			return context.Cause(p.ctx)
		case <-ctx.Done():
			return nil
		}
	}
}

// superseded is the error of a round whose request was replaced by another one.
type superseded struct{ by draftRequest }

func (superseded) Error() string { return "the request was replaced" }

// round answers one request within its limit, or returns the request that has replaced it. A draft
// that has no token by then gets no requests until it has one, and is dropped at the late-draft
// timeout.
func (d *drafter) round(ctx context.Context, p *pipeline, r draftRequest, seq *sequence) (*draftRequest, error) {
	start := time.Now()
	ids, unlikely, err := d.generateWithin(ctx, p, r, seq)
	var next superseded
	if errors.As(err, &next) {
		return &next.by, nil // nobody waits for the answer
	}
	d.service.m.drafting.Observe(time.Since(start).Seconds())
	late := fault.CodeOf(err) == fault.DeadlineExceeded
	if late {
		d.accept(false)
	}
	d.answer(r, ids, unlikely)
	if !late {
		return nil, err
	}
	timeout := time.NewTimer(lateDraftFactor * r.limit)
	defer timeout.Stop()
	for {
		select {
		case o := <-seq.out:
			if o.lost != nil || o.err != nil {
				return nil, d.lost(o)
			}
			d.accept(true)
			return nil, nil
		case next := <-d.requests: // it came at the same time as the limit
			d.answer(next, nil, false)
		case <-p.done:
			return nil, context.Cause(p.ctx)
		case <-timeout.C:
			return nil, err
		case <-ctx.Done():
			return nil, err
		}
	}
}

// generateWithin generates for one request until its limit. It may return both ids and an error.
func (d *drafter) generateWithin(
	ctx context.Context, p *pipeline, r draftRequest, seq *sequence,
) (ids []int32, unlikely bool, err error) {
	if r.n = min(r.n, seq.maxLen-len(r.log)); r.n < 1 {
		return nil, false, fault.New(
			fault.Exhausted, "draft for request %s: %d tokens fill the draft model's context length", d.request,
			len(r.log),
		)
	}
	limit := time.NewTimer(r.limit)
	defer limit.Stop()
	select {
	case p.events <- event{Event: sched.Round{
		ID: seq.name(), Log: r.log, End: len(r.log) + r.n, MinLogprob: r.minLogprob, Round: r.round,
	}}:
	case <-p.ctx.Done():
		return nil, false, context.Cause(p.ctx)
	case <-ctx.Done():
		return nil, false, nil
	case next := <-d.requests:
		return nil, false, superseded{next}
	case <-limit.C:
		return nil, false, d.late(r)
	}
	return d.collect(ctx, p, r, seq, limit.C)
}

// collect takes a round's tokens until an unlikely one or until there are enough. It returns those
// that arrive within the limit, and an error if there are none.
func (d *drafter) collect(
	ctx context.Context, p *pipeline, r draftRequest, seq *sequence, limit <-chan time.Time,
) (ids []int32, unlikely bool, err error) {
	for {
		select {
		case o := <-seq.out:
			seq.took(p)
			switch {
			case o.lost != nil || o.err != nil:
				return ids, false, d.lost(o)
			case o.round != r.round:
				continue
			case o.token.GetId() >= d.vocab:
				return ids, false, fault.New(
					fault.Internal, "draft for request %s: id %d is outside the vocabulary of %d", d.request,
					o.token.GetId(), d.vocab,
				)
			}
			ids = append(ids, int32(o.token.GetId()))
			unlikely = !(float64(o.token.GetLogprob()) >= r.minLogprob)
			if unlikely || len(ids) == r.n || slices.Contains(d.ends, o.token.GetId()) {
				return ids, unlikely, nil
			}
		case next := <-d.requests:
			return nil, false, superseded{next}
		case <-p.done:
			return ids, false, context.Cause(p.ctx)
		case <-ctx.Done():
			return nil, false, nil
		case <-limit:
			if len(ids) == 0 {
				return nil, false, d.late(r)
			}
			return ids, false, nil
		}
	}
}

func (d *drafter) late(r draftRequest) error {
	return fault.New(fault.DeadlineExceeded, "draft for request %s: no token in %v", d.request, r.limit)
}

func (d *drafter) lost(o result) error {
	if o.err != nil {
		return o.err
	}
	return fault.Wrap(fault.CodeOf(o.lost), o.lost, "draft for request %s: the draft session is lost", d.request)
}

// answer sends draft tokens to the sequence that waits for them. If its pipeline is lost, no
// sequence waits.
func (d *drafter) answer(r draftRequest, ids []int32, unlikely bool) {
	_ = d.target.tell(event{Event: sched.Drafted{ID: d.seq.name(), Round: r.round, IDs: ids, Unlikely: unlikely}})
}

// draftMinLogprob is the log-probability below which a draft token ends its round.
func (s *Service) draftMinLogprob() float64 {
	if s.cfg.DraftMinProb <= 0 {
		return math.Inf(-1)
	}
	return math.Log(s.cfg.DraftMinProb)
}
