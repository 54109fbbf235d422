package sched

import (
	"slices"
	"time"

	"github.com/lamina-mesh/lamina/pkg/sample"
)

// Speculative decoding: a proposer proposes draft tokens that may follow a sequence's log. Their rows
// are sent with the row that is due, the sampler picks from each row as always, and a draft token is
// accepted if it is the one picked. So draft tokens change how many steps a text takes but never the
// text.

// Names of proposers, in metrics.
const (
	NGram      = "ngram" // an earlier occurrence of the log's last ids
	DraftModel = "draft"
)

// These are the shortest and longest n-grams at the end of a log that are looked up earlier in it. Next
// to a draft model, which can always propose, a match of a short n-gram is too weak a hint.
const (
	ngramMin          = 2
	ngramMinWithDraft = 3
	ngramMax          = 4
)

// How proposers are rated. A rate is an exponential moving average of the acceptance rate.
const (
	rateFirst     = 0.6  // at the beginning
	rateWeight    = 0.25 // weight of a round's acceptance rate in the average
	rateWeightNil = 0.1  // the same for a round without a proposal, which counts as 0
	restBelow     = 0.3  // a proposer with a lower rate rests
	restBelowNext = 0.5  // the same if another proposer is asked after it
	restFirst     = 16   // tokens of the first rest; each further rest is twice as long
	restLast      = 256
	// A round does not pay off if it takes longer than this many plain steps per token. A round whose
	// draft tokens were all accepted may take longer, since it leaves the pipeline to other requests.
	slowRound    = 1.25
	slowAccepted = 3
	slowFloor    = 5 * time.Millisecond
	// Improbable tokens end a round of the draft model unless more than trustEnough of them are
	// accepted.
	trustFirst  = 0.4
	trustEnough = 0.6
)

// lazyAfter is how many tokens the draft model may be behind for a row to wait for it.
const lazyAfter = 12

const (
	// wholeRowBytes bounds the logits rows of a sequence that are sent whole because candidates might
	// not suffice.
	wholeRowBytes = 2 << 20
	// sharedDrafts is the number of draft tokens that the sequences of a pipeline share evenly. A large
	// batch is bound by compute, so further rows cost more than they save.
	sharedDrafts = 24
	// A round of drafting may take this fraction of the time of the steps that it can save.
	draftFactor = 4
	draftFloor  = 250 * time.Millisecond
	draftCold   = time.Second // limit of a draft round before any step has been measured
)

// proposer is a source of draft tokens with its record for one sequence.
type proposer struct {
	name      string
	limit     int     // maximum number of draft tokens in a round
	next      int     // draft tokens to ask for next
	rate      float64 // moving average of the acceptance rate
	restBelow float64
	gain      float64 // plain steps that it has saved lately
	saved     float64 // the same since the beginning
	rest      int     // tokens of the next rest
	wake      int     // the length of the log at which it is asked again

	// What is known about the probability that a draft token is right, if those before it are: decaying sums.
	right, tried float64
	measured     bool // the number of draft tokens is chosen by their costs (drafts.go)
	chained      bool // its windows may be chained
	probe        bool // one draft token is to show whether they pay again
}

// learn updates the record with the result of a round, which ended with a log of that length. sent is
// 0 for a round without a proposal. slow says that the round took too long.
func (p *proposer) learn(sent, accepted int, slow bool, length int) {
	switch {
	case slow:
		p.rate -= rateWeight * p.rate
	case sent == 0:
		p.rate -= rateWeightNil * p.rate
	default:
		p.rate += rateWeight * (float64(accepted)/float64(sent) - p.rate)
	}
	// Ask for two more after a round in which all were accepted, and for one less after any other
	// round. The number settles near the length that is usually accepted.
	switch {
	case sent == 0:
	case accepted == sent:
		p.next = min(p.limit, p.next+2)
	default:
		p.next = max(1, p.next-1)
	}
	p.count(sent, accepted)
	switch {
	case p.measured: // it rests when the expected gain is too small
	case p.rate < p.restBelow:
		p.takeRest(length)
	case p.rate > (1+p.restBelow)/2 && p.gain >= 0:
		p.rest = restFirst
	}
}

// takeRest makes a proposer rest. After one more poor round it rests again, for longer.
func (p *proposer) takeRest(length int) {
	p.wake, p.rest = length+p.rest, min(2*p.rest, restLast)
	p.rate, p.gain, p.next = max(p.rate, p.restBelow), payRested, 1
}

