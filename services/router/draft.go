package router

import (
	"context"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	"github.com/lamina-mesh/lamina/pkg/sample"
)

// drafter guesses by a smaller model's greedy choice. It keeps a session on a draft
// pipeline for one request: each round catches up with the request's log, which drops
// what the cache holds of wrong guesses, and draws ids up to one that is unlikely. Whatever
// goes wrong ends the drafter, not the request. Its goroutine belongs to the draft
// pipeline.
type drafter struct {
	service *Service
	request string
	target  *pipeline
	vocab   uint32 // ids that the request's model knows
	ends    []uint32

	mu     sync.Mutex
	open   bool
	asks   chan question
	unsure bool    // the last guess that was answered with was unlikely
	trust  float64 // moving share of such guesses that were right
}

// A draft's unlikely guesses end its rounds until more than trusted of them are right.
const (
	trustFirst = 0.4
	trusted    = 0.6
)

// leastDrafted is how many tokens must be to come for a draft to read the prompt.
const leastDrafted = 4

// graceFactor is how many limits a draft that is late has to give an id after all.
const graceFactor = 8

// question asks a drafter for at most n ids after a log.
type question struct {
	l     *live
	log   []int32
	n     int
	round uint64
	least float64 // log-probability of an id after which no more are wanted
	limit time.Duration
}

// draw is an event: a draft session is to go on after another log.
type draw struct {
	l     *live
	log   []int32
	upto  int     // length of the log at which it pauses
	least float64 // or the log-probability of an id below which it does
	round uint64
}

// drawing is what only a draft's session has.
type drawing struct {
	upto   int
	least  float64
	round  uint64
	paused bool
	picked int // the last position that the sampler may have picked for; -1 for none
}

// source names it in metrics.
func (*drafter) source() string { return "draft" }

func (d *drafter) propose(l *live, n int, limit time.Duration) ([]int32, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.open {
		return nil, false
	}
	least := d.service.leastLogprob()
	if d.trust > trusted {
		least = math.Inf(-1)
	}
	select {
	case d.asks <- question{l: l, log: slices.Clone(l.feed.Log()), n: n, round: l.guesser.round, least: least, limit: limit}:
		return nil, true
	default: // cannot be: a session asks once and waits
		return nil, false
	}
}

// verified learns whether guesses that the draft was unsure of are right as well, as
// where the two models are much alike.
func (d *drafter) verified(sent, right int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.trust > trusted && right < sent:
		d.trust = trusted
	case d.unsure && right == sent:
		d.trust += rateFade * (1 - d.trust)
	case d.unsure && right == sent-1:
		d.trust -= rateFade * d.trust
	}
}

