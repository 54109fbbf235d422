package router

import (
	"slices"
	"time"

	"github.com/lamina-mesh/lamina/pkg/sample"
)

// Speculative decoding: a proposer proposes draft tokens that may follow a sequence's log. The
// scheduler sends their rows with the row that is due, the sampler picks from each row as always,
// and a draft token is accepted if it is the one picked. So draft tokens change how many steps a
// text takes but never the text.

// proposer proposes draft tokens. The scheduler of the sequence's pipeline asks it.
type proposer interface {
	// source returns the proposer's name in metrics.
	source() string
	// propose returns at most n draft tokens that may follow seq's log. If it returns later, they
	// arrive within about the limit as a drafted event of seq's round, and the sequence waits for
	// that event. The scheduler's goroutine calls propose, so it returns at once.
	propose(seq *sequence, n int, limit time.Duration) (ids []int32, later bool)
	// verified reports how many of the draft tokens that were sent have been accepted. The
	// same goroutine calls it.
	verified(sent, accepted int)
}

// These are the shortest and longest n-grams at the end of a log that are looked up earlier in it.
// Next to a draft model, which can always propose, a match of a short n-gram is too weak a hint.
const (
	ngramMin          = 2
	ngramMinWithDraft = 3
	ngramMax          = 4
)

// ngram finds an earlier occurrence of a log's last ids in the log and proposes what followed it.
type ngram struct{ min int }

func (ngram) source() string { return "ngram" }

func (p ngram) propose(seq *sequence, n int, _ time.Duration) ([]int32, bool) {
	return sample.Propose(seq.feed.Log(), p.min, ngramMax, n), false
}

func (ngram) verified(int, int) {}

// How proposers are rated. A rate is an exponential moving average of the acceptance rate.
const (
	rateFirst     = 0.6  // at the beginning
	rateWeight    = 0.25 // weight of a round's acceptance rate in the average
	rateWeightNil = 0.1  // the same for a round without a proposal, which counts as 0
	restBelow     = 0.3  // a proposer with a lower rate rests
	restBelowNext = 0.5  // the same if another proposer is asked after it
	restFirst     = 16   // tokens of the first rest; each further rest is twice as long
	restLast      = 256
	plainWeight   = 0.2 // weight of a step in the average time of decode steps without draft tokens
	// A round does not pay off if it takes longer than this many plain steps per token. A round
	// whose draft tokens were all accepted may take longer, since it leaves the pipeline to other
	// requests.
	slowRound    = 1.25
	slowAccepted = 3
	slowFloor    = 5 * time.Millisecond
)

// ratedProposer is a proposer with its record for one sequence.
type ratedProposer struct {
	proposer
	limit     int     // maximum number of draft tokens in a round
	next      int     // draft tokens to ask for next
	rate      float64 // moving average of the acceptance rate
	restBelow float64
	rest      int // tokens of the next rest
	wake      int // the length of the log at which it is asked again
}

// learn updates the record with the result of a round, which ended with a log of that length. sent
// is 0 for a round without a proposal. slow says that the round took too long.
func (j *ratedProposer) learn(sent, accepted int, slow bool, length int) {
	switch {
	case slow:
		j.rate -= rateWeight * j.rate
	case sent == 0:
		j.rate -= rateWeightNil * j.rate
	default:
		j.rate += rateWeight * (float64(accepted)/float64(sent) - j.rate)
	}
	// Ask for two more after a round in which all were accepted, and for one less after any other
	// round. The number settles near the length that is usually accepted.
	switch {
	case sent == 0:
	case accepted == sent:
		j.next = min(j.limit, j.next+2)
	default:
		j.next = max(1, j.next-1)
	}
	switch {
	case j.rate < j.restBelow:
		j.wake, j.rest = length+j.rest, min(2*j.rest, restLast)
		j.rate = j.restBelow // after one more poor round it rests again
	case j.rate > (1+j.restBelow)/2:
		j.rest = restFirst
	}
}

// speculation is a sequence's proposers and its current round. The scheduler owns it.
type speculation struct {
	proposers []*ratedProposer // in the order in which they are asked
	by        *ratedProposer   // the one that was asked last
	round     uint64           // numbers the questions
	waiting   bool             // waits for draft tokens
	arrived   bool             // draft tokens have arrived and were not sent yet
	ids       []int32          // the draft tokens that arrived
	asked     time.Time        // when by was asked
	sent      int              // draft tokens that are being verified
	accepted  int              // how many of them were accepted so far
}

// newSpeculation asks each proposer for at most n draft tokens, in the order given.
func newSpeculation(n int, proposers ...proposer) speculation {
	var g speculation
	for i, p := range proposers {
		j := &ratedProposer{proposer: p, limit: n, next: n, rate: rateFirst, restBelow: restBelow, rest: restFirst}
		if i < len(proposers)-1 {
			j.restBelow = restBelowNext
		}
		g.proposers = append(g.proposers, j)
	}
	return g
}