// charge adds what a round has saved, in plain steps, or has cost if saved is below 0. Alone on a pipeline
// a sequence gains nothing else by draft tokens. All rounds together may cost a small part of the steps that
// the tokens so far would have taken without draft tokens; a proposer that has cost more rests until there
// are enough tokens.
func (p *proposer) charge(saved float64, length, tokens int) {
	p.gain, p.saved = payKeep*p.gain+saved, p.saved+saved
	if p.gain < payLeast && length >= p.wake && (!p.measured || p.chained) {
		p.takeRest(length)
	}
	if debt := -p.saved - payDebt - payPart*float64(tokens); debt > 0 {
		p.wake = max(p.wake, length+int(debt/payPart))
	}
}

// speculation is a sequence's proposers and its current round.
type speculation struct {
	proposers []*proposer   // in the order in which they are asked
	by        *proposer     // the one that was asked last
	round     uint64        // numbers the questions
	ready     bool          // the draft model can be asked
	waiting   bool          // for draft tokens
	lazy      bool          // the draft model only catches up, and no row waits for it
	known     int           // the length of the log that the draft model has about caught up with
	arrived   bool          // draft tokens have arrived and were not sent yet
	ids       []int32       // those
	from      int           // the position of the first of them
	asked     time.Duration // when by was asked
	last      time.Duration // since when the row is due that the next window begins with
	unlikely  bool          // the last of the draft model's tokens was improbable
	trust     float64       // moving average of the acceptance rate of improbable tokens

	// Whether windows are chained (windows.go).
	habit           habit
	chain           bool
	chainAt         int  // the length of the log at which that is tried
	rounds, uses    int  // since that changed; and how many windows were chained
	single, chained pace // without and with it
}

// forget drops draft tokens that were asked for or have arrived, because the log is another one now.
func (g *speculation) forget() { g.waiting, g.arrived, g.lazy = false, false, false }

// rewind does the same if they do not follow a log of that length.
func (g *speculation) rewind(length int) {
	if g.from > length {
		g.forget()
	}
}

func newSpeculation(e Submit, h habit) speculation {
	g := speculation{trust: trustFirst, habit: h, known: len(e.Log)}
	if g.habit.rest == 0 {
		g.habit.rest = restFirst
	}
	if h.poor {
		g.chainAt = len(e.Log) + h.rest
	}
	if e.Speculate < 1 || e.Draft {
		return g
	}
	for _, name := range []string{NGram, DraftModel} {
		g.proposers = append(g.proposers, &proposer{
			name: name, limit: e.Speculate, next: e.Speculate, rate: rateFirst, restBelow: restBelow, rest: restFirst,
			gain: payFirst, right: rightFirst, tried: triedFirst,
		})
	}
	for i, p := range g.proposers {
		if rest := h.rests[i]; rest > 0 {
			p.wake, p.next, p.gain = len(e.Log)+rest, 1, payRested
		}
	}
	return g
}

// speculate finds draft tokens to send after the row that is due, at most budget. It also reports
// whether candidates suffice to verify them, and whether the row has to wait.
func (s *Scheduler) speculate(q *sequence, budget int) (ids []int32, candidates, wait bool) {
	if len(q.spec.proposers) == 0 || q.feed.Prefilling() {
		return nil, false, false
	}
	log := q.feed.Log()
	ids, wait = s.propose(q, log, s.draftBudget(q, len(log), budget, false))
	return ids, q.Candidates != nil && q.Candidates.Decides(s.cfg.Vocab, len(log)+len(ids)), wait
}

// draftBudget returns how many draft tokens may be sent after a log of that length. chained says that all
// rows of their entry are those of draft tokens.
func (s *Scheduler) draftBudget(q *sequence, length, budget int, chained bool) int {
	vocab := s.cfg.Vocab
	n := min(budget, q.Speculate, q.MaxLen-length-1, sharedDrafts/len(s.running))
	// If the candidates of a row do not suffice, the sampler asks for the whole row of logits, and the
	// rows after it are lost. So all rows are sent whole, as far as their size allows.
	if n > 0 && q.Candidates != nil && !q.Candidates.Decides(vocab, length+n) &&
		q.Candidates.Need(vocab, length) > 0 {
		n = min(n, wholeRowBytes/(4*max(vocab, 1))-btoi(!chained))
	}
	return n
}