// startDraft gives a request a drafter, if a draft pipeline stands. It ends with ctx.
func (q *request) startDraft(ctx context.Context, target *pipeline) *drafter {
	s := q.service
	if s.cfg.Draft == "" || len(q.prompt)+int(q.maxTokens)-len(q.log) < leastDrafted {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.bestDraft(target)
	if p == nil || s.fits[fitKey(target, p)] != nil {
		return nil
	}
	d := &drafter{
		service: s, request: q.id, target: target, vocab: target.stages[0].GetVocab(), ends: q.rules.GetEndIds(), asks: make(chan question, 1), trust: trustFirst,
	}
	if info := s.models[q.digest]; info != nil {
		d.vocab, d.ends = min(d.vocab, info.vocabulary.GetSize()), info.vocabulary.GetEndIds()
	}
	log, most := slices.Clone(q.log), min(len(q.prompt)+int(q.maxTokens), p.capacity())
	p.assigned.Add(1)
	p.drafters.Go(func() { // while the pipeline is listed, so before it is waited for
		defer p.assigned.Add(-1)
		d.run(ctx, p, log, most)
	})
	return d
}

// bestDraft finds the least loaded draft pipeline other than one; mu is held.
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

// take lets questions be asked, or none.
func (d *drafter) take(open bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.open = open
}

// run answers questions until ctx ends or something goes wrong.
func (d *drafter) run(ctx context.Context, p *pipeline, log []int32, most int) {
	err := d.draft(ctx, p, log, most)
	d.take(false)
	select {
	case a := <-d.asks:
		d.answer(a, nil)
	default:
	}
	code := fault.CodeOf(err)
	if err == nil || ctx.Err() != nil && code != fault.DeadlineExceeded || code == fault.Canceled {
		return
	}
	d.service.m.dropped.WithLabelValues(code.String()).Inc()
	d.service.log.Warn("drop draft", "request", d.request, "model", d.target.model(), "draft", p.model(), "error", err)
}

// draft holds the session on the draft pipeline.
func (d *drafter) draft(ctx context.Context, p *pipeline, log []int32, most int) error {
	if err := d.service.draftFits(ctx, d.target, p); err != nil {
		return err
	}
	if len(log) >= most {
		return fault.New(fault.Exhausted, "draft request %s: %d tokens leave no room in the draft's context of %d", d.request, len(log), most)
	}
	picker, err := sample.NewPicker(sample.Rules{})
	if err != nil {
		return err
	}
	l := &live{
		id: randomID(), log: log, epoch: 1, rules: &samplerv1.Rules{}, picker: picker, maxLen: most, out: make(chan outcome, outLen+2),
		drawing: &drawing{upto: len(log) + 1, picked: -1},
	}
	if err := p.tell(event{submit: l}); err != nil {
		return err
	}
	defer func() { _ = p.tell(event{drop: l}) }() // a pipeline that is gone holds nothing
	// The prompt is read while the target reads it; nobody waits for that.
	if _, err := d.collect(ctx, p, question{n: 1}, l, nil); err != nil || ctx.Err() != nil {
		return err
	}
	d.take(true)
	for {
		select {
		case a := <-d.asks:
			if err := d.round(ctx, p, a, l); err != nil {
				return err
			}
		case o := <-l.out: // what a round that was cut short still gave
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

// round works one question out and answers it within its limit. A draft that has given
// nothing by then is asked no more until it does, and not for ever.
func (d *drafter) round(ctx context.Context, p *pipeline, a question, l *live) error {
	start := time.Now()
	ids, err := d.within(ctx, p, a, l)
	d.service.m.drafting.Observe(time.Since(start).Seconds())
	late := fault.CodeOf(err) == fault.DeadlineExceeded
	if late {
		d.take(false)
	}
	d.answer(a, ids)
	if !late {
		return err
	}
	grace := time.NewTimer(graceFactor * a.limit)
	defer grace.Stop()
	select {
	case o := <-l.out:
		if o.lost != nil || o.err != nil {
			return d.lost(o)
		}
		d.take(true)
		return nil
	case <-p.done:
		return context.Cause(p.ctx)
	case <-grace.C:
	case <-ctx.Done():
	}
	return err
}

// within works one question out until its limit. It may return ids and an error.
func (d *drafter) within(ctx context.Context, p *pipeline, a question, l *live) ([]int32, error) {
	if a.n = min(a.n, l.maxLen-len(a.log)); a.n < 1 {
		return nil, fault.New(fault.Exhausted, "draft request %s: %d tokens fill the draft's context", d.request, len(a.log))
	}
	limit := time.NewTimer(a.limit)
	defer limit.Stop()
	select {
	case p.events <- event{draw: &draw{l: l, log: a.log, upto: len(a.log) + a.n, least: a.least, round: a.round}}:
	case <-p.ctx.Done():
		return nil, context.Cause(p.ctx)
	case <-ctx.Done():
		return nil, nil
	case <-limit.C:
		return nil, d.late(a)
	}
	return d.collect(ctx, p, a, l, limit.C)
}

// collect takes a round's ids, as far as they are likely, until there are enough. Those
// that came within the limit count; none at all is an error.
func (d *drafter) collect(ctx context.Context, p *pipeline, a question, l *live, limit <-chan time.Time) (ids []int32, err error) {
	for {
		select {
		case o := <-l.out:
			switch {
			case o.lost != nil || o.err != nil:
				return ids, d.lost(o)
			case o.round != a.round:
				continue
			case o.token.GetId() >= d.vocab:
				return ids, fault.New(fault.Internal, "draft request %s: id %d is outside the vocabulary of %d", d.request, o.token.GetId(), d.vocab)
			}
			ids = append(ids, int32(o.token.GetId()))
			unsure := !(float64(o.token.GetLogprob()) >= a.least)
			if unsure || len(ids) == a.n || slices.Contains(d.ends, o.token.GetId()) {
				d.mu.Lock()
				d.unsure = unsure
				d.mu.Unlock()
				return ids, nil
			}
		case <-p.done:
			return ids, context.Cause(p.ctx)
		case <-ctx.Done():
			return nil, nil
		case <-limit:
			if len(ids) == 0 {
				return nil, d.late(a)
			}
			d.mu.Lock()
			d.unsure = false
			d.mu.Unlock()
			return ids, nil
		}
	}
}

func (d *drafter) late(a question) error {
	return fault.New(fault.DeadlineExceeded, "draft request %s: no id in %v", d.request, a.limit)
}

func (d *drafter) lost(o outcome) error {
	if o.err != nil {
		return o.err
	}
	return fault.New(fault.Unavailable, "draft request %s: the draft's pipeline is lost", d.request)
}

// answer hands guesses to the session that waits for them; one whose pipeline is lost
// does not.
func (d *drafter) answer(a question, ids []int32) {
	_ = d.target.tell(event{guessed: &guessed{l: a.l, round: a.round, ids: ids}})
}

// leastLogprob is the log-probability that a draft's pick has to reach.
func (s *Service) leastLogprob() float64 {
	if s.cfg.DraftLeast <= 0 {
		return math.Inf(-1)
	}
	return math.Log(s.cfg.DraftLeast)
}

// draw sends a draft's session on after another log.
func (s *scheduler) draw(e *draw) {
	l := e.l
	if s.live[string(l.id)] != l {
		return // it has failed, and said so
	}
	if l.feed.Waiting() {
		s.landed(l) // a row of a round that was cut short
	}
	l.feed.Rewind(e.log)
	l.drawing.upto, l.drawing.least, l.drawing.round, l.drawing.paused = e.upto, e.least, e.round, false
	if len(e.log)-1 <= l.drawing.picked { // the sampler picks once for a position of an epoch
		l.drawing.picked = -1
		l.epoch++
		l.added = false
		l.started = time.Now()
		s.add(l)
	}
}

// drawn takes a draft session's token and pauses it at the end of its round.
func (s *scheduler) drawn(l *live, t *samplerv1.Token) {
	d := l.drawing
	d.paused = l.feed.Len() >= d.upto || !(float64(t.GetLogprob()) >= d.least)
	l.out <- outcome{token: t, round: d.round} // never blocks: few tokens are asked for at a time
}
