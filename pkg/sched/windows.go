package sched

import (
	"cmp"
	"slices"
	"time"
)

// Windows in flight. A window is an entry whose results are awaited: the row that is due, with draft
// tokens behind it. While the first window of a sequence travels, the proposer goes on after the draft
// tokens in flight, and what it proposes is sent behind them as a further window, which is chained. All
// rows of a chained window have draft tokens, the first one too: it stands for the token that the last row
// of the window before it is expected to give.
//
// The sampler has no notion of windows. It uses the row of a draft token only if it has just picked that id
// for the row's position. So once a draft token is rejected no later row of the chain counts, whatever entry
// it came with. The row that replaces them comes behind them on the same streams, and on the stages it drops
// their keys and values by its position.
//
// Chained windows use places in the pipeline that are idle. They are never in the way of a batch that is
// due, and are tried only as long as they make the sequence faster.

// MaxAhead bounds the draft tokens of a sequence that are in flight.
const MaxAhead = 48

// Whether chained windows pay is measured, in seconds per token: paceKeep is the weight of what was
// measured before, and a mode needs that many rounds before it is compared.
const (
	paceKeep      = 0.8
	singleRounds  = 2
	chainedRounds = 4
	// Alone on its pipeline, a sequence whose draft tokens have cost more than this many plain steps lately
	// goes on without them.
	payKeep   = 0.8
	payFirst  = 0.25
	payLeast  = -0.5
	payRested = -0.25
	payDebt   = 2    // plain steps that a proposer may cost in all,
	payPart   = 0.01 // and for each token
)

// window is an entry in flight whose results are awaited.
type window struct {
	step     uint64 // of its batch
	entry    int    // its place in it
	end      int    // the position after its last row
	sure     bool   // every row gives a token: no candidates can be too few
	chained  bool
	by       *proposer // of its draft tokens
	sent     int       // draft tokens
	accepted int
	tokens   int  // that its rows have given
	prompt   bool // it has rows of a prompt
	behind   bool // rows that the sampler drops were sent before it
	unlikely bool // the last draft token was improbable
}

func (s *Scheduler) newWindow(q *sequence, f *flight, at, rows, drafts, candidates int) window {
	end := at + rows
	w := window{step: f.step, entry: len(f.entries), end: end, sent: drafts,
		prompt: rows > drafts+1, behind: s.strays.rows > 0,
		sure: candidates == 0 || q.Candidates != nil && q.Candidates.Decides(s.cfg.Vocab, end)}
	if drafts > 0 {
		w.by = q.spec.by
		w.unlikely = w.by.name == DraftModel && q.spec.unlikely && end == q.spec.from+len(q.spec.ids)
	}
	return w
}

// strays are the rows in flight that the sampler will drop. Stages may have to compute them before what is
// sent next.
type strays struct {
	rows int
	step uint64 // the last batch with some of them
}

// passed notes that a batch is done, and so are those before it.
func (s *strays) passed(f *flight) {
	if f.step > s.step {
		s.rows = 0
	}
}

// busy returns how many batches are in flight, without chained windows.
func (s *Scheduler) busy() int {
	n := 0
	for _, f := range s.flights {
		n += btoi(!f.chained)
	}
	return n
}

// verify handles a token for a position in the windows of its sequence. It returns the name of what
// proposed the token, if it is an accepted draft token.
//
// The token comes from a row of the first window. If it is the draft token that was sent for its position,
// the session still waits for a token. If it is not, nothing more comes of any window in flight.
func (s *Scheduler) verify(q *sequence, position int) string {
	first := &q.windows[0]
	first.tokens++
	q.strays = false // what was sent before this row has passed the sampler
	inside, more := position < first.end, q.feed.Waiting()
	if inside && more {
		first.accepted++
		return first.by.name
	}
	w := *first
	if more { // it is the first draft token of the next window
		s.back(q)
		s.verified(q, w)
		next := &q.windows[0]
		next.accepted++
		return next.by.name
	}
	if rest := q.windows[1:]; inside || len(rest) > 0 { // rejected
		q.strays = true
		q.spec.forget()
		if !inside {
			rest[0].by.learn(rest[0].sent, 0, false, q.feed.Len())
		}
	}
	s.dropWindows(q)
	s.verified(q, w)
	return ""
}

// dropWindows ends all windows of a sequence: the results of the first have come or no longer matter, and
// the sampler drops the rows of the others.
func (s *Scheduler) dropWindows(q *sequence) {
	s.back(q)
	for s.flying(q) {
		f := s.inFlight[q.windows[0].step]
		f.void = true
		s.strays.rows, s.strays.step = s.strays.rows+f.rows, max(s.strays.step, f.step)
		s.stats.discarded++
		s.back(q)
	}
}

// abandon ends all windows of a sequence whose results no longer matter. None has come, so when its batches end
// here says nothing about how long they take: perhaps a stage is frozen, and the client has lost patience.
func (s *Scheduler) abandon(q *sequence) {
	for _, w := range q.windows {
		s.inFlight[w.step].abandoned = true
	}
	s.dropWindows(q)
}

// verified rates what proposed a window's draft tokens, and chooses whether windows are chained.
func (s *Scheduler) verified(q *sequence, w window) {
	g, step := &q.spec, s.timing.plain
	if len(g.proposers) == 0 {
		return
	}
	took := s.now - g.last
	if g.last = s.now; w.prompt {
		return
	}
	if w.sent > 0 {
		if w.by.name == DraftModel {
			g.judge(w)
		}
		steps := slowRound
		if w.accepted == w.sent {
			steps = slowAccepted
		}
		w.by.learn(w.sent, w.accepted, tooLong(took, steps*float64(w.tokens), step), q.feed.Len())
	}
	if by := cmp.Or(w.by, g.by); by != nil && (w.sent > 0 || w.behind) && step > 0 && len(s.running) == 1 {
		by.charge(float64(w.tokens)-took.Seconds()/step.Seconds(), q.feed.Len(), q.feed.Len()-len(q.Log))
	}
	g.compare(took, w, q.feed.Len())
	s.habit = g.habit
	for i, p := range g.proposers {
		if s.habit.rests[i] = 0; p.saved < 0 && q.feed.Len() < p.wake {
			s.habit.rests[i] = p.wake - q.feed.Len()
		}
	}
}