// arrivedFor returns the draft tokens that have arrived, as far as they follow a log. They were asked for
// after the beginning of it; what has come since is known by now.
func (g *speculation) arrivedFor(log []int32) []int32 {
	known := len(log) - g.from
	if known < 0 || known > len(g.ids) || !slices.Equal(log[g.from:], g.ids[:known]) {
		return nil
	}
	return g.ids[known:]
}

// propose returns at most n draft tokens to send after a log: that of the sequence, or one with the draft
// tokens in flight. wait says that they have been asked for.
func (s *Scheduler) propose(q *sequence, log []int32, n int) (ids []int32, wait bool) {
	g := &q.spec
	if g.waiting {
		return nil, !g.lazy
	}
	if g.arrived {
		g.arrived = false
		if ids := g.arrivedFor(log); len(ids) > 0 || g.from == len(log) {
			return ids[:min(max(n, 0), len(ids))], false
		}
	}
	if n < 1 {
		return nil, false
	}
	for _, p := range g.proposers {
		if len(log) < p.wake || p.name == DraftModel && !g.ready {
			continue
		}
		want := s.draftTokens(q, p, n, len(log))
		if want == 0 {
			continue
		}
		g.round++
		g.by, g.asked, g.from = p, s.now, len(log)
		if p.name == DraftModel {
			// After a rest it has to read what has come since. Rows go on meanwhile.
			g.waiting, g.lazy = true, len(log)-g.known > lazyAfter
			s.do(Propose{ID: q.ID, Round: g.round, Log: log, N: want, Any: g.trust > trustEnough,
				Limit: s.draftLimit(want)})
			return nil, !g.lazy
		}
		least := ngramMin
		if g.ready {
			least = ngramMinWithDraft
		}
		if ids := sample.Propose(log, least, ngramMax, want); len(ids) > 0 {
			return ids, false
		}
	}
	return nil, false
}

// draftLimit returns how long the proposal of n draft tokens may take.
func (s *Scheduler) draftLimit(n int) time.Duration {
	if s.timing.plain == 0 {
		return draftCold
	}
	return max(draftFloor, draftFactor*time.Duration(n+1)*s.timing.plain)
}

// drafted stores draft tokens that a sequence waits for. It drops those of an earlier round.
func (s *Scheduler) drafted(e Drafted) {
	q := s.byID[e.ID]
	if q == nil || !q.spec.waiting || e.Round != q.spec.round {
		return
	}
	g := &q.spec
	g.known = max(g.known, g.from)
	if g.lazy {
		g.forget()
		return
	}
	g.waiting, g.arrived, g.ids, g.unlikely = false, true, e.IDs, e.Unlikely
	s.timing.draft = blend(s.timing.draft, (s.now-g.asked).Seconds()/float64(max(1, len(e.IDs))))
	if len(e.IDs) == 0 {
		g.by.learn(0, 0, tooLong(s.now-g.asked, slowRound, s.timing.plain), q.feed.Len())
	}
}

// tooLong reports whether a round has taken longer than the given number of plain steps.
func tooLong(took time.Duration, steps float64, step time.Duration) bool {
	return step > 0 && took > max(slowFloor, time.Duration(steps*float64(step)))
}

// judge updates the acceptance rate of improbable tokens. It is high if the two models are very
// similar.
func (g *speculation) judge(w window) {
	switch {
	case g.trust > trustEnough && w.accepted < w.sent:
		g.trust = trustEnough
	case w.unlikely && w.accepted == w.sent:
		g.trust += rateWeight * (1 - g.trust)
	case w.unlikely && w.accepted == w.sent-1:
		g.trust -= rateWeight * g.trust
	}
}

// draftState is the state of a session that drafts.
type draftState struct {
	end        int // length of the log at which it pauses
	minLogprob float64
	round      uint64
	paused     bool
	picked     int // the last position that the sampler may have picked for; none before the first
}

// startRound makes a draft session generate after another log.
func (s *Scheduler) startRound(e Round) {
	q := s.byID[e.ID]
	if q == nil || !q.Draft {
		return
	}
	if q.feed.Waiting() {
		s.abandon(q) // its row belongs to a round that missed its limit
	}
	q.feed.Rewind(e.Log)
	d := &q.draft
	d.end, d.minLogprob, d.round, d.paused = e.End, e.MinLogprob, e.Round, false
	if len(e.Log)-1 <= d.picked { // the sampler picks once for each position of an epoch
		d.picked = none
		q.Epoch++
		q.accepted, q.asked = false, s.now
		s.do(Add{q.ID, q.Epoch})
	}
}
