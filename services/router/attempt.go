package router

import (
	"context"
	"slices"
	"time"

	"github.com/lamina-mesh/lamina/pkg/auth"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
)

// submit submits the log to a pipeline, at which it is counted already. An error means that the pipeline is
// lost; the attempt has to be ended in any case.
func (q *request) submit(ctx context.Context, p *pipeline, epoch uint64, log []int32, maxLen int) (*attempt, error) {
	seq := newSequence(&sequence{
		log: slices.Clone(log), whole: slices.Clone(q.log), emitted: len(q.log) - len(q.prompt), epoch: epoch,
		tenant: auth.Tenant(ctx), priority: q.priority,
		rules: q.rules, logprobs: slices.Clone(q.logprobs), picker: q.picker,
		adapter: q.adapter, tokens: q.tokens, maxLen: maxLen, suspect: q.strikes.suspect(), proven: q.proven,
		trace: q.span.Traceparent(),
		score: q.echo.logprobs && !q.echo.done, drafts: max(0, q.service.cfg.Speculate),
	})
	q.service.log.DebugContext(ctx, "submit session", "session", hexID(seq.id), "pipeline", p.id, "epoch", epoch)
	speculating, stop := context.WithCancel(ctx)
	if seq.drafts > 0 {
		seq.drafter = q.startDraft(speculating, p, seq)
	}
	err := p.submit(seq)
	if err == nil && seq.drafter != nil {
		close(seq.drafter.submitted)
	}
	return &attempt{p: p, seq: seq, log: log, stop: stop}, err
}

// begin tells the client that the answer begins. It is not told again after a move.
func (q *request) begin() error {
	if q.started == nil {
		return nil
	}
	q.answered = true
	if err := q.sink.started(q.started); err != nil {
		return err
	}
	q.started = nil
	return q.openEcho()
}

// follow handles a session's results until it ends. The returned result says whether the session is
// lost and has to move, or whether the window has slid. Otherwise it has ended with err or with its
// last token. The returned attempt is the one that is left: a hedge may have taken over.
func (q *request) follow(ctx context.Context, a *attempt) (end result, last *attempt, err error) {
	r := q.newRace(a)
	defer func() {
		r.stop(err != nil || ctx.Err() != nil)
		last = r.first
	}()
	for {
		o, from, err := r.next(ctx)
		switch {
		case err != nil:
			return result{}, nil, err
		case o.lost != nil && r.second == nil:
			return o, nil, nil
		case o.lost != nil: // the other one goes on
			q.proven = max(q.proven, o.proven)
			if o.blamed != nil {
				q.lost = append(q.lost, from.p.id)
				q.blame(*o.blamed, o.lost)
			}
			r.drop(from)
			if err := q.strikes.verdict(q.id); err != nil {
				return result{}, nil, err
			}
			continue
		case o.err != nil && from == r.second:
			r.drop(from)
			continue
		case o.err != nil:
			return result{}, nil, o.err
		case o.struck != nil && r.second != nil: // the other one goes on alone, so that one cause has one effect
			q.blame(*o.blamed, o.struck)
			_ = from.p.tell(from.seq.cancel()) // a lost pipeline holds nothing
			r.drop(from)
			if err := q.strikes.verdict(q.id); err != nil {
				return result{}, nil, err
			}
			continue
		case o.struck != nil:
			q.blame(*o.blamed, o.struck)
			if err := q.strikes.verdict(q.id); err != nil {
				return result{}, nil, err
			}
			_ = from.p.tell(from.seq.proceed(q.strikes.suspect())) // a lost pipeline has told the sequence
			continue
		case o.accepted:
			if q.canary && q.live == nil { // until it answers, the live version may take its place
				continue
			}
			if err := q.begin(); err != nil {
				return result{}, nil, err
			}
			continue
		}
		if err := q.begin(); err != nil {
			return result{}, nil, err
		}
		if q.first.IsZero() {
			r.won(from)
			q.observeFirst(from, o.cached)
			q.service.firsts.add(max(0, len(from.log)-o.cached), time.Since(r.begun))
		}
		if err := q.closeEcho(o.scores); err != nil {
			return result{}, nil, err
		}
		finished, err := q.token(o)
		if err != nil {
			return result{}, nil, err
		}
		if finished {
			if o.token.GetFinishReason() == samplerv1.FinishReason_FINISH_REASON_UNSPECIFIED {
				_ = from.p.tell(from.seq.cancel()) // ended by a stop string, which the pipeline does not know
			}
			return result{}, nil, nil
		}
		if o.token.GetFinishReason() != samplerv1.FinishReason_FINISH_REASON_UNSPECIFIED {
			return result{slid: true}, nil, nil // the log fills the context, and the pipeline has ended the sequence
		}
	}
}