// habit is what a new sequence takes over from the last one that was measured.
type habit struct {
	poor  bool   // chained windows did not pay when they were tried last
	rest  int    // tokens until they are tried again
	rests [2]int // tokens until a proposer that does not pay is asked again
}

// pace is a decaying measure of time per token.
type pace struct{ seconds, tokens float64 }

func (p *pace) add(took time.Duration, tokens int) {
	p.seconds = paceKeep*p.seconds + took.Seconds()
	p.tokens = paceKeep*p.tokens + float64(tokens)
}

// slower reports whether p takes more time for a token than part of what o takes.
func (p pace) slower(o pace, part float64) bool { return p.seconds*o.tokens > part*o.seconds*p.tokens }

// compare measures a round and changes the mode if the other one is faster.
func (g *speculation) compare(took time.Duration, w window, length int) {
	if w.sent == 0 && !g.chain { // the next window may be one with draft tokens again
		return
	}
	g.rounds++
	if !g.chain {
		g.single.add(took, w.tokens)
		if g.rounds >= singleRounds && length >= g.chainAt {
			g.chain, g.rounds, g.chained = true, 0, pace{}
		}
		return
	}
	g.chained.add(took, w.tokens)
	if g.rounds < chainedRounds || g.uses == 0 {
		return
	}
	if g.chained.slower(g.single, 1) {
		g.chain, g.rounds, g.uses, g.single = false, 0, 0, pace{}
		g.chainAt, g.habit.poor = length+g.habit.rest, true
		g.habit.rest = min(2*g.habit.rest, restLast)
	} else if !g.chained.slower(g.single, 0.9) {
		g.habit.poor, g.habit.rest = false, restFirst
	}
}

// formChained returns a batch with a chained window, or nil. It needs a place in the pipeline that no
// sequence is about to use: each of them has a batch in flight, or will have one as soon as its reader has
// room or its draft tokens arrive.
func (s *Scheduler) formChained() *Batch {
	if s.suspect != nil || s.stuck > 0 || s.depth() == 1 {
		return nil
	}
	working := 0
	var list []*sequence
	for _, q := range s.running {
		if q.replaying() {
			return nil
		}
		working += btoi(!q.Draft || !q.draft.paused)
		if s.mayChain(q) {
			list = append(list, q)
		}
	}
	if len(list) == 0 || working >= s.depth() {
		return nil
	}
	slices.SortStableFunc(list, func(a, b *sequence) int { return cmp.Compare(len(a.windows), len(b.windows)) })
	for _, q := range list {
		if b := s.chain(q); b != nil {
			return b
		}
	}
	return nil
}

// mayChain reports whether a window may be sent behind those of a sequence.
func (s *Scheduler) mayChain(q *sequence) bool {
	g := &q.spec
	if !g.chain || !q.feed.Waiting() || !q.accepted || q.paused || q.yield || q.Suspect || len(q.windows) == 0 {
		return false
	}
	last := q.windows[len(q.windows)-1]
	return last.sure && last.sent > 0 && (!last.unlikely || g.trust > trustEnough)
}

// chain returns a batch with a window behind those of a sequence, or nil if there are no draft tokens for
// it, or not yet, or no pages.
func (s *Scheduler) chain(q *sequence) *Batch {
	log := q.feed.Assumed()
	n := s.draftBudget(q, len(log), s.cfg.BatchRows, true)
	ids, wait := s.propose(q, log, min(n, MaxAhead-q.feed.Ahead()))
	if wait || len(ids) == 0 || !s.grow(q, len(log)+len(ids)) {
		return nil
	}
	rows, ok := q.feed.Chain(ids)
	if !ok {
		return nil
	}
	b := &Batch{Step: s.step + 1, Tokens: rows.IDs}
	f := &flight{step: b.Step, sent: s.now, decode: true, chained: true, mixed: true}
	e := Entry{ID: q.ID, Epoch: q.Epoch, Position: rows.Pos, Rows: len(ids), Logits: len(ids), Drafts: rows.IDs,
		Drafter: q.spec.by.name}
	if q.known < len(q.table) {
		e.PageFrom, e.Pages = q.known, slices.Clone(q.table[q.known:])
		q.known, q.told = len(q.table), len(q.table)
	}
	if q.Candidates != nil && q.Candidates.Decides(s.cfg.Vocab, rows.Pos+len(ids)) {
		e.Candidates = q.Candidates.Need(s.cfg.Vocab, rows.Pos+len(ids))
	}
	s.inFlight[q.step].mixed = true // the window before it
	w := s.newWindow(q, f, rows.Pos, len(ids), len(ids), e.Candidates)
	w.chained = true
	q.windows, q.step = append(q.windows, w), f.step
	q.spec.uses++
	b.Entries = []Entry{e}
	f.entries, f.awaited = []entry{{id: q.ID, run: q.preempt, end: rows.Pos + len(rows.IDs), awaited: true}}, 1
	f.rows, f.prompts, f.drafts = len(ids), len(ids), len(ids)
	s.stale, q.stale = append(s.stale, q.stale...), nil
	s.launch(b, f)
	s.stats.chained++
	return b
}
