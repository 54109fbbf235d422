package router

import (
	"slices"
	"time"

	"github.com/lamina-mesh/lamina/pkg/sample"
)

// proposer guesses the ids that follow a session's log. The scheduler of the session's
// pipeline asks it, and has its guesses verified: no guess changes a token.
type proposer interface {
	// source names it in metrics.
	source() string
	// propose guesses at most n ids that follow l's log. Those that are yet to be worked
	// out come later, within about the limit, as a guessed event of l's round; the
	// session waits for it. It is called by the scheduler's goroutine and returns at once.
	propose(l *live, n int, limit time.Duration) (ids []int32, later bool)
	// verified is told of how many of its guesses were right, by the same goroutine.
	verified(sent, right int)
}

// So many of the last ids, at least and at most, are looked up for what followed them.
// Beside a draft model, which can guess everywhere, fewer ids are too weak a hint.
const (
	lookupLeast      = 2
	lookupLeastDraft = 3
	lookupMost       = 4
)

// lookup guesses what followed a log's end earlier in it, where least ids are alike.
type lookup struct{ least int }

func (lookup) source() string { return "lookup" }

func (p lookup) propose(l *live, n int, _ time.Duration) ([]int32, bool) {
	return sample.Propose(l.feed.Log(), p.least, lookupMost, n), false
}

func (lookup) verified(int, int) {}

// How a proposer's guesses are judged.
const (
	rateFirst  = 0.6 // share of right guesses that a proposer starts with
	rateFade   = 0.25
	unsureFade = 0.1 // for a round without a guess
	ratePoor   = 0.3 // below it a proposer rests
	ratePoorer = 0.5 // the same where another proposer is asked after it
	napFirst   = 16  // tokens of the first rest; each further one is twice as long
	napLast    = 256
	plainFade  = 0.2
	// A round that took so much longer than steps without guesses was for nothing. One
	// without a wrong guess may take longer: it leaves the pipeline to other requests.
	slowRound = 1.25
	slowRight = 3
	slowFloor = 5 * time.Millisecond
)

// judged is a proposer with what came of its guesses for one session.
type judged struct {
	proposer
	most int     // guesses of a round at most
	n    int     // guesses asked for next
	rate float64 // moving share of its guesses that were right
	poor float64
	nap  int
	wake int // the length of the log at which it is asked again
}

// learn takes what came of a round that ended with a log of that length: of so many
// guesses, so many were right. A round may have no guess, or have taken too long.
func (j *judged) learn(sent, right int, slow bool, length int) {
	switch {
	case slow:
		j.rate -= rateFade * j.rate
	case sent == 0:
		j.rate -= unsureFade * j.rate
	default:
		j.rate += rateFade * (float64(right)/float64(sent) - j.rate)
	}
	switch {
	case sent == 0:
	case right == sent:
		j.n = min(j.most, j.n+2)
	default:
		j.n = max(1, j.n-1)
	}
	switch {
	case j.rate < j.poor:
		j.wake, j.nap = length+j.nap, min(2*j.nap, napLast)
		j.rate = j.poor // one poor round more and it rests again
	case j.rate > (1+j.poor)/2:
		j.nap = napFirst
	}
}

// guesser is a session's guessing. Its pipeline's scheduler owns it.
type guesser struct {
	sources []*judged // in the order in which they are asked
	by      *judged   // who was asked last
	round   uint64    // numbers what is asked for
	waiting bool      // guesses are to come
	came    bool      // they have, and were not sent yet
	ids     []int32   // what came
	asked   time.Time // when by was
	sent    int       // guesses that are being verified
	right   int       // of those, so far
}

// newGuesser asks each proposer for at most n ids, in the order given.
func newGuesser(n int, proposers ...proposer) guesser {
	var g guesser
	for i, p := range proposers {
		j := &judged{proposer: p, most: n, n: n, rate: rateFirst, poor: ratePoor, nap: napFirst}
		if i < len(proposers)-1 {
			j.poor = ratePoorer
		}
		g.sources = append(g.sources, j)
	}
	return g
}

