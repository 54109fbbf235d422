package sched

// The number of draft tokens. If a draft token is right with probability p whenever those before it are, a round with n
// of them gives (1 - p^(n+1)) / (1 - p) tokens on average (Leviathan et al., "Fast Inference from Transformers via
// Speculative Decoding", 2023). It takes a plain step, and for each of them the time of a further row and of the draft
// model. All of these are measured, and the number with the most tokens per time is asked for, or none if that
// is hardly more than without draft tokens.
//
// That holds for a sequence alone on its pipeline. Otherwise the number follows the draft tokens that were accepted
// (proposer.learn).

const (
	rightFirst = 3.0 // what is assumed about a proposer before anything is known:
	triedFirst = 4.0 // three draft tokens of four are right
	rightKeep  = 0.98
	leastGain  = 1.02 // a proposer rests if no number of draft tokens gives more than this many times the speed
	draftProbe = 2    // draft tokens to ask for before their cost is known
)

// count updates what is known about how often draft tokens are right. Those after a wrong one say nothing.
func (p *proposer) count(sent, accepted int) {
	tried := float64(accepted + btoi(accepted < sent))
	if sent == 0 { // a question that cost time
		tried = 0.5
	}
	p.right, p.tried = rightKeep*p.right+float64(accepted), rightKeep*p.tried+tried
}

// bestDrafts returns the number of draft tokens, from 1 to most, with the greatest gain, and that gain: how many
// times faster than plain decoding it is on average. right is the probability of a draft token, and cost is what
// one takes, in plain steps.
func bestDrafts(right, cost float64, most int) (n int, gain float64) {
	tokens, all := 1.0, 1.0
	for i := 1; i <= most; i++ {
		all *= right
		tokens += all
		if g := tokens / (1 + float64(i)*cost); g > gain {
			n, gain = i, g
		}
	}
	return n, gain
}

// draftTokens returns how many draft tokens, at most most, to ask a proposer for after a log of that length. 0
// means that it rests.
func (s *Scheduler) draftTokens(q *sequence, p *proposer, most, length int) int {
	t := &s.timing
	p.measured, p.chained = len(s.running) == 1 && t.plain > 0, q.spec.chain && s.depth() > 1
	if !p.measured {
		return min(most, p.next)
	}
	cost := t.draftRow
	if p.name == DraftModel {
		cost += t.draft
		if t.draft == 0 {
			return min(most, draftProbe)
		}
	}
	n, gain := bestDrafts(p.right/p.tried, cost/t.plain.Seconds(), min(most, p.limit))
	switch {
	case p.chained: // the draft model goes on meanwhile; whether that pays is measured as a whole
		return max(1, n)
	case gain > leastGain:
		p.probe, p.rest = false, restFirst
		return n
	case p.probe:
		p.probe = false
		return 1
	}
	p.probe = true
	p.takeRest(length)
	return 0
}