// next waits for a session's next result. Results from before the end of the pipeline come first.
func (seq *sequence) next(ctx context.Context, p *pipeline) (result, error) {
	defer seq.took(p)
	select {
	case o := <-seq.out:
		return o, nil
	default:
	}
	select {
	case o := <-seq.out:
		return o, nil
	case <-ctx.Done():
		return result{}, ctx.Err()
	case <-p.done:
	}
	select {
	case o := <-seq.out:
		return o, nil
	default: // it was submitted after the others were told
		return result{lost: context.Cause(p.ctx)}, nil
	}
}

// token sends a token to the client and reports whether it was the last.
func (q *request) token(o result) (bool, error) {
	t, now := o.token, time.Now()
	q.prove()
	if q.first.IsZero() {
		q.admitted, q.cached = o.admitted, o.cached
	}
	q.meterToken(now)
	if q.echo.only {
		q.first, q.last = now, now
		return true, q.finish(samplerv1.FinishReason_FINISH_REASON_LENGTH, "", 0)
	}
	if q.first.IsZero() {
		q.first = now
		q.span.Event("first token")
		q.service.replays.earn(len(q.prompt) - q.cached)
		q.service.m.first.Observe(now.Sub(q.arrived).Seconds())
	} else {
		q.service.m.between.Observe(now.Sub(q.last).Seconds())
	}
	q.last = now
	q.service.m.tokens.Inc()
	q.service.replays.earn(1)
	stopped, err := q.emit(t)
	if err != nil {
		return false, err
	}
	reason := t.GetFinishReason()
	if stopped {
		reason = samplerv1.FinishReason_FINISH_REASON_STOP
	}
	if reason == samplerv1.FinishReason_FINISH_REASON_UNSPECIFIED ||
		reason == samplerv1.FinishReason_FINISH_REASON_LENGTH && q.goesOn() {
		return false, nil
	}
	rest := ""
	if !stopped {
		rest = q.text.flush()
	}
	return true, q.finish(reason, rest, len(q.log)-len(q.prompt))
}

// emit adds a token to the log and sends it to the client. It reports whether the text has come to a
// stop string.
func (q *request) emit(t *samplerv1.Token) (bool, error) {
	index, slid := len(q.log)-len(q.prompt), q.slid()
	q.log, q.logprobs = append(q.log, int32(t.GetId())), append(q.logprobs, t.GetLogprob())
	show, stopped, err := q.text.push(t.GetId())
	if err != nil {
		return false, err
	}
	event := &routerv1.TokenEvent{Text: show, Id: t.GetId(), Logprob: t.GetLogprob(), Index: uint32(index),
		Dropped: slid}
	if event.Top, err = q.text.candidates(t.GetTop()); err != nil {
		return false, err
	}
	return stopped, q.sink.token(event)
}

// finish sends the last event of a request.
func (q *request) finish(reason samplerv1.FinishReason, text string, tokens int) error {
	q.reason = reason
	return q.sink.finished(&routerv1.Finished{
		FinishReason: reason, Text: text, Context: q.usedContext(), StopString: q.stopString(),
		Usage: &routerv1.Usage{
			PromptTokens: uint32(len(q.prompt)), CompletionTokens: uint32(tokens), CachedTokens: uint32(q.cached),
		},
		Timings: &routerv1.Timings{
			QueueUs: micros(q.admitted.Sub(q.arrived)), PrefillUs: micros(q.first.Sub(q.admitted)),
			DecodeUs: micros(q.last.Sub(q.first)),
		},
	})
}

func micros(d time.Duration) uint64 { return uint64(max(0, d.Microseconds())) }