// next are guesses to send with the row that is due, at most n. It reports that the row
// is to wait for them.
func (g *guesser) next(l *live, n int, limit time.Duration) (ids []int32, wait bool) {
	if g.waiting {
		return nil, true
	}
	if g.came {
		g.came = false
		return g.ids[:min(max(n, 0), len(g.ids))], false
	}
	if n < 1 {
		return nil, false
	}
	for _, j := range g.sources {
		if l.feed.Len() < j.wake {
			continue
		}
		g.round++
		g.by, g.asked = j, time.Now()
		ids, later := j.propose(l, min(n, j.n), limit)
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

// take takes guesses that were waited for; others are too late.
func (g *guesser) take(e *guessed, length int, step time.Duration) {
	if !g.waiting || e.round != g.round {
		return
	}
	g.waiting, g.came, g.ids = false, true, e.ids
	if len(e.ids) == 0 {
		g.by.learn(0, 0, g.slow(slowRound, step), length)
	}
}

// slow reports whether a round has taken longer than so many steps.
func (g *guesser) slow(steps float64, step time.Duration) bool {
	return step > 0 && time.Since(g.asked) > max(slowFloor, time.Duration(steps*float64(step)))
}

// verified books the round whose last token has come.
func (g *guesser) verified(length int, step time.Duration) {
	if g.sent > 0 {
		g.by.verified(g.sent, g.right)
		steps := slowRound * float64(g.right+1)
		if g.right == g.sent {
			steps = slowRight * float64(g.right+1)
		}
		g.by.learn(g.sent, g.right, g.slow(steps, step), length)
	}
	g.sent, g.right = 0, 0
}

// guessed is an event: what a proposer worked out for a session.
type guessed struct {
	l     *live
	round uint64
	ids   []int32
}

const (
	// wholeBytes bounds the rows that are sent whole because candidates might not decide.
	wholeBytes = 2 << 20
	// sharedGuesses is how many guesses the sessions of a pipeline share, evenly: rows of
	// a wide batch cost more than they save.
	sharedGuesses = 24
	// A proposer may take as long as so many of the steps that it can save.
	guessFactor = 4
	guessFloor  = 250 * time.Millisecond
	guessCold   = time.Second // while steps have not been measured
)

// guess finds ids to send after the row that is due for a session, with at most budget
// of them. It reports that they may be verified by candidates alone, and that the
// session is to wait.
func (s *scheduler) guess(l *live, budget int) (ids []int32, decides, wait bool) {
	if len(l.guesser.sources) == 0 || l.feed.Prefilling() {
		return nil, false, false
	}
	vocab, n := int(s.p.stages[0].GetVocab()), min(budget, s.p.service.cfg.Speculate, l.maxLen-l.feed.Len()-1, sharedGuesses/len(s.order))
	// A row behind one whose candidates are too few would be dropped: whole rows never are.
	if n > 0 && !l.picker.Decides(vocab, l.feed.Len()+n) && l.picker.Need(vocab, l.feed.Len()) > 0 {
		n = min(n, wholeBytes/(4*max(vocab, 1))-1)
	}
	ids, wait = l.guesser.next(l, n, s.guessLimit(n))
	return ids, l.picker.Decides(vocab, l.feed.Len()+len(ids)), wait
}

// guessLimit is how long n guesses may take.
func (s *scheduler) guessLimit(n int) time.Duration {
	step := s.stepTime()
	if step == 0 {
		return guessCold
	}
	return max(guessFloor, guessFactor*time.Duration(n+1)*step)
}

// stepTime is what a decode step without guesses takes lately; 0 before the first.
func (s *scheduler) stepTime() time.Duration {
	return time.Duration(s.plain * float64(time.Second))
}

// stepped takes the time of a decode step. One with guesses takes no less than one
// without would have.
func (s *scheduler) stepped(seconds float64, guesses int) {
	switch {
	case guesses > 0:
		s.plain = min(s.plain, seconds)
	case s.plain == 0:
		s.plain = seconds
	default:
		s.plain += plainFade * (seconds - s.plain)
	}
}

// sentGuesses notes the guesses that go out with a session's row.
func (s *scheduler) sentGuesses(l *live, ids []int32) {
	if len(ids) == 0 {
		return
	}
	l.guesser.sent, l.guesser.right = len(ids), 0
	s.p.service.m.guessed.WithLabelValues(l.guesser.by.source()).Add(float64(len(ids)))
}

// rightGuess notes that a guess was picked.
func (s *scheduler) rightGuess(l *live) {
	l.guesser.right++
	s.p.service.m.right.WithLabelValues(l.guesser.by.source()).Inc()
}

// guessed takes guesses that come later, unless the session has gone.
func (s *scheduler) guessed(e *guessed) {
	if slices.Contains(s.order, e.l) {
		e.l.guesser.take(e, e.l.feed.Len(), s.stepTime())
	}
}
