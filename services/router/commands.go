package router

import (
	"slices"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/lamina-mesh/lamina/pkg/fault"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/sched"
)

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
	// It is said with each token: what the reader has said before this one may be handled after the first Pause.
	if len(seq.out) > outLen/2 {
		r.events = append(r.events, seq.pause()...)
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

func toUint32(ids []int32) []uint32 {
	out := make([]uint32, len(ids))
	for i, id := range ids {
		out[i] = uint32(id)
	}
	return out
}