// propose returns at most n draft tokens to send with the row that is due. wait says that the row
// has to wait for them.
func (g *speculation) propose(seq *sequence, n int, limit time.Duration) (ids []int32, wait bool) {
	if g.waiting {
		return nil, true
	}
	if g.arrived {
		g.arrived = false
		return g.ids[:min(max(n, 0), len(g.ids))], false
	}
	if n < 1 {
		return nil, false
	}
	for _, j := range g.proposers {
		if seq.feed.Len() < j.wake {
			continue
		}
		g.round++
		g.by, g.asked = j, time.Now()
		ids, later := j.propose(seq, min(n, j.next), limit)
		if later {
			g.waiting = true
			return nil, true
		}
		if len(ids) > 0 {
			return ids, false
		}
	}
	return nil, false
}

// take stores draft tokens that the sequence waits for. It drops those of an earlier round.
func (g *speculation) take(e *drafted, length int, step time.Duration) {
	if !g.waiting || e.round != g.round {
		return
	}
	g.waiting, g.arrived, g.ids = false, true, e.ids
	if len(e.ids) == 0 {
		g.by.learn(0, 0, g.slow(slowRound, step), length)
	}
}

// slow reports whether the round has taken longer than the given number of plain steps.
func (g *speculation) slow(steps float64, step time.Duration) bool {
	return step > 0 && time.Since(g.asked) > max(slowFloor, time.Duration(steps*float64(step)))
}

// verified ends a round, after its last token has arrived.
func (g *speculation) verified(length int, step time.Duration) {
	if g.sent > 0 {
		g.by.verified(g.sent, g.accepted)
		steps := slowRound * float64(g.accepted+1)
		if g.accepted == g.sent {
			steps = slowAccepted * float64(g.accepted+1)
		}
		g.by.learn(g.sent, g.accepted, g.slow(steps, step), length)
	}
	g.sent, g.accepted = 0, 0
}

// drafted is the event that brings the draft tokens that a proposer computed for a sequence.
type drafted struct {
	seq   *sequence
	round uint64
	ids   []int32
}

const (
	// wholeRowBytes bounds the logits rows of a sequence that are sent in full because candidates
	// might not suffice.
	wholeRowBytes = 2 << 20
	// sharedDrafts is the number of draft tokens that the sequences of a pipeline share evenly. A
	// large batch is bound by compute, so further rows cost more than they save.
	sharedDrafts = 24
	// A round of drafting may take this fraction of the time of the steps that it can save.
	draftFactor = 4
	draftFloor  = 250 * time.Millisecond
	draftCold   = time.Second // limit of a draft round before any step has been measured
)

// speculate finds draft tokens to send after the row that is due, at most budget. It also
// reports whether candidates suffice to verify them, and whether the row has to wait.
func (s *scheduler) speculate(seq *sequence, budget int) (ids []int32, candidates, wait bool) {
	if len(seq.speculation.proposers) == 0 || seq.feed.Prefilling() {
		return nil, false, false
	}
	vocab := int(s.p.stages[0].GetVocab())
	n := min(budget, s.p.service.cfg.Speculate, seq.maxLen-seq.feed.Len()-1, sharedDrafts/len(s.running))
	// If the candidates of a row do not suffice, the sampler asks for the full logits row, and the
	// rows after it are lost. So all rows are sent in full, as far as their size allows.
	if n > 0 && !seq.picker.Decides(vocab, seq.feed.Len()+n) && seq.picker.Need(vocab, seq.feed.Len()) > 0 {
		n = min(n, wholeRowBytes/(4*max(vocab, 1))-1)
	}
	ids, wait = seq.speculation.propose(seq, n, s.draftLimit(n))
	return ids, seq.picker.Decides(vocab, seq.feed.Len()+len(ids)), wait
}

// draftLimit returns how long the proposal of n draft tokens may take.
func (s *scheduler) draftLimit(n int) time.Duration {
	step := s.stepTime()
	if step == 0 {
		return draftCold
	}
	return max(draftFloor, draftFactor*time.Duration(n+1)*step)
}

// stepTime returns the moving average time of a decode step without draft tokens, or 0 before the
// first step.
func (s *scheduler) stepTime() time.Duration {
	return time.Duration(s.plain * float64(time.Second))
}

// stepped updates the average with the time of a decode step. A step with draft tokens takes at
// least as long as one without, so it can only lower the average.
func (s *scheduler) stepped(seconds float64, drafts int) {
	switch {
	case drafts > 0:
		s.plain = min(s.plain, seconds)
	case s.plain == 0:
		s.plain = seconds
	default:
		s.plain += plainWeight * (seconds - s.plain)
	}
}

// draftSent records the draft tokens that are sent with a sequence's row.
func (s *scheduler) draftSent(seq *sequence, ids []int32) {
	if len(ids) == 0 {
		return
	}
	seq.speculation.sent, seq.speculation.accepted = len(ids), 0
	s.p.service.m.drafted.WithLabelValues(seq.speculation.by.source()).Add(float64(len(ids)))
}

// draftAccepted records that the sampler has picked a draft token.
func (s *scheduler) draftAccepted(seq *sequence) {
	seq.speculation.accepted++
	s.p.service.m.accepted.WithLabelValues(seq.speculation.by.source()).Inc()
}

// drafted handles draft tokens that arrive later, unless the sequence has ended.
func (s *scheduler) drafted(e *drafted) {
	if slices.Contains(s.running, e.seq) {
		e.seq.speculation.take(e, e.seq.feed.Len(), s.stepTime())
	}
}
